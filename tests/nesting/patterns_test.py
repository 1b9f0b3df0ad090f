"""Named patterns of wide layers."""

import hypothesis
import hypothesis.strategies as st

from matta_jax import nesting


@hypothesis.given(st.integers(1, 40), st.data())
def test_patterns_have_their_count_and_are_symmetric_when_they_can_be(num_layers, data):
    wide = data.draw(st.integers(0, num_layers))
    outer = nesting.wide_narrow_wide(num_layers, wide)
    inner = nesting.narrow_wide_narrow(num_layers, wide)
    assert sum(outer) == sum(inner) == wide
    if wide % 2 == 0:
        assert outer == outer[::-1]
    if (num_layers - wide) % 2 == 0:
        assert inner == inner[::-1]
    if 0 < wide < num_layers:
        assert outer[0] and not inner[-1]
