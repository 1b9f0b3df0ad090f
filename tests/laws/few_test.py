"""The marker `few(n)`: n cases of a law run by default, taken evenly; the others are slow."""

import pytest

CASES = 7


@pytest.mark.few(3)
@pytest.mark.parametrize("case", range(CASES))
def test_a_case(case, request):
    is_slow = request.node.get_closest_marker("slow") is not None
    assert is_slow == (case not in (0, 2, 4))
