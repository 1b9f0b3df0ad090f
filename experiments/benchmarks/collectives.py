"""What a joint step moves between the chips of a TPU v5e 2x4, against its TA alone (benchmark 14).

    pip install -e '.[tpu]'
    python experiments/benchmarks/collectives.py   # about twenty minutes

Compiled ahead of time, without a TPU: bytes of the results of collectives per step and device, loop
bodies times their trip counts. Size M: GPT-2 Medium (24 layers, d_model 1,024, d_ff 4,096) in a TA
with d_ff 8,192; bf16, a sequence of 1,024 tokens for each chip. `separate` runs Student and TA one
after another in one step, each gathering its weights.
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
}


def apply_separately(plan, params, inputs, members, **options):
    """As `joint_apply`, a pass for each member."""
    hidden = []
    for member in members:
        hidden.append(joint_apply(plan, params, inputs, [member], **options)[0])
    return hidden


def measure(name, sizes):
    """Returns bytes by kind of one contender's step."""
    model, nest = CONTENDERS[name]
    config = c.Config(
        model=model,
        nest=nest,
        data=c.DataConfig(seq_len=1024, batch_size=8),
        mesh=c.MeshConfig(*sizes),
    )
    setup = make_setup(config, make_mesh(sizes, topology_devices(TOPOLOGY)))
    forward = apply_separately if name == "separate" else joint_apply

    with replace_forward(forward):
        program = compile_step(setup)

    bytes_by_kind = dict.fromkeys(KINDS, 0)
    for collective in collectives(program.as_text()):
        bytes_by_kind[collective.kind] += collective.bytes * collective.times
    return bytes_by_kind


def main():
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="runs/benchmarks/collectives.json")
    flags = parser.parse_args()
    rows = []
    for mesh, sizes in MESHES.items():
        for name in CONTENDERS:
            bytes_by_kind = measure(name, sizes)
            row = {"mesh": f"{mesh} {sizes}", "step": name}
            for kind in KINDS:
                row[f"{kind} MB"] = bytes_by_kind[kind] / 1e6
            row["MB"] = sum(bytes_by_kind.values()) / 1e6
            rows.append(row)

            # The TA alone is the first of its mesh.
            ta_alone = next(earlier for earlier in rows if earlier["mesh"] == row["mesh"])
            row["of TA alone"] = row["MB"] / ta_alone["MB"]
            row["bar"] = 1.05 if name == "joint" and sizes[2] == 1 else ""
            print(row, flush=True)
    harness.print_table(rows)
    harness.write_results(flags.output, {"rows": rows})


if __name__ == "__main__":
    main()
