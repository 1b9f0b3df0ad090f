"""All that may speak against a run, found before anything is written."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import jax
from absl import logging

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.checkpoints import Source, check_writable
from matta_jax.config import Config
from matta_jax.data import (
    Batch,
    Examples,
    ExampleSet,
    LabelledWindows,
    Labels,
    MixedWindows,
    Windows,
    split_both,
    training_batches,
)
from matta_jax.errors import UserError
from matta_jax.optim import shampoo_advice
from matta_jax.packages import Package, check_workdir_place
from matta_jax.sharding import (
    check_agreement,
    check_mesh,
    is_first,
    make_mesh,
    own_rows,
    together,
    wait_for_all,
)
from matta_jax.starts import check_checkpoint, check_init
from matta_jax.starts.teacher import check_labels, check_teacher
from matta_jax.tokenizers import fitting_tokenizer
from matta_jax.training._memory import check_memory
from matta_jax.training._metrics import check_writers
from matta_jax.training._resume import check_workdir, has_checkpoint, with_own_tokenizer
from matta_jax.training._samples import check_samples
from matta_jax.training._state import Setup, make_setup


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that nothing speaks against, before anything is written.

    Attributes:
      setup: all that is known before an array exists.
      package: the model to start from; None for a run that resumes, or starts from scratch.
      source: the checkpoint to go on from, likewise.
      windows: the training data.
      eval_windows: the held-out data.
      labels: a Teacher's, of the training data; None without.
    """

    setup: Setup
    package: Package | None
    source: Source | None
    windows: Windows | MixedWindows | ExampleSet
    eval_windows: Windows | ExampleSet
    labels: Labels | None

    @property
    def examples(self) -> Examples:
        """What training reads: the windows, with their labels where they have some."""
        if self.labels is None:
            return self.windows
        # Labels are of token windows; the config refuses them for a scorer's examples.
        assert isinstance(self.windows, Windows)
        return LabelledWindows(self.windows, self.labels)

    def open_batches(self, step: int) -> AbstractContextManager[Iterator[Batch]]:
        """Opens this process's rows of the batches from a step on."""
        config = self.setup.config
        return training_batches(
            self.examples,
            batch_size=config.data.batch_size,
            seed=config.train.seed,
            # The order depends on seed and step alone: a resumed run reads what it would have read.
            start_step=step,
            rows=own_rows(self.setup.mesh, config.data.batch_size),
            prefetch=config.data.prefetch_batches,
            num_threads=config.data.read_threads,
            in_order=config.data.stream,
        )

    def scores_first(self, step: int) -> bool:
        """Whether the run is evaluated before its first step.

        A model is known before its training goes on; a stream's first examples, too, are scored
        before it.
        """
        starts_stream = self.setup.config.data.stream and step == 0
        return self.package is not None or self.source is not None or starts_stream


def check_start(
    config: Config,
    workdir: storage.Path,
    resume: str,
    log: Callable[[str], None],
    *,
    extend: bool = False,
) -> Prepared:
    """Finds all that may speak against a run, on every process, before anything is written.

    Args:
      config: the run.
      workdir: its folder, which need not be there.
      resume: whether it may hold a run, as of `train`.
      log: takes what a user should know of the data.
      extend: as of `train`.

    Raises:
      UserError: something speaks against the run.
    """
    prepared = together(lambda: _checked(config, workdir, resume, log, extend=extend))

    # Processes may see other files, or flags; they would train on without a word.
    check_agreement(
        {
            "the config": config_text(prepared.setup.config),
            "workdir": str(workdir),
            "the text of data.source": prepared.windows.fingerprint,
            "the held-out text": prepared.eval_windows.fingerprint,
        }
    )
    # Nothing is written before every process has found all in order.
    wait_for_all("matta_jax/checked")
    return prepared


def _checked(
    config: Config,
    workdir: storage.Path,
    resume: str,
    log: Callable[[str], None],
    *,
    extend: bool,
) -> Prepared:
    """What `check_start` finds on this process, for itself."""
    if resume not in ("auto", "must", "never"):
        raise UserError(f"resume={resume!r} must be auto, must or never")

    # The cheap checks come first: a mistake shows in a second, before data is read.
    mesh_sizes = check_mesh(
        config.mesh,
        batch_size=config.data.batch_size,
        microbatches=config.train.microbatches,
        num_devices=jax.device_count(),
    )
    config = with_own_tokenizer(config, workdir, log)
    check_samples(config)
    check_writers(config)
    check_writable(workdir)
    check_workdir_place(workdir)
    check_workdir(config, workdir, resume, extend)
    tokenizer = fitting_tokenizer(config.data.tokenizer, config.model.vocab_size)

    # A run that resumes has no use for what it once started from, which may be gone.
    package, source = (None, None) if has_checkpoint(workdir) else _check_origin(config)
    setup = make_setup(config, make_mesh(mesh_sizes, slices=config.mesh.slices))
    check_memory(setup)
    _advise(setup)

    windows, eval_windows = split_both(config, tokenizer)
    assert not isinstance(eval_windows, MixedWindows), "a mixture is joined where it is held out"
    labels = _check_teacher(setup, windows)
    if isinstance(windows, ExampleSet) and windows.truncated:
        end = "end" if config.model.reads_pairs else "start"
        log(
            f"{windows.truncated} of {len(windows)} examples are longer than data.seq_len, and "
            f"lost their {end}"
        )
    return Prepared(setup, package, source, windows, eval_windows, labels)


def _advise(setup: Setup) -> None:
    """Warns of settings that work, and work badly."""
    if setup.config.optimizer.name != "shampoo":
        return
    advice = shampoo_advice(setup.config.shampoo, setup.nest)
    if advice and is_first():
        logging.warning("%s", advice)


def _check_origin(config: Config) -> tuple[Package | None, Source | None]:
    """The model or the checkpoint that a run starts from."""
    if config.init.checkpoint is None:
        return check_init(config), None
    if config.init.model is not None:
        raise UserError(
            f"init.checkpoint={config.init.checkpoint!r} and init.model={config.init.model!r}: a "
            "run starts from one of them; set the other to None"
        )
    return None, check_checkpoint(config)


def _check_teacher(setup: Setup, windows: Windows | MixedWindows | ExampleSet) -> Labels | None:
    """Checks the Teacher against the run; returns its labels, where it teaches by these."""
    config = setup.config
    if setup.teacher is not None:
        check_teacher(setup.teacher, config, "teacher.model")
    if config.teacher.labels is None:
        return None

    # The fingerprint ties labels to the very text that they were made of.
    labels = Labels(config.teacher.labels)
    check_labels(labels.header, config, num_windows=len(windows), fingerprint=windows.fingerprint)
    return labels


def config_text(config: Config) -> str:
    """The config as it is written into a run's folder, and compared between processes."""
    return storage.json_text(config_lib.to_dict(config), indent=2) + "\n"
