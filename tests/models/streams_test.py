"""Streams: which sub-models run side by side, and which choose by data."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from matta_jax import config, nesting
from matta_jax.models import Plan
from matta_jax.models._streams import cuts_of, layers_apart, make_streams

NEST = nesting.expand(
    num_layers=3, d_model=16, num_heads=2, d_ff=16, ta_num_layers=6, ta_num_heads=3, ta_d_ff=32
)
PLAN = Plan(config.ModelConfig(num_layers=3, d_model=16, num_heads=2, d_ff=16), NEST, seq_len=8)


def test_few_runs_are_static_and_cut_the_layers():
    members = [NEST.student, NEST.ta, NEST.ta.resized(heads=(3, 3, 3, 3, 3, 2))]
    streams, choices_SL = make_streams(PLAN, members)
    assert [stream.choice for stream in streams] == [None, None, None]
    assert choices_SL.shape == (0, 6)
    assert cuts_of(streams, 6) == [0, 3, 5, 6]
    assert [stream.runs_in(4) for stream in streams] == [False, True, True]


def test_alternating_sizes_choose_by_data():
    mix = NEST.ta.resized(d_ff=(16, 32) * 3, heads=(2, 2, 3) * 2)
    streams, choices_SL = make_streams(PLAN, [NEST.ta, mix])
    assert streams[1].choice == 0 and choices_SL.shape == (1, 6)
    for layer, choice in enumerate(np.asarray(choices_SL[0])):
        assert streams[1].options[choice] == mix.sizes_in(layer)
    assert cuts_of(streams, 6) == [0, 6]


def test_skipped_layers_are_an_option():
    sub_model = NEST.ta.with_layers((0, 2, 4))
    (stream,), choices_SL = make_streams(PLAN, [sub_model])
    assert stream.options == (NEST.ta.sizes, None)
    assert choices_SL.tolist() == [[0, 1, 0, 1, 0, 1]]


def test_mixes_choose_among_the_nests_options():
    choice_L = jnp.array([0, 1, 0, 1, 1, 0])
    streams, choices_SL = make_streams(PLAN, [NEST.ta, choice_L])
    np.testing.assert_array_equal(choices_SL, [choice_L])
    assert streams[1].options == ({**NEST.ta.sizes, "d_ff": 16}, NEST.ta.sizes)


def test_histories_are_equal_while_sizes_are():
    deep = NEST.student.with_layers(tuple(range(6)))
    streams, _ = make_streams(PLAN, [NEST.student, deep, NEST.ta, NEST.student])
    histories = [stream.history(3) for stream in streams]
    assert histories[0] == histories[1] == histories[3] != histories[2]
    assert streams[0].history(4) != streams[1].history(4)


def test_a_member_that_owns_weights_has_a_history_of_its_own():
    members = [dataclasses.replace(NEST.ta, member=i) for i in range(2)]
    streams, _ = make_streams(PLAN, [*members, NEST.ta])
    assert len({stream.history(6) for stream in streams}) == 3


def test_layers_of_equal_states_are_run_by_the_first_alone():
    twin = NEST.student
    parting = NEST.ta.resized(d_ff=(32,) * 4 + (16,) * 2)
    # Chooses by data: its states are equal to no other's.
    mix = NEST.ta.resized(d_ff=(32, 16) * 3)
    members = [NEST.student, NEST.ta, twin, parting, NEST.ta.with_layers((0, 1)), mix, mix]
    whole = tuple(range(6))
    assert layers_apart(PLAN, members) == [(0, 1, 2), whole, (), (4, 5), (), whole, whole]
