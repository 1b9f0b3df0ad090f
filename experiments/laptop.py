"""What the experiments share: a run that a laptop trains in minutes, and the runs of conditions and
seeds.

All experiments of one config train under one folder, where a run's name is its overrides: what two
of them need is trained once.
"""

import dataclasses
import gzip
import json
import pathlib
import statistics
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import scipy.stats

import matta_jax
from matta_jax import config as c
from matta_jax._sweep import Overrides, SweepRun, is_finished, last_evaluation, plan_sweep
from matta_jax.errors import UserError
from matta_jax.files import replace_text
from matta_jax.nesting import nest_of
from matta_jax.reporting import markdown_table, new_figure, save_figure
from matta_jax.starts.teacher import open_teacher
from matta_jax.training._metrics import step_flops_per_token

Rows = list[dict[str, Any]]
ALONE: Overrides = {"nest.d_ff": None, "nest.widths": ()}
"""The Student by itself."""
TA_ALONE: Overrides = {**ALONE, "model.d_ff": 1024}
"""A model of the TA's size by itself."""
TUNED_ON, REPORTED_ON = "validation", "test"
_CHARACTERS = 60_000  # Of each held-out book: enough for these models, and read within seconds.


def config_of(data: pathlib.Path, workdir: pathlib.Path) -> c.Config:
    """A GPT of 4 layers whose d_ff is 128 in a TA's 1,024; 500 steps of 512 tokens of novels.

    Args:
      data: folder with `books/` and `bpe/`.
      workdir: where excerpts of held-out books are.
    """
    return c.Config(
        model=c.ModelConfig(
            vocab_size=4096, num_layers=4, d_model=128, num_heads=4, d_ff=128, max_len=128
        ),
        nest=c.NestConfig(d_ff=1024, widths=(128, 256, 512, 1024), mix_per_step=0),
        optimizer=c.OptimizerConfig(learning_rate=4e-3, warmup_steps=50),
        data=c.DataConfig(
            source=f"text:{data}/books/train-0000[0-3]*.jsonl.gz",
            eval_source=f"text:{excerpt(workdir, REPORTED_ON)}",
            tokenizer=f"hf:{data}/bpe/books_bpe_4096.json",
            seq_len=128,
            batch_size=4,
        ),
        train=c.TrainConfig(
            num_steps=500,
            log_every=100,
            eval_every=500,
            eval_batches=1000,
            checkpoint_every=500,
            peak_tflops=0.1,
        ),
    )


def excerpt(workdir: pathlib.Path, side: str) -> pathlib.Path:
    """The file of the first characters of each held-out book."""
    return workdir / f"{side}.jsonl"


def write_excerpts(data: pathlib.Path, workdir: pathlib.Path) -> None:
    """Writes both. Raises UserError when the books cannot be read, or the folder
    cannot be written.
    """
    texts = {}
    for side in (TUNED_ON, REPORTED_ON):
        texts[side] = json_lines(
            book[:_CHARACTERS] for book in read_books(data, f"{side}.jsonl.gz")
        )
    for side, text in texts.items():
        write_once(excerpt(workdir, side), text)


def read_books(data: pathlib.Path, name: str) -> Iterator[str]:
    """Yields the texts of one of `data`'s files of books. Raises UserError when there is none, or
    it is damaged.
    """
    file = next(iter(sorted((data / "books").glob(name))), None)
    if file is None:
        raise UserError(
            f"--data_dir={str(data)!r} has no books/{name}; name the folder that has books/ and "
            "bpe/"
        )
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]
    except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise UserError(
            f"{file} is damaged ({type(error).__name__}: {error}); fetch it again"
        ) from None


def json_lines(texts: Iterable[str]) -> str:
    """A file of texts, as `text:` sources read it."""
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def write_once(path: pathlib.Path, text: str) -> None:
    """Writes a file unless it holds this text already: processes that share a workdir all call
    this.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            replace_text(path, text)
    except OSError as error:
        raise UserError(
            f"--workdir={str(path.parent)!r} cannot be written ({error.strerror}); name another"
        ) from None


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run: its folder, and its last held-out figures by model, in nats per token or
    example.
    """

    workdir: pathlib.Path
    figures: dict[str, float]


class Lab:
    """Trains what an experiment asks for.

    Attributes:
      config: of all runs, before their overrides.
      data: the folder of `--data_dir`.
      workdir: the folder of all runs.
      seeds: those to train, None for all; an experiment is measured when all of its own are there.
    """

    def __init__(
        self,
        config: c.Config,
        data: pathlib.Path,
        workdir: pathlib.Path,
        seeds: Sequence[int] | None,
        log: Callable,
    ):
        self.config, self.data, self.workdir, self.seeds, self._log = (
            config,
            data,
            workdir,
            seeds,
            log,
        )

    def train(
        self, conditions: Mapping[str, Overrides], seeds: Sequence[int]
    ) -> dict[tuple[str, int], Trained]:
        """Trains each condition with each seed; returns the runs. Raises UserError while some are
        missing.
        """
        todo = {
            (name, seed): dict(own) | {"train.seed": seed}
            for seed in seeds
            for name, own in conditions.items()
        }
        planned = {
            key: plan_sweep(self.config, [own], self.workdir)[0] for key, own in todo.items()
        }
        for key, run in planned.items():
            if (self.seeds is None or key[1] in self.seeds) and not is_finished(run):
                self._log(f"{key[0]}, seed {key[1]}")
                matta_jax.train(run.config, run.workdir, log=lambda line: None)
        return {key: self._trained(run) for key, run in planned.items()}

    def _trained(self, run: SweepRun) -> Trained:
        last = last_evaluation(run.workdir) if is_finished(run) else None
        if last is None:
            raise UserError(f"{run.workdir} is not trained; run this experiment with all its seeds")
        figures = {name: last[name] for name in ("student", "ta") if last[name] is not None}
        return Trained(run.workdir, figures)

    def flops(self, overrides: Overrides) -> float:
        """Analytic FLOPs of a run per token that it reads."""
        config = c.override(self.config, overrides)
        nest = nest_of(config)
        models = [nest.student] if nest.student == nest.ta else [nest.student, nest.ta]
        mixes = config.nest.mix_per_step if len(nest.widths) > 1 else 0
        teacher = (
            None
            if config.teacher.model is None
            else open_teacher(config.teacher.model, "teacher.model")
        )
        return step_flops_per_token(config, nest, models, mixes, teacher)

    def rows(self, conditions: Mapping[str, Overrides], seeds: Sequence[int]) -> Rows:
        """Trains, and returns a row for each run: condition, seed, steps, FLOPs, held-out Student
        and TA.
        """
        found = self.train(conditions, seeds)
        flops = {name: self.flops(own) for name, own in conditions.items()}
        rows = []
        for (name, seed), run in found.items():
            steps = c.override(self.config, conditions[name]).train.num_steps
            tokens = steps * self.config.data.batch_size * self.config.data.seq_len
            row = {
                "condition": name,
                "seed": seed,
                "steps": steps,
                "tflops": flops[name] * tokens / 1e12,
            }
            rows.append(row | run.figures)
        return rows


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half its 95 % interval by Student's t over seeds."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)


def shown(values: Sequence[float], *, signed: bool = False) -> str:
    """A mean with its interval, for tables."""
    mean, half = interval(values)
    return (
        f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"
        if signed
        else f"{mean:.4f} ± {half:.4f}"
    )


def of(rows: Rows, condition: str, figure: str) -> list[float]:
    """A figure of a condition, seed by seed."""
    return [
        row[figure]
        for row in sorted(rows, key=lambda row: row["seed"])
        if row["condition"] == condition
    ]


def differences(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Of two figures, seed by seed."""
    return [a - b for a, b in zip(one, other, strict=True)]


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a comparison: a condition's model, and what it is compared with (None: nothing)."""

    condition: str
    figure: str = "student"
    against: tuple[str, str] | None = None


def comparison(rows: Rows, lines: Sequence[Line], unit: str = "held-out nats per token") -> str:
    """The table of conditions: the figure, and the difference to another one, paired by seed."""
    table = []
    for line in lines:
        own = of(rows, line.condition, line.figure)
        first = next(row for row in rows if row["condition"] == line.condition)
        versus, difference = "", ""
        if line.against is not None:
            difference = shown(differences(own, of(rows, *line.against)), signed=True)
            versus = " ".join(filter(None, (line.against[0], model_of(rows, *line.against))))
        cells = [
            line.condition,
            model_of(rows, line.condition, line.figure),
            shown(own),
            difference,
            versus,
        ]
        table.append([*cells, str(first["steps"]), f"{first['tflops']:.1f}"])
    header = ["condition", "model", unit, "difference, 95 % interval", "to", "steps", "TFLOP"]
    return markdown_table(header, table, left=(0, 1, 2, 3, 4))


def model_of(rows: Rows, condition: str, figure: str) -> str:
    """A condition's model, as tables name it: nothing where the condition has but one."""
    first = next(row for row in rows if row["condition"] == condition)
    return {"student": "Student", "ta": "TA"}[figure] if {"student", "ta"} <= first.keys() else ""


def plot_comparison(
    rows: Rows, lines: Sequence[Line], path: pathlib.Path, unit: str = "held-out nats per token"
) -> None:
    """Draws each line's mean and interval, and the seeds as dots."""
    figure = new_figure((8.0, 0.6 + 0.42 * len(lines)))
    axes = figure.subplots()
    for i, line in enumerate(lines):
        values = of(rows, line.condition, line.figure)
        mean, half = interval(values)
        colour = {"student": "C0", "ta": "C1"}[line.figure]
        axes.errorbar([mean], [-i], xerr=[half], fmt="D", color=colour, capsize=3, markersize=5)
        axes.plot(values, [-i] * len(values), "o", color="0.6", markersize=3, zorder=3)
    models = [(one.condition, model_of(rows, one.condition, one.figure)) for one in lines]
    axes.set_yticks(
        [-i for i in range(len(lines))], [": ".join(filter(None, names)) for names in models]
    )
    axes.set_ylim(-len(lines) + 0.4, 0.6)
    axes.grid(axis="x", color="0.92")
    figure.supxlabel(f"{unit}: mean, 95 % interval over seeds, seeds", fontsize=10)
    save_figure(figure, path)


def device() -> str:
    """What ran it."""
    return f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
