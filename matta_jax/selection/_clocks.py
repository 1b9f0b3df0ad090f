"""By which clock a search goes: of our programs, or of an engine on the files of each type."""

import dataclasses
from collections.abc import Callable, Sequence

from matta_jax.checkpoints import Source
from matta_jax.errors import UserError
from matta_jax.packages import Packaging, packaging_for
from matta_jax.selection._engine_clock import EngineClock
from matta_jax.selection._files import FileSizes
from matta_jax.selection._jax_clock import JaxClock
from matta_jax.selection._latency import LatencyModel
from matta_jax.selection._space import Budget, Space
from matta_jax.selection._workload import JAX, Workload, length_of_run


def checked_workload(
    source: Source, budget: Budget, workload: Workload | None, quantize: Sequence[str]
) -> Workload | None:
    """What models of a run are timed at; None where nothing is limited or asked for.

    Raises:
      UserError: models of this run have no such time.
    """
    if workload is None and budget.max_ms is None:
        return None
    model = source.config.model
    workload = workload or Workload(length=length_of_run(source.config))
    if model.num_positions is None:
        workload.check_length(model.max_len)
    if workload.mode == "decode" and model.reads_examples:
        raise UserError(
            f"latency_mode='decode' is of language models, and {model.a_noun} reads all at once; "
            "use prefill"
        )
    if quantize and workload.engine not in (JAX, "llama.cpp"):
        raise UserError(
            f"quantize={','.join(quantize)} is of the files of llama.cpp, which "
            f"latency_engine={workload.engine!r} does not read; give --latency_engine=llama.cpp"
        )
    return workload


def latency_models(
    source: Source,
    space: Space,
    workload: Workload | None,
    packaging: Packaging,
    types: Sequence[FileSizes],
    *,
    log: Callable[[str], None],
) -> list[LatencyModel | None]:
    """What predicts times, of files of each type; where there are none, of models as they are
    written. Nothing is timed yet.

    Raises:
      UserError: the engine is not installed, or cannot run a model of the space.
    """
    count = max(1, len(types))
    if workload is None:
        return [None] * count
    if workload.engine == JAX:
        # Weights are not quantised here: all types share their times.
        return [LatencyModel(source, JaxClock(source, workload))] * count

    packaging = packaging_for(workload.engine, packaging)
    packagings = [packaging]
    if types:
        packagings = [dataclasses.replace(packaging, quantize=files.numbers) for files in types]
    clocks = [EngineClock(source, workload, chosen, log) for chosen in packagings]
    for clock in clocks:
        clock.check(space)
    return [LatencyModel(source, clock) for clock in clocks]
