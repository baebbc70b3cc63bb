r"""Models of data given measurements of them, obs = H x + noise, for any denoiser.

``z = aᵀ Σ^{-1} y / SNR`` is a sufficient statistic of the state for x, with any number of
variables. Its noise is independent of a measurement's. So samplers need ``E[x | z, obs]``. If x
given z is taken for Gaussian, with the denoiser's mean x̂ and covariance C,

    E[x | z, obs] = x̂ + C Hᵀ (H C Hᵀ + R)^{-1} (obs - H x̂),    C = e^{-λ} ∂x̂/∂z

which is exact for Gaussian data and their exact denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_mdm.conditioning.denoiser import ConditionedDenoiser
from pyro_mdm.conditioning.derived import DerivedDenoiser
from pyro_mdm.diffusions.base import Cap, require
from pyro_mdm.diffusions.matrices import of_rows
from pyro_mdm.measurements.covariance import Covariance, DataCovariance, reference
from pyro_mdm.measurements.inverses import Factored, Structured, diagonal, factored, structured
from pyro_mdm.measurements.laws import Law, Sites, gaussian_sites, likeliest, log_prob_of
from pyro_mdm.measurements.operators import (
    LARGEST_MATRIX,
    Linear,
    LinearOperator,
    NonlinearOperator,
    Operator,
    as_operator,
    outside_inference_mode,
)
from pyro_mdm.measurements.solve import (
    DenoiserCovariance,
    Inverse,
    System,
    conjugate_gradients,
    iterated,
)
from pyro_mdm.model import DiffusionModel
from pyro_mdm.samplers.default import default_sampler
from pyro_mdm.scores.base import Number, Score
from pyro_mdm.scores.denoiser import DenoiserScore, denoiser_of
from pyro_mdm.support.checks import (
    Count,
    check_finite,
    checked_arguments,
    describe,
    real_tensor,
    tensor_device,
)
from pyro_mdm.support.modules import replace, writes

__all__ = ["Given", "MeasuredDenoiser", "checked_variance", "condition_on_measurements"]

Product = Callable[[Tensor], Tensor]

M = TypeVar("M", bound="MeasuredDenoiser")
TOLERANCE = 1e-6
"""The relative residual at which a linear system counts as solved."""
MOST_ITERATIONS = 400
"""The most iterations of conjugate gradients with the linear covariance, which call no network."""
FEW = 4
"""The most observations whose variances given z are exact, by one product for each."""
SMALLEST = 1e-12
"""The least variance of a clean measurement given z, as a ratio to the largest among data: at 0
its site would be NaN."""
EXAMPLES = 256
"""The number of simulated data whose clean measurements show where these lie."""
SINGULAR = 1e-10
"""The ratio of a singular value to the largest below which H counts as singular."""


@outside_inference_mode
@checked_arguments
def condition_on_measurements(
    model: DiffusionModel,
    H: Tensor | LinearOperator | NonlinearOperator,
    obs: Tensor,
    noise: float | Tensor | Law,
    *,
    data: Tensor | None = None,
    covariance_from: float | None = None,
    max_iterations: int = 1,
) -> DiffusionModel:
    r"""The model p(x | obs) of data given obs = H x + noise, with Gaussian or other noise.

    It needs no training: any denoiser serves, over any linear diffusion. Every sampler serves it,
    and so do ``Predictive``, :class:`~pyro_mdm.MDM` and bounds, which are on its log p(x | obs). A
    sampler that was given to the model stays. Its default becomes a stochastic one, which does not
    keep errors. Parameters, network and diffusion are shared with ``model``.

    **Exactness.** Samples are exact, up to the sampler's steps, for Gaussian data with their exact
    denoiser, if the linear systems are solved. Otherwise x given z is taken for Gaussian
    (:mod:`pyro_mdm.measurements.denoiser`), which is nearly right at high λ alone: the modes of a
    mixture may get wrong weights. :func:`~pyro_mdm.measurements.twisted_smc` corrects them.

    Noise that is not Gaussian enters guidance as Gaussian observations with the same moments of
    each u given z and obs (:mod:`pyro_mdm.measurements.laws`), and a nonlinear H by its derivative
    at x̂. Both are approximations; particles are weighted by the noise and by H themselves.

    **The covariance** of x given z is the denoiser's, ``(∂x̂/∂z) e^{-λ}``, at the log SNRs where its
    mean is not larger than the mean squared error of the best linear estimate, which no exact one
    exceeds (:mod:`pyro_mdm.measurements.covariance`). Errors of ``∂x̂/∂z`` grow as λ falls, and at
    lower log SNRs the covariance is that of linear estimates, which takes no network calls. It also
    chooses the direction in which the denoiser's is used, and serves in all others; with more
    directions the errors of a network are followed too. The first call for a model samples from it,
    to find these log SNRs.

    Each x̂ takes a network call, and for each direction a vector-Jacobian product, about one call
    more. The decoder is the model's and does not see obs, so that samples agree with exact
    observations up to the noise ``e^{-λ(ε)/2}`` of the start.

    Args:
        model: a model whose score is a :class:`~pyro_mdm.scores.DenoiserScore`.
        H: the operator: a matrix (m, d) that multiplies flattened data; a :class:`LinearOperator`,
            such as :class:`Mask`, :class:`Blur`, :class:`Downsample` or :class:`FunctionOperator`;
            or a :class:`NonlinearOperator`.
        obs: observations, the same for all data, (*obs_shape), or those of n data, (n, *obs_shape);
            every call is then for these n data in order, once or several times.
        noise: variances R of Gaussian noise, in squared units of the observations, a number or
            (*obs_shape); 0: observed exactly. Or a function of clean measurements u = H x in
            float64, (*batch, *obs_shape), that returns the distribution of obs, entry by entry:
            ``lambda u: dist.Poisson(u.clamp_min(0) * 100)``, ``lambda u: dist.Laplace(u, 0.1)``,
            :class:`Quantized`, :class:`Clipped`.
        data: data whose covariance is used, (n, *event_shape), such as the training data; windows
            for a model by windows, data with the context for a model that is given one. None: 256
            samples of the model.
        covariance_from: the λ from which the covariance of x given z is the denoiser's; None:
            measured once for a model. -∞: always, as for an exact denoiser; ∞: never, which is
            fastest. With a number nothing is measured.
        max_iterations: the most iterations of conjugate gradients with the denoiser's covariance,
            each one direction; the number of observations for an exact denoiser.

    Returns:
        The conditioned model.

    Raises:
        TypeError: a model whose score is no denoiser of z, or is conditioned already; a nonlinear
            diffusion; no operator.
        ValueError: a diffusion in frequencies of the data, or whose drift sees the data or a
            context; data or obs of another shape or not finite, negative variances, exact
            observations that depend on each other or of a nonlinear H, an H that is 0, not linear,
            or with a wrong adjoint; noise of another shape, or under which obs are impossible.

    Source: for the formula and conjugate gradients, Rozet et al., "Learning Diffusion Priors from
    Observations by Expectation Maximization", NeurIPS 2024; for the sites of other noise, Minka,
    "Expectation Propagation for Approximate Bayesian Inference", UAI 2001, in one pass.

    Example:
        >>> from pyro_mdm import CLD, Denoiser, DiffusionModel
        >>> from pyro_mdm.networks import MLP
        >>> model = DiffusionModel(CLD(), Denoiser.fit(MLP(2), torch.randn(100, 2)))
        >>> add_both = torch.ones(1, 2)
        >>> conditioned = condition_on_measurements(model, add_both, torch.tensor([3.0]), 0.01)
        >>> conditioned(batch_size=4).shape
        torch.Size([4, 2])
    """
    needed = (Cap.KERNELS, Cap.OWN_DRIFT, Cap.NO_CONTEXT, Cap.DATA_STATES)
    fix = "use a linear diffusion of the data, whose dimensions are noised apart"
    require(model.diffusion, *needed, who="conditioning on a measurement", fix=fix)
    denoiser = _checked_denoiser(model.score_function)
    data_covariance, trusted_from = reference(model, data, levels=covariance_from is None)
    score = MeasuredDenoiser(
        denoiser,
        as_operator(H, model.event_shape),
        obs,
        noise,
        data_covariance=data_covariance,
        covariance_from=trusted_from if covariance_from is None else covariance_from,
        max_iterations=max_iterations,
    )
    conditioned = model.with_score(score, model.likelihood)
    if getattr(model.sampler, "is_default", False):
        conditioned.sampler = default_sampler(model.diffusion, score)
    return conditioned


class Given(NamedTuple):
    """Denoised data with and without a measurement; see :class:`MeasuredDenoiser`."""

    prior: Tensor  # x̂ = E[x | z], like z
    x_hat: Tensor  # E[x | z, obs], like z
    fit: Tensor  # -½ rᵀ (H C Hᵀ + R)^{-1} r with r = obs - H x̂, (*batch) in float64


def _one_number(log_snr: Number) -> float | None:
    """λ, where it is one for all data, and where Python reads it without waiting for a device."""
    if not isinstance(log_snr, Tensor):
        return float(log_snr)
    if log_snr.device.type != "cpu" or not log_snr.numel() or any(log_snr.stride()):
        return None
    return log_snr.detach().flatten()[0].item()


class MeasuredDenoiser(DerivedDenoiser):
    """The denoiser E[x | z, obs] of data given measurements of them.

    Args:
        denoiser: the denoiser without measurements.
        H: the operator, of data of the denoiser's shape.
        obs, noise, max_iterations: as for :func:`condition_on_measurements`.
        data_covariance: the covariance of the data; None: that of independent dimensions.
        covariance_from: the λ from which the covariance of x given z is the denoiser's.

    Raises:
        TypeError, ValueError: as for :func:`condition_on_measurements`.

    Example:
        >>> from pyro_mdm import Denoiser
        >>> from pyro_mdm.measurements import Matrix
        >>> from pyro_mdm.networks import MLP
        >>> denoiser = Denoiser.fit(MLP(2), torch.randn(100, 2))
        >>> H = Matrix(torch.ones(1, 2))
        >>> measured = MeasuredDenoiser(denoiser, H, torch.tensor([3.0]), noise=0.01)
        >>> measured.x_hat(torch.zeros(4, 2), log_snr=1.0).shape
        torch.Size([4, 2])
    """

    approximates = True
    obs: Tensor
    noise: Any  # R, a buffer; or a function that returns a distribution
    peak: Tensor  # the clean measurements at which p(obs | u) is largest; like obs

    @checked_arguments
    def __init__(
        self,
        denoiser: DenoiserScore,
        H: Operator,
        obs: Tensor,
        noise: float | Tensor | Law,
        *,
        data_covariance: Covariance | None = None,
        covariance_from: float = -math.inf,
        max_iterations: Count = 1,
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
            variance = checked_variance(noise, H.obs_shape).to(device)
            self.register_buffer("noise", variance)
            _check_exact(self.operator, variance)
        self.register_buffer("peak", peak, persistent=False)
        self.covariance_from, self.max_iterations = covariance_from, max_iterations
        if data_covariance is None:
            data_covariance = DataCovariance(denoiser.data_variance.detach().double())
        self.data_covariance = data_covariance.to(device)
        self._kept: tuple[object, tuple[Tensor, ...], Factored | Structured | None] | None = None
        self.iterations: Tensor | None = None
        """The number of directions of the denoiser's covariance in the last call, for each datum,
        (n,); 0 where it was not used."""

    # -- of which data -----------------------------------------------------------------------------

    def for_rows(self: M, rows: Tensor) -> M:
        denoiser = self.denoiser.for_rows(rows)
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

    @outside_inference_mode
    def given_obs(self, z: Tensor, log_snr: Number) -> Given:
        """Denoised data with and without obs, and the fit of obs.

        It takes one network call, and where the denoiser's covariance is used a vector-Jacobian
        product for each direction.

        Args:
            z: readouts, (*batch, *event_shape).
            log_snr: log SNRs λ, a number or broadcastable to the batch, or to z for a map.

        Returns:
            A :class:`Given`.
        """
        batch_dim, lam = self._values("z", z, log_snr)
        batch, event = z.shape[:batch_dim], self.operator.event_shape
        states, by_dimension = z.reshape(-1, *event), lam.dim() > batch_dim
        variance = _variance_of(lam.to(z.device), batch, event, by_dimension)
        trusted = self._trusted(lam, batch, by_dimension, _one_number(log_snr))

        def denoise(at: Tensor) -> Tensor:
            return self.denoiser.x_hat(at.reshape(z.shape), lam).reshape(at.shape)

        seen = None if trusted is False else DenoiserCovariance(denoise, states, variance)
        x_hat = denoise(states) if seen is None else seen.x_hat
        # float64: exact observations make H C Hᵀ + R as ill-conditioned as H C Hᵀ is
        clean, H = self.operator(x_hat.double()), self.operator.linearized(x_hat)
        wide = variance.expand(states.shape)
        linear = partial(self.data_covariance.given, wide, by_dimension=by_dimension)
        sites = self._sites(H, seen, trusted, linear, clean, batch)
        system = System(H, sites.variance.flatten(1), sites.scale, self.operator.obs_shape)
        inverse = self._inverse(system, variance, wide, by_dimension)
        if inverse is None:
            inverse = iterated(system.product(linear()), TOLERANCE, MOST_ITERATIONS)
        rest = (sites.obs - clean).flatten(1)
        u, image, self.iterations = self._solve(system, inverse, seen, trusted, rest)
        fit = sites.log_p - 0.5 * (rest * u).sum(-1)
        conditioned = (x_hat + image.to(x_hat.dtype)).reshape(z.shape)
        return Given(x_hat.reshape(z.shape), conditioned, fit.expand(len(rest)).reshape(batch))

    def _trusted(
        self, lam: Tensor, batch: torch.Size, by_dimension: bool, number: float | None
    ) -> Tensor | bool:
        """Where the denoiser's covariance is used: in all rows, in none, or in some, (n,)."""
        if math.isinf(self.covariance_from):
            return self.covariance_from < 0
        if number is not None:
            return number >= self.covariance_from
        # of a map the noisiest dimension decides, where errors of ∂x̂/∂z are largest
        lowest = lam.flatten(len(batch)).amin(-1) if by_dimension else lam
        some = (lowest >= self.covariance_from).expand(batch).reshape(-1)
        return bool(some.any()) and some

    def _inverse(
        self, system: System, variance: Tensor, wide: Tensor, by_dimension: bool
    ) -> Inverse | None:
        """The inverse of the systems with the linear covariance by their structure, if known.

        Args:
            system: the systems.
            variance: V, broadcastable to z.
            wide: V, like z.
            by_dimension: whether V differs between dimensions.
        """
        operator, covariance = self.operator, self.data_covariance
        if not isinstance(operator, LinearOperator) or not isinstance(covariance, DataCovariance):
            return None
        if by_dimension or covariance.values is None:
            spread = covariance.spread(wide)
            if (variances := operator.variances(spread)) is not None:
                return diagonal(system, spread, variances)
        factors = None if by_dimension else self._factors(covariance, operator)
        return None if factors is None else factors.at(variance.flatten(1))

    def _factors(
        self, covariance: DataCovariance, operator: LinearOperator
    ) -> Factored | Structured | None:
        """The factors that the linear systems at all λ share; None where none are known."""
        if not isinstance(self.noise, Tensor):
            return None
        kept = self._kept
        if kept is None or kept[0] != _state((self.noise, *kept[1][1:])):
            modules = covariance, operator
            # held, so that no others come to their places
            parts = self.noise, *(t for m in modules for t in (*m.buffers(), *m.parameters()))
            system = *modules, self.noise
            self._kept = kept = _state(parts), parts, factored(*system) or structured(*system)
        return kept[2]

    def _sites(
        self,
        H: Linear,
        seen: DenoiserCovariance | None,
        trusted: Tensor | bool,
        linear: Callable[[], Product],
        clean: Tensor,
        batch: torch.Size,
    ) -> Sites:
        """Gaussian observations in the place of obs, given H x̂ (n, *obs_shape)."""
        shape = self.operator.obs_shape
        obs = of_rows(self.obs, len(shape), batch).reshape(-1, *shape)
        if isinstance(self.noise, Tensor):
            return Sites(obs, self.noise.expand(1, *shape), clean.new_zeros(()), None)
        peak = of_rows(self.peak, len(shape), batch).reshape(-1, *shape).expand_as(clean)
        product = linear()
        variance = self._variance(H, _by_row(trusted, seen, product), product, clean)
        return gaussian_sites(self.noise, obs.expand_as(clean), clean, variance, peak)

    def _variance(self, H: Linear, inner: Product, linear: Product, clean: Tensor) -> Tensor:
        """The diagonal of H C Hᵀ, like H x̂ (n, *obs_shape): exact for few observations.

        For more it is the diagonal of H Hᵀ times a number, such that the quadratic form of H C Hᵀ
        with one vector of random signs, always the same, is exact. Where the network's is not
        positive, that of linear estimates replaces it: else clean measurements would count as
        observed.
        """
        n, m, shape = len(clean), clean[0].numel(), self.operator.obs_shape
        squares = H.squares().expand_as(clean)

        def form(covariance: Product, p: Tensor) -> Tensor:
            p = p.to(clean.device).reshape(shape).expand_as(clean)
            return (p * H.forward(covariance(H.adjoint(p)).double())).flatten(1).sum(1)

        def diagonal(covariance: Product) -> Tensor:
            if m <= FEW:
                entries = [form(covariance, p) for p in torch.eye(m, dtype=clean.dtype)]
                return torch.stack(entries, 1).reshape(n, *shape)
            signs = torch.randint(2, (m,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
            ratio = form(covariance, signs.to(clean.dtype)) / squares.flatten(1).sum(1)
            return ratio.reshape(-1, *[1] * len(shape)) * squares

        variance = diagonal(inner)
        if inner is not linear and bool((variance <= 0).any()):
            variance = torch.where(variance > 0, variance, diagonal(linear))
        least = SMALLEST * squares.amax() * self.denoiser.data_variance.mean()
        return variance.clamp_min(least)

    def _solve(
        self,
        system: System,
        inverse: Inverse,
        seen: DenoiserCovariance | None,
        trusted: Tensor | bool,
        rest: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The solution u of (H C Hᵀ + R) u = rest, (n, m), C Hᵀ u, and the number of directions.

        C is the denoiser's in the first directions of conjugate gradients, where it is trusted
        and has positive quadratic forms. In all others it is the linear one, which preconditions
        the first.
        """
        left = system.scaled(rest)
        if seen is None:
            u, image = inverse(left)
            return system.scaled(u), image, torch.zeros(len(rest)).long()
        some = left if trusted is True else left * trusted.unsqueeze(1)  # type: ignore
        product, most = system.product(seen), self.max_iterations
        first = conjugate_gradients(product, some, TOLERANCE, most, lambda r: inverse(r)[0])
        # what few directions leave, and rows that are not trusted, by the linear covariance
        u, image = inverse(first.rest if trusted is True else left - some + first.rest)
        iterations = first.iterations if trusted is True else first.iterations * trusted
        return system.scaled(first.u + u), first.image + image, iterations

    # -- observations ------------------------------------------------------------------------------

    def log_prob_of_obs(self, x: Tensor) -> Tensor:
        """log p(obs | x), nats, (n,) in float64.

        Args:
            x: data, (n, *event_shape).

        The variances R must be positive.
        """
        clean = self.operator(x.double())
        if isinstance(self.noise, Tensor):
            rest = (self.obs - clean).square() / self.noise
            terms = -0.5 * (rest + (2 * math.pi * self.noise).log())
        else:
            terms = log_prob_of(self.noise(clean), self.obs)
        return terms.flatten(1).sum(1)

    @torch.no_grad()
    def _peak(self, law: Law) -> Tensor:
        """The clean measurements at which p(obs | u) is largest, like obs.

        They are looked for where those of Gaussian data with the denoiser's moments lie.
        """
        event, obs = self.operator.event_shape, self.obs.reshape(-1, *self.operator.obs_shape)
        normal = torch.randn(
            EXAMPLES, *event, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        mean, variance = self.denoiser.data_mean, self.denoiser.data_variance
        clean = self.operator(mean + variance.sqrt() * normal.to(obs.device))
        return likeliest(law, obs, clean.mean(0), clean.std(0)).reshape(self.obs.shape)


def _state(tensors: tuple[Tensor, ...]) -> object:
    """Which tensors these are, how often each was written to, and which of them are learned."""
    return writes(tensors), [t.requires_grad for t in tensors]


def _variance_of(
    lam: Tensor, batch: torch.Size, event: tuple[int, ...], by_dimension: bool
) -> Tensor:
    """V = e^{-λ} in float64, (n, *event_shape) of a map, (n, 1, …) of rows, (1, 1, …) of one λ."""
    if by_dimension:
        return torch.exp(-lam).expand(*batch, *event).reshape(-1, *event)
    one = lam.numel() and not any(lam.stride())
    lam = lam[(0,) * lam.dim()] if one else lam.expand(batch)
    return torch.exp(-lam).reshape(-1, *[1] * len(event))


def _by_row(trusted: Tensor | bool, seen: DenoiserCovariance | None, linear: Product) -> Product:
    """Products with the denoiser's covariance in trusted rows (n,), and with the linear
    elsewhere."""
    if seen is None:
        return linear
    if isinstance(trusted, bool):
        return seen
    return lambda v: _where_row(trusted, seen(v), linear(v))


def _where_row(trusted: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(trusted.reshape(-1, *[1] * (one.dim() - 1)), one, other)


def _checked_denoiser(score: Score) -> DenoiserScore:
    if isinstance(score, (ConditionedDenoiser, MeasuredDenoiser)):
        raise TypeError(
            "the model is conditioned already, expected one of all data; measure everything that "
            "is known of a datum by one H"
        )
    why = "a measurement is put into E[x | z], which a score of the raw state does not have"
    return denoiser_of(score, why)


def _checked_obs(obs: object, shape: tuple[int, ...]) -> Tensor:
    """Observations, checked, in float64, (*shape) or (n, *shape).

    Args:
        obs: observations.
        shape: the shape of those of a datum.

    Raises:
        TypeError, ValueError: no numbers, another shape, not finite.
    """
    obs = real_tensor("obs", obs, "what is measured, (*obs_shape)")
    if obs.shape[max(obs.dim() - len(shape), 0) :] != shape or obs.dim() > len(shape) + 1:
        sizes = ", ".join(map(str, shape))
        raise ValueError(
            f"obs has shape {tuple(obs.shape)}, expected that of H x, ({sizes}), or (n, {sizes}) "
            "of n data"
        )
    check_finite("obs", obs)
    return obs


def checked_variance(value: object, shape: Sequence[int]) -> Tensor:
    """Variances of noise, checked, in float64, () or (*shape).

    Args:
        value: a number or numbers.
        shape: the shape of observations.

    Raises:
        TypeError, ValueError: no numbers, another shape, a variance below 0 or not finite.
    """
    shape = tuple(shape)
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
    """Raise ValueError for exact observations of which some follow from others.

    Args:
        operator: H.
        variance: variances R, 0 where observed exactly.
    """
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
