"""Classes of images.

Shape letters: n images, H rows, W columns, C channels.
"""

import jax
import numpy as np

from matta_jax.config import VitConfig
from matta_jax.errors import UserError
from matta_jax.packages import Model
from matta_jax.reporting import progress
from matta_jax.sharding import place_rows

BATCH_SIZE = 64
"""Images of a batch, to which the last one is filled up: one program for all."""


def classify(model: Model, images: np.ndarray) -> np.ndarray:
    """Returns the logits [n, classes] of images, float32.

    Args:
      model: an image classifier.
      images: uint8 [n, H, W, C], of the model's size.

    Raises:
      UserError: the model is none, or the images are of another size.

    Examples:
      >>> model = matta_jax.load_model("models/images")
      >>> matta_jax.classify(model, np.zeros((2, 8, 8, 3), np.uint8)).shape
      (2, 3)
    """
    check_images(model, images)
    program = jax.jit(model.apply)
    parts = []
    starts = range(0, len(images), BATCH_SIZE)
    for start in progress(starts, desc=f"classify {model.spec}", unit="batches"):
        batch = images[start : start + BATCH_SIZE]
        filled = filled_up(batch, BATCH_SIZE)
        inputs = place_rows({"image": filled}, model.mesh)
        parts.append(np.asarray(program(model.params, inputs))[: len(batch)])
    if not parts:
        return np.zeros((0, model.architecture.fixed["classes"]), np.float32)
    return np.concatenate(parts).astype(np.float32)


def check_images(model: Model, images: np.ndarray) -> None:
    """Raises UserError where a model is no image classifier, or images are of another size."""
    shape = image_shape(model)
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise UserError(
            f"images of {images.dtype} {images.shape[1:]}: model {model.spec!r} reads uint8 "
            f"{shape}; scale them"
        )


def image_shape(model: Model) -> tuple[int, ...]:
    """Rows, columns and channels of the images that a model reads. Raises UserError for a model
    that is no image classifier.
    """
    section = image_section(model)
    return (section.image_size, section.image_size, section.num_channels)


def image_section(model: Model) -> VitConfig:
    """The section of an image classifier. Raises UserError for another model."""
    section = model.config.model
    if not isinstance(section, VitConfig):
        raise UserError(
            f"model {model.spec!r} is {section.a_noun}, and reads no images; name an image "
            "classifier"
        )
    return section


def filled_up(images: np.ndarray, size: int) -> np.ndarray:
    """Images and black ones behind them: a batch of a size that a program is compiled for."""
    return np.pad(images, [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])
