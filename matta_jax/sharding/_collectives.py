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
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_COUNTED_TO = re.compile(r"constant\((\d+)\)")
_SOURCE = re.compile(r"channel_id=\d+|metadata=\{[^}]*\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of `KINDS`.
      shapes: of its results on a device.
      bytes: of its results on a device, each time it runs.
      times: how often it runs in a step; loops of unknown length count once.
      in_loop: whether it stands in the body of a loop.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    times: int
    in_loop: bool


def collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a compiled program, from `compiled.as_text()`.

    One that the compiler fuses into several computations in stages counts once, as one with a `-start` and a `-done`.
    """
    lines_of: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            lines_of[name] = []
            entry = name if found[1] else entry
        elif name:
            lines_of[name].append(line)
    result: dict[str, Collective] = {}

    def trips(line: str) -> int:
        """How often the body of a while loop runs: stated, or read from a condition that counts up to a constant."""
        if stated := _TRIP_COUNT.search(line):
            return int(stated[1])
        condition = _CONDITION.search(line)
        lines = lines_of.get(condition[1], []) if condition else []
        limits = [found[1] for found in map(_COUNTED_TO.search, lines) if found]
        counts_up = any("compare(" in line and "direction=LT" in line for line in lines)
        return int(limits[0]) if len(limits) == 1 and counts_up else 1

    def visit(name: str, times: int, in_loop: bool, fused: bool = False) -> None:
        for line in lines_of.get(name, []):
            if found := _COLLECTIVE.search(line):
                shapes = _SHAPE.findall(found[1])
                sizes = tuple(tuple(int(n) for n in dims.split(",") if n) for _, dims in shapes)
                size = sum(_BYTES.get(kind, 4) * math.prod(dims) for (kind, _), dims in zip(shapes, sizes, strict=True))
                # Stages share their channel and source; others may share a channel, but stand in one computation.
                source = _SOURCE.findall(line)
                key = str(source) if fused and source else f"{name}: {line}"
                result.setdefault(key, Collective(found[2], sizes, size, times, in_loop))
                continue
            is_loop = " while(" in line
            runs = times * (trips(line) if is_loop else 1)
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += re.findall(r"%?([\w.\-]+)", branches)
            for callee in called:
                visit(callee, runs, in_loop or is_loop, fused or " fusion(" in line)

    visit(entry, 1, False)
    return list(result.values())
