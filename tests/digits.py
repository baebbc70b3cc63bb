"""Kernels in as many digits as are asked for, of the numbers that a diffusion holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from mpmath import mp, mpf
from torch import Tensor

from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.linear_matrices import GivenPrior

Matrix = Any  # mpmath's, which has no stubs


def exact(value: Tensor) -> Matrix:
    """The number each float64 entry is, as a column or a matrix."""
    columns = value.detach() if value.dim() == 2 else value.detach()[:, None]
    return mp.matrix([[mpf(x) for x in row] for row in columns.tolist()])


def drift_and_noise(diffusion: LinearDiffusion) -> tuple[Matrix, Matrix]:
    """A and GGᵀ per unit of clock time from the numbers the diffusion holds."""
    if isinstance(diffusion.prior_part, GivenPrior):
        G = exact(diffusion.matrices.root())
        return exact(diffusion.matrices.drift()), G * G.T
    if hasattr(diffusion, "B"):
        B = exact(diffusion.B)
        D = B * B.T
    else:
        D = exact(diffusion.D)
    A = -(exact(diffusion.Q) + D) * exact(diffusion.stationary_covariance) ** -1
    return A, 2 * D


def log_det(S: Matrix) -> mpf:
    L = mp.cholesky(S)
    return 2 * sum(mp.log(L[i, i]) for i in range(S.rows))


def covariance_error(computed: Matrix, S: Matrix) -> float:
    """Largest error relative to sqrt(Σ_ii Σ_jj)."""
    sd = [mp.sqrt(S[i, i]) for i in range(S.rows)]
    K = range(S.rows)
    return float(max(abs(computed[i, j] - S[i, j]) / sd[i] / sd[j] for i in K for j in K))


class Truth(NamedTuple):
    a: Matrix
    Sigma: Matrix
    log_snr: mpf
    readout: Matrix


def marginal_truth(diffusion: LinearDiffusion, tau: float) -> Truth:
    M, P = moments(*drift_and_noise(diffusion), mpf(tau))
    a = M[:, 0]
    Sigma = P + M * exact(diffusion.initial_covariance) * M.T
    information = Sigma**-1 * a
    snr = (a.T * information)[0]
    return Truth(a, Sigma, mp.log(snr), information / snr)


class Errors(NamedTuple):
    """How far a law is from the reference."""

    moments: float
    """Of means and covariances, relative to standard deviations."""
    logs: float
    """Of log determinants and log SNR, absolute; of readouts, relative."""


@torch.no_grad()
def marginal_errors(diffusion: LinearDiffusion, s: float) -> Errors:
    """Those of the law of y_s given x."""
    m = diffusion.marginal(s)
    true = marginal_truth(diffusion, diffusion.clock(s).item())
    K = range(true.Sigma.rows)
    a, L, readout = exact(m.mean), exact(m.scale_tril), exact(m.readout)
    sd = [mp.sqrt(true.Sigma[i, i]) for i in K]
    off = max(abs(readout[i] - true.readout[i]) * sd[i] for i in K)
    ratios = [
        mp.norm(a - true.a, mp.inf) / mp.norm(true.a, mp.inf),
        covariance_error(exact(m.covariance), true.Sigma),
        covariance_error(L * L.T, true.Sigma),
    ]
    logs = [
        abs(mpf(m.log_det.item()) - log_det(true.Sigma)),
        abs(mpf(m.log_snr.item()) - true.log_snr),
        off / max(abs(true.readout[i]) * sd[i] for i in K),
    ]
    return Errors(float(max(ratios)), float(max(logs)))


@torch.no_grad()
def step_errors(diffusion: LinearDiffusion, s: float, r: float) -> Errors:
    """Those of the law of y_s given y_r."""
    t = diffusion.transition(s, r)
    tau = (diffusion.clock(s) - diffusion.clock(r)).item()
    M, P = moments(*drift_and_noise(diffusion), mpf(tau))
    L, least = exact(t.scale_tril), mpf(10) ** -290  # float64 has no smaller numbers
    off = [
        mp.norm(exact(t.matrix) - M, 1) / (mp.norm(M, 1) + least),
        covariance_error(exact(t.covariance), P),
        covariance_error(L * L.T, P),
    ]
    return Errors(float(max(off)), float(abs(mpf(t.log_det.item()) - log_det(P))))


def fixed_point(matrix: Matrix) -> Any:
    """Integers, in units of 2^-p at a precision of p bits."""
    entries = [[int(mp.ldexp(x, mp.prec)) for x in row] for row in matrix.tolist()]
    return np.array(entries, dtype=object)


def floating(matrix: Any) -> Matrix:
    return mp.matrix([[mp.ldexp(mpf(x), -mp.prec) for x in row] for row in matrix.tolist()])


def moments(A: Matrix, GG: Matrix, tau: mpf) -> tuple[Matrix, Matrix]:
    """exp(Aτ) and ∫ exp(Au) GGᵀ exp(Aᵀu) du: Taylor series of a short step, then doubling."""
    doublings = max(0, int(mp.ceil(mp.log(max(mp.norm(A, 1) * tau, mpf(1)), 2)))) + 12
    step = fixed_point(A * mp.ldexp(tau, -doublings))
    M_term = fixed_point(mp.eye(A.rows))
    P_term = fixed_point(GG * mp.ldexp(tau, -doublings))
    M, P = M_term, P_term
    for n in range(1, 400):
        M_term = (step @ M_term >> mp.prec) // n
        AP = step @ P_term >> mp.prec
        P_term = (AP + AP.T) // (n + 1)
        M, P = M + M_term, P + P_term
        if max(abs(M_term).max(), abs(P_term).max()) <= 1:
            break
    for _ in range(doublings):
        P = P + (M @ P @ M.T >> 2 * mp.prec)
        M = M @ M >> mp.prec
    return floating(M), floating(P)
