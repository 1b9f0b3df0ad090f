"""The text of a compiled program (HLO), read as computations and instructions.

An HLO text is a list of computations. Each has a head, `%name (parameters) -> type {`, and a line
for each instruction, `%result = type operation(operands), attributes`; loops, fusions and
conditionals name the computations that they call in their attributes.
"""

import dataclasses
import math
import re

_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{")
_NAME = re.compile(r"%?([\w.\-]+)")
# A conditional on a bool names its two branches, one on an index lists them.
_BRANCH = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")

_TRIP_COUNT = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"constant\((\d+)\)")
_BODY = re.compile(r"body=%?([\w.\-]+)")
_INDEX = re.compile(r"get-tuple-element\(.*\), index=(\d+)")
_INSTRUCTION = re.compile(
    r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>\(.*?\)|\S+) (?P<op>[a-z][\w\-]*)\("
    r"(?P<operands>[^()]*)"
)
_OPERAND = re.compile(r"%([\w.\-]+)")

# Of a type such as `(bf16[16], f32[2,4]{1,0})`: each array's element type, dimensions and layout.
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]*)\](\{[^}]*\})?")

_DEFAULT_BYTES = 4
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


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a type.

    Attributes:
      shape: its dimensions.
      bytes: of all its numbers.
      layout: as the text has it; empty: it is not told.
    """

    shape: tuple[int, ...]
    bytes: int
    layout: str


def arrays_of(type: str) -> list[Array]:
    """The arrays of a type, which may be a tuple of several."""
    arrays = []
    for dtype, dimensions, layout in _ARRAY.findall(type):
        shape = tuple(int(size) for size in dimensions.split(",") if size)
        size = _BYTES.get(dtype, _DEFAULT_BYTES) * math.prod(shape)
        arrays.append(Array(shape, size, layout))
    return arrays


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Attributes:
      name: of its result.
      op: what it does, such as `dot`.
      type: of its result, as the text has it.
      operands: their names.
      line: all of its text.
      is_root: whether its result is the computation's.
    """

    name: str
    op: str
    type: str
    operands: tuple[str, ...]
    line: str
    is_root: bool


class Program:
    """The computations of an HLO text.

    Attributes:
      entry: name of the one that runs first.
      lines_of: the instructions of each, by name.
    """

    def __init__(self, hlo: str):
        self.entry = ""
        self.lines_of: dict[str, list[str]] = {}
        self._read: dict[str, dict[str, Instruction]] = {}

        name = ""
        for line in hlo.splitlines():
            head = _HEAD.match(line)
            if head is not None:
                name = head["name"]
                self.lines_of[name] = []
                if head["entry"]:
                    self.entry = name
            elif name:
                self.lines_of[name].append(line)

    def instructions(self, computation: str) -> dict[str, Instruction]:
        """The instructions of a computation by name; none: the text has it not."""
        if computation not in self._read:
            matches = map(_INSTRUCTION.match, self.lines_of.get(computation, []))
            self._read[computation] = {
                match["name"]: Instruction(
                    match["name"],
                    match["op"],
                    match["type"],
                    tuple(_OPERAND.findall(match["operands"])),
                    match.string,
                    match["root"] is not None,
                )
                for match in matches
                if match is not None
            }
        return self._read[computation]

    def root(self, computation: str) -> str:
        """The instruction whose result is the computation's."""
        lines = self.lines_of[computation]
        return next(line for line in lines if line.lstrip().startswith("ROOT "))

    def trip_count(self, line: str) -> int:
        """How often the body of a while loop runs: stated, or read from a condition that counts up
        to a constant.
        """
        stated = _TRIP_COUNT.search(line)
        if stated is not None:
            return int(stated[1])

        condition = _CONDITION.search(line)
        if condition is None:
            return 1
        lines = self.lines_of.get(condition[1], [])
        constants = [match for match in map(_CONSTANT.search, lines) if match is not None]
        counts_up = any("compare(" in line and "direction=LT" in line for line in lines)
        if counts_up and len(constants) == 1:
            return -(-int(constants[0][1]) // self._step(line, condition[1]))
        return 1

    def _step(self, line: str, condition: str) -> int:
        """By how much the counter of a while loop rises: one that goes round a ring of devices
        both ways does two of them at once. 1 where the body does not tell.
        """
        conditions = self.instructions(condition)
        compared = next((i for i in conditions.values() if "direction=LT" in i.line), None)
        body = _BODY.search(line)
        if body is None or compared is None or not compared.operands:
            return 1
        counter = conditions.get(compared.operands[0])
        index = None if counter is None else _INDEX.search(counter.line)
        instructions = self.instructions(body[1])
        root = next((each for each in instructions.values() if each.is_root), None)
        if index is None or root is None or int(index[1]) >= len(root.operands):
            return 1

        risen = instructions.get(root.operands[int(index[1])])
        if risen is None or risen.op != "add":
            return 1
        lines = [instructions[name].line for name in risen.operands if name in instructions]
        steps = [int(step[1]) for step in map(_CONSTANT.search, lines) if step is not None]
        return max(steps, default=1)


def branches(line: str) -> list[str]:
    """Names of the computations of which a conditional runs one."""
    names = _BRANCH.findall(line)
    for listing in _BRANCHES.findall(line):
        names += _NAME.findall(listing)
    return names
