"""What every benchmark shares: one pinned core, interleaved rounds, a table and a JSON file.

Import this module before jax: it pins the process to one core and XLA to one thread, so that
CPU-seconds mean work.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
CORES = os.sched_getaffinity(0)
"""Those of this process before it is pinned: what it starts may have all of them."""
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.sched_setaffinity(0, {max(CORES)})
    _FLAGS = " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + _FLAGS


def waited(program: Callable[..., Any], *operands: Any) -> Callable[[], Any]:
    """Returns a contender that runs a compiled jax program to its end."""
    import jax

    return lambda: jax.block_until_ready(program(*operands))


def interleave(
    contenders: Mapping[str, Callable[[], Any]], *, rounds: int
) -> dict[str, list[float]]:
    """Returns the CPU-seconds of each call; every round runs each contender once, and a first round
    is left out.

    A contender returns when its work is done, as those of `waited` do.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: values[1:] for name, values in seconds.items()}


def times_of(contenders: Mapping[Any, Callable[[], Any]], *, rounds: int) -> dict[Any, Any]:
    """Returns `median_and_spread` of the CPU-seconds that `interleave` measures."""
    seconds = interleave(contenders, rounds=rounds)
    return {name: median_and_spread(values) for name, values in seconds.items()}


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns the median and half the range relative to it."""
    median = statistics.median(values)
    return median, (max(values) - min(values)) / 2 / median


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows of equal keys as a Markdown table; floats with three significant digits."""
    from matta_jax.reporting import markdown_table

    def text(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [[text(value) for value in row.values()] for row in rows]
    print(markdown_table(list(rows[0]), lines, left=(0,)))


def write_results(output: str, results: Mapping[str, Any]) -> None:
    """Writes results beside the command, the date and the machine that made them."""
    import jax

    about = {
        "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }

    path = pathlib.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | dict(results), indent=2) + "\n")
    print(f"\nwritten: {path}")
