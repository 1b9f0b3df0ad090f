"""A client's model by itself: the bits of its run, without it; and what is wrong, in a line."""

import json
import shutil

import numpy as np
import pytest

from matta_jax import federated, storage
from matta_jax.errors import DamageError, UserError
from matta_jax.federated import _client, _package


@pytest.fixture(scope="module")
def workdir(make_config, run_quietly, tmp_path_factory):
    """A run of two rounds, of two of three clients each."""
    folder = tmp_path_factory.mktemp("federated") / "run"
    run_quietly(make_config(training__clients_per_round=2), folder)
    return folder


@pytest.fixture
def model(workdir, tmp_path):
    """The model of client 1, extracted."""
    return federated.extract_client(workdir, 1, tmp_path / "model")


def read_state(workdir, client):
    folder = federated.RunFolder(storage.resolve(workdir))
    return folder.read_client(client, folder.read_commit(3).clients[client])


@pytest.mark.parametrize("method", federated.METHODS)
def test_its_logits_are_those_that_the_run_scored(
    make_config, run_quietly, fingerprints, tmp_path, monkeypatch, method
):
    """Bit for bit, with the folder of the run gone."""
    scored, inference = [], _client._inference

    def spy(*arguments):
        scored.append(np.asarray(inference(*arguments)))
        return inference(*arguments)

    config = make_config(training__method=method, training__local_epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(_client, "_inference", spy)
        rows = run_quietly(config, tmp_path / "run")
    states = [read_state(tmp_path / "run", client) for client in range(3)]
    for client in range(3):
        federated.extract_client(tmp_path / "run", client, tmp_path / f"{client}")
    shutil.rmtree(tmp_path / "run")

    parts, _ = federated.read_clients(config)
    # Of each client first by its copy, then by the server's mean.
    by_copy = scored[-6::2]
    for client, state in enumerate(states):
        model = federated.load_client(tmp_path / f"{client}")
        test = parts[client].test
        logits = model.logits(test.images)
        assert logits.dtype == np.float32 and len(logits) == len(test.labels)
        assert logits.tobytes() == by_copy[client][: len(logits)].tobytes()
        assert (logits.argmax(axis=1) == test.labels).mean() == model.manifest["accuracy"]
        assert model.manifest["accuracy"] == rows[-1]["accuracies"][client]
        assert fingerprints(model.theta) == fingerprints(state.copy)
        assert fingerprints(model.weights) == fingerprints(state.weights)
    assert len({logits.tobytes() for logits in by_copy}) == 3


def test_the_manifest_says_what_it_is(workdir, model):
    about = json.loads((model.path / "client.json").read_text())
    assert about == model.manifest
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = [row["round"] for row in rows if 1 in row["clients"]]
    assert (about["method"], about["client"], about["round"]) == ("fedmrl", 1, 2)
    assert about["last_trained"] == trained[-1]
    assert about["accuracy"] == rows[-1]["accuracies"][1]
    assert about["networks"]["private"] == {
        "name": "cnn4",
        "channels": [8, 16],
        "hidden": [64],
        "features": 8,
    }
    assert about["networks"]["shared"]["features"] == 4
    assert about["images"]["shape"] == [8, 8, 3] and about["images"]["num_classes"] == 3
    assert about["images"]["scaling"] == "pixel / 127.5 - 1"
    assert about["run"]["config"]["training"]["clients_per_round"] == 2
    with np.load(model.path / "weights.npz") as arrays:
        assert about["arrays"].keys() == set(arrays.files)
        assert about["parameters"] == sum(arrays[name].size for name in arrays.files)
    # What SGD keeps is of no use to a model.
    assert {name.split("/")[0] for name in about["arrays"]} == {"theta", "weights"}
    assert sorted(path.name for path in model.path.iterdir()) == [
        "README.md",
        "client.json",
        "weights.npz",
    ]


@pytest.mark.parametrize("method", ["fedavg", "local"])
def test_a_network_that_a_method_has_not_is_none(make_config, run_quietly, tmp_path, method):
    run_quietly(make_config(training__method=method, training__rounds=1), tmp_path / "run")
    about = federated.extract_client(tmp_path / "run", 2, tmp_path / "model").manifest
    assert (about["networks"]["private"] is None) == (method == "fedavg")
    assert (about["networks"]["shared"] is None) == (method == "local")


@pytest.mark.parametrize("last_round", [2, 3])
def test_a_run_that_goes_on_meanwhile_is_of_one_round(
    make_config, run_quietly, fingerprints, tmp_path, monkeypatch, last_round
):
    """Into the slot that is being read, in the third round, or into the other one."""
    run_quietly(make_config(training__rounds=1), tmp_path / "run")
    read_client = federated.RunFolder.read_client

    def go_on(self, *arguments):
        monkeypatch.setattr(federated.RunFolder, "read_client", read_client)
        run_quietly(make_config(training__rounds=last_round), tmp_path / "run")
        return read_client(self, *arguments)

    monkeypatch.setattr(federated.RunFolder, "read_client", go_on)
    model = federated.extract_client(tmp_path / "run", 0, tmp_path / "model")
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert model.manifest["round"] == len(rows) == last_round
    assert model.manifest["accuracy"] == json.loads(rows[-1])["accuracies"][0]
    assert fingerprints(model.theta) == fingerprints(read_state(tmp_path / "run", 0).copy)

    # What the next round is writing does not count.
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"round": 9, "accuracies": [0, 0, 0], "clients": []}\n{"rou')
    again = federated.extract_client(tmp_path / "run", 0, tmp_path / "again")
    for field in ("round", "last_trained", "accuracy", "arrays"):
        assert again.manifest[field] == model.manifest[field]


def test_a_machine_with_the_files_of_a_client_alone_is_enough(workdir, model, tmp_path):
    """As through Flower, once what the server wrote is copied there."""
    there = tmp_path / "there"
    shutil.copytree(workdir / "clients" / "1", there / "clients" / "1")
    for name in ("config.json", "state.json", "metrics.jsonl"):
        shutil.copy(workdir / name, there)
    extracted = federated.extract_client(there, 1, tmp_path / "extracted")
    assert extracted.manifest["arrays"] == model.manifest["arrays"]
    with pytest.raises(UserError, match="has no files of client=0: through Flower they stay on"):
        federated.extract_client(there, 0, tmp_path / "none")


@pytest.mark.parametrize("client", [3, -1, 1.0, True, "1", None, 10**50])
def test_a_client_that_is_none_is_one_line(workdir, tmp_path, client):
    words = r"^client=.* must be a whole number from 0 to 2, as clients.count=3; name one of these$"
    with pytest.raises(UserError, match=words):
        federated.extract_client(workdir, client, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_is_no_finished_run_is_one_line(workdir, make_config, tmp_path):
    def refused(words, kind=UserError):
        with pytest.raises(kind, match=words) as error:
            federated.extract_client(tmp_path / "run", 1, tmp_path / "model")
        assert "\n" not in str(error.value) and not (tmp_path / "model").exists()

    refused(r"workdir='.*/run' holds no federated run \(no config.json\)")
    shutil.copytree(workdir, tmp_path / "run")
    state = (tmp_path / "run" / "state.json").read_text()
    (tmp_path / "run" / "state.json").write_text(state.replace('"round": 2', '"round": 0'))
    refused(r"workdir='.*/run' has no finished round")
    (tmp_path / "run" / "state.json").unlink()
    refused(r"workdir='.*/run' has no finished round")
    (tmp_path / "run" / "state.json").write_text("{")
    refused("state.json is damaged or missing", DamageError)
    (tmp_path / "run" / "state.json").write_text(state)

    metrics = tmp_path / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in ({"round": 2}, rows[1] | {"accuracies": [0.5]}, rows[1] | {"round": 1}):
        metrics.write_text(json.dumps(row) + "\n")
        refused(r"metrics.jsonl is damaged \(no scores of round 2\)", DamageError)
    metrics.write_text("")
    refused(r"metrics.jsonl is damaged \(no scores of round 2\)", DamageError)
    metrics.unlink()
    refused("metrics.jsonl is damaged or missing", DamageError)

    shutil.rmtree(tmp_path / "run" / "clients" / "1")
    refused("has no files of client=1: through Flower they stay on its own machine")
    (tmp_path / "run" / "config.json").write_text('{"model": {}}')
    refused("config.json is no config of a federated run", DamageError)


def test_an_output_that_is_there_or_cannot_be_is_one_line(workdir, model, tmp_path):
    with pytest.raises(UserError, match=r"^output='.*/model' exists; name another folder, or rem"):
        federated.extract_client(workdir, 1, model.path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^output='.*/file/x' cannot be written \(Not a directory"):
        federated.extract_client(workdir, 1, tmp_path / "file" / "x")


def test_a_model_that_is_not_written_leaves_nothing(workdir, tmp_path, monkeypatch):
    """What was written is read back before it is put in its place."""
    write_tree = _package.write_tree

    def spoil(path, tree):
        write_tree(path, tree | {"theta": {}})

    monkeypatch.setattr(_package, "write_tree", spoil)
    with pytest.raises(DamageError, match="its array 'theta/extractor/conv0/bias' is not what was"):
        federated.extract_client(workdir, 1, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_arrays_that_were_changed_are_one_line(model):
    path = model.path / "weights.npz"
    with np.load(path) as file:
        arrays = dict(file)
    name = "weights/header/bias"

    spoiled = arrays[name].copy()
    spoiled[0] = np.nextafter(spoiled[0], np.float32(1))
    short = {key: value for key, value in arrays.items() if key != name}
    for changed, culprit in [
        (arrays | {name: spoiled}, name),
        (arrays | {name: arrays[name][None]}, name),
        (arrays | {name: arrays[name].view(np.int32)}, name),
        (short, name),
        (arrays | {"weights/header/x": spoiled}, "weights/header/x"),
        ({}, "theta/extractor/conv0/bias"),
    ]:
        np.savez(path, **changed)
        with pytest.raises(DamageError, match=f"its array '{culprit}' is not what was written; ex"):
            federated.load_client(model.path)
    np.savez(path, **arrays)
    assert federated.load_client(model.path).manifest == model.manifest


def test_a_file_that_is_damaged_anywhere_is_one_line_or_of_no_effect(model, fingerprints):
    """Bytes all over the file; some of a zip file's headers are read by nobody."""
    path = model.path / "weights.npz"
    data = path.read_bytes()
    expected, refusals = fingerprints((model.theta, model.weights)), 0
    # Around the beginning and the end, where most headers lie, more often than within the arrays.
    places = [*range(0, 400, 3), *range(400, len(data), 20_011), *range(len(data) - 400, len(data))]
    for place in places:
        spoiled = bytearray(data)
        spoiled[place] ^= 0xFF
        path.write_bytes(spoiled)
        try:
            loaded = federated.load_client(model.path)
        except DamageError as error:
            refusals += 1
            assert "weights.npz is damaged" in str(error) and "\n" not in str(error)
            assert str(error).endswith("; extract it again")
        else:
            assert fingerprints((loaded.theta, loaded.weights)) == expected
    assert refusals > len(places) / 2

    for length in (0, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(DamageError, match="weights.npz is damaged or missing"):
            federated.load_client(model.path)
    path.unlink()
    with pytest.raises(DamageError, match="weights.npz is damaged or missing"):
        federated.load_client(model.path)


def test_a_manifest_that_was_changed_is_one_line(model, tmp_path):
    path = model.path / "client.json"
    text = path.read_text()
    for changed in (
        "",
        "{",
        "[]",
        "3",
        "{}",
        text[:200],
        text.replace("fedmrl", "fedavg"),
        "[" * 9**5,
    ):
        path.write_text(changed)
        with pytest.raises(DamageError, match="client.json is damaged") as error:
            federated.load_client(model.path)
        assert "\n" not in str(error.value)
    later = _package._sealed(json.loads(text) | {"version": 2})
    path.write_text(json.dumps(later))
    with pytest.raises(UserError, match="is of version 2, and this release reads 1"):
        federated.load_client(model.path)
    path.unlink()
    assert not federated.is_client(model.path)
    for folder in (model.path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"is no client of a federated run \(no client.json\)"):
            federated.load_client(folder)


def test_images_of_another_kind_are_refused_and_none_have_no_logits(model):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    for wrong in (images.astype(np.float32), images[:, :4], images[0], images[..., :1]):
        with pytest.raises(UserError, match=r"reads uint8 \(8, 8, 3\); scale them"):
            model.logits(wrong)
    assert model.logits(images).shape == (2, 3)
    assert model.logits(images[:0]).shape == (0, 3)
    assert model.classifier_section.image_size == 8 and model.classifier_section.image_classes == 3
