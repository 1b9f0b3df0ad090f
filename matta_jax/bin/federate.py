"""Trains clients of different architectures in rounds; the server sees the small model they share.

matta-federate --config=configs/fedmrl.py --workdir=runs/fedmrl [--config.training.rounds=40]

A client's model, as it is after the run's last round, in a folder that matta-classify reads:

matta-federate --workdir=runs/fedmrl --extract=3 --output=models/client3
"""

from absl import flags

import matta_jax
from matta_jax import federated
from matta_jax.bin import _app
from matta_jax.errors import UserError
from matta_jax.packages import check_place

_KIND = _app.ConfigKind(
    sections=federated.SECTIONS,
    call="matta_jax.federated.to_config_dict(FederatedConfig(...))",
)
_CONFIG = _app.define_config(kind=_KIND)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_EXTRACT = flags.DEFINE_integer(
    "extract", None, "Number of a client, from 0, whose model is written to --output."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of that model.")


def _main() -> None:
    if _EXTRACT.value is not None:
        _extract(_EXTRACT.value)
        return
    if _OUTPUT.value is not None:
        raise UserError(
            f"output={_OUTPUT.value!r} is of use with --extract alone; name a client with that, or "
            "leave it out"
        )
    values = _app.checked_config_dict(_CONFIG, "fedmrl")
    config = federated.from_config_dict(values)
    workdir = _app.required(_WORKDIR, "runs/fedmrl")
    matta_jax.federate(config, workdir, log=_app.say)


def _extract(client: int) -> None:
    if flags.FLAGS["config"].present:
        raise UserError("--config is of no use with --extract: the run's counts; leave it out")
    workdir = _app.required(_WORKDIR, "runs/fedmrl")
    output = check_place("output", _app.required(_OUTPUT, "models/client3"))
    model = federated.extract_client(workdir, client, output)
    about = model.manifest
    _app.say(
        f"{model.path}: client {client} after round {about['round']}, {about['parameters']:,} "
        f"parameters, accuracy {about['accuracy']:.4f}"
    )


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
