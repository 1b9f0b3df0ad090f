"""The notebooks, from clean kernels, of the wheel that their first cells install."""

import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))

# What each shows: parts of its text, and how many pictures.
SHOWN = {
    "budget_search": (["| ta ", "over budget", "max_difference': 0.0"], 1),
    "elastic_llama": (["d_ff=128", "sorted ", "--- student", "--- ta"], 0),
    "embeddings": (["retrieval_recall:", "| middle ", "    "], 0),
    "quickstart": (["bits_per_byte:held_out", "--- student", "\ndef "], 2),
}
# Run by the environment that has the wheel: a kernel is of the Python that starts it.
EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=1400).execute()
nbformat.write(notebook, sys.argv[2])
"""


def cells_of(path, kind="code"):
    notebook = json.loads(path.read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_output_and_installs_as_the_others_do(path):
    code, texts = cells_of(path), cells_of(path, "markdown")
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert code[0]["source"] == cells_of(NOTEBOOKS[0])[0]["source"]
    # Not editable, and from wherever the user names.
    assert " -e " not in "".join(code[0]["source"])
    assert path.stem == "quickstart" or "For whoever" in "".join(texts[0]["source"])


@pytest.mark.parametrize(
    ("files", "driver", "extras"),
    [
        ([], None, []),
        (["/dev/accel0"], None, ["tpu"]),
        ([], "580.65.06\n580.65.06\n", ["cuda13"]),
        ([], "575.57.08\n", ["cuda12"]),
        ([], "", ["cuda12"]),
    ],
)
def test_the_extra_is_that_of_the_machine(monkeypatch, files, driver, extras):
    source = "".join(cells_of(NOTEBOOKS[0])[0]["source"]).partition("\nif importlib")[0]
    names = {}
    exec(source, names)
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    monkeypatch.setattr(os.path, "exists", lambda path: path in files)
    monkeypatch.setattr(names["shutil"], "which", lambda name: driver if driver is None else name)
    told = subprocess.CompletedProcess([], 0, stdout=driver)
    monkeypatch.setattr(names["subprocess"], "run", lambda *args, **named: told)
    assert names["accelerator"]() == extras


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """That of this clone."""
    # A folder `build`, which setuptools leaves, is a package too, and an empty one.
    pytest.importorskip("build.env")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture
def clean_python(tmp_path):
    """Of an environment that has what the tests have, but for matta_jax."""
    venv.create(tmp_path / "venv", with_pip=False)
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for place in pathlib.Path(sysconfig.get_path("purelib")).iterdir():
        if not place.name.startswith(("matta_jax", "__editable__")) and place.suffix != ".pth":
            (libraries / place.name).symlink_to(place)
    [packages] = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(str(libraries))
    return tmp_path / "venv" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_the_wheel_in_a_clean_kernel(path, wheel, clean_python, tmp_path):
    """Slow: each trains, for fewer steps than it says where these are many."""
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package)
    # The tests' compiler flags make slow programs.
    ours = ("PYTHONPATH", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["MATTA_JAX_ADDRESS"] = str(wheel)
    (tmp_path / "work").mkdir()
    source, executed = tmp_path / "source.ipynb", tmp_path / "executed.ipynb"
    source.write_text(re.sub(r"num_steps=[2-9]\d\d\b", "num_steps=100", path.read_text()))
    done = subprocess.run(
        [str(clean_python), "-c", EXECUTE, str(source), str(executed)],
        cwd=tmp_path / "work",
        env=environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.glob("venv/lib/python*/site-packages/matta_jax/configs/quickstart.py"))

    outputs = [output for cell in cells_of(executed) for output in cell["outputs"]]
    text = "".join("".join(output.get("text", "")) for output in outputs)
    parts, num_pictures = SHOWN[path.stem]
    assert [part for part in parts if part not in text] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == num_pictures
