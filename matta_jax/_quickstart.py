"""The whole road in one call: train, extract a family, score each extracted model, report."""

import collections
import dataclasses
import gzip
import math
import pathlib
from collections.abc import Callable, Sequence

from matta_jax.config import Config
from matta_jax.data import Windows, split_data
from matta_jax.elastic import extract
from matta_jax.errors import UserError
from matta_jax.evaluation import Report, compare, report
from matta_jax.nesting import Nest, format_spec, nest_of, parse_spec, slug
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

    workdir: pathlib.Path
    report: Report
    baselines: dict[str, float]
    sample: str


def family(nest: Nest) -> list[str]:
    """Specs from the Student to the TA: each uniform width, both patterns at half their layers, and
    a middle depth.
    """
    half = nest.ta.num_layers // 2
    specs = ["student", "ta", *(f"d_ff={width}" for width in nest.widths)]
    if len(nest.widths) > 1 and half:
        specs += [f"d_ff=wide-narrow-wide:{half}", f"d_ff=narrow-wide-narrow:{half}"]
    for depth in range(nest.student.num_layers, nest.ta.num_layers):
        specs.append(f"layers={depth}")
    return list(dict.fromkeys(format_spec(parse_spec(spec, nest), nest) for spec in specs))


def quickstart(
    config: Config,
    workdir: str | pathlib.Path,
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
    workdir = pathlib.Path(workdir).resolve()
    result = train(config, workdir, log=log)
    if not result.finished:
        raise UserError(
            f"training was stopped at step {result.step}; start the same command again to go on"
        )
    specs = family(nest_of(config)) if sub_models is None else list(sub_models)
    folders = [workdir / "models" / slug(spec) for spec in specs]
    missing = {
        spec: folder for spec, folder in zip(specs, folders, strict=True) if not folder.exists()
    }
    # All from one reading of the checkpoint; a lone one is written to its own folder, not beneath
    # it.
    if missing:
        output = folders[0].parent if len(missing) > 1 else next(iter(missing.values()))
        for one in extract(str(workdir), list(missing), output):
            log(f"extracted {one.spec}: difference to the TA's slice {one.max_difference}")
    scorer = config.model.name == "scorer"
    task = f"{'auc' if scorer else 'bits_per_byte'}:{HELD_OUT}"
    compared = compare(models=folders, tasks=[task])
    baselines, text = compared.baselines.get(task, {}), ""
    if not scorer:
        baselines = _baselines(config)
        writer = load_model(folders[specs.index("ta")] if "ta" in specs else folders[-1])
        text = generate(writer, prompt, num_tokens=200, sampling=Sampling(temperature=0.7))[0]
    made = report(workdir, notes={"baselines": baselines, "sample": text})
    return QuickstartResult(workdir, made, baselines, text)


def _baselines(config: Config) -> dict[str, float]:
    """Bits per byte of the held-out text under its own unigram distribution of bytes, and under
    gzip.
    """
    tokenizer = make_tokenizer(config.data.tokenizer)
    windows = split_data(config, tokenizer, held_out=True)
    assert isinstance(windows, Windows)
    data = tokenizer.decode(windows.tokens).encode()
    counts = collections.Counter(data).values()
    entropy = -sum(n / len(data) * math.log2(n / len(data)) for n in counts)
    return {"unigram entropy": entropy, "gzip -9": 8 * len(gzip.compress(data, 9)) / len(data)}
