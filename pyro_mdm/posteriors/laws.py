r"""Distributions of the data of one factor given the parameters θ, learned from simulations.

The real numbers of a datum first have a Gaussian distribution N(x; m(θ), S(θ)), whose mean and
covariance a network computes, unless a mean linear in θ and a constant covariance are better on
held-out simulations. The residual r = S^{-½} (x − m) has mixtures of Gaussian distributions given θ
(:mod:`pyro_mdm.posteriors.autoregressive`) if these are better on held-out simulations; otherwise
it is N(0, I). Numbers with bounds are transformed to numbers without them, and numbers with heavy
tails by asinh (:class:`TailMap`), so that no fit hangs on the farthest of them.
Distributions of discrete numbers are in :mod:`pyro_mdm.posteriors.discrete`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.budgets import Outcome
from pyro_mdm.posteriors.autoregressive import ResidualMixture
from pyro_mdm.posteriors.encoding import TailMap, scales_of
from pyro_mdm.posteriors.gaussian import ConditionalGaussian, LinearGaussian
from pyro_mdm.posteriors.training import VALIDATED, TrainingOptions, train
from pyro_mdm.support.measured import Measured

__all__ = ["Bounds", "ContinuousLaw", "DataBounds", "FactorLaw", "Form"]

Form = Literal["gaussian", "mixture"]
"""The forms of distributions of real numbers, each richer than those before."""

Bounds = tuple[Tensor, Tensor]
"""The ends of the support of each number, (m,) each, infinite where there is none."""


class DataBounds(NamedTuple):
    """The values that the numbers of a datum can have."""

    lower: Tensor  # (m,), -∞ where there is no bound
    upper: Tensor  # (m,), ∞ where there is no bound
    is_discrete: Tensor  # (m,) bool


AT_ONCE = 16_384
"""The number of data whose densities are computed together."""

MANY = 1000
"""The fewest data that can show that a number is positive."""

MOST_ROWS = 100_000
"""The most data that a Gaussian with a linear mean is fitted to, whose error is then far below that
of a network."""


def _normal(r: Tensor) -> Tensor:
    """The log density log N(r; 0, I), (*batch), of r (*batch, m)."""
    return -0.5 * (r.square() + math.log(2 * math.pi)).sum(-1)


def _is_positive(x: Tensor) -> Tensor:
    """Whether numbers x (n, m) count as positive: all of many are, and are skewed, more than their
    logs, as durations that a simulator computes without saying their support, (m,) bool."""
    positive = (x > 0).all(0) & (len(x) >= MANY)
    skewed, of_logs = _skewness(x), _skewness(torch.where(positive, x, 1.0).log())
    return positive & (skewed > 0.5) & (of_logs.abs() < skewed)


def _skewness(x: Tensor) -> Tensor:
    """The third standardized moments of numbers x (n, m), (m,)."""
    z = x.double() - x.double().mean(0)
    return z.pow(3).mean(0) / z.square().mean(0).clamp_min(1e-300).pow(1.5)


class FactorLaw(nn.Module, ABC):
    """The learned distribution of a datum of a factor given θ; data of a plate are independent."""

    form: str | None = None
    """The form of the distribution of real numbers; None: there is one form alone."""

    gain: Measured | None = None
    """The gain of mixtures over the Gaussian on held-out simulations, nats per datum; None: it was
    not measured, as there were fewer than ten simulations, or there is one form alone."""

    trainings = 1
    """The number of networks that :meth:`fit` trains in turn."""

    @property
    def misfit(self) -> float:
        """The gain of a richer form that is not used, nats per datum, at least 0, with its error at
        97.5%: the log density of a datum is too low by about that much; 0 where none was measured.
        """
        if self.form != "gaussian" or self.gain is None:
            return 0.0
        return max(0.0, self.gain.interval[1] if self.gain.mean > 0 else 0.0)

    @property
    @abstractmethod
    def bounds(self) -> DataBounds:
        """The values that the numbers of a datum can have."""

    @abstractmethod
    def fit(
        self, x: Tensor, theta: Tensor, bounds: Bounds, options: TrainingOptions
    ) -> list[Outcome]:
        """Learn the distribution from k data x (n, k, m) of each simulation with inputs theta (n,
        inputs), and return how the training of each network ended.
        """

    def by_datum(self, x: Tensor, theta: Tensor) -> Tensor:
        """The log density, (n, k) float64, nats, of each of k data x (n or 1, k, m) given each
        theta (n or 1, inputs); 0 for a NaN datum."""
        size, n = max(1, AT_ONCE // max(1, x.shape[1])), max(len(x), len(theta))
        pieces = [slice(first, first + size) for first in range(0, n, size)]
        return torch.cat(
            [self.of_piece(*(v[rows] if len(v) > 1 else v for v in (x, theta))) for rows in pieces]
        )

    @abstractmethod
    def of_piece(self, x: Tensor, theta: Tensor) -> Tensor:
        """:meth:`by_datum` of so few data that what is computed fits in cache; same arguments."""

    @abstractmethod
    def sample(self, theta: Tensor, k: int) -> Tensor:
        """Random data, k for each theta (n, inputs), (n, k, m)."""


class ContinuousLaw(FactorLaw):
    """The distribution of real numbers: a Gaussian, and mixtures of its residuals.

    A number with one bound is transformed by the log of its distance to the bound, and a number in
    an interval by its logit. Outside of its bounds a datum has the density 0.
    """

    center: Tensor
    unit: Tensor
    lower: Tensor  # (m,), -∞ where there is no bound
    upper: Tensor  # (m,), ∞ where there is no bound
    trainings = 2

    def __init__(self, inputs: int, outputs: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(outputs))
        self.register_buffer("unit", torch.ones(outputs))
        self.register_buffer("lower", torch.full((outputs,), -math.inf))
        self.register_buffer("upper", torch.full((outputs,), math.inf))
        self.tails = TailMap(outputs).requires_grad_(False)  # its knee is the unit
        self.gaussian = ConditionalGaussian(inputs, outputs, hidden, depth)
        self.mixture = ResidualMixture(inputs, outputs, hidden, depth)
        self.form = "gaussian"

    def fit(
        self, x: Tensor, theta: Tensor, bounds: Bounds, options: TrainingOptions
    ) -> list[Outcome]:
        (lower, upper), flat, n = bounds, x.flatten(0, 1), len(x)
        lower = torch.where(lower.isinf() & upper.isinf() & _is_positive(flat), 0.0, lower)
        # a bound that simulations reach, as rounded numbers do, would have an infinite logarithm
        self.lower.copy_(torch.where((flat > lower).all(0), lower, -math.inf))
        self.upper.copy_(torch.where((flat < upper).all(0), upper, math.inf))
        flat = self._unbounded(flat)[0]
        buffers = self.center, self.unit, self.tails.bent
        for buffer, value in zip(buffers, scales_of(flat), strict=True):
            buffer.copy_(value)
        x = self._scaled(x)[0]

        outcomes = [self._fit_gaussian(x, theta, options)]
        with torch.no_grad():
            r = self.gaussian.residual(x, theta)[0]

        def loss(rows: Tensor) -> Tensor:
            return -self.mixture.log_prob(r[rows], theta[rows]).mean()

        outcomes.append(train(self.mixture, loss, n, options, largest_gradient=20.0))
        if held_out := min(VALIDATED, n // 10):
            with torch.no_grad():
                richer = self.mixture.log_prob(r[-held_out:], theta[-held_out:])
            self.gain = Measured.from_values((richer - _normal(r[-held_out:])).double().mean(1))
        is_better = self.gain is not None and self.gain.mean > 2 * self.gain.standard_error
        self.form = options.form or ("mixture" if is_better else "gaussian")
        return outcomes

    def _fit_gaussian(self, x: Tensor, theta: Tensor, options: TrainingOptions) -> Outcome:
        """Train the Gaussian on x (n, k, m) in the networks' coordinates and theta (n, inputs),
        from one with a mean linear in θ and a constant covariance on, which is kept unless its
        validation loss is higher."""
        (n, k), held_out = x.shape[:2], min(VALIDATED, len(x) // 10)
        first = min(n - held_out, max(1, MOST_ROWS // k))
        linear = LinearGaussian.fit(x[:first].flatten(0, 1), theta[:first].repeat_interleave(k, 0))
        if linear is not None:
            self.gaussian.become(linear)

        def loss(rows: Tensor) -> Tensor:
            r, log_det = self.gaussian.residual(x[rows], theta[rows])
            return -(_normal(r) + log_det.unsqueeze(1)).mean()

        return train(self.gaussian, loss, n, options, largest_gradient=20.0)

    @property
    def bounds(self) -> DataBounds:
        return DataBounds(self.lower, self.upper, torch.zeros_like(self.lower, dtype=torch.bool))

    def _unbounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers without bounds of x (*batch, m), and log|det| of the map, (*batch); NaN where x
        is outside of its bounds."""
        low, high = self.lower.isfinite(), self.upper.isfinite()
        above = torch.where(low, x - torch.where(low, self.lower, 0.0), 1.0).log()
        below = torch.where(high, torch.where(high, self.upper, 0.0) - x, 1.0).log()
        above = torch.where(above.isfinite(), above, math.nan)
        below = torch.where(below.isfinite(), below, math.nan)
        width = torch.where(low & high, self.upper - self.lower, 1.0).log()
        u = torch.where(low | high, above - below, x)
        return u, (width - (above + below)).sum(-1)

    def _bounded(self, u: Tensor) -> Tensor:
        """Numbers inside of their bounds: the inverse of :meth:`_unbounded`."""
        low, high = self.lower.isfinite(), self.upper.isfinite()
        between = self.lower + (self.upper - self.lower) * u.sigmoid()
        one_sided = torch.where(low, self.lower + u.exp(), self.upper - (-u).exp())
        x = torch.where(low & high, between, torch.where(low | high, one_sided, u))
        # rounding may reach a bound, where the density is 0
        inside = self.upper.new_tensor(math.inf)
        # and float32 ends, where tails are heavy
        first, last = self.lower.nextafter(inside), self.upper.nextafter(-inside)
        return torch.minimum(torch.maximum(x, first), last)

    def _scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x in the networks' coordinates, and log|det| of the map, as :meth:`_unbounded`."""
        x, log_det = self._unbounded(x)
        z, of_tails = self.tails((x - self.center) / self.unit)
        return z, log_det + of_tails - self.unit.log().sum()

    def of_piece(self, x: Tensor, theta: Tensor) -> Tensor:
        present = ~x.isnan().any(2)
        x, of_scale = self._scaled(x)
        given = ~of_scale.isnan() & present
        r, log_det = self.gaussian.residual(torch.where(given.unsqueeze(2), x, 0.0), theta)
        of_residual = _normal(r) if self.form == "gaussian" else self.mixture.log_prob(r, theta)
        # float64, as the densities of many data are summed
        log_p = of_residual.double() + log_det.double().unsqueeze(1)
        log_p = log_p + torch.where(given, of_scale, 0.0).double()
        outside = torch.where(present, -math.inf, 0.0).double()
        return torch.where(given, log_p, outside)

    def sample(self, theta: Tensor, k: int) -> Tensor:
        n, m = len(theta), len(self.center)
        r = torch.randn(n, k, m) if self.form == "gaussian" else self.mixture.sample(theta, k)
        z = self.tails.inverse(self.gaussian.data(r, theta))
        return self._bounded(z * self.unit + self.center)
