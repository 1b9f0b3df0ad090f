"""Layers of several sizes without padding: what is written is read, and computed, as it was."""

import json
import sys

import numpy as np
import pytest
import safetensors.numpy

import matta_jax
from matta_jax import models, packages, storage
from matta_jax.errors import UserError
from matta_jax.nesting import flatten
from matta_jax.packages import Packaging

MIXES = {
    "llama": ("d_ff=40,20,40", "num_kv_heads=1,3,1;d_ff=20,20,40", "num_kv_heads=3,1,1"),
    "qwen2": ("d_ff=40,20,40", "num_kv_heads=1,3,1;d_ff=20,20,40"),
    "qwen3": ("d_ff=40,20,40", "num_kv_heads=1,3,1;d_ff=20,20,40"),
    "gpt2": ("d_ff=40,20,40", "num_heads=2,3,2;d_ff=20,20,40", "num_heads=2;d_ff=20,20,40"),
}
CASES = [(kind, spec) for kind, specs in MIXES.items() for spec in specs]
UNIFORM = [(kind, spec) for kind in MIXES for spec in ("student", "ta")]
MIX = "num_kv_heads=1,3,1;d_ff=20,20,40"
FIELDS = [(kind, spec, {}) for kind, spec in CASES + UNIFORM]
# The head of our GPT-2 is tied.
FIELDS += [(kind, spec, {"tie_embeddings": False}) for kind, spec in CASES if kind != "gpt2"]
# 9 heads do not divide d_model 24: config.json says 12, as stock Llama asks, and no layer has them.
FIELDS += [("llama", "d_ff=40,20,40", {"num_heads": 3}), ("llama", MIX, {"num_heads": 3})]
# A layer of each kind of attention.
FIELDS += [("qwen3", MIX, {"window": 5, "global_layers": (0,), "local_rope_theta": 10_000.0})]


@pytest.mark.few(4)
@pytest.mark.parametrize(("kind", "spec"), CASES)
def test_a_mix_is_written_without_padding_and_read_bit_for_bit(
    mix_of, write_folder, read_folder, kind, spec
):
    architecture, params = mix_of(kind, spec)
    folder = write_folder(Packaging("hf"), architecture, params)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == f"mixed_{kind}"
    assert config["intermediate_sizes"] == list(architecture.along("d_ff"))
    # Sizes stand once: where transformers reads them.
    assert all(name.endswith("_granule") for name in config["matta_jax"])
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    stored = sum(tensor.size for tensor in tensors.values())
    assert stored == models.count_model(architecture, 8).parameters

    back, weights = read_folder(folder)
    assert back == architecture
    assert weights.keys() == flatten(params).keys()
    for path, weight in flatten(params).items():
        np.testing.assert_array_equal(weights[path], weight)

    # What is padded holds more, and reads as the same.
    padded = write_folder(Packaging("hf", pad=True), architecture, params)
    assert json.loads((padded / "config.json").read_text())["model_type"] == kind
    assert sorted(path.name for path in padded.iterdir()) == ["config.json", "model.safetensors"]
    tensors = safetensors.numpy.load_file(padded / "model.safetensors")
    assert sum(tensor.size for tensor in tensors.values()) > stored
    back, padded_weights = read_folder(padded)
    assert back == architecture
    for path, weight in weights.items():
        np.testing.assert_array_equal(padded_weights[path], weight)


def test_layers_have_their_own_heads_where_these_do_not_divide_the_width(
    mix_of, write_folder, read_folder
):
    """Stock Llama asks for it, and pads each layer to 12 heads."""
    architecture, params = mix_of("llama", "d_ff=40,20,40", num_heads=3)
    folder = write_folder(Packaging("hf"), architecture, params)
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (12, 4)
    assert config["num_key_value_heads_by_layer"] == [3, 3, 3]
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    assert tensors["model.layers.1.self_attn.q_proj.weight"].shape == (9 * 4, 24)
    assert read_folder(folder)[0] == architecture


@pytest.mark.parametrize(("kind", "spec"), UNIFORM)
def test_a_model_of_one_size_has_no_code(mix_of, write_folder, kind, spec):
    folders = [write_folder(Packaging("hf", pad=pad), *mix_of(kind, spec)) for pad in (False, True)]
    for folder in folders:
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["config.json", "model.safetensors"]
    first, second = ((folder / "config.json").read_text() for folder in folders)
    assert first == second and json.loads(first)["model_type"] == kind


def test_the_code_of_a_folder_is_never_run(run, tmp_path):
    spec = "d_ff=48,16,48"
    [model] = matta_jax.extract(str(run[1]), spec, tmp_path / "m", packaging=Packaging("hf"))
    code = model.path / "modeling_mixed.py"
    assert code.is_file()
    code.write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    before = set(sys.modules)
    matta_jax.verify(model.path)
    loaded = matta_jax.load_model(model.path)
    package = matta_jax.import_hf(model.path, tmp_path / "ours", tokenizer="byte")
    again = matta_jax.convert(model.path, tmp_path / "again", packaging=Packaging("hf"))
    assert package.architecture == loaded.architecture
    assert "MixedGPT2ForCausalLM" in (again.path / "modeling_mixed.py").read_text()
    assert not (tmp_path / "was_run").exists()
    assert not {name.partition(".")[0] for name in set(sys.modules) - before} & {
        "torch",
        "transformers",
        "modeling_mixed",
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"intermediate_sizes": [40, 20]}, "d_ff has num_hidden_layers entries"),
        ({"intermediate_sizes": 40}, "intermediate_sizes must be a list, with a size for each"),
        ({"intermediate_sizes": [40, 20, 0]}, "d_ff=0 must be a whole number"),
        ({"intermediate_sizes": [40, 40, 40]}, r"has shape \(20, 24\), but config.json says"),
        ({"num_key_value_heads_by_layer": [3, 3, 2]}, r"has shape \(24, 24\), but config.json"),
        ({"num_key_value_heads_by_layer": [9, 3, 3]}, "num_kv_heads is at most 3"),
        ({"num_key_value_heads_by_layer": None}, "by_layer must be a list"),
    ],
)
def test_a_damaged_config_is_refused(mix_of, write_folder, tmp_path, fields, words):
    folder = write_folder(Packaging("hf"), *mix_of("llama", "d_ff=40,20,40"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(UserError, match=words) as error:
        matta_jax.import_hf(folder, tmp_path / "ours", tokenizer="byte")
    assert "\n" not in str(error.value) and not (tmp_path / "ours").exists()


def test_without_its_sizes_a_config_is_damaged(mix_of, write_folder, tmp_path):
    folder = write_folder(Packaging("hf"), *mix_of("llama", "d_ff=40,20,40"))
    config = json.loads((folder / "config.json").read_text())
    config.pop("intermediate_sizes")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="'intermediate_sizes' is missing"):
        matta_jax.import_hf(folder, tmp_path / "ours", tokenizer="byte")


def test_padding_is_for_hf_alone():
    with pytest.raises(UserError, match="pad=True is for format=hf, not 'safetensors', whose"):
        Packaging("safetensors", pad=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "spec", "fields"), FIELDS)
def test_transformers_computes_our_logits_and_writes_the_same(
    mix_of, write_folder, read_folder, run_ours, load_trusted, run_theirs, kind, spec, fields
):
    architecture, params = mix_of(kind, spec, **fields)
    folder = write_folder(Packaging("hf"), architecture, params)
    theirs = load_trusted(folder)
    tokens = np.random.default_rng(0).integers(0, 61, (2, 40))
    expected = run_theirs(theirs, tokens)
    actual = run_ours(architecture, params, tokens)
    scale = max(1, np.abs(expected).max())
    assert expected.std() > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-5 * scale, rtol=0)
    if (kind, spec) != ("gpt2", "student"):  # Stock GPT-2 has heads that fill d_model.
        assert theirs.num_parameters() == models.count_model(architecture, 8).parameters

    # Saved by transformers: it loads again with no difference, and is ours.
    again = folder.with_name("again")
    theirs.save_pretrained(again)
    np.testing.assert_array_equal(run_theirs(load_trusted(again), tokens), expected)
    back, weights = read_folder(storage.resolve(again))
    assert back == architecture
    for path, weight in flatten(params).items():
        np.testing.assert_array_equal(weights[path], weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "spec"), CASES)
def test_with_a_cache_transformers_writes_what_it_writes_without(
    mix_of, write_folder, load_trusted, kind, spec
):
    import torch

    model = load_trusted(write_folder(Packaging("hf"), *mix_of(kind, spec)))
    attentions = [
        module.config
        for name, module in model.named_modules()
        if name.endswith((".attn", ".self_attn"))
    ]
    # What is set later, such as the kernel of attention, is set for all layers.
    assert len(attentions) == 3 and all(config is model.config for config in attentions)
    prompt = torch.arange(5)[None]
    texts = [
        model.generate(prompt, max_new_tokens=20, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert texts[0].shape == (1, 25)
    assert torch.equal(*texts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_without_trust_transformers_asks_for_it(mix_of, write_folder, transformers):
    folder = write_folder(Packaging("hf"), *mix_of("llama", "d_ff=40,20,40"))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)


def test_a_folder_without_its_code_is_still_a_model_of_ours(mix_of, write_folder, read_folder):
    architecture, params = mix_of("qwen3", "d_ff=40,20,40")
    folder = write_folder(Packaging("hf"), architecture, params)
    (folder / "modeling_mixed.py").unlink()
    assert read_folder(folder)[0] == architecture
    assert packages.open_hf(folder).layout.title == "Qwen 3"
