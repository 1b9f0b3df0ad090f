"""The files of a plain model's weights: `orbax`, `safetensors` (our own names), `hf` or `vllm`
(Hugging Face's), `timm`, or `gguf` (llama.cpp's).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from matta_jax import storage
from matta_jax.checkpoints import (
    StoredArray,
    Units,
    fingerprint,
    read_meta,
    save_folder,
    stored_arrays,
)
from matta_jax.errors import UserError
from matta_jax.models import Architecture, abstract_params, count_model, logical_axes
from matta_jax.nesting import Counts, Tree, flatten, unflatten
from matta_jax.packages._packaging import DTYPES, FOREIGN_FORMATS, Packaging, at_dtype
from matta_jax.packages._safetensors import open_tensors, require_safetensors, save_tensors
from matta_jax.packages._weights import Recorded, Weight, cast, described
from matta_jax.packages.gguf import (
    FILE_NAME,
    check_gguf,
    check_loss,
    file_notes,
    kind_of,
    open_written,
    rounded_params,
    tensor_bytes,
    weight_bytes,
    write_gguf,
)
from matta_jax.packages.hf import Reader, hf_companions, hf_config, hf_shapes, open_hf, to_hf
from matta_jax.tokenizers import TextIds, resolved_tokenizer

_MEND = "extract it again"


def check_format(packaging: Packaging, architecture: Architecture) -> None:
    """Raises UserError where the format has no room for a model."""
    if packaging.style is not None:
        hf_config(architecture, DTYPES[packaging.dtype], None, packaging.style)
    if packaging.format == "timm":
        _check_single_file(packaging, architecture)
    if packaging.format == "gguf":
        check_gguf(architecture, packaging.gguf_type)


def pads_layers(packaging: Packaging, architecture: Architecture) -> bool:
    """Whether layers of several sizes are padded to the widest."""
    if packaging.format == "gguf":
        return not kind_of(architecture).has_layer_sizes
    return packaging.pad


def _check_single_file(packaging: Packaging, architecture: Architecture) -> None:
    """Raises UserError where a model has not room in one file: timm reads no index of several."""
    stored = count_model(architecture, 1).parameters
    size = stored * jnp.dtype(DTYPES[packaging.dtype]).itemsize
    if size > packaging.shard_bytes:
        raise UserError(
            f"max_shard_gb={packaging.max_shard_gb} must be at least {size / 1e9:.3g} GB, the size "
            "of the model: with format='timm' all weights are in one file"
        )


def rounded(params: Tree, packaging: Packaging, architecture: Architecture) -> Tree:
    """The weights of a model in memory as its files give them back; as they are, where these alone
    tell it (`given_back`).
    """
    params = cast(params, packaging.dtype)
    if packaging.format != "gguf" or packaging.numbers == packaging.dtype or packaging.is_k_quant:
        return params
    return rounded_params(params, architecture, packaging.gguf_type)


def given_back(params: Tree, packaging: Packaging, written: Mapping[str, StoredArray]) -> Tree:
    """The weights that a model's files hold: those that were `rounded`, or where these alone tell
    it, what is read of them.
    """
    if not packaging.is_k_quant:
        return params
    return unflatten({path: array.whole() for path, array in written.items()})


def counts_in(
    packaging: Packaging, counts: Counts, architecture: Architecture, folder: storage.Path
) -> Counts:
    """The counts of a model that is stored so, in a folder that is written."""
    if packaging.numbers == packaging.dtype:
        return at_dtype(counts, packaging.dtype)
    if packaging.is_k_quant:
        return dataclasses.replace(counts, bytes=tensor_bytes(folder / FILE_NAME))
    return dataclasses.replace(counts, bytes=weight_bytes(architecture, packaging.gguf_type))


def notes_of(folder: storage.Path, format: str) -> list[str]:
    """What a folder's files cannot do, a line each."""
    return file_notes(folder) if format == "gguf" else []


def write_weights(  # noqa: PLR0913  Keyword-only: what stands beside them.
    folder: storage.Path,
    packaging: Packaging,
    weights: Mapping[str, Weight],
    architecture: Architecture,
    *,
    config: Mapping[str, Any],
    units: Mapping[str, Units],
    text_ids: TextIds | None = None,
) -> dict[str, dict[str, Any]]:
    """Writes a model's weights into a folder that is there. Each is read once; with all formats but
    `orbax` no more than a file of them is in memory.

    Args:
      folder: of the model.
      packaging: format, type and size of the files.
      weights: by path; for a quantised `gguf` as `rounded` has made them.
      architecture: of the model.
      config: of its run.
      units: how each weight is cut into pieces, by path.
      text_ids: of its tokenizer, for `hf` and `vllm`.

    Returns:
      For each tensor `shape`, `dtype`, `fingerprint`, `units`.

    Raises:
      UserError: the format has no room for the model.
    """
    weights = {path: weight.rounded(packaging.dtype) for path, weight in weights.items()}
    if packaging.format == "orbax":
        params = unflatten(
            {path: weight.assembled(units[path]) for path, weight in weights.items()}
        )
        return described(weights, units, _write_orbax(folder, params, config, units))

    recorded = {path: Recorded(weight, units[path]) for path, weight in weights.items()}
    to_write = {path: record.weight for path, record in recorded.items()}
    if packaging.format == "gguf":
        tokenizer = resolved_tokenizer(config["data"]["tokenizer"], folder)
        write_gguf(folder, to_write, architecture, packaging.gguf_type, tokenizer)
        if packaging.is_k_quant:
            prints = _prints_of_file(folder, packaging, weights, architecture, units)
        else:
            prints = {path: record.fingerprint for path, record in recorded.items()}
        return described(weights, units, prints)

    require_safetensors()
    style = packaging.style
    if style is not None:
        described_model = hf_config(architecture, DTYPES[packaging.dtype], text_ids, style)
        _write_documents(folder, described_model, architecture, style)
        tensors = to_hf(to_write, flatten(logical_axes(architecture)), architecture, style)
        shapes = hf_shapes(architecture, style)
    else:
        tensors = ((path, weight.assembled(units[path])) for path, weight in to_write.items())
        shapes = {path: weight.shape for path, weight in weights.items()}
    itemsize = jnp.dtype(DTYPES[packaging.dtype]).itemsize
    sizes = {name: math.prod(shape) * itemsize for name, shape in shapes.items()}
    save_tensors(folder, tensors, sizes, packaging.shard_bytes)
    prints = {path: record.fingerprint for path, record in recorded.items()}
    return described(weights, units, prints)


def _prints_of_file(
    folder: storage.Path,
    packaging: Packaging,
    weights: Mapping[str, Weight],
    architecture: Architecture,
    units: Mapping[str, Units],
) -> dict[str, str]:
    """The fingerprint of each weight as a file gives it back. Raises UserError for one that is far
    from what was written.
    """
    prints = {}
    for path, read in open_written(folder, architecture, _MEND).items():
        values = read((slice(None),) * len(weights[path].shape)).astype(np.float32, copy=False)
        check_loss(path, values, weights[path].whole(), packaging.gguf_type)
        prints[path] = fingerprint(values, units[path])
    return prints


def _write_documents(
    folder: storage.Path,
    described_model: Mapping[str, Any],
    architecture: Architecture,
    style: str,
) -> None:
    """Writes a config.json, and what libraries read beside it."""
    texts, tensors = hf_companions(architecture, style)
    texts = {"config.json": storage.json_text(described_model, indent=2) + "\n", **texts}
    for name, text in texts.items():
        storage.make_folder((folder / name).parent)
        storage.replace_text(folder / name, text)
    for name, parts in tensors.items():
        sizes = {part: array.nbytes for part, array in parts.items()}
        save_tensors(folder / name, parts.items(), sizes, sum(sizes.values()))


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
            read=_read_as(jnp.dtype(about["dtype"]), reads[path]),
        )
        for path, about in tensors.items()
    }


def _read_as(dtype: np.dtype, read: Reader) -> Reader:
    """A reader of a type, which a GGUF file of bfloat16 has only in part."""
    return lambda index: read(index).astype(dtype, copy=False)


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
    if format in FOREIGN_FORMATS:
        foreign = open_hf(folder, mend=_MEND)
        if foreign.architecture != architecture:
            raise UserError(
                f"model={str(folder)!r} is damaged: its config.json is not that of its manifest; "
                f"{_MEND}"
            )
        names = flatten(logical_axes(architecture))
        return dict(foreign.readers(names))
    if format == "gguf":
        return dict(open_written(folder, architecture, _MEND))
    return open_tensors(folder, shapes, _MEND)


def disk_bytes(folder: storage.Path, format: str) -> int:
    """Bytes of the files of a model's weights, the zeros of `hf` among them."""
    pattern = {"orbax": "weights/**/*", "gguf": FILE_NAME}.get(format, "*.safetensors")
    return sum(storage.num_bytes(file) for file in storage.match(folder, pattern) if file.is_file())
