"""Scores of draws of missing entries, the same for every method.

Draws are (S, m) of m entries, their true values (m,). Each function gives a value by entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

FLOOR = 1e-4
"""The least variance of a log score, of standardized numbers."""


def crps(draws: Numbers, truth: Numbers) -> Numbers:
    """The unbiased estimate of E|X - w| - E|X - X'|/2, of independent draws X and X'."""
    S = len(draws)
    weight = 2 * np.arange(1, S + 1)[:, None] - S - 1
    apart = (weight * np.sort(draws, 0)).sum(0) / (S * (S - 1))
    return np.asarray(np.abs(draws - truth).mean(0) - apart)


def log_score(draws: Numbers, truth: Numbers, floor: Numbers | float = FLOOR) -> Numbers:
    """Minus log p(w), p being S parts of N(mean, variance of the draws) and one of N(0, 1).

    Args:
        floor: the least variance.
    """
    S = len(draws)
    variance = np.maximum(draws.var(0, ddof=1), floor)
    own = _log_normal(truth, draws.mean(0), variance) + np.log(S)
    marginal = _log_normal(truth, np.zeros_like(truth), np.ones_like(truth))
    return np.asarray(np.log(S + 1) - np.logaddexp(own, marginal))


def _log_normal(w: Numbers, mean: Numbers, variance: Numbers) -> Numbers:
    return np.asarray(-0.5 * ((w - mean) ** 2 / variance + np.log(2 * np.pi * variance)))


def covered(draws: Numbers, truth: Numbers, level: float = 0.9) -> Numbers:
    """The probability that the central interval covers w, where chance breaks ties.

    The rank of w among S draws, equal ones in random order, is uniform in 0, …, S if w and the
    draws have one law. With uniform noise added and divided by S + 1 it is uniform in (0, 1), of
    integers and atoms too, and in the interval with probability ``level``.
    """
    S = len(draws)
    low = (draws < truth).sum(0) / (S + 1)
    high = ((draws <= truth).sum(0) + 1) / (S + 1)
    start, end = (1 - level) / 2, (1 + level) / 2
    inside = np.minimum(high, end) - np.maximum(low, start)
    return np.asarray(np.maximum(inside, 0) / (high - low))


def width(draws: Numbers, level: float = 0.9) -> Numbers:
    """The width of the central interval by quantiles of the draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return np.asarray(high - low)


def frequencies(draws: NDArray[Any], levels: int) -> Numbers:
    """The shares of categories, (m, levels): of the draws and of one more, spread evenly."""
    counts = np.stack([(draws == k).sum(0) for k in range(levels)], 1)
    return np.asarray((counts + 1 / levels) / (len(draws) + 1))


def accuracy(shares: Numbers, truth: NDArray[Any]) -> Numbers:
    """Whether w is the most frequent category; a part of it among equally frequent ones."""
    best = np.isclose(shares, shares.max(1, keepdims=True), rtol=0, atol=1e-9)
    own = np.take_along_axis(best, truth[:, None], 1)[:, 0]
    return np.asarray(own / best.sum(1))


def brier(shares: Numbers, truth: NDArray[Any]) -> Numbers:
    """Σ_k (p_k - 1[w = k])²."""
    return np.asarray(((shares - np.eye(shares.shape[1])[truth]) ** 2).sum(1))


def log_score_of_categories(shares: Numbers, truth: NDArray[Any]) -> Numbers:
    """Minus log p_w."""
    return np.asarray(-np.log(np.take_along_axis(shares, truth[:, None], 1)[:, 0]))
