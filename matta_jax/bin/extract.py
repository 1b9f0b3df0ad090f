"""Extracts sub-models of a run as plain models.

matta-extract --checkpoint=runs/quickstart[@STEP] --sub_model='layers=2;d_ff=256' --output=models/small
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a run, with @STEP for another than the newest step.")
_SUB_MODEL = flags.DEFINE_multi_string("sub_model", None, "student, ta, or AXIS=VALUE;…; several share the reading.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the model; of several, the folder that holds them.")


def _main() -> None:
    extracted = matta_jax.extract(
        _app.required(_CHECKPOINT, "runs/quickstart"),
        _app.required(_SUB_MODEL, "student"),
        _app.required(_OUTPUT, "models/student"),
    )
    for one in extracted:
        print(
            f"{one.path}: {one.spec}, {one.counts.parameters:,} parameters, {one.counts.bytes / 1e6:.2f} MB, "
            f"difference to the TA's slice {one.max_difference}"
        )


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
