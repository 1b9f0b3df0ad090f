"""A Student to start from, and the start of a run."""

import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import config as c
from matta_jax import extract, models, packages, sharding, starts

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 20))


@pytest.fixture(scope="session")
def student(run, tmp_path_factory):
    """The Student of the run's third step, with its optimiser state."""
    packaging = packages.Packaging(with_optimizer=True)
    output = tmp_path_factory.mktemp("student") / "s"
    [model] = extract(f"{run[1]}@3", ["student"], output, packaging=packaging)
    return model.path


@pytest.fixture(scope="session")
def starting(run):
    """`starting(model, nest, **fields)`: the run's config with another nest, starting from a
    model.
    """

    def make(model, nest, **fields):
        values = c.to_dict(run[0]) | {"nest": nest, "init": {"model": str(model)}}
        values["train"]["num_steps"] = 3
        for name, value in fields.items():
            section, field = name.split("__")
            values[section][field] = value
        return c.from_dict(values)

    return make


@pytest.fixture(scope="session")
def inputs():
    """Two sequences of 20 tokens."""
    return {"tokens": jnp.asarray(TOKENS)}


@pytest.fixture(scope="session")
def start(inputs):
    """`start(config)`: the TA's weights at the start, and the plan of the run."""

    def make(config):
        mesh = sharding.make_mesh((1, 1, 1))
        params, _ = starts.initial_params(config, starts.check_init(config), inputs, mesh)
        return params, models.plan_of(config)

    return make


@pytest.fixture(scope="session")
def outputs(inputs):
    """`outputs(architecture, params)`: the logits of a model on the inputs."""

    def compute(architecture, params):
        hidden_ND = models.apply(architecture, params, inputs)
        return np.asarray(models.logits(hidden_ND, params["embed"]["tokens"]))

    return compute
