"""Tables in files, read and written in pieces, so that memory holds one piece of any number."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models import DataError
from models.csv_files import CellTypes, rows_of
from models.tabular import read_table
from pyro_mdm.support.files import regular

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

KNOWN_TEXTS = 10_000
"""The most values of a column whose text is remembered."""
CHUNK = 1 << 16
"""The bytes of a file that are copied at a time, or read of a column of a parquet file."""

Cells = list[list[str]]
"""The text of each cell of a CSV file, the first row being the names."""


class Piece(NamedTuple):
    """Rows of a table in their order, and their text if they are of a CSV file."""

    table: pd.DataFrame
    cells: Cells | None


def read_pieces(data: str, size: int, as_text: Sequence[str] = ()) -> Iterator[Piece]:
    """A table in pieces of ``size`` rows, the last one of what is left.

    Types are those of the whole CSV file, or those of each piece of another, see
    :func:`common_types`.

    Args:
        data: a .csv or .parquet file, or a name, as for :func:`~models.tabular.read_table`.
        as_text: columns of a CSV file that hold text, also where all cells are numbers.

    Raises:
        DataError: it cannot be read, or a row has more cells than there are names.
    """
    path = Path(data).expanduser()
    if path.is_file() and path.suffix == ".csv":
        yield from _csv_pieces(path, size, as_text)
    elif path.is_file() and path.suffix == ".parquet":
        yield from _parquet_pieces(path, size)
    else:
        table = read_table(data)
        for first in range(0, len(table), size):
            yield Piece(table.iloc[first : first + size], None)


def _csv_pieces(path: Path, size: int, as_text: Sequence[str]) -> Iterator[Piece]:
    names, *_ = itertools.islice(rows_of(path), 1)
    types = CellTypes(names, itertools.islice(rows_of(path), 1, None), as_text)
    types.warn_of_words(path)
    rows, done = itertools.islice(rows_of(path), 1, None), 0
    while some := list(itertools.islice(rows, size)):
        yield Piece(types.table(some, done), [names, *some])
        done += len(some)


def _parquet_pieces(path: Path, size: int) -> Iterator[Piece]:
    import pandas as pd

    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path} is read by pyarrow, which is not installed; pip install pyarrow"
        ) from error
    try:
        with parquet.ParquetFile(regular(path), buffer_size=CHUNK, pre_buffer=False) as file:
            step = _range(file.schema_arrow)
            left, done = file.schema_arrow.empty_table(), 0
            batches = file.iter_batches(size)
            while True:
                while len(left) < size and (batch := next(batches, None)) is not None:
                    left = pa.concat_tables([left, pa.Table.from_batches([batch])])
                if not len(left):
                    return
                table = left[:size].to_pandas()
                if step is not None or isinstance(table.index, pd.RangeIndex):
                    start, stride = step or (0, 1)
                    first = start + stride * done
                    ends = first, first + stride * len(table), stride
                    table.index = pd.RangeIndex(*ends, name=table.index.name)
                table.columns = table.columns.map(str)
                done, left = done + len(table), left[size:]
                yield Piece(table, None)
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def schema_without(data: str, names: Sequence[str]) -> Any:
    """Arrow's schema of a .parquet file, without the columns of these names; None of other data."""
    path = Path(data).expanduser()
    if path.suffix != ".parquet":
        return None
    import pyarrow as pa
    from pyarrow import parquet

    return pa.schema(
        [field for field in parquet.read_schema(regular(path)) if field.name not in names]
    )


def _range(schema: pa.Schema) -> tuple[int, int] | None:
    """The start and step of a table's RangeIndex in arrow's schema, None if it has none."""
    with suppress(KeyError, TypeError, IndexError):
        index = json.loads(schema.metadata[b"pandas"])["index_columns"][0]
        return int(index["start"]), int(index["step"])
    return None


# -- types and text --------------------------------------------------------------------------------


def common_types(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The types of columns of two pieces together, as pandas reads them at once."""
    return {name: _common(first[name], second[name]) for name in first}


def _common(first: Any, second: Any) -> Any:
    import pandas as pd

    if first == second:
        return first
    categories = isinstance(first, pd.CategoricalDtype), isinstance(second, pd.CategoricalDtype)
    if all(categories):
        both = first.categories.union(second.categories, sort=False)
        return pd.CategoricalDtype(both, first.ordered)
    numbers = all(isinstance(one, np.dtype) and one.kind in "iuf" for one in (first, second))
    return np.result_type(first, second) if numbers else np.dtype(object)


class Texts:
    """How a CSV file writes the values of its columns, as far as it has been :meth:`seen`."""

    def __init__(self) -> None:
        self._by_value: dict[str, dict[object, str]] = {}
        self._as_floats: dict[str, bool] = {}

    def seen(self, cells: Cells, table: pd.DataFrame) -> Texts:
        """Itself, with the texts of cells of the rows of a table."""
        for j, name in enumerate(table.columns):
            there = np.flatnonzero(table[name].notna().to_numpy())
            texts = [cells[i + 1][j] for i in there]
            by_value = self._by_value.setdefault(name, {})
            for value, text in zip(table[name].iloc[there], texts, strict=True):
                if value in by_value or len(by_value) < KNOWN_TEXTS:
                    by_value[value] = text
            if texts:
                ends = all(text.endswith(".0") for text in texts)
                self._as_floats[name] = self._as_floats.get(name, True) and ends
        return self

    def text(self, name: str, value: object) -> str:
        """The text of a value of the column ``name``, as the file has it elsewhere."""
        as_float = self._as_floats.get(name, False) and isinstance(value, int)
        text = f"{value}.0" if as_float else str(value)
        return self._by_value.get(name, {}).get(value, text)


def csv_text(rows: Cells) -> str:
    """Cells as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", **_quoting(itertools.chain(*rows))).writerows(rows)
    return text.getvalue()


def table_text(table: pd.DataFrame, *, header: bool = True) -> str:
    """A table as the text of a CSV file, without its index."""
    texts = [table[name] for name in table.columns if table[name].dtype.kind not in "biufM"]
    return table.to_csv(
        index=False, header=header, **_quoting(itertools.chain(table.columns, *texts))
    )


def _quoting(cells: Iterable[object]) -> dict[str, Any]:
    """Options of csv: a return ends a line for readers, and writers do not quote it for that."""
    returns = any(isinstance(cell, str) and "\r" in cell for cell in cells)
    return {"quoting": csv.QUOTE_ALL} if returns else {}


# -- files -----------------------------------------------------------------------------------------


class TablePiece:
    """A file of rows that are added piece by piece, .csv or .parquet, each column of one type.

    Args:
        path: the new file.
        number: number of all rows that will be added.
        header: whether a CSV file begins with the names.
        schema: arrow's schema of the columns of a parquet file that stay as they were; the types of
            others are those of the first piece.
    """

    def __init__(
        self, path: Path, number: int, *, header: bool = True, schema: pa.Schema | None = None
    ) -> None:
        self.path, self._number, self._schema = path, number, schema
        self._needs_names = header
        self._writer: Any = None

    def add_cells(self, cells: Cells) -> None:
        """Add rows of a CSV file, with the names first."""
        self._append(csv_text(cells if self._needs_names else cells[1:]))

    def add(self, table: pd.DataFrame) -> None:
        """Add rows; to a CSV file without their index."""
        if self.path.suffix == ".csv":
            self._append(table_text(table, header=self._needs_names))
        else:
            self._add_to_parquet(table)

    def _append(self, text: str) -> None:
        self._needs_names = False
        with self.path.open("ab") as file:
            file.write(text.encode())

    def _add_to_parquet(self, table: pd.DataFrame) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        if self._writer is None:
            schema = _for_rows(pa.Schema.from_pandas(table), self._number)
            for field in self._schema or ():
                if (place := schema.get_field_index(field.name)) >= 0:
                    schema = schema.set(place, field)
            self._writer = parquet.ParquetWriter(self.path, schema)
        self._writer.write_table(pa.Table.from_pandas(table, self._writer.schema))

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def _for_rows(schema: pa.Schema, number: int) -> pa.Schema:
    """A schema of arrow's for so many rows, if its index is a range."""
    if (ends := _range(schema)) is None:
        return schema
    description = json.loads(schema.metadata[b"pandas"])
    description["index_columns"][0]["stop"] = ends[0] + ends[1] * number
    return schema.with_metadata({**schema.metadata, b"pandas": json.dumps(description).encode()})


def content(parts: Sequence[TablePiece]) -> Iterator[bytes]:
    """The bytes of one file with the rows of all parts, closed and in one folder, in their order.

    Of CSV files the first alone has names.
    """
    whole = parts[0].path
    if whole.suffix == ".parquet" and len(parts) > 1:
        from pyarrow import parquet

        whole = whole.with_name(f"all-{whole.name}")
        with parquet.ParquetWriter(whole, parquet.read_schema(parts[0].path)) as writer:
            for piece in parts:
                with parquet.ParquetFile(piece.path) as file:
                    for group in range(file.num_row_groups):  # each a piece
                        writer.write_table(file.read_row_group(group))
        parts = parts[:0]
    for path in [piece.path for piece in parts] or [whole]:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
