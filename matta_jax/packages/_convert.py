"""A model of ours is written again, in another format or type."""

import dataclasses
import pathlib
import shutil
from typing import Any

from matta_jax.errors import UserError
from matta_jax.models import Architecture, logical_axes
from matta_jax.nesting import Tree, count_weights, flatten
from matta_jax.packages._folder import (
    Packaging,
    check_target,
    eos_id_of,
    finish_package,
    new_folder,
)
from matta_jax.packages._formats import cast, open_weights, write_weights
from matta_jax.packages._model import VERSION, Package, open_model

# The folder in an imported model that keeps its tokenizer's files.
TOKENIZER = "tokenizer"
# What stays when a model is written again.
_LINEAGE = ("parent", "spec", "config", "scores")


def convert(
    model: str | pathlib.Path, output: str | pathlib.Path, *, packaging: Packaging | None = None
) -> Package:
    """Writes an extracted or imported model again, in another format or type. Raises UserError as
    `extract` does.
    """
    packaging = packaging or Packaging()
    package, target = open_model(model), pathlib.Path(output).resolve()
    check_target(target, overwrite=packaging.overwrite)
    if packaging.with_optimizer:
        raise UserError(
            "with_optimizer: an optimiser state stays with its model; extract it again from the "
            "checkpoint"
        )
    params, about = package.load().params, {name: package.manifest[name] for name in _LINEAGE}
    with new_folder(target) as building:
        if (package.path / TOKENIZER).is_dir():
            shutil.copytree(package.path / TOKENIZER, building / TOKENIZER)
        eos_id = eos_id_of(package.config.data.tokenizer)
        write_package(building, params, package.architecture, packaging, about, eos_id=eos_id)
    return open_model(target)


def write_package(
    building: pathlib.Path,
    params: Tree,
    architecture: Architecture,
    packaging: Packaging,
    about: dict[str, Any],
    *,
    eos_id: int | None,
) -> None:
    """Writes a model whose manifest has the lineage `about`."""
    params = cast(params, packaging.dtype)
    axes = logical_axes(architecture)
    by_layer = {
        path: tuple(int(name == "layers") for name in names)
        for path, names in flatten(axes).items()
    }
    tensors = write_weights(
        building,
        packaging.format,
        params,
        architecture,
        config=about["config"],
        units=by_layer,
        eos_id=eos_id,
    )
    for array in open_weights(building, packaging.format, architecture, tensors).values():
        array.whole()
    attended = len(architecture.d_ff) * architecture.num_heads * architecture.head_dim
    counts = count_weights(
        params, axes, attended=attended, seq_len=about["config"]["data"]["seq_len"]
    )
    own = {
        "version": VERSION,
        "format": packaging.format,
        "dtype": packaging.dtype,
        "architecture": dataclasses.asdict(architecture),
        "counts": dataclasses.asdict(counts),
        "tensors": {
            path: tensor | {"axes": list(flatten(axes)[path])} for path, tensor in tensors.items()
        },
    }
    finish_package(building, own | about)
