"""The report of a run, on a page: its table of models, accuracy against size, what was run and its
curves.
"""

import dataclasses
import json
import math
import pathlib
import statistics
from typing import Any

from matta_jax import config as config_lib
from matta_jax.errors import UserError
from matta_jax.evaluation._curves import Metrics, divergence_label, plot_curves, unit
from matta_jax.evaluation._evaluate import write_json
from matta_jax.evaluation._preconditioners import (
    describe_blocks,
    plot_blocks,
    preconditioner_blocks,
)
from matta_jax.files import replace_text
from matta_jax.models import abstract_params, architecture_of, logical_axes
from matta_jax.nesting import SubModel, count, nest_of
from matta_jax.packages import MANIFEST
from matta_jax.reporting import markdown_table, new_figure, save_figure


@dataclasses.dataclass(frozen=True)
class Report:
    """What `report` wrote.

    Attributes:
      files: report.md, report.json and the plots.
      rows: one for each extracted and scored model, small to large.
      table: the rows, for people.
    """

    files: list[pathlib.Path]
    rows: list[dict[str, Any]]
    table: str


def report(
    workdir: str | pathlib.Path,
    *,
    notes: dict[str, Any] | None = None,
    weight: str | None = None,
    layer: int | None = None,
) -> Report:
    """Gathers a run's metrics and the scored models under its `models/` into a report.

    Args:
      workdir: folder of a run; the manifests in `models/*` hold the scores, `metrics.jsonl` the
        curves.
      notes: `baselines`, name to bits per byte, and `sample`, a text, to be told beside the table.
        None: those of the last report.
      weight, layer: whose preconditioners to draw, of a run with Shampoo: a path such as
        `blocks/0/mlp/w_in`, and a layer of the TA; by default this one, in the middle layer.

    Raises:
      UserError: no run in `workdir`; no such weight or layer.
    """
    folder = pathlib.Path(workdir).resolve()
    for file in ("config.json", "metrics.jsonl"):
        if not (folder / file).is_file():
            raise UserError(
                f"workdir={str(workdir)!r} holds no run ({file} is missing); name the workdir of a "
                "run"
            )
    config, metrics = _read_config(folder / "config.json"), _read_metrics(folder / "metrics.jsonl")
    if notes is None:
        notes = _old_notes(folder / "report.json")
    rows = _rows(folder / "models")
    table = _table(rows, notes.get("baselines", {}))
    files = [folder / "report.json", folder / "report.md"]
    pictures = _plots(folder, config, metrics, rows, notes.get("baselines", {}))
    section, more = _preconditioners(folder, config, weight, layer)
    pictures += more
    write_json(files[0], {"models": rows, "notes": notes})
    replace_text(files[1], _markdown(folder.name, config, metrics, table, pictures, notes, section))
    return Report(files + pictures, rows, table)


def _read_config(file: pathlib.Path) -> config_lib.Config:
    try:
        return config_lib.from_dict(json.loads(file.read_text()))
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged ({error}); start the run's command again in another workdir"
        ) from None


def _read_metrics(file: pathlib.Path) -> list[dict[str, float]]:
    try:
        return [json.loads(line) for line in file.read_text().splitlines()]
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); resume the run to mend it") from None


def _old_notes(file: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())["notes"]
    except (OSError, ValueError, KeyError):
        return {}


def _rows(models: pathlib.Path) -> list[dict[str, Any]]:
    rows = []
    for file in sorted(models.glob(f"*/{MANIFEST}")):
        try:
            manifest = json.loads(file.read_text())
            architecture, counts = manifest["architecture"], manifest["counts"]
            if manifest["scores"]:
                rows.append(
                    {
                        "name": manifest["spec"],
                        "layers": len(architecture["d_ff"]),
                        "d_model": architecture["d_model"],
                        "widths": architecture["d_ff"],
                        "parameters": counts["parameters"],
                        "mb": counts["bytes"] / 1e6,
                        "flops_per_token": counts["flops_per_token"],
                        "scores": {score["task"]: score["value"] for score in manifest["scores"]},
                    }
                )
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{file.parent} is damaged; remove it, and extract and evaluate that model again"
            ) from None
    return sorted(rows, key=lambda row: (row["parameters"], row["name"]))


@dataclasses.dataclass(frozen=True)
class _Figure:
    """What models are compared by: a task's figure, its heading, and whether more is better."""

    task: str
    heading: str
    axis: str
    rises: bool

    def of(self, row: dict[str, Any]) -> float | None:
        """The row's first figure of this task."""
        return next(
            (value for task, value in row["scores"].items() if task.startswith(f"{self.task}:")),
            None,
        )


_BITS = _Figure(
    "bits_per_byte", "bits/byte", "held-out bits per byte (lower is better)", rises=False
)
_AUC = _Figure("auc", "AUC", "held-out AUC (higher is better)", rises=True)


def _figure(rows: list[dict[str, Any]]) -> _Figure:
    """Bits per byte, or of scorers the AUC."""
    return _AUC if any(_AUC.of(row) is not None for row in rows) else _BITS


def _runs(widths: list[int]) -> str:
    return str(widths[0]) if len(set(widths)) == 1 else " ".join(map(str, widths))


def _table(rows: list[dict[str, Any]], baselines: dict[str, float]) -> str:
    if not rows:
        return "No extracted model has been scored: matta-extract, then matta-evaluate"
    figure = _figure(rows)
    header = [
        "model",
        "layers",
        "d_model",
        "d_ff",
        "parameters",
        "MB",
        "MFLOP/token",
        figure.heading,
    ]
    lines = []
    for row in rows:
        value = figure.of(row)
        lines.append(
            [
                row["name"],
                str(row["layers"]),
                str(row["d_model"]),
                _runs(row["widths"]),
                f"{row['parameters']:,}",
                f"{row['mb']:.2f}",
                f"{row['flops_per_token'] / 1e6:.2f}",
                "-" if value is None else f"{value:.4f}",
            ]
        )
    lines += [[name, "", "", "", "", "", "", f"{bits:.4f}"] for name, bits in baselines.items()]
    return markdown_table(header, lines, left=(0, 3))


def _markdown(
    name: str,
    config: config_lib.Config,
    metrics: Metrics,
    table: str,
    pictures: list[pathlib.Path],
    notes: dict[str, Any],
    section: str,
) -> str:
    shown = {picture.stem: f"![{picture.stem}]({picture.name})" for picture in pictures}
    sample = notes.get("sample", "").replace("```", "'''")
    sections = {
        "Models": [table, shown.get("accuracy_vs_size")],
        "Run": [_run_table(config, metrics), _last_table(config, metrics), shown.get("curves")],
        "Preconditioners": [section, shown.get("preconditioners")],
        "A sample from the TA": [f"```\n{sample}\n```" if sample else None],
    }
    parts = [f"# Report of {name}"]
    for heading, some in sections.items():
        if any(some):
            parts += [f"## {heading}", *filter(None, some)]
    return "\n\n".join(parts) + "\n"


def _run_table(config: config_lib.Config, metrics: Metrics) -> str:
    """What was trained, on what, how far and how fast."""
    nest, data, objective = nest_of(config), config.data, config.objective
    architecture = architecture_of(config.model, nest, nest.ta)
    shapes, axes = abstract_params(architecture), logical_axes(architecture)

    def described(sub_model: SubModel) -> str:
        counts = count(shapes, axes, sub_model, head_dim=nest.head_dim, seq_len=data.seq_len)
        sizes = (
            f"{len(sub_model.layers)} layers, d_model {sub_model.d_model}, "
            f"d_ff {_runs(list(sub_model.d_ff))}"
        )
        return f"{sizes}: {counts.parameters:,} parameters"

    lines = [["Student", described(nest.student)]]
    if nest.ta != nest.student:
        lines.append(["TA", described(nest.ta)])
        ramp = (
            ""
            if objective.ramp_shape == "constant"
            else f", after a ramp over {objective.distill_ramp:.0%} of the run"
        )
        lines.append(
            [
                "distillation",
                f"{divergence_label(config)}, weight {objective.distill_weight:g}{ramp}",
            ]
        )
    teacher = config.teacher.model or config.teacher.labels
    if teacher is not None:
        lines.append(["Teacher", teacher])
    lines.append(
        ["optimiser", f"{config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}"]
    )
    lines.append(["data", f"{data.source}, tokenizer {data.tokenizer}"])
    done = metrics[-1]["step"] if metrics else 0
    batch = (
        f"{data.batch_size} examples"
        if config.model.name == "scorer"
        else f"{data.batch_size} x {data.seq_len} tokens"
    )
    lines.append(["steps", f"{done:,} of {config.train.num_steps:,}, of {batch}"])
    timed = [row for row in metrics if "tokens_per_second" in row]
    if timed:
        median = {
            name: statistics.median(row[name] for row in timed)
            for name in ("tokens_per_second", "mfu")
        }
        speed = (
            f"{median['tokens_per_second']:,.0f} tokens/s, {median['mfu']:.0%} of the peak "
            "(medians)"
        )
        skipped = sum(row.get("skipped_steps", 0) for row in metrics)
        lines.append(["speed", speed + (f"; {skipped:.0f} steps skipped" if skipped else "")])
    return markdown_table(["", ""], lines)


def _last_table(config: config_lib.Config, metrics: Metrics) -> str | None:
    """The last evaluation in training."""
    last = next((row for row in reversed(metrics) if "eval/student" in row), None)
    if last is None:
        return None
    names = {
        "student": f"loss of the Student, {unit(config)}",
        "ta": f"loss of the TA, {unit(config)}",
        "distill": f"{divergence_label(config)}, {unit(config)}",
        "agreement": "share where both find the same most likely",
    }
    found = {
        name.removeprefix("eval/"): value
        for name, value in last.items()
        if name.startswith("eval/")
    }
    if nest_of(config).student == nest_of(config).ta:
        found.pop("agreement", None)  # Of a model with itself.
    shown = dict.fromkeys(name for name in (*names, *found) if name in found)
    lines = [[names.get(name, name), f"{found[name]:.4f}"] for name in shown]
    return markdown_table([f"held out, step {last['step']:,}", ""], lines, left=(0,))


def _plots(
    folder: pathlib.Path,
    config: config_lib.Config,
    metrics: Metrics,
    rows: list[dict[str, Any]],
    baselines: dict[str, float],
) -> list[pathlib.Path]:
    curves, sizes = new_figure(figsize=(8, 8)), new_figure(figsize=(7, 4.5))
    if curves is None:
        return []  # The report is its tables alone.
    pictures = [plot_curves(folder / "curves.png", curves, config, metrics)]
    if any(_figure(rows).of(row) is not None for row in rows):
        pictures.append(_plot_sizes(folder / "accuracy_vs_size.png", sizes, rows, baselines))
    return pictures


def _preconditioners(
    folder: pathlib.Path, config: config_lib.Config, weight: str | None, layer: int | None
) -> tuple[str, list[pathlib.Path]]:
    """Returns a section on the preconditioners of one layer and its picture; nothing for a run
    without Shampoo.
    """
    asked = weight is not None or layer is not None
    if not asked and (
        config.optimizer.name != "shampoo" or not any((folder / "checkpoints").glob("[0-9]*"))
    ):
        return "", []
    weight = weight or "blocks/0/mlp/w_in"
    layer = (config.nest.num_layers or config.model.num_layers) // 2 if layer is None else layer
    blocks = preconditioner_blocks(str(folder), weight, layer)
    section = f"Of {weight}, layer {layer}, medians over blocks:\n\n"
    section += describe_blocks(blocks, config.shampoo.epsilon)
    figure = new_figure(figsize=(10, 8))
    if figure is None:
        return section, []
    plot_blocks(figure, blocks, f"Shampoo's statistics of {weight}, layer {layer}")
    return section, [save_figure(figure, folder / "preconditioners.png")]


def _plot_sizes(
    path: pathlib.Path, figure, rows: list[dict[str, Any]], baselines: dict[str, float]
) -> pathlib.Path:
    axes = figure.subplots()
    figure_of = _figure(rows)
    points = [
        (row["parameters"] / 1e6, value, row["name"])
        for row in rows
        if (value := figure_of.of(row)) is not None
    ]
    best, front = -math.inf if figure_of.rises else math.inf, []
    for size, value, _ in points:  # By size, as the rows are.
        if value > best if figure_of.rises else value < best:
            best = value
            front.append((size, value))
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color="0.8", zorder=1, label="best at its size")
        axes.legend(frameon=False)
    ends = {"student": ("C0", "Student"), "ta": ("C1", "TA")}
    middle = (points[0][0] + points[-1][0]) / 2
    for size, bits, name in points:
        colour, label = ends.get(name, ("0.45", name))
        on_front = (size, bits) in front
        left = (
            on_front or size > middle
        )  # Below the falling front, or to the inside of the picture.
        axes.scatter([size], [bits], color=colour, zorder=3)
        axes.annotate(
            label,
            (size, bits),
            xytext=(-5 if left else 5, -12 if on_front else 6),
            textcoords="offset points",
            fontsize=8,
            ha="right" if left else "left",
        )
    low, high = min(bits for _, bits, _ in points), max(bits for _, bits, _ in points)
    pad = 0.15 * max(high - low, 0.01)
    axes.set_ylim(low - pad, high + pad)
    axes.margins(x=0.15)
    axes.set_xlabel("parameters, millions")
    axes.set_ylabel(figure_of.axis)
    known = ", ".join(
        f"{name} {value:.3f}" if figure_of.rises else f"{name} {value:.2f}"
        for name, value in baselines.items()
    )
    axes.set_title(
        "One training run, many models" + (f"\non the same text: {known}" if known else ""),
        fontsize=10,
    )
    return save_figure(figure, path)
