"""A search says what a user should know of it."""

import jax.numpy as jnp

from matta_jax import config as c
from matta_jax import search
from matta_jax.checkpoints import Checkpoints
from matta_jax.selection import _notes, _rows
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


def timed_rows(*pairs):
    rows = [
        _rows.Row("d_ff=16", "searched", 1, 0.0, 1, predicted_ms=predicted, ms=ms)
        for predicted, ms in pairs
    ]
    # One that was not timed.
    return [*rows, _rows.Row("ta", "ta", 1, 0.0, 1, predicted_ms=9.0)]


def test_what_the_machine_shares_is_told_apart_from_what_the_model_misses():
    assert _notes._on_latency(timed_rows()) == []
    [note] = _notes._on_latency(timed_rows((1.0, 1.0), (2.0, 4.0)))
    assert note == "Latency model: off by 25% on average, 50% at most, on 2 timed models."
    # Twice as slow as at first, and a model that takes 3 where 4 is twice the prediction.
    [note] = _notes._on_latency(timed_rows((1.0, 2.0), (2.0, 3.0), (3.0, 6.0), (4.0, 8.0)))
    assert "off by 46% on average, 50% at most, on 4 timed models; by 8% and 33% when a" in note
    assert "a factor of 2.00 that all share is taken out" in note
