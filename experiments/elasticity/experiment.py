"""Accuracy against size: models out of one run, with and without mixes, against models trained
alone at their sizes.
"""

import json

from laptop import (
    ALONE,
    REPORTED_ON,
    TA_ALONE,
    TUNED_ON,
    differences,
    excerpt,
    interval,
    shown,
    write_once,
)

import matta_jax
from matta_jax.files import replace_text
from matta_jax.nesting import nest_of, parse_spec
from matta_jax.reporting import markdown_table, new_figure, save_figure
from matta_jax.selection import Budget

SEEDS = (0, 1, 2)
NESTS = {"two points": {}, "with a mix": {"nest.mix_per_step": 1}}
TRAINED_ALONE = {
    "alone 128": ALONE,
    "alone 512": {**ALONE, "model.d_ff": 512},
    "alone 1024": TA_ALONE,
}
WIDTHS = (128, 512, 1024)
"""Of the models that are trained alone."""
UNIFORM = {f"d_ff={width}": width for width in (128, 256, 512, 1024)}
WIDE_OUTSIDE, WIDE_INSIDE = "d_ff=wide-narrow-wide:2", "d_ff=narrow-wide-narrow:2"
SEARCHED = "search"
_WINDOWS = 32  # That rank all 256 models; the best 8 are verified on all of the validation text.
_EVERY = 5  # Passage of LAMBADA's.


def measure(lab):
    """Trains, searches on the validation text, and scores on the test text."""
    lines = (lab.data / "lambada" / "lambada_test.jsonl").read_text().splitlines(keepends=True)
    write_once(lab.workdir / "lambada.jsonl", "".join(lines[::_EVERY]))
    runs = lab.train(NESTS | TRAINED_ALONE, SEEDS)
    rows = []
    for (condition, seed), run in runs.items():
        cache = run.workdir / "elasticity.json"
        if not cache.is_file():
            own = (
                _of_nest(lab, run.workdir)
                if condition in NESTS
                else _scored(lab, run.workdir, {condition: "ta"})
            )
            replace_text(cache, json.dumps(own))
        rows += [
            {"condition": condition, "seed": seed} | row for row in json.loads(cache.read_text())
        ]
    return {"rows": rows}


def _of_nest(lab, workdir):
    nest = nest_of(lab.config)
    source = matta_jax.open_source(str(workdir))
    size = lambda spec: source.count(parse_spec(spec, nest)).parameters
    specs = {spec: spec for spec in [*UNIFORM, WIDE_OUTSIDE, WIDE_INSIDE]}
    for spec in ("d_ff=256", WIDE_OUTSIDE):
        found = matta_jax.search(
            str(workdir), workdir / "search", budget=Budget(max_params=size(spec)),
            method="exhaustive",
            corpus=str(excerpt(lab.workdir, TUNED_ON)), num_windows=_WINDOWS, verify=8,
            log=lambda line: None,
        )  # fmt: skip
        specs[f"{SEARCHED}: {spec}"] = found.pick.spec
    return _scored(lab, workdir, specs)


def _scored(lab, workdir, specs):
    """A row for each of `specs`, by name: size, bits per byte; of the uniform widths and lone
    models LAMBADA too.
    """
    task, file = (
        f"bits_per_byte:{excerpt(lab.workdir, REPORTED_ON)}",
        f"lambada:{lab.workdir}/lambada.jsonl",
    )
    distinct = list(dict.fromkeys(specs.values()))
    found = matta_jax.compare(
        checkpoint=str(workdir), sub_models=distinct, tasks=[task]
    ).evaluations
    scores = {spec: one for spec, one in zip(distinct, found, strict=True)}
    rows = []
    for name, spec in specs.items():
        row = {"name": name, "spec": spec, "parameters": scores[spec].counts["parameters"]}
        row["bits_per_byte"] = scores[spec].scores[task]
        if UNIFORM.get(name) in WIDTHS or spec == "ta":
            words = matta_jax.evaluate(checkpoint=str(workdir), sub_model=spec, tasks=[file]).scores
            row |= {
                "lambada": words[file],
                "lambada_perplexity": words[file.replace("lambada:", "lambada_perplexity:", 1)],
            }
        rows.append(row)
    return rows


def show(results, folder):
    """Tables of quality by size, of LAMBADA, and of patterns against search; the picture."""
    rows = results["rows"]
    by = {
        (condition, name): [
            row for row in rows if (row["condition"], row["name"]) == (condition, name)
        ]
        for condition, name in {(row["condition"], row["name"]): None for row in rows}
    }
    values = lambda condition, name, figure="bits_per_byte": [
        row[figure] for row in by[condition, name]
    ]
    _plot(by, folder / "elasticity.png")
    sizes = []
    for name, width in UNIFORM.items():
        two, mix = values("two points", name), values("with a mix", name)
        lone = f"alone {width}"
        alone = values(lone, lone) if lone in TRAINED_ALONE else None
        sizes.append(
            [
                name,
                f"{by['two points', name][0]['parameters']:,}",
                "" if alone is None else shown(alone),
                shown(two),
                shown(mix),
                "" if alone is None else shown(differences(mix, alone), signed=True),
            ]
        )
    header = ["model", "parameters", "alone", "two points", "with a mix", "with a mix minus alone"]
    parts = ["Bits per byte of the test text:", markdown_table(header, sizes, left=(0, 2, 3, 4, 5))]
    words = []
    for name, width in UNIFORM.items():
        if width in WIDTHS:
            ways = (
                (f"alone {width}", f"alone {width}"),
                ("two points", name),
                ("with a mix", name),
            )
            accuracy = [f"{100 * interval(values(*way, 'lambada'))[0]:.2f} %" for way in ways]
            perplexity = [f"{interval(values(*way, 'lambada_perplexity'))[0]:,.0f}" for way in ways]
            words.append(
                [name, *[" / ".join(pair) for pair in zip(accuracy, perplexity, strict=True)]]
            )
    header = ["model", "alone", "two points", "with a mix"]
    parts += [
        "A fifth of LAMBADA, whole words: accuracy / perplexity, means:",
        markdown_table(header, words),
    ]
    chosen = []
    for condition in NESTS:
        for budget in ("d_ff=256", WIDE_OUTSIDE):
            pick = f"{SEARCHED}: {budget}"
            rivals = (
                ["d_ff=256"] if budget == "d_ff=256" else [WIDE_OUTSIDE, WIDE_INSIDE, "d_ff=512"]
            )
            for rival in rivals:
                lead = shown(
                    differences(values(condition, pick), values(condition, rival)), signed=True
                )
                chosen.append([condition, budget, rival, shown(values(condition, rival)), lead])
    header = [
        "run",
        "budget: parameters of",
        "rival",
        "rival's bits per byte",
        "search minus rival",
    ]
    parts += [
        "Search (ranked and verified on the validation text) against patterns:",
        markdown_table(header, chosen),
    ]
    picks = [
        f"{condition}, seed {row['seed']}, within {name.partition(': ')[2]}: `{row['spec']}`"
        for (condition, name), found in by.items()
        if name.startswith(SEARCHED)
        for row in found
    ]
    return "\n\n".join(
        [*parts, "What search picked:\n\n" + "\n".join(f"- {pick}" for pick in picks)]
    )


def _plot(by, path):
    figure = new_figure((7.5, 5.0))
    axes = figure.subplots()
    styles = {"alone": ("k", "s"), "two points": ("C0", "o"), "with a mix": ("C1", "D")}

    def draw(keys, style, label, line):
        points = sorted(
            (by[key][0]["parameters"] / 1e6, *interval([row["bits_per_byte"] for row in by[key]]))
            for key in keys
        )
        x, y, half = zip(*points, strict=True)
        colour, marker = styles[style]
        axes.errorbar(
            x,
            y,
            yerr=half,
            fmt=marker,
            color=colour,
            linestyle=line,
            capsize=3,
            markersize=5,
            label=label,
        )

    draw(
        [(f"alone {width}", f"alone {width}") for width in WIDTHS],
        "alone",
        "trained alone at its size",
        "",
    )
    for condition in NESTS:
        draw(
            [(condition, name) for name in UNIFORM],
            condition,
            f"one run, {condition}: uniform widths",
            "-",
        )
        for name, mark in (
            (WIDE_OUTSIDE, "^"),
            (WIDE_INSIDE, "v"),
            (f"{SEARCHED}: {WIDE_OUTSIDE}", "*"),
        ):
            own = by[condition, name]
            label = {"^": "wide-narrow-wide", "v": "narrow-wide-narrow", "*": "search"}[mark]
            mean = interval([row["bits_per_byte"] for row in own])[0]
            size = sum(row["parameters"] for row in own) / len(own) / 1e6
            axes.plot(
                [size],
                [mean],
                mark,
                color=styles[condition][0],
                markersize=9,
                alpha=0.7,
                label=f"{condition}: {label}",
            )
    axes.set_xlabel("parameters, millions")
    axes.set_ylabel("test text, bits per byte (lower is better)")
    axes.grid(color="0.92")
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
