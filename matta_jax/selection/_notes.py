"""What a user should know of a search: how it went, and how far its predictions were off."""

from collections.abc import Sequence

import numpy as np

from matta_jax.selection._latency import LatencyModel
from matta_jax.selection._ranking import Ranking
from matta_jax.selection._rows import Row
from matta_jax.selection._workload import JAX

# Timed models that tell what they share.
_FEW = 3


def notes_of(rankings: Sequence[Ranking], method: str) -> list[str]:
    """Returns a line for each thing to know, of models of one type or of several."""
    ranking = rankings[0]
    rows = [row for part in rankings for row in part.rows.values()]
    limits = [f"{name} {limit:,g}" for name, limit in ranking.budget.limits().items()]
    budget = ", ".join(limits) or "none"
    notes = [
        f"Budget: {budget}. Method: {method}; {len(rows)} models scored on "
        f"{ranking.part} of {len(ranking.windows)} windows."
    ]
    if ranking.numbers is not None:
        types = ", ".join(str(part.numbers) for part in rankings)
        notes.append(
            f"Scored with weights as GGUF files of {types} give them back; what llama.cpp's "
            "kernels round besides, matta-extract --certify=llama.cpp tells."
        )
    if ranking.compute_dtype != "float32":
        notes.append(f"Scored in {ranking.compute_dtype}.")
    notes += _on_predictor(rows)
    if ranking.prices.latency is not None:
        notes.append(_on_clock(ranking.prices.latency))
    notes += _on_latency(rows)
    notes += _on_untrained_space(ranking)
    return notes


def _on_predictor(rows: list[Row]) -> list[str]:
    errors = [abs(row.loss - row.predicted) for row in rows if row.predicted is not None]
    if not errors:
        return []
    return [
        f"Additive predictor: off by at most {max(errors):.4f} nats on the {len(errors)} "
        "models it proposed."
    ]


def _on_clock(latency: LatencyModel) -> str:
    """What milliseconds are of."""
    workload, about = latency.workload, latency.clock.about
    what = f"a pass over {workload.length} tokens"
    if workload.mode == "decode":
        what = f"a token with those before it cached, {workload.length} in all"
    threads = "" if workload.engine == JAX else f", {workload.threads or 1} of its threads"
    files = f", {about['format']} files" if "format" in about else ""
    numbers = "" if workload.engine == JAX else f" of {about['numbers']}"
    padding = ""
    if latency.clock.pads_layers:
        padding = " Mixes are padded to their widest layer there, and take its time."
    return (
        f"Milliseconds: {what}, {workload.batch_size} at once, in {about['name']} "
        f"{about['version']}{threads}{files}{numbers}; medians of runs in turn, and half of what "
        f"lies between their quartiles.{padding}"
    )


def _on_latency(rows: list[Row]) -> list[str]:
    pairs = [
        (row.predicted_ms, row.ms)
        for row in rows
        if row.predicted_ms is not None and row.ms is not None
    ]
    if not pairs:
        return []
    predicted, measured = np.array(pairs).T
    errors = np.abs(predicted / measured - 1)
    note = (
        f"Latency model: off by {errors.mean():.0%} on average, {errors.max():.0%} at most, on "
        f"{len(errors)} timed models"
    )
    if len(errors) < _FEW:
        return [f"{note}."]
    # A machine that does other work slows models down, and deep ones more.
    factor = float(np.median(measured / predicted))
    beyond = np.abs(predicted * factor / measured - 1)
    return [
        f"{note}; by {beyond.mean():.0%} and {beyond.max():.0%} when a factor of {factor:.2f} that "
        "all share is taken out, as of a machine that does other work."
    ]


def _on_untrained_space(ranking: Ranking) -> list[str]:
    """Without random mixes the models between Student and TA were never trained."""
    nest = ranking.source.nest
    # With one option there is nothing to mix, whatever mix_per_step says.
    if ranking.source.config.nest.mix_per_step or len(nest.layer_options) == 1:
        return []

    # The TA was trained as itself, so it is no witness of what lies between.
    student = ranking.rows[nest.student]
    larger = [
        row
        for row in ranking.rows.values()
        if row.parameters > student.parameters and row.kind != "ta"
    ]
    losses = [row.loss - student.loss for row in larger if row.loss > student.loss]

    # A larger model that is worse than the smallest shows a valley on the way to the TA.
    valley = f"yet none of the {len(larger)} larger models scored is worse"
    if losses:
        valley = (
            f"{len(losses)} of the {len(larger)} larger models scored are worse, by up to "
            f"{max(losses):.4f} nats"
        )
    return [
        "This run trained no random mixes (nest.mix_per_step=0): the space between Student and TA "
        f"is untrained. Against the Student, {valley}."
    ]
