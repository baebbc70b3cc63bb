"""Scores of draws beside exact ones."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.problems import GaussianMixture

__all__ = ["Reference", "error_of_mean", "error_of_weights", "responsibilities"]


class Reference:
    """Exact draws (m, d) of a law, that others are held against."""

    def __init__(self, y: Tensor) -> None:
        m = len(y)
        self.y, self.within = y, float(torch.cdist(y, y).mean()) * m / (m - 1)

    def energy(self, x: Tensor, of_each: int = 1) -> float:
        """The squared energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of draws as they are,
        which have the mass 1/n each, to the law.

        Of exact draws it has the mean E|Y - Y'| / n, the floor.

        Args:
            x: draws (n, d).
            of_each: draws that follow each other and depend on each other. Where they do, those of
                different groups are looked at, and the value is that of n independent ones.
        """
        within, n = torch.cdist(x, x), len(x)
        of_x = within.mean()
        if of_each > 1:
            group = torch.arange(n) // of_each
            of_x = within[group != group[:, None]].mean() * (1 - 1 / n)
        return float(2 * torch.cdist(x, self.y).mean() - of_x) - self.within

    def floor(self, n: int) -> float:
        """The mean of the energy of n exact draws."""
        return self.within / n


def error_of_mean(x: Tensor, law: GaussianMixture) -> float:
    """The root mean square over dimensions, in standard deviations of the law."""
    off = (x.mean(0) - law.mean) / law.covariance.diagonal().sqrt()
    return float(off.square().mean().sqrt())


def responsibilities(x: Tensor, law: GaussianMixture) -> Tensor:
    """The probability of each component given a draw (n, d), (n, components)."""
    parts = torch.distributions.MultivariateNormal(law.means, law.covariances)
    return (law.log_weights + parts.log_prob(x.unsqueeze(1))).softmax(1)


def error_of_weights(x: Tensor, law: GaussianMixture) -> float:
    """Half the sum of differences between the weights of components and what draws give them.

    It is 0 for exact draws but for their number.
    """
    off = responsibilities(x, law).mean(0) - law.log_weights.exp()
    return float(off.abs().sum() / 2)
