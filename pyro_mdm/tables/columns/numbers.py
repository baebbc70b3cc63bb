"""Columns of numbers, scaled to N(0, 1), with intervals where values have mass."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pyro_mdm.support.checks import DataError
from pyro_mdm.tables.columns import base, scales
from pyro_mdm.tables.columns.base import EVERYWHERE, Center, Column, ColumnSpec, Ends, Mask, Values
from pyro_mdm.tables.columns.lazy import pd

__all__ = ["Bounded", "Continuous", "Integer", "Mixed", "Nonnegative", "Rounded"]

END = 1.0
"""The length in model space of the end of a line whose slope its tail continues."""


class Continuous(Column):
    r"""A continuous column, mapped to x ~ N(0, 1) by lines between and beyond quantiles.

    ``x_i = Φ^{-1}(p_i)`` at the p_i-quantile, as in scikit-learn's ``QuantileTransformer``; the
    least and the largest of n values are the quantiles of 1/2n and 1 - 1/2n.
    ``QuantileTransformer`` is flat outside of the fitted values, where the density would be 0. A
    line with fewer bends replaces it where it fits. No x becomes a number beyond the sharp
    ends of the values, see :func:`~pyro_mdm.tables.columns.scales.edges_of`.

    Args:
        name: the name of the column.
        values: the values that it is fitted to, (n,), NaN where missing. The number of knots is the
            square root of theirs, at most 100.
    """

    kind: str = "continuous"
    ranged: ClassVar[bool] = True
    _ends: Ends | None = None
    """The ends that were given."""
    _lower: float = -math.inf
    _upper: float = math.inf
    """The least and the largest number that it may have."""
    _edges: Ends = EVERYWHERE
    """The least and the largest number that is drawn, or multiple of the step."""
    _half: ClassVar[float] = 0.0
    """Half of the width of the interval that becomes one of these."""

    def __init__(self, name: str, values: Values) -> None:
        super().__init__(name)
        there = np.sort(values[~np.isnan(values)])
        self._edges = scales.edges_of(there)
        if not self._straighten(*scales.shares(there), len(there)):
            knots, share = scales.quantiles(there)
            self._set_line(knots, share.clip(0.5 / len(there), 1 - 0.5 / len(there)))

    @classmethod
    def recognizes(cls, values: pd.Series) -> bool:
        return True

    @classmethod
    def check(cls, name: str, values: pd.Series, spec: ColumnSpec) -> None:
        base.check_numbers(name, values, spec)

    @classmethod
    def fit(cls, name: str, values: pd.Series, train: Mask, spec: ColumnSpec) -> Column:
        numbers = base.finite_numbers(name, values)
        if issubclass(cls, Mixed | Rounded) or spec.ends is not None:
            kind = cls if issubclass(cls, Mixed | Rounded) else Bounded
            return kind(name, numbers[train], numbers, spec.ends)
        return cls(name, numbers[train])

    def _straighten(self, w: Values, share: Values, number: int, ends: Ends = EVERYWHERE) -> bool:
        """Whether there is a line with few bends, which is then set; at most
        two values of all lie beyond the edges by it."""
        low, high = self._edges
        slack = 2 * (w[-1] - w[0]) / number + self._half
        line = scales.fewest_bends(w, share, number, ends, (low - slack, high + slack))
        if line is not None:
            self._w, self._x = map(torch.from_numpy, line)
        return line is not None

    def _set_line(self, w: Values, share: Values) -> None:
        self._w = torch.from_numpy(w)
        self._x = torch.special.ndtri(torch.from_numpy(share))

    def _set_tails(self, low: bool = True, high: bool = True) -> None:
        """Extend the line beyond its ends, with the slope of its last :data:`END` of x, as two
        neighbouring values may be close; or flat at an end that is False."""
        w, x = self._w, self._x
        first = (x < x[0] + END).sum().clamp(int((w == w[0]).sum()), len(x) - 1)
        last = len(x) - 1 - (x > x[-1] - END).sum().clamp(int((w == w[-1]).sum()), len(x) - 1)
        start = low * (w[first] - w[0]) / (x[first] - x[0])
        end = high * (w[-1] - w[last]) / (x[-1] - x[last])
        self._w = torch.cat([w[:1] - start, w, w[-1:] + end])
        self._x = torch.cat([x[:1] - 1, x, x[-1:] + 1])

    def read(self, values: pd.Series) -> Values:
        codes = base.finite_numbers(self.name, values)
        return np.where(self._impossible(codes), math.nan, codes)

    def _impossible(self, numbers: Values) -> Mask:
        """The mask of numbers that the column cannot have, (n,)."""
        return np.asarray((numbers < self._lower) | (numbers > self._upper))

    def refusal(self, value: object) -> str:
        number = base.as_number(value)
        if number is None:
            return base.no_number(self.name, value)
        low, high = self._lower, self._upper
        where = f"below {low:g}" if number <= low else f"above {high:g}"
        return (
            f"column {self.name!r} holds {number:g}, and the table of the run has none "
            f"{'at or ' * (number in (low, high))}{where}; leave the entry empty, or train with "
            f'columns="{self.name}=continuous"'
        )

    def values(self, codes: Values) -> Values | pd.Index:
        return codes

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        w, x = self._w.to(codes.device), self._x.to(codes.device)
        return scales.along(codes, w, x)

    def unscaled(self, x: Tensor) -> Tensor:
        w = scales.along(x.double(), self._x.to(x.device), self._w.to(x.device))[0]
        return w.clamp(*self._edges)

    def center(self, draws: Values, center: Center) -> Values:
        return np.asarray(draws.mean(0) if center == "mean" else np.median(draws, 0))

    @property
    def in_words(self) -> str:
        return f"{self.kind}: a density on the whole line{self._ends_in_words}"

    @property
    def _ends_in_words(self) -> str:
        words = ""
        for none, (low, high) in {
            "none": (self._lower, self._upper),
            "none drawn": self.edges,
        }.items():
            words += f", {none} below {low:.12g}" if low > -math.inf else ""
            words += f", {none} above {high:.12g}" if high < math.inf else ""
        return words

    @property
    def edges(self) -> Ends:
        """The least and the largest number that is drawn; infinite where values have no sharp
        end."""
        return self._edges

    @property
    def spec(self) -> str:
        return self.kind if self._ends is None else f"{self.kind} {base.range_in_words(self._ends)}"


class Mixed(Continuous):
    r"""A column of numbers with a density beside atoms, and no density beyond its ends.

    Atoms are those of :func:`~pyro_mdm.tables.columns.scales.atoms_of`. An end is given, or 0 if
    no number is negative. ``x = Φ^{-1}(P(value < w))`` at quantiles of numbers that are no atoms,
    and at an atom a from P(value < a) to P(value <= a), which is its interval; it is linear
    between. The least and the largest number are ends if they are atoms, whose intervals are then
    unbounded. Else the line goes on, and before an end e that is no number it is
    ``w = e + (w_1 - e) exp(s (x - x_1)/(w_1 - e))``, with s its slope or less, so that no x reaches
    e.

    Args:
        name, values: as for :class:`Continuous`.
        everything: the numbers of all rows, which decide its ends.
        ends: the least and the largest number that it may have; None: inferred.
    """

    kind = "mixed"
    noisy = True
    _repeats: ClassVar[bool] = True
    """Whether numbers that repeat are atoms, and not only ends."""

    def __init__(
        self, name: str, values: Values, everything: Values, ends: Ends | None = None
    ) -> None:
        Column.__init__(self, name)
        self._ends = ends
        there = np.sort(values[~np.isnan(values)])
        least, most = float(np.nanmin(everything)), float(np.nanmax(everything))
        atoms = scales.atoms_of(there) if self._repeats else np.empty(0)
        if ends is not None:
            atoms = np.union1d(atoms, [end for end in ends if end in (least, most)])
            self._lower, self._upper = ends
        else:
            if least == 0:
                atoms = np.union1d(atoms, 0.0)
            self._lower = least if least in atoms else 0.0 if least >= 0 else -math.inf
            self._upper = most if most in atoms else math.inf
            rest = everything[~np.isnan(everything) & ~np.isin(everything, atoms)]
            if len(rest) and (rest.min(), rest.max()) == (least, most):
                self._edges = scales.edges_of(np.sort(rest))
        ends = self._lower, self._upper
        if len(atoms) or not self._straighten(*scales.shares(there), len(there), ends):
            self._set_line(*scales.beside(atoms, there, ends))
        first = np.searchsorted(self._w.numpy(), atoms)
        low, high = self._x[first].clone(), self._x[first + 1]
        if len(atoms):
            low[0] = -math.inf if atoms[0] == self._lower else low[0]
            high[-1] = math.inf if atoms[-1] == self._upper else high[-1]
        self.atoms, self._low, self._high = torch.from_numpy(atoms), low, high
        self._set_tails(self._lower not in atoms, self._upper not in atoms)

    @classmethod
    def recognizes(cls, values: pd.Series) -> bool:
        return len(scales.atoms_of(scales.finite_of(values))) > 0

    def _impossible(self, numbers: Values) -> Mask:
        return super()._impossible(numbers) | np.isin(numbers, [end for end, *_ in self._tails])

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
        drawn, log_density = scales.within(low, high, noise)
        here = codes == atoms[k]
        return torch.where(here, drawn, x), torch.where(here, -log_density, log_slope)

    def unscaled(self, x: Tensor) -> Tensor:
        x = x.double()
        w = super().unscaled(x)
        for end, start, x_start, slope in self._tails:
            beyond = x < x_start if end < start else x > x_start
            tail = (slope * (x - x_start) / (start - end)).clamp_max(0).exp()
            w = torch.where(beyond, end + (start - end) * tail, w)
        return w.clamp(*self._edges)

    @property
    def _tails(self) -> list[tuple[float, float, float, float]]:
        """The ends that the line approaches but does not reach: each with the point (w, x) from
        which it does, and the slope dw/dx there."""
        tails, atoms = [], self.atoms.tolist()
        points = [*zip(self._w.tolist(), self._x.tolist(), strict=True)]
        for end, line in ((self._lower, points), (self._upper, points[::-1])):
            if math.isfinite(end) and end not in atoms:
                (beyond, _), (w, x) = line[:2]  # one unit of x apart
                tails.append((end, w, x, min(abs(w - beyond), abs(w - end))))
        return tails

    def center(self, draws: Values, center: Center) -> Values:
        """The atom that most draws are, or else the centre of all draws."""
        middle = super().center(draws, center)
        for atom in self.atoms.tolist():
            middle[2 * (draws == atom).sum(0) > len(draws)] = atom
        return middle

    @property
    def in_words(self) -> str:
        if len(self.atoms) == 0:
            return f"{self.kind}: a density{self._ends_in_words}"
        shares = (scales.share_below(self._high) - scales.share_below(self._low)).tolist()
        atoms = [f"{a:g} ({s:.1%})" for a, s in zip(self.atoms.tolist(), shares, strict=True)]
        words = ", ".join(atoms[:5]) + (f" and {len(atoms) - 5} more" if len(atoms) > 5 else "")
        return f"{self.kind}: atoms {words}, and a density beside them{self._ends_in_words}"


class Bounded(Mixed):
    """A continuous column with a range, and atoms at ends that numbers have.

    Args:
        name, values, everything, ends: as for :class:`Mixed`.
    """

    kind = "continuous"
    _repeats = False


class Nonnegative(Bounded):
    """A column of numbers with a density above 0, and an atom at 0 if a number is 0.

    Args:
        name, values, everything, ends: as for :class:`Mixed`.

    Raises:
        DataError: a negative number without a given range.
    """

    kind = "nonnegative"

    def __init__(
        self, name: str, values: Values, everything: Values, ends: Ends | None = None
    ) -> None:
        least = float(np.nanmin(everything))
        if least < 0 and ends is None:
            raise DataError(
                f"column {name!r} holds {least:g}, expected no negative number in a nonnegative "
                f'one; say columns="{name}=continuous"'
            )
        super().__init__(name, values, everything, ends)

    @classmethod
    def recognizes(cls, values: pd.Series) -> bool:
        numbers = scales.finite_of(values)
        return len(numbers) > 0 and bool((numbers >= 0).all())


class Rounded(Continuous):
    r"""A column of multiples of a step, such as 1, 0.01, 0.5 or 1000, each with its probability.

    The interval of w has all numbers that would be rounded to it, w ± ½ step. Its ends are at
    ``x = Φ^{-1}(P(value < end))`` for values at quantiles, and on a line between and beyond them.
    There is no largest multiple unless it is given. If no number is negative, the interval of 0 has
    all that is below.

    Args:
        name, values, everything, ends: as for :class:`Mixed`; all rows decide the step too.

    Raises:
        DataError: numbers with too many decimals.
    """

    kind = "rounded"
    noisy = True
    _half: ClassVar[float] = 0.5
    _multiple: int = 1
    """The number of units of the last decimal in a step."""

    def __init__(
        self, name: str, values: Values, everything: Values, ends: Ends | None = None
    ) -> None:
        Column.__init__(self, name)
        self._ends = ends
        self._decimals = self._digits(everything)
        self._multiple = scales.multiple_of(everything, self._decimals)
        least = 0.0 if float(np.nanmin(everything)) >= 0 else -math.inf
        self._lower, self._upper = (least, math.inf) if ends is None else ends
        if (wrong := self._unrounded(everything)).any():
            raise DataError(self.refusal(everything[wrong][0]))
        there = np.sort(self._whole(values[~np.isnan(values)]))
        if ends in (None, EVERYWHERE):
            self._edges = scales.edges_of(
                np.sort(self._whole(everything[~np.isnan(everything)])), 1.0
            )
        edges = np.unique(np.concatenate([there - 0.5, there + 0.5]))
        share = scales.smoothed(np.searchsorted(there, edges), len(there))
        if self._straighten(edges, share, len(there)):
            return
        number = int(np.clip(math.isqrt(len(there)), 2, scales.KNOTS))
        places = np.linspace(0, len(there) - 1, number).round().astype(int)
        edges = np.unique(np.concatenate([there[places] - 0.5, there[places] + 0.5]))
        self._set_line(edges, scales.smoothed(np.searchsorted(there, edges), len(there)))
        self._set_tails()

    @classmethod
    def recognizes(cls, values: pd.Series) -> bool:
        numbers = scales.finite_of(values)
        decimals = scales.decimals_of(numbers)
        if len(numbers) == 0 or decimals is None:
            return False
        if np.ptp(numbers) * 10.0**decimals <= scales.STEPS * scales.multiple_of(numbers, decimals):
            return True
        counts = np.unique(numbers, return_counts=True)[1]
        rare = counts[counts < max(scales.REPEATS, scales.SHARE * len(numbers))]
        return bool(2 * len(rare) <= rare.sum()) and not len(scales.atoms_of(numbers))

    def _digits(self, numbers: Values) -> int:
        """The number of decimals that numbers are rounded to."""
        decimals = scales.decimals_of(numbers)
        if decimals is None:
            raise DataError(
                f"column {self.name!r} has numbers of more than {scales.DECIMALS} decimals, "
                f'expected rounded ones; say columns="{self.name}=continuous"'
            )
        return decimals

    def _whole(self, values: Values) -> Values:
        return np.asarray((values * self._per_unit).round())

    @property
    def _per_unit(self) -> float:
        """The number of steps of one unit."""
        return 10.0**self._decimals / self._multiple

    def _unrounded(self, values: Values) -> Mask:
        return np.asarray((np.round(values, self._decimals) != values) & ~np.isnan(values))

    def _impossible(self, numbers: Values) -> Mask:
        return super()._impossible(numbers) | self._unrounded(numbers)

    def refusal(self, value: object) -> str:
        number = base.as_number(value)
        if number is not None and self._unrounded(np.array([number]))[0]:
            expected = f"numbers of {self._decimals} decimals" if self._decimals else "whole ones"
            return (
                f"column {self.name!r} holds {number:g}, expected {expected}; round it, or train "
                f'with columns="{self.name}=continuous"'
            )
        return super().refusal(value)

    def values(self, codes: Values) -> Values | pd.Index:
        return np.round(codes, self._decimals)

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert noise is not None
        whole = (codes * 10.0**self._decimals).round() / self._multiple
        low, high = (super(Rounded, self).scaled(whole + half)[0] for half in (-0.5, 0.5))
        first, last = self._whole_ends
        low = torch.where(whole <= first, -math.inf, low)
        high = torch.where(whole >= last, math.inf, high)
        x, log_density = scales.within(low, high, noise)
        return x, -log_density

    def unscaled(self, x: Tensor) -> Tensor:
        whole = super().unscaled(x).round().clamp(*self._whole_ends)
        return whole / self._per_unit

    @property
    def edges(self) -> Ends:
        low, high = self._edges
        return low / self._per_unit, high / self._per_unit

    @property
    def _whole_ends(self) -> Ends:
        """The least and the largest multiple."""
        low, high = (end * self._per_unit for end in (self._lower, self._upper))
        return float(np.ceil(low - scales.MARGIN)), float(np.floor(high + scales.MARGIN))

    def center(self, draws: Values, center: Center) -> Values:
        return np.asarray(self.values(super().center(draws, center)))

    @property
    def in_words(self) -> str:
        what = "integer" if self._decimals == 0 else f"number of {self._decimals} decimals"
        if self._multiple > 1:
            what = f"multiple of {1 / self._per_unit:.12g}"
        return f"{self.kind}: a probability of each {what}{self._ends_in_words}"


class Integer(Rounded):
    """A column of whole numbers, each with its probability.

    Args:
        name, values, everything, ends: as for :class:`Rounded`.

    Raises:
        DataError: other numbers.
    """

    kind = "integer"

    @classmethod
    def recognizes(cls, values: pd.Series) -> bool:
        numbers = scales.finite_of(values)
        return len(numbers) > 0 and scales.decimals_of(numbers) == 0

    def _digits(self, numbers: Values) -> int:
        return 0

    def values(self, codes: Values) -> Values | pd.Index:
        return codes.round().astype(np.int64)
