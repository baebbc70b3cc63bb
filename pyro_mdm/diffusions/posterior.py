r"""The exact Gaussian posterior q(y_r | y_s, x) of an earlier state: a step of ancestral sampling.

With ``y_s = M y_r + N(0, P)`` and ``y_r | x ~ N(a_r x, Σ_r)``,

    y_r | y_s, x ~ N(C y_s + b x, V),   C = Σ_r Mᵀ Σ_s^{-1},   V = (Σ_r^{-1} + Mᵀ P^{-1} M)^{-1},
    b = a_r - C a_s = V Σ_r^{-1} a_r,   bᵀ V^{-1} b = SNR(r) - SNR(s).

A short step's V is as graded as its P, and not along the axes when D has low rank, so nothing is
subtracted: with ``Σ_r = R Rᵀ``, F a root of M^{-1} P M^{-T} and ``N = R^{-1} F``,

    V = F (I + Nᵀ N)^{-1} Fᵀ,   C = (I - V Σ_r^{-1}) M^{-1}           short steps
    V = R (I + Nᵀ N)^{-1} Rᵀ,   C = R (S^{-1} M R)ᵀ S^{-1}            long ones,

where for the latter F is a root of P, ``N = F^{-1} M R`` and ``Σ_s = S Sᵀ``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Times, place
from pyro_mdm.diffusions.clocks import times_within
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.ends import check_precision, factorization
from pyro_mdm.diffusions.linear import LinearDiffusion

__all__ = ["StepPosterior", "posterior"]

SHORT = 1.0  # ‖A‖τ of the steps that are pulled back


class StepPosterior(NamedTuple):
    """The distribution y_r | y_s, x ~ N(gain y_s + mean_coefficient x, covariance), per dimension.

    A covariance whose narrow directions are not axes (D of low rank) exceeds what the K² numbers of
    ``covariance`` and ``scale_tril`` can hold; ``whitener``, ``signal`` and ``log_det`` keep the
    digits. Where ``resolution`` is not small, y_r rounded to float64 does not determine its place
    in the posterior: sampling is unaffected, but a density at y_r is noise.
    """

    gain: Tensor  # C (…, K, K)
    mean_coefficient: Tensor  # b (…, K)
    covariance: Tensor  # V (…, K, K)
    scale_tril: Tensor  # (…, K, K), lower triangular
    log_det: Tensor  # log det V, (…)
    whitener: Tensor  # (…, K, K) with whitener V whitenerᵀ = I, where scale_tril has no digits left
    signal: Tensor  # whitener b (…, K); its squared norm is SNR(r) - SNR(s)
    resolution: Tensor  # (…): how far rounding y_r to float64 moves ``whitener y_r``, see below

    def at(self, i: int) -> StepPosterior:
        """That of the i-th of N steps; one per data dimension keeps a batch dimension of 1."""
        return StepPosterior(*(t[place(self.log_det, i)] for t in self))


def posterior(diffusion: Kernels, s: Times, r: Times) -> StepPosterior:
    r"""The distribution of y_r given y_s and x, for times s > r > 0 broadcast together to (…).

    Where data dimensions have different blocks there is a distribution for each, see
    :class:`~pyro_mdm.PerDimensionDiffusion`.

    Returns:
        :class:`StepPosterior` in float64, differentiable in the diffusion's parameters. All steps
        of a grid are computed in one batch.

    Raises:
        ValueError: a time outside (0, T] or s ≤ r.
        KernelPrecisionError: float64 cannot hold the factors.
    """
    later, earlier = torch.broadcast_tensors(
        times_within(diffusion.horizon, "s", s), times_within(diffusion.horizon, "r", r)
    )
    wrong = ~((later > earlier) & (earlier > 0))
    if bool(wrong.any()):
        raise ValueError(
            f"posterior at r = {earlier[wrong][0].item():.6g} given s = "
            f"{later[wrong][0].item():.6g}, expected s > r > 0; generation runs backward and stops "
            "before 0"
        )
    law: StepPosterior = diffusion.by_dimension(_posterior, later, earlier)
    return law


def _posterior(diffusion: LinearDiffusion, later: Tensor, earlier: Tensor) -> StepPosterior:
    tau_r = diffusion.clock(earlier)
    tau = diffusion.clock(later) - tau_r
    a_r, Sigma_r, given_x = factorization(diffusion, tau_r, "the marginal covariance")

    norm = diffusion.propagator.speed
    short = tau.detach() * norm < SHORT
    if bool(short.all()):
        root, whitener, gain, log_det, growth = _short_step(diffusion, tau, tau_r, given_x)
    elif not bool(short.any()):
        root, whitener, gain, log_det, growth = _long_step(diffusion, tau, tau_r, given_x)
    else:  # each step by its own route; the other sees a harmless duration
        harmless = SHORT / norm
        near = _short_step(diffusion, torch.where(short, tau, harmless), tau_r, given_x)
        far = _long_step(diffusion, torch.where(short, harmless, tau), tau_r, given_x)
        root, whitener, gain, log_det, growth = (
            torch.where(short.reshape(short.shape + (1,) * (n.dim() - short.dim())), n, f)
            for n, f in zip(near, far, strict=True)
        )
    check_precision(diffusion, growth, tau_r, "the posterior covariance")

    information = given_x.log_snr.exp()[..., None] * given_x.readout  # Σ_r^{-1} a_r
    signal = (root.mT @ information[..., None])[..., 0]
    b = (root @ signal[..., None])[..., 0]
    spread = (Sigma_r.detach().diagonal(dim1=-2, dim2=-1) + a_r.detach() ** 2).sqrt()
    error = torch.finfo(torch.float64).eps * (whitener.detach().abs() @ spread[..., None])
    return StepPosterior(
        gain,
        b,
        root @ root.mT,
        kernels.lower_triangular(root),
        log_det,
        whitener,
        signal,
        error.amax((-2, -1)),
    )


_Step = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""A root of V, its inverse, C, log det V, and the growth of rounding."""


def _contract(root: Tensor, inverse: Tensor, N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A root of ``root (I + Nᵀ N)^{-1} rootᵀ``, its inverse, log det(I + Nᵀ N) and the growth."""
    H = N.mT @ N + torch.eye(N.shape[-1], dtype=N.dtype, device=N.device)
    C, growth = kernels.scaled_cholesky(H)
    contracted = torch.linalg.solve_triangular(C, root.mT, upper=False).mT
    return contracted, C.mT @ inverse, 2 * C.diagonal(dim1=-2, dim2=-1).log().sum(-1), growth


def _short_step(
    diffusion: LinearDiffusion, tau: Tensor, tau_r: Tensor, given_x: kernels.Factor
) -> _Step:
    move = diffusion.propagator
    M_inverse, _ = move.pulled_back(tau_r, tau)
    F, F_inverse, log_det, grow = move.pulled_back_root(tau_r, tau)
    R_inverse = given_x.whitener
    root, whitener, log_ratio, growth = _contract(F, F_inverse, R_inverse @ F)
    reduction = root @ (R_inverse @ root).mT @ R_inverse  # V Σ_r^{-1}
    gain = M_inverse - reduction @ M_inverse
    return root, whitener, gain, log_det - log_ratio, torch.maximum(grow, growth)


def _long_step(
    diffusion: LinearDiffusion, tau: Tensor, tau_r: Tensor, given_x: kernels.Factor
) -> _Step:
    move = diffusion.propagator
    M, _ = move.moments(tau_r, tau)
    _, F_inverse, _, grow = move.root(tau_r, tau)
    R = given_x.root
    root, whitener, log_ratio, growth = _contract(R, given_x.whitener, F_inverse @ M @ R)
    _, _, later = factorization(diffusion, tau_r + tau)
    gain = R @ (later.whitener @ M @ R).mT @ later.whitener
    return root, whitener, gain, given_x.log_det - log_ratio, torch.maximum(grow, growth)
