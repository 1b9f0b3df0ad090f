"""A federated run: rounds of clients that learn and a server that takes the mean."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from matta_jax import stops, storage
from matta_jax.config import DataConfig
from matta_jax.data import read_images
from matta_jax.errors import DamageError, UserError
from matta_jax.federated._client import ClientData, init_theta
from matta_jax.federated._config import SECTIONS, FederatedConfig, to_dict
from matta_jax.federated._networks import Weights
from matta_jax.federated._participant import Clients, ClientsHere
from matta_jax.federated._partition import ClientParts, partition, split_client
from matta_jax.federated._server import aggregate, count_bytes, sample_clients
from matta_jax.federated._state import (
    Commit,
    RunFolder,
    check_same_images,
    first_slot,
    next_slot,
)

Log = Callable[[str], None]
Metrics = dict[str, Any]
"""A line of `metrics.jsonl`."""


@dataclasses.dataclass(frozen=True)
class FederatedResult:
    """What a run leaves.

    Attributes:
      workdir: its folder.
      rows: a line for each round: `round`, `accuracy` (mean over clients of the share of its test
        images that a client classifies rightly, by its copy of theta as it was after its last
        training), `accuracy_of_mean` (by the server's theta), `accuracies` and
        `accuracies_of_mean` (of each client), `clients` (who took part), `bytes_up`, `bytes_down`
        (of theta, from and to all of these).
    """

    workdir: storage.Path
    rows: list[Metrics]


def federate(
    config: FederatedConfig, workdir: str | storage.Path, *, log: Log = print
) -> FederatedResult:
    """Trains clients of different architectures in rounds, all in this process.

    A run that was killed at any moment and is started again ends with the same bits as one that was
    not. One that is finished goes on where `training.rounds` is raised.

    Args:
      config: the run.
      workdir: its folder; made when absent.
      log: takes a line for each round.

    Raises:
      UserError: the images cannot be read or leave a client without any, the folder holds another
        run, or it cannot be written.
      DamageError: what the folder holds cannot be read.
      DivergenceError: a client's weights are not finite. The round before stays.

    Examples:
      >>> from matta_jax import federated
      >>> config = federated.from_dict(
      ...     {
      ...         "images": {"source": "images:photos.npz", "image_size": 8, "num_classes": 3},
      ...         "clients": {"count": 2, "architectures": "cnn4", "alpha": 5.0},
      ...         "training": {"rounds": 1, "batch_size": 8, "d1": 4, "d2": 8},
      ...     }
      ... )
      >>> result = matta_jax.federate(config, "runs/clients", log=logging.info)
      >>> result.rows[-1]["clients"]
      [0, 1]
    """
    folder = storage.resolve(workdir)
    parts, fingerprint = read_clients(config)
    clients = ClientsHere(config, parts, RunFolder(folder), fingerprint)
    return run_rounds(config, folder, clients, log)


def run_rounds(
    config: FederatedConfig, folder: storage.Path, clients: Clients, log: Log
) -> FederatedResult:
    """The server of a run, as `federate`, of clients wherever they are.

    Args:
      config: the run.
      folder: an absolute path without links.
      clients: who is asked.
      log: takes a line for each round.
    """
    mend = "make room or name another, and start again: the run goes on from its last round"
    with storage.writing("workdir", folder, mend, wrapped=True):
        storage.make_folder(folder)
        with storage.locked("workdir", folder), stops.unfinished():
            _claim_folder(config, folder)
            run = _Run(config, clients, RunFolder(folder))
            run.restore()
            return FederatedResult(folder, run.finish(log))


def read_clients(config: FederatedConfig) -> tuple[list[ClientParts], str]:
    """Reads the images, and deals them out; returns each client's, and the images' fingerprint.

    Raises:
      UserError: they cannot be read, or leave a client without any.
    """
    fields = config.images
    data = DataConfig(source=fields.source)
    images = read_images(fields.source, data, fields.classifier_section)
    everything = ClientData(images.images, images.classes.astype(np.int32))
    rows_by_client = partition(everything.labels, config)
    parts = [
        split_client(everything, rows, client, config) for client, rows in enumerate(rows_by_client)
    ]
    return parts, images.fingerprint


def _claim_folder(config: FederatedConfig, folder: storage.Path) -> None:
    """Writes the config, or compares it with the one that is there. Raises UserError."""
    path = folder / "config.json"
    values = to_dict(config)
    if path.is_file():
        try:
            stored_values = storage.read_json(path)
            differences = [
                f"{section}.{name}: {stored_values[section][name]!r} -> {value!r}"
                for section, fields in values.items()
                for name, value in fields.items()
                if stored_values[section][name] != value and not _is_free(section, name)
            ]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise DamageError(
                f"{path} is no config of a federated run; bring it back, or name another workdir"
            ) from None
        if differences:
            raise UserError(
                f"workdir={str(folder)!r} holds another run ({', '.join(differences)}); go on with "
                "its config, or name another workdir"
            )
    storage.replace_text(path, storage.json_text(values, indent=1) + "\n")


def _is_free(section: str, name: str) -> bool:
    [declared] = [field for field in dataclasses.fields(SECTIONS[section]) if field.name == name]
    return bool(declared.metadata["is_free"])


class _Run:
    """A run under way, as the server sees it."""

    def __init__(self, config: FederatedConfig, clients: Clients, folder: RunFolder):
        self._config, self._clients, self._folder = config, clients, folder
        self._theta: Weights = {}
        self._rows: list[Metrics] = []
        self._commit = Commit(0, "", "", [])

    def restore(self) -> None:
        """Takes up the last round that is whole; without one, begins."""
        fingerprint = self._clients.fingerprint()
        commit = self._folder.read_commit(self._config.clients.count)
        if commit is None:
            commit = self._begin(fingerprint)
        check_same_images(commit, fingerprint, self._config.images.source)
        self._commit = commit
        # From the file, also at the beginning: both ways begin from the same bits.
        self._theta = self._folder.read_theta(commit.theta)
        self._rows = self._folder.drop_metrics_after(commit.round)

    def _begin(self, fingerprint: str) -> Commit:
        slot = first_slot()
        theta = init_theta(self._config)
        self._folder.write_theta(theta, slot)
        self._clients.begin(theta)
        commit = Commit(0, fingerprint, slot, [slot] * self._config.clients.count)
        self._folder.write_commit(commit)
        return commit

    def finish(self, log: Log) -> list[Metrics]:
        """Runs the rounds that are left; returns the metrics of all."""
        rounds = self._config.training.rounds
        for round_number in range(self._commit.round + 1, rounds + 1):
            row = self._round(round_number)
            log(
                f"round {round_number}/{rounds}: accuracy {row['accuracy']:.4f}, of the mean "
                f"{row['accuracy_of_mean']:.4f}, {len(row['clients'])} clients, "
                f"{row['bytes_up']:,} bytes up"
            )
        return self._rows

    def _round(self, round_number: int) -> Metrics:
        drawn = sample_clients(
            self._config.clients.count,
            self._config.clients_per_round,
            round_number,
            self._config.training.seed,
        )
        bytes_down = count_bytes(self._theta) * len(drawn)
        slots = list(self._commit.clients)
        drawn_slots = {client: slots[client] for client in drawn}
        updates = self._clients.train(self._theta, round_number, drawn_slots)
        for client in drawn:
            slots[client] = next_slot(slots[client])

        self._theta = aggregate(updates)
        commit = Commit(
            round_number, self._commit.fingerprint, next_slot(self._commit.theta), slots
        )
        self._folder.write_theta(self._theta, commit.theta)
        row = {
            "round": round_number,
            **self._scores(slots),
            "clients": drawn,
            "bytes_up": sum(count_bytes(theta) for theta, _ in updates),
            "bytes_down": bytes_down,
        }
        # Before the commit: a line of a round that is not whole is taken off at the next start.
        self._folder.add_metrics(row)
        self._folder.write_commit(commit)
        self._commit = commit
        self._rows.append(row)
        return row

    def _scores(self, slots: list[str]) -> Metrics:
        """The accuracy of all clients on their own test images."""
        scores = self._clients.score(self._theta, slots)
        by_copy = [score for score, _ in scores]
        by_mean = [score for _, score in scores]
        return {
            "accuracy": sum(by_copy) / len(by_copy),
            "accuracy_of_mean": sum(by_mean) / len(by_mean),
            "accuracies": by_copy,
            "accuracies_of_mean": by_mean,
        }
