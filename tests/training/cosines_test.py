"""The cosine of members' gradients with the TA's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import models, train
from matta_jax.nesting import flatten
from matta_jax.sharding import make_mesh
from matta_jax.training import make_setup
from matta_jax.training._cosines import make_cosines

BATCH = {
    "tokens": np.random.default_rng(0).integers(0, 256, (4, 33), np.int32),
    "length": np.full(4, 32, np.int32),
}


def gradient_by_hand(setup, params, member):
    def loss(weights):
        inputs = {"tokens": jnp.asarray(BATCH["tokens"][:, :-1])}
        hidden = models.sub_model_apply(setup.plan, weights, inputs, member)
        logits = models.logits(hidden, weights["embed"]["tokens"])
        labels = jnp.asarray(BATCH["tokens"][:, 1:]).reshape(-1, 1)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=1).sum()

    gradient = setup.plan.slice(jax.grad(loss)(params), setup.nest.student)
    return np.concatenate([np.ravel(leaf) for leaf in flatten(gradient).values()])


@pytest.mark.slow
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_they_are_of_whole_gradients_over_the_members_weights(tiny, weight):
    """Whatever weight the run gives a member."""
    config = tiny(
        objective__student_weight=weight, nest__members={"twin": "student", "middle": "d_ff=32"}
    )
    setup = make_setup(config, make_mesh((1, 1, 1)))
    params = setup.init().params
    cosines = make_cosines(setup)(params, BATCH)
    assert set(cosines) == {"cosine/student", "cosine/members/twin", "cosine/members/middle"}

    a, b = (gradient_by_hand(setup, params, m) for m in (setup.nest.student, setup.nest.ta))
    expected = a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)
    assert 0 < expected < 0.99
    assert cosines["cosine/student"] == pytest.approx(expected, abs=1e-4)
    assert cosines["cosine/members/twin"] == pytest.approx(expected, abs=1e-4)


def test_a_plain_run_has_none(tiny):
    nest = {"nest__d_ff": None, "nest__widths": (), "nest__num_layers": None}
    config = tiny(**nest, nest__d_model=None, nest__num_heads=None)
    setup = make_setup(config, make_mesh((1, 1, 1)))
    assert make_cosines(setup)(setup.init().params, BATCH) == {}


@pytest.mark.slow
def test_a_run_tells_and_writes_them_and_its_steps_are_the_same(run, tiny, tmp_path):
    lines = []
    train(tiny(train__cosine_every=3), tmp_path / "run", log=lines.append)
    assert sum("cosine/student 0." in line for line in lines) == 2
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "cosine/student" in row] == [3, 6]

    def losses(workdir):
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if "loss" in row]

    assert losses(tmp_path / "run") == losses(run[1])
