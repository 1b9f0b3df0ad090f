"""Which of llama.cpp's architectures a model is written as, and which models have none."""

import dataclasses

import pytest

import matta_jax
from matta_jax import packages
from matta_jax.packages import Packaging, _convert
from matta_jax.packages.gguf import kind_of

MIX = "d_ff=96,48,64"
REFUSED = [
    ({"post_norms": True}, "model.post_norms=True must be False: Gemma"),
    ({"norm_offset": 1.0}, "model.norm_offset=1.0 must be 0.0"),
    ({"gate": "gelu_tanh"}, "model.gate='gelu_tanh' must be 'silu'"),
    ({"query_scale": 0.5}, "model.query_scale=0.5 must be None"),
    ({"embed_scale": 5.6}, "model.embed_scale=5.6 must be 1"),
    ({"window": 8}, "model.window=8 must be None: .* no local layers"),
    ({"qkv_bias": True, "qk_norm": True}, "model.qkv_bias=True beside model.qk_norm=True"),
    (
        {"qk_norm": True, "tie_embeddings": False},
        "model.tie_embeddings=False with layers of several sizes .*; extract a single size, or",
    ),
]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16.0,
    },
}


def yarn(**numbers):
    scaling = {"factor": 4.0, "original_max_position_embeddings": 16.0, **numbers}
    return {"rope_type": "yarn", "rope_scaling": scaling}


SCALINGS = [
    ("qwen2", "ta", LLAMA3, "'llama3' has no form in llama.cpp's qwen2, only default, linear"),
    ("qwen3", MIX, LLAMA3, "'llama3' has no form in llama.cpp's openelm"),
    ("llama", "ta", yarn(beta_fast=16.0), "'beta_fast'.=16.0 of yarn .*, but for 32.0"),
    ("llama", "ta", yarn(truncate=0.0), "'truncate'.=0.0 of yarn"),
    ("llama", "ta", yarn(attention_factor=1.5), "'attention_factor'.=1.5 of yarn"),
    ("llama", "ta", yarn(mscale=1.0, mscale_all_dim=1.0), "'mscale_all_dim'.=1.0 of yarn"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_what_llama_cpp_has_no_block_for_is_refused(refused, architecture_of, place, fields, words):
    architecture = architecture_of("llama", MIX, **fields)
    with refused(f"format='gguf': {words}.*use format=safetensors", place):
        kind_of(architecture)


@pytest.mark.parametrize(("block", "spec", "fields", "words"), SCALINGS)
def test_scalings_that_llama_cpp_lacks_are_refused(
    refused, architecture_of, place, block, spec, fields, words
):
    with refused(f"format='gguf': .*{words}.*; use format=safetensors", place):
        kind_of(architecture_of(block, spec, **fields))


def test_scalings_that_say_what_llama_cpp_does_are_taken(architecture_of):
    for fields in (yarn(), yarn(beta_fast=32.0, beta_slow=1.0, truncate=1.0)):
        assert kind_of(architecture_of("llama", MIX, **fields)).name == "deci"


def test_biases_with_factors_of_frequencies_have_a_kind_where_sizes_differ(architecture_of):
    assert kind_of(architecture_of("qwen2", MIX, **LLAMA3)).name == "deci"


def test_heads_of_a_gpt2_that_cannot_fill_d_model_are_refused(refused, architecture_of, place):
    architecture = architecture_of("gpt2", "student", head_dim=12)
    with refused("4 heads of 12 do not fit in d_model=32 of llama.cpp's GPT-2; extract", place):
        kind_of(architecture)


@pytest.mark.parametrize("name", ["scorer", "embedder", "vit"])
def test_other_families_are_refused(refused, architecture_of, place, name):
    architecture = dataclasses.replace(architecture_of("llama"), family_name=name)
    with refused(f"is of the family {name!r}; use format=safetensors", place):
        packages.check_format(Packaging("gguf"), architecture)


def test_a_refusal_comes_before_anything_is_written(refused, written, place, monkeypatch):
    folder, _ = written("llama", packaging=Packaging("orbax"), window=8)
    monkeypatch.setattr(_convert, "new_folder", None)
    with refused("model.window=8 must be None", place):
        matta_jax.convert(folder, place / "model", packaging=Packaging("gguf"))
