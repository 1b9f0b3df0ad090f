"""Folders for vLLM's `DeciLMForCausalLM`: what vLLM makes of them, and what it cannot serve."""

import json
import types

import hypothesis
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as st

import matta_jax
from matta_jax import models, packages, storage
from matta_jax.errors import UserError
from matta_jax.nesting import flatten
from matta_jax.packages import Packaging
from matta_jax.packages.hf import _deci

SPECS = ("student", "ta", "d_ff=40,20,40", "num_kv_heads=1;d_ff=20,40,40")


def rounded_width(multiple, d_model):
    """As `_ffn_mult_to_intermediate_size` and `_find_multiple` of vLLM's nemotron_nas.py."""
    width = int(2 * multiple * d_model / 3)
    return width if width % 256 == 0 else width + 256 - width % 256


def shapes_of_vllm(config):
    """The shapes that vLLM gives to a layer's weights, from a config with attributes.

    After vllm/model_executor/models/nemotron_nas.py, `DeciLMDecoderLayer.__init__`: the heads of
    keys, and that `ffn_mult` goes before `intermediate_size`; and llama.py, `LlamaAttention`: that
    `head_dim` is the config's. The cache has the heads of `ModelConfig.get_total_num_kv_heads`,
    which go by `model_type`, and are of the first block.
    """
    assert config.model_type == "nemotron-nas" and config.architectures == ["DeciLMForCausalLM"]
    first_kv_heads = (
        config.num_attention_heads // config.block_configs[0].attention.n_heads_in_group
    )
    d_model, head_dim = config.hidden_size, config.head_dim
    shapes = []
    for block in config.block_configs:
        assert not block.attention.no_op and not block.ffn.no_op
        kv_heads = config.num_attention_heads // block.attention.n_heads_in_group
        assert kv_heads == first_kv_heads
        if hasattr(block.ffn, "ffn_mult"):
            width = rounded_width(block.ffn.ffn_mult, d_model)
        else:
            width = block.ffn.intermediate_size
        layer_shapes = {
            "self_attn.q_proj": (config.num_attention_heads * head_dim, d_model),
            "self_attn.k_proj": (kv_heads * head_dim, d_model),
            "mlp.gate_proj": (width, d_model),
            "mlp.down_proj": (d_model, width),
        }
        shapes.append(layer_shapes)
    return shapes


def attributes_of(file):
    """A config.json with attributes for its keys."""
    return json.loads(file.read_text(), object_hook=lambda fields: types.SimpleNamespace(**fields))


@pytest.mark.parametrize("spec", SPECS)
def test_vllm_makes_the_shapes_that_are_stored(mix_of, write_folder, read_folder, spec):
    architecture, params = mix_of("llama", spec)
    folder = write_folder(Packaging("vllm"), architecture, params)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    shapes = shapes_of_vllm(attributes_of(folder / "config.json"))
    assert len(shapes) == 3
    for layer, layer_shapes in enumerate(shapes):
        for name, shape in layer_shapes.items():
            assert tensors[f"model.layers.{layer}.{name}.weight"].shape == shape
    stored = sum(tensor.size for tensor in tensors.values())
    assert stored == models.count_model(architecture, 8).parameters

    back, weights = read_folder(folder)
    assert back == architecture
    for path, weight in flatten(params).items():
        np.testing.assert_array_equal(weights[path], weight)


def test_the_multiple_is_written_where_it_gives_every_width_back(mix_of, write_folder):
    for widths, has_multiples in (((256, 512), True), ((256, 384), False)):
        architecture, params = mix_of("llama", f"d_ff={widths[0]},{widths[1]}*2", widths=widths)
        folder = write_folder(Packaging("vllm"), architecture, params)
        config = attributes_of(folder / "config.json")
        blocks = [vars(block.ffn) for block in config.block_configs]
        assert {"ffn_mult" in block for block in blocks} == {has_multiples}
        assert shapes_of_vllm(config)[1]["mlp.gate_proj"] == (widths[1], 24)


@hypothesis.given(width=st.integers(1, 200_000), d_model=st.integers(1, 20_000))
def test_a_multiple_gives_the_width_back_or_is_none(width, d_model):
    multiple = _deci.ffn_mult(width, d_model)
    assert (multiple is not None) == (width % 256 == 0)
    if multiple is not None:
        assert rounded_width(multiple, d_model) == width == _deci.width_of(multiple, d_model)
        # Far from both bounds: no engine's rounding of the product matters.
        assert abs(2 * multiple * d_model / 3 - (width - 128)) < 1


@pytest.mark.parametrize(
    ("kind", "spec", "fields", "words"),
    [
        ("gpt2", "ta", {}, "this model is of the family 'gpt'; use format=hf"),
        ("qwen2", "ta", {}, "model.qkv_bias=True must be False; use format=hf"),
        ("qwen3", "ta", {}, "model.qk_norm=True must be False; use format=hf"),
        ("llama", "ta", {"window": 4}, "format='vllm': model.window=4 is not what stock Llama has"),
        ("llama", "num_kv_heads=1,3,1", {}, "num_kv_heads=1,3,1 must be one number for all layers"),
    ],
)
def test_what_vllm_does_not_compute_is_refused(mix_of, kind, spec, fields, words):
    architecture, _ = mix_of(kind, spec, **fields)
    with pytest.raises(UserError, match=words) as error:
        packages.hf_config(architecture, "float32", None, "vllm")
    assert "\n" not in str(error.value)


def test_what_vllm_does_not_compute_is_refused_before_anything_is_written(run, refused, place):
    with refused("format='vllm' has Llama's block alone", place):
        matta_jax.extract(str(run[1]), "ta", place / "model", packaging=Packaging("vllm"))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda block: block["attention"].update(no_op=True), "no block is left out"),
        (lambda block: block["attention"].update(n_heads_in_group=1), "n_heads_in_group is 2"),
        (lambda block: block["ffn"].update(ffn_mult=1.0), "ffn_mult gives intermediate_size"),
        (lambda block: block["ffn"].update(intermediate_size=40), r"has shape \(20, 24\), but"),
        (lambda block: block["ffn"].pop("intermediate_size"), "'intermediate_size' is missing"),
    ],
)
def test_blocks_that_we_do_not_compute_are_refused(mix_of, write_folder, tmp_path, edit, words):
    folder = write_folder(Packaging("vllm"), *mix_of("llama", "d_ff=40,20,40"))
    config = json.loads((folder / "config.json").read_text())
    edit(config["block_configs"][1])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words):
        matta_jax.import_hf(folder, tmp_path / "ours", tokenizer="byte")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spec", SPECS)
def test_transformers_computes_our_logits_with_the_config_that_vllm_reads(
    mix_of, write_folder, read_folder, run_ours, load_trusted, run_theirs, transformers, spec
):
    architecture, params = mix_of("llama", spec)
    folder = write_folder(Packaging("vllm"), architecture, params)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert shapes_of_vllm(config) == shapes_of_vllm(attributes_of(folder / "config.json"))

    theirs = load_trusted(folder)
    tokens = np.random.default_rng(0).integers(0, 61, (2, 40))
    expected = run_theirs(theirs, tokens)
    actual = run_ours(architecture, params, tokens)
    scale = max(1, np.abs(expected).max())
    assert expected.std() > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-5 * scale, rtol=0)

    again = folder.with_name("again")
    theirs.save_pretrained(again)
    np.testing.assert_array_equal(run_theirs(load_trusted(again), tokens), expected)
    shapes_of_vllm(attributes_of(again / "config.json"))
    assert read_folder(storage.resolve(again))[0] == architecture
