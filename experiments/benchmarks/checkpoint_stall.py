"""How long a step waits for a checkpoint, against a synchronous save and a raw write of the same
bytes (benchmark 8).

    python experiments/benchmarks/checkpoint_stall.py --folder=/tmp

A train state of 2 GiB (weights and two moments). Wall seconds, since disks are what is measured,
and CPU-seconds beside them: `blocked` until training may go on, `step after` by which the next
step, which overwrites all arrays in place, takes longer than others do, and `total` until the
checkpoint is whole. What is still being written from those arrays is copied within that step, by
the runtime and unseen by `blocked`. A raw write ends with fsync.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import tempfile
import time

import harness  # isort: skip  (Sets up the CPU before jax is imported.)

import jax
import jax.numpy as jnp

from matta_jax import config as c
from matta_jax.checkpoints import Checkpoints
from matta_jax.sharding import make_mesh
from matta_jax.training import make_setup


def state_of(gigabytes):
    """Returns the setup and the state of a run of so many GiB."""
    # A layer has 12·d_model² weights, of 12 bytes.
    layers = max(1, round(gigabytes * 2**30 / 12 / (12 * 1024**2)))
    config = c.Config(
        model=c.ModelConfig(
            num_layers=layers, d_model=1024, num_heads=16, d_ff=4096, max_len=1024, vocab_size=512
        ),
        data=c.DataConfig(seq_len=1024),
    )
    setup = make_setup(config, make_mesh((1, 1, 1)))
    return setup, setup.init()


class Run:
    """A state that is saved and trained on."""

    def __init__(self, setup, state):
        self.setup = setup
        self.state = state
        self._step = jax.jit(_written_over, donate_argnums=0)
        # The first one compiles.
        self.step()
        self._usual = statistics.median(self.step() for _ in range(3))

    def step(self):
        """Changes all arrays where they lie; returns the seconds."""
        start = time.perf_counter()
        self.state = jax.block_until_ready(self._step(self.state))
        return time.perf_counter() - start

    def save(self, folder, *, wait):
        """Saves as training does, and trains a step meanwhile unless it is to `wait`. Returns the
        seconds until it may go on, those by which that step is longer than others, and those until
        all is written.
        """
        state = self.state
        trees = {"params": state.params, "opt_state": state.opt_state, "step": {"step": state.step}}
        after = 0.0
        with Checkpoints(folder) as checkpoints:
            start = time.perf_counter()
            checkpoints.save(0, trees, {"config": {}}, loss=1.0, units=self.setup.units)
            blocked = time.perf_counter() - start
            # Nothing here may still hold what the step gives away.
            del state, trees
            if not wait:
                after = self.step() - self._usual
        total = time.perf_counter() - start
        return (total if wait else blocked), after, total


def _written_over(state):
    return jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype), state)


def raw(folder, state):
    """Writes the bytes of all arrays to one file."""
    folder.mkdir()
    start = time.perf_counter()
    with (folder / "raw").open("wb") as file:
        for leaf in jax.tree.leaves(state):
            file.write(memoryview(jax.device_get(leaf)).cast("B") if leaf.ndim else bytes(4))
        file.flush()
        os.fsync(file.fileno())
    total = time.perf_counter() - start
    return total, 0.0, total


def measure(contenders, rounds):
    """Returns one row for each contender, which take turns; a first round is left out."""
    measured = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, save in contenders.items():
            start = time.process_time()
            seconds = save()
            measured[name].append((*seconds, time.process_time() - start))

    rows = []
    for name, values in measured.items():
        blocked, after, totals, cpu = zip(*values[1:], strict=True)
        total, spread = harness.median_and_spread(totals)
        rows.append(
            {
                "save": name,
                "blocked s": statistics.median(blocked),
                "step after s": statistics.median(after),
                "total s": total,
                "spread": spread,
                "CPU-s": statistics.median(cpu),
            }
        )
    return rows


def ratios_of(rows):
    """What the bars are of: our row, that of a synchronous save, and a raw write's."""
    ours, synchronous, least = rows
    waits = ours["blocked s"] + ours["step after s"]
    return {
        "blocked / synchronous": ours["blocked s"] / synchronous["blocked s"],
        "with the step after": waits / synchronous["blocked s"],
        "total / raw": ours["total s"] / least["total s"],
    }


def main():
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None, help="on the disk to measure")
    parser.add_argument("--output", default="runs/benchmarks/checkpoint_stall.json")
    flags = parser.parse_args()
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # Disks, not one core's arithmetic.
    setup, state = state_of(flags.gigabytes)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    run = Run(setup, state)
    del state
    with tempfile.TemporaryDirectory(dir=flags.folder) as root:
        folder = pathlib.Path(root) / "one"

        def cleared(save):
            seconds = save()
            shutil.rmtree(folder)
            return seconds

        contenders = {
            "ours": lambda: cleared(lambda: run.save(folder, wait=False)),
            "ours, synchronous": lambda: cleared(lambda: run.save(folder, wait=True)),
            "raw write": lambda: cleared(lambda: raw(folder, run.state)),
        }
        rows = measure(contenders, flags.rounds)
    ratios = ratios_of(rows)
    print(f"{size / 2**30:.2f} GiB")
    harness.print_table(rows)
    print(", ".join(f"{name} {value:.3f}" for name, value in ratios.items()), "(bars 0.05, 1.2)")
    harness.write_results(flags.output, {"bytes": size, "rows": rows, **ratios})


if __name__ == "__main__":
    main()
