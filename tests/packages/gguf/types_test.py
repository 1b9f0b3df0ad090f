"""Quantised matrices: what they are rounded to, the rows they fit, their bytes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import matta_jax
from matta_jax import elastic, extract, packages
from matta_jax.errors import UserError
from matta_jax.packages import QUANTIZATIONS, Packaging
from matta_jax.packages.gguf import _types, weight_bytes

gguf = pytest.importorskip("gguf")
BLOCKED = ("q8_0", "q5_0", "q4_0")
# Of the largest |value| of a block; the far end of the other sign is cut off by a step.
# The scale of a block is rounded too: a tenth more is allowed.
COARSENESS = {
    "f32": 0,
    "f16": 2**-11,
    "bf16": 2**-8,
    "q8_0": 1 / 254,
    "q5_0": 1 / 16,
    "q4_0": 1 / 8,
}
MIX = "d_ff=128,64,96"


@pytest.mark.few(6)
@pytest.mark.parametrize("quantize", QUANTIZATIONS)
@pytest.mark.parametrize(
    ("block", "spec"), [("llama", MIX), ("qwen3", MIX), ("gpt2", "student"), ("qwen2", "ta")]
)
def test_a_folder_verifies_what_its_file_gives_back(written, weights, block, spec, quantize):
    packaging = Packaging("gguf", quantize=quantize)
    folder, exact = written(block, spec, packaging, is_wide=True)
    package = elastic.verify(folder)
    loaded = weights(folder)
    for path, weight in exact.items():
        difference = np.abs(loaded[path] - weight).max()
        assert difference <= 1.1 * COARSENESS[quantize] * np.abs(weight).max(), path
        is_matrix = not path.endswith(("scale", "bias", "positions")) and "/b_" not in path
        assert (difference > 0) == (is_matrix and quantize != "f32"), path

    reader = gguf.GGUFReader(folder / "model.gguf")
    names = {tensor.tensor_type.name for tensor in reader.tensors}
    assert names == {"F32", quantize.upper()}
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.file_type"] == gguf.LlamaFileType[FILE_TYPES[quantize]]
    assert package.counts.bytes == sum(int(tensor.n_bytes) for tensor in reader.tensors)
    assert package.counts.bytes == weight_bytes(package.architecture, quantize)


FILE_TYPES = {
    "f32": "ALL_F32",
    **{name: f"MOSTLY_{name.upper()}" for name in QUANTIZATIONS if name != "f32"},
}


@settings(max_examples=60)
@given(
    values=hnp.arrays(
        np.float32,
        (2, 64),
        elements=st.floats(-65000, 65000, width=32) | st.sampled_from([0.0, -0.0, 1e-9, 6e-8]),
    ),
    quantize=st.sampled_from(QUANTIZATIONS),
)
def test_what_is_rounded_is_written_as_it_is(values, quantize):
    """Blocks of zeros, of tiny numbers, and of one large number among them."""
    rounded = _types._rounded("blk.0.ffn_up.weight", values, quantize)
    again = _types._decoded(_types.encoded(rounded, quantize), quantize).reshape(values.shape)
    assert again.tobytes() == rounded.tobytes()


def test_numbers_beyond_a_type_are_told():
    values = np.full((1, 32), 1e6, np.float32)
    with pytest.raises(UserError, match="quantize='f16': a.weight holds numbers beyond those of"):
        _types._rounded("a.weight", values, "f16")
    assert np.isfinite(_types._rounded("a.weight", values, "bf16")).all()


@pytest.mark.parametrize("quantize", BLOCKED)
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("d_ff=48", "d_ff=48 of blk.0.ffn_down.weight must be a multiple of 32"),
        ("d_model=24", "d_model=24 of token_embd.weight must be a multiple of 32"),
        ("ta", "d_model=24 of token_embd.weight must"),
    ],
)
def test_widths_that_blocks_do_not_divide_are_told_first(
    refused, run, place, spec, words, quantize
):
    packaging = Packaging("gguf", quantize=quantize)
    words = "token_embd.weight must be a multiple of 32" if spec == "d_ff=48" else words
    with refused(f"quantize={quantize!r}: .*{words}.*; extract other sizes, or give", place):
        extract(str(run[1]), [spec], place / "model", packaging=packaging)


def test_each_kind_of_row_is_checked(architecture_of):
    for fields, words in (
        ({"d_model": 32, "head_dim": 12, "num_heads": 4}, "heads x head_dim=48 of blk.0.attn_outp"),
        ({"d_model": 32, "head_dim": 16}, "d_ff=48 of blk.0.ffn_down.weight"),
    ):
        architecture = architecture_of("llama", "student", **fields)
        with pytest.raises(UserError, match=words):
            _types.check_rows(architecture, "q8_0")
        _types.check_rows(architecture, "f16")


def test_certificate_and_manifest_name_the_type(run, tmp_path):
    packaging = Packaging("gguf", quantize="f16")
    [model] = extract(str(run[1]), ["ta"], tmp_path / "model", packaging=packaging)
    assert model.max_difference == 0
    manifest = json.loads((model.path / "manifest.json").read_text())
    assert (manifest["dtype"], manifest["numbers"]) == ("fp32", "f16")
    card = (model.path / "README.md").read_text()
    assert f"| bytes (f16) | {model.counts.bytes:,} |" in card and "weights in f16" in card
    elastic.verify(model.path)

    # As the model that it is now, in another format.
    again = matta_jax.convert(model.path, tmp_path / "again", packaging=Packaging("safetensors"))
    ours, theirs = (packages.open_model(folder).stored for folder in (model.path, again.path))
    for path, array in ours.items():
        np.testing.assert_array_equal(array.whole(), theirs[path].whole())


def test_bfloat16_of_all_weights_is_dtype(run, tmp_path):
    packaging = Packaging("gguf", "bf16")
    [model] = extract(str(run[1]), ["ta"], tmp_path / "model", packaging=packaging)
    stored = elastic.verify(model.path).stored
    assert {array.whole().dtype.name for array in stored.values()} == {"bfloat16"}
    assert model.counts.bytes == 2 * model.counts.parameters
    with pytest.raises(UserError, match="quantize='q8_0' needs dtype=fp32, and dtype is 'bf16'"):
        Packaging("gguf", "bf16", quantize="q8_0")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "gguf", "quantize": "q8"}, "quantize='q8' must be one of f32, .*'q8_0'"),
        ({"format": "gguf", "quantize": "Q4_K_M"}, "must be one of .*; did you mean 'q4_k_m'"),
        ({"quantize": "q8_0"}, "quantize='q8_0' needs format=gguf, and format is 'orbax'"),
    ],
)
def test_types_that_cannot_be_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        Packaging(**fields)
