"""Trains an extracted model by itself for a few steps, and extracts it again.

matta-heal --model=models/small --steps=100 --output=models/small_healed
matta-heal --model=models/small --steps=100 --output=models/small_healed --source='text:mine/*.txt'
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app
from matta_jax.packages import DTYPES, FORMATS, Packaging
from matta_jax.training import Healing

_MODEL = flags.DEFINE_string("model", None, "Folder of the extracted model.")
_STEPS = flags.DEFINE_integer(
    "steps", None, "Steps to train on for; a tenth of the run's is usual."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the healed model.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default that of --output with .run after its name."
)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate",
    None,
    "The schedule's peak; None: half of the run's, of which so late a step of a cosine has a small "
    "part. After constant and wsd: the run's, from which it decays over these steps.",
)
_SOURCE = flags.DEFINE_string("source", None, "Other training text, as data.source.")
_EVAL_SOURCE = flags.DEFINE_string("eval_source", None, "And held-out text, as data.eval_source.")
_FORMAT = flags.DEFINE_string("format", "orbax", f"{', '.join(FORMATS)}.")
_DTYPE = flags.DEFINE_string("dtype", "fp32", f"{' or '.join(DTYPES)}.")
_MAX_SHARD_GB = _app.define_max_shard_gb(Packaging.max_shard_gb)
_QUANTIZE = _app.define_quantize()
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an extracted model that is there.")


def _main() -> None:
    model = matta_jax.heal(
        _app.required(_MODEL, "models/small"),
        _app.required(_OUTPUT, "models/small_healed"),
        Healing(
            _app.required(_STEPS, "100"), _LEARNING_RATE.value, _SOURCE.value, _EVAL_SOURCE.value
        ),
        workdir=_WORKDIR.value,
        packaging=Packaging(
            _FORMAT.value,
            _DTYPE.value,
            overwrite=_OVERWRITE.value,
            max_shard_gb=_MAX_SHARD_GB.value,
            quantize=_QUANTIZE.value,
        ),
        log=_app.say,
    )
    _app.say(f"{model.path}: {model.spec}, {model.counts.parameters:,} parameters")
    _app.say_all(model.notes)


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
