"""The one grammar in which every binary names a sub-model.

    student | ta | NAME                 the ends of the nest, or a member that the run names
    layers=12                           a depth: the first 12 layers (or 12 spread evenly, as the
                                        nest says)
    layers=0,2,4                        these layers of the TA
    layers=only:2                       this layer alone
    d_model=512, num_heads=8            sizes of the nest
    d_ff=1024                           one width for every layer
    d_ff=4096*6,1024*12,4096*6          a width for each layer that runs
    d_ff=wide-narrow-wide:8             a named pattern with 8 wide layers (the TA's width), the
                                        others narrow

    thoughts=1                          earlier passes, of a model that thinks more than once

Parts join with `;`. An axis that is not named is the TA's. Every axis but the residual stream's and
these passes may have a size for each layer.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence

from matta_jax.errors import UserError, did_you_mean, listed, shorten
from matta_jax.nesting._axes import (
    LAYERS,
    RESIDUAL,
    THOUGHTS,
    Role,
    axes_of_role,
    axis_of_word,
    word_of,
)
from matta_jax.nesting._nest import Nest
from matta_jax.nesting._patterns import PATTERNS
from matta_jax.nesting._sub_model import SubModel

# Begins the layers of a sub-model of one layer.
_ONLY = "only:"

# File systems take 255 bytes, of which a folder that is being built needs some.
_LONGEST_SLUG = 200
_SLUG_DIGEST = 16


def parse_spec(spec: str, nest: Nest, *, is_new: bool = False) -> SubModel:
    """Returns the sub-model that `spec` names.

    Args:
      spec: in the grammar.
      nest: where it lies.
      is_new: whether its sizes may be others than the nest's: a run then adds them.

    Raises:
      UserError: text outside the grammar, or a model outside the nest.
    """
    if not isinstance(spec, str):
        raise UserError(
            f"sub_model {shorten(spec)} must be a string, such as 'student'; not "
            f"{type(spec).__name__}"
        )
    text = spec.strip()
    if text in nest.members:
        return nest.members[text]

    parts = _parts_of(text, spec, nest)
    # Before the sizes, of which there may be one for each layer that runs.
    layers = nest.ta.layers
    if LAYERS in parts:
        layers = _layers(parts.pop(LAYERS), spec, nest)

    sizes = dict(nest.ta.sizes)
    per_layer = {}
    for axis, value in parts.items():
        # All layers read and write the same residual stream, and belong to the same passes.
        if axis in (RESIDUAL, THOUGHTS):
            sizes[axis] = _number(value, word_of(axis), spec)
            continue
        # Uniform ones too: a SubModel moves these to its sizes by itself.
        del sizes[axis]
        per_layer[axis] = _sizes_of_layers(value, axis, len(layers), spec, nest)

    sub_model = SubModel(layers, sizes, per_layer)
    if not is_new:
        nest.check(sub_model, spec)
    return sub_model


def _parts_of(text: str, spec: str, nest: Nest) -> dict[str, str]:
    """The text of each axis that a spec names."""
    words = [LAYERS, *(word_of(axis) for axis in _spec_axes(nest))]
    parts: dict[str, str] = {}
    for part in text.split(";"):
        word, equals, value = part.partition("=")
        word = word.strip()
        if not equals or word not in words:
            hint = did_you_mean(word, (*nest.members, *words))
            names = listed(nest.members)
            raise UserError(
                f"sub_model {shorten(spec)}: {shorten(part)} is not {names} or AXIS=VALUE with "
                f"{', '.join(words)}{hint}"
            )
        axis = axis_of_word(word)
        assert axis is not None
        if axis.name in parts:
            raise UserError(f"sub_model {shorten(spec)}: {word} is named twice; name it once")
        parts[axis.name] = value.strip()
    return parts


def format_spec(sub_model: SubModel, nest: Nest) -> str:
    """Returns the shortest spec that `parse_spec` reads back as `sub_model`."""
    # The TA first: a Student that is all of it is called `ta`.
    for name in ("ta", *nest.members):
        if sub_model == nest.members[name]:
            return name

    parts = []
    if sub_model.layers != nest.ta.layers:
        parts.append(f"layers={_format_layers(sub_model, nest)}")
    for axis in _spec_axes(nest):
        if axis in sub_model.per_layer:
            parts.append(f"{word_of(axis)}={_format_runs(sub_model.per_layer[axis])}")
        elif sub_model.sizes[axis] != nest.ta.sizes[axis]:
            parts.append(f"{word_of(axis)}={sub_model.sizes[axis]}")
    return ";".join(parts)


def _spec_axes(nest: Nest) -> list[str]:
    """The axes that a spec may name, in its order: the residual stream first, and d_ff, which is
    the longest, last.
    """
    place = {RESIDUAL: 0, "d_ff": 2}
    return sorted(nest.ta.sizes, key=lambda axis: place.get(axis, 1))


def _format_layers(sub_model: SubModel, nest: Nest) -> str:
    if sub_model.layers == nest.layers_of(sub_model.num_layers):
        return str(sub_model.num_layers)
    # A number by itself is a depth.
    if sub_model.num_layers == 1:
        return f"{_ONLY}{sub_model.layers[0]}"
    return ",".join(map(str, sub_model.layers))


def _format_runs(sizes: Sequence[int]) -> str:
    runs = []
    for size, group in itertools.groupby(sizes):
        count = len(list(group))
        runs.append(f"{size}*{count}" if count > 1 else str(size))
    return ",".join(runs)


def preset_specs(nest: Nest) -> list[str]:
    """Specs that show what a nest holds: its members, each uniform size of what layers choose, and
    each pattern at half the layers; each sub-model once.
    """
    specs = [*nest.members]
    half = nest.num_layers // 2
    for axis in nest.by_layer:
        sizes = nest.allowed[axis]
        specs += [f"{word_of(axis)}={size}" for size in sizes]
        # A pattern needs two sizes, and a layer to be wide.
        if len(sizes) > 1 and half:
            specs += [f"{word_of(axis)}={pattern}:{half}" for pattern in PATTERNS]
    return canonical_specs(specs, nest)


def graded_specs(nest: Nest) -> list[str]:
    """Specs of a family from small to large: the nest's members, each uniform size of what layers
    choose, and between two of them the mix whose first half of layers has the larger one.
    """
    specs = [*nest.members]
    narrow_layers = nest.num_layers // 2
    wide_layers = nest.num_layers - narrow_layers
    for axis in nest.by_layer:
        word, sizes = word_of(axis), nest.allowed[axis]
        specs += [f"{word}={size}" for size in sizes]
        for size, next_size in itertools.pairwise(sizes):
            # A lone layer has no half.
            if narrow_layers:
                specs.append(f"{word}={next_size}*{wide_layers},{size}*{narrow_layers}")
    return canonical_specs(specs, nest)


def canonical_specs(specs: Iterable[str], nest: Nest) -> list[str]:
    """The shortest spec of each sub-model that these name, in their order, each once."""
    canonical = []
    for spec in specs:
        sub_model = parse_spec(spec, nest)
        canonical.append(format_spec(sub_model, nest))
    return list(dict.fromkeys(canonical))


def slug(spec: str) -> str:
    """A folder name for a spec, of at most 200 letters, digits, `.`, `_` and `-`.

    Two specs have two slugs, also where letters have no case; white space alone makes no other
    spec. What cannot be read back from its letters ends with a digest of the text.
    """
    text = re.sub(r"\s*([;=,])\s*", r"\1", spec.strip())
    # `1024*6` stays legible as `1024x6`.
    legible = re.sub(r"[^A-Za-z0-9._-]+", "_", text.replace("*", "x")).strip("_.-")
    if len(legible) <= _LONGEST_SLUG and _is_told_by_its_letters(text):
        return legible

    # Text of any kind may come here, also what is no UTF-8.
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_SLUG_DIGEST]
    return f"{legible[: _LONGEST_SLUG - _SLUG_DIGEST - 1] or 'spec'}-{digest}"


def _is_told_by_its_letters(text: str) -> bool:
    """Whether no other text has the same letters and digits: it is in the grammar, or a name that
    is like no spec.
    """
    names = [THOUGHTS, *(axis.name for axis in axes_of_role(Role.FEATURES))]
    words = "|".join(map(word_of, names))
    number = "[0-9]+"
    size = rf"{number}(?:\*{number})?"
    sizes = rf"{size}(?:,{size})*|(?:{'|'.join(PATTERNS)}):{number}"
    part = rf"(?:{LAYERS}=(?:{_ONLY}{number}|{number}(?:,{number})*)|(?:{words})=(?:{sizes}))"
    if re.fullmatch(rf"{part}(?:;{part})*", text):
        return True
    # A member may be called `layers_2`, which is what `layers=2` becomes.
    is_like_a_spec = re.match(rf"(?:{LAYERS}|{words})_(?:only_)?[0-9]", text)
    return bool(re.fullmatch(r"[a-z](?:[a-z0-9_]*[a-z0-9])?", text)) and not is_like_a_spec


def _number(text: str, word: str, spec: str) -> int:
    # ASCII alone: Python takes the digits of other scripts for numbers too. No more of them than
    # any size has, which a list is made of at once.
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UserError(
            f"sub_model {shorten(spec)}: {word}={shorten(text)} must be a whole number of at most "
            "nine digits"
        )
    return int(text)


def _layers(text: str, spec: str, nest: Nest) -> tuple[int, ...]:
    if text.startswith(_ONLY):
        return (_number(text.removeprefix(_ONLY).strip(), LAYERS, spec),)
    # A list, where a comma is; otherwise a depth.
    if "," in text:
        return tuple(_number(item.strip(), LAYERS, spec) for item in text.split(","))
    count = _number(text, LAYERS, spec)
    if not 1 <= count <= nest.num_layers:
        raise UserError(
            f"sub_model {shorten(spec)}: layers={count} is outside the nest; allowed: 1 to "
            f"{nest.num_layers}"
        )
    return nest.layers_of(count)


def _sizes_of_layers(
    text: str,
    axis: str,
    num_layers: int,
    spec: str,
    nest: Nest,
) -> tuple[int, ...]:
    """The size of an axis in each layer: one for all, a list of runs, or a pattern."""
    word = word_of(axis)
    if ":" in text:
        return _pattern_sizes(text, axis, num_layers, spec, nest)
    sizes: list[int] = []
    for item in text.split(","):
        size, star, count = item.strip().partition("*")
        number = _number(size, word, spec)
        repeats = _number(count, word, spec) if star else 1
        # Before so many are listed.
        if not 1 <= repeats <= num_layers:
            raise UserError(
                f"sub_model {shorten(spec)}: {word}={number}*{repeats} must be of 1 to the "
                f"{num_layers} layers that run"
            )
        sizes += [number] * repeats

    # `1024` is the size of all layers, while `1024*1` is that of one.
    if len(sizes) == 1 and "*" not in text:
        sizes *= num_layers
    if len(sizes) != num_layers:
        # The paper's word for sizes of d_ff.
        plural = "widths" if axis == "d_ff" else "sizes"
        raise UserError(
            f"sub_model {shorten(spec)}: {word} names {len(sizes)} {plural}, but {num_layers} "
            "layers run; name one each"
        )
    return tuple(sizes)


def _pattern_sizes(
    text: str,
    axis: str,
    num_layers: int,
    spec: str,
    nest: Nest,
) -> tuple[int, ...]:
    name, _, count = text.partition(":")
    word = word_of(axis)
    if name not in PATTERNS:
        raise UserError(
            f"sub_model {shorten(spec)}: {word} pattern {shorten(name)} must be one of "
            f"{', '.join(PATTERNS)}{did_you_mean(name, PATTERNS)}"
        )
    num_wide = _number(count, word, spec)
    if num_wide > num_layers:
        raise UserError(
            f"sub_model {shorten(spec)}: {word} has {num_wide} wide layers, but {num_layers} "
            "layers run"
        )

    # Sizes rise: the first is the nest's smallest, the last the TA's.
    narrow_size = nest.allowed[axis][0]
    wide_size = nest.allowed[axis][-1]
    is_wide = PATTERNS[name](num_layers, num_wide)
    return tuple(wide_size if wide else narrow_size for wide in is_wide)
