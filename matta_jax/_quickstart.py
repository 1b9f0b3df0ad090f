"""The whole road in one call: train, extract a family, score each extracted model, report."""

import collections
import dataclasses
import gzip
import math
from collections.abc import Callable, Sequence

from matta_jax import storage
from matta_jax.checkpoints import Source, open_source
from matta_jax.config import Config
from matta_jax.data import Windows, split_data
from matta_jax.elastic import extract, verify
from matta_jax.errors import UserError
from matta_jax.evaluation import Report, compare, report
from matta_jax.nesting import (
    Nest,
    SubModel,
    canonical_specs,
    format_spec,
    graded_specs,
    nest_of,
    parse_spec,
    slug,
)
from matta_jax.packages import Packaging, check_target, load_model
from matta_jax.reporting import say_without_pictures
from matta_jax.selection.scoring import HELD_OUT
from matta_jax.serving import Sampling, generate
from matta_jax.tokenizers import make_tokenizer
from matta_jax.training import train_whole


@dataclasses.dataclass(frozen=True)
class QuickstartResult:
    """What the road ends in.

    Attributes:
      workdir: the run's folder.
      report: its table, rows and files.
      baselines: bits per byte of the same held-out text: unigram entropy, and gzip. Of a scorer:
        the AUC of TF-IDF.
      sample: a text from the TA; of a scorer none.
    """

    workdir: storage.Path
    report: Report
    baselines: dict[str, float]
    sample: str


def family(nest: Nest) -> list[str]:
    """Specs from the Student to the TA: each uniform width, a mix between two of them, and each
    depth between.
    """
    depths = range(nest.student.num_layers, nest.num_layers)
    return canonical_specs([*graded_specs(nest), *(f"layers={depth}" for depth in depths)], nest)


def quickstart(
    config: Config,
    workdir: str | storage.Path,
    *,
    sub_models: Sequence[str] | None = None,
    prompt: str = "def ",
    log: Callable[[str], None] = print,
) -> QuickstartResult:
    """Trains a run, extracts a family of models, scores each extracted model on what is held out,
    and reports.

    Stopped at any point and called again, it goes on: training from its checkpoint, and models of
    its end that are there and whole are kept.

    Args:
      config: the run.
      workdir: its folder.
      sub_models: specs to extract; None for `family` of the run's nest.
      prompt: of the sample.
      log: takes progress lines.

    Raises:
      UserError: as `train`, `extract` and `evaluate` do.
      UnsavedError: the report cannot be written; it holds the scores.

    Examples:
      >>> result = matta_jax.quickstart(config, "runs/quickstart", log=logging.info)
      >>> sorted(result.baselines)
      ['gzip -9', 'unigram entropy']
    """
    workdir = storage.resolve(workdir)
    if config.model.reads_pairs:
        raise UserError(
            f"model.name={config.model.name!r}: quickstart scores models on what is held out; "
            "train by matta-train, and score by matta-evaluate --tasks=sts:FILE"
        )
    # Before the training, which may take days.
    specs = _specs(sub_models, nest_of(config))
    say_without_pictures(log)
    train_whole(config, workdir, log)

    folders = [workdir / "models" / slug(spec) for spec in specs]
    _extract_missing(workdir, specs, folders, log)

    # Bits per byte compare over tokenizers; of examples there is no text to predict.
    reads_examples = config.model.reads_examples
    task = f"{config.model.task.partition(':')[0]}:{HELD_OUT}"
    comparison = compare(models=folders, tasks=[task])
    if reads_examples:
        baselines = comparison.baselines.get(task, {})
        sample = ""
    else:
        baselines = _baselines(config)
        # The largest model writes best; where a user left it out, the last one does.
        ta_folder = folders[specs.index("ta")] if "ta" in specs else folders[-1]
        sampling = Sampling(temperature=0.7)
        sample = generate(load_model(ta_folder), prompt, num_tokens=200, sampling=sampling)[0]

    # Where it cannot be written, its error holds the scores, which took long.
    run_report = report(workdir, notes={"baselines": baselines, "sample": sample})
    return QuickstartResult(workdir, run_report, baselines, sample)


def _specs(sub_models: Sequence[str] | None, nest: Nest) -> list[str]:
    """The specs to extract. Raises UserError for none, a bad one, or two of one sub-model or
    folder.
    """
    if sub_models is None:
        return family(nest)
    if isinstance(sub_models, str) or not sub_models:
        raise UserError(
            f"sub_models={sub_models!r} must be a list of specs, such as ['student', 'ta']"
        )
    specs = list(sub_models)
    specs_by_model: dict[SubModel, str] = {}
    for spec in specs:
        sub_model = parse_spec(spec, nest)
        if sub_model in specs_by_model:
            raise UserError(
                f"sub_models: {specs_by_model[sub_model]!r} and {spec!r} are one sub-model; "
                "drop one"
            )
        specs_by_model[sub_model] = spec
    # By folder, too: two sub-models in one would be scored as each other.
    slugs = list(map(slug, specs))
    for i, name in enumerate(slugs):
        if name in slugs[:i]:
            first = specs[slugs.index(name)]
            raise UserError(
                f"sub_models: {first!r} and {specs[i]!r} would have one folder, {name!r}; drop one"
            )
    return specs


def _extract_missing(
    workdir: storage.Path,
    specs: Sequence[str],
    folders: Sequence[storage.Path],
    log: Callable[[str], None],
) -> None:
    """Extracts, each of a spec and a folder, the models that are not there yet, or are not of the
    run's newest checkpoint.

    Raises:
      UserError: a folder holds something else than a model, or as `extract` does.
    """
    source = open_source(str(workdir))
    missing_folders = {}
    for spec, folder in zip(specs, folders, strict=True):
        if not folder.exists():
            missing_folders[spec] = folder
            continue
        # What is no model is not replaced.
        check_target(folder, overwrite=True)
        reason = _staleness(folder, spec, source)
        if reason:
            log(f"{folder.name} is extracted again: {reason}")
            missing_folders[spec] = folder
    if not missing_folders:
        return

    # All from one reading of the checkpoint; a lone one is written to its own folder, not beneath
    # it.
    first_folder = next(iter(missing_folders.values()))
    output = first_folder.parent if len(missing_folders) > 1 else first_folder
    packaging = Packaging(overwrite=True)
    for extraction in extract(str(workdir), list(missing_folders), output, packaging=packaging):
        difference = extraction.max_difference
        log(f"extracted {extraction.spec}: difference to the TA's slice {difference}")


def _staleness(folder: storage.Path, spec: str, source: Source) -> str:
    """Why a model is not this sub-model of this checkpoint, whole; nothing where it is."""
    try:
        package = verify(folder)
    except UserError as error:
        return str(error)
    if package.manifest["spec"] != format_spec(parse_spec(spec, source.nest), source.nest):
        return f"it is {package.manifest['spec']}"
    parent = package.manifest["parent"]
    # The step is not enough: a run that was removed and trained anew has the same steps.
    is_newest = (parent.get("step"), parent.get("fingerprint")) == (source.step, source.fingerprint)
    return "" if is_newest else f"it is of another checkpoint, step {parent.get('step')}"


def _baselines(config: Config) -> dict[str, float]:
    """Bits per byte of the held-out text under its own unigram distribution of bytes, and under
    gzip.
    """
    tokenizer = make_tokenizer(config.data.tokenizer)
    windows = split_data(config, tokenizer, held_out=True)
    assert isinstance(windows, Windows)
    # Decoded from the windows, so that it is the very text that models are scored on.
    text = tokenizer.decode(windows.tokens[:]).encode()

    shares = [count / len(text) for count in collections.Counter(text).values()]
    entropy = -sum(share * math.log2(share) for share in shares)
    gzip_bits = 8 * len(gzip.compress(text, 9))
    return {"unigram entropy": entropy, "gzip -9": gzip_bits / len(text)}
