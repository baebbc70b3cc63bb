"""Gaussian distributions given other numbers: linear, by least squares, and by a network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.posteriors.encoding import center_and_unit

__all__ = ["ConditionalGaussian", "LinearGaussian", "Residual"]

PER_NUMBER = 10
"""The fewest simulations for each regressor of a Gaussian; with fewer, none is fitted."""


class LinearGaussian(NamedTuple):
    """The Gaussian distribution of θ given x with a mean linear in x.

    It is a baseline for posteriors; with θ and x exchanged, one for likelihoods.
    """

    center: Tensor  # (m,), the mean of x
    unit: Tensor  # (m,), the scale of x
    weight: Tensor  # (1 + m, d), the coefficients of 1 and of standardized x
    root: Tensor  # (d, d), the lower triangular root of the covariance

    @classmethod
    def fit(cls, theta: Tensor, x: Tensor) -> LinearGaussian | None:
        """The least-squares fit to n pairs, in float64.

        Args:
            theta: the parameters, (n, d).
            x: the data, (n, m).

        Returns:
            The Gaussian. None if there are fewer than ten pairs for each regressor, or if x
            determines a linear combination of θ exactly.
        """
        theta, x = theta.double(), x.double()
        if len(x) < PER_NUMBER * (1 + x.shape[1]):
            return None
        center, unit = center_and_unit(x)
        inputs = _with_one((x - center) / unit)
        solved = torch.linalg.lstsq(inputs, theta, driver="gelsd")  # x may have less than full rank
        rest = theta - inputs @ solved.solution
        covariance = rest.mT @ rest / (len(x) - int(solved.rank))
        root, info = torch.linalg.cholesky_ex(covariance)
        # float32 draws cannot tell variances below this from 0, so they count as 0
        least = torch.finfo(torch.float32).eps * theta.std(0)
        if int(info) or bool((root.diagonal() <= least).any()):
            return None
        return cls(center, unit, solved.solution, root)

    def mean(self, x: Tensor) -> Tensor:
        """The mean E[θ | x], (n, d) float64, of data x (n, m)."""
        return _with_one((x.double() - self.center) / self.unit) @ self.weight

    def roots(self, spread: Tensor) -> Tensor:
        """The triangular roots of the covariance of θ, (n, d, d), where x itself is uncertain.

        Args:
            spread: the covariance of each x about its mean, (n, m, m).
        """
        weight = self.weight[1:] / self.unit.unsqueeze(-1)
        return torch.linalg.cholesky(self.root @ self.root.mT + weight.mT @ spread @ weight)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """The log density log p(θ | x) of n pairs of θ (n, d) and x (n, m), (n,) float64, nats."""
        law = torch.distributions.MultivariateNormal(self.mean(x), scale_tril=self.root)
        return law.log_prob(theta.double())


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x.new_ones(len(x), 1), x], 1)


class Residual(nn.Module):
    """A residual network of a hidden width and a depth in blocks, whose initial outputs are 0."""

    def __init__(self, inputs: int, outputs: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.inlet = nn.Linear(inputs, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
            )
            for _ in range(depth)
        )
        self.outlet = nn.Linear(hidden, outputs)
        for parameter in self.outlet.parameters():
            nn.init.zeros_(parameter)

    def trunk(self, theta: Tensor) -> Tensor:
        """The last hidden layer, (n, hidden), of inputs theta (n, inputs)."""
        h: Tensor = self.inlet(theta)
        for block in self.blocks:
            h = h + block(h)
        return h


class ConditionalGaussian(Residual):
    """The distribution N(x; m(θ), S(θ)) with m and S by a residual network of θ.

    The network returns m, log scales s and a strictly lower triangular matrix L, such that
    r = e^{-s} (1 + L) (x − m) is N(0, I).
    """

    slope: Tensor  # (inputs, outputs), a linear part of m

    def __init__(self, inputs: int, outputs: int, hidden: int = 64, depth: int = 2) -> None:
        super().__init__(inputs, 2 * outputs + outputs * (outputs - 1) // 2, hidden, depth)
        self.outputs = outputs
        self.register_buffer("slope", torch.zeros(inputs, outputs))

    def forward(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean and log scales, (n, m) each, and 1 + L, (n, m, m), of theta (n, inputs)."""
        h, m = self.trunk(theta), self.outputs
        mean, log_scale, below = self.outlet(h).split([m, m, m * (m - 1) // 2], 1)
        factor = torch.eye(m, dtype=h.dtype, device=h.device).repeat(len(h), 1, 1)
        row, column = torch.tril_indices(m, m, -1)
        factor[:, row, column] = below
        return mean + theta @ self.slope, log_scale, factor

    @torch.no_grad()
    def become(self, linear: LinearGaussian) -> None:
        """Have the distribution of a Gaussian of x with a mean linear in θ."""
        slope = linear.weight[1:] / linear.unit.unsqueeze(1)
        scale = linear.root.diagonal()
        inverse = torch.linalg.inv(linear.root) * scale.unsqueeze(1)  # 1 + L
        row, column = torch.tril_indices(self.outputs, self.outputs, -1)
        constants = [linear.weight[0] - linear.center @ slope, scale.log(), inverse[row, column]]
        self.slope.copy_(slope)
        self.outlet.weight.zero_()
        self.outlet.bias.copy_(torch.cat(constants))

    def residual(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The residuals r (n, k, m) of k data x (n or 1, k, m) of each theta (n, inputs), and
        log|det ∂r/∂x|, (n,)."""
        mean, log_scale, factor = self(theta)
        apart = (x - mean.unsqueeze(1)) @ factor.mT
        return apart * (-log_scale).exp().unsqueeze(1), -log_scale.sum(1)

    def data(self, r: Tensor, theta: Tensor) -> Tensor:
        """The data at residuals r, (n, k, m): the inverse of :meth:`residual`."""
        mean, log_scale, factor = self(theta)
        apart = (r * log_scale.exp().unsqueeze(1)).mT
        solved = torch.linalg.solve_triangular(factor, apart, upper=False, unitriangular=True)
        return solved.mT + mean.unsqueeze(1)
