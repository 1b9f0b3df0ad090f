"""Regret: what a size loses by being part of a nest, against a model of it trained alone."""

from collections.abc import Sequence
from typing import Any

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.checkpoints import Source, open_source
from matta_jax.errors import UserError
from matta_jax.evaluation._evaluate import compare
from matta_jax.nesting import graded_specs, parse_spec
from matta_jax.reporting import markdown_table
from matta_jax.selection.scoring import HELD_OUT

_TASK = f"bits_per_byte:{HELD_OUT}"
# What decides which text is held out, and how much of it a window shows.
_TEXT_FIELDS = ("source", "eval_source", "eval_fraction", "text_field", "seq_len")


def regrets(workdir: storage.Path, lone_runs: Sequence[str | storage.Path]) -> list[dict[str, Any]]:
    """Scores a run's sizes, and runs of a lone model of one of these sizes, on the same text.

    Args:
      workdir: folder of the run with the nest.
      lone_runs: folders of runs without a nest.

    Returns:
      For each lone run its folder, the spec of its size, its steps, bits per byte of both, and the
      regret in per cent: above 0 where the lone model is better.

    Raises:
      UserError: a lone run with a nest, of a size that is none of the nest's uniform ones or
        members, or of other text.
    """
    if not lone_runs:
        return []
    source = open_source(str(workdir))
    specs, steps = {}, {}
    for lone_run in lone_runs:
        lone = open_source(str(lone_run))
        _check_text(source, lone, lone_run)
        specs[lone_run] = _spec_of(source, lone, lone_run)
        steps[lone_run] = lone.step

    # One reading of the checkpoint for all sizes.
    distinct = list(dict.fromkeys(specs.values()))
    nested = compare(checkpoint=str(workdir), sub_models=distinct, tasks=[_TASK])
    bits_by_spec = {
        spec: evaluation.scores[_TASK]
        for spec, evaluation in zip(distinct, nested.evaluations, strict=True)
    }

    rows = []
    for lone_run, spec in specs.items():
        compared = compare(checkpoint=str(lone_run), sub_models=["ta"], tasks=[_TASK])
        bits, lone_bits = bits_by_spec[spec], compared.evaluations[0].scores[_TASK]
        rows.append(
            {
                "alone": str(lone_run),
                "spec": spec,
                "steps": steps[lone_run],
                "bits_per_byte": bits,
                "alone_bits_per_byte": lone_bits,
                "regret_percent": 100 * (bits / lone_bits - 1),
            }
        )
    return rows


def regret_table(rows: Sequence[dict[str, Any]]) -> str | None:
    """The rows, for people; None without any."""
    if not rows:
        return None
    lines = []
    for row in rows:
        lines.append(
            [
                row["spec"],
                f"{row['bits_per_byte']:.4f}",
                f"{row['alone_bits_per_byte']:.4f}",
                f"{row['regret_percent']:+.2f} %",
                f"{row['steps']:,}",
                row["alone"],
            ]
        )
    header = ["model", "bits/byte in the nest", "trained alone", "regret", "its steps", "lone run"]
    return markdown_table(header, lines, left=(0, 5))


def _check_text(source: Source, lone: Source, lone_run: str | storage.Path) -> None:
    data, lone_data = config_lib.to_dict(source.config)["data"], config_lib.to_dict(lone.config)
    for field in _TEXT_FIELDS:
        value, lone_value = data[field], lone_data["data"][field]
        if value != lone_value:
            raise UserError(
                f"alone={str(lone_run)!r} has data.{field}={lone_value!r}, and the run {value!r}: "
                "their held-out texts would differ; name a lone run of the same data"
            )


def _spec_of(source: Source, lone: Source, lone_run: str | storage.Path) -> str:
    """The spec in the nest of a lone run's size."""
    if lone.nest.student != lone.nest.ta:
        raise UserError(
            f"alone={str(lone_run)!r} has a nest of its own; name a run without nest.* sizes"
        )
    specs = graded_specs(source.nest)
    sizes = _sizes(lone, "ta")
    for spec in specs:
        if _sizes(source, spec) == sizes:
            return spec
    raise UserError(
        f"alone={str(lone_run)!r} is of {lone.count(lone.nest.ta).parameters:,} parameters, of no "
        f"size of the run; they are {', '.join(specs)}"
    )


def _sizes(source: Source, spec: str) -> tuple[Any, ...]:
    """What makes two models of one family the same but for their weights."""
    sub_model = parse_spec(spec, source.nest)
    axes = sorted(sub_model.sizes)
    along = tuple((axis, sub_model.along(axis)) for axis in axes)
    return (source.config.model.name, sub_model.num_layers, *along)
