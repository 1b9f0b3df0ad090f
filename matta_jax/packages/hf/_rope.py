"""Rotary positions in config.json: newer files have `rope_parameters`, older ones `rope_theta` and
`rope_scaling`.
"""

from collections.abc import Mapping
from typing import Any

from matta_jax.errors import UserError, shorten

TYPES = ("default", "linear", "llama3", "yarn")
_LENGTH = "original_max_position_embeddings"
# Not numbers of a type; `finetuned` says how a model came to be.
_OTHERS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned")


def read_rope(
    config: Mapping[str, Any], parameters: Mapping[str, Any] | None, max_len: int
) -> tuple[float, str, dict[str, float]]:
    """Returns theta, type and the numbers of the type.

    Args:
      config: with defaults filled in.
      parameters: its `rope_parameters`, or those of a kind of layer.
      max_len: its `max_position_embeddings`.

    Raises:
      UserError: positions that we do not compute.
    """
    # As transformers: the older field goes before the newer one.
    rope = dict(config.get("rope_scaling") or parameters or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in TYPES:
        raise UserError(
            f"rope_type={shorten(kind)} is not supported, only {', '.join(TYPES)}; import a model "
            "that has one of these"
        )
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise UserError(
            f"partial_rotary_factor={shorten(partial)} is not supported, only 1.0; import a model "
            "whose heads turn as a whole"
        )
    theta = rope.get("rope_theta", config["rope_theta"])
    scaling = {
        name: value for name, value in rope.items() if name not in _OTHERS and value is not None
    }
    if kind in ("llama3", "yarn"):
        scaling.setdefault(_LENGTH, max_len)
    if kind == "default":
        scaling = {}
    return float(theta), kind, {name: float(value) for name, value in scaling.items()}


def written_rope(rotary: tuple[float, str, tuple[tuple[str, float], ...]]) -> dict[str, Any]:
    """`rope_parameters` of our options."""
    theta, kind, factors = rotary
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": theta}
    for name, value in factors:
        # Whole numbers and switches stay what they were.
        parameters[name] = value
        if name == _LENGTH:
            parameters[name] = int(value)
        if name == "truncate":
            parameters[name] = bool(value)
    return parameters
