"""How the time to compile the joint train step grows with depth (benchmark 11).

    python experiments/benchmarks/compile_time.py             # about seven minutes
    python experiments/benchmarks/compile_time.py --mixes 0   # about two and a half

The step of a Student (d_ff 1024) in a TA (d_ff 2048) of d_model 256, with no random mix and with
one, at 8 and 32 layers:

    scan      ours
    unrolled  the same step, its layers a Python loop over arrays of their own, without
              recomputation

CPU-seconds of tracing, lowering and compiling together, as a run waits for them. The persistent
compilation cache is off, and jax forgets what it has traced before each.
"""

import argparse
import functools

import harness  # isort: skip  (Pins the process before jax is imported.)

import jax
from joint_step import lower_step, size_s, unroll

from matta_jax.sharding import make_mesh
from matta_jax.training import make_setup


def compile_cold(setup, unrolled):
    """Compiles the train step as a fresh process would."""
    jax.clear_caches()
    lower_step(setup, unrolled=unrolled).compile()


def measure(rounds, depths, mixes_of):
    """One row for each way and number of mixes."""
    shallow, deep = depths
    rows = []
    for mixes in mixes_of:
        calls = {}
        for depth in depths:
            setup = make_setup(size_s(num_layers=depth, mixes=mixes), make_mesh((1, 1, 1)))
            calls["scan", depth] = functools.partial(compile_cold, setup, False)
            calls["unrolled", depth] = functools.partial(compile_cold, unroll(setup), True)

        times = harness.times_of(calls, rounds=rounds)
        for way in ("scan", "unrolled"):
            row = {"mixes": mixes, "way": way}
            for depth in depths:
                median, spread = times[way, depth]
                row[f"CPU-s, {depth} layers"] = median
                row[f"spread {depth}"] = spread
            row[f"{deep} / {shallow}"] = times[way, deep][0] / times[way, shallow][0]
            row["bar"] = 1.15 if way == "scan" else ""
            rows.append(row)
            print(rows[-1], flush=True)
    return rows


def main():
    """Compiles, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--depths", type=int, nargs=2, default=(8, 32))
    parser.add_argument(
        "--mixes",
        type=int,
        nargs="+",
        default=(0, 1),
        help="random mixes of a step, one table part each",
    )
    parser.add_argument("--output", default="runs/benchmarks/compile_time.json")
    flags = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    rows = measure(flags.rounds, flags.depths, flags.mixes)
    harness.print_table(rows)
    harness.write_results(flags.output, {"rows": rows})


if __name__ == "__main__":
    main()
