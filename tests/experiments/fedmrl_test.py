"""FedMRL's experiment: its runs in miniature, and its tables."""

import numpy as np
import pytest

from matta_jax import federated
from matta_jax.errors import UserError


@pytest.fixture
def fedmrl(load):
    return load("fedmrl.experiment")


@pytest.fixture
def small_lab(fedmrl, load, images, tmp_path):
    """`small_lab(seeds)`: of images of 8 x 8 pixels, two clients and one round."""
    config = federated.from_dict(
        {
            "images": {"source": f"images:{images}", "image_size": 8, "num_classes": 3},
            "clients": {"count": 2, "architectures": "cnn5"},
            "training": {"rounds": 1, "d2": 128},
        }
    )
    lab = load("lab.runs").Lab
    return lambda seeds: lab(config, images.parent, tmp_path, seeds, lambda line: None)


def test_conditions_differ_in_what_they_are_about(fedmrl, tmp_path):
    config = fedmrl.EXPERIMENT.config(tmp_path, tmp_path)
    assert config.clients.count == config.clients_per_round == 10 and config.training.rounds == 20
    runs = {
        (partition, condition): federated.override(config, {**fields, **overrides})
        for partition, fields in fedmrl.PARTITIONS.items()
        for condition, overrides in fedmrl.conditions().items()
    }
    assert len(runs) == len(set(runs.values())) == 12
    assert {run.training.method for run in runs.values()} == set(federated.METHODS)
    swept = [run.training.d1 for run in runs.values() if run.training.method == "fedmrl"]
    assert sorted(set(swept)) == [8, 32, 128]


@pytest.mark.slow
def test_each_run_is_a_row_and_is_trained_once(fedmrl, small_lab, tmp_path, monkeypatch):
    monkeypatch.setattr(fedmrl, "PARTITIONS", {"even": {"clients.alpha": 100.0}})
    results = fedmrl.EXPERIMENT.measure(small_lab(None))
    rows = results["rows"]
    assert len(rows) == 3 * (len(fedmrl.conditions()) + 1)
    assert {row["seed"] for row in rows} == {0, 1, 2}
    for row in rows:
        assert 0 <= row["accuracy"] <= 1
        assert (row["bytes_up"] == 0) == (row["condition"] in (fedmrl.LOCAL, fedmrl.MAJORITY))
    files = sorted(tmp_path.rglob("state.json"))
    times = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 18
    # Of a process that trains one seed: the others are read.
    assert fedmrl.EXPERIMENT.measure(small_lab([1])) == results
    assert times == [file.stat().st_mtime_ns for file in files]
    files[0].parent.joinpath("metrics.jsonl").unlink()
    with pytest.raises(UserError, match="is not trained; run this experiment with all its seeds"):
        fedmrl.EXPERIMENT.measure(small_lab([7]))


def test_the_majority_is_that_of_the_images_that_a_client_learns_from(fedmrl, small_lab):
    even = {"clients.alpha": 100.0, "images.eval_fraction": 0.5}
    config = federated.override(small_lab(None).config, even)
    clients, _ = federated.read_clients(config)
    most = lambda data: np.bincount(data.labels).argmax()
    assert any(most(parts.train) != most(parts.test) for parts in clients)
    scores = [(parts.test.labels == most(parts.train)).mean() for parts in clients]
    assert fedmrl._majority_row(config, "even", 0)["accuracy"] == pytest.approx(np.mean(scores))


def test_a_table_tells_gains_paired_by_seed(fedmrl, tmp_path):
    rows = []
    for partition in fedmrl.PARTITIONS:
        for gain, condition in enumerate([fedmrl.MAJORITY, *fedmrl.conditions()]):
            for seed in (0, 1, 2):
                accuracy = 0.4 + 0.01 * gain + 0.1 * seed
                sent = 0 if condition in (fedmrl.LOCAL, fedmrl.MAJORITY) else 51_500
                about = {"partition": partition, "condition": condition, "seed": seed}
                scores = {"accuracy": accuracy, "accuracy_of_mean": accuracy - 0.2}
                rows.append(about | scores | {"bytes_up": sent, "curve": [0.1, accuracy]})
    table = fedmrl.EXPERIMENT.show({"rows": rows}, tmp_path)
    assert table.startswith("Dirichlet(0.3):\n\n| condition")
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if "|" in line}
    assert "+0.0100 (+0.0100 to +0.0100)" in lines["fedavg"] and "51.5" in lines["fedavg"]
    assert "0.5200 ±" in lines["fedavg"] and "0.3200 ±" in lines["fedavg"]
    assert "+0." not in lines["local"] and lines["local"].rstrip(" |").endswith(" 0")
    assert (tmp_path / "fedmrl.png").is_file()


def test_images_that_are_not_there_are_one_line(fedmrl, tmp_path):
    with pytest.raises(UserError, match="has no images/cifar10_train_1000pc.npz"):
        fedmrl.EXPERIMENT.write_data(tmp_path, tmp_path)
