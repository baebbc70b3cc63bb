"""Where log SNR has given values, about, found by numpy on the host.

A search on a GPU asks it after every step whether to go on. Here the times come from tables of log
SNR, each between two neighbours of the one before. Digits are lost on the way:
:mod:`~pyro_mdm.diffusions.host_ends` takes steps of Newton's from there.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["LogSNRSearch"]

Array = NDArray[np.float64]

TERMS = 20
"""Terms of power series, of which each is at most half of the one before."""
KNOTS = 64
"""Knots between two of the table before."""
ROUNDS = 3
"""Tables after the first, so that the last is of some 1e-6 in log τ, and a line in it of 1e-12."""


class LogSNRSearch:
    """A search for the clock times at which λ has given values, about.

    Args:
        A, GG, initial: drift and noise by clock time, and Σ_0, (K, K).
    """

    def __init__(self, A: Array, GG: Array, initial: Array) -> None:
        self.initial = initial
        self.norm = max(float(np.linalg.norm(A, 1)), 1e-300)
        self.speed = float(np.linalg.norm(A, 2))
        self.slowest = max(float(-np.linalg.eigvals(A).real.max()), 1e-12)
        unit, power, gained = A / self.norm, np.eye(len(A)), GG / self.norm
        powers, gains = [power], [gained]
        for k in range(1, TERMS):
            power = power @ unit / k
            gained = (unit @ gained + gained @ unit.T) / (k + 1)
            powers.append(power)
            gains.append(gained)
        self.powers, self.gains = np.stack(powers), np.stack(gains)

    def levels(self, x: Array) -> Array:
        """λ at log τ (m,)."""
        u = np.exp(x) * self.norm
        doublings = max(0, math.ceil(math.log2(u.max() / 0.5)))
        u = u[:, None] / 2.0**doublings
        series = u ** np.arange(TERMS)
        M = np.tensordot(series, self.powers, 1)
        P = np.tensordot(u * series, self.gains, 1)
        for _ in range(doublings):
            P = P + M @ P @ M.transpose(0, 2, 1)
            M = M @ M
        Sigma = P + M @ self.initial @ M.transpose(0, 2, 1)
        scale = 1 / np.sqrt(np.diagonal(Sigma, axis1=1, axis2=2))
        signal = (scale * M[:, :, 0])[..., None]
        whole = Sigma * scale[:, :, None] * scale[:, None, :]
        level: Array = np.log((signal * np.linalg.solve(whole, signal)).sum((1, 2)))
        return level

    def clock_at(self, target: float) -> float:
        """The τ with λ(τ) = target, about; NaN where there is none."""
        fast = math.log(max(self.speed, 1e-300))
        x = np.concatenate(
            [
                np.linspace(-max(target + 10.0, 80.0), -2.0, KNOTS) - fast,
                np.linspace(-2.0 - fast, 3.5 - math.log(self.slowest), 4 * KNOTS)[1:],
            ]
        )
        with np.errstate(all="ignore"):
            try:
                for _ in range(ROUNDS):
                    i = self._above(x, target)
                    x = np.linspace(x[i - 1], x[i], KNOTS)
                level = self.levels(x)
                i = int(np.clip((level > target).sum(), 1, len(x) - 1))
                fraction = (target - level[i - 1]) / (level[i] - level[i - 1])
                return math.exp(x[i - 1] + fraction * (x[i] - x[i - 1]))
            except (np.linalg.LinAlgError, OverflowError, ValueError):
                return math.nan

    def _above(self, x: Array, target: float) -> int:
        """The first knot, after the one before, at which λ is below the target."""
        return int(np.clip((self.levels(x) > target).sum(), 1, len(x) - 1))
