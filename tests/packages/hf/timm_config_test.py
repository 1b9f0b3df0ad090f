"""The config.json by which timm builds a ViT."""

import pytest

from matta_jax.packages.hf._timm_config import SIZES, mlp_ratio, timm_config


def hf_config(**fields):
    """Of a model as Hugging Face's ViT."""
    return {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "hidden_act": "gelu",
        "id2label": {"0": "a", "1": "b"},
        "matta_jax": {"image_mean": [0.5], "image_std": [0.25], "granules": {}},
    } | fields


@pytest.mark.parametrize(
    ("fields", "name", "arguments"),
    [
        ({}, "vit_small_patch16_224", {}),
        ({"image_size": 384}, "vit_small_patch16_384", {}),
        ({"patch_size": 8}, "vit_small_patch8_224", {}),
        # timm has no such name, but the argument.
        ({"patch_size": 14}, "vit_small_patch16_224", {"patch_size": 14}),
        ({"intermediate_size": 768}, "vit_small_patch16_224", {"mlp_ratio": 2.0}),
        ({"hidden_act": "gelu_new"}, "vit_small_patch16_224", {"act_layer": "gelu_tanh"}),
        ({"num_channels": 1}, "vit_small_patch16_224", {"in_chans": 1}),
        (
            {"num_hidden_layers": 4},
            "vit_tiny_patch16_224",
            {"embed_dim": 384, "depth": 4, "num_heads": 6},
        ),
    ],
)
def test_a_stock_size_has_a_name_and_others_arguments(fields, name, arguments):
    config = timm_config(hf_config(**fields))
    assert config["architecture"] == name
    assert config.get("model_args", {}) == arguments
    channels = fields.get("num_channels", 3)
    assert config["pretrained_cfg"]["mean"] == [0.5] * channels
    assert config["pretrained_cfg"]["input_size"][0] == channels
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 2


def test_names_are_those_that_timm_has():
    timm = pytest.importorskip("timm")
    names = set(timm.list_models("vit_*"))
    for sizes in SIZES.values():
        fields = {
            "hidden_size": sizes["embed_dim"],
            "num_hidden_layers": sizes["depth"],
            "num_attention_heads": sizes["num_heads"],
        }
        for patch_size in (8, 14, 16, 32):
            for side in (224, 384):
                grid = {"patch_size": patch_size, "image_size": side}
                assert timm_config(hf_config(**fields, **grid))["architecture"] in names


def test_timm_rounds_the_ratio_down_to_the_width():
    for d_model in range(1, 200):
        for d_ff in (1, 3, 25, 100, 4 * d_model, 5000):
            assert int(d_model * mlp_ratio(d_ff, d_model)) == d_ff
