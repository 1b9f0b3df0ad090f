"""The loss of a model over a text: what evaluation reports, and what search goes by."""

import dataclasses
import datetime
import math
from typing import Any

import jax
import jax.numpy as jnp
import tqdm

from matta_jax.config import Config
from matta_jax.data import Corpus, Windows, corpus_windows, make_tokenizer, sequential_batches, split_windows
from matta_jax.distill import make_objective
from matta_jax.elastic._model import Model

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
    data = config.data
    tokenizer = make_tokenizer(data.tokenizer)
    if where == HELD_OUT:
        return split_windows(data, tokenizer, held_out=True)
    corpus = Corpus(f"text:{where}", data.text_field)
    return corpus_windows(corpus, tokenizer, seq_len=data.seq_len, cache_dir=data.cache_dir)


def text_loss(model: Model, windows: Windows, *, batch_size: int = 16) -> TextLoss:
    """Sums a model's loss over windows. The separators between documents are context, but are not scored."""
    objective = make_objective(model.config.objective, nested=False)

    @jax.jit
    def batch_loss(params, tokens_BT: jax.Array, length_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden_ND = model.apply(params, tokens_BT[:, :-1])
        labels_BT = tokens_BT[:, 1:]
        counted_BT = (jnp.arange(labels_BT.shape[1]) < length_B[:, None]) & (labels_BT != windows.eos_id)
        labels_N, counted_N, one = labels_BT.reshape(-1), counted_BT.reshape(-1), jnp.ones(())
        _, sums = objective([hidden_ND], params["embed"]["tokens"], labels_N, counted_N, ramp=one, total=one)
        return sums["student"], jnp.sum(counted_BT)

    nats, tokens = 0.0, 0
    total = -(-len(windows) // batch_size)
    batches = sequential_batches(windows, batch_size=batch_size)
    for batch in tqdm.tqdm(batches, total=total, desc=f"scoring {model.spec}", delay=2.0, disable=None):
        batch_nats, batch_tokens = batch_loss(model.params, batch["tokens"], batch["length"])
        nats, tokens = nats + float(batch_nats), tokens + int(batch_tokens)
    return TextLoss(nats, tokens, windows.num_bytes)


def score_record(task: str, value: float, windows: Windows) -> dict[str, Any]:
    """A score as a manifest keeps it."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"task": task, "value": value, "corpus": windows.fingerprint, "date": today}
