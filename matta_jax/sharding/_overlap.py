"""What crosses devices while they multiply matrices: collectives of which a start and a done stand
around matmuls, read from a compiled program's HLO text.
"""

import dataclasses
import re
from collections.abc import Iterator

from matta_jax.sharding._collectives import (
    CALLED,
    COLLECTIVE,
    KINDS,
    Collective,
    CollectiveProgram,
    Place,
    total_bytes,
)
from matta_jax.sharding._hlo import branches

_MATMUL = re.compile(r" (?:convolution|dot)\(")
_NAME = r"^\s*(?:ROOT )?%?"
# TPUs begin one in a fusion of such a name, whose number its end shares.
_FUSED = re.compile(rf"{_NAME}async-collective-(?P<stage>start|done)(?P<number>[.\d]*) = ")
_START = re.compile(rf"{_NAME}(?P<name>[\w.\-]+) = .*? (?:{'|'.join(KINDS)})-start\(")
_DONE = re.compile(rf" (?:{'|'.join(KINDS)})-done\((?:.*? )?%?(?P<name>[\w.\-]+)\)(?:,|$)")


@dataclasses.dataclass(frozen=True)
class Overlap:
    """A collective that has a start and a done.

    Attributes:
      collective: what crosses.
      matmuls: instructions between the two that multiply matrices; 0: it hides behind none.
    """

    collective: Collective
    matmuls: int


def overlaps(hlo: str) -> list[Overlap]:
    """Returns the asynchronous collectives of a compiled program, from `compiled.as_text()`.

    Of the branches of a conditional the one that moves most counts, as in `collectives`. The text
    of a program that is not scheduled (`is_scheduled=true` in its first line) does not tell what
    runs between two instructions.
    """
    program = _Overlaps(hlo)
    main = Place(program.entry, times=1, in_loop=False)
    return list(program.overlaps_at(main))


class _Overlaps(CollectiveProgram):
    """The asynchronous collectives of an HLO text."""

    def overlaps_at(self, place: Place) -> Iterator[Overlap]:
        """Those of a computation, and of all loops, branches and calls in it."""
        started: dict[str, tuple[Collective | None, int]] = {}
        matmuls = 0
        for line in self.lines_of.get(place.computation, []):
            stage, key = _stage(line)
            if stage == "start":
                started[key] = (self._begun(line, place), matmuls)
            elif stage == "done" and key in started:
                collective, matmuls_before = started.pop(key)
                if collective is not None:
                    yield Overlap(collective, matmuls - matmuls_before)
            elif self._multiplies(line):
                matmuls += 1
            if not stage and " fusion(" not in line:
                for inner in self._inner(line, place):
                    yield from self.overlaps_at(inner)

    def _inner(self, line: str, place: Place) -> list[Place]:
        """What an instruction runs that is no fusion."""
        is_loop = " while(" in line
        times = place.times * (self.trip_count(line) if is_loop else 1)
        in_loop = place.in_loop or is_loop
        inner = [Place(name, times, in_loop) for name in CALLED.findall(line)]
        options = [Place(name, times, in_loop) for name in branches(line)]
        if options:
            inner.append(max(options, key=lambda place: total_bytes(self.collectives_at(place))))
        return inner

    def _begun(self, line: str, place: Place) -> Collective | None:
        """The collective that an instruction begins; None of what is none."""
        lines = [line]
        for name in CALLED.findall(line):
            lines += self.lines_of.get(name, [])
        for part in lines:
            match = COLLECTIVE.search(part)
            if match is not None:
                return self.collective(part, match, place)
        return None

    def _multiplies(self, line: str) -> bool:
        """Whether an instruction multiplies matrices, itself or in what it calls."""
        if _MATMUL.search(line):
            return True
        names = [*CALLED.findall(line), *branches(line)]
        return any(
            self._multiplies(inner) for name in names for inner in self.lines_of.get(name, [])
        )


def _stage(line: str) -> tuple[str, str]:
    """`start` or `done`, and what the two share; nothing of any other instruction."""
    fused = _FUSED.match(line)
    if fused is not None:
        return fused["stage"], f"fused{fused['number']}"
    start = _START.match(line)
    if start is not None:
        return "start", start["name"]
    done = _DONE.search(line)
    return ("done", done["name"]) if done is not None else ("", "")
