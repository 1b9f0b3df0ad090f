"""Accuracy against size: models out of one run, with and without mixes, against models trained
alone at their sizes.
"""

import pathlib
from typing import Any

from elasticity import conditions, figures
from elasticity.conditions import NESTS, SEARCHED, UNIFORM, WIDE_INSIDE, WIDE_OUTSIDE
from lab.books import REPORTED_ON, TUNED_ON, excerpt, write_once
from lab.laptop import LaptopExperiment
from lab.protocol import Results
from lab.runs import Lab, Trained, stored
from lab.statistics import Row

import matta_jax
from matta_jax.nesting import nest_of, parse_spec
from matta_jax.selection import Budget

# Windows that rank all 256 models; the best 8 are verified on all of the validation text.
_WINDOWS = 32
_VERIFIED = 8
# Passage of LAMBADA's.
_EVERY = 5


class Elasticity(LaptopExperiment):
    """Uniform widths, patterns and searched models of one run, and models trained alone."""

    name = "elasticity"

    def measure(self, lab: Lab) -> Results:
        """Trains, searches on the validation text, and scores on the test text."""
        passages = (lab.data / "lambada" / "lambada_test.jsonl").read_text()
        write_once(_lambada(lab), "".join(passages.splitlines(keepends=True)[::_EVERY]))

        rows = []
        for (condition, seed), run in lab.train(
            NESTS | conditions.TRAINED_ALONE, self.seeds
        ).items():
            for scores in _stored_scores(lab, condition, run):
                rows.append({"condition": condition, "seed": seed} | scores)
        return {"rows": rows}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """Tables of quality by size, of LAMBADA, and of patterns against search; the picture."""
        scores = figures.Scores(results["rows"])
        figures.plot(scores, folder / "elasticity.png")
        return figures.tables(scores)


def _lambada(lab: Lab) -> pathlib.Path:
    return lab.workdir / "lambada.jsonl"


def _stored_scores(lab: Lab, condition: str, run: Trained) -> list[dict[str, Any]]:
    """The scores of a run's models; measured once, and stored in the run's folder."""

    def measure() -> list[Row]:
        specs = _specs_of_nest(lab, run.workdir) if condition in NESTS else {condition: "ta"}
        return _scores(lab, run.workdir, specs)

    return stored(run.workdir / "elasticity.json", measure)


def _specs_of_nest(lab: Lab, workdir: pathlib.Path) -> dict[str, str]:
    """Spec by name: the uniform widths, the patterns, and what a search finds of their sizes."""
    nest = nest_of(lab.config)
    source = matta_jax.open_source(str(workdir))
    specs = {spec: spec for spec in [*UNIFORM, WIDE_OUTSIDE, WIDE_INSIDE]}

    for spec in ("d_ff=256", WIDE_OUTSIDE):
        size = source.count(parse_spec(spec, nest)).parameters
        result = matta_jax.search(
            str(workdir),
            workdir / "search",
            budget=Budget(max_params=size),
            method="exhaustive",
            corpus=str(excerpt(lab.workdir, TUNED_ON)),
            num_windows=_WINDOWS,
            verify=_VERIFIED,
            log=lambda line: None,
        )
        specs[f"{SEARCHED}: {spec}"] = result.pick.spec
    return specs


def _scores(lab: Lab, workdir: pathlib.Path, specs: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each of `specs`, by name: size, bits per byte; of the uniform widths and lone
    models LAMBADA too.
    """
    task = f"bits_per_byte:{excerpt(lab.workdir, REPORTED_ON)}"
    # A search may pick what a pattern is too.
    distinct_specs = list(dict.fromkeys(specs.values()))
    compared = matta_jax.compare(checkpoint=str(workdir), sub_models=distinct_specs, tasks=[task])
    evaluations = dict(zip(distinct_specs, compared.evaluations, strict=True))

    rows = []
    for name, spec in specs.items():
        row = {
            "name": name,
            "spec": spec,
            "parameters": evaluations[spec].counts["parameters"],
            "bits_per_byte": evaluations[spec].scores[task],
        }
        if UNIFORM.get(name) in conditions.WIDTHS or spec == "ta":
            row |= _lambada_scores(lab, workdir, spec)
        rows.append(row)
    return rows


def _lambada_scores(lab: Lab, workdir: pathlib.Path, spec: str) -> dict[str, float]:
    file = _lambada(lab)
    scores = matta_jax.evaluate(
        checkpoint=str(workdir), sub_model=spec, tasks=[f"lambada:{file}"]
    ).scores
    return {
        "lambada": scores[f"lambada:{file}"],
        "lambada_perplexity": scores[f"lambada_perplexity:{file}"],
    }


EXPERIMENT = Elasticity()
