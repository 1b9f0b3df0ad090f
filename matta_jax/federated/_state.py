"""A federated run on disk: what each client keeps, the shared model, and which of it counts.

    config.json            the run
    state.json             the last round that is whole, and where its arrays lie
    metrics.jsonl          a line for each round
    theta/a.npz, b.npz     the server's shared model
    clients/7/a.npz, b.npz what client 7 keeps: it alone reads them

Of each pair of files `state.json` names the one that counts. A round writes the other one, and
`state.json` last, as a whole: a process that is killed at any moment leaves the round before.
"""

import struct
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from matta_jax import storage
from matta_jax.errors import DamageError, UserError, shorten
from matta_jax.federated._client import PrivateState
from matta_jax.federated._networks import Weights
from matta_jax.nesting import flatten, unflatten

_SLOTS = ("a", "b")

_MEND = "bring it back, or start again in another workdir"

# What a damaged file of arrays raises, by the place of the damage: a header may claim any form.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class Commit(NamedTuple):
    """What `state.json` holds.

    Attributes:
      round: the last one that is whole; 0 before the first.
      fingerprint: of the images.
      theta: the slot of the shared model.
      clients: that of each client.
    """

    round: int
    fingerprint: str
    theta: str
    clients: list[str]


class RunFolder:
    """The folder of a run."""

    def __init__(self, workdir: storage.Path):
        self._workdir = workdir

    @property
    def _commit_file(self) -> storage.Path:
        return self._workdir / "state.json"

    def read_commit(self, count: int) -> Commit | None:
        """The last round that is whole; None where there is none yet.

        Args:
          count: of the clients.

        Raises:
          DamageError: `state.json` cannot be read, or is of other clients.
        """
        path = self._commit_file
        if not path.is_file():
            return None
        try:
            commit = Commit(**storage.read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise _damaged(path, error) from None
        slots = [commit.theta, *commit.clients] if isinstance(commit.clients, list) else [None]
        if not storage.is_whole(commit.round) or any(slot not in _SLOTS for slot in slots):
            raise _damaged(path, "it names no round and slots")
        if len(commit.clients) != count:
            raise _damaged(path, f"it names {len(commit.clients)} of {count} clients")
        return commit

    def write_commit(self, commit: Commit) -> None:
        """Makes a round count. What it names is written before. Raises OSError."""
        text = storage.json_text(commit._asdict(), indent=1)
        storage.replace_text(self._commit_file, text + "\n")

    def read_theta(self, slot: str) -> Weights:
        """The server's shared model. Raises DamageError."""
        return unflatten(read_arrays(self._workdir / "theta" / f"{slot}.npz", _MEND))

    def write_theta(self, theta: Weights, slot: str) -> None:
        """Writes the server's shared model into a slot. Raises OSError."""
        write_tree(self._workdir / "theta" / f"{slot}.npz", theta)

    def read_client(self, client: int, slot: str) -> PrivateState:
        """What a client keeps. Raises DamageError."""
        tree = unflatten(read_arrays(self._client_file(client, slot), _MEND))
        # Empty parts have no arrays, and no names in a file.
        velocity = tree.get("velocity", {})
        return PrivateState(
            tree.get("weights", {}),
            {"theta": velocity.get("theta", {}), "weights": velocity.get("weights", {})},
            tree.get("copy", {}),
        )

    def write_client(self, client: int, state: PrivateState, slot: str) -> None:
        """Writes what a client keeps into a slot. Raises OSError."""
        write_tree(self._client_file(client, slot), state._asdict())

    def has_client(self, client: int) -> bool:
        """Whether files of a client are here: with Flower they lie on its machine."""
        return self._client_file(client, first_slot()).parent.is_dir()

    def _client_file(self, client: int, slot: str) -> storage.Path:
        return self._workdir / "clients" / str(client) / f"{slot}.npz"

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Adds the line of a round. Raises OSError."""
        storage.append_line(self._workdir / "metrics.jsonl", storage.json_text(row))

    @property
    def _metrics_file(self) -> storage.Path:
        return self._workdir / "metrics.jsonl"

    def drop_metrics_after(self, last_round: int) -> list[dict[str, Any]]:
        """Takes off the lines of rounds that were not whole; returns those that stay.

        Raises:
          OSError: the file cannot be written.
          DamageError: a line is no row of metrics.
        """
        path = self._metrics_file
        lines = storage.recover_lines(path)
        rows = _rows_until(last_round, lines, path)
        if len(rows) < len(lines):
            storage.replace_text(path, "".join(f"{line}\n" for line in lines[: len(rows)]))
        return rows

    def read_metrics(self, last_round: int) -> list[dict[str, Any]]:
        """The lines of the rounds up to one. It writes nothing, so that a run may be under way.

        Raises:
          DamageError: the file cannot be read, or a line is no row of metrics.
        """
        path = self._metrics_file
        try:
            text = storage.read_text(path)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from None
        # What is behind the last end of a line is being written, or was as a process was killed.
        lines = text[: text.rfind("\n") + 1].splitlines()
        return _rows_until(last_round, lines, path)


def next_slot(slot: str) -> str:
    """The slot that does not count."""
    return _SLOTS[1 - _SLOTS.index(slot)]


def first_slot() -> str:
    """The slot that the first round begins from."""
    return _SLOTS[0]


def write_tree(path: storage.Path, tree: Weights) -> None:
    """Writes arrays into a file, which is replaced as a whole. Raises OSError."""
    storage.make_folder(path.parent)
    with storage.new_file(path) as building, storage.open_new(building) as file:
        np.savez(file, **flatten(tree))


def read_arrays(path: storage.Path, mend: str) -> dict[str, np.ndarray]:
    """The arrays of a file of `write_tree`, by their paths in the tree.

    Raises:
      DamageError: it cannot be read; `mend` says what the user may do.
    """
    try:
        # A zip file has a checksum of each array, which is compared as it is read.
        with storage.open_old(path) as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except _UNREADABLE as error:
        raise _damaged(path, error, mend) from None


def _rows_until(last_round: int, lines: list[str], path: storage.Path) -> list[dict[str, Any]]:
    rows = []
    for line in lines:
        try:
            row = storage.parse_json(line)
            is_before = row["round"] <= last_round
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(path, error) from None
        if is_before:
            rows.append(row)
    return rows


def _damaged(path: storage.Path, error: object, mend: str = _MEND) -> DamageError:
    detail = " ".join(str(error).split())[:120]
    return DamageError(f"{path} is damaged or missing ({detail}); {mend}")


def check_same_images(commit: Commit, fingerprint: str, source: str) -> None:
    """Raises UserError where a run's images are no longer those that it began with."""
    if commit.fingerprint != fingerprint:
        raise UserError(
            f"images.source={shorten(source)} holds other images than when this run began; bring "
            "them back, or name another workdir"
        )
