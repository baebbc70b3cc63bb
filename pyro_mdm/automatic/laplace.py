r"""Laplace's approximation of a posterior, as the units in which a Gaussian start is fitted.

Latents of raw scales, such as the coefficient of a year beside that of a share, are far from 0 and
differ by factors of thousands. Steps of Adam have one length in all of them, and do not arrive. In
coordinates z of x = m + R z, with the mode m and R Rᵀ the inverse of the curvature there, the
posterior is near a standard normal, and the same steps do.

Source: MacKay, "Information Theory, Inference, and Learning Algorithms", 2003, chapter 27.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mdm.budgets import Budget

__all__ = ["MOST_LATENTS", "laplace"]

Density = Callable[[Tensor], Tensor]

MOST_LATENTS = 500
"""The most latents whose curvature is asked for, which takes a backward pass of each."""
STEPS, LEAST_STEPS, PATIENCE, DRAWS = 50, 2, 5, 32
"""The most steps of Newton's method, those that no clock ends, those without a higher bound after
which there is none, and the draws by which bounds are estimated."""
LENGTHS = tuple(2.0**-k for k in range(12))
"""The lengths that are tried for each step."""
CLOSE = 1e-3
"""Twice the nats below the mode, by the curvature, at which the search ends."""
SHARE = 0.5
"""The share of the seconds after which it ends too; there is none without a curvature by then."""
FLAT = 1e-10
"""The curvature of a latent below which it has none: a deviation of 100,000, unconstrained."""
LEAST_CURVATURE = 1e-6
"""The least curvature along an axis, of latents with a curvature of 1: single precision has it."""


def laplace(log_density: Density, start: Tensor, budget: Budget) -> tuple[Tensor, Tensor] | None:
    """A mode m (dim,) of a density, and a lower triangular R with R Rᵀ = (-∇² log p(m))⁻¹.

    Newton's steps lead there, which no units slow down, each of the best of some lengths. Of the
    values on the way, that whose Gaussian has the highest bound stands for the mode, which it
    mostly is. Curvatures count by their size, with a least one, so that R is there at any value.

    Args:
        log_density: function of x (n, dim) that returns log p up to a constant, (n,), nats.
        start: the value where the search begins, (dim,).
        budget: the seconds of all that follows.

    Returns:
        None if there are too many latents, no derivatives or no finite numbers, or a density that
        grows while the bound falls, as that of states towards a scale of 0.
    """
    if len(start) > MOST_LATENTS:
        return None
    try:
        best = _best(log_density, start, budget)
    except (NotImplementedError, RuntimeError):  # an operation has no second derivative
        return None
    if best is None:
        return None
    mode, root = best
    covariance = root @ root.mT
    root, wrong = torch.linalg.cholesky_ex((covariance + covariance.mT) / 2)
    return None if bool(wrong) else (mode, root.to(mode))


def _best(log_density: Density, x: Tensor, budget: Budget) -> tuple[Tensor, Tensor] | None:
    """The value of Newton's steps whose Gaussian has the highest bound, (dim,), and a root of its
    covariance, (dim, dim).

    Latents are scaled by their curvatures first, as second derivatives have few digits.
    """
    lengths = torch.tensor(LENGTHS, dtype=torch.float64, device=x.device)[:, None]
    z = torch.randn(DRAWS, len(x)).to(lengths)
    best, highest, worse = None, -math.inf, 0
    for step_number in range(STEPS):
        derivatives = _derivatives(log_density, x)
        if derivatives is None:
            break
        slope, curvature = derivatives
        units = curvature.diagonal().abs().clamp_min(FLAT).rsqrt()
        values, axes = torch.linalg.eigh(units[:, None] * curvature * units)
        root = units[:, None] * axes / values.abs().clamp_min(LEAST_CURVATURE).sqrt()
        step = root.mT @ slope
        tried = x.double() - lengths * (root @ step)
        with torch.no_grad():
            log_p = log_density(torch.cat([x[None], tried.to(x), (x + z @ root.mT).to(x)])).double()
        losses, drawn = (-log_p[: -len(z)]).nan_to_num(math.inf), log_p[-len(z) :]
        bound = float(drawn.nan_to_num(-math.inf).mean() + torch.linalg.slogdet(root).logabsdet)
        if bound >= highest:  # also where all have impossible draws: the last is nearest to a mode
            best, highest, worse = (x, root), bound, 0
        elif math.isfinite(bound):
            worse += 1
        shortest = int(losses.argmin())
        is_there = float(step.square().sum()) < CLOSE or shortest == 0
        is_late = step_number >= LEAST_STEPS and budget.share > SHARE
        if worse == PATIENCE:
            return None
        if is_there or is_late:
            break
        x = tried[shortest - 1].to(x)
    return best


@torch.enable_grad()
def _derivatives(log_density: Density, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """The gradient (dim,) and the Hessian (dim, dim) of -log p, float64; None where they are not
    finite. Copies of x have a row of the Hessian each."""
    copies = x.detach().repeat(len(x), 1).requires_grad_()
    (slopes,) = torch.autograd.grad(-log_density(copies).sum(), copies, create_graph=True)
    curvature = torch.zeros_like(slopes)
    if slopes.requires_grad:
        (curvature,) = torch.autograd.grad(
            slopes.diagonal().sum(), copies, allow_unused=True, materialize_grads=True
        )
    slope, curvature = slopes[0].detach().double(), curvature.double()
    is_finite = bool(slope.isfinite().all() & curvature.isfinite().all())
    return (slope, curvature) if is_finite else None
