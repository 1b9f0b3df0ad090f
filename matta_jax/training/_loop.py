"""The loop: resume, step, log, evaluate, save."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.experimental import multihost_utils

from matta_jax import config as config_lib
from matta_jax.checkpoints import Checkpoints
from matta_jax.config import Config
from matta_jax.data import (
    Examples,
    ExampleSet,
    LabelledWindows,
    Labels,
    Windows,
    sequential_batches,
    split_data,
    training_batches,
)
from matta_jax.errors import DamageError, DivergenceError, UserError
from matta_jax.files import replace_text
from matta_jax.nesting import flatten
from matta_jax.optim import shampoo_advice
from matta_jax.packages import Package
from matta_jax.sharding import (
    check_agreement,
    check_mesh,
    is_first,
    make_mesh,
    own_rows,
    place,
    place_batch,
    wait_for_all,
)
from matta_jax.starts import check_init, initial_opt_state, initial_params
from matta_jax.starts.teacher import check_labels, check_teacher
from matta_jax.tokenizers import make_tokenizer
from matta_jax.training._metrics import (
    Writer,
    measure_peak_flops,
    open_writers,
    progress_line,
    step_flops_per_token,
)
from matta_jax.training._state import Setup, TrainState, make_setup
from matta_jax.training._step import make_eval_step, make_train_step, num_mixes, static_sub_models

# These fields may change between a run and its continuation: they do not change what is computed.
_FREE_FIELDS = frozenset(
    {
        *(
            f"train.{name}"
            for name in ("log_every", "eval_every", "eval_batches", "checkpoint_every")
        ),
        *(
            f"train.{name}"
            for name in ("keep_checkpoints", "peak_tflops", "tensorboard", "wandb_project")
        ),
        "train.max_skipped_steps",
        *(f"mesh.{name}" for name in ("data", "fsdp", "tensor")),
        *(f"data.{name}" for name in ("cache_dir", "tfds_dir", "prefetch_batches", "read_threads")),
    }
)


_CANNOT_WRITE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
}


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run leaves.

    Attributes:
      workdir: its folder: `config.json`, `metrics.jsonl`, `checkpoints/`.
      step: optimiser steps done.
      finished: False when a signal stopped it early.
      metrics: the last evaluation: `eval/student`, `eval/ta` in nats per token, …
    """

    workdir: pathlib.Path
    step: int
    finished: bool
    metrics: dict[str, float]


def train(
    config: Config,
    workdir: str | pathlib.Path,
    *,
    resume: str = "auto",
    fallback: bool = False,
    log: Callable[[str], None] = logging.info,
) -> TrainResult:
    """Trains a nest: the TA with its Student and random mixes.

    Start-up order: the newest checkpoint of `workdir`, else the model of `init.model`, else from
    scratch. A run killed at any moment and started again ends with the same bits as one that was
    not. SIGTERM saves and returns. Of several processes (`jax.distributed`), each calls this with
    the same arguments and a `workdir` that all of them see; the first one writes and logs. A run
    may go on with other processes and another mesh.

    Args:
      config: the run.
      workdir: its folder; made when absent.
      resume: `auto` continues a run that is there, `must` fails without one, `never` fails with
        one.
      fallback: where the newest checkpoint is damaged, go on from the newest healthy one, and keep
        the damaged ones in `workdir/damaged`.
      log: takes progress lines.

    Raises:
      UserError: the config does not fit the devices, the data or the run in `workdir`; or nothing
        can be written.
      DamageError: the newest checkpoint is damaged, or with `fallback` all are.
      DivergenceError: more than `train.max_skipped_steps` losses or gradients in a row are not
        finite.
    """
    workdir = pathlib.Path(workdir).resolve()
    if resume not in ("auto", "must", "never"):
        raise UserError(f"resume={resume!r} must be auto, must or never")
    sizes = check_mesh(
        config.mesh,
        batch_size=config.data.batch_size,
        microbatches=config.train.microbatches,
        num_devices=jax.device_count(),
    )
    if not is_first():
        log = lambda line: None
    _check_workdir(config, workdir, resume)
    tokenizer = make_tokenizer(config.data.tokenizer)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"model.vocab_size={config.model.vocab_size} must be at least the "
            f"{tokenizer.vocab_size} ids of "
            f"data.tokenizer={config.data.tokenizer!r}"
        )
    package = None if _has_checkpoint(workdir) else check_init(config)
    setup = make_setup(config, make_mesh(sizes))
    if (
        config.optimizer.name == "shampoo"
        and (advice := shampoo_advice(config.shampoo, setup.nest))
        and is_first()
    ):
        logging.warning("%s", advice)
    windows, eval_windows = (
        split_data(config, tokenizer, held_out=held_out) for held_out in (False, True)
    )
    labels = _check_teacher(setup, windows)
    if isinstance(windows, ExampleSet) and windows.truncated:
        log(
            f"{windows.truncated} of {len(windows)} examples are longer than data.seq_len, and "
            "lost their start"
        )
    resolved = json.dumps(config_lib.to_dict(config), indent=2) + "\n"
    check_agreement(
        {
            "the config": resolved,
            "workdir": str(workdir),
            "the text of data.source": windows.fingerprint,
            "the held-out text": eval_windows.fingerprint,
        }
    )
    wait_for_all(
        "matta_jax/checked"
    )  # Nothing is written before every process has found all in order.
    with _one_line_for_full_disks(workdir):
        if is_first():
            workdir.mkdir(parents=True, exist_ok=True)
            replace_text(workdir / "config.json", resolved)
        wait_for_all("matta_jax/workdir")
        log(resolved.rstrip())
        with Checkpoints(
            workdir / "checkpoints", keep=config.train.keep_checkpoints
        ) as checkpoints:
            if package is None:
                state = _restore(setup, checkpoints, windows, fallback, log)
            else:
                state = _start_from(setup, package, windows, log)
            with open_writers(config, workdir, int(state.step)) as writers:
                run = _Run(setup, checkpoints, windows, eval_windows, labels, writers, log)
                # A model is known before its training goes on; a stream's first examples, too, are
                # scored before it.
                if package is not None or (config.data.stream and int(state.step) == 0):
                    run.report_evaluation(int(state.step), run.evaluate(state))
                return run.steps_from(state, workdir)


def _check_teacher(setup: Setup, windows: Windows | ExampleSet) -> Labels | None:
    """Checks the Teacher against the run; returns its labels, where it teaches by these."""
    config = setup.config
    if setup.teacher is not None:
        check_teacher(setup.teacher, config, "teacher.model")
    if config.teacher.labels is None:
        return None
    labels = Labels(config.teacher.labels)
    check_labels(labels.header, config, num_windows=len(windows), fingerprint=windows.fingerprint)
    return labels


def _check_workdir(config: Config, workdir: pathlib.Path, resume: str) -> None:
    """Refuses a workdir that holds another run, or that `resume` does not allow."""
    file = workdir / "config.json"
    if not file.exists():
        if resume == "must":
            raise UserError(
                f"resume=must, but workdir={str(workdir)!r} holds no run; name one, or use "
                "resume=auto"
            )
        return
    if resume == "never":
        raise UserError(
            f"resume=never, but workdir={str(workdir)!r} holds a run; name an empty one, or use "
            "resume=auto"
        )
    try:
        other = json.loads(file.read_text())
        lines = config_lib.differences(other, config_lib.to_dict(config))
    except (ValueError, AttributeError):
        raise UserError(
            f"{file} cannot be read as the config of a run; name another workdir"
        ) from None
    lines = [line for line in lines if line.partition(":")[0] not in _FREE_FIELDS]
    if lines:
        raise UserError(
            f"workdir={str(workdir)!r} holds a run of another config ({'; '.join(lines)}); "
            "name another workdir, or set these fields back"
        )


def _restore(
    setup: Setup,
    checkpoints: Checkpoints,
    windows: Windows | ExampleSet,
    fallback: bool,
    log: Callable[[str], None],
) -> TrainState:
    """The state of the newest checkpoint, or with `fallback` of the newest healthy one; without
    any, a fresh one.
    """
    steps = checkpoints.steps
    if not steps:
        return setup.init()
    damaged: list[int] = []
    for step, older in reversed(list(zip(steps, [None, *steps], strict=False))):
        mend = "bring its files back, or start in another workdir"
        if older is not None:
            mend = (
                f"start again with --fallback, to go on from step {older} or the newest healthy "
                "one before it"
            )
        try:
            state = _restore_step(setup, checkpoints, step, windows, mend)
        except DamageError as error:
            if not fallback:
                raise
            damaged.append(step)
            log(str(error).partition("; start again")[0])
            continue
        for other in damaged:
            log(f"fallback: damaged step {other} is now {checkpoints.set_aside(other)}")
        log(f"resumed from step {step} of {checkpoints.directory}")
        return state
    raise DamageError(
        f"every checkpoint of {checkpoints.directory} is damaged (steps "
        f"{', '.join(map(str, steps))}); bring files "
        "back, or start in another workdir"
    )


def _restore_step(
    setup: Setup, checkpoints: Checkpoints, step: int, windows: Windows | ExampleSet, mend: str
) -> TrainState:
    meta = checkpoints.meta(step, mend=mend)
    lines = config_lib.differences(meta["config"], config_lib.to_dict(setup.config))
    lines = [line for line in lines if line.partition(":")[0] not in _FREE_FIELDS]
    if lines:
        raise UserError(
            f"checkpoint {step} of {checkpoints.directory} is of another config "
            f"({'; '.join(lines)}); "
            "name another workdir, or set these fields back"
        )
    if meta["data"]["fingerprint"] != windows.fingerprint:
        raise UserError(
            f"data.source={setup.config.data.source!r} has changed since checkpoint {step} of "
            f"{checkpoints.directory}; "
            "bring the old text back, or start in another workdir"
        )
    abstract = setup.abstract
    trees = checkpoints.restore(
        step,
        {
            "params": abstract.params,
            "opt_state": abstract.opt_state,
            "step": {"step": abstract.step},
        },
        mend=mend,
    )
    return TrainState(trees["step"]["step"], trees["params"], trees["opt_state"])


def _has_checkpoint(workdir: pathlib.Path) -> bool:
    return any(folder.name.isdigit() for folder in (workdir / "checkpoints").glob("*"))


def _start_from(
    setup: Setup, package: Package, windows: Windows | ExampleSet, log: Callable[[str], None]
) -> TrainState:
    """The state of a run that starts from a model; of a plain run that goes on, with its step."""
    batch = next(iter(sequential_batches(windows, batch_size=setup.config.data.batch_size)))
    params, words = initial_params(setup.config, package, jnp.asarray(batch["tokens"][:, :-1]))
    params = place(params, setup.shardings.params)
    found = initial_opt_state(setup.config, package, setup.abstract.opt_state)
    if found is None:
        step, opt_state = (
            0,
            jax.jit(setup.optimizer.init, out_shardings=setup.shardings.opt_state)(params),
        )
    else:
        step, opt_state = found[1], place(found[0], setup.shardings.opt_state)
    log(f"{words}, step {step}")
    return TrainState(place(jnp.int32(step), setup.shardings.step), params, opt_state)


class _Run:
    """The loop's parts that stay while the state goes by."""

    def __init__(
        self,
        setup: Setup,
        checkpoints: Checkpoints,
        windows: Windows | ExampleSet,
        eval_windows: Windows | ExampleSet,
        labels: Labels | None,
        writers: list[Writer],
        log: Callable[[str], None],
    ):
        self.setup, self.config, self.checkpoints = setup, setup.config, checkpoints
        self.windows, self.eval_windows, self.writers, self.log = (
            windows,
            eval_windows,
            writers,
            log,
        )
        self.examples: Examples = windows
        if labels is not None:
            assert isinstance(windows, Windows)
            self.examples = LabelledWindows(windows, labels)
        self.teacher = [] if setup.teacher is None else [setup.load_teacher()]
        self.train_step, self.eval_step = make_train_step(setup), make_eval_step(setup)
        self.flops_per_token = step_flops_per_token(
            self.config, setup.nest, static_sub_models(setup), num_mixes(setup), setup.teacher
        )
        stated = self.config.train.peak_tflops
        self.peak_flops = (
            stated * 1e12 if stated else measure_peak_flops(self.config.model.compute_dtype)
        ) * (setup.mesh.size)
        log(
            f"MFU is against {self.peak_flops / 1e12:.3f} TFLOP/s "
            f"({'stated' if stated else 'measured'})"
        )
        self.warned = False
        self.since: list[dict[str, float]] = []  # Metrics of the steps since the last line.
        self.skipped = self.skipped_in_row = 0  # Steps since the last line; up to this one.
        self.clock = time.perf_counter()  # When the first of the `timed` steps began.
        self.timed = 0
        self.compiled = False

    def steps_from(self, state: TrainState, workdir: pathlib.Path) -> TrainResult:
        train, batch_size = self.config.train, self.config.data.batch_size
        start = step = int(state.step)
        evaluation: dict[str, float] = {}
        if start >= train.num_steps:
            evaluation = self.evaluate(state)
        pending: tuple[int, Mapping[str, Any], float] | None = None
        opened = training_batches(
            self.examples,
            batch_size=batch_size,
            seed=train.seed,
            start_step=start,
            rows=own_rows(self.setup.mesh, batch_size),
            prefetch=self.config.data.prefetch_batches,
            num_threads=self.config.data.read_threads,
            in_order=self.config.data.stream,
        )
        last = start >= train.num_steps
        with _stop_requests() as asked_to_stop, opened as batches:
            while not last:
                before = time.perf_counter()
                rows = next(batches)
                waited = time.perf_counter() - before
                state, metrics = self.train_step(
                    state, place_batch(rows, self.setup.mesh, batch_size), *self.teacher
                )
                step += 1
                if pending is not None:  # The previous step is read while this one runs.
                    self.account(*pending)
                pending = (step, metrics, waited)
                last = asked_to_stop(step) or step == train.num_steps
                saves = last or step % train.checkpoint_every == 0
                if saves or step % train.eval_every == 0:
                    self.account(*pending)
                    pending = None
                    evaluation = self.evaluate(state)
                    self.report_evaluation(step, evaluation)
                    if saves:
                        self.save(step, state, evaluation)
                    self._restart_clock()
        return TrainResult(workdir, step, finished=step >= train.num_steps, metrics=evaluation)

    def account(self, step: int, metrics: Mapping[str, jax.Array], waited: float) -> None:
        """Checks a step's metrics, and logs their mean since the last line where one is due.

        `waited`: seconds that the step waited for its batch, on this process.
        """
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        values["data_wait_seconds"] = waited
        if values.pop("skipped"):
            self.skipped += 1
            self.skipped_in_row += 1
            self._check_divergence(step, values)
        else:
            self.skipped_in_row = 0
            self.since.append(values)
        self.timed += 1
        if (
            not self.compiled and self.config.train.log_every > 1
        ):  # The first step compiles: it tells no speed.
            self.compiled = True
            self._restart_clock()
        if step % self.config.train.log_every == 0:
            self._log_metrics(step, values)

    def _check_divergence(self, step: int, values: Mapping[str, float]) -> None:
        """Warns of a skipped step; raises DivergenceError after too many in a row."""
        name = "grad_norm" if math.isfinite(values["loss"]) else "loss"
        limit = self.config.train.max_skipped_steps
        if self.skipped_in_row <= limit:
            if is_first():
                logging.warning("%s=%s at step %d: the update is skipped", name, values[name], step)
            return
        row = (
            f"the {self.skipped_in_row} updates up to it are skipped, and "
            f"train.max_skipped_steps={limit}"
        )
        raise DivergenceError(
            f"{name}={values[name]} at step {step}, {row}: training diverged; last good "
            "checkpoint: "
            f"{self._last_good()}; lower optimizer.learning_rate or optimizer.clip_norm, or raise "
            "optimizer.warmup_steps"
        )

    def _last_good(self) -> str:
        saved = self.checkpoints.steps
        return f"{self.checkpoints.directory / str(saved[-1])}" if saved else "none yet"

    def _log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the means over the steps since the last line; speed is that of all steps, skipped
        or not.
        """
        skipped, self.skipped = self.skipped, 0
        if not self.since:
            self.write(step, {"skipped_steps": skipped})
            return
        mean = {name: sum(row[name] for row in self.since) / len(self.since) for name in values}
        mean["skipped_steps"] = skipped
        mean["distill_weight"] = values["distill_scale"] * self.config.objective.distill_weight
        seconds = (time.perf_counter() - self.clock) / max(self.timed, 1)
        tokens = self.config.data.batch_size * self.config.data.seq_len
        mean["tokens_per_second"] = tokens / seconds
        mean["data_wait_share"] = min(mean["data_wait_seconds"] / seconds, 1.0)
        mean["mfu"] = self.flops_per_token * tokens / seconds / self.peak_flops
        self.write(step, mean)
        self.log(
            progress_line(
                step,
                self.config.train.num_steps,
                mean,
                seconds * (self.config.train.num_steps - step),
            )
        )
        if is_first() and not self.warned and mean.get("gap", 1.0) <= 0 < mean["distill_weight"]:
            self.warned = True
            logging.warning(
                "capacity mismatch: at step %d the TA is no better than the Student (CE_S - CE_TA "
                "= %.4f) while "
                "distillation has weight %.3f; it has nothing to teach: widen nest.*, or lengthen "
                "objective.distill_ramp",
                step,
                mean["gap"],
                mean["distill_weight"],
            )
        self.since.clear()
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.clock, self.timed = time.perf_counter(), 0

    def report_evaluation(self, step: int, evaluation: dict[str, float]) -> None:
        """Writes and logs what `evaluate` returned."""
        self.write(step, evaluation)
        shown = " ".join(f"{name} {value:.4f}" for name, value in evaluation.items())
        self.log(f"step {step}: {shown}")

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Means over held-out targets of Student's and TA's terms, by name with `eval/` before it.

        Of a stream: over what training reads until the next evaluation; at the end, over what is
        left.
        """
        sums: dict[str, float] = {}
        mine = own_rows(self.setup.mesh, self.config.data.batch_size)
        step, size = int(state.step), self.config.data.batch_size
        if self.config.data.stream and step < self.config.train.num_steps:
            batches = sequential_batches(
                self.windows, batch_size=size, within=next_window(self.config, step)
            )
        else:
            batches = sequential_batches(
                self.eval_windows, batch_size=size, limit=self.config.train.eval_batches
            )
        for batch in batches:
            own = {name: rows[mine] for name, rows in batch.items()}
            placed = place_batch(own, self.setup.mesh, len(batch["length"]))
            part = jax.device_get(self.eval_step(state.params, placed))
            sums = {name: sums.get(name, 0.0) + float(value) for name, value in part.items()}
        targets = sums.pop("targets")
        return {f"eval/{name}": value / targets for name, value in sums.items() if name != "loss"}

    def save(self, step: int, state: TrainState, evaluation: Mapping[str, float]) -> None:
        """Starts to write a checkpoint. Raises DivergenceError when the weights are not fit to be
        kept.
        """
        if not math.isfinite(evaluation["eval/student"]):
            raise DivergenceError(
                f"eval/student={evaluation['eval/student']} at step {step}: the weights have "
                "diverged, and are not "
                f"saved; last good checkpoint: {self._last_good()}; lower optimizer.learning_rate"
            )
        meta = {
            "step": step,
            "config": config_lib.to_dict(self.config),
            "axes": {path: list(names) for path, names in flatten(self.setup.axes).items()},
            "data": {
                "fingerprint": self.windows.fingerprint,
                "next_example": step * self.config.data.batch_size,
            },
            "evaluation": dict(evaluation),
        }
        trees = {"params": state.params, "opt_state": state.opt_state, "step": {"step": state.step}}
        self.checkpoints.save(
            step, trees, meta, loss=evaluation["eval/student"], units=self.setup.units
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for writer in self.writers:
            writer.write(step, metrics)


def next_window(config: Config, step: int) -> range:
    """The examples of a stream that training reads after `step` steps until the next evaluation."""
    every, size = config.train.eval_every, config.data.batch_size
    stop = min((step // every + 1) * every, config.train.num_steps)
    return range(step * size, stop * size)


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[int], bool]]:
    """Yields `asked(step)`: whether a SIGTERM asks the run to stop after this step, the same on
    every process.

    With several processes JAX's preemption service takes the signal, and finds a step that all can
    stop at.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # No handler can be set here.
        yield lambda step: False
        return
    old = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield lambda step: event.is_set()
    finally:
        signal.signal(signal.SIGTERM, old)


@contextlib.contextmanager
def _one_line_for_full_disks(workdir: pathlib.Path) -> Iterator[None]:
    """Turns an error about writing, also one that Orbax wraps, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason: str | None = None
        cause: BaseException | None = error
        while (
            reason is None and cause is not None
        ):  # tensorstore's errors are no OSErrors, but quote them.
            text = str(cause)
            reason = next((own for own in map(os.strerror, _CANNOT_WRITE) if own in text), None)
            missing = cause.filename if isinstance(cause, FileNotFoundError) else None
            if missing and pathlib.Path(missing) in (workdir, *workdir.parents):
                reason = os.strerror(errno.ENOENT)  # A folder that no folder can be made in.
            cause = cause.__cause__ or cause.__context__
        if reason is None:
            raise
        raise UserError(
            f"workdir={str(workdir)!r} cannot be written ({reason}); make room or name another, "
            "and "
            "start again: the run goes on from its last checkpoint"
        ) from None
