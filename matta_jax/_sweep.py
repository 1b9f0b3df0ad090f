"""A sweep in one call: a run for each set of overrides, one after another, and a table
of them all.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matta_jax import config as config_lib
from matta_jax.config import Config
from matta_jax.errors import DivergenceError, UserError
from matta_jax.files import replace_text
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
    workdir: pathlib.Path


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
    config: Config, overrides: Sequence[Overrides], workdir: str | pathlib.Path
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
    runs: dict[str, SweepRun] = {}
    for i, one in enumerate(overrides, 1):
        if not isinstance(one, Mapping):
            raise UserError(
                f"run {i} of the sweep is {one!r}; it must be a dict such as {{'train.seed': 0}}"
            )
        name = ",".join(f"{field}={_plain(value)}" for field, value in one.items()) or "base"
        if name in runs:
            raise UserError(
                f"runs {list(runs).index(name) + 1} and {i} of the sweep are both {name}; drop one"
            )
        try:
            changed = config_lib.override(config, one)
        except UserError as error:
            raise UserError(f"run {i} of the sweep, {name}: {error}") from None
        runs[name] = SweepRun(name, one, changed, pathlib.Path(workdir).resolve() / name)
    return list(runs.values())


def sweep(
    config: Config,
    overrides: Sequence[Overrides],
    workdir: str | pathlib.Path,
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
        done = is_finished(run)
        log(f"sweep {i}/{len(runs)}: {run.name}" + (", is finished" if done else ""))
        if done:
            continue
        try:
            finished = train(run.config, run.workdir, log=log).finished
        except DivergenceError as error:
            log(f"diverged: {error}")
            endings[run.name] = "diverged"
        except UserError as error:
            log(f"failed: {error}")
            endings[run.name] = f"failed: {error}"
        else:
            if not finished:
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
        last = last_evaluation(run.workdir)
        unfinished = "missing" if last is None else "stopped"
        status = "finished" if is_finished(run) else (endings or {}).get(run.name, unfinished)
        scores = {"step": None, "student": None, "ta": None} if last is None else last
        rows.append(
            {"name": run.name, "overrides": dict(run.overrides), "status": status, **scores}
        )
    table = _table(rows)
    folder = runs[0].workdir.parent
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "sweep.json", json.dumps(rows, indent=2) + "\n")
    replace_text(folder / "sweep.md", table + "\n")
    return SweepResult(rows, table)


def _plain(value: Any) -> str:
    text = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text)


def is_finished(run: SweepRun) -> bool:
    """Whether this very run has ended; that of another config is not this one, which `train` then
    says.
    """
    try:
        config = json.loads((run.workdir / "config.json").read_text())
    except (OSError, ValueError):
        return False
    last = run.workdir / "checkpoints" / str(run.config.train.num_steps)
    return config == config_lib.to_dict(run.config) and last.is_dir()


def last_evaluation(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Step, Student and TA of the last evaluation of a run; None where there is none."""
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:  # The end of a run that was killed while it wrote.
            continue
        if "eval/student" in row:
            return {"step": row["step"], "student": row["eval/student"], "ta": row.get("eval/ta")}
    return None


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    fields = list(dict.fromkeys(field for row in rows for field in row["overrides"]))
    number = lambda value: "-" if value is None else f"{value:.4f}"
    lines = []
    for row in rows:
        values = [
            _plain(row["overrides"][field]) if field in row["overrides"] else "" for field in fields
        ]
        step = "-" if row["step"] is None else str(row["step"])
        status = row["status"].partition(":")[0]
        lines.append([*values, step, number(row["student"]), number(row["ta"]), status])
    table = markdown_table([*fields, "step", "held-out Student", "held-out TA", "status"], lines)
    best = min(
        (row for row in rows if row["status"] == "finished"),
        key=lambda row: row["student"],
        default=None,
    )
    return table + (
        f"\n\nLowest held-out Student of the finished runs: {best['name']}" if best else ""
    )
