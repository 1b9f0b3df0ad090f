"""Our train step against MaxText's, each compiled ahead of time for a TPU v5e 4x4 (benchmark 19).

    uv venv --python 3.12 maxtext_env
    uv pip install --python maxtext_env -r experiments/benchmarks/peers/maxtext.txt
    python experiments/benchmarks/maxtext.py --maxtext_python=maxtext_env/bin/python

No TPU runs it. One JAX and one libtpu, those of MaxText's environment, compile all contenders: a
Llama of 12 layers, d_model 1,024, d_ff 4,096, 8 heads of 128, 32,768 ids, an own head; two
sequences of 2,048 tokens a device, fsdp over 16, bfloat16 compute, float32 weights, AdamW, splash
attention. Ours are its TA alone, and it with a Student of half the d_ff and a random mix.

One counter reads the texts of all programs: products of matrices (recomputation included; XLA
counts the body of a loop once), bytes that a device reads and writes in its memory, and what it
sends. Attention's kernels count by their kind, half of the square for a causal one.
"""

import argparse
import json
import os
import pathlib
import subprocess

import harness
from peers.ours_compiled import config_of

from matta_jax.sharding import KINDS, collectives, make_mesh, matmul_flops, memory_bytes
from matta_jax.training import make_setup, num_mixes, step_flops_of

ROOT = pathlib.Path(__file__).parents[2]
PEERS = pathlib.Path(__file__).parent / "peers"
LAYERS, D_MODEL, D_FF, HEADS, HEAD_DIM, VOCAB, LENGTH, ROWS = 12, 1024, 4096, 8, 128, 32768, 2048, 2
DEVICES = 16

# JAX sets the first when it is imported, to the libtpu of this environment.
PARENTS = ("TPU_LIBRARY_PATH", "XLA_FLAGS")

# Products of [T, head_dim] and [T, T] that a kernel makes: scores and what they weigh; in backward
# passes scores again, and their gradients, and those of queries, or of keys and values.
_SQUARE = 2 * ROWS * HEADS * LENGTH * LENGTH * HEAD_DIM // 2
KERNELS = {
    "splash_mha_fwd": 2 * _SQUARE,
    "splash_mha_dq": 3 * _SQUARE,
    "splash_mha_dkv": 4 * _SQUARE,
}

MAXTEXT = {
    "compile_topology": "v5e-16",
    "compile_topology_num_slices": 1,
    "base_emb_dim": D_MODEL,
    "base_num_query_heads": HEADS,
    "base_num_kv_heads": HEADS,
    "head_dim": HEAD_DIM,
    "base_mlp_dim": D_FF,
    "base_num_decoder_layers": LAYERS,
    "vocab_size": VOCAB,
    "max_target_length": LENGTH,
    "per_device_batch_size": ROWS,
    "attention": "flash",
    "opt_type": "adamw",
}
MODEL = {
    "name": "llama",
    "vocab_size": VOCAB,
    "num_layers": LAYERS,
    "d_model": D_MODEL,
    "num_heads": HEADS,
    "head_dim": HEAD_DIM,
    "d_ff": D_FF,
    "max_len": LENGTH,
    "tie_embeddings": False,
    "compute_dtype": "bfloat16",
}
# Of MaxText and of ours: nothing of a layer, and what its matrices make.
POLICIES = {"full": "full", "minimal": "dots"}


def ours(remat, *, joint=False):
    """The fields of our config."""
    return {
        "model": MODEL | {"remat": remat, "d_ff": D_FF // 2 if joint else D_FF},
        "nest": {"d_ff": D_FF, "mix_per_step": 1} if joint else {"mix_per_step": 0},
        "data": {"seq_len": LENGTH, "batch_size": ROWS * DEVICES},
        "mesh": {"data": 1, "fsdp": DEVICES},
        "topology": "v5e:4x4",
    }


def contenders():
    """By name: the policy by MaxText's name, the script, and its fields."""
    result = {}
    for policy, remat in POLICIES.items():
        fields = MAXTEXT | {"remat_policy": policy}
        result[f"MaxText, {policy}"] = (policy, "maxtext_step.py", fields)
        result[f"TA alone, {remat}"] = (policy, "ours_compiled.py", ours(remat))
        joint = ours(remat, joint=True)
        result[f"joint and a mix, {remat}"] = (policy, "ours_compiled.py", joint)

    # Logits of fewer tokens at once.
    tiled = MAXTEXT | {"remat_policy": "full", "num_vocab_tiling": 8}
    result["MaxText, full, logits in 8 parts"] = ("full", "maxtext_step.py", tiled)
    return result


def compiled(python, script, fields, output, *, reuse):
    """Compiles in a process of its own; to reuse is to read an earlier text of the same fields."""
    told = output.with_suffix(".fields")
    text = json.dumps([script, fields])
    if not (reuse and told.exists() and told.read_text() == text):
        environment = {name: os.environ[name] for name in os.environ if name not in PARENTS} | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            # There is no machine to ask for its metadata, and several processes may compile.
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
        arguments = [python, str(PEERS / script), json.dumps(fields), str(output)]
        with output.with_suffix(".log").open("w") as log:
            subprocess.run(arguments, check=True, env=environment, stdout=log, stderr=log)
        told.write_text(text)
    return output.read_text(), json.loads(output.with_suffix(".json").read_text())


def measure(hlo, about):
    """The figures of a program, a device and a step."""
    sent = dict.fromkeys(KINDS, 0.0)
    for collective in collectives(hlo):
        sent[collective.kind] += collective.sent * collective.times
    row = {
        "TFLOP": matmul_flops(hlo, KERNELS) / 1e12,
        "HBM GB": memory_bytes(hlo) / 1e9,
        "temporaries GB": about["temporaries"] / 1e9,
        "arguments GB": about["arguments"] / 1e9,
        "sent MB": sum(sent.values()) / 1e6,
    }
    return row | {f"{kind} MB": size / 1e6 for kind, size in sent.items()}


def analytic_flops(fields):
    """What a step of ours has for each token, recomputation left out: of a mix that draws the
    widest in each layer, as the counter takes the largest branch.
    """
    setup = make_setup(config_of(fields), make_mesh((1, 1, 1)))
    nest = setup.plan.nest
    options = [setup.plan.pass_flops(nest.ta.resized(**sizes)) for sizes in nest.layer_options]
    above_mean = max(options) - sum(options) / len(options)
    return step_flops_of(setup) + 3 * num_mixes(setup) * above_mean


COMPARED = ("TFLOP", "HBM GB", "temporaries GB", "arguments GB", "sent MB")


def of_first(rows):
    """Each row's figures as parts of those of MaxText under the same policy, and the bar: 1 for a
    TA alone, for a joint step its share of the TA's FLOPs and 5 %.
    """
    table = []
    for row in rows:
        alike = [each for each in rows if each["policy"] == row["policy"]]
        first = alike[0]
        shares = {name: row[name] / first[name] for name in COMPARED}
        bar = ""
        if "analytic FLOPs a token" in row:
            alone = next(each for each in alike if "analytic FLOPs a token" in each)
            share = row["analytic FLOPs a token"] / alone["analytic FLOPs a token"]
            bar = 1.0 if share == 1 else 1.05 * share
        table.append({"of MaxText's": row["step"]} | shares | {"bar": bar})
    return table


def main():
    """Compiles, prints the tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--maxtext_python", help="the Python of an environment with MaxText")
    parser.add_argument("--only", nargs="+", help="names of contenders")
    parser.add_argument(
        "--reuse", action="store_true", help="read programs that an earlier run has compiled"
    )
    parser.add_argument("--texts", default="runs/benchmarks/maxtext", help="folder of the programs")
    parser.add_argument("--output", default="runs/benchmarks/maxtext.json")
    flags = parser.parse_args()
    if flags.maxtext_python is None:
        print(
            "skipped: MaxText (make its environment as the head of this file says, and name its "
            "Python by --maxtext_python)"
        )
        return

    os.sched_setaffinity(0, harness.CORES)
    folder = pathlib.Path(flags.texts)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (policy, script, fields) in contenders().items():
        if flags.only and name not in flags.only:
            continue
        file = folder / f"{name.replace(', ', '_').replace(' ', '_')}.hlo"
        hlo, about = compiled(flags.maxtext_python, script, fields, file, reuse=flags.reuse)
        row = {"step": name, "policy": policy} | measure(hlo, about) | {"compiler": about}
        if "model" in fields:
            row["analytic FLOPs a token"] = analytic_flops(fields)
        rows.append(row)
        print(row, flush=True)

    hidden = ("policy", "compiler", "analytic FLOPs a token")
    shown = [{key: row[key] for key in row if key not in hidden} for row in rows]
    harness.print_table(shown)
    print()
    harness.print_table(of_first(rows))
    harness.write_results(flags.output, {"rows": rows})


if __name__ == "__main__":
    main()
