"""What a joint step moves between the chips of a TPU v5e 2x4, against its TA alone (benchmark 14).

    pip install -e '.[tpu]'
    python experiments/benchmarks/collectives.py   # about twenty minutes

Compiled ahead of time, without a TPU: bytes that a device sends in a step by the best algorithm,
loop bodies times their trip counts. Size M: GPT-2 Medium (24 layers, d_model 1,024, d_ff 4,096) in
a TA with d_ff 8,192; bf16, eight microbatches of a sequence of 1,024 tokens for each chip.
`separate` runs Student and TA one after another in one step, each gathering its weights; `step` is
`train.gather`, with which weights and gradients cross once in a step and not in each microbatch.
"""

import argparse
import dataclasses
import pathlib
import runpy

import harness  # isort: skip  (Before jax is imported.)

from joint_step import replace_forward

from matta_jax import config as c
from matta_jax.models import joint_apply
from matta_jax.sharding import KINDS, collectives, make_mesh, topology_devices
from matta_jax.training import compile_step, make_setup

TOPOLOGY = "v5e:2x4"
MESHES = {"FSDP": (1, 8, 1), "FSDP x tensor": (1, 4, 2)}
CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "gpt2_medium.py"
MEDIUM = c.from_config_dict(runpy.run_path(str(CONFIG))["get_config"]())
MODEL = dataclasses.replace(MEDIUM.model, vocab_size=50304)
NEST = c.NestConfig(d_ff=8192, widths=(4096, 8192), mix_per_step=0)
CONTENDERS = {
    "TA alone": (dataclasses.replace(MODEL, d_ff=8192), c.NestConfig(mix_per_step=0)),
    "joint": (MODEL, NEST),
    "joint and a random mix": (MODEL, dataclasses.replace(NEST, mix_per_step=1)),
    "separate": (MODEL, NEST),
    "TA alone, step": (dataclasses.replace(MODEL, d_ff=8192), c.NestConfig(mix_per_step=0)),
    "joint and a random mix, step": (MODEL, dataclasses.replace(NEST, mix_per_step=1)),
}
MICROBATCHES = 8


def apply_separately(plan, params, inputs, members, **options):
    """As `joint_apply`, a pass for each member."""
    hidden = []
    for member in members:
        hidden.append(joint_apply(plan, params, inputs, [member], **options)[0])
    return hidden


def measure(name, sizes):
    """Returns the bytes sent by kind in one contender's step, and its temporaries."""
    model, nest = CONTENDERS[name]
    config = c.Config(
        model=model,
        nest=nest,
        data=c.DataConfig(seq_len=1024, batch_size=8 * MICROBATCHES),
        train=c.TrainConfig(
            microbatches=MICROBATCHES, gather="step" if name.endswith("step") else "microbatch"
        ),
        mesh=c.MeshConfig(*sizes),
    )
    setup = make_setup(config, make_mesh(sizes, topology_devices(TOPOLOGY)))
    forward = apply_separately if name == "separate" else joint_apply

    with replace_forward(forward):
        program = compile_step(setup)

    bytes_by_kind = dict.fromkeys(KINDS, 0.0)
    for collective in collectives(program.as_text()):
        bytes_by_kind[collective.kind] += collective.sent * collective.times
    return bytes_by_kind, program.memory_analysis().temp_size_in_bytes


def main():
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="runs/benchmarks/collectives.json")
    flags = parser.parse_args()
    rows = []
    for mesh, sizes in MESHES.items():
        for name in CONTENDERS:
            bytes_by_kind, temporaries = measure(name, sizes)
            row = {"mesh": f"{mesh} {sizes}", "step": name}
            for kind in KINDS:
                row[f"{kind} MB"] = bytes_by_kind[kind] / 1e6
            row["MB"] = sum(bytes_by_kind.values()) / 1e6
            rows.append(row)

            row["temporaries GB"] = temporaries / 1e9

            # The TA alone is the first of its mesh and its way of gathering.
            alone = "TA alone, step" if name.endswith("step") else "TA alone"
            ta_alone = next(
                earlier
                for earlier in rows
                if (earlier["mesh"], earlier["step"]) == (row["mesh"], alone)
            )
            row["of TA alone"] = row["MB"] / ta_alone["MB"]
            row["bar"] = "" if name == "separate" else (1.05 if sizes[2] == 1 else 1.10)
            print(row, flush=True)
    harness.print_table(rows)
    harness.write_results(flags.output, {"rows": rows})


if __name__ == "__main__":
    main()
