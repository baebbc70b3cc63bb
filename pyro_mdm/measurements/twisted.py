r"""Weighted samples of data given measurements: twisted sequential Monte Carlo.

Particles follow the chain of ancestral sampling, ``p(y_r | y_s, x̂)``, with ``E[x | z, obs]`` in the
place of x̂. Their weights correct for it: with ψ(y) > 0 an approximation of p(obs | y),

    w ∏= p(y_r | y_s, x̂) ψ(y_r) / ( q(y_r | y_s, E[x | z_s, obs]) ψ(y_s) )

with p(obs | x) in the place of ψ at the end. ``ψ = exp(-½ rᵀ (H C Hᵀ + R)^{-1} r)`` with
``r = obs - H x̂``. Whatever ψ, the mean weight is an unbiased estimate of the chain's p(obs), and
weighted particles are samples of its p(x | obs) as their number grows.

The chain is a discretization: its log p(obs) differs from that of the process by a term of first
order in the step. From 16 steps on, a chain of half as many steps estimates that term (Richardson's
extrapolation).

**Conditional sequential Monte Carlo** keeps an exact draw among the particles.
With it, and n particles beside it, the inverse of the mean weight is unbiased for 1 / p(obs), so
that its logarithm bounds log p(obs) from above in expectation.

The draw has a place among the particles of its repeat. Systematic resampling takes the ancestors
of the numbers ``(k + u) / P`` for k = 0, …, P - 1 by the cumulative weights. With v uniform in the
draw's own interval of these, the draw stays as number ``k = ⌊P v⌋`` and the others have
``u = P v - k``.

Source: Andrieu, Doucet & Holenstein, "Particle Markov chain Monte Carlo methods", JRSS B 2010;
Grosse, Ghahramani & Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo",
2015.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import apply_vector
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.evaluation.weights import of_repeats
from pyro_mdm.likelihoods.base import log_prob_by_dimension
from pyro_mdm.measurements.denoiser import Given, MeasuredDenoiser
from pyro_mdm.measurements.operators import LinearOperator, Mask
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.chain import check_chain
from pyro_mdm.samplers.stochastic import Ancestral
from pyro_mdm.scores.base import Coefficients, coefficients
from pyro_mdm.support.checks import Count, Several, check_count, check_number, checked_arguments
from pyro_mdm.support.measured import Measured, student_factor
from pyro_mdm.support.modules import evaluating

__all__ = [
    "Kept",
    "Particles",
    "Retained",
    "checked_score",
    "twisted_smc",
    "weighted_particles",
]

FEWEST_STEPS = 16
"""The fewest steps of a chain whose grid error is estimated by half as many: the weights of fewer
are too unequal."""
FAR_BELOW = 100
"""The largest ratio of the variance of H x by the decoder and that of the noise: beyond it hardly a
particle agrees with obs."""
UNCERTAIN = 0.25
"""The standard error of the grid error as a fraction of it, since it is of first order alone
(tests/benchmarks/evidence.py)."""


class Retained(NamedTuple):
    """An exact draw of the path and the datum of a chain given obs."""

    states: Tensor  # (steps + 1, K, *event_shape) from T to ε, float64
    x: Tensor  # (*event_shape)


class Kept:
    """The retained draw among the particles of each repeat.

    Args:
        retained: the draw.
        repeats: number R of repeats.
        particles: number P of particles of each.
    """

    def __init__(self, retained: Retained, repeats: int, particles: int) -> None:
        self.states, self.x = retained
        device = self.states.device
        self.particles = particles
        self.first = particles * torch.arange(repeats, device=device).unsqueeze(1)
        self.place = torch.randint(particles, (repeats, 1), device=device)
        self._next = self.place

    @property
    def rows(self) -> Tensor:
        """The indices of the draw among all particles, (R,)."""
        return (self.first + self.place).flatten()

    def offset(self, weights: Tensor, uniform: Tensor) -> Tensor:
        """The offset u of systematic resampling in which the draw is resampled, (R, 1).

        Args:
            weights: normalized weights, (R, P).
            uniform: uniform numbers, (R, 1).
        """
        share = weights.gather(1, self.place)
        end = weights.cumsum(1).gather(1, self.place)
        v = self.particles * (end - share * uniform)
        self._next = v.floor().long().clamp(0, self.particles - 1)
        return (v - self._next).clamp(0, 1)

    def resampled(self, ancestors: Tensor, chosen: Tensor) -> Tensor:
        """The ancestors (R, P), of which the draw's is itself: rounding may name a neighbour.

        Args:
            ancestors: ancestors of each particle, (R, P).
            chosen: whether the particles of a repeat are resampled, (R, 1).
        """
        ancestors = ancestors.scatter(1, self._next, self.place)
        self.place = torch.where(chosen, self._next, self.place)
        return ancestors


class Particles(NamedTuple):
    """Weighted samples, P particles in each of R independent repeats; :func:`twisted_smc` draws
    them.

    Example:
        >>> x, log_weights = torch.randn(4, 16, 2), torch.randn(4, 16).double()
        >>> particles = Particles(x, log_weights, 10, Measured(float("nan"), float("nan")))
        >>> particles.resampled(5).shape, particles.one_of_each().shape
        (torch.Size([5, 2]), torch.Size([4, 2]))
    """

    x: Tensor  # (R, P, *event_shape)
    log_weights: Tensor  # (R, P), nats, float64; their exponentials have the mean p(obs)
    network_calls: int  # per particle, without vector-Jacobian products
    grid_error: Measured  # log_evidence of the chain − of the process, nats; NaN below 16 steps
    coarse: Particles | None = None  # Particles of half as many steps; None below 16 steps

    @property
    def log_evidence(self) -> Measured:
        """log p(obs) of the chain, nats, with its standard error over repeats.

        It is the logarithm of the mean of unbiased estimates. The error is NaN for one repeat, and
        where no particle of a repeat can have given obs. That of the process is
        :attr:`extrapolated`.
        """
        return of_repeats(self.log_weights.logsumexp(1) - math.log(self.log_weights.shape[1]))

    @property
    def lower_bound(self) -> Measured:
        """The mean over repeats of the logarithm of their mean weights, nats, with its error.

        Its expectation is below the chain's log p(obs), which it meets as particles grow in number.
        """
        return Measured.from_values(
            self.log_weights.logsumexp(1) - math.log(self.log_weights.shape[1])
        )

    @property
    def extrapolated(self) -> Measured:
        """log p(obs) of the process, nats: the chain's − ``grid_error``.

        The standard error has those of both, and a quarter of ``grid_error``, since this is of
        first order alone. The chain's error is in both, and counts twice: chance that raises the
        chain's log p(obs) lowers ``grid_error`` as much. Below 16 steps the value is the chain's,
        and also where no particle of half as many steps can have given obs.
        """
        chain, added = self.log_evidence, self.grid_error
        if not math.isfinite(added.mean):
            return chain
        chain_error = math.sqrt(3) * chain.standard_error  # Var f + 2 Cov(f, f - c), of f - (c - f)
        error = math.hypot(chain_error, added.standard_error, UNCERTAIN * added.mean)
        return Measured(chain.mean - added.mean, error)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of :attr:`extrapolated`, nats; NaN where it has no error."""
        return self.extrapolated.interval

    @property
    def weights(self) -> Tensor:
        """The weights of all particles, (R, P), which sum to 1; equal if all have weight 0."""
        # finite, as softmax of -∞ alone is NaN
        log_w = self.log_weights.flatten().clamp_min(torch.finfo(self.log_weights.dtype).min)
        return log_w.softmax(0).reshape(self.log_weights.shape)

    @property
    def posterior_mean(self) -> tuple[Tensor, Tensor]:
        """E[x | obs] and its standard error, (*event_shape) each; NaN for one repeat.

        The error has the spread over repeats, and the change of the mean by the grid, to first
        order, with its own error. Below 16 steps the grid's is not known and is left out.
        """
        mean, error = self._mean
        if self.coarse is None:
            return mean, error
        coarse_mean, coarse_error = self.coarse._mean
        ratio = (self.network_calls - self.coarse.network_calls) / self.coarse.network_calls
        added = (coarse_mean - mean).square() + error.square() + coarse_error.square()
        return mean, (error.square() + added / (ratio - 1) ** 2).sqrt()

    @property
    def _mean(self) -> tuple[Tensor, Tensor]:
        """E[x | obs] of the chain, and its error over repeats."""
        by_repeat = self.weights.sum(1)  # (R,)
        event = self.x.dim() - 2
        w = self.weights.reshape(*self.weights.shape, *[1] * event)
        sums = (w * self.x).sum(1)
        mean = sums.sum(0)
        off = sums - by_repeat.reshape(-1, *[1] * event) * mean  # of a ratio estimate
        R = len(by_repeat)
        error = (R / (R - 1) * off.square().sum(0)).sqrt() if R > 1 else mean * math.nan
        return mean, error * float(student_factor(R - 1))

    def one_of_each(self) -> Tensor:
        """One particle of each repeat, drawn by its weights, (R, *event_shape).

        These are independent samples of p(x | obs), the better the more particles a repeat has.
        Repeats of which no particle can have given obs are left out.
        """
        some = (self.log_weights > -math.inf).any(1)
        x, log_weights = self.x[some], self.log_weights[some]
        chosen = torch.multinomial(log_weights.softmax(1), 1).squeeze(1)
        return x[torch.arange(len(x), device=x.device), chosen]

    def resampled(self, n: int) -> Tensor:
        """n particles drawn with their weights as probabilities, (n, *event_shape).

        They share ancestors: among those of few repeats few differ much. :meth:`one_of_each` has
        independent ones.

        Args:
            n: the number of particles that are drawn.
        """
        check_count("n", n, "the number of particles that are drawn")
        chosen = torch.multinomial(self.weights.flatten(), n, replacement=True)
        return self.x.flatten(0, 1)[chosen]


@checked_arguments
def twisted_smc(
    model: DiffusionModel,
    num_particles: int = 256,
    *,
    steps: int = 100,
    repeats: int = 1,
    threshold: float = 0.5,
) -> Particles:
    """Weighted samples of p(x | obs), and an unbiased estimate of p(obs).

    It is consistent in the number of particles where :func:`condition_on_measurements` is
    approximate, as for data of several modes. The particles needed grow with the number and the
    precision of the observations: look at the spread of the evidence between repeats. Samples and
    evidence are those of the chain of :class:`~pyro_mdm.samplers.Ancestral` on its grid, with the
    model's decoder. ``grid_error`` estimates the error of the grid in log p(obs), to first order.
    With few steps this is too little: 0.146 of 0.185 nats for Gaussian data and 30 steps
    (tests/measurements/test_measurements.py). Below 16 steps it is NaN and costs nothing, since the
    weights of half as many steps are too unequal.

    Args:
        model: a model of :func:`condition_on_measurements` with one obs for all data. Its noise
            variances are positive and not small beside ``e^{-λ(ε)}``, or all 0 with H a
            :class:`Mask`.
        num_particles: the number P of particles of each repeat.
        steps: the number of steps of the chain, a network call each. From 16 on a second chain of
            half as many steps runs for ``grid_error``.
        repeats: the number R of repeats, computed at once. From two on the evidence has a standard
            error.
        threshold: the effective number of particles below which those of a repeat are resampled, as
            a fraction of P.

    Returns:
        :class:`Particles`.

    Raises:
        TypeError: another model, or a diffusion whose steps need more than x̂.
        ValueError: obs that differ between data, exact observations that are not entries of x,
            noise under which no particle can have given obs.

    Source: Wu, Trippe, Naesseth, Blei & Cunningham, "Practical and Asymptotically Exact Conditional
    Sampling in Diffusion Models", NeurIPS 2023, algorithm 1, here for any K and with the
    covariance of the denoiser in ψ and in the proposal.

    Example:
        >>> from pyro_mdm import CLD, Denoiser, DiffusionModel
        >>> from pyro_mdm.measurements import condition_on_measurements
        >>> from pyro_mdm.networks import MLP
        >>> model = DiffusionModel(CLD(max_log_snr=9.0), Denoiser.fit(MLP(2), torch.randn(100, 2)))
        >>> obs = torch.tensor([3.0])
        >>> conditioned = condition_on_measurements(model, torch.ones(1, 2), obs, noise=0.1)
        >>> particles = twisted_smc(conditioned, 16, steps=10, repeats=4)
        >>> particles.resampled(5).shape
        torch.Size([5, 2])
    """
    fine = weighted_particles(
        model, num_particles, steps=steps, repeats=repeats, threshold=threshold
    )
    if bool((fine.log_weights == -math.inf).all()):
        raise ValueError(
            f"none of {fine.log_weights.numel()} particles can have given obs, whose probability "
            "is 0 by the law of noise; take more particles and steps, or give the law some noise"
        )
    if steps < FEWEST_STEPS:
        return fine
    half = steps // 2
    coarse = weighted_particles(
        model, num_particles, steps=half, repeats=repeats, threshold=threshold
    )
    added = _added_by_grid(fine.log_evidence, coarse.log_evidence, steps / half)
    return fine._replace(network_calls=steps + half, grid_error=added, coarse=coarse)


@checked_arguments
def weighted_particles(
    model: DiffusionModel,
    num_particles: Several,
    *,
    steps: Count,
    repeats: Count = 1,
    threshold: float = 0.5,
    retained: Retained | None = None,
) -> Particles:
    """The particles of :func:`twisted_smc` by one chain alone, without ``grid_error``.

    Particles of which none can have given obs are no error: the estimate of p(obs), 0, is unbiased.

    Args:
        model, num_particles, steps, repeats, threshold: as for :func:`twisted_smc`.
        retained: an exact draw given obs, which is then a particle of each repeat; the inverse of
            the mean weight is unbiased for 1 / p(obs).

    Returns:
        :class:`Particles`, whose ``grid_error`` is NaN.
    """
    score = checked_score(model)
    expected = "a part of the particles, from 0, never to resample, to 1"
    if not 0 <= check_number("threshold", threshold, expected) <= 1:
        raise ValueError(f"threshold is {threshold}, expected {expected}; write 0.5 for a half")
    with evaluating(model):
        x, log_w = _run(model, score, repeats, num_particles, steps, threshold, retained)
    return Particles(x, log_w, steps, Measured(math.nan, math.nan))


def _added_by_grid(fine: Measured, coarse: Measured, ratio: float) -> Measured:
    """The first-order error of the grid in ``fine``, from steps ``ratio`` times as long."""
    error = math.hypot(fine.standard_error, coarse.standard_error)
    return Measured(coarse.mean - fine.mean, error).scaled(1 / (ratio - 1))


def _run(
    model: DiffusionModel,
    score: MeasuredDenoiser,
    repeats: int,
    particles: int,
    steps: int,
    threshold: float,
    retained: Retained | None,
) -> tuple[Tensor, Tensor]:
    """Data (R, P, *event_shape) and their log-weights (R, P)."""
    diffusion, event = model.diffusion, model.event_shape
    times = Ancestral(steps).times(diffusion)
    kernels = posterior(diffusion, times[:-1], times[1:])
    n = repeats * particles
    y = diffusion.prior.sample((n, diffusion.num_variables, *event)).double()
    kept = None if retained is None else Kept(retained, repeats, particles)
    if kept is not None:
        y[kept.rows] = kept.states[0]
    at = coefficients(diffusion, times, raw=False).rows(y.device)
    seen = _look(model, score, y, at[0])
    log_w = seen.fit.reshape(repeats, particles)
    for i in range(steps):
        chosen, log_w = _resampled(log_w, threshold, kept)
        y, prior, x_hat, fit = (t[chosen] for t in (y, *seen))
        kernel, noise = kernels.at(i), torch.randn_like(y)
        mean = apply_matrix(kernel.gain, y) + outer(kernel.mean_coefficient, x_hat.double())
        if kept is not None:
            noise[kept.rows] = apply_matrix(kernel.whitener, kept.states[i + 1] - mean[kept.rows])
        y = mean + apply_matrix(torch.linalg.inv(kernel.whitener), noise)
        # log p - log q, Gaussians of one covariance, in whose units the means are `apart`
        apart = outer(kernel.signal, (x_hat - prior).double())
        ratio = -(apart * (noise + apart / 2)).flatten(1).sum(1)
        if i + 1 < steps:
            seen = _look(model, score, y, at[i + 1])
            x, later = y, seen.fit
        else:
            x, later = _decoded(model, score, y, kept)
        log_w = log_w + (ratio + later - fit).reshape(log_w.shape)
    return x.reshape(repeats, particles, *event), log_w


def _look(model: DiffusionModel, score: MeasuredDenoiser, y: Tensor, at: Coefficients) -> Given:
    """Denoised data for states y (n, K, *event_shape) at one time."""
    marginal = at.marginal
    z = apply_vector(marginal.readout, y).to(model.bound_score.dtype)
    return score.given_obs(z, marginal.log_snr)


def _decoded(
    model: DiffusionModel, score: MeasuredDenoiser, y: Tensor, kept: Kept | None
) -> tuple[Tensor, Tensor]:
    """x (n, *event_shape) from the decoder, which does not see obs, and log p(obs | x), (n,).

    For exact observations, the log probability of the observed entries.
    """
    y, operator = y.to(model.bound_score.dtype), score.operator
    law = model.likelihood(model.diffusion, score.denoiser, y, len(model.event_shape))
    x = law.sample()
    if kept is not None:
        x[kept.rows] = kept.x.to(x.dtype)
    if not isinstance(score.noise, Tensor) or bool((score.noise > 0).all()):
        return x, score.log_prob_of_obs(x)
    seen: Any = operator.seen
    x[:, seen] = score.obs.to(x.dtype)
    return x, log_prob_by_dimension(law, x)[:, seen].sum(1).double()


def _resampled(log_w: Tensor, threshold: float, kept: Kept | None) -> tuple[Tensor, Tensor]:
    """The indices (R P,) of the particles that go on, and their log-weights (R, P).

    Repeats of a small effective number of particles are resampled systematically.
    """
    R, P = log_w.shape
    w = log_w.softmax(1)
    few = 1 / w.square().sum(1, keepdim=True) < threshold * P
    steps = torch.arange(P, device=w.device, dtype=w.dtype)
    offset = torch.rand(R, 1, device=w.device, dtype=w.dtype)
    offset = offset if kept is None else kept.offset(w, offset)
    drawn = torch.searchsorted(w.cumsum(1), (steps + offset) / P).clamp_max(P - 1)
    drawn = drawn if kept is None else kept.resampled(drawn, few)
    chosen = torch.where(few, drawn, steps.long())
    mean = log_w.logsumexp(1, keepdim=True) - math.log(P)
    first = P * torch.arange(R, device=w.device).unsqueeze(1)
    return (first + chosen).flatten(), torch.where(few, mean, log_w)


def checked_score(model: DiffusionModel) -> MeasuredDenoiser:
    score = getattr(model, "score_function", None)
    if not isinstance(score, MeasuredDenoiser):
        raise TypeError(
            f"the score of model is {type(score).__name__}, expected a MeasuredDenoiser; make the "
            "model by condition_on_measurements(model, H, obs, noise)"
        )
    check_chain(model.diffusion)
    if score.obs.dim() > len(score.operator.obs_shape):
        raise ValueError(
            f"obs has shape {tuple(score.obs.shape)}, one for each datum, expected "
            f"{score.operator.obs_shape}, one for all particles; call it for each of them"
        )
    contexts = score.network_context
    if contexts is not None and contexts.dim() > 1:
        raise ValueError(
            f"contexts are of {tuple(contexts.shape[:-1])} data, expected one for all particles; "
            "call it for each of them"
        )
    exact = score.noise == 0 if isinstance(score.noise, Tensor) else torch.zeros(1).bool()
    if bool(exact.any()) and not (bool(exact.all()) and isinstance(score.operator, Mask)):
        raise ValueError(
            "noise is 0, and of measurements other than coordinates, or of some alone, "
            "the decoder has no density; give noise positive variances, or H = Mask(seen)"
        )
    operator, noise = score.operator, score.noise
    if isinstance(noise, Tensor) and isinstance(operator, LinearOperator) and not bool(exact.any()):
        start_variance = math.exp(-float(torch.as_tensor(model.diffusion.start_log_snr).max()))
        least = operator.squares * start_variance / FAR_BELOW
        if bool((noise < least).any()):
            raise ValueError(
                f"noise reaches {float(noise.min()):.3g}, expected at least "
                f"{float(least.max()):.3g}: that of H x by the decoder is {FAR_BELOW} times "
                "that, so that hardly a particle agrees with obs; give noise more variance, or "
                "train with a larger max_log_snr"
            )
    return score
