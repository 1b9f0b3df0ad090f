"""What a run starts from when it starts from a model."""

import dataclasses
from typing import Any

import jax

from matta_jax.checkpoints import load_folder, on_one_device
from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.models import Architecture, architecture_of, logical_axes
from matta_jax.nesting import Nest, Tree, nest_of
from matta_jax.packages import Package, open_model, plain_config, regranulate
from matta_jax.starts._grow import grow, sort_by_importance

# A plain run may take up an optimiser state when these agree; its learning rate and length are its
# own.
_OPTIMIZER_FIELDS = ("name", "clip_norm")


def check_init(config: Config) -> Package | None:
    """Opens the model of `init.model`; None where a run starts from scratch.

    Raises:
      UserError: no such model, one that is neither the Student nor the TA of the run, or one whose
        optimiser state is of another optimiser or past the run's end.
    """
    if config.init.model is None:
        return None
    package, nest = open_model(config.init.model), nest_of(config)
    where = f"init.model={config.init.model!r}"
    try:
        own = plain_config(config, package.architecture).model
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if _fits(package.architecture, config, nest) is None:
        model, ta = config.model, nest.ta
        ta_sizes = {
            "num_layers": ta.num_layers,
            "d_model": ta.d_model,
            "num_heads": ta.num_heads,
            "d_ff": ta.d_ff[0],
        }
        differing = [
            f"{name}={getattr(own, name)} there, {getattr(model, name)} here"
            + (
                f" (TA: {ta_sizes[name]})"
                if ta_sizes.get(name, getattr(model, name)) != getattr(model, name)
                else ""
            )
            for name in ("vocab_size", "max_len", "num_layers", "d_model", "num_heads", "d_ff")
            if getattr(own, name) != getattr(model, name)
        ]
        raise UserError(
            f"{where} is neither the Student nor the TA of this run: "
            f"model.{'; model.'.join(differing)}"
        )
    if config.init.sort:
        if config.model.name == "scorer":
            raise UserError("init.sort=True is for language models; leave it False")
        if _fits(package.architecture, config, nest) != "ta":
            raise UserError(
                "init.sort=True needs an init.model of the TA's sizes; the Student must stay as it "
                "is"
            )
        theirs = nest_of(package.config)
        if theirs.student != theirs.ta:
            raise UserError(
                f"init.sort=True would scatter the sub-models of {where}, which was trained "
                "nested; leave it False"
            )
    _check_opt_state(config, package)
    return package


def plain_run(package: Package) -> Config:
    """The config of a plain run that goes on with a model: that of its own run, at its own sizes,
    without a nest.
    """
    config = plain_config(package.config, package.architecture)
    return dataclasses.replace(
        config, init=dataclasses.replace(config.init, model=str(package.path))
    )


def initial_params(config: Config, package: Package, tokens_BT: jax.Array) -> tuple[Tree, str]:
    """Makes the TA's weights of a run out of a model that `check_init` let pass.

    Args:
      config: of the run.
      package: the model.
      tokens_BT: training text, to sort by.

    Returns:
      The weights, and what was done, in words.

    Raises:
      UserError: the model is damaged.
    """
    nest = nest_of(config)
    kind = _fits(package.architecture, config, nest)
    ta = architecture_of(config.model, nest, nest.ta)
    own = architecture_of(config.model, nest, nest.student if kind == "student" else nest.ta)
    params = regranulate(package.load().params, logical_axes(own), own)
    if kind == "student":
        noise = config.init.growth_noise if config.init.growth == "noisy" else None
        return grow(
            params, ta, nest, jax.random.key(config.train.seed), noise=noise
        ), f"grew a TA around {package.path}"
    if kind == "ta" and config.init.sort:
        return sort_by_importance(
            params, ta, tokens_BT
        ), f"sorted {package.path} by importance, for the TA"
    return params, f"took {package.path}" + (" for the TA" if kind == "ta" else "")


def initial_opt_state(config: Config, package: Package, abstract: Any) -> tuple[Any, int] | None:
    """Reads the optimiser state of a model for a plain run, and its step; None where there is none
    to take up.

    Raises:
      UserError: the state is damaged.
    """
    if not _goes_on(config, package):
        return None
    trees = load_folder(package.path / "opt_state", {"opt_state": on_one_device(abstract)})
    return trees["opt_state"], package.manifest["opt_state"]["step"]


def _goes_on(config: Config, package: Package) -> bool:
    """Whether a run takes up the model's optimiser state."""
    nest = nest_of(config)
    return "opt_state" in package.manifest and config.init.optimizer and nest.student == nest.ta


def _check_opt_state(config: Config, package: Package) -> None:
    if not _goes_on(config, package):
        return
    where = f"init.model={config.init.model!r}"
    theirs, step = package.config.optimizer, package.manifest["opt_state"]["step"]
    differing = [
        name
        for name in _OPTIMIZER_FIELDS
        if getattr(theirs, name) != getattr(config.optimizer, name)
    ]
    shampoo = theirs.name == "shampoo" and package.config.shampoo != config.shampoo
    if differing or shampoo:
        names = [f"optimizer.{name}" for name in differing] + ["shampoo.*"] * shampoo
        raise UserError(
            f"{where} holds the state of another optimiser (it differs in {', '.join(names)}); set "
            "these as there, or "
            "init.optimizer=False"
        )
    if step >= config.train.num_steps:
        raise UserError(
            f"{where} is of step {step}, but train.num_steps={config.train.num_steps}; raise it"
        )


def _fits(architecture: Architecture, config: Config, nest: Nest) -> str | None:
    """Whether a model is the run's `student`, its `ta` or, in a plain run, `both`; None when it is
    neither.
    """

    def sizes(one: Architecture) -> tuple[Any, ...]:
        kind = (one.num_classes, one.num_dense, one.categories)
        return (
            one.vocab_size,
            one.max_len,
            one.d_model,
            one.num_heads,
            one.head_dim,
            one.d_ff,
            *kind,
        )

    is_student, is_ta = (
        sizes(architecture_of(config.model, nest, end)) == sizes(architecture)
        for end in (nest.student, nest.ta)
    )
    return "both" if is_student and is_ta else "student" if is_student else "ta" if is_ta else None
