"""Batches: windows in an order that depends on the seed and the step alone, served by Grain."""

import contextlib
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

# tokens [b, T + 1] int32, length [b] int32
Batch = dict[str, np.ndarray]


class Examples(Protocol):
    """What batches are made of: arrays by name, at random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


@runtime_checkable
class Augmented(Protocol):
    """Examples of which training reads variants."""

    def variant(self, index: int, position: int) -> Batch:
        """The variant of an example that stands at this position of a run's endless order."""
        ...


class Order(Protocol):
    """Numbers of examples by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> int: ...


@runtime_checkable
class Ordered(Protocol):
    """Examples that have an order of their own."""

    def order(self, seed: int, batch_size: int) -> Order:
        """The endless order of a run, by its seed and the examples of its steps."""
        ...


class _Batches:
    """A random-access source: this process's rows of each batch, of examples in an order.

    Grain orders numbers, not examples, and batches none: each of its steps takes tens of
    microseconds an element.
    """

    def __init__(self, examples: Examples, order: Order, batch_size: int, rows: np.ndarray):
        self._examples = examples
        self._order = order
        self._batch_size = batch_size
        self._rows = rows.tolist()

    def __len__(self) -> int:
        return len(self._order) // self._batch_size

    def __getitem__(self, index: int) -> Batch:
        first = int(index) * self._batch_size
        positions = [first + row for row in self._rows]
        return _stack([self._read(int(self._order[at]), at) for at in positions])

    def _read(self, number: int, position: int) -> Batch:
        if isinstance(self._examples, Augmented):
            return self._examples.variant(number, position)
        return self._examples[number]


def _stack(rows: list[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@contextlib.contextmanager
def training_batches(  # noqa: PLR0913  Keyword-only: the order of a stream.
    windows: Examples,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: np.ndarray | None = None,
    prefetch: int = 16,
    num_threads: int = 2,
    in_order: bool = False,
) -> Iterator[Iterator[Batch]]:
    """Opens an endless iterator over this process's rows of the shuffled global batches, reshuffled
    in each epoch.

    Row r of global batch i is example i·B + r of one global order, whatever the processes, devices
    or threads, so a run resumes by its step alone, on any number of processes.

    Args:
      windows: the training windows.
      batch_size: B, over all processes.
      seed: of the order.
      start_step: the first batch to serve.
      rows: which rows of each batch are this process's; None: all.
      prefetch: batches read ahead.
      num_threads: that read.
      in_order: serve the examples once, as they stand, for a stream.
    """
    # Grain reads absl flags; a notebook or a test has parsed none.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    if rows is None:
        rows = np.arange(batch_size)

    numbers = grain.MapDataset.range(len(windows))
    order: Order = numbers if in_order else numbers.seed(seed).shuffle().repeat()
    if isinstance(windows, Ordered):
        order = windows.order(seed, batch_size)

    dataset = grain.MapDataset.source(_Batches(windows, order, batch_size, rows))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    iterator = iter(dataset.to_iter_dataset(options))
    iterator.set_state({"next_index": start_step})
    try:
        yield iterator
    finally:
        # Its threads would read on. Older versions of Grain have no `close`.
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def sequential_batches(
    windows: Examples,
    *,
    batch_size: int,
    most: int | None = None,
    within: range | None = None,
) -> Iterator[Batch]:
    """Yields the windows in order, once, in batches of one size; rows that fill up the last one do
    not count.

    Where they are more than `most`, that many are taken evenly from the whole, or from those
    `within`.
    """
    if within is None:
        within = range(len(windows))
    count = len(within)
    if most is not None:
        count = min(count, most)

    numbers = within.start + np.linspace(0, len(within) - 1, count).round().astype(int)
    for start in range(0, count, batch_size):
        rows = [windows[i] for i in numbers[start : start + batch_size]]
        filler = _uncounted(rows[0])
        rows += [filler] * (batch_size - len(rows))
        yield _stack(rows)


def _uncounted(row: Batch) -> Batch:
    """A row of the same shapes of which no target counts."""
    zeros = {name: np.zeros_like(row[name]) for name in ("length", "weight") if name in row}
    return row | zeros
