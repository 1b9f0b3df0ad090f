"""Weak scaling over simulated devices (benchmark 15).

    python experiments/benchmarks/weak_scaling.py   # about six minutes

The joint train step of size S with 2 sequences per device, on meshes over the first 1, 2, 4 and 8
of eight simulated devices, which share one core: what a step costs on every device beyond its own 2
sequences is overhead. `data` splits the batch and keeps the state whole on each device; `fsdp`
splits the state too. Argument bytes are those of the compiled step on one device: state and batch.
In a turn, each contender takes steps on 16 sequences in all.

At last, the losses of three steps on 16 sequences, by eight devices of each mesh and by one.
"""

import argparse
import functools

import harness  # isort: skip  (Pins the process before jax is imported.)

import jax
import numpy as np
from joint_step import lower_step, random_batch, size_s, stepper

from matta_jax.sharding import make_mesh
from matta_jax.training import make_setup

DEVICES = (1, 2, 4, 8)
MESHES = {"data": lambda count: (count, 1, 1), "fsdp": lambda count: (1, count, 1)}
LOSSES = ("loss", "student", "ta", "distill")


def prepare(sizes, batch_size):
    """Returns the compiled step on a mesh, and a contender that runs it."""
    setup = make_setup(size_s(batch_size=batch_size), make_mesh(sizes))
    program = lower_step(setup).compile()
    return program, stepper(program, setup.init(), random_batch(setup))


def repeat(step, times):
    """Takes several steps."""
    for _ in range(times):
        step()


def measure_scaling(rounds):
    """One row for each mesh and number of devices."""
    calls, arguments = {}, {}
    for mesh, sizes in MESHES.items():
        for count in DEVICES:
            program, step = prepare(sizes(count), 2 * count)
            calls[mesh, count] = functools.partial(repeat, step, DEVICES[-1] // count)
            arguments[mesh, count] = program.memory_analysis().argument_size_in_bytes
    del calls["fsdp", 1]  # The same program.
    times = harness.times_of(calls, rounds=rounds)
    rows = []
    for (mesh, count), (median, spread) in times.items():
        row = {
            "mesh": mesh,
            "devices": count,
            "CPU-s per device": median / DEVICES[-1],
            "spread": spread,
        }
        row["time, of one device"] = median / times["data", 1][0]
        row["argument MB per device"] = arguments[mesh, count] / 1e6
        row["arguments, of one device"] = arguments[mesh, count] / arguments[mesh, 1]
        bar = {"data": "1.15", "fsdp": "1.15; 0.14"}[mesh] if count == 8 else ""
        rows.append(row | {"bar": bar})
    return rows


def compare_losses(steps):
    """One row for each mesh: the largest difference of a loss from one device's, in nats."""
    meshes = {
        "one device": (1, 1, 1),
        "data": MESHES["data"](8),
        "fsdp": MESHES["fsdp"](8),
    }
    losses = {}
    for mesh, sizes in meshes.items():
        _, run = prepare(sizes, 16)
        by_step = []
        for _ in range(steps):
            metrics = run()
            by_step.append([float(metrics[name]) for name in LOSSES])
        losses[mesh] = np.array(by_step)

    rows = []
    for mesh in MESHES:
        error = np.abs(losses[mesh] - losses["one device"]).max()
        rows.append(
            {
                "mesh": mesh,
                "devices": 8,
                "steps": steps,
                "largest difference": float(error),
                "bar": 1e-4,
            }
        )
    return rows


def main():
    """Measures, prints the tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default="runs/benchmarks/weak_scaling.json")
    flags = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    results = {"scaling": measure_scaling(flags.rounds), "losses": compare_losses(3)}
    for rows in results.values():
        harness.print_table(rows)
    harness.write_results(flags.output, results)


if __name__ == "__main__":
    main()
