"""Hugging Face's Llama, the block of Llama 3 and SmolLM2; Qwen's and Gemma's go by what differs."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from matta_jax.config import LlamaConfig
from matta_jax.errors import UserError, shorten
from matta_jax.models import Architecture, family_of
from matta_jax.nesting import SubModel
from matta_jax.packages._safetensors import ForeignTensors
from matta_jax.packages.hf._layout import Dims, Layout, Place, natural
from matta_jax.packages.hf._rope import read_rope, written_rope
from matta_jax.tokenizers import TextIds

_NORM: Dims = (("d_model",),)
_HEAD_NORM: Dims = (("head_dim",),)
_QUERIES = ("kv_heads", "queries", "head_dim")
_KEYS = ("kv_heads", "head_dim")

FULL, SLIDING = "full_attention", "sliding_attention"
_GATES = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


class LlamaLayout(Layout):
    """The block of Llama; a sub-class says what differs.

    Attributes:
      facts: options of our family that are the same in all models of the kind.
      defaults: of fields that a config.json may leave out.
      refused: fields that must have one value, or be left out.
      activation: the field of the gates' function.
      heads_divide: whether the kind asks for heads that divide d_model.
      has_windows: whether its models may have local layers.
      has_query_scale: whether its config says what scores are multiplied by.
    """

    title = "Llama"
    family_name = "llama"
    model_types: tuple[str, ...] = ("llama",)
    prefix = "model."
    serving = "vllm serve THIS_FOLDER"
    # Frequencies that older versions of transformers stored.
    ignored = re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq|lm_head\.weight")
    architecture_name: ClassVar[str] = "LlamaForCausalLM"
    activation: ClassVar[str] = "hidden_act"
    heads_divide: ClassVar[bool] = True
    has_windows: ClassVar[bool] = False
    has_query_scale: ClassVar[bool] = False
    facts: ClassVar[Mapping[str, Any]] = {
        "qk_norm": False,
        "qkv_bias": False,
        "post_norms": False,
        "norm_offset": 0.0,
        "gate": "silu",
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_theta": 10_000.0,
    }
    refused: ClassVar[Mapping[str, Any]] = {"attention_bias": False, "mlp_bias": False}

    def fits(self, architecture: Architecture) -> bool:
        return all(architecture.options[name] == value for name, value in self.facts.items())

    def describe(self, architecture: Architecture, dtype: str, text_ids: TextIds | None) -> dict:
        self._check_stock(architecture)
        options, room = architecture.options, self.room(architecture)
        gates = {name: gate for gate, name in _GATES.items()}
        described = {
            "model_type": self.model_types[0],
            "architectures": [self.architecture_name],
            "vocab_size": architecture.vocab_size,
            "max_position_embeddings": architecture.max_len,
            "hidden_size": architecture.d_model,
            "num_hidden_layers": architecture.num_layers,
            "num_attention_heads": room["kv_heads"] * room["queries"],
            "num_key_value_heads": room["kv_heads"],
            "head_dim": architecture.head_dim,
            "intermediate_size": room["d_ff"],
            self.activation: gates[options["gate"]],
            "rms_norm_eps": options["norm_epsilon"],
            "tie_word_embeddings": options["tie_embeddings"],
            **self.refused,
            "attention_dropout": 0.0,
            "torch_dtype": dtype,
            "bos_token_id": None if text_ids is None else text_ids.start,
            "eos_token_id": None if text_ids is None else text_ids.end,
            "matta_jax": _hidden_by_padding(architecture),
        }
        return described | self.rope_fields(options) | self.window_fields(options)

    def rope_fields(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of rotary positions."""
        return {"rope_parameters": written_rope(options["rotary"])}

    def window_fields(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of local layers."""
        del options
        return {}

    def _check_stock(self, architecture: Architecture) -> None:
        """Raises UserError where stock models of the kind compute something else."""
        options = architecture.options
        stock_options: dict[str, Any] = {"embed_scale": self.embed_scale(architecture.d_model)}
        if not self.has_windows:
            stock_options["window"] = None
        if not self.has_query_scale:
            stock_options["query_scale"] = None
        for name, value in stock_options.items():
            option = options[name]
            is_alike = option == value
            if isinstance(option, float) and isinstance(value, float):
                is_alike = math.isclose(option, value, rel_tol=1e-6)
            if not is_alike:
                raise UserError(
                    f"format={self.form!r}: model.{name}={option} is not what stock {self.title} "
                    f"has at d_model={architecture.d_model}, {value}; use format=safetensors"
                )

    def embed_scale(self, d_model: int) -> float:
        """Factor of the embedding."""
        del d_model
        return 1.0

    def room(self, architecture: Architecture) -> dict[str, int]:
        room = super().room(architecture)
        groups, queries = room["kv_heads"], room["queries"]
        if self.heads_divide:
            # Groups of zeros fill up to heads that divide d_model, as transformers asks for.
            while architecture.d_model % (groups * queries):
                groups += 1
                if groups * queries > architecture.d_model:
                    raise UserError(
                        f"format={self.form!r}: {room['kv_heads'] * queries} heads do not divide "
                        f"d_model={architecture.d_model}, as stock {self.title} asks for; extract "
                        "other sizes, or use format=safetensors"
                    )
        return room | {"kv_heads": groups}

    def architecture(self, config: Mapping[str, Any]) -> Architecture:
        section, hidden = self._stock_section(config), self._hidden(config)
        family = family_of(self.family_name)
        layers = range(section.num_layers)
        sub_model = SubModel(
            tuple(layers),
            {"d_model": section.d_model},
            {"kv_heads": tuple(hidden["num_kv_heads"]), "d_ff": tuple(hidden["d_ff"])},
        )
        return Architecture(
            family_name=self.family_name,
            max_len=section.max_len,
            fixed=family.fixed_sizes(section),
            sub_model=sub_model,
            granules={
                "kv_heads": hidden["num_kv_heads_granule"],
                "d_ff": hidden["d_ff_granule"],
            },
            options=family.options(section, layers),
        )

    def section(self, config: Mapping[str, Any]) -> LlamaConfig:
        hidden = self._hidden(config)
        sizes = {"kv_heads": max(hidden["num_kv_heads"]), "d_ff": max(hidden["d_ff"])}
        section = self._stock_section(config).resized(sizes)
        assert isinstance(section, LlamaConfig)
        return section

    def _hidden(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What an import cannot see in padded tensors; raises ValueError where it is damaged."""
        section = self._stock_section(config)
        layers, groups, width = section.num_layers, section.kv_heads, section.d_ff
        stock: dict[str, Any] = {"num_kv_heads": [groups] * layers, "d_ff": [width] * layers}
        stock |= {"num_kv_heads_granule": groups, "d_ff_granule": width}
        hidden = stock | dict(config.get("matta_jax", {}))
        for name, room in {"num_kv_heads": groups, "d_ff": width}.items():
            sizes = [natural(name, size) for size in hidden[name]]
            granule = natural(f"{name}_granule", hidden[f"{name}_granule"])
            rules = {
                f"{name} has num_hidden_layers entries": len(sizes) == layers,
                f"{name} is at most {room}": max(sizes, default=0) <= room,
                f"{name}_granule divides {name}": all(size % granule == 0 for size in sizes),
            }
            for rule, holds in rules.items():
                if not holds:
                    raise ValueError(f"it must be that {rule}")
        return hidden

    def _stock_section(self, config: Mapping[str, Any]) -> LlamaConfig:
        """Our section for what the tensors' shapes are."""
        self._check_kind(config)
        values = {**self.defaults, **{k: v for k, v in config.items() if v is not None}}
        layers = natural("num_hidden_layers", values["num_hidden_layers"], is_depth=True)
        heads = natural("num_attention_heads", values["num_attention_heads"])
        max_len = natural("max_position_embeddings", values["max_position_embeddings"])
        activation = values[self.activation]
        if activation not in _GATES:
            raise UserError(
                f"{self.activation}={shorten(activation)} is not supported, only "
                f"{', '.join(_GATES)}; import a model that has one of these"
            )
        d_model = natural("hidden_size", values["hidden_size"])
        return LlamaConfig(
            vocab_size=natural("vocab_size", values["vocab_size"]),
            num_layers=layers,
            d_model=d_model,
            num_heads=heads,
            num_kv_heads=values.get("num_key_value_heads", heads),
            head_dim=values.get("head_dim"),
            d_ff=natural("intermediate_size", values["intermediate_size"]),
            max_len=max_len,
            gate=_GATES[activation],
            tie_embeddings=values["tie_word_embeddings"],
            norm_epsilon=values["rms_norm_eps"],
            embed_scale=self.embed_scale(d_model),
            **{name: value for name, value in self.facts.items() if name != "gate"},
            **self.positions(values, max_len, layers),
        )

    def _check_kind(self, config: Mapping[str, Any]) -> None:
        if config.get("quantization_config") is not None:
            raise UserError(
                "quantization_config: quantised weights are not supported; import the model that "
                "was quantised"
            )
        for name, value in self.refused.items():
            if config.get(name, value) != value:
                raise UserError(
                    f"{name}={shorten(config[name])} is not supported, only {value!r}; import a "
                    f"{self.title} model that has it"
                )

    def positions(self, values: Mapping[str, Any], max_len: int, layers: int) -> dict[str, Any]:
        """The fields of our section that say how positions turn, and how far they see."""
        theta, kind, scaling = read_rope(values, values.get("rope_parameters"), max_len)
        fields = {"rope_theta": theta, "rope_type": kind, "rope_scaling": scaling}
        types = self.layer_types(values, layers)
        if SLIDING not in types:
            return fields
        return fields | {
            "window": natural("sliding_window", values["sliding_window"]),
            "global_layers": tuple(i for i, name in enumerate(types) if name == FULL),
            "local_rope_theta": self.local_theta(values, theta, kind),
        }

    def layer_types(self, values: Mapping[str, Any], layers: int) -> Sequence[str]:
        """Which attention each layer has."""
        del values
        return [FULL] * layers

    def local_theta(self, values: Mapping[str, Any], theta: float, kind: str) -> float:
        """Base of the frequencies in local layers."""
        del values
        if kind != "default":
            raise UserError(
                f"rope_type={kind!r} beside a sliding window is not supported, only default; "
                "import another model"
            )
        return theta

    def outer(self, architecture: Architecture) -> dict[str, Place]:
        table: Dims = (("vocab",), ("d_model",))
        places = {
            "embed/tokens": Place(("model.embed_tokens.weight",), table),
            "norm/scale": Place(("model.norm.weight",), _NORM),
        }
        if not architecture.options["tie_embeddings"]:
            places["head/table"] = Place(("lm_head.weight",), table)
        return places

    def layer(self, architecture: Architecture) -> dict[str, Place]:
        stem, options = "model.layers.{}.", architecture.options
        attention = stem + "self_attn."
        places = {
            "attention/w_q": Place((attention + "q_proj.weight",), (_QUERIES, ("d_model",))),
            "attention/w_kv": Place(
                (attention + "k_proj.weight", attention + "v_proj.weight"),
                (_KEYS, ("d_model",)),
                "kv",
            ),
            "attention/w_out": Place((attention + "o_proj.weight",), (("d_model",), _QUERIES)),
            "mlp/w_in": Place(
                (stem + "mlp.gate_proj.weight", stem + "mlp.up_proj.weight"),
                (("d_ff",), ("d_model",)),
                "gate",
            ),
            "mlp/w_out": Place((stem + "mlp.down_proj.weight",), (("d_model",), ("d_ff",))),
        }
        if options["qkv_bias"]:
            places["attention/b_q"] = Place((attention + "q_proj.bias",), (_QUERIES,))
            keys = (attention + "k_proj.bias", attention + "v_proj.bias")
            places["attention/b_kv"] = Place(keys, (_KEYS,), "kv")
        if options["qk_norm"]:
            for name in ("q_norm", "k_norm"):
                tensor = f"{attention}{name}.weight"
                places[f"attention/{name}/scale"] = Place((tensor,), _HEAD_NORM)
        for name, tensor in self.norm_names(options).items():
            places[f"{name}/scale"] = Place((f"{stem}{tensor}.weight",), _NORM)
        return places

    def norm_names(self, options: Mapping[str, Any]) -> dict[str, str]:
        """Their name of each of our norms."""
        del options
        return {"norm_attention": "input_layernorm", "norm_mlp": "post_attention_layernorm"}

    def check_head(self, tensors: ForeignTensors, architecture: Architecture) -> None:
        """A head beside one that is said to be tied is another model."""
        if not architecture.options["tie_embeddings"] or "lm_head.weight" not in tensors.files:
            return
        if not np.array_equal(tensors["lm_head.weight"], tensors["embed_tokens.weight"]):
            raise UserError(
                f"{str(tensors.folder)!r}: lm_head.weight differs from embed_tokens.weight, and "
                "config.json says tie_word_embeddings; fetch the model again"
            )


def _hidden_by_padding(architecture: Architecture) -> dict[str, Any]:
    """What an import cannot see in padded tensors."""
    return {
        "num_kv_heads": list(architecture.along("kv_heads")),
        "d_ff": list(architecture.along("d_ff")),
        "num_kv_heads_granule": architecture.granules["kv_heads"],
        "d_ff_granule": architecture.granules["d_ff"],
    }


def types_of(local_layers: Sequence[bool]) -> list[str]:
    """`layer_types` of our flags."""
    return [SLIDING if is_local else FULL for is_local in local_layers]


def checked_types(types: Any, layers: int) -> Sequence[str]:
    """Raises ValueError unless these are `layer_types` of so many layers."""
    if len(types) != layers or not set(types) <= {FULL, SLIDING}:
        raise ValueError(f"layer_types must name {FULL} or {SLIDING} for each of {layers} layers")
    return types
