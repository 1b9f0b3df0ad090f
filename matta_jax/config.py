"""The one truth about every field of a run: its type, default, range and meaning.

A run is a frozen `Config` of frozen sections. Files in `configs/` build one and hand it to absl's
`config_flags` as an `ml_collections.ConfigDict` (`to_config_dict`); `from_config_dict` checks the
overridden result back into a `Config`. A `Config` that exists is valid: each section checks its own
fields, `Config` the rules between them.
"""

import dataclasses
import itertools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import ml_collections
from ml_collections import config_dict

from matta_jax.errors import UserError, did_you_mean


def _field(
    default: Any,
    meaning: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    rule = {
        "minimum": minimum,
        "above": above,
        "below": below,
        "maximum": maximum,
        "choices": choices,
    }
    return dataclasses.field(default=default, metadata={"meaning": meaning, **rule})


def _check_type(name: str, value: Any, hint: Any) -> Any:
    """Returns `value` as the type `hint`, or raises UserError."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list | tuple) and all(type(item) is int for item in value):
            return tuple(value)
        raise UserError(f"{name}={value!r} must be a tuple of whole numbers such as (256,512)")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        words = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}
        raise UserError(f"{name}={value!r} must be {words[hint]}, not {type(value).__name__}")
    return value


def _check_range(name: str, value: Any, rule: Mapping[str, Any]) -> None:
    if value is None:
        return
    for item in value if isinstance(value, tuple) else (value,):
        if rule["choices"] is not None and item not in rule["choices"]:
            hint = did_you_mean(str(item), rule["choices"])
            raise UserError(f"{name}={item!r} must be one of {', '.join(rule['choices'])}{hint}")
        if rule["minimum"] is not None and not item >= rule["minimum"]:
            raise UserError(f"{name}={item!r} must be at least {rule['minimum']}")
        if rule["above"] is not None and not item > rule["above"]:
            raise UserError(f"{name}={item!r} must be greater than {rule['above']}")
        if rule["below"] is not None and not item < rule["below"]:
            raise UserError(f"{name}={item!r} must be less than {rule['below']}")
        if rule["maximum"] is not None and not item <= rule["maximum"]:
            raise UserError(f"{name}={item!r} must be at most {rule['maximum']}")
        if isinstance(item, float) and item != item:
            raise UserError(f"{name}={item!r} must be a number")


@dataclasses.dataclass(frozen=True)
class _Section:
    """Checks the type and the range of its own fields."""

    section: ClassVar[str]

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            name = f"{self.section}.{field.name}"
            value = _check_type(name, getattr(self, field.name), hints[field.name])
            _check_range(name, value, field.metadata)
            object.__setattr__(self, field.name, value)


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Section):
    """The Student: the model that one wants to serve."""

    section = "model"
    name: str = _field(
        "gpt",
        "gpt, a language model; or scorer, an encoder of examples with a head.",
        choices=("gpt", "scorer"),
    )
    vocab_size: int = _field(
        256, "Rows of the embedding; at least the tokenizer's size.", minimum=2
    )
    num_layers: int = _field(4, "Transformer blocks of the Student.", minimum=1)
    d_model: int = _field(128, "Width of the Student's residual stream.", minimum=1)
    num_heads: int = _field(
        4, "Attention heads of the Student; d_model / num_heads is the head_dim.", minimum=1
    )
    d_ff: int = _field(512, "Hidden width of the Student's feed-forward layers.", minimum=1)
    max_len: int = _field(256, "Learned positions; the longest sequence, in tokens.", minimum=1)
    num_classes: int = _field(
        1, "Outputs of a scorer: 1 for a sigmoid, more for a softmax.", minimum=1
    )
    num_dense: int = _field(0, "Numbers in the field dense of a scorer's examples.", minimum=0)
    categories: tuple[int, ...] = _field(
        (), "Values of each number in their field categorical.", minimum=1
    )
    dropout: float = _field(
        0.0,
        "Dropout rate on the embeddings and each residual branch while training.",
        minimum=0.0,
        below=1.0,
    )
    compute_dtype: str = _field(
        "float32",
        "Type of activations and matmuls; parameters stay float32.",
        choices=("float32", "bfloat16"),
    )
    reduce_dtype: str = _field(
        "compute",
        "Type in which weight gradients are summed over tokens and devices: that of compute_dtype, "
        "or float32.",
        choices=("compute", "float32"),
    )
    remat: str = _field(
        "dots",
        "What a layer keeps for its backward pass: dots (matmul outputs), none (everything kept), "
        "full (nothing).",
        choices=("dots", "none", "full"),
    )


@dataclasses.dataclass(frozen=True)
class NestConfig(_Section):
    """The TA's sizes and the granularities between Student and TA. None: as the Student."""

    section = "nest"
    num_layers: int | None = _field(None, "Blocks of the TA (Depth M-nesting).", minimum=1)
    d_model: int | None = _field(None, "Residual width of the TA (d_model M-nesting).", minimum=1)
    num_heads: int | None = _field(
        None, "Heads of the TA, of the Student's head_dim (Layer M-nesting).", minimum=1
    )
    d_ff: int | None = _field(None, "Hidden width of the TA (Layer M-nesting).", minimum=1)
    widths: tuple[int, ...] = _field(
        (), "d_ff granularities, from the Student's to the TA's. Empty: these two alone.", minimum=1
    )
    mix_per_step: int = _field(
        1,
        "Random per-layer mixes of the widths trained in each step; 0 is the paper's two-point "
        "recipe. Without effect "
        "on a nest of one width.",
        minimum=0,
        maximum=8,
    )
    student_layers: str = _field(
        "prefix", "Which of the TA's blocks the Student runs.", choices=("prefix", "spread")
    )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(_Section):
    """Weights of the named terms of the loss."""

    section = "objective"
    student_weight: float = _field(1.0, "a_S: the Student's cross-entropy.", minimum=0.0)
    ta_weight: float = _field(1.0, "a_TA: the TA's cross-entropy.", minimum=0.0)
    distill_weight: float = _field(
        0.5, "w_max: TA-to-Student distillation after the ramp.", minimum=0.0
    )
    distill_ramp: float = _field(
        0.1,
        "Fraction of num_steps over which w(t) rises from 0 to distill_weight.",
        minimum=0.0,
        maximum=1.0,
    )
    ramp_shape: str = _field(
        "linear", "Shape of the ramp.", choices=("linear", "cosine", "constant")
    )
    temperature: float = _field(
        1.0, "T of the distillation term; the term is scaled by T squared.", above=0.0
    )
    divergence: str = _field(
        "forward_kl",
        "Distance from the TA's distribution to the Student's.",
        choices=("forward_kl", "reverse_kl", "jensen_shannon"),
    )
    jensen_shannon_beta: float = _field(
        0.5,
        "Weight of the TA in the mixture of the Jensen-Shannon divergence.",
        above=0.0,
        below=1.0,
    )
    mix_weight: float = _field(0.5, "Cross-entropy of each random mix.", minimum=0.0)
    mix_distill_weight: float = _field(
        0.5, "Distillation of each random mix, on the same ramp.", minimum=0.0
    )
    chunk_size: int = _field(
        256,
        "Most tokens on a device whose logits exist at once; 256 to 512 pays, less saves memory.",
        minimum=1,
    )


@dataclasses.dataclass(frozen=True)
class TeacherConfig(_Section):
    """A frozen Teacher, online or by its labels, and what learns from it."""

    section = "teacher"
    model: str | None = _field(
        None,
        "Folder of an extracted or imported model, or the workdir of a run, D[@STEP], for its TA. "
        "Runs along.",
    )
    labels: str | None = _field(
        None, "Or folder of labels that matta-label wrote of the training windows."
    )
    student_weight: float = _field(
        0.0, "u_S: forward KL from the Teacher to the Student.", minimum=0.0
    )
    ta_weight: float = _field(0.0, "u_TA: forward KL from the Teacher to the TA.", minimum=0.0)
    temperature: float = _field(
        1.0,
        "T of both, which are scaled by T squared; that of the labels, where there are some.",
        above=0.0,
    )
    task_labels: str = _field(
        "ground_truth",
        "What the cross-entropies learn: ground_truth, or the class or token that the teacher "
        "finds most likely.",
        choices=("ground_truth", "teacher"),
    )

    @property
    def is_used(self) -> bool:
        """Whether anything learns from a Teacher."""
        return bool(self.student_weight or self.ta_weight or self.task_labels == "teacher")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(_Section):
    """The Optax chain: clip, rule, decoupled weight decay, schedule."""

    section = "optimizer"
    name: str = _field(
        "adamw", "Update rule.", choices=("adamw", "adafactor", "lion", "muon", "shampoo")
    )
    learning_rate: float = _field(1e-3, "Peak learning rate.", above=0.0)
    warmup_steps: int = _field(100, "Steps of linear warm-up from 0.", minimum=0)
    schedule: str = _field("cosine", "After the warm-up.", choices=("cosine", "constant"))
    final_fraction: float = _field(
        0.1, "Where the cosine ends, of the peak.", minimum=0.0, maximum=1.0
    )
    weight_decay: float = _field(
        0.1, "Decoupled decay of matrices; norms and biases have none.", minimum=0.0
    )
    clip_norm: float | None = _field(
        1.0, "Global gradient norm to clip at; None: no clipping.", above=0.0
    )
    b1: float = _field(
        0.9,
        "Decay of the first moment (adamw, lion) or momentum (muon, shampoo).",
        minimum=0.0,
        below=1.0,
    )
    b2: float = _field(0.95, "Decay of the second moment (adamw, lion).", minimum=0.0, below=1.0)
    eps: float = _field(1e-8, "Added to the root of the second moment (adamw).", above=0.0)


@dataclasses.dataclass(frozen=True)
class ShampooConfig(_Section):
    """Preconditioning, where optimizer.name is shampoo; `matta_jax/optim/_shampoo.py` has the
    equations.
    """

    section = "shampoo"
    block_size: int = _field(128, "Largest side of a block; 256 suits a TPU.", minimum=1)
    beta2: float = _field(
        0.99, "Decay of statistics and grafting moment; 1 sums them up.", above=0.0, maximum=1.0
    )
    epsilon: float = _field(
        1e-6, "Ridge of the statistics, relative to their largest eigenvalue.", above=0.0
    )
    precondition_every: int = _field(
        10, "Steps between two computations of a block's roots.", minimum=1
    )
    start_step: int = _field(10, "Steps that take the grafting update alone.", minimum=0)
    staggered: bool = _field(
        False, "Compute every k-th block's roots in each step, not all in every k-th step."
    )
    root: str = _field(
        "newton", "How roots are computed; eigh suits CPUs and GPUs.", choices=("newton", "eigh")
    )
    root_dtype: str = _field(
        "float32", "Type that roots are kept in.", choices=("float32", "bfloat16")
    )
    grafting: str = _field(
        "rmsprop", "Whose norm the update takes.", choices=("rmsprop", "adam", "sgd")
    )
    graft_scope: str = _field(
        "block",
        "Norms of each block, as nesting needs it, or of each whole matrix.",
        choices=("block", "parameter"),
    )
    max_dim: int = _field(
        8192, "Longest side of a matrix that is preconditioned on that side.", minimum=1
    )
    beyond_max_dim: str = _field(
        "graft",
        "A matrix with a longer side: the grafting update alone, or its other side to the power "
        "-1/2.",
        choices=("graft", "one_sided"),
    )
    block_multiple: int = _field(
        8,
        "Blocks of one shape are padded to a multiple of this, so that as many devices can share "
        "them.",
        minimum=1,
    )


@dataclasses.dataclass(frozen=True)
class DataConfig(_Section):
    """What is read, and how it becomes batches."""

    section = "data"
    source: str = _field(
        "stdlib", "stdlib, text:GLOB (.txt .jsonl .jsonl.gz), or tfds:NAME[:SPLIT]."
    )
    tokenizer: str = _field("byte", "byte, gpt2:FOLDER (vocab.bpe, encoder.json), or hf:FILE.json.")
    seq_len: int = _field(256, "Tokens of a training window.", minimum=1)
    batch_size: int = _field(16, "Windows of a step, over all devices.", minimum=1)
    eval_source: str | None = _field(
        None, "Held-out documents; None: eval_fraction of the source is held out."
    )
    eval_fraction: float = _field(
        0.05, "Share of the documents held out by a hash.", above=0.0, below=1.0
    )
    text_field: str = _field("text", "Field of a JSON line or TFDS example that holds the text.")
    pair_field: str | None = _field(
        None, "Field with a second text, of a scorer's examples: read after the first."
    )
    stream: bool = _field(
        False,
        "Feed the source once, in its order; each evaluation is on the batches up to the next one, "
        "before training on "
        "them. What the run leaves over is held out.",
    )
    tfds_dir: str | None = _field(None, "Where prepared TFDS sets lie; None: TFDS's own default.")
    cache_dir: str | None = _field(None, "Folder of tokenised windows; None: ~/.cache/matta_jax.")
    prefetch_batches: int = _field(
        16, "Batches read ahead, which hide a slow reader for as long.", minimum=1
    )
    read_threads: int = _field(2, "Threads that read windows.", minimum=1)


@dataclasses.dataclass(frozen=True)
class TrainConfig(_Section):
    """The length of the run and what it leaves behind."""

    section = "train"
    num_steps: int = _field(1000, "Optimiser steps.", minimum=1)
    microbatches: int = _field(1, "Parts that a batch is accumulated in.", minimum=1)
    log_every: int = _field(10, "Steps between two lines of metrics.", minimum=1)
    eval_every: int = _field(200, "Steps between two evaluations on held-out windows.", minimum=1)
    eval_batches: int = _field(8, "Batches of an evaluation.", minimum=1)
    checkpoint_every: int = _field(
        200, "Steps between two checkpoints; the last step is always saved.", minimum=1
    )
    keep_checkpoints: int = _field(2, "Newest checkpoints to keep, beside the best.", minimum=1)
    max_skipped_steps: int = _field(
        10,
        "A step of a non-finite loss or gradient is skipped; more than this many in a row stop the "
        "run.",
        minimum=0,
    )
    seed: int = _field(0, "Seed of initialisation, data order, mixes and dropout.", minimum=0)
    peak_tflops: float | None = _field(
        None, "Peak of one device, for MFU. None: measured by a matmul at the start.", above=0.0
    )
    tensorboard: bool = _field(False, "Write TensorBoard events too (extra: tensorboard).")
    wandb_project: str | None = _field(
        None, "Log to this Weights & Biases project too (extra: wandb)."
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig(_Section):
    """Devices along each mesh axis; -1, on one of them: whatever the other axes leave."""

    section = "mesh"
    data: int = _field(-1, "Data parallel.", minimum=-1)
    fsdp: int = _field(1, "Data parallel with sharded parameters.", minimum=-1)
    tensor: int = _field(1, "Tensor parallel: heads, d_ff and vocabulary are sharded.", minimum=-1)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size == 0:
                raise UserError(
                    f"mesh.{name}=0 must be a number of devices, or -1 for all that the other axes "
                    "leave"
                )
        free = [f"mesh.{name}=-1" for name, size in sizes.items() if size == -1]
        if len(free) > 1:
            raise UserError(
                f"{' and '.join(free)}: one axis alone can take what the others leave; give numbers"
            )


@dataclasses.dataclass(frozen=True)
class InitConfig(_Section):
    """What a run starts from."""

    section = "init"
    model: str | None = _field(
        None,
        "Folder of an extracted or imported model. Of the Student's sizes: the TA is grown around "
        "it; of the TA's: it "
        "becomes the TA; of both, a plain run: training goes on, from its step where its optimiser "
        "state is there.",
    )
    growth: str = _field(
        "zero",
        "What the new parts of a grown TA add at first: nothing (zero output projections), or a "
        "little noise.",
        choices=("zero", "noisy"),
    )
    growth_noise: float = _field(
        0.1, "Scale of noisy output projections, of that of a fresh model.", above=0.0
    )
    sort: bool = _field(
        False,
        "Sort the neurons and heads of a model of the TA's sizes by importance on training text, "
        "so that its prefixes "
        "are good sub-models from the start.",
    )
    optimizer: bool = _field(
        True, "Whether a plain run takes up the model's optimiser state, where it is there."
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. Valid by construction; raises UserError otherwise."""

    init: InitConfig = InitConfig()
    model: ModelConfig = ModelConfig()
    nest: NestConfig = NestConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    teacher: TeacherConfig = TeacherConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    shampoo: ShampooConfig = ShampooConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        model, nest = self.model, self.nest
        if model.d_model % model.num_heads:
            raise UserError(
                f"model.num_heads={model.num_heads} must divide model.d_model={model.d_model}; "
                f"nearest that does: {_nearest_divisor(model.d_model, model.num_heads)}"
            )
        for axis in ("num_layers", "d_model", "num_heads", "d_ff"):
            student, ta = getattr(model, axis), getattr(nest, axis)
            if ta is not None and ta < student:
                raise UserError(
                    f"nest.{axis}={ta} must be at least the Student's model.{axis}={student}; "
                    f"raise it, or lower model.{axis}"
                )
        ends = (model.d_ff, nest.d_ff or model.d_ff)
        widths = nest.widths
        if widths and (widths[0], widths[-1]) != ends:
            raise UserError(
                f"nest.widths={widths} must run from the Student's model.d_ff={ends[0]} to the "
                f"TA's nest.d_ff={ends[1]}"
            )
        if any(a >= b for a, b in itertools.pairwise(widths)):
            raise UserError(
                f"nest.widths={widths} must rise from each width to the next; sort and deduplicate "
                "them"
            )
        self._check_teacher()
        if model.name == "gpt":
            for name, default in {"num_classes": 1, "num_dense": 0, "categories": ()}.items():
                if getattr(model, name) != default:
                    raise UserError(
                        f"model.{name}={getattr(model, name)} is of scorers; set "
                        "model.name=scorer, or leave it out"
                    )
        if self.data.seq_len > model.max_len:
            raise UserError(
                f"data.seq_len={self.data.seq_len} must be at most model.max_len={model.max_len}; "
                "shorten it, or raise model.max_len"
            )
        if self.data.batch_size % self.train.microbatches:
            raise UserError(
                f"train.microbatches={self.train.microbatches} must divide "
                f"data.batch_size={self.data.batch_size}"
            )
        if self.optimizer.warmup_steps >= self.train.num_steps:
            raise UserError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} must be less than "
                f"train.num_steps={self.train.num_steps}"
            )

    def _check_teacher(self) -> None:
        teacher = self.teacher
        if teacher.labels is not None and (self.model.name == "scorer" or self.data.stream):
            raise UserError(
                f"teacher.labels={teacher.labels!r} are of a language model's shuffled windows; "
                "for a scorer or a "
                "stream name teacher.model"
            )
        named = {
            name: value
            for name in ("model", "labels")
            if (value := getattr(teacher, name)) is not None
        }
        if len(named) > 1:
            raise UserError(
                f"teacher.model={teacher.model!r} and teacher.labels={teacher.labels!r}: one alone "
                "teaches; name one"
            )
        if teacher.is_used and not named:
            field = next(
                f"teacher.{name}={value!r}"
                for name, value in dataclasses.asdict(teacher).items()
                if value != getattr(TeacherConfig(), name) and name != "temperature"
            )
            raise UserError(f"{field} needs a Teacher; name teacher.model or teacher.labels")
        for name, value in named.items():
            if not teacher.is_used:
                raise UserError(
                    f"teacher.{name}={value!r} would teach nothing; give teacher.student_weight or "
                    "teacher.ta_weight, or set teacher.task_labels=teacher"
                )


def _nearest_divisor(whole: int, wanted: int) -> int:
    return min((n for n in range(1, whole + 1) if whole % n == 0), key=lambda n: abs(n - wanted))


SECTIONS: dict[str, type[_Section]] = {
    field.name: field.type  # type: ignore[misc]
    for field in dataclasses.fields(Config)
}


def field_names() -> Iterator[str]:
    """Yields every field as `section.field`."""
    for section, cls in SECTIONS.items():
        for field in dataclasses.fields(cls):
            yield f"{section}.{field.name}"


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Returns plain nested dicts, fit for JSON (tuples become lists)."""
    plain = dataclasses.asdict(config)
    return {
        section: {
            key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()
        }
        for section, fields in plain.items()
    }


def from_dict(values: Mapping[str, Any]) -> Config:
    """Builds a `Config` from nested mappings; fields left out take their defaults.

    Raises:
      UserError: an unknown section or field, a wrong type, a bad range, or fields that do not fit
        each other.
    """
    sections = {}
    for section, fields in values.items():
        if section not in SECTIONS:
            hint = did_you_mean(section, [*SECTIONS, *field_names()])
            raise UserError(
                f"unknown config section {section!r}{hint}; sections: {', '.join(SECTIONS)}"
            )
        if not isinstance(fields, Mapping | ml_collections.ConfigDict):
            raise UserError(
                f"config section {section}={fields!r} must hold fields, not a single value"
            )
        cls = SECTIONS[section]
        known = {field.name for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise UserError(unknown_field(f"{section}.{name}"))
        sections[section] = cls(**dict(fields.items()))
    return Config(**sections)  # type: ignore[arg-type]


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns `config` with other values of some fields, `section.field` -> value.

    Raises:
      UserError: as `from_dict` does.
    """
    nested = to_dict(config)
    for name, value in values.items():
        section, _, field = str(name).partition(".")
        if field not in nested.get(section, {}):
            raise UserError(unknown_field(str(name)))
        nested[section][field] = value
    return from_dict(nested)


def unknown_field(name: str) -> str:
    """Returns the line about a field that does not exist."""
    section = name.split(".", 1)[0]
    listing = [known for known in field_names() if known.startswith(section + ".")]
    fields = f"; fields: {', '.join(listing)}" if listing else f"; sections: {', '.join(SECTIONS)}"
    return f"unknown config field {name!r}{did_you_mean(name, field_names()) or fields}"


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """Returns a ConfigDict for absl's `config_flags`: None fields become typed placeholders, so
    flags can set them.
    """
    result = ml_collections.ConfigDict()
    for section, cls in SECTIONS.items():
        hints = typing.get_type_hints(cls)
        fields = ml_collections.ConfigDict()
        for field in dataclasses.fields(cls):
            value = getattr(getattr(config, section), field.name)
            if value is None:
                kind = next(
                    arg for arg in typing.get_args(hints[field.name]) if arg is not type(None)
                )
                value = config_dict.placeholder(kind)
            fields[field.name] = value
        result[section] = fields
    return result


def from_config_dict(values: ml_collections.ConfigDict) -> Config:
    """Checks an overridden ConfigDict into a `Config`. Raises UserError as `from_dict` does."""
    return from_dict(values.to_dict())


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Returns `section.field: x -> y` for every field in which two `to_dict` results differ.

    A field that one side lacks, being from an older version, has its default there.
    """
    lines, defaults = [], to_dict(Config())
    for section in sorted({*a, *b}):
        left, right = (defaults.get(section, {}) | dict(side.get(section, {})) for side in (a, b))
        for name in sorted({*left, *right}):
            if left.get(name) != right.get(name):
                lines.append(f"{section}.{name}: {left.get(name)!r} -> {right.get(name)!r}")
    return lines


def choose_variant(variants: Mapping[str, Any], name: str) -> Any:
    """Returns `variants[name]`: what follows the colon in
    `--config=configs/quickstart.py:two_point`.
    """
    if name not in variants:
        raise UserError(
            f"config variant {name!r} must be one of "
            f"{', '.join(variants)}{did_you_mean(name, variants)}"
        )
    return variants[name]
