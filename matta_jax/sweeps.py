"""A sweep in one call: a run for each set of overrides, one after another, and a table
of them all.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matta_jax import config as config_lib
from matta_jax import stops, storage
from matta_jax.checkpoints import saved_steps
from matta_jax.config import Config
from matta_jax.errors import DivergenceError, UnsavedError, UserError
from matta_jax.reporting import markdown_table
from matta_jax.training import train

Overrides = Mapping[str, Any]
"""`section.field` -> value."""

# Of a label of Kubernetes, which jobs are found by; files may have longer names.
_LONGEST_NAME = 63
_LONGEST_OLDER_NAME = 255


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
      name: its overrides, fit for a folder, a shell and a label:
        `optimizer.learning_rate-0.001--train.seed-1`.
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
      rows: for each run its name, overrides, status (finished, diverged, failed, stopped,
        missing, or another config in its folder), step, and the last held-out Student and TA in
        nats per token; figures that are unknown or no numbers are None.
      table: the rows, for people; also in `sweep.md` and `sweep.json` of the sweep's folder.
    """

    rows: list[dict[str, Any]]
    table: str


def plan_sweep(
    config: Config, overrides: Sequence[Overrides], workdir: str | storage.Path
) -> list[SweepRun]:
    """Checks all runs of a sweep before the first one starts.

    Raises:
      UserError: no overrides, two that are the same or would have one folder, or some that make
        no valid config.
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

        name = _run_name(run_overrides, folder)
        try:
            run_config = config_lib.override(config, run_overrides)
        except UserError as error:
            raise UserError(f"run {i} of the sweep, {name}: {error}") from None
        run = SweepRun(name, run_overrides, run_config, folder / name)
        for first, earlier in enumerate(runs.values(), 1):
            _check_distinct(earlier, run, f"runs {first} and {i} of the sweep")
        runs[name] = run
    return list(runs.values())


def _check_distinct(earlier: SweepRun, run: SweepRun, where: str) -> None:
    """Raises UserError when two runs are the same, or would have one folder."""
    has_same_name = earlier.name == run.name
    # In another order they have another name.
    is_same = has_same_name or earlier.overrides == run.overrides
    if is_same and earlier.config == run.config:
        raise UserError(f"{where} are both {run.name}; drop one")
    if has_same_name:
        raise UserError(
            f"{where} differ, but would both have the folder {run.name!r}, in whose name only "
            "letters, digits and _ . - stand as they are; make two sweeps of them"
        )


def sweep(
    config: Config,
    overrides: Sequence[Overrides],
    workdir: str | storage.Path,
    *,
    index: int | None = None,
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
      index: of the run to train alone, from 0, where others train the rest; the table is then of
        what is there.
      log: takes progress lines.

    Raises:
      UserError: as `plan_sweep` does, or no run has this index.

    Examples:
      >>> overrides = [{"train.seed": 0}, {"train.seed": 1}]
      >>> len(matta_jax.sweep(config, overrides, "runs/sweep", log=logging.info).rows)
      2
    """
    runs = plan_sweep(config, overrides, workdir)
    if index is not None and not 0 <= index < len(runs):
        raise UserError(
            f"index={index} must be from 0 to {len(runs) - 1}: the sweep has {len(runs)} runs"
        )
    endings: dict[str, str] = {}
    for i, run in enumerate(runs, 1):
        if index not in (None, i - 1):
            continue
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
            if index is None and i < len(runs):
                stops.raise_remembered()
    # What others train at the same time they tell by their own folders.
    return gather_sweep(runs, endings, writes=index is None)


def gather_sweep(
    runs: Sequence[SweepRun],
    endings: Mapping[str, str] | None = None,
    *,
    writes: bool = True,
) -> SweepResult:
    """Makes the table of a sweep from the folders of its runs, wherever they were trained.

    Args:
      runs: of `plan_sweep`.
      endings: by name how runs ended that did not finish, where that is known.
      writes: whether the rows are written into the sweep's folder too.

    Raises:
      UnsavedError: they cannot be written; it holds the table.
    """
    folder = runs[0].workdir.parent
    earlier_rows = _earlier_rows(folder / "sweep.json")
    rows = []
    for run in runs:
        row = _row(run, (endings or {}).get(run.name))
        earlier = earlier_rows.get(run.name, {})
        # Why a run failed is in no folder of its own. It holds as long as the run went no further.
        is_unseen = endings is None and row["status"] in ("missing", "stopped")
        if is_unseen and earlier.get("step") == row["step"] and _ended_badly(earlier):
            row["status"] = earlier["status"]
        rows.append(row)

    table = _table(rows)
    if not writes:
        return SweepResult(rows, table)
    try:
        with storage.writing("workdir", folder, "make room, and gather again by --gather"):
            # The folder is absent where no run was trained here yet.
            storage.make_folder(folder)
            storage.replace_text(folder / "sweep.json", storage.json_text(rows, indent=2) + "\n")
            storage.replace_text(folder / "sweep.md", table + "\n")
    except UserError as error:
        raise UnsavedError(str(error), table) from None
    return SweepResult(rows, table)


def _row(run: SweepRun, ending: str | None) -> dict[str, Any]:
    """What is known of a run: of its ending who saw it tells, and of its end the folder."""
    scores: dict[str, Any] | None = None
    status = "missing"
    config = _stored_config(run)
    if config is not None and not _is_config_of(run, config):
        # Figures of another run must not stand under this one's name.
        status = "another config"
    else:
        scores = last_evaluation(run.workdir)
        status = status if scores is None else "stopped"
    if is_finished(run):
        status = "finished"
    elif ending is not None:
        status = ending

    if scores is None:
        scores = {"step": None, "student": None, "ta": None}
    return {"name": run.name, "overrides": json_overrides(run), "status": status} | scores


def json_overrides(run: SweepRun) -> dict[str, Any]:
    """The overrides as the config took them: a user's function may yield what JSON has not."""
    nested = config_lib.to_dict(run.config)
    values = {}
    for field in run.overrides:
        section, _, name = field.partition(".")
        values[field] = nested[section][name]
    return values


def _earlier_rows(file: storage.Path) -> dict[str, Mapping[str, Any]]:
    """The rows of the last table, by name; none where there is no such file, or it is damaged: it
    is written anew.
    """
    try:
        rows = storage.read_json(file)
    except (OSError, ValueError):
        return {}
    if not isinstance(rows, list):
        return {}
    names = [row.get("name") if isinstance(row, dict) else None for row in rows]
    return {name: row for name, row in zip(names, rows, strict=True) if isinstance(name, str)}


def _ended_badly(row: Mapping[str, Any]) -> bool:
    status = row.get("status")
    return isinstance(status, str) and status.startswith(("failed: ", "diverged"))


def _stored_config(run: SweepRun) -> Any:
    """The config in a run's folder; None where there is none to be read."""
    try:
        return storage.read_json(run.workdir / "config.json")
    except (OSError, ValueError):
        return None


def _is_config_of(run: SweepRun, stored: Any) -> bool:
    """Whether a stored config is that of a run. A field that is not stored had its default: a newer
    version knows more fields.
    """
    try:
        return bool(config_lib.from_dict(stored) == run.config)
    except (UserError, ValueError, AttributeError, TypeError, KeyError):
        return False


def is_finished(run: SweepRun) -> bool:
    """Whether this very run has ended. One of another config in its folder is not this one, as
    `train` then says.
    """
    if not _is_config_of(run, _stored_config(run)):
        return False
    # The last step is always saved.
    return run.config.train.num_steps in saved_steps(run.workdir / "checkpoints")


def last_evaluation(workdir: storage.Path) -> dict[str, Any] | None:
    """Step, Student and TA of the last evaluation of a run, each None where it was no number; None
    where there is no evaluation.
    """
    try:
        text = storage.read_bytes(workdir / "metrics.jsonl").decode(errors="replace")
    except OSError:
        return None
    # Means of training stand between evaluations, so the last line need not be one.
    for line in reversed(text.splitlines()):
        try:
            row = storage.parse_json(line)
        except ValueError:
            # The end of a run that was killed while it wrote.
            continue
        if not isinstance(row, dict) or "eval/student" not in row:
            continue
        step = row.get("step")
        # A line of something else, whatever stands in it.
        if storage.is_whole(step):
            student, ta = _number(row["eval/student"]), _number(row.get("eval/ta"))
            return {"step": step, "student": student, "ta": ta}
    return None


def _number(value: Any) -> float | None:
    """A figure; None for what is none. Losses that were not finite stand as null."""
    return value if storage.is_number(value) else None


def _run_name(overrides: Overrides, folder: storage.Path) -> str:
    """A folder's name that tells a run's overrides; of a sweep that an older version began, the
    name that it gave.
    """
    pairs = [(_plain(field), _plain(value)) for field, value in overrides.items()]
    older_name = ",".join(f"{field}={value}" for field, value in pairs)
    is_short = len(older_name.encode()) <= _LONGEST_OLDER_NAME
    if pairs and is_short and (folder / older_name).exists():
        return older_name
    name = "--".join(f"{field}-{value}" for field, value in pairs) or "base"
    if len(name) <= _LONGEST_NAME and name[-1].isalnum():
        return name
    # Told apart by a hash of all of it: what is cut off may be all that differs.
    digest = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    return f"{name[: _LONGEST_NAME - len(digest) - 1]}-{digest}"


def _plain(value: Any) -> str:
    """A value in characters that every file system, shell and label takes."""
    try:
        text = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    except ValueError:
        # Of more digits than Python writes; the config refuses it, by its own words.
        text = "number"
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown: a column for each field that any run overrides, and how it ended."""
    # A dict, since a set would lose their order.
    fields = list(dict.fromkeys(field for row in rows for field in row["overrides"]))
    lines = []
    for row in rows:
        overrides = row["overrides"]
        values = [_plain(overrides[field]) if field in overrides else "" for field in fields]
        step = "-" if row["step"] is None else str(row["step"])
        # The first word; why a run failed stands below, and is too long for a table.
        status = row["status"].partition(":")[0]
        lines.append([*values, step, _nats(row["student"]), _nats(row["ta"]), status])

    table = markdown_table([*fields, "step", "held-out Student", "held-out TA", "status"], lines)
    reasons = [f"{row['name']} {row['status']}" for row in rows if ":" in row["status"]]
    table = "\n\n".join([table, *reasons])
    # A loss that is no number is not the lowest.
    finished_rows = [
        row for row in rows if row["status"] == "finished" and row["student"] is not None
    ]
    if not finished_rows:
        return table
    best = min(finished_rows, key=lambda row: row["student"])
    return f"{table}\n\nLowest held-out Student of the finished runs: {best['name']}"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
