"""Hugging Face's GPT-2."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from matta_jax.config import ModelConfig
from matta_jax.errors import UserError
from matta_jax.models import Architecture
from matta_jax.nesting import SubModel
from matta_jax.packages._safetensors import ForeignTensors
from matta_jax.packages.hf._layout import Dims, Layout, Place, natural
from matta_jax.tokenizers import TextIds

_LAYER: dict[str, tuple[str, Dims]] = {
    "attention/w_qkv": ("attn.c_attn.weight", (("d_model",), ("qkv", "heads", "head_dim"))),
    "attention/b_qkv": ("attn.c_attn.bias", (("qkv", "heads", "head_dim"),)),
    "attention/w_out": ("attn.c_proj.weight", (("heads", "head_dim"), ("d_model",))),
    "attention/b_out": ("attn.c_proj.bias", (("d_model",),)),
    "mlp/w_in": ("mlp.c_fc.weight", (("d_model",), ("d_ff",))),
    "mlp/b_in": ("mlp.c_fc.bias", (("d_ff",),)),
    "mlp/w_out": ("mlp.c_proj.weight", (("d_ff",), ("d_model",))),
    "mlp/b_out": ("mlp.c_proj.bias", (("d_model",),)),
    "norm_attention/scale": ("ln_1.weight", (("d_model",),)),
    "norm_attention/bias": ("ln_1.bias", (("d_model",),)),
    "norm_mlp/scale": ("ln_2.weight", (("d_model",),)),
    "norm_mlp/bias": ("ln_2.bias", (("d_model",),)),
}
_OUTER: dict[str, tuple[str, Dims]] = {
    "embed/tokens": ("wte.weight", (("vocab",), ("d_model",))),
    "embed/positions": ("wpe.weight", (("positions",), ("d_model",))),
    "norm/scale": ("ln_f.weight", (("d_model",),)),
    "norm/bias": ("ln_f.bias", (("d_model",),)),
}
# What our GPT-2 computes: a config that says otherwise is of another model.
_FIXED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
}
_EQUIVALENT = {"activation_function": ("gelu_new", "gelu_pytorch_tanh")}


class GPT2Layout(Layout):
    """GPT-2, whose heads fill the residual stream."""

    title = "GPT-2"
    family_name = "gpt"
    model_types = ("gpt2",)
    prefix = "transformer."
    serving = "vllm serve THIS_FOLDER"
    # Masks that older versions of transformers stored, and the head, which is checked to be tied.
    ignored = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|lm_head\.weight")

    def describe(self, architecture: Architecture, dtype: str, text_ids: TextIds | None) -> dict:
        num_heads = architecture.sub_model.largest("heads")
        room, remainder = divmod(architecture.d_model, architecture.head_dim)
        if remainder or num_heads > room:
            raise UserError(
                f"format='hf': {num_heads} heads of {architecture.head_dim} do not fit in d_model="
                f"{architecture.d_model} of stock GPT-2; extract fewer heads or a wider d_model, "
                "or use format=safetensors"
            )
        return {
            "model_type": "gpt2",
            **_FIXED,
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": architecture.vocab_size,
            "n_positions": architecture.max_len,
            "n_embd": architecture.d_model,
            "n_layer": architecture.num_layers,
            "n_head": room,
            "n_inner": architecture.sub_model.largest("d_ff"),
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "torch_dtype": dtype,
            "bos_token_id": None if text_ids is None else text_ids.start,
            "eos_token_id": None if text_ids is None else text_ids.end,
            "matta_jax": _hidden_by_padding(architecture),
        }

    def architecture(self, config: Mapping[str, Any]) -> Architecture:
        _check_kind(config)
        d_model, room, layers = (
            natural(name, config[name], is_depth=name == "n_layer")
            for name in ("n_embd", "n_head", "n_layer")
        )
        # Where n_inner is null or left out, GPT-2 takes four times the width.
        inner = 4 * d_model
        if config.get("n_inner") is not None:
            inner = natural("n_inner", config["n_inner"])

        # A stock model has no padding; ours says in `matta_jax` what was there before it.
        stock = {"num_heads": room, "d_ff": [inner] * layers}
        stock |= {"head_granule": room, "d_ff_granule": inner}
        hidden = stock | config.get("matta_jax", {})
        heads = hidden["num_heads"]
        if type(heads) is not list:
            heads = [heads] * layers
        heads = [natural("num_heads", count) for count in heads]
        widths = [natural("d_ff", width) for width in hidden["d_ff"]]
        granules = {
            "heads": natural("head_granule", hidden["head_granule"]),
            "d_ff": natural("d_ff_granule", hidden["d_ff_granule"]),
        }
        rules = {
            "n_head divides n_embd": d_model % room == 0,
            "d_ff has n_layer entries": len(widths) == layers and len(heads) == layers,
            "n_inner is the largest d_ff": max(widths) == inner,
            "num_heads is at most n_head": max(heads) <= room,
            "head_granule divides num_heads": all(n % granules["heads"] == 0 for n in heads),
            "d_ff_granule divides d_ff": all(width % granules["d_ff"] == 0 for width in widths),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"it must be that {rule}")

        max_len = natural("n_positions", config["n_positions"])
        return Architecture(
            family_name=self.family_name,
            max_len=max_len,
            fixed={
                "vocab": natural("vocab_size", config["vocab_size"]),
                "positions": max_len,
                "head_dim": d_model // room,
                "qkv": 3,
            },
            sub_model=SubModel(
                tuple(range(layers)),
                {"d_model": d_model},
                {"heads": tuple(heads), "d_ff": tuple(widths)},
            ),
            granules=granules,
        )

    def section(self, config: Mapping[str, Any]) -> ModelConfig:
        architecture = self.architecture(config)
        return ModelConfig(
            vocab_size=architecture.vocab_size,
            max_len=architecture.max_len,
            num_layers=architecture.num_layers,
            d_model=architecture.d_model,
            num_heads=architecture.d_model // architecture.head_dim,
            d_ff=architecture.sub_model.largest("d_ff"),
        )

    def outer(self, architecture: Architecture) -> dict[str, Place]:
        del architecture
        return {path: Place((self.prefix + name,), dims) for path, (name, dims) in _OUTER.items()}

    def layer(self, architecture: Architecture) -> dict[str, Place]:
        del architecture
        stem = self.prefix + "h.{}."
        return {path: Place((stem + name,), dims) for path, (name, dims) in _LAYER.items()}

    def room(self, architecture: Architecture) -> dict[str, int]:
        heads = architecture.d_model // architecture.head_dim
        return super().room(architecture) | {"heads": heads}

    def check_head(self, tensors: ForeignTensors, architecture: Architecture) -> None:
        """An untied head is another model than ours."""
        if "lm_head.weight" not in tensors.files:
            return
        if not np.array_equal(tensors["lm_head.weight"], tensors["wte.weight"]):
            raise UserError(
                f"{str(tensors.folder)!r}: lm_head.weight differs from wte.weight; only tied heads "
                "are supported"
            )


def _check_kind(config: Mapping[str, Any]) -> None:
    """Raises UserError where a field has a value that our GPT-2 does not compute."""
    for field, value in _FIXED.items():
        if config.get(field, value) not in _EQUIVALENT.get(field, (value,)):
            raise UserError(
                f"{field}={config[field]!r} is not supported, only {value!r}; import a GPT-2 model"
            )


def _hidden_by_padding(architecture: Architecture) -> dict[str, Any]:
    """What an import cannot see in padded tensors."""
    heads = architecture.along("heads")
    return {
        "num_heads": heads[0] if len(set(heads)) == 1 else list(heads),
        "d_ff": list(architecture.along("d_ff")),
        "head_granule": architecture.granules["heads"],
        "d_ff_granule": architecture.granules["d_ff"],
    }
