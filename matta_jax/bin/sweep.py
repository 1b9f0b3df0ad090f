"""Trains a sweep: one run for each set of overrides that `sweep()` of a config file yields.

matta-sweep --config=quickstart --workdir=runs/rates [--config.train.num_steps=100]
matta-sweep --config=quickstart --workdir=runs/rates --print   (a launch command a line)
matta-sweep --config=quickstart --workdir=runs/rates --index=2 (that run alone, from 0)
matta-sweep --config=quickstart --workdir=runs/rates --gather  (the table of all)

In the config file, beside `get_config`:

    def sweep():
        for rate in (1e-3, 2e-3, 4e-3):
            yield {"optimizer.learning_rate": rate}
"""

import runpy
import shlex
from typing import Any

from absl import flags
from ml_collections import config_flags

import matta_jax
from matta_jax import storage, sweeps
from matta_jax.bin import _app
from matta_jax.bin._config_file import config_name
from matta_jax.errors import UserError

_CONFIG = _app.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep; each run has its own in it.")
_PRINT = flags.DEFINE_bool(
    "print", False, "Print the command of each run, for a pod's launcher, and run nothing."
)
_JSON = flags.DEFINE_bool(
    "json", False, "With --print: a JSON list of index, name, overrides, workdir and command."
)
_INDEX = flags.DEFINE_integer(
    "index",
    None,
    "Train this run alone, from 0, as of an array of jobs: --index=$SLURM_ARRAY_TASK_ID. Make the "
    "table by --gather when all have ended.",
)
_GATHER = flags.DEFINE_bool(
    "gather", False, "Make the table of the runs that are there, and run nothing."
)


def _main() -> None:
    config = _app.checked_config(_CONFIG)
    workdir = _app.required(_WORKDIR, "runs/sweep")
    overrides = _overrides()
    _check_flags()

    if _PRINT.value:
        runs = sweeps.plan_sweep(config, overrides, workdir)
        if _JSON.value:
            print(storage.json_text([_described(i, run) for i, run in enumerate(runs)], indent=2))
            return
        for run in runs:
            print(_command(run))
        return
    if _GATHER.value:
        runs = sweeps.plan_sweep(config, overrides, workdir)
        print(sweeps.gather_sweep(runs).table)
        return

    result = matta_jax.sweep(config, overrides, workdir, index=_INDEX.value, log=_app.say)
    print(f"\n{result.table}")

    # After the table: the runs that ended well are worth seeing.
    failures = [row for row in result.rows if row["status"].startswith("failed")]
    if failures:
        name, status = failures[0]["name"], failures[0]["status"]
        raise UserError(f"{len(failures)} of {len(result.rows)} runs failed; {name} {status}")
    if any(row["status"] == "stopped" for row in result.rows):
        raise UserError("the sweep was stopped; start the same command again to go on")


def _check_flags() -> None:
    """Raises UserError for flags that have no effect together."""
    if _JSON.value and not _PRINT.value:
        raise UserError("--json is without effect without --print; add that, or leave it out")
    chosen = [flag.name for flag in (_PRINT, _GATHER) if flag.value]
    if _INDEX.value is not None:
        chosen.append("index")
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]} and --{chosen[1]} do different things; give one of them")


def _described(index: int, run: sweeps.SweepRun) -> dict[str, Any]:
    return {
        "index": index,
        "name": run.name,
        "overrides": sweeps.json_overrides(run),
        "workdir": str(run.workdir),
        "command": _command(run),
    }


def _overrides() -> list[Any]:
    """What `sweep()` of the config file yields."""
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    function = runpy.run_path(file).get("sweep")
    if function is None:
        raise UserError(
            f"--config={file!r} has no sweep(); define one that yields dicts such as "
            "{'train.seed': 0}"
        )

    # The user's own code may raise anything.
    try:
        return list(function())
    except Exception as error:
        raise UserError(
            f"sweep() of --config={file!r} raises {type(error).__name__}: {error}"
        ) from None


def _command(run: sweeps.SweepRun) -> str:
    """The `matta-train` of one run: the overrides of this command line, with the run's own over
    them.
    """
    holder = flags.FLAGS["config"]
    file = config_name(config_flags.get_config_filename(holder))
    values = config_flags.get_override_values(holder) | dict(run.overrides)

    words = ["matta-train", f"--config={file}"]
    words += [f"--config.{field}={value}" for field, value in values.items()]
    words.append(f"--workdir={run.workdir}")
    return shlex.join(words)


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
