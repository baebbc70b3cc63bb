"""Doubts on the values of a column whose kind is inferred, in words, with a remedy each."""

from __future__ import annotations

import re

import numpy as np

from pyro_mdm.tables.columns.base import Values
from pyro_mdm.tables.columns.dates import Dates
from pyro_mdm.tables.columns.kinds import KINDS
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.columns.levels import Boolean, Ordinal, some
from pyro_mdm.tables.columns.numbers import Integer
from pyro_mdm.tables.columns.scales import FEW

__all__ = ["doubts_of", "marks_of"]

MOSTLY = 0.8
"""The fraction of numbers, or of dates, in a text column above which its kind is doubted."""
LOOKED_AT = 1000
"""The most values of a text column that are read as dates."""
EMPTY = {*"?-.", "", "--", "n/a", "#n/a", "n.a.", "na", "nan", "none", "null", "missing"}
"""Texts that stand for a missing entry, in lower case."""
MARKS = "9+[6-9]|7+|8+|9+"
"""The digits of numbers that stand for missing entries, such as 99, 998, 88 and 9."""
LEAST = 3
"""The fewest such numbers in a column, and their least distance from its other levels, in gaps
between these."""
CODES = {"code", "codes", "id", "ids", "key", "phone", "postal", "postcode", "zip", "zipcode"}
"""Words in names of columns whose numbers are identifiers."""
STYLES = {
    r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?": 'thousands=","',
    r"[+-]?\d{1,3}(\.\d{3})*,\d+|[+-]?\d+,\d+": 'decimal=","',
}
"""Patterns of numbers in text, with the option of pandas.read_csv that reads them."""
DAYS = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%Y-%m-%d", "%Y/%m/%d", "%d %b %Y")
FORMATS = [f"{day}{time}" for time in ("", " %H:%M", " %H:%M:%S") for day in DAYS]
FORMATS += ["%H:%M", "%H:%M:%S"]
"""Forms of dates and times in text."""


def doubts_of(name: str, values: pd.Series, kind: str) -> list[str]:
    """Doubts on the values of a column and on its inferred kind, in words."""
    there, doubts = values.dropna(), []
    if pd.api.types.is_numeric_dtype(there) and not pd.api.types.is_bool_dtype(there):
        marks = marks_of(there.to_numpy(dtype=np.float64))
        marked = there.isin(marks)
        if len(marks):
            doubts.append(
                f"{' and '.join(f'{mark:g}' for mark in marks)}, there {int(marked.sum())} times, "
                "is apart from all others; leave it empty if it stands for a missing entry"
            )
        doubts += _doubts_of_codes(name, there[~marked].to_numpy(dtype=np.float64), kind)
    elif kind not in (Dates.kind, Boolean.kind):
        doubts += _text_doubts(there)
    return doubts + KINDS[kind].doubts(name, there)


def marks_of(numbers: Values) -> Values:
    """Numbers among (n,) that may stand for missing entries, in order: 9s and the like at an end.

    They are there three times at least, and farther from the others than these from each other, or
    negative and no other is, or three gaps of its levels from a column of levels.
    """
    distinct, counts = np.unique(numbers, return_counts=True)
    for order in (slice(None), slice(None, None, -1)):
        ends, often = distinct[order], counts[order]
        is_mark = [bool(re.fullmatch(MARKS, f"{abs(w):g}".replace(".", ""))) for w in ends]
        number = [*is_mark, False].index(False)
        rest, least = ends[number:], abs(ends[0]) if len(ends) else 0
        if len(rest) < 2 or not LEAST <= often[:number].sum() < often[number:].sum():
            continue
        away, gaps = abs(ends[number - 1] - rest[0]), np.abs(np.diff(rest))
        levels = len(rest) <= FEW and len(rest) >= (2 if least > 9 else LEAST)
        far = least > 9 and away > abs(rest[-1] - rest[0])
        apart = levels and away >= LEAST * gaps.max()
        if far or apart or (ends[0] < 0 <= rest.min()):
            return np.sort(ends[:number])
    return distinct[:0]


def _doubts_of_codes(name: str, numbers: Values, kind: str) -> list[str]:
    """The doubt that whole numbers, (n,), are identifiers or a key."""
    distinct = np.unique(numbers)
    if kind not in (Integer.kind, Ordinal.kind) or (distinct != distinct.round()).any():
        return []
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    few = 2 < len(distinct) <= min(FEW, len(numbers) / 10)
    if CODES & {word.lower() for word in words} or (few and np.ptp(distinct) > 10 * len(distinct)):
        return [
            "its numbers may be names, which have no order; say "
            f'columns="{name}=categorical", or "{name}=drop"'
        ]
    if kind == Integer.kind and (np.diff(numbers) > 0).all():
        return [
            f'its numbers increase from row to row, as in a key; say columns="{name}=drop" if so'
        ]
    return []


def _text_doubts(values: pd.Series) -> list[str]:
    """Doubts on values that are no numbers."""
    written = values.astype(str)
    text = written.str.strip()
    if not isinstance(values.dtype, pd.CategoricalDtype):
        bare = text.str.replace(r"[,'%$€£_\s]", "", regex=True)
        number = pd.to_numeric(bare, errors="coerce").notna() & ~text.str.fullmatch(r"0\d+")
        if number.mean() >= MOSTLY:
            dressed = text[number & pd.to_numeric(text, errors="coerce").isna()]
            fixes = [f"write {dressed.iloc[0]!r} as a plain number"] if len(dressed) else []
            for style, option in STYLES.items():
                if len(dressed) and dressed.str.fullmatch(style).all():
                    fixes = [f"{fixes[0]}, as pandas.read_csv(…, {option}) does"]
                    break
            if not number.all():
                fixes.append(f"leave {_quoted(text[~number])} empty")
            fix = " and ".join(fixes) or "store them as numbers, as pandas.to_numeric does"
            return [f"{number.mean():.0%} of its values are numbers in text; {fix}"]
        some = text.head(LOOKED_AT)
        dates = {form: pd.to_datetime(some, format=form, errors="coerce") for form in FORMATS}
        read = [form for form, days in dates.items() if days.notna().mean() >= MOSTLY]
        if read:
            return [
                f"its values are dates or times in text, such as {text.iloc[0]!r}; read them by "
                f"pandas.to_datetime(…, format={' or '.join(map(repr, read))}, errors='coerce')"
            ]
    empty = text[text.str.lower().isin(EMPTY) | text.str.fullmatch(r"-?9{2,}(\.0*)?")]
    doubts = []
    if len(empty):
        words = "is a category; leave it empty if it stands for a missing entry"
        doubts += [f"{_quoted(empty)} {words}"]
    if text.nunique() < written.nunique():
        doubts += ["some categories differ by blanks at their ends alone; .str.strip() joins them"]
    return doubts


def _quoted(values: pd.Series) -> str:
    """Some distinct values in words."""
    return some(map(repr, values.unique()[:4]), 3)
