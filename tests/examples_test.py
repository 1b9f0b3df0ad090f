"""The examples of the calls: each runs as it stands, on small models where it looks for them."""

import doctest
import importlib.util
import logging
import pathlib
import shutil
import struct

import numpy as np
import pytest

import matta_jax
from matta_jax.packages import Packaging

CALLS = [name for name in matta_jax._HOMES if name not in ("Config", "UserError")]
NEEDS = {
    "certify": "xllamacpp",
    "compile_check": "libtpu",
    "import_gguf": "gguf",
    "push": "huggingface_hub",
}


def stories() -> bytes:
    """A file of llama2.c with two layers, of random weights."""
    dim, hidden, layers, heads, vocab, length = 8, 12, 2, 2, 256, 16
    shapes = [(vocab, dim), (layers, dim), *[(layers, dim, dim)] * 4, (layers, dim)]
    shapes += [*[(layers, hidden, dim)] * 3, (dim,)]
    rng = np.random.default_rng(0)
    weights = b"".join(rng.normal(size=shape).astype("<f4").tobytes() for shape in shapes)
    # Older readers find the turns of positions at the end.
    turns = bytes(4 * length * dim // heads)
    return struct.pack("<7i", dim, hidden, layers, heads, heads, vocab, length) + weights + turns


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
    (root / "stories.bin").write_bytes(stories())
    matta_jax.train(embedder(), root / "runs/texts", log=logging.info)
    matta_jax.extract(str(root / "runs/texts"), "student", root / "models/embedder")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
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
        assert example.examples, name
        assert all(len(line) <= 100 for line in example.docstring.splitlines())
