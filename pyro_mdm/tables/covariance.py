"""Mean and covariance of vectors with missing entries."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["drawn_rows", "joint_moments"]

CLOSE, ROUNDS = 1e-5, 50
"""The change of C, as a fraction of its largest variance, at which it has converged, and the most
rounds of EM."""
MANY = 10
"""The number of rows for each dimension from which α is 1: the evidence of many rows would take
the shape of columns that are not Gaussian for independence."""
GRID = 41
"""The number of weights α that are compared, from 0.1 to 100 d."""
ENTRIES = 2**22
"""The most entries of matrices in memory at once."""


@torch.no_grad()
def joint_moments(
    x: Tensor, *, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    r"""The Gaussian distribution of data with missing entries, by EM.

    In each round a row counts as its mean and covariance given its present entries, under the
    distribution so far. C is shrunk to the variances of the columns, as if α more rows were of
    independent columns: ``C = (N S + α diag S)/(N + α)``, the posterior mean by an inverse Wishart
    prior whose α has the largest evidence, given as many rows as have an entry on average, or is 1
    for ten rows or more for each column. So C is not singular, and few rows of many columns are no
    more dependent than they show.

    A column without two values has the variance 1.

    Args:
        x: data, (N, d), NaN where an entry is missing.
        start: the mean and covariance of the first round; None: those of independent columns.

    Returns:
        The mean μ, (d,), and the covariance C, (d, d), in float64.

    Source: Little & Rubin, "Statistical Analysis with Missing Data", 2002, chapter 11.2; Chen,
    "Bayesian inference for a normal dispersion matrix and its application to stochastic multiple
    regression analysis", Journal of the Royal Statistical Society B 1979.
    """
    x = x.double()  # squares are summed over all rows, and the mean's subtracted
    present = ~x.isnan()
    rows, count = torch.nan_to_num(x), present.sum(0)
    mean = rows.sum(0) / count.clamp_min(1)
    variance = ((rows - mean) * present).square().sum(0) / count.clamp_min(1)
    C = torch.where(variance > 0, variance, 1.0).diag()
    if start is not None:
        mean, C = (moment.double() for moment in start)
    groups = _by_gaps(present)
    effective = len(x) * float(present.double().mean())
    for _ in range(ROUNDS):
        off, left = _expected((rows - mean) * present, groups, C)
        shift = off.mean(0)
        mean, off = mean + shift, off - shift
        S = (off.mT @ off + left) / len(x)
        # without two values the data say nothing of a variance
        S = S + torch.where(variance > 0, 0.0, 1.0 - S.diagonal()).diag()
        before, C = C, _shrunk(S, len(x), effective)
        if bool((C - before).abs().max() <= CLOSE * C.diagonal().max()):
            break
    return mean, (C + C.mT) / 2


@torch.no_grad()
def drawn_rows(x: Tensor, generator: torch.Generator) -> Tensor:
    """Data, (N, d), with missing entries, NaN, drawn given the others by their Gaussian
    distribution."""
    (mean, C), present = joint_moments(x), ~x.isnan()
    groups = _by_gaps(present)
    noise = torch.randn(x.shape, generator=generator, dtype=C.dtype) @ torch.linalg.cholesky(C).mT
    off, _ = _expected((torch.nan_to_num(x) - mean) * present, groups, C)
    predicted, _ = _expected(noise * present, groups, C)
    return torch.where(present, x.double(), mean + off + noise - predicted)


def _shrunk(S: Tensor, number: int, effective: float) -> Tensor:
    """The covariance S, (d, d), of a number N of rows shrunk to its diagonal, as if by α rows, of
    the largest evidence given an effective number n of rows.

    With Ψ = α diag S and ν = α + d + 1 the evidence is, but for a constant,
    ``½ ν log|Ψ| - ½ (ν + n) log|Ψ + n S| + log Γ_d(½ (ν + n)) - log Γ_d(½ ν)``.
    """
    d, variance = len(S), S.diagonal()
    if effective >= MANY * d:
        return (number * S + variance.diag()) / (number + 1)
    scale = variance.rsqrt()
    spectrum = torch.linalg.eigvalsh(scale.unsqueeze(-1) * S * scale).clamp_min(0)
    alpha = torch.logspace(-1, math.log10(100 * d), GRID, dtype=S.dtype, device=S.device)
    nu, half = alpha + d + 1, torch.arange(d, device=S.device) / 2
    evidence = 0.5 * nu * d * alpha.log()
    evidence -= 0.5 * (nu + effective) * (alpha.unsqueeze(-1) + effective * spectrum).log().sum(1)
    for sign, freedom in ((1, nu + effective), (-1, nu)):
        evidence += sign * torch.special.gammaln(freedom.unsqueeze(-1) / 2 - half).sum(1)
    best = alpha[evidence.argmax()]
    return (number * S + best * variance.diag()) / (number + best)


class Gaps(NamedTuple):
    """Rows with one number of missing entries."""

    rows: Tensor  # their indices, (r,)
    pattern: Tensor  # the index of the pattern of each, (r,)
    dims: Tensor  # the missing dimensions of each pattern, (p, m)


def _by_gaps(present: Tensor) -> list[Gaps]:
    """The rows with missing entries, by their number, few enough patterns at once for memory."""
    patterns, index = torch.unique(present, dim=0, return_inverse=True)
    number = (~patterns).sum(1)
    groups = []
    for m in number.unique().tolist():
        for chosen in (number == m).nonzero().squeeze(1).split(max(1, ENTRIES // max(m, 1) ** 2)):
            if m:
                place = torch.full_like(number, -1)
                place[chosen] = torch.arange(len(chosen), device=place.device)
                rows = (place[index] >= 0).nonzero().squeeze(1)
                dims = (~patterns[chosen]).nonzero()[:, 1].reshape(-1, m)
                groups.append(Gaps(rows, place[index[rows]], dims))
    return groups


def _expected(off: Tensor, groups: list[Gaps], C: Tensor) -> tuple[Tensor, Tensor]:
    """Conditional means of rows, (n, d), and the sum of their conditional covariances, (d, d).

    By the precision ``J = C^{-1}`` the entries m of a row that are missing have the covariance
    ``J_mm^{-1}`` and the mean ``-J_mm^{-1} J_mo (x - μ)_o``. Rows are x - μ, 0 where an entry is
    missing.
    """
    J, left = torch.cholesky_inverse(torch.linalg.cholesky(C)), torch.zeros_like(C)
    for rows, pattern, dims in groups:
        at = dims.unsqueeze(-1), dims.unsqueeze(-2)
        covariance = torch.linalg.inv(J[at])
        projected = (off[rows] @ J).gather(1, dims[pattern]).unsqueeze(-1)
        filled = -(covariance[pattern] @ projected).squeeze(-1)
        off[rows] = off[rows].scatter(1, dims[pattern], filled)
        times = torch.bincount(pattern, minlength=len(dims)).to(C)
        left.index_put_(at, covariance * times[:, None, None], accumulate=True)
    return off, left
