"""Dates in a column of a table, as days since 1970 and in the form that the table has them."""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import Series

__all__ = ["DAY", "DateForm", "days_of", "is_dates"]

ISO = r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?)?"
"""A date in text, with or without a time of day, in no time zone."""

DAY = 86_400_000_000
"""Microseconds of a day."""
STEPS = (DAY, 60_000_000, 1_000_000, 1_000, 1)
"""What dates are multiples of: a day, a minute, a second, a millisecond or a microsecond."""
FIRST, LAST = -719_162, 2_932_896
"""The days of the years 1 and 9999; of nanoseconds in 64 bits, :data:`REACH` around 1970."""
REACH = 106_000

Values = NDArray[Any]


def is_dates(values: Series[Any]) -> bool:
    """Whether a column has dates: by its type, or because each value is such an object or text."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(values):
        return True
    if isinstance(values.dtype, pd.CategoricalDtype) or pd.api.types.is_numeric_dtype(values):
        return False
    known = values.dropna()
    if len(known) == 0:
        return False
    if isinstance(known.iloc[0], datetime.date):
        return pd.api.types.infer_dtype(known) in ("date", "datetime")
    if not (isinstance(known.iloc[0], str) and re.fullmatch(ISO, known.iloc[0])):
        return False
    return not np.isnan(days_of(known)).any()


def days_of(values: Series[Any]) -> Values:
    """Days since 1970 of dates, (n,) float64, NaN where there is none or it is no date."""
    import pandas as pd

    stamps = values
    if pd.api.types.infer_dtype(values, skipna=True) in ("date", "datetime"):
        stamps = pd.to_datetime(values, errors="coerce")
    elif not pd.api.types.is_datetime64_any_dtype(values):
        text = values.astype(object).map(str, na_action="ignore")
        iso = text.map(lambda one: re.fullmatch(ISO, one) is not None, na_action="ignore")
        text = text.where(iso.eq(True))
        stamps = pd.to_datetime(text, format="ISO8601", errors="coerce")
    if getattr(stamps.dtype, "tz", None) is not None:
        stamps = stamps.dt.tz_localize(None)  # as the clocks there show it
    days = (stamps - pd.Timestamp(0)) / pd.Timedelta(days=1)
    return np.asarray(days.to_numpy(dtype=np.float64, na_value=np.nan))


class DateForm(NamedTuple):
    """The form of the dates of a column.

    Attributes:
        dtype: of a column of type datetime64, else None.
        pattern: of text, as ``strftime`` has it; None: they are objects.
        step: microseconds that all dates are multiples of.
    """

    dtype: Any
    pattern: str | None
    step: int

    @classmethod
    def of(cls, values: Series[Any]) -> DateForm:
        """The form of a column of dates."""
        import pandas as pd

        known = values.dropna()
        micros = np.round(days_of(known) * DAY)
        step = next(step for step in STEPS if (micros % step == 0).all())
        if pd.api.types.is_datetime64_any_dtype(values):
            return cls(values.dtype, None, step)
        if not isinstance(known.iloc[0], str):
            return cls(None, None, step)
        longest = str(max(known, key=len))
        pattern = "%Y-%m-%d"
        if len(longest) > 10:
            pattern += longest[10] + "%H:%M" + (":%S" if len(longest) > 16 else "")
        return cls(None, pattern + (".%f" if len(longest) > 19 else ""), step)

    def dates(self, days: Values) -> Any:
        """The dates of days (n,), to the step, in this form."""
        import pandas as pd

        of_nanoseconds = self.dtype is not None and "[ns" in str(self.dtype)
        first, last = (-REACH, REACH) if of_nanoseconds else (FIRST, LAST)
        micros = np.round(days.clip(first, last) * (DAY / self.step)) * self.step
        stamps = pd.DatetimeIndex(micros.astype(np.int64).astype("datetime64[us]"))
        if self.dtype is not None:
            if (zone := getattr(self.dtype, "tz", None)) is not None:
                first_of_two = np.ones(len(stamps), bool)
                stamps = stamps.tz_localize(
                    zone, ambiguous=first_of_two, nonexistent="shift_forward"
                )
            return stamps.astype(self.dtype)
        if self.pattern is None:
            whole = self.step == DAY
            return np.array([s.date() if whole else s.to_pydatetime() for s in stamps], object)
        return stamps.strftime(self.pattern).to_numpy(dtype=object)
