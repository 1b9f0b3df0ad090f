"""A run that goes on from a checkpoint of another one, and may train other members of its TA."""

from typing import Any

import jax

from matta_jax import config as config_lib
from matta_jax.checkpoints import Source, open_source
from matta_jax.config import Config, field_names, state_fields
from matta_jax.errors import UserError, listed
from matta_jax.models import plan_of
from matta_jax.nesting import flatten, path_name
from matta_jax.optim import optimizer_of


def check_checkpoint(config: Config) -> Source:
    """Opens the run of `init.checkpoint`.

    Raises:
      UserError: no such run; or one of another TA, of another optimiser, or past this run's end.
    """
    assert config.init.checkpoint is not None
    where = f"init.checkpoint={config.init.checkpoint!r}"
    source = open_source(config.init.checkpoint)
    _check_sizes(config, source, where)
    differing = differing_state_fields(source.config, config)
    if differing or _state_shapes(source.config) != _state_shapes(config):
        names = listed(differing) if differing else "the granularities of its nest"
        raise UserError(
            f"{where} holds the state of another optimiser (it differs in {names}); set these as "
            "there"
        )
    check_step(source.step, config, where)
    return source


def check_step(step: int, config: Config, where: str) -> None:
    """Raises UserError where a run has no step after the one that it goes on from."""
    if step >= config.train.num_steps:
        raise UserError(
            f"{where} is of step {step}, but train.num_steps={config.train.num_steps}; raise it"
        )


def _check_sizes(config: Config, source: Source, where: str) -> None:
    """Raises UserError unless the weights have the shapes of the run's TA."""

    def shapes(weights: Any) -> dict[str, Any]:
        return {path: leaf.shape for path, leaf in flatten(weights).items()}

    if shapes(source.abstract) == shapes(plan_of(config).abstract):
        return
    changes = config_lib.differences(config_lib.to_dict(source.config), config_lib.to_dict(config))
    sizes = [
        line for line in changes if line.startswith(("model.", "nest.", "objective.pair_loss"))
    ]
    raise UserError(f"{where} holds another TA ({'; '.join(sizes)}); set these fields as there")


def differing_state_fields(stored: Config, config: Config) -> list[str]:
    """The fields in which a run cannot take up the optimiser state of another one."""
    in_state = state_fields()
    differing = []
    for name in field_names():
        if name in in_state and _value(stored, name) != _value(config, name):
            differing.append(name)
    return differing


def _value(config: Config, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(config, section), field)


def _state_shapes(config: Config) -> dict[str, Any]:
    plan = plan_of(config)
    state = jax.eval_shape(optimizer_of(config, plan).init, plan.abstract)
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {path_name(path): leaf.shape for path, leaf in leaves}
