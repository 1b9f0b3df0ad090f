"""What a run tells of its steps: mean metrics, speed and MFU; and where training goes wrong."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping

import jax
from absl import logging

from matta_jax.checkpoints import Checkpoints
from matta_jax.config import Config
from matta_jax.errors import DivergenceError
from matta_jax.sharding import is_first, published_tflops
from matta_jax.training._cost import alone_flops_of, mean_flops_of, measure_peak_flops
from matta_jax.training._goodput import Ledger
from matta_jax.training._metrics import Listeners, Writer
from matta_jax.training._resume import last_good
from matta_jax.training._state import Setup
from matta_jax.training._step import joining_step

_LOSS_NAMES = ("student", "ta", "distill", "teacher_student", "teacher_ta", "gap", "agreement")


@dataclasses.dataclass(frozen=True)
class Cost:
    """What MFU is computed from.

    Attributes:
      flops_per_token: of a training step of all members; the mean where some train mixes.
      alone_flops_per_token: of one of the TA alone.
      joining_step: so many steps are of the TA alone.
      peak_flops: FLOP/s of all devices of the mesh together.
    """

    flops_per_token: float
    alone_flops_per_token: float
    joining_step: int
    peak_flops: float

    def flops_per_token_of(self, step: int) -> float:
        """Those of the step with which so many are done."""
        is_alone = step <= self.joining_step
        return self.alone_flops_per_token if is_alone else self.flops_per_token


def cost_of(setup: Setup, log: Callable[[str], None]) -> Cost:
    """Counts the FLOPs of a step, and takes the devices' peak as the config states it, or measures
    it.
    """
    config = setup.config
    stated = config.train.peak_tflops
    published = published_tflops(setup.mesh.devices.flat[0].device_kind)
    if stated:
        device_peak, origin = stated * 1e12, "stated"
    elif published and config.model.compute_dtype == "bfloat16":
        # What a matmul reaches is less, and would flatter.
        device_peak, origin = published * 1e12, "published for bfloat16"
    else:
        device_peak, origin = measure_peak_flops(config.model.compute_dtype), "measured"

    peak_flops = device_peak * setup.mesh.size
    log(f"MFU is against {peak_flops / 1e12:.3f} TFLOP/s ({origin})")
    return Cost(
        flops_per_token=mean_flops_of(setup),
        alone_flops_per_token=alone_flops_of(setup),
        joining_step=joining_step(setup),
        peak_flops=peak_flops,
    )


@dataclasses.dataclass
class Clock:
    """Times steps.

    Attributes:
      started: when the first of the timed steps began, in seconds of `time.perf_counter`.
      steps: how many have ended since.
    """

    started: float = dataclasses.field(default_factory=time.perf_counter)
    steps: int = 0

    def restart(self) -> None:
        """Times from here on."""
        self.started = time.perf_counter()
        self.steps = 0

    def seconds_per_step(self) -> float:
        """The mean up to this moment."""
        # Without a step there is no mean; the time itself stands for it.
        return (time.perf_counter() - self.started) / max(self.steps, 1)


class SkippedSteps:
    """Counts the steps whose update was skipped, and ends a run that has too many in a row.

    Args:
      limit: how many in a row a run may skip.
      checkpoints: of the run; an error names the newest one.
    """

    def __init__(self, limit: int, checkpoints: Checkpoints):
        self._limit = limit
        self._checkpoints = checkpoints
        self._in_row = 0
        self._untold = 0
        self._has_trained = False

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Counts and warns of a skipped step. Raises DivergenceError after too many in a row."""
        self._untold += 1
        self._in_row += 1
        # Of a loss that is finite, it is the gradient that is not.
        name = "grad_norm" if math.isfinite(values["loss"]) else "loss"

        # One bad batch is no divergence: the next may be fine.
        if self._in_row <= self._limit:
            if is_first():
                logging.warning("%s=%s at step %d: the update is skipped", name, values[name], step)
            return

        raise DivergenceError(
            f"{name}={values[name]} at step {step}, the {self._in_row} updates up to it are "
            f"skipped, and train.max_skipped_steps={self._limit}: training diverged; last good "
            f"checkpoint: {last_good(self._checkpoints)}; lower optimizer.learning_rate or "
            "optimizer.clip_norm, or raise optimizer.warmup_steps"
        )

    def end_row(self) -> None:
        """Takes note of a step that was not skipped."""
        self._in_row = 0
        self._has_trained = True

    def check_end(self) -> None:
        """Raises DivergenceError where each step so far was skipped: nothing was trained."""
        if self._has_trained or not self._in_row:
            return
        raise DivergenceError(
            f"all {self._in_row} updates of this run were skipped, as their losses or gradients "
            f"are not finite: nothing was trained; last good checkpoint: "
            f"{last_good(self._checkpoints)}; lower optimizer.learning_rate, and look at the data "
            "and the model that it started from"
        )

    def tell(self) -> int:
        """Returns how many steps were skipped since this was last asked."""
        count = self._untold
        self._untold = 0
        return count


class Meter:
    """Gathers the metrics of steps, and tells of them every `train.log_every` steps.

    Args:
      config: the run.
      cost: what MFU is computed from.
      skipped_steps: their count.
      ledger: where the time goes.
      writer: takes the means.
      listeners: who hears of steps.
    """

    def __init__(
        self,
        config: Config,
        *,
        cost: Cost,
        skipped_steps: SkippedSteps,
        ledger: Ledger,
        writer: Writer,
        listeners: Listeners,
    ):
        self._config = config
        self._cost = cost
        self._skipped_steps = skipped_steps
        self._ledger = ledger
        self._writer = writer
        self._listeners = listeners
        self._clock = Clock()
        self._rows: list[dict[str, float]] = []  # Metrics of the steps since the last line.
        self._has_compiled = False
        self._has_warned = False

    def account(self, step: int, metrics: Mapping[str, jax.Array], waited: float) -> None:
        """Checks a step's metrics, and logs their mean since the last line where one is due.

        Args:
          step: the optimiser steps done with it.
          metrics: of `make_train_step`.
          waited: seconds that the step waited for its batch, on this process.

        Raises:
          DivergenceError: too many updates in a row were skipped.
        """
        # One transfer for all; a `float` of each would wait for the device each time.
        host_metrics = jax.device_get(dict(metrics))
        values = {name: float(value) for name, value in host_metrics.items()}
        values["data_wait_seconds"] = waited
        if self._listeners.on_step is not None:
            self._listeners.on_step(step, dict(values))

        if values.pop("skipped"):
            self._skipped_steps.add(step, values)
        else:
            self._skipped_steps.end_row()
            self._rows.append(values)
        self._clock.steps += 1

        log_every = self._config.train.log_every
        # The first step compiles: it tells no speed. Of a line a step there is no other to tell.
        if not self._has_compiled and log_every > 1:
            self._has_compiled = True
            self._clock.restart()

        if step % log_every == 0:
            self._log_means(step, values)

    def check_end(self) -> None:
        """Raises DivergenceError where a run that ends has trained nothing."""
        self._skipped_steps.check_end()

    def restart_clock(self) -> None:
        """Leaves what was done between two steps out of their speed."""
        self._clock.restart()

    def _log_means(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the means over the steps since the last line; speed is that of all steps, skipped
        or not.
        """
        skipped = self._skipped_steps.tell()
        # All of them were skipped: there is no mean, and their count says so.
        if not self._rows:
            self._writer.write(step, {"skipped_steps": skipped} | self._ledger.row())
            return

        # Where the TA has begun alone, a member is in the last of these rows only; mixes may be in
        # some of them.
        means = {}
        for name in dict.fromkeys(name for row in self._rows for name in row):
            column = [row[name] for row in self._rows if name in row]
            means[name] = sum(column) / len(column)
        means["skipped_steps"] = skipped
        # The weight of this very step, since its ramp has no use for a mean.
        means["distill_weight"] = values["distill_scale"] * self._config.objective.distill_weight

        # Read before anything is written, so that a slow disk does not count.
        seconds = self._clock.seconds_per_step()
        means |= self._speed(step, seconds, means["data_wait_seconds"])
        means |= memory_peak()
        means |= self._ledger.row()
        self._writer.write(step, means)

        num_steps = self._config.train.num_steps
        self._listeners.log(progress_line(step, num_steps, means, seconds * (num_steps - step)))
        self._warn_of_capacity_mismatch(step, means)

        self._rows.clear()
        self._clock.restart()

    def _speed(self, step: int, seconds: float, data_wait_seconds: float) -> dict[str, float]:
        """The figures of steps that take `seconds` each."""
        # Of a whole batch, over all processes.
        tokens = self._config.data.batch_size * self._config.seq_len
        return {
            "tokens_per_second": tokens / seconds,
            # The wait is of other steps than the time where some were skipped: it may exceed it.
            "data_wait_share": min(data_wait_seconds / seconds, 1.0),
            "mfu": self._cost.flops_per_token_of(step) * tokens / seconds / self._cost.peak_flops,
        }

    def _warn_of_capacity_mismatch(self, step: int, means: Mapping[str, float]) -> None:
        """Warns once of a TA that has nothing to teach. A lone Student has no gap."""
        mismatch = means.get("gap", 1.0) <= 0 < means["distill_weight"]
        if not mismatch or self._has_warned or not is_first():
            return

        # Once: it says something of the nest, which stays as it is.
        self._has_warned = True
        logging.warning(
            "capacity mismatch: at step %d the TA is no better than the Student (CE_S - CE_TA "
            "= %.4f) while "
            "distillation has weight %.3f; it has nothing to teach: widen nest.*, or lengthen "
            "objective.distill_ramp",
            step,
            means["gap"],
            means["distill_weight"],
        )


def memory_peak() -> dict[str, float]:
    """The most memory that a device of this process has held, in 10⁹ bytes, as `hbm_peak_gb`; empty
    where devices do not tell, as CPUs.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [told["peak_bytes_in_use"] for told in stats if "peak_bytes_in_use" in told]
    return {"hbm_peak_gb": max(peaks) / 1e9} if peaks else {}


def progress_line(
    step: int, num_steps: int, metrics: Mapping[str, float], eta_seconds: float
) -> str:
    """One line of a run: step, share done, losses in nats, speed, and the time left."""
    names = [name for name in _LOSS_NAMES if name in metrics]
    names += [name for name in metrics if name.startswith("members/") and "distill" not in name]
    losses = " ".join(f"{name} {metrics[name]:.4f}" for name in names)
    minutes, seconds = divmod(round(eta_seconds), 60)

    # A wait of less is noise, and no reason to read with more threads.
    wait = ""
    if metrics["data_wait_share"] >= 0.02:
        wait = f" waits for data {metrics['data_wait_share']:.0%}"

    return (
        f"step {step}/{num_steps} ({100 * step / num_steps:.1f}%) {losses} "
        f"w {metrics['distill_weight']:.3f} lr {metrics['learning_rate']:.2e} "
        f"grad_norm {metrics['grad_norm']:.2f} | "
        f"{metrics['tokens_per_second']:,.0f} tok/s MFU {100 * metrics['mfu']:.1f}%{wait} | "
        f"ETA {minutes}:{seconds:02d}"
    )
