"""Which images each client has."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from matta_jax import federated
from matta_jax.errors import UserError

LABELS = np.random.default_rng(0).integers(0, 10, 2000)


def make(partition, *, count=10, alpha=0.5, share=2, seed=0):
    clients = {"count": count, "partition": partition, "alpha": alpha, "classes_per_client": share}
    return federated.from_dict({"clients": clients, "training": {"seed": seed}})


@given(
    partition=st.sampled_from(["dirichlet", "classes"]),
    count=st.integers(5, 20),
    share=st.integers(2, 10),
    seed=st.integers(0, 1000),
)
def test_each_image_has_one_client(partition, count, share, seed):
    config = make(partition, count=count, share=share, seed=seed, alpha=2.0)
    rows = federated.partition(LABELS, config)
    assert len(rows) == count
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(LABELS)))


@pytest.mark.parametrize("partition", ["dirichlet", "classes"])
def test_the_same_seed_deals_the_same(partition):
    first, second = (federated.partition(LABELS, make(partition)) for _ in range(2))
    changed = federated.partition(LABELS, make(partition, seed=1))
    assert all(map(np.array_equal, first, second))
    assert not all(map(np.array_equal, first, changed))


def test_clients_have_so_many_classes_in_even_parts():
    rows = federated.partition(LABELS, make("classes", share=2))
    for client in rows:
        assert len(set(LABELS[client])) == 2
    assert max(map(len, rows)) < 1.3 * min(map(len, rows))


def largest_share(alpha):
    rows = federated.partition(LABELS, make("dirichlet", alpha=alpha, count=5))
    return np.mean([np.bincount(LABELS[r], minlength=10).max() / len(r) for r in rows])


def test_a_small_alpha_makes_clients_unlike():
    assert largest_share(0.2) > 0.3 > 0.15 > largest_share(1000.0)


@pytest.mark.parametrize(
    ("labels", "config", "words"),
    [
        (
            LABELS,
            make("dirichlet", count=200, alpha=0.01),
            r"client \d+ of clients.count=200 has no example \(clients.partition=dirichlet with "
            r"clients.alpha=0.01\); raise clients.alpha",
        ),
        (
            np.arange(10),
            make("classes", count=10, share=1),
            r"client 0 of clients.count=10 has 1 example, and needs one to learn from and one to "
            r"be tested on \(clients.partition=classes\); lower clients.count",
        ),
        (
            np.zeros(50, int),
            make("classes", count=10, share=2),
            r"client \d of clients.count=10 has no example",
        ),
    ],
)
def test_a_client_without_examples_is_named_in_one_line(labels, config, words):
    with pytest.raises(UserError, match=words) as error:
        federated.partition(labels, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("rows", "tests"), [(20, 4), (2, 1), (3, 1)])
def test_a_client_is_tested_on_its_images_that_it_does_not_learn_from(rows, tests):
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    everything = federated.ClientData(images, np.arange(100, dtype=np.int32))
    config = federated.FederatedConfig()
    mine = np.arange(30, 30 + rows)
    parts = federated.split_client(everything, mine, 3, config)
    assert len(parts.test.labels) == tests
    labels = np.concatenate([parts.train.labels, parts.test.labels])
    assert np.array_equal(np.sort(labels), mine)
    for side in parts:
        assert np.array_equal(side.images.reshape(-1), side.labels)
    again = federated.split_client(everything, mine, 3, config)
    assert np.array_equal(parts.test.labels, again.test.labels)
