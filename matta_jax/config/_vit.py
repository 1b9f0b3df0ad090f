"""The section of vision transformers: classifiers of images."""

import dataclasses
from collections.abc import Mapping, Sequence
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

    thoughts: int = field(
        0,
        "Earlier passes of the Student over an image: its own starts from what they left.",
        minimum=0,
        maximum=64,
    )
    thinking_heads: tuple[int, ...] = field(
        (),
        "Heads of each earlier pass of a model that thinks more than once, rising: with (3,) one "
        "of thoughts=1 first runs with 3 heads.",
        minimum=1,
        maximum=2**16,
    )
    thinking_d_model: tuple[int, ...] = field(
        (),
        "Their d_model. Empty: in proportion to their heads, as the Student's.",
        minimum=1,
        maximum=2**20,
    )
    thinking_d_ff: tuple[int, ...] = field(
        (),
        "Their d_ff. Empty: in proportion to their heads, as the Student's.",
        minimum=1,
        maximum=2**22,
    )

    def check(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().check()
        self._check_thinking()
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

    def _check_thinking(self) -> None:
        heads = self.thinking_heads
        if self.thoughts > len(heads):
            raise UserError(
                f"model.thoughts={self.thoughts} must be at most the {len(heads)} earlier passes "
                "of model.thinking_heads; name the heads of each there"
            )
        for name in ("thinking_d_model", "thinking_d_ff"):
            sizes = getattr(self, name)
            if sizes and len(sizes) != len(heads):
                raise UserError(
                    f"model.{name}={shorten(sizes)} must have a size for each of "
                    f"model.thinking_heads={shorten(heads)}; or leave it out"
                )
            student_size = getattr(self, name.removeprefix("thinking_"))
            for count in () if sizes else heads:
                if student_size * count % self.num_heads:
                    raise UserError(
                        f"model.thinking_heads={shorten(heads)}: {count} of the Student's "
                        f"{self.num_heads} heads are no whole part of its "
                        f"{name.removeprefix('thinking_')}={student_size}; give model.{name}"
                    )

    def nested_sizes(self) -> dict[str, int]:
        """The Student's size along each axis that a nest may slice."""
        # Where no model of a run thinks twice, none of them has such a size.
        thoughts = {"thoughts": self.thoughts} if self.thinking_heads else {}
        return super().nested_sizes() | thoughts

    def earlier_sizes(self) -> Sequence[Mapping[str, int]]:
        """The nested sizes of each earlier pass."""
        results = []
        for i, count in enumerate(self.thinking_heads):
            sizes = {"heads": count}
            for axis in ("d_model", "d_ff"):
                listed_sizes = getattr(self, f"thinking_{axis}")
                proportional = getattr(self, axis) * count // self.num_heads
                sizes[axis] = listed_sizes[i] if listed_sizes else proportional
            results.append(sizes)
        return results

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_positions(self) -> int:
        """Positions of an image: its patches, and the class token where there is one."""
        return self.num_patches + (self.image_pooling == "cls")


register_model("vit", VitConfig)
