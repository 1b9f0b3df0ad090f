"""What the server does: the mean is exact and a copy, and the draw is fair."""

from fractions import Fraction

import numpy as np
import pytest

from matta_jax import federated


def make_updates(counts, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (
            {
                "extractor": {"kernel": rng.normal(size=(4, 3)).astype(np.float32)},
                "header": {"bias": rng.normal(size=5).astype(np.float32)},
            },
            count,
        )
        for count in counts
    ]


def test_the_mean_is_that_of_fractions_rounded_once():
    updates = make_updates([7, 1000, 13, 255])
    mean = federated.aggregate(updates)
    total = sum(count for _, count in updates)
    for part, name in (("extractor", "kernel"), ("header", "bias")):
        for index in np.ndindex(mean[part][name].shape):
            terms = [Fraction(float(t[part][name][index])) * n for t, n in updates]
            assert mean[part][name][index] == np.float32(float(sum(terms) / total))
    assert mean["header"]["bias"].dtype == np.float32


def test_the_mean_of_clients_that_agree_or_of_one_is_theirs_bit_for_bit():
    [(theta, _)] = make_updates([11])
    for updates in ([(theta, 11)], [(theta, 3), (theta, 5), (theta, 9)]):
        mean = federated.aggregate(updates)
        assert np.array_equal(mean["extractor"]["kernel"], theta["extractor"]["kernel"])


@pytest.mark.parametrize("counts", [[5], [3, 4]])
def test_what_a_client_does_to_its_arrays_later_changes_nothing(counts):
    """Also where there is one client, whose arrays are the mean's."""
    updates = make_updates(counts)
    mean = federated.aggregate(updates)
    before = mean["header"]["bias"].copy(), mean["extractor"]["kernel"].copy()
    for theta, _ in updates:
        theta["header"]["bias"][:] = 99
        theta["extractor"]["kernel"][:] = 99
        theta["extractor"].clear()
    assert np.array_equal(mean["header"]["bias"], before[0])
    assert np.array_equal(mean["extractor"]["kernel"], before[1])
    # And what the server does with its mean changes no client's.
    mean["header"]["bias"][:] = -1
    assert all((theta["header"]["bias"] == 99).all() for theta, _ in updates)


def test_clients_of_no_images_or_of_other_shapes_have_no_mean():
    updates = make_updates([2, 3])
    for wrong in ([], [(updates[0][0], 0)], [updates[0], (updates[1][0], -1)]):
        with pytest.raises(ValueError):
            federated.aggregate(wrong)
    updates[1][0]["header"]["bias"] = updates[1][0]["header"]["bias"][:1]
    with pytest.raises(ValueError):
        federated.aggregate(updates)


def test_the_draw_is_of_distinct_clients_by_seed_and_round():
    draws = [federated.sample_clients(6, 3, number, 5) for number in range(1, 41)]
    assert all(draw == sorted(set(draw)) and len(draw) == 3 for draw in draws)
    assert draws == [federated.sample_clients(6, 3, number, 5) for number in range(1, 41)]
    assert draws != [federated.sample_clients(6, 3, number, 6) for number in range(1, 41)]
    turns = np.bincount(np.concatenate(draws), minlength=6)
    assert turns.min() >= 10, turns
    assert federated.sample_clients(4, 4, 1, 0) == [0, 1, 2, 3]


def test_bytes_are_those_of_the_arrays():
    assert federated.count_bytes(make_updates([1])[0][0]) == (12 + 5) * 4
    assert federated.count_bytes({}) == 0
