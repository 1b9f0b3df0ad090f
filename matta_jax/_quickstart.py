"""The whole road in one call: train, extract a family, score each extracted model, report."""

import collections
import dataclasses
import gzip
import math
from collections.abc import Callable, Sequence

from matta_jax import storage
from matta_jax.config import Config
from matta_jax.data import Windows, split_data
from matta_jax.elastic import extract
from matta_jax.errors import UserError
from matta_jax.evaluation import Report, compare, report
from matta_jax.nesting import Nest, canonical_specs, nest_of, preset_specs, slug
from matta_jax.packages import load_model
from matta_jax.selection.scoring import HELD_OUT
from matta_jax.serving import Sampling, generate
from matta_jax.tokenizers import make_tokenizer
from matta_jax.training import train


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
    """Specs from the Student to the TA: each uniform width, both patterns at half their layers, and
    each depth between.
    """
    depths = range(nest.student.num_layers, nest.num_layers)
    return canonical_specs([*preset_specs(nest), *(f"layers={depth}" for depth in depths)], nest)


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

    Stopped at any point and called again, it goes on: training from its checkpoint, and models that
    are there are kept.

    Args:
      config: the run.
      workdir: its folder.
      sub_models: specs to extract; None for `family` of the run's nest.
      prompt: of the sample.
      log: takes progress lines.

    Raises:
      UserError: as `train`, `extract` and `evaluate` do.
    """
    workdir = storage.resolve(workdir)
    result = train(config, workdir, log=log)
    if not result.finished:
        raise UserError(
            f"training was stopped at step {result.step}; start the same command again to go on"
        )

    specs = family(nest_of(config)) if sub_models is None else list(sub_models)
    folders = [workdir / "models" / slug(spec) for spec in specs]
    _extract_missing(workdir, specs, folders, log)

    # Bits per byte compare over tokenizers; a scorer has no text to predict.
    scorer = config.model.reads_examples
    task = f"{'auc' if scorer else 'bits_per_byte'}:{HELD_OUT}"
    comparison = compare(models=folders, tasks=[task])
    if scorer:
        baselines = comparison.baselines.get(task, {})
        sample = ""
    else:
        baselines = _baselines(config)
        # The largest model writes best; where a user left it out, the last one does.
        ta_folder = folders[specs.index("ta")] if "ta" in specs else folders[-1]
        sampling = Sampling(temperature=0.7)
        sample = generate(load_model(ta_folder), prompt, num_tokens=200, sampling=sampling)[0]

    run_report = report(workdir, notes={"baselines": baselines, "sample": sample})
    return QuickstartResult(workdir, run_report, baselines, sample)


def _extract_missing(
    workdir: storage.Path,
    specs: Sequence[str],
    folders: Sequence[storage.Path],
    log: Callable[[str], None],
) -> None:
    """Extracts the models that are not there yet, each of a spec and a folder."""
    missing_folders = {}
    for spec, folder in zip(specs, folders, strict=True):
        if not folder.exists():
            missing_folders[spec] = folder
    if not missing_folders:
        return

    # All from one reading of the checkpoint; a lone one is written to its own folder, not beneath
    # it.
    first_folder = next(iter(missing_folders.values()))
    output = first_folder.parent if len(missing_folders) > 1 else first_folder
    for extraction in extract(str(workdir), list(missing_folders), output):
        difference = extraction.max_difference
        log(f"extracted {extraction.spec}: difference to the TA's slice {difference}")


def _baselines(config: Config) -> dict[str, float]:
    """Bits per byte of the held-out text under its own unigram distribution of bytes, and under
    gzip.
    """
    tokenizer = make_tokenizer(config.data.tokenizer)
    windows = split_data(config, tokenizer, held_out=True)
    assert isinstance(windows, Windows)
    # Decoded from the windows, so that it is the very text that models are scored on.
    text = tokenizer.decode(windows.tokens).encode()

    shares = [count / len(text) for count in collections.Counter(text).values()]
    entropy = -sum(share * math.log2(share) for share in shares)
    gzip_bits = 8 * len(gzip.compress(text, 9))
    return {"unigram entropy": entropy, "gzip -9": gzip_bits / len(text)}
