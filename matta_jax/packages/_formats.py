"""The files of a plain model's weights: `orbax`, `safetensors` (our own names) or `hf` (stock
models).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax import storage
from matta_jax.checkpoints import (
    StoredArray,
    Units,
    fingerprints,
    read_meta,
    save_folder,
    stored_arrays,
)
from matta_jax.errors import UserError
from matta_jax.models import Architecture, abstract_params, logical_axes
from matta_jax.nesting import Tree, flatten
from matta_jax.packages._safetensors import open_tensors, require_safetensors, save_tensors
from matta_jax.packages.hf import hf_config, open_hf, to_hf
from matta_jax.tokenizers import TextIds

FORMATS = ("orbax", "safetensors", "hf")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_MEND = "extract it again"


def write_weights(  # noqa: PLR0913  Keyword-only: what stands beside them.
    folder: storage.Path,
    format: str,
    params: Tree,
    architecture: Architecture,
    *,
    config: Mapping[str, Any],
    units: Mapping[str, Units],
    text_ids: TextIds | None = None,
) -> dict[str, dict[str, Any]]:
    """Writes a model's weights into a folder that is there.

    Args:
      folder: of the model.
      format: of `FORMATS`.
      params: the weights.
      architecture: of the model.
      config: of its run.
      units: how each weight is cut into pieces, by path.
      text_ids: of its tokenizer, for `hf`.

    Returns:
      For each tensor `shape`, `dtype`, `fingerprint`, `units`.

    Raises:
      UserError: the format has no room for the model.
    """
    flat = flatten(params)
    if format == "orbax":
        prints = _write_orbax(folder, params, config, units)
    else:
        require_safetensors()
        tensors = {path: np.asarray(leaf) for path, leaf in flat.items()}
        prints = fingerprints(tensors, units)
        if format == "hf":
            dtype = str(next(iter(flat.values())).dtype)
            described = hf_config(architecture, dtype, text_ids)
            tensors = to_hf(tensors, flatten(logical_axes(architecture)), architecture)
            storage.replace_text(
                folder / "config.json", storage.json_text(described, indent=2) + "\n"
            )
        save_tensors(folder, tensors)
    return {
        path: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "units": list(units[path]),
            "fingerprint": prints[path],
        }
        for path, leaf in flat.items()
    }


def _write_orbax(
    folder: storage.Path, params: Tree, config: Mapping[str, Any], units: Mapping[str, Units]
) -> dict[str, str]:
    """Writes a checkpoint; returns the fingerprint of each weight."""
    place = folder / "weights"
    save_folder(place, {"params": params}, {"config": dict(config)}, {"params": units})
    return read_meta(place)["fingerprints"]["params"]


def open_weights(
    folder: storage.Path,
    format: str,
    architecture: Architecture,
    tensors: Mapping[str, Mapping[str, Any]],
) -> dict[str, StoredArray]:
    """Opens the weights that `write_weights` wrote and described; reading them verifies them.

    Raises:
      UserError: files are missing or do not fit the architecture.
    """
    shapes = {
        path: tuple(leaf.shape) for path, leaf in flatten(abstract_params(architecture)).items()
    }
    reads = _readers(folder, format, architecture, shapes)
    if set(reads) < set(shapes):
        missing = min(set(shapes) - set(reads))
        raise UserError(f"model={str(folder)!r} is damaged: tensor {missing} is missing; {_MEND}")
    return {
        path: StoredArray(
            name=f"model={str(folder)!r}: tensor {path}",
            shape=shapes[path],
            dtype=jnp.dtype(about["dtype"]),
            units=tuple(about["units"]),
            fingerprint=about["fingerprint"],
            mend=_MEND,
            read=reads[path],
        )
        for path, about in tensors.items()
    }


def _readers(
    folder: storage.Path,
    format: str,
    architecture: Architecture,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """For each weight, by path, a function that reads the part of an index."""
    if format == "orbax":
        place = folder / "weights"
        if not place.is_dir():
            raise UserError(f"model={str(folder)!r} is damaged: its weights are missing; {_MEND}")
        stored = stored_arrays(place, "params", read_meta(place), mend=_MEND)
        return {path: array.read for path, array in stored.items()}
    if format == "hf":
        foreign = open_hf(folder, mend=_MEND)
        if foreign.architecture != architecture:
            raise UserError(
                f"model={str(folder)!r} is damaged: its config.json is not that of its manifest; "
                f"{_MEND}"
            )
        names = flatten(logical_axes(architecture))
        return dict(foreign.readers(names))
    return open_tensors(folder, shapes, _MEND)


def disk_bytes(folder: storage.Path, format: str) -> int:
    """Bytes of the files of a model's weights, the zeros of `hf` among them."""
    pattern = "weights/**/*" if format == "orbax" else "model.safetensors"
    return sum(file.stat().st_size for file in storage.match(folder, pattern) if file.is_file())


def cast(params: Tree, dtype: str) -> Tree:
    """Rounds weights to `fp32` or `bf16`. Raises UserError for another."""
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    rounded = jnp.dtype(DTYPES[dtype])
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(rounded, copy=False), params)
