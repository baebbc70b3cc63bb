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
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.files import DataError
from pyro_mdm import randomness
from pyro_mdm.likelihoods.dequantization import Dequantized

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Kind = Literal[
    "continuous", "nonnegative", "mixed", "rounded", "integer", "ordinal", "categorical", "drop"
]

OTHERS = "*"
"""Stands for the columns that no kind is given for."""
PLAIN = "plain"
"""Kind of :data:`OTHERS`: continuous, ordinal or categorical, whatever numbers repeat, and all
categories on a line, as in the first tables."""

FEW = 20
"""The most distinct whole numbers of an ordinal column, by default."""

MOST = {"ordinal": 256, "categorical": 100}
"""The most levels of a column, by kind."""

KNOTS = 100
"""The most quantiles for the scale of a column."""

REPEATS, SHARE = 5, 0.02
"""How often a number is there at least, and in which part of the rows, to be an atom."""
DECIMALS = 6
"""The most digits behind the point of a rounded column."""
WHOLE = 2.0**53
"""Whole numbers from which on float64 does not have them all."""
END = 1.0
"""The part of a line, in model space, that its tail goes on with."""
MARGIN = 1e-6
"""The part of an interval of model space that is left out at each end, which rounding needs."""

Values = NDArray[Any]
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

    @abstractmethod
    def codes(self, values: Series[Any]) -> Values:
        """The codes of values, (n,) float64, NaN where missing (DataError: an invalid value)."""

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
    def told(self) -> str:
        """The column in words, without its name."""
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

    def __init__(self, name: str, values: Values) -> None:
        super().__init__(name)
        known = values[~np.isnan(values)]
        knots, share = _quantiles(known)
        share = share.clip(0.5 / len(known), 1 - 0.5 / len(known))
        self._set_line(knots, share)

    def _set_line(self, w: Values, share: Values) -> None:
        self._w = torch.from_numpy(w)
        self._x = torch.special.ndtri(torch.from_numpy(share))

    def _set_tails(self) -> None:
        """Give the line beyond each end the slope of its last :data:`END` of x, as two values that
        are next to each other may be close."""
        w, x = self._w, self._x
        low = int(torch.searchsorted(x, x[:1] + END).clamp_max(len(x) - 1))
        high = int(torch.searchsorted(x, x[-1:] - END, right=True) - 1)
        start, end = (w[low] - w[0]) / (x[low] - x[0]), (w[-1] - w[high]) / (x[-1] - x[high])
        start, end = start * (w[1] > w[0]), end * (w[-1] > w[-2])  # an atom at an end has no tail
        self._w = torch.cat([w[:1] - start, w, w[-1:] + end])
        self._x = torch.cat([x[:1] - 1, x, x[-1:] + 1])

    def codes(self, values: Series[Any]) -> Values:
        return _finite_numbers(self.name, values)

    def values(self, codes: Values) -> Any:
        return codes

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        w, x = self._w.to(codes.device), self._x.to(codes.device)
        return _along(codes, w, x)

    def unscaled(self, x: Tensor) -> Tensor:
        return _along(x.double(), self._x.to(x.device), self._w.to(x.device))[0]

    def center(self, draws: Values, center: Center) -> Values:
        return np.asarray(draws.mean(0) if center == "mean" else np.median(draws, 0))

    @property
    def told(self) -> str:
        return f"{self.kind}: a density on the whole line"


class Mixed(Continuous):
    r"""A density beside atoms, and none below 0 where no number is.

    x = Φ^{-1}(P(value < w)) at quantiles of what is no atom, and at an atom a from P(value < a) to
    P(value <= a), which is its interval; a line between. The least number is an end if it is an
    atom, and the greatest; its interval has no end then. Else the line goes on, where no number is
    negative by w = w_1 exp(s (x - x_1)/w_1), s being its slope.

    Args:
        kind: "nonnegative", whose one atom is 0 if the column has it, or "mixed", see
            :func:`atoms_of`.
        values: that it is fitted to, NaN where there is none.
        everything: numbers of all rows, which say where it ends.

    Raises:
        DataError: a negative number in a nonnegative column.
    """

    noisy = True

    def __init__(self, kind: Kind, name: str, values: Values, everything: Values) -> None:
        Column.__init__(self, name)
        self.kind = kind
        known = np.sort(values[~np.isnan(values)])
        least, most = float(np.nanmin(everything)), float(np.nanmax(everything))
        if kind == "nonnegative" and least < 0:
            raise DataError(
                f"column {name!r} holds {least:g}, expected no negative number in a nonnegative "
                f"one; say --columns {name}=continuous"
            )
        atoms = atoms_of(known) if kind == "mixed" else np.empty(0)
        if least == 0:
            atoms = np.union1d(atoms, 0.0)
        self._lower = least if least in atoms else 0.0 if least >= 0 else -math.inf
        self._upper = most if most in atoms else math.inf
        rest = known[~np.isin(known, atoms)]
        knots, share = _quantiles(rest) if len(rest) else (np.empty(0), np.empty(0))
        inner = ~np.isin(knots, atoms)
        knots, share = knots[inner], share[inner]
        below = np.interp(atoms, knots, share, 0.0, 1.0) if len(knots) else 0 * atoms
        before = len(rest) * below + np.searchsorted(known, atoms) - np.searchsorted(rest, atoms)
        counts = np.searchsorted(known, atoms, "right") - np.searchsorted(known, atoms)
        of_atoms = np.searchsorted(known, knots) - np.searchsorted(rest, knots)
        w = np.concatenate([knots, atoms, atoms])
        rank = np.concatenate([len(rest) * share + of_atoms, before, before + counts])
        order = np.lexsort((rank, w))
        self._set_line(w[order], _smoothed(rank[order], len(known)))
        first = np.searchsorted(w[order], atoms)
        low, high = self._x[first].clone(), self._x[first + 1]
        if len(atoms):
            low[0] = -math.inf if atoms[0] == self._lower else low[0]
            high[-1] = math.inf if atoms[-1] == self._upper else high[-1]
        self.atoms, self._low, self._high = torch.from_numpy(atoms), low, high
        self._set_tails()

    def codes(self, values: Series[Any]) -> Values:
        codes = super().codes(values)
        _check_range(self.name, codes, self._lower, self._upper)
        return codes

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_slope = super().scaled(codes)
        start, end, slope = self._tail
        if self._bends:
            beyond = codes < start
            log_ratio = (codes / start).log()
            x = torch.where(beyond, end + start / slope * log_ratio, x)
            log_slope = torch.where(beyond, -math.log(slope) - log_ratio, log_slope)
        if len(self.atoms) == 0:
            return x, log_slope
        assert noise is not None
        atoms = self.atoms.to(codes.device)
        k = torch.searchsorted(atoms, codes.contiguous()).clamp_max(len(atoms) - 1)
        low, high = self._low.to(codes.device)[k], self._high.to(codes.device)[k]
        own, log_density = _within(low, high, noise)
        here = codes == atoms[k]
        return torch.where(here, own, x), torch.where(here, -log_density, log_slope)

    def unscaled(self, x: Tensor) -> Tensor:
        x = x.double()
        w = super().unscaled(x)
        if not self._bends:
            return w
        start, end, slope = self._tail
        tail = start * (slope * (x - end) / start).clamp_max(0).exp()
        return torch.where(x < end, tail, w)

    @property
    def _bends(self) -> bool:
        """Whether the line turns away from 0."""
        return self._lower == 0 and not (len(self.atoms) and float(self.atoms[0]) == 0)

    @property
    def _tail(self) -> tuple[float, float, float]:
        """The first point (w, x) of a value, and the slope dw/dx before it."""
        w, x = self._w[:2].tolist(), self._x[:2].tolist()
        return w[1], x[1], w[1] - w[0]

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
        shares = (_share_below(self._high) - _share_below(self._low)).tolist()
        each = [f"{a:g} ({s:.1%})" for a, s in zip(self.atoms.tolist(), shares, strict=True)]
        more = f" and {len(each) - 5} more" if len(each) > 5 else ""
        return f"{self.kind}: atoms {', '.join(each[:5])}{more}, and a density beside them{ends}"


class Rounded(Continuous):
    r"""Multiples of a power of ten, each with its probability: integers, or rounded numbers.

    The interval of w is that of all that would be rounded to it, w ± ½ step, its ends being
    x = Φ^{-1}(P(value < end)) at the ends of the values at quantiles, and on a line between and
    beyond them. There is no greatest one. Where no number is negative, 0 has all that is below.

    Args:
        kind: "integer" or "rounded".
        values: that it is fitted to, NaN where there is none.
        everything: numbers of all rows, which say what they are rounded to and whether they end at
            0.

    Raises:
        DataError: numbers that are not rounded so.
    """

    noisy = True

    def __init__(self, kind: Kind, name: str, values: Values, everything: Values) -> None:
        Column.__init__(self, name)
        self.kind = kind
        decimals = 0 if kind == "integer" else decimals_of(everything)
        if decimals is None:
            raise DataError(
                f"column {name!r} has numbers of more than {DECIMALS} decimals, expected rounded "
                f"ones; say --columns {name}=continuous"
            )
        self._decimals = decimals
        self._lower = 0.0 if float(np.nanmin(everything)) >= 0 else -math.inf
        self._check(everything)
        known = np.sort(self._whole(values[~np.isnan(values)]))
        number = int(np.clip(math.isqrt(len(known)), 2, KNOTS))
        places = np.linspace(0, len(known) - 1, number).round().astype(int)
        edges = np.unique(np.concatenate([known[places] - 0.5, known[places] + 0.5]))
        self._set_line(edges, _smoothed(np.searchsorted(known, edges), len(known)))
        self._set_tails()

    def _whole(self, values: Values) -> Values:
        return np.asarray((values * 10.0**self._decimals).round())

    def _check(self, values: Values) -> None:
        wrong = np.round(values, self._decimals) != values
        wrong &= ~np.isnan(values)
        if wrong.any():
            expected = f"numbers of {self._decimals} decimals" if self._decimals else "whole ones"
            raise DataError(
                f"column {self.name!r} holds {values[wrong][0]:g}, expected {expected}; round it, "
                f"or train with --columns {self.name}=continuous"
            )
        _check_range(self.name, values, self._lower, math.inf)

    def codes(self, values: Series[Any]) -> Values:
        codes = super().codes(values)
        self._check(codes)
        return codes

    def values(self, codes: Values) -> Any:
        if self.kind == "integer":
            return codes.round().astype(np.int64)
        return np.round(codes, self._decimals)

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert noise is not None
        whole = (codes * 10.0**self._decimals).round()
        low, high = (super(Rounded, self).scaled(whole + half)[0] for half in (-0.5, 0.5))
        low = torch.where(whole <= self._lower, -math.inf, low)
        x, log_density = _within(low, high, noise)
        return x, -log_density

    def unscaled(self, x: Tensor) -> Tensor:
        whole = super().unscaled(x).round().clamp_min(self._lower)
        return whole / 10.0**self._decimals

    def center(self, draws: Values, center: Center) -> Values:
        return np.asarray(self.values(super().center(draws, center)))

    @property
    def told(self) -> str:
        what = "integer" if self._decimals == 0 else f"number of {self._decimals} decimals"
        return f"{self.kind}: a probability of each {what}{_ends(self._lower, math.inf)}"


def _ends(lower: float, upper: float) -> str:
    """The ends of a column in words."""
    low = f", none below {lower:g}" if lower > -math.inf else ""
    return low + (f", none above {upper:g}" if upper < math.inf else "")


def _check_range(name: str, codes: Values, lower: float, upper: float) -> None:
    wrong = (codes < lower) | (codes > upper)
    if wrong.any():
        raise DataError(
            f"column {name!r} holds {codes[wrong][0]:g}, and the table of the run has none "
            f"{f'below {lower:g}' if codes[wrong][0] < lower else f'above {upper:g}'}; leave the "
            f"entry empty, or train with --columns {name}=continuous"
        )


def _quantiles(values: Values) -> tuple[Values, Values]:
    """Quantiles that differ, at most 100, and the shares of values below them."""
    from sklearn.preprocessing import QuantileTransformer

    number = int(np.clip(math.isqrt(len(values)), 2, KNOTS))
    scaler = QuantileTransformer(n_quantiles=number, subsample=None).fit(values[:, None])
    knots, where = np.unique(scaler.quantiles_[:, 0], return_inverse=True)
    return knots, np.bincount(where, scaler.references_) / np.bincount(where)


def _smoothed(ranks: Values, number: int) -> Values:
    """Shares that increase, in (0, 1), for ranks among ``number`` values that never fall: a value
    more is spread evenly over the steps between them, and half a one lies beyond each end."""
    even = np.arange(len(ranks)) / (len(ranks) - 1)
    return np.asarray((ranks + even + 0.5) / (number + 2))


def _within(low: Tensor, high: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """x ~ N(0, 1) given low < x < high, and its log density, of uniform noise.

    Where float64 has no mass to tell, far out, x is uniform over the unit next to the centre.
    """
    flip = low + high > 0  # seen from the lower tail, whose masses are exact
    left, right = torch.where(flip, -high, low), torch.where(flip, -low, high)
    noise = MARGIN + (1 - 2 * MARGIN) * noise
    below, above = _share_below(left), _share_below(right)
    mass = above - below
    x = torch.special.ndtri(below + mass * noise)
    log_density = -0.5 * x.square() - 0.5 * math.log(2 * math.pi) - mass.log()
    far = mass < 1e-200
    start = torch.maximum(left, right - 1)
    x = torch.where(far, start + (right - start) * noise, x)
    log_density = torch.where(far, -(right - start).log(), log_density)
    return torch.where(flip, -x, x), log_density - math.log1p(-2 * MARGIN)


def _share_below(x: Tensor) -> Tensor:
    """Φ(x), also far below 0, where ``torch.special.ndtr`` has lost it."""
    return 0.5 * torch.special.erfc(-math.sqrt(0.5) * x)


def _along(value: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The line through points (start_i, end_i), continued beyond both ends, and its log slope."""
    i = torch.searchsorted(start, value.contiguous()).clamp(1, len(start) - 1)
    slope = (end[i] - end[i - 1]) / (start[i] - start[i - 1])
    return end[i - 1] + slope * (value - start[i - 1]), slope.log()


class _Levels(Column):
    """Levels k = 0 … n - 1 at linspace(-1, 1, n)."""

    _known: Sequence[Any]

    def codes(self, values: Series[Any]) -> Values:
        place = {value: k for k, value in enumerate(self._known)}
        values = values.astype(object)
        levels = values.map(place).to_numpy(dtype=np.float64, na_value=math.nan)
        unknown = values.notna().to_numpy() & np.isnan(levels)
        if unknown.any():
            raise DataError(self._unknown(values[unknown].iloc[0]))
        return np.asarray(levels)

    def _unknown(self, value: object) -> str:
        known = ", ".join(map(repr, self._known[:8])) + (", …" if len(self._known) > 8 else "")
        return (
            f"column {self.name!r} holds {value!r}, which the training rows never have; expected "
            f"one of {known}. Leave the entry empty, join it with another category, or drop the "
            f"column: --columns {self.name}=drop"
        )

    def values(self, codes: Values) -> Any:
        return np.asarray(self._known, dtype=object)[codes.astype(int)]

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return 2 * codes / (self._count - 1) - 1, torch.zeros_like(codes)

    def unscaled(self, x: Tensor) -> Tensor:
        top = self._count - 1
        return ((x.double() + 1) / 2 * top).round().clamp(0, top)

    @property
    def _count(self) -> int:
        """The number of levels."""
        return len(self._known)


class Ordinal(_Levels):
    """A column of few numbers, in their order.

    Args:
        values: all values that it may have, in any order.
    """

    kind = "ordinal"

    def __init__(self, name: str, values: Values) -> None:
        super().__init__(name)
        self._known = np.unique(values[~np.isnan(values)]).tolist()
        self.levels = len(self._known)

    def codes(self, values: Series[Any]) -> Values:
        import pandas as pd

        return super().codes(pd.Series(_numbers(self.name, values).tolist()))

    def values(self, codes: Values) -> Any:
        numbers = np.asarray(self._known)
        if (numbers == numbers.round()).all():
            numbers = numbers.astype(np.int64)
        return numbers[codes.astype(int)]

    def center(self, draws: Values, center: Center) -> Values:
        """The median draw."""
        return np.asarray(np.sort(draws, 0)[len(draws) // 2])

    @property
    def told(self) -> str:
        first, last = self._known[0], self._known[-1]
        return f"ordinal: {self.levels} numbers in their order, {first:g} to {last:g}"


class Categorical(_Levels):
    """A column of categories, the most frequent first: one-hot, or if there are two on a line.

    Args:
        values: the values that it is fitted to.
        one_hot: False: on a line, however many there are.
    """

    kind = "categorical"

    def __init__(self, name: str, values: Series[Any], *, one_hot: bool = True) -> None:
        super().__init__(name)
        self._known = values.dropna().astype(object).value_counts().index.tolist()
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


def _numbers(name: str, values: Series[Any]) -> Values:
    """Values as float64, NaN where missing."""
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce")
    wrong = numbers.isna() & values.notna()
    if wrong.any():
        raise DataError(
            f"column {name!r} holds {values[wrong].iloc[0]!r}, expected a number; correct it, or "
            f"say --columns {name}=categorical"
        )
    return numbers.to_numpy(dtype=np.float64, na_value=math.nan)


def _finite_numbers(name: str, values: Series[Any]) -> Values:
    """Values as float64, finite, or NaN where missing."""
    numbers = _numbers(name, values)
    if np.isinf(numbers).any():
        raise DataError(
            f"column {name!r} holds an infinite number, expected finite ones; leave the entry empty"
        )
    return numbers


# -- all columns -----------------------------------------------------------------------------------


def atoms_of(known: Values) -> Values:
    """Numbers that repeat more often than a density can explain, in order.

    They are those which at least 5 values and 2% of all values are, unless the others mostly repeat
    too: these are rounded then, and none is an atom.
    """
    numbers, counts = np.unique(known, return_counts=True)
    often = counts >= max(REPEATS, SHARE * len(known))
    others = counts[~often]
    return numbers[often] if 2 * len(others) >= others.sum() > 0 else numbers[:0]


def decimals_of(values: Values) -> int | None:
    """Decimals that numbers are rounded to, NaN left out; None: more than :data:`DECIMALS`."""
    known = values[~np.isnan(values)]
    for decimals in range(DECIMALS + 1):
        small = bool((np.abs(known) * 10.0**decimals < WHOLE).all())
        if small and bool((np.round(known, decimals) == known).all()):
            return decimals
    return None


def kind_of(values: Series[Any]) -> Kind:
    """The kind of a column by its values.

    Categorical unless they are numbers; ordinal if these are at most 20 different whole numbers, or
    two; integer if they are whole. Else mixed if there are :func:`atoms_of` them; rounded if most
    numbers repeat, and none has more than 6 decimals; nonnegative if none is negative; else
    continuous.
    """
    import pandas as pd

    plain = plain_kind_of(values)
    if plain != "continuous":
        return plain
    known = pd.to_numeric(values.dropna()).to_numpy(dtype=np.float64)
    if len(known) == 0 or np.isinf(known).any():
        return plain
    decimals = decimals_of(known)
    if decimals == 0:
        return "integer"
    if len(atoms_of(known)):
        return "mixed"
    counts = np.unique(known, return_counts=True)[1]
    others = counts[counts < max(REPEATS, SHARE * len(known))]
    if decimals is not None and 2 * len(others) <= others.sum():
        return "rounded"
    return "nonnegative" if (known >= 0).all() else "continuous"


def plain_kind_of(values: Series[Any]) -> Kind:
    """The kind of a column by its values, one of continuous, ordinal and categorical."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return "categorical"
    distinct = values.dropna().unique()
    whole = all(float(value).is_integer() for value in distinct)
    return "ordinal" if len(distinct) <= 2 or (whole and len(distinct) <= FEW) else "continuous"


def kinds_of(table: DataFrame, said: Mapping[str, str] | None = None) -> dict[str, str]:
    """The kind of each column by its name: what is said of it or of :data:`OTHERS`, or else
    :func:`kind_of` its values."""
    said = said or {}
    others = said.get(OTHERS)
    infer = plain_kind_of if others == PLAIN else kind_of
    rest = None if others == PLAIN else others
    return {name: said.get(name) or rest or infer(table[name]) for name in table.columns}


def categories(table: DataFrame, kinds: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The codes of all columns with levels, (n,) int64 by name, -1 where missing."""
    import pandas as pd

    levels = {}
    for name, kind in kinds_of(table, kinds).items():
        if kind in MOST:
            levels[name] = torch.from_numpy(pd.factorize(table[name])[0]).long()
    return levels


def fit_columns(
    table: DataFrame, train: NDArray[np.bool_], kinds: Mapping[str, str] | None = None
) -> list[Column]:
    """The columns of a table, with scales and categories of the training rows.

    Args:
        table: all rows.
        train: the mask of training rows, (n,). Ordinal columns have the values of all rows, and
            columns of numbers end where all rows do.
        kinds: kinds by name that replace :func:`kind_of`; "drop" leaves a column out. The kind of
            "*" is that of all columns without one.

    Raises:
        DataError: an unknown column or kind; a column without a value, with one value, or with too
            many levels.
    """
    kinds = dict(kinds or {})
    for name, kind in kinds.items():
        if name == OTHERS and kind == PLAIN:
            continue
        if name not in table.columns and name != OTHERS:
            raise DataError(
                f"--columns names {name!r}, and the table has no such column; expected one of "
                f"{', '.join(map(str, table.columns))}"
            )
        if kind not in get_args(Kind):
            raise DataError(
                f"--columns {name}={kind}: expected a kind of {', '.join(get_args(Kind))}"
            )
    columns = []
    for name, kind in kinds_of(table, kinds).items():
        values = table[name]
        if kind != "drop":
            _check_values(name, kind, values, values[train])
            columns.append(_column(name, kind, values, train, kinds.get(OTHERS) == PLAIN))
    if not columns:
        raise DataError("no column of the table is left, expected one at least")
    return columns


def _column(
    name: str, kind: str, values: Series[Any], train: NDArray[np.bool_], plain: bool
) -> Column:
    if kind == "categorical":
        return Categorical(name, values[train], one_hot=not plain)
    if kind == "ordinal":
        return Ordinal(name, _numbers(name, values))
    numbers = _finite_numbers(name, values)
    if kind in ("nonnegative", "mixed"):
        return Mixed(cast(Kind, kind), name, numbers[train], numbers)
    if kind in ("rounded", "integer"):
        return Rounded(cast(Kind, kind), name, numbers[train], numbers)
    return Continuous(name, numbers[train])


def _check_values(name: str, kind: str, values: Series[Any], training: Series[Any]) -> None:
    distinct = training.dropna().unique()
    drop = f"--columns {name}=drop"
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
    number = len(distinct if kind == "categorical" else values.dropna().unique())
    if kind in MOST and number > MOST[kind]:
        other = "join rare ones" if kind == "categorical" else f"say --columns {name}=continuous"
        raise DataError(
            f"column {name!r} has {number} different values, expected at most {MOST[kind]} of a "
            f"{kind} one; {other}, or leave it out: {drop}"
        )


def encode(columns: Sequence[Column], table: DataFrame) -> Tensor:
    """The codes of a table, (n, d) float64 (DataError: a missing column or an invalid value)."""
    if absent := [c.name for c in columns if c.name not in table.columns]:
        raise DataError(
            f"the table has no column {absent[0]!r}, expected {', '.join(c.name for c in columns)};"
            " add it, empty where nothing is known"
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
