"""Rows of a table for a model of them: columns, parts of the data, and the map to model space."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyro_mdm.levels.dequantization import Dequantized
from pyro_mdm.support.checks import DataError, checked_arguments
from pyro_mdm.support.files import JsonObject
from pyro_mdm.support.splits import Rows, split_rows
from pyro_mdm.tables.columns import Categorical, Column, fitting, kinds
from pyro_mdm.tables.columns.base import OTHERS, as_written, rows_in_words
from pyro_mdm.tables.columns.dates import DAY, days_of
from pyro_mdm.tables.columns.doubts import doubts_of
from pyro_mdm.tables.columns.facts import column_facts, column_of_facts
from pyro_mdm.tables.columns.gaps import TableGaps, shortened
from pyro_mdm.tables.columns.kinds import DROP, FindKind, Kinds
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.columns.skipped import ABSENT, HIDDEN, Skipped
from pyro_mdm.tables.frames import check_names, dtype_of, named

__all__ = ["FEWEST", "UnknownPolicy", "TableRows", "without_dropped"]

FEWEST = 20
"""The fewest rows that a model is trained on."""
TABLES = 4
"""The number of completed tables that the Gaussian of the denoiser is fitted to."""
FAR = 6.0
"""The distance in model space beyond which a number is far outside."""
UnknownPolicy = Literal["missing", "refuse"]
"""The treatment of values that a column cannot have: missing entries with a warning, or an
error."""

R = TypeVar("R", bound="TableRows")


class TableRows:
    """Rows of a table, with the columns of a model of them.

    Columns of numbers and dates are mapped to normal ones by their quantiles and have a Gaussian
    denoiser; boolean, ordinal and categorical ones have a logit for each level. Three categories or
    more are one-hot. :func:`~pyro_mdm.tables.columns.kind_of` infers the kinds of columns, and
    :func:`~pyro_mdm.tables.columns.kinds.left_out` those without information, which are left out. A
    tenth of the rows, drawn by ``split_seed``, is held out; scales and categories are those of the
    training rows. A category that these do not have, or that is not one of their 100 most frequent,
    counts as missing.

    Args:
        table: the rows, a DataFrame of at least 20.
        columns: the kinds of columns that replace those inferred, by name or as text: a kind of
            ``pyro_mdm.tables.columns.KINDS``, an order, or a range, as in
            ``"age=continuous,zip=drop,size=small<middle<large,score=0..100"``; None: all are
            inferred. The kind of ``*`` is that of all columns that are not named.
        holdout: whether a tenth of the rows is validation data, and the test data too; False: a
            tenth is test data, and none is validation data.
        find_kind: the function that returns the class of a kind of your own by its name in
            ``columns``, ``file.py:Name``; None: no such kinds.

    Attributes:
        columns: the columns of the model.
        train, validation, test: codes of rows, (n, columns), float64, NaN where an entry is
            missing.
        facts: the columns as JSON; None where it cannot hold their levels.
        left_out: the columns that are left out without being named, with the reason.
        doubts: doubts on columns and their kinds, in words, by name.

    Raises:
        DataError: fewer than 20 rows; an unknown column or kind; a kind, an order or a range that
            the values of a column do not have; infinite numbers; no column with information.
        ValueError: ``columns`` of another form.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"age": np.arange(40) / 7, "works": [True, False] * 20})
        >>> rows = TableRows(frame, columns="age=continuous")
        >>> [column.kind for column in rows.columns], rows.train.shape
        (['continuous', 'boolean'], torch.Size([36, 2]))
    """

    dtype: torch.dtype = torch.float32
    split_seed: int | None = 0
    facts: JsonObject | None = None
    event_shape: tuple[int, ...]
    rows: Rows | None
    train: Tensor
    validation: Tensor
    test: Tensor

    @checked_arguments
    def __init__(
        self,
        table: pd.DataFrame,
        *,
        columns: Kinds = None,
        holdout: bool = True,
        find_kind: FindKind | None = None,
    ) -> None:
        self.begin("the table", columns, find_kind)
        table = without_dropped(table, columns)
        self.train, self.validation, self.test = self.divided(table, holdout=holdout)

    @classmethod
    def from_facts(cls: type[R], facts: JsonObject, train: Tensor) -> R:
        """The rows with the columns of facts, and stored training rows, (n, d); DataError for
        damaged facts."""
        rows = cls.__new__(cls)
        rows.begin("the table", None)
        rows.facts, rows.train = facts, train
        rows.validation = rows.test = train[:0]
        rows.take_columns(facts)
        return rows

    def begin(self, source: Path | str, columns: Kinds, find_kind: FindKind | None = None) -> None:
        """Begin with the kinds of columns of a table that is read from a source, a file or
        words."""
        self._find_kind = find_kind
        self.source, self._asked, self._kinds = source, columns, kinds.parse_kinds(columns)
        self.columns: list[Column] = []
        self.left_out: dict[str, str] = {}
        self.doubts: dict[str, list[str]] = {}
        self.gaps = TableGaps([], None)
        self.rows = None

    @property
    def is_from_frame(self) -> bool:
        """Whether the table was a DataFrame, without rows that are test data alone."""
        return True

    def strata_of(self, table: pd.DataFrame) -> Tensor | None:
        """The strata that are split evenly, (n,); None: no strata."""
        return None

    @property
    def all_kinds(self) -> dict[str, str]:
        """``columns`` with the kind of every column, so that none is inferred."""
        texts = {OTHERS: DROP}
        for column in self.columns:
            asked = self._kinds.get(column.name, "")
            mar = bool(asked) and kinds.parse_spec(column.name, asked).empty == "mar"
            texts[column.name] = f"{column.spec} mar" if mar else column.spec
        return texts

    @property
    def columns_in_words(self) -> str:
        """The kind of each column, a line each, with doubts and the way to change them."""
        rows = {c.name: c.in_words for c in self.columns}
        rows |= {name: f"left out: {reason}" for name, reason in self.left_out.items()}
        width = max(map(len, rows))
        lines = []
        for name, words in rows.items():
            lines.append(f"  {name:<{width}}  {words}")
            lines += [f"  {'':<{width}}  warning: {doubt}" for doubt in self.doubts.get(name, [])]
        head = 'columns of the table (say otherwise by columns="NAME=KIND,…", of'
        last = 'by an order, "NAME=low<middle<high"; or by a range, NAME=0..100):'
        return "\n".join([head, f"{', '.join(kinds.kind_names())};", last, *lines])

    @property
    def is_incomplete(self) -> bool:
        """Whether training rows have missing entries, or absent numbers, which are filled in too by
        those that exist, given all else, so that they change no other distribution."""
        return not bool(self.train.isfinite().all())

    def divided(self, table: pd.DataFrame, *, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The codes of a table's rows by part of the data: training, validation and test, (n, d)
        each.

        Columns are fitted to the training rows, unless :attr:`facts` have them. Arguments and
        errors are those of :class:`TableRows`.
        """
        types = {name: dtype_of(table[name]) for name in table}
        table = as_written(table)
        if len(table) < FEWEST:
            raise DataError(f"{self.source} has {len(table)} rows, expected at least {FEWEST}")
        self._kinds, is_new = kinds.parse_kinds(self._asked, [*table.columns]), self.facts is None
        rows = self.rows = split_rows(len(table), holdout, self.split_seed, self.strata_of(table))
        if self.is_from_frame and holdout:
            others = torch.cat([rows.train, rows.test]).sort().values
            rows = self.rows = rows._replace(train=others, test=rows.validation)
        train = np.zeros(len(table), dtype=np.bool_)
        train[rows.train.numpy()] = True
        if self.facts is None:
            self.columns = fitting.fit_columns(table, train, self._kinds, self._find_kind)
            for column in self.columns:
                column.dtype = types[column.name]
            self.event_shape = (sum(column.width for column in self.columns),)
            self.facts = _facts_of(self.columns)
        self.left_out = kinds.left_out(table, train, self._kinds)
        unknown = fitting.unknown_in(self.columns, table)
        inferred = {c.name: c.kind for c in self.columns}
        inferred |= dict.fromkeys(self.left_out, Categorical.kind)
        if OTHERS not in self._kinds:
            asked = {n: kind for n, kind in inferred.items() if n not in self._kinds}
            self.doubts |= _doubts(asked, table, unknown)
        rest = fitting.without_unknown(table, unknown)
        codes = fitting.encode(self.columns, rest)
        if is_new:
            self.gaps = TableGaps(self.columns, rest)
        if (empty := codes[rows.train].isnan().all(0)).any():
            name = self.columns[int(empty.nonzero()[0])].name
            raise DataError(
                f"column {name!r} of {self.source} has none of its values in the training rows"
            )
        return codes[rows.train], codes[rows.validation], codes[rows.test]

    def take_columns(self, facts: JsonObject) -> None:
        """Take the columns from facts; DataError for damaged ones."""
        try:
            self.columns = [column_of_facts(one, self._class_of) for one in facts["columns"]]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"what the run keeps of its table is damaged: {error}") from error
        self.event_shape = (sum(column.width for column in self.columns),)

    def _class_of(self, name: str) -> type[Column]:
        """A class of your own that facts name, in the file that the settings name now."""
        said = [kinds.parse_spec(column, text).kind or "" for column, text in self._kinds.items()]
        moved = {kind.rpartition("/")[2]: kind for kind in said if kinds.is_name(kind)}
        return kinds.class_of(moved.get(name.rpartition("/")[2], name), self._find_kind)

    def warn_of_doubts(self) -> None:
        """Warn of columns that are left out without being named, and of all :attr:`doubts`."""
        lines = [f"{name!r} is left out: {why}" for name, why in self.left_out.items()]
        lines += [f"{name!r}: {doubt}" for name, all_ in self.doubts.items() for doubt in all_]
        if lines:
            head = 'columns to look at; columns="NAME=KIND" says that one is right, and ends this:'
            warnings.warn("\n".join([head, *shortened(lines)]), stacklevel=2)

    def transform(self, data: Tensor, generator: torch.Generator | None = None) -> Dequantized:
        """Stored rows, (n, columns), in model space, (n, d), and the log determinants of x by the
        numbers of the table, nats, (n,), as :func:`~pyro_mdm.tables.columns.to_model_space`."""
        x, log_det = fitting.to_model_space(self.columns, data, generator)
        return Dequantized(x.to(self.dtype), log_det)

    @functools.cached_property
    def _completions(self) -> Tensor | None:
        """Completed training rows in model space, (:data:`TABLES`, N, d), absent numbers too; None
        where no gap depends on other columns."""
        return fitting.completed_rows(self.columns, self.train, TABLES)

    @property
    def completed(self) -> Tensor | None:
        """The first of the completions, (N, d); None where no gap depends on other columns."""
        return None if self._completions is None else self._completions[0]

    def fit_x(self) -> Tensor:
        """Rows in model space that a denoiser is fitted to: the training rows, NaN where an entry
        is missing or absent, or completions of them where gaps depend on other columns."""
        if self._completions is not None:
            return self._completions.flatten(0, 1)
        return self.to_model_space(self.train, torch.Generator().manual_seed(0))

    def to_model_space(self, data: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Stored rows in model space, (n, d), NaN where an entry is missing; see
        :meth:`transform`."""
        return self.transform(data, generator).x

    @property
    def names(self) -> list[str]:
        """The names of the modelled columns."""
        return [column.name for column in self.columns]

    def column(self, name: str) -> Column:
        """The modelled column with a name; DataError if there is none."""
        columns = {column.name: column for column in self.columns}
        if name not in columns:
            raise DataError(f"there is no column {name!r}, expected one of {', '.join(columns)}")
        return columns[name]

    def dims_of(self, name: str) -> Tensor:
        """The mask of the dimensions of a column in model space, (d,)."""
        self.column(name)  # or an error
        return torch.cat([torch.full((c.width,), c.name == name) for c in self.columns])

    @checked_arguments
    def codes(
        self, table: pd.DataFrame, unknown: UnknownPolicy = "missing", hidden: Sequence[str] = ()
    ) -> Tensor:
        """The codes of another table, (n, columns), float64, NaN where an entry is missing.

        Args:
            table: a table with all columns of the model, in any order, and any others.
            unknown: the treatment of values that a column of the model cannot have, as for
                :class:`~pyro_mdm.tables.Table`.
            hidden: the names of columns whose entries all count as missing; empty entries of others
                may be absent.

        Raises:
            DataError: a table without a column, infinite numbers, and refused unknown values.
            ValueError: another ``unknown``.
        """
        check_names([*table.columns], "the table")
        table = as_written(table)
        if unknown == "missing":
            masks = fitting.unknown_in(self.columns, table)
            for name, what in masks.items():
                warnings.warn(
                    f"column {name!r} holds {what.values} in {what.rows}, expected of it "
                    f"{self.column(name).in_words}; there the entry counts as missing, and "
                    'unknown="refuse" makes this an error',
                    stacklevel=2,
                )
            table = fitting.without_unknown(table, masks)
        codes = fitting.encode(self.columns, table)
        codes[:, [column.name in hidden for column in self.columns]] = math.nan
        _warn_of_impossible(self.columns, table, codes)
        return codes

    def with_absences(self, codes: Tensor, name: str) -> Tensor:
        """Codes, (n, columns), which are changed, in which the missing entries of a column are
        absent, if they may be."""
        for j, column in enumerate(self.columns):
            if column.name == name and isinstance(column, Skipped):
                empty = codes[:, j].isnan() | (codes[:, j] == HIDDEN)
                codes[:, j] = codes[:, j].masked_fill(empty, ABSENT)
        return codes

    def to_table(self, x: Tensor) -> pd.DataFrame:
        """The table, in its units and categories, of data x in model space, (n, d)."""
        return fitting.decode(self.columns, x)

    def as_columns(self, x: Tensor) -> Mapping[str, object]:
        """The columns by name of data x in model space, (n, d), for figures: categories have the
        order of the model, and dates of any form are datetime64."""
        table = self.to_table(x)
        series: dict[str, pd.Series] = {c.name: table[c.name] for c in self.columns}
        for column in self.columns:
            values = series[column.name]
            if column.kind == "date":
                micros = pd.Series(days_of(values) * DAY).round().astype("Int64")
                series[column.name] = micros.astype("datetime64[us]")
            elif column.levels is not None and not pd.api.types.is_numeric_dtype(values.dtype):
                levels = pd.Series(column.values(np.arange(column.levels))).dropna()
                series[column.name] = values.astype(pd.CategoricalDtype([*levels]))
        return series


def _far(column: Column, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The mask of numbers far outside of those that a column was fitted to, (n,), and the ends of
    these, (2,)."""
    if column.levels is not None or column.width > 1:
        return torch.zeros(len(codes), dtype=torch.bool), codes[:0]
    ends = column.unscaled(torch.tensor([-3.0, 3.0], dtype=torch.float64))
    x, _ = column.scaled(codes, torch.full_like(codes, 0.5))
    beyond = torch.maximum(ends[0] - codes, codes - ends[1])
    return (x.abs() > FAR) & (beyond > (ends[1] - ends[0]) / 4), ends


def without_dropped(table: pd.DataFrame, columns: Kinds) -> pd.DataFrame:
    """A table without the values of dropped columns, which may have any type; DataError where two
    have one name."""
    table = named(table, "the table")
    texts = kinds.parse_kinds(columns, [*table.columns])
    dropped = [name for name in table if texts.get(name, texts.get(OTHERS)) == DROP]
    return table.assign(**dict.fromkeys(dropped))


def _facts_of(columns: Sequence[Column]) -> dict[str, object] | None:
    """The columns as JSON; None where it cannot hold their levels."""
    facts = []
    for column in columns:
        try:
            facts.append(column_facts(column))
        except TypeError as error:
            if kinds.is_name(column.kind):
                raise DataError(
                    f"a run cannot keep column {column.name!r} of {column.kind}: {error}; its "
                    "attributes must be numbers, text, tensors, lists, tuples or other columns"
                ) from error
            return None
    return {"columns": facts}


def _doubts(
    inferred: Mapping[str, str], table: pd.DataFrame, unknown: Mapping[str, fitting.Unknown]
) -> dict[str, list[str]]:
    """Doubts on the values of columns of inferred kinds by name, and on categories that count as
    missing, in words."""
    doubts = {name: doubts_of(name, table[name], kind) for name, kind in inferred.items()}
    for name in doubts.keys() & unknown.keys():
        doubts[name].append(
            "values are no category of the training rows, or are not one of the "
            f"{Categorical.most_levels} most frequent: {unknown[name].values}; missing in "
            f"{unknown[name].rows}"
        )
    return {name: words for name, words in doubts.items() if words}


def _warn_of_impossible(columns: Sequence[Column], table: pd.DataFrame, codes: Tensor) -> None:
    """Warn of entries that do not exist by the rules of the rows, and of numbers far outside,
    of a table and its codes, (n, columns)."""
    for column, entries in zip(columns, codes.unbind(-1), strict=True):
        there = entries.isfinite().numpy()
        if isinstance(column, Skipped) and there.any() and column.rule.conditions:
            wrong = there & (column.rule.holds(table) == 1)
            if wrong.any():
                warnings.warn(
                    f"column {column.name!r} has a value in {rows_in_words(wrong)} "
                    f"{column.rule.in_words}, where the training rows never have one; what is "
                    "drawn given it is extrapolated, so leave the entry empty",
                    stacklevel=4,
                )
        numbers = column.column if isinstance(column, Skipped) else column
        far, ends = _far(numbers, torch.where(entries.isfinite(), entries, math.nan))
        if far.any():
            first, low, high = map(str, numbers.values(torch.cat([entries[far][:1], ends]).numpy()))
            warnings.warn(
                f"column {column.name!r} holds {first} in {rows_in_words(far.numpy())}, "
                f"expected values like those of the training rows, {low} to {high}; what is "
                "drawn given it is extrapolated, so check the entry",
                stacklevel=4,
            )
