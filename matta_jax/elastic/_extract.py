"""Extraction: a sub-model becomes a plain model of its own, with a manifest and a certificate."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from matta_jax import config as config_lib
from matta_jax.checkpoints import Source, StoredArray, open_source, save_folder
from matta_jax.elastic._opt_state import slice_opt_state
from matta_jax.elastic._proof import prove
from matta_jax.errors import UserError
from matta_jax.nesting import (
    Counts,
    SubModel,
    Tree,
    flatten,
    format_spec,
    narrow_array,
    parse_spec,
    sizes_of,
    slug,
    units,
)
from matta_jax.packages import (
    VERSION,
    Package,
    Packaging,
    at_dtype,
    cast,
    check_target,
    eos_id_of,
    finish_package,
    hf_config,
    new_folder,
    open_model,
    open_weights,
    write_weights,
)


@dataclasses.dataclass(frozen=True)
class Extracted:
    """One extracted model.

    Attributes:
      path: its folder: `manifest.json`, `README.md` and the weights.
      spec: the sub-model, in the grammar of `matta_jax.nesting`.
      counts: parameters, bytes, FLOPs per token at the run's sequence length.
      max_difference: largest |extracted - in place| over all activations of the certificate; 0, or
        extraction fails.
    """

    path: pathlib.Path
    spec: str
    counts: Counts
    max_difference: float


def extract(
    checkpoint: str,
    sub_models: Sequence[str],
    output: str | pathlib.Path,
    *,
    packaging: Packaging | None = None,
    scores: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> list[Extracted]:
    """Extracts sub-models of a run's TA as plain models; each reads its own bytes of the checkpoint
    alone.

    Each is written beside its place, read back, proved (`_proof.py`) and only then moved there.

    Args:
      checkpoint: `D[@STEP]`, the workdir of a run.
      sub_models: specs, as `student`, `ta`, `layers=2;d_ff=256`.
      output: the folder of the model; with several specs, the folder that holds one for each.
      packaging: format, type, optimiser state.
      scores: known ones of each spec, for the manifest, as `record_scores` takes them.

    Raises:
      UserError: a bad checkpoint or spec, an output that exists, or a proof that fails.
    """
    if not sub_models:
        raise UserError("sub_model is missing; name at least one, such as --sub_model=student")
    packaging = packaging or Packaging()
    source = open_source(checkpoint)
    parsed = [
        parse_spec(spec, source.nest) for spec in sub_models
    ]  # All are checked before anything is written.
    root = pathlib.Path(output).resolve()
    several = len(parsed) > 1
    targets = [root / slug(spec) if several else root for spec in sub_models]
    for i, target in enumerate(targets):
        check_target(target, overwrite=packaging.overwrite)
        if target in targets[:i]:
            raise UserError(f"sub_model={sub_models[i]!r} is named twice; name it once")
    if packaging.format == "hf":
        for sub_model in parsed:
            hf_config(source.architecture_of(sub_model), packaging.dtype, None)
    opt_states = (
        slice_opt_state(source, parsed) if packaging.with_optimizer else [None] * len(parsed)
    )
    extracted = []
    weights = source.read_many(parsed)
    for spec, sub_model, target, opt_state in zip(
        sub_models, parsed, targets, opt_states, strict=True
    ):
        params = cast(next(weights), packaging.dtype)
        with new_folder(target) as building:
            known = [dict(score) for score in (scores or {}).get(spec, ())]
            one = _extract_one(source, sub_model, params, building, packaging, known, opt_state)
        extracted.append(dataclasses.replace(one, path=target))
    return extracted


def _extract_one(
    source: Source,
    sub_model: SubModel,
    params: Tree,
    building: pathlib.Path,
    packaging: Packaging,
    scores: list[dict[str, Any]],
    opt_state: Any,
) -> Extracted:
    spec, architecture = format_spec(sub_model, source.nest), source.architecture_of(sub_model)
    counts = at_dtype(source.count(sub_model), params)
    origins = _origins(source, sub_model)
    tensors = write_weights(
        building,
        packaging.format,
        params,
        architecture,
        config=config_lib.to_dict(source.config),
        units={path: units(about["axes"], source.nest) for path, about in origins.items()},
        eos_id=eos_id_of(source.config.data.tokenizer),
    )
    written = open_weights(building, packaging.format, architecture, tensors)
    difference, shape = prove(
        params, written, sub_model, abstract=source.abstract, axes=source.axes
    )
    if difference != 0:
        raise UserError(
            f"sub_model {spec!r}: the extracted model differs from the TA's slice by "
            f"{difference:.3g}; "
            "this is a defect, please report it"
        )
    manifest = {
        "version": VERSION,
        "format": packaging.format,
        "dtype": packaging.dtype,
        "parent": {
            "checkpoint": str(source.directory),
            "step": source.step,
            "fingerprint": source.fingerprint,
        },
        "spec": spec,
        "architecture": dataclasses.asdict(architecture),
        "config": config_lib.to_dict(source.config),
        "counts": dataclasses.asdict(counts),
        "tensors": {path: about | origins[path] for path, about in tensors.items()},
        "scores": scores,
        "certificate": {
            "max_difference": difference,
            "batch": list(shape),
            "backend": jax.default_backend(),
        },
    }
    if opt_state is not None:
        save_folder(
            building / "opt_state",
            {"opt_state": opt_state},
            {"config": config_lib.to_dict(source.config)},
        )
        manifest["opt_state"] = {"step": source.step}
    finish_package(building, manifest)
    return Extracted(building, spec, counts, difference)


def _origins(source: Source, sub_model: SubModel) -> dict[str, dict[str, Any]]:
    """For each tensor of the extracted model: its axes, the TA's tensor, what was kept of each of
    its axes, and the fingerprint of that part."""
    stored, names = flatten(source.stored), flatten(source.axes)
    origins: dict[str, dict[str, Any]] = {}
    for parent, axes in names.items():
        if not parent.startswith("blocks/"):
            origins[parent] = _origin(stored[parent], parent, axes, sizes_of(sub_model))
            continue
        for i, run in enumerate(sub_model.runs):
            path = "/".join(["blocks", str(i), *parent.split("/")[2:]])
            origins[path] = _origin(
                stored[parent], parent, axes, sizes_of(sub_model, run.d_ff) | {"layers": run.layers}
            )
    return origins


def _origin(
    stored: StoredArray, parent: str, axes: tuple[str, ...], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    kept = narrow_array(np.broadcast_to(np.int8(0), stored.shape), axes, sizes).shape
    listed: dict[str, Any] = dict(zip(axes, kept, strict=True))
    if "layers" in sizes:
        listed["layers"] = list(sizes["layers"])
    part = narrow_array(_Parts(stored), axes, sizes)
    return {"axes": list(axes), "parent": parent, "kept": listed, "parent_fingerprint": part}


class _Parts:
    """Slices as an array does, to the fingerprints of the part."""

    def __init__(self, stored: StoredArray):
        self.shape, self._stored = stored.shape, stored

    def __getitem__(self, index: Any) -> str:
        return self._stored.part(index)


def verify(folder: str | pathlib.Path) -> Package:
    """Reads every tensor of an extracted model and compares it with its fingerprint, and that with
    its TA's.

    Raises:
      UserError: names what is missing, damaged, or not its TA's.
    """
    package = open_model(folder)
    for path, array in package.stored.items():
        array.whole()
        about = package.manifest["tensors"][path]
        parent = about.get("parent_fingerprint")
        if (
            package.manifest["dtype"] == "fp32"
            and parent is not None
            and parent != about["fingerprint"]
        ):
            raise UserError(
                f"model={str(folder)!r}: tensor {path} is not its TA's {about['parent']}; extract "
                "it again"
            )
    return package
