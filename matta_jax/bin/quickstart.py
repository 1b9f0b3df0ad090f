"""The whole road: trains a nest, extracts a family of models, scores each, and reports.

matta-quickstart [--config=quickstart] [--workdir=runs/quickstart]
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app

_CONFIG = _app.define_config("quickstart")
_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the run.")
_SUB_MODEL = flags.DEFINE_multi_string(
    "sub_model", None, "Specs to extract; by default a family from Student to TA."
)
_PROMPT = flags.DEFINE_string("prompt", "def ", "Start of the sample.")


def _main() -> None:
    result = matta_jax.quickstart(
        _app.checked_config(_CONFIG),
        _WORKDIR.value,
        sub_models=_SUB_MODEL.value,
        prompt=_PROMPT.value,
        log=_app.say,
    )
    if result.sample:
        print(f"\nA sample of the TA:\n{result.sample}")
    print("\n" + "\n\n".join([result.report.table, *result.report.remarks]) + "\n")
    print("Wrote " + ", ".join(str(file) for file in result.report.files))


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
