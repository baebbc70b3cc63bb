r"""Residuals with heavy tails, such as those of Cauchy noise, which no Gaussian is near.

A residual r is mapped to z = k asinh(r / k), which is r near 0 and a logarithm far from there. So
if z is N(0, 1), the tails of r are those of a log-normal distribution, and a fit by the likelihood
does not hang on the farthest numbers. The knee k is learned.

Source of the family: Jones & Pewsey, "Sinh-arcsinh distributions", Biometrika 2009.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.posteriors.encoding import center_and_unit, middle_and_width

__all__ = ["HeavyTails", "Scales", "has_heavy_tails"]

HEAVY = 20.0
"""The distance of the farthest of some numbers from their median, in half widths of the central 68%
of them, above which tails are heavy. Among a million Gaussian numbers it is 5."""


def has_heavy_tails(x: Tensor) -> Tensor:
    """Whether numbers x (n, m) have heavy tails, (m,) bool."""
    middle, width = middle_and_width(x)
    return (width > 0) & ((x - middle).abs().amax(0) > HEAVY * width)


class Scales(NamedTuple):
    """The scales of numbers, which the farthest of them do not determine."""

    center: Tensor  # (m,), the mean, or the median where tails are heavy
    unit: Tensor  # (m,), the standard deviation, or half the width of the central 68%

    @classmethod
    def of(cls, x: Tensor) -> Scales:
        """The scales of numbers x (n, m)."""
        (center, unit), (middle, width) = center_and_unit(x), middle_and_width(x)
        heavy = has_heavy_tails(x)
        return cls(torch.where(heavy, middle, center), torch.where(heavy, width, unit))


class HeavyTails(nn.Module):
    """The map of residuals r to z, which have no heavy tails; at first z = r.

    Args:
        outputs: the number m of residuals of a datum.
    """

    bent: Tensor  # (m,) bool, the mask of residuals that are mapped

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("bent", torch.zeros(outputs, dtype=torch.bool))
        self.log_knee = nn.Parameter(torch.zeros(outputs))

    def forward(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """z, like r (*batch, m), and log|det ∂z/∂r|, (*batch)."""
        knee = self.log_knee.exp()
        log_slope = -0.5 * (r / knee).square().log1p()
        z = torch.where(self.bent, knee * (r / knee).asinh(), r)
        return z, torch.where(self.bent, log_slope, 0.0).sum(-1)

    def inverse(self, z: Tensor) -> Tensor:
        """r, like z (*batch, m)."""
        knee = self.log_knee.exp()
        return torch.where(self.bent, knee * (z / knee).sinh(), z)
