"""Gaps of a table: whether they are by chance, and whether the missing values exist at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_mdm.tables.columns.skipped import Rule

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["Pattern", "dependent_gaps", "never_together", "patterns", "skip_rules"]

FALSE_ALARM = 1e-6
"""The largest probability that gaps by chance alone, in any column, count as dependent."""
LEVELS = 20
"""The most levels of a column that are tested, the most frequent ones."""
FEWEST = 10
"""The fewest rows with a gap, and without one, that are tested."""
AUC_ROWS = 3000
"""The most rows that predictions of gaps are fitted to, drawn from all."""
MOST_PATTERNS = 20
"""The most patterns of gaps that are predicted, those with most rows."""


def dependent_gaps(table: DataFrame, names: Sequence[str]) -> dict[str, str]:
    """The columns whose gaps depend on another column, each with the one on which they depend most.

    Scores of a column, in [0, 1], are the ranks of its numbers, the distances of these from the
    middle, and indicators of levels. Were gaps chance, the scores of the g gaps among n rows would
    be a sample without replacement, whose sum differs from g times the mean by t with probability
    at most ``2 exp(-t²/(2(v min(g, n - g) + t/3)))``, with v the variance of scores: Bernstein's
    inequality, which holds without replacement too (Hoeffding, Probability inequalities for sums of
    bounded random variables, 1963, section 6).

    Args:
        table: the rows.
        names: the names of the columns that are tested.

    Returns:
        Names of columns, by the names of columns with gaps.
    """
    scores = {name: list(_scores(table[name])) for name in names}
    gaps = {name: table[name].isna().to_numpy() for name in names}
    gaps = {name: gone for name, gone in gaps.items() if gone.any() and not gone.all()}
    tests = len(gaps) * sum(map(len, scores.values()))
    depends: dict[str, str] = {}
    for name, gone in gaps.items():
        exponents = {
            other: max(_exponent(gone, score) for score in others_scores)
            for other, others_scores in scores.items()
            if other != name and others_scores
        }
        most = max(exponents, key=lambda other: exponents[other], default=None)
        if most is not None and exponents[most] > math.log(2 * tests / FALSE_ALARM):
            depends[name] = most
    return depends


def _scores(values: Series[Any]) -> Iterator[NDArray[np.float64]]:
    """Scores of a column, (n,) each, in [0, 1], NaN where the value is missing."""
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


class Pattern(NamedTuple):
    """Columns that are empty in the same rows.

    These rows are predicted by the other columns, with the area ``auc`` under the ROC curve on rows
    that the prediction was not fitted to; it is NaN where too few rows are empty, or are not.
    """

    columns: list[str]  # the names of the columns
    rows: int  # the number of rows where they are empty
    total: int  # the number of all rows
    auc: float
    error: float  # the standard error of auc
    depends_on: str | None  # the column on which the pattern depends most, if on any
    rule: Rule | None  # the rule by which they do not exist there; None: they exist, and are hidden
    unseen: Rule | None  # the values of another column with which no row has an entry

    @property
    def in_words(self) -> str:
        names = ", ".join(self.columns[:4]) + (", …" if len(self.columns) > 4 else "")
        where = f"{names}: empty in {self.rows:,} of {self.total:,} rows"
        auc = "" if math.isnan(self.auc) else f" (AUC {self.auc:.2f} ± {self.error:.2f})"
        name = self.columns[0]
        if self.rule is not None:
            return (
                f"{where}; taken as absent {self.rule.in_words}{auc}; say {name}=mar if it is "
                "hidden there"
            )
        if self.unseen is not None:
            return (
                f"{where}; no row has it {self.unseen.in_words}{auc}, so that what it is there is "
                f"extrapolated, and no data can say whether rightly; say {name}=absent if it does "
                "not exist there"
            )
        if self.depends_on is not None:
            return (
                f"{where}, which depends on {self.depends_on!r}{auc}; taken as hidden, given what "
                f"is there at random; say {name}=absent if it does not exist there"
            )
        return f"{where}; no other column tells which{auc}"


def patterns(
    table: DataFrame, names: Sequence[str], rules: Mapping[str, Rule | None]
) -> list[Pattern]:
    """The patterns of gaps in a table, those with most rows first.

    Args:
        table: the rows.
        names: the names of the columns that are examined.
        rules: the rules of columns that do not exist for some rows, by name.
    """
    unseen = skip_rules(table, names, np.ones(len(table), dtype=np.bool_))
    depends, groups = dependent_gaps(table, names), _alike(table, names)
    result = []
    for number, columns in enumerate(groups):
        gone = table[columns[0]].isna().to_numpy()
        others = [name for name in names if name not in columns]
        auc, error = _auc(table[others], gone) if number < MOST_PATTERNS else (math.nan, math.nan)
        on, rule = depends.get(columns[0]), rules.get(columns[0])
        rows, none = int(gone.sum()), unseen.get(columns[0])
        result.append(Pattern(columns, rows, len(table), auc, error, on, rule, none))
    return result


def never_together(table: DataFrame, names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of columns of which no row has both."""
    there = table[[*names]].notna().to_numpy(dtype=np.float64)
    i, j = np.triu(there.T @ there == 0, 1).nonzero()
    return [(names[a], names[b]) for a, b in zip(i, j, strict=True)]


def _alike(table: DataFrame, names: Sequence[str]) -> list[list[str]]:
    """The names of columns with gaps, grouped by the rows where they have them."""
    groups: dict[bytes, list[str]] = {}
    for name in names:
        gone = table[name].isna().to_numpy()
        if gone.any() and not gone.all():
            groups.setdefault(gone.tobytes(), []).append(name)
    return sorted(groups.values(), key=lambda columns: -int(table[columns[0]].isna().sum()))


def skip_rules(table: DataFrame, names: Sequence[str], train: NDArray[np.bool_]) -> dict[str, Rule]:
    """Rules by which columns do not exist for some rows.

    A rule is the values of another column at which a column is always empty, while elsewhere it
    mostly is not. If a fraction r of the rows elsewhere is empty, n rows at these values are so by
    chance with probability rⁿ; the column counts as absent where that is below ``FALSE_ALARM`` for
    all tests together. Only levels and repeated numbers are tested: a column that is empty beyond
    some number is rather hidden.

    Args:
        table: the table, with all rows.
        names: the names of the columns that are tested.
        train: the mask of the training rows, (n,), which alone count.

    Returns:
        Rules by the names of columns.
    """
    rows = table[train]
    rules: dict[str, Rule] = {}
    for columns in _alike(rows, names):
        gone = rows[columns[0]].isna().to_numpy()
        tried = []
        for other in names:
            if other in columns or (rule := _rule(gone, rows[other], len(names))) is None:
                continue
            explained = int((gone & rows[other].isin([*rule.values]).to_numpy()).sum())
            tried.append((explained, -len(rule.values), other, rule))
        if tried:
            # most gaps explained, then fewest values
            best = max(tried, key=lambda candidate: candidate[:2])[-1]
            rules |= dict.fromkeys(columns, best)
    return rules


def _rule(gone: NDArray[np.bool_], values: Series[Any], number: int) -> Rule | None:
    """The rule by which values of another column make entries absent, if there is one."""
    there, counts = values.notna().to_numpy(), values.value_counts()
    if values.dtype.kind == "M":
        return None
    levels = counts.index[:LEVELS] if len(counts) <= LEVELS else counts.index[counts >= FEWEST]
    if not len(levels) or len(levels) > 5 * LEVELS:
        return None
    empty = [level for level in levels if gone[(values == level).fillna(False).to_numpy()].all()]
    where = values.isin(empty).to_numpy()
    elsewhere = there & ~where
    n, rest = int(where.sum()), int(elsewhere.sum())
    if n < FEWEST or rest < FEWEST or 2 * int((gone & where).sum()) < int(gone.sum()):
        return None
    share = (int(gone[elsewhere].sum()) + 1) / (rest + 2)  # never 0 or 1
    # any subset of the levels might have been the rule, in any pair of columns
    if n * math.log(share) > math.log(FALSE_ALARM / (number**2 * 2 ** min(len(levels), 60))):
        return None
    exact = not gone[elsewhere].any()
    return Rule(str(values.name), tuple(empty), exact)


def _auc(table: DataFrame, gone: NDArray[np.bool_]) -> tuple[float, float]:
    """The area under the ROC curve of a prediction of gaps by trees, by folds, and its error.

    The error is that of Hanley & McNeil, The meaning and use of the area under a receiver operating
    characteristic (ROC) curve, Radiology 1982.
    """
    import pandas as pd
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    if len(gone) > AUC_ROWS:
        chosen = np.random.default_rng(0).choice(len(gone), AUC_ROWS, replace=False)
        table, gone = table.iloc[chosen], gone[chosen]
    positive, negative = int(gone.sum()), int((~gone).sum())
    if min(positive, negative) < FEWEST or not table.shape[1]:
        return math.nan, math.nan
    codes = {}
    for name in table.columns:
        values = table[name]
        if isinstance(values.dtype, pd.CategoricalDtype) or values.dtype.kind not in "iufM":
            places = pd.factorize(values)[0].astype(float)
            codes[name] = np.where(places < 0, math.nan, places)
        else:
            codes[name] = pd.to_numeric(values).to_numpy(dtype=float, na_value=math.nan)
    trees = HistGradientBoostingClassifier(max_iter=50, random_state=0)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    predicted = cross_val_predict(
        trees, np.stack([*codes.values()], 1), gone, cv=folds, method="predict_proba"
    )[:, 1]
    a = float(roc_auc_score(gone, predicted))
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    spread = a * (1 - a) + (positive - 1) * (q1 - a * a) + (negative - 1) * (q2 - a * a)
    return a, math.sqrt(max(spread, 0.0) / (positive * negative))
