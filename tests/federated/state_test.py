"""A federated run on disk: what is written is read, and damage is one line."""

import jax
import numpy as np
import pytest

from matta_jax import federated, storage
from matta_jax.errors import DamageError, UserError
from matta_jax.federated import _state


@pytest.fixture
def folder(tmp_path):
    return federated.RunFolder(storage.resolve(tmp_path))


@pytest.mark.parametrize("method", federated.METHODS)
def test_what_a_client_keeps_comes_back_bit_for_bit(folder, make_config, method):
    """Also where it has no private weights, or nothing that is shared."""
    config = make_config(training__method=method)
    theta = federated.init_theta(config)
    state = federated.init_private(config, 1, theta)
    folder.write_client(7, state, "b")
    folder.write_theta(theta, "a")
    read = (folder.read_theta("a"), folder.read_client(7, "b"))
    assert jax.tree.structure(read) == jax.tree.structure((theta, state))
    assert jax.tree.all(jax.tree.map(np.array_equal, read, (theta, state)))


def test_a_commit_names_slots_in_turn(folder):
    assert folder.read_commit(2) is None
    commit = _state.Commit(3, "abc", "a", ["b", "a"])
    folder.write_commit(commit)
    assert folder.read_commit(2) == commit
    with pytest.raises(DamageError, match="it names 2 of 3 clients"):
        folder.read_commit(3)
    assert _state.next_slot("a") == "b" and _state.next_slot("b") == "a"
    _state.check_same_images(commit, "abc", "images:x.npz")
    with pytest.raises(UserError, match="images.source='images:x.npz' holds other images"):
        _state.check_same_images(commit, "abd", "images:x.npz")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        '{"round": 1}',
        '{"round": "1", "fingerprint": "", "theta": "a", "clients": ["a", "a"]}',
        '{"round": 1, "fingerprint": "", "theta": "c", "clients": ["a", "a"]}',
        '{"round": 1, "fingerprint": "", "theta": "a", "clients": 3}',
        '{"round": 1, "fingerprint": "", "theta": "a", "clients": ["a", ["b"]]}',
    ],
)
def test_a_damaged_commit_is_one_line(folder, tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(DamageError, match="state.json is damaged or missing") as error:
        folder.read_commit(2)
    assert "\n" not in str(error.value)


def test_damaged_arrays_are_one_line(folder, tmp_path):
    tree = {"header": {"bias": np.arange(40, dtype=np.float32)}}
    folder.write_theta(tree, "a")
    path = tmp_path / "theta" / "a.npz"
    data = bytearray(path.read_bytes())
    spoiled = data.copy()
    spoiled[data.index(tree["header"]["bias"].tobytes()) + 10] ^= 1
    for content in (spoiled, data[:60], b""):
        path.write_bytes(content)
        with pytest.raises(DamageError, match="a.npz is damaged or missing") as error:
            folder.read_theta("a")
        assert "\n" not in str(error.value)
    with pytest.raises(DamageError, match=r"clients/3/b\.npz is damaged or missing"):
        folder.read_client(3, "b")


def test_lines_of_rounds_that_were_not_whole_are_taken_off(folder, tmp_path):
    assert folder.drop_metrics_after(0) == []
    for number in (1, 2, 3):
        folder.add_metrics({"round": number})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"rou')
    assert folder.drop_metrics_after(2) == [{"round": 1}, {"round": 2}]
    assert path.read_text() == '{"round": 1}\n{"round": 2}\n'
    path.write_text("3\n")
    with pytest.raises(DamageError, match="metrics.jsonl is damaged"):
        folder.drop_metrics_after(2)


def test_metrics_are_read_without_a_change_to_the_file(folder, tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(DamageError, match="metrics.jsonl is damaged or missing"):
        folder.read_metrics(1)
    text = '{"round": 1}\n{"round": 2}\n{"round": 3}\n{"rou'
    path.write_text(text)
    assert folder.read_metrics(2) == [{"round": 1}, {"round": 2}]
    assert path.read_text() == text
    for damaged in ("3\n", "{}\n", "\udcff\n"):
        path.write_bytes(damaged.encode(errors="surrogateescape"))
        with pytest.raises(DamageError, match="metrics.jsonl is damaged"):
            folder.read_metrics(2)


def test_a_client_whose_files_are_elsewhere_is_not_here(folder, make_config):
    theta = federated.init_theta(make_config())
    folder.write_client(1, federated.init_private(make_config(), 1, theta), "a")
    assert folder.has_client(1) and not folder.has_client(0)


def test_arrays_that_cannot_be_read_are_told_with_their_mend(tmp_path):
    path = tmp_path / "x" / "weights.npz"
    _state.write_tree(path, {"a": {"b": np.ones(2, np.float32)}, "c": np.zeros(3, np.int32)})
    arrays = _state.read_arrays(path, "extract it again")
    assert sorted(arrays) == ["a/b", "c"] and arrays["c"].dtype == np.int32
    path.unlink()
    with pytest.raises(DamageError, match=r"weights.npz is damaged or missing \(.*\); mend it$"):
        _state.read_arrays(path, "mend it")
