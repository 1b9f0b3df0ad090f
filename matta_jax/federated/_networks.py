"""The clients' private networks, and the small one that they share: plain functions of weights.

Shape letters: B images of a batch, H rows, W columns, C channels, F features.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Weights = dict[str, Any]
"""A tree of arrays, by names."""

_KERNEL = 3
# Pixels are whole numbers up to 255; networks read numbers from -1 to 1.
_HALF_RANGE = 127.5
SCALING = f"pixel / {_HALF_RANGE} - 1"
"""What networks make of a pixel, in words for those who read a model's folder."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A convolutional network: convolutions of 3x3, each halving the image, and dense layers.

    Attributes:
      channels: of each convolution.
      hidden: width of each dense layer before the features.
    """

    channels: tuple[int, ...]
    hidden: tuple[int, ...]


ARCHITECTURES: Mapping[str, Architecture] = {
    "cnn1": Architecture((16, 32), (128,)),
    "cnn2": Architecture((16, 24), (96,)),
    "cnn3": Architecture((12, 24), (64,)),
    "cnn4": Architecture((8, 16), (64,)),
    "cnn5": Architecture((12, 16, 32), (64,)),
}
"""The private networks, as `clients.architectures` names them, from large to small."""

SHARED = Architecture((6, 12), ())
"""The small network that all clients share."""

POOLED = 2 ** max(len(network.channels) for network in ARCHITECTURES.values())
"""Images must be a multiple of so many pixels."""


def init_extractor(
    architecture: Architecture, image: Sequence[int], features: int, rng: np.random.Generator
) -> Weights:
    """Draws the weights of a network that makes features of images.

    Args:
      architecture: its layers.
      image: H, W, C of an image.
      features: F, numbers that it makes of an image.
      rng: what weights are drawn by, in the order of the layers.

    Returns:
      `conv0`, ... and `dense0`, ...: each a `kernel` and a `bias`, float32.
    """
    height, width, channels = image
    weights: Weights = {}
    for i, out_channels in enumerate(architecture.channels):
        weights[f"conv{i}"] = _init_layer((_KERNEL, _KERNEL, channels, out_channels), rng)
        height, width, channels = height // 2, width // 2, out_channels

    inputs = height * width * channels
    for i, outputs in enumerate([*architecture.hidden, features]):
        weights[f"dense{i}"] = _init_layer((inputs, outputs), rng)
        inputs = outputs
    return weights


def init_linear(inputs: int, outputs: int, rng: np.random.Generator) -> Weights:
    """Draws a linear layer: `kernel` [inputs, outputs] and `bias` [outputs], float32."""
    return _init_layer((inputs, outputs), rng)


def _init_layer(shape: tuple[int, ...], rng: np.random.Generator) -> Weights:
    # He's variance, for what a ReLU reads.
    scale = math.sqrt(2 / math.prod(shape[:-1]))
    kernel = (scale * rng.standard_normal(shape)).astype(np.float32)
    return {"kernel": kernel, "bias": np.zeros(shape[-1], np.float32)}


def extract_features(weights: Weights, images_BHWC: jax.Array | np.ndarray) -> jax.Array:
    """The features [B, F] of images [B, H, W, C] uint8, by a network of `init_extractor`."""
    x_BHWC = jnp.asarray(images_BHWC, jnp.float32) / _HALF_RANGE - 1
    for i in range(_count(weights, "conv")):
        x_BHWC = _halved(jax.nn.relu(_convolved(weights[f"conv{i}"], x_BHWC)))

    x_BF = x_BHWC.reshape(len(x_BHWC), -1)
    for i in range(_count(weights, "dense")):
        x_BF = jax.nn.relu(linear(weights[f"dense{i}"], x_BF))
    return x_BF


def linear(weights: Weights, x_BF: jax.Array) -> jax.Array:
    """A linear layer of `init_linear`."""
    return x_BF @ weights["kernel"] + weights["bias"]


def _count(weights: Weights, kind: str) -> int:
    return sum(name.startswith(kind) for name in weights)


def _convolved(weights: Weights, x_BHWC: jax.Array) -> jax.Array:
    out_BHWC = jax.lax.conv_general_dilated(
        x_BHWC, weights["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out_BHWC + weights["bias"]


def _halved(x_BHWC: jax.Array) -> jax.Array:
    """The largest of each 2x2 numbers. Its gradient is cheap on a CPU, where that of a window's
    reduction is not.
    """
    batch, height, width, channels = x_BHWC.shape
    return x_BHWC.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
