"""Scores of models on tasks, one model or several side by side."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from matta_jax import storage
from matta_jax.config import FLOAT_TYPES, Config, MeshConfig
from matta_jax.errors import UnsavedError, UserError, check_choice, did_you_mean
from matta_jax.evaluation._accuracy import Accuracy
from matta_jax.evaluation._auc import Auc
from matta_jax.evaluation._comparison import Comparison, Evaluation, table_of
from matta_jax.evaluation._lambada import Lambada
from matta_jax.evaluation._output import check_output, write_json
from matta_jax.evaluation._retrieval import Retrieval
from matta_jax.evaluation._sat_math import SatMath
from matta_jax.evaluation._sts import Sts
from matta_jax.evaluation._tasks import Outcome, Task, all_pairs
from matta_jax.evaluation._text import Text, TextTask
from matta_jax.packages import Model, load_chosen, record_scores
from matta_jax.selection.scoring import score_record
from matta_jax.sharding import local_mesh
from matta_jax.tokenizers import Tokenizer, files_digest, fitting_tokenizer


def _text_tokenizer(config: Config, task: str) -> Tokenizer:
    if config.model.reads_examples:
        raise UserError(
            f"tasks={task!r} is for language models; score {config.model.a_noun} by "
            f"{config.model.task}"
        )
    return fitting_tokenizer(config.data.tokenizer, config.model.vocab_size)


def _lambada(where: str, config: Config) -> Lambada:
    return Lambada(where, _text_tokenizer(config, f"lambada:{where}"))


def _sat_math(where: str, config: Config) -> SatMath:
    return SatMath(where, _text_tokenizer(config, f"sat_math:{where}"))


# Figures of one pass over a text, and tasks with a run of their own.
_TEXT_FIGURES = ("bits_per_byte", "perplexity")
_TASKS: dict[str, Callable[[str, Config], Task]] = {
    "lambada": _lambada,
    "sat_math": _sat_math,
    "accuracy": Accuracy,
    "auc": Auc,
    "sts": Sts,
    "retrieval": Retrieval,
}
_FILE_TASKS = ("lambada", "sat_math", "sts")


def evaluate(  # noqa: PLR0913  Keyword-only: the settings of a public call.
    *,
    model: str | storage.Path | None = None,
    checkpoint: str | None = None,
    sub_model: str | None = None,
    tasks: str | Sequence[str],
    output: str | storage.Path | None = None,
    mesh: MeshConfig | None = None,
    compute_dtype: str = "float32",
) -> Evaluation:
    """Scores an extracted model, or a sub-model in place in its run's checkpoint: `compare` of one
    model.

    Args:
      model: folder of an extracted model; or
      checkpoint, sub_model: `D[@STEP]` and a spec.
      tasks, mesh, compute_dtype: as `compare`.
      output: a JSON file for the result.

    Raises:
      UserError: as `compare`.

    Examples:
      >>> scores = matta_jax.evaluate(model="models/mix", tasks="bits_per_byte:held_out").scores
      >>> list(scores)
      ['bits_per_byte:held_out']
    """
    return compare(
        models=[] if model is None else [model],
        checkpoint=checkpoint,
        sub_models=[] if sub_model is None else [sub_model],
        tasks=tasks,
        output=output,
        mesh=mesh,
        compute_dtype=compute_dtype,
    ).evaluations[0]


def compare(  # noqa: PLR0913  Keyword-only: the settings of a public call.
    *,
    models: str | storage.Path | Sequence[str | storage.Path] = (),
    checkpoint: str | None = None,
    sub_models: str | Sequence[str] = (),
    tasks: str | Sequence[str],
    output: str | storage.Path | None = None,
    mesh: MeshConfig | None = None,
    compute_dtype: str = "float32",
) -> Comparison:
    """Scores models side by side, each against the first by a paired test.

    The scores of an extracted model are kept in its manifest, with the data's fingerprint and the
    date.

    Args: each list may be a single name instead.
      models: folders of extracted models; or
      checkpoint, sub_models: `D[@STEP]` and specs, scored in place; the checkpoint is read once.
      tasks: `bits_per_byte:GLOB` or `perplexity:GLOB` over text files, where GLOB `held_out` is
        the run's own held-out text; `lambada:FILE`; `sat_math:FILE`; of scorers `auc:GLOB`, and of
        image classifiers `accuracy:FILE.npz` or a folder, also of `held_out`; of embedders
        `sts:FILE` and `retrieval:FOLDER`.
      output: a JSON file for the result.
      mesh: of this process's devices; None: rows over all of them, or one CPU.
      compute_dtype: of activations and matmuls: float32, or bfloat16 for chips that are faster in
        it. Figures then differ from those in float32, and say so.

    Raises:
      UserError: both or neither of models and checkpoint, a bad task or type, files that cannot be
        read, or a mesh that does not fit the devices or a model.
      UnsavedError: scores cannot be written; it holds their table.

    Examples:
      >>> comparison = matta_jax.compare(
      ...     checkpoint="runs/books", sub_models=["student", "ta"], tasks="bits_per_byte:held_out"
      ... )
      >>> [evaluation.spec for evaluation in comparison.evaluations]
      ['student', 'ta']
    """
    tasks, folders, specs = _listed(tasks), _listed(models), _listed(sub_models)
    if not tasks:
        raise UserError(
            "tasks is missing; name at least one, such as --tasks=bits_per_byte:held_out"
        )
    parsed_tasks = [_parse_task(task) for task in tasks]
    check_choice("compute_dtype", compute_dtype, FLOAT_TYPES)
    for field, names in {"tasks": tasks, "model": folders, "sub_model": specs}.items():
        _check_distinct(field, names)
    loaded = [
        dataclasses.replace(model, compute_dtype=compute_dtype)
        for model in load_chosen(folders, checkpoint, specs, mesh=local_mesh(mesh))
    ]

    # Of all models and tasks, before the first is run: hours may lie between them.
    prepared = _Prepared()
    tasks_of_models = [prepared.get_all(parsed_tasks, model.config) for model in loaded]
    if output is not None:
        check_output(storage.path(output))

    outcomes_of_models, unsaved = _run(loaded, folders, tasks_of_models)

    # Baselines are of the data, hence the same for all models.
    baselines = {}
    for task, prepared_task in zip(tasks, tasks_of_models[0], strict=True):
        if prepared_task.baselines:
            baselines[task] = prepared_task.baselines

    comparison = _comparison(loaded, folders, tasks, outcomes_of_models, baselines)
    if output is not None:
        try:
            write_json(storage.path(output), _described(comparison))
        except UserError as error:
            unsaved.append(str(error))
    if unsaved:
        raise UnsavedError(unsaved[0], comparison.table)
    return comparison


def _run(
    loaded: Sequence[Model],
    folders: Sequence[str | storage.Path],
    tasks_of_models: Sequence[Sequence[Task]],
) -> tuple[list[list[Outcome]], list[str]]:
    """The outcomes of each model, and the errors of those whose scores cannot be recorded."""
    outcomes_of_models = []
    unsaved = []
    # In place, models have no folder.
    for model, folder, tasks in itertools.zip_longest(loaded, folders, tasks_of_models):
        outcomes = [task.run(model) for task in tasks]
        outcomes_of_models.append(outcomes)
        if folder is None:
            continue
        # The other models are still worth their scores.
        try:
            record_scores(folder, _score_records(model, tasks, outcomes))
        except UserError as error:
            unsaved.append(str(error))
    return outcomes_of_models, unsaved


def _listed(names: Any) -> Any:
    """Several names, or a single one, as a list: a text would be read letter by letter."""
    return [names] if isinstance(names, str | storage.Path) else list(names)


def _check_distinct(field: str, names: Sequence[object]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{field}={str(name)!r} is named twice; name it once")


class _Prepared:
    """Tasks, each made once for all models of one tokenizer and sequence length."""

    def __init__(self) -> None:
        self._texts: dict[Any, Text] = {}
        self._tasks: dict[Any, Task] = {}

    def get_all(self, parsed_tasks: Sequence[tuple[str, str]], config: Config) -> list[Task]:
        """Returns tasks, each a name and a place of examples, for models of this config."""
        return [self._get(name, where, config) for name, where in parsed_tasks]

    def _get(self, name: str, where: str, config: Config) -> Task:
        # By its tokenizer's content: each model has a copy of its own.
        key = (where, _by_content(config).data, config.model.reads_examples)
        if name in _TEXT_FIGURES:
            if key not in self._texts:
                self._texts[key] = Text(where, config)
            return TextTask(name, self._texts[key])

        if (name, key) not in self._tasks:
            self._tasks[name, key] = _TASKS[name](where, config)
        return self._tasks[name, key]


def _by_content(config: Config) -> Config:
    """A config whose tokenizer is named by its files' hash, and not by where they lie."""
    tokenizer = files_digest(config.data.tokenizer) or config.data.tokenizer
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer))


def _score_records(
    model: Model, tasks: Sequence[Task], outcomes: Sequence[Outcome]
) -> list[dict[str, Any]]:
    """What the manifest of a model holds of its scores."""
    record = functools.partial(score_record, compute_dtype=model.compute_dtype)
    records = []
    for task, outcome in zip(tasks, outcomes, strict=True):
        for score in outcome.scores:
            records.append(record(score.task, score.value, task.fingerprint, score.interval))
    return records


def _comparison(
    loaded: Sequence[Model],
    folders: Sequence[str | storage.Path],
    tasks: Sequence[str],
    outcomes_of_models: Sequence[Sequence[Outcome]],
    baselines: dict[str, dict[str, float]],
) -> Comparison:
    evaluations = []
    for model, outcomes in zip(loaded, outcomes_of_models, strict=True):
        evaluations.append(_evaluation(model, tasks, outcomes))

    names = _names(loaded, folders)
    pairs = []
    for i, task in enumerate(tasks):
        task_outcomes = [outcomes[i] for outcomes in outcomes_of_models]
        pairs += all_pairs(names, task_outcomes, task)

    table = table_of(names, evaluations, baselines, pairs)
    table += _note_on_tokenizers(loaded, evaluations) + _note_on_type(loaded[0].compute_dtype)
    return Comparison(evaluations, pairs, baselines, table)


def _described(comparison: Comparison) -> dict[str, Any]:
    """The file of a result: of one model its evaluation, of several a list of them."""
    evaluations = [dataclasses.asdict(evaluation) for evaluation in comparison.evaluations]
    if len(evaluations) == 1:
        return evaluations[0] | {"baselines": comparison.baselines}
    pairs = [dataclasses.asdict(pair) for pair in comparison.paired]
    return {"models": evaluations, "paired": pairs, "baselines": comparison.baselines}


def _evaluation(model: Model, tasks: Sequence[str], outcomes: Sequence[Outcome]) -> Evaluation:
    scores = {}
    intervals = {}
    truncated = {}
    left_out = {}
    examples = {}
    for task, outcome in zip(tasks, outcomes, strict=True):
        examples[task] = outcome.count
        if outcome.truncated:
            truncated[task] = outcome.truncated
        if outcome.left_out:
            left_out[task] = outcome.left_out
        for score in outcome.scores:
            scores[score.task] = score.value
            if score.interval is not None:
                intervals[score.task] = score.interval
    return Evaluation(
        model.spec,
        model.origin,
        dataclasses.asdict(model.counts),
        scores=scores,
        intervals=intervals,
        truncated=truncated,
        examples=examples,
        left_out=left_out,
        compute_dtype=model.compute_dtype,
    )


def _names(loaded: Sequence[Model], folders: Sequence[str | storage.Path]) -> list[str]:
    """The models' specs, or their folders where they are of several runs, or specs do not tell them
    apart.
    """
    specs = [model.spec for model in loaded]
    are_distinct = len(set(specs)) == len(specs)
    first = _by_content(loaded[0].config)
    are_of_one_run = all(_by_content(model.config) == first for model in loaded)
    if not folders or (are_distinct and are_of_one_run):
        return specs
    return [str(folder) for folder in folders]


def _note_on_type(compute_dtype: str) -> str:
    if compute_dtype == "float32":
        return ""
    return f"\n\nComputed in {compute_dtype}."


def _note_on_tokenizers(loaded: Sequence[Model], evaluations: Sequence[Evaluation]) -> str:
    """A warning below the table, where figures of a token stand side by side that are of different
    tokens.
    """
    tokenizers: dict[str, str] = {}
    for model in loaded:
        digest = _by_content(model.config).data.tokenizer
        tokenizers.setdefault(digest, model.config.data.tokenizer)
    token_figures = []
    for figure in evaluations[0].scores:
        if "perplexity" in figure or "last_token" in figure:
            token_figures.append(figure)
    if len(tokenizers) == 1 or not token_figures:
        return ""
    names = ", ".join(sorted(tokenizers.values()))
    return (
        f"\n\nThe models have other tokenizers ({names}): figures of a token, "
        f"such as {token_figures[0]}, do not compare; bits_per_byte does."
    )


def _parse_task(task: str) -> tuple[str, str]:
    """Returns the name of a task, and where its examples are."""
    name, _, where = task.partition(":")
    task_names = [*_TEXT_FIGURES, *_TASKS]
    if name not in task_names:
        forms = ", ".join(_form(task_name) for task_name in task_names)
        raise UserError(f"tasks={task!r} must be one of {forms}{did_you_mean(name, task_names)}")
    if not where:
        raise UserError(f"tasks={task!r} names no file; write {_form(name)}")
    return name, where


def _form(name: str) -> str:
    """How a task is written."""
    if name == "retrieval":
        return f"{name}:FOLDER"
    return f"{name}:FILE" if name in _FILE_TASKS else f"{name}:GLOB"
