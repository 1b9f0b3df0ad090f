"""The one grammar in which every binary names a sub-model.

    student | ta                        the two ends of the nest
    layers=12                           a depth: the first 12 layers (or 12 spread evenly, as the
    nest says) layers=0,2,4                        these layers of the TA
    d_model=512, num_heads=8            sizes of the nest
    d_ff=1024                           one width for every layer
    d_ff=4096*6,1024*12,4096*6          a width for each layer that runs
    d_ff=wide-narrow-wide:8             a named pattern with 8 wide layers (the TA's width), the
    others narrow

Parts join with `;`. An axis that is not named is the TA's.
"""

import re

from matta_jax.errors import UserError, did_you_mean
from matta_jax.nesting._patterns import PATTERNS
from matta_jax.nesting._sub_model import Nest, Run, SubModel

_AXES = ("layers", "d_model", "num_heads", "d_ff")


def parse_spec(spec: str, nest: Nest) -> SubModel:
    """Returns the sub-model that `spec` names.

    Raises:
      UserError: text outside the grammar, or a model outside the nest.
    """
    text = spec.strip()
    if text in ("student", "ta"):
        return nest.student if text == "student" else nest.ta
    parts: dict[str, str] = {}
    for part in text.split(";"):
        axis, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or axis not in _AXES:
            hint = did_you_mean(axis, ("student", "ta", *_AXES))
            raise UserError(
                f"sub_model {spec!r}: {part!r} is not student, ta or AXIS=VALUE with "
                f"{', '.join(_AXES)}{hint}"
            )
        if axis in parts:
            raise UserError(f"sub_model {spec!r}: {axis} is named twice; name it once")
        parts[axis] = value
    layers = _layers(parts["layers"], spec, nest) if "layers" in parts else nest.ta.layers
    sub_model = SubModel(
        d_model=_number(parts["d_model"], "d_model", spec)
        if "d_model" in parts
        else nest.ta.d_model,
        num_heads=_number(parts["num_heads"], "num_heads", spec)
        if "num_heads" in parts
        else nest.ta.num_heads,
        layers=layers,
        d_ff=_widths(parts["d_ff"], len(layers), spec, nest)
        if "d_ff" in parts
        else (nest.widths[-1],) * len(layers),
    )
    nest.check(sub_model, spec)
    return sub_model


def format_spec(sub_model: SubModel, nest: Nest) -> str:
    """Returns the shortest spec that `parse_spec` reads back as `sub_model`."""
    if sub_model == nest.ta:
        return "ta"
    if sub_model == nest.student:
        return "student"
    parts = []
    if sub_model.layers != nest.ta.layers:
        is_depth = sub_model.layers == nest.layers_of(sub_model.num_layers)
        listed = ",".join(map(str, sub_model.layers)) + ("," if sub_model.num_layers == 1 else "")
        parts.append(f"layers={sub_model.num_layers}" if is_depth else f"layers={listed}")
    if sub_model.d_model != nest.ta.d_model:
        parts.append(f"d_model={sub_model.d_model}")
    if sub_model.num_heads != nest.ta.num_heads:
        parts.append(f"num_heads={sub_model.num_heads}")
    runs = sub_model.runs
    if len(runs) > 1:
        parts.append("d_ff=" + ",".join(_repeated(run) for run in runs))
    elif runs[0].d_ff != nest.widths[-1]:
        parts.append(f"d_ff={runs[0].d_ff}")
    return ";".join(parts)


def _repeated(run: Run) -> str:
    return f"{run.d_ff}*{len(run.layers)}" if len(run.layers) > 1 else str(run.d_ff)


def slug(spec: str) -> str:
    """A folder name for a spec: letters, digits, `.`, `_` and `-` alone."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", spec.replace("*", "x")).strip("_")


def _number(text: str, axis: str, spec: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise UserError(f"sub_model {spec!r}: {axis}={text!r} must be a whole number")
    return int(text)


def _layers(text: str, spec: str, nest: Nest) -> tuple[int, ...]:
    if "," in text:
        return tuple(_number(item.strip(), "layers", spec) for item in text.rstrip(", ").split(","))
    count = _number(text, "layers", spec)
    if not 1 <= count <= nest.ta.num_layers:
        raise UserError(
            f"sub_model {spec!r}: layers={count} is outside the nest; allowed: 1 to "
            f"{nest.ta.num_layers}"
        )
    return nest.layers_of(count)


def _widths(text: str, num_layers: int, spec: str, nest: Nest) -> tuple[int, ...]:
    if ":" in text:
        name, _, count = text.partition(":")
        if name not in PATTERNS:
            hint = did_you_mean(name, PATTERNS)
            raise UserError(
                f"sub_model {spec!r}: d_ff pattern {name!r} must be one of "
                f"{', '.join(PATTERNS)}{hint}"
            )
        num_wide = _number(count, "d_ff", spec)
        if num_wide > num_layers:
            raise UserError(
                f"sub_model {spec!r}: d_ff has {num_wide} wide layers, but {num_layers} layers run"
            )
        return tuple(
            nest.widths[-1] if wide else nest.widths[0]
            for wide in PATTERNS[name](num_layers, num_wide)
        )
    widths: list[int] = []
    for item in text.split(","):
        width, star, count = item.strip().partition("*")
        widths += [_number(width, "d_ff", spec)] * (_number(count, "d_ff", spec) if star else 1)
    if len(widths) == 1 and "*" not in text:
        widths *= num_layers
    if len(widths) != num_layers:
        raise UserError(
            f"sub_model {spec!r}: d_ff names {len(widths)} widths, but {num_layers} layers run; "
            "name one each"
        )
    return tuple(widths)
