"""A run that goes on from a checkpoint of another one."""

import dataclasses

import jax
import numpy as np
import pytest

from matta_jax import config as c
from matta_jax import train
from matta_jax.checkpoints import load_opt_state, open_source
from matta_jax.errors import UserError
from matta_jax.starts import check_checkpoint


def going_on(run, **fields):
    config = dataclasses.replace(run[0], init=c.InitConfig(checkpoint=f"{run[1]}@3"))
    return c.override(config, {name.replace("__", "."): value for name, value in fields.items()})


@pytest.mark.slow
def test_to_go_on_as_before_gives_the_same_bits(run, tmp_path):
    lines = []
    train(going_on(run), tmp_path / "on", log=lines.append)
    assert any("goes on from" in line and "step 3" in line for line in lines)
    one, other = open_source(str(run[1])), open_source(str(tmp_path / "on"))
    jax.tree.map(np.testing.assert_array_equal, one.load_ta(), other.load_ta())
    jax.tree.map(np.testing.assert_array_equal, load_opt_state(one), load_opt_state(other))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__d_ff": 8, "nest__widths": (8, 48)}, "holds another TA .*model.d_ff: 16 -> 8"),
        ({"nest__d_ff": 96, "nest__widths": (16, 96)}, "holds another TA .*nest.d_ff: 48 -> 96"),
        ({"optimizer__name": "adafactor"}, "state of another optimiser .*optimizer.name"),
        ({"train__num_steps": 3}, "is of step 3, but train.num_steps=3"),
        ({"init__checkpoint": "nowhere"}, "nowhere"),
    ],
)
def test_another_run_is_refused(run, fields, message):
    with pytest.raises(UserError, match=message):
        check_checkpoint(going_on(run, **fields))


def test_a_run_starts_from_a_model_or_from_a_checkpoint(run, tmp_path):
    with pytest.raises(UserError, match="init.checkpoint=.* and init.model='m': .*one of them"):
        train(going_on(run, init__model="m"), tmp_path / "on")
    assert not (tmp_path / "on").exists()
