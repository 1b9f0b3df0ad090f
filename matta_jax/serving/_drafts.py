"""Drafts: which sub-model proposes tokens, and how many at once, by how many stood so far."""

import dataclasses
from collections.abc import Sequence

from matta_jax.errors import UserError
from matta_jax.nesting import SubModel
from matta_jax.packages import Model
from matta_jax.serving._programs import Lane
from matta_jax.serving._speculate import MOST_PROPOSALS

_COUNTS = (1, 2, 4, MOST_PROPOSALS)  # A program for each.
_HOPE = 0.8  # The share that stands, before any was proposed.
_MEMORY = 0.98  # Of a proposal, to the next.
# A draft that does not pay is tried again after so many turns.
_PATIENCE = 64


@dataclasses.dataclass(frozen=True)
class Draft:
    """Which sub-model proposes tokens.

    Attributes:
      spec: of it.
      num_tokens: that it proposes at once, at most.
      is_fixed: whether always so many; else fewer, or none, where fewer stand.
    """

    spec: str
    num_tokens: int = 4
    is_fixed: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_tokens <= MOST_PROPOSALS:
            raise UserError(f"draft_tokens={self.num_tokens} must be from 1 to {MOST_PROPOSALS}")


@dataclasses.dataclass
class Drafter:
    """Chooses the number of proposals for a model and its draft.

    Attributes:
      cost: of a token of the draft, as a share of the model's.
      most: proposals at most.
      share: of the latest proposals after those that stood, how many did too.
      is_fixed: whether `most` are proposed always.
      has_own_cache: whether the draft runs on caches of its own.
    """

    cost: float
    most: int
    is_fixed: bool = False
    has_own_cache: bool = False
    share: float = _HOPE
    _idle: int = 0

    def choose(self) -> int:
        """How many to propose in the next turn; 0 where none pay."""
        if self.is_fixed:
            return self.most
        counts = [count for count in _COUNTS if count <= self.most]
        best = max(counts, key=self._gain)
        if self._gain(best) > 1:
            return best
        self._idle += 1
        return counts[0] if self._idle % _PATIENCE == 0 else 0

    def _gain(self, count: int) -> float:
        """Tokens of a round for the time of one token without a draft, where reading several
        tokens takes as long as reading one.
        """
        # The first i proposals all stand in a round with probability share ** i.
        tokens = sum(self.share**i for i in range(count + 1))
        return tokens / (1 + self.cost * (count + self.has_own_cache))

    def learn(self, tried: int, accepted: int) -> None:
        """Counts the proposals of a turn that were compared, and those of them that stood: what
        comes after one that fell says nothing.
        """
        if tried:
            weight = 1 - _MEMORY**tried
            self.share += weight * (accepted / tried - self.share)


def drafters_of(models: Sequence[Model], draft: Draft) -> dict[str, Drafter]:
    """By sub-model, those that a draft proposes to: the larger ones."""
    by_spec = {model.spec: model for model in models}
    if draft.spec not in by_spec:
        raise UserError(f"draft={draft.spec!r} is not served; name one of {', '.join(by_spec)}")
    proposer = by_spec[draft.spec]
    drafters = {}
    for spec, model in by_spec.items():
        cost = proposer.counts.flops_per_token / model.counts.flops_per_token
        if cost < 1:
            shares = _caches_alike(Lane.of(proposer).sub_model, Lane.of(model).sub_model)
            drafters[spec] = Drafter(cost, draft.num_tokens, draft.is_fixed, not shares)
    return drafters


def _caches_alike(draft: SubModel, target: SubModel) -> bool:
    """Whether what a target caches is nearly what a draft would cache there: it is of the same
    residual stream, heads and layers.
    """
    if not set(draft.layers) <= set(target.layers):
        return False
    return all(
        _shape_of_cache(draft, layer) == _shape_of_cache(target, layer) for layer in draft.layers
    )


def _shape_of_cache(sub_model: SubModel, layer: int) -> dict[str, int]:
    """What keys and values of a layer are made of, and how many there are."""
    sizes = sub_model.sizes_in(layer) or {}
    return {axis: size for axis, size in sizes.items() if axis != "d_ff"}
