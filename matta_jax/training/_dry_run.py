"""What a run would be, before it is one."""

import math
from typing import Any

import jax

from matta_jax.config import Config
from matta_jax.models import Plan
from matta_jax.nesting import parse_spec, preset_specs
from matta_jax.optim import find_shampoo
from matta_jax.sharding import check_mesh, make_mesh, mesh_text
from matta_jax.training._gradient import rows_of
from matta_jax.training._state import Setup, make_setup
from matta_jax.training._step import abstract_batch, make_train_step


def dry_run(config: Config) -> str:
    """Counts the sub-models and the memory of a run and compiles one step, without data and without
    writing.

    Returns:
      A table for people: parameters, bytes and FLOPs per token of Student, TA, each uniform width
      and each pattern at half its layers; then the memory of a device.

    Examples:
      >>> print(matta_jax.dry_run(config).splitlines()[0])
      sub-model                                        parameters         MB  MFLOP/token
    """
    sizes = check_mesh(
        config.mesh,
        batch_size=config.data.batch_size,
        microbatches=config.train.microbatches,
        num_devices=jax.device_count(),
    )
    setup = make_setup(config, make_mesh(sizes, slices=config.mesh.slices))
    kind = jax.devices()[0].device_kind
    temporaries = compile_step(setup).memory_analysis().temp_size_in_bytes
    lines = [
        *_sub_model_lines(setup.plan),
        "",
        f"mesh {mesh_text(sizes)} on {kind}",
        *_memory_lines(setup),
        f"{'temporaries':<12} {temporaries / 1e6:>12.2f} MB per device, of the compiled step",
    ]
    return "\n".join(lines)


def _sub_model_lines(plan: Plan) -> list[str]:
    """The table of what sub-models cost."""
    lines = [f"{'sub-model':<44} {'parameters':>14} {'MB':>10} {'MFLOP/token':>12}"]
    for spec in preset_specs(plan.nest):
        counts = plan.count(parse_spec(spec, plan.nest))
        lines.append(
            f"{spec:<44} {counts.parameters:>14,} {counts.bytes / 1e6:>10.2f} "
            f"{counts.flops_per_token / 1e6:>12.2f}"
        )
    return lines


def _memory_lines(setup: Setup) -> list[str]:
    """What the state takes on a device."""
    abstract = setup.abstract
    parts = {
        "parameters": abstract.params,
        "gradient": abstract.params,
        "optimiser": abstract.opt_state,
    }
    if setup.teacher is not None:
        parts["teacher"] = setup.abstract_teacher
    lines = [
        f"{name:<12} {device_bytes(tree) / 1e6:>12.2f} MB per device"
        for name, tree in parts.items()
    ]
    lines += _gather_lines(setup)

    shampoo = find_shampoo(abstract.opt_state)
    for name, state in {} if shampoo is None else shampoo.buckets.items():
        megabytes = device_bytes((state.statistics, state.roots)) / 1e6
        lines.append(
            f"  of which {megabytes:>12.2f} MB per device: statistics and roots of "
            f"{state.age.size} blocks {name}"
        )
    return lines


def _gather_lines(setup: Setup) -> list[str]:
    """What `train.gather=step` holds on a device, or would hold."""
    rows = rows_of(setup)
    if rows is None:
        return []
    is_accumulated = setup.config.train.microbatches > 1
    held = rows.held_bytes(setup.abstract.params, setup.axes, is_accumulated=is_accumulated) / 1e6
    if rows.once:
        return [f"{'gathered':<12} {held:>12.2f} MB per device: all weights and their gradient"]
    return [f"{'':<12} {held:>12.2f} MB more per device with train.gather=step, which moves less"]


def compile_step(setup: Setup) -> Any:
    """Compiles a run's step for its mesh, whose devices need not be there."""
    teacher = [] if setup.teacher is None else [setup.abstract_teacher]
    return make_train_step(setup).lower(setup.abstract, abstract_batch(setup), *teacher).compile()  # type: ignore[attr-defined]


def device_bytes(tree: Any) -> int:
    """The bytes of a tree of abstract arrays on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
