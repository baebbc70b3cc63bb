"""Properties of the numbers of a column: repeated ones, their rounding, and sharp ends."""

from __future__ import annotations

import math

import numpy as np

from pyro_mdm.tables.columns.base import EVERYWHERE, WHOLE, Ends, Values
from pyro_mdm.tables.columns.lazy import pd

__all__ = [
    "DECIMALS",
    "FEW",
    "REPEATS",
    "SHARE",
    "STEPS",
    "atoms_of",
    "decimals_of",
    "edges_of",
    "finite_of",
    "multiple_of",
]

FEW = 20
"""The most distinct whole numbers of an ordinal column, by default."""

REPEATS, SHARE, CHANCE = 5, 0.02, 1e-3
"""The least count of an atom, its least fraction of the rows, and the largest probability of such
counts, or of a common divisor, by chance in a column."""
DECIMALS = 6
"""The most decimals of a rounded column."""
STEPS = 10_000
"""The most steps of the last decimal between the least and the largest number of a column that is
inferred to be rounded though few of its numbers repeat."""

FEWEST, SHARP = 100, 0.4
"""The fewest values of which an end is inferred, and the least density there, of the largest."""


def finite_of(values: pd.Series) -> Values:
    """The present numbers of a column, float64; empty if it has other values, or infinite ones."""
    none = np.empty(0)
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return none
    numbers = pd.to_numeric(values.dropna()).to_numpy(dtype=np.float64)
    return none if np.isinf(numbers).any() else numbers


def atoms_of(values: Values) -> Values:
    """Numbers among (n,) that repeat more often than a density can explain, in order.

    They are at least 5 values and 2% of all. If the others mostly repeat too, numbers are rounded,
    and none is an atom. If numbers are rounded and others seldom repeat, none is an atom whose
    count might be chance, at 0.1% for the column.
    """
    numbers, counts = np.unique(values, return_counts=True)
    often = counts >= max(REPEATS, SHARE * len(values))
    others = counts[~often]
    if not 2 * len(others) >= others.sum() > 0:
        return numbers[:0]
    decimals = decimals_of(values)
    if decimals is None:
        return numbers[often]
    from scipy.stats import poisson

    # expected counts by the density within a fifth of a standard deviation
    reach, step = values.std() / 5, 10.0**-decimals
    near = np.array([(np.abs(values - atom) <= reach).sum() for atom in numbers[often]])
    chance = poisson.sf(counts[often] - 1, (near - counts[often]) * step / (2 * reach))
    return numbers[often][chance * len(numbers) < CHANCE]


def decimals_of(values: Values) -> int | None:
    """The number of decimals that numbers, (n,), are rounded to; None: more than
    :data:`DECIMALS`."""
    there = values[~np.isnan(values)]
    for decimals in range(DECIMALS + 1):
        small = bool((np.abs(there) * 10.0**decimals < WHOLE).all())
        if small and bool((np.round(there, decimals) == there).all()):
            return decimals
    return None


def multiple_of(values: Values, decimals: int) -> int:
    """The number of units of the last decimal that numbers, (n,), are multiples of, such as 5 for
    0.5."""
    there = np.unique(values[~np.isnan(values)])
    multiple = int(np.gcd.reduce((there * 10.0**decimals).round().astype(np.int64)))
    return multiple if len(there) * math.log(max(multiple, 1)) > -math.log(CHANCE) else 1


def edges_of(values: Values, step: float = 0.0) -> Ends:
    """The least and the largest of sorted numbers, (n,), where they end at once; infinite where
    they fade.

    They end if the density of the last 1% of the values, ten at least, is 0.4 of the largest one of
    a quarter of them. A least number that is close to 0 is no such end, but 0 is. Equal numbers are
    spread over their step, if they are rounded.
    """
    number, near = len(values), max(10, len(values) // 100)
    if number < FEWEST:
        return EVERYWHERE
    places = np.arange(number)
    first, last = np.searchsorted(values, values), np.searchsorted(values, values, "right")
    spread = values + step * ((places - first + 0.5) / (last - first) - 0.5)
    quarter = number // 4
    peak = quarter / max((spread[quarter:] - spread[:-quarter]).min(), np.finfo(float).tiny)
    ends = spread[near] - spread[0], spread[-1] - spread[-1 - near]
    low, high = (bool(near >= SHARP * peak * end > 0) for end in ends)
    low &= not 0 <= values[0] <= np.ptp(values) / 20
    return float(values[0]) if low else -math.inf, float(values[-1]) if high else math.inf
