"""Gaps of a table: whether they are by chance, and whether the missing values exist at all."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_mdm.tables.columns.base import Column, Mask, Values
from pyro_mdm.tables.columns.dates import Dates
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.columns.levels import Ordinal, some
from pyro_mdm.tables.columns.skipped import Condition, Rule, Skipped

__all__ = ["TableGaps", "dependent_gaps", "patterns", "shortened", "skip_rules"]

SHOWN = 12
"""The most patterns of gaps, or doubts, that are printed."""
FALSE_ALARM, CHANCE = 1e-6, 1e-3
"""The largest probability that gaps by chance alone, in any column, count as dependent, and that
they count as more frequent on one side of a number."""
LEVELS, FEWEST = 20, 10
"""The most levels in an order of which any may be chosen, and the fewest rows with a gap, and
without one, that are tested."""
ELSEWHERE, UNEXPLAINED = 0.3, 0.4
"""The largest share of gaps where a column exists, and the largest share of all gaps there."""
NEVER, OFTEN = 0.01, 0.1
"""The shares of entries where a column does not exist, and of gaps elsewhere, by which rules are
compared."""
MOST_CONDITIONS, PAIRED = 3, 8
"""The most conditions of a rule, and the most columns of which rules of several are searched, those
that tell most."""
FAR = 3.5
"""The standard deviations from the expected number of gaps within which tails are not computed."""


def dependent_gaps(columns: Sequence[Column], table: pd.DataFrame) -> dict[str, str]:
    """The columns whose gaps depend on another column, by name, each with the name of the one on
    which they depend most; tests are those of :func:`skip_rules`."""
    from scipy.stats import hypergeom

    codes = _codes_of(columns, table)
    groups = _alike(table, [column.name for column in columns])
    depends: dict[str, str] = {}
    for names in groups:
        gone = table[names[0]].isna().to_numpy()
        most = math.log(len(groups) * max(len(codes), 1) / FALSE_ALARM)
        for name, column in codes.items():
            if name not in names:
                _, cut = _dependence(column, gone)
                n, gaps = int(column.there.sum()), int(gone[column.there].sum())
                rows, here = int(cut.rows.sum()), int(gone[cut.rows].sum())
                expected = gaps * rows / max(n, 1)
                if here - expected <= FAR * math.sqrt(expected * (1 - gaps / n) * (1 - rows / n)):
                    continue  # no such tail is as small, and each takes SciPy a quarter of a ms
                nats = -hypergeom.logsf(here - 1, n, gaps, rows) - cut.price
                if nats > most:
                    most = nats
                    depends |= dict.fromkeys(names, name)
    return depends


def patterns(
    columns: Sequence[Column], table: pd.DataFrame, rules: Mapping[str, Rule]
) -> list[str]:
    """The gaps of a table in words, those of most rows first, each of columns that are empty in the
    same rows; ``rules`` are those of :func:`skip_rules` for columns that are taken to exist."""
    absent = {column.name: column.rule for column in columns if isinstance(column, Skipped)}
    depends, result = dependent_gaps(columns, table), []
    for names in _alike(table, [column.name for column in columns]):
        name, rows = names[0], int(table[names[0]].isna().sum())
        say = f"; say {name}=absent if it does not exist there"
        words = "; no other column tells which"
        if name in absent:
            words = f"absent {absent[name].in_words}; say {name}=mar if it is hidden there"
            words = f"; taken as {words}"
        elif name in rules:
            words = (
                f"; no row has it {rules[name].in_words}, so that what it is there is "
                f"extrapolated, and no data can say whether rightly{say}"
            )
        elif name in depends:
            words = (
                f", which depends on {depends[name]!r}; taken as hidden, given what is there at "
                f"random{say}"
            )
        words = words or "; no other column tells which"
        result.append(f"{some(names, 4)}: empty in {rows:,} of {len(table):,} rows{words}")
    return result


def _alike(table: pd.DataFrame, names: Sequence[str]) -> list[list[str]]:
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
    def from_values(cls, column: Column, values: pd.Series) -> _Codes:
        codes = column.read(values)
        distinct, places = np.unique(codes, return_inverse=True)
        distinct = distinct[~np.isnan(distinct)]
        return cls(column, distinct, np.minimum(places, len(distinct)))

    def at(self, rows: NDArray[np.intp]) -> _Codes:
        return self._replace(places=self.places[rows])

    @property
    def there(self) -> Mask:
        """The mask of the rows where it is not missing, (n,)."""
        return self.places < len(self.codes)

    @property
    def is_ordered(self) -> bool:
        return self.column.levels is None or isinstance(self.column, Ordinal)


def _codes_of(columns: Sequence[Column], table: pd.DataFrame) -> dict[str, _Codes]:
    """The codes of the columns that have two or more, by name."""
    plain = [column.column if isinstance(column, Skipped) else column for column in columns]
    codes = {column.name: _Codes.from_values(column, table[column.name]) for column in plain}
    return {name: column for name, column in codes.items() if len(column.codes) > 1}


class _Cut(NamedTuple):
    """Codes of a column at which another may be absent."""

    codes: _Codes
    chosen: Mask  # of the different codes, (k,)
    is_range: bool  # whether they are those between two ends, or outside of these
    price: float  # minus the logarithm of its share of false alarms, nats
    weight: float  # the sum of the weights of their rows

    @property
    def rows(self) -> Mask:
        """The mask of the rows with these codes, (n,)."""
        return np.append(self.chosen, False)[self.codes.places]

    @property
    def condition(self) -> Condition:
        column, codes, _ = self.codes
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
    """The codes with the largest sum of the weights of their rows, (n,), less the price if it
    counts."""
    k = len(column.codes)
    sums = np.bincount(column.places, weights, k + 1)[:k]
    cuts: list[tuple[float, float, Any]] = []  # their sums, prices, and places or two ends
    if not column.is_ordered or k <= LEVELS:
        chosen = sums > (math.log(k) if priced else 0)
        price = math.log(3 * k * math.comb(k, int(chosen.sum())))
        cuts.append((float(sums[chosen].sum()), price, chosen))
    if column.is_ordered:
        total = np.zeros(k + 1)
        total[1:] = sums.cumsum()
        top, bottom = (total - least.accumulate(total) for least in (np.minimum, np.maximum))
        first, last = int(total[1:].argmax()) + 1, int(total[:-1].argmin())
        inner, outer = int(top.argmax()), int(bottom.argmin())
        one, two = math.log(6 * k), math.log(3 * k * (k + 1))
        before, after = int(total[: inner + 1].argmin()), int(total[: outer + 1].argmax())
        cuts += [
            (total[first], one, (0, first)),
            (total[k] - total[last], one, (last, k)),
            (top[inner], two, (before, inner)),
            (total[k] - bottom[outer], two, (outer, after)),
        ]
    weight, price, where = max(cuts, key=lambda cut: cut[0] - priced * cut[1])
    if not isinstance(where, tuple):
        return _Cut(column, where, False, price, weight)
    low, high = where
    chosen = np.zeros(k, dtype=np.bool_)
    chosen[min(low, high) : max(low, high)] = True
    return _Cut(column, chosen if low < high else ~chosen, True, price, weight)


class _Cuts(NamedTuple):
    """A rule of one condition, or of several of which all or any must hold."""

    cuts: tuple[_Cut, ...]
    either: bool

    @property
    def holds(self) -> tuple[Mask, Mask]:
        """The masks of rows where the rule holds, and of those that it decides, (n,) each."""
        rows = np.stack([cut.rows for cut in self.cuts])
        there = np.stack([cut.codes.there for cut in self.cuts])
        holds = np.asarray(rows.any(0) if self.either else rows.all(0))
        return holds, there.all(0) | (there & (rows == self.either)).any(0)

    def improved(self, weights: Values) -> _Cuts:
        """The rule with each condition in turn the best given the others, the last one first."""
        cuts = [*self.cuts]
        for turn in (*reversed(range(len(cuts))), len(cuts) - 1):
            others = [cut.rows != self.either for place, cut in enumerate(cuts) if place != turn]
            cuts[turn] = _best_cut(cuts[turn].codes, weights * np.all(others, axis=0))
        return _Cuts(tuple(cuts), self.either)

    def explains(self, gone: Mask, price: float) -> bool:
        """Whether gaps, (n,), are where the rule holds, and the gaps elsewhere are by chance, of
        which the probability e^{-price} is allowed."""
        from scipy.stats import hypergeom

        holds, decided = self.holds
        n, m = int(decided.sum()), int(holds.sum())
        gaps, inside = int(gone[decided].sum()), int(gone[holds].sum())
        left, elsewhere = gaps - inside, n - m
        if (
            min(m, elsewhere) < FEWEST
            or m - inside > NEVER * m
            or left > min(UNEXPLAINED * gaps, ELSEWHERE * elsewhere)
            or hypergeom.logsf(inside - 1, n, gaps, m) > -price
        ):
            return False
        rest = np.flatnonzero(decided & ~holds)
        columns = [cut.codes.at(rest) for cut in self.cuts if cut.is_range]
        return all(_dependence(column, gone[rest])[0] <= 0 for column in columns)


def skip_rules(columns: Sequence[Column], table: pd.DataFrame) -> dict[str, Rule]:
    """Rules by which columns do not exist for some rows, by the names of the columns.

    A rule is a condition on another column, or up to ``MOST_CONDITIONS`` of which all or any must
    hold: levels, or numbers, dates or ordered levels on one side of an end, or between two, or
    outside of them. A column is empty where it holds, but for ``NEVER`` of the rows, and elsewhere
    as entries are missing by chance: in at most ``ELSEWHERE`` of the rows with at most
    ``UNEXPLAINED`` of its gaps, which have no rule again and are no more frequent near an end.

    Were gaps chance, which of the n rows are the g with a gap would not depend on a rule, and m
    rows where it holds had j gaps or more with the probability of a hypergeometric distribution.
    That is held to ``FALSE_ALARM`` times the share of the rule, where the shares of all rules that
    are searched, for all columns, are at most 1 together.
    """
    codes = _codes_of(columns, table)
    open_ones = [column.name for column in columns if not isinstance(column, Skipped)]
    rules: dict[str, Rule] = {}
    groups = _alike(table, open_ones)
    for names in groups:
        gone = table[names[0]].isna().to_numpy()
        others = [column for name, column in codes.items() if name not in names]
        price = math.log((2 * MOST_CONDITIONS - 1) * len(groups) / FALSE_ALARM)
        if (rule := _rule(gone, others, price)) is not None:
            rules |= dict.fromkeys(names, rule)
    return rules


def _rule(gone: Mask, columns: Sequence[_Codes], price: float) -> Rule | None:
    """The rule by which other columns make entries absent, if there is one whose probability by
    chance is below e^{-price}; several conditions are improved in turn, from single columns."""
    if min(int(gone.sum()), int((~gone).sum())) < FEWEST or not columns:
        return None
    weights = np.where(gone, math.log((1 - NEVER) / OFTEN), math.log(NEVER / (1 - OFTEN)))
    most = sorted((_dependence(column, gone) for column in columns), key=lambda cut: -cut[0])
    starts = [cut for nats, cut in most[:PAIRED] if nats > 0]
    rules = [_Cuts((_best_cut(cut.codes, weights),), False) for cut in starts]
    one = math.log(len(columns))

    def gain(rule: _Cuts) -> float:
        return float(weights @ rule.holds[0]) - sum(one + cut.price for cut in rule.cuts)

    for either in (False, True):
        grown = [_Cuts((cut,), either) for cut in starts]
        for _ in range(MOST_CONDITIONS - 1):
            grown = [
                _Cuts((*rule.cuts, cut), either).improved(weights)
                for rule in grown
                for cut in starts
                if all(cut.codes is not other.codes for other in rule.cuts)
            ]
            rules += grown
            grown = sorted(grown, key=gain)[-1:]
    for rule in sorted(rules, key=gain, reverse=True):
        if gain(rule) <= 0:
            return None
        if rule.explains(gone, price + sum(one + cut.price for cut in rule.cuts)):
            holds, decided = rule.holds
            rest = np.flatnonzero(decided & ~holds)
            if _rule(gone[rest], [column.at(rest) for column in columns], price) is None:
                exact = not gone[rest].any()
                return Rule(tuple(cut.condition for cut in rule.cuts), rule.either, exact)
    return None


def _dependence(column: _Codes, gone: Mask) -> tuple[float, _Cut]:
    """The codes where gaps are most frequent, and how far this exceeds chance, in nats less those
    that chance exceeds with probability :data:`CHANCE`.

    With p the share of gaps among n rows, and J the share of the codes among rows with a gap less
    that among others, the information on gaps is at least 2 n p (1 - p) J² nats (Pinsker).
    """
    there = column.there
    n, gaps = int(there.sum()), int(gone[there].sum())
    weights = np.where(gone, 1 / max(gaps, 1), -1 / max(n - gaps, 1))
    cut = _best_cut(column, weights, priced=False)
    nats = 2 * gaps * (n - gaps) / max(n, 1) * cut.weight**2
    return nats - cut.price + math.log(CHANCE), cut


class TableGaps:
    """The gaps of the columns of new rows, found at the first access, which takes seconds; no rows
    have none."""

    def __init__(self, columns: Sequence[Column], rows: pd.DataFrame | None) -> None:
        self.columns, self.rows = [*columns], rows

    @functools.cached_property
    def _unseen(self) -> dict[str, Rule]:
        """The rules by which no row has columns that are taken to exist in all."""
        return {} if self.rows is None else skip_rules(self.columns, self.rows)

    @functools.cached_property
    def in_words(self) -> str:
        """The gaps, a line each; empty without gaps."""
        gaps = [] if self.rows is None else patterns(self.columns, self.rows, self._unseen)
        return "\n".join(["gaps of the table:", *shortened(gaps)]) if gaps else ""

    def warn(self) -> None:
        """Warn of columns, and pairs of them, that no row has where a model extrapolates them."""
        if self.rows is None:
            return
        names = [column.name for column in self.columns if not isinstance(column, Skipped)]
        there = self.rows[names].notna().to_numpy(dtype=np.float64)
        never_together = np.triu(there.T @ there == 0, 1).nonzero()
        without = [
            f"no row has {name!r} {rule.in_words}: what it is there is extrapolated, and no data "
            f"can say whether rightly; say {name}=absent if it does not exist there"
            for name, rule in self._unseen.items()
        ]
        without += [
            f"no row has both {names[i]!r} and {names[j]!r}: how they depend on each other, given "
            "the rest, is not in the data"
            for i, j in zip(*never_together, strict=True)
        ]
        if without:
            warnings.warn(";".join(shortened(without, " ")).lstrip(), stacklevel=2)


def shortened(lines: Sequence[str], indent: str = "  ") -> list[str]:
    """Lines after an indent, at most ``SHOWN``, and how many more there are."""
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [f"{indent}{line}" for line in (*lines[:SHOWN], *more)]
