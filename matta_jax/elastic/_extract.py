"""Extraction: a sub-model becomes a plain model of its own, with a manifest and a certificate."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.checkpoints import Source, open_source, save_folder
from matta_jax.elastic._opt_state import slice_opt_state
from matta_jax.elastic._origins import origins_of
from matta_jax.elastic._pair import ROLES, draft_and_target
from matta_jax.elastic._proof import BACKEND, prove
from matta_jax.errors import UserError
from matta_jax.nesting import Counts, SubModel, Tree, format_spec, parse_spec, slug, units
from matta_jax.packages import (
    VERSION,
    Package,
    Packaging,
    bundled_config,
    certify_folder,
    check_engines,
    check_format,
    check_place,
    check_target,
    counts_in,
    disk_bytes,
    finish_package,
    given_back,
    in_memory,
    new_folder,
    open_model,
    open_weights,
    rounded,
    text_ids_of,
    write_weights,
)

Scores = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Extracted:
    """One extracted model.

    Attributes:
      path: its folder: `manifest.json`, `README.md` and the weights.
      spec: the sub-model, in the grammar of `matta_jax.nesting`.
      counts: parameters, bytes, FLOPs per token at the run's sequence length.
      max_difference: largest |extracted - in place| over all activations of the certificate; 0, or
        extraction fails.
      disk_bytes: of the weights' files, the zeros of `hf` among them.
      notes: what the files cannot do, a line each.
    """

    path: storage.Path
    spec: str
    counts: Counts
    max_difference: float
    disk_bytes: int
    notes: tuple[str, ...] = ()


def extract(  # noqa: PLR0913  Keyword-only: the settings of a public call.
    checkpoint: str,
    sub_models: str | Sequence[str],
    output: str | storage.Path,
    *,
    packaging: Packaging | None = None,
    scores: Mapping[str, Scores] | None = None,
    as_draft_of: str | None = None,
    certify: Sequence[str] = (),
) -> list[Extracted]:
    """Extracts sub-models of a run's TA as plain models; each reads its own bytes of the checkpoint
    alone.

    Each is written beside its place, read back, proved and only then moved there.

    Args:
      checkpoint: `D[@STEP]`, the workdir of a run.
      sub_models: specs, as `student`, `ta`, `layers=2;d_ff=256`; or a single one.
      output: the folder of the model; with several specs, the folder that holds one for each.
      packaging: format, type, optimiser state.
      scores: known ones of each spec, for the manifest, as `record_scores` takes them.
      as_draft_of: spec of a larger sub-model, to write with the single one of `sub_models` for
        speculative decoding: the pair goes to `draft` and `target` in `output`.
      certify: engines that run the files before they take their place, as `matta_jax.certify` has
        them.

    Raises:
      UserError: a bad checkpoint or spec, an output that exists, or a proof that fails.

    Examples:
      >>> [model] = matta_jax.extract("runs/books", "d_ff=16,48,32", "models/wide")
      >>> model.max_difference  # From the TA's slice, on a fixed batch.
      0.0
    """
    if not sub_models:
        raise UserError("sub_model is missing; name at least one, such as --sub_model=student")
    if isinstance(sub_models, str):
        sub_models = [sub_models]
    packaging = packaging or Packaging()
    source = open_source(checkpoint)

    # All are checked before anything is written.
    parsed = [parse_spec(spec, source.nest) for spec in sub_models]
    pairs: list[Mapping[str, Any] | None] = [None] * len(parsed)
    names = [slug(spec) for spec in sub_models] if len(sub_models) > 1 else [""]
    if as_draft_of is not None:
        pairs = list(draft_and_target(source, parsed, as_draft_of, packaging))
        parsed.append(parse_spec(as_draft_of, source.nest))
        sub_models, names = [*sub_models, as_draft_of], list(ROLES)
    targets = _targets(sub_models, names, storage.resolve(output), overwrite=packaging.overwrite)
    for sub_model in parsed:
        # Not every model has a form in each.
        check_format(packaging, source.architecture_of(sub_model))
        check_engines(certify, packaging, source.architecture_of(sub_model))
    opt_states = [None] * len(parsed)
    if packaging.with_optimizer:
        opt_states = slice_opt_state(source, parsed)

    extracted = []
    weights = source.read_many(parsed)
    for i, sub_model in enumerate(parsed):
        params = rounded(next(weights), packaging, source.architecture_of(sub_model))
        spec_scores = scores.get(sub_models[i], ()) if scores else ()
        known_scores = [dict(score) for score in spec_scores]
        part = _Part(source, sub_model, params, known_scores, opt_states[i], pairs[i])
        with new_folder(targets[i]) as building:
            model = part.write(building, packaging)
            certify_folder(building, certify)
        # Its path was that of the folder beside its place.
        extracted.append(dataclasses.replace(model, path=targets[i]))
    return extracted


def _targets(
    specs: Sequence[str], names: Sequence[str], root: storage.Path, *, overwrite: bool
) -> list[storage.Path]:
    """The folder of each model, by its name in `root`; of an empty one `root` itself. Raises
    UserError when one may not be written.
    """
    targets: list[storage.Path] = []
    check_place("output", root)
    for spec, name in zip(specs, names, strict=True):
        target = root / name if name else root
        check_target(target, overwrite=overwrite)
        # By folder: two texts may have one slug.
        if target in targets:
            raise UserError(f"sub_model={spec!r} is named twice; name it once")
        targets.append(target)
    return targets


@dataclasses.dataclass(frozen=True)
class _Part:
    """A sub-model that was read from its TA.

    Attributes:
      source: the TA.
      sub_model: which part of it.
      params: the weights, as they are to be written.
      scores: known ones.
      opt_state: the part of the optimiser state, or None.
      pair: what its manifest says of its draft or target, or None.
    """

    source: Source
    sub_model: SubModel
    params: Tree
    scores: list[dict[str, Any]]
    opt_state: Any
    pair: Mapping[str, Any] | None

    def write(self, building: storage.Path, packaging: Packaging) -> Extracted:
        """Writes the model into a folder and proves it. Raises UserError when the proof fails."""
        source = self.source
        sub_model = self.sub_model
        spec = format_spec(sub_model, source.nest)
        architecture = source.architecture_of(sub_model)
        config = bundled_config(config_lib.to_dict(source.config), building)

        origins = origins_of(source, sub_model)
        tensors = write_weights(
            building,
            packaging,
            in_memory(self.params),
            architecture,
            config=config,
            units=self._units(origins),
            text_ids=text_ids_of(source.config.data.tokenizer),
        )

        # Read back from disk: the proof is of what was written, not of what was meant to be.
        written = open_weights(building, packaging.format, architecture, tensors)
        params = given_back(self.params, packaging, written)
        difference, batch = prove(source.plan, params, written, sub_model)
        if difference != 0:
            raise UserError(
                f"sub_model {spec!r}: the extracted model differs from the TA's slice by "
                f"{difference:.3g}; this is a defect, please report it"
            )

        # The run's counts are of float32; the model's bytes are those of the type written.
        counts = counts_in(packaging, source.count(sub_model), architecture, building)
        described = {path: about | origins[path] for path, about in tensors.items()}
        certificate = {
            "max_difference": difference,
            "batch": list(batch),
            "backend": BACKEND,
        }
        manifest: dict[str, Any] = {
            "version": VERSION,
            **packaging.about,
            "parent": self._parent(),
            "spec": spec,
            "architecture": architecture.to_json(),
            "config": config,
            "counts": dataclasses.asdict(counts),
            "tensors": described,
            "scores": self.scores,
            "certificate": certificate,
        }
        if self.opt_state is not None:
            trees = {"opt_state": self.opt_state}
            save_folder(building / "opt_state", trees, {"config": config})
            manifest["opt_state"] = {"step": source.step}
        if self.pair is not None:
            manifest["pair"] = dict(self.pair)
        manifest = finish_package(building, manifest)
        size = disk_bytes(building, packaging.format)
        notes = tuple(manifest.get("notes", ()))
        return Extracted(building, spec, counts, difference, size, notes)

    def _units(self, origins: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
        """The steps in which each tensor is cut into pieces, by path."""
        # The nest's, so that fingerprints are of the same pieces as the TA's, and can be compared.
        steps = {}
        for path, origin in origins.items():
            steps[path] = units(tuple(origin["axes"]), self.source.nest)
        return steps

    def _parent(self) -> dict[str, Any]:
        """What a manifest tells of the TA."""
        return {
            "checkpoint": str(self.source.directory),
            "step": self.source.step,
            "fingerprint": self.source.fingerprint,
        }


def verify(folder: str | storage.Path) -> Package:
    """Reads every tensor of an extracted model and compares it with its fingerprint, and that with
    its TA's.

    Raises:
      UserError: names what is missing, damaged, or not its TA's.

    Examples:
      >>> matta_jax.verify("models/mix").path.name
      'mix'
    """
    package = open_model(folder)
    for path, array in package.stored.items():
        array.verify()
        about = package.manifest["tensors"][path]
        parent_print = about.get("parent_fingerprint")
        # What was rounded has other bits than the TA.
        numbers = package.manifest.get("numbers", package.manifest["dtype"])
        if numbers != "fp32" or parent_print is None:
            continue
        if parent_print != about["fingerprint"]:
            raise UserError(
                f"model={str(folder)!r}: tensor {path} is not its TA's {about['parent']}; extract "
                "it again"
            )
    return package
