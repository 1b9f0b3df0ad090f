"""ViT folders, in and out."""

import json

import numpy as np
import pytest
import safetensors.numpy

import matta_jax
from matta_jax import config as c
from matta_jax import models, nesting, packages, storage
from matta_jax.errors import UserError
from matta_jax.nesting import flatten
from matta_jax.packages import Packaging
from matta_jax.packages.hf._vit import VitLayout

IMAGES = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
SCALING = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}


def section(**fields):
    sizes = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 24, "image_size": 8}
    return c.VitConfig(**sizes | {"image_classes": 3} | SCALING | fields)


def write(folder, *, edit=lambda config: None, scaling=None):
    """A Hugging Face folder of random weights; returns it, the architecture and the weights."""
    folder.mkdir()
    nest = nesting.nest_of(c.Config(model=section()))
    architecture = models.architecture_of(section(), nest, nest.ta)
    rng = np.random.default_rng(0)
    shapes = flatten(models.abstract_params(architecture))
    params = {
        path: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
        for path, leaf in shapes.items()
    }
    names = flatten(models.logical_axes(architecture))
    tensors = dict(
        packages.to_hf(packages.in_memory(nesting.unflatten(params)), names, architecture)
    )
    config = packages.hf_config(architecture, "float32", None)
    # As stock folders: what the processor says is in its own file.
    del config["matta_jax"]
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    processor = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, **SCALING}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | (scaling or {})))
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    return storage.resolve(folder), architecture, params


def test_a_folder_comes_back_as_the_same_bits(tmp_path):
    folder, architecture, params = write(tmp_path / "vit")
    package = matta_jax.import_hf(folder, tmp_path / "ours")
    assert package.architecture == architecture
    loaded = flatten(packages.load_model(package.path).params)
    for path, weight in params.items():
        np.testing.assert_array_equal(loaded[path], weight)
    again = matta_jax.convert(package.path, tmp_path / "back", packaging=Packaging("hf"))
    stored = safetensors.numpy.load_file(again.path / "model.safetensors")
    original = safetensors.numpy.load_file(folder / "model.safetensors")
    assert set(stored) == set(original)
    assert all(np.array_equal(stored[name], original[name]) for name in stored)
    processor = json.loads((again.path / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == SCALING["image_mean"]
    assert stored["vit.embeddings.cls_token"].shape == (1, 1, 16)
    assert stored["vit.embeddings.patch_embeddings.projection.weight"].shape == (16, 3, 4, 4)


def test_what_its_nest_thinks_comes_back_with_a_student():
    fields = section(thinking_heads=(1, 2))
    nest = nesting.nest_of(c.Config(model=fields))
    architecture = models.architecture_of(fields, nest, nest.student)
    config = packages.hf_config(architecture, "float32", None)
    assert config["matta_jax"]["thinking_d_ff"] == [12, 24]
    assert VitLayout().architecture(config) == architecture


def test_queries_keys_and_values_stand_where_vit_has_them(tmp_path):
    folder, _, params = write(tmp_path / "vit")
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    weights, biases = params["blocks/0/attention/w_qkv"], params["blocks/0/attention/b_qkv"]
    for i, name in enumerate(("query", "key", "value")):
        for layer in range(2):
            place = f"vit.encoder.layer.{layer}.attention.attention.{name}"
            # A row of Hugging Face's is a number of a head: [heads · head_dim, d_model].
            rows = weights[layer][0, :, i].reshape(16, 16).T
            np.testing.assert_array_equal(stored[f"{place}.weight"], rows)
            np.testing.assert_array_equal(stored[f"{place}.bias"], biases[layer][0, i].ravel())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"edit": lambda config: config.update(hidden_act="relu")}, "hidden_act='relu' is not"),
        ({"edit": lambda config: config.update(qkv_bias=False)}, "qkv_bias=False is not"),
        ({"edit": lambda config: config.pop("hidden_size")}, "'hidden_size' is missing"),
        ({"scaling": {"rescale_factor": 1.0}}, "rescale_factor=1.0 is not supported, only"),
        ({"scaling": {"do_normalize": False}}, "do_normalize=False is not supported, only True"),
    ],
)
def test_what_we_do_not_compute_is_refused(tmp_path, more, words):
    folder, _, _ = write(tmp_path / "vit", **more)
    with pytest.raises(UserError, match=words) as error:
        matta_jax.import_hf(folder, tmp_path / "ours")
    assert "\n" not in str(error.value)


def test_how_pixels_are_scaled_must_be_said(tmp_path):
    folder, _, _ = write(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="holds no preprocessor_config.json"):
        matta_jax.import_hf(folder, tmp_path / "ours")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_pooling": "mean"}, "stock ViT reads a class token"),
        ({"head_dim": 4}, "2 heads of 4 do not fill d_model=16"),
        ({"thinking_heads": (1,), "thoughts": 1}, "stock ViT runs one pass, and this model"),
    ],
)
def test_what_stock_vit_has_no_room_for_is_refused(fields, words):
    nest = nesting.nest_of(c.Config(model=section(**fields)))
    architecture = models.architecture_of(section(**fields), nest, nest.ta)
    with pytest.raises(UserError, match=words):
        packages.hf_config(architecture, "float32", None)


@pytest.mark.slow
def test_transformers_gives_our_logits(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, _, _ = write(tmp_path / "vit")
    package = matta_jax.import_hf(folder, tmp_path / "ours")
    logits = matta_jax.classify(package.load(), IMAGES)
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    scaled = (IMAGES / 255 - SCALING["image_mean"]) / SCALING["image_std"]
    pixels = torch.tensor(scaled.transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)
