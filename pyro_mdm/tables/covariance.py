"""Mean and covariance of vectors with missing entries."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["joint_moments"]

ROWS = 1024
"""The number of covariances in memory at once."""
CLOSE = 1e-6
"""The relative change of C at which it has converged."""


@torch.no_grad()
def joint_moments(
    x: Tensor,
    *,
    rounds: int = 50,
    shrinkage: float = 1.0,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The Gaussian distribution of data with missing entries, by EM.

    In each round a row counts as its mean and covariance given its present entries, under the
    distribution so far. C is shrunk to the variances of the columns, so that it is not singular. A
    column without two values has the variance 1.

    Args:
        x: data, (N, d), NaN where an entry is missing.
        rounds: the most rounds.
        shrinkage: the number of rows of independent columns that C counts besides the data.
        start: the mean and covariance of the first round; None: those of independent columns.

    Returns:
        The mean μ, (d,), and the covariance C, (d, d), in float64.

    Source: Little & Rubin, "Statistical Analysis with Missing Data", 2002, chapter 11.2.
    """
    x = x.double()  # squares are summed over all rows, and the mean's subtracted
    present = (~x.isnan()).double()
    rows, count = torch.nan_to_num(x), present.sum(0)
    mean = rows.sum(0) / count.clamp_min(1)
    variance = ((rows - mean).square() * present).sum(0) / count.clamp_min(1)
    prior = torch.where(variance > 0, variance, 1.0).diag()
    C = prior
    if start is not None:
        mean, C = (moment.double() for moment in start)
    for _ in range(rounds):
        total, square = torch.zeros_like(mean), torch.zeros_like(C)
        for batch, there in zip(rows.split(ROWS), present.split(ROWS), strict=True):
            off, left = _expected((batch - mean) * there, there, C)
            total, square = total + off.sum(0), square + off.mT @ off + left
        shift = total / len(x)
        mean, square = mean + shift, square - len(x) * torch.outer(shift, shift)
        before, C = C, (square + shrinkage * prior) / (len(x) + shrinkage)
        if bool((C - before).abs().max() <= CLOSE * C.diagonal().max()):
            break
    return mean, (C + C.mT) / 2


def _expected(off: Tensor, there: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Conditional means of rows, (n, d), and the sum of their conditional covariances, (d, d).

    Args:
        off: rows x - μ, (n, d), 0 where an entry is missing.
        there: 1 where an entry is present, else 0, (n, d).
        C: the covariance, (d, d).
    """
    C_there = there.unsqueeze(-1) * C
    K = C_there * there.unsqueeze(-2) + torch.diag_embed(1 - there)
    gain = torch.linalg.solve(K, C_there).mT  # C_{·o} C_oo^{-1}, (n, d, d)
    filled = (gain @ off.unsqueeze(-1)).squeeze(-1)
    return torch.where(there == 1, off, filled), (C - gain @ C_there).sum(0)
