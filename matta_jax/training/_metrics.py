"""Where metrics go: a file of JSON lines, and TensorBoard or W&B where the config asks for them."""

import contextlib
import dataclasses
import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax

from matta_jax import storage
from matta_jax.config import Config, to_dict
from matta_jax.errors import UserError

# The field that asks for it, the package, and the extra that installs it.
_TENSORBOARD = ("train.tensorboard", "tensorboardX", "tensorboard")
_FILE = "metrics.jsonl"
_WANDB = ("train.wandb_project", "wandb", "wandb")


Log = Callable[[str], None]

OnMetrics = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its metrics by name."""


@dataclasses.dataclass(frozen=True)
class Listeners:
    """Who hears of a run.

    Attributes:
      log: takes progress lines.
      on_step: takes each step and its metrics, where the caller wants them.
      on_eval: takes evaluations, likewise.
    """

    log: Log
    on_step: OnMetrics | None = None
    on_eval: OnMetrics | None = None


class Writer(Protocol):
    """Takes the metrics of a step."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Stores them."""
        ...

    def flush(self) -> None:
        """Lets others see what was stored: before a checkpoint is saved, whose steps come no
        more.
        """
        ...

    def close(self) -> None:
        """Ends the writing."""
        ...


class _JsonLines:
    """One JSON object a line. A kill costs no line of a step that was told on a disk, and of a step
    before the last checkpoint in a bucket.
    """

    def __init__(self, path: storage.Path):
        self._file = storage.GrowingFile(path)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.append(storage.json_text({"step": step, **metrics}))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.flush()


class _TensorBoard:
    """Scalars of tensorboardX's `SummaryWriter`, in a folder that may lie in a bucket."""

    def __init__(self, folder: storage.Path):
        library = _extra(*_TENSORBOARD)
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._local = self._stack.enter_context(storage.grown_folder(folder))
        self._writer = library.SummaryWriter(str(self._local))
        self._pace = storage.Pace()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        if self._pace.is_due:
            self.flush()

    def flush(self) -> None:
        if not storage.in_bucket(self._folder):
            return
        with self._pace.writing():
            self._writer.flush()
            storage.publish_files(self._local, self._folder)

    def close(self) -> None:
        with self._stack:
            self._writer.close()
            storage.publish_files(self._local, self._folder)


class _WandB:
    """Rows of a W&B run."""

    def __init__(self, wandb_run: Any):
        self._run = wandb_run

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def flush(self) -> None:
        """Does nothing: W&B sends rows by itself."""

    def close(self) -> None:
        self._run.finish()


class _EachOf:
    """Several writers as one; of none, one that stores nothing."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = writers

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, metrics)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a run's metrics.

    Attributes:
      text: as it stands in the file.
      row: what it says; `step` is a number.
    """

    text: str
    row: dict[str, Any]


def read_lines(workdir: storage.Path) -> list[Line]:
    """The lines of a run's metrics, in their order, without those that are damaged; none but on the
    first process.
    """
    lines = []
    for text in storage.recover_lines(workdir / _FILE) if jax.process_index() == 0 else []:
        # A crash may have damaged a line, and others may have written one.
        with contextlib.suppress(ValueError):
            row = storage.parse_json(text)
            if isinstance(row, dict) and storage.is_number(row.get("step")):
                lines.append(Line(text, row))
    return lines


@contextlib.contextmanager
def open_writers(
    config: Config, workdir: storage.Path, lines: Sequence[Line], start_step: int
) -> Iterator[Writer]:
    """Opens the writers that the config asks for, as one; none but on the first process.

    Args:
      config: the run.
      workdir: its folder.
      lines: of `read_lines`.
      start_step: from which the run goes on.
    """
    writers: list[Writer] = []
    # Metrics are the same on every process, and files are written by one.
    if jax.process_index() == 0:
        if config.train.tensorboard:
            writers.append(_TensorBoard(workdir / "tensorboard"))
        if config.train.wandb_project:
            writers.append(_open_wandb(config, workdir))
        writers.append(_open_json_lines(workdir / _FILE, lines, start_step))

    writer = _EachOf(writers)
    try:
        yield writer
    finally:
        writer.close()


def _open_json_lines(path: storage.Path, lines: Sequence[Line], start_step: int) -> _JsonLines:
    """Opens a file of metrics to append to; a resumed run drops the lines past its step."""
    texts = [line.text + "\n" for line in lines if line.row["step"] <= start_step]
    storage.replace_text(path, "".join(texts))
    return _JsonLines(path)


def _open_wandb(config: Config, folder: storage.Path) -> _WandB:
    # It writes files that grow, which a bucket has not.
    local = storage.home_cache() / "wandb" if storage.in_bucket(folder) else folder
    storage.make_folder(local)
    # By the folder, so that a resumed run goes on in the same W&B run, and no other one does: of
    # two sweeps the folders have the same names.
    place = hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()
    wandb_run = _extra(*_WANDB).init(
        project=config.train.wandb_project,
        dir=str(local),
        resume="allow",
        id=place,
        name=folder.name,
        config=to_dict(config),
    )
    return _WandB(wandb_run)


def check_writers(config: Config) -> None:
    """Raises UserError where the config asks for a writer whose package is not installed."""
    if jax.process_index() != 0:
        return
    if config.train.tensorboard:
        _extra(*_TENSORBOARD)
    if config.train.wandb_project:
        _extra(*_WANDB)


def _extra(field: str, package: str, extra: str) -> Any:
    """Imports the package of an extra, which most installs lack."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"{field} needs the package {package}: pip install 'matta_jax[{extra}]'"
        ) from None
