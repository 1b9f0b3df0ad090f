"""Llama with widths of its own in each layer, as vLLM's `DeciLMForCausalLM` reads it."""

from collections.abc import Mapping
from typing import Any

from matta_jax.errors import UserError
from matta_jax.models import Architecture
from matta_jax.packages.hf._llama import LlamaLayout
from matta_jax.packages.hf._mixed import UnpaddedLayout
from matta_jax.packages.hf._remote import CODE_FILE, deci_code
from matta_jax.tokenizers import TextIds

# Engines round widths that they compute up to a multiple of it.
_MULTIPLE = 256


class _StockLayout(LlamaLayout):
    """Llama, named as what the user asks for."""

    form = "vllm"


class DeciLayout(UnpaddedLayout):
    """Llama with a width for each layer, and one count of heads. vLLM knows the kind by its
    `model_type`.
    """

    serving = "vllm serve THIS_FOLDER --trust-remote-code"

    def __init__(self) -> None:
        super().__init__(_StockLayout(), "nemotron-nas", ("DeciLMConfig", "DeciLMForCausalLM"))

    def fits(self, architecture: Architecture) -> bool:
        is_llama = architecture.family_name == self.family_name
        return is_llama and self.stock.fits(architecture)

    def check(self, architecture: Architecture) -> None:
        """Raises UserError where vLLM's class computes something else than a model."""
        if architecture.family_name != self.family_name:
            raise UserError(
                f"format='vllm' has Llama's block alone, and this model is of the family "
                f"{architecture.family_name!r}; use format=hf"
            )
        for name, value in LlamaLayout.facts.items():
            option = architecture.options[name]
            if option != value:
                raise UserError(
                    f"format='vllm' has Llama's block alone, where model.{name}={option!r} must be "
                    f"{value!r}; use format=hf"
                )
        heads = architecture.along("kv_heads")
        if len(set(heads)) > 1:
            raise UserError(
                f"format='vllm': num_kv_heads={','.join(map(str, heads))} must be one number for "
                "all layers in vLLM; use format=hf with --pad, or extract one count of heads"
            )

    def describe(self, architecture: Architecture, dtype: str, text_ids: TextIds | None) -> dict:
        self.check(architecture)
        return super().describe(architecture, dtype, text_ids)

    def mixed_fields(self, architecture: Architecture) -> dict[str, Any]:
        widths = architecture.along("d_ff")
        multiples = [ffn_mult(width, architecture.d_model) for width in widths]
        has_multiples = None not in multiples
        blocks = []
        for width, multiple in zip(widths, multiples, strict=True):
            ffn: dict[str, Any] = {"no_op": False, "intermediate_size": width}
            # Where it stands vLLM goes by it alone; SGLang, TensorRT-LLM and MLX know nothing else.
            if has_multiples:
                ffn["ffn_mult"] = multiple
            attention = {"no_op": False, "n_heads_in_group": architecture.fixed["queries"]}
            blocks.append({"attention": attention, "ffn": ffn})
        return {"block_configs": blocks}

    def mixed_sizes(self, config: Mapping[str, Any]) -> dict[str, Any]:
        blocks = config["block_configs"]
        queries = config["num_attention_heads"] // config["num_key_value_heads"]
        for block in blocks:
            attention, ffn = block["attention"], block["ffn"]
            rules = {
                "no block is left out": not (attention["no_op"] or ffn["no_op"]),
                f"n_heads_in_group is {queries}": attention["n_heads_in_group"] == queries,
                "ffn_mult gives intermediate_size": "ffn_mult" not in ffn
                or width_of(ffn["ffn_mult"], config["hidden_size"]) == ffn["intermediate_size"],
            }
            for rule, holds in rules.items():
                if not holds:
                    raise ValueError(f"it must be that {rule}")
        return {"d_ff": [block["ffn"]["intermediate_size"] for block in blocks]}

    def layer_room(self, architecture: Architecture, layer: int) -> dict[str, int]:
        return self.room(architecture) | {"d_ff": architecture.along("d_ff")[layer]}

    def more_texts(self) -> dict[str, str]:
        return {CODE_FILE: deci_code()}


def width_of(multiple: float, d_model: int) -> int:
    """The d_ff that engines make of `ffn_mult`: two thirds of so many d_model, rounded up."""
    return -(-int(2 * multiple * d_model / 3) // _MULTIPLE) * _MULTIPLE


def ffn_mult(width: int, d_model: int) -> float | None:
    """The `ffn_mult` of which engines make this d_ff; None where there is none."""
    # In the middle of what is rounded up to the width: no rounding of the product matters.
    multiple = round(1.5 * (width - _MULTIPLE // 2) / d_model, 6)
    return multiple if width_of(multiple, d_model) == width else None
