"""Who writes the parts of a preparation: processes of this machine, or Apache Beam."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from concurrent.futures.process import BrokenProcessPool

from matta_jax.data._part_jobs import DonePart, Plan, read_done, write_part
from matta_jax.errors import UserError, check_choice
from matta_jax.reporting import progress

RUNNERS = ("local", "direct", "dataflow", "spark", "flink")


@dataclasses.dataclass(frozen=True)
class Runner:
    """Who writes.

    Attributes:
      name: `local`, or the runner of Apache Beam: `direct`, `dataflow`, `spark` or `flink`.
      workers: processes of this machine; None: one for each core.
      options: further ones of Beam, such as `--project=P`.

    Raises:
      UserError: it has no such name, no workers, or options that nothing reads.
    """

    name: str = "local"
    workers: int | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("runner", self.name, RUNNERS)
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers={self.workers} must be at least 1")
        if self.workers is not None and self.name != "local":
            raise UserError(
                f"workers={self.workers} are of this machine, and runner={self.name!r} has workers "
                "of its own; leave it out, or name them in the options of Beam"
            )
        if self.options and self.name == "local":
            raise UserError(
                f"beam_options={self.options[0]!r} is for a runner of Apache Beam; name it as "
                "runner, or leave it out"
            )

    def write(self, plan: Plan) -> list[DonePart]:
        """Writes all parts that are not done, in whatever order; returns all in theirs. Raises
        UserError or OSError as `write_part` does, and UserError where a worker was ended.
        """
        if self.name == "local":
            return _write_here(plan, self.num_workers(plan))
        return _write_by_beam(plan, self.name, list(self.options))

    def num_workers(self, plan: Plan) -> int:
        """Processes of this machine that write."""
        return min(self.workers or len(os.sched_getaffinity(0)), len(plan.jobs))


def _write_here(plan: Plan, workers: int) -> list[DonePart]:
    """Writes all parts by processes of this machine, in whatever order; returns them in theirs."""
    numbers = range(len(plan.jobs))
    if workers == 1:
        shown = progress(numbers, desc="preparing", unit="parts")
        return [write_part(plan, number) for number in shown]
    # Threads of JAX and of readers do not survive a fork.
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _begin_worker)
    try:
        futures = {pool.submit(write_part, plan, number): number for number in numbers}
        done = {}
        finished = concurrent.futures.as_completed(futures)
        for future in progress(finished, desc="preparing", unit="parts", total=len(futures)):
            done[futures[future]] = future.result()
    except BaseException as error:
        # What they write is of use only when it is whole: nobody waits for it.
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()
        if not isinstance(error, BrokenProcessPool):
            raise
        raise UserError(
            f"workers={workers}: a process was ended from outside, most likely for want of memory; "
            "start again with fewer, and it goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return [done[number] for number in numbers]


def _begin_worker() -> None:
    """A worker ends with its parent, however that ends, and leaves signals to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _write_by_beam(plan: Plan, runner: str, options: list[str]) -> list[DonePart]:
    """Writes all parts by a pipeline of Apache Beam, whose workers see the same files."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            f"runner={runner!r} needs the package apache-beam: pip install 'matta_jax[beam]'"
        ) from None
    name = {"direct": "DirectRunner", "dataflow": "DataflowRunner"}.get(runner)
    chosen = PipelineOptions([f"--runner={name or f'{runner.title()}Runner'}", *options])
    numbers = range(len(plan.jobs))
    with beam.Pipeline(options=chosen) as pipeline:
        parts = pipeline | "Parts" >> beam.Create(numbers) | "Spread" >> beam.Reshuffle()
        # What it returns may lie on another machine: what it wrote is read again below.
        _ = parts | "Tokenise" >> beam.Map(functools.partial(write_part, plan))
    done = [read_done(plan, number) for number in numbers]
    missing = [number for number, part in zip(numbers, done, strict=True) if part is None]
    if missing:
        raise UserError(
            f"output={plan.folder!r}: {len(missing)} parts are not there after the pipeline; name "
            "a folder that all of its workers see, such as one in a bucket"
        )
    return [part for part in done if part is not None]
