"""Hugging Face's GPT-2: what it says of itself, and our models in its files."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest

import matta_jax
from matta_jax import elastic, extract, packages
from matta_jax.packages import Packaging

ITEM_SIZES = {"fp32": 4, "bf16": 2}


ONE_DTYPE_EACH = [("orbax", "fp32"), ("safetensors", "bf16"), ("hf", "fp32")]


@dataclasses.dataclass
class Spoiler:
    """Changes a Hugging Face folder."""

    folder: pathlib.Path
    edit_json: Callable
    edit_tensors: Callable

    def config(self, edit):
        self.edit_json(self.folder / "config.json", edit)


def config_with(**fields):
    return lambda spoiler: spoiler.config(lambda config: config.update(fields))


def config_without(field):
    return lambda spoiler: spoiler.config(lambda config: config.pop(field))


def config_text(text):
    return lambda spoiler: (spoiler.folder / "config.json").write_text(text)


def without_file(name):
    return lambda spoiler: (spoiler.folder / name).unlink()


def tensors_with(**tensors):
    """Of names without their prefix, and with `__` for dots; each an array, or a function of all
    tensors.
    """

    def update(tensors_of_folder):
        for name, tensor in tensors.items():
            full_name = name.replace("__", ".")
            if full_name != "lm_head.weight":
                full_name = f"transformer.{full_name}"
            is_function = callable(tensor)
            tensors_of_folder[full_name] = tensor(tensors_of_folder) if is_function else tensor

    return lambda spoiler: spoiler.edit_tensors(spoiler.folder, update)


def tensors_without(name):
    return lambda spoiler: spoiler.edit_tensors(
        spoiler.folder, lambda tensors: tensors.pop(f"transformer.{name}")
    )


@pytest.mark.few(1)
@pytest.mark.parametrize(("format", "dtype"), ONE_DTYPE_EACH)
def test_an_exported_model_is_imported_bit_for_bit(
    weights, assert_same_bits, models, tmp_path, format, dtype
):
    folders = [*models("hf", dtype).values(), *models("hf", dtype, pad=True).values()]
    for i, folder in enumerate(folders):
        package = matta_jax.import_hf(
            folder, tmp_path / str(i), tokenizer="byte", packaging=Packaging(format, dtype)
        )
        assert_same_bits(weights(package.path), weights(folder))
        exported = packages.open_model(folder)
        assert package.architecture == exported.architecture and package.counts == exported.counts
        assert (
            package.manifest["parent"] == {"hf": str(folder)}
            and package.config.data.tokenizer == "byte"
        )
        assert (package.manifest["format"], package.manifest["dtype"]) == (format, dtype)
        assert elastic.verify(package.path).path == tmp_path / str(i)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(
            lambda spoiler: shutil.rmtree(spoiler.folder),
            "is not a Hugging Face model",
            id="no folder",
        ),
        pytest.param(without_file("config.json"), "no config.json", id="no config"),
        pytest.param(
            config_text('{"model_type": '), "cannot be read as a model's config", id="half a config"
        ),
        pytest.param(config_text("[]"), "cannot be read as a model's config", id="a list"),
        pytest.param(config_without("n_embd"), "config.json.*'n_embd'", id="no n_embd"),
        pytest.param(config_without("model_type"), "config.json.*'model_type'", id="no model_type"),
        pytest.param(
            config_with(model_type="t5"),
            "model_type='t5' is not supported, only bert, gpt2, llama, .*; import one of these",
            id="t5",
        ),
        pytest.param(
            config_with(activation_function="relu"), "activation_function='relu'", id="relu"
        ),
        pytest.param(
            config_with(tie_word_embeddings=False), "tie_word_embeddings=False", id="untied config"
        ),
        pytest.param(
            config_with(layer_norm_epsilon=1e-6), "layer_norm_epsilon=1e-06", id="epsilon"
        ),
        pytest.param(
            config_with(scale_attn_weights=False), "scale_attn_weights=False", id="unscaled"
        ),
        *(
            pytest.param(
                config_with(**{name: 10**12}), f"{name} must be at most", id=f"huge {name}"
            )
            for name in ("n_layer", "n_embd", "n_head", "n_inner", "n_positions", "vocab_size")
        ),
        pytest.param(
            config_with(n_embd=2**24, n_head=1, n_layer=9999, n_inner=2**24, matta_jax={}),
            r"tensor wte.weight has shape \(256, 24\)",
            id="large sizes",
        ),
        pytest.param(
            config_text("[" * 200_000), "cannot be read as a model's config .*deep", id="deep"
        ),
        pytest.param(
            tensors_with(ln_f__bias=np.full(24, 1e300)),
            "norm/bias holds numbers that are not finite in float32",
            id="beyond float32",
        ),
        pytest.param(
            tensors_with(h__0__attn__q_lora=np.zeros(5, np.float32)),
            "tensor h.0.attn.q_lora is none of GPT-2's",
            id="unknown tensor",
        ),
        pytest.param(
            tensors_with(h__0__attn__q_lora=np.zeros(5, np.float32), value=np.zeros(5, np.float32)),
            "tensor h.0.attn.q_lora and 1 more is none of GPT-2's",
            id="unknown tensors",
        ),
        pytest.param(config_with(n_head=0), "cannot be read as GPT-2's config", id="no heads"),
        pytest.param(
            config_with(n_positions=16), r"wpe.weight has shape \(32, 24\)", id="positions"
        ),
        pytest.param(
            config_with(n_layer=2, matta_jax={}),
            "there are more layers than the 2 that config.json says",
            id="fewer layers",
        ),
        pytest.param(
            config_with(n_layer=4, matta_jax={}), "tensor h.3.* is missing", id="more layers"
        ),
        pytest.param(
            config_with(n_layer=0), "n_layer=0 must be a whole number of at least 1", id="no layers"
        ),
        pytest.param(
            config_with(n_head=1.5), "n_head=1.5 must be a whole number", id="half a head"
        ),
        pytest.param(
            config_with(vocab_size="256"), "vocab_size='256' must be a whole number", id="text"
        ),
        pytest.param(
            config_with(n_head=5), "it must be that n_head divides n_embd", id="odd heads"
        ),
        pytest.param(
            config_with(matta_jax={"d_ff": [16]}), "d_ff has n_layer entries", id="own layers"
        ),
        pytest.param(
            config_with(matta_jax={"d_ff": [16, 16, 16]}),
            "n_inner is the largest d_ff",
            id="own d_ff",
        ),
        pytest.param(
            config_with(matta_jax={"num_heads": 5}), "num_heads is at most n_head", id="own heads"
        ),
        pytest.param(
            config_with(matta_jax={"num_heads": 0}), "num_heads=0 must be", id="no own heads"
        ),
        pytest.param(
            config_with(matta_jax={"head_granule": 2}),
            "head_granule divides num_heads",
            id="granules",
        ),
        pytest.param(
            config_with(matta_jax={"d_ff_granule": 36}),
            "d_ff_granule divides d_ff",
            id="d_ff granules",
        ),
        pytest.param(
            without_file("model.safetensors"),
            "model.safetensors' is missing",
            id="no weights",
        ),
        pytest.param(
            tensors_without("h.2.attn.c_proj.bias"),
            "tensor h.2.attn.c_proj.bias is missing",
            id="no tensor",
        ),
        pytest.param(
            tensors_with(h__1__mlp__c_fc__bias=np.zeros(5, np.float32)),
            r"tensor h.1.mlp.c_fc.bias has shape \(5,\), but config.json says \(48,\)",
            id="shape",
        ),
        pytest.param(
            tensors_with(lm_head__weight=lambda tensors: tensors["transformer.wte.weight"] + 1),
            "lm_head.weight differs from wte.weight; only tied heads are supported",
            id="untied head",
        ),
        pytest.param(
            tensors_with(ln_f__bias=np.full(24, np.nan, np.float32)),
            "norm/bias holds numbers that are not finite",
            id="not finite",
        ),
        pytest.param(
            tensors_with(ln_f__bias=np.zeros(24, np.int64)),
            "tensor ln_f.bias is of type I64, not a float",
            id="whole numbers",
        ),
    ],
)
def test_a_folder_that_is_not_our_gpt2_is_refused_and_nothing_is_left(
    edit_json, edit_tensors, refused, hf_folder, place, spoil, words
):
    spoil(Spoiler(hf_folder, edit_json, edit_tensors))
    with refused(words, place):
        matta_jax.import_hf(hf_folder, place / "model", tokenizer="byte")


def test_weights_where_the_config_says_padding_are_refused(refused, models, hf_folder, place):
    padded = models("hf", pad=True)["d_ff=48,16,48"]
    shutil.copyfile(padded / "config.json", hf_folder / "config.json")
    with refused(
        "tensor transformer.h.1.mlp.c_fc.bias is not zero outside the sizes of config.json", place
    ):
        matta_jax.import_hf(hf_folder, place / "model", tokenizer="byte")


def test_heads_that_do_not_fit_stock_gpt2_are_refused_and_nothing_is_left(
    refused, run, models, place
):
    words = "format='hf': 3 heads of 8 do not fit in d_model=16 of stock GPT-2"
    with refused(words, place):
        extract(str(run[1]), ["d_model=16"], place / "model", packaging=Packaging("hf"))
    extract(str(run[1]), ["d_model=16"], place / "wide")
    with refused(words, place):
        matta_jax.convert(place / "wide", place / "model", packaging=Packaging("hf"))
    shutil.copytree(models()["student"], place / "model")
    with refused(words, place):  # The model that was to be replaced is still there.
        extract(
            str(run[1]), ["d_model=16"], place / "model", packaging=Packaging("hf", overwrite=True)
        )


def test_models_that_do_not_fit_the_format_are_refused_before_any_is_written(refused, run, place):
    with refused("3 heads of 8 do not fit in d_model=16", place):
        matta_jax.extract(
            str(run[1]), ["ta", "d_model=16"], place / "models", packaging=packages.Packaging("hf")
        )


def test_verify_notices_damage_in_the_padding(refused, edit_tensors, models, tmp_path):
    folder = tmp_path / "model"
    for spec, name, ours in (
        ("d_ff=48,16,48", "h.1.mlp.c_fc.bias", "blocks/1/mlp/b_in"),
        ("num_heads=2", "h.2.attn.c_proj.weight", "blocks/0/attention/w_out"),
    ):
        shutil.copytree(models("hf", pad=True)[spec], folder)
        edit_tensors(
            folder, lambda tensors, name=name: tensors[f"transformer.{name}"][-1:].__iadd__(1e-30)
        )
        with refused(f"tensor {ours} cannot be read .tensor transformer.{name} is not", folder):
            elastic.verify(folder)
        shutil.rmtree(folder)


def test_verify_reads_the_config_that_transformers_needs(refused, edit_json, models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models("hf")["ta"], folder)
    edit_json(folder / "config.json", lambda config: config.update(n_positions=16))
    with refused("its config.json is not that of its manifest; extract it again", folder):
        elastic.verify(folder)
    (folder / "config.json").unlink()
    with refused("no config.json.*extract it again", folder):
        elastic.verify(folder)


def logits_of_theirs(model, tokens):
    import torch

    model.eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.float().numpy()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("fields", "saved"),
    [
        ({}, {}),
        ({"n_inner": 40}, {}),
        ({"n_inner": 40, "activation_function": "gelu_pytorch_tanh"}, {"max_shard_size": "20KB"}),
    ],
)
def test_a_model_of_transformers_is_imported_with_its_logits(
    logits_of_ours, tmp_path, fields, saved
):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=300, n_positions=20, n_embd=24, n_layer=3, n_head=4, **fields
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for weight in (
            model.parameters()
        ):  # As they come, biases are zeros, and all blocks do next to nothing.
            weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "theirs", **saved)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == bool(saved)
    package = matta_jax.import_hf(tmp_path / "theirs", tmp_path / "ours", tokenizer="byte")
    assert package.counts.parameters == sum(weight.numel() for weight in model.parameters())
    tokens = np.random.default_rng(0).integers(0, 300, (3, 20))
    expected = logits_of_theirs(model, tokens)
    assert expected.std() > 1
    np.testing.assert_allclose(logits_of_ours(package.path, tokens), expected, atol=1e-4, rtol=0)
    matta_jax.convert(package.path, tmp_path / "back", packaging=Packaging("hf"))
    back = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ITEM_SIZES)
def test_stock_transformers_computes_the_logits_of_every_exported_model(
    logits_of_ours, models, dtype
):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokens = np.random.default_rng(1).integers(0, 256, (2, 32))
    for folder in models("hf", dtype, pad=True).values():
        load = transformers.GPT2LMHeadModel.from_pretrained
        model, found = load(folder, output_loading_info=True)
        assert not any(
            found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        )
        assert model.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        ours = logits_of_ours(folder, tokens)
        assert ours.std() > 0.1
        np.testing.assert_allclose(logits_of_theirs(model.float(), tokens), ours, atol=1e-4, rtol=0)
        if dtype == "bf16":  # Its activations are rounded too: 8 bits, in each of a few layers.
            theirs = logits_of_theirs(load(folder), tokens)
            np.testing.assert_allclose(theirs, ours, atol=0.01 * np.abs(ours).max(), rtol=0)
