"""Our train step of one model against its peers' (benchmarks 1 and 2).

    git clone https://github.com/karpathy/nanoGPT
    git clone https://github.com/google-deepmind/nanodo
    python experiments/benchmarks/train_step.py --install_peers --nanogpt=nanoGPT --nanodo=nanodo
    python experiments/benchmarks/train_step.py --vocab_size=50257 --rounds=3 \\
        --nanogpt=nanoGPT --nanodo=nanodo
    python experiments/benchmarks/train_step.py --family=llama --install_peers

Size S, Student alone, float32, AdamW, clipping: 8 sequences of 256 tokens. All load the same
weights (nanodo, which has no biases, its own), and must have the same losses in their first two
steps. Peers that are not there are skipped, and told.
"""

import argparse
import math
import tempfile

import harness  # isort: skip  (Pins the process before its children start.)

import contenders as peers


def start(sizes, weights, flags):
    """Returns the contenders by name, ours first."""
    ours = peers.Contender(peers.PYTHON, "ours.py", sizes, weights, "student", "--write")
    # The others load the weights that it writes.
    ours.ready()

    contenders = {"ours": ours}
    is_llama = "num_kv_heads" in sizes
    plain = "flax_llama.py" if is_llama else "flax_gpt.py"
    contenders["plain Flax NNX"] = peers.Contender(peers.PYTHON, plain, sizes, weights)
    nanodo = nanogpt = None
    if not is_llama:
        nanodo = peers.checkout(flags.nanodo, "nanodo", "https://github.com/google-deepmind/nanodo")
        nanogpt = peers.checkout(flags.nanogpt, "nanogpt", "https://github.com/karpathy/nanoGPT")
    if nanodo:
        contenders["nanodo"] = peers.Contender(
            peers.PYTHON, "nanodo_gpt.py", sizes, weights, nanodo
        )

    python = peers.environment("torch", peers.TORCH, install=flags.install_peers)
    if python is None:
        return contenders

    for how in ("eager", "compiled"):
        if nanogpt:
            contenders[f"nanoGPT, {how}"] = peers.Contender(
                python, "torch_gpt.py", sizes, weights, "nanogpt", how, nanogpt
            )
        contenders[f"Hugging Face, {how}"] = peers.Contender(
            python, "torch_gpt.py", sizes, weights, "hf", how, ""
        )
    return contenders


def check(steps_of, vocab_size):
    """Raises unless all have the same losses; nanodo, of weights of its own, about ln V."""
    if "nanodo" in steps_of:
        fresh = steps_of["nanodo"][0]["loss"]
        if abs(fresh - math.log(vocab_size)) > 1.5:
            raise RuntimeError(f"nanodo starts at {fresh}, far from ln V")

    of_same_weights = {name: steps for name, steps in steps_of.items() if name != "nanodo"}
    peers.check_losses(of_same_weights)


def main():
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", default="gpt", choices=["gpt", "llama"])
    parser.add_argument("--vocab_size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--install_peers", action="store_true", help="make their environments")
    parser.add_argument("--nanogpt", help="folder of its public code")
    parser.add_argument("--nanodo", help="folder of its public code")
    parser.add_argument("--output")
    flags = parser.parse_args()
    size = peers.LLAMA_S if flags.family == "llama" else peers.SIZE_S
    sizes = size | {"vocab_size": flags.vocab_size, "batch_size": 8, "ta": {}}
    with tempfile.TemporaryDirectory() as folder:
        running = start(sizes, f"{folder}/weights.npz", flags)
        steps_of = peers.take_turns(running, rounds=flags.rounds)
        for contender in running.values():
            contender.close()

    check(steps_of, flags.vocab_size)
    rows = peers.rows_of(steps_of)
    harness.print_table(rows)
    harness.write_results(
        flags.output or f"runs/benchmarks/train_step_{flags.family}_{flags.vocab_size}.json",
        {"rows": rows},
    )


if __name__ == "__main__":
    main()
