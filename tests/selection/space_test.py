"""The models of a search, and what they cost."""

import pytest

from matta_jax import nesting
from matta_jax.errors import UserError
from matta_jax.selection import Budget, Workload, _space


def test_costs_of_layers_add_up_to_the_counts_of_models(source):
    costs = _space.Costs(source, "bf16")
    for spec in ("student", "ta", "layers=2;d_ff=48,16", "d_model=16;num_heads=3"):
        sub_model = nesting.parse_spec(spec, source.nest)
        counts, cost = source.count(sub_model), costs(sub_model)
        assert (cost.max_params, cost.max_flops_per_token) == (
            counts.parameters,
            counts.flops_per_token,
        )
        assert cost.max_mb == counts.parameters * 2 / 1e6


def test_the_space_has_every_depth_and_width_between_student_and_ta(source):
    space = _space.make_space(source.nest)
    members = list(space.members())
    assert space.size == len(members) == len(set(members)) == 2 * 2 * (3**2 + 3**3)
    assert source.nest.student in members and source.nest.ta in members
    for member in members[::7]:
        source.nest.check(member)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Budget(max_ms=0), "max_ms=0 must be greater than 0"),
        *(
            (lambda name=name, value=value: Budget(**{name: value}), f"{name}=.* greater than 0")
            for name in ("max_params", "max_mb", "max_flops_per_token", "max_ms")
            for value in (0.0, -1.0, float("nan"), float("inf"), 10**400, 10**5000, "6e5", True)
        ),
        *(
            (lambda name=name, value=value: Workload(**{name: value}), f"latency_{name}=.* must be")
            for name in ("batch_size", "length")
            for value in (-1, 2**40, 10**5000, 1.5, True, "8")
        ),
        (lambda: Workload(batch_size=2**13, length=2**13), "latency_batch_size=8192 .* too many"),
        (lambda: Workload(dtype="float33"), "latency_dtype='float33' must be one of float32"),
        (lambda: Budget(dtype="fp16"), "dtype='fp16' must be one of fp32, bf16"),
        (lambda: Workload("train"), "latency_mode='train' must be one of prefill, decode"),
        (lambda: Workload(batch_size=0), "latency_batch_size=0 must be at least 1"),
    ],
)
def test_bad_budgets_and_workloads_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()
