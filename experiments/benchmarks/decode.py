"""Tokens per CPU-second of generation with a cache, against Hugging Face's, and of sub-models
(benchmark 10).

    python experiments/benchmarks/decode.py --install_peers
    python experiments/benchmarks/decode.py --batch_size=8

The size of GPT-2 small (124 M parameters, float32, random weights), a prompt of 32 tokens and 64
new ones, greedy; a round is all of it. The ids must be those of Hugging Face. Sub-models: half of
each MLP, half of the layers; their time of a token is set against their share of the bytes, which
are what decoding at batch 1 reads.
"""

import argparse
import tempfile

import harness  # isort: skip  (Pins the process before its children start.)

import contenders as peers

GPT2 = {
    "num_layers": 12,
    "d_model": 768,
    "num_heads": 12,
    "d_ff": 3072,
    "max_len": 1024,
    "vocab_size": 50257,
}


def rows_of(steps_of, batch_size, new_tokens):
    """One row for each contender."""
    rows = []
    ta_megabytes = steps_of["ours"][0]["megabytes"]
    for name, steps in steps_of.items():
        counted = steps[peers.WARM_UP :]
        seconds, spread = harness.median_and_spread([step["seconds"] for step in counted])
        row = {
            "model": name,
            "batch": batch_size,
            "tokens / CPU-s": batch_size * new_tokens / seconds,
            "spread": spread,
        }
        ours = rows[0] if rows else row
        row["time / ours"] = ours["tokens / CPU-s"] / row["tokens / CPU-s"]
        row["share of bytes"] = steps[0].get("megabytes", ta_megabytes) / ta_megabytes
        rows.append(row)
    return rows


def main():
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--install_peers", action="store_true", help="make their environments")
    parser.add_argument("--output")
    flags = parser.parse_args()
    sizes = GPT2 | {"batch_size": flags.batch_size, "prompt": 32, "new": 64}
    halves = {
        "half of each MLP": f"d_ff={GPT2['d_ff'] // 2}",
        "half of the layers": f"layers={GPT2['num_layers'] // 2}",
    }
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.npz"
        ours = peers.Contender(peers.PYTHON, "ours_decode.py", sizes, weights, "ta", "--write")
        # The others load the weights that it writes.
        ours.ready()

        running = {"ours": ours}
        for name, spec in halves.items():
            running[f"ours, {name}"] = peers.Contender(
                peers.PYTHON, "ours_decode.py", sizes, weights, spec
            )
        if python := peers.environment("torch", peers.TORCH, install=flags.install_peers):
            running["Hugging Face"] = peers.Contender(python, "hf_decode.py", sizes, weights)

        steps_of = peers.take_turns(running, rounds=flags.rounds)
        for contender in running.values():
            contender.close()

    ids = steps_of["ours"][0]["ids"]
    if "Hugging Face" in steps_of and steps_of["Hugging Face"][0]["ids"] != ids:
        raise RuntimeError("Hugging Face generates other ids")

    rows = rows_of(steps_of, flags.batch_size, sizes["new"])
    harness.print_table(rows)
    harness.write_results(
        flags.output or f"runs/benchmarks/decode_{flags.batch_size}.json", {"rows": rows}
    )


if __name__ == "__main__":
    main()
