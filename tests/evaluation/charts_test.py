"""Charts: where points stand, what is told of them, and what they do with few numbers or many."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matta_jax.evaluation._charts import Dot, Line, bars, curves, scatter, thinned, ticks

NUMBERS = st.floats(-1e9, 1e9)


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (2.04, 2.33, 5, [2.1, 2.2, 2.3]),
        (-1, 1, 4, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, 5, [3]),
        (0.0011, 0.0019, 5, [0.0012, 0.0014, 0.0016, 0.0018]),
    ],
)
def test_ticks_are_round(low, high, count, expected):
    assert ticks(low, high, count) == pytest.approx(expected)


@given(NUMBERS, st.floats(1e-6, 1e9), st.integers(2, 12))
def test_ticks_lie_within_and_are_about_as_many_as_asked(low, room, count):
    made = ticks(low, low + room, count)
    slack = 1e-6 * (room + abs(low))
    assert all(low - slack <= tick <= low + room + slack for tick in made)
    assert count / 3 - 1 <= len(made) <= count + 1


@given(st.lists(NUMBERS, min_size=1, max_size=50), st.integers(1, 20))
def test_a_long_curve_is_of_means(ys, most):
    xs = list(range(len(ys)))
    few_xs, few_ys = thinned(xs, ys, most)
    assert len(few_xs) == len(few_ys) <= most
    size = math.ceil(len(ys) / most)
    for i, mean in enumerate(few_ys):
        group = ys[i * size : (i + 1) * size]
        assert mean == pytest.approx(sum(group) / len(group), abs=1e-3)
    if len(ys) <= most:
        assert (few_xs, few_ys) == (xs, ys)


def places(chart, name="polyline"):
    points = re.findall(rf'<{name} points="([^"]*)"', chart)
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in points]


def test_dots_stand_by_their_numbers_and_tell_them():
    dots = [
        Dot(1, 3.0, ["student", "1 M"], is_end=True, label="Student"),
        Dot(2, 2.5, ["d_ff=<b>", "2 M"]),
        Dot(3, 2.0, ["ta", "3 M"], is_end=True, label="TA"),
    ]
    chart = scatter(dots, [(1, 3.0), (3, 2.0)], "parameters", "bits")
    [circle] = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)
    squares = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"', chart)
    (x0, y0), (x2, y2) = [(float(x) + 5, float(y) + 5) for x, y in squares]
    # More is to the right and on top, and the middle lies half way.
    assert x0 < x2 and y0 < y2
    assert [(x0 + x2) / 2, (y0 + y2) / 2] == pytest.approx([float(c) for c in circle], abs=0.02)
    assert places(chart) == [[pytest.approx((x0, y0)), pytest.approx((x2, y2))]]
    # A spot lies on its dot, as a share of the picture.
    spots = re.findall(r'class="spot" style="left:([\d.]+)%;top:([\d.]+)%', chart)
    assert [float(s) for s in spots[1]] == pytest.approx(
        [float(circle[0]) / 8.8, float(circle[1]) / 3.4], abs=0.02
    )
    assert 'aria-label="d_ff=&lt;b&gt;, 2 M"' in chart and ">d_ff=&lt;b&gt;\n2 M</div>" in chart
    # Words on the right side grow to the left.
    assert re.findall(r'class="tip" style="(\w+):', chart) == ["left", "right", "right"]
    assert [label in chart for label in (">Student<", ">TA<")] == [True, True]


def test_curves_are_told_apart_without_colours():
    lines = [Line(f"line {i}", [0, 1], [i, i + 1], "#123456", has_marks=i == 1) for i in range(3)]
    chart = curves(lines, "step", "nats", has_zero=True)
    picture = chart[chart.rindex("<svg") :]
    dashes = re.findall(r'class="curve" stroke="#123456"( stroke-dasharray="[\d ]+")?', picture)
    assert len(dashes) == 3 and len(set(dashes)) == 3
    assert picture.count("<circle") == 2 and chart.count('class="legend"') == 1
    [low, _, high] = places(picture)
    assert low[0][1] > high[0][1] and low[0][0] == 60 and low[1][0] == 864
    assert 'class="legend"' not in curves(lines[:1], "step", "nats")


@pytest.mark.parametrize(("xs", "ys"), [([5], [2.0]), ([1, 2], [0.0, 0.0]), ([3], [0.0])])
def test_few_numbers_make_a_chart_too(xs, ys):
    chart = curves([Line("a", xs, ys)], "step", "nats")
    assert "nan" not in chart and "inf" not in chart and len(places(chart)[0]) == len(xs)
    # A single point has no line that would show it.
    assert ("<circle" in chart) == (len(xs) == 1)
    assert "nan" not in scatter([Dot(xs[0], ys[0], ["a"])], [], "x", "y")


def test_bars_are_shares_of_the_widest_layer():
    picture = bars([10, 40], 40, 3)
    heights = re.findall(r'height="([\d.]+)" class="bar"', picture)
    assert [float(height) for height in heights] == [7.5, 30]
    assert picture.count('class="room"') == 3
