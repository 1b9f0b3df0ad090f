"""Texts of a column of a Parquet file."""

import contextlib
from collections.abc import Iterator
from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError, listed, shorten

_ROWS = 1024
"""That exist as Python texts at once."""


def row_group_bytes(path: storage.Path, what: str) -> list[int]:
    """The size of each row group of a Parquet file, of which only the end is read. Raises UserError
    for a file that is none, or damaged; `what` asked for it.
    """
    with _opened(path, what) as file:
        told = file.metadata
        return [told.row_group(i).total_byte_size for i in range(told.num_row_groups)]


def read_column(
    path: storage.Path, column: str, what: str, row_groups: tuple[int, int] | None = None
) -> Iterator[str]:
    """Yields the texts of a column, in order.

    Args:
      path: of the file, which is read whole where it lies in a bucket.
      column: its name.
      what: asked for it, as errors say it.
      row_groups: start and stop of those to read; None: all.

    Raises:
      UserError: the file is no Parquet file or damaged, has no such column of texts, or a row has
        none.
    """
    with _opened(path, what) as file:
        _check_column(file.schema_arrow, column, f"{what}: {path}")
        told = file.metadata
        groups = list(range(*(row_groups or (0, told.num_row_groups))))
        row = sum(told.row_group(i).num_rows for i in range(groups[0] if groups else 0))
        for batch in file.iter_batches(_ROWS, groups, [column]):
            for text in batch.column(0).to_pylist():
                if text is None:
                    raise UserError(
                        f"{what}: {path} row {row}: {column} is null, and must be a text; leave "
                        "such rows out"
                    )
                yield text
                row += 1


@contextlib.contextmanager
def _opened(path: storage.Path, what: str) -> Iterator[Any]:
    """Opens a file, and names what is wrong with it in the block. Raises UserError."""
    library = _pyarrow(what)
    try:
        with storage.open_old(path) as data:
            yield library.ParquetFile(data)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{what}: {path} does not exist; check the path") from None
    # The reader raises many kinds for damaged files.
    except Exception as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(
            f"{what}: {path} cannot be read as Parquet ({detail}); mend or remove it"
        ) from None


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{what}: Parquet files need the package pyarrow: pip install 'matta_jax[corpora]'"
        ) from None
    return pyarrow.parquet


def _check_column(schema: Any, column: str, where: str) -> None:
    if column not in schema.names:
        raise UserError(
            f"{where} has no column {shorten(column)} (it has: {listed(schema.names)}); set "
            "data.text_field"
        )
    kind = str(schema.field(column).type)
    if kind not in ("string", "large_string", "string_view"):
        raise UserError(
            f"{where}: column {shorten(column)} is of {kind}, and must be of texts; set "
            "data.text_field"
        )
