"""What a user should know of a search: how it went, and how far its predictions were off."""

from collections.abc import Sequence

import numpy as np

from matta_jax.selection._ranking import Ranking
from matta_jax.selection._rows import Row


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
    notes += _on_predictor(rows)
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


def _on_latency(rows: list[Row]) -> list[str]:
    errors = []
    for row in rows:
        if row.predicted_ms is not None and row.ms is not None:
            errors.append(abs(row.predicted_ms / row.ms - 1))
    if not errors:
        return []
    mean = float(np.mean(errors))
    return [
        f"Latency model: off by {mean:.0%} on average, {max(errors):.0%} at most, on "
        f"{len(errors)} timed models."
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
