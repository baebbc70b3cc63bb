"""Facts about the numbers of a column: repeated ones, their rounding, and sharp ends; and scales:
quantiles, lines between them, and N(0, 1) within an interval."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyro_mdm.tables.columns.base import EVERYWHERE, WHOLE, Ends, Values
from pyro_mdm.tables.columns.lazy import pd

__all__ = ["FEW", "atoms_of", "edges_of", "finite_of"]

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

POINTS = 33
"""The number of points of the line of numbers that are no atoms."""
KNOTS = 100
"""The most quantiles of the scale of a column."""
BENDS = (0, 1, 2, 3, 5, 8, 13, 21, 34)
"""The numbers of bends of a line, in the order in which they are tried."""
SLACK, SLACK_X = 0.03, 0.3
"""The errors of a share and of an x that a line with fewer bends may have beyond those of
chance."""
BEND = 0.05
"""The share of the values over which a line is bent to an end."""
MARGIN = 1e-6
"""The fraction of an interval that is left out at each end, so that a rounded x stays inside."""


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
    a quarter of them, but not at a least number that is close to 0. Equal numbers are spread over
    their step, if they are rounded.
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


def shares(values: Values) -> tuple[Values, Values]:
    """The distinct values, increasing, and the share of values below each, with half of its
    equals."""
    w, counts = np.unique(values, return_counts=True)
    return w, (np.cumsum(counts) - counts / 2) / len(values)


def quantiles(values: Values) -> tuple[Values, Values]:
    """Distinct quantiles, at most 100, and the shares of values below them."""
    from sklearn.preprocessing import QuantileTransformer

    number = int(np.clip(math.isqrt(len(values)), 2, KNOTS))
    scaler = QuantileTransformer(n_quantiles=number, subsample=None).fit(values[:, None])
    knots, where = np.unique(scaler.quantiles_[:, 0], return_inverse=True)
    return knots, np.bincount(where, scaler.references_) / np.bincount(where)


def fewest_bends(
    w: Values, share: Values, number: int, ends: Ends = EVERYWHERE, edges: Ends = EVERYWHERE
) -> tuple[Values, Values] | None:
    """The line with the fewest bends that values do not refute, of ``x = Φ^{-1}(P(value < w))``, as
    its points from the least to the largest value; None for more than 34 bends.

    So a normal column keeps its scale, and linear relations between columns stay linear. A line is
    refuted by a share that is off by more than 0.03 + 0.8/√n (Lilliefors' test has 0.89/√n at 5%),
    or by an x that is off by more than 0.3 and three standard errors.

    Args:
        w, share: distinct values, increasing, (m,), and the share of values below each.
        number: the number n of values.
        ends: the ends between which the line must stay.
        edges: the ends to which it is bent where it passes them, over the last 5% of the values;
            a share may then be off by 0.03.
    """
    x = torch.special.ndtri(torch.from_numpy(share)).numpy()
    error = np.sqrt(share * (1 - share) / number) * math.sqrt(2 * math.pi) * np.exp(x**2 / 2)
    middle, scale = w.mean(), w.std()
    for bends in BENDS:
        if bends + 2 > len(w):
            return None
        at = np.quantile(x, np.linspace(0, 1, bends + 2))
        basis = np.maximum(x[:, None] - at[:-1], 0)
        basis = np.concatenate([np.ones((len(x), 1)), basis], 1)
        slope = np.ones_like(x)
        for _ in range(2):  # the second time with errors in w by the slopes of the first
            weight = 1 / (error * slope)
            target = (w - middle) / scale * weight
            fitted = np.linalg.lstsq(basis * weight[:, None], target, rcond=None)[0]
            rises = np.cumsum(fitted[1:])
            if (rises <= 0).any():
                break
            slope = rises[np.searchsorted(at[1:-1], x, "right")]
        else:
            nodes = fitted[0] + np.concatenate([[0.0], np.cumsum(rises * np.diff(at))])
            nodes, bent = _bent_to(edges, middle + scale * nodes, at, w, x, share)
            if not ends[0] < nodes[0] < nodes[-1] < ends[1] or (np.diff(nodes) <= 0).any():
                continue
            placed = along(*map(torch.from_numpy, (w.astype(np.float64), nodes, bent)))[0].numpy()
            off = share_below(torch.from_numpy(placed)).numpy() - share
            near = np.abs(placed - x) <= 3 * error + SLACK_X
            slack = SLACK + (0.8 / number**0.5 if bent is at else 0.0)
            if near.all() and np.abs(off).max() <= slack:
                return nodes, bent
    return None


def _bent_to(
    edges: Ends, nodes: Values, at: Values, w: Values, x: Values, share: Values
) -> tuple[Values, Values]:
    """Points of a line, bent to the edges that it passes, as for ``fewest_bends``."""
    if nodes[0] < edges[0]:
        i = int(np.searchsorted(share, BEND).clip(1))
        inner = at > x[i]
        nodes, at = np.r_[w[0], w[i], nodes[inner]], np.r_[x[0], x[i], at[inner]]
    if nodes[-1] > edges[1]:
        i = int(np.searchsorted(share, 1 - BEND).clip(max=len(w) - 2))
        inner = at < x[i]
        nodes, at = np.r_[nodes[inner], w[i], w[-1]], np.r_[at[inner], x[i], x[-1]]
    return nodes, at


def smoothed(ranks: Values, number: int) -> Values:
    """Increasing shares in (0, 1), for ranks, (m,), among a number of values: one value more is
    spread evenly over them, and half a value lies beyond each end."""
    even = np.arange(len(ranks)) / (len(ranks) - 1)
    return np.asarray((ranks + even + 0.5) / (number + 2))


def within(low: Tensor, high: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A draw x ~ N(0, 1) given low < x < high, and its log density, by uniform noise in [0, 1),
    (n,).

    Far out, where the mass underflows, x is uniform over the unit next to the centre.
    """
    flip = low + high > 0  # by the lower tail, whose masses have all their digits
    left, right = torch.where(flip, -high, low), torch.where(flip, -low, high)
    noise = MARGIN + (1 - 2 * MARGIN) * noise
    below, above = share_below(left), share_below(right)
    mass = above - below
    x = torch.special.ndtri(below + mass * noise)
    log_density = -0.5 * x.square() - 0.5 * math.log(2 * math.pi) - mass.log()
    far = mass < 1e-200
    start = torch.maximum(left, right - 1)
    x = torch.where(far, start + (right - start) * noise, x)
    log_density = torch.where(far, -(right - start).log(), log_density)
    return torch.where(flip, -x, x), log_density - math.log1p(-2 * MARGIN)


def share_below(x: Tensor) -> Tensor:
    """Φ(x), also far below 0, where ``torch.special.ndtr`` underflows early."""
    return 0.5 * torch.special.erfc(-math.sqrt(0.5) * x)


def along(value: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The line through increasing points (start, end), continued beyond both ends, at values (n,),
    and its log slope."""
    i = torch.searchsorted(start, value.contiguous()).clamp(1, len(start) - 1)
    slope = (end[i] - end[i - 1]) / (start[i] - start[i - 1])
    return end[i - 1] + slope * (value - start[i - 1]), slope.log()


def beside(atoms: Values, values: Values, ends: Ends) -> tuple[Values, Values]:
    """Points (w, share) of the line of sorted values, with each atom twice: at its begin and
    end."""
    rest = values[~np.isin(values, atoms)]
    knots, share = _scale_of(rest, ends) if len(rest) else (np.empty(0), np.empty(0))
    inner = ~np.isin(knots, atoms)
    knots, share = knots[inner], share[inner]
    below = np.interp(atoms, knots, share, 0.0, 1.0) if len(knots) else 0 * atoms
    before = len(rest) * below + np.searchsorted(values, atoms) - np.searchsorted(rest, atoms)
    counts = np.searchsorted(values, atoms, "right") - np.searchsorted(values, atoms)
    atoms_before = np.searchsorted(values, knots) - np.searchsorted(rest, knots)
    w = np.concatenate([knots, atoms, atoms])
    rank = np.concatenate([len(rest) * share + atoms_before, before, before + counts])
    order = np.lexsort((rank, w))
    return w[order], smoothed(rank[order], len(values))


def _scale_of(values: Values, ends: Ends) -> tuple[Values, Values]:
    """Points (w, share) of the line with the fewest bends, or quantiles where there is none."""
    line = fewest_bends(*shares(values), len(values), ends)
    if line is None:
        return quantiles(values)
    x = np.linspace(line[1][0], line[1][-1], POINTS)
    return np.interp(x, line[1], line[0]), share_below(torch.from_numpy(x)).numpy()
