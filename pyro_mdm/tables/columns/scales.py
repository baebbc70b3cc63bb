"""Scales of columns of numbers: quantiles, lines between them, and N(0, 1) within an interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "KNOTS",
    "MARGIN",
    "Values",
    "along",
    "fewest_bends",
    "quantiles",
    "share_below",
    "shares",
    "smoothed",
    "within",
]

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

Values = NDArray[Any]
"""Values or codes of a column."""


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
    w: Values,
    share: Values,
    number: int,
    lower: float = -math.inf,
    upper: float = math.inf,
    edges: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[Values, Values] | None:
    """The line with the fewest bends that values do not refute, of ``x = Φ^{-1}(P(value < w))``.

    So a normal column keeps its scale, and linear relations between columns stay linear. A line is
    refuted by a share that is off by more than 0.03 + 0.8/√n (Lilliefors' test has 0.89/√n at 5%),
    or by an x that is off by more than 0.3 and three standard errors.

    Args:
        w, share: distinct values, increasing, (m,), and the share of values below each.
        number: the number n of values.
        lower, upper: the ends between which the line must stay.
        edges: the ends to which it is bent where it passes them, over the last 5% of the values;
            a share may then be off by 0.03.

    Returns:
        Points of the line, from the least to the largest value, or None for more than 34 bends.
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
            if not lower < nodes[0] < nodes[-1] < upper or (np.diff(nodes) <= 0).any():
                continue
            placed = along(*map(torch.from_numpy, (w.astype(np.float64), nodes, bent)))[0].numpy()
            off = share_below(torch.from_numpy(placed)).numpy() - share
            near = np.abs(placed - x) <= 3 * error + SLACK_X
            slack = SLACK + (0.8 / number**0.5 if bent is at else 0.0)
            if near.all() and np.abs(off).max() <= slack:
                return nodes, bent
    return None


def _bent_to(
    edges: tuple[float, float], nodes: Values, at: Values, w: Values, x: Values, share: Values
) -> tuple[Values, Values]:
    """Points of a line, bent to the edges that it passes, as for :func:`fewest_bends`."""
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
