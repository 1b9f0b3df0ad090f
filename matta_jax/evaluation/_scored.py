"""The scored models in the folder of a run."""

from collections.abc import Mapping
from typing import Any

from matta_jax import storage
from matta_jax.checkpoints import read_meta, saved_steps, weights_fingerprint
from matta_jax.errors import DamageError
from matta_jax.evaluation._sizes import Row
from matta_jax.models import Architecture
from matta_jax.packages import MANIFEST, read_manifest, task_of


def scored_models(workdir: storage.Path) -> list[Row]:
    """The scored models under `models/` of a run, small to large; `stale` of each tells what it is
    of, where that is not the checkpoint that the run is at.

    Raises:
      UserError: a manifest is damaged, or was changed.
    """
    checkpoints = workdir / "checkpoints"
    rows = []
    for file in storage.match(workdir / "models", f"*/{MANIFEST}"):
        # Its seal is checked: a figure that was changed is not printed.
        description = read_manifest(file.parent, str(file.parent))
        if description.manifest["scores"]:
            stale = _staleness(description.manifest["parent"], checkpoints)
            row = _row(description.manifest, description.architecture)
            rows.append(row | {"folder": file.parent.name, "stale": stale})
    return sorted(rows, key=lambda row: (row["parameters"], row["name"]))


def line_remarks(workdir: storage.Path, last_step: int) -> list[str]:
    """A line where a run's metrics end before its newest checkpoint: what is told of its steps is
    of fewer than it has made.
    """
    newest = max(saved_steps(workdir / "checkpoints"), default=0)
    if newest <= last_step:
        return []
    return [
        f"Lines of metrics.jsonl are missing: they end at step {last_step:,}, and the newest "
        f"checkpoint is of step {newest:,}; steps, tokens and curves are told up to step "
        f"{last_step:,}"
    ]


def _row(manifest: dict[str, Any], architecture: Architecture) -> Row:
    counts = manifest["counts"]
    return {
        "name": manifest["spec"],
        "layers": architecture.num_layers,
        "d_model": architecture.d_model,
        "widths": list(architecture.along("d_ff")),
        "parameters": counts["parameters"],
        "mb": counts["bytes"] / 1e6,
        "flops_per_token": counts["flops_per_token"],
        "scores": {task_of(score): score["value"] for score in manifest["scores"]},
    }


def _staleness(parent: Mapping[str, Any], checkpoints: storage.Path) -> str:
    """What a model is of, by its manifest; nothing where that is the newest checkpoint, or no
    checkpoint is there to tell.
    """
    steps = saved_steps(checkpoints)
    if not steps:
        return ""
    step = parent.get("step")
    if step is not None and step not in steps and step < steps[-1]:
        return f"step {step}, which is gone"
    # The step is not enough: a run that was removed and trained anew has the same steps.
    if step not in steps or parent.get("fingerprint") != _fingerprint(checkpoints, step):
        return "another run"
    return "" if step == steps[-1] else f"step {step}"


def _fingerprint(checkpoints: storage.Path, step: int) -> str | None:
    """That of a checkpoint's weights; None where it is damaged."""
    try:
        return weights_fingerprint(read_meta(checkpoints / str(step)))
    except DamageError:
        return None
