r"""The volatility of paths whose drift sees the data, fitted in closed form while models train.

Paths of the same marginals may have any volatility ρ > 0, relative to that of a linear diffusion,
if guide and model share it. Where a model errs by ΔU in the aim of the flow and by ΔR in that of
the score (:class:`~pyro_mdm.seeing.data_driven.Aims`), the bound loses per unit of λ

    ⅛ e^λ ( E‖ΔU‖² / ρ + 2 E ΔU·ΔR + ρ E‖ΔR‖² ),    least at    ρ² = E‖ΔU‖² / E‖ΔR‖².
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyro_mdm.support.modules import ExactBuffers

__all__ = ["Volatility"]

KNOTS = 33
MEMORY = 2.0**15
"""Data after which a running average has forgotten all but 1/e."""
DOUBT = 64.0
"""Data at a knot that count for ρ = 1 there."""
LIMIT = 10.0
"""ρ is between 1/LIMIT and LIMIT."""


class Volatility(ExactBuffers, nn.Module):
    """ρ as a function of the part u of the way from ε to T: 1 until errors are recorded.

    Running averages at ``KNOTS`` knots, between which log ρ is linear; at ε it is 1. They are
    buffers, so that they are saved, resumed and copied with the model. ρ is no parameter: it is the
    best one for errors that were seen before, in batches or micro-batches that came earlier, and
    nothing is differentiated through it but u.
    """

    errors: Tensor  # E‖ΔU‖² and E‖ΔR‖², each times e^λ and the weight, (2, knots)
    weight: Tensor  # how many data they are of, (knots,)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("errors", torch.zeros(2, KNOTS, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(KNOTS, dtype=torch.float64))

    @property
    def log_knots(self) -> Tensor:
        """log ρ at the knots, (knots,) float64."""
        tiny = torch.finfo(torch.float64).tiny
        flow, score = self.errors.clamp_min(tiny)
        best = (0.5 * (flow / score).log()).clamp(-math.log(LIMIT), math.log(LIMIT))
        log_rho = best * self.weight / (self.weight + DOUBT)
        return torch.cat([torch.zeros_like(log_rho[:1]), log_rho[1:]])

    def forward(self, u: Tensor) -> Tensor:
        """ρ at u, like u; float64."""
        knots, at = self.log_knots, u.clamp(0, 1) * (KNOTS - 1)
        i = at.detach().long().clamp_max(KNOTS - 2)
        return torch.lerp(knots[i], knots[i + 1], at - i).exp()

    @torch.no_grad()
    def record(self, u: Tensor, flow: Tensor, score: Tensor) -> None:
        """Take errors into the averages, those of all processes; draws to come are what they serve.

        Args:
            u: (n,).
            flow, score: e^λ ‖ΔU‖² and e^λ ‖ΔR‖² of one datum each, (n,).
        """
        known = (flow + score).isfinite()
        kept = [torch.where(known, t, 0.0).double() for t in (known.double(), flow, score)]
        knots = torch.arange(KNOTS, device=u.device)
        shares = (1 - (u.clamp(0, 1)[:, None] * (KNOTS - 1) - knots).abs()).clamp_min(0)
        sums = torch.stack(kept) @ shares  # (3, knots)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        keep = torch.exp(-sums[0].sum() / MEMORY)
        self.weight.mul_(keep).add_(sums[0])
        self.errors.mul_(keep).add_(sums[1:])
