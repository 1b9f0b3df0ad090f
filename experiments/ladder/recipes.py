"""The recipes that the ladder compares, and the lengths of its rungs."""

from collections.abc import Mapping

from lab.rungs import RUNGS, Rung, lone_width

from matta_jax.sweeps import Overrides

TWO_POINTS = "two points"
"""The recipe that trains the smallest and the largest size alone."""
WITH_A_MIX = "with a mix"
"""The product's own."""
LENGTHS: Mapping[str, tuple[int, ...]] = {"60k": (20, 100), "250k": (20,), "1M": (20,)}
"""Tokens for each parameter of the TA, by rung."""


def settings() -> list[tuple[Rung, int]]:
    """Rungs and lengths in the order in which they are trained: the trend over size comes first."""
    lengths = sorted({length for lengths in LENGTHS.values() for length in lengths})
    return [(rung, length) for length in lengths for rung in RUNGS if length in LENGTHS[rung.name]]


def alone(width: int) -> str:
    """The condition of a model of one width, trained by itself."""
    return f"alone {width}"


def conditions_of(rung: Rung) -> dict[str, Overrides]:
    """The overrides of each recipe, by its name."""
    conditions = {alone(width): lone_width(width) for width in rung.widths}

    middle = {f"w{width}": f"d_ff={width}" for width in rung.widths[1:-1]}
    ones, zeros = dict.fromkeys(middle, 1.0), dict.fromkeys(middle, 0.0)
    return conditions | {
        TWO_POINTS: {"nest.mix_per_step": 0},
        WITH_A_MIX: {},
        "with a mix, TA first": {
            "objective.ta_weight": 2.0,
            "objective.student_weight": 0.5,
            "objective.distill_weight": 0.25,
            "objective.mix_weight": 0.25,
            "objective.mix_distill_weight": 0.25,
        },
        # Kudugunta et al. 2023 (MatFormer): the sum over all sizes, or one drawn for each step.
        "MatFormer, all sizes": {
            "nest.mix_per_step": 0,
            "nest.members": middle,
            "objective.member_weights": ones,
            "objective.member_distill_weights": zeros,
            "objective.distill_weight": 0.0,
        },
        "MatFormer, one size a step": {
            "nest.mix_by": "model",
            "objective.student_weight": 0.0,
            "objective.ta_weight": 0.0,
            "objective.distill_weight": 0.0,
            "objective.mix_weight": 1.0,
            "objective.mix_distill_weight": 0.0,
        },
        # Yu et al. 2020 (BigNAS): the largest learns from labels, and the smallest and two random
        # ones from the largest.
        "sandwich": {
            "nest.mix_per_step": 2,
            "objective.student_weight": 0.0,
            "objective.distill_weight": 1.0,
            "objective.mix_weight": 0.0,
            "objective.mix_distill_weight": 1.0,
            "objective.ramp_shape": "constant",
        },
    }
