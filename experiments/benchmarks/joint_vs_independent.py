"""The joint step of Student and TA against two own runs, and against PyTorch's naive joint training
(benchmark 3).

    python experiments/benchmarks/joint_vs_independent.py --install_peers --nanogpt=nanoGPT
    python experiments/benchmarks/joint_vs_independent.py --vocab_size=50257 --rounds=3 \\
        --nanogpt=nanoGPT
    python experiments/benchmarks/joint_vs_independent.py --nest=depth

Size S, d_ff 1,024 in 2,048, or for `depth` 6 layers in 9, of which the Student runs the first. `two
own runs` are the times of the Student alone and the TA alone added up. PyTorch's contenders have
the weights and losses of the joint step, to 1e-4.
"""

import argparse
import tempfile

import harness  # isort: skip  (Pins the process before its children start.)

import contenders as peers

TA = {"width": {"d_ff": 2048}, "depth": {"num_layers": 9}}


def start(sizes, weights, flags):
    """Returns the contenders by name, ours first."""
    joint = peers.Contender(peers.PYTHON, "ours.py", sizes, weights, "joint", "--write")
    # The others load the weights that it writes.
    joint.ready()

    contenders = {"ours, joint": joint}
    kinds = {"ours, Student alone": "student", "ours, TA alone": "ta"}
    if flags.nest == "width":
        kinds["ours, joint and a mix"] = "joint_mix"
    for name, kind in kinds.items():
        contenders[name] = peers.Contender(peers.PYTHON, "ours.py", sizes, weights, kind)
    if flags.nest == "depth":
        return contenders

    python = peers.environment("torch", peers.TORCH, install=flags.install_peers)
    nanogpt = peers.checkout(flags.nanogpt, "nanogpt", "https://github.com/karpathy/nanoGPT")
    if not (python and nanogpt):
        return contenders

    for how in ("eager", "compiled"):
        contenders[f"PyTorch, {how}, joint"] = peers.Contender(
            python, "torch_gpt.py", sizes, weights, "joint", how, nanogpt
        )
    return contenders


def main():
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocab_size", type=int, default=512)
    parser.add_argument("--nest", choices=sorted(TA), default="width")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--install_peers", action="store_true", help="make their environments")
    parser.add_argument("--nanogpt", help="folder of its public code")
    parser.add_argument("--output")
    flags = parser.parse_args()
    sizes = peers.SIZE_S | {"vocab_size": flags.vocab_size, "batch_size": 8, "ta": TA[flags.nest]}
    with tempfile.TemporaryDirectory() as folder:
        running = start(sizes, f"{folder}/weights.npz", flags)
        steps_of = peers.take_turns(running, rounds=flags.rounds)
        for contender in running.values():
            contender.close()

    joint_steps = {
        name: steps
        for name, steps in steps_of.items()
        if name == "ours, joint" or "PyTorch" in name
    }
    for field in ("loss", "student"):
        peers.check_losses(joint_steps, field)

    rows = peers.rows_of(steps_of)
    times = {row["contender"]: row["CPU-s"] for row in rows}
    two_runs = times["ours, Student alone"] + times["ours, TA alone"]
    ratio = times["ours, joint"] / two_runs
    harness.print_table(rows)
    print(f"\njoint / two own runs: {ratio:.3f}")

    default = f"runs/benchmarks/joint_{flags.nest}_{flags.vocab_size}.json"
    results = {"rows": rows, "joint / two own runs": ratio}
    harness.write_results(flags.output or default, results)


if __name__ == "__main__":
    main()
