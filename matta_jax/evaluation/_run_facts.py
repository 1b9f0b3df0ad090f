"""What a run was, in lines: what it trained, on what, how far and fast, and how well in the end."""

import dataclasses
import datetime
import statistics

from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.evaluation._curves import Metrics, divergence_label, unit
from matta_jax.evaluation._regime import overlap_text, tokens_per_parameter
from matta_jax.evaluation._sizes import width_text
from matta_jax.models import plan_of
from matta_jax.nesting import RESIDUAL, nest_of
from matta_jax.reporting import MOST_SECONDS, SECONDS, wall_time


def run_lines(config: Config, metrics: Metrics) -> list[list[str]]:
    """What was trained, on what, how far and how fast: a line of a name and a text each."""
    nest = nest_of(config)
    lines = _sub_model_lines(config, last_step(metrics))
    if nest.ta != nest.student:
        lines.append(["distillation", _distillation(config)])

    teacher = config.teacher.model or config.teacher.labels
    if teacher is not None:
        lines.append(["Teacher", teacher])

    optimizer = config.optimizer
    lines.append(["optimiser", f"{optimizer.name}, learning rate {optimizer.learning_rate:g}"])
    lines.append(["data", f"{config.data.source}, tokenizer {config.data.tokenizer}"])

    overlap = overlap_text(metrics)
    if overlap is not None:
        lines.append(["held-out documents that stand in what is trained on too", overlap])

    num_steps = config.train.num_steps
    lines.append(["steps", f"{last_step(metrics):,} of {num_steps:,}, of {_batch(config)}"])

    speed = _speed(metrics)
    if speed is not None:
        lines.append(["speed", speed])
    goodput = _goodput(metrics)
    if goodput is not None:
        lines.append(["goodput", goodput])
    return lines


def last_step(metrics: Metrics) -> int:
    """The newest step of a run; 0 where it has no row."""
    return int(metrics[-1]["step"]) if metrics else 0


def _sub_model_lines(config: Config, step: int) -> list[list[str]]:
    """Sizes and parameters of the Student, of the TA where it is another, and of what a run names
    beside them; and what each has read.
    """
    plan = plan_of(config)
    nest = plan.nest
    sub_models = {"Student": nest.student}
    if nest.ta != nest.student:
        sub_models["TA"] = nest.ta
    sub_models |= nest.others

    lines = []
    for name, sub_model in sub_models.items():
        sizes = (
            f"{sub_model.num_layers} layers, d_model {sub_model.sizes[RESIDUAL]}, "
            f"d_ff {width_text(sub_model.along('d_ff'))}"
        )
        text = f"{sizes}: {plan.count(sub_model).parameters:,} parameters"
        if not config.model.reads_examples:
            text += f", {tokens_per_parameter(config, sub_model, step):.2g} tokens for each"
        lines.append([name, text])
    return lines


def _distillation(config: Config) -> str:
    objective = config.objective
    text = f"{divergence_label(config)}, weight {objective.distill_weight:g}"
    if objective.ramp_shape == "constant":
        return text
    return f"{text}, after a ramp over {objective.distill_ramp:.0%} of the run"


def _batch(config: Config) -> str:
    if config.model.reads_examples:
        return f"{config.data.batch_size} examples"
    return f"{config.data.batch_size} x {config.data.seq_len} tokens"


def _speed(metrics: Metrics) -> str | None:
    """Medians over the run; None where no row has them."""
    rows = [row for row in metrics if "tokens_per_second" in row and "mfu" in row]
    if not rows:
        return None
    tokens_per_second = statistics.median(row["tokens_per_second"] for row in rows)
    mfu = statistics.median(row["mfu"] for row in rows)
    text = f"{tokens_per_second:,.0f} tokens/s, {mfu:.0%} of the peak (medians)"

    num_skipped = sum(row.get("skipped_steps", 0) for row in metrics)
    if num_skipped:
        text += f"; {num_skipped:.0f} steps skipped"
    return text


def _goodput(metrics: Metrics) -> str | None:
    """The share of steps in a run's wall time, and of what took the time besides, the largest
    first; None where no row has them.
    """
    rows = [row for row in metrics if "goodput" in row]
    if not rows:
        return None
    last = rows[-1]
    total, losses = wall_time(last)
    seconds = [value for name, value in last.items() if name.startswith(SECONDS)]
    if min(seconds, default=0.0) < 0 or total > MOST_SECONDS:
        raise UserError(
            f"metrics.jsonl is damaged: its last line of goodput says {total:g} seconds in all; "
            "remove that line"
        )
    text = f"{last['goodput']:.1%} of {datetime.timedelta(seconds=round(total))} in training steps"
    # Those of an older version.
    first = rows[0]["step"]
    untold = [
        row["step"]
        for row in metrics
        if "loss" in row and "goodput" not in row and row["step"] <= first
    ]
    if untold:
        text += f" since step {max(untold)}, before which lines do not tell"
    # What takes a second of a day is no reason to look for it.
    shares = [f"{cause} {share:.1%}" for cause, share in losses.items() if share >= 0.0005]
    return "; ".join([text, ", ".join(shares)]) if shares else text


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The last evaluation in training: its heading, and a line of a name and a value each."""

    heading: str
    lines: list[list[str]]


def held_out(config: Config, metrics: Metrics) -> HeldOut | None:
    """Reads it of a run's metrics; None where there was no evaluation yet."""
    rows = [row for row in metrics if "eval/student" in row]
    if not rows:
        return None
    last = rows[-1]

    # These come first, in this order and under these headings.
    headings = {
        "student": f"loss of the Student, {unit(config)}",
        "ta": f"loss of the TA, {unit(config)}",
        "distill": f"{divergence_label(config)}, {unit(config)}",
        "agreement": "share where both find the same most likely",
    }
    values = {}
    for name, value in last.items():
        if name.startswith("eval/"):
            values[name.removeprefix("eval/")] = value

    # A model always agrees with itself.
    nest = nest_of(config)
    if nest.student == nest.ta:
        values.pop("agreement", None)

    names = [name for name in headings if name in values]
    names += [name for name in values if name not in headings]
    lines = [[headings.get(name, name), f"{values[name]:.4f}"] for name in names]
    return HeldOut(f"held out, step {last['step']:,}", lines)
