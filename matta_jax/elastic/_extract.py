"""Extraction: a sub-model becomes a plain model of its own, with a manifest and a proof."""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax import config as config_lib
from matta_jax.checkpoints import fingerprints, save_folder
from matta_jax.elastic._model import Model, load_model
from matta_jax.elastic._source import Source, load_source
from matta_jax.errors import UserError
from matta_jax.models import architecture_of, sub_model_apply
from matta_jax.nesting import (
    Counts,
    SubModel,
    count,
    flatten,
    format_spec,
    parse_spec,
    slice_model,
    slug,
)

MANIFEST = "manifest.json"
_PROOF_BATCH = 2
_PROOF_LEN = 64


@dataclasses.dataclass(frozen=True)
class Extracted:
    """One extracted model.

    Attributes:
      path: its folder: `manifest.json` and an Orbax checkpoint in `weights/`.
      spec: the sub-model, in the grammar of `matta_jax.nesting`.
      counts: parameters, bytes, FLOPs per token at the run's sequence length.
      max_difference: largest |extracted - in place| over the hidden states of the proof; 0, or extraction fails.
    """

    path: pathlib.Path
    spec: str
    counts: Counts
    max_difference: float


def extract(checkpoint: str, sub_models: Sequence[str], output: str | pathlib.Path) -> list[Extracted]:
    """Extracts sub-models of a run's TA as plain models, from one reading of its checkpoint.

    Each is written beside its place, read back, proved and only then moved there. The proof: a fixed batch through the
    model read back from disk and through the in-place slice of the TA gives equal hidden states.

    Args:
      checkpoint: `D[@STEP]`, the workdir of a run.
      sub_models: specs, as `student`, `ta`, `layers=2;d_ff=256`.
      output: the folder of the model; with several specs, the folder that holds one for each.

    Raises:
      UserError: a bad checkpoint or spec, an output that exists, or a proof that fails.
    """
    if not sub_models:
        raise UserError("sub_model is missing; name at least one, such as --sub_model=student")
    source = load_source(checkpoint)
    parsed = [parse_spec(spec, source.nest) for spec in sub_models]  # All are checked before anything is written.
    root = pathlib.Path(output).resolve()
    several = len(parsed) > 1
    targets = [root / slug(spec) if several else root for spec in sub_models]
    for i, target in enumerate(targets):
        if target.exists():
            raise UserError(f"output={str(target)!r} exists; name another folder, or remove it")
        if target in targets[:i]:
            raise UserError(f"sub_model={sub_models[i]!r} is named twice; name it once")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        if several:
            root.mkdir(exist_ok=True)
        return [_extract_one(source, sub_model, target) for sub_model, target in zip(parsed, targets, strict=True)]
    except OSError as error:
        raise UserError(f"output={str(root)!r} cannot be written ({error.strerror or error}); name another") from None


def _extract_one(source: Source, sub_model: SubModel, target: pathlib.Path) -> Extracted:
    building = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        params = jax.jit(lambda tree: slice_model(tree, source.axes, sub_model))(source.params)
        counts = count(
            source.params,
            source.axes,
            sub_model,
            head_dim=source.nest.head_dim,
            seq_len=source.config.data.seq_len,
        )
        spec = format_spec(sub_model, source.nest)
        architecture = architecture_of(source.config.model, source.nest, sub_model)
        config = config_lib.to_dict(source.config)
        save_folder(building / "weights", {"params": params}, {"config": config})
        manifest = {
            "format": 1,
            "parent": {
                "checkpoint": str(source.directory),
                "step": source.step,
                "fingerprints": source.fingerprints,
            },
            "spec": spec,
            "architecture": dataclasses.asdict(architecture),
            "config": config,
            "counts": dataclasses.asdict(counts),
            "slices": _slices(source, sub_model),
            "fingerprints": fingerprints(params),
        }
        _write_manifest(building, manifest)
        difference = _prove(source, sub_model, load_model(building))
        if difference != 0:
            raise UserError(
                f"sub_model {spec!r}: the extracted model differs from the TA's slice by {difference:.3g}; "
                "this is a defect, please report it"
            )
        manifest["certificate"] = {
            "max_difference": difference,
            "batch": [_PROOF_BATCH, min(_PROOF_LEN, architecture.max_len)],
            "backend": jax.default_backend(),
        }
        _write_manifest(building, manifest)
        building.chmod(0o755)
        os.rename(building, target)
        return Extracted(target, spec, counts, difference)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_manifest(folder: pathlib.Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _slices(source: Source, sub_model: SubModel) -> dict[str, dict[str, Any]]:
    """For each tensor of the extracted model, the TA's tensor and what was kept of each of its axes."""
    taken: dict[str, dict[str, Any]] = {}
    shapes = jax.eval_shape(lambda tree: slice_model(tree, source.axes, sub_model), source.params)
    for path, leaf in flatten(shapes).items():
        parts = path.split("/")
        parent = "/".join(["blocks", "0", *parts[2:]]) if parts[0] == "blocks" else path
        names = flatten(source.axes)[parent]
        kept: dict[str, Any] = dict(zip(names, leaf.shape, strict=True))
        if parts[0] == "blocks":
            kept["layers"] = list(sub_model.runs[int(parts[1])].layers)
        taken[path] = {"parent": parent, "axes": list(names), "kept": kept}
    return taken


def _prove(source: Source, sub_model: SubModel, model: Model) -> float:
    """Returns the largest difference between the model's hidden states and those of the TA's slice."""
    shape = (_PROOF_BATCH, min(_PROOF_LEN, source.config.model.max_len))
    tokens_BT = jax.random.randint(jax.random.key(0), shape, 0, source.config.model.vocab_size, jnp.int32)
    in_place = jax.jit(
        lambda params: sub_model_apply(params, tokens_BT, sub_model, nest=source.nest, axes=source.axes)
    )(source.params)
    alone = jax.jit(model.apply)(model.params, tokens_BT)
    return float(np.max(np.abs(np.asarray(alone) - np.asarray(in_place))))
