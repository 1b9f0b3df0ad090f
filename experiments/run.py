"""Runs an experiment: trains what is not trained yet, measures, stores the figures, and makes its
table and plots.

    python experiments/run.py --experiment=ladder --data_dir=/data --workdir=runs/experiments
    python experiments/run.py --experiment=ladder    # table and plots again, of stored figures

`--data_dir` holds `books/`, `bpe/`, `lambada/` and others, as `experiments/README.md` says. Stopped
at any point, the same command goes on. All experiments may share one `--workdir`: what two of them
need is trained once, and those with a config of their own have a folder there. `--seeds=0` trains
some seeds alone, so that several processes can share the work; no two of them may train the same
run.
"""

import datetime
import json
import os
import pathlib
import platform
import re
from collections.abc import Sequence

import jax
from absl import flags
from lab.protocol import FOLDER, Experiment, load_experiment
from lab.runs import Lab

from matta_jax.bin import required, run, say
from matta_jax.errors import UserError
from matta_jax.storage import replace_text

_EXPERIMENT = flags.DEFINE_string(
    "experiment", None, "A folder of experiments/ with an experiment.py."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of the data; without it, the stored figures are read."
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/experiments", "Folder of the runs.")
_SEEDS = flags.DEFINE_multi_integer(
    "seeds", None, "A seed to train now, or several; by default all."
)

_RESULTS_PART = re.compile(r"(?<=<!-- results -->\n).*(?=<!-- /results -->)", re.DOTALL)


def measure(
    experiment: Experiment,
    data: pathlib.Path,
    workdir: pathlib.Path,
    *,
    seeds: Sequence[int] | None = None,
    folder: pathlib.Path = FOLDER,
) -> None:
    """Trains and measures; stores the figures.

    Args:
      experiment: what is measured.
      data: the folder of `--data_dir`.
      workdir: the folder of the runs of all experiments.
      seeds: those to train now; None: all.
      folder: of all experiments; `NAME/results.json` is written there.
    """
    data = data.resolve()
    runs = experiment.runs_folder(workdir.resolve())

    experiment.write_data(data, runs)
    lab = Lab(experiment.config(data, runs), data, runs, seeds, say)
    results = experiment.measure(lab)

    text = json.dumps(_provenance(experiment.name) | results, indent=1)
    replace_text(folder / experiment.name / "results.json", text + "\n")


def _provenance(name: str) -> dict[str, str]:
    """What made the results."""
    return {
        "command": f"python experiments/run.py --experiment={name} --data_dir=DATA",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
        "device": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
    }


def show(experiment: Experiment, *, folder: pathlib.Path = FOLDER) -> str:
    """Makes the plots and the table from the stored figures; the table goes into the experiment's
    README too. Returns the table.

    Args:
      experiment: what is shown.
      folder: of all experiments.

    Raises:
      UserError: it was not measured yet.
    """
    home = folder / experiment.name
    stored = home / "results.json"
    if not stored.is_file():
        raise UserError(f"{stored} is missing; name --data_dir, to train and measure")

    table = experiment.show(json.loads(stored.read_text()), home)

    readme = home / "README.md"
    if readme.is_file():
        # A function, since a string would have its backslashes read as references.
        text = _RESULTS_PART.sub(lambda _: f"\n{table}\n\n", readme.read_text())
        replace_text(readme, text)
    return table


def main() -> None:
    """Measures, and shows."""
    experiment = load_experiment(required(_EXPERIMENT, "ladder"))

    if _DATA_DIR.value is not None:
        data, workdir = pathlib.Path(_DATA_DIR.value), pathlib.Path(_WORKDIR.value)
        measure(experiment, data, workdir, seeds=_SEEDS.value)

    print(show(experiment))


if __name__ == "__main__":
    run(main)
