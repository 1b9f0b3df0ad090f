"""What a run starts from when it starts from a model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from matta_jax.checkpoints import load_folder
from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.models import Architecture, Inputs, Plan, init_params, logical_axes, plan_of
from matta_jax.nesting import (
    SCAFFOLD,
    Role,
    SubModel,
    Tree,
    flatten,
    nest_of,
    regranulate,
    unflatten,
    word_of,
)
from matta_jax.packages import Package, open_model, plain_config
from matta_jax.sharding import param_shardings, place
from matta_jax.starts._go_on import check_step, differing_state_fields
from matta_jax.starts._grow import grow, sort_by_importance


def check_init(config: Config) -> Package | None:
    """Opens the model of `init.model`; None where a run starts from scratch.

    Raises:
      UserError: no such model, one that is neither the Student nor the TA of the run, or one whose
        optimiser state is of another optimiser or past the run's end.
    """
    if config.init.model is None:
        return None
    package, plan = open_model(config.init.model), plan_of(config)
    where = f"init.model={config.init.model!r}"
    try:
        model_alone = plain_config(config, package.architecture).model
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    kind = _kind(package.architecture, plan)
    if kind is None:
        differing = _differences(model_alone, config, plan.nest.ta)
        raise UserError(
            f"{where} is neither the Student nor the TA of this run: "
            f"model.{'; model.'.join(differing)}"
        )
    if config.init.sort:
        _check_sort(config, package, kind, where)
    _check_opt_state(config, package, where)
    return package


def _differences(model: Any, config: Config, ta: SubModel) -> list[str]:
    """Each size in which a model, as a config section, differs from the Student, in words."""
    ta_sizes = {word_of(axis): size for axis, size in ta.sizes.items()}
    ta_sizes["num_layers"] = ta.num_layers
    # Depth first and d_ff last, as in the config; what lies between depends on the family.
    sizes = ("num_layers", *sorted(set(ta_sizes) - {"num_layers", "d_ff"}), "d_ff")
    lines = []
    for name in ("vocab_size", "max_len", *sizes):
        size, student_size = getattr(model, name), getattr(config.model, name)
        if size == student_size:
            continue
        line = f"{name}={size} there, {student_size} here"
        if ta_sizes.get(name, student_size) != student_size:
            line += f" (TA: {ta_sizes[name]})"
        lines.append(line)
    return lines


def _check_sort(config: Config, package: Package, kind: str, where: str) -> None:
    """Raises UserError unless a model can be sorted, and may be."""
    if config.model.reads_examples:
        raise UserError("init.sort=True is for language models; leave it False")
    if kind != "ta":
        raise UserError(
            "init.sort=True needs an init.model of the TA's sizes; the Student must stay as it is"
        )
    # Sub-models are prefixes: sorted anew, they would hold other neurons than were trained.
    nest = nest_of(package.config)
    if nest.student != nest.ta:
        raise UserError(
            f"init.sort=True would scatter the sub-models of {where}, which was trained "
            "nested; leave it False"
        )


def plain_run(package: Package) -> Config:
    """The config of a plain run that goes on with a model: that of its own run, at its own sizes,
    without a nest.
    """
    config = plain_config(package.config, package.architecture)
    init = dataclasses.replace(config.init, model=str(package.path))
    return dataclasses.replace(config, init=init)


def initial_params(
    config: Config, package: Package, inputs: Inputs, mesh: Mesh
) -> tuple[Tree, str]:
    """Makes the TA's weights of a run out of a model that `check_init` let pass.

    Args:
      config: of the run.
      package: the model.
      inputs: of a batch of training text, to sort by.
      mesh: the devices.

    Returns:
      The weights, each device its own part, and what was done, in words.

    Raises:
      UserError: the model is damaged.
    """
    plan = plan_of(config)
    kind = _kind(package.architecture, plan)
    params = _placed(package, plan.nest.granules, mesh)
    shardings = param_shardings(plan.abstract, plan.axes, mesh)
    if kind == "student":
        noise = config.init.growth_noise if config.init.growth == "noisy" else None
        key = jax.random.key(config.train.seed)
        growing = jax.jit(
            lambda student: grow(student, plan, key, noise=noise), out_shardings=shardings
        )
        return growing(params), f"grew a TA around {package.path}"
    if kind == "ta" and config.init.sort:
        sorting = jax.jit(lambda ta: sort_by_importance(ta, plan, inputs), out_shardings=shardings)
        return sorting(params), f"sorted {package.path} by importance, for the TA"
    params |= _scaffold(config, plan, shardings)
    return params, f"took {package.path}" + (" for the TA" if kind == "ta" else "")


def _scaffold(config: Config, plan: Plan, shardings: Tree) -> Tree:
    """What stands beside the TA while it is trained, by module: fresh, as no model has it."""
    names = {
        path.partition("/")[0] for path, axes in flatten(plan.axes).items() if SCAFFOLD in axes
    }
    if not names:
        return {}

    def fresh() -> Tree:
        params = init_params(plan.architecture, jax.random.key(config.train.seed), plan.nest)
        return {name: params[name] for name in names}

    return jax.jit(fresh, out_shardings={name: shardings[name] for name in names})()


def _placed(package: Package, granules: Mapping[str, int], mesh: Mesh) -> Tree:
    """The weights of a model, with the granules of a nest, each device its own part. One weight at
    a time: a model may be larger than the memory of a host.
    """
    architecture = package.architecture
    names = flatten(logical_axes(architecture))
    placed = {}
    for path, stored in package.stored.items():
        weight = stored.whole().astype(np.float32, copy=False)
        # A plain model has granules of its own.
        weight = regranulate(weight, names[path], granules)
        sharding = param_shardings(weight, names[path], mesh, uneven_whole=Role)
        placed[path] = place(weight, sharding)
    return unflatten(placed)


def initial_opt_state(config: Config, package: Package, abstract: Any) -> tuple[Any, int] | None:
    """Reads the optimiser state of a model for a plain run, in the shardings of `abstract`, and its
    step; None where there is none to take up.

    Raises:
      UserError: the state is damaged.
    """
    if not _goes_on(config, package):
        return None
    trees = load_folder(package.path / "opt_state", {"opt_state": abstract})
    return trees["opt_state"], package.manifest["opt_state"]["step"]


def _goes_on(config: Config, package: Package) -> bool:
    """Whether a run takes up the model's optimiser state."""
    nest = nest_of(config)
    return "opt_state" in package.manifest and config.init.optimizer and nest.student == nest.ta


def _check_opt_state(config: Config, package: Package, where: str) -> None:
    """Raises UserError where the model's optimiser state would be taken up, and does not fit. The
    learning rate and the length of the run are its own.
    """
    if not _goes_on(config, package):
        return
    differing = differing_state_fields(package.config, config)
    # Shampoo's settings matter to the state of Shampoo alone.
    names = [name for name in differing if name.startswith("optimizer.")]
    if package.config.optimizer.name == "shampoo" and len(differing) > len(names):
        names.append("shampoo.*")
    if names:
        raise UserError(
            f"{where} holds the state of another optimiser (it differs in {', '.join(names)}); set "
            "these as there, or init.optimizer=False"
        )
    check_step(package.manifest["opt_state"]["step"], config, where)


def _kind(architecture: Architecture, plan: Plan) -> str | None:
    """Whether a model is the run's `student`, its `ta` or, in a plain run, `both`; None when it is
    neither. Granules do not count.
    """

    def sizes(candidate: Architecture) -> Architecture:
        return dataclasses.replace(candidate, granules={})

    is_student = sizes(plan.architecture_of(plan.nest.student)) == sizes(architecture)
    is_ta = sizes(plan.architecture_of(plan.nest.ta)) == sizes(architecture)
    if is_student and is_ta:
        return "both"
    if is_student:
        return "student"
    return "ta" if is_ta else None
