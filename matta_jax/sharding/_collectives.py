"""What crosses devices in a compiled program, read from its HLO text."""

import dataclasses
import math
import re
from collections.abc import Sequence

from matta_jax.sharding._hlo import Array, Program, arrays_of, branches

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")

COLLECTIVE = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")

# Groups are written as a list of lists, {{0,1},{2,3}}, as [number of groups, size], or as axes of a
# mesh of named sizes, mesh['a'=2,'b'=4] {'a'}.
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{(?P<devices>[\d,]+)\}|\[\d+,(?P<size>\d+)\]"
    r"|mesh\[(?P<mesh>[^\]]*)\] \{(?P<axes>[^}]*)\})"
)
_MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")
_AXIS_NAME = re.compile(r"'([^']+)'")
# Between slices, TPUs hand arrays to a runtime of their hosts: it is told the kind, and the slices.
_BETWEEN_SLICES = re.compile(
    r"= \((?P<type>.*?), u32\[\].* recv\(.*"
    r'_xla_megascale_target="\{(?P<slices>[\d,:]+)\}.*_xla_megascale_transfer_type="(?P<kind>\w+)"'
)
_KINDS_BETWEEN = {"ONE_TO_ONE": "collective-permute"}
# Stages of a collective that another fusion, `async-collective-start`, has begun.
_LATER_STAGE = re.compile(r"^\s*(?:ROOT )?%?async-collective-done|calls=%?async_collective_fusion")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of `KINDS`.
      shapes: of its results on a device.
      bytes: of its results on a device, each time it runs.
      times: how often it runs in a step; loops of unknown length count once.
      in_loop: whether it stands in the body of a loop.
      group: devices that take part together, or slices.
      crosses_slices: whether it goes from slice to slice, over the network of their hosts.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    times: int
    in_loop: bool
    group: int = 1
    crosses_slices: bool = False

    @property
    def sent(self) -> float:
        """Bytes that a device sends each time, in the best algorithm."""
        num_peers = self.group - 1
        share = num_peers / self.group
        if self.kind == "all-reduce":
            # A reduce-scatter, and an all-gather behind it.
            share = 2 * num_peers / self.group
        elif self.kind == "reduce-scatter":
            # Its result is a device's part alone, and each peer gets another part.
            share = num_peers
        elif self.kind == "collective-permute":
            share = 1
        return self.bytes * share


def collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a compiled program, from `compiled.as_text()`.

    One that TPUs run in stages, in fusions of a start, of matmuls beside it and of a done, counts
    once, as one with a `-start` and a `-done`. An all-reduce that they fuse with the slice of its
    result is a reduce-scatter. Of the branches of a conditional the one that moves most counts.
    """
    program = CollectiveProgram(hlo)
    main = Place(program.entry, times=1, in_loop=False)
    return list(program.collectives_at(main).values())


@dataclasses.dataclass(frozen=True)
class Place:
    """A computation, where it is called.

    Attributes:
      computation: its name.
      times: how often it runs in a step.
      in_loop: whether it is called in the body of a loop, however deep.
    """

    computation: str
    times: int
    in_loop: bool


class CollectiveProgram(Program):
    """The collectives of an HLO text."""

    def collectives_at(self, place: Place) -> dict[str, Collective]:
        """Returns the collectives of a computation and of all that it calls.

        The keys tell two collectives apart that are equal.
        """
        result: dict[str, Collective] = {}
        for line in self.lines_of.get(place.computation, []):
            match = COLLECTIVE.search(line)
            between = _BETWEEN_SLICES.search(line)
            if between is not None:
                result[_key(line, place)] = _between_slices(between, place)
            elif match is not None:
                key = _key(line, place)
                result.setdefault(key, self.collective(line, match, place))
            else:
                result = self._called(line, place, result)
        return result

    def _called(
        self, line: str, place: Place, result: dict[str, Collective]
    ) -> dict[str, Collective]:
        """Returns the collectives so far, and those of the computations that a line calls."""
        if _LATER_STAGE.search(line):
            return result
        is_loop = " while(" in line
        inner = dataclasses.replace(
            place,
            times=place.times * (self.trip_count(line) if is_loop else 1),
            in_loop=place.in_loop or is_loop,
        )

        for name in CALLED.findall(line):
            callee = dataclasses.replace(inner, computation=name)
            result = self.collectives_at(callee) | result

        options = []
        for name in branches(line):
            branch = dataclasses.replace(inner, computation=name)
            options.append(self.collectives_at(branch))
        if options:
            largest: dict[str, Collective] = max(options, key=total_bytes)
            result |= largest
        return result

    def collective(self, line: str, match: re.Match[str], place: Place) -> Collective:
        """The collective that a line of a computation shows."""
        kind = match["kind"]
        result_type = match["type"]

        # TPUs fuse an all-reduce with the slice of its result, in a computation of this name: what
        # crosses is a reduce-scatter, whose result is the root's.
        if place.computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
            result_type = self.root(place.computation).partition(" dynamic-slice(")[0]

        arrays = arrays_of(result_type)
        # The start of an asynchronous one shows its operands, its results, and scalars that tell
        # that they are there. An all-reduce shows its results alone.
        if match["start"] and kind != "all-reduce":
            arrays = [array for array in arrays if array.shape]
            arrays = arrays[len(arrays) // 2 :]
        return _of_arrays(kind, arrays, place, _group_size(line))


def _between_slices(match: re.Match[str], place: Place) -> Collective:
    kind = _KINDS_BETWEEN.get(match["kind"], match["kind"].lower().replace("_", "-"))
    collective = _of_arrays(kind, arrays_of(match["type"]), place, _count(match["slices"]))
    return dataclasses.replace(collective, crosses_slices=True)


def _of_arrays(kind: str, arrays: Sequence[Array], place: Place, group: int) -> Collective:
    """The collective whose results on a device are arrays."""
    return Collective(
        kind,
        shapes=tuple(array.shape for array in arrays),
        bytes=sum(array.bytes for array in arrays),
        times=place.times,
        in_loop=place.in_loop,
        group=group,
    )


def _count(numbers: str) -> int:
    """How many numbers a list such as `1,2` or `0:7,9` has."""
    ends = [part.partition(":") for part in numbers.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)


def _key(line: str, place: Place) -> str:
    """Tells a line of a computation from all others."""
    return f"{place.computation}: {line}"


def total_bytes(branch: dict[str, Collective]) -> int:
    """Of the results of all collectives, as often as they run."""
    return sum(collective.bytes * collective.times for collective in branch.values())


def _group_size(line: str) -> int:
    """Devices of a group: listed, counted, or as axes of a mesh."""
    match = _GROUPS.search(line)
    if match is None:
        return 1
    if match["devices"]:
        return len(match["devices"].split(","))
    if match["size"]:
        return int(match["size"])
    sizes = {name: int(size) for name, size in _MESH_AXIS.findall(match["mesh"])}
    axes = _AXIS_NAME.findall(match["axes"])
    return math.prod(sizes[axis] for axis in axes)
