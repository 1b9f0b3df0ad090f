"""Which images each client has, and which of these it learns from."""

from typing import NamedTuple

import numpy as np

from matta_jax.errors import UserError
from matta_jax.federated._client import ClientData
from matta_jax.federated._config import FederatedConfig

# What keys of the two draws begin with, after the run's seed.
_DEAL, _SPLIT = 4, 5

# One to learn from, one to be tested on.
_FEWEST_IMAGES = 2


class ClientParts(NamedTuple):
    """The images of a client: those it learns from, and those it is tested on."""

    train: ClientData
    test: ClientData


def partition(labels: np.ndarray, config: FederatedConfig) -> list[np.ndarray]:
    """Deals images out to clients: each image to one client.

    `dirichlet`: of each class, clients have shares that are drawn from Dirichlet(alpha). `classes`:
    each client has some classes, in turn, and shares each with the others that have it.

    Args:
      labels: the class of each image.
      config: `clients` says how, `training.seed` draws.

    Returns:
      For each client the rows of its images, in a drawn order.

    Raises:
      UserError: a client has too few images to learn from some and be tested on others.
    """
    clients = config.clients
    rng = np.random.default_rng([config.training.seed, _DEAL])
    order = rng.permutation(len(labels))
    rows_by_class = [order[labels[order] == label] for label in range(config.images.num_classes)]

    if clients.partition == "dirichlet":
        dealt = _deal_by_shares(rows_by_class, clients.count, clients.alpha, rng)
    else:
        dealt = _deal_by_classes(rows_by_class, clients.count, clients.classes_per_client, rng)

    rows_by_client = [rng.permutation(np.concatenate(rows)) for rows in dealt]
    for client, rows in enumerate(rows_by_client):
        if len(rows) < _FEWEST_IMAGES:
            raise UserError(_too_few(client, len(rows), config))
    return rows_by_client


def _deal_by_shares(
    rows_by_class: list[np.ndarray], count: int, alpha: float, rng: np.random.Generator
) -> list[list[np.ndarray]]:
    dealt: list[list[np.ndarray]] = [[] for _ in range(count)]
    for rows in rows_by_class:
        shares = rng.dirichlet(np.full(count, alpha))
        ends = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for client, part in enumerate(np.split(rows, ends)):
            dealt[client].append(part)
    return dealt


def _deal_by_classes(
    rows_by_class: list[np.ndarray], count: int, share: int, rng: np.random.Generator
) -> list[list[np.ndarray]]:
    # In turn: a client's classes differ, and all classes have clients, as the config sees to.
    classes = rng.permutation(len(rows_by_class))
    holders: dict[int, list[int]] = {int(label): [] for label in classes}
    for turn in range(count * share):
        holders[int(classes[turn % len(classes)])].append(turn // share)

    dealt: list[list[np.ndarray]] = [[] for _ in range(count)]
    for label, clients in holders.items():
        for client, part in zip(
            clients, np.array_split(rows_by_class[label], len(clients)), strict=True
        ):
            dealt[client].append(part)
    return dealt


def _too_few(client: int, images: int, config: FederatedConfig) -> str:
    clients = config.clients
    has = f"has {images} example, and needs one to learn from and one to be tested on"
    if not images:
        has = "has no example"
    how = f"clients.partition={clients.partition}"
    if clients.partition == "dirichlet":
        how += f" with clients.alpha={clients.alpha:g}"
    mend = "raise clients.alpha, lower" if clients.partition == "dirichlet" else "lower"
    return (
        f"client {client} of clients.count={clients.count} {has} ({how}); {mend} clients.count, or "
        "take another training.seed"
    )


def split_client(
    images: ClientData, rows: np.ndarray, client: int, config: FederatedConfig
) -> ClientParts:
    """Splits a client's images: `images.eval_fraction` of them, at least one, are for its tests,
    and at least one is left to learn from.

    Args:
      images: all images.
      rows: those of the client.
      client: its number.
      config: of the run.
    """
    rng = np.random.default_rng([config.training.seed, _SPLIT, client])
    shuffled = rng.permutation(rows)
    wanted_tests = round(config.images.eval_fraction * len(rows))
    num_tests = min(max(wanted_tests, 1), len(rows) - 1)
    sides = (shuffled[num_tests:], shuffled[:num_tests])
    return ClientParts(*(ClientData(images.images[side], images.labels[side]) for side in sides))
