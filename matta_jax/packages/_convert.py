"""A model of ours is written again, in another format or type."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.checkpoints import StoredArray
from matta_jax.errors import UserError
from matta_jax.models import Architecture, count_model, logical_axes
from matta_jax.nesting import LAYERS, flatten, unflatten
from matta_jax.packages._folder import (
    bundled_config,
    check_target,
    finish_package,
    new_folder,
    text_ids_of,
)
from matta_jax.packages._formats import (
    check_format,
    counts_in,
    open_weights,
    rounded,
    write_weights,
)
from matta_jax.packages._manifest import VERSION
from matta_jax.packages._package import Package, open_model
from matta_jax.packages._packaging import Packaging
from matta_jax.packages._weights import Weight, in_memory
from matta_jax.tokenizers import TextIds

# What stays when a model is written again.
_LINEAGE = ("parent", "spec", "config", "scores")


def convert(
    model: str | storage.Path, output: str | storage.Path, *, packaging: Packaging | None = None
) -> Package:
    """Writes an extracted or imported model again, in another format or type. Raises UserError as
    `extract` does.
    """
    packaging = packaging or Packaging()
    package, target = open_model(model), storage.resolve(output)
    check_target(target, overwrite=packaging.overwrite)
    if packaging.with_optimizer:
        raise UserError(
            "with_optimizer: an optimiser state stays with its model; extract it again from the "
            "checkpoint"
        )
    check_format(packaging, package.architecture)
    weights = {path: _stored(array) for path, array in package.stored.items()}
    about = {name: package.manifest[name] for name in _LINEAGE}
    # Its tokenizer's files lie in the old folder, and are copied from there.
    data = about["config"]["data"] | {"tokenizer": package.config.data.tokenizer}
    about["config"] = about["config"] | {"data": data}
    with new_folder(target) as building:
        text_ids = text_ids_of(package.config.data.tokenizer)
        write_package(building, weights, package.architecture, packaging, about, text_ids=text_ids)
    return open_model(target)


def _stored(array: StoredArray) -> Weight:
    return Weight(array.shape, array.dtype, array.__getitem__)


def write_package(
    building: storage.Path,
    weights: Mapping[str, Weight],
    architecture: Architecture,
    packaging: Packaging,
    about: dict[str, Any],
    *,
    text_ids: TextIds | None,
) -> None:
    """Writes a model whose manifest has the lineage `about`."""
    about = about | {"config": bundled_config(about["config"], building)}
    by_layer = {
        path: tuple(int(name == LAYERS) for name in names)
        for path, names in flatten(logical_axes(architecture)).items()
    }
    if packaging.numbers != packaging.dtype:
        # Blocks are of rows of llama.cpp's tensors, which are several of our axes.
        params = unflatten({path: weight.whole() for path, weight in weights.items()})
        weights = in_memory(rounded(params, packaging, architecture))
    tensors = write_weights(
        building,
        packaging,
        weights,
        architecture,
        config=about["config"],
        units=by_layer,
        text_ids=text_ids,
    )
    # Read back and verified, before the folder takes its place: a model that is there is whole.
    for array in open_weights(building, packaging.format, architecture, tensors).values():
        array.verify()

    seq_len = config_lib.from_dict(about["config"]).seq_len
    names = flatten(logical_axes(architecture))
    counts = counts_in(packaging, count_model(architecture, seq_len), architecture)
    manifest = {
        "version": VERSION,
        **packaging.about,
        "architecture": architecture.to_json(),
        "counts": dataclasses.asdict(counts),
        "tensors": {path: tensor | {"axes": list(names[path])} for path, tensor in tensors.items()},
    }
    finish_package(building, manifest | about)
