"""Named width patterns: which layers of a mix are wide."""

from collections.abc import Callable


def wide_narrow_wide(num_layers: int, num_wide: int) -> tuple[bool, ...]:
    """The paper's heuristic: the wide layers stand first and last, the odd one first."""
    first = (num_wide + 1) // 2
    last = num_layers - num_wide // 2
    return tuple(layer < first or layer >= last for layer in range(num_layers))


def narrow_wide_narrow(num_layers: int, num_wide: int) -> tuple[bool, ...]:
    """The wide layers stand in the middle, the odd narrow one last."""
    start = (num_layers - num_wide) // 2
    return tuple(start <= layer < start + num_wide for layer in range(num_layers))


PATTERNS: dict[str, Callable[[int, int], tuple[bool, ...]]] = {
    "wide-narrow-wide": wide_narrow_wide,
    "narrow-wide-narrow": narrow_wide_narrow,
}
