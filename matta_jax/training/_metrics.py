"""Where metrics go, and the figures of speed beside them."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp

from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.files import replace_text
from matta_jax.models import abstract_params, architecture_of, logical_axes
from matta_jax.nesting import Nest, SubModel, count, count_weights
from matta_jax.starts.teacher import Teacher


class Writer(Protocol):
    """Takes the metrics of a step."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Stores them."""
        ...


class _JsonLines:
    """One JSON object a line, flushed at once; a resumed run drops the lines past its step."""

    def __init__(self, path: pathlib.Path, start_step: int):
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # A kill may have cut the last line short.
                    if json.loads(line)["step"] <= start_step:
                        kept.append(line)
        replace_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _TensorBoard:
    def __init__(self, folder: pathlib.Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(
                "train.tensorboard=True needs tensorboardX: pip install 'matta_jax[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, project: str, folder: pathlib.Path):
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"train.wandb_project={project!r} needs wandb: pip install 'matta_jax[wandb]'"
            ) from None
        self._run = wandb.init(project=project, dir=str(folder), resume="allow", id=folder.name)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


@contextlib.contextmanager
def open_writers(config: Config, workdir: pathlib.Path, start_step: int) -> Iterator[list[Writer]]:
    """Opens the writers that the config asks for; none but on the first process."""
    writers: list = []
    if jax.process_index() == 0:
        if config.train.tensorboard:
            writers.append(_TensorBoard(workdir / "tensorboard"))
        if config.train.wandb_project:
            writers.append(_WandB(config.train.wandb_project, workdir))
        writers.append(_JsonLines(workdir / "metrics.jsonl", start_step))
    try:
        yield writers
    finally:
        for writer in writers:
            writer.close()


def step_flops_per_token(
    config: Config, nest: Nest, sub_models: list[SubModel], mixes: int, teacher: Teacher | None
) -> float:
    """Analytic FLOPs of a training step for each token: three times the forward passes of all that
    it runs.

    Recomputation is not counted. A mix counts at the mean of the nest's widths. A Student that is a
    plain prefix of its TA shares the trunk, and counts with its head alone. A Teacher that runs
    along counts with one forward pass.
    """
    architecture = architecture_of(config.model, nest, nest.ta)
    shapes, axes = abstract_params(architecture), logical_axes(architecture)

    def forward(sub_model: SubModel) -> int:
        return count(
            shapes, axes, sub_model, head_dim=nest.head_dim, seq_len=config.data.seq_len
        ).flops_per_token

    total = sum(forward(sub_model) for sub_model in sub_models)
    if len(sub_models) > 1:
        student, ta = nest.student, nest.ta
        prefix = SubModel(
            ta.d_model, ta.num_heads, ta.layers[: student.num_layers], ta.d_ff[: student.num_layers]
        )
        if student == prefix:
            total += 2 * config.model.vocab_size * student.d_model - forward(student)
    uniform = [forward(nest.mix([width] * nest.ta.num_layers)) for width in nest.widths]
    taught = 0
    if teacher is not None:
        own = teacher.architecture
        attended = len(own.d_ff) * own.num_heads * own.head_dim
        seq_len = config.data.seq_len
        taught = count_weights(
            teacher.abstract, teacher.axes, attended=attended, seq_len=seq_len
        ).flops_per_token
    return 3 * (total + mixes * sum(uniform) / len(uniform)) + taught


def measure_peak_flops(dtype: str) -> float:
    """Measures the FLOP/s of one device by a square matmul; the best of five."""
    size = 4096 if jax.default_backend() != "cpu" else 1024
    matrix = jax.device_put(jnp.ones((size, size), dtype), jax.local_devices()[0])
    matmul = jax.jit(jnp.matmul)
    matmul(matrix, matrix).block_until_ready()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        matmul(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def progress_line(
    step: int, num_steps: int, metrics: Mapping[str, float], eta_seconds: float
) -> str:
    """One line of a run: step, share done, losses in nats, speed, and the time left."""
    names = ("student", "ta", "distill", "teacher_student", "teacher_ta", "gap", "agreement")
    shown = [name for name in names if name in metrics]
    losses = " ".join(f"{name} {metrics[name]:.4f}" for name in shown)
    minutes, seconds = divmod(round(eta_seconds), 60)
    wait = (
        f" waits for data {metrics['data_wait_share']:.0%}"
        if metrics["data_wait_share"] >= 0.02
        else ""
    )
    return (
        f"step {step}/{num_steps} ({100 * step / num_steps:.1f}%) {losses} w "
        f"{metrics['distill_weight']:.3f} "
        f"lr {metrics['learning_rate']:.2e} grad_norm {metrics['grad_norm']:.2f} | "
        f"{metrics['tokens_per_second']:,.0f} tok/s MFU {100 * metrics['mfu']:.1f}%{wait} | ETA "
        f"{minutes}:{seconds:02d}"
    )
