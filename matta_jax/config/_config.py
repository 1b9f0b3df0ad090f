"""A whole run: its sections, and the rules between them."""

import dataclasses
import itertools
import re

from matta_jax.config._data import DataConfig
from matta_jax.config._fields import item_name
from matta_jax.config._model import ModelConfig, NestConfig
from matta_jax.config._objective import ObjectiveConfig, TeacherConfig
from matta_jax.config._training import (
    InitConfig,
    MeshConfig,
    OptimizerConfig,
    ShampooConfig,
    TrainConfig,
)
from matta_jax.errors import UserError, listed, shorten

# Of which a token can be hidden.
_SHORTEST_HIDDEN = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. Valid by construction; raises UserError otherwise."""

    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    nest: NestConfig = dataclasses.field(default_factory=NestConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    shampoo: ShampooConfig = dataclasses.field(default_factory=ShampooConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    @property
    def seq_len(self) -> int:
        """Positions of an example: tokens of a window or a text, or patches of an image."""
        return self.model.num_positions or self.data.seq_len

    def __post_init__(self) -> None:
        _check_nest(self.model, self.nest)
        _check_members(self.nest, self.objective)
        _check_teacher(self.teacher, self.model, self.data)
        _check_kinds(self)
        _check_pairs(self)
        _check_mixture(self)
        _check_documents(self)
        _check_lengths(self)
        _check_weights(self)
        _check_context(self)


def _check_nest(model: ModelConfig, nest: NestConfig) -> None:
    """The TA is at least as large as the Student, and widths rise from one to the other."""
    _check_effect(model, nest)
    for axis, student_size in model.size_fields().items():
        ta_size = getattr(nest, axis, None)
        if axis in model.fixed_fields and ta_size not in (None, student_size):
            raise UserError(
                f"nest.{axis}={ta_size} must be model.{axis}={student_size} of "
                f"model.name={model.name!r}, which is not nested by it; leave it out"
            )
        if ta_size is not None and ta_size < student_size:
            raise UserError(
                f"nest.{axis}={ta_size} must be at least the Student's model.{axis}="
                f"{student_size}; raise it, or lower model.{axis}"
            )

    widths = nest.widths
    narrowest, widest = model.d_ff, nest.d_ff or model.d_ff
    if widths and (widths[0], widths[-1]) != (narrowest, widest):
        raise UserError(
            f"nest.widths={shorten(widths)} must run from the Student's model.d_ff={narrowest} to "
            f"the TA's nest.d_ff={widest}"
        )
    if any(width >= next_width for width, next_width in itertools.pairwise(widths)):
        raise UserError(
            f"nest.widths={shorten(widths)} must rise from each width to the next; sort and "
            "deduplicate them"
        )


def _check_effect(model: ModelConfig, nest: NestConfig) -> None:
    """Sizes are of axes that the family's models have, and no larger than these can be."""
    for name in ("num_heads", "num_kv_heads"):
        count = getattr(nest, name)
        if count is not None and name not in model.size_fields():
            (heads,) = {"num_heads", "num_kv_heads"} & set(model.size_fields())
            raise UserError(
                f"nest.{name}={count} is without effect on model.name={model.name!r}, whose nest "
                f"goes by {heads}; set nest.{heads}"
            )

    if nest.embed is not None and "embed" not in model.size_fields():
        raise UserError(
            f"nest.embed={nest.embed} is without effect on model.name={model.name!r}, which has no "
            "vectors; leave it out"
        )
    if nest.embed is not None and nest.embed > model.d_model:
        raise UserError(
            f"nest.embed={nest.embed} must be at most model.d_model={model.d_model}, of which it "
            "takes the first numbers; lower it"
        )

    if nest.thoughts is not None and "thoughts" not in model.size_fields():
        raise UserError(
            f"nest.thoughts={nest.thoughts} is without effect without earlier passes; name the "
            "heads of each as model.thinking_heads of model.name='vit'"
        )
    if nest.thoughts is not None and nest.thoughts > len(model.earlier_sizes()):
        raise UserError(
            f"nest.thoughts={nest.thoughts} must be at most the {len(model.earlier_sizes())} "
            "earlier passes of model.thinking_heads; lower it, or name more"
        )


def _check_members(nest: NestConfig, objective: ObjectiveConfig) -> None:
    """Weights are of members that there are."""
    for field in ("member_weights", "member_distill_weights"):
        for name in getattr(objective, field):
            if name not in nest.members:
                members = listed(nest.members) or "none"
                raise UserError(
                    f"{item_name(f'objective.{field}', name)} is of no member of nest.members "
                    f"(there: {members}); name it there, or leave it out"
                )


def _check_teacher(teacher: TeacherConfig, model: ModelConfig, data: DataConfig) -> None:
    """What learns from a Teacher has one, and a Teacher has something that learns from it."""
    if teacher.labels is not None and (model.reads_examples or data.stream):
        raise UserError(
            f"teacher.labels={shorten(teacher.labels)} are of a language model's shuffled windows; "
            "for a scorer or a stream name teacher.model"
        )

    sources = {"model": teacher.model, "labels": teacher.labels}
    sources = {name: value for name, value in sources.items() if value is not None}
    if len(sources) > 1:
        raise UserError(
            f"teacher.model={shorten(teacher.model)} and teacher.labels={shorten(teacher.labels)}: "
            "one alone teaches; name one"
        )
    if teacher.is_used and not sources:
        defaults = TeacherConfig()
        changed = [
            f"teacher.{name}={shorten(value)}"
            for name, value in dataclasses.asdict(teacher).items()
            if value != getattr(defaults, name) and name != "temperature"
        ]
        raise UserError(f"{changed[0]} needs a Teacher; name teacher.model or teacher.labels")
    for name, value in sources.items():
        if not teacher.is_used:
            raise UserError(
                f"teacher.{name}={shorten(value)} would teach nothing; give teacher.student_weight "
                "or teacher.ta_weight, or set teacher.task_labels=teacher"
            )


def _check_kinds(config: Config) -> None:
    """Refuses fields of data that the model does not read."""
    model, data = config.model, config.data
    for field, value, default, is_read, kind in (
        ("objective.pair_loss", config.objective.pair_loss, "in_batch", model.reads_pairs, "pairs"),
        ("data.score_field", data.score_field, None, model.reads_pairs, "pairs"),
        ("data.documents", data.documents, "joined", not model.reads_examples, "windows"),
        ("data.crop", data.crop, 0, model.reads_images, "images"),
        ("data.flips", data.flips, False, model.reads_images, "images"),
        ("data.mixup", data.mixup, 0.0, model.reads_images, "images"),
        ("data.cutmix", data.cutmix, 0.0, model.reads_images, "images"),
    ):
        if value != default and not is_read:
            raise UserError(
                f"{field}={shorten(value)} is without effect on model.name={model.name!r}, which "
                f"reads no {kind}; leave it out"
            )
    for name in ("mixup", "cutmix"):
        if getattr(data, name) and data.stream:
            raise UserError(
                f"data.{name}={getattr(data, name)} mixes images with any of the source, and "
                "data.stream=True scores each before it is trained on; leave one out"
            )


def _check_pairs(config: Config) -> None:
    """Scores that pairs are ordered by are read."""
    loss, scores = config.objective.pair_loss, config.data.score_field
    if loss == "cosent" and scores is None:
        raise UserError(
            "objective.pair_loss='cosent' orders pairs by their scores, and data.score_field=None; "
            "name the field, such as score"
        )
    _check_hidden_tokens(config)
    if loss == "cosent" and config.teacher.task_labels == "teacher":
        raise UserError(
            "teacher.task_labels='teacher' is for classes and tokens, and "
            "objective.pair_loss='cosent' learns scores; leave one out"
        )


def _check_hidden_tokens(config: Config) -> None:
    """Hidden tokens have an id that stands for them, and are told by what the text says."""
    loss, mask_id = config.objective.pair_loss, config.objective.mask_id
    if loss != "smae":
        if mask_id is not None:
            raise UserError(
                f"objective.mask_id={mask_id} is without effect on objective.pair_loss={loss!r}, "
                "which hides no tokens; leave it out"
            )
        return
    if mask_id is None:
        raise UserError(
            "objective.pair_loss='smae' hides tokens behind another, and objective.mask_id=None; "
            "set its id, such as 103 of BERT's vocabulary"
        )
    if mask_id >= config.model.vocab_size:
        raise UserError(
            f"objective.mask_id={mask_id} must be below model.vocab_size="
            f"{config.model.vocab_size}; name an id of the tokenizer"
        )
    if config.data.seq_len < _SHORTEST_HIDDEN:
        raise UserError(
            f"data.seq_len={config.data.seq_len} must be at least {_SHORTEST_HIDDEN} with "
            "objective.pair_loss='smae': a start, a token and an end; raise it"
        )
    if config.teacher.is_used:
        raise UserError(
            "objective.pair_loss='smae' learns from texts alone, and a Teacher tells of their "
            "vectors; leave out the fields of teacher"
        )


def _check_mixture(config: Config) -> None:
    """A mixture is of windows in an order of its own."""
    if not config.data.mixture:
        return
    for is_set, field in (
        (config.model.reads_examples, f"model.name={config.model.name!r}, which reads examples"),
        (config.data.stream, "data.stream=True, which reads one source once"),
        (config.data.max_windows is not None, f"data.max_windows={config.data.max_windows}"),
        (config.teacher.labels is not None, f"teacher.labels={shorten(config.teacher.labels)}"),
    ):
        if is_set:
            raise UserError(f"data.mixture is not for {field}; leave one out")


def _check_documents(config: Config) -> None:
    """What a Teacher was asked must be what its pupils are."""
    if config.data.documents == "apart" and config.teacher.labels is not None:
        raise UserError(
            f"teacher.labels={shorten(config.teacher.labels)} are of joined documents, and "
            "data.documents='apart'; name teacher.model, or leave one out"
        )


def _check_lengths(config: Config) -> None:
    """Sequences fit the model, microbatches the batch, and the warm-up the run."""
    data, model, train = config.data, config.model, config.train
    if data.seq_len > model.max_len and model.num_positions is None:
        raise UserError(
            f"data.seq_len={data.seq_len} must be at most model.max_len={model.max_len}; "
            "shorten it, or raise model.max_len"
        )
    if data.batch_size % train.microbatches:
        raise UserError(
            f"train.microbatches={train.microbatches} must divide data.batch_size={data.batch_size}"
        )
    if config.optimizer.warmup_steps >= train.num_steps:
        # A tenth; one step of a run of two to nine, which 0 would leave without a warm-up.
        fitting_steps = max(train.num_steps // 10, min(train.num_steps - 1, 1))
        raise UserError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} must be less than "
            f"train.num_steps={train.num_steps}; set optimizer.warmup_steps={fitting_steps}"
        )


def _check_context(config: Config) -> None:
    """Devices that share windows each compute with a part of their tokens."""
    count, seq_len = config.mesh.context, config.data.seq_len
    if count == 1:
        return
    for is_set, field in (
        (config.model.reads_examples, f"model.name={config.model.name!r}, which reads examples"),
        (config.model.dropout > 0, f"model.dropout={config.model.dropout}"),
        (config.teacher.model is not None, f"teacher.model={shorten(config.teacher.model)}"),
    ):
        if is_set:
            raise UserError(
                f"mesh.context={count} splits windows of tokens, and is not for {field}; leave one "
                "out"
            )
    # Of each half of a window a device has a stretch.
    parts = 2 * count
    if seq_len % parts:
        nearest = max(round(seq_len / parts), 1) * parts
        raise UserError(
            f"data.seq_len={seq_len} must be a multiple of {parts} with mesh.context={count}, of "
            f"which each device has two stretches; use {nearest}"
        )


def _check_weights(config: Config) -> None:
    """A run of which no part of the loss counts trains nothing."""
    model, nest, objective = config.model, config.nest, config.objective
    is_nested = any(
        getattr(nest, field, None) not in (None, size)
        for field, size in model.size_fields().items()
    )

    weights = {
        "objective.student_weight": objective.student_weight,
        "teacher.student_weight": config.teacher.student_weight,
    }
    # Distillation alone moves the Student, and a random mix or a member its part of the TA.
    if is_nested or nest.members:
        weights["objective.ta_weight"] = objective.ta_weight
        weights["objective.distill_weight"] = objective.distill_weight
        weights["teacher.ta_weight"] = config.teacher.ta_weight
    if nest.mix_per_step and _has_mixes(model, nest):
        weights["objective.mix_weight"] = objective.mix_weight
        weights["objective.mix_distill_weight"] = objective.mix_distill_weight
    for name in nest.members:
        weight, distill_weight = objective.weights_of(name)
        weights[f"objective.member_weights.{name}"] = weight
        weights[f"objective.member_distill_weights.{name}"] = distill_weight
    is_ta_alone = objective.members_start and not (objective.ta_weight or config.teacher.ta_weight)
    if is_ta_alone and (is_nested or nest.members):
        raise UserError(
            f"objective.members_start={objective.members_start} and objective.ta_weight=0: the TA "
            "trains alone for this part of the run, and nothing would be trained; give "
            "objective.ta_weight, such as 1"
        )
    without_mixes = [weight for name, weight in weights.items() if ".mix_" not in name]
    if nest.mix_every > 1 and any(weights.values()) and not any(without_mixes):
        raise UserError(
            f"nest.mix_every={nest.mix_every} leaves steps without a random mix, and nothing else "
            "has a weight: they would train nothing; set it to 1, or give objective.ta_weight"
        )
    if any(weights.values()):
        return
    raise UserError(
        f"{listed(weights)} are 0: nothing is trained; give objective.student_weight, such as 1"
    )


def _has_mixes(model: ModelConfig, nest: NestConfig) -> bool:
    """Whether layers have more than one width to choose from: without, no mix is trained."""
    if nest.d_ff not in (None, model.d_ff):
        return True
    # The ends are of one width, and a pattern too: a member alone, by a number, can add another.
    for spec in nest.members.values():
        for part in spec.split(";"):
            word, _, sizes = part.partition("=")
            numbers = re.findall(r"(?:^|,)\s*([0-9]{1,9})", sizes)
            if word.strip() == "d_ff" and any(int(number) != model.d_ff for number in numbers):
                return True
    return False
