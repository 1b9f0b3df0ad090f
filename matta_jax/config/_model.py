"""Sections of what is trained: the Student of a family, and its nest.

Each family of models has its own section: `model.name` says which.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from matta_jax.config._fields import FLOAT_TYPES, Section, field, item_name
from matta_jax.errors import UserError, check_choice, did_you_mean, shorten

# Where a field is not called as its axis.
_SIZE_FIELDS = {"heads": "num_heads", "kv_heads": "num_kv_heads"}

_REMAT_POLICIES = ("dots", "ta", "offload", "full", "none")
_REMAT_NAMES = ("qkv", "attention", "hidden")

# Of a member, in characters.
_LONGEST_NAME = 60


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The Student: the model that one wants to serve. By itself a GPT-2."""

    section = "model"

    reads_examples: ClassVar[bool] = False
    """Whether it reads labelled examples; otherwise it is a language model, and reads text."""

    reads_pairs: ClassVar[bool] = False
    """Whether an example is two texts, each read by itself, without a label."""

    reads_images: ClassVar[bool] = False
    """Whether an example is an image."""

    noun: ClassVar[str] = "language model"
    task: ClassVar[str] = "bits_per_byte:GLOB"
    """What its models are scored by, as `matta-evaluate --tasks` names it."""

    fixed_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of sizes that all models of a nest have alike."""

    name: str = field(
        "gpt",
        "Family: gpt or llama, language models; scorer or embedder, encoders of text; vit, of "
        "images.",
    )
    vocab_size: int = field(
        256, "Rows of the embedding; at least the tokenizer's size.", minimum=2, maximum=2**24
    )
    num_layers: int = field(4, "Transformer blocks of the Student.", minimum=1, maximum=10_000)
    d_model: int = field(128, "Width of the Student's residual stream.", minimum=1, maximum=2**20)
    num_heads: int = field(4, "Attention heads of the Student.", minimum=1, maximum=2**16)
    head_dim: int | None = field(
        None,
        "Width of a head, of all sizes alike. None: d_model / num_heads.",
        minimum=1,
        maximum=2**16,
    )
    d_ff: int = field(
        512, "Hidden width of the Student's feed-forward layers.", minimum=1, maximum=2**22
    )
    max_len: int = field(
        256, "Learned positions; the longest sequence, in tokens.", minimum=1, maximum=2**24
    )
    dropout: float = field(
        0.0,
        "Dropout rate on the embeddings and each residual branch while training.",
        minimum=0.0,
        # Of 1 - rate float32 has steps of 1e-7, and what stays is divided by it.
        smallest=1e-6,
        maximum=0.999,
    )
    compute_dtype: str = field(
        "float32",
        "Type of activations and matmuls; parameters stay float32.",
        choices=FLOAT_TYPES,
    )
    reduce_dtype: str = field(
        "compute",
        "Type in which weight gradients are summed over tokens and devices: that of compute_dtype, "
        "or float32.",
        choices=("compute", "float32"),
    )
    attention: str = field(
        "auto",
        "What attends: auto (a fused kernel where the devices have one), splash (TPUs; lengths "
        "that are multiples of 128), cudnn (GPUs, bfloat16), or blocks, of queries, on any device.",
        choices=("auto", "blocks", "splash", "cudnn"),
        is_free=True,
    )
    remat: str = field(
        "dots",
        "What a layer keeps for its backward pass: dots (matmul outputs), ta (those of the TA; "
        "other models are computed again, one after another), offload (dots, in the host's "
        "memory), full (nothing), none (nothing is computed again). After a +, what is kept beside "
        "it: qkv (queries, keys and values), attention (what heads have gathered, so that a fused "
        "kernel runs once), hidden (what neurons are made of); as in full+qkv+attention.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self) is not section_of(self.name):
            raise UserError(
                f"model.name={self.name!r} is described by {section_of(self.name).__name__}, not "
                f"{type(self).__name__}; use that"
            )
        self._check_remat()
        self.check()

    def check(self) -> None:
        """Raises UserError where fields do not fit each other."""
        if self.head_dim is None and self.d_model % self.num_heads:
            raise UserError(
                f"model.num_heads={self.num_heads} must divide model.d_model={self.d_model}; "
                f"nearest that does: {_nearest_divisor(self.d_model, self.num_heads)}"
            )

    def _check_remat(self) -> None:
        policy, names = self.remat_policy, self.remat_names
        for item, choices in ((policy, _REMAT_POLICIES), *((name, _REMAT_NAMES) for name in names)):
            if item not in choices:
                raise UserError(
                    f"model.remat={shorten(self.remat)}: {shorten(item)} must be one of "
                    f"{', '.join(choices)}{did_you_mean(item, choices)}"
                )
        if policy == "none" and names:
            raise UserError(
                f"model.remat={self.remat!r} keeps everything by itself; use none, or full+"
                f"{'+'.join(names)}"
            )

    @property
    def remat_policy(self) -> str:
        """What `remat` says, without names."""
        return self.remat.split("+")[0]

    @property
    def remat_names(self) -> tuple[str, ...]:
        """What `remat` keeps by name."""
        return tuple(self.remat.split("+")[1:])

    @property
    def a_noun(self) -> str:
        """`noun` with its article, for errors."""
        return f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def num_positions(self) -> int | None:
        """Positions of an example, where its model says how many; None: as many as a text has."""
        return None

    def nested_sizes(self) -> dict[str, int]:
        """The Student's size along each axis that a nest may slice."""
        return {"d_model": self.d_model, "heads": self.num_heads, "d_ff": self.d_ff}

    def earlier_sizes(self) -> Sequence[Mapping[str, int]]:
        """The nested sizes of each pass that a model runs before its own, where it has such."""
        return ()

    def size_fields(self) -> dict[str, int]:
        """The sizes that a nest may widen, by field: depth, and those of `nested_sizes`."""
        sizes = {_SIZE_FIELDS.get(axis, axis): size for axis, size in self.nested_sizes().items()}
        return {"num_layers": self.num_layers} | sizes

    def resized(self, sizes: Mapping[str, int], **fields: Any) -> "ModelConfig":
        """The section of a Student of other sizes, as `nested_sizes` names them, and with other
        values of these fields.
        """
        for axis, size in sizes.items():
            fields[_SIZE_FIELDS.get(axis, axis)] = size
        return dataclasses.replace(self, **fields)


@dataclasses.dataclass(frozen=True)
class ScorerConfig(ModelConfig):
    """The Student, as an encoder of examples with a sigmoid or softmax head."""

    reads_examples: ClassVar[bool] = True
    noun: ClassVar[str] = "scorer"
    task: ClassVar[str] = "auc:GLOB"

    name: str = field("scorer", "Family: scorer, an encoder of examples with a head.")
    num_classes: int = field(
        1,
        "Outputs of a scorer: 1 for a sigmoid, more for a softmax.",
        minimum=1,
        maximum=2**20,
    )
    num_dense: int = field(
        0, "Numbers in the field dense of a scorer's examples.", minimum=0, maximum=2**20
    )
    categories: tuple[int, ...] = field(
        (),
        "Values of each number in their field categorical.",
        minimum=1,
        maximum=2**24,
    )


_SECTIONS: dict[str, type[ModelConfig]] = {"gpt": ModelConfig, "scorer": ScorerConfig}


def register_model(name: str, section: type[ModelConfig]) -> None:
    """Adds the config section of a family. Raises ValueError when the name has another one."""
    if _SECTIONS.setdefault(name, section) is not section:
        raise ValueError(f"model.name={name!r} is described by {_SECTIONS[name].__name__}")


def model_sections() -> Mapping[str, type[ModelConfig]]:
    """The section of each family, by `model.name`."""
    return _SECTIONS


def section_of(name: str) -> type[ModelConfig]:
    """The section of a family. Raises UserError for an unknown one."""
    check_choice("model.name", name, _SECTIONS)
    return _SECTIONS[name]


@dataclasses.dataclass(frozen=True)
class NestConfig(Section):
    """The TA's sizes and the granularities between Student and TA. None: as the Student."""

    section = "nest"
    num_layers: int | None = field(
        None, "Blocks of the TA (Depth M-nesting).", minimum=1, maximum=10_000
    )
    d_model: int | None = field(
        None, "Residual width of the TA (d_model M-nesting).", minimum=1, maximum=2**20
    )
    num_heads: int | None = field(
        None,
        "Heads of the TA, of the Student's head_dim (Layer M-nesting).",
        minimum=1,
        maximum=2**16,
    )
    num_kv_heads: int | None = field(
        None,
        "Heads of keys and values of the TA of a llama, each with as many queries as the Student's "
        "(Layer M-nesting).",
        minimum=1,
        maximum=2**16,
    )
    d_ff: int | None = field(
        None, "Hidden width of the TA (Layer M-nesting).", minimum=1, maximum=2**22
    )
    embed: int | None = field(
        None,
        "Numbers of the TA's vectors, of an embedder: at most model.d_model.",
        minimum=1,
        maximum=2**20,
    )
    thoughts: int | None = field(
        None,
        "Earlier passes of the TA, of a vit: each of the sizes that model.thinking_heads says.",
        minimum=0,
        maximum=64,
    )
    widths: tuple[int, ...] = field(
        (),
        "d_ff granularities, from the Student's to the TA's. Empty: these two alone.",
        minimum=1,
        maximum=2**22,
    )
    members: Mapping[str, str] = field(
        {},
        "Sub-models that every step trains beside Student and TA, name to spec: "
        "{'middle': 'layers=3;d_ff=256'}. Their sizes are granularities too.",
    )
    mix_per_step: int = field(
        1,
        "Random per-layer mixes of the widths trained in each step; 0 is the paper's two-point "
        "recipe. Without effect on a nest of one width.",
        minimum=0,
        maximum=8,
    )
    mix_by: str = field(
        "layer",
        "What draws its sizes by itself: each `layer` of a random mix, or the whole `model`, which "
        "has one size throughout.",
        choices=("layer", "model"),
    )
    mix_every: int = field(
        1,
        "Steps from one that trains random mixes to the next: with 4, mixes see a quarter of the "
        "tokens.",
        minimum=1,
        maximum=10**6,
    )
    student_layers: str = field(
        "prefix", "Which of the TA's blocks the Student runs.", choices=("prefix", "spread")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.members:
            is_reserved = name in ("student", "ta") or name.startswith("mix_")
            # It names metrics, columns and folders too.
            is_long = len(name) > _LONGEST_NAME
            if is_reserved or is_long or not name.isidentifier():
                raise UserError(
                    f"{item_name('nest.members', name)}: a member's name must be a word of "
                    f"at most {_LONGEST_NAME} letters, digits and _, and not student, ta or mix_…; "
                    "rename it"
                )

    def ta_size(self, axis: str) -> int | None:
        """The TA's size along an axis; None: the Student's."""
        return getattr(self, _SIZE_FIELDS.get(axis, axis), None)


def _nearest_divisor(number: int, goal: int) -> int:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda divisor: abs(divisor - goal))
