"""The bytes that a program moves: as the compiler counts them, and loops as often as they run."""

import jax
import jax.numpy as jnp
import pytest

from matta_jax.sharding import memory_bytes

# As a TPU's compiler writes it: a loop over a stack of which a fusion reads a layer and another
# writes one, and an array in the memory of a core.
LOOP = """
HloModule m
%layer (p0: f32[8,16], p1: s32[]) -> f32[1,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %ds = f32[1,16]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,16}
}
%put (q0: f32[8,16], q1: f32[1,16], q2: s32[]) -> f32[8,16] {
  %q0 = f32[8,16]{1,0} parameter(0)
  %q1 = f32[1,16]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %dus = f32[8,16]{1,0} dynamic-update-slice(%q0, %q1, %q2, %q2)
}
%body (s: (s32[], f32[8,16], f32[8,16])) -> (s32[], f32[8,16], f32[8,16]) {
  %s = (s32[], f32[8,16]{1,0}, f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %a = f32[8,16]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %b = f32[8,16]{1,0:T(8,128)} get-tuple-element(%s), index=2
  %f = f32[1,16]{1,0:T(8,128)S(1)} fusion(%a, %i), kind=kLoop, calls=%layer
  %g = f32[8,16]{1,0:T(8,128)} fusion(%b, %f, %i), kind=kLoop, calls=%put
  ROOT %t = (s32[], f32[8,16]{1,0}, f32[8,16]{1,0}) tuple(%i, %a, %g)
}
%cond (s: (s32[], f32[8,16], f32[8,16])) -> pred[] {
  %s = (s32[], f32[8,16]{1,0}, f32[8,16]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}
ENTRY %main (a: f32[8,16], b: f32[8,16]) -> (s32[], f32[8,16], f32[8,16]) {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[8,16]{1,0} parameter(1)
  %z = s32[] constant(0)
  %t = (s32[], f32[8,16]{1,0}, f32[8,16]{1,0}) tuple(%z, %a, %b)
  ROOT %w = (s32[], f32[8,16]{1,0}, f32[8,16]{1,0}) while(%t), \
condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"8"}}
}
"""


def test_a_loop_moves_a_layer_each_time():
    """Of 64 bytes each: one is read, another written; with the index, of four bytes, twice."""
    assert memory_bytes(LOOP) == 8 * (64 + 4 + 64 + 4)


def test_a_conditional_moves_what_its_largest_branch_moves():
    text = """
ENTRY %main (a: f32[4], i: s32[]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %c = f32[4]{0} conditional(%i, %a, %a), branch_computations={%small, %large}
}
%small (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %n = f32[4]{0} negate(%p)
}
%large (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %n = f32[4]{0} negate(%p)
  ROOT %m = f32[4]{0} add(%n, %p)
}
"""
    assert memory_bytes(text) == 2 * 16 + 3 * 16


def layers(x_ND, w_LDD):
    for w_DD in w_LDD:
        x_ND = jnp.tanh(x_ND @ w_DD)
    return x_ND.sum()


@pytest.mark.parametrize("transform", [lambda f: f, jax.grad], ids=["value", "gradient"])
def test_without_a_loop_it_is_what_the_compiler_counts(transform):
    arguments = (jnp.ones((64, 64)), jnp.ones((3, 64, 64)))
    compiled = jax.jit(transform(layers)).lower(*arguments).compile()
    counted = compiled.cost_analysis()["bytes accessed"]
    assert memory_bytes(compiled.as_text()) == pytest.approx(counted, rel=0.05)


def test_a_scan_moves_as_much_as_its_layers(tmp_path):
    """The compiler counts its body once."""

    def scanned(x_ND, w_LDD):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_ND, w_LDD)[0].sum()

    def moved(count):
        arguments = (jnp.ones((64, 64)), jnp.ones((count, 64, 64)))
        return memory_bytes(jax.jit(scanned).lower(*arguments).compile().as_text())

    assert moved(24) - moved(12) == pytest.approx(12 * (moved(13) - moved(12)), rel=0.05)


@pytest.mark.parametrize(
    ("operand", "start", "moved"),
    [
        # Into the core, out of it, and within the memory.
        (
            "f32[8,16]{1,0}",
            "(f32[8,16]{1,0:S(1)}, f32[8,16]{1,0}, u32[]{:S(2)}) copy-start(%a)",
            512,
        ),
        (
            "f32[8,16]{1,0:S(1)}",
            "(f32[8,16]{1,0}, f32[8,16]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%a)",
            512,
        ),
        ("f32[8,16]{1,0}", "(f32[8,16]{0,1}, f32[8,16]{1,0}, u32[]{:S(2)}) copy-start(%a)", 1024),
        # A slice reads what it gives.
        (
            "f32[8,16]{1,0}",
            "((f32[8,16]{1,0}), f32[2,16]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:2]}",
            128,
        ),
        (
            "f32[8,16]{1,0}",
            "((f32[8,16]{1,0}), f32[2,16]{1,0}, s32[]{:S(2)}) slice-start(%a), slice={[0:2]}",
            256,
        ),
    ],
)
def test_what_goes_on_beside_others_moves_what_it_reads_and_writes(operand, start, moved):
    text = f"""
ENTRY %main (a: f32[8,16]) -> f32[8,16] {{
  %a = {operand} parameter(0)
  %s = {start}
  ROOT %t = f32[8,16]{{1,0:S(1)}} bitcast(%a)
}}
"""
    assert memory_bytes(text) == moved


@pytest.mark.parametrize(
    ("target", "moved"), [("AllocateBuffer", 0), ("ConcatBitcast", 0), ("kernel", 1024)]
)
def test_calls_that_name_memory_move_nothing(target, moved):
    text = f"""
ENTRY %main (a: f32[8,16]) -> f32[8,16] {{
  %a = f32[8,16]{{1,0}} parameter(0)
  ROOT %c = f32[8,16]{{1,0}} custom-call(%a), custom_call_target="{target}"
}}
"""
    assert memory_bytes(text) == moved


def test_a_fusion_within_a_fusion_reads_what_it_slices():
    outer = """%outer (o0: f32[8,16], o1: s32[]) -> f32[1,16] {
  %o0 = f32[8,16]{1,0} parameter(0)
  %o1 = s32[] parameter(1)
  %inner = f32[1,16]{1,0} fusion(%o0, %o1), kind=kLoop, calls=%layer
  ROOT %n = f32[1,16]{1,0} negate(%inner)
}
%put ("""
    called = LOOP.replace(
        "fusion(%a, %i), kind=kLoop, calls=%layer", "fusion(%a, %i), calls=%outer"
    )
    nested = called.replace("%put (", outer, 1)
    assert "calls=%outer" in nested
    assert memory_bytes(nested) == memory_bytes(LOOP)
