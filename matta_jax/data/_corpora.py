"""Corpora: named sources of text documents, and their split into training and held-out
documents.
"""

import dataclasses
import glob
import hashlib
import pathlib
import sysconfig
from collections.abc import Iterator

from matta_jax.data._jsonl import decode_utf8, read_json_lines, read_text, text_of
from matta_jax.errors import UserError, did_you_mean

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
_SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, and the key by whose hash it falls into one split."""

    key: str
    text: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A source of documents, in a fixed order.

    Attributes:
      source: as the config names it: `stdlib`, `text:GLOB` or `tfds:NAME[:SPLIT]`.
      text_field: field of a JSON line or TFDS example that holds the text.
      tfds_dir: where prepared TFDS sets lie.
    """

    source: str
    text_field: str = "text"
    tfds_dir: str | None = None

    def __iter__(self) -> Iterator[Document]:
        kind, _, rest = self.source.partition(":")
        if kind == "tfds":
            yield from _tfds_documents(self, rest)
            return
        what = f"data source {self.source!r}"
        for path in self.files():
            if kind == "stdlib":
                key = path.relative_to(_stdlib_root()).as_posix()
                yield Document(key, decode_utf8(path.read_bytes(), str(path), what))
            else:
                for text in _texts(path, self.text_field, what):
                    yield Document(hashlib.blake2b(text.encode()).hexdigest(), text)

    def files(self) -> list[pathlib.Path]:
        """The files of a `stdlib` or `text:` source, sorted. Raises UserError when
        there are none.
        """
        kind, _, rest = self.source.partition(":")
        if kind == "stdlib":
            root = _stdlib_root()
            paths = [
                path
                for path in root.rglob("*.py")
                if not _STDLIB_SKIPPED & set(path.relative_to(root).parts)
            ]
            return sorted(paths)
        if kind != "text":
            hint = did_you_mean(kind, ("stdlib", "text", "tfds"))
            raise UserError(
                f"data.source={self.source!r} must be stdlib, text:GLOB or tfds:NAME{hint}"
            )
        paths = sorted(pathlib.Path(path) for path in glob.glob(rest, recursive=True))
        paths = [path for path in paths if path.is_file()]
        if not paths:
            raise UserError(
                f"data source {self.source!r} matches no file; check the pattern, from "
                f"{pathlib.Path.cwd()}"
            )
        for path in paths:
            if not path.name.endswith(_SUFFIXES):
                raise UserError(
                    f"data source {self.source!r} matches {path}, which is none of "
                    f"{', '.join(_SUFFIXES)}"
                )
        return paths

    def fingerprint(self) -> str:
        """Changes when the source does: by path, size and time of each file, or by a TFDS set's
        name and version.
        """
        if self.source.startswith("tfds:"):
            parts = [
                self.source,
                _tfds_builder(self, self.source.partition(":")[2])[0].info.full_name,
            ]
        else:
            stats = [(str(path.resolve()), path.stat()) for path in self.files()]
            parts = [f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]
        return hashlib.blake2b(
            "\n".join([*parts, self.text_field]).encode(), digest_size=16
        ).hexdigest()


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
        yield Document(first.key, first.text[cut:] if held_out else first.text[:cut])
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


def _stdlib_root() -> pathlib.Path:
    return pathlib.Path(sysconfig.get_paths()["stdlib"])


def _texts(path: pathlib.Path, field: str, what: str) -> Iterator[str]:
    if path.suffix == ".txt":
        yield read_text(path, what)
        return
    for number, value in read_json_lines(path, what):
        yield text_of(value, field, f"{what}: {path} line {number}", "set data.text_field")


def _tfds_builder(corpus: Corpus, rest: str):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    from matta_jax.data import tfds_text  # noqa: F401  Registers the local text builder.

    name, _, split = rest.partition(":")
    where = {} if corpus.tfds_dir is None else {"data_dir": corpus.tfds_dir}
    try:
        try:  # A prepared set needs no code, which for many stock sets would import TensorFlow.
            builder = read_only_builder.builder_from_files(name, **where)
        except tfds.core.DatasetNotFoundError:
            builder = tfds.builder(name, file_format="array_record", **where)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(
            f"data.source={corpus.source!r}: TFDS does not know it, and no prepared set of this "
            "name is at hand "
            f"({line}); name it with its configuration, such as tfds:c4/en, and see data.tfds_dir"
        ) from None
    if not builder.data_path.exists():
        raise UserError(
            f"data.source={corpus.source!r} is not prepared in {builder.data_path}; "
            "prepare it with file_format='array_record', or set data.tfds_dir"
        )
    if builder.info.file_format is not None and builder.info.file_format.value != "array_record":
        raise UserError(
            f"data.source={corpus.source!r} is prepared as {builder.info.file_format.value}, "
            "which TensorFlow alone reads; prepare it with file_format='array_record'"
        )
    split = split or "train"
    if split not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise UserError(f"data.source={corpus.source!r} has no split {split!r}; splits: {known}")
    if corpus.text_field not in builder.info.features:
        known = ", ".join(builder.info.features)
        raise UserError(
            f"data.text_field={corpus.text_field!r} is not in {corpus.source!r}; fields: {known}"
        )
    return builder, split


def _tfds_documents(corpus: Corpus, rest: str) -> Iterator[Document]:
    builder, split = _tfds_builder(corpus, rest)
    for example in builder.as_data_source(split=split):
        value = example[corpus.text_field]
        data = value if isinstance(value, bytes) else str(value).encode()
        yield Document(
            hashlib.blake2b(data).hexdigest(),
            decode_utf8(data, "an example", f"data source {corpus.source!r}"),
        )
