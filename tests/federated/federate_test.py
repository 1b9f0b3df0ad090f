"""A whole run: what leaves a client, what is measured, and that it goes on to the same bits."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from matta_jax import federated
from matta_jax.errors import DivergenceError, UserError
from matta_jax.federated import _federate, _participant, _state


@pytest.fixture
def spied(monkeypatch, fingerprints):
    """What goes to the server and what stays, by fingerprint, as a run goes."""
    spy = {"sent": [], "stays": set(), "states": []}
    aggregate, update = _federate.aggregate, _participant.client_update

    def spy_aggregate(updates):
        spy["sent"].append(updates)
        return aggregate(updates)

    def spy_update(theta, state, *rest):
        result = update(theta, state, *rest)
        for private in (state, result[1]):
            spy["stays"].update(fingerprints((private.weights, private.velocity)))
        spy["states"].append(result[1])
        return result

    monkeypatch.setattr(_federate, "aggregate", spy_aggregate)
    monkeypatch.setattr(_participant, "client_update", spy_update)
    return spy


def content(tree):
    """Arrays as the server sees them, without their names."""
    return {np.ascontiguousarray(a).tobytes() for a in jax.tree.leaves(tree) if np.any(a)}


def test_only_theta_ever_leaves_a_client(make_config, run_quietly, spied, fingerprints, tmp_path):
    config = make_config(training__rounds=3)
    run_quietly(config, tmp_path)
    structure = jax.tree.structure(federated.init_theta(config))
    assert len(spied["sent"]) == 3
    private_bytes = set()
    for state in spied["states"]:
        private_bytes |= content((state.weights, state.velocity))
    for updates in spied["sent"]:
        assert len(updates) == 3
        for theta, images in updates:
            assert jax.tree.structure(theta) == structure and type(images) is int
            assert not set(fingerprints(theta)) & spied["stays"]
            # Nor under another name.
            assert content(theta) and not content(theta) & private_bytes


def test_the_server_has_the_weighted_mean_and_each_client_its_own(
    make_config, run_quietly, spied, bits_of, fingerprints, tmp_path
):
    rows = run_quietly(make_config(training__rounds=1), tmp_path)
    [updates] = spied["sent"]
    total = sum(images for _, images in updates)
    assert len({images for _, images in updates}) > 1
    expected = jax.tree.map(
        lambda *arrays: np.float32(
            sum(a.astype(np.float64) * n for a, (_, n) in zip(arrays, updates, strict=True)) / total
        ),
        *[theta for theta, _ in updates],
    )
    _, theta, states, _ = bits_of(tmp_path)
    assert theta == fingerprints(expected)
    assert states == fingerprints(spied["states"])
    # Copies that are apart: not the last client's model, for all.
    assert len({tuple(fingerprints(state.copy)) for state in spied["states"]}) == 3
    assert rows[0]["bytes_up"] == rows[0]["bytes_down"] == 3 * federated.count_bytes(expected)


def test_a_client_that_spoils_its_arrays_afterwards_changes_nobody(
    make_config, run_quietly, bits_of, tmp_path, monkeypatch
):
    config = make_config(training__rounds=2)
    run_quietly(config, tmp_path / "a")
    aggregate = _federate.aggregate

    def spoil(updates):
        mean = aggregate(updates)
        for theta, _ in updates:
            for array in jax.tree.leaves(theta):
                array[...] = np.nan
        return mean

    monkeypatch.setattr(_federate, "aggregate", spoil)
    run_quietly(config, tmp_path / "b")
    assert bits_of(tmp_path / "a") == bits_of(tmp_path / "b")


@pytest.mark.parametrize("method", ["fedmrl", "fedavg"])
def test_one_client_is_plain_training_bit_for_bit(
    make_config, run_quietly, bits_of, fingerprints, tmp_path, method
):
    """All images, three rounds: the steps of one long training, whose weights and velocity nobody
    touches between them.
    """
    config = make_config(clients__count=1, training__rounds=3, training__method=method)
    run_quietly(config, tmp_path)

    [parts], _ = federated.read_clients(config)
    assert len(parts.train.labels) + len(parts.test.labels) == 60
    theta = federated.init_theta(config)
    state = federated.init_private(config, 0, theta)
    for number in (1, 2, 3):
        key = (0, 6, number, 0)
        theta, state, _ = federated.client_update(theta, state, parts.train, key, config.training)
    number, run_theta, run_states, _ = bits_of(tmp_path)
    assert number == 3
    assert run_theta == fingerprints(theta) and run_states == fingerprints([state])


def test_a_run_learns_and_tells_what_it_did(make_config, run_quietly, tmp_path):
    fields = {"clients__count": 2, "training__local_epochs": 4, "images__eval_fraction": 0.3}
    config = make_config(training__rounds=6, clients__alpha=1000.0, **fields)
    rows = run_quietly(config, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert [row["round"] for row in rows] == list(range(1, 7))
    assert rows[-1]["accuracy"] > 0.7 and rows[-1]["accuracy_of_mean"] > 0.7
    for row in rows:
        assert row["clients"] == [0, 1]
        assert row["accuracy"] == sum(row["accuracies"]) / 2
        assert row["accuracy_of_mean"] == sum(row["accuracies_of_mean"]) / 2


def test_scores_are_of_each_clients_own_test_images(make_config, run_quietly, tmp_path):
    config = make_config(training__local_epochs=6, images__eval_fraction=0.6, clients__alpha=0.5)
    rows = run_quietly(config, tmp_path)
    assert rows[-1]["accuracies"] != rows[-1]["accuracies_of_mean"]
    parts, _ = federated.read_clients(config)
    folder = federated.RunFolder(tmp_path.resolve())
    commit = folder.read_commit(3)
    theta = folder.read_theta(commit.theta)
    for client, slot in enumerate(commit.clients):
        state = folder.read_client(client, slot)
        test = parts[client].test
        mine = federated.accuracy("fedmrl", state.copy, state.weights, test)
        assert rows[-1]["accuracies"][client] == mine
        of_mean = federated.accuracy("fedmrl", theta, state.weights, test)
        assert rows[-1]["accuracies_of_mean"][client] == of_mean


def test_who_is_not_drawn_stays_as_it_was(make_config, run_quietly, tmp_path):
    config = make_config(training__clients_per_round=1, training__rounds=1)
    [row] = run_quietly(config, tmp_path)
    theta = federated.init_theta(config)
    folder = federated.RunFolder(tmp_path.resolve())
    commit = folder.read_commit(3)
    assert row["bytes_up"] == row["bytes_down"] == federated.count_bytes(theta)
    assert len(row["clients"]) == 1
    for client, slot in enumerate(commit.clients):
        state, begun = (
            folder.read_client(client, slot),
            federated.init_private(config, client, theta),
        )
        is_same = jax.tree.all(jax.tree.map(np.array_equal, state, begun))
        assert is_same == (client not in row["clients"])


def test_local_sends_nothing(make_config, run_quietly, tmp_path):
    for row in run_quietly(make_config(training__method="local"), tmp_path):
        assert row["bytes_up"] == row["bytes_down"] == 0
        assert row["accuracies"] == row["accuracies_of_mean"]


def test_fewer_rounds_and_then_more_are_all_in_one_go(make_config, run_quietly, bits_of, tmp_path):
    fields = {"training__clients_per_round": 2}
    run_quietly(make_config(training__rounds=5, **fields), tmp_path / "a")
    for rounds in (2, 2, 5):
        rows = run_quietly(make_config(training__rounds=rounds, **fields), tmp_path / "b")
        assert len(rows) == rounds
    assert bits_of(tmp_path / "a") == bits_of(tmp_path / "b")


class Killed(BaseException):
    """The end of a process, as far as a test can have it."""


@pytest.mark.slow
def test_a_crash_at_any_write_goes_on_to_the_same_bits(
    make_config, run_quietly, bits_of, tmp_path, monkeypatch
):
    """Files of arrays are torn where it comes; those that are replaced as a whole stay."""
    config = make_config(training__clients_per_round=2)
    run_quietly(config, tmp_path / "whole")
    expected = bits_of(tmp_path / "whole")
    write_tree = _state.write_tree
    writes = [("write_tree", _state), ("replace_text", _state.storage)]
    writes.append(("append_line", _state.storage))

    def is_killed_at(limit):
        count = 0
        with monkeypatch.context() as patch:
            for name, module in writes:
                real = getattr(module, name)

                def write(path, value, real=real):
                    nonlocal count
                    count += 1
                    if count == limit:
                        if real is write_tree:
                            path.parent.mkdir(parents=True, exist_ok=True)
                            path.write_bytes(b"PK torn")
                        raise Killed
                    return real(path, value)

                patch.setattr(module, name, write)
            try:
                run_quietly(config, tmp_path / f"{limit}")
            except Killed:
                return True
        return False

    limit = 1
    while is_killed_at(limit):
        run_quietly(config, tmp_path / f"{limit}")
        assert bits_of(tmp_path / f"{limit}") == expected, limit
        limit += 1
    # config.json, theta, three clients, the first commit; then twice two clients, theta, a line of
    # metrics and the commit.
    assert limit - 1 == 6 + 2 * 5


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_to_the_same_bits(
    make_config, run_quietly, bits_of, tmp_path
):
    fields = federated.to_dict(make_config())
    command = [sys.executable, "-m", "matta_jax.bin.federate", "--config=configs/fedmrl.py"]
    command += [f"--workdir={tmp_path / 'killed'}", "--config.training.rounds=100000"]
    for section, name in [
        ("images", "source"),
        ("images", "image_size"),
        ("images", "num_classes"),
        ("clients", "count"),
        ("clients", "architectures"),
        ("clients", "alpha"),
        ("training", "batch_size"),
        ("training", "d1"),
        ("training", "d2"),
    ]:
        command.append(f"--config.{section}.{name}={fields[section][name]}")
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    commit = federated.RunFolder((tmp_path / "killed").resolve()).read_commit
    deadline = time.monotonic() + 120
    while (commit(3) is None or commit(3).round < 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    rounds = commit(3).round + 3
    assert rounds >= 6
    run_quietly(make_config(training__rounds=rounds), tmp_path / "killed")
    run_quietly(make_config(training__rounds=rounds), tmp_path / "whole")
    assert bits_of(tmp_path / "killed") == bits_of(tmp_path / "whole")


def test_another_run_or_other_images_are_refused(make_config, run_quietly, images, tmp_path):
    run_quietly(make_config(), tmp_path / "run")
    with pytest.raises(UserError, match=r"holds another run \(training.momentum: 0.9 -> 0.5\)"):
        run_quietly(make_config(training__momentum=0.5), tmp_path / "run")

    # Where they lie is no matter.
    arrays = dict(np.load(images))
    np.savez(tmp_path / "x.npz", **arrays)
    config = make_config(images__source=f"images:{tmp_path}/x.npz")
    assert len(run_quietly(config, tmp_path / "run")) == 2
    arrays["x"][0] += 1
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match="holds other images than when this run began"):
        run_quietly(config, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("[]")
    with pytest.raises(UserError, match="is no config of a federated run"):
        run_quietly(make_config(), tmp_path / "run")


def test_a_folder_that_cannot_be_and_images_that_are_none_are_one_line(
    make_config, run_quietly, images, tmp_path
):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="workdir=.* cannot be written"):
        run_quietly(make_config(), tmp_path / "file" / "run")
    for fields, words in [
        ({"images__source": "images:/nowhere.npz"}, "/nowhere.npz does not exist"),
        ({"images__image_size": 16}, "holds x of uint8 8x8x3, and the model reads uint8 16x16x3"),
        ({"images__num_classes": 2}, "is of class 2"),
        ({"clients__count": 59, "clients__alpha": 0.01}, "client 0 of .* has no example"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            run_quietly(make_config(**fields), tmp_path / "run")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_client_that_diverges_is_named_and_the_round_before_stays(
    make_config, run_quietly, bits_of, tmp_path
):
    config = make_config(training__learning_rate=1e3, training__local_epochs=20)
    with pytest.raises(DivergenceError, match="client 0 diverged in round 1.*learning_rate"):
        run_quietly(config, tmp_path)
    assert federated.RunFolder(tmp_path.resolve()).read_commit(3).round == 0
    assert not (tmp_path / "metrics.jsonl").exists()
