"""The report of a run, on a page: its table of models, accuracy against size, what was run and its
curves.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.checkpoints import saved_steps
from matta_jax.errors import UnsavedError, UserError
from matta_jax.evaluation._cosines import cosine_table
from matta_jax.evaluation._curves import Metrics, plot_curves
from matta_jax.evaluation._preconditioners import (
    describe_blocks,
    plot_blocks,
    preconditioner_blocks,
)
from matta_jax.evaluation._regime import regime_remarks
from matta_jax.evaluation._regret import regret_table, regrets
from matta_jax.evaluation._report_page import PageContent, report_page
from matta_jax.evaluation._run_facts import held_out, last_step, run_lines
from matta_jax.evaluation._scored import line_remarks, scored_models
from matta_jax.evaluation._sizes import (
    Row,
    figure_of,
    plot_sizes,
    plotted,
    sizes_table,
    stale_remarks,
    text_remarks,
)
from matta_jax.models import plan_of
from matta_jax.nesting import flatten, matrix_view
from matta_jax.reporting import markdown_table, new_figure, save_figure

_LONE = "Against models trained alone"
# Of every version.
_SECTIONS_OF_RUN = ("model", "nest", "objective", "optimizer", "data", "train")


@dataclasses.dataclass(frozen=True)
class Report:
    """What `report` wrote.

    Attributes:
      files: report.json, report.md, report.html where it was asked for, and the plots.
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
    html: bool = False,
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
      html: also write report.html: all of it on a page that needs no file beside it.

    Raises:
      UserError: no run in `workdir`, or a damaged one; no such weight or layer; or as `regrets`.
      UnsavedError: the report cannot be written; its table is in the error.

    Examples:
      >>> [path.name for path in matta_jax.report("runs/books").files]
      ['report.json', 'report.md', 'curves.png']
    """
    folder = _run_folder(workdir)
    config = _read_config(folder / "config.json")
    metrics = _read_metrics(folder / "metrics.jsonl")
    if notes is None:
        notes = _old_notes(folder / "report.json")
    baselines = notes.get("baselines", {})

    lone_rows = regrets(folder, lone_runs)
    rows = scored_models(folder)
    table = sizes_table(rows, baselines)
    preconditioners, block_figure = _preconditioners(folder, config, weight, layer)
    remarks = [
        *stale_remarks(rows),
        *text_remarks(rows),
        *line_remarks(folder, last_step(metrics)),
        *regime_remarks(config, last_step(metrics)),
    ]
    tables = {
        _LONE: regret_table(lone_rows),
        "Gradients": cosine_table(metrics),
        "Preconditioners": preconditioners,
    }
    # Made before anything is written: it reads more of the models than the table.
    sample = notes.get("sample", "")
    content = PageContent(folder, config, metrics, rows, baselines, tuple(remarks), tables, sample)
    page_text = report_page(content) if html else None

    with _saving(folder, table):
        pictures = _plots(folder, config, metrics, rows, baselines)
        if block_figure is not None:
            pictures.append(save_figure(block_figure, folder / "preconditioners.png"))
    remarks += _undrawn(config, rows, pictures)

    markdown = _markdown_of(content, [table, *remarks], pictures)

    files = [folder / "report.json", folder / "report.md"]
    with _saving(folder, table):
        document = {"models": rows, "notes": notes, "alone": lone_rows}
        storage.replace_text(files[0], storage.json_text(document, indent=2) + "\n")
        storage.replace_text(files[1], markdown)
        if page_text is not None:
            files.append(folder / "report.html")
            storage.replace_text(files[-1], page_text)
    shown = "\n\n".join(filter(None, [table, tables[_LONE]]))
    return Report(files + pictures, rows, shown, remarks)


def _run_folder(workdir: str | storage.Path) -> storage.Path:
    """Raises UserError where no run is there."""
    folder = storage.resolve(workdir)
    for file in ("config.json", "metrics.jsonl"):
        if not (folder / file).is_file():
            raise UserError(
                f"workdir={str(workdir)!r} holds no run ({file} is missing); name the workdir of a "
                "run"
            )
    return folder


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


def _sample(text: str) -> str | None:
    """A block of text; a fence inside of it would end it."""
    text = text.replace("```", "'''")
    return f"```\n{text}\n```" if text else None


def _markdown_of(
    content: PageContent, models: Sequence[str], pictures: Sequence[storage.Path]
) -> str:
    """The report as Markdown: of the models what it is told, and the pictures in their sections."""
    links = {picture.stem: f"![{picture.stem}]({picture.name})" for picture in pictures}
    tables = {name: [text, links.get(name.lower())] for name, text in content.tables.items()}
    run = [_run_table(content), _held_out_table(content), links.get("curves")]
    # In this order; a heading without text or picture is left out.
    sections: dict[str, list[str | None]] = {
        "Models": [*models, links.get("accuracy_vs_size")],
        _LONE: tables.pop(_LONE),
        "Run": run,
        **tables,
        "A sample from the TA": [_sample(content.sample)],
    }
    return _markdown(f"Report of {content.folder.name}", sections)


def _markdown(title: str, sections: dict[str, list[str | None]]) -> str:
    """Returns a page of sections, without those that have no part."""
    parts = [f"# {title}"]
    for heading, section_parts in sections.items():
        texts = [part for part in section_parts if part]
        if texts:
            parts += [f"## {heading}", *texts]
    return "\n\n".join(parts) + "\n"


def _run_table(content: PageContent) -> str:
    return markdown_table(["", ""], run_lines(content.config, content.metrics))


def _held_out_table(content: PageContent) -> str | None:
    evaluation = held_out(content.config, content.metrics)
    if evaluation is None:
        return None
    return markdown_table([evaluation.heading, ""], evaluation.lines, left=(0,))


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
