"""Draws a run's curves and its accuracy against size.

matta-report --workdir=runs/quickstart
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")


def _main() -> None:
    made = matta_jax.report(_app.required(_WORKDIR, "runs/quickstart"))
    print(made.table)
    print("Wrote " + ", ".join(str(file) for file in made.files))


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
