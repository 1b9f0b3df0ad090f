"""BERT folders, in and out."""

import dataclasses
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


def section(**fields):
    sizes = {"vocab_size": 256, "num_layers": 3, "d_model": 16, "num_heads": 2, "d_ff": 24}
    return c.EmbedderConfig(**sizes | {"max_len": 12} | fields)


def write(folder, *, pooling=None, edit=lambda config: None, **fields):
    """A Hugging Face folder of random weights, as sentence-transformers write one where `pooling`
    is given; returns it, the architecture and the weights.
    """
    folder.mkdir(exist_ok=True)
    nest = nesting.nest_of(c.Config(model=section(**fields), data=c.DataConfig(seq_len=8)))
    architecture = models.architecture_of(section(**fields), nest, nest.ta)
    rng = np.random.default_rng(0)
    shapes = flatten(models.abstract_params(architecture))
    draw = lambda leaf: (0.3 + rng.normal(size=leaf.shape)).astype(np.float32)
    params = {path: draw(leaf) for path, leaf in shapes.items()}
    names = flatten(models.logical_axes(architecture))
    weights = packages.in_memory(nesting.unflatten(params))
    tensors = dict(packages.to_hf(weights, names, architecture))
    config = packages.hf_config(architecture, "float32", None)
    if pooling is not None:
        del config["matta_jax"]
        kinds = ("Transformer", "Pooling", "Normalize")
        modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    return storage.resolve(folder), architecture, params


def test_a_folder_comes_back_as_the_same_bits(tmp_path):
    folder, architecture, params = write(tmp_path / "bert", embed=8, pooling=None)
    package = matta_jax.import_hf(folder, tmp_path / "ours", tokenizer="byte")
    assert package.architecture == architecture
    loaded = flatten(packages.load_model(package.path).params)
    for path, weight in params.items():
        np.testing.assert_array_equal(loaded[path], weight)
    again = matta_jax.convert(package.path, tmp_path / "back", packaging=Packaging("hf"))
    stored = safetensors.numpy.load_file(again.path / "model.safetensors")
    original = safetensors.numpy.load_file(folder / "model.safetensors")
    assert set(stored) == set(original)
    assert all(np.array_equal(stored[name], original[name]) for name in stored)


def test_queries_keys_and_values_stand_where_bert_has_them(tmp_path):
    folder, _, params = write(tmp_path / "bert")
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    weights, biases = params["blocks/0/attention/w_qkv"], params["blocks/0/attention/b_qkv"]
    for i, name in enumerate(("query", "key", "value")):
        for layer in range(3):
            place = f"encoder.layer.{layer}.attention.self.{name}"
            # A row of Hugging Face's is a number of a head: [heads · head_dim, d_model].
            rows = weights[layer][0, :, i].reshape(16, 16).T
            np.testing.assert_array_equal(stored[f"{place}.weight"], rows)
            np.testing.assert_array_equal(stored[f"{place}.bias"], biases[layer][0, i].ravel())


def test_a_folder_of_sentence_transformers_says_how_it_pools(tmp_path):
    for mode, pooling in (("mean_tokens", "mean"), ("cls_token", "cls"), ("cls", "cls")):
        modes = {f"pooling_mode_{mode}": True, "pooling_mode_max_tokens": False}
        # Newer versions name the mode in one field.
        modes = {"pooling_mode": mode} if mode == "cls" else modes
        folder, _, _ = write(tmp_path / mode, pooling=modes)
        package = matta_jax.import_hf(folder, tmp_path / f"{mode}_ours", tokenizer="byte")
        assert package.config.model.pooling == package.architecture.options["pooling"] == pooling


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"edit": lambda config: config.update(hidden_act="relu")}, "hidden_act='relu' is not"),
        (
            {"edit": lambda config: config.update(position_embedding_type="relative_key")},
            "position_embedding_type='relative_key' is not supported",
        ),
        ({"edit": lambda config: config.pop("hidden_size")}, "'hidden_size' is missing"),
        (
            {"pooling": {"pooling_mode_max_tokens": True}},
            "pooling by max_tokens is not supported, only by one of",
        ),
        (
            {"edit": lambda config: config["matta_jax"].update(embed=99)},
            "model.embed=99 must be at most",
        ),
    ],
)
def test_what_we_do_not_compute_is_refused(tmp_path, more, words):
    folder, _, _ = write(tmp_path / "bert", **more)
    with pytest.raises(UserError, match=words) as error:
        matta_jax.import_hf(folder, tmp_path / "ours", tokenizer="byte")
    assert "\n" not in str(error.value) and not (tmp_path / "ours").exists()


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_transformers_gives_our_vectors(tmp_path, pooling, activation):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, architecture, params = write(tmp_path / "bert", embed=8, activation=activation)
    options = {**architecture.options, "pooling": pooling}
    architecture = dataclasses.replace(architecture, options=options)
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokens = np.random.default_rng(1).integers(0, 256, (3, 10))
    length = np.array([10, 4, 1])
    mask = torch.tensor(np.arange(10) < length[:, None])
    with torch.no_grad():
        hidden = model(torch.tensor(tokens), attention_mask=mask).last_hidden_state
    pooled = hidden[:, 0]
    if pooling == "mean":
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = torch.nn.functional.normalize(pooled[:, :8])
    inputs = {"tokens": tokens, "length": length}
    vectors = models.apply(architecture, nesting.unflatten(params), inputs)
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("embed", [8, 16])
def test_sentence_transformers_gives_our_vectors(tmp_path, save_tokenizer, embed):
    """Of the folder that we write, loaded as it is: the cut too."""
    library = pytest.importorskip("sentence_transformers")
    folder, _, _ = write(tmp_path / "bert", embed=embed, pooling=None)
    save_tokenizer(folder / "tokenizer.json", 256)
    package = matta_jax.import_hf(folder, tmp_path / "ours", packaging=Packaging("hf"))
    model = library.SentenceTransformer(str(package.path), device="cpu")
    tokens = np.random.default_rng(1).integers(1, 256, (3, 10))
    length = np.array([10, 4, 1])
    features = {
        "input_ids": tokens,
        "attention_mask": (np.arange(10) < length[:, None]).astype(int),
    }
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        vectors = model({name: torch.tensor(array) for name, array in features.items()})
    ours = packages.load_model(package.path)
    expected = ours.apply(ours.params, {"tokens": tokens, "length": length})
    np.testing.assert_allclose(vectors["sentence_embedding"].numpy(), expected, atol=1e-5)
    assert expected.shape == (3, embed)
