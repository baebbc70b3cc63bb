"""Weighted means and deviations of draws, and their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_mdm.evaluation.weights import ImportanceWeights

__all__ = ["Moments", "uneven"]

APART = 0.25
"""The difference of two means, in deviations, or of two deviations, as a share, above which they
differ, if their errors say so."""
ERRORS = 4.0
"""The same difference in standard errors."""


@dataclass(frozen=True)
class Moments:
    """Weighted means and deviations of draws, with their standard errors.

    Args:
        mean, deviation: means and deviations, (*shape).
        effective: number of draws that count.
        mean_error, deviation_error: their standard errors, (*shape); None: not known.
    """

    mean: Tensor
    deviation: Tensor
    effective: float
    mean_error: Tensor | None = None
    deviation_error: Tensor | None = None

    @classmethod
    def from_weights(cls, x: Tensor, weights: ImportanceWeights) -> Moments:
        """Those of draws x (n, *shape) with weights."""
        shares = weights.normalized.to(x).view(-1, *(1,) * (x.dim() - 1))
        x = torch.where(shares > 0, x, 0.0)  # heavy tails overflow in a support
        mean = (shares * x).sum(0)
        squares = (x - mean).square()
        variance = (shares * squares).sum(0)
        deviation = variance.sqrt()
        mean_error = (shares.square() * squares).sum(0).sqrt()
        spread = (shares.square() * (squares - variance).square()).sum(0).sqrt()
        deviation_error = spread / (2 * deviation).clamp_min(1e-12)
        effective = max(1.0, weights.effective)
        return cls(mean, deviation, effective, mean_error, deviation_error)

    def apart(self, other: Moments) -> tuple[float, int, bool]:
        """The largest distance of two means, in deviations of the others, the place of the latent
        that has it, and whether it is more than the errors explain."""
        gaps = (self.mean - other.mean).abs() / other.deviation.clamp_min(1e-12)
        at = int(gaps.argmax())
        error = math.sqrt(1 / self.effective + 1 / other.effective)
        return float(gaps[at]), at, not gaps[at] <= max(APART, ERRORS * error)  # NaN: no mean


def uneven(x: Tensor, weights: ImportanceWeights) -> tuple[int, float, float] | None:
    """The latent of draws x (n, dim) whose deviations in two halves of them differ most, with both,
    if they differ by more than chance; None if there is none."""
    low, high = (
        Moments.from_weights(x[half], ImportanceWeights(weights.log_weights[half]))
        for half in (slice(0, None, 2), slice(1, None, 2))
    )
    ratios = (low.deviation / high.deviation.clamp_min(1e-12)).clamp_min(1e-12).log().abs()
    at = int(ratios.argmax())
    chance = math.sqrt((1 / low.effective + 1 / high.effective) / 2)
    if not ratios[at] > max(APART, ERRORS * chance):
        return None
    return at, float(low.deviation[at]), float(high.deviation[at])
