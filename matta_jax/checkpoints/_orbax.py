"""Writing and reading whole checkpoints. The only module that touches Orbax.

Orbax loads flipped bits without a word, so every restore computes the fingerprints again and names
what differs. Training keeps many steps in one folder (`Checkpoints`); an extracted model is a
single one (`save_folder`).
"""

import contextlib
import gc
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from matta_jax import stops, storage
from matta_jax.checkpoints._pieces import Units, fingerprints, piece_axes
from matta_jax.checkpoints._retention import StepNames, mend_losses
from matta_jax.checkpoints._steps import METADATA, check_free, saved_steps
from matta_jax.checkpoints._views import UnitsByTree, abstract_view, merged, stored_view
from matta_jax.errors import DamageError, UserError
from matta_jax.nesting import Tree, path_name
from matta_jax.sharding import any_process, is_first, wait_for_all

_POLICIES = ocp.training.preservation_policies
# As Orbax names a step that is not yet whole.
_HALF_WRITTEN = "*.orbax-checkpoint-tmp*"
# Threads of a failed read let go of it within this many pauses of this many seconds.
_RELEASE_PAUSES = 5
_RELEASE_SECONDS = 0.1


class Checkpoints:
    """The checkpoints of a run, one for each saved step.

    Args:
      directory: where they lie; made when absent unless `read_only`.
      keep: the newest steps to keep, beside the one of the lowest `loss`.
      read_only: for readers, which must not clear away what a running writer has half written.
    """

    def __init__(self, directory: str | storage.Path, *, keep: int = 1, read_only: bool = False):
        self.directory = storage.resolve(directory)
        if read_only and not self.directory.is_dir():
            raise UserError(
                f"checkpoint {str(directory)!r} does not exist; name the workdir of a run"
            )
        self._keep = keep
        self._read_only = read_only
        self._open()

    def _open(self) -> None:
        # A reader needs no more than the files, and Orbax would stumble over damaged steps.
        if self._read_only:
            return
        newest = _POLICIES.LatestN(self._keep)
        best = _POLICIES.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1)
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            preservation_policy=_POLICIES.AnyPreservationPolicy([newest, best]),
            step_name_format=StepNames(mend_losses(self.directory)),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._read_only:
            return
        is_whole = False
        try:
            # Waits for what is still being written.
            with stops.held():
                self._checkpointer.close()
            is_whole = kind is None
        finally:
            if not is_whole and is_first():
                self._clear_away()

    def _clear_away(self) -> None:
        """Removes what is half written and never will be whole, as on a full disk; also what
        threads that a signal broke off make a little later.
        """
        for _ in range(_RELEASE_PAUSES):
            for folder in storage.match(self.directory, _HALF_WRITTEN):
                storage.remove_folder(folder)
            time.sleep(_RELEASE_SECONDS)
            if not storage.match(self.directory, _HALF_WRITTEN):
                return

    def wait(self) -> None:
        """Returns when what `save` has started is written."""
        if not self._read_only:
            self._checkpointer.wait()

    @property
    def steps(self) -> list[int]:
        """Steps that are wholly written, rising."""
        return saved_steps(self.directory)

    def save(
        self,
        step: int,
        trees: Mapping[str, Tree],
        meta: Mapping[str, Any],
        *,
        loss: float,
        units: UnitsByTree | None = None,
    ) -> None:
        """Starts to write `trees` in the background; returns once their values are safe to
        overwrite.

        Args:
          step: of the run.
          trees: by name.
          meta: the JSON document.
          loss: of the step; the lowest is kept.
          units: how arrays are cut, by name of the tree and path; others are one piece.

        Raises:
          UserError: a folder that is no checkpoint has the place of the step.
        """
        check_free(self.directory, [step])
        units = units or {}
        with _chunked(units):
            self._checkpointer.save_checkpointables_async(
                step,
                stored_view(trees, units, is_copied=True),
                force=True,
                metrics={"loss": loss},
                custom_metadata=_with_fingerprints(meta, trees, units),
            )

    def meta(self, step: int, *, mend: str = "use another step") -> dict[str, Any]:
        """The JSON document of a step. Raises DamageError, which ends with `mend`, when it cannot
        be read.
        """
        return read_meta(self.directory / str(step), mend=mend)

    def restore(
        self, step: int, abstract: Mapping[str, Tree], *, mend: str | None = None
    ) -> dict[str, Tree]:
        """Reads trees of the given shapes and shardings, and verifies them.

        Raises:
          DamageError: an array is missing, of another shape, or differs from its fingerprint; it
            ends with `mend`.
        """
        path = self.directory / str(step)
        if mend is None:
            alternatives = [str(saved) for saved in self.steps if saved != step]
            mend = f"use another step (there: {', '.join(alternatives) or 'none'})"
        return _verified(path, abstract, read_meta(path, mend=mend), mend=mend)

    def set_aside(self, step: int) -> storage.Path:
        """Moves a damaged step out of the way of a new one, to `damaged/` beside the folder;
        returns its new place.
        """
        self._checkpointer.close()
        place = _free_place(self.directory.parent / "damaged", step)

        # Every process has to look for the place before the first one fills it.
        wait_for_all(f"matta_jax/found/{step}")
        if is_first():
            storage.make_folder(place.parent)
            storage.move_folder(self.directory / str(step), place)
        wait_for_all(f"matta_jax/set_aside/{step}")

        self._open()
        return place


def _free_place(folder: storage.Path, step: int) -> storage.Path:
    """The first of `STEP`, `STEP.1`, `STEP.2`... in a folder that is not there."""
    place = folder / str(step)
    number = 0
    while place.exists():
        number += 1
        place = folder / f"{step}.{number}"
    return place


def save_folder(
    path: storage.Path,
    trees: Mapping[str, Tree],
    meta: Mapping[str, Any],
    units: UnitsByTree | None = None,
) -> None:
    """Writes one checkpoint as a folder of its own, synchronously; `units` as in
    `Checkpoints.save`.
    """
    units = units or {}
    with _chunked(units):
        ocp.save_checkpointables(
            path.resolve(),
            stored_view(trees, units),
            custom_metadata=_with_fingerprints(meta, trees, units),
        )


def load_folder(path: storage.Path, abstract: Mapping[str, Tree]) -> dict[str, Tree]:
    """Reads and verifies a folder that `save_folder` wrote. Raises UserError as
    `Checkpoints.restore` does.
    """
    path = path.resolve()
    return _verified(path, abstract, read_meta(path), mend="extract it again")


def on_one_device(abstract: Tree) -> Tree:
    """Gives abstract arrays the sharding of the first device."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first)

    return jax.tree.map(placed, abstract)


def _with_fingerprints(
    meta: Mapping[str, Any], trees: Mapping[str, Tree], units: UnitsByTree
) -> dict[str, Any]:
    """The document of a checkpoint: `meta`, and what proves and cuts its arrays."""
    prints = {name: fingerprints(tree, units.get(name)) for name, tree in trees.items()}
    # JSON has no tuples.
    unit_lists = {
        name: {path: list(unit) for path, unit in tree_units.items()}
        for name, tree_units in units.items()
    }
    return dict(meta) | {"fingerprints": prints, "units": unit_lists}


@contextlib.contextmanager
def _chunked(units: UnitsByTree) -> Iterator[None]:
    """Makes each piece a chunk. Float weights hardly compress, and reading is faster without."""
    unit_of: dict[str, Units] = {}
    for tree_units in units.values():
        unit_of |= tree_units

    def storage_options(key_path: Any, _: Any) -> Any:
        unit = unit_of.get(path_name(key_path))
        axes = piece_axes(unit) if unit else None
        return ocp.options.ArrayOptions.Saving.StorageOptions(shard_axes=axes)

    context = ocp.Context()
    context.array.saving.use_compression = False
    context.array.saving.scoped_storage_options_creator = storage_options
    with context:
        yield


def read_meta(path: storage.Path, *, mend: str = "name another") -> dict[str, Any]:
    """The JSON document of a checkpoint. Raises DamageError, which ends with `mend`, when it cannot
    be read.
    """
    file = path / METADATA
    if not file.is_file():
        raise DamageError(
            f"checkpoint {str(path)!r} is not a checkpoint ({file.name} is missing); {mend}"
        )

    try:
        meta = storage.read_json(file)["custom_metadata"]
        # Without these it is damaged, too.
        needed = {name: dict(meta[name]) for name in ("config", "fingerprints", "units")}
        return meta | needed
    except (OSError, ValueError, TypeError, KeyError):
        raise DamageError(
            f"checkpoint {str(path)!r} is damaged ({file.name} cannot be read); {mend}"
        ) from None


def _load(path: storage.Path, abstract: Mapping[str, Tree]) -> tuple[dict[str, Tree], str]:
    """Returns the trees, or what went wrong in one line."""
    with _without_complaints(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ocp.load_checkpointables(path, dict(abstract)), ""
        except Exception as error:  # Orbax and tensorstore raise many kinds for unreadable files.
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

        # Its threads let go of what failed a little later; what they hold complains when it goes.
        for _ in range(_RELEASE_PAUSES):
            gc.collect()
            time.sleep(_RELEASE_SECONDS)
        return {}, failure


@contextlib.contextmanager
def _without_complaints() -> Iterator[None]:
    """A failed read of Orbax leaves tasks of a closed event loop, which complain when they end or
    are freed.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    logging.getLogger("asyncio").disabled = True
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logging.getLogger("asyncio").disabled = False


def _verified(
    path: storage.Path, abstract: Mapping[str, Tree], meta: Mapping[str, Any], *, mend: str
) -> dict[str, Tree]:
    """Reads trees, and computes their fingerprints again."""
    damaged = f"checkpoint {str(path)!r} is damaged"
    units = {name: meta["units"].get(name, {}) for name in abstract}
    stored = {name: abstract_view(tree, units[name]) for name, tree in abstract.items()}

    trees, failure = _load(path, stored)
    # All processes raise, or none: one alone would wait for the others for ever.
    if any_process(bool(failure)):
        raise DamageError(f"{damaged}: {failure or 'another process cannot read it'}; {mend}")

    for name in abstract:
        trees[name] = jax.tree.map(merged, trees[name], abstract[name])
        unit_of = {leaf: tuple(unit) for leaf, unit in units[name].items()}
        saved = meta["fingerprints"].get(name, {})
        for leaf, value in fingerprints(trees[name], unit_of).items():
            if saved.get(leaf) != value:
                raise DamageError(
                    f"{damaged}: array {name}/{leaf} differs from its fingerprint; {mend}"
                )
    return trees
