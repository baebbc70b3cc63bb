"""Gaps of a table that are not chance: entries that are missing where others have certain values.

A network that is told which entries are there learns the law of the rows that it saw so. Where
gaps depend on values that is not one joint law of all rows, see docs/guide/conditioning.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame, Series

FALSE_ALARM = 1e-6
"""The most probability that gaps by chance alone, in any column, count as depending on another."""
LEVELS = 20
"""The most levels of a column that are looked at, the most frequent ones."""


def dependent_gaps(table: DataFrame, names: Sequence[str]) -> dict[str, str]:
    """The other column on which the gaps of a column depend most, for those where they do.

    Scores of a column, in [0, 1], are the ranks of its numbers, how far these are from the middle,
    and whether a level holds. Were gaps chance, those of g among n rows would be a sample without
    replacement, whose sum differs from g times the mean by t with probability at most
    2 exp(-t²/(2(v min(g, n - g) + t/3))), v the variance of scores: Bernstein's inequality, which
    holds without replacement too (Hoeffding, Probability inequalities for sums of bounded random
    variables, 1963, section 6).

    Args:
        table: the rows.
        names: the columns that are looked at.
    """
    scores = {name: list(_scores(table[name])) for name in names}
    gaps = {name: table[name].isna().to_numpy() for name in names}
    gaps = {name: gone for name, gone in gaps.items() if gone.any() and not gone.all()}
    tests = len(gaps) * sum(map(len, scores.values()))
    found: dict[str, str] = {}
    for name, gone in gaps.items():
        exponents = {
            other: max(_exponent(gone, score) for score in of_other)
            for other, of_other in scores.items()
            if other != name and of_other
        }
        most = max(exponents, key=lambda other: exponents[other], default=None)
        if most is not None and exponents[most] > math.log(2 * tests / FALSE_ALARM):
            found[name] = most
    return found


def _scores(values: Series[Any]) -> Iterator[NDArray[np.float64]]:
    """Scores (n,) in [0, 1], NaN where the value is missing."""
    import pandas as pd

    there = values.notna().to_numpy()
    if isinstance(values.dtype, pd.CategoricalDtype) or values.dtype.kind not in "iufM":
        for level in values.value_counts().index[:LEVELS]:
            yield np.where(there, (values == level).fillna(False).to_numpy(dtype=float), math.nan)
        return
    ranks = values.rank(pct=True).to_numpy(dtype=float)
    yield ranks
    yield np.abs(2 * ranks - 1)


def _exponent(gone: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Minus the logarithm of Bernstein's bound, without its factor 2."""
    there = ~np.isnan(score)
    score, gone = score[there], gone[there]
    few = min(int(gone.sum()), int((~gone).sum()))
    if few == 0:
        return 0.0
    t = abs(float(score[gone].sum() - gone.sum() * score.mean()))
    return t**2 / (2 * (float(score.var()) * few + t / 3)) if t > 0 else 0.0


def gaps_in_words(dependent: dict[str, str]) -> str:
    """What is wrong where gaps depend on other columns, and what is right all the same."""
    which = "; ".join(f"{name!r} on {other!r}" for name, other in [*dependent.items()][:5])
    more = f" and {len(dependent) - 5} more" if len(dependent) > 5 else ""
    return (
        f"which entries are missing depends on other columns ({which}{more}), where chance was "
        "expected: then a model of incomplete rows has no right joint law. Right is to complete "
        "rows as they are, each given all that it has (impute); not right are new rows (sample), "
        "densities, and columns given some of the others. Leave such a column out (drop), or fill "
        "it where it does not exist for a row: with a category of its own, or a number such as 0"
    )
