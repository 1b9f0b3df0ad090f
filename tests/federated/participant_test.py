"""A client and its slots."""

import numpy as np
import pytest

from matta_jax import federated, storage
from matta_jax.errors import DamageError
from matta_jax.federated import _participant


@pytest.fixture
def begun(make_config, tmp_path):
    """A client that has written what it begins with; theta; and its folder."""
    config = make_config()
    parts, _ = federated.read_clients(config)
    folder = federated.RunFolder(storage.resolve(tmp_path))
    theta = federated.init_theta(config)
    participant = _participant.Participant(config, 2, parts[2], folder)
    participant.begin(theta)
    return participant, theta, folder


def test_a_client_reads_a_slot_and_writes_the_other(begun, fingerprints):
    participant, theta, folder = begun
    before = fingerprints(folder.read_client(2, "a"))
    new_theta, images = participant.train(theta, 1, "a")
    assert fingerprints(folder.read_client(2, "a")) == before
    written = folder.read_client(2, "b")
    assert fingerprints(written.copy) == fingerprints(new_theta) and images > 1
    # Asked again after a crash of the server, it gives the same; another round is another order.
    again, _ = participant.train(theta, 1, "a")
    assert fingerprints(again) == fingerprints(new_theta)
    assert fingerprints(folder.read_client(2, "b")) == fingerprints(written)
    later, _ = participant.train(theta, 2, "a")
    assert fingerprints(later) != fingerprints(new_theta)


def test_its_scores_are_of_the_slot_that_is_named(begun):
    participant, theta, folder = begun
    assert participant.score(theta, "a")[0] == participant.score(theta, "a")[1]
    with pytest.raises(DamageError):
        participant.score(theta, "b")
    participant.train(theta, 1, "a")
    state = folder.read_client(2, "b")
    spoiled = state._replace(weights={**state.weights, "header": _constant(state, 1)})
    folder.write_client(2, spoiled, "b")
    labels = participant._parts.test.labels
    assert participant.score(theta, "b")[0] == np.mean(labels == 1)


def _constant(state, label):
    """A header that always names a class."""
    header = state.weights["header"]
    bias = np.zeros_like(header["bias"])
    bias[label] = 1
    return {"kernel": np.zeros_like(header["kernel"]), "bias": bias}


def test_clients_here_answer_in_the_order_that_they_are_asked(make_config, fingerprints, tmp_path):
    config = make_config()
    parts, fingerprint = federated.read_clients(config)
    folder = federated.RunFolder(storage.resolve(tmp_path))
    clients = _participant.ClientsHere(config, parts, folder, fingerprint)
    theta = federated.init_theta(config)
    clients.begin(theta)
    updates = clients.train(theta, 1, {2: "a", 0: "a"})
    expected = [len(parts[client].train.labels) for client in (2, 0)]
    assert [images for _, images in updates] == expected
    again = clients.train(theta, 1, {0: "a", 2: "a"})
    assert fingerprints(updates[0][0]) == fingerprints(again[1][0])
    assert fingerprints(updates[0][0]) != fingerprints(again[0][0])
    assert len(clients.score(theta, ["b", "a", "b"])) == 3
    assert clients.fingerprint() == fingerprint
