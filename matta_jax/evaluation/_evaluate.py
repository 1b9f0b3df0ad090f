"""Scores of a model on held-out text."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import tqdm

from matta_jax.data import Corpus, Windows, corpus_windows, make_tokenizer, sequential_batches, split_windows
from matta_jax.distill import make_objective
from matta_jax.elastic import Model, load_in_place, load_model
from matta_jax.errors import UserError, did_you_mean
from matta_jax.files import replace_text

HELD_OUT = "held_out"  # In place of a glob: the run's own held-out documents.


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of one model.

    Attributes:
      spec: the sub-model.
      origin: where it was read.
      counts: `parameters`, `bytes`, `flops_per_token`.
      scores: task to score; `bits_per_byte:GLOB` in bits of a UTF-8 byte, `perplexity:GLOB` of a token.
    """

    spec: str
    origin: dict[str, object]
    counts: dict[str, int]
    scores: dict[str, float]


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


_TASKS: dict[str, Callable[[TextLoss], float]] = {
    "bits_per_byte": lambda loss: loss.bits_per_byte,
    "perplexity": lambda loss: loss.perplexity,
}


def evaluate(
    *,
    model: str | pathlib.Path | None = None,
    checkpoint: str | None = None,
    sub_model: str | None = None,
    tasks: Sequence[str],
    output: str | pathlib.Path | None = None,
) -> Evaluation:
    """Scores an extracted model, or a sub-model in place in its run's checkpoint.

    Args:
      model: folder of an extracted model; or
      checkpoint, sub_model: `D[@STEP]` and a spec.
      tasks: `bits_per_byte:GLOB` or `perplexity:GLOB` over text files; GLOB `held_out` is the run's own held-out text.
      output: a JSON file for the result.

    Raises:
      UserError: both or neither of model and checkpoint, a bad task, or files that cannot be read.
    """
    if (model is None) == (checkpoint is None):
        raise UserError("name either model (an extracted folder) or checkpoint with sub_model, not both or neither")
    if checkpoint is not None and sub_model is None:
        raise UserError("sub_model is missing; name one beside checkpoint, such as --sub_model=student")
    if not tasks:
        raise UserError("tasks is missing; name at least one, such as --tasks=bits_per_byte:held_out")
    split = [_parse_task(task) for task in tasks]
    if model is not None:
        loaded = load_model(model)
    else:
        assert checkpoint is not None and sub_model is not None
        loaded = load_in_place(checkpoint, sub_model)
    losses = {where: text_loss(loaded, task_windows(loaded, where)) for where in dict.fromkeys(w for _, w in split)}
    scores = {f"{name}:{where}": _TASKS[name](losses[where]) for name, where in split}
    result = Evaluation(loaded.spec, loaded.origin, dataclasses.asdict(loaded.counts), scores)
    if output is not None:
        write_json(pathlib.Path(output), dataclasses.asdict(result))
    return result


def task_windows(model: Model, where: str) -> Windows:
    """The windows of a glob, or of the run's held-out text, in the tokens of the model."""
    data = model.config.data
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


def write_json(path: pathlib.Path, value: object) -> None:
    """Writes JSON, making its folder. Raises UserError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(value, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"output={str(path)!r} cannot be written ({error.strerror}); name another") from None


def _parse_task(task: str) -> tuple[str, str]:
    name, _, where = task.partition(":")
    if name not in _TASKS or not where:
        known = ", ".join(f"{name}:GLOB" for name in _TASKS)
        raise UserError(f"tasks={task!r} must be one of {known}{did_you_mean(name, _TASKS)}")
    return name, where
