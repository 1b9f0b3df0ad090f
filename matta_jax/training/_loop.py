"""A run from its start to its end: the decisions at start-up, then step, log, evaluate, save."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from absl import logging

from matta_jax import config as config_lib
from matta_jax import stops, storage
from matta_jax.checkpoints import Checkpoints
from matta_jax.config import Config
from matta_jax.data import Batch
from matta_jax.errors import UserError
from matta_jax.nesting import Tree
from matta_jax.sharding import check_shared, is_first, place_batch, together
from matta_jax.tokenizers import bundle_tokenizer
from matta_jax.training._cosines import make_cosines
from matta_jax.training._held_out import HeldOut, report_evaluation, report_overlap
from matta_jax.training._meter import Meter, SkippedSteps, cost_of
from matta_jax.training._metrics import Writer, open_writers
from matta_jax.training._prepare import Prepared, check_start, config_text
from matta_jax.training._profile import Profile
from matta_jax.training._resume import restore_state, save_state
from matta_jax.training._samples import samples
from matta_jax.training._signals import stop_requests
from matta_jax.training._stall import Stall
from matta_jax.training._start import go_on_from, start_from
from matta_jax.training._state import Setup, TrainState
from matta_jax.training._step import TrainStep, make_eval_step, make_train_steps

Log = Callable[[str], None]

OnMetrics = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its metrics by name."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run leaves.

    Attributes:
      workdir: its folder: `config.json`, `metrics.jsonl`, `checkpoints/`.
      step: optimiser steps done.
      finished: False when a signal stopped it early.
      metrics: the last evaluation: `eval/student`, `eval/ta` in nats per token, …
    """

    workdir: storage.Path
    step: int
    finished: bool
    metrics: dict[str, float]


def train(  # noqa: PLR0913  Keyword-only: the settings of a public call.
    config: Config,
    workdir: str | storage.Path,
    *,
    resume: str = "auto",
    fallback: bool = False,
    extend: bool = False,
    log: Log = print,
    on_step: OnMetrics | None = None,
    on_eval: OnMetrics | None = None,
    profile: range = range(0),
) -> TrainResult:
    """Trains a nest: the TA with its Student and random mixes.

    Start-up order: the newest checkpoint of `workdir`, else `init.model` or `init.checkpoint`, else
    from scratch. A run killed at any moment and started again ends with the same bits as one that
    was not. SIGTERM saves and returns. Of several processes (`jax.distributed`), each calls this
    with the same arguments and a `workdir` that all of them see; the first one writes and logs. A
    run may go on with other processes and another mesh.

    Args:
      config: the run.
      workdir: its folder; made when absent.
      resume: `auto` continues a run that is there, `must` fails without one, `never` fails with
        one.
      fallback: where the newest checkpoint is damaged, go on from the newest healthy one, and keep
        the damaged ones in `workdir/damaged`.
      extend: go on to another `train.num_steps` even where the learning rate or the ramp jumps.
      log: takes progress lines.
      on_step: called with each step and its metrics, one step late: the device does not wait for
        it. What it raises ends the run.
      on_eval: called with each evaluation, such as `eval/student`.
      profile: steps of which a trace is written into `workdir/profile`; `range(10, 13)`: the three
        after step 10.

    Raises:
      UserError: the config does not fit the devices, the data or the run in `workdir`; or nothing
        can be written.
      DamageError: the newest checkpoint is damaged, or with `fallback` all are.
      DivergenceError: more than `train.max_skipped_steps` losses or gradients in a row are not
        finite.
    """
    workdir = storage.resolve(workdir)
    if not is_first():
        log = _log_nothing
    prepared = check_start(config, workdir, resume, log, extend=extend)
    config = prepared.setup.config

    mend = "make room or name another, and start again: the run goes on from its last checkpoint"
    writing = storage.writing("workdir", workdir, mend, wrapped=True)
    with writing, contextlib.ExitStack() as stack, stops.unfinished():
        # On the first process alone, and told to all.
        together(lambda: _take(config, workdir, stack))
        # Else they would train to the end, and then wait for each other's files.
        check_shared(str(workdir), lambda: storage.owner_token(workdir))
        _tell_config(config, workdir, log)
        with Checkpoints(
            workdir / "checkpoints", keep=config.train.keep_checkpoints
        ) as checkpoints:
            state = _first_state(prepared, checkpoints, log, fallback=fallback, extend=extend)
            # After the state, whose step says which lines of an earlier process count.
            with open_writers(config, workdir, int(state.step)) as writer:
                if int(state.step) == 0:
                    report_overlap(prepared.windows, prepared.eval_windows, writer, log)
                run = _make_run(prepared, checkpoints, writer, log, on_step, on_eval)
                if prepared.scores_first(int(state.step)):
                    _evaluate(run, state, int(state.step), saves=False)
                with contextlib.closing(Profile(profile, workdir, log)) as traced:
                    return _run_steps(run, state, workdir, traced)


def train_whole(config: Config, workdir: str | storage.Path, log: Log = print) -> TrainResult:
    """Trains to the end, for work that comes after it.

    Raises:
      UserError: a signal stopped it; or as `train`.
    """
    result = train(config, workdir, log=log)
    if not result.finished:
        raise UserError(
            f"training was stopped at step {result.step}; start the same command again to go on"
        )
    stops.raise_remembered()
    return result


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays while the state goes by.

    Attributes:
      setup: all that is known before an array exists.
      open_batches: of `Prepared`.
      teacher: the weights of one that runs along, alone in a list; empty without.
      train_step_at: of `make_train_steps`.
      cosines: of `make_cosines`.
      held_out: what evaluates.
      meter: what tells of the steps.
      save: `(state, step=, evaluation=)`, of `save_state`.
      writer: takes metrics.
      log: takes progress lines.
      on_eval: takes evaluations, where the caller wants them.
    """

    setup: Setup
    open_batches: Callable[[int], AbstractContextManager[Iterator[Batch]]]
    teacher: list[Tree]
    train_step_at: Callable[[int], TrainStep]
    cosines: Callable[..., Mapping[str, Any]]
    held_out: HeldOut
    meter: Meter
    save: Callable[..., None]
    writer: Writer
    log: Log
    on_eval: OnMetrics | None


def _take(config: Config, workdir: storage.Path, stack: contextlib.ExitStack) -> None:
    """Makes the folder of a run with its config, and keeps the processes of another run out of it
    until the stack ends.
    """
    if not is_first():
        return
    with storage.writing("workdir", workdir, "name another"):
        storage.make_folder(workdir)
        stack.enter_context(storage.locked("workdir", workdir))
        stack.enter_context(storage.owned("workdir", workdir))
        # A file at the tokenizer's path may be another one by the time that a model is extracted.
        bundle_tokenizer(config.data.tokenizer, workdir)
        storage.replace_text(workdir / "config.json", config_text(config))


def _tell_config(config: Config, workdir: storage.Path, log: Log) -> None:
    """Tells what a config sets."""
    # Most of the fields have their defaults, and the whole stands in the file.
    defaults = config_lib.to_dict(Config())
    log(f"config ({workdir / 'config.json'} has the whole of it), where it differs from defaults:")
    for line in config_lib.differences(defaults, config_lib.to_dict(config)):
        field, _, change = line.partition(": ")
        log(f"  {field} = {change.partition(' -> ')[2]}")


def _first_state(
    prepared: Prepared, checkpoints: Checkpoints, log: Log, *, fallback: bool, extend: bool
) -> TrainState:
    """The start-up order: resume, else start from a model, else from scratch."""
    # A run's own checkpoint comes before `init.model`, which it has started from long ago.
    if checkpoints.steps:
        return restore_state(
            checkpoints,
            prepared.setup,
            fingerprint=prepared.windows.fingerprint,
            fallback=fallback,
            log=log,
            extend=extend,
        )
    if prepared.package is not None:
        return start_from(prepared.setup, prepared.package, prepared.windows, log)
    if prepared.source is not None:
        return go_on_from(prepared.setup, prepared.source, log)
    return prepared.setup.init()


def _make_run(
    prepared: Prepared,
    checkpoints: Checkpoints,
    writer: Writer,
    log: Log,
    on_step: OnMetrics | None,
    on_eval: OnMetrics | None,
) -> _Run:
    """Puts the parts of the loop together: reads the Teacher, and measures the device."""
    setup = prepared.setup
    config = setup.config
    # A list, since the step takes the weights as an argument more, or none.
    teacher = [] if setup.teacher is None else [setup.load_teacher()]
    held_out = HeldOut(
        config,
        setup.mesh,
        make_eval_step(setup),
        windows=prepared.windows,
        eval_windows=prepared.eval_windows,
    )
    meter = Meter(
        config,
        cost=cost_of(setup, log),
        skipped_steps=SkippedSteps(config.train.max_skipped_steps, checkpoints),
        writer=writer,
        log=log,
        on_step=on_step,
    )
    fingerprint = prepared.windows.fingerprint
    return _Run(
        setup=setup,
        open_batches=prepared.open_batches,
        teacher=teacher,
        train_step_at=make_train_steps(setup),
        cosines=make_cosines(setup),
        held_out=held_out,
        meter=meter,
        save=functools.partial(save_state, checkpoints, setup, fingerprint=fingerprint),
        writer=writer,
        log=log,
        on_eval=on_eval,
    )


def _run_steps(
    run: _Run, state: TrainState, workdir: storage.Path, profile: Profile
) -> TrainResult:
    """Steps from a state to the last step of the config, or to one at which a signal stops it."""
    train = run.setup.config.train
    # Read once; the loop counts on the host.
    step = int(state.step)
    last = step >= train.num_steps
    if last:
        run.log(f"the run is finished: it is at step {step} of {train.num_steps}")
    # A finished run that is started again tells its evaluation, and is left as it is.
    evaluation = run.held_out.evaluate(state) if last else {}

    # What the meter has not seen: a step, its metrics on the device, and its wait for data.
    pending: tuple[int, Mapping[str, Any], float] | None = None
    stall = Stall(train.stall_seconds, logging.warning)
    with stop_requests() as asked_to_stop, run.open_batches(step) as batches, stall.watched():
        while not last:
            profile.before(step)
            before = time.perf_counter()
            stall.enter(f"the data of step {step + 1}")
            rows = next(batches)
            waited = time.perf_counter() - before

            stall.enter(f"the device, which computes step {step + 1}, or compiles it")
            state, metrics = _advance(run, state, step, rows)
            # To read `state.step` would wait for the device.
            step += 1
            profile.after(step, state)

            # The previous step is read while this one runs, so that the device never waits.
            if pending is not None:
                run.meter.account(*pending)
            pending = (step, metrics, waited)

            # Every process must ask at every step, so that all stop at the same one.
            last = asked_to_stop(step) or step == train.num_steps
            # A checkpoint carries its evaluation, but who stops a run may give it seconds.
            stopped = last and step < train.num_steps
            saves = not stopped and (last or step % train.checkpoint_every == 0)
            evaluates = saves or step % train.eval_every == 0
            if last or evaluates:
                # Told before the evaluation, which waits for the step anyway.
                run.meter.account(*pending)
                pending = None
                if last:
                    # Before it is saved: weights that no step has changed are no result.
                    run.meter.check_end()
                stall.enter(f"the evaluation after step {step}, or its checkpoint")
                if stopped:
                    run.save(state, step=step)
                if evaluates:
                    evaluation = _evaluate(run, state, step, saves=saves)
                # Neither the evaluation nor the saving is a step's time.
                run.meter.restart_clock()
            _tell(run, state, step, rows)

    return _ended(run, step, workdir, evaluation)


def _advance(
    run: _Run, state: TrainState, step: int, rows: Batch
) -> tuple[TrainState, Mapping[str, Any]]:
    """Takes the step after so many, which takes the old state's memory. No name holds the batch: it
    would be a copy more on the device.
    """
    batch_size = run.setup.config.data.batch_size
    return run.train_step_at(step)(
        state, place_batch(rows, run.setup.mesh, batch_size), *run.teacher
    )


def _ended(
    run: _Run, step: int, workdir: storage.Path, evaluation: dict[str, float]
) -> TrainResult:
    """Tells how a run ended."""
    train = run.setup.config.train
    finished = step >= train.num_steps
    ending = "finished" if finished else "stopped, to be continued by the same command,"
    run.log(f"{ending} at step {step} of {train.num_steps}: {workdir}")
    return TrainResult(workdir, step, finished=finished, metrics=evaluation)


def _tell(run: _Run, state: TrainState, step: int, rows: Batch) -> None:
    """Tells what a config asks for at this step, beside metrics and evaluations."""
    _tell_samples(run, state, step)
    _tell_cosines(run, state, step, rows)


def _tell_samples(run: _Run, state: TrainState, step: int) -> None:
    """Lets Student and TA write a text, where one is due."""
    period = run.setup.config.train.sample_every
    if not period or step % period:
        return
    for line in samples(run.setup, state, step):
        run.log(line)
    run.meter.restart_clock()


def _tell_cosines(run: _Run, state: TrainState, step: int, rows: Batch) -> None:
    """Measures how far members agree with the TA on the batch of this step, where it is due."""
    config = run.setup.config
    if not config.train.cosine_every or step % config.train.cosine_every:
        return
    batch = place_batch(rows, run.setup.mesh, config.data.batch_size)
    values = {name: float(value) for name, value in run.cosines(state.params, batch).items()}
    if values:
        run.writer.write(step, values)
        told = " ".join(f"{name} {value:.3f}" for name, value in values.items())
        run.log(f"step {step}: {told}")
    run.meter.restart_clock()


def _evaluate(run: _Run, state: TrainState, step: int, *, saves: bool) -> dict[str, float]:
    """Evaluates a state and tells of it; then saves it, where it is due."""
    evaluation = run.held_out.evaluate(state)
    report_evaluation(step, evaluation, run.writer, run.log)
    if run.on_eval is not None:
        run.on_eval(step, evaluation)
    if saves:
        run.save(state, step=step, evaluation=evaluation)
    return evaluation


def _log_nothing(line: str) -> None:
    """Takes the progress lines of a process that is not the first."""
