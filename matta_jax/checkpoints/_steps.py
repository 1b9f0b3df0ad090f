"""Which steps a folder of checkpoints holds, and how a user names one."""

from collections.abc import Iterable
from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError

# The file of a checkpoint that Orbax keeps our JSON document in.
METADATA = "_CHECKPOINT_METADATA"
# What tells a checkpoint of a run from a folder that only has a number for a name: one of these is
# there, even where damage took the other.
_MARKS = (METADATA, "params")
# In a bucket, where nothing can be renamed, what Orbax writes last.
COMMITTED = "commit_success.txt"
# Of a step; more would not fit what a program counts in.
_MAX_DIGITS = 12


def step_number(text: str) -> int | None:
    """The step that a text names: digits 0 to 9, at most 12; None for any other text."""
    # `isdigit` alone takes `²` and digits of every script, which `int` reads or trips over.
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        return None
    return int(text)


def saved_steps(directory: storage.Path) -> list[int]:
    """The steps that are wholly written, rising; none where there is no folder.

    Orbax writes a step under another name and renames it at the end; in a bucket it marks it then.
    Whatever else lies in the folder, such as a model that was extracted to it, is no step.
    """
    steps = []
    for folder in storage.match(directory, "*"):
        step = step_number(folder.name)
        # `007` is not a name that a step gets.
        if step is not None and str(step) == folder.name and _is_whole(folder):
            steps.append(step)
    return sorted(steps)


def _is_whole(folder: storage.Path) -> bool:
    return (folder / COMMITTED).exists() if storage.in_bucket(folder) else _is_saved(folder)


def _is_saved(folder: storage.Path) -> bool:
    return any((folder / mark).exists() for mark in _MARKS)


def check_writable(workdir: storage.Path) -> None:
    """Raises UserError for a workdir in which Orbax cannot save: in a bucket that it has no driver
    for.
    """
    if storage.in_bucket(workdir) and workdir.scheme != "gs":
        raise UserError(
            f"workdir={str(workdir)!r}: Orbax saves checkpoints on local disks and in gs:// alone; "
            "name one of these, and extract models to the bucket"
        )


def check_free(directory: storage.Path, steps: Iterable[int]) -> None:
    """Refuses a file or folder that has the place of a step to come, and is no checkpoint.

    Raises:
      UserError: names it.
    """
    for step in steps:
        place = directory / str(step)
        if place.exists() and not _is_saved(place):
            raise UserError(
                f"{str(place)!r} is no checkpoint, and in the way of the one of step {step}; move "
                "it to another place"
            )


def locate(checkpoint: str | storage.Path) -> tuple[storage.Path, int]:
    """Finds `D[@STEP]`: D is a run's workdir or its folder of checkpoints; without STEP, the
    newest. A folder of the whole name, such as `run@5`, comes before step 5 of `run`.

    Raises:
      UserError: no such folder, no checkpoint in it, or not this step.
    """
    folder, step_text = _split(checkpoint)
    root = storage.resolve(folder)
    if not root.is_dir():
        raise UserError(f"checkpoint {folder!r} does not exist; name the workdir of a run")
    if (root / "checkpoints").is_dir():
        root = root / "checkpoints"

    steps = saved_steps(root)
    if not steps:
        raise UserError(
            f"checkpoint={str(checkpoint)!r} holds no checkpoint; name the workdir of a run that "
            "has saved one"
        )
    if step_text is None:
        return root, steps[-1]

    step = step_number(step_text)
    if step is None or step not in steps:
        rule = "" if step is not None else f" (a step is a number of at most {_MAX_DIGITS} digits)"
        raise UserError(
            f"checkpoint={str(checkpoint)!r} has no step {step_text!r}{rule}; steps: "
            f"{', '.join(map(str, steps))}"
        )
    return root, step


def _split(checkpoint: Any) -> tuple[str, str | None]:
    """The folder that a user names, and the text of the step; None without one."""
    if not isinstance(checkpoint, str | storage.Path) or not str(checkpoint).strip():
        raise UserError(f"checkpoint={checkpoint!r} must name the workdir of a run, as D or D@STEP")

    text = str(checkpoint)
    folder, at, step_text = text.rpartition("@")
    # An `@` of a folder's name is none before a step: `team@lab/run`.
    if not at or not folder or "/" in step_text or _is_folder(text):
        return text, None
    return folder, step_text


def _is_folder(text: str) -> bool:
    try:
        return storage.resolve(text).is_dir()
    except UserError:
        # No folder has a name that the file system does not take.
        return False
