"""Hugging Face's Qwen 2.5 and Qwen 3."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from matta_jax.errors import UserError
from matta_jax.packages.hf._layout import natural
from matta_jax.packages.hf._llama import FULL, SLIDING, LlamaLayout, checked_types, types_of


class _QwenLayout(LlamaLayout):
    """What both Qwens add: local layers."""

    heads_divide = False
    has_windows = True
    defaults: ClassVar[Mapping[str, Any]] = {
        **LlamaLayout.defaults,
        "max_position_embeddings": 32_768,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }

    def window_fields(self, options: Mapping[str, Any]) -> dict[str, Any]:
        local_layers = options["local_layers"]
        if not any(local_layers):
            return {"use_sliding_window": False}
        theta, kind, _ = options["rotary"]
        if options["local_rotary"][0] != theta or kind != "default":
            raise UserError(
                f"format='hf': local layers of stock {self.title} have the rotary positions of all "
                "others; use format=safetensors"
            )
        return {
            "use_sliding_window": True,
            "sliding_window": options["window"],
            "max_window_layers": 0,
            "layer_types": types_of(local_layers),
        }

    def layer_types(self, values: Mapping[str, Any], layers: int) -> Sequence[str]:
        if not values.get("use_sliding_window", False):
            return [FULL] * layers
        first = natural("max_window_layers", values["max_window_layers"] + 1) - 1
        stock = [FULL if i < first else SLIDING for i in range(layers)]
        return checked_types(values.get("layer_types", stock), layers)


class Qwen2Layout(_QwenLayout):
    """Qwen 2.5: biases of queries, keys and values."""

    title = "Qwen 2.5"
    model_types = ("qwen2",)
    architecture_name = "Qwen2ForCausalLM"
    facts: ClassVar[Mapping[str, Any]] = {**LlamaLayout.facts, "qkv_bias": True}
    refused: ClassVar[Mapping[str, Any]] = {}


class Qwen3Layout(_QwenLayout):
    """Qwen 3: a norm of each head's queries and keys."""

    title = "Qwen 3"
    model_types = ("qwen3",)
    architecture_name = "Qwen3ForCausalLM"
    facts: ClassVar[Mapping[str, Any]] = {**LlamaLayout.facts, "qk_norm": True}
    defaults: ClassVar[Mapping[str, Any]] = {**_QwenLayout.defaults, "head_dim": 128}
    refused: ClassVar[Mapping[str, Any]] = {"attention_bias": False}
