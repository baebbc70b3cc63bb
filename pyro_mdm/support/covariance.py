"""Mean and covariance of vectors with missing entries."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["joint_moments"]


@torch.no_grad()
def joint_moments(x: Tensor, *, rounds: int = 50, shrinkage: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""The Gaussian law of data (N, d) that may miss entries, NaN: μ (d,) and C (d, d), float64.

    By EM: in each round a row counts as E[x | what is there] and Cov[x | what is there] under the
    law so far. C is drawn to the variances of the columns, as by ``shrinkage`` rows of independent
    columns, so that it is not singular.

    Source: Little & Rubin, "Statistical Analysis with Missing Data", 2002, chapter 11.2.
    """
    x = x.double()
    known, rows = (~x.isnan()).double(), torch.nan_to_num(x)
    count = known.sum(0).clamp_min(1)
    mean = rows.sum(0) / count
    variance = ((rows - mean).square() * known).sum(0) / count
    C = variance.diag()
    for _ in range(rounds if bool((known == 0).any()) else 1):
        K = known.unsqueeze(-1) * C * known.unsqueeze(-2) + torch.diag_embed(1 - known)
        gain = torch.linalg.solve(K, known.unsqueeze(-1) * C).mT  # C_{·o} C_oo^{-1}, (N, d, d)
        filled = mean + (gain @ ((rows - mean) * known).unsqueeze(-1)).squeeze(-1)
        filled = torch.where(known == 1, rows, filled)
        left = C - gain @ (known.unsqueeze(-1) * C)
        mean = filled.mean(0)
        off = filled - mean
        C = off.mT @ off + left.sum(0) + shrinkage * variance.diag()
        C = (C + C.mT) / 2 / (len(x) + shrinkage)
    return mean, C
