"""Scores of a model on held-out text."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

from matta_jax.elastic import (
    TextLoss,
    load_in_place,
    load_model,
    record_scores,
    score_record,
    task_windows,
    text_loss,
)
from matta_jax.errors import UserError, did_you_mean
from matta_jax.files import replace_text


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

    The scores of an extracted model are kept in its manifest, with the corpus and the date.

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
    windows = {where: task_windows(loaded.config, where) for _, where in split}
    losses = {where: text_loss(loaded, found) for where, found in windows.items()}
    scores = {f"{name}:{where}": _TASKS[name](losses[where]) for name, where in split}
    result = Evaluation(loaded.spec, loaded.origin, dataclasses.asdict(loaded.counts), scores)
    if model is not None:
        record_scores(model, [score_record(f"{n}:{w}", scores[f"{n}:{w}"], windows[w]) for n, w in split])
    if output is not None:
        write_json(pathlib.Path(output), dataclasses.asdict(result))
    return result


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
