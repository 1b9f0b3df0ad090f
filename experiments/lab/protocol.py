"""What an experiment is, and how one is loaded by its name.

An experiment is a folder of `experiments/` whose `experiment.py` has an `EXPERIMENT`.
"""

import abc
import importlib
import importlib.util
import pathlib
from typing import Any, ClassVar

from lab.runs import Lab
from matta_jax.config import Config, from_dict
from matta_jax.errors import UserError, did_you_mean

FOLDER = pathlib.Path(__file__).parents[1]
"""Of all experiments."""
Results = dict[str, Any]
"""What an experiment measured, as `results.json` holds it; `rows` has a row for each run."""


class Experiment(abc.ABC):
    """A question, the runs that answer it, and how the answer is shown.

    `run.py` calls, in this order, `write_data`, `config`, `measure`, and then `show`; without data
    `show` alone, with the stored results.

    Attributes:
      name: of its folder.
      seeds: each condition is trained with each of them.
    """

    name: str
    seeds: tuple[int, ...] = (0, 1, 2)
    runs_of: ClassVar[str | None] = None
    """The experiment in whose folder its runs lie; None: its own. A run's name there is its
    overrides, so that experiments may share a folder only where their `config` is the same."""

    @abc.abstractmethod
    def write_data(self, data: pathlib.Path, workdir: pathlib.Path) -> None:
        """Writes the files that its runs read, unless they are there.

        Args:
          data: the folder of `--data_dir`.
          workdir: the folder of its runs.

        Raises:
          UserError: the data is missing or damaged, or the folder cannot be written.
        """

    @abc.abstractmethod
    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> Config:
        """Returns the config of its runs, before their overrides; arguments as of `write_data`."""

    @abc.abstractmethod
    def measure(self, lab: Lab) -> Results:
        """Trains what is not trained yet, and returns what was measured.

        Raises:
          UserError: runs of seeds that this process does not train are missing.
        """

    @abc.abstractmethod
    def show(self, results: Results, folder: pathlib.Path) -> str:
        """Draws the plots of `measure`'s results into `folder`, and returns the tables, in
        Markdown.
        """

    def runs_folder(self, workdir: pathlib.Path) -> pathlib.Path:
        """The folder of its runs within that of all experiments."""
        return workdir / (self.runs_of or self.name)


def experiment_names() -> list[str]:
    """Returns the names of all experiments, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/experiment.py"))


def load_experiment(name: str) -> Experiment:
    """Returns the experiment of a name.

    Raises:
      UserError: there is none of this name, or its file has no `EXPERIMENT` of this name.
    """
    names = experiment_names()
    if name not in names:
        raise UserError(
            f"--experiment={name!r} must be one of {', '.join(names)}{did_you_mean(name, names)}"
        )

    module = importlib.import_module(f"{name}.experiment")
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UserError(
            f"{name}/experiment.py must have EXPERIMENT, an instance of lab.protocol.Experiment"
        )
    if experiment.name != name:
        raise UserError(
            f"{name}/experiment.py has an EXPERIMENT of the name {experiment.name!r}; it must be "
            "that of its folder"
        )
    return experiment


def shipped_config(name: str) -> Config:
    """The config of a file of `configs/`."""
    file = FOLDER.parent / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_config", file)
    assert spec is not None and spec.loader is not None, "a file of Python has a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_dict(module.get_config().to_dict())
