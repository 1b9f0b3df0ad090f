"""Products of activations and weights, whose gradients are summed in the weight's own type.

Shape letters are those of the subscripts: the first one of the activations counts tokens.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.models.layers._kept import are_products_kept, named_product


def project(subscripts: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """An einsum over tokens, x's first axis, in its type; a wider weight has its gradient summed in
    its own type.

    Axes of one entry are left out of it: they would hide from compilers that these are products of
    plain matrices.
    """
    x_axes, weight_axes, out_axes = subscripts.replace("->", ",").split(",")
    sizes = dict(zip(x_axes, x.shape, strict=True))
    sizes |= dict(zip(weight_axes, weight.shape, strict=True))

    # Tokens stay, also a single one: the gradient's products take the first axis for them.
    def without_ones(axes: str) -> str:
        return "".join(axis for axis in axes if sizes[axis] > 1 or axis not in weight_axes)

    def shape_of(axes: str) -> list[int]:
        return [sizes[axis] for axis in axes]

    x_part = without_ones(x_axes)
    weight_part = without_ones(weight_axes)
    out_part = without_ones(out_axes)
    product = _product(
        f"{x_part},{weight_part}->{out_part}",
        are_products_kept(),
        x.reshape(shape_of(x_part)),
        weight.reshape(shape_of(weight_part)),
    )
    return product.reshape(shape_of(out_axes))


def _plain_product(subscripts: str, is_kept: bool, x: jax.Array, weight: jax.Array) -> jax.Array:
    del is_kept
    return jnp.einsum(subscripts, x, weight.astype(x.dtype))


def _product_forward(
    subscripts: str, is_kept: bool, x: jax.Array, weight: jax.Array
) -> tuple[jax.Array, Any]:
    product = _plain_product(subscripts, is_kept, x, weight)
    return named_product(product, is_kept=is_kept), (x, weight)


def _product_backward(
    subscripts: str,
    is_kept: bool,
    operands: Any,
    d_out: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    del is_kept
    x, weight = operands
    x_axes, weight_axes, out_axes = subscripts.replace("->", ",").split(",")

    # The smaller operand is the one that is cheap to turn.
    small, small_axes, large, large_axes = x, x_axes, d_out, out_axes
    if x.size > d_out.size:
        small, small_axes, large, large_axes = d_out, out_axes, x, x_axes

    # The weight's gradient is a sum over all tokens, too many for a narrow type to add up; so it
    # is made in the type in which the weight was handed over.
    sums = functools.partial(jnp.einsum, preferred_element_type=weight.dtype)
    d_weight = jax.lax.platform_dependent(
        small,
        large,
        cpu=functools.partial(
            _sum_on_cpu,
            sums=sums,
            small_axes=small_axes,
            large_axes=large_axes,
            weight_axes=weight_axes,
        ),
        default=functools.partial(sums, f"{small_axes},{large_axes}->{weight_axes}"),
    )
    d_x = jnp.einsum(f"{out_axes},{weight_axes}->{x_axes}", d_out, weight.astype(x.dtype))
    return d_x, d_weight


def _sum_on_cpu(
    small: jax.Array,
    large: jax.Array,
    *,
    sums: Any,
    small_axes: str,
    large_axes: str,
    weight_axes: str,
) -> jax.Array:
    """The weight's gradient, with tokens last in the first operand: XLA's fast products on a CPU
    sum over that axis, and it would not turn an operand by itself.
    """
    # The barriers keep XLA from folding the transpositions into the product, which would undo them.
    turned = jax.lax.optimization_barrier(jnp.moveaxis(small, 0, -1))
    features = small_axes[1:] + large_axes[1:]
    total = sums(f"{small_axes[1:]}{small_axes[0]},{large_axes}->{features}", turned, large)
    return jnp.einsum(f"{features}->{weight_axes}", jax.lax.optimization_barrier(total))


_product = jax.custom_vjp(_plain_product, nondiff_argnums=(0, 1))
_product.defvjp(_product_forward, _product_backward)
