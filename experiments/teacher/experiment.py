"""What a Teacher adds: none, one that runs along, its cached top-64 labels at three temperatures,
its hard labels.
"""

import statistics

import laptop
import numpy as np
from laptop import Line, comparison, plot_comparison

import matta_jax
from matta_jax import config as c
from matta_jax.data import Labels, split_data
from matta_jax.tokenizers import make_tokenizer

SEEDS = (0, 1, 2)
TEACHER = {
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
HARD = "hard labels"
_CHARACTERS = (
    2_600_000  # Of the text that all runs but the Teacher's train on: about 600 steps' tokens.
)


def write_data(data, workdir):
    """The held-out excerpts, and the text that all but the Teacher train on."""
    laptop.write_excerpts(data, workdir)
    books, left = [], _CHARACTERS
    for book in laptop.read_books(data, "train-00000*.jsonl.gz"):
        books.append(book[:left])
        left -= len(books[-1])
        if not left:
            break
    laptop.write_once(workdir / "taught.jsonl", laptop.json_lines(books))


def config_of(data, workdir):
    """The laptop's run, on a text that it reads once: labels are of all of it."""
    return c.override(
        laptop.config_of(data, workdir), {"data.source": f"text:{workdir / 'taught.jsonl'}"}
    )


def conditions(teacher, labels):
    """What is compared, by the Teacher's folder and those of its labels."""
    both = {"teacher.student_weight": 0.5, "teacher.ta_weight": 0.5}
    cached = lambda T: {"teacher.labels": labels[T], "teacher.temperature": T}
    return {
        "no Teacher": {},
        "runs along, T 1": both | {"teacher.model": teacher},
        **{f"cached, T {T:g}": both | cached(T) for T in TEMPERATURES},
        HARD: {"teacher.labels": labels[1.0], "teacher.task_labels": "teacher"},
    }


def measure(lab):
    """Trains the Teacher on more text, writes its labels, trains all."""
    teacher, on_more = lab.workdir / "teacher", laptop.config_of(lab.data, lab.workdir)
    reached = matta_jax.train(c.override(on_more, TEACHER), teacher, log=lambda line: None)
    labels = {T: str(lab.workdir / f"labels_{T:g}") for T in TEMPERATURES}
    for T, folder in labels.items():
        matta_jax.label(lab.config, str(teacher), folder, top_k=TOP_K, temperature=T)
    rows = lab.rows(conditions(str(teacher), labels), SEEDS)
    held = {f"{T:g}": held_share(lab.config, folder) for T, folder in labels.items()}
    return {"rows": rows, "teacher": reached.metrics["eval/student"], "held_share": held}


def held_share(config, folder):
    """How much of the Teacher's probability its labels hold: the mean over each
    hundredth window.
    """
    labels, windows = (
        Labels(folder),
        split_data(config, make_tokenizer(config.data.tokenizer), held_out=False),
    )
    log_probs = (
        labels.get(i, windows[i]["tokens"])["teacher_log_probs"]
        for i in range(0, len(windows), 100)
    )
    return statistics.mean(float(np.exp(one).sum(axis=-1).mean()) for one in log_probs)


def show(results, folder):
    """The comparison."""
    rows = results["rows"]
    names = list(dict.fromkeys(row["condition"] for row in rows))
    lines = [
        Line(name, "student", None if name == "no Teacher" else ("no Teacher", "student"))
        for name in names
    ]
    lines += [
        Line(name, "ta", None if name == "no Teacher" else ("no Teacher", "ta")) for name in names
    ]
    plot_comparison(
        rows, [line for line in lines if line.condition != HARD], folder / "teacher.png"
    )  # It is far off.
    held = ", ".join(f"{share:.0%} at T {T}" for T, share in results["held_share"].items())
    about = (
        f"The Teacher's own: {results['teacher']:.4f} nats per token. "
        f"Of its probability the cached labels hold {held}."
    )
    return f"{about}\n\n{comparison(rows, lines)}"
