"""Token windows: documents are tokenised once into a memory-mapped file, and cut into fixed
windows.

The stream of a split is `eos doc eos doc ... eos`. Window i holds tokens i·T to (i+1)·T inclusive,
so each token but the first is predicted exactly once; the last window may be shorter.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from absl import logging

from matta_jax import storage
from matta_jax.config import DataConfig
from matta_jax.data._corpora import Corpus, Document, split_documents
from matta_jax.data._encoding import DTYPES, Encoder, token_dtype, warn_of_cost
from matta_jax.data._grams import (
    Grams,
    GramSampler,
    near_duplicates,
    read_grams,
    write_grams,
)
from matta_jax.data._seal import seal_of
from matta_jax.data._tokens import Tokens
from matta_jax.errors import UserError, shorten
from matta_jax.reporting import progress
from matta_jax.tokenizers import Tokenizer

# Raise it when the files of a cache change their meaning.
_FORMAT = 4

_GRAMS = "grams.npz"

# Tokens that are hashed at once.
_PIECE = 2**22


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of one split, for random access.

    Attributes:
      tokens: the token stream, on the disk.
      seq_len: T, predicted tokens of a window.
      eos_id: the separator's id.
      num_bytes: UTF-8 bytes of the documents, without those that their tokens do not hold.
      num_documents: documents.
      fingerprint: hash of the token stream.
      num_lossy: documents that do not survive encode and decode.
      start_id: what a document begins with; None: the separator.
      grams: reads the sampled stretches of the documents; None where they are not at hand.
      apart: whether rows tell their documents apart.
      parts: of a mixture's held-out side, its sources by name.
      near_duplicates: of a held-out side, the documents that stand in what is trained on too, where
        that is known already.
    """

    tokens: Tokens
    seq_len: int
    eos_id: int
    num_bytes: int
    num_documents: int
    fingerprint: str
    num_lossy: int = 0
    start_id: int | None = None
    grams: Callable[[], Grams] | None = None
    near_duplicates: int | None = None
    apart: bool = False
    parts: Mapping[str, "Windows"] = dataclasses.field(default_factory=dict)

    @property
    def separators(self) -> tuple[int, ...]:
        """The ids that are no text."""
        return (self.eos_id,) if self.start_id is None else (self.eos_id, self.start_id)

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.seq_len)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns `tokens` [T + 1] int32, padded with eos, and `length`, the number of targets that
        count; where documents are apart, also `documents` [T] int32: which of its documents each
        token is of, -1 for one between two, whose target does not count.
        """
        start = int(index) * self.seq_len
        # The last token of a window is the first of the next: it is predicted here, read there.
        piece = self.tokens[start : start + self.seq_len + 1]
        window = np.full(self.seq_len + 1, self.eos_id, np.int32)
        window[: len(piece)] = piece
        row = {"tokens": window, "length": np.array(len(piece) - 1, np.int32)}
        return row | {"documents": self._documents_of(window[:-1])} if self.apart else row

    def _documents_of(self, tokens: np.ndarray) -> np.ndarray:
        """A document begins with its start, which may be the end of the one before."""
        start_id = self.eos_id if self.start_id is None else self.start_id
        documents = np.cumsum(tokens == start_id, dtype=np.int32)
        if start_id != self.eos_id:
            documents[tokens == self.eos_id] = -1
        return documents


def split_windows(
    config: DataConfig, tokenizer: Tokenizer, *, held_out: bool, corpus: Corpus | None = None
) -> Windows:
    """Returns the training or the held-out windows of a run, from the cache or tokenised now.

    Args:
      config: of the run.
      tokenizer: of the run.
      held_out: which side.
      corpus: that of data.source, where it is at hand.

    Raises:
      UserError: no document, or none on this side of the split.
    """
    has_eval_source = config.eval_source is not None
    source = config.eval_source if held_out and has_eval_source else config.source
    assert source is not None
    if corpus is None or corpus.source != source:
        corpus = Corpus(source, config.text_field, config.tfds_dir)

    # Each of two sources is a side by itself; one source is split by its documents.
    if has_eval_source:
        side = "all"
        documents = iter(corpus)
    else:
        side = f"{'eval' if held_out else 'train'}-{config.eval_fraction}"
        documents = split_documents(corpus, config.eval_fraction, held_out=held_out)

    windows = cached_windows(
        documents, corpus, tokenizer, side=side, seq_len=config.seq_len, cache_dir=config.cache_dir
    )
    if windows.num_bytes:
        return windows
    if has_eval_source:
        raise _no_text(source, windows)
    side_name = "held-out" if held_out else "training"
    raise UserError(
        f"data.source={source!r} has no {side_name} text at "
        f"data.eval_fraction={config.eval_fraction}; "
        "add documents, change the fraction, or name data.eval_source"
    )


def corpus_windows(
    corpus: Corpus, tokenizer: Tokenizer, *, seq_len: int, cache_dir: str | None = None
) -> Windows:
    """Returns the windows of a whole corpus. Raises UserError when it holds no text."""
    windows = cached_windows(
        iter(corpus), corpus, tokenizer, side="all", seq_len=seq_len, cache_dir=cache_dir
    )
    if not windows.num_bytes:
        raise _no_text(corpus.source, windows)
    return windows


def _no_text(source: str, windows: Windows) -> UserError:
    if windows.num_lossy:
        return UserError(
            f"data source {source!r}: its tokens hold none of its text; use another data.tokenizer"
        )
    return UserError(f"data source {source!r} holds no text; name files with some")


def cached_windows(
    documents: Iterable[Document],
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    side: str,
    seq_len: int,
    cache_dir: str | None,
) -> Windows:
    """Opens the token stream of `documents` in the cache, writing it first where it is not there.

    A stream is written beside its place and moved there when whole, so a crash leaves no half
    cache.
    """
    # Whatever changes the stream is in its name, so that a cache is never out of date; what a
    # corpus holds, and not where it lies, so that a copy of both fits.
    key_parts = [str(_FORMAT), corpus.kind, corpus.fingerprint(), tokenizer.fingerprint, side]
    key = hashlib.blake2b("\n".join(key_parts).encode(), digest_size=16).hexdigest()
    root = storage.resolve(cache_dir or storage.home_cache())
    folder = root / key
    label = f"tokenising {corpus.source} ({side})"

    cache = _open(folder) if folder.exists() else None
    if cache is None:
        warn_of_cost(corpus, tokenizer)
        _fill(folder, documents, tokenizer, label=label)
        cache = _open(folder)
    if cache is None:
        raise UserError(
            f"data.cache_dir={str(root)!r}: what was written to {folder} cannot be read back; name "
            "another"
        )

    tokens, meta = cache
    if meta.num_lossy:
        logging.warning(
            "%d documents of data source %r do not survive encode and decode (the first: %s): bits "
            "per byte counts what the tokenizer keeps",
            meta.num_lossy,
            corpus.source,
            shorten(meta.first_lossy),
        )
    return Windows(
        tokens,
        seq_len,
        tokenizer.eos_id,
        meta.num_bytes,
        meta.num_documents,
        fingerprint=meta.fingerprint,
        num_lossy=meta.num_lossy,
        start_id=tokenizer.start_id,
        grams=lambda: read_grams(folder / _GRAMS, "hashes", "documents"),
    )


def overlap(windows: Windows, held_out: Windows) -> int | None:
    """How many held-out documents have at least half of their text in what is trained on, as the
    stretches of 64 bytes tell that are sampled; None where these are not at hand.
    """
    if held_out.near_duplicates is not None or held_out.grams is None or windows.grams is None:
        return held_out.near_duplicates
    try:
        return near_duplicates(held_out.grams(), [windows.grams()])
    except (OSError, ValueError, KeyError):
        return None


@dataclasses.dataclass
class _Meta:
    """What `meta.json` says of `tokens.bin`.

    Attributes:
      dtype: of the tokens.
      num_tokens: in the file.
      num_bytes, num_documents, num_lossy, fingerprint: as of `Windows`.
      first_lossy: how the first document begins that does not survive.
    """

    dtype: str
    num_tokens: int = 0
    num_bytes: int = 0
    num_documents: int = 0
    num_lossy: int = 0
    first_lossy: str = ""
    fingerprint: str = ""
    seal: str = ""

    def sealed(self) -> "_Meta":
        """With the hash of all that it says."""
        return dataclasses.replace(self, seal=seal_of(dataclasses.asdict(self)))

    @classmethod
    def read(cls, file: storage.Path) -> "_Meta":
        """Reads it. Raises OSError, or ValueError where it is another thing."""
        value = storage.read_json(file)
        if not isinstance(value, dict):
            raise ValueError(f"{file.name} is no object")
        for name in _Meta.__annotations__:
            kind = int if name.startswith("num_") else str
            # By `type`: true and false are ints to isinstance.
            if type(value.get(name)) is not kind or (kind is int and value[name] < 0):
                raise ValueError(f"{name} of {file.name} is {shorten(value.get(name))}")
        if value["dtype"] not in DTYPES:
            raise ValueError(f"dtype of {file.name} is {shorten(value['dtype'])}")
        meta = cls(**{name: value[name] for name in _Meta.__annotations__})
        if meta.sealed() != meta:
            raise ValueError(f"{file.name} is not what was written")
        return meta


def _open(folder: storage.Path) -> tuple[np.ndarray, _Meta] | None:
    """Returns the tokens of a cache, memory-mapped, and what is said of them; None where they do
    not fit, after a warning.
    """
    try:
        meta = _Meta.read(folder / "meta.json")
        file = storage.local_copy(folder / "tokens.bin")
        num_bytes = storage.num_bytes(file)
        if num_bytes != np.dtype(meta.dtype).itemsize * meta.num_tokens or not num_bytes:
            raise ValueError(f"tokens.bin has {num_bytes} bytes, of {meta.num_tokens} tokens")
        tokens = np.memmap(file, dtype=meta.dtype, mode="r")
        if _hash(tokens) != meta.fingerprint:
            raise ValueError("tokens.bin is not what was written")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        logging.warning("the cache %s is damaged (%s); it is written anew", folder, reason)
        return None
    return tokens, meta


def _hash(tokens: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    # In pieces, so that a long stream is never in memory as a whole.
    for start in range(0, len(tokens), _PIECE):
        digest.update(np.ascontiguousarray(tokens[start : start + _PIECE]).tobytes())
    return digest.hexdigest()


def _fill(
    folder: storage.Path, documents: Iterable[Document], tokenizer: Tokenizer, *, label: str
) -> None:
    """Writes a cache, unless another process has finished the same one meanwhile; one that is
    damaged is replaced.
    """
    root = folder.parent
    is_damaged = folder.exists()
    with (
        storage.writing("data.cache_dir", root, "free space, or name another"),
        contextlib.ExitStack() as stack,
    ):
        # A folder in which not even an empty one can be made is the wrong one, not a full one.
        with storage.writing("data.cache_dir", root, "name another"):
            building = stack.enter_context(
                storage.new_folder(
                    folder, keep_first=not is_damaged, private=True, last="meta.json"
                )
            )
        _write(building, documents, tokenizer, label=label)


def _write(
    folder: storage.Path, documents: Iterable[Document], tokenizer: Tokenizer, *, label: str
) -> None:
    """Tokenises documents into `tokens.bin`, and describes it in `meta.json`."""
    dtype = token_dtype(tokenizer)
    digest = hashlib.blake2b(digest_size=16)

    with storage.open_new(folder / "tokens.bin") as file:

        def put(ids: np.ndarray) -> None:
            data = ids.tobytes()
            digest.update(data)
            file.write(data)

        separator = tokenizer.separator.astype(dtype)
        put(separator)
        encoder, sampler = Encoder(tokenizer, put), GramSampler()
        for document in progress(documents, desc=label, unit="documents", delay=1.0):
            encoder.add(document)
            sampler.add(document.text)

    grams = sampler.grams()
    write_grams(folder / _GRAMS, {"hashes": grams.hashes, "documents": grams.documents})

    tally = dataclasses.asdict(encoder.tally)
    meta = _Meta(str(dtype), **tally, fingerprint=digest.hexdigest())
    meta.num_tokens += len(separator)
    described = dataclasses.asdict(meta.sealed())
    storage.replace_text(folder / "meta.json", storage.json_text(described))
