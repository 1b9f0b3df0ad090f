"""Tensors of Hugging Face folders: in shards, of old names, cut off, or of another model."""

import json
import pickle
import shutil

import numpy as np
import pytest
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


def shard(folder, places):
    """Splits a folder's single file by the shard of each tensor; returns the map."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    weight_map = {name: places(name) for name in tensors}
    for file in set(weight_map.values()):
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        safetensors.numpy.save_file(part, folder / file)
    return weight_map


def write_index(folder, weight_map):
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def test_the_single_file_goes_before_an_old_index(
    weights, assert_same_bits, edit_tensors, models, hf_folder, tmp_path
):
    new = (hf_folder / "model.safetensors").read_bytes()
    edit_tensors(hf_folder, lambda tensors: tensors.update({n: t + 1 for n, t in tensors.items()}))
    write_index(hf_folder, shard(hf_folder, lambda name: "old.safetensors"))
    (hf_folder / "model.safetensors").write_bytes(new)
    package = matta_jax.import_hf(hf_folder, tmp_path / "model", tokenizer="byte")
    assert_same_bits(weights(package.path), weights(models("hf")["ta"]))


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("name", ["ln_f.bias", "transformer.ln_f.bias"])
def test_a_tensor_that_is_stored_twice_has_one_value(
    refused, edit_tensors, hf_folder, tmp_path, name, more
):
    if name == "ln_f.bias":  # Beside that with the prefix; else in a second shard.

        def double(tensors):
            tensors[name] = tensors["transformer.ln_f.bias"] + more

        edit_tensors(hf_folder, double)
    else:
        weight_map = shard(hf_folder, lambda _: "a.safetensors")
        tensors = safetensors.numpy.load_file(hf_folder / "model.safetensors")
        other = {name: tensors[name] + more, "ln_f.weight": tensors["transformer.ln_f.weight"]}
        safetensors.numpy.save_file(other, hf_folder / "b.safetensors")
        write_index(hf_folder, weight_map | {"ln_f.weight": "b.safetensors"})
        (hf_folder / "model.safetensors").unlink()
    if not more:
        matta_jax.import_hf(hf_folder, tmp_path / "model", tokenizer="byte")
        return
    with refused("tensor ln_f.bias is stored twice, with other values", tmp_path):
        matta_jax.import_hf(hf_folder, tmp_path / "model", tokenizer="byte")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda places: places | {"h.9.x": "a.safetensors"}, "says that a.safetensors holds h.9.x"),
        (lambda places: places | {"h.9.x": "../a.safetensors"}, "must name files of the folder"),
        (lambda places: places | {"h.9.x": "/etc/passwd"}, "must name files of the folder"),
        (lambda places: places | {"h.9.x": 5}, "index.json' cannot be read"),
        (lambda places: [], "index.json' cannot be read"),
        (lambda places: {}, "must name files of the folder"),
        (lambda places: places | {"h.9.x": "none.safetensors"}, "none.safetensors' is missing"),
    ],
)
def test_an_index_that_its_files_contradict_is_refused(refused, hf_folder, place, spoil, words):
    weight_map = shard(hf_folder, lambda _: "a.safetensors")
    (hf_folder / "model.safetensors").unlink()
    write_index(hf_folder, spoil(weight_map))
    with refused(words, place):
        matta_jax.import_hf(hf_folder, place / "model", tokenizer="byte")


def test_pickled_weights_are_never_opened(refused, hf_folder, place):
    (hf_folder / "model.safetensors").unlink()
    was_run = place.parent / "was_run"

    class Payload:
        def __reduce__(self):
            return open, (str(was_run), "w")

    (hf_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with refused("convert pytorch_model.bin first", place):
        matta_jax.import_hf(hf_folder, place / "model", tokenizer="byte")
    assert not was_run.exists()
    # It would have been.
    pickle.loads((hf_folder / "pytorch_model.bin").read_bytes()).close()
    assert was_run.exists()
