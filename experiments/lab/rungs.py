"""The sizes, lengths and recipes that are compared."""

import dataclasses
from collections.abc import Mapping

from matta_jax import config as c
from matta_jax.sweeps import Overrides

SEEDS = (0, 1, 2)
TUNING_SEED = 100
"""Of the runs that choose a learning rate, and of no other."""
RATES = (0.01, 0.02, 0.04)
"""Tried first; where the best is at an end, the grid goes on beyond it."""


@dataclasses.dataclass(frozen=True)
class Rung:
    """A size of the ladder.

    Attributes:
      name: after the TA's parameters without its tables.
      num_layers: of all models.
      d_model: of all models; d_ff is half of it in the Student and eight times it in the TA.
      num_heads: of all models.
      batch_size: windows of a step.
      tuned_at: index of the rung whose learning rates it takes, where a sweep of its own would cost
        too much.
    """

    name: str
    num_layers: int
    d_model: int
    num_heads: int
    batch_size: int
    tuned_at: int | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """d_ff of the five sizes, each twice the one before."""
        return tuple(self.d_model * factor // 2 for factor in (1, 2, 4, 8, 16))

    @property
    def parameters(self) -> int:
        """Matrices of the TA's layers."""
        return self.num_layers * self.d_model * (4 * self.d_model + 2 * self.widths[-1])

    def num_steps(self, tokens_per_parameter: int) -> int:
        """Steps in which the TA reads so many tokens for each of its parameters."""
        return round(tokens_per_parameter * self.parameters / (self.batch_size * SEQ_LEN))


SEQ_LEN = 128
TWO_POINTS = "two points"
"""The recipe that trains the smallest and the largest size alone."""
RUNGS = (
    Rung("60k", num_layers=3, d_model=32, num_heads=2, batch_size=16),
    Rung("250k", num_layers=4, d_model=56, num_heads=4, batch_size=32),
    Rung("1M", num_layers=6, d_model=96, num_heads=6, batch_size=64, tuned_at=1),
)
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
    conditions: dict[str, Overrides] = {}
    for width in rung.widths:
        conditions[alone(width)] = {"nest.d_ff": None, "nest.widths": (), "model.d_ff": width}

    middle = {f"w{width}": f"d_ff={width}" for width in rung.widths[1:-1]}
    ones, zeros = dict.fromkeys(middle, 1.0), dict.fromkeys(middle, 0.0)
    return conditions | {
        TWO_POINTS: {"nest.mix_per_step": 0},
        "with a mix": {},
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


def rung_config(rung: Rung, tokens_per_parameter: int, sources: Mapping[str, str]) -> c.Config:
    """The run of a rung with its nest, before the overrides of a recipe.

    Args:
      rung: its sizes.
      tokens_per_parameter: its length.
      sources: `source` and `eval_source` of the data.
    """
    steps = rung.num_steps(tokens_per_parameter)
    return c.Config(
        model=c.ModelConfig(
            num_layers=rung.num_layers,
            d_model=rung.d_model,
            num_heads=rung.num_heads,
            d_ff=rung.widths[0],
            max_len=SEQ_LEN,
        ),
        nest=c.NestConfig(d_ff=rung.widths[-1], widths=rung.widths),
        optimizer=c.OptimizerConfig(name="muon", learning_rate=0.02, warmup_steps=steps // 20),
        data=c.DataConfig(**sources, seq_len=SEQ_LEN, batch_size=rung.batch_size),
        train=c.TrainConfig(
            num_steps=steps,
            log_every=100,
            eval_every=steps,
            checkpoint_every=300,
            keep_checkpoints=1,
            peak_tflops=0.1,
        ),
    )
