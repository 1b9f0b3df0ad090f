"""The loss of a model over a text: what evaluation reports, and what search goes by."""

import dataclasses
import datetime
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import tqdm

from matta_jax.checkpoints import Source
from matta_jax.config import Config
from matta_jax.data import Windows, glob_data, sequential_batches, split_data
from matta_jax.distill import make_objective
from matta_jax.errors import UserError
from matta_jax.models import candidate_apply
from matta_jax.nesting import SubModel
from matta_jax.packages import Model

HELD_OUT = "held_out"  # In place of a glob: the run's own held-out documents.


@dataclasses.dataclass(frozen=True)
class TextLoss:
    """Loss over a text: the sum of nats, and what it is divided by."""

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits of a UTF-8 byte."""
        return self.nats / math.log(2) / self.num_bytes

    @property
    def perplexity(self) -> float:
        """exp of the mean nats of a token."""
        return math.exp(min(self.nats / self.num_tokens, 700.0))


def task_windows(config: Config, where: str) -> Windows:
    """The windows of a glob, or of a run's held-out text, in the tokens of its models."""
    if config.model.name == "scorer":
        raise UserError(
            f"{where}: a scorer reads labelled examples, and has no loss of a text; use "
            f"tasks=auc:{where}"
        )
    windows = split_data(config, held_out=True) if where == HELD_OUT else glob_data(config, where)
    assert isinstance(windows, Windows)
    return windows


def text_loss(model: Model, windows: Windows, *, batch_size: int = 16) -> TextLoss:
    """Sums a model's loss over windows. The separators between documents are context, but are not
    scored.
    """
    batch_loss = jax.jit(_batch_loss(model.apply, model.config, windows.eos_id))
    nats, tokens = 0.0, 0
    total = -(-len(windows) // batch_size)
    batches = sequential_batches(windows, batch_size=batch_size)
    for batch in tqdm.tqdm(
        batches, total=total, desc=f"scoring {model.spec}", delay=2.0, disable=None
    ):
        batch_nats, batch_tokens = batch_loss(model.params, batch["tokens"], batch["length"])
        nats, tokens = nats + float(batch_nats), tokens + int(batch_tokens)
    return TextLoss(nats, tokens, windows.num_bytes)


def _batch_loss(apply: Callable[..., jax.Array], config: Config, eos_id: int) -> Callable[..., Any]:
    """Returns `(params, tokens, length, *rest) -> (nats, tokens)`; `apply(params, tokens, *rest)`
    runs a model.
    """
    objective = make_objective(config.objective, nested=False)

    def loss(
        params: Any, tokens_BT: jax.Array, length_B: jax.Array, *rest: Any
    ) -> tuple[jax.Array, jax.Array]:
        hidden_ND = apply(params, tokens_BT[:, :-1], *rest)
        labels_BT = tokens_BT[:, 1:]
        counted_BT = (jnp.arange(labels_BT.shape[1]) < length_B[:, None]) & (labels_BT != eos_id)
        labels_N, counted_N, one = labels_BT.reshape(-1), counted_BT.reshape(-1), jnp.ones(())
        _, sums = objective(
            [hidden_ND], params["embed"]["tokens"], labels_N, counted_N, ramp=one, total=one
        )
        return sums["student"], jnp.sum(counted_BT)

    return loss


class InPlaceScorer:
    """Scores sub-models in place in their TA, on the same windows and without compiling again: one
    program for each d_model and number of heads.

    Args:
      source: the TA; its weights are read once.
      windows: of the corpus.
      batch_size: windows of a batch.
    """

    def __init__(self, source: Source, windows: Windows, *, batch_size: int = 16):
        self._source, self._windows, self._batch_size = source, windows, batch_size
        self._programs: dict[tuple[int, int], Callable[..., Any]] = {}

    @functools.cached_property
    def _params(self) -> Any:
        return self._source.load(self._source.nest.ta)

    def __call__(self, sub_model: SubModel, num_windows: int) -> TextLoss:
        """Sums a sub-model's loss over windows taken evenly from all, in whole batches; their bytes
        are their share.
        """
        nest, axes = self._source.nest, self._source.axes
        key = (sub_model.d_model, sub_model.num_heads)
        if key not in self._programs:
            run = functools.partial(candidate_apply, sub_model=sub_model, nest=nest, axes=axes)
            self._programs[key] = jax.jit(
                _batch_loss(run, self._source.config, self._windows.eos_id)
            )
        chosen = [sub_model.width_of(layer) for layer in range(nest.ta.num_layers)]
        choice_L = jnp.array(
            [1 + nest.widths.index(width) if width else 0 for width in chosen], jnp.int32
        )
        limit = -(-num_windows // self._batch_size)
        batches = sequential_batches(self._windows, batch_size=self._batch_size, limit=limit)
        sums = [
            self._programs[key](self._params, batch["tokens"], batch["length"], choice_L)
            for batch in batches
        ]
        found = jax.device_get(sums)
        nats, tokens = (sum(float(part[i]) for part in found) for i in range(2))
        share = min(limit * self._batch_size / len(self._windows), 1.0)
        return TextLoss(nats, int(tokens), round(self._windows.num_bytes * share))


def score_record(
    task: str, value: float, fingerprint: str, interval: tuple[float, float] | None = None
) -> dict[str, Any]:
    """A score as a manifest keeps it, with the fingerprint of the data."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = {"task": task, "value": value, "corpus": fingerprint, "date": today}
    return record if interval is None else record | {"interval": list(interval)}
