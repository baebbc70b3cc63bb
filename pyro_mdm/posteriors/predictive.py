r"""The prior predictive p-value of an observation, which shows if it is unlike simulations.

A posterior is learned where simulations are. Far from all of them it has draws too, and they do not
show that it is wrong. So some simulations are kept, in two halves. The distance of an observation
to the nearest simulation of the first half is ranked among the distances of the second half. For
data of the simulator all are exchangeable, so that the p-value

    p = (1 + #{i : distance_i ≥ distance}) / (1 + number of the second half)

is at most α with probability at most α (Box, "Sampling and Bayes' inference in scientific modelling
and robustness", JRSS A 1980, for p-values of the prior predictive distribution). A learned
likelihood, too, has a value for any θ, and parameters are compared with those of simulations in the
same way.
"""

from __future__ import annotations

import math
import warnings
from functools import cached_property

import torch
from torch import Tensor, nn

__all__ = ["PriorPredictive", "warn_of_outside"]

MOST_KEPT = 1000
"""The most simulations that are kept."""

FEWEST = 99
"""The fewest simulations to compare with for a warning, which by chance then comes in one case of
100 at most."""

FEW_OUTSIDE = 0.01
"""The fraction of draws outside above which there is a warning; with 1,000 simulations it is 0.002
by chance."""


class PriorPredictive(nn.Module):
    """The data of some simulations, which observations are compared with.

    Distances are Mahalanobis distances in the covariance of the first half, which is shrunk towards
    independence if the half is small for the numbers in a datum.
    They are encoded, x (n, m), without missing numbers; of more than 1,000 the first are kept.
    Fewer than two are a ValueError.
    """

    kept: Tensor

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        if len(x) < 2:
            raise ValueError(f"there are {len(x)} simulations to keep, expected at least two")
        self.register_buffer("kept", x[:MOST_KEPT].detach().clone())

    @property
    def compared(self) -> int:
        """The number of simulations that observations are ranked among, the second half."""
        return len(self.kept) // 2

    def whitened(self, x: Tensor, seen: Tensor) -> Tensor:
        """The seen numbers, by a mask (m,) bool, of encoded data x (n, m), whitened by the
        covariance of simulations, (n, number of seen)."""
        near = self.kept[self.compared :].double()[:, seen]
        spread = near.std(0, correction=0)
        unit = torch.where(spread > 0, spread, 1.0)
        scaled = (near - near.mean(0)) / unit
        n, m = scaled.shape
        shrunk = m / (n + m)  # a covariance by n < m data would be singular
        if 10 * m < n:  # of few numbers it is known, and so are directions of little spread
            shrunk = shrunk**3
        covariance = (1 - shrunk) * scaled.mT @ scaled / n
        covariance = covariance + shrunk * torch.eye(m).to(covariance)
        root = torch.linalg.cholesky(covariance)
        rest = ((x.double()[:, seen] - near.mean(0)) / unit).mT
        return torch.linalg.solve_triangular(root, rest, upper=False).mT

    def _halves(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The first half, whitened, and the distances to it of the second half."""
        near = self.whitened(self.kept[self.compared :], seen)
        rest = self.whitened(self.kept[: self.compared], seen)
        return near, torch.cdist(rest, near).amin(1)

    def p_values(self, x: Tensor, seen: Tensor) -> Tensor:
        """The p-values, (n,) float64, of encoded data x (n, m), small for data unlike all
        simulations. Numbers that are not seen, by a mask (n, m) bool, are left out of distances."""
        value = torch.ones(len(x), dtype=torch.float64)
        for pattern in seen.unique(dim=0):
            rows = (seen == pattern).all(1)
            if not bool(pattern.any()):
                continue  # a datum without any number is unlike no simulation
            near, usual = self._halves(pattern)
            nearest = torch.cdist(self.whitened(x[rows], pattern), near).amin(1)
            farther = (usual >= nearest.unsqueeze(1)).sum(1)
            value[rows] = (1 + farther.double()) / (1 + self.compared)
        return value

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor]:
        return self._halves(torch.ones(self.kept.shape[1], dtype=torch.bool))

    @torch.no_grad()
    def outside(self, x: Tensor) -> Tensor:
        """Whether numbers x (n, m) are farther than all simulations, or not finite, (n,) bool.

        New numbers of the same distribution are, with probability 1 / (compared + 1).
        """
        (near, usual), finite = self._whole, x.isfinite().all(1)
        every = torch.ones(x.shape[1], dtype=torch.bool)
        rows = self.whitened(torch.where(finite.unsqueeze(1), x, 0.0), every)
        return ~finite | (torch.cdist(rows, near).amin(1) > usual.max())

    def is_chance(self, farther: int, n: int) -> bool:
        """Whether so many of n new simulations are farther than all kept ones by chance, at 1%.

        At least k of n are farther with probability ∏_i (n − i) / (n + compared − i), i from 0 to
        k − 1, as all orders of distances are equally probable.
        """
        chance = math.prod((n - i) / (n + self.compared - i) for i in range(farther))
        return chance > 1 / (1 + FEWEST)

    def warning(self, x: Tensor, seen: Tensor) -> str | None:
        """The warning of data that are farther than all simulations; None: no more than by chance.

        A datum of the simulator is farther by chance, with probability 1 / (compared + 1).
        Arguments as for :meth:`p_values`.
        """
        least = 1 / (1 + self.compared)
        farther = int((self.p_values(x, seen) <= least * (1 + 1e-9)).sum())
        if self.is_chance(farther, len(x)):
            return None
        those = "the observation is" if len(x) == 1 else f"{farther} of {len(x)} observations are"
        return (
            f"{those} unlike all simulations: farther from others than each of {self.compared} "
            f"(prior predictive p-value {least:.2g}), where a posterior is a guess; look at "
            "simulations beside it, and at its units"
        )


def warn_of_outside(domain: PriorPredictive, outside: Tensor) -> float:
    """The fraction of draws that are outside (n,), with a warning if it is above 0.01, and
    larger than chance explains for new parameters of the same distribution."""
    count, fraction = int(outside.sum()), float(outside.double().mean())
    if fraction > FEW_OUTSIDE and not domain.is_chance(count, len(outside)):
        warnings.warn(
            f"{fraction:.1%} of {len(outside):,} draws of the parameters are unlike all that were "
            "simulated. There the likelihood is a guess; simulate there too, by "
            "likelihood.refined(draws), or make such parameters impossible, by "
            "likelihood.given(theta, known_only=True)",
            stacklevel=3,
        )
    return fraction
