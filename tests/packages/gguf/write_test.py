"""Models in GGUF files come back bit for bit, and say what they are."""

import json
import math
import shutil

import numpy as np
import pytest

import matta_jax
from matta_jax import elastic, extract, packages, storage
from matta_jax.models import count_model
from matta_jax.packages import Packaging

gguf = pytest.importorskip("gguf")
MIX = "d_ff=96,48,64"
GROUPS = "num_kv_heads=2,3,2;d_ff=48,96,48"
# Queries that are narrower than the residual stream.
FEWER = "num_kv_heads=2"
HEADS = "num_heads=4,6,4;d_ff=48,96,48"
# Each block and sub-model, with llama.cpp's name of what it becomes.
WRITTEN = {
    ("llama", "student"): "llama",
    ("llama", "ta"): "llama",
    ("llama", MIX): "deci",
    ("llama", GROUPS): "deci",
    ("untied", "ta"): "llama",
    ("untied", MIX): "deci",
    ("ungrouped", "ta"): "llama",
    ("ungrouped", "num_kv_heads=4,6,4"): "deci",
    ("wide heads", "student"): "llama",
    ("wide heads", GROUPS): "deci",
    ("llama3", "ta"): "llama",
    ("llama3", MIX): "deci",
    ("linear", MIX): "deci",
    ("yarn", "ta"): "llama",
    ("qwen2", "student"): "qwen2",
    ("qwen2", "ta"): "qwen2",
    ("qwen2", GROUPS): "deci",
    ("qwen2", FEWER): "deci",
    ("qwen2 untied", MIX): "deci",
    ("qwen3", "student"): "qwen3",
    ("qwen3", "ta"): "qwen3",
    ("qwen3", GROUPS): "openelm",
    ("qwen3 untied", "ta"): "qwen3",
    ("qwen3 yarn", MIX): "openelm",
    ("gpt2", "student"): "gpt2",
    ("gpt2", "ta"): "gpt2",
    ("gpt2", MIX): "gpt2",
    ("gpt2", "num_heads=4"): "gpt2",
    ("gpt2", HEADS): "gpt2",
}


def fields_of(folder):
    reader = gguf.GGUFReader(folder / "model.gguf")
    return {name: field.contents() for name, field in reader.fields.items()}


def num_values(folder):
    """How many numbers the weights of a file are; factors of frequencies are none."""
    tensors = gguf.GGUFReader(folder / "model.gguf").tensors
    return sum(int(t.n_elements) for t in tensors if t.name != "rope_freqs.weight")


@pytest.mark.few(8)
@pytest.mark.parametrize(("block", "spec"), WRITTEN)
def test_a_model_comes_back_bit_for_bit(
    written, weights, assert_same_bits, architecture_of, tmp_path, block, spec
):
    folder, expected = written(block, spec)
    assert_same_bits(weights(folder), expected)
    assert len(elastic.verify(folder).stored) == len(expected)

    # What anybody imports from the file alone is the same model, granules and all.
    architecture = architecture_of(block, spec)
    again = matta_jax.import_gguf(folder / "model.gguf", tmp_path / "again")
    assert again.architecture == architecture
    assert_same_bits(weights(again.path), expected)


@pytest.mark.few(8)
@pytest.mark.parametrize(("block", "spec"), WRITTEN)
def test_a_file_says_what_the_model_is(written, architecture_of, block, spec):
    folder, expected = written(block, spec)
    architecture, kind = architecture_of(block, spec), WRITTEN[block, spec]
    fields = fields_of(folder)
    assert fields["general.architecture"] == kind
    widths, head_axis = architecture.along("d_ff"), architecture.family.heads
    counts = [n * architecture.fixed.get("queries", 1) for n in architecture.along(head_axis)]
    if kind == "gpt2":
        # Zeros up to the widest layer, and up to heads that fill d_model.
        widths, counts = [max(widths)], [architecture.d_model // architecture.head_dim]
    for name, sizes in {"feed_forward_length": widths, "attention.head_count": counts}.items():
        expected_sizes = list(sizes) if len(set(sizes)) > 1 else sizes[0]
        assert fields[f"{kind}.{name}"] == expected_sizes

    parameters = sum(weight.size for weight in expected.values())
    assert packages.open_model(folder).counts.parameters == parameters
    assert count_model(architecture, 16).parameters == parameters
    if kind != "gpt2" or spec in ("ta", "student"):
        assert num_values(folder) == parameters
    else:
        assert num_values(folder) > parameters


def test_queries_and_keys_stand_in_the_order_in_which_llama_cpp_turns_them(written):
    folder, expected = written("llama", "student")
    tensors = {t.name: t for t in gguf.GGUFReader(folder / "model.gguf").tensors}
    # Of ours granules, d_model, groups, queries, head_dim; of theirs heads, head_dim, d_model.
    ours = np.moveaxis(expected["blocks/0/attention/w_q"][0], 1, 0)
    head_dim, d_model = ours.shape[-1], ours.shape[0]
    flat = ours.reshape(d_model, -1, head_dim)
    stored = np.asarray(tensors["blk.0.attn_q.weight"].data).reshape(-1, head_dim, d_model)
    for i in range(head_dim):
        half, pair = i % 2, i // 2
        np.testing.assert_array_equal(stored[:, i], flat[:, :, half * head_dim // 2 + pair].T)


def test_extraction_certifies_a_file_and_says_what_it_pads(run, tmp_path):
    mix = "num_heads=2;d_ff=48,16,48"
    packaging = Packaging("gguf")
    [model] = extract(str(run[1]), [mix], tmp_path / "mix", packaging=packaging)
    assert model.max_difference == 0 and model.notes == ()
    assert model.disk_bytes == (model.path / "model.gguf").stat().st_size
    card = (model.path / "README.md").read_text()
    for words in (
        "library_name: llama.cpp",
        "zero neurons to d_ff 48, and each layer with zero heads to 3",
        "llama.cpp's architecture `gpt2`, with matrices in fp32",
        "llama-cli --model THIS_FOLDER/model.gguf",
    ):
        assert words in card, words
    manifest = json.loads((model.path / "manifest.json").read_text())
    assert manifest["certificate"]["max_difference"] == 0
    assert (manifest["format"], manifest["dtype"]) == ("gguf", "fp32")
    again = matta_jax.convert(model.path, tmp_path / "hf", packaging=Packaging("hf"))
    elastic.verify(again.path)


def test_a_card_of_layer_sizes_names_no_padding(written):
    folder, _ = written("llama", MIX)
    card = (folder / "README.md").read_text()
    assert "Padded" not in card and "architecture `deci`" in card


@pytest.mark.parametrize("block", ["llama", "qwen3", "gpt2"])
@pytest.mark.few(1)
def test_verify_notices_each_flipped_bit(refused, written, tmp_path, block):
    folder, _ = written(block, MIX)
    content = bytearray((folder / "model.gguf").read_bytes())
    for tensor in gguf.GGUFReader(folder / "model.gguf").tensors:
        flipped = bytearray(content)
        flipped[int(tensor.data_offset) + 5] ^= 1
        (folder / "model.gguf").write_bytes(bytes(flipped))
        with refused("model='.*tensor .* differs from its fingerprint; extract it", tmp_path):
            elastic.verify(folder)
    (folder / "model.gguf").write_bytes(bytes(content))
    elastic.verify(folder)


def test_other_frequencies_are_noticed(refused, written, tmp_path):
    folder, _ = written("llama3", MIX)
    content = bytearray((folder / "model.gguf").read_bytes())
    [tensor] = [
        tensor
        for tensor in gguf.GGUFReader(folder / "model.gguf").tensors
        if tensor.name == "rope_freqs.weight"
    ]
    content[int(tensor.data_offset) + 2] ^= 0x40
    (folder / "model.gguf").write_bytes(bytes(content))
    with refused("is damaged: model.gguf has other frequencies than its manifest", tmp_path):
        packages.open_model(folder)


def test_a_file_of_another_model_is_noticed(refused, written, tmp_path):
    folder, _ = written("llama", MIX)
    for block, fields, words in (
        ("llama", {"rope_theta": 600.0}, "says deci.rope.freq_base=600.0, and its manifest 500.0"),
        ("qwen2", {}, "holds other tensors"),
        ("qwen3", {}, "says general.architecture='openelm', and its manifest 'deci'"),
    ):
        stranger, _ = written(block, MIX, **fields)
        shutil.copyfile(stranger / "model.gguf", folder / "model.gguf")
        with refused(f"is damaged: model.gguf {words}.*; extract it again", tmp_path):
            packages.load_model(folder)


def test_missing_and_cut_files_are_noticed(refused, written, tmp_path):
    folder, _ = written("llama", MIX)
    content = (folder / "model.gguf").read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 2):
        (folder / "model.gguf").write_bytes(content[:cut])
        with refused("model='.*' is damaged.*; extract it again", tmp_path):
            elastic.verify(folder)
    (folder / "model.gguf").unlink()
    with refused("model='.*' is damaged: .* is missing; extract it again", tmp_path):
        elastic.verify(folder)


def test_a_tensor_is_read_when_its_turn_comes(architecture_of, random_weights, tmp_path):
    """No more than a weight of a layer is read at once."""
    architecture, reads = architecture_of("llama", "ta"), []

    def watched(path, weight):
        def read(index):
            reads.append((path, math.prod(weight[index].shape)))
            return weight[index]

        return packages.Weight(weight.shape, weight.dtype, read)

    weights = random_weights(architecture)
    packages.gguf.write_gguf(
        storage.path(tmp_path),
        {path: watched(path, weight) for path, weight in weights.items()},
        architecture,
        "f32",
        "byte",
    )
    assert {path for path, _ in reads} == set(weights)
    for path, size in reads:
        layers = len(weights[path]) if path.startswith("blocks") else 1
        assert size == weights[path].size / layers
