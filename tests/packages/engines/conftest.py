"""Engines that tests need not have."""

import importlib.util
import math

import numpy as np
import pytest

from matta_jax import packages, storage
from matta_jax.packages.engines import _certify, _engine


@pytest.fixture
def installed(monkeypatch):
    """Engines are installed, or seem to be."""
    real = importlib.util.find_spec
    modules = {module for engine in packages.ENGINES.values() for module in engine.modules}
    fake = lambda name, *args: object() if name in modules else real(name, *args)
    monkeypatch.setattr(_engine.importlib.util, "find_spec", fake)


def num_stored(folder):
    """Numbers in the files of a folder."""
    if (folder / "model.gguf").is_file():
        import gguf

        tensors = gguf.GGUFReader(folder / "model.gguf").tensors
        return sum(math.prod(tensor.shape.tolist()) for tensor in tensors)
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    return sum(tensor.size for tensor in tensors.values())


@pytest.fixture
def engines(monkeypatch, installed, log_probs_of):
    """`engines(change)`: from now on engines answer with our log-probabilities of the files, as
    `change(answer)` makes them; returns the list of what they were asked.
    """

    def install(change=lambda answer: answer):
        asked = []

        def answer_of(engine, request):
            asked.append((engine.name, request))
            folder = storage.path(request.get("folder") or request["file"].rpartition("/")[0])
            assert folder.is_dir()
            model = packages.load_model(folder)
            rows = [log_probs_of(model, ids) for ids in request["ids"]]
            return change(_engine.Answer("1.2", num_stored(folder), np.array(rows, np.float32)))

        monkeypatch.setattr(_certify, "ask", answer_of)
        return asked

    return install
