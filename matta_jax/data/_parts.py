"""Parts of a corpus, each of which a process can read by itself.

How a corpus falls into parts depends on the corpus alone, and not on how many processes read it.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from matta_jax import storage
from matta_jax.data._parquet import row_group_bytes

_LEAST_BYTES = 2**20
_LEAST_EXAMPLES = 2**12
_MOST_PARTS = 256
"""Each leaves two files, which training holds open."""
_LINE_BYTES = 2**16
"""That are read at once to find the end of a line."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Documents of a corpus that stand one after the other.

    Attributes:
      files: those that they lie in, in order; none: of a set that is read by number.
      within: start and stop, of the bytes of one file of JSON lines, of the row groups of a Parquet
        file, or of the examples or files of a set; None: all.
    """

    files: tuple[str, ...] = ()
    within: tuple[int, int] | None = None


def file_parts(
    files: Sequence[storage.Path], what: str, least_bytes: int = _LEAST_BYTES
) -> list[Part]:
    """Divides files, in order: small ones are put together, and large ones that can be read from
    the middle are cut.

    Args:
      files: of a corpus.
      what: asked for them, as errors say it.
      least_bytes: of a part but the last; more where there would be too many parts.

    Raises:
      OSError: a file cannot be read.
      UserError: one that would be cut is damaged.
    """
    sizes = [storage.num_bytes(file) for file in files]
    target = max(least_bytes, sum(sizes) // _MOST_PARTS)
    parts: list[Part] = []
    group: list[str] = []
    group_bytes = 0

    def end_group() -> None:
        nonlocal group, group_bytes
        if group:
            parts.append(Part(tuple(group)))
        group, group_bytes = [], 0

    for file, size in zip(files, sizes, strict=True):
        cuts = _cuts_of(file)
        if cuts is not None and size >= 2 * target:
            end_group()
            parts += [Part((str(file),), within) for within in cuts(file, what, target)]
            continue
        group.append(str(file))
        group_bytes += size
        if group_bytes >= target:
            end_group()
    end_group()
    return parts


def example_parts(count: int, least: int = _LEAST_EXAMPLES) -> list[Part]:
    """Divides the examples, or files, of a set that is read by number."""
    num_parts = max(1, min(_MOST_PARTS, count // least))
    bounds = np.linspace(0, count, num_parts + 1).round().astype(int).tolist()
    return [Part(within=within) for within in _ranges(bounds)]


_Cuts = Callable[[storage.Path, str, int], list[tuple[int, int]]]


def _cuts_of(file: storage.Path) -> _Cuts | None:
    """What finds the places at which a file can be cut; None where there are none."""
    # An object is read whole, whatever is wanted of it.
    if storage.in_bucket(file):
        return None
    return {".jsonl": _line_cuts, ".parquet": _row_group_cuts}.get(file.suffix)


def _line_cuts(file: storage.Path, what: str, target: int) -> list[tuple[int, int]]:
    """Ranges of bytes that begin and end with whole lines."""
    del what
    size = storage.num_bytes(file)
    bounds = [0]
    while bounds[-1] < size:
        bounds.append(_next_line(file, min(bounds[-1] + target, size), size))
    return _ranges(bounds)


def _next_line(file: storage.Path, start: int, size: int) -> int:
    """Where the first line begins that does so after `start`."""
    while start < size:
        piece = storage.read_piece(file, start, min(start + _LINE_BYTES, size))
        end = piece.find(b"\n")
        if end >= 0:
            return start + end + 1
        start += len(piece)
    return size


def _row_group_cuts(file: storage.Path, what: str, target: int) -> list[tuple[int, int]]:
    """Ranges of row groups."""
    bounds = [0]
    num_bytes = 0
    sizes = row_group_bytes(file, what)
    for number, size in enumerate(sizes, 1):
        num_bytes += size
        if num_bytes >= target or number == len(sizes):
            bounds.append(number)
            num_bytes = 0
    return _ranges(bounds)


def _ranges(bounds: Sequence[int]) -> list[tuple[int, int]]:
    return [(start, stop) for start, stop in itertools.pairwise(bounds) if stop > start]
