"""The folder of a model: how it is written, put in its place, and finished."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.packages._card import CARD, copy_tokenizer, model_card
from matta_jax.packages._formats import notes_of
from matta_jax.packages._manifest import MANIFEST, sealed
from matta_jax.packages._packaging import HF_FORMATS
from matta_jax.tokenizers import (
    TextIds,
    bundle_tokenizer,
    check_rules,
    files_digest,
    make_tokenizer,
    resolved_tokenizer,
)

# What a run writes beside its checkpoints, and reads again.
_FILES_OF_RUN = ("config.json", "metrics.jsonl", "tokenizer")


def check_place(field: str, where: str | storage.Path) -> storage.Path:
    """Returns the absolute path of an output, which may lie anywhere but where it would spoil
    something of ours.

    Raises:
      UserError: it is a run's workdir or a file of a run, lies in a run's checkpoints, or in the
        folder of a model.
    """
    target = storage.resolve(where)
    if _is_run(target):
        raise _taken(field, target, "the workdir of a run")
    if target.name in _FILES_OF_RUN and _is_run(target.parent):
        raise _taken(field, target, f"a file of the run {str(target.parent)!r}")
    _check_parents(field, target, target.parents)
    return target


def check_workdir_place(workdir: storage.Path) -> None:
    """Raises UserError for the folder of a run that would spoil a model or another run: it may be
    that of a run, but none of a model's, nor lie in a model or in checkpoints.
    """
    target = storage.resolve(workdir)
    _check_parents("workdir", target, (target, *target.parents))


def _check_parents(field: str, target: storage.Path, folders: Sequence[storage.Path]) -> None:
    for folder in folders:
        if (folder / MANIFEST).is_file():
            raise _taken(field, target, f"in the folder of the model {str(folder)!r}")
    for folder in (target, *target.parents):
        # A folder of a number there would be taken for a step of the run.
        if folder.name == "checkpoints" and _is_run(folder.parent):
            raise _taken(field, target, f"in the checkpoints of the run {str(folder.parent)!r}")


def _is_run(folder: storage.Path) -> bool:
    return (folder / "checkpoints").is_dir() and (folder / "config.json").is_file()


def _taken(field: str, target: storage.Path, what: str) -> UserError:
    return UserError(f"{field}={str(target)!r} is {what}, which it would spoil; name another")


def check_target(target: storage.Path, *, overwrite: bool) -> None:
    """Raises UserError when a model may not be written there."""
    check_place("output", target)
    if not target.exists():
        return
    if not overwrite:
        raise UserError(
            f"output={str(target)!r} exists; name another folder, remove it, or give --overwrite"
        )
    # --overwrite must not remove a folder of something else.
    if not (target / MANIFEST).is_file():
        raise UserError(
            f"output={str(target)!r} is not an extracted model, and is not overwritten; name "
            "another"
        )


@contextlib.contextmanager
def new_folder(target: storage.Path) -> Iterator[storage.Path]:
    """Yields a folder beside `target` that takes its place at the end, and is removed when that is
    not reached. Raises UserError when it cannot be written.
    """
    with (
        storage.writing_by_library("output", target, "name another"),
        storage.new_folder(target, last=MANIFEST) as building,
    ):
        yield building


def bundled_config(config: dict[str, Any], building: storage.Path) -> dict[str, Any]:
    """The config of a model with its tokenizer's files in its own folder, which this copies there;
    as it is where they are missing. Raises UserError where what it names is no tokenizer.
    """
    spec = config["data"]["tokenizer"]
    # An import has put them there already.
    if not spec.partition(":")[2].startswith("./"):
        check_rules(spec)
        spec = bundle_tokenizer(spec, building)
    return config | {"data": config["data"] | {"tokenizer": spec}}


def finish_package(building: storage.Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Writes what stands beside the weights: manifest, model card, and in Hugging Face's folders
    the tokenizer's files where transformers looks for them. Returns the manifest with its seal.
    """
    tokenizer = resolved_tokenizer(manifest["config"]["data"]["tokenizer"], building)
    if manifest["format"] in HF_FORMATS:
        copy_tokenizer(tokenizer, building)
    notes = notes_of(building, manifest["format"])
    if notes:
        manifest = manifest | {"notes": notes}
    manifest = sealed(manifest | {"tokenizer": files_digest(tokenizer)})
    # After the tokenizer's files: the card says whether they are there.
    storage.replace_text(building / CARD, model_card(manifest, building))
    storage.replace_text(building / MANIFEST, storage.json_text(manifest, indent=2) + "\n")
    return manifest


def text_ids_of(tokenizer: str) -> TextIds | None:
    """What stands around texts of a tokenizer, where its files are at hand."""
    try:
        return make_tokenizer(tokenizer).text_ids
    except UserError:
        return None  # Its files are elsewhere now; a model can be extracted without them.
