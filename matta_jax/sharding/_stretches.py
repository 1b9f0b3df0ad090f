"""How devices share the positions of a window, where one does not hold all of it.

Shape letters: T positions of a window.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Stretches:
    """Two stretches of each window for a device, of one length: one from its first half, and the
    one that mirrors it from the second. Late positions attend to more than early ones; so all
    devices have as much to do.

    Attributes:
      axis: mesh axis, which a `shard_map` around has taken.
      count: of its devices.
    """

    axis: str
    count: int

    @property
    def places(self) -> tuple[jax.Array, jax.Array]:
        """Which stretch of its half each of this device's two is []."""
        index = jax.lax.axis_index(self.axis)
        return index, self.count - 1 - index

    def positions(self, seq_len: int) -> jax.Array:
        """The positions of this device [T / count], of windows of `seq_len`; both of its stretches
        rise.
        """
        size = seq_len // (2 * self.count)
        first, second = self.places
        within = jnp.arange(size)
        return jnp.concatenate([first * size + within, (self.count + second) * size + within])

    def join(self, x: jax.Array, axis: int) -> jax.Array:
        """What all devices have of an axis of positions, in the order of these."""
        gathered = jax.lax.all_gather(x, self.axis)
        axis = axis % x.ndim
        firsts, seconds = jnp.split(gathered, 2, axis=axis + 1)
        # The second half's stretches lie in the other direction.
        in_order = jnp.concatenate([firsts, seconds[::-1]])
        joined = jnp.moveaxis(in_order, 0, axis)
        return joined.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
