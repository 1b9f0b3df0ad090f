"""Names by which a policy keeps what a layer has made."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from matta_jax.config import Config, DataConfig, LlamaConfig, ModelConfig
from matta_jax.models import Compute, joint_apply, plan_of
from matta_jax.models.layers import KEPT_NAMES

SIZES = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 32, "max_len": 8, "vocab_size": 16}


@pytest.mark.parametrize(
    "model", [ModelConfig(**SIZES), LlamaConfig(**SIZES, num_kv_heads=1)], ids=["gpt", "llama"]
)
def test_a_layer_has_each_name_that_the_config_knows(model):
    plan = plan_of(Config(model=model, data=DataConfig(seq_len=8)))
    params = plan.abstract

    def kept_by(*names, remat="full"):
        """Bytes that a pass keeps for its backward pass."""
        compute = Compute(remat=remat, remat_names=names)

        def pull(params, tokens_BT):
            run = lambda params: joint_apply(
                plan, params, {"tokens": tokens_BT}, [plan.nest.ta], compute=compute
            )
            return jax.vjp(run, params)[1]

        kept = jax.eval_shape(pull, params, jax.ShapeDtypeStruct((2, 8), jnp.int32))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))

    for name in KEPT_NAMES:
        assert dataclasses.replace(model, remat=f"full+{name}").remat_names == (name,)
        assert kept_by(name) > kept_by(), name
    assert kept_by(*KEPT_NAMES) > max(kept_by(name) for name in KEPT_NAMES)
    # What heads have gathered is no product; it stays on the device where these go to the host.
    for remat in ("dots", "offload"):
        assert kept_by("attention", remat=remat) > kept_by(remat=remat) > kept_by()
