"""Charts as SVG inside a page: they need no script, and say in shapes what they say in colours."""

import dataclasses
import math
from collections.abc import Sequence

from matta_jax.evaluation._html import Html, joined, tag

# Of a chart, in units that a page scales.
_WIDTH = 880
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 12, 42
_MOST_POINTS = 400
# Dashes tell curves apart where colours do not.
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
_MARGIN = 0.08


@dataclasses.dataclass(frozen=True)
class Dot:
    """A point of a scatter, and what is told of it.

    Attributes:
      x, y: its place.
      words: lines that show when it is pointed at; the first is its name.
      is_end: whether it is one of those that stand out.
      label: beside it; none: nothing.
    """

    x: float
    y: float
    words: Sequence[str]
    is_end: bool = False
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
      label: in the legend.
      xs, ys: its points.
      colour: as CSS has it.
      has_marks: whether each point is drawn too.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str = "currentColor"
    has_marks: bool = False


@dataclasses.dataclass(frozen=True)
class _Scale:
    """Numbers from `low` to `high`, drawn from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 2)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About so many round numbers from low to high: a power of ten, or 2 or 5 times that, apart."""
    if not low < high:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def thinned(
    xs: Sequence[float], ys: Sequence[float], most: int = _MOST_POINTS
) -> tuple[list[float], list[float]]:
    """At most so many points: each the mean of as many after each other."""
    size = math.ceil(len(xs) / most)
    groups = [slice(i, i + size) for i in range(0, len(xs), size)]
    means = [[sum(values[group]) / len(values[group]) for group in groups] for values in (xs, ys)]
    return means[0], means[1]


def scatter(
    dots: Sequence[Dot], front: Sequence[tuple[float, float]], x_label: str, y_label: str
) -> Html:
    """Dots, the line through some of them, and their words where they are pointed at, by the mouse
    or the keyboard. There is at least one.
    """
    height = 340
    xs, ys = _scales([dot.x for dot in dots], [dot.y for dot in dots], height)
    parts: list[Html | None] = [_axes(xs, ys, height, x_label)]
    if len(front) > 1:
        parts.append(tag("polyline", points=_points(xs, ys, front), class_="front"))
    for dot in dots:
        x, y = xs(dot.x), ys(dot.y)
        # The ends are squares: they stand out in grey too.
        if dot.is_end:
            shape = tag("rect", x=x - 5, y=y - 5, width=10, height=10, class_="model end")
        else:
            shape = tag("circle", cx=x, cy=y, r=5, class_="model")
        is_right = x > _WIDTH / 2
        place = {"x": x + (-10 if is_right else 10), "y": y + (16 if is_right else -8)}
        anchor = "end" if is_right else "start"
        label = tag("text", dot.label, class_="label", text_anchor=anchor, **place)
        parts += [shape, label if dot.label else None]
    picture = _picture(parts, height, f"{y_label} over {x_label}, {len(dots)} models")
    tips = [_tip(xs(dot.x) / _WIDTH, ys(dot.y) / height, dot.words) for dot in dots]
    return tag("figure", tag("figcaption", y_label), tag("div", picture, *tips, class_="chart"))


def curves(lines: Sequence[Line], x_label: str, y_label: str, *, has_zero: bool = False) -> Html:
    """Curves of a unit, with a legend where there are several. There is at least one point."""
    height = 240
    every_x = [x for line in lines for x in line.xs]
    every_y = [y for line in lines for y in line.ys] + [0.0] * has_zero
    xs, ys = _scales(every_x, every_y, height, margin=0.0)
    parts, legend = [_axes(xs, ys, height, x_label)], []
    if has_zero:
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=ys(0), y2=ys(0), class_="axis"))
    for i, line in enumerate(lines):
        stroke = {"stroke": line.colour, "stroke_dasharray": _DASHES[i % len(_DASHES)] or None}
        points = list(zip(*thinned(line.xs, line.ys), strict=True))
        parts.append(tag("polyline", points=_points(xs, ys, points), class_="curve", **stroke))
        marks = points if line.has_marks or len(points) == 1 else []
        for x, y in marks:
            parts.append(tag("circle", cx=xs(x), cy=ys(y), r=3, fill=line.colour))
        sample = [tag("line", x1=0, x2=34, y1=5, y2=5, class_="curve", **stroke)]
        if line.has_marks:
            sample.append(tag("circle", cx=17, cy=5, r=3, fill=line.colour))
        key = tag("svg", *sample, viewBox="0 0 34 10", aria_hidden="true")
        legend.append(tag("span", key, line.label))
    picture = _picture(parts, height, f"{y_label} over {x_label}")
    keys = tag("div", *legend, class_="legend") if len(lines) > 1 else None
    return tag("figure", tag("figcaption", y_label), keys, picture)


def bars(sizes: Sequence[int], most: int, count: int) -> Html:
    """A bar for each size, of frames for `count` of them, each as high as `most`."""
    step = 300 / max(count, 1)
    width = max(step - 2, step / 2)
    parts = []
    for i in range(count):
        box = {"x": round(i * step, 2), "width": round(width, 2)}
        parts.append(tag("rect", y=0, height=30, class_="room", **box))
        if i < len(sizes):
            size = round(30 * sizes[i] / most, 2)
            parts.append(tag("rect", y=30 - size, height=size, class_="bar", **box))
    return tag("svg", *parts, viewBox="-1 -1 302 32", role="img", aria_label="widths of layers")


def _scales(
    xs: Sequence[float], ys: Sequence[float], height: float, margin: float = _MARGIN
) -> tuple[_Scale, _Scale]:
    x_low, x_high = _range(xs, margin)
    y_low, y_high = _range(ys, _MARGIN)
    across = _Scale(x_low, x_high, _LEFT, _WIDTH - _RIGHT)
    return across, _Scale(y_low, y_high, height - _BOTTOM, _TOP)


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """A little more than the values cover; never nothing."""
    low, high = min(values), max(values)
    if low == high:
        room = 0.1 * abs(low) or 1.0
        return low - room, high + room
    return low - margin * (high - low), high + margin * (high - low)


def _axes(xs: _Scale, ys: _Scale, height: float, x_label: str) -> Html:
    bottom = height - _BOTTOM
    parts = []
    for value in ticks(ys.low, ys.high):
        y = ys(value)
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="axis"))
        parts.append(tag("text", _number(value), x=_LEFT - 8, y=y + 4, text_anchor="end"))
    for value in ticks(xs.low, xs.high, 8):
        place = {"x": xs(value), "y": bottom + 17, "text_anchor": "middle"}
        parts.append(tag("text", _number(value), **place))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(tag("text", x_label, x=middle, y=height - 6, text_anchor="middle"))
    return joined(parts)


def _number(value: float) -> str:
    """As an axis has it: without the noise of binary fractions."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{round(value, 6):,.10g}"


def _points(xs: _Scale, ys: _Scale, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{xs(x)},{ys(y)}" for x, y in points)


def _picture(parts: Sequence[Html | None], height: float, title: str) -> Html:
    return tag("svg", *parts, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=title)


def _tip(x: float, y: float, words: Sequence[str]) -> Html:
    """A spot that can be pointed at, and the words beside it; they stay inside of the page."""
    side = f"left:{100 * x:.2f}%" if x < 0.5 else f"right:{100 * (1 - x):.2f}%"
    spot = {"style": f"left:{100 * x:.2f}%;top:{100 * y:.2f}%", "aria_label": ", ".join(words)}
    tip = tag("div", "\n".join(words), class_="tip", style=f"{side};top:{100 * y:.2f}%")
    return joined([tag("button", type_="button", class_="spot", **spot), tip])
