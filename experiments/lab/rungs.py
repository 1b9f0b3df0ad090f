"""The rungs of the ladder: sizes of a TA, on which experiments of language models train."""

import dataclasses
from collections.abc import Mapping

from matta_jax import config as c
from matta_jax.sweeps import Overrides


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
RUNGS = (
    Rung("60k", num_layers=3, d_model=32, num_heads=2, batch_size=16),
    Rung("250k", num_layers=4, d_model=56, num_heads=4, batch_size=32),
    Rung("1M", num_layers=6, d_model=96, num_heads=6, batch_size=64, tuned_at=1),
)
ALONE: Overrides = {"nest.d_ff": None, "nest.widths": ()}
"""A model by itself: of the Student's size, unless more is said."""


def lone_width(width: int) -> Overrides:
    """A model of one width, trained by itself."""
    return {**ALONE, "model.d_ff": width}


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
