"""Draws a run's curves, its accuracy against size, and the preconditioners of a layer where it has
them.

matta-report --workdir=runs/quickstart
matta-report --workdir=runs/quickstart --html
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_WEIGHT = flags.DEFINE_string(
    "weight", None, "Whose preconditioners to draw, of a run with Shampoo."
)
_LAYER = flags.DEFINE_integer("layer", None, "In which layer of the TA; the middle one by default.")
_ALONE = flags.DEFINE_list(
    "alone", [], "Folders of runs of a lone model of one of its sizes, to compare with."
)
_HTML = flags.DEFINE_bool("html", False, "Also write report.html, a page by itself.")


def _main() -> None:
    workdir = _app.required(_WORKDIR, "runs/quickstart")
    report = matta_jax.report(
        workdir,
        weight=_WEIGHT.value,
        layer=_LAYER.value,
        lone_runs=_ALONE.value,
        html=_HTML.value,
    )
    print("\n\n".join([report.table, *report.remarks]))
    print("Wrote " + ", ".join(str(file) for file in report.files))


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
