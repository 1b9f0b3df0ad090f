"""A search says what a user should know of it."""

import jax.numpy as jnp

from matta_jax import config as c
from matta_jax import search
from matta_jax.checkpoints import Checkpoints
from matta_jax.sharding import make_mesh
from matta_jax.training import make_setup


def test_a_space_that_was_never_trained_is_called_so(tiny, tmp_path, one_family):
    setup = make_setup(tiny(nest__mix_per_step=0), make_mesh((1, 1, 1)))
    state = setup.init()
    trees = {"params": state.params, "opt_state": state.opt_state, "step": {"step": jnp.int32(0)}}
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(0, trees, {"config": c.to_dict(setup.config)}, loss=1.0, units=setup.units)
    result = search(str(tmp_path / "run"), tmp_path / "search", **one_family)
    [note] = [note for note in result.notes if "trained no random mixes" in note]
    assert "larger models scored" in note
