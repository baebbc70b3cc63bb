"""Columns of dates: days since 1970, and their form in the table."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pyro_mdm.support.checks import DataError
from pyro_mdm.tables.columns.base import EVERYWHERE, Center, Column, ColumnSpec, Mask, Values
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.columns.numbers import Continuous, Integer

__all__ = ["DAY", "DateForm", "Dates", "days_of"]

ISO = r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?)?"
"""The pattern of a date in text, with or without a time of day, without a time zone."""

DAY = 86_400_000_000
"""The number of microseconds of a day."""
STEPS = (DAY, 60_000_000, 1_000_000, 1_000, 1)
"""The steps of dates, in microseconds: a day, a minute, a second, a millisecond, a microsecond."""
FIRST, LAST = -719_162, 2_932_896
"""The first day of the year 1 and the last of 9999, in days since 1970: those of datetime
objects."""
REACH = 106_000
"""The most days from 1970 that nanoseconds hold in 64 bits, rounded down."""


def days_of(values: pd.Series) -> Values:
    """Days since 1970 of dates, (n,) float64, NaN where missing or not a date."""
    stamps = values
    if pd.api.types.infer_dtype(values, skipna=True) in ("date", "datetime"):
        stamps = pd.to_datetime(values, errors="coerce")
    elif not pd.api.types.is_datetime64_any_dtype(values):
        text = values.astype(object).map(str, na_action="ignore")
        iso = text.map(lambda text: re.fullmatch(ISO, text) is not None, na_action="ignore")
        text = text.where(iso.eq(True))
        stamps = pd.to_datetime(text, format="ISO8601", errors="coerce")
    if getattr(stamps.dtype, "tz", None) is not None:
        stamps = stamps.dt.tz_localize(None)  # the local time, which a date means
    days = (stamps - pd.Timestamp(0)) / pd.Timedelta(days=1)
    return np.asarray(days.to_numpy(dtype=np.float64, na_value=np.nan))


class DateForm(NamedTuple):
    """The form of the dates of a column."""

    dtype: str | None  # the datetime64 type of the column; None: objects or text
    pattern: str | None  # of text, as for strftime; None: objects
    step: int  # the number of microseconds that all dates are multiples of

    @classmethod
    def from_values(cls, values: pd.Series) -> DateForm:
        """The form of a column of dates."""
        there = values.dropna()
        micros = np.round(days_of(there) * DAY)
        step = next(step for step in STEPS if (micros % step == 0).all())
        if pd.api.types.is_datetime64_any_dtype(values):
            return cls(str(values.dtype), None, step)
        if not isinstance(there.iloc[0], str):
            return cls(None, None, step)
        longest = str(max(there, key=len))
        pattern = "%Y-%m-%d"
        if len(longest) > 10:
            pattern += longest[10] + "%H:%M" + (":%S" if len(longest) > 16 else "")
        return cls(None, pattern + (".%f" if len(longest) > 19 else ""), step)

    def dates(self, days: Values) -> Values | pd.Index:
        """Dates in this form, (n,), of days since 1970, (n,), rounded to the step."""
        first, last = (-REACH, REACH) if "[ns" in (self.dtype or "") else (FIRST, LAST)
        micros = np.round(days.clip(first, last) * (DAY / self.step)) * self.step
        stamps = pd.DatetimeIndex(micros.astype(np.int64).astype("datetime64[us]"))
        if self.dtype is not None:
            dtype = pd.api.types.pandas_dtype(self.dtype)
            if (zone := getattr(dtype, "tz", None)) is not None:
                early = np.ones(len(stamps), bool)  # of the two times where a clock is put back
                stamps = stamps.tz_localize(zone, ambiguous=early, nonexistent="shift_forward")
            return stamps.astype(dtype)
        if self.pattern is None:
            whole = self.step == DAY
            return np.array([s.date() if whole else s.to_pydatetime() for s in stamps], object)
        return stamps.strftime(self.pattern).to_numpy(dtype=object)


class Dates(Column):
    """A column of dates: a probability of each day, or a density if they have a time of day.

    Codes are days since 1970. Values have the form of the table.

    Args:
        name, values, train: as for :meth:`Column.fit`.

    Raises:
        DataError: a value that is no date.
    """

    kind = "date"
    noisy = True

    def __init__(self, name: str, values: pd.Series, train: Mask) -> None:
        super().__init__(name)
        days = days_of(values)
        if (wrong := np.isnan(days) & values.notna().to_numpy()).any():
            some = "such as 2024-12-31 or 2024-12-31 23:59"
            raise DataError(_no_date(name, values[wrong].iloc[0], some))
        self._form = DateForm.from_values(values)
        ends = np.array([np.nanmin(days), np.nanmax(days)])
        self._first, self._last = map(str, self._form.dates(ends))
        self._line: Continuous = (
            Integer(name, days[train], days, EVERYWHERE)
            if self._form.step == DAY
            else Continuous(name, days[train])
        )

    @classmethod
    def recognizes(cls, values: pd.Series) -> bool:
        """Whether values are dates by their type, or each by itself, an object or ISO text."""
        if pd.api.types.infer_dtype(values, skipna=True) in ("date", "datetime", "datetime64"):
            return True
        there = values.dropna()
        if isinstance(values.dtype, pd.CategoricalDtype) or not len(there):
            return False
        first = there.iloc[0]
        is_iso = isinstance(first, str) and re.fullmatch(ISO, first) is not None
        return is_iso and not np.isnan(days_of(there)).any()

    @classmethod
    def fit(cls, name: str, values: pd.Series, train: Mask, spec: ColumnSpec) -> Column:
        return cls(name, values, train)

    def read(self, values: pd.Series) -> Values:
        days = days_of(values)
        if self._form.step == DAY and getattr(values.dtype, "tz", None) is not None:
            days = np.floor(days)  # a day whose clock was put forward at midnight begins later
        return self._line.read(pd.Series(days))

    def refusal(self, value: object) -> str:
        day = ", without a time of day" if self._form.step == DAY else ""
        return _no_date(self.name, value, f"such as {self._first}{day}")

    def values(self, codes: Values) -> Values | pd.Index:
        return self._form.dates(codes)

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._line.scaled(codes, noise)

    def unscaled(self, x: Tensor) -> Tensor:
        return self._line.unscaled(x)

    def center(self, draws: Values, center: Center) -> Values:
        days = np.stack([days_of(pd.Series(row)) for row in draws])
        return np.asarray(self.values(self._line.center(days, center)))

    @property
    def in_words(self) -> str:
        what = "a probability of each day" if self._form.step == DAY else "a density"
        low, high = map(math.isfinite, self._line.edges)
        ends = (
            f", none drawn before {self._first}" * low + f", none drawn after {self._last}" * high
        )
        return f"date: {what}, {self._first} to {self._last} in the table{ends}"


def _no_date(name: str, value: object, such: str) -> str:
    """The message for a value that is no date in a column of dates."""
    return (
        f"column {name!r} holds {str(value)!r}, expected a date {such}; correct it, or leave the "
        "entry empty"
    )
