"""How a joint step grows with layers and with tokens: time, temporary memory, time to compile
(beside benchmark 12).

    python experiments/benchmarks/growth_size.py --over layers
    python experiments/benchmarks/growth_size.py --over tokens

Student and TA of size S: of 2 to 48 layers, at 512 tokens a step; or of 6 layers, at 1,024 to
65,536 tokens a step, in microbatches of 1,024. The model of time is the time of the smallest, times
the ratio of the analytic FLOPs that MFU goes by. The time to compile is CPU-seconds of tracing,
lowering and compiling, without a cache.
"""

import argparse
import dataclasses
import time

import harness  # isort: skip  (Pins the process before jax is imported.)

import jax
from joint_step import lower_step, random_batch, size_s, stepper

from matta_jax.sharding import make_mesh
from matta_jax.training import make_setup, step_flops_of

SEQ_LEN = 256
LAYERS = (2, 6, 12, 24, 48)
TOKENS = (1024, 4096, 16384, 65536)


def config_of(over, size):
    """The run of a size."""
    if over == "layers":
        return size_s(num_layers=size, batch_size=2)
    config = size_s(batch_size=size // SEQ_LEN)
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, microbatches=size // TOKENS[0])
    )


def measure(over, sizes, rounds):
    """One row for each size."""
    calls, rows = {}, {}
    for size in sizes:
        setup = make_setup(config_of(over, size), make_mesh((1, 1, 1)))
        jax.clear_caches()
        start = time.process_time()
        program = lower_step(setup).compile()
        compiled = time.process_time() - start
        calls[size] = stepper(program, setup.init(), random_batch(setup))

        flops = step_flops_of(setup) * setup.config.data.batch_size * SEQ_LEN
        temporaries = program.memory_analysis().temp_size_in_bytes / 1e6
        rows[size] = {
            over: size,
            "GFLOP": flops / 1e9,
            "temporaries MB": temporaries,
            "compile CPU-s": compiled,
        }

    smallest_rate = None
    for size, (seconds, spread) in harness.times_of(calls, rounds=rounds).items():
        rate = seconds / rows[size]["GFLOP"]
        smallest_rate = smallest_rate or rate
        rows[size] |= {
            "CPU-s": seconds,
            "spread": spread,
            "time / model": rate / smallest_rate,
            "bar": "1.05",
        }
    return list(rows.values())


def main():
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--over", choices=("layers", "tokens"), default="layers")
    parser.add_argument("--sizes", type=int, nargs="+", help="layers, or tokens; smallest first")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output")
    flags = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    sizes = flags.sizes or {"layers": LAYERS, "tokens": TOKENS}[flags.over]
    rows = measure(flags.over, sizes, flags.rounds)
    harness.print_table(rows)
    harness.write_results(
        flags.output or f"runs/benchmarks/growth_{flags.over}.json",
        {"over": flags.over, "rows": rows},
    )


if __name__ == "__main__":
    main()
