"""Tokens in ArrayRecord files, read at random without being in memory.

A record holds so many tokens, the last of a file fewer. Files are not packed: a window is read in
microseconds, and a record that was damaged is found by its own hash.
"""

import dataclasses
import hashlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from array_record.python import array_record_module

from matta_jax import storage
from matta_jax.errors import UserError

RECORD_TOKENS = 8192
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Records are read at random: what follows is not wanted.
_READER_OPTIONS = "readahead_buffer_size:0"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of tokens.

    Attributes:
      file: its name within the folder.
      num_tokens: in it.
      digest: hash of them.
    """

    file: str
    num_tokens: int
    digest: str


class ShardWriter:
    """Writes a file of tokens, of whatever is put.

    Args:
      path: of a local file that is still being built.
    """

    def __init__(self, path: storage.Path):
        self._writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
        self._digest = hashlib.blake2b(digest_size=16)
        self._pending: list[np.ndarray] = []
        self._num_pending = 0
        self._num_tokens = 0

    def put(self, ids: np.ndarray) -> None:
        """Adds ids [n]."""
        self._digest.update(ids.tobytes())
        self._num_tokens += len(ids)
        self._pending.append(ids)
        self._num_pending += len(ids)
        if self._num_pending >= RECORD_TOKENS:
            tokens = np.concatenate(self._pending)
            num_written = len(tokens) - len(tokens) % RECORD_TOKENS
            for start in range(0, num_written, RECORD_TOKENS):
                self._writer.write(tokens[start : start + RECORD_TOKENS].tobytes())
            self._pending = [tokens[num_written:]]
            self._num_pending = len(tokens) - num_written

    def close(self, file: str) -> Shard:
        """Ends the file; returns what is to be known of it, under its name."""
        if self._num_pending:
            self._writer.write(np.concatenate(self._pending).tobytes())
        self._writer.close()
        return Shard(file, self._num_tokens, self._digest.hexdigest())


class ShardTokens:
    """The tokens of a file, as one array that lies on the disk.

    Args:
      shard: the file.
      locate: returns its local path; asked when it is first read.
      dtype: of tokens.
    """

    def __init__(self, shard: Shard, locate: Callable[[], storage.Path], dtype: np.dtype):
        self._shard = shard
        self._locate = locate
        self._dtype = dtype
        self._opened: Any = None
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return self._shard.num_tokens

    def __getitem__(self, index: slice) -> np.ndarray:
        """Returns the tokens [n] of a slice without a step. Raises UserError for a file that is
        damaged or gone.
        """
        start, stop, _ = index.indices(len(self))
        if start >= stop:
            return np.zeros(0, self._dtype)
        records = range(start // RECORD_TOKENS, (stop - 1) // RECORD_TOKENS + 1)
        try:
            data = b"".join(self._reader().read(list(records)))
        # The reader raises many kinds for damaged files.
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise _damaged(self._shard, " ".join(str(error).split())[:160]) from None
        tokens = np.frombuffer(data, self._dtype)
        first = records.start * RECORD_TOKENS
        piece = tokens[start - first : stop - first]
        if len(piece) != stop - start:
            raise _damaged(self._shard, "it is cut")
        return piece

    def _reader(self) -> Any:
        with self._opening:
            if self._opened is None:
                path = str(self._locate())
                self._opened = array_record_module.ArrayRecordReader(path, _READER_OPTIONS)
            return self._opened


def read_shard(path: storage.Path, shard: Shard, dtype: np.dtype) -> np.ndarray:
    """Returns all tokens [n] of a file. Raises UserError where they are not what was written."""
    tokens = ShardTokens(shard, lambda: storage.local_copy(path), dtype)[:]
    if hashlib.blake2b(tokens.tobytes(), digest_size=16).hexdigest() != shard.digest:
        raise _damaged(shard, "it is not what was written")
    return tokens


def _damaged(shard: Shard, reason: str) -> UserError:
    return UserError(
        f"{shard.file} of the prepared corpus cannot be read ({reason}); copy it again, or remove "
        "it and run matta-prepare again"
    )
