"""Scales of columns of numbers: quantiles, lines between them, and N(0, 1) within an interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KNOTS = 100
"""The most quantiles for the scale of a column."""
MARGIN = 1e-6
"""The part of an interval of model space that is left out at each end, which rounding needs."""

Values = NDArray[Any]


def quantiles(values: Values) -> tuple[Values, Values]:
    """Quantiles that differ, at most 100, and the shares of values below them."""
    from sklearn.preprocessing import QuantileTransformer

    number = int(np.clip(math.isqrt(len(values)), 2, KNOTS))
    scaler = QuantileTransformer(n_quantiles=number, subsample=None).fit(values[:, None])
    knots, where = np.unique(scaler.quantiles_[:, 0], return_inverse=True)
    return knots, np.bincount(where, scaler.references_) / np.bincount(where)


def smoothed(ranks: Values, number: int) -> Values:
    """Shares that increase, in (0, 1), for ranks among ``number`` values that never fall: a value
    more is spread evenly over the steps between them, and half a one lies beyond each end."""
    even = np.arange(len(ranks)) / (len(ranks) - 1)
    return np.asarray((ranks + even + 0.5) / (number + 2))


def within(low: Tensor, high: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """x ~ N(0, 1) given low < x < high, and its log density, of uniform noise.

    Where float64 has no mass to tell, far out, x is uniform over the unit next to the centre.
    """
    flip = low + high > 0  # seen from the lower tail, whose masses are exact
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
    """Φ(x), also far below 0, where ``torch.special.ndtr`` has lost it."""
    return 0.5 * torch.special.erfc(-math.sqrt(0.5) * x)


def along(value: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The line through points (start_i, end_i), continued beyond both ends, and its log slope."""
    i = torch.searchsorted(start, value.contiguous()).clamp(1, len(start) - 1)
    slope = (end[i] - end[i - 1]) / (start[i] - start[i - 1])
    return end[i - 1] + slope * (value - start[i - 1]), slope.log()
