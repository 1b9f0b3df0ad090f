"""Texts of a column of a Parquet file."""

from collections.abc import Iterator
from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError, listed, shorten

_ROWS = 1024
"""That exist as Python texts at once."""


def read_column(path: storage.Path, column: str, what: str) -> Iterator[str]:
    """Yields the texts of a column, in order.

    Args:
      path: of the file, which is read whole where it lies in a bucket.
      column: its name.
      what: asked for it, as errors say it.

    Raises:
      UserError: the file is no Parquet file or damaged, has no such column of texts, or a row has
        none.
    """
    library = _pyarrow(what)
    try:
        with storage.open_old(path) as data:
            file = library.ParquetFile(data)
            _check_column(file.schema_arrow, column, f"{what}: {path}")
            row = 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
                for text in batch.column(0).to_pylist():
                    if text is None:
                        raise UserError(
                            f"{what}: {path} row {row}: {column} is null, and must be a text; "
                            "leave such rows out"
                        )
                    yield text
                    row += 1
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
