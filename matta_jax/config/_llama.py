"""The section of Llama-like decoders: what tells Llama 3, Qwen 2.5, Qwen 3 and Gemma 3 apart."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from matta_jax.config._fields import field, item_name
from matta_jax.config._model import ModelConfig, register_model
from matta_jax.errors import UserError, did_you_mean, listed, shorten

_LENGTH = "original_max_position_embeddings"
_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _LENGTH),
    "yarn": ("factor", _LENGTH),
}
_OPTIONAL = {
    "yarn": (
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    )
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """The Student, as a Llama-like decoder: the defaults are Llama 3's."""

    noun: ClassVar[str] = "llama"

    name: str = field("llama", "Family: llama, decoders of the kind of Llama, Qwen and Gemma.")
    num_kv_heads: int | None = field(
        None,
        "Heads of keys and values of the Student, each shared by num_heads / num_kv_heads queries: "
        "a group, which is what a nest slices. None: num_heads.",
        minimum=1,
        maximum=2**16,
    )
    qk_norm: bool = field(False, "Normalise each head's queries and keys (Qwen 3, Gemma 3).")
    qkv_bias: bool = field(False, "Biases of queries, keys and values (Qwen 2.5).")
    query_scale: float | None = field(
        None,
        "Factor of attention's scores; None: head_dim^-1/2.",
        above=0.0,
        maximum=1e6,
    )
    rope_theta: float = field(
        10_000.0, "Base of the rotary positions' frequencies.", above=1.0, maximum=1e12
    )
    rope_type: str = field(
        "default",
        "How these frequencies are scaled for longer texts.",
        choices=("default", "linear", "llama3", "yarn"),
    )
    rope_scaling: Mapping[str, float] = field(
        {},
        "The numbers of rope_type by their names in Hugging Face's configs, such as "
        "{'factor': 8.0}.",
        minimum=0.0,
        maximum=1e9,
    )
    gate: str = field(
        "silu", "What the gates of the feed-forward layers pass.", choices=("silu", "gelu_tanh")
    )
    tie_embeddings: bool = field(True, "Whether the head is the embedding's table.")
    norm_epsilon: float = field(
        1e-5, "Added to the mean square in norms.", above=0.0, smallest=1e-30, maximum=1.0
    )
    norm_offset: float = field(
        0.0, "Added to the norms' scales (1 in Gemma 3).", minimum=0.0, maximum=1.0
    )
    post_norms: bool = field(False, "A norm after each branch too (Gemma 3).")
    embed_scale: float = field(
        1.0, "Factor of the embedding (√d_model in Gemma 3).", above=0.0, maximum=1e6
    )
    window: int | None = field(
        None,
        "Positions, its own among them, to which each attends in local layers; None: no layer is "
        "local.",
        minimum=1,
        maximum=2**24,
    )
    window_pattern: int = field(
        0,
        "Where a window is set, every so many layers one is not local, the last of them; 0: all "
        "layers are, but for those of global_layers.",
        minimum=0,
        maximum=10_000,
    )
    global_layers: tuple[int, ...] = field(
        (),
        "Indices of the TA's layers that are not local, in place of window_pattern.",
        minimum=0,
        maximum=10_000,
    )
    local_rope_theta: float = field(
        10_000.0,
        "Base of the frequencies in local layers, which are not scaled (Gemma 3).",
        above=1.0,
        maximum=1e12,
    )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def queries(self) -> int:
        """Queries of a group."""
        return self.num_heads // self.kv_heads

    def check(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().check()
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"model.num_kv_heads={self.num_kv_heads} must divide model.num_heads="
                f"{self.num_heads}; give each group as many queries"
            )
        if self.head_width % 2:
            raise UserError(
                f"model.head_dim={self.head_width} must be even: rotary positions turn pairs; set "
                "model.head_dim, or another model.num_heads"
            )
        self._check_rope()
        self._check_window()

    def _check_rope(self) -> None:
        needed = _NEEDED[self.rope_type]
        names = (*needed, *_OPTIONAL.get(self.rope_type, ()))
        for name in needed:
            if name not in self.rope_scaling:
                raise UserError(
                    f"model.rope_scaling={shorten(dict(self.rope_scaling))} has no {name}, which "
                    f"model.rope_type={self.rope_type!r} needs; give it"
                )
        for name, value in self.rope_scaling.items():
            if name not in names:
                raise UserError(
                    f"{item_name('model.rope_scaling', name)} is not a number of model.rope_type="
                    f"{self.rope_type!r} (there: {listed(names) or 'none'}); leave it out"
                    f"{did_you_mean(name, names)}"
                )
            if not value and name != "truncate":
                raise UserError(
                    f"{item_name('model.rope_scaling', name)}={value} must be greater than 0"
                )

    def _check_window(self) -> None:
        fields = {"window_pattern": self.window_pattern, "global_layers": self.global_layers}
        for name, value in fields.items():
            if value and self.window is None:
                raise UserError(
                    f"model.{name}={shorten(value)} is without effect: no layer is local; set "
                    "model.window, or leave it out"
                )
        if self.window_pattern and self.global_layers:
            raise UserError(
                f"model.window_pattern={self.window_pattern} and model.global_layers="
                f"{shorten(self.global_layers)} say the same; give one of them"
            )

    def local_layers(self, layers: Sequence[int]) -> tuple[bool, ...]:
        """Whether each of these layers of the TA is bound by the window; empty where none is."""
        if self.window is None:
            return ()
        if self.window_pattern:
            return tuple(bool((layer + 1) % self.window_pattern) for layer in layers)
        return tuple(layer not in self.global_layers for layer in layers)

    def nested_sizes(self) -> dict[str, int]:
        """The Student's size along each axis that a nest may slice."""
        return {"d_model": self.d_model, "kv_heads": self.kv_heads, "d_ff": self.d_ff}

    def resized(self, sizes: Mapping[str, int], **fields: Any) -> "ModelConfig":
        """As `ModelConfig.resized`: a group takes its queries along."""
        if "kv_heads" in sizes:
            fields["num_heads"] = sizes["kv_heads"] * self.queries
        return super().resized(sizes, **fields)


register_model("llama", LlamaConfig)
