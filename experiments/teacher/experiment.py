"""What a Teacher adds: none, one that runs along, its cached top-64 labels at three temperatures,
its hard labels.
"""

import pathlib
import statistics

import numpy as np
from lab.books import json_lines, read_books, write_excerpts, write_once
from lab.figures import Line, comparison, plot_comparison
from lab.laptop import laptop_config
from lab.protocol import Experiment, Results
from lab.runs import Lab

import matta_jax
from matta_jax import config as c
from matta_jax.data import Labels, split_data
from matta_jax.sweeps import Overrides
from matta_jax.tokenizers import make_tokenizer

TEACHER: Overrides = {
    "model.num_layers": 6,
    "model.d_model": 256,
    "model.num_heads": 8,
    "model.d_ff": 1024,
    "nest.d_ff": None,
    "nest.widths": (),
    "optimizer.learning_rate": 2e-3,
    "data.batch_size": 8,
}
"""6 million parameters, half a million tokens: more than a run's own of both."""
TEMPERATURES = (1.0, 2.0, 4.0)
TOP_K = 64
UNTAUGHT, HARD = "no Teacher", "hard labels"
# Of the text that all runs but the Teacher's train on: about 600 steps' tokens.
_CHARACTERS = 2_600_000
# How much of the Teacher the labels hold is a mean over each hundredth window.
_EVERY = 100


class Teacher(Experiment):
    """MatTA with what a Teacher can give it, on a text that it reads once."""

    name = "teacher"

    def write_data(self, data: pathlib.Path, workdir: pathlib.Path) -> None:
        """The held-out excerpts, and the text that all but the Teacher train on."""
        write_excerpts(data, workdir)

        books = []
        missing = _CHARACTERS
        for book in read_books(data, "train-00000*.jsonl.gz"):
            books.append(book[:missing])
            missing -= len(books[-1])
            if not missing:
                break
        write_once(_taught_text(workdir), json_lines(books))

    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> c.Config:
        """The laptop's run, on a text that it reads once: labels are of all of it."""
        source = f"text:{_taught_text(workdir)}"
        return c.override(laptop_config(data, workdir), {"data.source": source})

    def measure(self, lab: Lab) -> Results:
        """Trains the Teacher on more text, writes its labels, trains all."""
        teacher = lab.workdir / "teacher"
        teacher_config = c.override(laptop_config(lab.data, lab.workdir), TEACHER)
        training = matta_jax.train(teacher_config, teacher, log=lambda line: None)

        labels = {}
        for T in TEMPERATURES:
            labels[T] = str(lab.workdir / f"labels_{T:g}")
            matta_jax.label(lab.config, str(teacher), labels[T], top_k=TOP_K, temperature=T)

        rows = lab.rows(conditions(str(teacher), labels), self.seeds)
        shares = {f"{T:g}": held_share(lab.config, folder) for T, folder in labels.items()}
        loss = training.metrics["eval/student"]
        return {"rows": rows, "teacher": loss, "held_share": shares}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """The comparison."""
        rows = results["rows"]
        names = list(dict.fromkeys(row["condition"] for row in rows))
        lines = []
        for model in ("student", "ta"):
            for name in names:
                reference = None if name == UNTAUGHT else (UNTAUGHT, model)
                lines.append(Line(name, model, reference))

        # Hard labels are so far off that the intervals of all others would be dots beside them.
        plotted = [line for line in lines if line.condition != HARD]
        plot_comparison(rows, plotted, folder / "teacher.png")

        shares = ", ".join(f"{share:.0%} at T {T}" for T, share in results["held_share"].items())
        about = (
            f"The Teacher's own: {results['teacher']:.4f} nats per token. "
            f"Of its probability the cached labels hold {shares}."
        )
        return f"{about}\n\n{comparison(rows, lines)}"


def _taught_text(workdir: pathlib.Path) -> pathlib.Path:
    return workdir / "taught.jsonl"


def conditions(teacher: str, labels: dict[float, str]) -> dict[str, Overrides]:
    """What is compared, by the Teacher's folder and those of its labels at each temperature."""
    weights = {"teacher.student_weight": 0.5, "teacher.ta_weight": 0.5}
    compared: dict[str, Overrides] = {
        UNTAUGHT: {},
        "runs along, T 1": {**weights, "teacher.model": teacher},
    }
    for T in TEMPERATURES:
        cached = {"teacher.labels": labels[T], "teacher.temperature": T}
        compared[f"cached, T {T:g}"] = {**weights, **cached}
    compared[HARD] = {"teacher.labels": labels[1.0], "teacher.task_labels": "teacher"}
    return compared


def held_share(config: c.Config, folder: str) -> float:
    """How much of the Teacher's probability its labels hold: the mean over each
    hundredth window.
    """
    labels = Labels(folder)
    windows = split_data(config, make_tokenizer(config.data.tokenizer), held_out=False)

    shares = []
    for i in range(0, len(windows), _EVERY):
        log_probs = labels.get(i, windows[i]["tokens"])["teacher_log_probs"]
        shares.append(float(np.exp(log_probs).sum(axis=-1).mean()))
    return statistics.mean(shares)


EXPERIMENT = Teacher()
