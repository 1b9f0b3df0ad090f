"""Token windows: documents are tokenised once into a memory-mapped file, and cut into fixed
windows.

The stream of a split is `eos doc eos doc ... eos`. Window i holds tokens i·T to (i+1)·T inclusive,
so each token but the first is predicted exactly once; the last window may be shorter.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np
import tqdm

from matta_jax import storage
from matta_jax.config import DataConfig
from matta_jax.data._corpora import Corpus, Document, split_documents
from matta_jax.errors import UserError
from matta_jax.tokenizers import Tokenizer

# Raise it when the files of a cache change their meaning.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of one split, for random access.

    Attributes:
      tokens: the token stream, memory-mapped.
      seq_len: T, predicted tokens of a window.
      eos_id: the separator's id.
      num_bytes: UTF-8 bytes of the documents.
      num_documents: documents.
      fingerprint: hash of the token stream.
    """

    tokens: np.ndarray
    seq_len: int
    eos_id: int
    num_bytes: int
    num_documents: int
    fingerprint: str

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.seq_len)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns `tokens` [T + 1] int32, padded with eos, and `length`, the number of targets that
        count.
        """
        start = int(index) * self.seq_len
        # The last token of a window is the first of the next: it is predicted here, read there.
        piece = self.tokens[start : start + self.seq_len + 1]
        window = np.full(self.seq_len + 1, self.eos_id, np.int32)
        window[: len(piece)] = piece
        return {"tokens": window, "length": np.array(len(piece) - 1, np.int32)}


def split_windows(config: DataConfig, tokenizer: Tokenizer, *, held_out: bool) -> Windows:
    """Returns the training or the held-out windows of a run, from the cache or tokenised now.

    Raises:
      UserError: no document, or none on this side of the split.
    """
    has_eval_source = config.eval_source is not None
    source = config.eval_source if held_out and has_eval_source else config.source
    assert source is not None
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
        raise _no_text(source)
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
        raise _no_text(corpus.source)
    return windows


def _no_text(source: str) -> UserError:
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
    # Whatever changes the stream is in its name, so that a cache is never out of date.
    key_parts = [str(_FORMAT), corpus.source, corpus.fingerprint(), tokenizer.fingerprint, side]
    key = hashlib.blake2b("\n".join(key_parts).encode(), digest_size=16).hexdigest()
    root = storage.resolve(cache_dir or storage.home_cache())
    folder = root / key
    if not folder.exists():
        _fill(folder, documents, tokenizer, label=f"tokenising {corpus.source} ({side})")

    meta = storage.read_json(folder / "meta.json")
    tokens_file = storage.local_copy(folder / "tokens.bin")
    tokens = np.memmap(tokens_file, dtype=meta["dtype"], mode="r")
    return Windows(
        tokens,
        seq_len,
        tokenizer.eos_id,
        meta["num_bytes"],
        meta["num_documents"],
        fingerprint=meta["fingerprint"],
    )


def _fill(
    folder: storage.Path, documents: Iterable[Document], tokenizer: Tokenizer, *, label: str
) -> None:
    """Writes a cache, unless another process has finished the same one meanwhile."""
    root = folder.parent
    with (
        storage.writing("data.cache_dir", root, "free space, or name another"),
        contextlib.ExitStack() as stack,
    ):
        # A folder in which not even an empty one can be made is the wrong one, not a full one.
        with storage.writing("data.cache_dir", root, "name another"):
            building = stack.enter_context(
                storage.new_folder(folder, keep_first=True, private=True)
            )
        _write(building, documents, tokenizer, label=label)


def _write(
    folder: storage.Path, documents: Iterable[Document], tokenizer: Tokenizer, *, label: str
) -> None:
    """Tokenises documents into `tokens.bin`, and describes it in `meta.json`."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    separator = np.array([tokenizer.eos_id])
    digest = hashlib.blake2b(digest_size=16)
    num_bytes = num_documents = 0

    with storage.open_new(folder / "tokens.bin") as file:

        def put(ids: np.ndarray) -> None:
            data = np.ascontiguousarray(ids, dtype).tobytes()
            digest.update(data)
            file.write(data)

        put(separator)
        for document in tqdm.tqdm(
            documents, desc=label, unit=" documents", delay=1.0, disable=None
        ):
            ids = tokenizer.encode(document.text)
            if not len(ids):
                continue
            put(ids)
            put(separator)
            num_bytes += len(document.text.encode())
            num_documents += 1

    meta = {
        "dtype": dtype.name,
        "num_bytes": num_bytes,
        "num_documents": num_documents,
        "fingerprint": digest.hexdigest(),
    }
    storage.replace_text(folder / "meta.json", storage.json_text(meta))
