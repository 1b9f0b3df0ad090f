"""Mixtures of sources: how each is written, and what is true of all of them."""

import dataclasses
import math
import re
from collections.abc import Mapping

from matta_jax.config._fields import item_name
from matta_jax.errors import UserError, shorten

MIXTURE = "mixture"
"""The source that data.mixture describes."""
_LONGEST_NAME = 30
_SETTING = re.compile(r"(weight|epochs|weight@(\d{1,10}))=(.+)")


@dataclasses.dataclass(frozen=True)
class Component:
    """A source of a mixture.

    Attributes:
      name: in metrics.
      source: as data.source names one.
      weights: from a step on, in rising order; the first is of step 0.
      epochs: how often it may be read at most; None: as often as its weight asks for.
    """

    name: str
    source: str
    weights: tuple[tuple[int, float], ...] = ((0, 1.0),)
    epochs: float | None = None

    def weight_at(self, step: int) -> float:
        """Its weight in a step."""
        return [weight for start, weight in self.weights if start <= step][-1]


def parse_component(name: str, text: str) -> Component:
    """Reads `SOURCE;weight=2;weight@5000=1;epochs=4`. Raises UserError, which names it."""
    where = item_name("data.mixture", name)
    source, *settings = (part.strip() for part in text.split(";"))
    weights = {0: 1.0}
    epochs = None
    for setting in settings:
        matched = _SETTING.fullmatch(setting)
        if matched is None:
            raise UserError(
                f"{where}={shorten(text)}: {setting!r} must be weight=NUMBER, weight@STEP=NUMBER "
                "or epochs=NUMBER"
            )
        kind, step, number = matched.groups()
        value = _number(number, f"{where}: {setting!r}")
        if kind == "epochs":
            epochs = value
        else:
            weights[int(step or 0)] = value
    if epochs == 0:
        raise UserError(f"{where}: epochs=0 would read nothing; leave the source out")
    return Component(name, source, tuple(sorted(weights.items())), epochs)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1e9:
        raise UserError(f"{where} must be a number from 0 to 1e9")
    return value


def check_mixture(source: str, mixture: Mapping[str, str]) -> None:
    """Raises UserError where a mixture and data.source do not fit, or a component is not one."""
    if bool(mixture) != (source == MIXTURE):
        raise UserError(
            f"data.source={shorten(source)} and data.mixture of {len(mixture)} sources: a mixture "
            f"is read where data.source={MIXTURE!r}, and only there; set both"
        )
    components = components_of(mixture)
    for component in components:
        where = item_name("data.mixture", component.name)
        if not component.name.isidentifier() or len(component.name) > _LONGEST_NAME:
            raise UserError(
                f"{where}: a source's name must be a word of at most {_LONGEST_NAME} letters, "
                "digits and _; rename it"
            )
        if component.source in ("", MIXTURE):
            raise UserError(
                f"{where}={shorten(mixture[component.name])} must begin with a source, such as "
                "text:books/*"
            )
    for step in phases(components):
        if not any(component.weight_at(step) for component in components):
            raise UserError(
                f"data.mixture: all weights are 0 from step {step} on; give a source a weight there"
            )


def components_of(mixture: Mapping[str, str]) -> tuple[Component, ...]:
    """The sources of a mixture, in order. Raises UserError for what is none."""
    return tuple(parse_component(name, text) for name, text in mixture.items())


def phases(components: tuple[Component, ...]) -> tuple[int, ...]:
    """The steps at which weights change, 0 first."""
    return tuple(sorted({step for component in components for step, _ in component.weights}))


def same_until(before: tuple[Component, ...], after: tuple[Component, ...], step: int) -> bool:
    """Whether two mixtures read the same in the first `step` steps, of texts that are the same."""
    if [component.name for component in before] != [component.name for component in after]:
        return False
    steps = {start for start in (0, *phases(before), *phases(after)) if start < step}
    return all(
        first.weight_at(start) == second.weight_at(start)
        for first, second in zip(before, after, strict=True)
        for start in steps
    )
