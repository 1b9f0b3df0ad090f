"""What a compiled program reads from and writes to the memory of a device, from its HLO text.

The compiler's own count (`cost_analysis`) takes the body of a loop once. Here each instruction that
is no fusion's part reads its operands and writes its result; a slice reads what it gives, an update
in place writes what it gets, and a loop's body counts as often as it runs. What lies in the memory
of a core (TPUs: `S(1)`) does not count.
"""

import re

from matta_jax.sharding._hlo import Instruction, Program, arrays_of, branches

_FUSED = re.compile(r"calls=%?([\w.\-]+)")
_LOOP = re.compile(r"(?:body|condition)=%?([\w.\-]+)")
_TO_APPLY = re.compile(r"to_apply=%?([\w.\-]+)")
_INDEX = re.compile(r"parameter\((\d+)\)")
_IN_CORE = re.compile(r"S\([1-9]\d*\)")

# They name what is there already.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "iota",
    ]
)
# Calls of a TPU's compiler that do the same: memory to write to later, slices side by side.
_FREE_CALL = re.compile(r'custom_call_target="(?:AllocateBuffer|ConcatBitcast)"')
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATE = "dynamic-update-slice"


def memory_bytes(hlo: str) -> int:
    """The bytes that a device reads from its memory and writes to it, each time the program runs.

    Of the branches of a conditional the one that moves most counts; loops of unknown length count
    once. Padding of arrays to whole tiles does not count.

    Args:
      hlo: of a compiled program, `compiled.as_text()`.
    """
    program = _Traffic(hlo)
    return program.bytes_at(program.entry)


class _Traffic(Program):
    """What the computations of an HLO text move."""

    def bytes_at(self, computation: str) -> int:
        """The bytes that a computation moves, with all that it calls."""
        instructions = self.instructions(computation)
        return sum(self._moved(each, instructions) for each in instructions.values())

    def _moved(self, each: Instruction, instructions: dict[str, Instruction]) -> int:
        if each.op in _FREE or each.op.endswith("-done") or _FREE_CALL.search(each.line):
            return 0
        if each.op == "while":
            times = self.trip_count(each.line)
            return times * sum(map(self.bytes_at, _LOOP.findall(each.line)))
        if each.op == "conditional":
            return max(map(self.bytes_at, branches(each.line)), default=0)
        if each.op == "call":
            return sum(map(self.bytes_at, _TO_APPLY.findall(each.line)))

        operands = [instructions[name] for name in each.operands if name in instructions]
        if each.op == "fusion":
            return self._moved_by_fusion(each, operands)
        if each.op.endswith("-start"):
            # Its type names operands, results and marks: what is read is written somewhere.
            if each.op == "async-start":
                return sum(map(self.bytes_at, _FUSED.findall(each.line)))
            return _moved_by_start(each, operands)
        if each.op in _SLICES:
            return 2 * _memory_bytes(each.type)
        if each.op == _UPDATE:
            return 2 * _memory_bytes(operands[1].type)
        return _memory_bytes(each.type) + sum(_memory_bytes(operand.type) for operand in operands)

    def _moved_by_fusion(self, fusion: Instruction, operands: list[Instruction]) -> int:
        [computation] = _FUSED.findall(fusion.line)
        fused = self.instructions(computation)
        parameters = _parameters(fused)
        total = 0
        for i, operand in enumerate(operands):
            size = _memory_bytes(operand.type)
            total += min(size, self._used_bytes(parameters[i], fused)) if i in parameters else size
        return total + _written_bytes(fusion, fused)

    def _used_bytes(self, parameter: Instruction, fused: dict[str, Instruction]) -> int:
        """How much of an operand a fusion reads: what it slices out of it, or all."""
        total = 0
        for each in fused.values():
            if parameter.name not in each.operands:
                continue
            is_cut = each.operands[0] == parameter.name
            if each.op == "bitcast":
                total += self._used_bytes(each, fused)
            elif each.op == "fusion":
                # A fusion within it reads what it slices, too.
                inner = self.instructions(_FUSED.findall(each.line)[0])
                position = each.operands.index(parameter.name)
                total += self._used_bytes(_parameters(inner)[position], inner)
            elif each.op in _SLICES and is_cut:
                total += _array_bytes(each.type)
            # What an update does not reach stays where it is, unread.
            elif not (each.op == _UPDATE and is_cut):
                return _array_bytes(parameter.type)
        return total


def _moved_by_start(start: Instruction, operands: list[Instruction]) -> int:
    """What an instruction moves that goes on beside others, such as a prefetch into the core."""
    # Its type names where a copy goes, and where it comes from.
    if start.op == "copy-start":
        return _memory_bytes(start.type)
    if start.op.removesuffix("-start") in _SLICES:
        # Its type names the operands and the result: as much is read as there is of it.
        result = arrays_of(start.type)[len(operands)]
        is_read, is_written = (
            _memory_bytes(operands[0].type) > 0,
            not _IN_CORE.search(result.layout),
        )
        return result.bytes * (is_read + is_written)
    return 2 * sum(_memory_bytes(operand.type) for operand in operands)


def _parameters(fused: dict[str, Instruction]) -> dict[int, Instruction]:
    """The operands of a fusion as its computation names them, by their place."""
    parameters = {}
    for each in fused.values():
        index = _INDEX.search(each.line) if each.op == "parameter" else None
        if index is not None:
            parameters[int(index[1])] = each
    return parameters


def _written_bytes(fusion: Instruction, fused: dict[str, Instruction]) -> int:
    """What a fusion writes: its result, or what it updates of an operand in place."""
    size = _memory_bytes(fusion.type)
    root = next((each for each in fused.values() if each.is_root), None)
    if root is None or not size:
        return size
    results = [fused.get(name) for name in root.operands] if root.op == "tuple" else [root]
    total = 0
    for result in results:
        while result is not None and result.op == "bitcast":
            result = fused.get(result.operands[0])
        if result is None:
            continue
        is_update = result.op == _UPDATE and result.operands[1] in fused
        total += _array_bytes(fused[result.operands[1]].type if is_update else result.type)
    # Some of the results may stay in the core.
    return min(size, total)


def _memory_bytes(type: str) -> int:
    """The bytes of a type's arrays that lie in the device's memory."""
    return sum(array.bytes for array in arrays_of(type) if not _IN_CORE.search(array.layout))


def _array_bytes(type: str) -> int:
    """The bytes of a type's arrays; within a fusion no place is told."""
    return sum(array.bytes for array in arrays_of(type))
