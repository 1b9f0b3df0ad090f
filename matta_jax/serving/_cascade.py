"""Cascades: a small model answers where it is sure, and a larger one answers the rest.

Rows of which the small model is unsure are gathered into batches of a few sizes, each a program:
what is sure really stops, and costs nothing more. Where the small model is the earlier pass of the
large one, which thinks twice, the large one goes on from what it left.

Shape letters: n images, H rows, W columns, C channels.
"""

import dataclasses
import functools
import time

import jax
import numpy as np
import scipy.special

from matta_jax.errors import UserError
from matta_jax.models import apply_pass, earlier_flops, earlier_model
from matta_jax.nesting import Tree, flatten
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
        self.models = (small.plain(), large.plain())
        shapes = [image_shape(model) for model in self.models]
        classes = [model.architecture.fixed["classes"] for model in self.models]
        if len({*shapes}) > 1 or len({*classes}) > 1:
            raise UserError(
                f"models {small.spec!r} and {large.spec!r} read images of {shapes[0]} and "
                f"{shapes[1]}, and know {classes[0]} and {classes[1]} classes; a cascade needs the "
                "same"
            )
        self._shape = shapes[0]
        self.goes_on = _is_earlier(*self.models)
        self._first = jax.jit(functools.partial(apply_pass, self.models[0].architecture))
        self._second = jax.jit(self._answer_rows)
        self._compile()

    @property
    def flops_per_token(self) -> tuple[int, int]:
        """FLOPs of a position in the small model, and of what the large one runs after it."""
        small, large = self.models
        flops = large.counts.flops_per_token
        if self.goes_on:
            flops -= earlier_flops(large.architecture, large.config.seq_len)
        return small.counts.flops_per_token, flops

    def _compile(self) -> None:
        """Runs each program once, at each of its sizes: no answer waits for a compiler."""
        batch = np.zeros((BATCH_SIZE, *self._shape), np.uint8)
        _, ended_ND = self._run_first(batch)
        for part in _PARTS:
            self._run_second(batch, ended_ND, np.arange(BATCH_SIZE // part))

    def _run_first(self, batch: np.ndarray) -> tuple[np.ndarray, jax.Array]:
        """The small model's logits, and the residual stream that it ends with."""
        logits, ended_ND = self._first(self.models[0].params, {"image": batch})
        return np.array(logits), ended_ND

    def _run_second(self, batch: np.ndarray, ended_ND: jax.Array, rows: np.ndarray) -> np.ndarray:
        """The large model's logits of some rows of a batch."""
        size = _size_for(len(rows))
        filled = np.pad(rows, (0, size - len(rows)))
        answers = self._second(self.models[1].params, batch, ended_ND, filled)
        return np.array(answers)[: len(rows)]

    def _answer_rows(
        self, params: Tree, batch: jax.Array, ended_ND: jax.Array, rows: jax.Array
    ) -> jax.Array:
        earlier_ND = None
        if self.goes_on:
            by_image = ended_ND.reshape(len(batch), -1, ended_ND.shape[-1])
            earlier_ND = by_image[rows].reshape(-1, ended_ND.shape[-1])
        inputs = {"image": batch[rows]}
        architecture = self.models[1].architecture
        return apply_pass(architecture, params, inputs, earlier_ND=earlier_ND)[0]

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
            filled = filled_up(batch, BATCH_SIZE)
            filled_logits, ended_ND = self._run_first(filled)
            first = filled_logits[: len(batch)]
            unsure = np.flatnonzero(entropies(first) > threshold)
            if len(unsure):
                first[unsure] = self._run_second(filled, ended_ND, unsure)
            logits[start : start + len(batch)] = first
            stopped[start + unsure] = False
        return Answers(logits, stopped, time.perf_counter() - start_time)


def _is_earlier(small: Model, large: Model) -> bool:
    """Whether a small model is the pass that a large one runs before its own."""
    earlier = earlier_model(large.architecture, large.params)
    if earlier is None or earlier[0].sub_model != small.architecture.sub_model:
        return False
    weights, small_weights = flatten(earlier[1]), flatten(small.params)
    return weights.keys() == small_weights.keys() and all(
        np.array_equal(weight, small_weights[path]) for path, weight in weights.items()
    )


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
