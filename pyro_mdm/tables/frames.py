"""Tables of pandas: their names, their pieces, and the filling of their missing entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyro_mdm.support.checks import DataError
from pyro_mdm.tables.columns import Column
from pyro_mdm.tables.columns.lazy import pd

__all__ = [
    "PIECE",
    "Frame",
    "as_frame",
    "check_names",
    "dtype_of",
    "filled",
    "in_pieces",
    "named",
    "typed",
    "with_levels",
]

Frame: TypeAlias = Any  # a pandas DataFrame, or an array

PIECE = 4096
"""The rows that are completed or measured together; each such piece has a seed of its own."""


def as_frame(X: Frame) -> pd.DataFrame:
    """X as a DataFrame whose labels are text; the columns of an array are x0, x1, …"""
    if isinstance(X, pd.DataFrame):
        return named(X, "the table")
    values: NDArray[Any] = np.asarray(X)
    if values.ndim != 2:
        raise ValueError(
            f"X has shape {values.shape}, expected (rows, columns); pass a DataFrame, or an array "
            "of two axes"
        )
    names = [f"x{j}" for j in range(values.shape[1])]
    return pd.DataFrame(values, columns=names).infer_objects()


def named(table: pd.DataFrame, where: object) -> pd.DataFrame:
    """A table with the names of its columns as text; DataError where two have one name."""
    table = table.set_axis(table.columns.map(str), axis=1)
    check_names([*table.columns], str(where))
    return table


def check_names(names: Sequence[str], what: str) -> None:
    """Raise DataError where two columns of the table in words ``what`` have one name."""
    for name, number in Counter(names).items():
        if number > 1:
            raise DataError(
                f"{what} has two columns {name!r}, expected names that differ; rename one"
            )


def in_pieces(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The rows in pieces of :data:`PIECE`, at least one piece."""
    for first in range(0, max(1, len(frame)), PIECE):
        yield frame.iloc[first : first + PIECE]


def with_levels(types: Mapping[Any, object], columns: Sequence[Column]) -> dict[str, object]:
    """Types of a table's columns, with categories that hold all levels, so that draws keep them."""
    whole = dict(types)
    for column in columns:
        dtype = whole.get(column.name)
        if column.levels is not None and isinstance(dtype, pd.CategoricalDtype):
            levels = column.values(np.arange(column.levels))
            new = [level for level in levels if level not in dtype.categories]
            whole[column.name] = pd.CategoricalDtype([*dtype.categories, *new], dtype.ordered)
    return whole


def dtype_of(values: pd.Series) -> str | tuple[object, ...] | None:
    """The type of a column as JSON holds it: its name, or that of categories with these, and
    whether they are ordered. None: objects, or numbers that may be floats as some are missing."""
    kind = values.dtype
    if isinstance(kind, pd.CategoricalDtype):
        return "category", kind.categories.tolist(), bool(kind.ordered)
    name = str(kind)
    return None if name == "object" or (name == "float64" and values.hasnans) else name


def typed(table: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """A table with the types that its columns have in the training table."""
    types = {}
    for column in columns:
        match column.dtype:
            case "category", levels, ordered:
                types[column.name] = pd.CategoricalDtype(levels, ordered)
            case str(name):
                dtype = pd.api.types.pandas_dtype(name)
                if not (table[column.name].hasnans and dtype.kind in "iub"):
                    types[column.name] = dtype
    return table.astype(types)


def filled(table: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """A table with its missing entries filled in by values, a table of some of its columns, its
    types kept.

    A column without any entry has the type of the values, unless its own holds such numbers too.
    """
    whole = table.copy()
    for name in values.columns:
        column, empty = whole[name], whole[name].isna().to_numpy()
        if not empty.any():
            continue
        new = pd.Series(values[name].to_numpy()[empty], dtype=object)
        if empty.all() and not isinstance(column.dtype, pd.CategoricalDtype):
            new = new.infer_objects().set_axis(whole.index)
            whole[name] = new.astype(column.dtype) if _holds(column.dtype, new.dtype) else new
            continue
        if isinstance(column.dtype, pd.CategoricalDtype):
            unknown = [v for v in new.dropna().unique() if v not in column.cat.categories]
            column = column.cat.add_categories(unknown)
        column = column.copy()
        column[empty] = new.astype(column.dtype).array
        whole[name] = column
    return whole


def _holds(dtype: object, new: object) -> bool:
    """Whether a type of numbers holds those of another one."""
    types = pd.api.types
    numbers = [types.is_float_dtype(one) or types.is_integer_dtype(one) for one in (dtype, new)]
    return all(numbers) and (types.is_float_dtype(dtype) or types.is_integer_dtype(new))
