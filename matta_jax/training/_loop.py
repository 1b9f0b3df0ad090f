"""A run from its start to its end: the decisions at start-up, then step, log, evaluate, save."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from matta_jax import config as config_lib
from matta_jax import stops, storage
from matta_jax.checkpoints import Checkpoints
from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.sharding import check_shared, is_first, together
from matta_jax.tokenizers import bundle_tokenizer
from matta_jax.training._goodput import Ledger
from matta_jax.training._held_out import report_overlap
from matta_jax.training._metrics import (
    Listeners,
    Log,
    OnMetrics,
    Writer,
    open_writers,
    read_lines,
)
from matta_jax.training._prepare import Prepared, check_start, config_text
from matta_jax.training._profile import Profile
from matta_jax.training._resume import restore_state
from matta_jax.training._run import (
    Run,
    advance,
    evaluate,
    make_run,
    next_rows,
    save,
    tell,
    tell_time,
)
from matta_jax.training._signals import stop_requests
from matta_jax.training._stall import Stall
from matta_jax.training._start import go_on_from, start_from
from matta_jax.training._state import TrainState


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
    started: float | None = None,
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
      started: when its process began, in seconds of `time.perf_counter`: since then the run's time
        counts in its goodput; None: since this call.

    Raises:
      UserError: the config does not fit the devices, the data or the run in `workdir`; or nothing
        can be written.
      DamageError: the newest checkpoint is damaged, or with `fallback` all are.
      DivergenceError: more than `train.max_skipped_steps` losses or gradients in a row are not
        finite.

    Examples:
      >>> matta_jax.train(config, "runs/new", log=logging.info).finished
      True
    """
    ledger = Ledger(started)
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
            step = int(state.step)
            lines = read_lines(workdir)
            # Of all lines: those of steps that are taken back are dropped then.
            ledger.go_on([line.row for line in lines], step)
            # After the state, whose step says which lines of an earlier process count.
            writing_to = open_writers(config, workdir, lines, step)
            with writing_to as writer, _told_end(writer, ledger, step):
                if step < config.train.num_steps:
                    writer.write(step, ledger.row())
                if step == 0:
                    report_overlap(prepared.windows, prepared.eval_windows, writer, log)
                listeners = Listeners(log, on_step, on_eval)
                run = make_run(prepared, checkpoints, writer, ledger, listeners)
                if prepared.scores_first(step):
                    evaluate(run, state, step, saves=False)
                    ledger.enter("start")
                closing = contextlib.closing(Profile(profile, workdir, log))
                with closing as traced, run.ends.watched():
                    return _run_steps(run, state, workdir, traced)


@contextlib.contextmanager
def _told_end(writer: Writer, ledger: Ledger, step: int) -> Iterator[None]:
    """Where a signal ends the process within the block, a line says that it ended by itself: the
    time without it is nobody's.
    """
    try:
        yield
    except (KeyboardInterrupt, stops.Stopped):
        writer.write(step, ledger.row(ended=True))
        raise


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


def _take(config: Config, workdir: storage.Path, stack: contextlib.ExitStack) -> None:
    """Makes the folder of a run with its config, and keeps the processes of another run out of it
    until the stack ends.
    """
    if not is_first():
        return
    with storage.writing("workdir", workdir, "name another"):
        storage.make_folder(workdir)
        stack.enter_context(storage.locked("workdir", workdir))
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


def _run_steps(run: Run, state: TrainState, workdir: storage.Path, profile: Profile) -> TrainResult:
    """Steps from a state to the last step of the config, or to one at which a signal stops it."""
    train = run.setup.config.train
    # Read once; the loop counts on the host.
    step = int(state.step)
    last = step >= train.num_steps
    if last:
        run.listeners.log(f"the run is finished: it is at step {step} of {train.num_steps}")
    # A finished run that is started again tells its evaluation, and is left as it is.
    evaluation = run.held_out.evaluate(state) if last else {}

    # What the meter has not seen: a step, its metrics on the device, and its wait for data.
    pending: tuple[int, Mapping[str, Any], float] | None = None
    stall = Stall(train.stall_seconds, logging.warning)
    with stop_requests() as asked_to_stop, run.open_batches(step) as batches, stall.watched():
        while not last:
            profile.before(step)
            stall.enter(f"the data of step {step + 1}")
            rows, waited = next_rows(run, batches)

            stall.enter(f"the device, which computes step {step + 1}, or compiles it")
            state, metrics = advance(run, state, step, rows)
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
                    save(run, state, step)
                if evaluates:
                    evaluation = evaluate(run, state, step, saves=saves)
                if not last:
                    tell_time(run, step, ended=False)
                # Neither the evaluation nor the saving is a step's time.
                run.meter.restart_clock()
            tell(run, state, step, rows)

    if run.programs:
        tell_time(run, step, ended=True)
    return _ended(run, step, workdir, evaluation)


def _ended(run: Run, step: int, workdir: storage.Path, evaluation: dict[str, float]) -> TrainResult:
    """Tells how a run ended."""
    train = run.setup.config.train
    finished = step >= train.num_steps
    ending = "finished" if finished else "stopped, to be continued by the same command,"
    run.listeners.log(f"{ending} at step {step} of {train.num_steps}: {workdir}")
    return TrainResult(workdir, step, finished=finished, metrics=evaluation)


def _log_nothing(line: str) -> None:
    """Takes the progress lines of a process that is not the first."""
