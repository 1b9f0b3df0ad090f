"""Names of what a layer may keep for its backward pass, for policies of `jax.checkpoint`."""

import contextvars
from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name as checkpoint_name

QKV = "qkv"
"""Queries, keys and values, before they are turned or normed."""

ATTENTION = "attention"
"""What heads have gathered; and what a fused kernel needs beside it to go backward."""

HIDDEN = "hidden"
"""What a feed-forward layer's neurons are made of, before their activation."""

KEPT_NAMES = (QKV, ATTENTION, HIDDEN)
"""What a config may name."""

PRODUCT = "product"
"""What any matrix makes of tokens."""

# Set while a layer is traced: policies are no business of its modules.
_ARE_PRODUCTS_KEPT = contextvars.ContextVar("are_products_kept", default=False)


def with_products(function: Callable[..., Any], *, are_kept: bool) -> Callable[..., Any]:
    """A function of layers whose products are kept for the backward pass, or computed again. What
    is traced to be computed again, such as the branches of a mix, is not within it.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        token = _ARE_PRODUCTS_KEPT.set(are_kept)
        try:
            return function(*args, **kwargs)
        finally:
            _ARE_PRODUCTS_KEPT.reset(token)

    return run


def are_products_kept() -> bool:
    """Whether the layer that is traced keeps what its matrices make of tokens."""
    return _ARE_PRODUCTS_KEPT.get()


def named_product(product: jax.Array, *, is_kept: bool) -> jax.Array:
    """A product under the name by which it is kept.

    A TPU's compiler would write what is kept together with the product, which then leaves the core,
    and is read again by the next operation.
    """
    if is_kept:
        product = jax.lax.platform_dependent(
            product, tpu=jax.lax.optimization_barrier, default=lambda product: product
        )
    return checkpoint_name(product, PRODUCT)
