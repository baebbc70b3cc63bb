"""All columns of a table: fitted to it, and between the table, its codes and model space.

See :mod:`pyro_mdm.tables.columns.base`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm import randomness
from pyro_mdm.likelihoods.dequantization import Dequantized
from pyro_mdm.support.checks import DataError
from pyro_mdm.tables.columns.base import Column, as_number, numbers_of, rows_in_words
from pyro_mdm.tables.columns.gaps import skip_rules
from pyro_mdm.tables.columns.kinds import (
    MOST,
    NUMBERS,
    OTHERS,
    PLAIN,
    Kind,
    Said,
    in_words,
    kinds_of,
    left_out,
)
from pyro_mdm.tables.columns.levels import Boolean, Categorical, Ordinal, shown
from pyro_mdm.tables.columns.numbers import (
    Continuous,
    Dates,
    Ends,
    Mixed,
    Rounded,
    finite_numbers,
    no_number,
)
from pyro_mdm.tables.columns.skipped import Rule, skipped

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = [
    "Unknown",
    "decode",
    "encode",
    "fit_columns",
    "known_alone",
    "to_model_space",
    "unknown_in",
]


def fit_columns(
    table: DataFrame, train: NDArray[np.bool_], kinds: Mapping[str, str] | None = None
) -> list[Column]:
    """The columns of a table, with scales and categories of the training rows.

    Args:
        table: all rows.
        train: the mask of training rows, (n,). Ordinal columns have the values of all rows, and
            columns of numbers end where all rows do.
        kinds: by name what replaces :func:`kind_of`: a kind, of which "drop" leaves a column out,
            an order or a range, see :class:`~pyro_mdm.tables.columns.kinds.Said`. The kind of "*"
            is that of all columns without one. Those without one that say nothing are left out, see
            :func:`~pyro_mdm.tables.columns.kinds.left_out`.

    Raises:
        DataError: an unknown column or kind; a column of a kind that its values cannot have, with
            values beyond its range or order, or, if its kind is given, without two values; no
            column is left.
    """
    kinds = dict(kinds or {})
    for name, text in kinds.items():
        if name not in table.columns and name != OTHERS:
            raise DataError(
                f"--columns names {name!r}, and the table has no such column; expected one of "
                f"{', '.join(map(str, table.columns))}"
            )
        Said.of(name, text)
    without = left_out(table, train, kinds)
    columns = []
    for name, kind in kinds_of(table, kinds).items():
        if kind != "drop" and name not in without:
            said = Said.of(name, kinds[name]) if name in kinds else Said()
            _check_values(name, kind, said, table[name], train)
            plain = kinds.get(OTHERS) == PLAIN
            columns.append(_column(name, kind, said, table[name], train, plain))
    columns = _with_absences(table, train, kinds, columns)
    if not columns:
        reasons = "".join(f"; {name!r}: {reason}" for name, reason in without.items())
        raise DataError(
            f"no column of the table is left, expected one at least that differs between rows"
            f"{reasons}"
        )
    return columns


def _with_absences(
    table: DataFrame, train: NDArray[np.bool_], kinds: Mapping[str, str], columns: list[Column]
) -> list[Column]:
    """Columns, of which some do not exist for all rows, as is said or as the table has it."""
    if kinds.get(OTHERS) == PLAIN:
        return columns
    said = {c.name: Said.of(c.name, kinds[c.name]).empty for c in columns if c.name in kinds}
    rules = skip_rules(table, [c.name for c in columns], train)
    rules |= {name: rules.get(name, Rule()) for name, word in said.items() if word == "absent"}
    return [
        skipped(column, rules[column.name])
        if column.name in rules and said.get(column.name) != "mar"
        else column
        for column in columns
    ]


def _column(
    name: str, kind: str, said: Said, values: Series[Any], train: NDArray[np.bool_], plain: bool
) -> Column:
    if kind == "categorical":
        return Categorical(name, values[train], one_hot=not plain)
    if kind == "boolean":
        return Boolean(name)
    if kind == "date":
        return Dates(name, values, train)
    if kind == "ordinal" and (order := _order(name, said.order, values)) is not None:
        return Ordinal(name, np.empty(0), order, said=said.order is not None)
    if kind == "ordinal":
        ends = said.ends if said.kind == "ordinal" else _whole_ends(values)
        return Ordinal(name, numbers_of(values), even=plain, ends=None if plain else ends)
    numbers, ends = finite_numbers(name, values), said.ends
    if kind in ("nonnegative", "mixed") or (kind == "continuous" and ends is not None):
        return Mixed(cast(Kind, kind), name, numbers[train], numbers, ends)
    if kind in ("rounded", "integer"):
        return Rounded(cast(Kind, kind), name, numbers[train], numbers, ends)
    return Continuous(name, numbers[train], plain=plain)


def _whole_ends(values: Series[Any]) -> Ends | None:
    """The ends of whole numbers of which few between are not there; None: others."""
    numbers = np.unique(numbers_of(values.dropna()))
    low, high = float(numbers[0]), float(numbers[-1])
    whole = bool((numbers == numbers.round()).all())
    return (low, high) if whole and high - low < 2 * len(numbers) else None


def _order(name: str, said: Sequence[str] | None, values: Series[Any]) -> list[Any] | None:
    """The levels of an ordinal column in the order that is said or that pandas has, as the table
    has them; None: they are numbers in their own order."""
    import pandas as pd

    if said is None:
        dtype = values.dtype
        return [*dtype.categories] if isinstance(dtype, pd.CategoricalDtype) else None
    distinct = values.dropna().unique()
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        wrong = [level for level in said if as_number(level) is None]
        if wrong:
            raise DataError(
                f"--columns {name}={'<'.join(said)}: column {name!r} holds numbers, and its order "
                f"has {wrong[0]!r}; expected numbers"
            )
        own = {level: float(level) for level in said}
        outside = [value for value in distinct if float(value) not in own.values()]
    else:
        texts = {str(value): value for value in distinct}
        own = {level: texts.get(level, level) for level in said}
        outside = [value for text, value in texts.items() if text not in own]
    if outside:
        raise DataError(
            f"column {name!r} holds {outside[0]!s}, which its order leaves out, expected one of "
            f"{' < '.join(said)}; add it to the order, or leave the entry empty"
        )
    return [*own.values()]


def _check_values(
    name: str, kind: str, said: Said, values: Series[Any], train: NDArray[np.bool_]
) -> None:
    import pandas as pd

    distinct, drop = values[train].dropna().unique(), f"--columns {name}=drop"
    if len(distinct) == 0:
        raise DataError(
            f"column {name!r} has no value in the training rows, expected two different ones at "
            f"least; leave it out: {drop}"
        )
    if len(distinct) == 1:
        raise DataError(
            f"column {name!r} has one value in all training rows, {distinct[0]!r}, expected two at "
            f"least; it says nothing, so leave it out: {drop}"
        )
    number = len(values.dropna().unique())
    if kind == "ordinal" and said.ends is not None:
        number = int(min(said.ends[1] - said.ends[0] + 1, 1e9))
    if kind == "ordinal" and number > MOST[kind]:
        raise DataError(
            f"column {name!r} has {number} different values, expected at most {MOST[kind]} of an "
            f"ordinal one; say --columns {name}=continuous, or leave it out: {drop}"
        )
    if said.ends is not None and kind not in (*NUMBERS, "ordinal"):
        raise DataError(
            f"--columns {name}={in_words(said.ends)} is a range of numbers, and column {name!r} "
            f"is {kind}; expected a column of numbers"
        )
    ordered = isinstance(values.dtype, pd.CategoricalDtype) or said.order is not None
    if kind in NUMBERS or (kind == "ordinal" and not ordered):
        numbers = numbers_of(values)
        if (wrong := np.isnan(numbers) & values.notna().to_numpy()).any():
            order = "<".join(map(str, distinct[:4]))
            fix = f"; or say its order, such as --columns {name}={order}" * (kind == "ordinal")
            raise DataError(no_number(name, values[wrong].iloc[0]) + fix)
        low, high = said.ends or (-math.inf, math.inf)
        if (outside := (numbers < low) | (numbers > high)).any():
            raise DataError(
                f"column {name!r} holds {numbers[outside][0]:g}, expected numbers in the range "
                f"{in_words((low, high))} that --columns says; correct it, or say another range"
            )
    if kind == "boolean" and (wrong := Boolean(name).unknown(values)).any():
        Boolean(name).codes(values[wrong])


class Unknown(NamedTuple):
    """Values that a column cannot have: their mask (n,), and in words some of them and where."""

    mask: NDArray[np.bool_]
    values: str
    are: str
    rows: str


def unknown_in(columns: Sequence[Column], table: DataFrame) -> dict[str, Unknown]:
    """The values of a table that its columns cannot have, by the names of such columns."""
    unknown = {}
    for column in columns:
        if column.name in table.columns:
            values = table[column.name]
            if (mask := column.unknown(values)).any():
                some = [*map(shown, values[mask].astype(object).unique()[:6].tolist())]
                words = ", ".join(some[:5]) + (", …" if len(some) > 5 else "")
                are = "is" if len(some) == 1 else "are"
                unknown[column.name] = Unknown(mask, words, are, rows_in_words(mask))
    return unknown


def known_alone(table: DataFrame, unknown: Mapping[str, Unknown]) -> DataFrame:
    """A table without its unknown values, missing there."""
    table = table.copy(deep=False)
    for name, own in unknown.items():
        table[name] = table[name].mask(own.mask)
    return table


def encode(columns: Sequence[Column], table: DataFrame) -> Tensor:
    """The codes of a table, (n, d) float64 (DataError: a missing column or an invalid value)."""
    if absent := [c.name for c in columns if c.name not in table.columns]:
        raise DataError(
            f"the table has no column {', '.join(map(repr, absent))}, expected "
            f"{', '.join(c.name for c in columns)}; add these, empty where nothing is known"
        )
    return torch.from_numpy(np.stack([c.codes_in(table) for c in columns], 1))


def to_model_space(
    columns: Sequence[Column], codes: Tensor, generator: torch.Generator | None = None
) -> Dequantized:
    """x (n, Σ width) float32 of stored data (n, d), NaN where missing, and the log-determinant (n,)
    of the rest.

    Values that have a probability are fresh draws from their intervals at each call, and
    log p(x) + log-determinant is a bound of log p(row) in expectation.
    """
    codes = codes.double()
    noise: list[Tensor | None] = [None] * len(columns)
    if noisy := [j for j, c in enumerate(columns) if c.noisy]:
        shape = (len(codes), len(noisy))
        if generator is None:
            drawn = randomness.uniform(shape, torch.float64, codes.device)
        else:
            drawn = torch.rand(shape, generator=generator, dtype=torch.float64).to(codes.device)
        for j, own in zip(noisy, drawn.unbind(-1), strict=True):
            noise[j] = own
    parts = zip(columns, codes.unbind(-1), noise, strict=True)
    xs, log_dets = zip(*[c.scaled(w, u) for c, w, u in parts], strict=True)
    x = torch.cat([own.unsqueeze(-1) if own.dim() == 1 else own for own in xs], -1)
    log_det = torch.where(codes.isnan(), 0, torch.stack(log_dets, -1)).sum(-1)
    return Dequantized(x.float(), log_det.float())


def decode(columns: Sequence[Column], x: Tensor) -> DataFrame:
    """The table of data x (n, Σ width) in model space, in its own units; NaN becomes empty."""
    import pandas as pd

    table = {}
    for column, own in zip(columns, x.cpu().split([c.width for c in columns], -1), strict=True):
        codes = column.unscaled(own if column.width > 1 else own.squeeze(-1)).numpy()
        missing = np.isnan(codes)  # and what is absent, column.values leaves empty
        values = pd.Series(column.values(np.where(missing, 0, codes)))
        table[column.name] = values.mask(missing) if missing.any() else values
    return pd.DataFrame(table)
