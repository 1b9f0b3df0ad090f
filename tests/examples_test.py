"""The examples of the calls: each runs as it stands, on small models where it looks for them."""

import doctest
import importlib.util
import logging
import pathlib
import shutil

import numpy as np
import pytest

import matta_jax
from matta_jax.packages import Packaging

CALLS = [name for name in matta_jax._HOMES if name not in ("Config", "UserError")]
# Shown elsewhere: rounds of clients take a minute, and a file of llama2.c is of another program.
ELSEWHERE = ("federate", "import_llama2c")
NEEDS = {
    "certify": "xllamacpp",
    "compile_check": "libtpu",
    "import_gguf": "gguf",
    "push": "huggingface_hub",
}


@pytest.fixture(scope="module")
def folders(run, embedder, images, vit_model, tmp_path_factory) -> pathlib.Path:
    """Where the examples run."""
    root = tmp_path_factory.mktemp("examples")
    for name in ("runs", "models", "exported"):
        (root / name).mkdir()
    shutil.copytree(run[1], root / "runs/books")
    (root / "photos.npz").symlink_to(images)
    (root / "models/images").symlink_to(vit_model)
    matta_jax.extract(str(run[1]), "d_ff=16,32,48", root / "models/mix")
    matta_jax.extract(
        str(run[1]), "student", root / "exported/gpt2", packaging=Packaging(format="hf")
    )
    matta_jax.train(embedder(), root / "runs/texts", log=logging.info)
    matta_jax.extract(str(root / "runs/texts"), "student", root / "models/embedder")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CALLS if name not in ELSEWHERE])
def test_an_example_runs_as_it_stands(name, folders, tiny, monkeypatch):
    needed = NEEDS.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    monkeypatch.chdir(folders)
    if name in ("certify", "import_gguf") and not pathlib.Path("exported/gguf").exists():
        gguf = Packaging(format="gguf")
        matta_jax.extract("runs/books", "student", "exported/gguf", packaging=gguf)
    names = {"matta_jax": matta_jax, "config": tiny(), "logging": logging, "np": np}
    call = getattr(matta_jax, name)
    [example] = doctest.DocTestFinder(recurse=False).find(call, name, globs=names)
    assert example.examples, f"{name} has no example"
    lines: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert not runner.run(example, out=lines.append).failed, "".join(lines)


def test_every_call_has_an_example():
    finder = doctest.DocTestFinder(recurse=False)
    for name in CALLS:
        [example] = finder.find(getattr(matta_jax, name), name)
        assert bool(example.examples) == (name not in ELSEWHERE), name
        assert all(len(line) <= 100 for line in example.docstring.splitlines())
