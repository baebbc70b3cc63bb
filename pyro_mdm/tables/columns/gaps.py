"""Gaps of a table: whether they are by chance, and whether the missing values exist at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_mdm.tables.columns.base import Column, Values
from pyro_mdm.tables.columns.dates import Dates
from pyro_mdm.tables.columns.levels import Ordinal
from pyro_mdm.tables.columns.skipped import Condition, Rule, Skipped

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
ELSEWHERE = 0.3
"""The largest share of gaps where a column exists."""
NEVER, OFTEN = 0.01, 0.1
"""The shares of entries where a column does not exist, and of gaps elsewhere, by which rules are
compared."""
CHANCE = 1e-3
"""The probability that gaps by chance count as more frequent on one side of a number."""
PAIRED = 8
"""The most columns of which rules of two are searched, those that tell most."""
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
    rule: Rule | None  # the rule by which no row has an entry, if there is one
    absent: bool  # whether they do not exist there, and are not hidden

    @property
    def in_words(self) -> str:
        names = ", ".join(self.columns[:4]) + (", …" if len(self.columns) > 4 else "")
        where = f"{names}: empty in {self.rows:,} of {self.total:,} rows"
        auc = "" if math.isnan(self.auc) else f" (AUC {self.auc:.2f} ± {self.error:.2f})"
        name = self.columns[0]
        if self.rule is not None and self.absent:
            return (
                f"{where}; taken as absent {self.rule.in_words}{auc}; say {name}=mar if it is "
                "hidden there"
            )
        say = f"; say {name}=absent if it does not exist there"
        if self.rule is not None:
            return (
                f"{where}; no row has it {self.rule.in_words}{auc}, so that what it is there is "
                f"extrapolated, and no data can say whether rightly{say}"
            )
        if self.depends_on is not None:
            return (
                f"{where}, which depends on {self.depends_on!r}{auc}; taken as hidden, given what "
                f"is there at random{say}"
            )
        return f"{where}; no other column tells which{auc}"


def patterns(columns: Sequence[Column], table: DataFrame) -> list[Pattern]:
    """The patterns of gaps in a table, those with most rows first.

    Args:
        columns: the columns that are examined, fitted.
        table: the rows.
    """
    names = [column.name for column in columns]
    absent = {column.name: column.rule for column in columns if isinstance(column, Skipped)}
    rules, depends = absent | skip_rules(columns, table), dependent_gaps(table, names)
    result = []
    for number, alike in enumerate(_alike(table, names)):
        gone, name = table[alike[0]].isna().to_numpy(), alike[0]
        others = [c for c in columns if c.name not in alike] if number < MOST_PATTERNS else []
        auc, error = _auc(others, table, gone)
        pattern = Pattern(
            alike,
            int(gone.sum()),
            len(table),
            auc,
            error,
            depends.get(name),
            rules.get(name),
            name in absent,
        )
        result.append(pattern)
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


class _Codes(NamedTuple):
    """The codes of a column of which a rule may consist."""

    column: Column
    codes: Values  # the different ones, sorted, (k,)
    places: NDArray[np.intp]  # the place of each row among them, (n,); k where it is missing

    @classmethod
    def from_values(cls, column: Column, values: Series[Any]) -> _Codes:
        codes = column.read(values)
        distinct, places = np.unique(codes, return_inverse=True)
        distinct = distinct[~np.isnan(distinct)]
        return cls(column, distinct, np.minimum(places, len(distinct)))

    @property
    def is_ordered(self) -> bool:
        return self.column.levels is None or isinstance(self.column, Ordinal)


class _Cut(NamedTuple):
    """Codes of a column at which another may be absent."""

    of: _Codes
    chosen: NDArray[np.bool_]  # of the different codes, (k,)
    is_range: bool  # whether they are those between two ends, or outside of these
    price: float  # minus the logarithm of its share of false alarms, nats

    @property
    def rows(self) -> NDArray[np.bool_]:
        """The mask of the rows with these codes, (n,)."""
        return np.append(self.chosen, False)[self.of.places]

    @property
    def condition(self) -> Condition:
        column, codes, _ = self.of
        if not self.is_range:
            singles = codes[self.chosen].tolist()
            return Condition(column, tuple((one, math.nextafter(one, math.inf)) for one in singles))
        turns = np.flatnonzero(np.diff(self.chosen)) + 1
        ends = [_end(column, codes[i - 1], codes[i]) for i in turns]
        ends = [-math.inf] * bool(self.chosen[0]) + ends + [math.inf] * bool(self.chosen[-1])
        return Condition(column, tuple(zip(ends[::2], ends[1::2], strict=True)))


def _end(column: Column, low: float, high: float) -> float:
    """The roundest number, or date, above one code and up to another."""
    if isinstance(column, Ordinal):
        return float(high)
    if isinstance(column, Dates):
        day = np.datetime64(math.floor(high), "D")
        days = [day.astype(f"M8[{unit}]").astype("M8[D]").astype(float) for unit in "YMD"]
        return float(next((end for end in days if end > low), high))
    first, last = (math.floor(math.log10(x)) for x in (max(-low, high), high - low))
    for step in (
        digit * 10.0**power for power in range(first, last - 1, -1) for digit in (5, 2, 1)
    ):
        end = float(f"{math.floor(high / step) * step:.12g}")
        if low < end <= high:
            return end
    return float(high)


def _best_cut(column: _Codes, weights: Values, priced: bool = True) -> _Cut:
    """The codes with the largest sum of the weights of their rows, less the price.

    Args:
        column: the column.
        weights: the weights of rows, (n,).
        priced: whether the price counts.
    """
    k = len(column.codes)
    sums = np.bincount(column.places, weights, k + 1)[:-1]
    cuts = []
    if not column.is_ordered or k <= LEVELS:
        chosen = sums > (math.log(k) if priced else 0)
        price = math.log(3 * k * math.comb(k, int(chosen.sum())))
        cuts.append((sums[chosen].sum(), _Cut(column, chosen, False, price)))
    if column.is_ordered:
        total = np.append(0.0, sums.cumsum())
        top, bottom = (total - least.accumulate(total) for least in (np.minimum, np.maximum))
        inner, outer = int(top.argmax()), int(bottom.argmin())
        one, two = math.log(6 * k), math.log(3 * k * (k + 1))
        for i, j, outside, price in (
            (0, int(total[1:].argmax()) + 1, False, one),
            (int(total[:-1].argmin()), k, False, one),
            (int(total[: inner + 1].argmin()), inner, False, two),
            (int(total[: outer + 1].argmax()), outer, True, two),
        ):
            chosen = np.full(k, outside)
            chosen[i:j] = not outside
            cuts.append((sums[chosen].sum(), _Cut(column, chosen, True, price)))
    return max(cuts, key=lambda cut: cut[0] - priced * cut[1].price)[1]


def skip_rules(columns: Sequence[Column], table: DataFrame) -> dict[str, Rule]:
    """Rules by which columns do not exist for some rows.

    A rule is a condition on another column, or two of which both or either must hold: levels, or
    numbers, dates or ordered levels below, from, between or outside of ends. A column is empty
    where it holds, but for a hundredth of the rows, and elsewhere as entries are missing by chance:
    in at most ``ELSEWHERE`` of the rows, which are at most a third of its empty entries, and no
    more often near an end than far from it.

    Were gaps chance, which of the n rows are the g with a gap would not depend on a rule, and m
    rows where it holds had j gaps or more with the probability of a hypergeometric distribution.
    That is held to ``FALSE_ALARM`` times the share of the rule, where the shares of all rules that
    are searched, for all columns, are at most 1 together.

    Args:
        columns: the columns, fitted; those that are known not to exist for some rows have no rule.
        table: the rows that count.

    Returns:
        Rules by the names of columns.
    """
    plain = [column.column if isinstance(column, Skipped) else column for column in columns]
    codes = {column.name: _Codes.from_values(column, table[column.name]) for column in plain}
    codes = {name: column for name, column in codes.items() if len(column.codes) > 1}
    open_ones = [column.name for column in columns if not isinstance(column, Skipped)]
    rules: dict[str, Rule] = {}
    groups = _alike(table, open_ones)
    for names in groups:
        gone = table[names[0]].isna().to_numpy()
        few = min(int(gone.sum()), int((~gone).sum()))
        others = [column for name, column in codes.items() if name not in names]
        price = math.log(4 * len(groups) * max(len(others), 1) ** 2 / FALSE_ALARM)
        if few >= FEWEST and (rule := _rule(gone, others, price)) is not None:
            rules |= dict.fromkeys(names, rule)
    return rules


def _rule(gone: NDArray[np.bool_], columns: Sequence[_Codes], price: float) -> Rule | None:
    """The rule by which other columns make entries absent, if there is one.

    Pairs of conditions are improved in turn, from the cuts of single columns whose share of gaps
    differs most from that of the other rows.
    """
    weights = np.where(gone, math.log((1 - NEVER) / OFTEN), math.log(NEVER / (1 - OFTEN)))
    even = np.where(gone, 1 / gone.sum(), -1 / (~gone).sum())
    rules = [((_best_cut(column, weights),), False) for column in columns]
    starts = []
    for cut in (_best_cut(column, even, priced=False) for column in columns):
        there = cut.of.places < len(cut.of.codes)
        nats = _information(gone[there], cut.rows[there]) - cut.price
        if nats > -math.log(CHANCE):
            starts.append((nats, cut))
    starts = sorted(starts, key=lambda start: -start[0])[:PAIRED]
    for _, first in starts:
        for _, other in starts:
            for either in (False, True) if other is not first else ():
                pair = [first, other]
                for turn in (1, 0, 1):
                    free = weights * (pair[1 - turn].rows != either)
                    pair[turn] = _best_cut(pair[turn].of, free)
                rules.append(((pair[0], pair[1]), either))
    gains = [
        weights @ _holds(cuts, either)[0] - sum(cut.price for cut in cuts) for cuts, either in rules
    ]
    for place in np.argsort(-np.array(gains), kind="stable"):
        cuts, either = rules[place]
        holds, decided = _holds(cuts, either)
        if gains[place] > 0 and _is_rule(gone[decided], holds[decided], cuts, decided, price):
            exact = not gone[decided & ~holds].any()
            return Rule(tuple(cut.condition for cut in cuts), either, exact)
    return None


def _holds(cuts: Sequence[_Cut], either: bool) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The masks of rows where a rule holds, and of those that it decides, (n,) each."""
    rows = np.stack([cut.rows for cut in cuts])
    there = np.stack([cut.of.places < len(cut.of.codes) for cut in cuts])
    holds = rows.any(0) if either else rows.all(0)
    return holds, there.all(0) | (there & (rows == either)).any(0)


def _is_rule(
    gone: NDArray[np.bool_],
    holds: NDArray[np.bool_],
    cuts: Sequence[_Cut],
    decided: NDArray[np.bool_],
    price: float,
) -> bool:
    """Whether gaps are where a rule holds, and those elsewhere, and these, are by chance.

    Args:
        gone, holds: the masks of gaps, and of where the rule holds, among the rows that it decides.
        cuts: its conditions.
        decided: the mask of the rows that it decides, (n,).
        price: minus the logarithm of the false alarms that are allowed, nats.
    """
    from scipy.stats import hypergeom

    n, m, gaps, inside = len(gone), int(holds.sum()), int(gone.sum()), int((gone & holds).sum())
    left = gaps - inside
    if min(m, n - m) < FEWEST or m - inside > NEVER * m:
        return False
    if 3 * left > gaps or left > ELSEWHERE * (n - m):
        return False
    price += sum(cut.price for cut in cuts)
    if hypergeom.logsf(inside - 1, n, gaps, m) > -price:
        return False
    elsewhere = np.flatnonzero(decided)[~holds]
    rest = gone[~holds]
    if not left:
        return True
    even = np.where(rest, 1 / left, -1 / (len(rest) - left))
    for column in (cut.of for cut in cuts if cut.is_range):
        near = _best_cut(column._replace(places=column.places[elsewhere]), even, priced=False)
        if _information(rest, near.rows) - near.price > -math.log(CHANCE):
            return False
    return True


def _information(gone: NDArray[np.bool_], holds: NDArray[np.bool_]) -> float:
    """The information of rows on gaps, nats: their number times the mutual information."""
    from scipy.special import xlogy

    counts = np.bincount(2 * gone + holds, minlength=4).reshape(2, 2).astype(float)
    sides = xlogy(counts.sum(0), counts.sum(0)).sum() + xlogy(counts.sum(1), counts.sum(1)).sum()
    return float(xlogy(counts, counts).sum() - sides + xlogy(counts.sum(), counts.sum()))


def _auc(
    columns: Sequence[Column], table: DataFrame, gone: NDArray[np.bool_]
) -> tuple[float, float]:
    """The area under the ROC curve of a prediction of gaps by trees, by folds, and its error.

    The error is that of Hanley & McNeil, The meaning and use of the area under a receiver operating
    characteristic (ROC) curve, Radiology 1982.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    if len(gone) > AUC_ROWS:
        chosen = np.random.default_rng(0).choice(len(gone), AUC_ROWS, replace=False)
        table, gone = table.iloc[chosen], gone[chosen]
    positive, negative = int(gone.sum()), int((~gone).sum())
    if min(positive, negative) < FEWEST or not columns:
        return math.nan, math.nan
    codes = np.stack([column.read(table[column.name]) for column in columns], 1)
    trees = HistGradientBoostingClassifier(max_iter=50, random_state=0)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    predicted = cross_val_predict(trees, codes, gone, cv=folds, method="predict_proba")[:, 1]
    a = float(roc_auc_score(gone, predicted))
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    spread = a * (1 - a) + (positive - 1) * (q1 - a * a) + (negative - 1) * (q2 - a * a)
    return a, math.sqrt(max(spread, 0.0) / (positive * negative))
