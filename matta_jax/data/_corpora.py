"""Corpora: named sources of text documents, and their split into training and held-out
documents.
"""

import dataclasses
import hashlib
import sysconfig
from collections.abc import Iterator

from matta_jax import storage
from matta_jax.data._hub import (
    hub_count,
    hub_texts,
    hub_version,
    stream_count,
    stream_texts,
    stream_version,
)
from matta_jax.data._jsonl import decode_utf8, read_data, read_json_lines, read_text, text_of
from matta_jax.data._parquet import read_column
from matta_jax.data._parts import Part, example_parts, file_parts
from matta_jax.data._tfds import tfds_count, tfds_texts, tfds_version
from matta_jax.errors import UserError, did_you_mean

# Folders in the standard library that are not its code: tests, tables, installed packages.
_STDLIB_SKIPPED = frozenset(
    [
        "tests",
        "test",
        "site-packages",
        "dist-packages",
        "idle_test",
        "lib2to3",
        "encodings",
        "pydoc_data",
        "__pycache__",
        "_bundled",
    ]
)
_SUFFIXES = {
    # C4 calls its JSON lines .json.gz.
    "text": (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst"),
    "parquet": (".parquet",),
}
"""Of files, by the kind of source that names them."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, and the key by whose hash it falls into one split."""

    key: str
    text: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A source of documents, in a fixed order.

    Attributes:
      source: as the config names it: `stdlib`, `text:GLOB`, `parquet:GLOB`, `tfds:NAME[:SPLIT]` or
        `hf:NAME[@CONFIG][:SPLIT]`, or `hf-stream:` in its place.
      text_field: field of a JSON line or TFDS example, or column, that holds the text.
      tfds_dir: where prepared TFDS sets lie.
      known_fingerprint: of what it holds; None: `fingerprint` reads all of it.
    """

    source: str
    text_field: str = "text"
    tfds_dir: str | None = None
    known_fingerprint: str | None = None

    @property
    def is_set(self) -> bool:
        """Whether a library reads it, and not we from files that it names."""
        return self.kind in ("tfds", "hf", "hf-stream")

    @property
    def kind(self) -> str:
        """Of its source: what stands before the colon."""
        return self.source.partition(":")[0]

    def __iter__(self) -> Iterator[Document]:
        files = () if self.is_set else tuple(str(file) for file in self.files())
        yield from self.documents(Part(files))

    def parts(self) -> list[Part]:
        """Divides it: the documents of all parts, one part after the other, are its documents.
        Raises UserError as `files` does, and for a file that cannot be read.
        """
        if self.kind == "tfds":
            return example_parts(tfds_count(self.source, self.text_field, self.tfds_dir))
        if self.kind == "hf":
            return example_parts(hub_count(self.source, self.text_field))
        if self.kind == "hf-stream":
            return example_parts(stream_count(self.source), least=1)
        try:
            return file_parts(self.files(), self._described)
        except OSError as error:
            raise UserError(
                f"{self._described} cannot be read ({error}); name files that may be read"
            ) from None

    def documents(self, part: Part) -> Iterator[Document]:
        """Yields the documents of a part, in order. Raises UserError for what cannot be read."""
        if self.kind == "tfds":
            yield from self._tfds_documents(part.within)
        if self.kind in ("hf", "hf-stream"):
            texts = hub_texts if self.kind == "hf" else stream_texts
            for text in texts(self.source, self.text_field, part.within):
                yield _text_document(text)
        for file in part.files:
            path = storage.path(file)
            if self.kind == "stdlib":
                yield self._stdlib_document(path)
                continue
            for text in _texts(path, self.text_field, self._described, part.within):
                yield _text_document(text)

    def _tfds_documents(self, within: tuple[int, int] | None) -> Iterator[Document]:
        for data in tfds_texts(self.source, self.text_field, self.tfds_dir, within):
            text = decode_utf8(data, "an example", self._described)
            yield Document(hashlib.blake2b(data).hexdigest(), text)

    def _stdlib_document(self, path: storage.Path) -> Document:
        # By its path within the library, a file falls on one side on every machine.
        key = path.relative_to(_stdlib_root()).as_posix()
        text = decode_utf8(read_data(path, self._described), str(path), self._described)
        return Document(key, text)

    @property
    def _described(self) -> str:
        """As errors call it."""
        return f"data source {self.source!r}"

    def files(self, suffixes: tuple[str, ...] = ()) -> list[storage.Path]:
        """The files of a `stdlib`, `text:` or `parquet:` source, sorted, of these suffixes or of
        those that its kind reads. Raises UserError when there are none.
        """
        kind, pattern = self.kind, self.source.partition(":")[2]
        if kind == "stdlib":
            return _stdlib_files()
        if kind not in _SUFFIXES:
            kinds = ("stdlib", *_SUFFIXES, "tfds", "hf", "hf-stream", "prepared", "mixture")
            hint = did_you_mean(kind, kinds)
            raise UserError(
                f"data.source={self.source!r} must be stdlib, text:GLOB, parquet:GLOB, tfds:NAME, "
                f"hf:NAME, hf-stream:NAME, prepared:FOLDER or mixture{hint}"
            )
        suffixes = suffixes or _SUFFIXES[kind]

        try:
            paths = [path for path in storage.glob(pattern) if path.is_file()]
            is_folder = not paths and storage.path(pattern).is_dir()
        except OSError as error:
            raise UserError(
                f"{self._described} cannot be read ({error}); name files that may be read"
            ) from None
        if is_folder:
            raise UserError(
                f"{self._described} matches no file: {pattern} is a folder; name "
                f"{kind}:{pattern.rstrip('/')}/*{suffixes[0]}"
            )
        if not paths:
            raise UserError(
                f"{self._described} matches no file; check the pattern, from "
                f"{storage.working_folder()}"
            )
        for path in paths:
            if not path.name.endswith(suffixes):
                raise UserError(
                    f"{self._described} matches {path}, which is none of {', '.join(suffixes)}"
                )
        return paths

    def fingerprint(self) -> str:
        """Changes when the source does: by the bytes of each file, or by what a TFDS set says of
        itself. Raises UserError for a file that cannot be read.
        """
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        if self.kind == "tfds":
            parts = [self.source, tfds_version(self.source, self.text_field, self.tfds_dir)]
        elif self.kind == "hf":
            parts = [hub_version(self.source, self.text_field)]
        elif self.kind == "hf-stream":
            parts = [stream_version(self.source)]
        else:
            parts = [self._version(path) for path in self.files()]

        text = "\n".join([*parts, self.text_field])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def fingerprinted(self) -> "Corpus":
        """The same, whose fingerprint is known: for several readings of what does not change
        between them. Raises UserError for a file that cannot be read.
        """
        return dataclasses.replace(self, known_fingerprint=self.fingerprint())

    def _version(self, path: storage.Path) -> str:
        """Changes with what a file holds, and how it is read. Not by its time, which another text
        of the same size may share.
        """
        is_stdlib = self.source == "stdlib"
        read_as = path.relative_to(_stdlib_root()).as_posix() if is_stdlib else path.suffix
        data = read_data(path, self._described)
        return f"{read_as} {hashlib.blake2b(data, digest_size=16).hexdigest()}"


def _text_document(text: str) -> Document:
    return Document(hashlib.blake2b(text.encode()).hexdigest(), text)


def split_documents(corpus: Corpus, eval_fraction: float, *, held_out: bool) -> Iterator[Document]:
    """Yields one side of the split by a hash of each document's key; equal documents fall on one
    side.

    A corpus of a single document is cut in two instead: its last `eval_fraction` is held out.
    """
    stream = iter(corpus)
    first = next(stream, None)
    if first is None:
        return

    second = next(stream, None)
    if second is None:
        cut = len(first.text) - int(len(first.text) * eval_fraction)
        text = first.text[cut:] if held_out else first.text[:cut]
        yield Document(first.key, text)
        return

    for head in (first, second):
        if is_held_out(head, eval_fraction) == held_out:
            yield head
    for document in stream:
        if is_held_out(document, eval_fraction) == held_out:
            yield document


def is_held_out(document: Document, eval_fraction: float) -> bool:
    """Whether the hash of a document's key falls on the held-out side."""
    digest = hashlib.blake2b(document.key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < eval_fraction * 2**64


def _stdlib_root() -> storage.Path:
    return storage.path(sysconfig.get_paths()["stdlib"])


def _stdlib_files() -> list[storage.Path]:
    root = _stdlib_root()
    return [
        path
        for path in storage.match(root, "**/*.py")
        if not _STDLIB_SKIPPED & set(path.relative_to(root).parts)
    ]


def _texts(
    path: storage.Path, field: str, what: str, within: tuple[int, int] | None
) -> Iterator[str]:
    if path.suffix == ".txt":
        yield read_text(path, what)
        return
    if path.suffix == ".parquet":
        yield from read_column(path, field, what, within)
        return
    if within is not None:
        what = f"{what}, lines from byte {within[0]}"
    for number, value in read_json_lines(path, what, within=within):
        yield text_of(value, field, f"{what}: {path} line {number}", "set data.text_field")
