"""Trains clients of different architectures in rounds; the server sees the small model they share.

matta-federate --config=configs/fedmrl.py --workdir=runs/fedmrl [--config.training.rounds=40]
"""

from absl import flags

import matta_jax
from matta_jax import federated
from matta_jax.bin import _app

_KIND = _app.ConfigKind(
    sections=federated.SECTIONS,
    call="matta_jax.federated.to_config_dict(FederatedConfig(...))",
)
_CONFIG = _app.define_config(kind=_KIND)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")


def _main() -> None:
    values = _app.checked_config_dict(_CONFIG, "configs/fedmrl.py")
    config = federated.from_config_dict(values)
    workdir = _app.required(_WORKDIR, "runs/fedmrl")
    matta_jax.federate(config, workdir, log=_app.say)


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
