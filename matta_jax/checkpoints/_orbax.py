"""Writing and reading whole checkpoints. The only module that touches Orbax.

Orbax loads flipped bits without a word, so every restore computes the fingerprints again and names
what differs. Training keeps many steps in one folder (`Checkpoints`); an extracted model is a
single one (`save_folder`).
"""

import contextlib
import gc
import itertools
import json
import logging
import math
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from matta_jax.checkpoints._pieces import Units, fingerprints, piece_axes, stored_shape
from matta_jax.errors import DamageError, UserError
from matta_jax.nesting import Tree, path_name
from matta_jax.sharding import any_process, is_first, wait_for_all

_POLICIES = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of a run, one for each saved step.

    Args:
      directory: where they lie; made when absent unless `read_only`.
      keep: the newest steps to keep, beside the one of the lowest `loss`.
      read_only: for readers, which must not clear away what a running writer has half written.
    """

    def __init__(self, directory: str | pathlib.Path, *, keep: int = 1, read_only: bool = False):
        self.directory = pathlib.Path(directory).resolve()
        if read_only and not self.directory.is_dir():
            raise UserError(
                f"checkpoint {str(directory)!r} does not exist; name the workdir of a run"
            )
        self._keep, self._read_only = keep, read_only
        self._open()

    def _open(self) -> None:
        policy = _POLICIES.AnyPreservationPolicy(
            [
                _POLICIES.LatestN(self._keep),
                _POLICIES.BestN(get_metric_fn=lambda m: m["loss"], reverse=True, n=1),
            ]
        )
        self._checkpointer = ocp.training.Checkpointer(
            self.directory, preservation_policy=policy, cleanup_tmp_directories=not self._read_only
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """Steps that are wholly written, rising."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(
        self,
        step: int,
        trees: Mapping[str, Tree],
        meta: Mapping[str, Any],
        *,
        loss: float,
        units: Mapping[str, Mapping[str, Units]] | None = None,
    ) -> None:
        """Starts to write `trees` in the background; returns once their values are safe to
        overwrite.

        Args:
          step: of the run.
          trees: by name.
          meta: the JSON document.
          loss: of the step; the lowest is kept.
          units: how arrays are cut, by name of the tree and path; others are one piece.
        """
        with _chunked(units or {}):
            self._checkpointer.save_checkpointables_async(
                step,
                _stored_view(trees, units or {}),
                force=True,
                metrics={"loss": loss},
                custom_metadata=_with_fingerprints(meta, trees, units or {}),
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
            others = ", ".join(map(str, (other for other in self.steps if other != step))) or "none"
            mend = f"use another step (there: {others})"
        return _verified(path, abstract, read_meta(path, mend=mend), mend=mend)

    def set_aside(self, step: int) -> pathlib.Path:
        """Moves a damaged step out of the way of a new one, to `damaged/` beside the folder;
        returns its new place.
        """
        self._checkpointer.close()
        taken = self.directory.parent / "damaged"
        place = next(
            p
            for n in itertools.count()
            if not (p := taken / (f"{step}" if not n else f"{step}.{n}")).exists()
        )
        wait_for_all(f"matta_jax/found/{step}")
        if is_first():
            taken.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(place)
        wait_for_all(f"matta_jax/set_aside/{step}")
        self._open()
        return place


def locate(checkpoint: str) -> tuple[pathlib.Path, int]:
    """Finds `D[@STEP]`: D is a run's workdir or its folder of checkpoints; without STEP, the
    newest.

    Raises:
      UserError: no such folder, no checkpoint in it, or not this step.
    """
    folder, at, text = checkpoint.rpartition("@")
    if not at:
        folder, text = checkpoint, ""
    root = pathlib.Path(folder).resolve()
    if (root / "checkpoints").is_dir():
        root = root / "checkpoints"
    with Checkpoints(root, read_only=True) as checkpoints:
        steps = checkpoints.steps
    if not steps:
        raise UserError(
            f"checkpoint={checkpoint!r} holds no checkpoint; name the workdir of a run that has "
            "saved one"
        )
    if not text:
        return root, steps[-1]
    if not text.isdigit() or int(text) not in steps:
        raise UserError(
            f"checkpoint={checkpoint!r} has no step {text!r}; steps: {', '.join(map(str, steps))}"
        )
    return root, int(text)


def save_folder(
    path: pathlib.Path,
    trees: Mapping[str, Tree],
    meta: Mapping[str, Any],
    units: Mapping[str, Mapping[str, Units]] | None = None,
) -> None:
    """Writes one checkpoint as a folder of its own, synchronously; `units` as in
    `Checkpoints.save`.
    """
    with _chunked(units or {}):
        ocp.save_checkpointables(
            path.resolve(),
            _stored_view(trees, units or {}),
            custom_metadata=_with_fingerprints(meta, trees, units or {}),
        )


def load_folder(path: pathlib.Path, abstract: Mapping[str, Tree]) -> dict[str, Tree]:
    """Reads and verifies a folder that `save_folder` wrote. Raises UserError as
    `Checkpoints.restore` does.
    """
    path = path.resolve()
    return _verified(path, abstract, read_meta(path), mend="extract it again")


def on_one_device(abstract: Tree) -> Tree:
    """Gives abstract arrays the sharding of the first device."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract
    )


def _with_fingerprints(
    meta: Mapping[str, Any], trees: Mapping[str, Tree], units: Mapping[str, Mapping[str, Units]]
) -> dict[str, Any]:
    own = {name: fingerprints(tree, units.get(name)) for name, tree in trees.items()}
    listed = {
        name: {path: list(unit) for path, unit in leaves.items()} for name, leaves in units.items()
    }
    return dict(meta) | {"fingerprints": own, "units": listed}


@contextlib.contextmanager
def _chunked(units: Mapping[str, Mapping[str, Units]]) -> Iterator[None]:
    """Makes each piece a chunk. Float weights hardly compress, and reading is faster without."""
    by_path = {path: unit for leaves in units.values() for path, unit in leaves.items()}

    def storage(key_path: Any, _: Any) -> Any:
        unit = by_path.get(path_name(key_path))
        return ocp.options.ArrayOptions.Saving.StorageOptions(
            shard_axes=piece_axes(unit) if unit else None
        )

    context = ocp.Context()
    context.array.saving.use_compression = False
    context.array.saving.scoped_storage_options_creator = storage
    with context:
        yield


def _stored_view(
    trees: Mapping[str, Tree], units: Mapping[str, Mapping[str, Units]]
) -> dict[str, Tree]:
    """The trees in the shapes that are stored."""
    return {
        name: _map_split(
            lambda leaf, unit: leaf.reshape(stored_shape(leaf.shape, unit)),
            tree,
            units.get(name, {}),
        )
        for name, tree in trees.items()
    }


def _map_split(
    function: Callable[[Any, Units], Any], tree: Tree, units: Mapping[str, Units]
) -> Tree:
    """Maps the arrays that have an axis split in two."""

    def visit(key_path: Any, leaf: Any) -> Any:
        unit = units.get(path_name(key_path), ())
        return function(leaf, tuple(unit)) if any(u > 1 for u in unit) else leaf

    return jax.tree_util.tree_map_with_path(visit, tree)


def _abstract_view(leaf: jax.ShapeDtypeStruct, units: Units) -> jax.ShapeDtypeStruct:
    """What is stored of an array; a split axis is sharded by its inner part, where this divides, or
    not at all.
    """
    shape, sharding = stored_shape(leaf.shape, units), leaf.sharding
    if isinstance(sharding, NamedSharding):
        spec: list[Any] = []
        for own, unit in zip(
            [*sharding.spec, *([None] * (len(units) - len(sharding.spec)))], units, strict=True
        ):
            names = () if own is None else own if isinstance(own, tuple) else (own,)
            parts = math.prod(sharding.mesh.shape[name] for name in names)
            spec += [None, own if unit % parts == 0 else None] if unit > 1 else [own]
        sharding = NamedSharding(sharding.mesh, P(*spec))
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)


def _merged(stored: jax.Array, whole: jax.ShapeDtypeStruct) -> jax.Array:
    """An array in its own shape again."""
    if stored.shape == whole.shape:
        return stored
    return jax.jit(lambda x: x.reshape(whole.shape), out_shardings=whole.sharding)(stored)


def read_meta(path: pathlib.Path, *, mend: str = "name another") -> dict[str, Any]:
    """The JSON document of a checkpoint. Raises DamageError, which ends with `mend`, when it cannot
    be read.
    """
    file = path / "_CHECKPOINT_METADATA"
    if not file.is_file():
        raise DamageError(
            f"checkpoint {str(path)!r} is not a checkpoint ({file.name} is missing); {mend}"
        )
    try:
        meta = json.loads(file.read_text())["custom_metadata"]
        return {
            "config": meta["config"],
            "fingerprints": meta["fingerprints"],
            "units": meta["units"],
        } | meta
    except (ValueError, TypeError, KeyError):
        raise DamageError(
            f"checkpoint {str(path)!r} is damaged ({file.name} cannot be read); {mend}"
        ) from None


def _load(path: pathlib.Path, abstract: Mapping[str, Tree]) -> tuple[dict[str, Tree], str]:
    """Returns the trees, or what went wrong in one line."""
    with _without_complaints(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ocp.load_checkpointables(path, dict(abstract)), ""
        except Exception as error:  # Orbax and tensorstore raise many kinds for unreadable files.
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        for _ in range(5):  # Its threads let go of what failed a little later.
            gc.collect()
            time.sleep(0.1)
        return {}, failure


@contextlib.contextmanager
def _without_complaints() -> Iterator[None]:
    """A failed read of Orbax leaves tasks of a closed event loop, which complain when they end or
    are freed.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.getLogger("asyncio").disabled = True
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logging.getLogger("asyncio").disabled = False


def _verified(
    path: pathlib.Path, abstract: Mapping[str, Tree], meta: Mapping[str, Any], *, mend: str
) -> dict[str, Tree]:
    damaged = f"checkpoint {str(path)!r} is damaged"
    units = {name: meta["units"].get(name, {}) for name in abstract}
    trees, failure = _load(
        path,
        {name: _map_split(_abstract_view, tree, units[name]) for name, tree in abstract.items()},
    )
    if any_process(bool(failure)):
        raise DamageError(f"{damaged}: {failure or 'another process cannot read it'}; {mend}")
    for name in abstract:
        trees[name] = jax.tree.map(_merged, trees[name], abstract[name])
        saved = meta["fingerprints"].get(name, {})
        own = {leaf: tuple(unit) for leaf, unit in units[name].items()}
        for leaf, value in fingerprints(trees[name], own).items():
            if saved.get(leaf) != value:
                raise DamageError(
                    f"{damaged}: array {name}/{leaf} differs from its fingerprint; {mend}"
                )
    return trees
