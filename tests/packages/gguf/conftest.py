"""Models of random weights in GGUF files, of each kind and of several sizes."""

import jax
import numpy as np
import pytest

from matta_jax import config as c
from matta_jax import models, nesting, packages, storage
from matta_jax.nesting import flatten, unflatten
from matta_jax.packages import Packaging

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
GGUF = Packaging("gguf")
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


def config_of(block, tokenizer="byte", is_wide=False, **fields):
    data = c.DataConfig(seq_len=16, tokenizer=tokenizer)
    sizes, larger = (WIDE, WIDER) if is_wide else (SIZES, LARGER)
    fields = {"vocab_size": 256, **sizes, **BLOCKS[block], **fields}
    if block == "gpt2":
        # Heads of 16 fill d_model by two.
        fields["num_heads"] = 2 if is_wide else 4
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
        config = config_of(block, **fields)
        nest = nesting.nest_of(config)
        return models.architecture_of(config.model, nest, nesting.parse_spec(spec, nest))

    return make


@pytest.fixture(scope="session")
def random_weights():
    """`random_weights(architecture)`: far from those that training starts from."""

    def make(architecture):
        rng = np.random.default_rng(0)
        weights = {}
        for path, leaf in flatten(models.abstract_params(architecture)).items():
            weight = rng.normal(size=leaf.shape)
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

    def write(block, spec="ta", packaging=GGUF, **fields):
        architecture = architecture_of(block, spec, **fields)
        weights = random_weights(architecture)
        config = c.to_dict(config_of(block, **fields))
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
