"""M-nesting: the TA around a Student, and the nest that a run's config describes."""

import dataclasses
from collections.abc import Mapping, Sequence

from matta_jax.config import Config
from matta_jax.errors import UserError, shorten
from matta_jax.nesting._axes import THOUGHTS, word_of
from matta_jax.nesting._nest import STUDENT, TA, Nest, layers_of
from matta_jax.nesting._spec import parse_spec
from matta_jax.nesting._sub_model import Sizes, SubModel


def make_nest(
    student: Sizes,
    ta: Sizes,
    *,
    num_layers: int,
    ta_layers: int,
    widths: Mapping[str, Sequence[int]] | None = None,
    spread: bool = False,
) -> Nest:
    """M-nesting (MatTA, section 3): makes the TA around a Student along any axes.

    Args:
      student: the Student's sizes, by logical axis.
      ta: the TA's, at least as large.
      num_layers, ta_layers: their layers.
      widths: granularities of an axis, from the Student's size to the TA's; by default these two.
      spread: the Student runs layers spread evenly over the TA's, instead of the first ones.
    """
    allowed = {}
    for axis, size in student.items():
        # A set, because Student and TA may agree on an axis: it then has a single size.
        allowed[axis] = tuple(sorted({size, ta[axis]}))
        if widths and widths.get(axis):
            allowed[axis] = tuple(widths[axis])

    members = {
        STUDENT: SubModel(layers_of(num_layers, ta_layers, spread), student),
        TA: SubModel(tuple(range(ta_layers)), ta),
    }
    return Nest(members, allowed, spread)


def expand(  # noqa: PLR0913  Keyword-only: the sizes of Student and TA.
    *,
    num_layers: int,
    d_model: int,
    num_heads: int,
    d_ff: int,
    ta_num_layers: int | None = None,
    ta_d_model: int | None = None,
    ta_num_heads: int | None = None,
    ta_d_ff: int | None = None,
    widths: Sequence[int] = (),
    spread: bool = False,
) -> Nest:
    """`make_nest` by the names of a transformer's sizes; None for the Student's own.

    Args:
      num_layers, d_model, num_heads, d_ff: the Student's sizes.
      ta_num_layers, ta_d_model, ta_num_heads, ta_d_ff: the TA's.
      widths: d_ff granularities from the Student's to the TA's; empty for these two.
      spread: as of `make_nest`.
    """
    student = {"d_model": d_model, "heads": num_heads, "d_ff": d_ff}
    ta = {
        "d_model": ta_d_model or d_model,
        "heads": ta_num_heads or num_heads,
        "d_ff": ta_d_ff or d_ff,
    }
    return make_nest(
        student,
        ta,
        num_layers=num_layers,
        ta_layers=ta_num_layers or num_layers,
        widths={"d_ff": widths},
        spread=spread,
    )


def nest_of(config: Config) -> Nest:
    """The nest that a run's config describes.

    Raises:
      UserError: a named member that no spec can be, or of sizes beyond the TA's.
    """
    student = config.model.nested_sizes()
    # A size that the config leaves out is the Student's own: the nest is of one size there.
    ta = {axis: config.nest.ta_size(axis) or size for axis, size in student.items()}
    nest = make_nest(
        student,
        ta,
        num_layers=config.model.num_layers,
        ta_layers=config.nest.num_layers or config.model.num_layers,
        widths={"d_ff": config.nest.widths},
        spread=config.nest.student_layers == "spread",
    )
    return _with_earlier(_with_members(nest, config.nest.members), config)


def _with_earlier(nest: Nest, config: Config) -> Nest:
    """Adds the sizes of earlier passes, where a model has such, to those that the nest allows."""
    allowed = dict(nest.allowed)
    for sizes in config.model.earlier_sizes():
        for axis, size in sizes.items():
            if size > nest.ta.sizes[axis]:
                raise UserError(
                    f"model.thinking_heads: an earlier pass has {word_of(axis)}={size}, and the "
                    f"TA {nest.ta.sizes[axis]}; lower it"
                )
            # Random mixes choose these anew in each layer, and all have the same earlier passes.
            if axis in nest.by_layer and size > nest.allowed[axis][0]:
                raise UserError(
                    f"model.thinking_heads: an earlier pass has {word_of(axis)}={size}, and the "
                    f"nest's smallest is {nest.allowed[axis][0]}; lower it"
                )
            allowed[axis] = tuple(sorted({*allowed[axis], size}))
    return dataclasses.replace(nest, allowed=allowed)


def _with_members(nest: Nest, specs: Mapping[str, str]) -> Nest:
    """Adds the named members; their sizes are granularities of the nest too."""
    ends = nest
    for name, spec in specs.items():
        # In the nest of Student and TA alone: no member is told by another one, so that their order
        # in a config has no effect. What bounds its sizes is the TA, not the nest's granularities.
        try:
            member = parse_spec(spec, ends, is_new=True)
            nest = _with_member(nest, name, member)
            # Its sizes are allowed by then; its layers may yet be none of the TA's.
            nest.check(member, spec)
        except UserError as error:
            raise UserError(f"nest.members.{name}={shorten(spec)}: {error}") from None
    return nest


def _with_member(nest: Nest, name: str, member: SubModel) -> Nest:
    allowed = dict(nest.allowed)
    for axis in member.axes:
        limit = nest.ta.sizes[axis]
        for size in member.along(axis):
            smallest = 0 if axis == THOUGHTS else 1
            if not smallest <= size <= limit:
                raise UserError(
                    f"{word_of(axis)}={size} must be from {smallest} to the TA's {limit}"
                )
        allowed[axis] = tuple(sorted({*allowed[axis], *member.along(axis)}))
    return Nest({**nest.members, name: member}, allowed, nest.spread, nest.by_layer)
