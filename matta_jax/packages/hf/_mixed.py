"""Models whose layers differ, in a folder without padding: a stock kind and remote code."""

import abc
from collections.abc import Mapping
from typing import Any

from matta_jax.config import ModelConfig
from matta_jax.models import Architecture
from matta_jax.packages._safetensors import ForeignTensors
from matta_jax.packages.hf._gpt2 import GPT2Layout
from matta_jax.packages.hf._layout import Layout, Place
from matta_jax.packages.hf._remote import CODE_FILE, gpt2_code, llama_code
from matta_jax.tokenizers import TextIds

_USAGE = """from transformers import AutoModelForCausalLM

# Layers have sizes of their own: a few lines of code in the folder say so to transformers.
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", trust_remote_code=True)"""


def is_mixed(architecture: Architecture) -> bool:
    """Whether a stock model would need padding because layers differ."""
    return any(
        len(set(architecture.along(axis))) > 1 for axis in ("d_ff", architecture.family.heads)
    )


class UnpaddedLayout(Layout):
    """A stock kind of models, with layers of their own sizes. Stateless.

    Attributes:
      stock: the kind.
      classes: the names of the classes in the remote code: of the config, and of the model.
    """

    is_unpadded = True
    usage = _USAGE

    def __init__(self, stock: Layout, model_type: str, classes: tuple[str, str]):
        self.stock, self.classes = stock, classes
        self.title, self.family_name = stock.title, stock.family_name
        self.model_types = (model_type,)
        self.prefix, self.ignored = stock.prefix, stock.ignored

    @abc.abstractmethod
    def mixed_fields(self, architecture: Architecture) -> dict[str, Any]:
        """The fields of config.json that tell the sizes of each layer."""

    @abc.abstractmethod
    def mixed_sizes(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What these fields say, by the names that the stock kind has under `matta_jax`; raises
        KeyError, TypeError, ValueError where they are damaged.
        """

    def fits(self, architecture: Architecture) -> bool:
        is_kind = architecture.family_name == self.family_name and self.stock.fits(architecture)
        return is_kind and is_mixed(architecture)

    def describe(self, architecture: Architecture, dtype: str, text_ids: TextIds | None) -> dict:
        described = self.stock.describe(architecture, dtype, text_ids)
        fields = self.mixed_fields(architecture)
        # Sizes stand in the fields that transformers reads, and nowhere else.
        sizes = self.mixed_sizes(described | fields)
        hidden = described["matta_jax"].items()
        config_class, model_class = (f"{CODE_FILE.removesuffix('.py')}.{c}" for c in self.classes)
        return described | {
            "model_type": self.model_types[0],
            "architectures": [self.classes[1]],
            "auto_map": {"AutoConfig": config_class, "AutoModelForCausalLM": model_class},
            **fields,
            "matta_jax": {name: value for name, value in hidden if name not in sizes},
        }

    def architecture(self, config: Mapping[str, Any]) -> Architecture:
        return self.stock.architecture(self._stock_config(config))

    def section(self, config: Mapping[str, Any]) -> ModelConfig:
        return self.stock.section(self._stock_config(config))

    def _stock_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config.json of the stock model that has room for all layers."""
        hidden = dict(config.get("matta_jax", {})) | self.mixed_sizes(config)
        return dict(config) | {"model_type": self.stock.model_types[0], "matta_jax": hidden}

    def outer(self, architecture: Architecture) -> Mapping[str, Place]:
        return self.stock.outer(architecture)

    def layer(self, architecture: Architecture) -> Mapping[str, Place]:
        return self.stock.layer(architecture)

    def room(self, architecture: Architecture) -> dict[str, int]:
        return self.stock.room(architecture)

    def check_head(self, tensors: ForeignTensors, architecture: Architecture) -> None:
        self.stock.check_head(tensors, architecture)


class MixedLayout(UnpaddedLayout):
    """A kind with a block like Llama's, whose layers have widths and heads of their own.

    Attributes:
      stock_class: what the names of the stock kind's classes begin with.
      hidden_heads: the name of the heads under `matta_jax`.
      heads_field: the field of the heads of each layer.
    """

    hidden_heads = "num_kv_heads"
    heads_field = "num_key_value_heads_by_layer"

    def __init__(self, stock: Layout, stock_class: str):
        names = (f"Mixed{stock_class}Config", f"Mixed{stock_class}ForCausalLM")
        super().__init__(stock, f"mixed_{stock.model_types[0]}", names)
        self.stock_class = stock_class

    def mixed_fields(self, architecture: Architecture) -> dict[str, Any]:
        return {
            "intermediate_sizes": list(architecture.along("d_ff")),
            self.heads_field: list(architecture.along(architecture.family.heads)),
        }

    def mixed_sizes(self, config: Mapping[str, Any]) -> dict[str, Any]:
        for name in ("intermediate_sizes", self.heads_field):
            if type(config[name]) is not list:
                raise ValueError(f"{name} must be a list, with a size for each layer")
        return {"d_ff": config["intermediate_sizes"], self.hidden_heads: config[self.heads_field]}

    def layer_room(self, architecture: Architecture, layer: int) -> dict[str, int]:
        axes = ("d_ff", architecture.family.heads)
        sizes = {axis: architecture.along(axis)[layer] for axis in axes}
        return self.room(architecture) | sizes

    def more_texts(self) -> dict[str, str]:
        code = llama_code(self.title, self.stock_class, self.stock.model_types[0])
        return {CODE_FILE: code}


class MixedGPT2Layout(MixedLayout):
    """GPT-2 with widths and heads of its own in each layer: heads need not fill d_model."""

    hidden_heads = "num_heads"
    heads_field = "num_attention_heads_by_layer"

    def __init__(self) -> None:
        super().__init__(GPT2Layout(), "GPT2")

    def more_texts(self) -> dict[str, str]:
        return {CODE_FILE: gpt2_code(self.title)}
