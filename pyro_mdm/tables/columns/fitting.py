"""All columns of a table: their fit, and the maps between the table, its codes and model space.

See :mod:`pyro_mdm.tables.columns.base`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.levels.dequantization import Dequantized
from pyro_mdm.support.checks import DataError, checked_arguments
from pyro_mdm.tables.chained import Block, chained_completions
from pyro_mdm.tables.columns import base
from pyro_mdm.tables.columns.base import OTHERS, Column, ColumnSpec, Mask, as_written, rows_in_words
from pyro_mdm.tables.columns.gaps import dependent_gaps, skip_rules
from pyro_mdm.tables.columns.kinds import (
    BUILT_IN,
    DROP,
    KINDS,
    FindKind,
    class_of,
    kinds_of,
    left_out,
    parse_spec,
    spec_of,
)
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.columns.levels import Categorical, shown, some
from pyro_mdm.tables.columns.numbers import Continuous
from pyro_mdm.tables.columns.skipped import HIDDEN, Rule, Skipped
from pyro_mdm.tables.one_hot import OneHot

__all__ = ["completed_rows", "decode", "encode", "fit_columns", "to_model_space"]

REFITS = 2
"""The number of times that scales are fitted to completed rows: the first completions are on scales
of present entries."""


@checked_arguments
def fit_columns(
    table: pd.DataFrame,
    train: Mask,
    kinds: Mapping[str, str] | None = None,
    find_kind: FindKind | None = None,
) -> list[Column]:
    """The columns of a table, with scales and categories of the training rows.

    Args:
        table: the table, with all rows.
        train: the mask of training rows, (n,). Ordinal columns have the values of all rows, and
            the ends of columns of numbers are those of all rows.
        kinds: texts by the names of columns that replace
            :func:`~pyro_mdm.tables.columns.kind_of`: a kind, of which "drop" leaves a column out,
            an order or a range, see :func:`~pyro_mdm.tables.columns.kinds.parse_spec`. The kind of
            "*" is that of all other columns. Other columns without information are left out, see
            :func:`~pyro_mdm.tables.columns.kinds.left_out`.
        find_kind: the function that returns the class of a kind of your own by its name in
            ``kinds``, ``file.py:Name``; None: no such kinds.

    Returns:
        The columns, in the order of the table.

    Raises:
        DataError: an unknown column or kind; a column of a kind that its values cannot have, with
            values beyond its range or order, or, if its kind is given, without two values; no
            column is left.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"age": [31.5, 42.25, 57.0, 19.5], "work": list("abca")})
        >>> columns = fit_columns(frame, np.ones(4, dtype=bool), {"age": "continuous"})
        >>> [(column.kind, column.width) for column in columns]
        [('continuous', 1), ('categorical', 3)]
    """
    if len(train) != len(table):
        raise ValueError(f"train has {len(train)} rows, expected {len(table)}, those of the table")
    table, kinds = as_written(table), dict(kinds or {})
    for name, text in kinds.items():
        if name not in table.columns and name != OTHERS:
            raise DataError(
                f"columns names {name!r}, and the table has no such column; expected one of "
                f"{', '.join(map(str, table.columns))}"
            )
        parse_spec(name, text)
    for name in table.columns:
        kind = spec_of(name, kinds).kind if name in kinds else kinds.get(OTHERS)
        if kind not in (DROP, Categorical.kind):
            base.check_sizes(name, table[name])
    without = left_out(table, train, kinds)
    columns = []
    for name, kind in kinds_of(table, kinds).items():
        if kind != DROP and name not in without:
            spec = spec_of(name, kinds)
            cls = class_of(kind, find_kind)
            _check_values(name, cls, spec, table[name], train)
            column = cls.fit(name, table[name], train, spec)
            if kind not in KINDS:
                column.kind = kind  # by which a run finds the class again
            columns.append(column)
    columns = _with_absences(table, train, kinds, columns)
    for _ in range(REFITS):
        before, columns = columns, _fitted_to_whole_rows(table, train, kinds, columns)
        if columns is before:  # no gap depends on another column
            break
    if not columns:
        reasons = "".join(f"; {name!r}: {reason}" for name, reason in without.items())
        raise DataError(
            f"no column of the table is left, expected one at least that differs between rows"
            f"{reasons}"
        )
    return columns


def _with_absences(
    table: pd.DataFrame, train: Mask, kinds: Mapping[str, str], columns: list[Column]
) -> list[Column]:
    """Columns, of which some do not exist for some rows, as given or as inferred from the table."""
    empty = {c.name: spec_of(c.name, kinds).empty for c in columns}
    rules = skip_rules(columns, table[train])
    rules |= {name: rules.get(name, Rule()) for name, word in empty.items() if word == "absent"}
    return [
        Skipped(column, rules[column.name])
        if column.name in rules and empty[column.name] != "mar"
        else column
        for column in columns
    ]


def completed_rows(columns: Sequence[Column], codes: Tensor, num: int = 1) -> Tensor | None:
    """Rows in model space whose missing and absent entries are drawn given the others, by chained
    equations, (num, n, Σ width), for codes (n, d); None: no gap depends on other columns."""
    there = codes.isfinite().numpy()
    present = {
        column.name: pd.Series(column.values(np.where(here, code, 0.0))).where(here)
        for column, code, here in zip(columns, codes.numpy().T, there.T, strict=True)
    }
    depends = dependent_gaps(columns, pd.DataFrame(present))
    hidden = (codes.isnan() | (codes == HIDDEN)).any(0).tolist()
    if not any(column.name in depends for column in itertools.compress(columns, hidden)):
        return None
    blocks: list[Block] = []
    for levels in (levels for column in columns for levels in column.denoiser_levels):
        start = blocks[-1][0].stop if blocks else 0
        end = start + (levels.number if isinstance(levels, OneHot) else 1)
        blocks.append((slice(start, end), levels is not None))
    x = to_model_space(columns, codes, torch.Generator().manual_seed(0)).x
    return chained_completions(x, blocks, num=num).to(x)


def _fitted_to_whole_rows(
    table: pd.DataFrame, train: Mask, kinds: Mapping[str, str], columns: list[Column]
) -> list[Column]:
    """Columns, with scales of completed rows for numbers with gaps, if gaps depend on other
    columns: their present numbers have another distribution."""
    rows = table[train]
    codes = encode(columns, without_unknown(rows, unknown_in(columns, rows))) if columns else None
    if codes is None or codes.isnan().all(0).any():
        return columns
    if (completed := completed_rows(columns, codes)) is None:
        return columns
    hidden, widths = codes.isnan() | (codes == HIDDEN), [column.width for column in columns]
    fitted = []
    for column, gone, drawn in zip(columns, hidden.T, completed[0].split(widths, 1), strict=True):
        numbers = column.column if isinstance(column, Skipped) else column
        # a kind of your own may read other values than numbers
        ours = isinstance(numbers, Continuous) and type(numbers) in BUILT_IN
        if ours and bool(gone.any()):
            whole_codes = column.unscaled(drawn if column.width > 1 else drawn.squeeze(-1))
            gone = gone & whole_codes.isfinite()  # not what is absent
            values = base.finite_numbers(column.name, table[column.name]).copy()
            values[np.flatnonzero(train)[gone.numpy()]] = whole_codes[gone].numpy()
            series = pd.Series(values, table.index, name=column.name)
            whole = type(numbers).fit(column.name, series, train, spec_of(column.name, kinds))
            if torch.equal(*(getattr(c, "atoms", torch.empty(0)) for c in (whole, numbers))):
                column = Skipped(whole, column.rule) if isinstance(column, Skipped) else whole
        fitted.append(column)
    return fitted


def _check_values(
    name: str, cls: type[Column], spec: ColumnSpec, values: pd.Series, train: Mask
) -> None:
    distinct = values[train].dropna().unique()
    if len(distinct) < 2:
        words = "no value in the training rows"
        if len(distinct):
            words = f"one value in all training rows, {distinct[0]!r}"
        raise DataError(
            f"column {name!r} has {words}, expected two different ones at least; leave it out: "
            f'columns="{name}=drop"'
        )
    if spec.ends is not None and not cls.ranged:
        raise DataError(
            f'columns="{name}={base.range_in_words(spec.ends)}" is a range of numbers, and column '
            f"{name!r} is {cls.kind}; expected a column of numbers"
        )
    cls.check(name, values, spec)


class Unknown(NamedTuple):
    """Values that a column cannot have, with words for messages."""

    mask: Mask  # where they are, (n,)
    values: str  # some of them
    rows: str  # the number of rows


def unknown_in(columns: Sequence[Column], table: pd.DataFrame) -> dict[str, Unknown]:
    """The values of a table that its columns cannot have, by the names of these columns."""
    table, unknown = as_written(table), {}
    for column in columns:
        if column.name in table.columns:
            values = table[column.name]
            if (mask := column.unknown(values)).any():
                words = some(map(shown, values[mask].astype(object).unique()[:6].tolist()), 5)
                unknown[column.name] = Unknown(mask, words, rows_in_words(mask))
    return unknown


def without_unknown(table: pd.DataFrame, unknown: Mapping[str, Unknown]) -> pd.DataFrame:
    """A table with its unknown values missing."""
    table = table.copy(deep=False)
    for name, what in unknown.items():
        table[name] = table[name].mask(what.mask)
    return table


def encode(columns: Sequence[Column], table: pd.DataFrame) -> Tensor:
    """The codes of a table, (n, d) float64, NaN where an entry is missing.

    Raises:
        DataError: a table without one of the columns, or a value that a column cannot have.
    """
    if absent := [c.name for c in columns if c.name not in table.columns]:
        raise DataError(
            f"the table has no column {', '.join(map(repr, absent))}, expected "
            f"{', '.join(c.name for c in columns)}; add these, empty where nothing is known"
        )
    table = as_written(table)
    return torch.from_numpy(np.stack([c.codes_in(table) for c in columns], 1))


def to_model_space(
    columns: Sequence[Column], codes: Tensor, generator: torch.Generator | None = None
) -> Dequantized:
    """Stored data, codes (n, d), in model space, with log determinants.

    Values that have a probability are fresh draws from their intervals, by a generator or else the
    library's, and log p(x) + log determinant is a bound on log p(row) in expectation. x is
    (n, Σ width) float32, NaN where an entry is missing; log determinants are in nats, (n,).
    """
    codes = codes.double()
    noise: list[Tensor | None] = [None] * len(columns)
    if noisy := [j for j, c in enumerate(columns) if c.noisy]:
        shape = (len(codes), len(noisy))
        if generator is None:
            drawn = randomness.uniform(shape, torch.float64, codes.device)
        else:
            drawn = torch.rand(shape, generator=generator, dtype=torch.float64).to(codes.device)
        for j, uniform in zip(noisy, drawn.unbind(-1), strict=True):
            noise[j] = uniform
    triples = zip(columns, codes.unbind(-1), noise, strict=True)
    xs, log_dets = zip(*[c.scaled(w, u) for c, w, u in triples], strict=True)
    x = torch.cat([x.unsqueeze(-1) if x.dim() == 1 else x for x in xs], -1)
    log_det = torch.where(codes.isnan(), 0, torch.stack(log_dets, -1)).sum(-1)
    return Dequantized(x.float(), log_det.float())


def decode(columns: Sequence[Column], x: Tensor) -> pd.DataFrame:
    """The table, in its units and categories, of data in model space, (n, Σ width), NaN where an
    entry is missing."""
    table = {}
    pieces = x.cpu().split([c.width for c in columns], -1)
    for column, piece in zip(columns, pieces, strict=True):
        codes = column.unscaled(piece if column.width > 1 else piece.squeeze(-1)).numpy()
        missing = np.isnan(codes)  # and what is absent, column.values leaves empty
        values = pd.Series(column.values(np.where(missing, 0, codes)))
        table[column.name] = values.mask(missing) if missing.any() else values
    return pd.DataFrame(table)
