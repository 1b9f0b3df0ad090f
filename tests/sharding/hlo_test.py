"""How often a loop of a compiled program runs."""

import pytest

from matta_jax.sharding._hlo import Program

# As a TPU's compiler writes a loop that goes round a ring of devices both ways.
LOOP = """
%cond (p: (f32[8], u32[])) -> pred[] {{
  %limit = u32[] constant(9)
  %p = (f32[8], u32[]) parameter(0)
  %i = u32[]{{:T(128)}} get-tuple-element(%p), index=1
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}}
%body (q: (f32[8], u32[])) -> (f32[8], u32[]) {{
  %two = u32[] constant(2)
  %q = (f32[8], u32[]) parameter(0)
  %a = f32[8] get-tuple-element(%q), index=0
  %j = u32[]{{:T(128)}} get-tuple-element(%q), index=1
  %next = u32[]{{:T(128)}} {next}
  ROOT %r = (f32[8]{{0:T(8)(128)}}, u32[]{{:T(128)}}) tuple(%a, /*index=1*/%next)
}}
ENTRY %main (t: (f32[8], u32[])) -> (f32[8], u32[]) {{
  %t = (f32[8], u32[]) parameter(0)
  ROOT %w = (f32[8], u32[]) while(%t), condition=%cond, body=%body{stated}
}}
"""


@pytest.mark.parametrize(
    ("next", "stated", "times"),
    [
        ("add(%j, %two), backend_config={}", "", 5),
        ("add(%two, %j)", "", 5),
        # The body does not tell: by one.
        ("add(%j, %q)", "", 9),
        ("fusion(%j), kind=kLoop, calls=%f", "", 9),
        ("add(%j, %two)", ', backend_config={"known_trip_count":{"n":"3"}}', 3),
    ],
)
def test_a_loop_runs_until_its_counter_is_at_the_limit(next, stated, times):
    program = Program(LOOP.format(next=next, stated=stated))
    assert program.trip_count(program.root("main")) == times
