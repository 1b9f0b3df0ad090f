"""FedMRL: clients of different networks that share a small one, against each by itself, FedAvg of
the small one, and FedMRL without its nested loss; by d1, on two partitions.
"""

import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lab.protocol import Experiment, Results
from lab.runs import Lab
from lab.statistics import Row, differences, format_interval, seed_values

import matta_jax
from matta_jax import federated, storage
from matta_jax.errors import UserError
from matta_jax.federated import FederatedConfig
from matta_jax.reporting import markdown_table, new_figure, save_figure

PARTITIONS: dict[str, Mapping[str, Any]] = {
    "Dirichlet(0.3)": {"clients.partition": "dirichlet", "clients.alpha": 0.3},
    "two classes a client": {"clients.partition": "classes", "clients.classes_per_client": 2},
}
D1 = (8, 32, 128)
"""Numbers that the shared header reads, of `D2` in all."""
D2 = 128
MIDDLE_D1 = 32
"""Of the conditions in which it is not swept."""
LOCAL = "local"
MAJORITY = "each client's most frequent class"
ROUNDS = 20


def conditions() -> dict[str, Mapping[str, Any]]:
    """What is trained on each partition."""
    baselines = (LOCAL, "fedavg", "fedmrl_plain")
    methods = {name: {"training.method": name, "training.d1": MIDDLE_D1} for name in baselines}
    swept = {f"fedmrl, d1={d1}": {"training.method": "fedmrl", "training.d1": d1} for d1 in D1}
    return methods | swept


class FedMrl(Experiment):
    """Every condition on every partition, with each seed, which draws the partition too."""

    name = "fedmrl"
    seeds = (0, 1, 2)

    def write_data(self, data: pathlib.Path, workdir: pathlib.Path) -> None:
        """Nothing is written: the images are read as they are."""
        if not _images(data).is_file():
            raise UserError(
                f"--data_dir={str(data)!r} has no images/{_images(data).name}; name the folder "
                "that has images/"
            )

    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> FederatedConfig:
        """A federated run, of the fields that all conditions share: no nest's, so that `measure`
        trains it, and not `Lab.train`.
        """
        return federated.from_dict(
            {
                "images": {"source": f"images:{_images(data)}"},
                "clients": {"count": 10},
                "training": {"rounds": ROUNDS, "d2": D2},
            }
        )

    def measure(self, lab: Lab) -> Results:
        """Trains what is not trained yet; a row for each run, and the most frequent classes."""
        rows = []
        for seed in self.seeds:
            for partition, fields in PARTITIONS.items():
                shared = {**fields, "training.seed": seed}
                config = federated.override(lab.config, shared)
                rows.append(_majority_row(config, partition, seed))
                for condition, overrides in conditions().items():
                    run_config = federated.override(config, overrides)
                    metrics = _metrics(lab, run_config, f"{partition}, {condition}, seed {seed}")
                    rows.append(
                        {
                            "partition": partition,
                            "condition": condition,
                            "seed": seed,
                            "accuracy": metrics[-1]["accuracy"],
                            "accuracy_of_mean": metrics[-1]["accuracy_of_mean"],
                            "bytes_up": metrics[-1]["bytes_up"] // len(metrics[-1]["clients"]),
                            "curve": [row["accuracy"] for row in metrics],
                        }
                    )
        return {"rows": rows}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """A table for each partition, and accuracy by rounds."""
        _plot(results["rows"], folder / "fedmrl.png")
        parts = []
        for partition in PARTITIONS:
            rows = [row for row in results["rows"] if row["partition"] == partition]
            parts.append(f"{partition}:\n\n{_table(rows)}")
        return "\n\n".join(parts)


def _images(data: pathlib.Path) -> pathlib.Path:
    return data / "images" / "cifar10_train_1000pc.npz"


def _metrics(lab: Lab, config: FederatedConfig, name: str) -> list[dict[str, Any]]:
    """The rounds of a run, which is trained first where it is this process's."""
    workdir = lab.workdir / re.sub(r"[^\w.=]+", "_", name)
    is_ours = lab.seeds is None or config.training.seed in lab.seeds
    if is_ours:
        lab.log(name)
        return matta_jax.federate(config, workdir, log=lambda line: None).rows

    lines = storage.recover_lines(workdir / "metrics.jsonl")
    if len(lines) < config.training.rounds:
        raise UserError(f"{workdir} is not trained; run this experiment with all its seeds")
    return [storage.parse_json(line) for line in lines]


def _majority_row(config: FederatedConfig, partition: str, seed: int) -> Row:
    """What a client scores that always names its most frequent class."""
    clients, _ = federated.read_clients(config)
    scores = []
    for parts in clients:
        [(label, _)] = Counter(parts.train.labels.tolist()).most_common(1)
        scores.append(float((parts.test.labels == label).mean()))
    accuracy = sum(scores) / len(scores)
    about = {"partition": partition, "condition": MAJORITY, "seed": seed}
    return about | {"accuracy": accuracy, "accuracy_of_mean": accuracy, "bytes_up": 0, "curve": []}


def _table(rows: Sequence[Row]) -> str:
    header = ["condition", "accuracy", "above local", "by the server's mean", "kB a client sends"]
    lines = []
    for condition in dict.fromkeys(row["condition"] for row in rows):
        values = seed_values(rows, condition, "accuracy")
        gain = differences(values, seed_values(rows, LOCAL, "accuracy"))
        sent = seed_values(rows, condition, "bytes_up")[0] / 1e3
        # What shares nothing has no mean, and is no other than itself.
        shares = sent > 0
        of_mean = format_interval(seed_values(rows, condition, "accuracy_of_mean"))
        lines.append(
            [
                condition,
                format_interval(values),
                "" if condition == LOCAL else format_interval(gain, signed=True),
                of_mean if shares else "",
                f"{sent:.1f}" if shares else "0",
            ]
        )
    return markdown_table(header, lines, left=(0, 1, 2, 3))


def _plot(rows: Sequence[Row], path: pathlib.Path) -> None:
    figure = new_figure((4.6 * len(PARTITIONS), 3.4))
    if figure is None:
        return
    axes = figure.subplots(1, len(PARTITIONS), squeeze=False)[0]
    for axis, partition in zip(axes, PARTITIONS, strict=True):
        for condition in conditions():
            curves = [
                row["curve"]
                for row in rows
                if (row["partition"], row["condition"]) == (partition, condition)
            ]
            means = np.mean(curves, axis=0)
            axis.plot(range(1, len(means) + 1), means, label=condition)
        axis.set_title(partition)
        axis.set_xlabel("round")
        axis.grid(color="0.92")
    axes[0].set_ylabel("accuracy on clients' own test images")
    axes[-1].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


EXPERIMENT = FedMrl()
