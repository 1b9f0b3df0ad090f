"""The section of vision transformers: classifiers of images."""

import dataclasses
from typing import ClassVar

from matta_jax.config._fields import field
from matta_jax.config._model import ModelConfig, register_model
from matta_jax.errors import UserError, shorten


@dataclasses.dataclass(frozen=True)
class VitConfig(ModelConfig):
    """The Student, as a classifier of images: a vision transformer."""

    reads_examples: ClassVar[bool] = True
    reads_images: ClassVar[bool] = True
    noun: ClassVar[str] = "image classifier"
    task: ClassVar[str] = "accuracy:FILE.npz"

    name: str = field("vit", "Family: vit, a classifier of images.")
    image_size: int = field(
        32, "Height and width of an image, in pixels.", minimum=1, maximum=2**14
    )
    patch_size: int = field(4, "Height and width of a patch, in pixels.", minimum=1, maximum=2**14)
    num_channels: int = field(
        3, "Numbers of a pixel: 3 of a colour, 1 of a grey.", minimum=1, maximum=4096
    )
    image_classes: int = field(10, "Classes that images are of.", minimum=2, maximum=2**20)
    image_pooling: str = field(
        "cls",
        "What the head reads: a class token, which stands before the patches, or their mean.",
        choices=("cls", "mean"),
    )
    activation: str = field("gelu", "Of the feed-forward layers.", choices=("gelu", "gelu_tanh"))
    layer_norm_epsilon: float = field(
        1e-12, "Added to the variance in norms.", above=0.0, smallest=1e-30, maximum=1.0
    )
    image_mean: tuple[float, ...] = field(
        (0.5,),
        "Subtracted from the numbers of pixels, from 0 to 1: of each channel, or one for all.",
        minimum=-1e3,
        maximum=1e3,
    )
    image_std: tuple[float, ...] = field(
        (0.5,), "What they are then divided by, likewise.", above=0.0, maximum=1e3
    )

    def check(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().check()
        if self.image_size % self.patch_size:
            raise UserError(
                f"model.patch_size={self.patch_size} must divide model.image_size="
                f"{self.image_size}; choose another"
            )
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if len(values) not in (1, self.num_channels):
                raise UserError(
                    f"model.{name}={shorten(values)} must hold one number, or one for each of "
                    f"model.num_channels={self.num_channels}"
                )

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_positions(self) -> int:
        """Positions of an image: its patches, and the class token where there is one."""
        return self.num_patches + (self.image_pooling == "cls")


register_model("vit", VitConfig)
