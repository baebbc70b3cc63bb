r"""Columns of a table: their kinds, their numbers in a model, and their values again.

A table's stored data are codes, float64 (n, d): the numbers themselves of a column of numbers, the
number of the level of any other, and NaN where an entry is missing. In model space a column of
numbers is scaled to N(0, 1) by its quantiles, levels lie evenly in [-1, 1], and three categories or
more are one-hot: as many dimensions, one of which is 1.

A value w that has a probability, an integer or an atom, is an interval I(w) of model space, whose
mass is that probability. A row that has w is anywhere in I(w), x ~ q = N(0, 1) given I(w), and any
x of I(w) is w again. So

    log P(w) = log ∫_{I(w)} p(x) dx >= E_q[log p(x) - log q(x)],

with equality where p(x) ∝ q(x) in I(w), as it is of the data that the model is trained on. Values
between have the density p(x) dx/dw, whose integral is the probability of no atom.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.column_kinds import (
    DECIMALS,
    MOST,
    NUMBERS,
    OTHERS,
    PLAIN,
    Kind,
    Said,
    atoms_of,
    decimals_of,
    in_words,
    kinds_of,
    left_out,
)
from models.column_kinds import kind_of as kind_of
from models.column_kinds import plain_kind_of as plain_kind_of
from models.dates import DAY, DateForm, days_of
from models.files import DataError
from models.scales import (
    KNOTS,
    MARGIN,
    along,
    fewest_bends,
    quantiles,
    share_below,
    smoothed,
    within,
)
from pyro_mdm import randomness
from pyro_mdm.likelihoods.dequantization import Dequantized

if TYPE_CHECKING:
    from pandas import DataFrame, Series

POINTS = 33
"""Points of a line of what is beside atoms."""
END = 1.0
"""The part of a line, in model space, that its tail goes on with."""

Values = NDArray[Any]
Ends = tuple[float, float]
"""The least and the largest number that may be."""
Center = Literal["mean", "median"]


class Column(ABC):
    """A named column of a table.

    Attributes:
        kind: of the column.
        levels: how many it has; None: it is one of numbers.
        width: its number of dimensions in model space.
        noisy: whether a value may be many x.
    """

    kind: Kind
    levels: int | None = None
    width: int = 1
    noisy: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name

    def codes(self, values: Series[Any]) -> Values:
        """The codes of values, (n,) float64, NaN where missing (DataError: an unknown value)."""
        codes = self._read(values)
        unknown = np.isnan(codes) & values.notna().to_numpy()
        if unknown.any():
            raise DataError(self._refusal(values[unknown].iloc[0]))
        return codes

    def unknown(self, values: Series[Any]) -> NDArray[np.bool_]:
        """Which values the column cannot have, (n,)."""
        return np.isnan(self._read(values)) & values.notna().to_numpy()

    @abstractmethod
    def _read(self, values: Series[Any]) -> Values:
        """The codes of values, NaN where missing and of those that the column cannot have."""

    @abstractmethod
    def _refusal(self, value: Any) -> str:
        """Why the column cannot have a value, and what to do."""

    @abstractmethod
    def values(self, codes: Values) -> Any:
        """The table's values of codes (n,), none of them NaN."""

    @abstractmethod
    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x of codes (n,), float64, (n,) or (n, width), and log|dx/dw| or -log q(x), 0 of levels.

        Args:
            noise: uniform in [0, 1), like ``codes``, of a noisy column.
        """

    @abstractmethod
    def unscaled(self, x: Tensor) -> Tensor:
        """The codes (n,) of x, float64."""

    @abstractmethod
    def center(self, draws: Values, center: Center) -> Values:
        """The middle (n,) of draws (num, n) of values."""

    @property
    def places(self) -> int | Sequence[float] | None:
        """The levels in model space, as for MixedDenoiser: their number where they lie evenly."""
        return self.levels

    @property
    def told(self) -> str:
        """The column in words, without its name."""
        return self.kind

    @property
    def said(self) -> str:
        """What says the same of the column as its values did."""
        return self.kind


class Continuous(Column):
    r"""A continuous column, mapped to x ~ N(0, 1) by lines between and beyond quantiles.

    x_i = Φ^{-1}(p_i) at the p_i-quantile, as in scikit-learn's ``QuantileTransformer``; the least
    and the largest of n values are the quantiles of 1/2n and 1 - 1/2n. ``QuantileTransformer`` is
    flat outside of the fitted values, where the density would be 0.

    Args:
        values: the values that it is fitted to, NaN where missing. The number of knots is the root
            of theirs, at most 100.
    """

    kind: Kind = "continuous"

    def __init__(self, name: str, values: Values, *, plain: bool = False) -> None:
        super().__init__(name)
        known = np.sort(values[~np.isnan(values)])
        if not plain and self._straighten(*np.unique(known, return_counts=True)):
            return
        knots, share = quantiles(known)
        share = share.clip(0.5 / len(known), 1 - 0.5 / len(known))
        self._set_line(knots, share)

    def _straighten(
        self, numbers: Values, counts: Values, lower: float = -math.inf, upper: float = math.inf
    ) -> bool:
        """Set the line with the fewest bends through different values, if there is one."""
        total = int(counts.sum())
        share = (np.cumsum(counts) - counts / 2) / total
        line = fewest_bends(numbers, share, total, lower, upper)
        if line is not None:
            self._w, self._x = map(torch.from_numpy, line)
        return line is not None

    def _set_line(self, w: Values, share: Values) -> None:
        self._w = torch.from_numpy(w)
        self._x = torch.special.ndtri(torch.from_numpy(share))

    def _set_tails(self, low: bool = True, high: bool = True) -> None:
        """Give the line beyond an end the slope of its last :data:`END` of x, as two values that
        are next to each other may be close; or none, where nothing lies beyond."""
        w, x = self._w, self._x
        first = (x < x[0] + END).sum().clamp(int((w == w[0]).sum()), len(x) - 1)
        last = len(x) - 1 - (x > x[-1] - END).sum().clamp(int((w == w[-1]).sum()), len(x) - 1)
        start = low * (w[first] - w[0]) / (x[first] - x[0])
        end = high * (w[-1] - w[last]) / (x[-1] - x[last])
        self._w = torch.cat([w[:1] - start, w, w[-1:] + end])
        self._x = torch.cat([x[:1] - 1, x, x[-1:] + 1])

    def _read(self, values: Series[Any]) -> Values:
        return _finite_numbers(self.name, values)

    def _refusal(self, value: Any) -> str:
        return _no_number(self.name, value)

    def values(self, codes: Values) -> Any:
        return codes

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        w, x = self._w.to(codes.device), self._x.to(codes.device)
        return along(codes, w, x)

    def unscaled(self, x: Tensor) -> Tensor:
        return along(x.double(), self._x.to(x.device), self._w.to(x.device))[0]

    def center(self, draws: Values, center: Center) -> Values:
        return np.asarray(draws.mean(0) if center == "mean" else np.median(draws, 0))

    @property
    def told(self) -> str:
        return f"{self.kind}: a density on the whole line"


class Mixed(Continuous):
    r"""A density beside atoms, and none beyond an end: below 0 where no number is, or as said.

    x = Φ^{-1}(P(value < w)) at quantiles of what is no atom, and at an atom a from P(value < a) to
    P(value <= a), which is its interval; a line between. The least number is an end if it is an
    atom, and the greatest; its interval has no end then. Else the line goes on, and before an end e
    that no number is by w = e + (w_1 - e) exp(s (x - x_1)/(w_1 - e)), s being its slope, or less,
    so that no x that is drawn reaches e.

    Args:
        kind: "nonnegative", whose one atom is 0 if the column has it, or "mixed", see
            :func:`atoms_of`; "continuous" has atoms at its ends alone, if numbers are there.
        values: that it is fitted to, NaN where there is none.
        everything: numbers of all rows, which say where it ends.
        ends: where it ends if that is said.

    Raises:
        DataError: a negative number in a nonnegative column.
    """

    noisy = True

    def __init__(
        self, kind: Kind, name: str, values: Values, everything: Values, ends: Ends | None = None
    ) -> None:
        Column.__init__(self, name)
        self.kind, self._ends = kind, ends
        known = np.sort(values[~np.isnan(values)])
        least, most = float(np.nanmin(everything)), float(np.nanmax(everything))
        if kind == "nonnegative" and least < 0 and ends is None:
            raise DataError(
                f"column {name!r} holds {least:g}, expected no negative number in a nonnegative "
                f"one; say --columns {name}=continuous"
            )
        atoms = atoms_of(known) if kind == "mixed" else np.empty(0)
        if ends is not None:
            atoms = np.union1d(atoms, [end for end in ends if end in (least, most)])
            self._lower, self._upper = ends
        else:
            if least == 0:
                atoms = np.union1d(atoms, 0.0)
            self._lower = least if least in atoms else 0.0 if least >= 0 else -math.inf
            self._upper = most if most in atoms else math.inf
        rest = known[~np.isin(known, atoms)]
        ends_of_rest = self._lower, self._upper
        knots, share = _scale_of(rest, ends_of_rest) if len(rest) else (np.empty(0), np.empty(0))
        inner = ~np.isin(knots, atoms)
        knots, share = knots[inner], share[inner]
        below = np.interp(atoms, knots, share, 0.0, 1.0) if len(knots) else 0 * atoms
        before = len(rest) * below + np.searchsorted(known, atoms) - np.searchsorted(rest, atoms)
        counts = np.searchsorted(known, atoms, "right") - np.searchsorted(known, atoms)
        of_atoms = np.searchsorted(known, knots) - np.searchsorted(rest, knots)
        w = np.concatenate([knots, atoms, atoms])
        rank = np.concatenate([len(rest) * share + of_atoms, before, before + counts])
        order = np.lexsort((rank, w))
        distinct = np.unique(known, return_counts=True)
        if len(atoms) or not self._straighten(*distinct, self._lower, self._upper):
            self._set_line(w[order], smoothed(rank[order], len(known)))
        first = np.searchsorted(w[order], atoms)
        low, high = self._x[first].clone(), self._x[first + 1]
        if len(atoms):
            low[0] = -math.inf if atoms[0] == self._lower else low[0]
            high[-1] = math.inf if atoms[-1] == self._upper else high[-1]
        self.atoms, self._low, self._high = torch.from_numpy(atoms), low, high
        self._set_tails(self._lower not in atoms, self._upper not in atoms)

    def _read(self, values: Series[Any]) -> Values:
        codes = super()._read(values)
        outside = (codes < self._lower) | (codes > self._upper)
        for end, *_ in self._tails:
            outside |= codes == end
        return np.where(outside, math.nan, codes)

    def _refusal(self, value: Any) -> str:
        open_ends = [end for end, *_ in self._tails]
        return _refused_number(self.name, value, self._lower, self._upper, open_ends)

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_slope = super().scaled(codes)
        for end, start, x_start, slope in self._tails:
            beyond = codes < start if end < start else codes > start
            log_ratio = ((codes - end) / (start - end)).log()
            x = torch.where(beyond, x_start + (start - end) / slope * log_ratio, x)
            log_slope = torch.where(beyond, -math.log(slope) - log_ratio, log_slope)
        if len(self.atoms) == 0:
            return x, log_slope
        assert noise is not None
        atoms = self.atoms.to(codes.device)
        k = torch.searchsorted(atoms, codes.contiguous()).clamp_max(len(atoms) - 1)
        low, high = self._low.to(codes.device)[k], self._high.to(codes.device)[k]
        own, log_density = within(low, high, noise)
        here = codes == atoms[k]
        return torch.where(here, own, x), torch.where(here, -log_density, log_slope)

    def unscaled(self, x: Tensor) -> Tensor:
        x = x.double()
        w = super().unscaled(x)
        for end, start, x_start, slope in self._tails:
            beyond = x < x_start if end < start else x > x_start
            tail = (slope * (x - x_start) / (start - end)).clamp_max(0).exp()
            w = torch.where(beyond, end + (start - end) * tail, w)
        return w

    @property
    def _tails(self) -> list[tuple[float, float, float, float]]:
        """The ends before which the line turns away, the point (w, x) where it does, and its slope
        dw/dx there."""
        tails, atoms = [], self.atoms.tolist()
        points = [*zip(self._w.tolist(), self._x.tolist(), strict=True)]
        for end, line in ((self._lower, points), (self._upper, points[::-1])):
            if math.isfinite(end) and end not in atoms:
                (beyond, _), (w, x) = line[:2]  # one unit of x apart
                tails.append((end, w, x, min(abs(w - beyond), abs(w - end))))
        return tails

    def center(self, draws: Values, center: Center) -> Values:
        """The atom that most draws are, if there is one, else the middle of all draws."""
        middle = super().center(draws, center)
        for atom in self.atoms.tolist():
            middle[2 * (draws == atom).sum(0) > len(draws)] = atom
        return middle

    @property
    def told(self) -> str:
        ends = _ends(self._lower, self._upper)
        if len(self.atoms) == 0:
            return f"{self.kind}: a density{ends}"
        shares = (share_below(self._high) - share_below(self._low)).tolist()
        each = [f"{a:g} ({s:.1%})" for a, s in zip(self.atoms.tolist(), shares, strict=True)]
        more = f" and {len(each) - 5} more" if len(each) > 5 else ""
        return f"{self.kind}: atoms {', '.join(each[:5])}{more}, and a density beside them{ends}"

    @property
    def said(self) -> str:
        return _with_ends(self.kind, self._ends)


class Rounded(Continuous):
    r"""Multiples of a power of ten, each with its probability: integers, or rounded numbers.

    The interval of w is that of all that would be rounded to it, w ± ½ step, its ends being
    x = Φ^{-1}(P(value < end)) at the ends of the values at quantiles, and on a line between and
    beyond them. There is no greatest one unless it is said. Where no number is negative, 0 has all
    that is below.

    Args:
        kind: "integer" or "rounded".
        values: that it is fitted to, NaN where there is none.
        everything: numbers of all rows, which say what they are rounded to and whether they end at
            0.
        ends: the least and the largest if that is said.

    Raises:
        DataError: numbers that are not rounded so.
    """

    noisy = True

    def __init__(
        self, kind: Kind, name: str, values: Values, everything: Values, ends: Ends | None = None
    ) -> None:
        Column.__init__(self, name)
        self.kind, self._ends = kind, ends
        decimals = 0 if kind == "integer" else decimals_of(everything)
        if decimals is None:
            raise DataError(
                f"column {name!r} has numbers of more than {DECIMALS} decimals, expected rounded "
                f"ones; say --columns {name}=continuous"
            )
        self._decimals = decimals
        least = 0.0 if float(np.nanmin(everything)) >= 0 else -math.inf
        self._lower, self._upper = (least, math.inf) if ends is None else ends
        if (wrong := self._unrounded(everything)).any():
            raise DataError(self._refusal(everything[wrong][0]))
        known = np.sort(self._whole(values[~np.isnan(values)]))
        edges = np.unique(np.concatenate([known - 0.5, known + 0.5]))
        share = smoothed(np.searchsorted(known, edges), len(known))
        line = fewest_bends(edges, share, len(known))
        if line is not None:
            self._w, self._x = map(torch.from_numpy, line)
            return
        number = int(np.clip(math.isqrt(len(known)), 2, KNOTS))
        places = np.linspace(0, len(known) - 1, number).round().astype(int)
        edges = np.unique(np.concatenate([known[places] - 0.5, known[places] + 0.5]))
        self._set_line(edges, smoothed(np.searchsorted(known, edges), len(known)))
        self._set_tails()

    def _whole(self, values: Values) -> Values:
        return np.asarray((values * 10.0**self._decimals).round())

    def _unrounded(self, values: Values) -> NDArray[np.bool_]:
        return np.asarray((np.round(values, self._decimals) != values) & ~np.isnan(values))

    def _read(self, values: Series[Any]) -> Values:
        codes = super()._read(values)
        wrong = self._unrounded(codes) | (codes < self._lower) | (codes > self._upper)
        return np.where(wrong, math.nan, codes)

    def _refusal(self, value: Any) -> str:
        number = _as_number(value)
        if number is not None and self._unrounded(np.array([number]))[0]:
            expected = f"numbers of {self._decimals} decimals" if self._decimals else "whole ones"
            return (
                f"column {self.name!r} holds {number:g}, expected {expected}; round it, or train "
                f"with --columns {self.name}=continuous"
            )
        return _refused_number(self.name, value, self._lower, self._upper)

    def values(self, codes: Values) -> Any:
        if self.kind == "integer":
            return codes.round().astype(np.int64)
        return np.round(codes, self._decimals)

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert noise is not None
        whole = (codes * 10.0**self._decimals).round()
        low, high = (super(Rounded, self).scaled(whole + half)[0] for half in (-0.5, 0.5))
        first, last = self._whole_ends
        low = torch.where(whole <= first, -math.inf, low)
        high = torch.where(whole >= last, math.inf, high)
        x, log_density = within(low, high, noise)
        return x, -log_density

    def unscaled(self, x: Tensor) -> Tensor:
        whole = super().unscaled(x).round().clamp(*self._whole_ends)
        return whole / 10.0**self._decimals

    @property
    def _whole_ends(self) -> Ends:
        """The least and the largest multiple."""
        low, high = (end * 10.0**self._decimals for end in (self._lower, self._upper))
        return float(np.ceil(low - MARGIN)), float(np.floor(high + MARGIN))

    def center(self, draws: Values, center: Center) -> Values:
        return np.asarray(self.values(super().center(draws, center)))

    @property
    def told(self) -> str:
        what = "integer" if self._decimals == 0 else f"number of {self._decimals} decimals"
        return f"{self.kind}: a probability of each {what}{_ends(self._lower, self._upper)}"

    @property
    def said(self) -> str:
        return _with_ends(self.kind, self._ends)


def _scale_of(values: Values, ends: Ends) -> tuple[Values, Values]:
    """Points (w, share) of the line with the fewest bends, or quantiles where there is none."""
    numbers, counts = np.unique(values, return_counts=True)
    share = (np.cumsum(counts) - counts / 2) / len(values)
    line = fewest_bends(numbers, share, len(values), *ends)
    if line is None:
        return quantiles(values)
    x = np.linspace(line[1][0], line[1][-1], POINTS)
    return np.interp(x, line[1], line[0]), share_below(torch.from_numpy(x)).numpy()


def _ends(lower: float, upper: float) -> str:
    """The ends of a column in words."""
    low = f", none below {lower:g}" if lower > -math.inf else ""
    return low + (f", none above {upper:g}" if upper < math.inf else "")


def _with_ends(kind: Kind, ends: Ends | None) -> str:
    return kind if ends is None else f"{kind} {in_words(ends)}"


def _refused_number(
    name: str, value: Any, lower: float, upper: float, open_ends: Sequence[float] = ()
) -> str:
    """Why a column that ends has no such value."""
    number = _as_number(value)
    if number is None:
        return _no_number(name, value)
    at = "at or " if number in open_ends else ""
    where = f"{at}below {lower:g}" if number <= lower else f"{at}above {upper:g}"
    return (
        f"column {name!r} holds {number:g}, and the table of the run has none {where}; leave the "
        f"entry empty, or train with --columns {name}=continuous"
    )


class _Levels(Column):
    """Levels k = 0 … n - 1 at linspace(-1, 1, n)."""

    _known: Sequence[Any]

    def _read(self, values: Series[Any]) -> Values:
        place = {value: k for k, value in enumerate(self._known)}
        levels = values.astype(object).map(place)
        return np.asarray(levels.to_numpy(dtype=np.float64, na_value=math.nan))

    def _refusal(self, value: Any) -> str:
        known = ", ".join(map(_shown, self._known[:8])) + (", …" if len(self._known) > 8 else "")
        return (
            f"column {self.name!r} holds {_shown(value)}, which the training rows never have; "
            f"expected one of {known}. Leave the entry empty, join it with another category, or "
            f"drop the column: --columns {self.name}=drop"
        )

    def values(self, codes: Values) -> Any:
        return np.asarray(self._known, dtype=object)[codes.astype(int)]

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.places is None or isinstance(self.places, int):
            return 2 * codes / (self._count - 1) - 1, torch.zeros_like(codes)
        places = torch.tensor(self.places, dtype=torch.float64, device=codes.device)
        missing = codes.isnan()
        x = places[torch.where(missing, 0, codes).long()].masked_fill(missing, math.nan)
        return x, torch.zeros_like(codes)

    def unscaled(self, x: Tensor) -> Tensor:
        x, top = x.double(), self._count - 1
        if self.places is None or isinstance(self.places, int):
            return ((x + 1) / 2 * top).round().clamp(0, top)
        places = torch.tensor(self.places, dtype=torch.float64, device=x.device)
        nearest = torch.searchsorted((places[1:] + places[:-1]) / 2, x.contiguous()).double()
        return nearest.masked_fill(x.isnan(), math.nan)

    @property
    def _count(self) -> int:
        """The number of levels."""
        return len(self._known)


class Ordinal(_Levels):
    """A column of few numbers in their order, or of levels in an order that is given.

    Args:
        values: all numbers that it may have, in any order.
        order: all levels instead, the lowest first.
        said: whether the order was said, and is not that of the table itself.
        even: whether numbers lie evenly in model space, as in older runs, and not as they are.
    """

    kind = "ordinal"

    def __init__(
        self,
        name: str,
        values: Values,
        order: Sequence[Any] | None = None,
        said: bool = False,
        *,
        even: bool = False,
    ) -> None:
        super().__init__(name)
        own = np.unique(values[~np.isnan(values)]).tolist() if order is None else list(order)
        self._known, self._said = own, said
        self._of_numbers = all(isinstance(level, float) for level in own)
        self._numbers_in_order = order is None
        self.levels, self._even = len(own), even or order is not None

    @property
    def places(self) -> int | Sequence[float]:
        numbers = np.array([0.0] if self._even else self._known)
        gaps = np.diff(numbers)
        if self._even or gaps.min() < 0.5 * gaps.mean() or np.allclose(gaps, gaps[0]):
            return self._count
        return tuple((2 * (numbers - numbers[0]) / (numbers[-1] - numbers[0]) - 1).tolist())

    def _read(self, values: Series[Any]) -> Values:
        import pandas as pd

        if self._of_numbers:
            values = pd.Series(_numbers(values).tolist())
        return super()._read(values)

    def values(self, codes: Values) -> Any:
        if not self._of_numbers:
            return super().values(codes)
        numbers = np.asarray(self._known)
        if (numbers == numbers.round()).all():
            numbers = numbers.astype(np.int64)
        return numbers[codes.astype(int)]

    def center(self, draws: Values, center: Center) -> Values:
        """The median draw."""
        import pandas as pd

        place = {level: k for k, level in enumerate(self._known)}
        levels = np.stack([pd.Series(own).map(place).to_numpy(np.float64) for own in draws])
        return np.asarray(self.values(np.sort(levels, 0)[len(draws) // 2]))

    @property
    def told(self) -> str:
        first, last = self._known[0], self._known[-1]
        if self._numbers_in_order:
            return f"ordinal: {self.levels} numbers in their order, {first:g} to {last:g}"
        shown = [*map(_plain, self._known)]
        return f"ordinal: {' < '.join(shown if len(shown) <= 8 else [*shown[:7], '…', shown[-1]])}"

    @property
    def said(self) -> str:
        return "<".join(map(_plain, self._known)) if self._said else "ordinal"


def _shown(value: Any) -> str:
    """A value in words: numbers as they are written, all else in quotes."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return f"{value:.15g}" if number else repr(value)


def _plain(level: object) -> str:
    """A level as it is said."""
    return f"{level:.15g}" if isinstance(level, float) else str(level)


class Boolean(_Levels):
    """A column of what is true or false."""

    kind = "boolean"
    levels = 2
    _known = (False, True)

    def _refusal(self, value: Any) -> str:
        return (
            f"column {self.name!r} holds {_shown(value)}, expected true or false; correct it, or "
            f"say --columns {self.name}=categorical"
        )

    def values(self, codes: Values) -> Any:
        return codes.astype(bool)

    def center(self, draws: Values, center: Center) -> Values:
        """What most draws are."""
        return np.asarray(2 * draws.astype(bool).sum(0) > len(draws))

    @property
    def told(self) -> str:
        return "boolean: true or false"


class Categorical(_Levels):
    """A column of categories, the most frequent first: one-hot, or if there are two on a line; at
    most 100.

    Args:
        values: the values that it is fitted to.
        one_hot: False: on a line, however many there are.
    """

    kind = "categorical"

    def __init__(self, name: str, values: Series[Any], *, one_hot: bool = True) -> None:
        super().__init__(name)
        known = values.dropna().astype(object).value_counts().index.tolist()
        self._known = known[: MOST["categorical"]]
        self.levels = len(self._known)
        self.width = self.levels if one_hot and self.levels > 2 else 1

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.width == 1:
            return super().scaled(codes)
        each = torch.arange(self.width, device=codes.device) == codes.unsqueeze(-1)
        x = each.double().masked_fill(codes.isnan().unsqueeze(-1), math.nan)
        return x, torch.zeros_like(codes)

    def unscaled(self, x: Tensor) -> Tensor:
        if self.width == 1:
            return super().unscaled(x)
        return x.argmax(-1).double().masked_fill(x.isnan().any(-1), math.nan)

    def center(self, draws: Values, center: Center) -> Values:
        """The most frequent category."""
        import pandas as pd

        return np.asarray(pd.DataFrame(draws.T).mode(axis=1)[0])

    @property
    def told(self) -> str:
        known = ", ".join(map(str, self._known[:5])) + (", …" if len(self._known) > 5 else "")
        return f"categorical: {self.levels} categories, {known}"


class Dates(Column):
    """A column of dates: a probability of each day, or a density where they have a time of day.

    Codes are days since 1970. Values have the form that those of the table have.

    Args:
        values: of all rows.
        train: the mask of the training rows.

    Raises:
        DataError: a value that is no date.
    """

    kind = "date"
    noisy = True

    def __init__(self, name: str, values: Series[Any], train: NDArray[np.bool_]) -> None:
        super().__init__(name)
        days = days_of(values)
        if (wrong := np.isnan(days) & values.notna().to_numpy()).any():
            raise DataError(
                f"column {name!r} holds {str(values[wrong].iloc[0])!r}, expected a date, such as "
                f"2024-12-31 or 2024-12-31 23:59; correct it, or leave the entry empty"
            )
        self._form = DateForm.of(values)
        self._first, self._last = self._form.dates(np.array([np.nanmin(days), np.nanmax(days)]))
        self._line: Continuous = (
            Rounded("integer", name, days[train], days, (-math.inf, math.inf))
            if self._form.step == DAY
            else Continuous(name, days[train])
        )

    def _read(self, values: Series[Any]) -> Values:
        import pandas as pd

        days = days_of(values)
        if self._form.step == DAY and getattr(values.dtype, "tz", None) is not None:
            days = np.floor(days)  # where a clock was put forward at midnight, the day begins later
        return self._line._read(pd.Series(days))

    def _refusal(self, value: Any) -> str:
        day = ", without a time of day" if self._form.step == DAY else ""
        return (
            f"column {self.name!r} holds {str(value)!r}, expected a date such as {self._first}"
            f"{day}; correct it, or leave the entry empty"
        )

    def values(self, codes: Values) -> Any:
        return self._form.dates(codes)

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._line.scaled(codes, noise)

    def unscaled(self, x: Tensor) -> Tensor:
        return self._line.unscaled(x)

    def center(self, draws: Values, center: Center) -> Values:
        import pandas as pd

        days = np.stack([days_of(pd.Series(own)) for own in draws])
        return np.asarray(self.values(self._line.center(days, center)))

    @property
    def told(self) -> str:
        what = "a probability of each day" if self._form.step == DAY else "a density"
        return f"date: {what}, {self._first} to {self._last} in the table"


def _numbers(values: Series[Any]) -> Values:
    """Values as float64, NaN where missing or no number."""
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce")
    return np.asarray(numbers.to_numpy(dtype=np.float64, na_value=math.nan))


def _finite_numbers(name: str, values: Series[Any]) -> Values:
    """Values as float64, finite, or NaN where missing or no number."""
    numbers = _numbers(values)
    if (infinite := np.isinf(numbers)).any():
        raise DataError(
            f"column {name!r} holds an infinite number in {_rows(infinite)}, expected finite ones; "
            "leave the entry empty"
        )
    return numbers


def _as_number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _no_number(name: str, value: Any) -> str:
    return (
        f"column {name!r} holds {value!r}, expected a number; correct it, or say --columns "
        f"{name}=categorical"
    )


def _rows(mask: NDArray[np.bool_]) -> str:
    """The number of rows of a mask in words."""
    count = int(mask.sum())
    return f"{count:,} row{'s' if count != 1 else ''}"


# -- all columns -----------------------------------------------------------------------------------


def fit_columns(
    table: DataFrame, train: NDArray[np.bool_], kinds: Mapping[str, str] | None = None
) -> list[Column]:
    """The columns of a table, with scales and categories of the training rows.

    Args:
        table: all rows.
        train: the mask of training rows, (n,). Ordinal columns have the values of all rows, and
            columns of numbers end where all rows do.
        kinds: by name what replaces :func:`kind_of`: a kind, of which "drop" leaves a column out,
            an order or a range, see :class:`~models.column_kinds.Said`. The kind of "*" is that of
            all columns without one. Those without one that say nothing are left out, see
            :func:`~models.column_kinds.left_out`.

    Raises:
        DataError: an unknown column or kind; a column of a kind that its values cannot have, with
            values beyond its range or order, or, if its kind is given, without two values; no
            column is left.
    """
    kinds = dict(kinds or {})
    for name, text in kinds.items():
        if name not in table.columns and name != OTHERS:
            raise DataError(
                f"--columns names {name!r}, and the table has no such column; expected one of "
                f"{', '.join(map(str, table.columns))}"
            )
        Said.of(name, text)
    without = left_out(table, train, kinds)
    columns = []
    for name, kind in kinds_of(table, kinds).items():
        if kind != "drop" and name not in without:
            said = Said.of(name, kinds.get(name, kind))
            _check_values(name, kind, said, table[name], train)
            plain = kinds.get(OTHERS) == PLAIN
            columns.append(_column(name, kind, said, table[name], train, plain))
    if not columns:
        reasons = "".join(f"; {name!r}: {reason}" for name, reason in without.items())
        raise DataError(
            f"no column of the table is left, expected one at least that differs between rows"
            f"{reasons}"
        )
    return columns


def _column(
    name: str, kind: str, said: Said, values: Series[Any], train: NDArray[np.bool_], plain: bool
) -> Column:
    if kind == "categorical":
        return Categorical(name, values[train], one_hot=not plain)
    if kind == "boolean":
        return Boolean(name)
    if kind == "date":
        return Dates(name, values, train)
    if kind == "ordinal" and (order := _order(name, said.order, values)) is not None:
        return Ordinal(name, np.empty(0), order, said=said.order is not None)
    if kind == "ordinal":
        return Ordinal(name, _numbers(values), even=plain)
    numbers, ends = _finite_numbers(name, values), said.ends
    if kind in ("nonnegative", "mixed") or (kind == "continuous" and ends is not None):
        return Mixed(cast(Kind, kind), name, numbers[train], numbers, ends)
    if kind in ("rounded", "integer"):
        return Rounded(cast(Kind, kind), name, numbers[train], numbers, ends)
    return Continuous(name, numbers[train], plain=plain)


def _order(name: str, said: Sequence[str] | None, values: Series[Any]) -> list[Any] | None:
    """The levels of an ordinal column in the order that is said or that pandas has, as the table
    has them; None: they are numbers in their own order."""
    import pandas as pd

    if said is None:
        dtype = values.dtype
        return [*dtype.categories] if isinstance(dtype, pd.CategoricalDtype) else None
    distinct = values.dropna().unique()
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        wrong = [level for level in said if _as_number(level) is None]
        if wrong:
            raise DataError(
                f"--columns {name}={'<'.join(said)}: column {name!r} holds numbers, and its order "
                f"has {wrong[0]!r}; expected numbers"
            )
        own = {level: float(level) for level in said}
        outside = [value for value in distinct if float(value) not in own.values()]
    else:
        texts = {str(value): value for value in distinct}
        own = {level: texts.get(level, level) for level in said}
        outside = [value for text, value in texts.items() if text not in own]
    if outside:
        raise DataError(
            f"column {name!r} holds {outside[0]!s}, which its order leaves out, expected one of "
            f"{' < '.join(said)}; add it to the order, or leave the entry empty"
        )
    return [*own.values()]


def _check_values(
    name: str, kind: str, said: Said, values: Series[Any], train: NDArray[np.bool_]
) -> None:
    import pandas as pd

    distinct, drop = values[train].dropna().unique(), f"--columns {name}=drop"
    if len(distinct) == 0:
        raise DataError(
            f"column {name!r} has no value in the training rows, expected two different ones at "
            f"least; leave it out: {drop}"
        )
    if len(distinct) == 1:
        raise DataError(
            f"column {name!r} has one value in all training rows, {distinct[0]!r}, expected two at "
            f"least; it says nothing, so leave it out: {drop}"
        )
    number = len(values.dropna().unique())
    if kind == "ordinal" and number > MOST[kind]:
        raise DataError(
            f"column {name!r} has {number} different values, expected at most {MOST[kind]} of an "
            f"ordinal one; say --columns {name}=continuous, or leave it out: {drop}"
        )
    if said.ends is not None and kind not in NUMBERS:
        raise DataError(
            f"--columns {name}={in_words(said.ends)} is a range of numbers, and column {name!r} "
            f"is {kind}; expected a column of numbers"
        )
    ordered = isinstance(values.dtype, pd.CategoricalDtype) or said.order is not None
    if kind in NUMBERS or (kind == "ordinal" and not ordered):
        numbers = _numbers(values)
        if (wrong := np.isnan(numbers) & values.notna().to_numpy()).any():
            order = "<".join(map(str, distinct[:4]))
            fix = f"; or say its order, such as --columns {name}={order}" * (kind == "ordinal")
            raise DataError(_no_number(name, values[wrong].iloc[0]) + fix)
        low, high = said.ends or (-math.inf, math.inf)
        if (outside := (numbers < low) | (numbers > high)).any():
            raise DataError(
                f"column {name!r} holds {numbers[outside][0]:g}, expected numbers in the range "
                f"{in_words((low, high))} that --columns says; correct it, or say another range"
            )
    if kind == "boolean" and (wrong := Boolean(name).unknown(values)).any():
        Boolean(name).codes(values[wrong])


class Unknown(NamedTuple):
    """Values that a column cannot have: their mask (n,), and in words some of them and where."""

    mask: NDArray[np.bool_]
    values: str
    are: str
    rows: str


def unknown_in(columns: Sequence[Column], table: DataFrame) -> dict[str, Unknown]:
    """The values of a table that its columns cannot have, by the names of such columns."""
    unknown = {}
    for column in columns:
        if column.name in table.columns:
            values = table[column.name]
            if (mask := column.unknown(values)).any():
                some = [*map(_shown, values[mask].astype(object).unique()[:6].tolist())]
                words = ", ".join(some[:5]) + (", …" if len(some) > 5 else "")
                are = "is" if len(some) == 1 else "are"
                unknown[column.name] = Unknown(mask, words, are, _rows(mask))
    return unknown


def known_alone(table: DataFrame, unknown: Mapping[str, Unknown]) -> DataFrame:
    """A table without its unknown values, missing there."""
    table = table.copy(deep=False)
    for name, own in unknown.items():
        table[name] = table[name].mask(own.mask)
    return table


def encode(columns: Sequence[Column], table: DataFrame) -> Tensor:
    """The codes of a table, (n, d) float64 (DataError: a missing column or an invalid value)."""
    if absent := [c.name for c in columns if c.name not in table.columns]:
        raise DataError(
            f"the table has no column {', '.join(map(repr, absent))}, expected "
            f"{', '.join(c.name for c in columns)}; add these, empty where nothing is known"
        )
    return torch.from_numpy(np.stack([c.codes(table[c.name]) for c in columns], 1))


def to_model_space(
    columns: Sequence[Column], codes: Tensor, generator: torch.Generator | None = None
) -> Dequantized:
    """x (n, Σ width) float32 of stored data (n, d), NaN where missing, and the log-determinant (n,)
    of the rest.

    Values that have a probability are fresh draws from their intervals at each call, and
    log p(x) + log-determinant is a bound of log p(row) in expectation.
    """
    codes = codes.double()
    noise: list[Tensor | None] = [None] * len(columns)
    if noisy := [j for j, c in enumerate(columns) if c.noisy]:
        shape = (len(codes), len(noisy))
        if generator is None:
            drawn = randomness.uniform(shape, torch.float64, codes.device)
        else:
            drawn = torch.rand(shape, generator=generator, dtype=torch.float64).to(codes.device)
        for j, own in zip(noisy, drawn.unbind(-1), strict=True):
            noise[j] = own
    parts = zip(columns, codes.unbind(-1), noise, strict=True)
    xs, log_dets = zip(*[c.scaled(w, u) for c, w, u in parts], strict=True)
    x = torch.cat([own.unsqueeze(-1) if own.dim() == 1 else own for own in xs], -1)
    log_det = torch.where(codes.isnan(), 0, torch.stack(log_dets, -1)).sum(-1)
    return Dequantized(x.float(), log_det.float())


def decode(columns: Sequence[Column], x: Tensor) -> DataFrame:
    """The table of data x (n, Σ width) in model space, in its own units; NaN becomes empty."""
    import pandas as pd

    table = {}
    for column, own in zip(columns, x.cpu().split([c.width for c in columns], -1), strict=True):
        codes = column.unscaled(own if column.width > 1 else own.squeeze(-1)).numpy()
        missing = np.isnan(codes)
        values = pd.Series(column.values(np.where(missing, 0, codes)))
        table[column.name] = values.mask(missing) if missing.any() else values
    return pd.DataFrame(table)
