r"""Models of data given measurements of them, obs = H x + noise, for any denoiser.

z = aᵀ Σ^{-1} y / SNR is a sufficient statistic of the state for x, with any number of variables.
Its noise is independent of a measurement's. So samplers need E[x | z, obs]. If x given z is taken
for Gaussian, with the denoiser's mean x̂ and covariance C,

    E[x | z, obs] = x̂ + C Hᵀ (H C Hᵀ + R)^{-1} (obs - H x̂),    C = e^{-λ} ∂x̂/∂z

which is exact for Gaussian data and their exact denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm.conditioning.conditioned import ConditionedDenoiser, with_score
from pyro_mdm.conditioning.derived import DerivedDenoiser
from pyro_mdm.diffusions.base import Cap, require
from pyro_mdm.diffusions.matrices import of_rows, with_event_dims
from pyro_mdm.measurements.laws import Law, Sites, gaussian_sites, likeliest
from pyro_mdm.measurements.operators import (
    LARGEST_MATRIX,
    Linear,
    LinearOperator,
    NonlinearOperator,
    Operator,
    as_operator,
)
from pyro_mdm.measurements.solve import DenoiserCovariance, Solution, conjugate_gradients
from pyro_mdm.model import DiffusionModel
from pyro_mdm.scores.base import Number, Score
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.checks import (
    check_count,
    check_finite,
    check_instance,
    check_number,
    describe,
    real_tensor,
    tensor_device,
)
from pyro_mdm.support.modules import replace

__all__ = ["Given", "MeasuredDenoiser", "condition_on_measurements"]

Product = Callable[[Tensor], Tensor]

FEW = 4
"""Observations up to which their variances given z are exact."""
SMALLEST = 1e-12
"""The least variance of a clean measurement given z, beside the largest of the data's."""
EXAMPLES = 256
"""Data that are measured to see where clean measurements lie."""
SINGULAR = 1e-10
"""Smallest singular value beside the largest, below which H is said to be singular."""


def condition_on_measurements(
    model: DiffusionModel,
    H: Tensor | LinearOperator | NonlinearOperator,
    obs: Tensor,
    noise: float | Tensor | Law,
    *,
    covariance_from: float = 0.0,
    tolerance: float = 1e-3,
    max_iterations: int = 3,
) -> DiffusionModel:
    r"""The model p(x | obs) of data given obs = H x + noise, noise ~ N(0, R), or another law.

    It needs no training: any denoiser serves, over any linear diffusion. Every sampler serves it,
    and so do ``Predictive``, :class:`~pyro_mdm.MDM` and bounds, which are on its log p(x | obs).
    Parameters, network and diffusion are shared with ``model``.

    **What is exact.** Samples are, up to the sampler's steps, for Gaussian data with their exact
    denoiser, if ``covariance_from`` is -∞ and the linear systems are solved. Otherwise x given z is
    taken for Gaussian (text of the module), which is nearly right at high λ alone: the modes of a
    mixture may get wrong weights. :func:`~pyro_mdm.measurements.twisted_smc` corrects them.

    A law of noise that is not Gaussian enters guidance as Gaussian observations with the same
    moments of each u given z and obs (:mod:`pyro_mdm.measurements.laws`), and a nonlinear H by its
    derivative at x̂. Both are approximations; the particles weigh by the law and by H themselves.

    The network's covariance is (∂x̂/∂z) e^{-λ}, in which errors of ∂x̂/∂z grow as λ falls. The
    defaults were the best of those tried with the U-Net of digits: below λ = 0 another covariance,
    and above it few iterations, which leave out directions of small covariance.

    Each x̂ takes a network call, and for each iteration of conjugate gradients a vector-Jacobian and
    a Jacobian-vector product, about three calls. The decoder is the model's and does not see obs,
    so that samples agree with exact observations up to the noise e^{-λ(ε)/2} of the start.

    Args:
        model: a model whose score is a :class:`~pyro_mdm.scores.DenoiserScore`.
        H: a matrix (m, d) of flattened data, or a :class:`LinearOperator`, such as
            :class:`Mask`, :class:`Blur`, :class:`Downsample` or :class:`FunctionOperator`; or a
            :class:`NonlinearOperator`.
        obs: observations of all data, (*obs_shape), or of each of n data, (n, *obs_shape); every
            call is then for these n data in order, once or several times.
        noise: the variances R of Gaussian noise, in squared units of the data: a number, or one for
            each observation, (*obs_shape); 0: observed exactly. Or a law: a function of clean
            measurements u = H x in float64, (*batch, *obs_shape), that returns the distribution of
            obs, entry by entry: ``lambda u: dist.Poisson(u.clamp_min(0) * 100)``,
            ``lambda u: dist.Laplace(u, 0.1)``, :class:`Quantized`, :class:`Clipped`.
        covariance_from: the λ from which the covariance of x given z is the symmetric part of the
            denoiser's. Below it the inverse has that of independent dimensions,
            σ² e^{-λ} / (σ² + e^{-λ}) with the data's variance σ², and one vector-Jacobian product
            is enough (ΠGDM; for a mask, reconstruction guidance). -∞: always the denoiser's; ∞:
            never.
        tolerance: the relative residual at which a system is solved, ‖residual‖ ≤ tolerance
            ‖obs - H x̂‖ for each datum.
        max_iterations: the most iterations of conjugate gradients; :attr:`MeasuredDenoiser.solved`
            tells whether they were enough.

    Raises:
        TypeError: a model whose score is no denoiser of z, or is conditioned already; a nonlinear
            diffusion; no operator.
        ValueError: a diffusion in frequencies of the data, or whose drift sees the data or a
            context; obs of another shape or not finite, negative variances, exact observations
            that depend on each other or of a nonlinear H, an H that is 0, not linear, or with a
            wrong adjoint; a law of another shape, or under which obs are impossible.

    Source: for the formula and conjugate gradients, Rozet et al., "Learning Diffusion Priors from
    Observations by Expectation Maximization", NeurIPS 2024; below ``covariance_from``, Song et al.,
    "Pseudoinverse-Guided Diffusion Models for Inverse Problems", ICLR 2023, and Ho et al., "Video
    Diffusion Models", NeurIPS 2022, section 3.1; for the sites of other laws, Minka, "Expectation
    Propagation for Approximate Bayesian Inference", UAI 2001, in one pass.

    Example:
        >>> from pyro_mdm import CLD, Denoiser, DiffusionModel
        >>> from pyro_mdm.networks import MLP
        >>> model = DiffusionModel(CLD(), Denoiser.fit(MLP(2), torch.randn(100, 2)))
        >>> sum_of_both = torch.ones(1, 2)
        >>> given = condition_on_measurements(model, sum_of_both, torch.tensor([3.0]), 0.01)
        >>> given(batch_size=4).shape
        torch.Size([4, 2])
    """
    check_instance("model", model, DiffusionModel, "e.g. DiffusionModel(diffusion, score)")
    needed = (Cap.KERNELS, Cap.OWN_DRIFT, Cap.NO_CONTEXT, Cap.DATA_STATES)
    fix = "use a linear diffusion of the data, whose dimensions are noised apart"
    require(model.diffusion, *needed, who="conditioning on a measurement", fix=fix)
    score = MeasuredDenoiser(
        _checked_denoiser(model.score_function),
        as_operator(H, model.event_shape),
        obs,
        noise,
        covariance_from=covariance_from,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    return with_score(model, score, model.likelihood)


class Given(NamedTuple):
    """Denoised data with and without a measurement; see :class:`MeasuredDenoiser`."""

    prior: Tensor  # x̂ = E[x | z], like z
    x_hat: Tensor  # E[x | z, obs], like z
    fit: Tensor  # -½ rᵀ (H C Hᵀ + R)^{-1} r with r = obs - H x̂, (*batch) in float64


class MeasuredDenoiser(DerivedDenoiser):
    """The denoiser of x given obs.

    Args:
        denoiser: the denoiser without measurements.
        H: the operator, of data of the denoiser's shape.
        obs, noise, covariance_from, tolerance, max_iterations: as for
            :func:`condition_on_measurements`.

    Raises:
        TypeError, ValueError: as for :func:`condition_on_measurements`.
    """

    obs: Tensor
    noise: Any  # R, a buffer; or a law
    peak: Tensor  # the clean measurements under which a law makes obs likeliest; like obs

    def __init__(
        self,
        denoiser: DenoiserScore,
        H: Operator,
        obs: Tensor,
        noise: float | Tensor | Law,
        *,
        covariance_from: float = 0.0,
        tolerance: float = 1e-3,
        max_iterations: int = 3,
    ) -> None:
        super().__init__(_checked_denoiser(denoiser))
        self.event_shape = H.event_shape
        device = tensor_device(denoiser)
        self.operator = H.to(device)
        self.register_buffer("obs", _checked_obs(obs, H.obs_shape).to(device))
        peak = None
        if callable(noise):
            self.noise = noise
            peak = self._peak(noise)
        else:
            variance = _checked_variance(noise, H.obs_shape).to(device)
            self.register_buffer("noise", variance)
            _check_exact(self.operator, variance)
        self.register_buffer("peak", peak, persistent=False)
        if math.isnan(covariance_from):
            raise ValueError("covariance_from is nan, expected a log SNR, -inf or inf")
        check_number("tolerance", tolerance, "a positive number, such as 1e-3", positive=True)
        check_count("max_iterations", max_iterations, "of conjugate gradients")
        self.covariance_from, self.tolerance = covariance_from, tolerance
        self.max_iterations = max_iterations
        self.solved: Solution | None = None
        """The solutions of the last call's linear systems, with iterations and residuals."""

    # -- of which data -----------------------------------------------------------------------------

    def for_rows(self, rows: Tensor) -> MeasuredDenoiser:
        denoiser: Any = self.denoiser.for_rows(rows)
        if self.obs.dim() > len(self.operator.obs_shape):
            rows = rows % len(self.obs)
            new = self.changed(denoiser, obs=self.obs[rows])
            return new if self.peak is None else replace(new, peak=self.peak[rows])
        return self if denoiser is self.denoiser else self.changed(denoiser)

    def check_data(self, x: Tensor) -> None:
        event_dim = len(self.operator.event_shape)
        rows, differ = x.shape[x.dim() - event_dim - 1], len(self.operator.obs_shape)
        if self.obs.dim() > differ and len(self.obs) != rows:
            raise ValueError(
                f"obs are of {len(self.obs)} data, and x has {rows}; condition the model for "
                "these data, or take model.for_rows(rows)"
            )

    # -- the denoiser ------------------------------------------------------------------------------

    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        return self.given_obs(z, log_snr).x_hat

    def given_obs(self, z: Tensor, log_snr: Number) -> Given:
        """x̂ at z (*batch, *event_shape) with and without obs, and the fit of obs.

        It takes one network call, and its products with vectors.
        """
        batch_dim, lam = self._values("z", z, log_snr)
        batch, event = z.shape[:batch_dim], self.operator.event_shape
        variance = with_event_dims(torch.exp(-lam), z).to(z.dtype)
        flat = variance.expand(z.shape).reshape(-1, *event)
        seen = DenoiserCovariance(
            lambda at: self.denoiser.x_hat(at.reshape(z.shape), lam).reshape(at.shape),
            z.reshape(-1, *event),
            flat,
        )
        shape = self.operator.obs_shape
        clean, H = self.operator(seen.x_hat.double()), self.operator.linearized(seen.x_hat)
        inner, outer = self._covariances(seen, flat)
        sites = self._sites(H, inner, clean, batch)
        rest = (sites.obs - clean).flatten(1)
        solution = self._solve(H, inner, rest, sites)
        self.solved = solution._replace(u=solution.u.detach())
        fit = sites.log_p - 0.5 * (rest * solution.u).sum(-1)
        x_hat = seen.x_hat + outer(H.adjoint(solution.u.reshape(-1, *shape)))
        return Given(seen.x_hat.reshape(z.shape), x_hat.reshape(z.shape), fit.reshape(batch))

    def _covariances(self, seen: DenoiserCovariance, variance: Tensor) -> tuple[Product, Product]:
        """Products with the C in the inverse and with the C before Hᵀ, for V (n, *event_shape)."""
        s2 = self.denoiser.data_variance.to(variance.dtype)
        spread = s2 / (s2 + variance) * variance
        own = -variance.flatten(1).amax(1).log() >= self.covariance_from
        if bool(own.all()):
            return seen, seen
        if not bool(own.any()):
            return lambda v: spread * v, seen.transposed
        own = own.reshape(-1, *[1] * (variance.dim() - 1))
        return (
            lambda v: torch.where(own, seen(v), spread * v),
            lambda v: torch.where(own, seen(v), seen.transposed(v)),
        )

    def _sites(self, H: Linear, inner: Product, clean: Tensor, batch: torch.Size) -> Sites:
        """Gaussian observations in the place of obs, given H x̂ (n, *obs_shape)."""
        shape = self.operator.obs_shape
        obs = of_rows(self.obs, len(shape), batch).reshape(-1, *shape)
        if isinstance(self.noise, Tensor):
            return Sites(obs, self.noise.expand(1, *shape), clean.new_zeros(()), None)
        peak = of_rows(self.peak, len(shape), batch).reshape(-1, *shape).expand_as(clean)
        variance = self._variance(H, inner, clean)
        return gaussian_sites(self.noise, obs.expand_as(clean), clean, variance, peak)

    def _variance(self, H: Linear, covariance: Product, clean: Tensor) -> Tensor:
        """The diagonal of H C Hᵀ, like H x̂ (n, *obs_shape): exact for few observations.

        For others it is that of H Hᵀ times a number, for which the quadratic form of H C Hᵀ with
        one vector of random signs, always the same, is exact.
        """
        n, m, shape = len(clean), clean[0].numel(), self.operator.obs_shape

        def product(p: Tensor) -> Tensor:
            p = p.to(clean.device).reshape(shape).expand_as(clean)
            return (p * H.forward(covariance(H.adjoint(p)).double())).flatten(1)

        squares = H.squares().expand_as(clean)
        least = SMALLEST * squares.amax() * self.denoiser.data_variance.mean()
        if m <= FEW:
            each = [product(p).sum(1) for p in torch.eye(m, dtype=clean.dtype)]
            return torch.stack(each, 1).reshape(n, *shape).clamp_min(least)
        signs = torch.randint(2, (m,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        ratio = product(signs.to(clean.dtype)).sum(1) / squares.flatten(1).sum(1)
        return (ratio.reshape(-1, *[1] * len(shape)) * squares).clamp_min(least)

    def _solve(self, H: Linear, covariance: Product, rest: Tensor, sites: Sites) -> Solution:
        """The solution u of (H C Hᵀ + R) u = rest, (n, m) in float64."""
        shape, noise = self.operator.obs_shape, sites.variance.flatten(1)
        scale = torch.ones_like(noise) if sites.scale is None else sites.scale.flatten(1)

        def product(p: Tensor) -> Tensor:
            pulled = covariance(H.adjoint((scale * p).reshape(-1, *shape)))
            return scale * (H.forward(pulled.double()).flatten(1) + noise * (scale * p))

        scaled = conjugate_gradients(product, scale * rest, self.tolerance, self.max_iterations)
        return scaled._replace(u=scale * scaled.u)

    # -- observations ------------------------------------------------------------------------------

    def log_prob_of_obs(self, x: Tensor) -> Tensor:
        """log p(obs | x), (n,) in float64, of data x (n, *event_shape); R is positive."""
        clean = self.operator(x.double())
        if isinstance(self.noise, Tensor):
            rest = (self.obs - clean).square() / self.noise
            terms = -0.5 * (rest + (2 * math.pi * self.noise).log())
        else:
            terms = self.noise(clean).log_prob(self.obs)
        return terms.flatten(1).sum(1)

    @torch.no_grad()
    def _peak(self, law: Law) -> Tensor:
        """Where obs are likeliest, among clean measurements of data like the denoiser's."""
        event, obs = self.operator.event_shape, self.obs.reshape(-1, *self.operator.obs_shape)
        normal = torch.randn(
            EXAMPLES, *event, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        mean, variance = self.denoiser.data_mean, self.denoiser.data_variance
        clean = self.operator(mean + variance.sqrt() * normal.to(obs.device))
        return likeliest(law, obs, clean.mean(0), clean.std(0)).reshape(self.obs.shape)


def _checked_denoiser(score: Score) -> DenoiserScore:
    if isinstance(score, (ConditionedDenoiser, MeasuredDenoiser)):
        raise TypeError(
            "the model is conditioned already, expected one of all data; measure everything that "
            "is known of a datum by one H"
        )
    if not isinstance(score, DenoiserScore):
        what = describe(score) if isinstance(score, Score) else f"{score!r}"
        raise TypeError(
            f"the model's score is {what}, expected a DenoiserScore: a measurement is put into "
            "E[x | z], which a score of the raw state does not have; train a Denoiser or "
            "DiscreteDenoiser"
        )
    return score


def _checked_obs(obs: object, shape: tuple[int, ...]) -> Tensor:
    obs = real_tensor("obs", obs, "what is measured, (*obs_shape)")
    if obs.shape[max(obs.dim() - len(shape), 0) :] != shape or obs.dim() > len(shape) + 1:
        sizes = ", ".join(map(str, shape))
        raise ValueError(
            f"obs has shape {tuple(obs.shape)}, expected that of H x, ({sizes}), or (n, {sizes}) "
            "of n data"
        )
    check_finite("obs", obs)
    return obs


def _checked_variance(value: object, shape: tuple[int, ...]) -> Tensor:
    variance = real_tensor("noise", value, "a variance, one for each observation, or a law")
    if variance.dim() and variance.shape != shape:
        raise ValueError(
            f"noise has shape {tuple(variance.shape)}, expected a variance, or one for each "
            f"observation, {shape}"
        )
    if not bool(((variance >= 0) & variance.isfinite()).all()):
        raise ValueError(
            f"noise reaches {variance.min().item():.3g}, expected finite variances, none "
            "below 0 (observed exactly)"
        )
    return variance


def _check_exact(operator: Operator, variance: Tensor) -> None:
    """Raise ValueError for exact observations of which some follow from others."""
    if not isinstance(operator, LinearOperator):
        if bool((variance == 0).any()):
            raise ValueError(
                f"noise is 0, and H is {describe(operator)}, of which no x may have exactly these "
                "obs; give noise a positive variance"
            )
        return
    exact = (variance == 0).expand(operator.obs_shape).flatten()
    number, d = int(exact.sum()), math.prod(operator.event_shape)
    if number == 0 or operator.independent or (number <= d and number * d > LARGEST_MATRIX):
        return
    values = torch.linalg.svdvals(operator.matrix()[exact])
    rank = int((values > SINGULAR * values.max()).sum())
    if rank < number:
        raise ValueError(
            f"noise is 0 for {number} observations, of which H makes only {rank} "
            "independent of each other, expected full row rank; leave out those that follow from "
            "others, or give noise a positive variance"
        )
