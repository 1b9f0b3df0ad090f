"""The report of a run as a page of HTML: by itself, without a script, and read in any browser."""

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matta_jax import storage
from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.evaluation._charts import Dot, Line, bars, curves, scatter
from matta_jax.evaluation._curves import Metrics, panels_of
from matta_jax.evaluation._html import Html, page, table, tag
from matta_jax.evaluation._run_facts import held_out, run_lines
from matta_jax.evaluation._sizes import (
    NOT_SCORED,
    Figure,
    Row,
    baselines_at,
    figure_of,
    front_of,
    marked,
    plotted,
    points_of,
    size_lines,
    width_text,
)
from matta_jax.packages import read_manifest, usage

# Matplotlib's colours, which the curves name; they stand on light and on dark ground.
_COLOURS = {
    "C0": "#1f77b4",
    "C1": "#e67300",
    "C2": "#2ca02c",
    "C3": "#d62728",
    "C4": "#9467bd",
    "C5": "#a5705e",
    "C6": "#d05fa8",
    "C7": "#7f7f7f",
    "C8": "#999b15",
    "C9": "#12a5b5",
}
_ENDS = {"student": "Student", "ta": "TA"}


@dataclasses.dataclass(frozen=True)
class PageContent:
    """What a page tells of a run.

    Attributes:
      folder: of the run.
      config: of it.
      metrics: of its steps.
      rows: its scored models, small to large.
      baselines: what trivial methods reach, by name.
      remarks: a line each.
      tables: more sections, of text with aligned columns; those without text are left out.
      sample: a text of the TA.
    """

    folder: storage.Path
    config: Config
    metrics: Metrics
    rows: Sequence[Row]
    baselines: dict[str, float]
    remarks: Sequence[str]
    tables: Mapping[str, str | None]
    sample: str


def report_page(content: PageContent) -> str:
    """The page, as text. Raises UserError where a model's manifest is damaged."""
    manifests = {}
    for row in content.rows:
        path = content.folder / "models" / row["folder"]
        manifests[path] = read_manifest(path, str(path)).manifest
    sections: dict[str, Sequence[Html | None]] = {
        "Accuracy against size": [_sizes(content), _models(content), *_remarks(content.remarks)],
        "Widths of each layer": [_widths(content.rows)],
        "Training": [*_curves(content), _run(content), _held_out(content)],
        "Certificates": [_certificates(manifests), _engines(manifests)],
        "How to load each model": _usage(manifests),
    }
    for heading, text in content.tables.items():
        sections[heading] = [tag("pre", text)] if text else []
    if content.sample:
        sections["A sample from the TA"] = [tag("pre", content.sample, class_="text")]
    return page(f"Report of {content.folder.name}", sections)


def _sizes(content: PageContent) -> Html | None:
    """The figure of each model over its parameters; None where no model has it."""
    rows = plotted(content.rows)
    if not rows:
        return None
    figure = figure_of(rows)
    dots = [_dot(row, figure) for row in rows]
    front = [(point.millions, point.value) for point in front_of(points_of(rows, figure), figure)]
    picture = scatter(dots, front, "parameters, millions", figure.axis)
    words = [
        f"{name} {value:.4f}" for name, value in baselines_at(figure, content.baselines).items()
    ]
    baselines = f" On the same text: {', '.join(words)}." if words else ""
    note = (
        "Point at a model, or go to it by the Tab key, for its size, cost and score. Squares are "
        f"the Student and the TA; the dashed line joins the best at their size.{baselines}"
    )
    return tag("div", picture, tag("p", note, class_="faint"))


def _dot(row: Row, figure: Figure) -> Dot:
    value = figure.of(row)
    assert value is not None
    words = [
        row["name"],
        f"{row['layers']} layers, d_model {row['d_model']}, d_ff {width_text(row['widths'])}",
        f"{row['parameters']:,} parameters, {row['mb']:.3g} MB",
        f"{row['flops_per_token'] / 1e6:.3g} MFLOP a token",
        f"{value:.4f} {figure.heading}",
    ]
    is_end = row["name"] in _ENDS
    label = _ENDS.get(row["name"], str(row["name"]))
    # A long spec would cover what is beside it; pointed at, it is told.
    return Dot(row["parameters"] / 1e6, value, words, is_end, label if len(label) <= 24 else "")


def _models(content: PageContent) -> Html:
    if not content.rows:
        return tag("p", NOT_SCORED)
    header, lines = size_lines(content.rows, content.baselines)
    return table(header, lines, flush=(0, 3))


def _remarks(remarks: Sequence[str]) -> list[Html]:
    return [tag("p", remark, class_="faint") for remark in remarks]


def _widths(rows: Sequence[Row]) -> Html | None:
    """A bar for each layer of each model, of the widest layer and the most layers of all."""
    most = max((width for row in rows for width in row["widths"]), default=0)
    if not most:
        return None
    count = max(len(row["widths"]) for row in rows)
    parts: list[Html] = []
    for row in rows:
        parts.append(tag("div", marked(row)))
        parts.append(bars(row["widths"], most, count))
        parts.append(tag("div", width_text(row["widths"]), class_="faint"))
    note = f"d_ff of each layer, first to last; a frame is {most:,} wide."
    return tag("div", tag("p", note, class_="faint"), tag("div", *parts, class_="widths"))


def _curves(content: PageContent) -> list[Html]:
    charts = []
    for panel in panels_of(content.config):
        lines = [line for line in map(_line_of(content.metrics), panel.curves) if line.xs]
        if lines:
            charts.append(curves(lines, "step", panel.label, has_zero=panel.zero))
    return charts


def _line_of(metrics: Metrics) -> Any:
    """`line(curve)`: a curve of a panel with the run's numbers."""

    def line(curve: Any) -> Line:
        name, label, style = curve
        rows = [row for row in metrics if row.get(name) is not None]
        colour = _COLOURS.get(style["color"], "currentColor")
        xs = [float(row["step"]) for row in rows]
        return Line(label, xs, [row[name] for row in rows], colour, "marker" in style)

    return line


def _run(content: PageContent) -> Html:
    return table(("", ""), run_lines(content.config, content.metrics), flush=(0, 1))


def _held_out(content: PageContent) -> Html | None:
    evaluation = held_out(content.config, content.metrics)
    return None if evaluation is None else table((evaluation.heading, ""), evaluation.lines)


def _certificates(manifests: Mapping[storage.Path, dict[str, Any]]) -> Html | None:
    """What each extraction was proved by."""
    lines = []
    for path, manifest in manifests.items():
        if "certificate" in manifest:
            with _read(path):
                certificate = manifest["certificate"]
                rows, length = certificate["batch"]
                difference = str(certificate["max_difference"])
                batch = f"{rows} x {length}, {certificate['backend']}"
            lines.append(
                [
                    manifest["spec"],
                    difference,
                    batch,
                    f"matta-extract --verify={shlex.quote(str(path))}",
                ]
            )
    if not lines:
        return None
    note = (
        "The largest difference between a model and the TA's own slice, over all activations of a "
        "batch; the command computes it again."
    )
    header = ("model", "largest difference", "positions, computed on", "command")
    return tag("div", tag("p", note, class_="faint"), table(header, lines, flush=(0, 2, 3)))


def _engines(manifests: Mapping[storage.Path, dict[str, Any]]) -> Html | None:
    """What other engines computed with each model."""
    lines = []
    for path, manifest in manifests.items():
        with _read(path):
            for name, certificate in sorted(manifest.get("engines", {}).items()):
                lines.append(
                    [
                        manifest["spec"],
                        f"{name} {certificate['version']}",
                        f"{certificate['format']}, {certificate['numbers']}",
                        f"{certificate['max_difference']:.2g}",
                        f"{certificate['mean_difference']:.2g}",
                        f"{certificate['limit']:.2g} ({certificate['limit_of']})",
                    ]
                )
    if not lines:
        return None
    header = ("model", "engine", "format", "log-p differ at most", "on average", "limit")
    return table(header, lines, flush=(0, 1, 2))


@contextlib.contextmanager
def _read(path: storage.Path) -> Iterator[None]:
    """A part of a manifest that is not as it should be is damage, and no traceback."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError):
        raise UserError(
            f"model={str(path)!r} is damaged (its certificate cannot be read); extract it again"
        ) from None


def _usage(manifests: Mapping[storage.Path, dict[str, Any]]) -> list[Html]:
    parts: list[Html] = []
    for path, manifest in manifests.items():
        codes = [tag("pre", code.rstrip()) for code in usage(manifest, path)]
        summary = tag("summary", f"{manifest['spec']} ({manifest['format']}): {path}")
        parts.append(tag("details", summary, *codes, open=None if parts else ""))
    return parts
