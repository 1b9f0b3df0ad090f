"""A Teacher's labels of token windows: the log-probabilities of its k most likely ids, and of all
others together.

A folder holds `labels.json`, the header, and files of ArrayRecord with one record for each window:

    digest of the window's ids (8 bytes) | ids [T, k] uint16 or uint32 | log-probabilities [T, k]
    float16 | log-mass of all others [T] float32

which is 260 bytes a token at k = 64 and up to 65,536 ids. Ids stand in order of falling
probability.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from matta_jax import storage
from matta_jax.data._windows import Windows
from matta_jax.errors import UserError

_FORMAT = 1
_HEADER = "labels.json"
_DIGEST_BYTES = 8


@dataclasses.dataclass(frozen=True)
class LabelHeader:
    """What labels are of. Two sets with equal headers are the same.

    Attributes:
      teacher: where the Teacher lay, and its step or fingerprint.
      vocab_size: of the Teacher.
      tokenizer: `tokenizer_digest` of its tokenizer.
      temperature: T at which log-probabilities were captured.
      top_k: k.
      seq_len: T, tokens of a window.
      num_windows: windows of the text.
      windows: fingerprint of the text.
      per_file: windows of a file, but for the last.
      version: of the format.
      compute_dtype: type in which the Teacher computed.
    """

    teacher: dict[str, str]
    vocab_size: int
    tokenizer: str
    temperature: float
    top_k: int
    seq_len: int
    num_windows: int
    windows: str
    per_file: int
    version: int = _FORMAT
    compute_dtype: str = "float32"

    @property
    def id_dtype(self) -> np.dtype:
        """Of ids on disk."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    @property
    def num_files(self) -> int:
        """Files of a whole set."""
        return -(-self.num_windows // self.per_file)

    @property
    def num_bytes(self) -> int:
        """Of the records of a whole set."""
        return self.num_windows * _offsets(self)[-1]

    def file(self, folder: storage.Path, index: int) -> storage.Path:
        """The path of a file."""
        return folder / f"labels-{index:05d}-of-{self.num_files:05d}.array_record"

    def windows_of(self, index: int) -> range:
        """The windows of a file."""
        return range(index * self.per_file, min((index + 1) * self.per_file, self.num_windows))


def window_digest(tokens: np.ndarray) -> bytes:
    """A hash of a window's ids, the same on every machine."""
    # Little-endian, whatever this machine is.
    data = np.ascontiguousarray(tokens, "<i4").tobytes()
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def write_header(folder: storage.Path, header: LabelHeader) -> None:
    """Writes the header. Raises UserError when the folder holds labels of another one, or cannot be
    written.
    """
    if (folder / _HEADER).exists():
        _check_same(folder, read_header(folder), header)
        return

    with storage.writing("output", folder, "name another"):
        storage.make_folder(folder)
        text = storage.json_text(dataclasses.asdict(header), indent=2) + "\n"
        storage.replace_text(folder / _HEADER, text)


def _check_same(folder: storage.Path, stored: LabelHeader, header: LabelHeader) -> None:
    stored_fields = dataclasses.asdict(stored)
    fields = dataclasses.asdict(header)
    differences = [
        f"{name}: {stored_fields[name]!r} there, {fields[name]!r} here"
        for name in fields
        if stored_fields[name] != fields[name]
    ]
    if differences:
        raise UserError(
            f"output={str(folder)!r} holds other labels ({'; '.join(differences)}); name another "
            "folder"
        )


def read_header(folder: storage.Path) -> LabelHeader:
    """Reads the header. Raises UserError when it is missing or damaged."""
    file = folder / _HEADER
    if not file.is_file():
        raise UserError(
            f"teacher.labels={str(folder)!r} holds no labels (no {_HEADER}); make some with "
            "matta-label"
        )

    try:
        values = storage.read_json(file)
        if values["version"] != _FORMAT:
            raise UserError(
                f"{file} is of format {values['version']}, not {_FORMAT}; make the labels again"
            )
        return LabelHeader(**values)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged; make the labels again with matta-label") from None


def write_labels(
    path: storage.Path, header: LabelHeader, rows: Iterable[tuple[np.ndarray, ...]]
) -> None:
    """Writes one file, beside its place, and moves it there when it is whole.

    Args:
      path: `header.file`.
      header: of the set.
      rows: of each window its tokens [T + 1], and ids [T, k], log-probabilities [T, k] and tail
        [T].
    """
    with storage.new_file(path) as beside:
        writer = ArrayRecordWriter(str(beside), "group_size:1,uncompressed")
        for row in rows:
            writer.write(_record(header, *row))
        writer.close()


def _record(
    header: LabelHeader,
    tokens: np.ndarray,
    ids: np.ndarray,
    log_probs: np.ndarray,
    tail: np.ndarray,
) -> bytes:
    """The bytes of one window, as the head of this file tells them."""
    parts = [
        ids.astype(header.id_dtype),
        log_probs.astype(np.float16),
        tail.astype(np.float32),
    ]
    return window_digest(tokens) + b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


class Labels:
    """The labels in a folder, for random access. Raises UserError when files are missing or
    damaged.
    """

    def __init__(self, folder: str | storage.Path):
        self.folder = storage.resolve(folder)
        self.header = read_header(self.folder)
        files = [self.header.file(self.folder, i) for i in range(self.header.num_files)]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise UserError(
                f"teacher.labels={str(self.folder)!r} is not finished: {len(missing)} of "
                f"{len(files)} files are "
                f"missing, the first {missing[0].name}; start matta-label again, which goes on"
            )

        # Cut files show here, not in the middle of a run.
        for i in range(len(files)):
            self._source(i)

    # One set of labels lives as long as its run, so nothing is kept alive for too long.
    @functools.lru_cache(maxsize=4096)  # noqa: B019
    def _source(self, index: int) -> ArrayRecordDataSource:
        file = self.header.file(self.folder, index)
        expected = len(self.header.windows_of(index))
        try:
            source = ArrayRecordDataSource([str(storage.local_copy(file))])
            num_records = len(source)
        except Exception as error:  # The reader raises many kinds for damaged files.
            raise self._damaged(file, _one_line(error)) from None
        if num_records != expected:
            raise self._damaged(file, f"it holds {num_records} windows, not {expected}")
        return source

    def _damaged(self, file: storage.Path, reason: str) -> UserError:
        return UserError(
            f"teacher.labels: {file} is damaged ({reason}); remove it, and start matta-label again"
        )

    def get(self, index: int, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `teacher_ids` [T, k] int32, `teacher_log_probs` [T, k] and `teacher_tail` [T] of
        a window.

        Args:
          index: of the window.
          tokens: its ids [T + 1], as training reads them.

        Raises:
          UserError: the labels are damaged, or of another window than this one.
        """
        header = self.header
        file_index, record_index = divmod(index, header.per_file)
        file = header.file(self.folder, file_index)
        source = self._source(file_index)
        try:
            record = source[record_index]
        except Exception as error:  # The reader raises many kinds for damaged files.
            raise self._damaged(file, _one_line(error)) from None

        ids_at, log_probs_at, tail_at, num_bytes = _offsets(header)
        if len(record) != num_bytes:
            raise self._damaged(file, f"a record of {len(record)} bytes, not {num_bytes}")
        if record[:_DIGEST_BYTES] != window_digest(tokens):
            raise UserError(
                f"teacher.labels: window {index} in {file} is of other text than the run's; make "
                "labels of this text"
            )

        shape = (header.seq_len, header.top_k)
        size = header.seq_len * header.top_k
        ids = np.frombuffer(record, header.id_dtype, size, ids_at)
        log_probs = np.frombuffer(record, np.float16, size, log_probs_at)
        tail = np.frombuffer(record, np.float32, header.seq_len, tail_at)
        if ids.max(initial=0) >= header.vocab_size:
            raise self._damaged(file, f"id {ids.max()} of a vocabulary of {header.vocab_size}")
        return {
            "teacher_ids": ids.reshape(shape).astype(np.int32),
            "teacher_log_probs": log_probs.reshape(shape).astype(np.float32),
            # A copy: the record's bytes may not be written to.
            "teacher_tail": tail.copy(),
        }


def _offsets(header: LabelHeader) -> tuple[int, int, int, int]:
    """Where in a record ids, log-probabilities and tail start, and its length, in bytes."""
    size = header.seq_len * header.top_k
    ids_at = _DIGEST_BYTES
    log_probs_at = ids_at + size * header.id_dtype.itemsize
    tail_at = log_probs_at + size * np.dtype(np.float16).itemsize
    end = tail_at + header.seq_len * np.dtype(np.float32).itemsize
    return ids_at, log_probs_at, tail_at, end


def _one_line(error: Exception) -> str:
    """The start of what a library says, without its line ends."""
    return " ".join(str(error).split())[:120]


@dataclasses.dataclass(frozen=True)
class LabelledWindows:
    """Windows with a Teacher's labels beside their tokens."""

    windows: Windows
    labels: Labels

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns what `Windows` does, and what `Labels.get` does."""
        window = self.windows[index]
        return window | self.labels.get(int(index), window["tokens"])
