"""What a run would be, before it is one."""

import math
from typing import Any

import jax

from matta_jax.config import Config
from matta_jax.nesting import PATTERNS, count, format_spec, parse_spec
from matta_jax.optim import find_shampoo
from matta_jax.sharding import check_mesh, make_mesh
from matta_jax.training._state import Setup, make_setup
from matta_jax.training._step import abstract_batch, make_train_step


def dry_run(config: Config) -> str:
    """Counts the sub-models and the memory of a run and compiles one step, without data and without
    writing.

    Returns:
      A table for people: parameters, bytes and FLOPs per token of Student, TA, each uniform width
      and each pattern at half its layers; then the memory of a device.
    """
    sizes = check_mesh(
        config.mesh,
        batch_size=config.data.batch_size,
        microbatches=config.train.microbatches,
        num_devices=jax.device_count(),
    )
    mesh = make_mesh(sizes)
    setup = make_setup(config, mesh)
    nest, abstract = setup.nest, setup.abstract
    specs = ["student", "ta", *(f"d_ff={width}" for width in nest.widths)]
    specs += [f"d_ff={pattern}:{nest.ta.num_layers // 2}" for pattern in PATTERNS]
    sub_models = dict.fromkeys(parse_spec(spec, nest) for spec in specs)  # Each once, in order.
    lines = [f"{'sub-model':<44} {'parameters':>14} {'MB':>10} {'MFLOP/token':>12}"]
    for sub_model in sub_models:
        counts = count(
            abstract.params,
            setup.axes,
            sub_model,
            head_dim=nest.head_dim,
            seq_len=config.data.seq_len,
        )
        lines.append(
            f"{format_spec(sub_model, nest):<44} {counts.parameters:>14,} "
            f"{counts.bytes / 1e6:>10.2f} "
            f"{counts.flops_per_token / 1e6:>12.2f}"
        )
    lines.append("")
    lines.append(
        f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} on {jax.devices()[0].device_kind}"
    )
    parts = {
        "parameters": abstract.params,
        "gradient": abstract.params,
        "optimiser": abstract.opt_state,
    }
    if setup.teacher is not None:
        parts["teacher"] = setup.abstract_teacher
    for name, tree in parts.items():
        lines.append(f"{name:<12} {device_bytes(tree) / 1e6:>12.2f} MB per device")
    shampoo = find_shampoo(abstract.opt_state)
    for name, state in {} if shampoo is None else shampoo.buckets.items():
        size = device_bytes((state.statistics, state.roots)) / 1e6
        lines.append(
            f"  of which {size:>12.2f} MB per device: statistics and roots of {state.age.size} "
            f"blocks {name}"
        )

    memory = compile_step(setup).memory_analysis()
    lines.append(
        f"{'temporaries':<12} {memory.temp_size_in_bytes / 1e6:>12.2f} MB per device, of the "
        "compiled step"
    )
    return "\n".join(lines)


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
