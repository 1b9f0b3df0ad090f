"""Memory and time of the nested distillation loss against full logits (benchmarks 4 and 5).

    python experiments/benchmarks/distill_loss.py            # both; about ten minutes
    python experiments/benchmarks/distill_loss.py --memory   # compile only; about a minute

Contenders compute the same loss (cross-entropy of every stream, forward KL from the last one) and
its gradients in the hidden states and the table, and are checked against each other before they are
timed:

    fused        matta_jax.distill.nested_loss
    naive        full logits; optax's integer-label cross-entropy, log-softmaxes once more for the
                 KL
    soft labels  full logits; cross-entropy from a one-hot array, KL as soft cross-entropy less
                 entropy (a common form)
    scan         token chunks under lax.scan with jax.checkpoint: logits are computed again for the
                 gradient
"""

import argparse
import functools

import harness  # isort: skip  (Pins the process before jax is imported.)

import jax
import jax.numpy as jnp
import numpy as np
import optax

from matta_jax.distill import LossPlan, Term, nested_loss

VOCAB = 50257
MEMORY_SIZES = [
    (2048, (256, 256)),
    (2048, (256, 512)),
    (8192, (768, 768)),
    (16384, (1024, 1024)),
    (16384, (512, 1024)),
]
TIME_SIZES = [(2048, (256, 256)), (2048, (256, 512)), (2048, (256, 256, 256, 256))]


def fused(chunk, T, hidden, table, labels):
    """Ours."""
    last = len(hidden) - 1
    terms = [Term(f"ce_{k}", k, 1.0) for k in range(last + 1)]
    terms += [Term(f"distill_{k}", k, 0.5, "ta", T) for k in range(last)]
    plan = LossPlan(tuple(terms), student=0, ta=last, chunk_size=chunk)
    weights = jnp.asarray([term.weight for term in terms])
    ones = jnp.ones(labels.shape)
    return nested_loss(
        plan, hidden, table, labels, ones, term_weights_M=weights, total=ones.sum()
    ).loss


def _logits(hidden, table):
    return [h @ table[:, : h.shape[1]].T for h in hidden]


def naive(chunk, T, hidden, table, labels):
    """Full logits."""
    del chunk
    z = _logits(hidden, table)
    loss = sum(optax.losses.softmax_cross_entropy_with_integer_labels(x, labels).mean() for x in z)
    log_q = jax.lax.stop_gradient(jax.nn.log_softmax(z[-1] / T))
    for x in z[:-1]:
        kl = jnp.sum(jnp.exp(log_q) * (log_q - jax.nn.log_softmax(x / T)), axis=-1)
        loss += 0.5 * T**2 * kl.mean()
    return loss


def soft_labels(chunk, T, hidden, table, labels):
    """Full logits and one-hot labels."""
    del chunk
    z = _logits(hidden, table)
    y = jax.nn.one_hot(labels, table.shape[0])
    loss = sum(optax.losses.softmax_cross_entropy(x, y).mean() for x in z)
    q = jax.lax.stop_gradient(jax.nn.softmax(z[-1] / T))
    entropy = -jnp.sum(q * jnp.log(q + 1e-30), axis=-1)
    for x in z[:-1]:
        loss += 0.5 * T**2 * (optax.losses.softmax_cross_entropy(x / T, q) - entropy).mean()
    return loss


def scan(chunk, T, hidden, table, labels):
    """Chunks, logits computed twice."""
    parts = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), (hidden, labels))

    @jax.checkpoint
    def body(loss, part):
        return loss + naive(None, T, part[0], table, part[1]), None

    return jax.lax.scan(body, jnp.zeros(()), parts)[0] / (labels.shape[0] // chunk)


CONTENDERS = {"fused": fused, "naive": naive, "soft labels": soft_labels, "scan": scan}


def compile_all(num_tokens, widths, T, chunk, names):
    """Returns name to compiled value_and_grad."""
    hidden = [jax.ShapeDtypeStruct((num_tokens, d), jnp.float32) for d in widths]
    table = jax.ShapeDtypeStruct((VOCAB, max(widths)), jnp.float32)
    labels = jax.ShapeDtypeStruct((num_tokens,), jnp.int32)

    programs = {}
    for name in names:
        loss = functools.partial(CONTENDERS[name], chunk, T)
        value_and_grad = jax.jit(jax.value_and_grad(loss, (0, 1)))
        programs[name] = value_and_grad.lower(hidden, table, labels).compile()
    return programs


def measure_memory(chunks):
    """Benchmark 4: temporaries of the compiled program, and as a share of one array of logits."""
    rows = []
    for num_tokens, widths in MEMORY_SIZES:
        logits = num_tokens * VOCAB * 4
        for chunk in chunks:
            for name, program in compile_all(num_tokens, widths, 1.0, chunk, CONTENDERS).items():
                has_chunks = name not in ("naive", "soft labels")
                if chunk != chunks[0] and not has_chunks:
                    continue

                size = program.memory_analysis().temp_size_in_bytes
                rows.append(
                    {
                        "tokens": num_tokens,
                        "widths": str(widths),
                        "contender": name,
                        "chunk": chunk if has_chunks else "-",
                        "temporaries MB": round(size / 1e6),
                        "of one logits array": size / logits,
                    }
                )
    return rows


def relative_error(ours, exact):
    """Largest difference of any leaf, relative to the leaf's largest value."""
    errors = []
    for leaf, exact_leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        difference = np.abs(np.asarray(leaf) - exact_leaf).max()
        errors.append(float(difference / np.abs(exact_leaf).max()))
    return max(errors)


def exact_gradients(T, hidden, table, labels):
    """Value and gradients in float64, in blocks of tokens."""
    with jax.enable_x64(True):
        compute = jax.jit(jax.value_and_grad(functools.partial(scan, 128, T), (0, 1)))
        operands = jax.tree.map(lambda x: np.asarray(x, np.float64), (hidden, table))
        return jax.tree.map(np.asarray, compute(*operands, np.asarray(labels)))


def measure_time(rounds, chunk, temperatures):
    """Benchmark 5: CPU-seconds on one core, interleaved, and the error of values and gradients
    against float64.
    """
    rows = []
    for num_tokens, widths in TIME_SIZES:
        rng = np.random.default_rng(0)
        hidden = [jnp.asarray(rng.normal(size=(num_tokens, d)), jnp.float32) for d in widths]
        table = jnp.asarray(
            rng.normal(size=(VOCAB, max(widths))) / np.sqrt(max(widths)), jnp.float32
        )
        labels = jnp.asarray(rng.integers(0, VOCAB, num_tokens))
        for T in temperatures:
            programs = compile_all(num_tokens, widths, T, chunk, CONTENDERS)
            exact = exact_gradients(T, hidden, table, labels)
            errors, calls = {}, {}
            for name, program in programs.items():
                errors[name] = relative_error(program(hidden, table, labels), exact)
                calls[name] = harness.waited(program, hidden, table, labels)

            times = harness.times_of(calls, rounds=rounds)
            for name, (median, spread) in times.items():
                row = {
                    "tokens": num_tokens,
                    "widths": str(widths),
                    "T": T,
                    "contender": name,
                    "CPU-s": median,
                    "spread": spread,
                    "ratio to naive": median / times["naive"][0],
                    "error": errors[name],
                }
                rows.append(row)
                print(row, flush=True)
    return rows


def main():
    """Runs what the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--memory", action="store_true", help="memory only")
    parser.add_argument("--time", action="store_true", help="time only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--output", default="runs/benchmarks/distill_loss.json")
    flags = parser.parse_args()
    results = {}
    if flags.memory or not flags.time:
        results["memory"] = measure_memory([flags.chunk, 128])
        harness.print_table(results["memory"])
    if flags.time or not flags.memory:
        results["time"] = measure_time(flags.rounds, flags.chunk, [1.0, 2.0])
        harness.print_table(results["time"])
    harness.write_results(flags.output, results)


if __name__ == "__main__":
    main()
