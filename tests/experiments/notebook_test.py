"""The notebook, from a clean kernel."""

import os
import pathlib

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[2] / "experiments" / "notebooks" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_notebook_runs_from_a_clean_kernel(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # The tests' compiler flags make slow programs.
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(
        notebook, timeout=1400, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in shown)
    assert text.count("bits_per_byte:held_out") == 5 and "--- student\ndef " in text
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
