"""Hugging Face's Gemma 3, its text models."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from matta_jax.errors import UserError
from matta_jax.packages.hf._layout import natural
from matta_jax.packages.hf._llama import FULL, SLIDING, LlamaLayout, checked_types, types_of
from matta_jax.packages.hf._rope import read_rope, written_rope


class Gemma3Layout(LlamaLayout):
    """Gemma 3's text models: norms after each branch too, a scaled embedding, local layers."""

    title = "Gemma 3"
    model_types = ("gemma3_text",)
    architecture_name = "Gemma3ForCausalLM"
    activation = "hidden_activation"
    has_windows = True
    has_query_scale = True
    facts: ClassVar[Mapping[str, Any]] = {
        "qk_norm": True,
        "qkv_bias": False,
        "post_norms": True,
        "norm_offset": 1.0,
        "gate": "gelu_tanh",
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "head_dim": 256,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 256,
    }
    refused: ClassVar[Mapping[str, Any]] = {
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    }

    def embed_scale(self, d_model: int) -> float:
        return math.sqrt(d_model)

    def norm_names(self, options: Mapping[str, Any]) -> dict[str, str]:
        return {
            "norm_attention": "input_layernorm",
            "norm_attended": "post_attention_layernorm",
            "norm_mlp": "pre_feedforward_layernorm",
            "norm_fed": "post_feedforward_layernorm",
        }

    def rope_fields(self, options: Mapping[str, Any]) -> dict[str, Any]:
        parameters = {
            FULL: written_rope(options["rotary"]),
            SLIDING: written_rope(options["local_rotary"]),
        }
        return {"rope_parameters": parameters}

    def window_fields(self, options: Mapping[str, Any]) -> dict[str, Any]:
        scale = options["query_scale"]
        fields: dict[str, Any] = {}
        if scale is not None:
            # A whole number in stock models, whose root is rounded.
            scalar = scale**-2
            fields["query_pre_attn_scalar"] = round(scalar) if _is_whole(scalar) else scalar
        return fields | {
            "sliding_window": options["window"],
            "layer_types": types_of(options["local_layers"]),
        }

    def layer_types(self, values: Mapping[str, Any], layers: int) -> Sequence[str]:
        pattern = natural("sliding_window_pattern", values["sliding_window_pattern"])
        stock = [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]
        return checked_types(values.get("layer_types", stock), layers)

    def positions(self, values: Mapping[str, Any], max_len: int, layers: int) -> dict[str, Any]:
        # Newer configs have the parameters of each kind of layer.
        parameters = values.get("rope_parameters") or {}
        by_type = {name: parameters[name] for name in (FULL, SLIDING) if name in parameters}
        local_theta = values["rope_local_base_freq"]
        if by_type:
            local = by_type.get(SLIDING) or {}
            local_theta, kind, _ = read_rope({"rope_theta": local_theta}, local, max_len)
            if kind != "default":
                raise UserError(
                    f"rope_parameters.{SLIDING}: rope_type={kind!r} is not supported, only "
                    "default; import another model"
                )
            parameters = by_type.get(FULL) or {}
        flat = {**values, "rope_parameters": parameters, "rope_local_base_freq": local_theta}
        scalar = values["query_pre_attn_scalar"]
        return super().positions(flat, max_len, layers) | {"query_scale": scalar**-0.5}

    def local_theta(self, values: Mapping[str, Any], theta: float, kind: str) -> float:
        return values["rope_local_base_freq"]


def _is_whole(number: float) -> bool:
    return math.isclose(number, round(number), rel_tol=1e-6)
