"""The report of a run, on a page: its table of models, accuracy against size, what was run and its
curves.
"""

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.checkpoints import saved_steps
from matta_jax.errors import UnsavedError, UserError
from matta_jax.evaluation._cosines import cosine_table
from matta_jax.evaluation._curves import Metrics, divergence_label, plot_curves, unit
from matta_jax.evaluation._preconditioners import (
    describe_blocks,
    plot_blocks,
    preconditioner_blocks,
)
from matta_jax.evaluation._regime import overlap_text, regime_remarks, tokens_per_parameter
from matta_jax.evaluation._regret import regret_table, regrets
from matta_jax.evaluation._scored import scored_models
from matta_jax.evaluation._sizes import (
    Row,
    figure_of,
    plot_sizes,
    plotted,
    sizes_table,
    stale_remarks,
    text_remarks,
    width_text,
)
from matta_jax.models import plan_of
from matta_jax.nesting import RESIDUAL, flatten, matrix_view, nest_of
from matta_jax.reporting import markdown_table, new_figure, save_figure

# Of every version.
_SECTIONS_OF_RUN = ("model", "nest", "objective", "optimizer", "data", "train")


@dataclasses.dataclass(frozen=True)
class Report:
    """What `report` wrote.

    Attributes:
      files: report.md, report.json and the plots.
      rows: one for each extracted and scored model, small to large.
      table: the rows, for people; and beside models trained alone, where such runs are given.
      remarks: a line each on what is not as a reader may take it: models of other weights than the
        run's, a run that has read too little, and plots that are not drawn.
    """

    files: list[storage.Path]
    rows: list[dict[str, Any]]
    table: str
    remarks: list[str] = dataclasses.field(default_factory=list)


def report(
    workdir: str | storage.Path,
    *,
    notes: dict[str, Any] | None = None,
    weight: str | None = None,
    layer: int | None = None,
    lone_runs: Sequence[str | storage.Path] = (),
) -> Report:
    """Gathers a run's metrics and the scored models under its `models/` into a report.

    Args:
      workdir: folder of a run; the manifests in `models/*` hold the scores, `metrics.jsonl` the
        curves.
      notes: `baselines`, name to bits per byte, and `sample`, a text, to be told beside the table.
        None: those of the last report.
      weight, layer: whose preconditioners to draw, of a run with Shampoo: a path such as
        `blocks/0/mlp/w_in`, and a layer of the TA; by default this one, in the middle layer.
      lone_runs: folders of runs of a lone model of one of its sizes, which it is compared with.

    Raises:
      UserError: no run in `workdir`, or a damaged one; no such weight or layer; or as `regrets`.
      UnsavedError: the report cannot be written; its table is in the error.
    """
    folder = storage.resolve(workdir)
    for file in ("config.json", "metrics.jsonl"):
        if not (folder / file).is_file():
            raise UserError(
                f"workdir={str(workdir)!r} holds no run ({file} is missing); name the workdir of a "
                "run"
            )
    config = _read_config(folder / "config.json")
    metrics = _read_metrics(folder / "metrics.jsonl")
    if notes is None:
        notes = _old_notes(folder / "report.json")
    baselines = notes.get("baselines", {})

    lone_rows = regrets(folder, lone_runs)
    rows = scored_models(folder)
    table = sizes_table(rows, baselines)
    preconditioners, block_figure = _preconditioners(folder, config, weight, layer)
    with _saving(folder, table):
        pictures = _plots(folder, config, metrics, rows, baselines)
        if block_figure is not None:
            pictures.append(save_figure(block_figure, folder / "preconditioners.png"))
    remarks = [
        *stale_remarks(rows),
        *text_remarks(rows),
        *regime_remarks(config, _last_step(metrics)),
        *_undrawn(config, rows, pictures),
    ]

    # A heading without text or picture is left out.
    links = {picture.stem: f"![{picture.stem}]({picture.name})" for picture in pictures}
    sections = {
        "Models": [table, *remarks, links.get("accuracy_vs_size")],
        "Against models trained alone": [regret_table(lone_rows)],
        "Run": [_run_table(config, metrics), _last_table(config, metrics), links.get("curves")],
        "Gradients": [cosine_table(metrics)],
        "Preconditioners": [preconditioners, links.get("preconditioners")],
        "A sample from the TA": [_sample(notes)],
    }
    markdown = _markdown(f"Report of {folder.name}", sections)

    files = [folder / "report.json", folder / "report.md"]
    with _saving(folder, table):
        document = {"models": rows, "notes": notes, "alone": lone_rows}
        storage.replace_text(files[0], storage.json_text(document, indent=2) + "\n")
        storage.replace_text(files[1], markdown)
    shown = "\n\n".join(filter(None, [table, regret_table(lone_rows)]))
    return Report(files + pictures, rows, shown, remarks)


@contextlib.contextmanager
def _saving(folder: storage.Path, table: str) -> Iterator[None]:
    """Turns a failure to write within the block into an error that holds the table."""
    try:
        with storage.writing("workdir", folder, "make room there, or copy the run"):
            yield
    except UserError as error:
        raise UnsavedError(str(error), table) from None


def _read_config(file: storage.Path) -> config_lib.Config:
    try:
        stored_config = storage.read_json(file)
        # A run writes all sections; those that are missing would be read as defaults.
        missing = [name for name in _SECTIONS_OF_RUN if name not in stored_config]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        return config_lib.from_dict(stored_config)
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} is damaged ({error}); start the run's command again in another workdir"
        ) from None


def _read_metrics(file: storage.Path) -> list[dict[str, float]]:
    rows = []
    try:
        lines = storage.read_text(file).splitlines()
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); resume the run to mend it") from None
    for i, line in enumerate(lines):
        try:
            rows.append(_metrics_row(line))
        except ValueError as error:
            raise UserError(
                f"{file} is damaged in line {i + 1} ({error}); resume the run to mend it"
            ) from None
    return rows


def _metrics_row(line: str) -> dict[str, float]:
    """A row: numbers by name, one of them the step. Raises ValueError for anything else."""
    row = storage.parse_json(line)
    if not isinstance(row, dict) or not storage.is_whole(row.get("step")):
        raise ValueError("a row is an object with a whole number `step`")
    for name, value in row.items():
        # Null stands for a number that was not finite.
        if value is not None and not storage.is_number(value):
            raise ValueError(f"{name} is no number")
    return {name: value for name, value in row.items() if value is not None}


def _old_notes(file: storage.Path) -> dict[str, Any]:
    try:
        notes = storage.read_json(file)["notes"]
        return notes if isinstance(notes, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _sample(notes: dict[str, Any]) -> str | None:
    """A block of text; a fence inside of it would end it."""
    sample = notes.get("sample", "").replace("```", "'''")
    return f"```\n{sample}\n```" if sample else None


def _markdown(title: str, sections: dict[str, list[str | None]]) -> str:
    """Returns a page of sections, without those that have no part."""
    parts = [f"# {title}"]
    for heading, section_parts in sections.items():
        texts = [part for part in section_parts if part]
        if texts:
            parts += [f"## {heading}", *texts]
    return "\n\n".join(parts) + "\n"


def _run_table(config: config_lib.Config, metrics: Metrics) -> str:
    """What was trained, on what, how far and how fast."""
    nest = nest_of(config)
    lines = _sub_model_lines(config, _last_step(metrics))
    if nest.ta != nest.student:
        lines.append(["distillation", _distillation(config)])

    teacher = config.teacher.model or config.teacher.labels
    if teacher is not None:
        lines.append(["Teacher", teacher])

    optimizer = config.optimizer
    lines.append(["optimiser", f"{optimizer.name}, learning rate {optimizer.learning_rate:g}"])
    lines.append(["data", f"{config.data.source}, tokenizer {config.data.tokenizer}"])

    overlap = overlap_text(metrics)
    if overlap is not None:
        lines.append(["held-out documents that stand in what is trained on too", overlap])

    num_steps = config.train.num_steps
    lines.append(["steps", f"{_last_step(metrics):,} of {num_steps:,}, of {_batch(config)}"])

    speed = _speed(metrics)
    if speed is not None:
        lines.append(["speed", speed])
    return markdown_table(["", ""], lines)


def _last_step(metrics: Metrics) -> int:
    return int(metrics[-1]["step"]) if metrics else 0


def _sub_model_lines(config: config_lib.Config, step: int) -> list[list[str]]:
    """Sizes and parameters of the Student, of the TA where it is another, and of what a run names
    beside them; and what each has read.
    """
    plan = plan_of(config)
    nest = plan.nest
    sub_models = {"Student": nest.student}
    if nest.ta != nest.student:
        sub_models["TA"] = nest.ta
    sub_models |= nest.others

    lines = []
    for name, sub_model in sub_models.items():
        sizes = (
            f"{sub_model.num_layers} layers, d_model {sub_model.sizes[RESIDUAL]}, "
            f"d_ff {width_text(sub_model.along('d_ff'))}"
        )
        text = f"{sizes}: {plan.count(sub_model).parameters:,} parameters"
        if not config.model.reads_examples:
            text += f", {tokens_per_parameter(config, sub_model, step):.2g} tokens for each"
        lines.append([name, text])
    return lines


def _distillation(config: config_lib.Config) -> str:
    objective = config.objective
    text = f"{divergence_label(config)}, weight {objective.distill_weight:g}"
    if objective.ramp_shape == "constant":
        return text
    return f"{text}, after a ramp over {objective.distill_ramp:.0%} of the run"


def _batch(config: config_lib.Config) -> str:
    if config.model.reads_examples:
        return f"{config.data.batch_size} examples"
    return f"{config.data.batch_size} x {config.data.seq_len} tokens"


def _speed(metrics: Metrics) -> str | None:
    """Medians over the run; None where no row has them."""
    rows = [row for row in metrics if "tokens_per_second" in row and "mfu" in row]
    if not rows:
        return None
    tokens_per_second = statistics.median(row["tokens_per_second"] for row in rows)
    mfu = statistics.median(row["mfu"] for row in rows)
    text = f"{tokens_per_second:,.0f} tokens/s, {mfu:.0%} of the peak (medians)"

    num_skipped = sum(row.get("skipped_steps", 0) for row in metrics)
    if num_skipped:
        text += f"; {num_skipped:.0f} steps skipped"
    return text


def _last_table(config: config_lib.Config, metrics: Metrics) -> str | None:
    """The last evaluation in training."""
    rows = [row for row in metrics if "eval/student" in row]
    if not rows:
        return None
    last = rows[-1]

    # These come first, in this order and under these headings.
    headings = {
        "student": f"loss of the Student, {unit(config)}",
        "ta": f"loss of the TA, {unit(config)}",
        "distill": f"{divergence_label(config)}, {unit(config)}",
        "agreement": "share where both find the same most likely",
    }
    values = {}
    for name, value in last.items():
        if name.startswith("eval/"):
            values[name.removeprefix("eval/")] = value

    # A model always agrees with itself.
    nest = nest_of(config)
    if nest.student == nest.ta:
        values.pop("agreement", None)

    names = [name for name in headings if name in values]
    names += [name for name in values if name not in headings]
    lines = [[headings.get(name, name), f"{values[name]:.4f}"] for name in names]
    return markdown_table([f"held out, step {last['step']:,}", ""], lines, left=(0,))


def _plots(
    folder: storage.Path,
    config: config_lib.Config,
    metrics: Metrics,
    rows: list[Row],
    baselines: dict[str, float],
) -> list[storage.Path]:
    """Draws the curves, and accuracy against size where models are scored."""
    # Without Matplotlib the report is its tables alone.
    curves = new_figure(figsize=(8, 8))
    if curves is None:
        return []
    pictures = [plot_curves(folder / "curves.png", curves, config, metrics)]

    rows = plotted(rows)
    if rows:
        sizes = new_figure(figsize=(7, 4.5))
        pictures.append(plot_sizes(folder / "accuracy_vs_size.png", sizes, rows, baselines))
    return pictures


def _undrawn(config: config_lib.Config, rows: list[Row], pictures: list[storage.Path]) -> list[str]:
    """A line that names the plots which are not drawn, each with its reason; none where all are."""
    task = figure_of(rows).task
    reasons = {
        "curves.png": "",
        "accuracy_vs_size.png": f"no model of the newest checkpoint has a score of {task}",
    }
    if config.optimizer.name == "shampoo":
        reasons["preconditioners.png"] = "no checkpoint is saved"
    drawn = {picture.name for picture in pictures}
    missing = {name: reason for name, reason in reasons.items() if name not in drawn}
    if new_figure((1.0, 1.0)) is None:
        missing = dict.fromkeys(missing, "no Matplotlib: pip install 'matta_jax[plots]'")
    parts = [f"{name} ({reason})" for name, reason in missing.items()]
    return [f"Not drawn: {', '.join(parts)}"] if parts else []


def _widening_weight(config: config_lib.Config) -> str:
    """The first matrix of a layer that writes to an axis which mixes choose: of GPT-2 the first one
    of the MLP.
    """
    plan = plan_of(config)
    for path, names in flatten(plan.axes).items():
        matrix = matrix_view(names)
        if matrix is not None and {names[i] for i in matrix[1]} & set(plan.nest.by_layer):
            return path
    raise ValueError(f"no matrix writes to any of {plan.nest.by_layer}")


def _preconditioners(
    folder: storage.Path, config: config_lib.Config, weight: str | None, layer: int | None
) -> tuple[str, Any]:
    """Returns a section on the preconditioners of one layer and its picture, None where that is not
    drawn; nothing for a run without Shampoo.
    """
    # Who asks for a weight of a run without any is told so by `preconditioner_blocks`.
    is_asked_for = weight is not None or layer is not None
    has_state = bool(saved_steps(folder / "checkpoints"))
    if not is_asked_for and (config.optimizer.name != "shampoo" or not has_state):
        return "", None

    weight = weight or _widening_weight(config)
    if layer is None:
        num_layers = config.nest.num_layers or config.model.num_layers
        layer = num_layers // 2
    blocks = preconditioner_blocks(str(folder), weight, layer)
    section = f"Of {weight}, layer {layer}, medians over blocks:\n\n"
    section += describe_blocks(blocks, config.shampoo.epsilon)

    figure = new_figure(figsize=(10, 8))
    if figure is not None:
        plot_blocks(figure, blocks, f"Shampoo's statistics of {weight}, layer {layer}")
    return section, figure
