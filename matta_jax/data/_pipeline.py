"""Batches: windows in an order that depends on the seed and the step alone, served by Grain."""

import contextlib
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from matta_jax.data._windows import Windows

Batch = dict[str, np.ndarray]  # tokens [b, T + 1] int32, length [b] int32


@contextlib.contextmanager
def training_batches(
    windows: Windows, *, batch_size: int, seed: int, start_step: int = 0, host: int = 0, num_hosts: int = 1
) -> Iterator[Iterator[Batch]]:
    """Opens an endless iterator over this host's rows of the shuffled global batches, reshuffled in each epoch.

    Global batch i holds examples i·B to (i+1)·B of one global order, whatever the number of hosts or workers, so a run
    resumes by its step alone.

    Args:
      windows: the training windows.
      batch_size: B, over all hosts.
      seed: of the order.
      start_step: the first batch to serve.
      host, num_hosts: which rows are this process's.
    """
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags; a notebook or a test has parsed none.
        flags.FLAGS.mark_as_parsed()
    dataset = grain.MapDataset.source(windows).seed(seed).shuffle().repeat()
    dataset = dataset[host::num_hosts].batch(batch_size // num_hosts)
    iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)))
    iterator.set_state({"next_index": start_step})
    try:
        yield iterator
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def sequential_batches(windows: Windows, *, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
    """Yields the windows in order, once, in batches of one size; rows that fill up the last one have length 0.

    With a `limit` on the number of batches, the windows are taken evenly from the whole.
    """
    count = len(windows) if limit is None else min(len(windows), limit * batch_size)
    chosen = np.linspace(0, len(windows) - 1, count).round().astype(int)
    for start in range(0, count, batch_size):
        rows = [windows[i] for i in chosen[start : start + batch_size]]
        missing = batch_size - len(rows)
        rows += [{"tokens": rows[0]["tokens"], "length": np.array(0, np.int32)}] * missing
        yield {name: np.stack([row[name] for row in rows]) for name in ("tokens", "length")}
