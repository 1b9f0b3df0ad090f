"""The first state of a run that starts from a model, or from a checkpoint of another run."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from matta_jax.checkpoints import Checkpoints, Source
from matta_jax.data import ExampleSet, MixedWindows, Windows, sequential_batches
from matta_jax.packages import Package
from matta_jax.sharding import place
from matta_jax.starts import initial_opt_state, initial_params
from matta_jax.training._state import Setup, TrainState


def start_from(
    setup: Setup,
    package: Package,
    windows: Windows | MixedWindows | ExampleSet,
    log: Callable[[str], None],
) -> TrainState:
    """Makes the state of a run out of a model; of a plain run that goes on, with its step.

    Args:
      setup: of the run.
      package: the model, which `check_init` let pass.
      windows: the training data, whose first batch serves to sort neurons by.
      log: takes what was done.

    Raises:
      UserError: the model or its optimiser state is damaged.
    """
    config = setup.config
    # Only a TA that is sorted by importance reads it; it costs no more than a batch.
    batch = next(iter(sequential_batches(windows, batch_size=config.data.batch_size)))
    inputs = setup.plan.schema.targets(jax.tree.map(jnp.asarray, batch)).inputs
    # In numpy: constants of whatever program sorts, on any mesh.
    inputs = jax.device_get(inputs)
    params, description = initial_params(config, package, inputs, setup.mesh)

    stored_state = initial_opt_state(config, package, setup.abstract.opt_state)
    # A grown TA, or a run that asks for a fresh optimiser, counts its steps from 0.
    if stored_state is None:
        step = 0
        init = jax.jit(setup.optimizer.init, out_shardings=setup.shardings.opt_state)
        opt_state = init(params)
    else:
        opt_state, step = stored_state

    log(f"{description}, step {step}")
    return TrainState(place(jnp.int32(step), setup.shardings.step), params, opt_state)


def go_on_from(setup: Setup, source: Source, log: Callable[[str], None]) -> TrainState:
    """Makes the state of a run that goes on from a checkpoint which `check_checkpoint` let pass.

    Raises:
      UserError: the checkpoint is damaged.
    """
    abstract = setup.abstract
    with Checkpoints(source.directory, read_only=True) as checkpoints:
        trees = checkpoints.restore(
            source.step, {"params": abstract.params, "opt_state": abstract.opt_state}
        )
    log(f"goes on from {source.directory}, step {source.step}")
    step = place(jnp.int32(source.step), setup.shardings.step)
    return TrainState(step, trees["params"], trees["opt_state"])
