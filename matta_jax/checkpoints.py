"""Checkpoints that carry their own truth. The only module that touches Orbax.

Beside its arrays a checkpoint holds a JSON document: the config, the logical axes, and a fingerprint of each array.
Orbax loads flipped bits without a word, so every restore computes the fingerprints again and names what differs.
Training keeps many steps in one folder (`Checkpoints`); an extracted model is a single one (`save_folder`).
"""

import gc
import json
import pathlib
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from matta_jax.errors import UserError
from matta_jax.nesting import Tree

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
            raise UserError(f"checkpoint {str(directory)!r} does not exist; name the workdir of a run")
        policy = _POLICIES.AnyPreservationPolicy(
            [_POLICIES.LatestN(keep), _POLICIES.BestN(get_metric_fn=lambda m: m["loss"], reverse=True, n=1)]
        )
        self._checkpointer = ocp.training.Checkpointer(
            self.directory, preservation_policy=policy, cleanup_tmp_directories=not read_only
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """Steps that are wholly written, rising."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step: int, trees: Mapping[str, Tree], meta: Mapping[str, Any], *, loss: float) -> None:
        """Starts to write `trees` in the background; returns once their values are safe to overwrite."""
        self._checkpointer.save_checkpointables_async(
            step, dict(trees), force=True, metrics={"loss": loss}, custom_metadata=_with_fingerprints(meta, trees)
        )

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON document of a step. Raises UserError when it cannot be read."""
        return _read_meta(self.directory / str(step))

    def restore(self, step: int, abstract: Mapping[str, Tree]) -> dict[str, Tree]:
        """Reads trees of the given shapes and shardings, and verifies them.

        Raises:
          UserError: an array is missing, of another shape, or differs from its fingerprint.
        """
        path = self.directory / str(step)
        others = ", ".join(map(str, (other for other in self.steps if other != step))) or "none"
        return _verified(path, abstract, _read_meta(path), mend=f"use another step (there: {others})")


def locate(checkpoint: str) -> tuple[pathlib.Path, int]:
    """Finds `D[@STEP]`: D is a run's workdir or its folder of checkpoints; without STEP, the newest.

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
        raise UserError(f"checkpoint={checkpoint!r} holds no checkpoint; name the workdir of a run that has saved one")
    if not text:
        return root, steps[-1]
    if not text.isdigit() or int(text) not in steps:
        raise UserError(f"checkpoint={checkpoint!r} has no step {text!r}; steps: {', '.join(map(str, steps))}")
    return root, int(text)


def save_folder(path: pathlib.Path, trees: Mapping[str, Tree], meta: Mapping[str, Any]) -> None:
    """Writes one checkpoint as a folder of its own, synchronously."""
    ocp.save_checkpointables(path.resolve(), dict(trees), custom_metadata=_with_fingerprints(meta, trees))


def load_folder_meta(path: pathlib.Path) -> dict[str, Any]:
    """The JSON document of a folder that `save_folder` wrote. Raises UserError when there is none."""
    return _read_meta(path.resolve())


def load_folder(path: pathlib.Path, abstract: Mapping[str, Tree]) -> dict[str, Tree]:
    """Reads and verifies a folder that `save_folder` wrote. Raises UserError as `Checkpoints.restore` does."""
    path = path.resolve()
    return _verified(path, abstract, _read_meta(path), mend="extract it again")


def on_one_device(abstract: Tree) -> Tree:
    """Gives abstract arrays the sharding of the first device."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract)


def fingerprints(tree: Tree) -> dict[str, str]:
    """Returns 64 bits, in hex, for each array of a tree, by its path.

    Sums of a bijective mix of each element's bits and its position, modulo 2^32: any one changed element changes the
    sum, the order of summation does not, so it is computed in place on any sharding.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    sums = jax.device_get([_fingerprint(leaf) for _, leaf in leaves])
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{int(a):08x}{int(b):08x}"
        for (path, _), (a, b) in zip(leaves, sums, strict=True)
    }


@jax.jit
def _fingerprint(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    position = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    mixed = _mix(bits ^ _mix(position + jnp.uint32(0x9E3779B9)))
    return jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(_mix(mixed ^ jnp.uint32(0x85EBCA77)), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: a bijection of 32 bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _with_fingerprints(meta: Mapping[str, Any], trees: Mapping[str, Tree]) -> dict[str, Any]:
    return dict(meta) | {"fingerprints": {name: fingerprints(tree) for name, tree in trees.items()}}


def _read_meta(path: pathlib.Path) -> dict[str, Any]:
    file = path / "_CHECKPOINT_METADATA"
    if not file.is_file():
        raise UserError(f"checkpoint {str(path)!r} is not a checkpoint ({file.name} is missing); name another")
    try:
        meta = json.loads(file.read_text())["custom_metadata"]
        return {"config": meta["config"], "fingerprints": meta["fingerprints"]} | meta
    except (ValueError, TypeError, KeyError):
        raise UserError(f"checkpoint {str(path)!r} is damaged ({file.name} cannot be read); name another") from None


def _load(path: pathlib.Path, abstract: Mapping[str, Tree]) -> tuple[dict[str, Tree], str]:
    """Returns the trees, or what went wrong in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ocp.load_checkpointables(path, dict(abstract)), ""
    except Exception as error:  # Orbax and tensorstore raise many kinds for unreadable files.
        return {}, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _collect_quietly() -> None:
    """A failed read of Orbax leaves coroutines of a closed event loop, which would complain whenever they are freed."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _verified(
    path: pathlib.Path, abstract: Mapping[str, Tree], meta: Mapping[str, Any], *, mend: str
) -> dict[str, Tree]:
    damaged = f"checkpoint {str(path)!r} is damaged"
    trees, failure = _load(path, abstract)
    if failure:
        _collect_quietly()
        raise UserError(f"{damaged}: {failure}; {mend}")
    for name, tree in trees.items():
        saved = meta["fingerprints"].get(name, {})
        for leaf, value in fingerprints(tree).items():
            if saved.get(leaf) != value:
                raise UserError(f"{damaged}: array {name}/{leaf} differs from its fingerprint; {mend}")
    return trees
