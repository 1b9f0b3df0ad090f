"""How a pass computes, and weights as its layers use them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from matta_jax.models.layers import PRODUCT
from matta_jax.nesting import Names, Tree
from matta_jax.sharding import ONE_DEVICE, Placement, sum_dtype


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a pass computes.

    Attributes:
      dtype: of activations and matmuls.
      reduce_dtype: type in which gradients of matrices and tables are summed: `compute` for
        `dtype`, or float32.
      remat: what a layer keeps for its backward pass, as `model.remat` says.
      remat_names: what it keeps beside that, of `layers.KEPT_NAMES`.
      dropout: rate on the embeddings and each residual branch; needs a key.
      placement: where weights lie; they are gathered before they are sliced.
    """

    dtype: str = "float32"
    reduce_dtype: str = "compute"
    remat: str = "dots"
    remat_names: tuple[str, ...] = ()
    dropout: float = 0.0
    placement: Placement = ONE_DEVICE

    @property
    def policy(self) -> Callable[..., Any]:
        """What `jax.checkpoint` keeps of a layer that is computed again."""
        # Attention's scores, of T·S numbers, have no name: they are computed again with all that is
        # cheap.
        products = (PRODUCT,) if self.keeps_products else ()
        if self.remat == "offload":
            return jax.checkpoint_policies.save_and_offload_only_these_names(
                names_which_can_be_saved=self.remat_names,
                names_which_can_be_offloaded=products,
                offload_src="device",
                offload_dst="pinned_host",
            )
        return jax.checkpoint_policies.save_only_these_names(*products, *self.remat_names)

    @property
    def keeps_products(self) -> bool:
        """Whether a layer that is computed again has what its matrices have made of tokens."""
        return self.remat not in ("full", "none")

    @property
    def keeps_nothing(self) -> bool:
        """Whether a layer that is computed again has no more than what it begins with."""
        return self.remat == "full" and not self.remat_names


TRAINING = Compute()
"""For passes that are differentiated."""

IN_PLACE = Compute(remat="none")
"""For passes that are not."""


def ready(weights: Tree, axes: Tree, compute: Compute) -> Tree:
    """Weights as layers use them."""

    def for_compute(weight: jax.Array, names: Names) -> jax.Array:
        return _for_compute(weight, names, compute)

    return jax.tree.map(for_compute, weights, axes)


def _for_compute(weight: jax.Array, names: Names, compute: Compute) -> jax.Array:
    """A weight as layers use it: rounded to the compute type, then gathered.

    Its gradient is scattered before anything else, so that it is summed over devices only for where
    it goes. A matrix or table whose gradient is to be summed in a wider type is handed on in that
    type, with its rounded values.
    """
    handed_on = sum_dtype(names, compute.dtype, compute.reduce_dtype)

    @jax.custom_vjp
    def ready(weight: jax.Array) -> jax.Array:
        # In this order: what travels between devices is of the narrower type.
        gathered = compute.placement.gather(weight.astype(compute.dtype), names)
        return gathered.astype(handed_on)

    def forward(weight: jax.Array) -> tuple[jax.Array, None]:
        return ready(weight), None

    def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        scattered = compute.placement.scatter(gradient, names)
        return (scattered.astype(weight.dtype),)

    ready.defvjp(forward, backward)
    return ready(weight)
