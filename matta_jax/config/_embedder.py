"""The section of embedders: encoders of texts into vectors."""

import dataclasses
from typing import ClassVar

from matta_jax.config._fields import field
from matta_jax.config._model import ModelConfig, register_model
from matta_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EmbedderConfig(ModelConfig):
    """The Student, as an encoder of texts into vectors: a BERT."""

    reads_examples: ClassVar[bool] = True
    reads_pairs: ClassVar[bool] = True
    noun: ClassVar[str] = "embedder"
    task: ClassVar[str] = "sts:FILE"
    fixed_fields: ClassVar[tuple[str, ...]] = ("d_model",)

    name: str = field("embedder", "Family: embedder, an encoder of texts into vectors.")
    embed: int | None = field(
        None,
        "Numbers of the Student's vectors: the first ones of the pooled d_model. None: all.",
        minimum=1,
        maximum=2**20,
    )
    pooling: str = field(
        "mean",
        "What a text's vector is made of: the mean over its tokens, or the first one.",
        choices=("mean", "cls"),
    )
    activation: str = field("gelu", "Of the feed-forward layers.", choices=("gelu", "gelu_tanh"))
    layer_norm_epsilon: float = field(
        1e-12, "Added to the variance in norms.", above=0.0, smallest=1e-30, maximum=1.0
    )
    num_types: int = field(
        2,
        "Rows of the table of token types, of which the first is added to all.",
        minimum=1,
        maximum=2**16,
    )
    similarity_scale: float = field(
        20.0,
        "What the cosine of a text and each second text of the batch is multiplied by, to be a "
        "logit: 1 / temperature.",
        above=0.0,
        smallest=1e-6,
        maximum=1e6,
    )

    def check(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().check()
        if self.embed is not None and self.embed > self.d_model:
            raise UserError(
                f"model.embed={self.embed} must be at most model.d_model={self.d_model}, of which "
                "it takes the first numbers; lower it"
            )

    def nested_sizes(self) -> dict[str, int]:
        """The Student's size along each axis that a nest may slice."""
        return super().nested_sizes() | {"embed": self.embed or self.d_model}


register_model("embedder", EmbedderConfig)
