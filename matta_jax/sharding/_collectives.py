"""What crosses devices in a compiled program, read from its HLO text (architecture.md, decision
12).
"""

import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")

_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
_BRANCH = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)")
_NAME = re.compile(r"%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_COUNTED_TO = re.compile(r"constant\((\d+)\)")
_GROUP = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]|mesh\[([^\]]*)\] \{([^}]*)\})")
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
      group: devices that take part together.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    times: int
    in_loop: bool
    group: int = 1

    @property
    def sent(self) -> float:
        """Bytes that a device sends each time, in the best algorithm."""
        others = self.group - 1
        share = {
            "all-reduce": 2 * others / self.group,
            "reduce-scatter": others,
            "collective-permute": 1,
        }
        return self.bytes * share.get(self.kind, others / self.group)


def collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a compiled program, from `compiled.as_text()`.

    One that the compiler fuses into several computations in stages counts once, as one with a
    `-start` and a `-done`. An all-reduce that it fuses with the slice of its result is a
    reduce-scatter. Of the branches of a conditional the one that moves most counts.
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

    def trips(line: str) -> int:
        """How often the body of a while loop runs: stated, or read from a condition that counts up
        to a constant.
        """
        if stated := _TRIP_COUNT.search(line):
            return int(stated[1])
        condition = _CONDITION.search(line)
        lines = lines_of.get(condition[1], []) if condition else []
        limits = [found[1] for found in map(_COUNTED_TO.search, lines) if found]
        counts_up = any("compare(" in line and "direction=LT" in line for line in lines)
        return int(limits[0]) if len(limits) == 1 and counts_up else 1

    def found_in(
        name: str, times: int, in_loop: bool, fused: bool = False
    ) -> dict[str, Collective]:
        result: dict[str, Collective] = {}
        for line in lines_of.get(name, []):
            if match := _COLLECTIVE.search(line):
                kind, shown = match[2], match[1]
                if name.startswith("all-reduce-scatter"):
                    root = next(
                        line for line in lines_of[name] if line.lstrip().startswith("ROOT ")
                    )
                    kind, shown = "reduce-scatter", root.partition(" dynamic-slice(")[0]
                shapes = _SHAPE.findall(shown)
                if (
                    match[3] and kind != "all-reduce"
                ):  # Operands, results, and what tells that they are there.
                    shapes = [shape for shape in shapes if shape[1]]
                    shapes = shapes[len(shapes) // 2 :]
                sizes = tuple(tuple(int(n) for n in dims.split(",") if n) for _, dims in shapes)
                size = sum(
                    _BYTES.get(dtype, 4) * math.prod(dims)
                    for (dtype, _), dims in zip(shapes, sizes, strict=True)
                )
                # Stages share their channel and source; others may share a channel, but stand in
                # one computation.
                source = _SOURCE.findall(line)
                key = str(source) if fused and source else f"{name}: {line}"
                result.setdefault(
                    key, Collective(kind, sizes, size, times, in_loop, _group_size(line))
                )
                continue
            is_loop = " while(" in line
            runs = times * (trips(line) if is_loop else 1)
            inside = in_loop or is_loop
            for callee in _CALLED.findall(line):
                result = found_in(callee, runs, inside, fused or " fusion(" in line) | result
            branches = _BRANCH.findall(line) + [
                one for many in _BRANCHES.findall(line) for one in _NAME.findall(many)
            ]
            options = [found_in(branch, runs, inside, fused) for branch in branches]
            if options:
                largest: dict[str, Collective] = max(options, key=_total)
                result |= largest
        return result

    return list(found_in(entry, 1, False).values())


def _total(found: dict[str, Collective]) -> int:
    return sum(one.bytes * one.times for one in found.values())


def _group_size(line: str) -> int:
    """Devices of a group: listed, counted, or as axes of a mesh."""
    found = _GROUP.search(line)
    if found is None:
        return 1
    if found[1]:
        return len(found[1].split(","))
    if found[2]:
        return int(found[2])
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[3])}
    return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", found[4]))
