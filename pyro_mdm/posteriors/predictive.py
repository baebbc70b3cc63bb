r"""Whether an observation is like what its simulator makes: a prior predictive p-value.

A posterior is learned where simulations are. Far from all of them it answers too, and nothing says
that it is wrong. So some simulations are kept, in two halves. The distance of an observation to the
nearest one of the first half is ranked among those of the second half. Under the simulator all are
exchangeable, so that the p-value

    p = (1 + #{i : distance_i ≥ distance}) / (1 + number of the second half)

is at most α with probability at most α (Box, "Sampling and Bayes' inference in scientific modelling
and robustness", JRSS A 1980, for p-values of the prior predictive law).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["MOST_KEPT", "PriorPredictive"]

MOST_KEPT = 1000
"""Simulations that are kept, at most."""

FEWEST = 99
"""Simulations to compare with, below which an observation is not called unlike all of them: chance
makes a warning in one case of 100 at most."""


class PriorPredictive(nn.Module):
    """Data of some simulations, to which observations are compared.

    Distances are Euclidean where the first half has unit covariance, shrunk towards independence
    where it is small for the numbers in a datum.

    Args:
        x: encoded data of simulations, (n, m), all there; of more than 1,000 the first are kept.

    Raises:
        ValueError: fewer than two simulations.
    """

    kept: Tensor

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        if len(x) < 2:
            raise ValueError(f"there are {len(x)} simulations to keep, expected at least two")
        self.register_buffer("kept", x[:MOST_KEPT].detach().clone())

    @property
    def compared(self) -> int:
        """The number of simulations that observations are ranked among."""
        return len(self.kept) // 2

    def whitened(self, x: Tensor, seen: Tensor) -> Tensor:
        """Numbers of x (n, m) that are ``seen`` (m,), where simulations have unit covariance."""
        near = self.kept[self.compared :].double()[:, seen]
        spread = near.std(0, correction=0)
        unit = torch.where(spread > 0, spread, 1.0)
        scaled = (near - near.mean(0)) / unit
        n, m = scaled.shape
        shrunk = m / (n + m)
        covariance = (1 - shrunk) * scaled.mT @ scaled / n
        covariance = covariance + shrunk * torch.eye(m).to(covariance)
        root = torch.linalg.cholesky(covariance)
        rest = ((x.double()[:, seen] - near.mean(0)) / unit).mT
        return torch.linalg.solve_triangular(root, rest, upper=False).mT

    def distances(self, x: Tensor, one: Tensor, seen: Tensor) -> Tensor:
        """Distances of encoded data x (n, m) to one (1, m) in numbers that are ``seen``, (n,)."""
        return (self.whitened(x, seen) - self.whitened(one, seen)).norm(dim=1)

    def p_values(self, x: Tensor, seen: Tensor) -> Tensor:
        """P-values of encoded data x (n, m), (n,) float64; small for data unlike simulations.

        Args:
            seen: mask of the numbers that are there, (n, m) bool; others are left out of distances.
        """
        value = torch.ones(len(x), dtype=torch.float64)
        for pattern in seen.unique(dim=0):
            rows = (seen == pattern).all(1)
            if not bool(pattern.any()):
                continue  # nothing is seen, which is like anything
            first, second = (
                self.whitened(simulations, pattern)
                for simulations in (self.kept[self.compared :], self.kept[: self.compared])
            )
            nearest = torch.cdist(self.whitened(x[rows], pattern), first).amin(1)
            usual = torch.cdist(second, first).amin(1)
            farther = (usual >= nearest.unsqueeze(1)).sum(1)
            value[rows] = (1 + farther.double()) / (1 + self.compared)
        return value

    def is_chance(self, farther: int, n: int) -> bool:
        """Whether of n new simulations so many are farther than all by chance, in one case of 100.

        Of n data k are so with probability ∏_i (n - i) / (n + compared - i), i from 0 to k - 1: all
        orders of distances are alike.

        Args:
            farther: the number k of data that are farther than all that are kept.
            n: the number of data.
        """
        chance = math.prod((n - i) / (n + self.compared - i) for i in range(farther))
        return chance > 1 / (1 + FEWEST)

    def warning(self, x: Tensor, seen: Tensor) -> str | None:
        """What is said of data (n, m) of which some are farther than all simulations, if anything.

        A datum of the simulator is so by chance with probability one over their number.
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
