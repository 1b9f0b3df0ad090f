"""Rotary positions (Su et al. 2021), with the scalings of their frequencies by which models read
longer texts than they were trained on.

The pairs that turn together are (i, i + head_dim/2), as in all Hugging Face weights.

Shape letters: B batch, T positions, E head_dim.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.models.layers._context import Context


@dataclasses.dataclass(frozen=True)
class Rotary:
    """How positions turn queries and keys.

    Attributes:
      theta: base of the frequencies.
      kind: default, linear, llama3 or yarn.
      factors: the numbers of a kind, with their names in Hugging Face's configs.
    """

    theta: float
    kind: str
    factors: tuple[tuple[str, float], ...] = ()

    @property
    def scaling(self) -> dict[str, float]:
        """The numbers of its kind, by name."""
        return dict(self.factors)

    def frequencies(self, head_dim: int) -> tuple[np.ndarray, float]:
        """The angle of one position for each pair [E/2], and a factor of what is turned."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        plain = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        if self.kind == "linear":
            return plain / np.float32(self.scaling["factor"]), 1.0
        if self.kind == "llama3":
            return self._llama3(plain), 1.0
        if self.kind == "yarn":
            return self._yarn(plain), self._yarn_factor()
        return plain, 1.0

    def _llama3(self, plain: np.ndarray) -> np.ndarray:
        """Slow pairs are slowed down by the factor, fast ones stay, those between are blended."""
        scaling = self.scaling
        turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        share = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return ((1 - share) * plain / scaling["factor"] + share * plain).astype(np.float32)

    def _yarn(self, plain: np.ndarray) -> np.ndarray:
        """Peng et al. 2023: as `llama3`, by the number of turns within the original length."""
        head_dim, scaling = 2 * len(plain), self.scaling
        length = scaling["original_max_position_embeddings"]

        def pair_of(turns: float) -> float:
            """The pair that turns so many times within that length."""
            ratio = math.log(length / (turns * 2 * math.pi)) / math.log(self.theta)
            return head_dim * ratio / 2

        first = pair_of(scaling.get("beta_fast", 32.0))
        last = pair_of(scaling.get("beta_slow", 1.0))
        if scaling.get("truncate", 1.0):
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        # No division by 0, as in Hugging Face's.
        if first == last:
            last += 0.001
        slowed = np.clip((np.arange(len(plain)) - first) / (last - first), 0.0, 1.0)
        slow = plain / scaling["factor"]
        return (slow * slowed + plain * (1 - slowed)).astype(np.float32)

    def _yarn_factor(self) -> float:
        """What queries and keys are multiplied by, so that attention stays as sharp."""
        scaling = self.scaling
        if "attention_factor" in scaling:
            return scaling["attention_factor"]

        def sharpness(scale: float) -> float:
            factor = scaling["factor"]
            return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

        if "mscale" in scaling and "mscale_all_dim" in scaling:
            return sharpness(scaling["mscale"]) / sharpness(scaling["mscale_all_dim"])
        return sharpness(1.0)

    def turns(self, head_dim: int, context: Context) -> tuple[jax.Array, jax.Array]:
        """Cosines and sines [T, E/2] of the new tokens, or [B, T, E/2] where rows start at
        different positions.
        """
        frequencies, factor = self.frequencies(head_dim)
        angles = context.positions[..., None].astype(jnp.float32) * frequencies
        return factor * jnp.cos(angles), factor * jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs of x [B, …, T, E] by the angles of `Rotary.turns`."""
    if cos.ndim == 3:
        # [B, 1, …, T, E/2]: the axes of heads are alike.
        shape = (cos.shape[0], *[1] * (x.ndim - 3), *cos.shape[1:])
        cos, sin = cos.reshape(shape), sin.reshape(shape)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
