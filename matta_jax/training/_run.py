"""A run while it goes: its parts, its next step, what it tells and its evaluation."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax

from matta_jax import stops
from matta_jax.checkpoints import Checkpoints
from matta_jax.data import Batch
from matta_jax.nesting import Tree
from matta_jax.sharding import place_batch
from matta_jax.training._cosines import make_cosines
from matta_jax.training._goodput import Ledger, StepEnds, time_line
from matta_jax.training._held_out import HeldOut, report_evaluation
from matta_jax.training._meter import Meter, SkippedSteps, cost_of
from matta_jax.training._metrics import Listeners, Writer
from matta_jax.training._prepare import Prepared
from matta_jax.training._resume import save_state
from matta_jax.training._samples import samples
from matta_jax.training._state import Setup, TrainState
from matta_jax.training._step import TrainStep, make_eval_step, make_train_steps


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays while the state goes by.

    Attributes:
      setup: all that is known before an array exists.
      open_batches: of `Prepared`.
      teacher: the weights of one that runs along, alone in a list; empty without.
      train_step_at: of `make_train_steps`.
      cosines: of `make_cosines`.
      held_out: what evaluates.
      meter: what tells of the steps.
      ledger: where the time goes.
      ends: of the steps.
      programs: those of `train_step_at` that were called, and are compiled.
      save: `(state, step=, evaluation=)`, of `save_state`.
      wait: returns when what was saved is written.
      writer: takes metrics.
      listeners: who hears of it.
    """

    setup: Setup
    open_batches: Callable[[int], AbstractContextManager[Iterator[Batch]]]
    teacher: list[Tree]
    train_step_at: Callable[[int], TrainStep]
    cosines: Callable[..., Mapping[str, Any]]
    held_out: HeldOut
    meter: Meter
    ledger: Ledger
    ends: StepEnds
    programs: set[TrainStep]
    save: Callable[..., None]
    wait: Callable[[], None]
    writer: Writer
    listeners: Listeners


def make_run(
    prepared: Prepared,
    checkpoints: Checkpoints,
    writer: Writer,
    ledger: Ledger,
    listeners: Listeners,
) -> Run:
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
        cost=cost_of(setup, listeners.log),
        skipped_steps=SkippedSteps(config.train.max_skipped_steps, checkpoints),
        ledger=ledger,
        writer=writer,
        listeners=listeners,
    )
    fingerprint = prepared.windows.fingerprint
    return Run(
        setup=setup,
        open_batches=prepared.open_batches,
        teacher=teacher,
        train_step_at=make_train_steps(setup),
        cosines=make_cosines(setup),
        held_out=held_out,
        meter=meter,
        ledger=ledger,
        ends=StepEnds(),
        programs=set(),
        save=functools.partial(save_state, checkpoints, setup, fingerprint=fingerprint),
        wait=checkpoints.wait,
        writer=writer,
        listeners=listeners,
    )


def next_rows(run: Run, batches: Iterator[Batch]) -> tuple[Batch, float]:
    """Waits for this process's rows of the next batch; returns the seconds, too."""
    before = time.perf_counter()
    rows = next(batches)
    waited = time.perf_counter() - before
    # Devices that are still at work lose nothing by the wait.
    run.ledger.charge("data" if run.programs else "start", run.ends.idle_since(before))
    return rows, waited


def advance(
    run: Run, state: TrainState, step: int, rows: Batch
) -> tuple[TrainState, Mapping[str, Any]]:
    """Takes the step after so many, which takes the old state's memory. No name holds the batch: it
    would be a copy more on the device.
    """
    batch_size = run.setup.config.data.batch_size
    train_step = run.train_step_at(step)
    began = time.perf_counter()
    new_state, metrics = train_step(
        state, place_batch(rows, run.setup.mesh, batch_size), *run.teacher
    )
    # The first call returns when its program is compiled, and each one before it has run.
    if train_step not in run.programs:
        run.programs.add(train_step)
        run.ledger.charge("compile", run.ends.idle_since(began))
    run.ends.follow(metrics)
    return new_state, metrics


def tell(run: Run, state: TrainState, step: int, rows: Batch) -> None:
    """Tells what a config asks for at this step, beside metrics and evaluations."""
    _tell_samples(run, state, step)
    _tell_cosines(run, state, step, rows)


def _tell_samples(run: Run, state: TrainState, step: int) -> None:
    """Lets Student and TA write a text, where one is due."""
    period = run.setup.config.train.sample_every
    if not period or step % period:
        return
    _enter_idle(run, state)
    for line in samples(run.setup, state, step):
        run.listeners.log(line)
    run.ledger.enter("step")
    run.meter.restart_clock()


def _tell_cosines(run: Run, state: TrainState, step: int, rows: Batch) -> None:
    """Measures how far members agree with the TA on the batch of this step, where it is due."""
    config = run.setup.config
    if not config.train.cosine_every or step % config.train.cosine_every:
        return
    _enter_idle(run, state)
    batch = place_batch(rows, run.setup.mesh, config.data.batch_size)
    values = {name: float(value) for name, value in run.cosines(state.params, batch).items()}
    if values:
        run.writer.write(step, values)
        told = " ".join(f"{name} {value:.3f}" for name, value in values.items())
        run.listeners.log(f"step {step}: {told}")
    run.ledger.enter("step")
    run.meter.restart_clock()


def _enter_idle(run: Run, state: TrainState) -> None:
    """Lets the step end, whose time it is, before that of what reads its state."""
    jax.block_until_ready(state)
    run.ledger.enter("evaluation")


def evaluate(run: Run, state: TrainState, step: int, *, saves: bool) -> dict[str, float]:
    """Evaluates a state and tells of it; then saves it, where it is due."""
    run.ledger.enter("evaluation")
    evaluation = run.held_out.evaluate(state)
    report_evaluation(step, evaluation, run.writer, run.listeners.log)
    if run.listeners.on_eval is not None:
        run.listeners.on_eval(step, evaluation)
    if saves:
        save(run, state, step, evaluation)
    return evaluation


def save(
    run: Run, state: TrainState, step: int, evaluation: Mapping[str, float] | None = None
) -> None:
    """Starts to write a checkpoint, as `save_state`."""
    run.ledger.enter("checkpoint")
    # A run that goes on from there does not tell of its steps again.
    run.writer.flush()
    run.save(state, step=step, evaluation=evaluation)


def tell_time(run: Run, step: int, *, ended: bool) -> None:
    """Writes where the time went; at the end of a run, once all is saved, logs it too."""
    if ended:
        run.ledger.enter("checkpoint")
        # As the room of checkpoints itself waits, when it is left.
        with stops.held():
            run.wait()
    run.ledger.enter("step")
    row = run.ledger.row(ended=ended)
    run.writer.write(step, row)
    if ended:
        run.listeners.log(time_line(row))
