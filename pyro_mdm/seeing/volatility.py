r"""The volatility of paths whose drift sees the data, fitted in closed form during training.

Paths with the same marginals may have any volatility ρ > 0, relative to that of a linear diffusion,
if guide and model share it. With errors ΔU and ΔR of the model in the aims of flow and score
(:class:`~pyro_mdm.seeing.data_driven.Aims`), the bound loses per unit of λ

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
"""The number of data after which a running average keeps 1/e of its past."""
DOUBT = 64.0
"""The number of data for which ρ = 1 counts at a knot, until there are errors of more."""
LIMIT = 10.0
"""The largest ρ; the least is 1/LIMIT."""


class Volatility(ExactBuffers, nn.Module):
    """The volatility ρ(u), u from 0 at ε to 1 at T; 1 until errors are recorded.

    log ρ is linear between ``KNOTS`` knots, and ρ is 1 at ε. It is no parameter: at each knot it is
    the best value for running averages of the errors of earlier batches. These are buffers, saved
    and copied with the model. Gradients go through u alone.
    """

    errors: Tensor  # E‖ΔU‖² and E‖ΔR‖², each times e^λ and the weight, (2, knots)
    weight: Tensor  # the number of data in the averages, (knots,)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("errors", torch.zeros(2, KNOTS, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(KNOTS, dtype=torch.float64))

    @property
    def log_knots(self) -> Tensor:
        """log ρ at the knots, (knots,) float64."""
        tiny = torch.finfo(torch.float64).tiny  # no errors yet: log(tiny / tiny) is 0
        flow, score = self.errors.clamp_min(tiny)
        best = (0.5 * (flow / score).log()).clamp(-math.log(LIMIT), math.log(LIMIT))
        log_rho = best * self.weight / (self.weight + DOUBT)
        return torch.cat([torch.zeros_like(log_rho[:1]), log_rho[1:]])

    def forward(self, u: Tensor) -> Tensor:
        """ρ at u, like u; float64."""
        knots = self.log_knots
        at = u.to(knots).clamp(0, 1) * (KNOTS - 1)
        i = at.detach().long().clamp_max(KNOTS - 2)
        return torch.lerp(knots[i], knots[i + 1], at - i).exp()

    @torch.no_grad()
    def record(self, u: Tensor, flow: Tensor, score: Tensor) -> None:
        """Add errors of n data to the averages, over all processes, for the draws to come.

        Args:
            u: fractions of the way at which they were drawn, (n,).
            flow: error e^λ ‖ΔU‖² of each datum, (n,).
            score: error e^λ ‖ΔR‖² of each datum, (n,).
        """
        u, flow, score = (t.to(self.weight.device) for t in (u, flow, score))
        finite = (flow + score).isfinite()
        kept = [torch.where(finite, t, 0.0).double() for t in (finite.double(), flow, score)]
        knots = torch.arange(KNOTS, device=u.device)
        shares = (1 - (u.clamp(0, 1)[:, None] * (KNOTS - 1) - knots).abs()).clamp_min(0)
        sums = torch.stack(kept) @ shares  # (3, knots)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        keep = torch.exp(-sums[0].sum() / MEMORY)
        self.weight.mul_(keep).add_(sums[0])
        self.errors.mul_(keep).add_(sums[1:])
