"""A train step of matta_jax, compiled for a TPU that is not there. For `maxtext.py`."""

import json
import pathlib
import sys

from matta_jax import config as c
from matta_jax.sharding import check_mesh, make_mesh, topology_devices
from matta_jax.training import compile_step, make_setup


def config_of(fields):
    """The config of fields by section."""
    return c.Config(
        model=c.LlamaConfig(**fields["model"]),
        nest=c.NestConfig(**fields["nest"]),
        objective=c.ObjectiveConfig(**fields["objective"]),
        data=c.DataConfig(**fields["data"]),
        mesh=c.MeshConfig(**fields["mesh"]),
    )


def main():
    """Compiles for the config of the first flag, and writes beside the path of the second."""
    import program

    fields, output = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
    config = config_of(fields)
    devices = topology_devices(fields["topology"])
    sizes = check_mesh(
        config.mesh, batch_size=config.data.batch_size, microbatches=1, num_devices=len(devices)
    )
    program.write(compile_step(make_setup(config, make_mesh(sizes, devices))), output)


if __name__ == "__main__":
    main()
