"""Models in each format, of a run and of random weights in GGUF files of each kind; what to spoil
them with, and what to compare them by.
"""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from matta_jax import config as c
from matta_jax import extract, nesting, packages, storage
from matta_jax import models as models_lib
from matta_jax.errors import UserError
from matta_jax.nesting import flatten, unflatten
from matta_jax.packages import Packaging

# Each with what the model card of a padded hf says of its padding.
PADDED = {
    "student": [],
    "ta": [],
    "d_ff=48,16,48": ["zero neurons to d_ff 48"],
    "layers=0,2;d_model=16;num_heads=2;d_ff=16,48": ["zero neurons to d_ff 48"],
    "num_heads=2": ["zero heads to 3"],
    "num_heads=2;d_ff=48,16,48": ["zero neurons to d_ff 48", "zero heads to 3"],
    "num_heads=3,2,3": ["zero heads to 3"],
}


@pytest.fixture(scope="session")
def padded():
    """The spec of each of `models`, with what its card says of its padding in format hf."""
    return PADDED


@pytest.fixture(scope="session")
def models(run, tmp_path_factory):
    """`models(format, dtype)`: the folders of PADDED's models, by spec; with `pad` those of hf have
    layers of one size. They are shared: copy one before changing it.
    """
    folders = {}

    def get(format="orbax", dtype="fp32", pad=False):
        if (format, dtype, pad) not in folders:
            output = tmp_path_factory.mktemp("models") / "all"
            extracted = extract(
                str(run[1]), list(PADDED), output, packaging=Packaging(format, dtype, pad=pad)
            )
            paths = [model.path for model in extracted]
            folders[format, dtype, pad] = dict(zip(PADDED, paths, strict=True))
        return folders[format, dtype, pad]

    return get


@pytest.fixture
def hf_folder(models, tmp_path):
    """A Hugging Face folder to spoil: the TA's, of 3 layers, d_model 24, 3 heads and d_ff 48."""
    folder = tmp_path / "hf_folder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(models("hf")["ta"] / name, folder / name)
    return folder


@pytest.fixture
def place(tmp_path):
    """An empty folder to write models to."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture(scope="session")
def weights():
    """`weights(folder)`: those of a model, by path."""

    def load(folder):
        flat = nesting.flatten(packages.load_model(folder).params)
        return {path: np.asarray(leaf) for path, leaf in flat.items()}

    return load


@pytest.fixture(scope="session")
def assert_same_bits():
    """`assert_same_bits(arrays, expected)`, of two mappings of arrays."""

    def check(arrays, expected):
        assert set(arrays) == set(expected)
        for path, leaf in expected.items():
            array, expected_array = arrays[path], np.asarray(leaf)
            assert (array.shape, array.dtype) == (expected_array.shape, expected_array.dtype), path
            assert array.tobytes() == expected_array.tobytes(), path

    return check


def _contents(folder):
    """Every file with its bytes, and every folder: hidden ones too."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="session")
def refused():
    """`with refused(words, place)` expects a UserError of one line, and `place` to be as it was."""

    @contextlib.contextmanager
    def expect(words, place):
        before = _contents(place)
        with pytest.raises(UserError, match=words) as error:
            yield
        assert "\n" not in str(error.value)
        assert _contents(place) == before

    return expect


@pytest.fixture(scope="session")
def edit_json():
    """`edit_json(file, edit)` changes a document."""

    def change(file, edit):
        document = json.loads(file.read_text())
        edit(document)
        file.write_text(json.dumps(document))

    return change


@pytest.fixture(scope="session")
def edit_tensors():
    """`edit_tensors(folder, edit)` changes the tensors of a model.safetensors."""

    def change(folder, edit):
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        edit(tensors)
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")

    return change


@pytest.fixture(scope="session")
def save_tokenizer():
    """`save_tokenizer(file, size)` writes a tokenizer.json of so many ids."""

    def save(file, size):
        from tokenizers import Tokenizer, models

        words = {"<|endoftext|>": 0} | {f"word{i}": i for i in range(1, size)}
        Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>")).save(str(file))

    return save


@pytest.fixture(scope="session")
def logits_of_ours():
    """`logits_of_ours(folder, tokens)`: the logits [B, T, V] of a model of ours."""

    def compute(folder, tokens):
        model = packages.load_model(folder)
        return np.asarray(model.logits(model.params, tokens)).reshape(*tokens.shape, -1)

    return compute


ROPE = {
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16.0,
    },
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16.0},
}
_GGUF = Packaging("gguf")
# Each with the fields in which it is not a Llama.
BLOCKS = {
    "llama": {},
    "untied": {"tie_embeddings": False},
    "ungrouped": {"num_kv_heads": 4},
    "wide heads": {"head_dim": 16},
    "qwen2": {"qkv_bias": True},
    "qwen2 untied": {"qkv_bias": True, "tie_embeddings": False},
    "qwen3": {"qk_norm": True, "head_dim": 16},
    "qwen3 untied": {"qk_norm": True, "tie_embeddings": False},
    "qwen3 yarn": {"qk_norm": True, "rope_type": "yarn", "rope_scaling": ROPE["yarn"]},
    **{kind: {"rope_type": kind, "rope_scaling": numbers} for kind, numbers in ROPE.items()},
    "gpt2": {},
}
SIZES = {"num_layers": 2, "d_model": 32, "num_heads": 4, "d_ff": 48, "max_len": 64}
LARGER = {"num_layers": 3, "d_model": 48, "d_ff": 96, "widths": (48, 64, 96)}
# Rows of whole blocks of 32.
WIDE = {"num_layers": 2, "d_model": 32, "num_heads": 4, "d_ff": 64, "max_len": 64, "head_dim": 16}
WIDER = {"num_layers": 3, "d_model": 96, "d_ff": 128, "widths": (64, 96, 128)}
# Heads of 32, the least that vLLM computes on a CPU.
TALL = {"num_layers": 2, "d_model": 64, "num_heads": 4, "d_ff": 64, "max_len": 64}
TALLER = {"num_layers": 3, "d_model": 192, "d_ff": 128, "widths": (64, 96, 128)}
# Rows of whole blocks of 256, which K-quants have.
SUPER = {"num_layers": 2, "d_model": 256, "num_heads": 2, "d_ff": 256, "max_len": 64}
SUPERIOR = {"num_layers": 3, "d_model": 512, "d_ff": 768, "widths": (256, 512, 768)}
ROWS = {"wide": (WIDE, WIDER), "tall": (TALL, TALLER), "super": (SUPER, SUPERIOR)}


def gguf_config(block, tokenizer="byte", is_wide=False, is_tall=False, is_super=False, **fields):
    data = c.DataConfig(seq_len=16, tokenizer=tokenizer)
    kinds = {"wide": is_wide, "tall": is_tall, "super": is_super}
    sizes, larger = next((ROWS[kind] for kind, is_it in kinds.items() if is_it), (SIZES, LARGER))
    if is_super and block != "gpt2":
        fields = {"head_dim": 256, **fields}
    if is_tall:
        fields = {"head_dim": 32, **fields}
    fields = {"vocab_size": 256, **sizes, **BLOCKS[block], **fields}
    if block == "gpt2":
        # Heads of 16 or 32 fill d_model by two.
        fields["num_heads"] = 2 if is_wide or is_tall or is_super else 4
        nest = c.NestConfig(num_heads=6, **larger)
        return c.Config(model=c.ModelConfig(**fields), nest=nest, data=data)
    fields = {"num_kv_heads": 2, "rope_theta": 500.0, "norm_epsilon": 1.2345678e-5, **fields}
    groups = fields["num_kv_heads"] * 3 // 2
    nest = c.NestConfig(num_kv_heads=groups, **larger)
    return c.Config(model=c.LlamaConfig(**fields), nest=nest, data=data)


@pytest.fixture(scope="session")
def architecture_of():
    """`architecture_of(block, spec, **fields)` of a sub-model."""

    def make(block, spec="ta", **fields):
        config = gguf_config(block, **fields)
        nest = nesting.nest_of(config)
        return models_lib.architecture_of(config.model, nest, nesting.parse_spec(spec, nest))

    return make


@pytest.fixture(scope="session")
def plan_of_wide():
    """`plan_of_wide(block)`: the plan of a run whose rows are of whole blocks of 32."""
    return lambda block: models_lib.plan_of(gguf_config(block, is_wide=True))


@pytest.fixture(scope="session")
def random_weights():
    """`random_weights(architecture)`: far from those that training starts from."""

    def make(architecture):
        rng = np.random.default_rng(0)
        weights = {}
        # Of wide models logits would be so large that servers' probabilities underflow.
        shrink = 64 / architecture.d_model if architecture.d_model >= 256 else 1
        for path, leaf in flatten(models_lib.abstract_params(architecture)).items():
            weight = shrink * rng.normal(size=leaf.shape)
            if path.endswith("scale"):
                weight = 1 + 0.2 * weight
            elif path.startswith("blocks") or path.endswith("positions"):
                weight *= 0.25
            weights[path] = weight.astype(np.float32)
        return weights

    return make


@pytest.fixture
def written(tmp_path, architecture_of, random_weights):
    """`written(block, spec, packaging, **fields)`: the folder of a model, and its weights."""

    def write(block, spec="ta", packaging=_GGUF, **fields):
        architecture = architecture_of(block, spec, **fields)
        weights = random_weights(architecture)
        config = c.to_dict(gguf_config(block, **fields))
        about = {"parent": {"hf": "none"}, "spec": spec, "config": config, "scores": []}
        folder = storage.path(tmp_path / f"{block}_{len(list(tmp_path.iterdir()))}")
        with storage.new_folder(folder, last="manifest.json") as building:
            packages.write_package(
                building,
                packages.in_memory(unflatten(weights)),
                architecture,
                packaging,
                about,
                text_ids=None,
            )
        return folder, weights

    return write


@pytest.fixture(scope="session")
def log_probs_of():
    """`log_probs_of(model, ids)`: those of a model of ours after each id [T, V], in float64."""

    def compute(model, ids):
        with jax.default_matmul_precision("highest"):
            logits = model.logits(model.params, np.array([ids]))
        logits = np.asarray(logits, np.float64)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

    return compute
