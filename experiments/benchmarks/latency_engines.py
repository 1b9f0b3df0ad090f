"""Predicted and measured milliseconds of an engine, of uniform and of mixed models with as many
parameters.

    pip install -e '.[llama-cpp]'
    python experiments/benchmarks/latency_engines.py --workdir=runs/latency

Trains a Llama nest of 8 layers where the workdir holds none, then searches it within the parameters
of one uniform width: what a search verifies are the best mixes, the paper's patterns and the
uniform width itself, each measured in the engine on its file.
"""

import argparse

import harness  # isort: skip  (Pins the process before its children start.)

import matta_jax
from matta_jax import config as c
from matta_jax import storage
from matta_jax.packages import Packaging
from matta_jax.selection import Budget, Workload

# The uniform width that mixes are compared with, and the tokens of a prompt.
WIDTH, LENGTH = 512, 256
MODES = ("prefill", "decode")


def config():
    """A nest of a Llama of 8 layers, d_ff 256 in 1,024, on the standard library's sources."""
    sizes = {"num_layers": 8, "d_model": 256, "num_heads": 4, "num_kv_heads": 2, "d_ff": 256}
    return c.Config(
        model=c.LlamaConfig(vocab_size=256, max_len=512, **sizes),
        nest=c.NestConfig(d_ff=1024, widths=(256, WIDTH, 768, 1024)),
        optimizer=c.OptimizerConfig(name="adamw", learning_rate=2e-3, warmup_steps=20),
        data=c.DataConfig(source="stdlib", eval_fraction=0.02, seq_len=64, batch_size=16),
        train=c.TrainConfig(num_steps=200, eval_every=200, eval_batches=4, checkpoint_every=100),
    )


def timed_rows(flags, mode, quantize):
    """The rows of a search that were timed, by spec."""
    result = matta_jax.search(
        flags.workdir,
        # One folder: what is scored for a mode is not scored again for another.
        f"{flags.workdir}/search",
        budget=Budget(max_params=flags.max_params),
        method="additive",
        num_windows=flags.num_windows,
        verify=flags.verify,
        workload=Workload(mode, 1, LENGTH, engine=flags.engine, threads=flags.threads),
        packaging=Packaging("gguf"),
        quantize=[quantize],
    )
    print(*result.notes, sep="\n")
    return {row.spec: row for row in result.rows if row.ms is not None}


def lines_of(quantize, by_mode):
    """The table's lines of a type; beside milliseconds their share of the uniform model's."""
    lines = []
    for spec, row in by_mode[MODES[0]].items():
        line = {"type": quantize, "model": spec, "M parameters": f"{row.parameters / 1e6:.2f}"}
        line["bits per byte"] = f"{row.verified:.4f}"
        for mode in MODES:
            timed, uniform = by_mode[mode][spec], by_mode[mode][f"d_ff={WIDTH}"]
            share = timed.predicted_ms / uniform.predicted_ms
            line[f"{mode}: ms predicted"] = f"{timed.predicted_ms:.3g} ({share:.2f})"
            share = timed.ms / uniform.ms
            line[f"{mode}: measured"] = f"{timed.ms:.3g} ± {timed.ms_spread:.0%} ({share:.2f})"
        lines.append(line)
    return lines


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/latency")
    parser.add_argument("--engine", default="llama.cpp")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max_params", type=float, default=4.8e6)
    parser.add_argument("--types", nargs="+", default=["q8_0", "f16"])
    parser.add_argument("--num_windows", type=int, default=8)
    parser.add_argument("--verify", type=int, default=3)
    parser.add_argument("--output", default="runs/benchmarks/latency_engines.json")
    flags = parser.parse_args()

    if not (storage.path(flags.workdir) / "checkpoints").is_dir():
        matta_jax.train(config(), flags.workdir)

    table, results = [], {}
    for quantize in flags.types:
        by_mode = {mode: timed_rows(flags, mode, quantize) for mode in MODES}
        table += lines_of(quantize, by_mode)
        results[quantize] = {mode: list(map(vars, rows.values())) for mode, rows in by_mode.items()}
    harness.print_table(table)
    harness.write_results(flags.output, {"rows": results})


if __name__ == "__main__":
    main()
