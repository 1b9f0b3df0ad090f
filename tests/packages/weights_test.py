"""Weights are read when they are written, once, a layer at a time."""

import dataclasses

import numpy as np
import pytest

import matta_jax
from matta_jax import checkpoints, packages
from matta_jax.packages import Packaging, _write
from matta_jax.packages._weights import Recorded


@pytest.mark.parametrize("format", ["safetensors", "hf"])
def test_each_number_is_read_once_and_a_stack_by_its_layers(models, tmp_path, monkeypatch, format):
    real, reads, shapes = _write.write_weights, {}, {}

    def watched(folder, packaging, weights, *rest, **more):
        def watch(path, weight):
            def read(index):
                part = weight.read(index)
                reads.setdefault(path, []).append(part.shape)
                return part

            shapes[path] = weight.shape
            return dataclasses.replace(weight, read=read)

        watching = {path: watch(path, weight) for path, weight in weights.items()}
        return real(folder, packaging, watching, *rest, **more)

    monkeypatch.setattr(_write, "write_weights", watched)
    matta_jax.import_hf(
        models("hf")["ta"], tmp_path / "model", tokenizer="byte", packaging=Packaging(format)
    )
    assert set(reads) == set(shapes)
    for path, parts in reads.items():
        assert sum(map(np.prod, parts)) == np.prod(shapes[path]), path
        if path.startswith("blocks/"):
            assert parts == [(1, *shapes[path][1:])] * shapes[path][0]


def test_fingerprints_taken_on_the_way_are_those_of_the_whole():
    array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    (weight,) = packages.in_memory({"w": array}).values()
    for units in ((1, 2, 0), (1, 0, 1)):
        recorded = Recorded(weight, units)
        for i in range(3):
            assert np.array_equal(recorded.weight.entry(i), array[i : i + 1])
        assert recorded.fingerprint == checkpoints.fingerprint(array, units)
    whole = Recorded(weight, (0, 2, 0))
    whole.weight.whole()
    assert whole.fingerprint == checkpoints.fingerprint(array, (0, 2, 0))


def test_a_rounded_weight_is_the_nearest():
    array = np.array([1.0, 1.00390625, 3.0e-8], np.float32)
    (weight,) = packages.in_memory({"w": array}).values()
    low = weight.rounded("bf16")
    assert (low.shape, low.dtype.name) == ((3,), "bfloat16")
    assert np.array_equal(low.whole(), packages.cast({"w": array}, "bf16")["w"])
    assert weight.rounded("fp32").whole().tobytes() == array.tobytes()
