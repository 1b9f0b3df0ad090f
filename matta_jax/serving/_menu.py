"""What a server can serve, and at which cost: the sub-models of a run, and which is the best within
a budget.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from matta_jax import storage
from matta_jax.checkpoints import Source, open_source
from matta_jax.config import FLOAT_TYPES
from matta_jax.errors import UserError, check_choice, did_you_mean
from matta_jax.nesting import canonical_specs
from matta_jax.packages import Model, load_in_place, open_model

_SEARCH_FILE = "search.json"
_WIDTH = "d_ff"
_BITS, _NATS = "bits per byte", "nats per token"
_LIMITS = {
    "max_params": ("params", "parameters"),
    "max_mb": ("mb", "MB"),
    "max_ms_per_token": ("ms", "ms a token"),
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a model may cost, at most; None: anything.

    Attributes:
      max_params: parameters.
      max_ms_per_token: milliseconds of a token, as a search has measured them.
      max_mb: megabytes of its weights, in the type that they are served in.
    """

    max_params: float | None = None
    max_ms_per_token: float | None = None
    max_mb: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            # Written so that it refuses NaN too.
            if value is not None and not value > 0:
                raise UserError(f"{name}={value} must be above 0")

    @property
    def any(self) -> bool:
        """Whether anything is limited."""
        return any(value is not None for value in vars(self).values())


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model that can be served.

    Attributes:
      spec: of it.
      params: parameters.
      mb: megabytes of its weights, in the type that they are served in.
      widths: of its layers' feed-forward parts.
      quality: as `unit` of the menu says, less is better; None: not measured.
      ms: of a token, by itself; None: not measured.
    """

    spec: str
    params: int
    mb: float
    widths: tuple[int, ...] = ()
    quality: float | None = None
    ms: float | None = None


class Menu:
    """The models of a server, by size.

    Args:
      entries: at least one.
      unit: of their quality.
    """

    def __init__(self, entries: Sequence[Entry], unit: str = _BITS):
        self.entries = sorted(entries, key=lambda entry: (entry.params, entry.spec))
        self.unit = unit
        self._by_spec = {entry.spec: entry for entry in self.entries}

    def named(self, spec: str) -> Entry:
        """The model of a spec. Raises UserError where it is not served."""
        if spec not in self._by_spec:
            hint = did_you_mean(spec, self._by_spec)
            raise UserError(f"model={spec!r} is not served; GET /v1/models lists what is{hint}")
        return self._by_spec[spec]

    def choose(self, limits: Limits) -> Entry:
        """The best model within limits: by quality where it was measured, else the largest.

        Raises:
          UserError: none is within, or what is limited was not measured.
        """
        entries = self.entries
        for name, (attribute, noun) in _LIMITS.items():
            limit = getattr(limits, name)
            if limit is None:
                continue
            measured = [entry for entry in entries if getattr(entry, attribute) is not None]
            if not measured:
                raise UserError(
                    f"{name}={limit:g}: no {noun} were measured; limit max_params, or serve with "
                    "--search of a search with --latency_mode=decode"
                )
            entries = [entry for entry in measured if getattr(entry, attribute) <= limit]
            if not entries:
                least = min(measured, key=lambda entry: getattr(entry, attribute))
                raise UserError(
                    f"{name}={limit:g} is too little: the smallest model within the other limits, "
                    f"{least.spec}, has {getattr(least, attribute):,.6g} {noun}"
                )
        scored = [
            (entry.quality, entry.params, entry.spec)
            for entry in entries
            if entry.quality is not None
        ]
        if scored:
            return self._by_spec[min(scored)[-1]]
        return max(entries, key=lambda entry: entry.params)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is to be served.

    Attributes:
      model: folder of an extracted model; or else
      checkpoint: a run's, of which
      sub_models: specs; none: those of the search, or all members.
      search: folder of a search, which tells the quality and the milliseconds.
      draft: one more spec, which proposes tokens.
      mesh: the devices that share weights and caches; None: the first has all.
      compute_dtype: of weights, activations and matmuls.
    """

    model: str | None = None
    checkpoint: str | None = None
    sub_models: Sequence[str] = ()
    search: str | None = None
    draft: str | None = None
    mesh: Mesh | None = None
    compute_dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class LoadedModels:
    """What serves a menu.

    Attributes:
      models: of one set of weights.
      menu: of them.
      draft: spec of the one that proposes tokens, as the models have it; None: none does.
    """

    models: list[Model]
    menu: Menu
    draft: str | None = None


def load_menu(choice: Choice) -> LoadedModels:
    """Reads the weights, once, of what is to be served.

    Raises:
      UserError: both or neither are named, what is named is missing or damaged, a search is of
        other weights, or the mesh does not fit the model.
    """
    check_choice("compute_dtype", choice.compute_dtype, FLOAT_TYPES)
    if (choice.model is None) == (choice.checkpoint is None):
        raise UserError(
            "name either model (an extracted folder) or checkpoint (the workdir of a run), not "
            "both or neither"
        )
    if choice.checkpoint is None:
        assert choice.model is not None
        return _load_folder(choice, choice.model)

    source = open_source(choice.checkpoint)
    rows, unit = ({}, _BITS) if choice.search is None else _rows(choice.search, source)
    best = [spec for spec, row in rows.items() if row["is_best"]]
    specs = list(choice.sub_models or best or source.nest.members)
    draft = None
    if choice.draft is not None:
        [draft] = canonical_specs([choice.draft], source.nest)
        specs.append(draft)
    canonical = canonical_specs(specs, source.nest)
    entries, models = [], []
    for loaded in load_in_place(choice.checkpoint, canonical, choice.mesh):
        model = dataclasses.replace(loaded, compute_dtype=choice.compute_dtype)
        models.append(model)
        row = rows.get(model.spec, {})
        entries.append(_entry(model, row.get("quality"), row.get("ms")))
    return LoadedModels(models, Menu(entries, unit), draft)


def _load_folder(choice: Choice, folder: str) -> LoadedModels:
    for name in ("sub_models", "search", "draft"):
        if getattr(choice, name):
            flag = name.removesuffix("s")
            raise UserError(f"{flag} is of a run's checkpoint, and model={folder!r} is one model")
    package = open_model(folder)
    scores = {score["task"]: score["value"] for score in package.manifest["scores"]}
    bits = [value for task, value in scores.items() if task.startswith("bits_per_byte")]
    model = dataclasses.replace(package.load(choice.mesh), compute_dtype=choice.compute_dtype)
    return LoadedModels([model], Menu([_entry(model, bits[-1] if bits else None, None)]))


def _entry(model: Model, quality: float | None, ms: float | None) -> Entry:
    counts = model.counts
    widths: tuple[int, ...] = ()
    if model.in_place is not None and _WIDTH in model.in_place[1].axes:
        widths = model.in_place[1].along(_WIDTH)
    # An engine keeps them in the type that it computes in.
    mb = counts.parameters * jnp.dtype(model.compute_dtype).itemsize / 1e6
    return Entry(model.spec, counts.parameters, mb, widths, quality, ms)


def _rows(folder: str, source: Source) -> tuple[dict[str, dict[str, Any]], str]:
    """The models of a search by spec, with their quality, milliseconds, and whether no model beats
    them; and the unit of the quality.
    """
    path = storage.path(folder) / _SEARCH_FILE
    if not path.is_file():
        raise UserError(f"search={folder!r} holds no {_SEARCH_FILE}; name the output of a search")
    try:
        document = storage.read_json(path)
        workload = document["workload"] or {}
        # Of tokens, and by our programs, which serve here; older searches have no others.
        is_timed = workload.get("mode") == "decode" and workload.get("engine", "jax") == "jax"
        fingerprint = document["fingerprint"]
        rows = [row for row in document["rows"] if row["numbers"] is None]
        # On the whole corpus, where that was scored of a few at least.
        verified = [row for row in rows if row["verified"] is not None]
        field, unit = ("verified", _BITS) if len(verified) > 1 else ("loss", _NATS)
        rows_by_spec = {
            str(row["spec"]): {
                "quality": float(row[field]),
                "ms": row["ms"] if is_timed else None,
                "is_best": not row["dominated"],
            }
            for row in (verified if field == "verified" else rows)
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"search={folder!r} is damaged; search again") from None
    if fingerprint != source.fingerprint:
        raise UserError(
            f"search={folder!r} is of other weights than checkpoint={str(source.directory)!r} at "
            f"step {source.step}; search again, or name the step that was searched"
        )
    if not rows_by_spec:
        raise UserError(f"search={folder!r} holds no model in the run's own numbers; search again")
    return rows_by_spec, unit
