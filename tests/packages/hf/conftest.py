"""Sub-models of random weights in Hugging Face's folders, and transformers to load them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import config as c
from matta_jax import models, nesting, packages, storage

KINDS = {"llama": {}, "qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}


def plan_of(kind, widths=(20, 40), **fields):
    """The plan of a TA of 3 layers and d_model 24, with 3 heads or groups of 2."""
    sizes = {"vocab_size": 61, "num_layers": 3, "d_ff": widths[0], "max_len": 64}
    nest = {"d_ff": widths[-1], "widths": widths, "mix_per_step": 0}
    if kind == "gpt2":
        model = c.ModelConfig(**sizes | {"d_model": 24, "num_heads": 2, "head_dim": 8} | fields)
        nest["num_heads"] = 3
    else:
        heads = {"d_model": 24, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4}
        model = c.LlamaConfig(**sizes | heads | KINDS[kind] | fields)
        nest["num_kv_heads"] = 3
    config = c.Config(model=model, nest=c.NestConfig(**nest), data=c.DataConfig(seq_len=8))
    return models.plan_of(config)


@pytest.fixture(scope="session")
def mix_of():
    """`mix_of(kind, spec, **fields)`: the architecture and random weights of a sub-model."""

    def make(kind, spec, **fields):
        plan = plan_of(kind, **fields)
        rng = np.random.default_rng(0)
        # No weight is at a value, such as 0 or 1, at which a mistake would not show.
        draw = lambda leaf: jnp.asarray(0.1 + 0.3 * rng.normal(size=leaf.shape), jnp.float32)
        params = jax.tree.map(draw, models.abstract_params(plan.architecture))
        sub_model = nesting.parse_spec(spec, plan.nest)
        return plan.architecture_of(sub_model), plan.slice(params, sub_model)

    return make


@pytest.fixture(scope="session")
def write_folder(tmp_path_factory):
    """`write_folder(packaging, architecture, params)`: a new folder with a model's files."""

    def write(packaging, architecture, params):
        folder = storage.resolve(tmp_path_factory.mktemp("hf") / "m")
        folder.mkdir()
        weights = packages.in_memory(params)
        units = dict.fromkeys(weights, ())
        packages.write_weights(folder, packaging, weights, architecture, config={}, units=units)
        return folder

    return write


@pytest.fixture(scope="session")
def read_folder():
    """`read_folder(folder)`: the architecture and the weights that a folder holds, by path."""

    def read(folder):
        foreign = packages.open_hf(folder)
        names = nesting.flatten(models.logical_axes(foreign.architecture))
        readers = foreign.readers(names)
        everything = {path: (slice(None),) * len(names[path]) for path in readers}
        return foreign.architecture, {path: readers[path](everything[path]) for path in readers}

    return read


@pytest.fixture(scope="session")
def run_ours():
    """`run_ours(architecture, params, tokens)`: the logits [B, T, V] of a model of ours."""

    def compute(architecture, params, tokens):
        hidden = models.apply(architecture, params, {"tokens": jnp.asarray(tokens)})
        logits = models.logits(hidden, models.table_of(architecture, params))
        return np.asarray(logits).reshape(*tokens.shape, -1)

    return compute


@pytest.fixture(scope="session")
def transformers(tmp_path_factory):
    """The library, where it is installed; code of folders goes to a place of its own."""
    pytest.importorskip("torch")
    library = pytest.importorskip("transformers")
    place = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", place)
        yield library


@pytest.fixture(scope="session")
def load_trusted(transformers):
    """`load_trusted(folder)`: a model of transformers that has every tensor of the folder, and the
    code there is run.
    """

    def load(folder):
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, attn_implementation="eager", output_loading_info=True
        )
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
        assert not any(found[kind] for kind in kinds)
        return model.eval()

    return load


@pytest.fixture(scope="session")
def run_theirs():
    """`run_theirs(model, tokens)`: the logits of a model of transformers."""

    def compute(model, tokens):
        import torch

        with torch.no_grad():
            return model(torch.from_numpy(tokens)).logits.float().numpy()

    return compute
