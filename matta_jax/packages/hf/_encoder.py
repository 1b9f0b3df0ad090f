"""What Hugging Face's encoders have in common: layers of one size, heads that fill the residual
stream.
"""

from collections.abc import Mapping
from typing import Any

from matta_jax.errors import UserError
from matta_jax.models import Architecture
from matta_jax.models.families import family_of
from matta_jax.nesting import SubModel
from matta_jax.packages.hf._layout import Layout, natural


class EncoderLayout(Layout):
    """An encoder, as BERT and ViT are."""

    @property
    def stock(self) -> str:
        """The kind, as errors name what has no room for a model."""
        return f"stock {self.title}"

    def architecture(self, config: Mapping[str, Any]) -> Architecture:
        section = self.section(config)
        layers = tuple(range(section.num_layers))
        family = family_of(self.family_name)
        sizes = section.nested_sizes()
        facts = config.get("matta_jax", {})
        granules = {"heads": sizes["heads"], "d_ff": sizes["d_ff"]} | facts.get("granules", {})
        for axis, granule in granules.items():
            if sizes[axis] % natural(axis, granule):
                raise ValueError(f"the granule of {axis} must divide {sizes[axis]}")
        return Architecture(
            family_name=self.family_name,
            max_len=section.max_len,
            fixed=family.fixed_sizes(section),
            sub_model=SubModel(layers, sizes),
            granules=granules,
            options=family.options(section, layers),
        )

    def check_stock(self, architecture: Architecture) -> None:
        """Raises UserError where a stock model has no room for one."""
        for axis in architecture.sub_model.per_layer:
            raise UserError(
                f"format={self.form!r}: layers of several {axis} do not fit {self.stock}; extract "
                "one size, or use format=safetensors"
            )
        heads = architecture.sub_model.sizes["heads"]
        if heads * architecture.head_dim != architecture.d_model:
            raise UserError(
                f"format={self.form!r}: {heads} heads of {architecture.head_dim} do not fill "
                f"d_model={architecture.d_model} of {self.stock}; extract all heads, or use "
                "format=safetensors"
            )
