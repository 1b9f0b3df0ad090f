"""What a step costs in FLOPs, and how many a device does in a second."""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from matta_jax.models import Plan, count_model
from matta_jax.nesting import SubModel
from matta_jax.starts.teacher import Teacher
from matta_jax.training._state import Setup
from matta_jax.training._step import joining_step, num_mixes, static_members


def step_flops_per_token(
    plan: Plan, members: Sequence[SubModel], mixes: int, teacher: Teacher | None = None
) -> float:
    """Analytic FLOPs of a training step for each token: three times the forward passes of all that
    it runs.

    Recomputation is not counted. A mix counts at the mean of what layers choose from. A member that
    is a plain prefix of its TA shares the trunk, and counts with its head by itself. A Teacher that
    runs along counts with one forward pass.

    Args:
      plan: of the run.
      members: the sub-models of a step.
      mixes: random ones beside them.
      teacher: that runs along, or None.
    """
    forward = float(sum(_member_flops(plan, member) for member in members))
    uniform = [
        plan.count(plan.nest.ta.resized(**option)).flops_per_token
        for option in plan.nest.layer_options
    ]
    forward += mixes * sum(uniform) / len(uniform)

    teaching = 0
    if teacher is not None:
        teaching = count_model(teacher.architecture, plan.seq_len).flops_per_token
    return 3 * forward + teaching


def step_flops_of(setup: Setup) -> float:
    """`step_flops_per_token` of a run's step of all members."""
    members = list(static_members(setup).values())
    return step_flops_per_token(setup.plan, members, num_mixes(setup), setup.teacher)


def alone_flops_of(setup: Setup) -> float:
    """`step_flops_per_token` of a run's step of its TA alone."""
    return step_flops_per_token(setup.plan, [setup.nest.ta], 0, setup.teacher)


def run_flops_of(setup: Setup) -> float:
    """The mean of `step_flops_per_token` over the steps of a run, some of which may be of its TA
    alone.
    """
    share = joining_step(setup) / setup.config.train.num_steps
    return share * alone_flops_of(setup) + (1 - share) * step_flops_of(setup)


def _member_flops(plan: Plan, member: SubModel) -> int:
    """FLOPs of a forward pass, without what is the TA's too."""
    ta = plan.nest.ta
    is_prefix = member != ta and member == ta.with_layers(ta.layers[: member.num_layers])
    return plan.exit_flops(member) if is_prefix else plan.count(member).flops_per_token


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
