"""Writes a Teacher's labels of a run's training windows: the log-probabilities of its most likely
tokens.

matta-label --config=configs/gpt2_small.py --teacher=models/gpt2_ours --top_k=64 \\
  --output=labels/gpt2
matta-train --config=configs/gpt2_small.py --workdir=runs/taught \\
  --config.teacher.labels=labels/gpt2 --config.teacher.student_weight=1
"""

import dataclasses

from absl import flags

import matta_jax
from matta_jax.bin import _app, _mesh, _processes

_CONFIG = _app.define_config()
_TEACHER = flags.DEFINE_string(
    "teacher", None, "Folder of a model, or the workdir of a run, D[@STEP], for its TA."
)
_TOP_K = flags.DEFINE_integer(
    "top_k", 64, "Tokens to keep of each distribution; all others are one more."
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "Of the softmax; that of teacher.temperature later on."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 16, "Windows of a batch on each device that splits rows."
)
_MAX_WINDOWS = flags.DEFINE_integer(
    "max_windows",
    None,
    "Label so many windows alone: sets data.max_windows, which the run then sets too.",
    lower_bound=1,
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the labels. What is there is kept: it goes on."
)


def _main() -> None:
    config = _app.checked_config(_CONFIG)
    if _MAX_WINDOWS.value is not None:
        data = dataclasses.replace(config.data, max_windows=_MAX_WINDOWS.value)
        config = dataclasses.replace(config, data=data)
    teacher = _app.required(_TEACHER, "models/gpt2_ours")
    output = _app.required(_OUTPUT, "labels/gpt2")

    # Several processes share the files.
    _processes.join("label")
    labels = matta_jax.label(
        config,
        teacher,
        output,
        top_k=_TOP_K.value,
        temperature=_TEMPERATURE.value,
        batch_size=_BATCH_SIZE.value,
        mesh=_mesh.chosen(),
        log=_app.say,
    )
    num_windows = labels.header.num_windows
    _app.say(f"{labels.path}: {num_windows} windows, {labels.written} files written now")


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
