"""What numbers of a column say of it: which repeat, what they are rounded to, and doubts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyro_mdm.tables.columns.base import Values

if TYPE_CHECKING:
    from pandas import Series

__all__ = [
    "DECIMALS",
    "FEW",
    "REPEATS",
    "SHARE",
    "STEPS",
    "atoms_of",
    "decimals_of",
    "far_nines",
    "finite_of",
    "is_name_of_codes",
    "may_be_names",
]

FEW = 20
"""The most distinct whole numbers of an ordinal column, by default."""

REPEATS, SHARE, CHANCE = 5, 0.02, 1e-3
"""How often a number is there at least, and in which part of the rows, to be an atom; and how
improbable that is by chance in a column."""
DECIMALS = 6
"""The most digits behind the point of a rounded column."""
STEPS = 10_000
"""The most steps of its last digit from the least to the greatest number of a column that is taken
for rounded, though few of its numbers repeat."""
WHOLE = 2.0**53
"""Whole numbers from which on float64 does not have them all."""

CODES = {"code", "codes", "id", "ids", "key", "phone", "postal", "postcode", "zip", "zipcode"}
"""Words in names of columns whose numbers are names."""


def finite_of(values: Series[Any]) -> Values:
    """Numbers of a column that are there, float64; none where it has others, or infinite ones."""
    import pandas as pd

    none = np.empty(0)
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return none
    numbers = pd.to_numeric(values.dropna()).to_numpy(dtype=np.float64)
    return none if np.isinf(numbers).any() else numbers


def atoms_of(values: Values) -> Values:
    """Numbers that repeat more often than a density can explain, in order.

    They are those which at least 5 values and 2% of all values are, unless the others mostly repeat
    too: these are rounded then, and none is an atom. Where numbers are rounded and not so often
    alike, none is an atom either that as many values might be by chance, at 0.1% for the column.
    """
    numbers, counts = np.unique(values, return_counts=True)
    often = counts >= max(REPEATS, SHARE * len(values))
    others = counts[~often]
    if not 2 * len(others) >= others.sum() > 0:
        return numbers[:0]
    decimals = decimals_of(values)
    if decimals is None:
        return numbers[often]
    reach, step = values.std() / 5, 10.0**-decimals
    chance = [
        _more_than_chance(int(n), ((np.abs(values - a) <= reach).sum() - n) * step / (2 * reach))
        for a, n in zip(numbers[often], counts[often], strict=True)
    ]
    return numbers[often][np.array(chance) * len(numbers) < CHANCE]


def _more_than_chance(count: int, expected: float) -> float:
    """P(N >= count) of a Poisson number N."""
    both = torch.tensor([count, expected], dtype=torch.float64)
    return float(torch.special.gammainc(*both))


def decimals_of(values: Values) -> int | None:
    """Decimals that numbers are rounded to, NaN left out; None: more than :data:`DECIMALS`."""
    there = values[~np.isnan(values)]
    for decimals in range(DECIMALS + 1):
        small = bool((np.abs(there) * 10.0**decimals < WHOLE).all())
        if small and bool((np.round(there, decimals) == there).all()):
            return decimals
    return None


def far_nines(numbers: Values) -> list[str]:
    """The doubt that 999 or so stands for a missing entry, in words, if there is reason for it."""
    doubts = []
    distinct, counts = np.unique(numbers, return_counts=True)
    for number, next_one in ((distinct[0], distinct[1]), (distinct[-1], distinct[-2])):
        rest = distinct[distinct != number]
        nines = set(f"{abs(number):.0f}") == {"9"} and abs(number) >= 99
        often = int(counts[distinct == number][0])
        if nines and often >= 3 and abs(number - next_one) > rest.max() - rest.min():
            doubts.append(
                f"{number:g} is there {often} times, far from all others; leave it empty if it "
                "stands for a missing entry"
            )
    return doubts


def may_be_names(name: str) -> list[str]:
    """The doubt that numbers of a column are names, in words."""
    return [
        f"its numbers may be names, which have no order; say --columns {name}=categorical, or "
        f"{name}=drop"
    ]


def is_name_of_codes(name: str) -> bool:
    """Whether numbers of a column of this name are names."""
    return any(word.lower() in CODES for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))
