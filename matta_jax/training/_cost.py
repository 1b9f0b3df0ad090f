"""What a step costs in FLOPs, and how many a device does in a second."""

import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from matta_jax.models import Plan, count_model, goes_along, layers_apart, waves_of
from matta_jax.nesting import SubModel
from matta_jax.starts.teacher import Teacher
from matta_jax.training._state import Setup
from matta_jax.training._step import joining_step, num_mixes, trained_members


def step_flops_per_token(
    plan: Plan, members: Sequence[SubModel], mixes: int, teacher: Teacher | None = None
) -> float:
    """Analytic FLOPs of a training step for each token: three times the forward passes of all that
    it runs.

    Recomputation is not counted. What sub-models run together counts once: the entry, and layers up
    to where they part, such as all of a plain prefix of the TA, or of a member that is the Student
    too; and the first layer's attention of those that differ in d_ff alone. Each has a head by
    itself. A mix counts at the mean of what layers choose from. A Teacher
    that runs along counts with one forward pass.

    Args:
      plan: of the run.
      members: the sub-models of a step.
      mixes: random ones beside them.
      teacher: that runs along, or None.
    """
    choices = [jnp.zeros(plan.nest.num_layers, jnp.int32)] * mixes
    passes, waves = waves_of(plan, [*members, *choices])
    forward = 0.0
    for wave in waves:
        static = [passes[i] for i in wave]
        sub_models = [each for each in static if isinstance(each, SubModel)]
        forward += _wave_flops(plan, sub_models, len(static) - len(sub_models))

    teaching = 0
    if teacher is not None:
        teaching = count_model(teacher.architecture, plan.seq_len).flops_per_token
    return 3 * forward + teaching


def _wave_flops(plan: Plan, members: Sequence[SubModel], mixes: int) -> float:
    """FLOPs of the passes that run side by side."""
    # A narrower sub-model takes its entries of what enters the widest.
    entering = [*members, *[plan.nest.ta] * mixes]
    entry = max(plan.entry_flops(member) for member in entering)
    forward = float(entry + sum(_flops_apart(plan, members)))
    forward -= _flops_together(plan, members, mixes)
    uniform = []
    for option in plan.nest.layer_options:
        mix = plan.nest.ta.resized(**option)
        uniform.append(plan.pass_flops(mix) - plan.entry_flops(mix))
    return forward + mixes * sum(uniform) / len(uniform)


def step_flops_of(setup: Setup) -> float:
    """`step_flops_per_token` of a run's step of all members and mixes."""
    return _step_flops(setup, num_mixes(setup))


def mean_flops_of(setup: Setup) -> float:
    """The mean of `step_flops_per_token` over steps of all members, of which some train mixes."""
    share = 1 / setup.config.nest.mix_every
    if share == 1:
        return step_flops_of(setup)
    return share * step_flops_of(setup) + (1 - share) * _step_flops(setup, 0)


def _step_flops(setup: Setup, mixes: int) -> float:
    members = list(trained_members(setup).values())
    return step_flops_per_token(setup.plan, members, mixes, setup.teacher)


def alone_flops_of(setup: Setup) -> float:
    """`step_flops_per_token` of a run's step of its TA alone."""
    return step_flops_per_token(setup.plan, [setup.nest.ta], 0, setup.teacher)


def run_flops_of(setup: Setup) -> float:
    """The mean of `step_flops_per_token` over the steps of a run, some of which may be of its TA
    alone, or without mixes.
    """
    share = joining_step(setup) / setup.config.train.num_steps
    return share * alone_flops_of(setup) + (1 - share) * mean_flops_of(setup)


def _flops_together(plan: Plan, members: Sequence[SubModel], mixes: int) -> int:
    """FLOPs of the first part of layer 0 that others run too; of members that run the layer by
    themselves, and of mixes.
    """
    apart = [*layers_apart(plan, members), *[plan.nest.ta.layers] * mixes]
    sub_models = [*members, *[plan.nest.ta] * mixes]
    together = 0
    for sub_model, layers, along in zip(
        sub_models, apart, goes_along(plan, members, mixes), strict=True
    ):
        if along and 0 in layers:
            together += plan.first_part_flops(sub_model)
    return together


def _flops_apart(plan: Plan, members: Sequence[SubModel]) -> Iterator[int]:
    """FLOPs of a forward pass of each, without its entry, and without what one before it runs."""
    for member, layers in zip(members, layers_apart(plan, members), strict=True):
        if not layers:
            yield plan.exit_flops(member)
            continue
        part = member.part(layers)
        yield plan.pass_flops(part) - plan.entry_flops(part)


def measure_peak_flops(dtype: str) -> float:
    """Measures the FLOP/s of one device by a square matmul; the best of five."""
    size = 4096 if jax.default_backend() != "cpu" else 1024
    matrix = jax.device_put(jnp.ones((size, size), dtype), jax.local_devices()[0])
    matmul = jax.jit(jnp.matmul)
    matmul(matrix, matrix).block_until_ready()

    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        matmul(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
