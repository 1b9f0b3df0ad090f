"""One GPU: MFU of GPT-2 124M and of Medium with its Student, memory, and what Shampoo adds
(benchmark 16).

    python experiments/benchmarks/gpu.py --nanogpt=nanoGPT    # 8 minutes at most
    python experiments/benchmarks/gpu.py --tiny               # anywhere: whether it runs, no more

Compute in bfloat16, weights and moments in float32, 1,024 tokens. MFU is of analytic FLOPs
(matmuls, causal attention at half, recomputation not counted) against a bfloat16 matmul of 8192³
timed in the same process. Wall seconds, medians of blocks of steps. Each part is written when it is
done; one that does not fit is tried again with half the batch.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import time

if "--tiny" not in sys.argv:
    os.environ["JAX_PLATFORMS"] = ""  # Whatever there is; harness would take the CPU.

import harness  # isort: skip  (Before jax is imported.)

import jax
import jax.numpy as jnp
import numpy as np
import optax

from matta_jax import config as c
from matta_jax.models import apply, logits
from matta_jax.sharding import make_mesh, place_batch
from matta_jax.training import make_setup, make_train_step, step_flops_of

GPT2 = {
    "124M": {"num_layers": 12, "d_model": 768, "num_heads": 12, "d_ff": 3072},
    "Medium": {"num_layers": 24, "d_model": 1024, "num_heads": 16, "d_ff": 4096},
    "tiny": {"num_layers": 2, "d_model": 64, "num_heads": 2, "d_ff": 128},
}


def timed(run, *, blocks, steps):
    """Seconds of a call, by the median of blocks, and its spread; `run` returns what is to be
    waited for.
    """
    jax.block_until_ready([run() for _ in range(2)])
    seconds = []
    for _ in range(blocks):
        start = time.perf_counter()
        jax.block_until_ready([run() for _ in range(steps)][-1])
        seconds.append((time.perf_counter() - start) / steps)
    return harness.median_and_spread(seconds)


def peak_flops(size):
    """FLOP/s of a bfloat16 matmul."""
    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    matmul = jax.jit(jnp.matmul)
    seconds, _ = timed(lambda: matmul(matrix, matrix), blocks=5, steps=10)
    return 2 * size**3 / seconds


def config_of(model, *, joint, batch_size, seq_len, vocab_size, optimizer="adamw"):
    """A run of a size, with twice the d_ff in the TA where it is joint."""
    sizes = GPT2[model] | {"max_len": seq_len, "vocab_size": vocab_size}
    return c.Config(
        model=c.ModelConfig(**sizes, compute_dtype="bfloat16"),
        nest=c.NestConfig(d_ff=2 * sizes["d_ff"] if joint else None, mix_per_step=0),
        optimizer=c.OptimizerConfig(name=optimizer, warmup_steps=0, schedule="constant"),
        shampoo=c.ShampooConfig(block_size=256 if model != "tiny" else 32),
        data=c.DataConfig(seq_len=seq_len, batch_size=batch_size),
    )


def batch_of(config):
    """Random tokens."""
    data = config.data
    tokens = np.random.default_rng(0).integers(
        0, config.model.vocab_size, (data.batch_size, data.seq_len + 1)
    )
    return {
        "tokens": tokens.astype(np.int32),
        "length": np.full(data.batch_size, data.seq_len, np.int32),
    }


def ours(config, peak, *, blocks, steps):
    """The row of a run's train step."""
    setup = make_setup(config, make_mesh((1, 1, 1)))
    batch, state = place_batch(batch_of(config), setup.mesh), setup.init()
    program = make_train_step(setup).lower(state, batch).compile()
    about = program.memory_analysis()
    holder = {"state": state}
    del state

    def step():
        holder["state"], metrics = program(holder["state"], batch)
        return metrics

    seconds, spread = timed(step, blocks=blocks, steps=steps)
    tokens = config.data.batch_size * config.data.seq_len
    flops = step_flops_of(setup) * tokens
    return {
        "tokens a step": tokens,
        "ms": 1e3 * seconds,
        "spread": spread,
        "M tokens/s": tokens / seconds / 1e6,
        "MFU": flops / seconds / peak,
        "memory GB": (about.argument_size_in_bytes + about.temp_size_in_bytes) / 1e9,
    }


def naive_memory(config):
    """GB of a joint step as one would write it first: two passes with whole logits.
    Compiled only.
    """
    setup = make_setup(config, make_mesh((1, 1, 1)))
    plan, dtype = setup.plan, config.model.compute_dtype
    student = plan.architecture_of(plan.nest.student)
    ta = plan.architecture

    def loss(params, batch):
        x, y = {"tokens": batch["tokens"][:, :-1]}, batch["tokens"][:, 1:].reshape(-1)
        student_params = plan.slice(params, plan.nest.student)
        table = plan.table(params)
        z_s = logits(apply(student, student_params, x, dtype=dtype), table)
        z_ta = logits(apply(ta, params, x, dtype=dtype), table)
        log_p = jax.nn.log_softmax(jax.lax.stop_gradient(z_ta))
        distill = jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(z_s)), axis=-1)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(cross_entropy(z_s, y) + cross_entropy(z_ta, y) + 0.5 * distill)

    def step(state, batch):
        gradient = jax.grad(loss)(state.params, batch)
        updates, opt_state = setup.optimizer.update(gradient, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state

    program = jax.jit(step, donate_argnums=0).lower(setup.abstract, batch_of(config)).compile()
    about = program.memory_analysis()
    return {"memory GB": (about.argument_size_in_bytes + about.temp_size_in_bytes) / 1e9}


def nanogpt(folder, config, *, blocks, steps):
    """nanoGPT compiled on the same card; None, and a line, where that cannot be."""
    if folder is None or importlib.util.find_spec("torch") is None:
        print("skipped: nanoGPT (install torch beside jax, and name its folder by --nanogpt)")
        return None
    import torch

    if not torch.cuda.is_available():
        print("skipped: nanoGPT (torch finds no GPU)")
        return None
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig

    model, data = config.model, config.data
    sizes = GPTConfig(
        model.max_len, model.vocab_size, model.num_layers, model.num_heads, model.d_model
    )
    gpt = torch.compile(GPT(sizes).cuda())
    optimizer = gpt.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cuda")
    tokens = torch.tensor(batch_of(config)["tokens"]).long().cuda()
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def block(count):
        for _ in range(count):
            with torch.autocast("cuda", torch.bfloat16):
                loss = gpt(x, y)[1]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()

    block(3)
    durations = []
    for _ in range(blocks):
        start = time.perf_counter()
        block(steps)
        durations.append((time.perf_counter() - start) / steps)

    seconds = statistics.median(durations)
    num_tokens = data.batch_size * data.seq_len
    return {
        "tokens a step": num_tokens,
        "ms": 1e3 * seconds,
        "M tokens/s": num_tokens / seconds / 1e6,
        "memory GB": torch.cuda.max_memory_allocated() / 1e9,
    }


def halving(part, batch_size):
    """Runs a part with this batch, or with the largest half, quarter, … of it that fits."""
    while True:
        try:
            return part(batch_size)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or batch_size == 1:
                raise
            print(f"a batch of {batch_size} does not fit")
            batch_size //= 2


def main():
    """Measures part after part, prints and writes each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--tiny", action="store_true", help="whether it runs, at sizes that say nothing"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--nanogpt", help="folder of its public code")
    parser.add_argument("--output", default="runs/benchmarks/gpu.json")
    flags = parser.parse_args()
    on_gpu = jax.default_backend() == "gpu"
    if not (on_gpu or flags.tiny):
        sys.exit("error: no GPU was found; --tiny tries the script without one")
    if not on_gpu:
        print("NOT a measurement of a GPU: tiny sizes on the CPU, to see that it runs")
    how = {"blocks": 2, "steps": 1} if flags.tiny else {"blocks": 4, "steps": 8}
    shape = (
        {"seq_len": 64, "vocab_size": 512} if flags.tiny else {"seq_len": 1024, "vocab_size": 50257}
    )
    small, large = ("tiny", "tiny") if flags.tiny else ("124M", "Medium")
    peak = peak_flops(512 if flags.tiny else 8192)

    def alone(batch_size, optimizer="adamw"):
        return config_of(small, joint=False, batch_size=batch_size, optimizer=optimizer, **shape)

    def joint(batch_size):
        return config_of(large, joint=True, batch_size=batch_size, **shape)

    parts = {
        "124M alone": lambda b: ours(alone(b), peak, **how),
        "nanoGPT 124M, compiled": lambda b: nanogpt(flags.nanogpt, alone(b), **how),
        "Medium joint": lambda b: ours(joint(b), peak, **how),
        "Medium joint, naive (compiled only)": lambda b: naive_memory(joint(b)),
        "124M alone, Shampoo every 10": lambda b: ours(alone(b, "shampoo"), peak, **how),
    }
    rows = []
    columns = ["tokens a step", "ms", "spread", "M tokens/s", "MFU", "memory GB"]
    for name, part in parts.items():
        batch_size = 2 if flags.tiny else flags.batch_size // (2 if "Medium" in name else 1)
        measured = halving(part, batch_size)
        if measured is None:
            continue

        rows.append({"part": name} | {column: measured.get(column, "") for column in columns})
        results = {"on GPU": on_gpu, "matmul TFLOP/s": peak / 1e12, "rows": rows}
        harness.write_results(flags.output, results)
    print(f"matmul: {peak / 1e12:.4g} TFLOP/s")
    harness.print_table(rows)


if __name__ == "__main__":
    main()
