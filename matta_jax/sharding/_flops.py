"""What a compiled program multiplies, from its HLO text: recomputation counts, and a loop's body as
often as it runs.
"""

import math
import re
from collections.abc import Mapping

from matta_jax.sharding._hlo import Instruction, Program, arrays_of, branches

_CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")

# As in `window={size=2x3 stride=1x1 pad=1_1x0_0 rhs_reversal=1x0}, dim_labels=0bf_0io->0bf`.
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


def matmul_flops(hlo: str, kernels: Mapping[str, int] | None = None) -> int:
    """The FLOPs of a device's matrix products, each time the program runs.

    Of the branches of a conditional the one that multiplies most counts; loops of unknown length
    count once. What kernels multiply (custom calls) is not in the text, but told.

    Args:
      hlo: of a compiled program, `compiled.as_text()`.
      kernels: FLOPs of a call of each kernel, by how its name begins.
    """
    program = _Products(hlo, kernels or {})
    return program.flops_at(program.entry)


class _Products(Program):
    """What the computations of an HLO text multiply."""

    def __init__(self, hlo: str, kernels: Mapping[str, int]):
        super().__init__(hlo)
        self._kernels = kernels
        self._flops: dict[str, int] = {}

    def flops_at(self, computation: str) -> int:
        """The FLOPs of a computation, with all that it calls."""
        if computation not in self._flops:
            instructions = self.instructions(computation)
            self._flops[computation] = sum(
                self._flops_of(each, instructions) for each in instructions.values()
            )
        return self._flops[computation]

    def _flops_of(self, each: Instruction, instructions: Mapping[str, Instruction]) -> int:
        if each.op in ("dot", "convolution"):
            return _product_flops(each, instructions)
        if each.op == "custom-call":
            return sum(size for name, size in self._kernels.items() if each.name.startswith(name))
        times = self.trip_count(each.line) if each.op == "while" else 1
        called = sum(map(self.flops_at, _CALLED.findall(each.line)))
        return times * called + max(map(self.flops_at, branches(each.line)), default=0)


def _product_flops(product: Instruction, instructions: Mapping[str, Instruction]) -> int:
    """Two for each number that is multiplied and added."""
    [result] = arrays_of(product.type)
    operands = [arrays_of(instructions[name].type)[0] for name in product.operands]
    first, second = (operand.shape for operand in operands)
    if product.op == "dot":
        contracted = _CONTRACTED.search(product.line)
        axes = contracted[1].split(",") if contracted and contracted[1] else []
        return 2 * math.prod(result.shape) * math.prod(first[int(axis)] for axis in axes)
    return _convolution_flops(product.line, first, second, result.shape)


def _convolution_flops(
    attributes: str, array: tuple[int, ...], kernel: tuple[int, ...], result: tuple[int, ...]
) -> int:
    """TPUs write matrix products so, those with batch axes by windows of which most numbers are
    padding: what falls into it is not multiplied.
    """
    labels = _LABELS.search(attributes)
    assert labels is not None, attributes
    array_size, kernel_size, result_size = (
        dict(zip(names, shape, strict=True))
        for names, shape in zip(labels.groups(), (array, kernel, result), strict=True)
    )

    window = _WINDOW.search(attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    flops = 2 * result_size["b"] * result_size["f"] * kernel_size["i"]
    for axis in range(len(result) - 2):
        side = {name: text.split("x")[axis] for name, text in fields.items()}
        name = str(axis)
        flops *= _pairs(side, array_size[name], kernel_size[name], result_size[name])
    return flops


def _pairs(side: dict[str, str], array: int, kernel: int, result: int) -> int:
    """How many pairs of a result's and a window's position along an axis fall on a number."""
    stride, base, step = (int(side.get(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(side.get("pad", "0_0").split("_")[0])
    pairs = 0
    for i in range(result):
        for j in range(kernel):
            position = i * stride + j * step - before
            pairs += 0 <= position < (array - 1) * base + 1 and position % base == 0
    return pairs
