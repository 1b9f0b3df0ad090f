"""How many tokens a draft proposes."""

import pytest

from matta_jax.serving._drafts import Drafter


def test_a_draft_that_stands_proposes_more_and_one_that_falls_less():
    drafter = Drafter(cost=0.2, most=8)
    for _ in range(50):
        drafter.learn(8, 8)
    assert drafter.choose() == 8
    for _ in range(40):
        drafter.learn(4, 2)
    assert drafter.choose() in (1, 2)
    for _ in range(80):
        drafter.learn(1, 0)
    chosen = [drafter.choose() for _ in range(130)]
    # Not given up for good.
    assert chosen.count(0) >= 126 and chosen.count(1) == 2


def test_a_draft_as_dear_as_its_model_is_not_run():
    assert Drafter(cost=0.99, most=8, share=0.5).choose() == 0
    assert Drafter(cost=0.99, most=3, share=0.5, is_fixed=True).choose() == 3


def test_nothing_compared_says_nothing():
    drafter = Drafter(cost=0.2, most=8)
    before = drafter.share
    drafter.learn(0, 0)
    assert drafter.share == before


def test_each_proposal_counts_alike_in_whatever_turns_they_came():
    at_once, one_by_one = Drafter(cost=0.2, most=8), Drafter(cost=0.2, most=8)
    at_once.learn(16, 16)
    for _ in range(16):
        one_by_one.learn(1, 1)
    assert at_once.share == pytest.approx(one_by_one.share)
