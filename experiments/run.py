"""Runs an experiment: trains what is not trained yet, measures, stores the figures, and makes its
table and plots.

    python experiments/run.py --experiment=baseline --data_dir=/data --workdir=runs/experiments
    python experiments/run.py --experiment=baseline    # the table and plots again, from the stored
    figures

`--data_dir` holds `books/`, `bpe/`, `lambada/` and others, as `experiments/README.md` says. Stopped
at any point, the same command goes on. All experiments may share one `--workdir`: what two of them
need is trained once, and those with a config of their own have a folder there. `--seeds=0` trains
some seeds alone, so that several processes can share the work; no two of them may train the same
run.
"""

import datetime
import importlib
import json
import os
import pathlib
import platform
import re

import laptop
from absl import flags

from matta_jax.bin import _app
from matta_jax.errors import UserError, did_you_mean
from matta_jax.files import replace_text

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

FOLDER = pathlib.Path(__file__).parent
_PART = re.compile(r"(?<=<!-- results -->\n).*(?=<!-- /results -->)", re.DOTALL)


def measure(name, experiment):
    """Trains and measures; stores the figures."""
    workdir, data = pathlib.Path(_WORKDIR.value).resolve(), pathlib.Path(_DATA_DIR.value).resolve()
    config_of = getattr(experiment, "config_of", laptop.config_of)
    if config_of is not laptop.config_of:
        workdir = (
            workdir / name
        )  # A run's name is its overrides: those of another config would have the same.
    getattr(experiment, "write_data", laptop.write_excerpts)(data, workdir)
    lab = laptop.Lab(config_of(data, workdir), data, workdir, _SEEDS.value, _app.say)
    results = experiment.measure(lab)
    about = {
        "command": f"python experiments/run.py --experiment={name} --data_dir=DATA",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
        "device": laptop.device(),
    }
    replace_text(FOLDER / name / "results.json", json.dumps(about | results, indent=1) + "\n")


def show(name, experiment):
    """Makes the plots and the table, which goes into the experiment's README too; returns the
    table.
    """
    stored = FOLDER / name / "results.json"
    if not stored.is_file():
        raise UserError(f"{stored} is missing; name --data_dir, to train and measure")
    table = experiment.show(json.loads(stored.read_text()), FOLDER / name)
    readme = FOLDER / name / "README.md"
    if readme.is_file():
        replace_text(readme, _PART.sub(lambda _: f"\n{table}\n\n", readme.read_text()))
    return table


def main():
    """Measures, and shows."""
    known = sorted(path.parent.name for path in FOLDER.glob("*/experiment.py"))
    name = _app.required(_EXPERIMENT, "baseline")
    if name not in known:
        raise UserError(
            f"--experiment={name!r} must be one of {', '.join(known)}{did_you_mean(name, known)}"
        )
    experiment = importlib.import_module(f"{name}.experiment")
    if _DATA_DIR.value is not None:
        measure(name, experiment)
    print(show(name, experiment))


if __name__ == "__main__":
    _app.run(main)
