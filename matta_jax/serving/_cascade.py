"""Cascades: a small model answers where it is sure, and a larger one answers the rest.

Rows of which the small model is unsure are gathered into batches of a few sizes, each a program:
what is sure really stops, and costs nothing more.

Shape letters: n images, H rows, W columns, C channels.
"""

import dataclasses
import time

import jax
import numpy as np
import scipy.special

from matta_jax.errors import UserError
from matta_jax.packages import Model
from matta_jax.serving._classify import BATCH_SIZE, check_images, filled_up, image_shape

# Of gathered rows: a batch is filled up to the next of these parts of a full one.
_PARTS = (8, 4, 2, 1)


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a cascade said of images.

    Attributes:
      logits: of the model that answered, float32 [n, classes].
      stopped: whether the small model did [n].
      seconds: what it took.
    """

    logits: np.ndarray
    stopped: np.ndarray
    seconds: float


class Cascade:
    """Two classifiers, the smaller first.

    Args:
      small: answers where the entropy of its distribution, in nats, is at most a threshold.
      large: answers otherwise.

    Raises:
      UserError: they read other images, or know other classes.
    """

    def __init__(self, small: Model, large: Model):
        self.models = (small, large)
        shapes = [image_shape(model) for model in self.models]
        classes = [model.architecture.fixed["classes"] for model in self.models]
        if len({*shapes}) > 1 or len({*classes}) > 1:
            raise UserError(
                f"models {small.spec!r} and {large.spec!r} read images of {shapes[0]} and "
                f"{shapes[1]}, and know {classes[0]} and {classes[1]} classes; a cascade needs the "
                "same"
            )
        self._shape = shapes[0]
        self._programs = [jax.jit(model.apply) for model in self.models]
        self._compile()

    def _compile(self) -> None:
        """Runs each program once, at each of its sizes: no answer waits for a compiler."""
        for stage, parts in ((0, (1,)), (1, _PARTS)):
            for part in parts:
                self._run(stage, np.zeros((BATCH_SIZE // part, *self._shape), np.uint8))

    def __call__(self, images: np.ndarray, threshold: float) -> Answers:
        """Classifies images, batch by batch.

        Args:
          images: uint8 [n, H, W, C].
          threshold: in nats; 0 sends nearly all on, and the logarithm of the classes none.

        Raises:
          UserError: images of another size, or a threshold below 0.
        """
        check_images(self.models[0], images)
        check_threshold(threshold)
        logits = np.zeros((len(images), self.models[0].architecture.fixed["classes"]), np.float32)
        stopped = np.ones(len(images), bool)

        start_time = time.perf_counter()
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            first = self._run(0, filled_up(batch, BATCH_SIZE))[: len(batch)]
            unsure = np.flatnonzero(entropies(first) > threshold)
            if len(unsure):
                size = _size_for(len(unsure))
                first[unsure] = self._run(1, filled_up(batch[unsure], size))[: len(unsure)]
            logits[start : start + len(batch)] = first
            stopped[start + unsure] = False
        return Answers(logits, stopped, time.perf_counter() - start_time)

    def _run(self, stage: int, images: np.ndarray) -> np.ndarray:
        params = self.models[stage].params
        return np.array(self._programs[stage](params, {"image": images}))


def entropies(logits: np.ndarray) -> np.ndarray:
    """The entropy [n] of each row's distribution, in nats."""
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    return -(np.exp(log_p) * log_p).sum(axis=1)


def check_threshold(threshold: float) -> None:
    """Raises UserError for what is no entropy."""
    # Not `<`, which is false of NaN.
    if not 0 <= threshold < float("inf"):
        raise UserError(
            f"threshold={threshold} must be an entropy in nats, at least 0; of ten classes 2.3 is "
            "the largest"
        )


def _size_for(count: int) -> int:
    """The smallest batch that rows fit in."""
    return next(BATCH_SIZE // part for part in _PARTS if count <= BATCH_SIZE // part)
