"""How long each binary takes to start, and a run to its first step (beside the numbered
benchmarks).

    python experiments/benchmarks/start_up.py

Each in fresh processes, in turns, which import the binary as its console script does; `modules` is
how many that are. The first step is of configs/quickstart.py, without a compilation cache and with
one that is warm.
"""

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import harness

ROOT = pathlib.Path(__file__).parents[2]
BINARIES = sorted(path.stem for path in (ROOT / "matta_jax" / "bin").glob("[!_]*.py"))
IMPORT = (
    "import sys, matta_jax.bin.{0}; "
    "print(len(sys.modules), *(m for m in sys.modules if m in {1!r}))"
)
HEAVY = (
    "matta_jax.training",
    "matta_jax.data",
    "tensorflow",
    "torch",
    "tensorflow_datasets",
    "matplotlib",
    "scipy",
)
STEP = [
    sys.executable,
    "-m",
    "matta_jax.bin.train",
    "--config=configs/quickstart.py",
    "--config.train.num_steps=1",
]
STEP += ["--config.optimizer.warmup_steps=0"]


def run(command, **environment):
    """Runs a process; returns its wall seconds, CPU-seconds and output."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu, done.stdout


def imports(rounds):
    """One row for each binary."""
    starts = {name: [] for name in BINARIES}
    for _ in range(rounds + 1):
        for name in BINARIES:
            starts[name].append(run([sys.executable, "-c", IMPORT.format(name, HEAVY)]))

    rows = []
    for name, (first, *counted) in starts.items():
        count, *heavy = first[2].split()
        rows.append(
            {
                "binary": name,
                "wall s": statistics.median(wall for wall, _, _ in counted),
                "CPU-s": statistics.median(cpu for _, cpu, _ in counted),
                "modules": int(count),
                "among them": ", ".join(heavy),
                "bar, s": "3" if name == "extract" else "",
            }
        )
    return rows


def first_step(folder):
    """Wall and CPU-seconds of a run of one step, with an empty compilation cache and with a full
    one.
    """
    rows = []
    cache = {
        "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    run([*STEP, f"--workdir={folder}/tokens"])  # The corpus is tokenised.
    for name in ("cold", "warm"):
        wall, cpu, _ = run([*STEP, f"--workdir={folder}/{name}"], **cache)
        rows.append({"compilation cache": name, "wall s": wall, "CPU-s": cpu})
    return rows


def main():
    """Measures, prints the tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default="runs/benchmarks/start_up.json")
    flags = parser.parse_args()
    binaries = imports(flags.rounds)
    harness.print_table(binaries)
    with tempfile.TemporaryDirectory() as folder:
        steps = first_step(folder)
    print()
    harness.print_table(steps)
    harness.write_results(flags.output, {"binaries": binaries, "first step": steps})


if __name__ == "__main__":
    main()
