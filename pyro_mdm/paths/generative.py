"""The generative path: the reverse SDE from the prior at T, seen at the start time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_mdm import randomness
from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.paths import path_integral

if TYPE_CHECKING:
    from pyro_mdm.scores.base import Score
from pyro_mdm.paths.base import PathLaw, Self

__all__ = ["BoundScore", "GenerativeLaw", "GenerativePath"]

Sampler = Callable[..., Tensor]


class GenerativeLaw(PathLaw):
    """What both generative laws share: a score, and no dependence on x."""

    has_rsample = False
    score: Score

    def expand(self: Self, batch_shape: Any, _instance: Any = None) -> Self:
        return self.expanded(batch_shape, _instance)


class GenerativePath(GenerativeLaw):
    """The law of the reverse SDE run from the prior π at T to ε, seen at ε.

    Args:
        diffusion: the noising diffusion that is reversed.
        score: a :class:`~pyro_mdm.scores.Score`.
        event_shape: shape of a datum.
        sampler: what simulates it (:mod:`pyro_mdm.samplers`).

    ``sample`` simulates the SDE. ``log_prob`` is a *stochastic lower bound* on log p(y_ε), unbiased
    for the denoising score matching bound in log space (one random time per datum, noise in ±
    pairs; two network evaluations), or, where the noising diffusion is simulated, for the bound of
    :mod:`pyro_mdm.paths.path_integral`. Its exponential estimates nothing: importance weights need
    :class:`GenerativeChain`.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        score: Score,
        event_shape: Sequence[int],
        *,
        sampler: Sampler | None = None,
        batch_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        self.score = score
        self.sampler = sampler
        super().__init__(
            diffusion, torch.Size(batch_shape), torch.Size(event_shape), 1, validate_args
        )

    def sample(self, sample_shape: Any = ()) -> Tensor:
        if self.sampler is None:
            raise ValueError("this GenerativePath has no sampler; pass sampler=EulerMaruyama(500)")
        lead = (*sample_shape, *self.batch_shape)
        shape = (math.prod(lead), *self.event_shape[1:])
        with torch.no_grad():
            y = self.sampler(self.diffusion, BoundScore(self.diffusion, self.score), shape)
        return y.reshape(*lead, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """A stochastic lower bound on log p_θ(y_ε), (*batch), nats."""
        if self._validate_args:
            self._validate_sample(value)
        diffusion, d = self.diffusion, self.num_dims
        (state,) = self.states(value)
        lead = state.shape[: state.dim() - self.x_dim - 1]
        y0 = state.reshape(-1, *self.event_shape[1:])
        if not isinstance(diffusion, LinearDiffusion):
            settings = diffusion.simulation
            gain = path_integral.path_integral(diffusion, self.score_at, y0, settings)
            return (diffusion.prior.log_prob(y0) - gain.value).reshape(lead)
        start = diffusion.start_time
        # s - ε with density ∝ (s - ε)^{-1/2}: ∇ log q grows like that at the lower end
        u = randomness.low_discrepancy(len(y0), y0.device).clamp_min(1e-4)
        s = start + (diffusion.horizon - start) * u.square()
        weight = 2 * (diffusion.horizon - start) * u
        M, F, F_inverse, m = diffusion.noise_last_root(s, start)
        # pairs differ in the noise that G adds last, given the rest of y_s: of s_θ · g² ∇ log q
        # only its dependence on that noise counts, and all else cancels
        noise = randomness.normal(y0.shape, y0.dtype, y0.device)
        flipped = torch.cat([noise[:, :-m], -noise[:, -m:]], 1)
        both = apply_matrix(M, y0).repeat(2, *(1,) * (y0.dim() - 1))
        both = both + torch.cat([apply_matrix(F, noise), apply_matrix(F, flipped)])
        theta = self.score.score(diffusion, both, torch.cat([s, s]))
        target = -torch.cat([apply_matrix(F_inverse.mT, n) for n in (noise, flipped)])
        g2 = diffusion.noise_covariance(s)
        g2_both = torch.cat([g2, g2])
        inner = theta * apply_matrix(g2_both, target - 0.5 * theta)
        # control variate: the stationary score, whose own expectation is known
        at_rest = apply_matrix(-torch.linalg.inv(diffusion.stationary_covariance), both)
        inner = inner - at_rest * apply_matrix(g2_both, target - 0.5 * at_rest)
        integrand = inner.flatten(1).sum(1).reshape(2, -1).mean(0)
        integrand = integrand + _stationary_expectation(diffusion, g2, apply_matrix(M, y0), F)
        to_end = diffusion.transition(diffusion.horizon, start)
        end = apply_matrix(to_end.matrix, y0)
        prior = _expected_prior_log_prob(diffusion, end, to_end.covariance)
        divergence = (
            d
            * torch.einsum("ii", diffusion.unit_drift)
            * (diffusion.clock(diffusion.horizon) - diffusion.clock(start))
        )
        bound = prior + weight.to(y0.dtype) * integrand + divergence.to(y0.dtype)
        return bound.reshape(lead)

    def score_at(self, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y (*batch, K, *event_shape), for s (*batch)."""
        return self.score.score(self.diffusion, y, s)


class BoundScore:
    """A score and its diffusion as the callable ``score(y, s)``, with ``denoise(y, s)``.

    States may be of any precision (samplers hold them in float64): the network sees its own, and
    the result is cast back.
    """

    def __init__(self, diffusion: Diffusion, score: Score) -> None:
        self.diffusion: Any = diffusion
        self.parameterization = score
        dtypes = [p.dtype for p in score.parameters() if p.is_floating_point()]
        self.dtype = dtypes[0] if dtypes else torch.get_default_dtype()

    def __call__(self, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y."""
        return self.parameterization.score(self.diffusion, y.to(self.dtype), s).to(y.dtype)

    def denoise(self, y: Tensor, s: Tensor) -> Tensor:
        """x̂, (*batch, *event_shape), in y's dtype."""
        return self.parameterization.denoise(self.diffusion, y.to(self.dtype), s).to(y.dtype)


def _expected_prior_log_prob(diffusion: LinearDiffusion, mean: Tensor, P: Tensor) -> Tensor:
    """E log N(y; 0, Σ_π) for y ~ N(mean, P) per dimension; mean (n, K, *event), result (n,)."""
    prior = diffusion.prior_covariance
    K, d = diffusion.num_variables, mean[0, 0].numel()
    trace = torch.linalg.solve(prior, P).diagonal().sum()
    constant = -0.5 * d * (trace + torch.logdet(prior) + K * math.log(2 * math.pi))
    quadratic = mean * apply_matrix(torch.linalg.inv(prior), mean)
    return constant.to(mean.dtype) - 0.5 * quadratic.flatten(1).sum(1)


def _stationary_expectation(
    diffusion: LinearDiffusion, g2: Tensor, mean: Tensor, F: Tensor
) -> Tensor:
    """E[ s · g² (∇ log q - ½ s) ] for s = -Σ_∞^{-1} y and y ~ q = N(mean, F Fᵀ); result (n,).

    By parts, E[s · g² ∇ log q] = -∇·(g² s) = tr(g² Σ_∞^{-1}) per dimension.
    """
    inverse = torch.linalg.inv(diffusion.stationary_covariance)
    W = inverse @ g2 @ inverse
    d = mean[0, 0].numel()
    traces = (g2 @ inverse - 0.5 * W @ F @ F.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    return (d * traces).to(mean.dtype) - 0.5 * (mean * apply_matrix(W, mean)).flatten(1).sum(1)
