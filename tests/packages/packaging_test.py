"""Models in files of a size, with an index; and what cannot be asked for."""

import json

import pytest
import safetensors.numpy

import matta_jax
from matta_jax import elastic, nesting, packages
from matta_jax.errors import UserError
from matta_jax.packages import Packaging

SPEC = "d_ff=48,16,48"
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("format", ["safetensors", "hf"])
def test_a_model_is_split_at_the_size_and_reads_back_the_same(
    weights, assert_same_bits, models, tmp_path, format
):
    largest = 20_000
    packaging = Packaging(format, max_shard_gb=largest / 1e9)
    package = matta_jax.convert(models()[SPEC], tmp_path / "split", packaging=packaging)
    assert_same_bits(weights(package.path), weights(models()[SPEC]))
    elastic.verify(package.path)

    files = sorted(package.path.glob("*.safetensors"))
    assert len(files) > 2
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    assert [file.name for file in files] == names
    index = json.loads((package.path / INDEX).read_text())
    stored, total = {}, 0
    for file in files:
        tensors = safetensors.numpy.load_file(file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= largest or len(tensors) == 1
        stored |= dict.fromkeys(tensors, file.name)
        total += size
    assert index == {"metadata": {"total_size": total}, "weight_map": stored}
    # A file is begun where the next tensor has no room, and nowhere else.
    assert len(files) <= 2 * total / largest + 1
    assert package.disk_bytes == sum(file.stat().st_size for file in files)

    if format == "hf":
        again = matta_jax.import_hf(package.path, tmp_path / "again", tokenizer="byte")
        assert_same_bits(weights(again.path), weights(models()[SPEC]))


def test_a_shard_that_is_gone_or_cut_off_is_told(refused, models, tmp_path):
    packaging = Packaging("safetensors", max_shard_gb=2e-5)
    folder = matta_jax.convert(models()[SPEC], tmp_path / "split", packaging=packaging).path
    first = min(folder.glob("*.safetensors"))
    stored = first.read_bytes()
    first.write_bytes(stored[:-8])
    with refused(f"model=.*damaged.*{first.name}' is damaged.*extract it again", folder):
        packages.load_model(folder)
    first.unlink()
    with refused(f"{first.name}' is missing; extract it again", folder):
        packages.load_model(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_shard_gb": 0.0}, "max_shard_gb=0.0 must be above 0 and finite, such as 5"),
        ({"max_shard_gb": float("nan")}, "max_shard_gb=nan must be above 0"),
        ({"max_shard_gb": float("inf")}, "max_shard_gb=inf must be above 0"),
        ({"format": "hff"}, "format='hff' must be one of orbax, safetensors, hf.*'hf'"),
        ({"dtype": "f32"}, "dtype='f32' must be one of fp32, bf16.*'fp32'"),
    ],
)
def test_what_cannot_be_written_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        Packaging(**fields)


def test_bytes_are_those_of_the_type():
    counts = nesting.Counts(parameters=10, bytes=40, flops_per_token=7)
    assert packages.at_dtype(counts, "bf16") == nesting.Counts(10, 20, 7)
    assert packages.at_dtype(counts, "fp32") == counts
