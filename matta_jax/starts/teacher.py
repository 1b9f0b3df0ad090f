"""A frozen Teacher: any model of ours, or one that was imported, that a run learns from; and the
labels of one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from matta_jax import storage
from matta_jax.checkpoints import StoredArray, locate, open_source
from matta_jax.config import Config
from matta_jax.data import LabelHeader
from matta_jax.errors import UserError
from matta_jax.models import Architecture, abstract_params, logical_axes, plan_of
from matta_jax.nesting import Tree
from matta_jax.packages import MANIFEST, Model, Weight, in_memory, load_model, open_model
from matta_jax.tokenizers import Tokenizer, make_tokenizer, tokenizer_digest


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A Teacher, opened but not read.

    Attributes:
      where: as the user named it.
      architecture: of the plain model that it is.
      config: of its own run.
      origin: what it is, for the header of its labels.
    """

    where: str
    architecture: Architecture
    config: Config
    origin: dict[str, str]

    @property
    def abstract(self) -> Tree:
        """Shapes of its weights."""
        return abstract_params(self.architecture)

    @property
    def axes(self) -> Tree:
        """Their axis names."""
        return logical_axes(self.architecture)

    def load(self, mesh: Mesh | None = None) -> Model:
        """Reads and verifies the weights, onto the first device, or onto those of a mesh. Raises
        UserError when they are damaged, or do not fit the mesh.
        """
        if (storage.path(self.where) / MANIFEST).is_file():
            return load_model(self.where, mesh)
        source = open_source(self.where)
        ta = source.nest.ta
        origin: dict[str, Any] = dict(self.origin)
        params, counts = source.load(ta, mesh), source.count(ta)
        return Model("ta", source.config, counts, params, origin, self.architecture, mesh=mesh)

    def stored(self) -> Mapping[str, StoredArray | Weight]:
        """Its weights by path, to be read one after another; a run's TA is read at once."""
        if (storage.path(self.where) / MANIFEST).is_file():
            return open_model(self.where).stored
        source = open_source(self.where)
        return in_memory(source.read(source.nest.ta))


def open_teacher(where: str, field: str) -> Teacher:
    """Opens the model in a folder, or the TA of a run, D[@STEP]. Raises UserError, which names the
    `field`.
    """
    try:
        if (storage.path(where) / MANIFEST).is_file():
            package = open_model(where)
            seal = package.manifest["seal"]
            return Teacher(
                where,
                package.architecture,
                package.config,
                {"model": str(package.path), "seal": seal},
            )
        locate(where)
    except UserError as error:
        raise UserError(f"{field}={where!r} is neither a model nor a run ({error})") from None
    source = open_source(where)
    architecture = source.architecture_of(source.nest.ta)
    origin = {
        "checkpoint": str(source.directory),
        "step": str(source.step),
        "fingerprint": source.fingerprint,
    }
    return Teacher(where, architecture, source.config, origin)


def check_teacher(teacher: Teacher, config: Config, field: str) -> None:
    """Raises UserError unless the Teacher can teach a run: one vocabulary, one tokenizer, sequences
    as long.
    """
    where, architecture = f"{field}={teacher.where!r}", teacher.architecture
    _check_task(teacher, config, where)
    if config.model.reads_images:
        _check_images(teacher, config, where)
        return
    if architecture.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{where} has a vocabulary of {architecture.vocab_size}, and must have the "
            f"{config.model.vocab_size} of model.vocab_size; {_vocabulary_mend(teacher, config)}"
        )
    # The Teacher reads the run's own windows, at the positions that it learned.
    if architecture.max_len < config.data.seq_len:
        raise UserError(
            f"{where} reads at most {architecture.max_len} tokens, fewer than "
            f"data.seq_len={config.data.seq_len}; shorten the windows, or use another Teacher"
        )

    run_tokenizer = make_tokenizer(config.data.tokenizer)
    try:
        tokenizer = make_tokenizer(teacher.config.data.tokenizer)
    except UserError as error:
        raise UserError(f"{where}: its tokenizer cannot be compared ({error})") from None
    if not same_tokenizer(run_tokenizer, tokenizer):
        raise UserError(
            f"{where} has another tokenizer ({teacher.config.data.tokenizer!r}) than "
            f"data.tokenizer={config.data.tokenizer!r}; use a Teacher with the run's tokenizer"
        )


def _check_images(teacher: Teacher, config: Config, where: str) -> None:
    """Raises UserError unless a Teacher reads images of the run's size."""
    for name in ("image_size", "num_channels"):
        value, run_value = getattr(teacher.config.model, name), getattr(config.model, name)
        if value != run_value:
            raise UserError(
                f"{where} has {name}={value}, and must have the {run_value} of model.{name}; use "
                "another Teacher, or change that"
            )


def _vocabulary_mend(teacher: Teacher, config: Config) -> str:
    """What to do about another vocabulary: where the tokenizer is the same, one is only padded."""
    mend = "use a Teacher with the run's tokenizer"
    vocab_size = teacher.architecture.vocab_size
    try:
        run_tokenizer = make_tokenizer(config.data.tokenizer)
        tokenizer = make_tokenizer(teacher.config.data.tokenizer)
    except UserError:
        return mend
    has_room = run_tokenizer.vocab_size <= vocab_size
    if has_room and same_tokenizer(run_tokenizer, tokenizer):
        return f"the tokenizer is the same, so set model.vocab_size={vocab_size}"
    return mend


def _check_task(teacher: Teacher, config: Config, where: str) -> None:
    """Raises UserError unless both read and say the same: text and a table's logits, or examples
    or images with the same features and classes.
    """
    section = teacher.config.model
    if section.noun != config.model.noun:
        raise UserError(
            f"{where} is {section.a_noun}, and the run trains {config.model.a_noun}; use a Teacher "
            "of the same task"
        )
    student, architecture = plan_of(config).architecture, teacher.architecture
    facts = {
        "num_classes": lambda model: model.fixed.get("classes", 0),
        "num_dense": lambda model: model.fixed.get("dense", 0),
        "categories": lambda model: model.options.get("categories", ()),
    }
    for name, fact in facts.items():
        if fact(architecture) != fact(student):
            raise UserError(
                f"{where} has {name}={fact(architecture)}, and must have the run's {fact(student)} "
                "(0 classes: a language model); use a Teacher of the same task"
            )


def same_tokenizer(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether two tokenizers do the same, from whatever files."""
    if a.fingerprint == b.fingerprint:
        return True
    return a.vocab_size == b.vocab_size and tokenizer_digest(a) == tokenizer_digest(b)


def check_labels(
    header: LabelHeader, config: Config, *, num_windows: int, fingerprint: str
) -> None:
    """Raises UserError unless labels are of a run's own windows, and fit its loss."""
    where = f"teacher.labels={config.teacher.labels!r}"
    # As the first windows of a text are called.
    if header.windows == f"{fingerprint}[:{header.num_windows}]":
        raise UserError(
            f"{where} are of the first {header.num_windows} windows of this text, and the run "
            f"trains on {num_windows}; set data.max_windows={header.num_windows}"
        )

    digest = tokenizer_digest(make_tokenizer(config.data.tokenizer))
    facts: dict[str, tuple[Any, Any, str]] = {
        "vocabulary": (header.vocab_size, config.model.vocab_size, "model.vocab_size"),
        "tokenizer": (header.tokenizer, digest, "data.tokenizer"),
        "window length": (header.seq_len, config.data.seq_len, "data.seq_len"),
        "temperature": (header.temperature, config.teacher.temperature, "teacher.temperature"),
        "text": (header.windows, fingerprint, "data.source"),
        "number of windows": (header.num_windows, num_windows, "data.source"),
    }
    for name, (labelled, run_value, field) in facts.items():
        if labelled != run_value:
            raise UserError(
                f"{where} is of another {name} ({labelled}) than {field} ({run_value}); set it so, "
                "or label again"
            )
