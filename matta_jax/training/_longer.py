"""A run that goes on with another number of steps than it began with."""

import dataclasses

from matta_jax.config import Config
from matta_jax.distill import ramp
from matta_jax.optim import make_schedule


@dataclasses.dataclass(frozen=True)
class Length:
    """Another length of a run, seen from a step that it has saved.

    Attributes:
      config: of the continuation.
      old_steps: `train.num_steps` of the run so far.
      saved_step: that it goes on from; 0 where nothing is saved.
    """

    config: Config
    old_steps: int
    saved_step: int

    def objection(self, *, extend: bool) -> str:
        """What speaks against it, in part of a line; empty where nothing does.

        Args:
          extend: whether the user takes another schedule from here on.
        """
        new_steps = self.config.train.num_steps
        change = f"train.num_steps: {self.old_steps!r} -> {new_steps}"
        # Nothing is computed yet that the length could change.
        if not self.saved_step or new_steps == self.old_steps:
            return ""
        if new_steps < self.saved_step:
            return f"{change}, but step {self.saved_step} is saved"
        if self.config.data.stream and self.config.data.eval_source is None:
            return f"{change}, but what a stream leaves over is its held-out data"

        effects = self.effects()
        if effects and not extend:
            return f"{change}, with {'; '.join(effects)}; --extend takes this"
        return ""

    def effects(self) -> list[str]:
        """What another length changes at the saved step, each in part of a line."""
        if self.config.train.num_steps == self.old_steps:
            return []
        return [line for line in (self._schedule_effect(), self._ramp_effect()) if line]

    def _schedule_effect(self) -> str:
        optimizer = self.config.optimizer
        if optimizer.schedule == "constant":
            return ""
        rates = [
            float(make_schedule(optimizer, num_steps)(self.saved_step))
            for num_steps in (self.old_steps, self.config.train.num_steps)
        ]
        return (
            f"optimizer.schedule={optimizer.schedule} over {self.config.train.num_steps} steps "
            f"instead of {self.old_steps}: the learning rate at step {self.saved_step} goes from "
            f"{rates[0]:.1e} to {rates[1]:.1e}"
        )

    def _ramp_effect(self) -> str:
        objective = self.config.objective
        lengths = (self.old_steps, self.config.train.num_steps)
        is_over = self.saved_step >= objective.distill_ramp * max(lengths)
        if objective.ramp_shape == "constant" or is_over or not self._distils():
            return ""
        shares = [
            float(
                ramp(
                    self.saved_step,
                    num_steps=num_steps,
                    fraction=objective.distill_ramp,
                    shape=objective.ramp_shape,
                )
            )
            for num_steps in lengths
        ]
        return (
            f"objective.distill_ramp={objective.distill_ramp} of {lengths[1]} steps instead of "
            f"{lengths[0]}: the share of the distillation weight at step {self.saved_step} goes "
            f"from {shares[0]:.2f} to {shares[1]:.2f}"
        )

    def _distils(self) -> bool:
        """Whether a term may have a weight on the ramp."""
        objective = self.config.objective
        of_members = [objective.weights_of(name)[1] for name in self.config.nest.members]
        return any([objective.distill_weight, objective.mix_distill_weight, *of_members])
