"""CSV files: their cells, which are text, and the table of them.

An empty cell is missing, and no other is, but for words such as ``NA`` in a column whose other
cells are all numbers, dates, or true and false, where they are missing with a warning. A column is
of numbers if each cell is one whose text loses nothing: 00501 and 12345678901234567890 are text, as
names of categories are, exactly as they are in the file. 1.10 is the number 1.1, unless its column
is said to be of categories.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
import warnings
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_mdm.support.checks import DataError
from pyro_mdm.support.files import regular
from pyro_mdm.tables.columns import Column
from pyro_mdm.tables.frames import check_names

if TYPE_CHECKING:
    import pandas as pd

Row = list[str]
"""The cells of a row."""

MISSING = {"NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "NULL", "null", "None"}
"""Words for a missing entry, in columns of other things than words."""
TRUTH = {word: word.lower() == "true" for word in ("True", "False", "TRUE", "FALSE")}
TRUTH |= {word.lower(): value for word, value in TRUTH.items()}
"""Words for true and false."""
WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d*)")
NUMBER = re.compile(
    r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?i:inf|infinity)"
)
PLAIN_WHOLES = re.compile(r"(?:[+-]?(?:0|[1-9]\d{0,14})\n)*")
PLAIN_NUMBERS = re.compile(r"(?:[+-]?(?:0|[1-9]\d{0,14})(?:\.\d*)?(?:[eE][+-]?\d\d?)?\n)*")
DAY = re.compile(r"\d{4}-\d\d?-\d\d?(?:[T ].*)?")
EXACT = 2**53
"""The whole number up to which float64 has all."""
BLOCK = 4096
"""The rows that are looked at together."""


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a CSV file, the names first; shorter ones end in empty cells.

    Raises:
        DataError: it cannot be read, is empty, has one name twice or other marks than commas
            between cells, or a row has more cells than there are names.
    """
    try:
        with regular(path).open(encoding="utf-8-sig", newline="") as file:
            rows = (row for row in csv.reader(file, strict=True) if row)
            names = next(rows, None)
            if names is None:
                raise DataError(f"{path} is empty, expected a table whose first row has the names")
            check_names([name for name in names if name], str(path))
            separator = next((mark for mark in ";\t|" if mark in names[0]), None)
            if len(names) == 1 and separator is not None:
                raise DataError(
                    f"{path} has one column, {names[0]!r}, expected commas between columns, and it "
                    f"has {separator!r} there; write it with commas"
                )
            yield names
            for number, row in enumerate(rows):
                if len(row) > len(names):
                    raise DataError(
                        f"{path}: row {number} has {len(row)} cells, expected at most "
                        f"{len(names)}, the number of names in the first row"
                    )
                yield row + [""] * (len(names) - len(row))
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


class CellTypes:
    """What the columns of a CSV file are, by the texts of all cells.

    Args:
        names: the names of the columns.
        rows: all rows, without the names.
        as_text: names of columns of categories, whose cells are text.
    """

    def __init__(self, names: Sequence[str], rows: Iterable[Row], as_text: Container[str]) -> None:
        self.names = [name or f"Unnamed: {j}" for j, name in enumerate(names)]
        self._forms: list[set[str]] = [set() for _ in names]
        self._words = [Counter[str]() for _ in names]
        rows = iter(rows)
        while block := list(itertools.islice(rows, BLOCK)):
            for cells, forms, words in zip(
                zip(*block, strict=True), self._forms, self._words, strict=True
            ):
                distinct = set(cells)
                forms |= _forms_of(distinct)
                if wanting := distinct & MISSING:
                    words.update(cell for cell in cells if cell in wanting)
        self.kinds = [
            "text" if name in as_text else _kind(forms)
            for name, forms in zip(self.names, self._forms, strict=True)
        ]

    def warn_of_words(self, source: object) -> None:
        """Warn of words that are taken for missing entries, by their columns and numbers."""
        for name, kind, words in zip(self.names, self.kinds, self._words, strict=True):
            if kind != "text" and words:
                shown = ", ".join(map(repr, sorted(words)))
                warnings.warn(
                    f"{source}: column {name!r} has {words.total()} cells {shown}, and all others "
                    f"are {kind}; they are taken for missing entries. Leave them empty, or say "
                    f"--columns {name}=categorical",
                    stacklevel=3,
                )

    def table(self, rows: Sequence[Row], first: int = 0) -> pd.DataFrame:
        """The table of some of the rows, each column of the type that it has in the whole file.

        Args:
            rows: the rows.
            first: the number of the first one, for the index.
        """
        import pandas as pd

        columns = zip(*rows, strict=True) if rows else [()] * len(self.names)
        series = {
            name: _series(cells, kind, forms)
            for name, cells, kind, forms in zip(
                self.names, columns, self.kinds, self._forms, strict=True
            )
        }
        table = pd.DataFrame(series)
        table.index = pd.RangeIndex(first, first + len(rows))
        return table


def _forms_of(cells: set[str]) -> set[str]:
    """What the texts of cells may stand for; plain numbers are matched all at once, for speed."""
    forms = {_form(cell) for cell in ("", *MISSING) if cell in cells}
    there = cells - {"", *MISSING}
    lines = "".join(f"{cell}\n" for cell in there)
    if there and lines.count("\n") == len(there):
        for form, pattern in (("whole", PLAIN_WHOLES), ("number", PLAIN_NUMBERS)):
            if pattern.fullmatch(lines):
                return forms | {form}
    return forms | {*map(_form, there)}


def _form(cell: str) -> str:
    """What the text of one cell may stand for."""
    if not cell or cell in MISSING:
        return "word" if cell else "empty"
    text = cell.strip(" ")
    if WHOLE.fullmatch(text):
        return "whole" if len(text) < 18 and abs(int(text)) <= EXACT else "text"
    if NUMBER.fullmatch(text):
        return "number" if "i" in text.lower() or math.isfinite(float(text)) else "text"
    if text in TRUTH:
        return "truth"
    return "date" if DAY.fullmatch(text) else "text"


def _kind(forms: set[str]) -> str:
    """What a column is of whose cells have these forms."""
    there = forms - {"empty", "word"}
    if there and there <= {"whole", "number"}:
        return "numbers"
    if there == {"truth"}:
        return "true or false"
    if there == {"date"}:
        return "dates"
    return "text" if forms - {"empty"} else "empty"


def _series(cells: Sequence[str], kind: str, forms: set[str]) -> pd.Series[Any]:
    """The values of cells of a column of a kind."""
    import pandas as pd

    words = set[str]() if kind == "text" else MISSING
    gone = [not cell or cell in words for cell in cells]
    if kind in ("numbers", "empty"):
        if forms == {"whole"}:
            return pd.Series(np.array([*map(int, cells)], dtype=np.int64))
        numbers = ["nan" if missing else cell for cell, missing in zip(cells, gone, strict=True)]
        return pd.Series(np.array([*map(float, numbers)]))
    if kind == "true or false":
        truths: list[Any] = [
            math.nan if missing else TRUTH[cell.strip(" ")]
            for cell, missing in zip(cells, gone, strict=True)
        ]
        return pd.Series(truths, dtype=bool if forms == {"truth"} else object)
    texts = [None if missing else cell for cell, missing in zip(cells, gone, strict=True)]
    return pd.Series(texts, dtype=pd.Series(["a"]).dtype)


def read_csv(path: Path, as_text: Container[str] = ()) -> pd.DataFrame:
    """The table of a CSV file.

    Args:
        path: the file.
        as_text: names of columns of categories, whose cells are text.

    Raises:
        DataError: see :func:`rows_of`.
    """
    names, *rows = rows_of(path)
    types = CellTypes(names, rows, as_text)
    types.warn_of_words(path)
    return types.table(rows)


def text_columns(columns: Sequence[Column]) -> list[str]:
    """The names of columns whose levels are text."""
    names = []
    for column in columns:
        if column.levels is not None:
            levels = column.values(np.arange(column.levels))
            names += [column.name] if all(isinstance(level, str) for level in levels) else []
    return names
