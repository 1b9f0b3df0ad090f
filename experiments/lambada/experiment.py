"""LAMBADA's last words, by the sizes of one run of the ladder's largest nest on novels."""

import itertools
import json
import pathlib

from lab.books import REPORTED_ON, TUNED_ON, json_lines, read_books, write_once
from lab.protocol import Experiment, Results
from lab.rungs import RUNGS, rung_config
from lab.runs import Lab, stored
from lab.statistics import Row

import matta_jax
from matta_jax import packages
from matta_jax.config import Config, override
from matta_jax.errors import UserError
from matta_jax.evaluation import Evaluation, encode_request, likelihoods
from matta_jax.reporting import markdown_table, new_figure, save_figure
from matta_jax.tokenizers import make_tokenizer

_RUNG = RUNGS[-1]
_LENGTH = 8
"""Tokens for each parameter of the TA: an hour and a half of one core."""
_SEQ_LEN = 256
"""Bytes: the end of a passage."""
_SHARDS = 12
_CHARACTERS = 60_000
"""Of each held-out book."""
_SPECS = ("student", *(f"d_ff={width}" for width in _RUNG.widths[1:-1]), "ta")
_LETTERS = 8
"""Places in a word that the table shows."""
_WORDS, _LAST, _PERPLEXITY, _BITS = "words", "last_byte", "perplexity", "bits"


class WholeWords(Experiment):
    """One run, and all of its sizes on LAMBADA's test passages."""

    name = "lambada"
    seeds = (0,)

    def write_data(self, data: pathlib.Path, workdir: pathlib.Path) -> None:
        """Writes the novels to train on, to choose by and to report on."""
        shards = (read_books(data, f"train-{shard:05}-*.jsonl.gz") for shard in range(_SHARDS))
        texts = {_file(workdir, "train"): list(itertools.chain.from_iterable(shards))}
        for side in (TUNED_ON, REPORTED_ON):
            novels = read_books(data, f"{side}.jsonl.gz")
            texts[_file(workdir, side)] = [novel[:_CHARACTERS] for novel in novels]
        for path, documents in texts.items():
            write_once(path, json_lines(documents))

    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> Config:
        """The rung's nest, on longer windows of novels, as many tokens in a step."""
        del data
        sources = {
            "source": f"text:{_file(workdir, 'train')}",
            "eval_source": f"text:{_file(workdir, TUNED_ON)}",
        }
        overrides = {
            "model.max_len": _SEQ_LEN,
            "data.seq_len": _SEQ_LEN,
            "data.batch_size": _RUNG.batch_size // 2,
            "train.checkpoint_every": 100,
        }
        return override(rung_config(_RUNG, _LENGTH, sources), overrides)

    def measure(self, lab: Lab) -> Results:
        """Trains the run, and scores its sizes."""
        passages = lab.data / "lambada" / "lambada_test.jsonl"
        if not passages.is_file():
            raise UserError(f"{str(passages)!r} is missing; name the folder of it as --data_dir")
        (trained,) = lab.train({"nest": {}}, self.seeds).values()
        novels = _file(lab.workdir, REPORTED_ON)

        def rows() -> list[dict[str, object]]:
            tasks = {f"lambada:{passages}": _WORDS, f"bits_per_byte:{novels}": _BITS}
            compared = matta_jax.compare(
                checkpoint=str(trained.workdir), sub_models=list(_SPECS), tasks=list(tasks)
            )
            more = {f"lambada_{name}:{passages}": short for name, short in _MORE.items()}
            return [_row(each, tasks | more) for each in compared.evaluations]

        return {
            "rows": stored(trained.workdir / "scores.json", rows),
            "letters": stored(
                trained.workdir / "letters.json", lambda: _letters(trained.workdir, passages)
            ),
        }

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """A line for each size."""
        _plot(results["rows"], folder / "lambada.png")
        header = ["model", "parameters", "whole words", "95 % interval", "last byte", "perplexity"]
        lines = [
            [
                row["spec"],
                f"{row['parameters']:,}",
                f"{row[_WORDS]:.2%}",
                "{:.2%} to {:.2%}".format(*row["interval"]),
                f"{row[_LAST]:.1%}",
                f"{row[_PERPLEXITY]:,.0f}",
                f"{row[_BITS]:.4f}",
            ]
            for row in results["rows"]
        ]
        examples = results["rows"][0]["examples"]
        return (
            f"{markdown_table([*header, 'novels, bits per byte'], lines)}\n\n"
            f"{examples:,} passages.\n\n{_letters_table(results['letters'])}"
        )


def _letters(run: pathlib.Path, passages: pathlib.Path) -> list[list[float]]:
    """For each place in the last word, the space before it first: how many words have a byte there,
    and the share that the TA finds the most likely one.
    """
    (model,) = packages.load_in_place(str(run), ["ta"])
    tokenizer = make_tokenizer(model.config.data.tokenizer)
    requests = []
    for line in passages.read_text().splitlines():
        context, space, word = json.loads(line)["text"].strip().rpartition(" ")
        requests.append(encode_request(tokenizer, context, space + word))
    tops = [each.is_top.tolist() for each in likelihoods(model, requests)]
    letters = []
    for place in range(max(map(len, tops))):
        there = [top[place] for top in tops if len(top) > place]
        letters.append([len(there), sum(there) / len(there)])
    return letters


def _letters_table(letters: list[list[float]]) -> str:
    header = ["place in the word", "the space", *(f"letter {i}" for i in range(1, _LETTERS))]
    counts = ["words", *(f"{count:,.0f}" for count, _ in letters[:_LETTERS])]
    shares = ["right by the TA", *(f"{share:.1%}" for _, share in letters[:_LETTERS])]
    return markdown_table(header, [counts, shares])


def _plot(rows: list[Row], path: pathlib.Path) -> None:
    figure = new_figure((5.0, 3.2))
    if figure is None:
        return
    axes = figure.subplots()
    axes.semilogx(
        [row["parameters"] / 1e3 for row in rows],
        [100 * row[_LAST] for row in rows],
        "o-",
        color="0.2",
    )
    ticks = [round(row["parameters"] / 1e3) for row in rows]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("thousand parameters")
    axes.set_ylabel("last bytes that are right, %")
    axes.set_title("Larger sizes find more last bytes", fontsize=10)
    save_figure(figure, path)


_MORE = {"last_token": _LAST, "perplexity": _PERPLEXITY}


def _file(workdir: pathlib.Path, side: str) -> pathlib.Path:
    return workdir / f"novels_{side}.jsonl"


def _row(evaluation: Evaluation, tasks: dict[str, str]) -> dict[str, object]:
    (words,) = (task for task, short in tasks.items() if short == _WORDS)
    return {
        "spec": evaluation.spec,
        "parameters": evaluation.counts["parameters"],
        "interval": evaluation.intervals[words],
        "examples": evaluation.examples[words],
        **{short: evaluation.scores[task] for task, short in tasks.items()},
    }


EXPERIMENT = WholeWords()
