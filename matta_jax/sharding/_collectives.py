"""What crosses devices in a compiled program, read from its HLO text (architecture.md, decision 12)."""

import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|(?:true|false)_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of `KINDS`.
      shapes: of its results on a device.
      bytes: of its results on a device, each time it runs.
      times: how often it runs; loops of unknown length count once.
      in_loop: whether it stands in the body of a loop.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    times: int
    in_loop: bool


def collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a compiled program, from `compiled.as_text()`; of a `-start` and `-done` pair, one."""
    lines_of: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            lines_of[name] = []
            entry = name if found[1] else entry
        elif name:
            lines_of[name].append(line)
    result: list[Collective] = []

    def visit(name: str, times: int, in_loop: bool) -> None:
        for line in lines_of.get(name, []):
            if found := _COLLECTIVE.search(line):
                shapes = _SHAPE.findall(found[1])
                sizes = tuple(tuple(int(n) for n in dims.split(",") if n) for _, dims in shapes)
                size = sum(_BYTES.get(kind, 4) * math.prod(dims) for (kind, _), dims in zip(shapes, sizes, strict=True))
                result.append(Collective(found[2], sizes, size, times, in_loop))
                continue
            is_loop = " while(" in line
            trips = int(found[1]) if is_loop and (found := _TRIP_COUNT.search(line)) else 1
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += re.findall(r"%?([\w.\-]+)", branches)
            for callee in called:
                visit(callee, times * trips, in_loop or is_loop)

    visit(entry, 1, False)
    return result
