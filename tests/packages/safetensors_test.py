"""Tensors of Hugging Face folders: in shards, of old names, cut off, or of another model."""

import json
import shutil

import numpy as np
import safetensors.numpy

import matta_jax


def test_shards_old_names_buffers_and_a_tied_head_are_imported(
    weights, assert_same_bits, refused, edit_tensors, models, hf_folder, tmp_path
):
    def age(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()
        tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), np.float32))

    edit_tensors(hf_folder, age)
    tensors = safetensors.numpy.load_file(hf_folder / "model.safetensors")
    (hf_folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in names:
        shard = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        safetensors.numpy.save_file(shard, hf_folder / file)
    (hf_folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    package = matta_jax.import_hf(hf_folder, tmp_path / "model", tokenizer="byte")
    assert_same_bits(weights(package.path), weights(models("hf")["ta"]))
    (hf_folder / names[1]).unlink()
    with refused("model-00002-of-00002.safetensors' is missing", tmp_path):
        matta_jax.import_hf(hf_folder, tmp_path / "other", tokenizer="byte")


def test_truncated_and_foreign_weights_are_refused_and_nothing_is_left(refused, hf_folder, place):
    file = hf_folder / "model.safetensors"
    stored = file.read_bytes()
    truncated = [stored[:end] for end in (0, 4, 100, -4000, -1)]
    foreign = bytes(range(256)) * 40
    for content in (*truncated, foreign):
        file.write_bytes(content)
        with refused("hf_folder/model.safetensors' is damaged .*fetch it again", place):
            matta_jax.import_hf(hf_folder, place / "model", tokenizer="byte")


def test_the_config_of_one_model_with_the_weights_of_another_is_refused(
    refused, models, hf_folder, place
):
    for spec in ("student", "layers=0,2;d_model=16;num_heads=2;d_ff=16,48"):
        shutil.copyfile(models("hf")[spec] / "model.safetensors", hf_folder / "model.safetensors")
        with refused(
            r"has shape \(256, 16\), but config.json says \(256, 24\).*different models", place
        ):
            matta_jax.import_hf(hf_folder, place / "model", tokenizer="byte")
