"""A train step of MaxText, as its own `train_compile` compiles it: the program's text and what the
compiler says of it. For `maxtext.py`.
"""

import json
import pathlib
import sys

import jax
import maxtext
from flax.core.spmd import logical_axis_rules
from maxtext.configs import pyconfig
from maxtext.trainers.pre_train import train, train_compile
from maxtext.utils import maxtext_utils, sharding


def compiled(argv):
    """The program, by the functions that the `main` of `train_compile` calls, in their order."""
    config = pyconfig.initialize(argv)
    train_compile.validate_config(config)
    mesh = train_compile.get_topology_mesh(config)
    arguments, named, states, _, model = train_compile.get_shaped_inputs(mesh, config)
    params, states = sharding.maybe_update_params_sharding_with_opt(config, states)
    states = sharding.build_zero1_input_state_mesh_shardings(config, states, params)
    step = maxtext_utils.get_functional_train_with_signature(
        train.train_step,
        sharding.get_input_data_sharding(config, mesh),
        states,
        model,
        config,
        params,
    )
    function, *layout = step
    rules = logical_axis_rules(config.logical_axis_rules)
    return train_compile.jit_and_compile(function, arguments, named, mesh, *layout, config, rules)


def main():
    """Compiles for the fields of the first flag, and writes beside the path of the second."""
    import program

    fields, output = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
    # As its main does.
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    base = pathlib.Path(maxtext.__file__).parent / "configs" / "base.yml"
    argv = ["train_compile", str(base), *(f"{name}={value}" for name, value in fields.items())]
    program.write(compiled(argv), output)


if __name__ == "__main__":
    main()
