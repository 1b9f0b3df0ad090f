"""Nests of tiny GPT-2s whose weights stand at no special value, and their plain models."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from matta_jax import models, nesting
from matta_jax.config import ModelConfig

CONFIG = ModelConfig(vocab_size=31, num_layers=2, d_model=16, num_heads=2, d_ff=16, max_len=12)
NESTS = {
    "layer": {"ta_d_ff": 48, "ta_num_heads": 3, "widths": (16, 32, 48)},
    "depth": {"ta_num_layers": 4},
    "spread": {"ta_num_layers": 5, "spread": True},
    "d_model": {"ta_d_model": 24},
    "all": {
        "ta_num_layers": 4,
        "ta_d_model": 24,
        "ta_num_heads": 3,
        "ta_d_ff": 48,
        "widths": (16, 32, 48),
    },
}


def perturb(params):
    """No weight is at a value, such as 0 or 1, at which a mistake would not show."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noisy = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, noisy)


@dataclasses.dataclass(frozen=True)
class Nested:
    """A plan, and weights of its TA."""

    plan: models.Plan
    params: dict

    @property
    def nest(self):
        return self.plan.nest

    def parse(self, spec):
        return nesting.parse_spec(spec, self.nest)

    def plain(self, sub_model):
        """The plain model of the sliced weights: (function of weights and tokens, weights)."""
        architecture = self.plan.architecture_of(sub_model)

        def apply(weights, tokens_BT):
            return models.apply(architecture, weights, {"tokens": tokens_BT})

        return jax.jit(apply), self.plan.slice(self.params, sub_model)

    def assert_plain(self, sub_model, hidden_ND, tokens_BT):
        """Checks the hidden states of a sub-model in place, bit for bit."""
        function, weights = self.plain(sub_model)
        np.testing.assert_array_equal(
            hidden_ND, function(weights, tokens_BT), err_msg=str(sub_model)
        )


def _make(nest, *, config=CONFIG, scaled=False):
    plan = models.Plan(config, nest, config.max_len)
    init = lambda: models.init_params(
        plan.architecture, jax.random.key(0), nest if scaled else None
    )
    return Nested(plan, jax.jit(lambda: perturb(init()))())


@pytest.fixture(scope="session")
def make_nested():
    """`make_nested(nest)`: the `Nested` of a nest around CONFIG."""
    return _make


@functools.cache
def _nested(name):
    nest = nesting.expand(num_layers=2, d_model=16, num_heads=2, d_ff=16, **NESTS[name])
    return _make(nest, scaled=True)


@pytest.fixture(scope="session")
def nested():
    """`nested(name)`: the `Nested` of one of NESTS."""
    return _nested


@pytest.fixture(scope="session")
def perturbed():
    """`perturb`."""
    return perturb


@pytest.fixture(scope="session")
def tokens():
    """Three rows of random ids."""
    return jax.random.randint(jax.random.key(1), (3, 12), 0, CONFIG.vocab_size)


@pytest.fixture(scope="session")
def model_config():
    """The Student of all NESTS."""
    return CONFIG
