"""The FLOPs of a program: as they are known of its shapes, and loops as often as they run."""

import jax
import jax.numpy as jnp
import pytest

from matta_jax.sharding import matmul_flops


def program(instructions, others=""):
    """A text of two operands, of 64 by 32 and 32 by 16 numbers, and these instructions."""
    return f"""
HloModule m
{others}
ENTRY %main (a: f32[64,32], b: f32[32,16]) -> f32[64,16] {{
  %a = f32[64,32]{{1,0:T(8,128)}} parameter(0)
  %b = f32[32,16]{{1,0:T(8,128)}} parameter(1)
{instructions}
}}
"""


PRODUCT = 2 * 64 * 32 * 16
DOT = "= f32[64,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
CONVOLUTION = "= f32[64,16]{1,0} convolution(%a, %b), dim_labels=bf_io->bf, metadata={op_name=x}"


@pytest.mark.parametrize("product", [DOT, CONVOLUTION])
def test_a_product_of_matrices_has_two_flops_for_each_pair(product):
    assert matmul_flops(program(f"  ROOT %r {product}")) == PRODUCT


@pytest.mark.parametrize(
    ("left", "right", "result", "attributes", "flops"),
    [
        # One position in two of a window falls on a number: it is an axis of outputs.
        (
            "bf16[4096,1024,1]",
            "bf16[1024,2,4096]",
            "bf16[4096,2,4096]",
            "window={size=2 pad=1_1 rhs_reversal=1}, dim_labels=bf0_i0o->b0f",
            2 * 4096 * 1024 * 2 * 4096,
        ),
        # A window over an axis that is summed.
        (
            "bf16[4096,2,4096]",
            "bf16[1024,2,4096]",
            "bf16[4096,1024,1]",
            "window={size=2}, dim_labels=b0f_o0i->bf0",
            2 * 4096 * 1024 * 2 * 4096,
        ),
        # An axis of batches: each is multiplied with its like, by strides that are the axis less 1.
        (
            "bf16[8,64,32]",
            "bf16[8,32,16]",
            "bf16[8,64,16]",
            "window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf",
            8 * PRODUCT,
        ),
        # A plain convolution of 5 positions by a window of 3, which runs over both ends.
        (
            "f32[1,5,1]",
            "f32[3,1,1]",
            "f32[1,5,1]",
            "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * (3 * 5 - 2),
        ),
    ],
)
def test_what_falls_into_padding_is_not_multiplied(left, right, result, attributes, flops):
    text = f"""
ENTRY %main (l: {left}, r: {right}) -> {result} {{
  %l = {left}{{}} parameter(0)
  %r = {right}{{}} parameter(1)
  ROOT %c = {result}{{}} convolution(%l, %r), {attributes}
}}
"""
    assert matmul_flops(text) == flops


INNER = f"""
%body (s: (f32[64,32], f32[32,16])) -> (f32[64,32], f32[32,16]) {{
  %s = (f32[64,32]{{1,0}}, f32[32,16]{{1,0}}) parameter(0)
  %a = f32[64,32]{{1,0}} get-tuple-element(%s), index=0
  %b = f32[32,16]{{1,0}} get-tuple-element(%s), index=1
  %f = f32[64,16]{{1,0}} fusion(%a, %b), kind=kOutput, calls=%fused
  ROOT %t = (f32[64,32]{{1,0}}, f32[32,16]{{1,0}}) tuple(%a, %b)
}}
%fused (a: f32[64,32], b: f32[32,16]) -> f32[64,16] {{
  %a = f32[64,32]{{1,0}} parameter(0)
  %b = f32[32,16]{{1,0}} parameter(1)
  ROOT %r {DOT}
}}
%nothing (a: f32[64,32], b: f32[32,16]) -> f32[64,16] {{
  %a = f32[64,32]{{1,0}} parameter(0)
  ROOT %r = f32[64,16]{{1,0}} slice(%a), slice={{[0:64], [0:16]}}
}}
%cond (s: (f32[64,32], f32[32,16])) -> pred[] {{
  %s = (f32[64,32]{{1,0}}, f32[32,16]{{1,0}}) parameter(0)
  ROOT %yes = pred[] constant(true)
}}
"""


def test_a_loop_multiplies_each_time():
    loop = (
        "  %t = (f32[64,32]{1,0}, f32[32,16]{1,0}) tuple(%a, %b)\n"
        "  ROOT %w = (f32[64,32]{1,0}, f32[32,16]{1,0}) while(%t), condition=%cond, body=%body, "
        'backend_config={"known_trip_count":{"n":"8"}}'
    )
    assert matmul_flops(program(loop, INNER)) == 8 * PRODUCT


def test_a_conditional_multiplies_what_its_largest_branch_does():
    conditional = (
        "  %i = s32[] constant(0)\n  ROOT %c = f32[64,16]{1,0} conditional(%i, %a, %a), "
        "branch_computations={%nothing, %fused}"
    )
    assert matmul_flops(program(conditional, INNER)) == PRODUCT


def test_a_kernel_has_the_flops_that_are_told():
    call = (
        '  ROOT %flash_fwd.3 = (f32[64,16]{1,0}, f32[]) custom-call(%a), custom_call_target="tpu"'
    )
    assert matmul_flops(program(call)) == 0
    assert matmul_flops(program(call), {"flash_fwd": 7, "flash_dq": 5}) == 7


def test_a_compiled_program_counts_its_recomputation():
    def layer(x, weight):
        return jnp.tanh(x @ weight), None

    def loss(weights, x):
        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, weights)[0])

    weights, x = jnp.ones((5, 32, 32)), jnp.ones((64, 32))
    once = 5 * 2 * 64 * 32 * 32
    assert matmul_flops(jax.jit(loss).lower(weights, x).compile().as_text()) == once
    backward = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(weights, x).compile().as_text()
    assert matmul_flops(backward) == 4 * once
