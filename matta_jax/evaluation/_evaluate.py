"""Scores of models on tasks, one model or several side by side."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from matta_jax.config import Config
from matta_jax.errors import UserError, did_you_mean
from matta_jax.evaluation._auc import Auc
from matta_jax.evaluation._lambada import Lambada
from matta_jax.evaluation._sat_math import SatMath
from matta_jax.evaluation._tasks import Outcome, Paired, Task, all_pairs
from matta_jax.evaluation._text import Text, TextTask
from matta_jax.files import replace_text
from matta_jax.packages import Model, load_chosen, record_scores
from matta_jax.reporting import markdown_table
from matta_jax.selection.scoring import score_record
from matta_jax.tokenizers import Tokenizer, make_tokenizer


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of one model.

    Attributes:
      spec: the sub-model.
      origin: where it was read.
      counts: `parameters`, `bytes`, `flops_per_token`.
      scores: task to figure; a task may add figures beside its own, such as
        `lambada_perplexity:FILE`.
      intervals: of the figures that have one, at 95 %.
      truncated: task to examples that were longer than the model reads, and lost tokens at their
        start.
      examples: task to how many it has; of texts, tokens.
    """

    spec: str
    origin: dict[str, object]
    counts: dict[str, int]
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    truncated: dict[str, int]
    examples: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several models on the same tasks.

    Attributes:
      evaluations: of each model.
      paired: each model against the first, for tasks with right and wrong answers.
      baselines: what trivial methods reach, by task and name.
      table: all of it, for people.
    """

    evaluations: list[Evaluation]
    paired: list[Paired]
    baselines: dict[str, dict[str, float]]
    table: str


_TEXT_FIGURES = ("bits_per_byte", "perplexity")
_TASKS: dict[str, Callable[[str, Config], Task]] = {
    "lambada": lambda where, config: Lambada(where, _text_tokenizer(config, f"lambada:{where}")),
    "sat_math": lambda where, config: SatMath(where, _text_tokenizer(config, f"sat_math:{where}")),
    "auc": Auc,
}


def _text_tokenizer(config: Config, task: str) -> Tokenizer:
    if config.model.name == "scorer":
        raise UserError(f"tasks={task!r} is for language models; score a scorer by auc:GLOB")
    return make_tokenizer(config.data.tokenizer)


def evaluate(
    *,
    model: str | pathlib.Path | None = None,
    checkpoint: str | None = None,
    sub_model: str | None = None,
    tasks: Sequence[str],
    output: str | pathlib.Path | None = None,
) -> Evaluation:
    """Scores an extracted model, or a sub-model in place in its run's checkpoint: `compare` of one
    model.

    Args:
      model: folder of an extracted model; or
      checkpoint, sub_model: `D[@STEP]` and a spec.
      tasks: as `compare`.
      output: a JSON file for the result.

    Raises:
      UserError: as `compare`.
    """
    return compare(
        models=[] if model is None else [model],
        checkpoint=checkpoint,
        sub_models=[] if sub_model is None else [sub_model],
        tasks=tasks,
        output=output,
    ).evaluations[0]


def compare(
    *,
    models: Sequence[str | pathlib.Path] = (),
    checkpoint: str | None = None,
    sub_models: Sequence[str] = (),
    tasks: Sequence[str],
    output: str | pathlib.Path | None = None,
) -> Comparison:
    """Scores models side by side, each against the first by a paired test.

    The scores of an extracted model are kept in its manifest, with the data's fingerprint and the
    date.

    Args:
      models: folders of extracted models; or
      checkpoint, sub_models: `D[@STEP]` and specs, scored in place; the checkpoint is read once.
      tasks: `bits_per_byte:GLOB` or `perplexity:GLOB` over text files, where GLOB `held_out` is the
        run's own held-out text; `lambada:FILE`; `sat_math:FILE`; of scorers `auc:GLOB`, also of
        `held_out`.
      output: a JSON file for the result.

    Raises:
      UserError: both or neither of models and checkpoint, a bad task, or files that cannot be read.
    """
    if not tasks:
        raise UserError(
            "tasks is missing; name at least one, such as --tasks=bits_per_byte:held_out"
        )
    split = [_parse_task(task) for task in tasks]
    for field, named in {"tasks": tasks, "model": models, "sub_model": sub_models}.items():
        if twice := next((one for i, one in enumerate(named) if one in named[:i]), None):
            raise UserError(f"{field}={str(twice)!r} is named twice; name it once")
    loaded = load_chosen(models, checkpoint, sub_models)
    prepared = (
        _Prepared()
    )  # Of all models and tasks, before the first is run: hours may lie between them.
    tasks_of = [[prepared.get(name, where, one.config) for name, where in split] for one in loaded]
    if output is not None:
        make_folder_of(pathlib.Path(output))
    outcomes: list[list[Outcome]] = [[] for _ in tasks]
    found = []
    for one, folder, ready in itertools.zip_longest(loaded, models, tasks_of):
        own = [task.run(one) for task in ready]
        for listed, outcome in zip(outcomes, own, strict=True):
            listed.append(outcome)
        if folder is not None:
            record_scores(
                folder,
                [
                    score_record(score.task, score.value, task.fingerprint, score.interval)
                    for task, outcome in zip(ready, own, strict=True)
                    for score in outcome.scores
                ],
            )
        found.append(_evaluation(one, tasks, own))
    names = _names(loaded, models)
    paired = [
        pair
        for task, listed in zip(tasks, outcomes, strict=True)
        for pair in all_pairs(names, listed, task)
    ]
    baselines = {
        task: prepared.get(name, where, loaded[0].config).baselines
        for task, (name, where) in zip(tasks, split, strict=True)
    }
    baselines = {task: own for task, own in baselines.items() if own}
    table = _table(names, found, baselines, paired) + _note_on_tokenizers(loaded, found)
    result = Comparison(found, paired, baselines, table)
    if output is not None:
        described: dict[str, Any] = dataclasses.asdict(found[0])
        if len(found) > 1:
            described = {"models": [dataclasses.asdict(one) for one in found]}
            described["paired"] = [dataclasses.asdict(pair) for pair in paired]
        write_json(pathlib.Path(output), described | {"baselines": baselines})
    return result


class _Prepared:
    """Tasks, each made once for all models of one tokenizer and sequence length."""

    def __init__(self) -> None:
        self._texts: dict[Any, Text] = {}
        self._tasks: dict[Any, Task] = {}

    def get(self, name: str, where: str, config: Config) -> Task:
        key = (where, config.data, config.model.name)
        if name in _TEXT_FIGURES:
            if key not in self._texts:
                self._texts[key] = Text(where, config)
            return TextTask(name, self._texts[key])
        if (name, key) not in self._tasks:
            self._tasks[name, key] = _TASKS[name](where, config)
        return self._tasks[name, key]


def _evaluation(model: Model, tasks: Sequence[str], outcomes: Sequence[Outcome]) -> Evaluation:
    scores = [score for outcome in outcomes for score in outcome.scores]
    return Evaluation(
        model.spec,
        model.origin,
        dataclasses.asdict(model.counts),
        {score.task: score.value for score in scores},
        {score.task: score.interval for score in scores if score.interval is not None},
        {
            task: outcome.truncated
            for task, outcome in zip(tasks, outcomes, strict=True)
            if outcome.truncated
        },
        {task: outcome.count for task, outcome in zip(tasks, outcomes, strict=True)},
    )


def _names(loaded: Sequence[Model], folders: Sequence[str | pathlib.Path]) -> list[str]:
    """The models' specs, or their folders where they are of several runs, or specs do not tell them
    apart.
    """
    specs = [one.spec for one in loaded]
    tell_apart = len(set(specs)) == len(specs) and all(
        one.config == loaded[0].config for one in loaded
    )
    return specs if tell_apart or not folders else [str(folder) for folder in folders]


def _note_on_tokenizers(loaded: Sequence[Model], evaluations: Sequence[Evaluation]) -> str:
    """A warning below the table, where figures of a token stand side by side that are of different
    tokens.
    """
    tokenizers = {one.config.data.tokenizer for one in loaded}
    of_tokens = [
        task for task in evaluations[0].scores if "perplexity" in task or "last_token" in task
    ]
    if len(tokenizers) == 1 or not of_tokens:
        return ""
    return (
        f"\n\nThe models have other tokenizers ({', '.join(sorted(tokenizers))}): figures of a "
        "token, such as "
        f"{of_tokens[0]}, do not compare; bits_per_byte does."
    )


def _table(
    names: Sequence[str],
    evaluations: Sequence[Evaluation],
    baselines: dict[str, dict[str, float]],
    paired: Sequence[Paired],
) -> str:
    rows = []
    for task, value in evaluations[0].scores.items():
        for name, one in zip(names, evaluations, strict=True):
            value, interval = one.scores[task], one.intervals.get(task)
            shown = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
            odd = [pair for pair in paired if (pair.task, pair.b) == (task, name)]
            test = f"p={odd[0].p_value:.3g} against {odd[0].a}" if odd else ""
            lost = one.truncated.get(task)
            cut = f"{lost} of {one.examples[task]} examples truncated" if lost else ""
            rows.append(
                [
                    task,
                    name,
                    f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}",
                    shown,
                    cut,
                    test,
                ]
            )
        rows += [
            [task, own, f"{value:.4f}", "", "", ""]
            for own, value in baselines.get(task, {}).items()
        ]
    header = ["task", "model or baseline", "figure", "95 % interval", "", ""]
    used = [i for i in range(len(header)) if (header[i] and i < 3) or any(row[i] for row in rows)]
    return markdown_table(
        [header[i] for i in used], [[row[i] for i in used] for row in rows], left=(0, 1, 3, 4, 5)
    )


def make_folder_of(path: pathlib.Path) -> None:
    """Makes the folder of a file to be written. Raises UserError when it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output={str(path)!r} cannot be written ({error.strerror}); name another"
        ) from None


def write_json(path: pathlib.Path, value: object) -> None:
    """Writes JSON, making its folder. Raises UserError when it cannot be written."""
    make_folder_of(path)
    try:
        replace_text(path, json.dumps(value, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"output={str(path)!r} cannot be written ({error.strerror}); name another"
        ) from None


def _parse_task(task: str) -> tuple[str, str]:
    name, _, where = task.partition(":")
    known = [*_TEXT_FIGURES, *_TASKS]
    forms = {
        name: f"{name}:{'FILE' if name in ('lambada', 'sat_math') else 'GLOB'}" for name in known
    }
    if name in known and not where:
        raise UserError(f"tasks={task!r} names no file; write {forms[name]}")
    if name not in known:
        listed = ", ".join(forms.values())
        raise UserError(f"tasks={task!r} must be one of {listed}{did_you_mean(name, known)}")
    return name, where
