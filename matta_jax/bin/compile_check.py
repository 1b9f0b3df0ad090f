"""Compiles a run's step for a TPU slice, without a TPU: memory, collectives, FLOPs and the step
time to expect.

matta-compile-check --config=configs/gpt2_medium.py --topology=v5e:4x4 [--config.mesh.fsdp=16]

Exit code 1 when the step does not fit the memory of a chip. Needs libtpu: pip install
'matta_jax[tpu]'.
"""

import os
import signal
import sys

from absl import flags

import matta_jax
from matta_jax.bin import _app

_CONFIG = _app.define_config()
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chip and shape: v5e:4x4, v5p:2x2x2, v6e:2x4, …")

_TPU_FLAGS = _app.define_tpu_flags()


def _main() -> None:
    # Before JAX is imported: a TPU that is there is not taken.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    # It saves nothing, so that it may end at once; the compiler would go on for minutes.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)

    from matta_jax.sharding import set_tpu_flags

    set_tpu_flags(_TPU_FLAGS.value)
    config = _app.checked_config(_CONFIG)
    topology = _app.required(_TOPOLOGY, "v5e:4x4")
    report = matta_jax.compile_check(config, topology, log=_app.say)
    print(report.text())
    if not report.fits:
        sys.exit(1)


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
