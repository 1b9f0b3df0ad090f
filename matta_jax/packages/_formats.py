"""The files of a plain model's weights: `orbax`, `safetensors` (our own names) or `hf` (stock
GPT-2).
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.checkpoints import (
    StoredArray,
    Units,
    fingerprints,
    read_meta,
    save_folder,
    stored_arrays,
)
from matta_jax.errors import UserError
from matta_jax.files import replace_text
from matta_jax.models import Architecture, abstract_params, logical_axes
from matta_jax.nesting import Tree, flatten
from matta_jax.packages import _hf

FORMATS = ("orbax", "safetensors", "hf")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_MEND = "extract it again"


def write_weights(
    folder: pathlib.Path,
    format: str,
    params: Tree,
    architecture: Architecture,
    *,
    config: Mapping[str, Any],
    units: Mapping[str, Units],
    eos_id: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Writes a model's weights into a folder that is there; returns for each tensor `shape`,
    `dtype`, `fingerprint`, `units`. Raises UserError when the format has no room for the model."""
    flat = flatten(params)
    if format == "orbax":
        save_folder(
            folder / "weights", {"params": params}, {"config": dict(config)}, {"params": units}
        )
        prints = read_meta(folder / "weights")["fingerprints"]["params"]
    else:
        safetensors = _hf.require_safetensors()
        tensors = {path: np.asarray(leaf) for path, leaf in flat.items()}
        prints = fingerprints(tensors, units)
        prints = {path: prints[path] for path in flat}
        if format == "hf":
            described = _hf.hf_config(architecture, str(next(iter(flat.values())).dtype), eos_id)
            tensors = _hf.to_hf(tensors, flatten(logical_axes(architecture)), architecture)
            replace_text(folder / "config.json", json.dumps(described, indent=2) + "\n")
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        safetensors.numpy.save_file(
            contiguous, folder / "model.safetensors", metadata={"format": "pt"}
        )
        (folder / "model.safetensors").chmod(
            0o644
        )  # The library's own mode is for its owner alone.
    return {
        path: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "units": list(units[path]),
            "fingerprint": prints[path],
        }
        for path, leaf in flat.items()
    }


def open_weights(
    folder: pathlib.Path,
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
    if format == "orbax":
        path = folder / "weights"
        if not path.is_dir():
            raise UserError(f"model={str(folder)!r} is damaged: its weights are missing; {_MEND}")
        reads = {
            leaf: array.read
            for leaf, array in stored_arrays(path, "params", read_meta(path), mend=_MEND).items()
        }
    elif format == "hf":
        if _hf.architecture_of_hf(folder, mend=_MEND) != architecture:
            raise UserError(
                f"model={str(folder)!r} is damaged: its config.json is not that of its manifest; "
                f"{_MEND}"
            )
        reads = dict(
            _hf.readers(folder, architecture, flatten(logical_axes(architecture)), mend=_MEND)
        )
    else:
        reads = _safetensors_readers(folder, shapes)
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


def _safetensors_readers(
    folder: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    try:
        file = _hf.require_safetensors().safe_open(folder / "model.safetensors", "np")
        found = {path: tuple(file.get_slice(path).get_shape()) for path in list(file.keys())}
    except UserError:
        raise
    except Exception as error:  # The library raises its own and several others for damaged files.
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"model={str(folder)!r} is damaged ({detail}); {_MEND}") from None
    if found != dict(shapes):
        raise UserError(
            f"model={str(folder)!r} is damaged: model.safetensors holds other tensors; {_MEND}"
        )
    return {
        path: lambda index, path=path: np.asarray(file.get_slice(path)[index]) for path in found
    }


def cast(params: Tree, dtype: str) -> Tree:
    """Rounds weights to `fp32` or `bf16`. Raises UserError for another."""
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    return jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(jnp.dtype(DTYPES[dtype]), copy=False), params
    )
