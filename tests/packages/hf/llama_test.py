"""Llama, Qwen 2.5, Qwen 3 and Gemma 3 in Hugging Face's files: both ways, and by transformers."""

import dataclasses
import json
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as st

import matta_jax
from matta_jax import config as c
from matta_jax import models, nesting, packages, storage, tokenizers
from matta_jax.errors import UserError
from matta_jax.nesting import flatten
from matta_jax.packages import Packaging

ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16.0,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16.0, "truncate": 0.0},
}
DATA = c.DataConfig(seq_len=8)
KINDS = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma3_text": {
        "qk_norm": True,
        "post_norms": True,
        "norm_offset": 1.0,
        "gate": "gelu_tanh",
        "embed_scale": math.sqrt(24),
        "query_scale": 10**-0.5,
        "window": 5,
    },
}


def section(kind, **fields):
    sizes = {
        "vocab_size": 61,
        "num_layers": 3,
        "d_model": 24,
        "num_heads": 4,
        "num_kv_heads": 2,
        "d_ff": 20,
        "max_len": 64,
    }
    return c.LlamaConfig(**sizes | KINDS[kind] | fields)


def architecture_of(model):
    nest = nesting.nest_of(c.Config(model=model, data=DATA))
    return models.architecture_of(model, nest, nest.ta)


def random_params(architecture, seed=0):
    """No weight is at a value, such as 0 or 1, at which a mistake would not show."""
    rng = np.random.default_rng(seed)
    shapes = models.abstract_params(architecture)
    draw = lambda leaf: (0.3 + rng.normal(size=leaf.shape)).astype(np.float32)
    return jax.tree.map(draw, shapes)


def write(folder, architecture, params, edit=lambda config: None):
    """A Hugging Face folder; `edit` changes its config.json."""
    folder.mkdir(exist_ok=True)
    names = flatten(models.logical_axes(architecture))
    tensors = packages.to_hf(packages.in_memory(params), names, architecture)
    config = packages.hf_config(architecture, "float32", None)
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors}
    safetensors.numpy.save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    return storage.resolve(folder)


def read(folder):
    """The architecture and the weights of a folder."""
    foreign = packages.open_hf(folder)
    architecture = foreign.architecture
    names = flatten(models.logical_axes(architecture))
    readers = foreign.readers(names)
    weights = {path: reader((slice(None),) * len(names[path])) for path, reader in readers.items()}
    return architecture, weights


@st.composite
def sections(draw):
    """A section of any kind, and the name of that kind."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    groups, queries = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (4, 1)]))
    rope = draw(st.sampled_from(sorted(ROPES)))
    fields = {
        "num_heads": groups * queries,
        "num_kv_heads": groups,
        "head_dim": draw(st.sampled_from([2, 6, 8])),
        "tie_embeddings": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from([100.0, 1e6])),
        "rope_type": rope,
        "rope_scaling": ROPES[rope],
    }
    if kind == "gemma3_text":
        fields["global_layers"] = tuple(draw(st.sets(st.integers(0, 2), max_size=2)))
    elif kind != "llama" and rope == "default" and draw(st.booleans()):
        # Qwen's local layers have the positions of all others.
        local = {"window": 5, "global_layers": (0,), "local_rope_theta": fields["rope_theta"]}
        fields |= local
    return kind, section(kind, **fields)


def older(config):
    """Fields of the versions before `rope_parameters`."""
    parameters = config.pop("rope_parameters")
    if "full_attention" in parameters:
        config["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        parameters = parameters["full_attention"]
    config["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else parameters | {"type": kind}


@hypothesis.settings(max_examples=25)
@hypothesis.given(drawn=sections(), is_old=st.booleans())
def test_what_is_written_is_read_bit_for_bit(drawn, is_old, tmp_path_factory):
    kind, model = drawn
    architecture = architecture_of(model)
    params = random_params(architecture)
    edit = older if is_old else lambda config: None
    folder = write(tmp_path_factory.mktemp("hf") / "m", architecture, params, edit)
    assert json.loads((folder / "config.json").read_text())["model_type"] == kind
    back, weights = read(folder)
    # Square roots: written as a whole number.
    options = {"query_scale": architecture.options["query_scale"]}
    assert back.options["query_scale"] == pytest.approx(options["query_scale"])
    same = dataclasses.replace(back, options={**back.options, **options})
    assert same == architecture
    assert weights.keys() == flatten(params).keys()
    for path, weight in flatten(params).items():
        np.testing.assert_array_equal(weights[path], weight)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_mixed_sizes_are_padded_and_the_padding_taken_off_again(kind, tmp_path):
    model = section(kind, num_kv_heads=1, num_heads=2, head_dim=4)
    nest = c.NestConfig(num_kv_heads=3, d_ff=40, widths=(20, 40), mix_per_step=0)
    config = c.Config(model=model, nest=nest, data=DATA)
    plan = models.plan_of(config)
    params = jax.tree.map(jnp.asarray, random_params(plan.architecture))
    mix = nesting.parse_spec("num_kv_heads=1,3,1;d_ff=40,20,40", plan.nest)
    architecture, weights = plan.architecture_of(mix), plan.slice(params, mix)
    folder = write(tmp_path / "m", architecture, weights)
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_key_value_heads"], config["intermediate_size"]) == (3, 40)
    back, read_weights = read(folder)
    assert back.sub_model == architecture.sub_model and back.granules == architecture.granules
    for path, weight in flatten(weights).items():
        np.testing.assert_array_equal(read_weights[path], weight)

    # The stock model of the padded tensors computes the same.
    config.pop("matta_jax")
    (folder / "config.json").write_text(json.dumps(config))
    padded, padded_weights = read(folder)
    inputs = {"tokens": jnp.arange(20).reshape(2, 10)}
    stock = nesting.unflatten({path: jnp.asarray(w) for path, w in padded_weights.items()})
    np.testing.assert_allclose(
        models.apply(padded, stock, inputs),
        models.apply(architecture, weights, inputs),
        atol=1e-4,
    )


def test_heads_that_do_not_divide_the_width_are_filled_up(tmp_path):
    """Stock Llama asks for it: 5 heads at d_model 24 become 6."""
    architecture = architecture_of(section("llama", num_heads=5, num_kv_heads=5, head_dim=4))
    folder = write(tmp_path / "m", architecture, random_params(architecture))
    assert json.loads((folder / "config.json").read_text())["num_attention_heads"] == 6
    assert read(folder)[0] == architecture
    wide = architecture_of(section("llama", num_heads=26, num_kv_heads=26, head_dim=4))
    with pytest.raises(UserError, match="26 heads do not divide d_model=24, as stock Llama asks"):
        packages.hf_config(wide, "float32", None)


def changed(**fields):
    return lambda config: config.update(fields)


@pytest.mark.parametrize(
    ("kind", "edit", "words"),
    [
        ("llama", changed(model_type="mistral"), "model_type='mistral' is not supported, only"),
        ("llama", changed(quantization_config={"bits": 4}), "quantised weights are not supported"),
        ("llama", changed(attention_bias=True), "attention_bias=True is not supported, only False"),
        ("llama", changed(mlp_bias=True), "mlp_bias=True is not supported"),
        ("llama", changed(hidden_act="relu"), "hidden_act='relu' is not supported, only silu"),
        ("llama", changed(num_key_value_heads=3), "num_kv_heads=3 must divide"),
        ("llama", changed(hidden_size="24"), "hidden_size='24' must be a whole number"),
        ("llama", changed(num_hidden_layers=10**9), "num_hidden_layers must be at most 10,000"),
        (
            "llama",
            changed(rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
            "rope_type='dynamic' is not supported, only default, linear, llama3, yarn",
        ),
        (
            "llama",
            changed(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
            "partial_rotary_factor=0.5 is not supported",
        ),
        (
            "llama",
            changed(rope_parameters={"rope_type": "linear", "rope_theta": 1e4}),
            "has no factor, which",
        ),
        (
            "llama",
            changed(rope_scaling={"type": "linear", "factor": 2.0, "sections": 3}),
            "model.rope_scaling.sections is not a number of",
        ),
        ("llama", changed(matta_jax={"d_ff": [20]}), "d_ff has num_hidden_layers entries"),
        ("llama", changed(matta_jax={"num_kv_heads": [9, 9, 9]}), "num_kv_heads is at most 2"),
        ("llama", changed(matta_jax={"d_ff_granule": 7}), "d_ff_granule divides d_ff"),
        ("llama", changed(num_hidden_layers=2, matta_jax={}), "there are more layers than the 2"),
        ("llama", changed(intermediate_size=24, matta_jax={}), r"has shape \(20, 24\), but config"),
        ("llama", changed(tie_word_embeddings=False), "tensor lm_head.weight is missing"),
        (
            "qwen2",
            changed(
                use_sliding_window=True, sliding_window=4, max_window_layers=1,
                rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            ),
            "rope_type='linear' beside a sliding window is not supported",
        ),
        ("qwen2", changed(layer_types=["other"] * 3, use_sliding_window=True), "layer_types must"),
        ("qwen3", changed(attention_bias=True), "attention_bias=True is not supported"),
        ("gemma3_text", changed(final_logit_softcapping=30.0), "final_logit_softcapping=30.0 is"),
        (
            "gemma3_text",
            changed(
                rope_parameters={
                    "full_attention": {"rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
                }
            ),
            "rope_parameters.sliding_attention: rope_type='linear' is not supported",
        ),
    ],
)  # fmt: skip
def test_what_we_do_not_compute_is_refused(kind, edit, words, tmp_path):
    architecture = architecture_of(section(kind))
    folder = write(tmp_path / "m", architecture, random_params(architecture), edit)
    with pytest.raises(UserError, match=words):
        matta_jax.import_hf(folder, tmp_path / "ours", tokenizer="byte")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            "up_proj.weight is missing",
        ),
        (lambda t: t.update({"model.layers.0.x": np.ones(2, np.float32)}), "none of Llama's"),
        (
            lambda t: t.update({"lm_head.weight": np.ones((256, 24), np.float32)}),
            "lm_head.weight differs from embed_tokens.weight, and config.json says tie_word_emb",
        ),
        (
            lambda t: t["model.norm.weight"].fill(np.nan),
            "norm/scale holds numbers that are not",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(edit, words, tmp_path):
    architecture = architecture_of(section("llama", vocab_size=256))
    folder = write(tmp_path / "m", architecture, random_params(architecture))
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    edit(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=words):
        matta_jax.import_hf(folder, tmp_path / "ours", tokenizer="byte")


def test_what_a_stock_model_cannot_say_is_refused():
    for fields, words in (
        ({"embed_scale": 2.0}, "model.embed_scale=2.0 is not what stock Llama has"),
        ({"query_scale": 2.0}, "model.query_scale=2.0 is not what stock Llama has"),
        ({"window": 4}, "model.window=4 is not what stock Llama has"),
        ({"qkv_bias": True, "qk_norm": True}, "format='hf' has no kind of model for this one"),
    ):
        architecture = architecture_of(section("llama", **fields))
        with pytest.raises(UserError, match=words):
            packages.hf_config(architecture, "float32", None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@hypothesis.settings(max_examples=20)
@hypothesis.given(drawn=sections())
def test_transformers_computes_our_logits(drawn, tmp_path_factory):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    _, model = drawn
    # Stock Llama and Gemma ask for heads that divide d_model; ours are filled up.
    architecture = architecture_of(model)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf) * 0.3, random_params(architecture))
    folder = write(tmp_path_factory.mktemp("hf") / "m", architecture, params)
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs, found = load(folder, attn_implementation="eager", output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    tokens = np.random.default_rng(0).integers(0, 61, (2, 40))
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(tokens)).logits.numpy().reshape(80, -1)
    hidden = models.apply(architecture, params, {"tokens": jnp.asarray(tokens)})
    actual = models.logits(hidden, models.table_of(architecture, params))
    assert expected.std() > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-5 * max(1, np.abs(expected).max()), rtol=0)

    # And what transformers writes is read.
    theirs.save_pretrained(folder.with_name("again"))
    back, weights = read(storage.resolve(folder.with_name("again")))
    assert back.num_layers == 3
    for path, weight in flatten(params).items():
        if "attention" not in path:  # Where heads of zeros were filled up.
            np.testing.assert_array_equal(weights[path], weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_import_grow_train_extract_export_and_load_in_transformers(kind, corpus, tiny, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = section(kind, vocab_size=256, num_heads=2, num_kv_heads=1, head_dim=6, max_len=32)
    architecture = architecture_of(model)
    params = jax.tree.map(lambda leaf: leaf * 0.1, random_params(architecture))
    folder = write(tmp_path / "hf", architecture, params)
    package = matta_jax.import_hf(folder, tmp_path / "ours", tokenizer="byte")
    values = c.to_dict(tiny()) | {"init": {"model": str(tmp_path / "ours")}}
    values["model"] = c.to_dict(package.config)["model"]
    values["nest"] = {"num_layers": 4, "num_kv_heads": 2, "d_ff": 40, "widths": (20, 40)}
    values["train"] |= {"num_steps": 3, "eval_every": 3, "checkpoint_every": 3}
    matta_jax.train(c.from_dict(values), tmp_path / "run", log=lambda _: None)

    tokens = np.random.default_rng(0).integers(0, 256, (2, 20))
    specs = ["student", "ta", "d_ff=40,20,20,40"]
    exported = []
    for pad in (False, True):
        output, packaging = tmp_path / f"out_{pad}", Packaging("hf", pad=pad)
        exported += matta_jax.extract(str(tmp_path / "run"), specs, output, packaging=packaging)
    for extracted in exported:
        assert extracted.max_difference == 0
        ours = packages.load_model(extracted.path)
        expected = np.asarray(ours.logits(ours.params, tokens))
        # Stock Gemma's layers are padded in any case; of others a mix has code.
        has_code = (extracted.path / "modeling_mixed.py").exists()
        is_mix = extracted.path.parent.name == "out_False" and "," in extracted.spec
        assert has_code == (is_mix and kind != "gemma3_text")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            extracted.path, attn_implementation="eager", trust_remote_code=has_code
        ).eval()
        with torch.no_grad():
            actual = theirs(torch.tensor(tokens)).logits.numpy().reshape(-1, 256)
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(actual, expected, atol=2e-5 * scale, rtol=0)


def test_a_config_says_what_stands_around_texts():
    architecture = architecture_of(section("llama"))
    described = packages.hf_config(architecture, "float32", tokenizers.TextIds(1, 2))
    assert (described["bos_token_id"], described["eos_token_id"]) == (1, 2)
    described = packages.hf_config(architecture, "float32", None)
    assert described["bos_token_id"] is described["eos_token_id"] is None
