"""Trains a nest; or goes on with a model; or grows a TA around one.

matta-train --config=configs/quickstart.py --workdir=runs/quickstart [--dry_run]
matta-train --init_from=models/student --workdir=runs/student --config.train.num_steps=900
matta-train --init_from=models/gpt2_ours --config=configs/gpt2_small.py --workdir=runs/grown
matta-train --config=configs/gpt2_medium.py --workdir=/shared/runs/gpt2_medium \\
  --distributed  (on every machine)
"""

import dataclasses

from absl import flags

import matta_jax
from matta_jax.bin import STARTED, _app, _processes
from matta_jax.sharding import set_tpu_flags
from matta_jax.training import profile_steps

_CONFIG = _app.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_RESUME = flags.DEFINE_enum(
    "resume", "auto", ["auto", "must", "never"], "Whether to continue the run in workdir."
)
_INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Sets init.model: a model to start from. Without --config: that of a plain run that goes on.",
)
_FALLBACK = flags.DEFINE_bool(
    "fallback", False, "Where the newest checkpoint is damaged, go on from the newest healthy one."
)
_EXTEND = flags.DEFINE_bool(
    "extend",
    False,
    "Go on to another train.num_steps even where the learning rate or the distillation jumps.",
)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps",
    None,
    "Write a trace of these steps into workdir/profile: 10:13 for the three after step 10.",
)
_TPU_FLAGS = _app.define_tpu_flags()
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print sizes and memory, compile one step, and stop."
)


def _main() -> None:
    # Before JAX starts, and a child of several processes has them too.
    set_tpu_flags(_TPU_FLAGS.value)
    config = _app.checked_config(_CONFIG)
    if _INIT_FROM.value is not None:
        init = dataclasses.replace(config.init, model=_INIT_FROM.value)
        config = dataclasses.replace(config, init=init)

    if _DRY_RUN.value:
        print(matta_jax.dry_run(config))
        return

    workdir = _app.required(_WORKDIR, "runs/mine")
    steps = _PROFILE_STEPS.value
    profile = range(0) if steps is None else profile_steps(steps)
    # A wrong flag is told before this, and starts no child.
    _processes.join("train")
    matta_jax.train(
        config,
        workdir,
        resume=_RESUME.value,
        fallback=_FALLBACK.value,
        extend=_EXTEND.value,
        log=_app.say,
        profile=profile,
        started=STARTED,
    )


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
