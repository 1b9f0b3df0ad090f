"""Memory and time of the joint step's scan with its checkpoint policy (benchmark 13).

    python experiments/benchmarks/remat.py   # about three minutes

The whole train step of size S, Student and TA together:

    scan, dots          ours: one scan over the layers; of a layer, matmul outputs are kept
    unrolled, none      a Python loop over layers with arrays of their own; all that a gradient
                        needs is kept
    scan, none / full   our scan, with all kept, or with nothing but its carry

Temporaries are those of the compiled program. All must have the same losses before they are timed.
"""

import argparse

import harness  # isort: skip  (Pins the process before jax is imported.)

import jax
import numpy as np
from joint_step import layers_apart, lower_step, random_batch, size_s, stepper, unroll

from matta_jax.sharding import make_mesh
from matta_jax.training import TrainState, make_setup

PEER = "unrolled, none"


def measure(rounds):
    """One row for each contender."""
    calls, temporaries = {}, {}
    for remat in ("dots", "none", "full"):
        setup = make_setup(size_s(remat=remat), make_mesh((1, 1, 1)))
        program = lower_step(setup).compile()
        calls[f"scan, {remat}"] = stepper(program, setup.init(), random_batch(setup))
        temporaries[f"scan, {remat}"] = program.memory_analysis().temp_size_in_bytes

    peer, params = unroll(setup), layers_apart(setup.init().params)
    program = lower_step(peer, unrolled=True).compile()
    state = TrainState(setup.init().step, params, jax.jit(peer.optimizer.init)(params))
    calls[PEER] = stepper(program, state, random_batch(setup))
    temporaries[PEER] = program.memory_analysis().temp_size_in_bytes

    check_losses(calls)
    times = harness.times_of(calls, rounds=rounds)
    rows = []
    for name, (median, spread) in times.items():
        rows.append(
            {
                "contender": name,
                "temporaries MB": temporaries[name] / 1e6,
                "CPU-s": median,
                "spread": spread,
                "temporaries, of unrolled": temporaries[name] / temporaries[PEER],
                "time, of unrolled": median / times[PEER][0],
                "bar": "0.45 at 1.02" if name == "scan, dots" else "",
            }
        )
    return rows


def check_losses(calls):
    """Takes two steps with each contender; raises unless all have the losses of the peer."""
    metrics = {}
    for name, call in calls.items():
        metrics[name] = [call() for _ in range(2)]

    for steps in metrics.values():
        for step, expected in zip(steps, metrics[PEER], strict=True):
            for name in ("student", "ta", "distill", "grad_norm"):
                np.testing.assert_allclose(step[name], expected[name], rtol=1e-4)


def main():
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", default="runs/benchmarks/remat.json")
    flags = parser.parse_args()
    rows = measure(flags.rounds)
    harness.print_table(rows)
    harness.write_results(flags.output, {"rows": rows})


if __name__ == "__main__":
    main()
