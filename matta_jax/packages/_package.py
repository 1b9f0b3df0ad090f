"""The folder of a model, opened but not read; and models to run, from folders or checkpoints."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from matta_jax import storage
from matta_jax.checkpoints import StoredArray, open_source
from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.models import Architecture, logical_axes
from matta_jax.nesting import Counts, flatten, format_spec, parse_spec, unflatten
from matta_jax.packages._formats import disk_bytes, open_weights
from matta_jax.packages._manifest import read_manifest
from matta_jax.packages._model import Model
from matta_jax.sharding import weight_shardings


@dataclasses.dataclass(frozen=True)
class Package:
    """The folder of an extracted model, opened but not read.

    Attributes:
      path: the folder.
      manifest: its `manifest.json`.
      architecture: of the model.
      config: of its run.
      counts: of the model.
      stored: its weights on disk, by path.
    """

    path: storage.Path
    manifest: dict[str, Any]
    architecture: Architecture
    config: Config
    counts: Counts
    stored: dict[str, StoredArray]

    @property
    def disk_bytes(self) -> int:
        """Bytes of the weights' files; with `hf` more than `counts.bytes`, where it pads."""
        return disk_bytes(self.path, self.manifest["format"])

    def load(self, mesh: Mesh | None = None) -> Model:
        """Reads and verifies the weights, as float32, onto the first device, or onto those of a
        mesh, each its own part.

        Raises:
          UserError: a weight is damaged, or the mesh does not fit the model.
        """
        flat = {}
        if mesh is None:
            for path, array in self.stored.items():
                flat[path] = jnp.asarray(array.whole(), jnp.float32)
        else:
            axes = flatten(logical_axes(self.architecture))
            shardings = weight_shardings(
                self.stored, {path: axes[path] for path in self.stored}, mesh
            )
            for path, array in self.stored.items():
                flat[path] = array.onto(shardings[path], jnp.float32)
        origin = {"model": str(self.path), "step": self.manifest["parent"].get("step")}
        return Model(
            self.manifest["spec"],
            self.config,
            self.counts,
            unflatten(flat),
            origin,
            self.architecture,
            mesh=mesh,
        )


def open_model(folder: str | storage.Path) -> Package:
    """Opens an extracted model. Raises UserError when it is missing or damaged.

    Examples:
      >>> matta_jax.open_model("models/mix").counts.parameters
      19224
    """
    path = storage.resolve(folder)
    description = read_manifest(path, str(folder))
    manifest, architecture = description.manifest, description.architecture
    try:
        stored = open_weights(path, manifest["format"], architecture, manifest["tensors"])
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, LookupError):
        raise UserError(
            f"model={str(folder)!r} is damaged (its manifest does not describe its weights); "
            "extract it again"
        ) from None
    return Package(path, manifest, architecture, description.config, description.counts, stored)


def load_model(folder: str | storage.Path, mesh: Mesh | None = None) -> Model:
    """Reads and verifies an extracted model, as `Package.load`. Raises UserError when it is missing
    or damaged, or the mesh does not fit it.

    Examples:
      >>> model = matta_jax.load_model("models/mix")
      >>> model.logits(model.params, np.zeros((1, 5), np.int32)).shape  # [B * T, V]
      (5, 256)
    """
    return open_model(folder).load(mesh)


def load_in_place(checkpoint: str, specs: Sequence[str], mesh: Mesh | None = None) -> list[Model]:
    """Reads a run's TA, once, and takes sub-models of it in place; onto the first device, or onto
    those of a mesh. Raises UserError for a bad checkpoint or spec, or a mesh that does not fit it.
    """
    source = open_source(checkpoint)
    sub_models = [parse_spec(spec, source.nest) for spec in specs]
    params = source.load_ta(mesh)
    origin = {"checkpoint": str(source.directory), "step": source.step}
    return [
        Model(
            format_spec(sub_model, source.nest),
            source.config,
            source.count(sub_model),
            params,
            dict(origin),
            source.architecture_of(sub_model),
            in_place=(source.plan, sub_model),
            mesh=mesh,
        )
        for sub_model in sub_models
    ]


def load_chosen(
    models: Sequence[str | storage.Path],
    checkpoint: str | None = None,
    sub_models: Sequence[str] = (),
    *,
    mesh: Mesh | None = None,
) -> list[Model]:
    """Reads extracted models, or sub-models in place in their run's checkpoint, which is read once;
    onto the first device, or onto those of a mesh.

    Raises:
      UserError: both or neither are named, what is named is missing or damaged, or the mesh does
        not fit it.
    """
    if bool(models) == (checkpoint is not None):
        raise UserError(
            "name either model (an extracted folder) or checkpoint with sub_model, not both or "
            "neither"
        )
    if checkpoint is None:
        return [load_model(folder, mesh) for folder in models]
    if not sub_models:
        raise UserError(
            "sub_model is missing; name one beside checkpoint, such as --sub_model=student"
        )
    return load_in_place(checkpoint, sub_models, mesh)
