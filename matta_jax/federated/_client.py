"""What a client does: it learns from its images for a round, and classifies.

Client k has a private extractor F_k, projection P_k and header H_k, and a copy of the shared small
model theta = (F_theta, H_theta). FedMRL (arXiv 2406.00488, section 3):

    r = P_k [F_theta(x); F_k(x)]             the representation, d2 numbers
    loss = CE(H_theta(r[:d1])) + CE(H_k(r))  all weights learn from it, by SGD with momentum

Inference is H_k(r). Shape letters: B images of a batch, H rows, W columns, C channels, D numbers of
a representation, K classes.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.federated._config import FederatedConfig, TrainingConfig
from matta_jax.federated._networks import (
    ARCHITECTURES,
    SHARED,
    Weights,
    extract_features,
    init_extractor,
    init_linear,
    linear,
)

Key = Sequence[int]
"""Whole numbers that draw the same things wherever they are the same."""

# Images that are classified at a time.
_EVAL_BATCH = 128

# What keys of different purposes begin with, after the run's seed.
_SHARED_WEIGHTS, _PRIVATE_WEIGHTS = 1, 2


class ClientData(NamedTuple):
    """The images of a client, or a part of them.

    Attributes:
      images: uint8 [n, H, W, C].
      labels: int32 [n].
    """

    images: np.ndarray
    labels: np.ndarray


class PrivateState(NamedTuple):
    """What never leaves a client.

    Attributes:
      weights: extractor, projection and header of its own.
      velocity: SGD's, of `theta` and of `weights`. It goes on from round to round.
      copy: theta as it was after this client's last training.
    """

    weights: Weights
    velocity: dict[str, Weights]
    copy: Weights


def init_theta(config: FederatedConfig) -> Weights:
    """Draws the shared small model: `extractor` and `header`, numpy float32. Without the nested
    loss nothing reads its header, which is left out; of `local` it is empty.
    """
    training = config.training
    if training.method == "local":
        return {}
    rng = np.random.default_rng([training.seed, _SHARED_WEIGHTS])
    theta = {"extractor": init_extractor(SHARED, _image_shape(config), training.d1, rng)}
    if training.method != "fedmrl_plain":
        theta["header"] = init_linear(training.d1, config.images.num_classes, rng)
    return theta


def init_private(config: FederatedConfig, client: int, theta: Weights) -> PrivateState:
    """Draws what a client begins with: its private weights, and a copy of `theta`."""
    training = config.training
    weights: Weights = {}
    if training.method != "fedavg":
        rng = np.random.default_rng([training.seed, _PRIVATE_WEIGHTS, client])
        network = ARCHITECTURES[config.clients.architecture(client)]
        weights["extractor"] = init_extractor(network, _image_shape(config), training.d2, rng)
        weights["header"] = init_linear(training.d2, config.images.num_classes, rng)
        if training.method != "local":
            joined = init_linear(training.d1 + training.d2, training.d2, rng)
            # P_k is linear, without a bias.
            weights["projection"] = {"kernel": joined["kernel"]}
    velocity = jax.tree.map(np.zeros_like, {"theta": theta, "weights": weights})
    return PrivateState(weights, velocity, jax.tree.map(np.array, theta))


def _image_shape(config: FederatedConfig) -> tuple[int, int, int]:
    images = config.images
    return images.image_size, images.image_size, images.num_channels


def head_logits(
    method: str, theta: Weights, weights: Weights, images_BHWC: jax.Array | np.ndarray
) -> list[jax.Array]:
    """The logits [B, K] of each head that learns; those of the last one are the inference.

    Args:
      method: of `METHODS`.
      theta: the shared small model.
      weights: the private ones.
      images_BHWC: uint8.
    """
    if method == "fedavg":
        return [linear(theta["header"], extract_features(theta["extractor"], images_BHWC))]
    private_BD = extract_features(weights["extractor"], images_BHWC)
    if method == "local":
        return [linear(weights["header"], private_BD)]

    shared_BD = extract_features(theta["extractor"], images_BHWC)
    joined_BD = jnp.concatenate([shared_BD, private_BD], axis=1)
    representation_BD = joined_BD @ weights["projection"]["kernel"]
    logits_BK = linear(weights["header"], representation_BD)
    if method == "fedmrl_plain":
        return [logits_BK]

    d1 = theta["header"]["kernel"].shape[0]
    return [linear(theta["header"], representation_BD[:, :d1]), logits_BK]


class _Batch(NamedTuple):
    """Images of a step; those that only fill it up weigh 0."""

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray
    weights: jax.Array | np.ndarray


def _loss(parts: dict[str, Weights], method: str, batch: _Batch) -> jax.Array:
    """The sum over heads of the mean cross-entropy, in nats."""
    heads = head_logits(method, parts["theta"], parts["weights"], batch.images)
    loss = jnp.zeros(())
    for logits_BK in heads:
        log_probs_BK = jax.nn.log_softmax(logits_BK)
        entropies_B = -jnp.take_along_axis(log_probs_BK, batch.labels[:, None], axis=1)[:, 0]
        loss += (entropies_B * batch.weights).sum() / batch.weights.sum()
    return loss


@functools.partial(jax.jit, static_argnames=("method", "learning_rate", "momentum"))
def _step(
    parts: dict[str, Weights],
    velocity: dict[str, Weights],
    batch: _Batch,
    *,
    method: str,
    learning_rate: float,
    momentum: float,
) -> tuple[dict[str, Weights], dict[str, Weights]]:
    """A step of SGD: v = momentum v + gradient, w = w - learning_rate v."""
    gradients = jax.grad(_loss)(parts, method, batch)
    velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradients)
    parts = jax.tree.map(lambda w, v: w - learning_rate * v, parts, velocity)
    return parts, velocity


def client_update(
    theta: Weights, state: PrivateState, data: ClientData, key: Key, training: TrainingConfig
) -> tuple[Weights, PrivateState, int]:
    """Trains a client for a round: `training.local_epochs` passes over its images.

    It changes nothing that it is handed, and what it returns shares no memory with it.

    Args:
      theta: the shared model, as the server has it.
      state: the client's.
      data: the images that it learns from.
      key: draws the order of the images.
      training: how it learns.

    Returns:
      theta as this client has it now, which goes to the server; its new state, which stays; and
      how many images it learned from.
    """
    parts, velocity = {"theta": theta, "weights": state.weights}, state.velocity
    rng = np.random.default_rng(list(key))
    for _ in range(training.local_epochs):
        for batch in _batches(data, rng.permutation(len(data.labels)), training.batch_size):
            parts, velocity = _step(
                parts,
                velocity,
                batch,
                method=training.method,
                learning_rate=training.learning_rate,
                momentum=training.momentum,
            )
    # Copies: arrays of JAX on a CPU may share memory with those of numpy that they come from.
    parts, velocity = jax.tree.map(np.array, (parts, velocity))
    copy = jax.tree.map(np.array, parts["theta"])
    return parts["theta"], PrivateState(parts["weights"], velocity, copy), len(data.labels)


def _batches(data: ClientData, order: np.ndarray, size: int) -> list[_Batch]:
    """All images in an order; the last batch is filled up with its first image at weight 0, so that
    one program takes all.
    """
    batches = []
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        weights = np.zeros(size, np.float32)
        weights[: len(rows)] = 1
        filled = np.concatenate([rows, np.full(size - len(rows), rows[0])])
        batches.append(_Batch(data.images[filled], data.labels[filled], weights))
    return batches


@functools.partial(jax.jit, static_argnames=("method",))
def _inference(method: str, theta: Weights, weights: Weights, images: np.ndarray) -> jax.Array:
    return head_logits(method, theta, weights, images)[-1]


def inference_logits(
    method: str, theta: Weights, weights: Weights, images_BHWC: np.ndarray
) -> np.ndarray:
    """The logits [B, K] by which a client classifies images, float32.

    They are computed in batches of one size, so that one program takes any number of images: a run
    and an extracted client have the same bits.

    Args:
      method: of `METHODS`.
      theta: the client's copy of the shared small model, or the server's.
      weights: the private ones.
      images_BHWC: uint8.
    """
    count = len(images_BHWC)
    parts = []
    # Of no images one batch too: it tells how many classes there are.
    for start in range(0, max(count, 1), _EVAL_BATCH):
        batch = images_BHWC[start : start + _EVAL_BATCH]
        missing = _EVAL_BATCH - len(batch)
        filled = np.pad(batch, [(0, missing), (0, 0), (0, 0), (0, 0)])
        parts.append(np.asarray(_inference(method, theta, weights, filled)))
    return np.concatenate(parts)[:count]


def accuracy(method: str, theta: Weights, weights: Weights, data: ClientData) -> float:
    """The share of images whose class the inference gives, from 0 to 1."""
    predicted = inference_logits(method, theta, weights, data.images).argmax(axis=1)
    return int((predicted == data.labels).sum()) / len(data.labels)
