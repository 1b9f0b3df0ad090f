"""A model to run: an extracted one from its folder, or a sub-model in place in its TA."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax import config as config_lib
from matta_jax.checkpoints import StoredArray, open_source
from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.files import replace_text
from matta_jax.models import (
    Architecture,
    Extras,
    apply,
    architecture_of,
    logits,
    sub_model_apply,
)
from matta_jax.nesting import (
    Counts,
    Nest,
    SubModel,
    Tree,
    format_spec,
    parse_spec,
    slice_model,
    unflatten,
)
from matta_jax.packages._card import CARD, model_card
from matta_jax.packages._formats import open_weights

MANIFEST = "manifest.json"
VERSION = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Weights and the function that runs them.

    Attributes:
      spec: which sub-model of its run it is.
      config: of its run.
      counts: parameters, bytes, FLOPs per token at the run's sequence length.
      params: weights; the TA's for a sub-model in place.
      origin: where it came from, for reports.
      architecture: of an extracted model; None in place.
    """

    spec: str
    config: Config
    counts: Counts
    params: Tree
    origin: dict[str, Any]
    architecture: Architecture | None = None
    _in_place: tuple[SubModel, Nest, Tree] | None = None

    def apply(self, params: Tree, tokens_BT: jax.Array, extras: Extras | None = None) -> jax.Array:
        """Returns the normed hidden states [B·T, D], in float32; of a scorer, which needs `extras`,
        the logits [B, classes], or [B] of a sigmoid. Pure in its arguments, fit for `jax.jit`."""
        if self._in_place is not None:
            sub_model, nest, axes = self._in_place
            return sub_model_apply(
                params, tokens_BT, sub_model, nest=nest, axes=axes, extras=extras
            )
        assert self.architecture is not None
        return apply(self.architecture, params, tokens_BT, extras=extras)

    @property
    def is_scorer(self) -> bool:
        """Whether it scores examples, and is no language model."""
        return self.config.model.name == "scorer"

    def logits(self, params: Tree, tokens_BT: jax.Array) -> jax.Array:
        """Returns the logits [B·T, V] of a language model, in float32."""
        return logits(self.apply(params, tokens_BT), params["embed"]["tokens"])

    def plain(self) -> "Model":
        """This model with weights of its own: that of an extracted one is itself."""
        if self._in_place is None:
            return self
        sub_model, nest, axes = self._in_place
        params = slice_model(self.params, axes, sub_model)
        architecture = architecture_of(self.config.model, nest, sub_model)
        return Model(
            self.spec, self.config, self.counts, params, self.origin, architecture=architecture
        )


@dataclasses.dataclass(frozen=True)
class Package:
    """The folder of an extracted model, opened but not read.

    Attributes:
      path: the folder.
      manifest: its `manifest.json`.
      architecture: of the model.
      config: of its run.
      counts: of the model.
      stored: its weights on disk, by path.
    """

    path: pathlib.Path
    manifest: dict[str, Any]
    architecture: Architecture
    config: Config
    counts: Counts
    stored: dict[str, StoredArray]

    def load(self) -> Model:
        """Reads and verifies the weights, as float32. Raises UserError when one is damaged."""
        flat = {
            path: jnp.asarray(array.whole(), jnp.float32) for path, array in self.stored.items()
        }
        origin = {"model": str(self.path), "step": self.manifest["parent"].get("step")}
        spec = self.manifest["spec"]
        return Model(
            spec, self.config, self.counts, unflatten(flat), origin, architecture=self.architecture
        )


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with a hash over all of it but its scores, which may grow."""
    about = {name: value for name, value in manifest.items() if name not in ("scores", "seal")}
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()
    return manifest | {"seal": digest}


def resolved_tokenizer(spec: str, folder: pathlib.Path) -> str:
    """`hf:./tokenizer/…` names files in the model's own folder, wherever that is."""
    kind, _, place = spec.partition(":")
    return f"{kind}:{folder / place}" if place.startswith("./") else spec


def open_model(folder: str | pathlib.Path) -> Package:
    """Opens an extracted model. Raises UserError when it is missing or damaged."""
    path = pathlib.Path(folder).resolve()
    file = path / MANIFEST
    if not file.is_file():
        raise UserError(
            f"model={str(folder)!r} is not an extracted model (no {MANIFEST}); make one with "
            "matta-extract"
        )
    try:
        manifest = json.loads(file.read_text())
        if manifest["version"] != VERSION or sealed(manifest)["seal"] != manifest["seal"]:
            raise ValueError("it was changed")
        fields, described = manifest["architecture"], manifest["config"]
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        architecture = Architecture(**fields | lists)
        own = resolved_tokenizer(described["data"]["tokenizer"], path)
        config = config_lib.from_dict(described | {"data": described["data"] | {"tokenizer": own}})
        counts = Counts(**manifest["counts"])
        tensors, format, _ = manifest["tensors"], manifest["format"], manifest["scores"]
        kept = described["data"]["tokenizer"].partition(":")[2]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"model={str(folder)!r} is damaged ({MANIFEST} was changed or cut off); extract it "
            "again"
        ) from None
    if kept.startswith("./") and not (path / kept).exists():
        raise UserError(
            f"model={str(folder)!r} is damaged: its tokenizer {kept} is missing; import it again"
        )
    return Package(
        path,
        manifest,
        architecture,
        config,
        counts,
        open_weights(path, format, architecture, tensors),
    )


def load_model(folder: str | pathlib.Path) -> Model:
    """Reads and verifies an extracted model. Raises UserError when it is missing or damaged."""
    return open_model(folder).load()


def record_scores(folder: str | pathlib.Path, scores: list[dict[str, Any]]) -> None:
    """Adds scores to a model's manifest and card, in place of older ones of the same task.

    Args:
      folder: of the model.
      scores: of each `task`, `value`, `corpus` (its fingerprint) and `date`.

    Raises:
      UserError: the manifest cannot be read or written.
    """
    file = pathlib.Path(folder) / MANIFEST
    new = {score["task"] for score in scores}
    try:
        manifest = json.loads(file.read_text())
        manifest["scores"] = [
            score for score in manifest["scores"] if score["task"] not in new
        ] + scores
        replace_text(file, json.dumps(manifest, indent=2) + "\n")
        replace_text(file.with_name(CARD), model_card(manifest, file.parent))
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"model={str(folder)!r} is damaged ({MANIFEST} cannot be read); extract it again"
        ) from None
    except OSError as error:
        raise UserError(
            f"model={str(folder)!r} cannot be written ({error.strerror}); copy it first"
        ) from None


def load_in_place(checkpoint: str, specs: Sequence[str]) -> list[Model]:
    """Reads a run's TA, once, and takes sub-models of it in place. Raises UserError for a bad
    checkpoint or spec.
    """
    source = open_source(checkpoint)
    sub_models = [parse_spec(spec, source.nest) for spec in specs]
    params = source.load(source.nest.ta)
    return [
        Model(
            format_spec(sub_model, source.nest),
            source.config,
            source.count(sub_model),
            params,
            {"checkpoint": str(source.directory), "step": source.step},
            _in_place=(sub_model, source.nest, source.axes),
        )
        for sub_model in sub_models
    ]


def load_chosen(
    models: Sequence[str | pathlib.Path],
    checkpoint: str | None = None,
    sub_models: Sequence[str] = (),
) -> list[Model]:
    """Reads extracted models, or sub-models in place in their run's checkpoint, which is read once.

    Raises:
      UserError: both or neither are named, or what is named is missing or damaged.
    """
    if bool(models) == (checkpoint is not None):
        raise UserError(
            "name either model (an extracted folder) or checkpoint with sub_model, not both or "
            "neither"
        )
    if checkpoint is None:
        return [load_model(folder) for folder in models]
    if not sub_models:
        raise UserError(
            "sub_model is missing; name one beside checkpoint, such as --sub_model=student"
        )
    return load_in_place(checkpoint, sub_models)
