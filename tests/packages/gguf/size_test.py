"""The bytes of a file are counted as they are written."""

import pytest

from matta_jax import packages
from matta_jax.nesting import flatten, parse_spec, unflatten
from matta_jax.packages import Packaging

MIX = "d_ff=128,64,96"
KINDS = ("llama", "llama3", "untied", "qwen2", "qwen3", "yarn", "gpt2")


@pytest.mark.parametrize("quantize", ["f32", "f16", "bf16", "q8_0", "q5_0", "q4_0"])
@pytest.mark.parametrize("spec", ["student", MIX])
def test_a_file_has_the_bytes_that_are_counted(written, spec, quantize):
    pytest.importorskip("gguf")
    folder, _ = written("llama", spec, Packaging("gguf", quantize=quantize), is_wide=True)
    architecture = packages.open_model(folder).architecture
    size = (folder / "model.gguf").stat().st_size
    assert packages.file_bytes(architecture, quantize, "byte") == size


@pytest.mark.few(6)
@pytest.mark.parametrize("block", KINDS)
@pytest.mark.parametrize("spec", ["ta", "layers=2", "d_ff=96,48,64"])
def test_so_has_a_file_of_each_kind(written, block, spec):
    pytest.importorskip("gguf")
    folder, _ = written(block, spec)
    architecture = packages.open_model(folder).architecture
    size = (folder / "model.gguf").stat().st_size
    assert packages.file_bytes(architecture, "f32", "byte") == size


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "spm"])
def test_so_has_a_vocabulary(written, tokenizer_file, kind):
    pytest.importorskip("gguf")
    spec = tokenizer_file(kind)
    folder, _ = written("llama", "student", vocab_size=800, tokenizer=spec)
    architecture = packages.open_model(folder).architecture
    size = (folder / "model.gguf").stat().st_size
    assert packages.file_bytes(architecture, "f32", spec) == size


@pytest.mark.parametrize("quantize", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("block", ["llama", "qwen3", "gpt2"])
def test_a_part_of_a_rounded_ta_is_a_rounded_part(plan_of_wide, random_weights, block, quantize):
    """Blocks end where sub-models may be cut, so that a search rounds the TA once."""
    pytest.importorskip("gguf")
    plan = plan_of_wide(block)
    ta = unflatten(random_weights(plan.architecture))
    packaging = Packaging("gguf", quantize=quantize)
    rounded_ta = packages.rounded(ta, packaging, plan.architecture)
    for spec in ("student", MIX, "layers=2"):
        sub_model = parse_spec(spec, plan.nest)
        part = packages.rounded(
            plan.slice(ta, sub_model), packaging, plan.architecture_of(sub_model)
        )
        expected = flatten(plan.slice(rounded_ta, sub_model))
        assert expected.keys() == flatten(part).keys()
        for path, weight in flatten(part).items():
            assert (weight == expected[path]).all(), path
