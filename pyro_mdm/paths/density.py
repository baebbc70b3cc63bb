r"""Densities of states, and stochastic lower bounds on log p_θ(y_ε), that of a path's end.

Each estimate is unbiased for its bound, differentiable, and dispatched on the kind of diffusion.
Register one for a kind of your own by ``@density_bound.register(Kind)`` over (diffusion, score, y).

Source of both bounds: Singhal, Goldstein & Ranganath, ICLR 2023, Theorem 1 and its appendices.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import Cap, Diffusion, require
from pyro_mdm.diffusions.closed import Kernels, volume_growth
from pyro_mdm.diffusions.ends import check_precision
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.scores.base import Score
from pyro_mdm.support.checks import check_instance, check_shape

__all__ = ["check_counts_all", "density_bound", "gaussian_log_prob", "white_log_prob"]


@singledispatch
def density_bound(diffusion: Diffusion, score: Score, y: Tensor) -> Tensor:
    """One estimate of a lower bound on log p_θ(y_ε) for each state.

    In closed form it is the denoising score matching bound from y, at one random time per state
    with noise in ± pairs: two network calls. For simulated paths it is that of
    :mod:`pyro_mdm.simulated.path_integral`.

    Args:
        diffusion: the noising diffusion, on whose kind the function is dispatched.
        score: the score.
        y: states at ε, (n, K, *event_shape).

    Returns:
        The estimate, (n,) nats, differentiable in the network and the diffusion.

    Raises:
        NotImplementedError: a kind of diffusion without a registered bound.
        ValueError: a score with observed or left-out dimensions.
    """
    raise NotImplementedError(
        f"no bound is registered for {type(diffusion).__name__}; see density_bound"
    )


@density_bound.register(Kernels)
def _closed_form(diffusion: Kernels, score: Score, y: Tensor) -> Tensor:
    fix = "use the bound of the SDE: elbo_terms, bound, MDM_ELBO, or method='elbo'"
    require(diffusion, Cap.OWN_DRIFT, who="the bound on log p(y_ε) of a state alone", fix=fix)
    check_counts_all(score, y, "log p(y_ε)")
    if not len(y) or (score.event_shape and y.dim() != len(score.event_shape) + 2):
        raise ValueError(f"y has shape {tuple(y.shape)}, expected states (n, K, *event_shape)")
    start = diffusion.start_time
    # s - ε with density ∝ (s - ε)^{-1/2}: ∇ log q grows like that at the lower end
    # (at u = 0 the step has no noise, and ∇ log q no value: u is at least 1e-4)
    u = randomness.low_discrepancy(len(y), torch.device("cpu")).clamp_min(1e-4)
    s = start + (diffusion.horizon - start) * u.square()
    weight = 2 * (diffusion.horizon - start) * u
    M, F, F_inverse, sign = _flipping_root(diffusion, s, start)
    # pairs differ in the noise that G adds last, given the rest of y_s: of s_θ · g² ∇ log q
    # only its dependence on that noise counts, and the rest cancels
    noise = randomness.normal(y.shape, y.dtype, y.device)
    flipped = outer(sign, torch.ones_like(noise[:, 0])) * noise
    both = apply_matrix(M, y).repeat(2, *(1,) * (y.dim() - 1))
    both = both + torch.cat([apply_matrix(F, noise), apply_matrix(F, flipped)])
    if Cap.NO_CONTEXT in diffusion.caps:
        theta = score.score(diffusion, both, torch.cat([s, s]))
    else:  # it is of so many data
        theta = torch.cat([score.score(diffusion, half, s) for half in both.chunk(2)])
    target = -torch.cat([apply_matrix(F_inverse.mT, n) for n in (noise, flipped)])
    g2 = diffusion.noise_covariance(s)
    g2_both = torch.cat([g2, g2])
    inner = theta * apply_matrix(g2_both, target - 0.5 * theta)
    # control variate: the prior's score, whose own expectation has a closed form
    of_prior = apply_matrix(-torch.linalg.inv_ex(diffusion.prior_covariance).inverse, both)
    inner = inner - of_prior * apply_matrix(g2_both, target - 0.5 * of_prior)
    integrand = inner.flatten(1).sum(1).reshape(2, -1).mean(0)
    integrand = integrand + _prior_expectation(diffusion, g2, apply_matrix(M, y), F)
    to_end = diffusion.transition(diffusion.horizon, start)
    prior = _expected_prior_log_prob(diffusion, apply_matrix(to_end.matrix, y), to_end.covariance)
    growth = volume_growth(diffusion, diffusion.horizon, start, y[0, 0].numel())
    return prior + weight.to(y) * integrand + growth.to(y)


class _Flip(NamedTuple):
    """The matrices of a step, and the signs of its noise in the other path of a pair."""

    matrix: Tensor  # M (n, K, K)
    root: Tensor  # F (n, K, K)
    inverse: Tensor  # F^{-1} (n, K, K)
    sign: Tensor  # (n, K), -1 for the noise that G adds last


def _flipping_root(diffusion: Kernels, s: Tensor, start: Tensor) -> _Flip:
    def of_block(block: LinearDiffusion, s: Tensor, r: Tensor) -> _Flip:
        start, move = block.clock(r), block.propagator
        tau = block.clock(s) - start
        M, _ = move.moments(start, tau)
        # the last columns of F span the range of G: their noise is what is new in y_s
        F, inverse, _, growth = move.noise_last_root(start, tau)
        check_precision(block, growth, tau, "the transition covariance")
        sign = torch.ones(M.shape[-1]).to(M)
        sign[-move.new :] = -1
        return _Flip(M, F, inverse, sign.expand(M.shape[:-1]))

    flip: _Flip = diffusion.by_dimension(of_block, s, start.expand(s.shape))
    return flip


def _expected_prior_log_prob(diffusion: Kernels, mean: Tensor, P: Tensor) -> Tensor:
    """E log N(y; 0, Σ_π) for y ~ N(mean, P) per dimension; mean (n, K, *event), result (n,)."""
    prior = diffusion.prior_covariance
    K, d = diffusion.num_variables, mean[0, 0].numel()
    trace = torch.linalg.solve_ex(prior, P).result.diagonal(dim1=-2, dim2=-1).sum(-1).mean()
    constant = -0.5 * d * (trace + torch.logdet(prior).mean() + K * math.log(2 * math.pi))
    quadratic = mean * apply_matrix(torch.linalg.inv_ex(prior).inverse, mean)
    value: Tensor = constant.to(mean) - 0.5 * quadratic.flatten(1).sum(1)
    return value


def _prior_expectation(diffusion: Kernels, g2: Tensor, mean: Tensor, F: Tensor) -> Tensor:
    """``E[ s · g² (∇ log q - ½ s) ]`` for ``s = -Σ_π^{-1} y`` and y ~ q = N(mean, F Fᵀ), (n,).

    By parts, ``E[s · g² ∇ log q] = -∇·(g² s) = tr(g² Σ_π^{-1})`` per dimension.
    """
    inverse = torch.linalg.inv_ex(diffusion.prior_covariance).inverse
    W = inverse @ g2 @ inverse
    d = mean[0, 0].numel()
    traces = (g2 @ inverse - 0.5 * W @ F @ F.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    traces = traces.flatten(1).mean(1) if traces.dim() > 1 else traces
    value: Tensor = (d * traces).to(mean) - 0.5 * (mean * apply_matrix(W, mean)).flatten(1).sum(1)
    return value


def white_log_prob(white: Tensor, log_det: Tensor, event_dim: int) -> Tensor:
    """log N(r; 0, V), (*lead), nats, from the white residual V^{-1/2} r (*lead, K, *event_shape).

    log det V is one for all dimensions, (), or one for each, (1, *event_shape), with sizes of 1
    along those that share it.
    """
    sizes = white.shape[white.dim() - event_dim - 1 :]
    d, K = math.prod(sizes[1:]), sizes[0]
    constant = d * (log_det.mean() + K * math.log(2 * math.pi)).to(white)
    return -0.5 * (white.square().sum(tuple(range(-event_dim - 1, 0))) + constant)


def gaussian_log_prob(
    residual: Tensor, scale_tril: Tensor, log_det: Tensor, event_dim: int
) -> Tensor:
    """log N(r; 0, L Lᵀ), (*lead), nats, of residuals (*lead, K, *event_shape).

    L is (K, K), or one for each dimension, and log det L Lᵀ as for :func:`white_log_prob`.
    """
    if scale_tril.dim() > 2:
        white = apply_matrix(inverse_tril(scale_tril), residual, event_dim)
    else:
        L, lead = scale_tril.to(residual), residual.shape[: residual.dim() - event_dim]
        white = torch.linalg.solve_triangular(L, residual.reshape(*lead, -1), upper=False)
    return white_log_prob(white.reshape(residual.shape), log_det, event_dim)


def check_counts_all(score: Score, y: Tensor, what: str) -> None:
    """Raises ValueError if only some dimensions of states y (*batch, K, *event_shape) count for a
    score, of whose density the message tells."""
    check_instance("score", score, Score, "e.g. Denoiser.fit(network, train_x)")
    check_shape("y", y, score.event_shape or ())
    first = y.select(y.dim() - 1 - len(score.event_shape or y.shape[2:]), 0)
    if score.counts(first) is not None:
        raise ValueError(
            f"{what} is a density of all dimensions together, and some are observed or left out "
            "here; use the bound: elbo_terms, bound, MDM_ELBO, or method='elbo'"
        )
