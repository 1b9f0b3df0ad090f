"""ViT and DeiT folders of timm, in and out."""

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

IMAGES = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def timm_tensors(*, d_model=16, depth=2, d_ff=24, classes=3, seed=0):
    """Random weights of a ViT over four patches, by timm's names."""
    rng = np.random.default_rng(seed)
    shapes = {
        "cls_token": (1, 1, d_model),
        "pos_embed": (1, 5, d_model),
        "patch_embed.proj.weight": (d_model, 3, 4, 4),
        "patch_embed.proj.bias": (d_model,),
        "norm.weight": (d_model,),
        "norm.bias": (d_model,),
        "head.weight": (classes, d_model),
        "head.bias": (classes,),
    }
    for layer in range(depth):
        for name, shape in {
            "attn.qkv": (3 * d_model, d_model),
            "attn.proj": (d_model, d_model),
            "mlp.fc1": (d_ff, d_model),
            "mlp.fc2": (d_model, d_ff),
            "norm1": (d_model,),
            "norm2": (d_model,),
        }.items():
            shapes[f"blocks.{layer}.{name}.weight"] = shape
            shapes[f"blocks.{layer}.{name}.bias"] = shape[:1]
    return {name: (0.3 * rng.normal(size=s)).astype(np.float32) for name, s in shapes.items()}


def timm_config(**fields):
    """The config.json of these, as timm writes it."""
    return {
        "architecture": "vit_tiny_patch4_8",
        "num_classes": 3,
        "num_features": 16,
        "global_pool": "token",
        "model_args": {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 8},
        "pretrained_cfg": {"tag": "x", "input_size": [3, 8, 8], "mean": MEAN, "std": STD},
    } | fields


def hf_tensors(tensors):
    """The same weights by Hugging Face's names."""
    stem = "vit.encoder.layer.{}."
    outer = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    inner = {
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    result = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if not module:
            result[outer[name]] = tensor
        elif module in outer:
            result[f"{outer[module]}.{kind}"] = tensor
        else:
            _, layer, part = module.split(".", 2)
            if part == "attn.qkv":
                for i, projection in enumerate(np.split(tensor, 3)):
                    place = f"attention.attention.{('query', 'key', 'value')[i]}.{kind}"
                    result[stem.format(layer) + place] = np.ascontiguousarray(projection)
            else:
                result[f"{stem.format(layer)}{inner[part]}.{kind}"] = tensor
    return result


def write(folder, config, tensors, processor=None):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_weights_by_timms_names_are_those_by_hugging_faces_bit_for_bit(tmp_path):
    tensors = timm_tensors()
    timm = matta_jax.import_hf(write(tmp_path / "t", timm_config(), tensors), tmp_path / "t_ours")
    config = {
        "model_type": "vit",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 3,
        "layer_norm_eps": 1e-6,
        "id2label": dict.fromkeys("012", ""),
    }
    processor = {"image_mean": MEAN, "image_std": STD}
    folder = write(tmp_path / "h", config, hf_tensors(tensors), processor)
    hf = matta_jax.import_hf(folder, tmp_path / "h_ours")
    assert timm.architecture == hf.architecture
    weights, expected = (flatten(packages.load_model(model.path).params) for model in (timm, hf))
    for path, weight in expected.items():
        np.testing.assert_array_equal(weights[path], weight)
    logits = matta_jax.classify(timm.load(), IMAGES)
    np.testing.assert_array_equal(logits, matta_jax.classify(hf.load(), IMAGES))
    assert np.ptp(logits) > 0.1
    # A row of the fused matrix is a number of a head of queries, then of keys, then of values.
    fused = weights["blocks/0/attention/w_qkv"][1][0].reshape(16, 48).T
    np.testing.assert_array_equal(fused, tensors["blocks.1.attn.qkv.weight"])


def test_an_architecture_says_its_heads_and_older_configs_their_scaling(tmp_path):
    config = {"architecture": "deit_tiny_patch4_8", "num_classes": 3, "mean": MEAN, "std": STD}
    tensors = timm_tensors(d_model=192, depth=12)
    package = matta_jax.import_hf(write(tmp_path / "t", config, tensors), tmp_path / "ours")
    architecture = package.architecture
    assert architecture.sub_model.sizes["heads"] == 3 and architecture.head_dim == 64
    assert architecture.num_layers == 12 and architecture.sub_model.sizes["d_ff"] == 24
    assert architecture.options["layer_norm_epsilon"] == 1e-6
    assert architecture.options["image_mean"] == tuple(MEAN)


def args(**more):
    return {"model_args": {"embed_dim": 16, "depth": 2, "num_heads": 2} | more}


def recipe(**more):
    return {"pretrained_cfg": timm_config()["pretrained_cfg"] | more}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architecture": "resnet50"}, "architecture='resnet50' is not supported, only timm's vit"),
        ({"architecture": "vit_giant_patch14_224"}, "'vit_giant_patch14_224' is not supported"),
        ({"architecture": "vit_base_patch16_clip_224"}, "clip_224' is not supported"),
        ({"architecture": "vit_tiny_patch4_gap_8"}, "gap_8' is not supported"),
        ({"architecture": ["vit"]}, "is not supported, only timm's vit"),
        (
            {"architecture": "deit_tiny_distilled_patch4_8"},
            "has a distillation token .dist_token. beside the class token",
        ),
        ({"model_args": {}}, "the weights have embed_dim=16, and architecture='vit_tiny_patch4_8'"),
        (args(depth=3), "the weights have depth=2, and .* has 3; if they are right, write"),
        ({"architecture": "vit_tiny_patch8_8"}, "the weights have patch_size=4, and .* has 8"),
        (args(num_heads=3), "num_heads=3 of .* must divide embed_dim=16; write both"),
        (args(num_heads="2"), "num_heads='2' must be a whole number"),
        (args(init_values=1e-6), "init_values=1e-06 is not supported, only None"),
        (args(reg_tokens=4), "reg_tokens=4 is not supported, only 0"),
        (args(mlp_layer="swiglu"), "model_args.mlp_layer='swiglu' is not supported; import"),
        ({"global_pool": "avg"}, "global_pool='avg' is not supported, only token"),
        ({"num_classes": 4}, "num_classes=4, and head.weight has 3 rows"),
        (recipe(input_size=[3, 16, 16]), r"input_size=\[3, 16, 16\], and the weights are of im"),
        (recipe(mean=[0.5]), r"pretrained_cfg.mean=\[0.5\] must hold a number for each of 3"),
        ({"pretrained_cfg": {}}, "pretrained_cfg.mean=None must hold a number for each of 3"),
        ({"pretrained_cfg": None}, "cannot be read as a model's config"),
    ],
)
def test_configs_of_other_models_are_one_line(tmp_path, fields, words):
    folder = write(tmp_path / "t", timm_config(**fields), timm_tensors())
    with pytest.raises(UserError, match=words) as error:
        matta_jax.import_hf(folder, tmp_path / "ours")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def moved(name):
    return lambda tensors: tensors.update({f"{name}_x": tensors.pop(name)})


def added(name, *shape):
    return lambda tensors: tensors.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (added("dist_token", 1, 1, 16), "has a distillation token .dist_token."),
        (added("blocks.0.ls1.gamma", 16), "tensor blocks.0.ls1.gamma is none of timm's ViT's"),
        (added("pos_embed", 1, 4, 16), "pos_embed has 4 positions, and a class token with a squ"),
        (added("pos_embed", 1, 0, 16), "pos_embed has 0 positions"),
        (added("pos_embed", 5, 16), r"pos_embed has shape \(5, 16\), not 3 dimensions"),
        (added("patch_embed.proj.weight", 16, 3, 4, 2), "proj.weight has shape .16, 3, 4, 2."),
        (added("blocks.2.norm1.weight", 16), "the weights have depth=3"),
        (moved("head.weight"), "no tensor head.weight, so that the model tells no classes"),
        (moved("blocks.0.mlp.fc1.weight"), "tensor blocks.0.mlp.fc1.weight is missing"),
        (moved("blocks.1.attn.qkv.bias"), "tensor blocks.1.attn.qkv.bias is missing"),
        (moved("cls_token"), "tensor cls_token is missing"),
    ],
)
def test_weights_of_other_models_are_one_line(tmp_path, edit, words):
    tensors = timm_tensors()
    edit(tensors)
    folder = write(tmp_path / "t", timm_config(), tensors)
    with pytest.raises(UserError, match=words) as error:
        matta_jax.import_hf(folder, tmp_path / "ours")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def architecture_of(**fields):
    """Of a model with the sizes of `timm_tensors`, and more fields."""
    sizes = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 24, "image_size": 8}
    scaling = {"image_mean": tuple(MEAN), "image_std": tuple(STD)}
    section = c.VitConfig(
        **sizes | {"image_classes": 3, "layer_norm_epsilon": 1e-6} | scaling | fields
    )
    nest = nesting.nest_of(c.Config(model=section))
    return models.architecture_of(section, nest, nest.ta)


def written(folder, architecture, packaging):
    """A folder of random weights, which stand by path."""
    rng = np.random.default_rng(0)
    params = {
        path: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
        for path, leaf in flatten(models.abstract_params(architecture)).items()
    }
    folder = storage.resolve(folder)
    folder.mkdir()
    packages.write_weights(
        folder,
        packaging,
        packages.in_memory(nesting.unflatten(params)),
        architecture,
        config={},
        units=dict.fromkeys(params, ()),
    )
    return folder, params


def test_tensors_come_and_go_as_the_same_bits(tmp_path):
    tensors = timm_tensors()
    ours = matta_jax.import_hf(write(tmp_path / "t", timm_config(), tensors), tmp_path / "ours")
    back = matta_jax.convert(ours.path, tmp_path / "back", packaging=Packaging("timm"))
    stored = safetensors.numpy.load_file(back.path / "model.safetensors")
    assert set(stored) == set(tensors)
    assert all(np.array_equal(stored[name], tensors[name]) for name in tensors)
    config = json.loads((back.path / "config.json").read_text())
    # timm has no such size: an architecture that it has, and arguments beside its name.
    assert config["architecture"] == "vit_tiny_patch16_224" and config["num_classes"] == 3
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 8}
    assert config["model_args"] == sizes | {"mlp_ratio": 1.5}
    recipe = config["pretrained_cfg"]
    assert (recipe["input_size"], recipe["mean"], recipe["std"]) == ([3, 8, 8], MEAN, STD)
    # The card says how to load it, here and on the hub.
    card = (back.path / "README.md").read_text()
    assert "library_name: timm\n" in card and "tokenizer" not in card
    assert 'timm.create_model("local-dir:THIS_FOLDER", pretrained=True)' in card


@pytest.mark.parametrize(
    "fields", [{"image_mean": (0.5,), "image_std": (0.5,)}, {"activation": "gelu_tanh"}]
)
def test_a_model_of_ours_comes_back_with_all_its_facts(tmp_path, fields):
    architecture = architecture_of(**fields)
    folder, params = written(tmp_path / "m", architecture, Packaging("timm"))
    package = matta_jax.import_hf(folder, tmp_path / "ours")
    assert package.architecture == architecture
    loaded = flatten(packages.load_model(package.path).params)
    for path, weight in params.items():
        np.testing.assert_array_equal(loaded[path], weight)
    # timm wants a number for each channel.
    assert len(json.loads((folder / "config.json").read_text())["pretrained_cfg"]["mean"]) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layer_norm_epsilon": 1e-12}, "layer_norm_epsilon=1e-12 must be 1e-06, which norms of"),
        ({"image_pooling": "mean"}, "format='timm': timm's ViT reads a class token, and this mo"),
        ({"head_dim": 4}, "format='timm': 2 heads of 4 do not fill d_model=16 of timm's ViT"),
        ({"thinking_heads": (1,), "thoughts": 1}, "format='timm': timm's ViT runs one pass"),
    ],
)
def test_what_timm_has_no_room_for_is_refused(fields, words):
    with pytest.raises(UserError, match=words) as error:
        packages.check_format(Packaging("timm"), architecture_of(**fields))
    assert "\n" not in str(error.value)


def test_other_families_and_several_files_are_refused():
    plan = models.plan_of(c.Config())
    with pytest.raises(UserError, match="format='timm' has vision transformers alone, and this"):
        packages.check_format(Packaging("timm"), plan.architecture)
    packages.check_format(Packaging("timm"), architecture_of())
    with pytest.raises(UserError, match=r"max_shard_gb=1e-06 must be at least .* in one file"):
        packages.check_format(Packaging("timm", max_shard_gb=1e-6), architecture_of())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fields", [{}, {"activation": "gelu_tanh", "d_ff": 25}])
def test_timm_gives_our_logits(tmp_path, fields):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    folder, _ = written(tmp_path / "m", architecture_of(**fields), Packaging("timm"))
    logits = matta_jax.classify(matta_jax.import_hf(folder, tmp_path / "ours").load(), IMAGES)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = torch.tensor(((IMAGES / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        expected = model(pixels).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)
