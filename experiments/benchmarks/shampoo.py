"""The cost of Shampoo (benchmark 6), and what it does on the quickstart's data.

    python experiments/benchmarks/shampoo.py --optimizer   # about five minutes
    python experiments/benchmarks/shampoo.py --step        # about fifteen minutes
    python experiments/benchmarks/shampoo.py --quality     # about twenty minutes

    optimizer   one update of 2.9 M weights: AdamW, Muon (optax.contrib), ours with Newton and
                eigh, and the public Shampoo (precondition-opt, where it is installed), on the same
                gradients: CPU-seconds of a step, roots every 10, compile time, state
    step        the joint step of a Student (d_ff 1024) in a TA (d_ff 2048), 6 layers, d_model 256,
                V 512: Shampoo with blocks of 128 and roots every 20 against AdamW, at 2,048 and
                16,384 tokens
    quality     200 steps of the quickstart, AdamW and Shampoo at equal steps: the learning rate of
                the lowest training loss of seed 0, then three seeds

A step that computes roots and one that does not are timed by themselves, and mixed as often as each
happens.
"""

import argparse
import functools
import importlib.util
import pathlib
import tempfile
import time
import warnings

import harness  # isort: skip  (Pins the process before jax is imported.)

import jax
import jax.numpy as jnp
import numpy as np
import optax

from matta_jax import config as c
from matta_jax import optim
from matta_jax.sharding import make_mesh
from matta_jax.training import TrainState, make_setup, make_train_step

TREE = {
    "embed": (10000, 128),
    "qkv": (8, 3, 128, 128),
    "out": (8, 128, 128),
    "w_in": (8, 128, 512),
    "w_out": (8, 512, 128),
    "norms": (8, 2, 128),
}


def unstacked(tree):
    """One leaf for each matrix, as optimisers that know no stacks need it."""
    result = {}
    for name, leaf in tree.items():
        flat = leaf.reshape(-1, *leaf.shape[-2:]) if leaf.ndim > 2 else leaf[None]
        result |= {f"{name}_{i}": flat[i] for i in range(flat.shape[0])}
    return result


def public_shampoo():
    """The last public JAX Shampoo, or None with a line that says why not."""
    if importlib.util.find_spec("precondition") is None:
        print(
            "public Shampoo: skipped, precondition-opt is not installed (pip install "
            "precondition-opt==0.3.0 chex)"
        )
        return None
    # Removed from jax since its release.
    for name in ("tree_map", "tree_flatten", "tree_unflatten"):
        setattr(jax, name, getattr(jax.tree_util, name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from precondition import distributed_shampoo as public
    return public.distributed_shampoo(
        1e-3,
        block_size=128,
        preconditioning_compute_steps=10,
        start_preconditioning_step=0,
        graft_type=public.GraftingType.RMSPROP,
        best_effort_shape_interpretation=False,
        skip_preconditioning_dim_size_gt=8192,
    )


def measure_optimizer(rounds):
    """One update of the tree, gradients given."""
    rng = np.random.default_rng(0)
    gradients = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in TREE.items()
    }

    def ours(root):
        settings = c.ShampooConfig(block_size=128, precondition_every=10, start_step=0, root=root)
        return optax.chain(optim.scale_by_shampoo(settings), optax.trace(0.9, nesterov=True))

    optimizers = {
        "AdamW": (optax.adamw(1e-3), gradients),
        "Muon": (optax.contrib.muon(1e-3), unstacked(gradients)),
        "ours, newton": (ours("newton"), gradients),
        "ours, eigh": (ours("eigh"), gradients),
        "public, newton": (public_shampoo(), unstacked(gradients)),
    }
    calls, about = {}, {}
    for name, (optimizer, tree) in optimizers.items():
        if optimizer is None:
            continue
        params = jax.tree.map(jnp.zeros_like, tree)
        state = jax.jit(optimizer.init)(params)
        start = time.process_time()
        step = jax.jit(optimizer.update).lower(tree, state, params).compile()
        about[name] = {
            "compile CPU-s": time.process_time() - start,
            "state MiB": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / 2**20,
            "HLO lines": step.as_text().count("\n"),
        }
        for label, steps in (("roots", 0), ("none", 1)):
            moved = state
            for _ in range(steps):
                moved = step(tree, moved, params)[1]
            calls[name, label] = harness.waited(step, tree, moved, params)
    times = harness.times_of(calls, rounds=rounds)
    rows = []
    for name, facts in about.items():
        roots, spread = times[name, "roots"]
        without_roots, _ = times[name, "none"]
        mixed = roots / 10 + without_roots * 9 / 10
        row = {
            "optimiser": name,
            "CPU-ms": 1e3 * mixed,
            "with roots": 1e3 * roots,
            "spread": spread,
        }
        rows.append(row | facts)

    public = next((row for row in rows if row["optimiser"] == "public, newton"), None)
    if public is not None:
        for row in rows:
            row["of public"] = row["CPU-ms"] / public["CPU-ms"]
    return rows


def measure_step(rounds):
    """The joint training step."""
    rows = []
    for batch_size in (8, 64):
        calls = {}
        for name in ("adamw", "muon", "shampoo"):
            config = c.Config(
                model=c.ModelConfig(
                    vocab_size=512, num_layers=6, d_model=256, num_heads=4, d_ff=1024, max_len=256
                ),
                nest=c.NestConfig(d_ff=2048, mix_per_step=0),
                optimizer=c.OptimizerConfig(name=name),
                shampoo=c.ShampooConfig(precondition_every=20),
                data=c.DataConfig(seq_len=256, batch_size=batch_size),
            )
            setup = make_setup(config, make_mesh((1, 1, 1)))
            tokens = np.random.default_rng(0).integers(0, 512, (batch_size, 257), dtype=np.int32)
            batch = {"tokens": jnp.asarray(tokens), "length": jnp.full(batch_size, 256, jnp.int32)}
            holder = {"state": setup.init(), "step": make_train_step(setup)}

            def run(holder, batch, count):
                state = holder["state"]
                opt_state = _with_count(state.opt_state, count)
                state = TrainState(state.step, state.params, opt_state)
                holder["state"], metrics = holder["step"](state, batch)
                jax.block_until_ready((holder["state"], metrics))

            calls[name, "none"] = functools.partial(run, holder, batch, 41)
            if name == "shampoo":
                calls[name, "roots"] = functools.partial(run, holder, batch, 40)
        times = harness.times_of(calls, rounds=rounds)
        adamw = times["adamw", "none"][0]
        for name in ("adamw", "muon", "shampoo"):
            median, spread = times[name, "none"]
            if name == "shampoo":
                median = median * 19 / 20 + times[name, "roots"][0] / 20
            rows.append(
                {
                    "tokens": batch_size * 256,
                    "optimiser": name,
                    "CPU-s": median,
                    "spread": spread,
                    "ratio to AdamW": median / adamw,
                }
            )
            print(rows[-1], flush=True)
    return rows


def _with_count(opt_state, count):
    """Shampoo at another step: whether it computes roots goes by its count."""

    def is_shampoo(node):
        return isinstance(node, optim.ShampooState)

    def with_count(node):
        return node._replace(count=jnp.asarray(count)) if is_shampoo(node) else node

    return jax.tree.map(with_count, opt_state, is_leaf=is_shampoo)


def measure_quality(steps, seeds):
    """Held-out nats per token of Student and TA after equal steps."""
    import json

    from matta_jax import train

    rates = dict.fromkeys(("adamw", "shampoo"), (1e-3, 2e-3, 4e-3, 8e-3))

    def run(name, rate, seed):
        config = c.Config(
            model=c.ModelConfig(num_layers=4, d_model=128, num_heads=4, d_ff=128, max_len=64),
            nest=c.NestConfig(d_ff=512, widths=(128, 256, 512)),
            optimizer=c.OptimizerConfig(name=name, learning_rate=rate, warmup_steps=40),
            data=c.DataConfig(source="stdlib", seq_len=64, batch_size=8),
            train=c.TrainConfig(
                num_steps=steps,
                eval_every=steps,
                checkpoint_every=steps,
                eval_batches=64,
                seed=seed,
                peak_tflops=0.1,
            ),
        )
        with tempfile.TemporaryDirectory() as folder:
            result = train(config, folder, log=lambda line: None)
            if not result.finished:
                raise SystemExit("stopped by a signal")
            metrics = result.metrics
            text = (pathlib.Path(folder) / "metrics.jsonl").read_text()

        lines = [json.loads(line) for line in text.splitlines()]
        losses = [line["student"] for line in lines if "student" in line]
        row = {
            "optimiser": name,
            "learning rate": rate,
            "seed": seed,
            "training loss": float(np.mean(losses[-5:])),
            "held-out Student": metrics["eval/student"],
            "held-out TA": metrics["eval/ta"],
        }
        print(row, flush=True)
        return row

    runs = [run(name, rate, 0) for name, tried in rates.items() for rate in tried]
    summary = []
    for name in rates:
        best = min(
            (row for row in runs if row["optimiser"] == name), key=lambda row: row["training loss"]
        )
        rows = [best, *(run(name, best["learning rate"], seed) for seed in range(1, seeds))]
        runs += rows[1:]
        row = {"optimiser": name, "learning rate": best["learning rate"], "seeds": seeds}
        for key in ("held-out Student", "held-out TA"):
            values = [of_seed[key] for of_seed in rows]
            row[key] = float(np.mean(values))
            row[f"{key} sd"] = float(np.std(values, ddof=1))
        summary.append(row)
    return {"summary": summary, "runs": runs}


def main():
    """Runs what the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for part in ("optimizer", "step", "quality"):
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="of --quality")
    parser.add_argument("--seeds", type=int, default=3, help="of --quality")
    parser.add_argument("--output", default="runs/benchmarks/shampoo.json")
    flags = parser.parse_args()
    results = {}
    if flags.optimizer:
        results["optimizer"] = measure_optimizer(flags.rounds)
        harness.print_table(results["optimizer"])
    if flags.step:
        results["step"] = measure_step(flags.rounds)
        harness.print_table(results["step"])
    if flags.quality:
        results["quality"] = measure_quality(flags.steps, flags.seeds)
        harness.print_table(results["quality"]["summary"])
    if not results:
        parser.error("name at least one of --optimizer, --step, --quality")
    harness.write_results(flags.output, results)


if __name__ == "__main__":
    main()
