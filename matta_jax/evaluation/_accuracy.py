"""Accuracy of image classifiers."""

import numpy as np
import scipy.special

from matta_jax.config import Config, VitConfig
from matta_jax.data import ImageSet, read_images, split_data
from matta_jax.errors import UserError
from matta_jax.evaluation._tasks import Outcome, Score, share
from matta_jax.packages import Model
from matta_jax.selection.scoring import HELD_OUT
from matta_jax.serving import classify


class Accuracy:
    """The share of images of which the likeliest class is the right one; beside it the log loss, in
    nats.
    """

    def __init__(self, where: str, config: Config):
        what = f"tasks='accuracy:{where}'"
        if not isinstance(config.model, VitConfig):
            raise UserError(f"{what} is for image classifiers; this model is {config.model.a_noun}")
        self.where = where
        if where == HELD_OUT:
            images = split_data(config, held_out=True)
        else:
            images = read_images(f"images:{where}", config.data, config.model)
        assert isinstance(images, ImageSet)
        self._images = images
        self.fingerprint = images.fingerprint
        counts = np.bincount(images.labels)
        self.baselines = {"most frequent class": float(counts.max() / counts.sum())}

    def run(self, model: Model) -> Outcome:
        """Scores a model on all images."""
        logits = classify(model, self._images.images)
        labels = self._images.labels
        right = logits.argmax(axis=1) == labels
        log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
        scores = [
            share(f"accuracy:{self.where}", right),
            Score(f"log_loss:{self.where}", -float(log_p[np.arange(len(labels)), labels].mean())),
        ]
        return Outcome(scores, right, len(labels))
