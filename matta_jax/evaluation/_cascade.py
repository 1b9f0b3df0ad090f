"""What a cascade of two classifiers costs and reaches, by its threshold."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.data import ImageSet, read_images
from matta_jax.errors import UserError
from matta_jax.evaluation._output import make_folder_of
from matta_jax.packages import Model
from matta_jax.reporting import markdown_table, new_figure, progress, save_figure
from matta_jax.serving import Cascade, classify, entropies, image_section

_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
"""Of the images to tune on, how many stop at each threshold that is tried."""
_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Point:
    """A cascade at a threshold.

    Attributes:
      threshold: entropy in nats up to which the small model answers.
      accuracy: of the test images.
      stopped: share of them that the small model answered.
      macs: multiplications of an image, in the mean.
      ms: milliseconds of an image, measured in batches: the median of three.
    """

    threshold: float
    accuracy: float
    stopped: float
    macs: float
    ms: float


@dataclasses.dataclass(frozen=True)
class CascadeReport:
    """What thresholds give, and which one was chosen.

    Attributes:
      points: by threshold, those at which most stop first.
      pick: of the threshold chosen on the tuning images.
      table: for people.
      files: cascade.json, cascade.md and the plot.
    """

    points: list[Point]
    pick: Point
    table: str
    files: list[storage.Path]


def cascade_report(
    small: Model,
    large: Model,
    *,
    tune: str,
    test: str,
    output: str | storage.Path,
    max_loss: float = 0.003,
) -> CascadeReport:
    """Sweeps the threshold of a cascade, and chooses one on images of its own: of those at which
    accuracy is at most `max_loss` below the large model's there, the one at which most stop.

    Args:
      small, large: the models.
      tune: `FILE.npz` or a folder of labelled images, to choose the threshold by.
      test: likewise, to report on.
      output: folder of the table, its JSON and its plot.
      max_loss: share of the tuning images that may be lost.

    Raises:
      UserError: images or models that do not fit each other, or bad numbers.

    Examples:
      >>> small, large = map(matta_jax.load_model, ("models/images", "models/images"))
      >>> report = matta_jax.cascade_report(
      ...     small, large, tune="photos.npz", test="photos.npz", output="cascade"
      ... )
      >>> len(report.points) > 1
      True
    """
    if not 0 <= max_loss < 1:
        raise UserError(f"max_loss={max_loss} must be a share from 0 to 1, such as 0.003")
    cascade = Cascade(small, large)
    tuning, testing = _images(tune, small, "tune"), _images(test, small, "test")
    root = storage.resolve(output)
    make_folder_of(root / "cascade.json")

    small_logits, large_logits = (classify(model, tuning.images) for model in (small, large))
    uncertain = entropies(small_logits)
    thresholds = [_threshold(uncertain, share) for share in _SHARES]
    right = [logits.argmax(axis=1) == tuning.labels for logits in (small_logits, large_logits)]
    chosen = _chosen(thresholds, uncertain, right, max_loss)

    points = []
    for threshold in progress(dict.fromkeys(thresholds), desc="cascade", unit="thresholds"):
        points.append(_measured(cascade, testing, threshold))
    pick = next(point for point in points if point.threshold == chosen)
    table = _table(points, pick)
    return CascadeReport(points, pick, table, _write(root, points, pick, table))


def _images(where: str, model: Model, field: str) -> ImageSet:
    try:
        return read_images(f"images:{where}", model.config.data, image_section(model))
    except UserError as error:
        raise UserError(f"{field}={where!r}: {error}") from None


def _threshold(entropy_n: np.ndarray, share: float) -> float:
    """The entropy up to which a share of images lies."""
    return 0.0 if share == 0 else float(np.quantile(entropy_n, share))


def _chosen(
    thresholds: Sequence[float],
    entropy_n: np.ndarray,
    right: Sequence[np.ndarray],
    max_loss: float,
) -> float:
    """The largest threshold that loses no more than it may; 0 loses nothing."""
    small_right, large_right = right
    for threshold in sorted(thresholds, reverse=True):
        accuracy = np.where(entropy_n <= threshold, small_right, large_right).mean()
        if accuracy >= large_right.mean() - max_loss:
            return threshold
    return min(thresholds)


def _measured(cascade: Cascade, images: ImageSet, threshold: float) -> Point:
    answers = [cascade(images.images, threshold) for _ in range(_REPEATS)]
    accuracy = float((answers[0].logits.argmax(axis=1) == images.labels).mean())
    stopped = float(answers[0].stopped.mean())
    # Multiplications are half the FLOPs.
    seq_len = cascade.models[0].config.seq_len
    small, large = (flops * seq_len / 2 for flops in cascade.flops_per_token)
    seconds = statistics.median(answer.seconds for answer in answers)
    return Point(
        threshold, accuracy, stopped, small + (1 - stopped) * large, 1e3 * seconds / len(images)
    )


def _table(points: Sequence[Point], pick: Point) -> str:
    header = ["threshold", "accuracy", "stop early", "M MACs", "ms an image", ""]
    lines = []
    for point in points:
        mark = "chosen on the tuning images" if point is pick else ""
        lines.append(
            [
                f"{point.threshold:.4f}",
                f"{point.accuracy:.4f}",
                f"{point.stopped:.1%}",
                f"{point.macs / 1e6:.2f}",
                f"{point.ms:.3f}",
                mark,
            ]
        )
    return markdown_table(header, lines)


def _write(
    root: storage.Path, points: Sequence[Point], pick: Point, table: str
) -> list[storage.Path]:
    described = {
        "points": [dataclasses.asdict(point) for point in points],
        "pick": dataclasses.asdict(pick),
    }
    files = [root / "cascade.json", root / "cascade.md"]
    with storage.writing("output", root, "name another"):
        storage.replace_text(files[0], storage.json_text(described, indent=2) + "\n")
        figure = new_figure((8.0, 3.6))
        if figure is not None:
            files.append(_plot(figure, points, pick, root / "cascade.png"))
        picture = "\n\n![accuracy against cost](cascade.png)" if figure is not None else ""
        storage.replace_text(files[1], f"# Cascade\n\n{table}{picture}\n")
    return files


def _plot(figure: Any, points: Sequence[Point], pick: Point, path: storage.Path) -> storage.Path:
    all_axes = figure.subplots(1, 2, sharey=True)
    panels = {
        "millions of multiplications of an image": lambda point: point.macs / 1e6,
        "milliseconds of an image, measured": lambda point: point.ms,
    }
    for axes, (label, cost) in zip(all_axes, panels.items(), strict=True):
        accuracies = [point.accuracy for point in points]
        axes.plot([cost(point) for point in points], accuracies, "o-", label="thresholds")
        marker = {"marker": "*", "markersize": 14, "linestyle": "none"}
        axes.plot([cost(pick)], [pick.accuracy], label="chosen on the tuning images", **marker)
        axes.set_xlabel(label)
    all_axes[0].set_ylabel("accuracy on the test images")
    all_axes[0].legend(frameon=False, fontsize=8)
    return save_figure(figure, path)
