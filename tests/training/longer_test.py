"""A run may be longer than it was planned where that changes nothing, or where a user says so."""

import pytest

from matta_jax.training._longer import Length

CONSTANT = {"optimizer__schedule": "constant"}
NO_RAMP = {"objective__ramp_shape": "constant"}
NO_DISTILLATION = {"objective__distill_weight": 0.0, "objective__mix_distill_weight": 0.0}
LONG_RAMP = {"objective__distill_ramp": 0.9}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (CONSTANT, ""),
        (CONSTANT | LONG_RAMP | NO_RAMP, ""),
        (CONSTANT | LONG_RAMP | NO_DISTILLATION, ""),
        (CONSTANT | LONG_RAMP, "at step 6 goes from 1.00 to 0.56; --extend takes this"),
        ({}, "over 12 steps instead of 6: the learning rate at step 6 goes from "),
    ],
)
def test_what_jumps_wants_extend(tiny, fields, words):
    length = Length(tiny(train__num_steps=12, **fields), old_steps=6, saved_step=6)
    objection = length.objection(extend=False)
    assert words in objection and bool(objection) == bool(words)
    assert length.objection(extend=True) == ""


def test_the_jump_of_the_learning_rate_is_that_of_the_schedule(tiny):
    fields = {"optimizer__final_fraction": 0.1, "optimizer__warmup_steps": 0}
    length = Length(tiny(train__num_steps=12, **fields), old_steps=6, saved_step=6)
    # A cosine from 1e-2 to 1e-3: at its end, and half way.
    assert "the learning rate at step 6 goes from 1.0e-03 to 5.5e-03" in length.effects()[0]


def test_a_length_below_the_saved_step_is_refused(tiny):
    length = Length(tiny(train__num_steps=3, **CONSTANT), old_steps=6, saved_step=5)
    words = "train.num_steps: 6 -> 3, but step 5 is saved"
    assert length.objection(extend=False) == length.objection(extend=True) == words


def test_before_a_step_is_saved_any_length_is_free(tiny):
    assert (
        Length(tiny(train__num_steps=99), old_steps=6, saved_step=0).objection(extend=False) == ""
    )


def test_a_stream_without_an_evaluation_source_keeps_its_length(tiny):
    config = tiny(train__num_steps=12, data__stream=True, **CONSTANT)
    assert "held-out" in Length(config, old_steps=6, saved_step=6).objection(extend=True)
