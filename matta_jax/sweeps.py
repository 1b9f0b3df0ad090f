"""A sweep in one call: a run for each set of overrides, one after another, and a table
of them all.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.config import Config
from matta_jax.errors import DivergenceError, UserError
from matta_jax.reporting import markdown_table
from matta_jax.training import train

Overrides = Mapping[str, Any]
"""`section.field` -> value."""


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
      name: its overrides, fit for a folder: `optimizer.learning_rate=0.001,train.seed=1`.
      overrides: as they were yielded.
      config: the run.
      workdir: its folder, of this name within the sweep's.
    """

    name: str
    overrides: Overrides
    config: Config
    workdir: storage.Path


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves.

    Attributes:
      rows: for each run its name, overrides, status (finished, diverged, failed, stopped or
        missing), step, and the last held-out Student and TA in nats per token.
      table: the rows, for people; also in `sweep.md` and `sweep.json` of the sweep's folder.
    """

    rows: list[dict[str, Any]]
    table: str


def plan_sweep(
    config: Config, overrides: Sequence[Overrides], workdir: str | storage.Path
) -> list[SweepRun]:
    """Checks all runs of a sweep before the first one starts.

    Raises:
      UserError: no overrides, two that are the same, or some that make no valid config.
    """
    if not overrides:
        raise UserError(
            "the sweep has no runs; its overrides must yield at least one, such as {'train.seed': "
            "0}"
        )
    folder = storage.resolve(workdir)
    runs: dict[str, SweepRun] = {}
    for i, run_overrides in enumerate(overrides, 1):
        # They come from a user's own function, which may yield anything.
        if not isinstance(run_overrides, Mapping):
            raise UserError(
                f"run {i} of the sweep is {run_overrides!r}; it must be a dict such as "
                "{'train.seed': 0}"
            )

        name = _run_name(run_overrides)
        if name in runs:
            first = list(runs).index(name) + 1
            raise UserError(f"runs {first} and {i} of the sweep are both {name}; drop one")

        try:
            run_config = config_lib.override(config, run_overrides)
        except UserError as error:
            raise UserError(f"run {i} of the sweep, {name}: {error}") from None
        runs[name] = SweepRun(name, run_overrides, run_config, folder / name)
    return list(runs.values())


def sweep(
    config: Config,
    overrides: Sequence[Overrides],
    workdir: str | storage.Path,
    *,
    log: Callable[[str], None] = print,
) -> SweepResult:
    """Trains one run after another in folders of their own, and gathers a table.

    Stopped at any point and called again, it goes on: finished runs are kept, the one that was
    stopped continues. A run that diverges is a row of the table, and so is one that fails; the
    others go on.

    Args:
      config: what all runs share.
      overrides: for each run `section.field` -> value.
      workdir: folder of the sweep.
      log: takes progress lines.

    Raises:
      UserError: as `plan_sweep` does.
    """
    runs = plan_sweep(config, overrides, workdir)
    endings: dict[str, str] = {}
    for i, run in enumerate(runs, 1):
        line = f"sweep {i}/{len(runs)}: {run.name}"
        if is_finished(run):
            log(f"{line}, is finished")
            continue
        log(line)

        try:
            result = train(run.config, run.workdir, log=log)
        # A result of the sweep, such as too high a learning rate, and no reason to stop it.
        except DivergenceError as error:
            log(f"diverged: {error}")
            endings[run.name] = "diverged"
        except UserError as error:
            log(f"failed: {error}")
            endings[run.name] = f"failed: {error}"
        else:
            # A signal stops the sweep with its run.
            if not result.finished:
                endings[run.name] = "stopped"
                break
    return gather_sweep(runs, endings)


def gather_sweep(runs: Sequence[SweepRun], endings: Mapping[str, str] | None = None) -> SweepResult:
    """Makes the table of a sweep from the folders of its runs, wherever they were trained.

    Args:
      runs: of `plan_sweep`.
      endings: by name how runs ended that did not finish, where that is known.

    Returns:
      The rows; they are written into the sweep's folder too.
    """
    rows = []
    for run in runs:
        scores = last_evaluation(run.workdir)
        status = "missing" if scores is None else "stopped"
        # How a run ended is told by who saw it; that it finished, by its folder.
        if endings is not None:
            status = endings.get(run.name, status)
        if is_finished(run):
            status = "finished"

        if scores is None:
            scores = {"step": None, "student": None, "ta": None}
        row = {"name": run.name, "overrides": dict(run.overrides), "status": status}
        rows.append(row | scores)

    table = _table(rows)
    folder = runs[0].workdir.parent
    # The folder is absent where no run was trained here yet.
    storage.make_folder(folder)
    storage.replace_text(folder / "sweep.json", storage.json_text(rows, indent=2) + "\n")
    storage.replace_text(folder / "sweep.md", table + "\n")
    return SweepResult(rows, table)


def is_finished(run: SweepRun) -> bool:
    """Whether this very run has ended. One of another config in its folder is not this one, as
    `train` then says.
    """
    try:
        config = storage.read_json(run.workdir / "config.json")
    except (OSError, ValueError):
        return False
    # The last step is always saved, and a checkpoint's folder is there once it is whole.
    last_checkpoint = run.workdir / "checkpoints" / str(run.config.train.num_steps)
    return config == config_lib.to_dict(run.config) and last_checkpoint.is_dir()


def last_evaluation(workdir: storage.Path) -> dict[str, Any] | None:
    """Step, Student and TA of the last evaluation of a run; None where there is none."""
    try:
        lines = storage.read_text(workdir / "metrics.jsonl").splitlines()
    except OSError:
        return None
    # Means of training stand between evaluations, so the last line need not be one.
    for line in reversed(lines):
        try:
            row = storage.parse_json(line)
        except ValueError:
            # The end of a run that was killed while it wrote.
            continue
        if "eval/student" in row:
            return {"step": row["step"], "student": row["eval/student"], "ta": row.get("eval/ta")}
    return None


def _run_name(overrides: Overrides) -> str:
    """A folder's name that tells a run's overrides."""
    parts = [f"{field}={_plain(value)}" for field, value in overrides.items()]
    return ",".join(parts) or "base"


def _plain(value: Any) -> str:
    """A value in characters that every file system and shell takes."""
    text = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown: a column for each field that any run overrides, and how it ended."""
    # A dict, since a set would lose their order.
    fields = list(dict.fromkeys(field for row in rows for field in row["overrides"]))
    lines = []
    for row in rows:
        overrides = row["overrides"]
        values = [_plain(overrides[field]) if field in overrides else "" for field in fields]
        step = "-" if row["step"] is None else str(row["step"])
        # The first word; why a run failed stands in the rows, and is too long for a table.
        status = row["status"].partition(":")[0]
        lines.append([*values, step, _nats(row["student"]), _nats(row["ta"]), status])

    table = markdown_table([*fields, "step", "held-out Student", "held-out TA", "status"], lines)
    finished_rows = [row for row in rows if row["status"] == "finished"]
    if not finished_rows:
        return table
    best = min(finished_rows, key=lambda row: row["student"])
    return f"{table}\n\nLowest held-out Student of the finished runs: {best['name']}"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
