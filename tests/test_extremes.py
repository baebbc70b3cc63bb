"""Matrices over twelve orders of magnitude: right to seven digits by a reference, or refused.

What is refused says so, as UnreachableError, ValueError or KernelPrecisionError. The reference has
400 digits, in fixed point for the many products, of the numbers that the diffusion holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
import numpy as np
from mpmath import mp, mpf
from torch import Tensor

from pyro_mdm.diffusions.base import UnreachableError
from pyro_mdm.diffusions.clocks import ConstantBeta
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.per_dimension import PerDimensionDiffusion
from pyro_mdm.diffusions.presets import CLD, HOLD, VPSDE, LearnedDiffusion
from pyro_mdm.diffusions.time_varying import TimeVaryingDiffusion, TimeVaryingLearnedDiffusion
from tests.problems import fixed
from tests.test_kernels import Matrix, covariance_error, drift_and_noise, exact, log_det

DIGITS = 1e-7
"""Largest error: of means and covariances relative to standard deviations, of logs absolute."""
REFUSED = (KernelPrecisionError, ValueError)  # UnreachableError is one of the latter

few = settings(
    max_examples=16,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # to shrink a draw takes minutes
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with mp.workdps(400):
        yield


# -- the reference ---------------------------------------------------------------------------------

BITS = 1400


def fixed_point(matrix: Matrix) -> Any:
    """Integers, in units of 2^-BITS."""
    entries = [[int(mp.ldexp(x, BITS)) for x in row] for row in matrix.tolist()]
    return np.array(entries, dtype=object)


def floating(matrix: Any) -> Matrix:
    return mp.matrix([[mp.ldexp(mpf(x), -BITS) for x in row] for row in matrix.tolist()])


def moments(A: Matrix, GG: Matrix, tau: mpf) -> tuple[Matrix, Matrix]:
    """exp(Aτ) and ∫ exp(Au) GGᵀ exp(Aᵀu) du: Taylor series of a short step, then doubling."""
    doublings = max(0, int(mp.ceil(mp.log(max(mp.norm(A, 1) * tau, mpf(1)), 2)))) + 12
    step = fixed_point(A * mp.ldexp(tau, -doublings))
    M_term = fixed_point(mp.eye(A.rows))
    P_term = fixed_point(GG * mp.ldexp(tau, -doublings))
    M, P = M_term, P_term
    for n in range(1, 400):
        M_term = (step @ M_term >> BITS) // n
        AP = step @ P_term >> BITS
        P_term = (AP + AP.T) // (n + 1)
        M, P = M + M_term, P + P_term
        if max(abs(M_term).max(), abs(P_term).max()) <= 1:
            break
    for _ in range(doublings):
        P = P + (M @ P @ M.T >> 2 * BITS)
        M = M @ M >> BITS
    return floating(M), floating(P)


# -- what is held to the reference -----------------------------------------------------------------


def worst_error(diffusion: LinearDiffusion, s: float, r: float) -> float | None:
    """Of the law of y_s given x and of that given y_r; None if both are refused."""
    found = [
        error
        for check in (lambda: marginal_error(diffusion, s), lambda: step_error(diffusion, s, r))
        if (error := unless_refused(check)) is not None
    ]
    return max(found) if found else None


def unless_refused(check: Callable[[], float]) -> float | None:
    try:
        return check()
    except REFUSED as error:
        assert len(str(error)) > 40  # it says what and why
        return None


@torch.no_grad()
def marginal_error(diffusion: LinearDiffusion, s: float) -> float:
    m = diffusion.marginal(s)
    M, P = moments(*drift_and_noise(diffusion), mpf(diffusion.clock(s).item()))
    a, K = M[:, 0], range(M.rows)
    Sigma = P + M * exact(diffusion.initial_covariance) * M.T
    information = Sigma**-1 * a
    snr = (a.T * information)[0]
    sd = [mp.sqrt(Sigma[i, i]) for i in K]
    readout, L = exact(m.readout), exact(m.scale_tril)
    k = [information[i] / snr for i in K]
    errors = [
        max(abs(exact(m.mean)[i] - a[i]) for i in K) / max(abs(a[i]) for i in K),
        covariance_error(exact(m.covariance), Sigma),
        covariance_error(L * L.T, Sigma),
        abs(mpf(m.log_det.item()) - log_det(Sigma)),
        abs(mpf(m.log_snr.item()) - mp.log(snr)),
        max(abs(readout[i] - k[i]) * sd[i] for i in K) / max(abs(k[i]) * sd[i] for i in K),
    ]
    return max(map(float, errors))


@torch.no_grad()
def step_error(diffusion: LinearDiffusion, s: float, r: float) -> float:
    t = diffusion.transition(s, r)
    tau = (diffusion.clock(s) - diffusion.clock(r)).item()
    M, P = moments(*drift_and_noise(diffusion), mpf(tau))
    L, least = exact(t.scale_tril), mpf(10) ** -290  # float64 has no smaller numbers
    errors = [
        mp.norm(exact(t.matrix) - M, 1) / (mp.norm(M, 1) + least),
        covariance_error(exact(t.covariance), P),
        covariance_error(L * L.T, P),
        abs(mpf(t.log_det.item()) - log_det(P)),
    ]
    return max(map(float, errors))


# -- draws -----------------------------------------------------------------------------------------


def orders(width: float) -> st.SearchStrategy[float]:
    """Positive numbers over ``width`` orders of magnitude about 1."""
    return st.floats(-width / 2, width / 2).map(lambda exponent: 10.0**exponent)


def entries(count: int, width: float) -> st.SearchStrategy[list[float]]:
    """Of either sign, or 0."""
    signed = st.tuples(st.sampled_from([-1.0, 1.0, 1.0, -1.0, 0.0]), orders(width))
    return st.lists(signed.map(math.prod), min_size=count, max_size=count)


@st.composite
def diffusions(draw: st.DrawFn, width: float) -> LinearDiffusion:
    """Q, D, Σ_∞, Σ_v and β, each over so many orders of magnitude, of any rank."""
    K = draw(st.integers(1, 8))
    rank = draw(st.integers(1, K))
    variances = draw(st.lists(orders(width), min_size=K, max_size=K))
    tilt = draw(st.floats(-0.5, 0.5))
    correlation = torch.tensor([[tilt ** abs(i - j) for j in range(K)] for i in range(K)])
    scale = torch.tensor(variances, dtype=torch.float64).sqrt()
    diffusion = LearnedDiffusion(
        K,
        rank,
        beta=ConstantBeta(draw(orders(width))),
        stationary_variance=correlation.double() * scale.outer(scale),
        initial_variance=draw(st.lists(orders(width), min_size=K - 1, max_size=K - 1)) or 1.0,
        max_log_snr=2.0,
        min_log_snr=1.0,  # so that it is made, whatever its clock: what counts comes next
    )
    lower = torch.tensor(draw(entries(K * (K - 1) // 2, width)), dtype=torch.float64)
    B = torch.tensor(draw(entries(K * rank, width)), dtype=torch.float64)
    with torch.no_grad():
        diffusion.lower.copy_(lower)
        diffusion.B.copy_(B.reshape(K, rank))
    diffusion.max_log_snr, diffusion._min_log_snr, diffusion._guess = 5.0, None, None
    return diffusion


TIMES = st.floats(-6, 0).map(lambda exponent: 10.0**exponent)


@pytest.mark.parametrize("width", [12.0, 4.0, 1.0])
def test_draws_are_right_or_refused(width: float) -> None:
    found: list[float | None] = []

    @few
    @given(diffusions(width), TIMES, st.floats(0.0, 0.99))
    def check(diffusion: LinearDiffusion, s: float, part: float) -> None:
        found.append(worst_error(diffusion, s, part * s))
        assert found[-1] is None or found[-1] < DIGITS

    check()
    right = sum(error is not None for error in found)
    assert right > {12.0: 2, 4.0: 6, 1.0: 10}[width]  # not all is refused
