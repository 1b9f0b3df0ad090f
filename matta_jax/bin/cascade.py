"""Lets a small classifier answer where it is sure, and a larger one the rest: what thresholds give.

matta-cascade --model=models/student --model=models/ta --tune=val.npz --test=test.npz --output=out
matta-cascade --checkpoint=runs/vit --sub_model=student --sub_model=ta --tune=val.npz \\
  --test=test.npz --output=out
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app
from matta_jax.errors import UserError
from matta_jax.packages import load_chosen

_MODEL = flags.DEFINE_multi_string(
    "model", [], "Folder of an extracted or imported classifier; two, the smaller first."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Or the workdir of a run, with sub_model.")
_SUB_MODEL = flags.DEFINE_multi_string(
    "sub_model", [], "Which sub-models of the checkpoint; two, the smaller first."
)
_TUNE = flags.DEFINE_string(
    "tune", None, "Labelled images that choose the threshold: FILE.npz, or a folder."
)
_TEST = flags.DEFINE_string("test", None, "Labelled images to report on, likewise.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the table, its JSON and its plot.")
_MAX_LOSS = flags.DEFINE_float(
    "max_loss", 0.003, "Share of the tuning images that may be lost against the larger model."
)


def _main() -> None:
    tune = _app.required(_TUNE, "val.npz")
    test = _app.required(_TEST, "test.npz")
    output = _app.required(_OUTPUT, "out")
    models = load_chosen(_MODEL.value, _CHECKPOINT.value, _SUB_MODEL.value)
    if len(models) != 2:
        raise UserError(
            f"a cascade is of two models, the smaller first, and {len(models)} are named; name two"
        )
    result = matta_jax.cascade_report(
        *models, tune=tune, test=test, output=output, max_loss=_MAX_LOSS.value
    )
    _app.say(result.table)
    for file in result.files:
        _app.say(f"wrote {file}")


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
