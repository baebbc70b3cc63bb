r"""Distributions of the data of one factor given the parameters θ, learned from simulations.

The real numbers of a datum first have a Gaussian distribution N(x; m(θ), S(θ)), whose mean and
covariance a network computes, unless a mean linear in θ and a constant covariance are better on
held-out simulations. Where data have heavy tails, a map that shortens those of the residual
r = S^{-½} (x − m) is learned too (:mod:`pyro_mdm.posteriors.tails`). The residual has a diffusion
model given θ if this is better on held-out simulations; otherwise it is N(0, I). Its density is
that of the probability flow in a few steps (:class:`ContinuousLaw`). Numbers with bounds are
transformed to numbers without them. Distributions of discrete numbers are in
:mod:`pyro_mdm.posteriors.discrete`.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm import randomness
from pyro_mdm.budgets import Budget, Outcome
from pyro_mdm.contexts import Vectors
from pyro_mdm.diffusions.presets import VPSDE
from pyro_mdm.elbo import MDM_ELBO
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.networks import MLP
from pyro_mdm.paths.flow import Solver, flow_log_prob
from pyro_mdm.posteriors.gaussian import ConditionalGaussian, LinearGaussian
from pyro_mdm.posteriors.tails import TailMap, scales_of
from pyro_mdm.posteriors.training import VALIDATED, TrainingOptions, train
from pyro_mdm.scores.denoiser import Denoiser
from pyro_mdm.support.measured import Measured

__all__ = [
    "AT_ONCE",
    "STEPS",
    "Bounds",
    "ContinuousLaw",
    "DataBounds",
    "FactorLaw",
]

Bounds = tuple[Tensor, Tensor]
"""The ends of the support of each number, (m,) each, infinite where there is none."""


class DataBounds(NamedTuple):
    """The values that the numbers of a datum can have."""

    lower: Tensor  # (m,), -∞ where there is no bound
    upper: Tensor  # (m,), ∞ where there is no bound
    is_discrete: Tensor  # (m,) bool


MAX_LOG_SNR = 9.0
"""The λ where the flow of residuals, of unit variance, ends: noise of standard deviation 0.011."""

STEPS = 8
"""The number of steps of the flow, of the classical Runge-Kutta method."""

MOST_EXACT = 32
"""The most numbers of a datum whose density in fewer steps than STEPS has exact divergences, by as
many derivatives as there are numbers."""

PROBES = 8
"""The number of Hutchinson probes for a datum of more numbers. All data have the same probes."""

AT_ONCE = 4096
"""The number of data whose densities are computed together, so that they fit in cache."""

LEAST_GAIN = 0.05
"""The least gain of a diffusion over the Gaussian that is worth its time, nats per datum."""

MOST_ROWS = 100_000
"""The most data that a Gaussian with a linear mean is fitted to, whose error is then far below that
of a network."""

DRAWS_OF_GAIN = 8
"""The number of draws of noise for each simulation that the gain is measured with."""


def _normal(r: Tensor) -> Tensor:
    """The log density log N(r; 0, I), (*batch), of r (*batch, m)."""
    return -0.5 * (r.square() + math.log(2 * math.pi)).sum(-1)


class FactorLaw(nn.Module, ABC):
    """The learned distribution of a datum of a factor given θ; data of a plate are independent."""

    gain: Measured | None = None
    """The gain of the diffusion over the Gaussian on held-out simulations, nats per datum; None: no
    diffusion was learned."""

    @property
    def is_corrected(self) -> bool:
        """Whether a diffusion is part of the distribution."""
        gain = self.gain
        return gain is not None and gain.mean > LEAST_GAIN and gain.mean > 2 * gain.standard_error

    @property
    @abstractmethod
    def bounds(self) -> DataBounds:
        """The values that the numbers of a datum can have."""

    @abstractmethod
    def trainings(self, diffusion: bool) -> int:
        """The number of networks that :meth:`fit` trains in turn."""

    @abstractmethod
    def fit(
        self, x: Tensor, theta: Tensor, bounds: Bounds, options: TrainingOptions, diffusion: bool
    ) -> list[Outcome]:
        """Learn the distribution from simulations.

        Args:
            x: k data of each simulation, (n, k, m).
            theta: the inputs, which represent θ, (n, inputs).
            bounds: the ends of the support of each number, (m,) each.
            options: the options of the training.
            diffusion: whether to learn a diffusion too.

        Returns:
            How the training of each network ended.

        Raises:
            FloatingPointError: a loss that is not finite.
        """

    @abstractmethod
    def by_datum(self, x: Tensor, theta: Tensor, steps: int = STEPS) -> Tensor:
        """The log density of each of k data given each θ, (n, k) float64, nats; 0 for a NaN datum.

        Args:
            x: the data, (n or 1, k, m).
            theta: the inputs, (n, inputs).
            steps: as for :meth:`log_prob`.
        """

    def log_prob(self, x: Tensor, theta: Tensor, steps: int = STEPS) -> Tensor:
        """The log density log p(x | θ) of k data given each θ, (n,) float64, nats.

        Args:
            x: the data, (n or 1, k, m).
            theta: the inputs, (n, inputs).
            steps: the number of steps of the flow, if a diffusion is part of the distribution; 0
                for the Gaussian alone. With fewer than STEPS, divergences for a datum of many
                numbers are estimated.
        """
        return self.by_datum(x, theta, steps).sum(1)

    @abstractmethod
    def sample(self, theta: Tensor, k: int) -> Tensor:
        """Random data for each θ, (n, k, m).

        Args:
            theta: the inputs, (n, inputs).
            k: the number of data for each θ.
        """


class ContinuousLaw(FactorLaw):
    """The distribution of real numbers: a Gaussian, and a diffusion of its residuals.

    A number with one bound is transformed by the log of its distance to the bound, and a number in
    an interval by its logit. Outside of its bounds a datum has the density 0.

    Args:
        inputs: the number of inputs, which represent θ.
        outputs: the number m of numbers of a datum.
        hidden: the width of the networks.
        depth: their number of blocks.
    """

    center: Tensor
    unit: Tensor
    lower: Tensor  # (m,), -∞ where there is no bound
    upper: Tensor  # (m,), ∞ where there is no bound

    def __init__(self, inputs: int, outputs: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(outputs))
        self.register_buffer("unit", torch.ones(outputs))
        self.register_buffer("lower", torch.full((outputs,), -math.inf))
        self.register_buffer("upper", torch.full((outputs,), math.inf))
        self.gaussian = ConditionalGaussian(inputs, outputs, hidden, depth)
        self.tails = TailMap(outputs)
        context = Vectors(torch.zeros(inputs), torch.ones(inputs))
        network = MLP(outputs + context.size, hidden, depth, outputs)
        score = Denoiser(network, torch.zeros(outputs), torch.ones(outputs))
        self.model = DiffusionModel(VPSDE(max_log_snr=MAX_LOG_SNR), score, context=context)

    def trainings(self, diffusion: bool) -> int:
        return 1 + diffusion

    def fit(
        self, x: Tensor, theta: Tensor, bounds: Bounds, options: TrainingOptions, diffusion: bool
    ) -> list[Outcome]:
        (lower, upper), flat, n = bounds, x.flatten(0, 1), len(x)
        # a bound that simulations reach, as rounded numbers do, would have an infinite logarithm
        self.lower.copy_(torch.where((flat > lower).all(0), lower, -math.inf))
        self.upper.copy_(torch.where((flat < upper).all(0), upper, math.inf))
        flat = self._unbounded(flat)[0]
        center, unit, _ = scales_of(flat)
        self.center.copy_(center)
        self.unit.copy_(unit)
        x = self._scaled(x)[0]

        outcomes = self._fit_residuals(x, theta, options)
        if not diffusion:
            return outcomes
        with torch.no_grad():
            r = self._residual(x, theta)[0]
        loss = MDM_ELBO()(self.model, DiffusionGuide(self.model.diffusion))

        def chosen(rows: Tensor) -> tuple[Tensor, Tensor]:
            """A random datum of each simulation, and its parameters."""
            return r[rows, torch.randint(r.shape[1], (len(rows),))], theta[rows]

        def of_diffusion(rows: Tensor) -> Tensor:
            return loss(*chosen(rows)) / len(rows)

        d = float(r.shape[2])
        outcomes.append(train(self.model, of_diffusion, n, options, largest_gradient=d))
        if held_out := min(VALIDATED, n // 10):
            rows = torch.arange(n - held_out, n)
            self.gain = self._measured(*chosen(rows.repeat(DRAWS_OF_GAIN)))
        return outcomes

    def _fit_residuals(self, x: Tensor, theta: Tensor, options: TrainingOptions) -> list[Outcome]:
        """Train the Gaussian, and where its residuals have heavy tails, another with their map.

        That with the lowest validation loss is kept, also of a Gaussian with a mean linear in θ.

        Args:
            x: the data in the networks' coordinates, (n, k, m).
            theta: the inputs, (n, inputs).
            options: the options of the training.
        """
        (n, k), held_out = x.shape[:2], min(VALIDATED, len(x) // 10)
        budget = options.budget or Budget()
        options = options._replace(budget=budget)

        def loss(rows: Tensor) -> Tensor:
            r, log_det = self._residual(x[rows], theta[rows])
            return -(_normal(r) + log_det).mean()

        def trained(*modules: nn.Module) -> Outcome:
            return train(nn.ModuleList(modules), loss, n, options, largest_gradient=20.0)

        if not held_out:
            return [trained(self.gaussian)]
        first = min(n - held_out, max(1, MOST_ROWS // k))
        data, inputs = x[:first].flatten(0, 1), theta[:first].repeat_interleave(k, 0)
        linear = LinearGaussian.fit(data, inputs)
        apart = data if linear is None else data - linear.mean(inputs)
        may_have_tails = bool(scales_of(apart)[2].any())
        budget.trainings += may_have_tails
        untrained = copy.deepcopy(self.gaussian)
        outcomes = [trained(self.gaussian)]
        if linear is not None:
            outcomes[0] = self._linear_or(outcomes[0], linear, x[-held_out:], theta[-held_out:])
        if not may_have_tails:
            return outcomes
        with torch.no_grad():
            heavy = scales_of(self._residual(x[:first], theta[:first])[0].flatten(0, 1))[2]
        if not bool(heavy.any()):
            budget.trainings -= 1
            return outcomes
        # anew, as the farthest numbers lead a Gaussian astray
        kept = self.gaussian, self.tails
        self.gaussian, self.tails = untrained, TailMap(x.shape[2])
        self.tails.bent.copy_(heavy)
        outcomes.append(trained(self.gaussian, self.tails))
        losses = [outcome.best for outcome in outcomes if outcome.best is not None]
        if not losses[-1] < losses[0]:
            self.gaussian, self.tails = kept
        return outcomes

    @torch.no_grad()
    def _linear_or(
        self, outcome: Outcome, linear: LinearGaussian, x: Tensor, theta: Tensor
    ) -> Outcome:
        """Take a Gaussian with a mean linear in θ, if it is better than the learned one.

        Args:
            outcome: how the training of the learned one ended.
            linear: the Gaussian.
            x: the validation data in the networks' coordinates, (n, k, m).
            theta: the inputs, (n, inputs).
        """
        r, log_det = self._residual(x, theta)
        learned = float((_normal(r) + log_det).double().mean())
        log_p = linear.log_prob(x.flatten(0, 1), theta.repeat_interleave(x.shape[1], 0))
        by_linear = float(log_p.mean())
        if not by_linear > learned:
            return outcome
        self.gaussian.become(linear)
        return outcome._replace(best_step=0, best=-by_linear)

    def _residual(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The residuals of k data of each θ after the map of heavy tails, (n, k, m), and log|det|
        of the whole, (n, k).

        Args:
            x: the data in the networks' coordinates, (n or 1, k, m).
            theta: the inputs, (n, inputs).
        """
        r, log_det = self.gaussian.residual(x, theta)
        z, of_tails = self.tails(r)
        return z, log_det.unsqueeze(1) + of_tails

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
        return (x - self.center) / self.unit, log_det - self.unit.log().sum()

    @torch.no_grad()
    def _measured(self, r: Tensor, theta: Tensor) -> Measured:
        """The gain of the diffusion on residuals r (n, m), with the same noise for both."""
        diffusion = self.model.diffusion
        score: Any = self.model.given_context(theta).score_function
        low, high = diffusion.terminal_log_snr, diffusion.start_log_snr
        # stratified levels vary less; random rows have them, as each repeats DRAWS_OF_GAIN times
        level = low + (high - low) * (torch.rand(len(r)) + torch.arange(len(r))) / len(r)
        level = level[torch.randperm(len(r))]
        noise = torch.randn(len(r), 1, r.shape[1])
        apart = score.baseline_integrand(r, level, noise) - score.integrand(
            diffusion, r, level, noise
        )
        gained = (high - low) * apart.double()
        return Measured.from_values(gained.reshape(DRAWS_OF_GAIN, -1).mean(0))

    def by_datum(self, x: Tensor, theta: Tensor, steps: int = STEPS) -> Tensor:
        present = ~x.isnan().any(2)
        x, of_scale = self._scaled(x)
        given = ~of_scale.isnan() & present
        r, log_det = self._residual(torch.where(given.unsqueeze(2), x, 0.0), theta)
        # float64, as the densities of many data are summed
        log_p = _normal(r).double() + log_det.double()
        log_p = log_p + torch.where(given, of_scale, 0.0).double()
        if steps and self.is_corrected and bool(given.any()):
            given = given.expand(log_p.shape)
            of_data = theta.unsqueeze(1).expand(*r.shape[:2], -1)[given]
            gained = self._flow(r[given], of_data, steps) - _normal(r[given]).double()
            log_p = log_p.masked_scatter(given, log_p[given] + gained)
        outside = torch.where(present, -math.inf, 0.0).double()
        return torch.where(given, log_p, outside)

    def _flow(self, r: Tensor, theta: Tensor, steps: int) -> Tensor:
        """The log density of r with the noise at ε under the diffusion, given θ, (n,) float64."""
        diffusion, values = self.model.diffusion, list[Tensor]()
        scale = diffusion.start.mean  # a(ε), (1,): the state at ε is a r plus noise
        probes = PROBES if steps < STEPS and r.shape[1] > MOST_EXACT else 0
        solver = Solver("rk4", steps=steps, probes=probes)
        for block, context in zip(r.split(AT_ONCE), theta.split(AT_ONCE), strict=True):
            score = self.model.given_context(context).score_function
            y = block.double().unsqueeze(1) * scale.double().unsqueeze(1)
            with randomness.alike(1, len(y), seed=0):  # the density is a function of the datum
                density = flow_log_prob(diffusion, score, y, solver).log_prob
            values.append(density + r.shape[1] * scale.double().log().sum())
        return torch.cat(values)

    def sample(self, theta: Tensor, k: int) -> Tensor:
        n, m = len(theta), len(self.center)
        if self.is_corrected:
            model = self.model.given_context(theta.repeat_interleave(k, 0))
            r = model(batch_size=n * k).reshape(n, k, m)
        else:
            r = torch.randn(n, k, m)
        x = self.gaussian.data(self.tails.inverse(r), theta)
        return self._bounded(x * self.unit + self.center)
