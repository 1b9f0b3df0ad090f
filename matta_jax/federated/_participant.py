"""A client with its images and what it keeps on disk; and all of them in one process.

The server asks clients for four things (`Clients`), and hands them theta, numbers and the names of
slots. What comes back is theta, and numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from matta_jax.errors import DivergenceError
from matta_jax.federated._client import PrivateState, accuracy, client_update, init_private
from matta_jax.federated._config import FederatedConfig
from matta_jax.federated._networks import Weights
from matta_jax.federated._partition import ClientParts
from matta_jax.federated._state import RunFolder, first_slot, next_slot

# What keys of a client's batches begin with, after the run's seed.
_BATCHES = 6

Scores = tuple[float, float]
"""A client's accuracy on its test images: by its copy of theta, and by the server's."""


class Clients(Protocol):
    """All clients, wherever they are."""

    def fingerprint(self) -> str:
        """Of the images that clients have."""

    def begin(self, theta: Weights) -> None:
        """Makes each client write what it begins with into the first slot."""

    def train(
        self, theta: Weights, round_number: int, slots: Mapping[int, str]
    ) -> list[tuple[Weights, int]]:
        """Trains clients for a round.

        Args:
          theta: the server's.
          round_number: from 1.
          slots: where what each of the drawn clients keeps lies. It writes into the other slot.

        Returns:
          Theta and the number of images of each, in the order of `slots`.
        """

    def score(self, theta: Weights, slots: Sequence[str]) -> list[Scores]:
        """The scores of each client, which keeps what lies in its slot."""


class Participant:
    """A client."""

    def __init__(self, config: FederatedConfig, client: int, parts: ClientParts, folder: RunFolder):
        self._config, self._client, self._parts = config, client, parts
        self._folder = folder

    def begin(self, theta: Weights) -> None:
        """Writes what it begins with into the first slot. Raises OSError."""
        state = init_private(self._config, self._client, theta)
        self._folder.write_client(self._client, state, first_slot())

    def train(self, theta: Weights, round_number: int, slot: str) -> tuple[Weights, int]:
        """Learns for a round from what lies in a slot, and writes into the other one; returns what
        goes to the server.

        Raises:
          OSError: it cannot be written.
          DamageError: it cannot be read.
          DivergenceError: its weights are not finite.
        """
        training = self._config.training
        state = self._folder.read_client(self._client, slot)
        key = (training.seed, _BATCHES, round_number, self._client)
        theta, state, images = client_update(theta, state, self._parts.train, key, training)
        _check_finite(theta, state, self._client, round_number)
        self._folder.write_client(self._client, state, next_slot(slot))
        return theta, images

    def score(self, theta: Weights, slot: str) -> Scores:
        """Its scores with what lies in a slot. Raises DamageError."""
        method = self._config.training.method
        state = self._folder.read_client(self._client, slot)
        by_copy = accuracy(method, state.copy, state.weights, self._parts.test)
        return by_copy, accuracy(method, theta, state.weights, self._parts.test)


def _check_finite(theta: Weights, state: PrivateState, client: int, round_number: int) -> None:
    """Raises DivergenceError where a client's weights are no numbers, which a mean would spread."""
    arrays = jax.tree.leaves((theta, state.weights))
    if not all(np.isfinite(array).all() for array in arrays):
        raise DivergenceError(
            f"client {client} diverged in round {round_number}: its weights are not finite; lower "
            "training.learning_rate, in another workdir"
        )


class ClientsHere:
    """All clients in this process, one after another."""

    def __init__(
        self,
        config: FederatedConfig,
        parts: Sequence[ClientParts],
        folder: RunFolder,
        fingerprint: str,
    ):
        self._participants = [
            Participant(config, client, client_parts, folder)
            for client, client_parts in enumerate(parts)
        ]
        self._fingerprint = fingerprint

    def fingerprint(self) -> str:
        """As `Clients`."""
        return self._fingerprint

    def begin(self, theta: Weights) -> None:
        """As `Clients`."""
        for participant in self._participants:
            participant.begin(theta)

    def train(
        self, theta: Weights, round_number: int, slots: Mapping[int, str]
    ) -> list[tuple[Weights, int]]:
        """As `Clients`."""
        return [
            self._participants[client].train(theta, round_number, slot)
            for client, slot in slots.items()
        ]

    def score(self, theta: Weights, slots: Sequence[str]) -> list[Scores]:
        """As `Clients`."""
        pairs = zip(self._participants, slots, strict=True)
        return [participant.score(theta, slot) for participant, slot in pairs]
