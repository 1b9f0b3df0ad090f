"""Scores a model, or several side by side. Without --mesh flags all accelerators split rows; CPUs
are one device.

matta-evaluate --model=models/small --tasks='bits_per_byte:texts/*.txt' --output=small.json
matta-evaluate --checkpoint=runs/quickstart --sub_model=student --sub_model=ta \\
  --tasks=bits_per_byte:held_out
matta-evaluate --checkpoint=runs/big --sub_model=ta --tasks=bits_per_byte:held_out --mesh.fsdp=8
matta-evaluate --model=models/gpt2 --tasks=lambada:lambada_test.jsonl,sat_math:sat-math.jsonl
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app, _mesh

_MODEL = flags.DEFINE_multi_string(
    "model", None, "Folder of an extracted model; several are compared with the first."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Or the workdir of a run, with sub_model.")
_SUB_MODEL = flags.DEFINE_multi_string(
    "sub_model", None, "Which sub-models of the checkpoint to score in place."
)
_TASKS = flags.DEFINE_list(
    "tasks",
    None,
    "bits_per_byte:GLOB, perplexity:GLOB, lambada:FILE, sat_math:FILE; of scorers auc:GLOB. "
    "held_out is the run's own.",
)
_COMPUTE_DTYPE = _app.define_compute_dtype("activations and matmuls")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the scores.")


def _main() -> None:
    result = matta_jax.compare(
        models=_MODEL.value or [],
        checkpoint=_CHECKPOINT.value,
        sub_models=_SUB_MODEL.value or [],
        tasks=_app.required(_TASKS, "bits_per_byte:held_out"),
        output=_OUTPUT.value,
        mesh=_mesh.chosen(),
        compute_dtype=_COMPUTE_DTYPE.value,
    )
    print(result.table)


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
