"""A model is written as a package, in a folder that is still being built."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.checkpoints import StoredArray
from matta_jax.models import Architecture, count_model, logical_axes
from matta_jax.nesting import LAYERS, flatten, unflatten
from matta_jax.packages._folder import bundled_config, finish_package, text_ids_of
from matta_jax.packages._formats import counts_in, open_weights, rounded, write_weights
from matta_jax.packages._manifest import VERSION
from matta_jax.packages._package import Package
from matta_jax.packages._packaging import Packaging
from matta_jax.packages._weights import Weight, in_memory
from matta_jax.tokenizers import TextIds

# What stays when a model is written again.
_LINEAGE = ("parent", "spec", "config", "scores")


def write_again(building: storage.Path, package: Package, packaging: Packaging) -> None:
    """Writes a model that there is, in another format or type."""
    weights = {path: _stored(array) for path, array in package.stored.items()}
    about = {name: package.manifest[name] for name in _LINEAGE}
    # Its tokenizer's files lie in the old folder, and are copied from there.
    data = about["config"]["data"] | {"tokenizer": package.config.data.tokenizer}
    about["config"] = about["config"] | {"data": data}
    text_ids = text_ids_of(package.config.data.tokenizer)
    write_package(building, weights, package.architecture, packaging, about, text_ids=text_ids)


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
    counts = counts_in(packaging, count_model(architecture, seq_len), architecture, building)
    manifest = {
        "version": VERSION,
        **packaging.about,
        "architecture": architecture.to_json(),
        "counts": dataclasses.asdict(counts),
        "tensors": {path: tensor | {"axes": list(names[path])} for path, tensor in tensors.items()},
    }
    finish_package(building, manifest | about)
