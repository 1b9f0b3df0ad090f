"""What an engine is told of the files of a model."""

from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.packages._package import Package
from matta_jax.packages._packaging import HF_FORMATS
from matta_jax.packages.engines._engine import Engine
from matta_jax.packages.gguf import FILE_NAME, holds_texts
from matta_jax.packages.hf import Layout, open_hf
from matta_jax.tokenizers import make_tokenizer


def request_of(engine: Engine, package: Package, field: str = "certify") -> dict[str, Any]:
    """What an engine is told of a model's files, in a format that it reads.

    Raises:
      UserError: its folder has code that is not ours, or llama.cpp's server has no texts of its
        vocabulary; told of the field that names the engine.
    """
    if package.manifest["format"] in HF_FORMATS:
        layout = open_hf(package.path).layout
        if layout.is_unpadded:
            _check_code(package, layout)
        about = {"folder": str(package.path), "runs_code": layout.is_unpadded}
        return about | {"vocab_size": package.architecture.vocab_size}

    file = package.path / FILE_NAME
    if not holds_texts(file):
        raise UserError(
            f"{field}={engine.name!r}: {package.manifest['notes'][0]} Its server is asked; leave "
            f"{field} out"
        )
    # A letter: of the end, or of half a character, the server gives no probabilities.
    token = int(make_tokenizer(package.config.data.tokenizer).encode("a")[0])
    return {"file": str(file), "vocab_size": package.architecture.vocab_size, "token": token}


def _check_code(package: Package, layout: Layout) -> None:
    """Raises UserError where the code of a folder, which an engine would run, is not what is
    written here.
    """
    written = {name: storage.read_text(package.path / name) for name in layout.more_texts()}
    config = storage.read_json(package.path / "config.json")
    expected = layout.describe(package.architecture, "float32", None)
    if written != layout.more_texts() or config["auto_map"] != expected["auto_map"]:
        raise UserError(
            f"model={str(package.path)!r}: its code is not that which matta-extract writes, and is "
            "not run; write the model again"
        )
