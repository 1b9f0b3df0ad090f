"""Scores a model.

matta-evaluate --model=models/small --tasks='bits_per_byte:texts/*.txt' --output=small.json
matta-evaluate --checkpoint=runs/quickstart --sub_model=student --tasks=bits_per_byte:held_out
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app

_MODEL = flags.DEFINE_string("model", None, "Folder of an extracted model.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Or the workdir of a run, with sub_model.")
_SUB_MODEL = flags.DEFINE_string("sub_model", None, "Which sub-model of the checkpoint to score in place.")
_TASKS = flags.DEFINE_list("tasks", None, "bits_per_byte:GLOB, perplexity:GLOB; GLOB held_out is the run's own.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the scores.")


def _main() -> None:
    result = matta_jax.evaluate(
        model=_MODEL.value,
        checkpoint=_CHECKPOINT.value,
        sub_model=_SUB_MODEL.value,
        tasks=_app.required(_TASKS, "bits_per_byte:held_out"),
        output=_OUTPUT.value,
    )
    for task, score in result.scores.items():
        print(f"{result.spec}  {task}  {score:.4f}")


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
