"""What Orbax must know of the steps that are there, to choose which of them to keep."""

import math
from collections.abc import Collection, Iterator
from typing import Any

from orbax.checkpoint import v1 as ocp

from matta_jax import storage
from matta_jax.checkpoints._steps import METADATA, saved_steps
from matta_jax.sharding import is_first, wait_for_all


class StepNames:
    """Shows Orbax some of the steps of a folder. It reads the losses of all that it sees, and may
    remove them: what is no checkpoint of the run, or cannot be read, is not for it.

    Args:
      steps: those that it sees beside what it writes itself.
    """

    def __init__(self, steps: Collection[int]):
        self._steps = frozenset(steps)
        self._names = ocp.path.step.standard_name_format()

    def build_name(self, step: int) -> str:
        """The name of the folder of a step."""
        return self._names.build_name(step)

    def find_all(self, base_path: Any) -> Iterator[Any]:
        """What Orbax knows of each step, when it opens the folder."""
        for step in sorted(self._steps):
            try:
                metadata = self.find_step(base_path, step)
            except Exception:  # Orbax raises many kinds for a document that is not what it wrote.
                continue
            # The time stands in the document, and Orbax cannot do without.
            if metadata.commit_timestamp is not None:
                yield metadata

    def find_step(self, base_path: Any, step: int) -> Any:
        """What Orbax knows of one step. Raises ValueError when it is not there."""
        return self._names.find_step(base_path, step)


def mend_losses(directory: storage.Path) -> list[int]:
    """Writes the file of Orbax anew that holds a step's loss, where it differs from the document of
    the step; returns the steps whose file can be read then.
    """
    if is_first():
        for step in saved_steps(directory):
            _mend_loss(directory / str(step))
    # The other processes read what the first one has mended.
    wait_for_all("matta_jax/losses")
    return [
        step for step in saved_steps(directory) if _filed_loss(directory / str(step)) is not None
    ]


def _mend_loss(folder: storage.Path) -> None:
    loss = _document_loss(folder)
    if loss is None or loss == _filed_loss(folder):
        return
    file = _file(folder)
    try:
        storage.make_folder(file.parent)
        storage.replace_text(file, storage.json_text({"loss": loss}))
    except OSError:
        # A full disk, or a file in the folder's place: the step is only not shown to Orbax.
        return


def _file(folder: storage.Path) -> storage.Path:
    return folder / "metrics" / "metrics"


def _document_loss(folder: storage.Path) -> float | None:
    """The loss of a step by its document; None where that cannot be read."""
    try:
        evaluation = storage.read_json(folder / METADATA)["custom_metadata"]["evaluation"]
        return _finite(evaluation["eval/student"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None


def _filed_loss(folder: storage.Path) -> float | None:
    """The loss of a step as Orbax reads it; None where it would stumble."""
    try:
        return _finite(storage.read_json(_file(folder))["loss"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None


def _finite(value: Any) -> float | None:
    return float(value) if storage.is_number(value) and math.isfinite(value) else None
