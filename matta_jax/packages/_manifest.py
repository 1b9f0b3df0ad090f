"""The manifest of a model: what it is, where it came from, and a seal over all of it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.models import MOST, MOST_LAYERS, Architecture, architecture_from_json
from matta_jax.nesting import Counts
from matta_jax.packages._card import CARD, model_card, task_of
from matta_jax.tokenizers import files_digest, resolved_tokenizer

MANIFEST = "manifest.json"
VERSION = 4

# Version 2 differs in how it describes an architecture.
_READABLE_VERSIONS = (2, 3, VERSION)
# Their seals leave out the scores.
_WITHOUT_SCORES = (2, 3)


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with a hash over all of it."""
    left_out = ("scores", "seal") if manifest["version"] in _WITHOUT_SCORES else ("seal",)
    about = {name: value for name, value in manifest.items() if name not in left_out}
    # As it is read back: a file holds null for a number that is not finite.
    text = json.dumps(storage.parse_json(storage.json_text(about)), sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return manifest | {"seal": digest}


@dataclasses.dataclass(frozen=True)
class Description:
    """What a manifest says, read and checked.

    Attributes:
      manifest: as it was read.
      architecture: of the model.
      config: of its run.
      counts: of the model.
    """

    manifest: dict[str, Any]
    architecture: Architecture
    config: Config
    counts: Counts


def read_manifest(folder: storage.Path, name: str) -> Description:
    """Reads and checks the manifest of a model.

    Args:
      folder: of the model.
      name: as errors name it.

    Raises:
      UserError: it is missing or damaged, or names a tokenizer that is gone.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise UserError(
            f"model={name!r} is not an extracted model (no {MANIFEST}); make one with matta-extract"
        )
    try:
        description = _description(storage.read_json(file), folder)
    except OSError as error:
        raise UserError(
            f"model={name!r} cannot be read ({error.strerror}: {MANIFEST}); copy it to where it can"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, LookupError):
        raise UserError(
            f"model={name!r} is damaged ({MANIFEST} was changed or cut off); extract it again"
        ) from None

    tokenizer = description.manifest["config"]["data"]["tokenizer"].partition(":")[2]
    if tokenizer.startswith("./") and not (folder / tokenizer).exists():
        raise UserError(
            f"model={name!r} is damaged: its tokenizer {tokenizer} is missing; import it again"
        )
    # Versions before 4 have no digest.
    digest = description.manifest.get("tokenizer")
    if digest is not None and files_digest(description.config.data.tokenizer) != digest:
        raise UserError(f"model={name!r} is damaged: its tokenizer was changed; extract it again")
    return description


def _description(manifest: dict[str, Any], folder: storage.Path) -> Description:
    is_readable = manifest["version"] in _READABLE_VERSIONS
    if not is_readable or sealed(manifest)["seal"] != manifest["seal"]:
        raise ValueError("it was changed")
    # Read here, so that one that is missing shows as damage.
    for field in ("tensors", "format", "scores"):
        manifest[field]

    _check_sizes(manifest["architecture"])

    fields = manifest["config"]
    tokenizer = resolved_tokenizer(fields["data"]["tokenizer"], folder)
    config = config_lib.from_dict(fields | {"data": fields["data"] | {"tokenizer": tokenizer}})
    architecture = architecture_from_json(manifest["architecture"])
    return Description(manifest, architecture, config, Counts(**manifest["counts"]))


def _check_sizes(part: Any) -> None:
    """Raises ValueError for a size beyond all models, before lists of that length are made."""
    if isinstance(part, dict):
        if part.get("num_layers", 0) > MOST_LAYERS:
            raise ValueError("too many layers")
        part = list(part.values())
    if isinstance(part, list):
        for value in part:
            _check_sizes(value)
    elif isinstance(part, int | float) and part > MOST:
        raise ValueError("too large a size")


def record_scores(folder: str | storage.Path, scores: list[dict[str, Any]]) -> None:
    """Adds scores to a model's manifest and card, in place of older ones of the same task.

    Args:
      folder: of the model.
      scores: of each `task`, `value`, `corpus` (its fingerprint) and `date`; `compute_dtype` where
        it was not computed in float32.

    Raises:
      UserError: the manifest is damaged, was changed, or cannot be written.
    """
    path = storage.path(folder)
    # Checked first: a seal over what was changed by hand would make that true.
    manifest = read_manifest(path, str(folder)).manifest
    tasks = {task_of(score) for score in scores}
    older = [score for score in manifest["scores"] if task_of(score) not in tasks]
    _replace(path, manifest | {"scores": older + scores}, str(folder))


def record_engines(folder: str | storage.Path, certificates: Mapping[str, Any]) -> None:
    """Adds certificates to a model's manifest and card, by the engine that ran its files, in place
    of older ones. Raises UserError as `record_scores`.
    """
    path = storage.path(folder)
    manifest = read_manifest(path, str(folder)).manifest
    engines = manifest.get("engines", {}) | dict(certificates)
    _replace(path, manifest | {"engines": engines}, str(folder))


def _replace(path: storage.Path, manifest: dict[str, Any], name: str) -> None:
    """Writes a manifest in the place of another, and its card."""
    manifest = sealed(manifest)
    with storage.writing("model", name, "copy it first"):
        # The manifest first: the card only repeats it.
        storage.replace_text(path / MANIFEST, storage.json_text(manifest, indent=2) + "\n")
        storage.replace_text(path / CARD, model_card(manifest, path))
