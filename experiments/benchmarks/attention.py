"""Attention of one layer, forward and backward, compiled for a TPU that is not there: HBM traffic
and temporaries by length, of the fused kernel and of blocks.

    pip install 'matta_jax[tpu]' && python experiments/benchmarks/attention.py
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# There is no machine to ask for its metadata.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import harness
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from matta_jax.models.layers import Context, attend
from matta_jax.sharding import engine_of, make_mesh, topology_devices

HEADS, HEAD_DIM = 16, 64


def compiled(name, seq_len, tokens, mesh):
    """The program of a layer's attention and its gradient."""
    shape = (max(tokens // seq_len, 1), 1, HEADS, seq_len, HEAD_DIM)
    everywhere = NamedSharding(mesh, PartitionSpec())
    operand = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=everywhere)
    context = Context(seq_len, engine=engine_of(name, mesh))

    def backward(q, k, v):
        gathered, pull = jax.vjp(lambda *heads: attend(*heads, context).astype(q.dtype), q, k, v)
        return pull(gathered)

    return jax.jit(backward).lower(*[operand] * 3).compile()


def measure(lengths, tokens, topology):
    """Returns a row for each length and engine."""
    mesh = make_mesh((1, 1, 1), topology_devices(topology)[:1])
    rows = []
    for seq_len in lengths:
        for name in ("splash", "blocks"):
            row = {"T": seq_len, "attention": name}
            try:
                program = compiled(name, seq_len, tokens, mesh)
                row["HBM GB"] = program.cost_analysis()["bytes accessed"] / 1e9
                row["temporaries MB"] = program.memory_analysis().temp_size_in_bytes / 1e6
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                row |= {"HBM GB": "does not fit", "temporaries MB": ""}
            rows.append(row)
    return rows


def main():
    """Compiles, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192, 32768])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--output", default="runs/benchmarks/attention.json")
    flags = parser.parse_args()
    rows = measure(flags.lengths, flags.tokens, flags.topology)
    harness.print_table(rows)
    harness.write_results(flags.output, {"rows": rows})


if __name__ == "__main__":
    main()
