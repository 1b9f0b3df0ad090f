"""The data pipeline against a memory-mapped array, and what it adds to a step (benchmark 7).

    python experiments/benchmarks/data.py

Windows of 1,024 tokens in batches of 64, shuffled. CPU-seconds count every thread of the process,
so that what is read ahead while a step runs is counted too.
"""

import argparse
import pathlib
import tempfile

import harness  # isort: skip  (Pins the process before jax is imported.)

import jax
import numpy as np
from joint_step import stepper

from matta_jax import config as c
from matta_jax.data import Windows, training_batches
from matta_jax.sharding import make_mesh, place_batch
from matta_jax.training import make_setup, make_train_step

SEQ_LEN, BATCH, VOCAB = 1024, 64, 512
READ = 50  # Batches that a contender of reading reads in a round.


def setup_of_step():
    """A small model, whose step is the shortest that one would train on such batches."""
    sizes = {
        "num_layers": 2,
        "d_model": 128,
        "num_heads": 2,
        "d_ff": 512,
        "max_len": SEQ_LEN,
        "vocab_size": VOCAB,
    }
    config = c.Config(
        model=c.ModelConfig(**sizes),
        optimizer=c.OptimizerConfig(warmup_steps=0),
        data=c.DataConfig(seq_len=SEQ_LEN, batch_size=BATCH),
    )
    return make_setup(config, make_mesh((1, 1, 1)))


def measure(folder, rounds, num_tokens):
    """Returns the rows of reading, and that of steps."""
    path = pathlib.Path(folder) / "tokens.npy"
    np.save(path, np.random.default_rng(0).integers(0, VOCAB, num_tokens, dtype=np.uint16))
    tokens = np.load(path, mmap_mode="r")
    windows = Windows(
        tokens, SEQ_LEN, eos_id=0, num_bytes=num_tokens, num_documents=1, fingerprint=""
    )
    random = np.random.default_rng(1)

    def from_array():
        for _ in range(READ):
            starts = random.integers(0, num_tokens - SEQ_LEN - 1, BATCH)
            np.stack([tokens[start : start + SEQ_LEN + 1].astype(np.int32) for start in starts])

    setup = setup_of_step()
    program = make_train_step(setup)
    with training_batches(windows, batch_size=BATCH, seed=0) as batches:
        readers = {
            "pipeline": lambda: [next(batches) for _ in range(READ)],
            "memory-mapped array": from_array,
        }
        reading = harness.times_of(readers, rounds=rounds)
        fixed_batch = place_batch(next(batches), setup.mesh)

    rows = []
    for name, (seconds, spread) in reading.items():
        rate = READ * BATCH * SEQ_LEN / seconds / 1e6
        rows.append({"reader": name, "M tokens / CPU-s": rate, "spread": spread, "bar": "20"})

    on_fixed_batch = stepper(program, setup.init(), fixed_batch)
    holder = {"state": setup.init()}
    with training_batches(windows, batch_size=BATCH, seed=0) as batches:

        def with_pipeline():
            batch = place_batch(next(batches), setup.mesh)
            holder["state"], _ = jax.block_until_ready(program(holder["state"], batch))

        contenders = {"fixed batch": on_fixed_batch, "pipeline": with_pipeline}
        steps = harness.times_of(contenders, rounds=2 * rounds)

    fixed_s, spread = steps["fixed batch"]
    fed_s, _ = steps["pipeline"]
    return rows, {
        "step on a fixed batch, CPU-s": fixed_s,
        "spread": spread,
        "with the pipeline": fed_s / fixed_s,
    }


def main():
    """Measures, prints the tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--num_tokens", type=int, default=100_000_000)
    parser.add_argument("--output", default="runs/benchmarks/data.json")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reading, step = measure(folder, flags.rounds, flags.num_tokens)
    harness.print_table(reading)
    print()
    harness.print_table([step | {"bar": "1.02"}])
    harness.write_results(flags.output, {"reading": reading, "step": step})


if __name__ == "__main__":
    main()
