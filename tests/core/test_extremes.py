"""Matrices over twelve orders of magnitude: right to seven digits by a reference, or refused.

What is refused says so, as UnreachableError, ValueError or KernelPrecisionError. The reference has
400 digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from mpmath import mp, mpf
from torch import Tensor

from pyro_mdm.by_dimension.per_dimension import PerDimensionDiffusion
from pyro_mdm.diffusions.clocks import ConstantBeta
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.presets import CLD, HOLD, LearnedDiffusion
from pyro_mdm.varying.time_varying import TimeVaryingDiffusion
from tests.digits import (
    covariance_error,
    exact,
    marginal_errors,
    marginal_truth,
    moments,
    step_errors,
)
from tests.problems import fixed

T = TypeVar("T")
DIGITS = 1e-7
"""Largest error: of means and covariances relative to standard deviations, of logs absolute."""
DPS = 400
"""Of the reference: float64 goes down to 1e-308, and there too it must know what is right."""
REFUSED = (KernelPrecisionError, ValueError)  # UnreachableError is one of the latter

few = settings(
    max_examples=16,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # to shrink a draw takes minutes
    suppress_health_check=list(HealthCheck),
)


# -- what is held to the reference -----------------------------------------------------------------


def worst_error(diffusion: LinearDiffusion, s: float, r: float) -> float | None:
    """Of the law of y_s given x and of that given y_r; None if both are refused."""
    of_x = unless_refused(lambda: marginal_errors(diffusion, s))
    of_state = unless_refused(lambda: step_errors(diffusion, s, r))
    return max((*(of_x or ()), *(of_state or ())), default=None)


def unless_refused(make: Callable[[], T]) -> T | None:
    try:
        return make()
    except REFUSED as error:
        assert len(str(error)) > 40  # it says what and why
        return None


# -- draws -----------------------------------------------------------------------------------------


def orders(width: float) -> st.SearchStrategy[float]:
    """Positive numbers over ``width`` orders of magnitude about 1."""
    return st.floats(-width / 2, width / 2).map(lambda exponent: 10.0**exponent)


def entries(count: int, width: float) -> st.SearchStrategy[list[float]]:
    """Of either sign, or 0."""
    signed = st.tuples(st.sampled_from([-1.0, 1.0, 1.0, -1.0, 0.0]), orders(width))
    return st.lists(signed.map(math.prod), min_size=count, max_size=count)


@st.composite
def diffusions(draw: st.DrawFn, width: float) -> Callable[[], LinearDiffusion]:
    """Q, D, Σ_∞, Σ_v and β, each over so many orders of magnitude, of any rank."""
    K = draw(st.integers(1, 8))
    rank = draw(st.integers(1, K))
    variances = draw(st.lists(orders(width), min_size=K, max_size=K))
    tilt = draw(st.floats(-0.5, 0.5))
    correlation = torch.tensor([[tilt ** abs(i - j) for j in range(K)] for i in range(K)])
    scale = torch.tensor(variances, dtype=torch.float64).sqrt()
    options: dict[str, Any] = {
        "beta": ConstantBeta(draw(orders(width))),
        "stationary_variance": correlation.double() * scale.outer(scale),
        "initial_variance": draw(st.lists(orders(width), min_size=K - 1, max_size=K - 1)) or 1.0,
    }
    lower = torch.tensor(draw(entries(K * (K - 1) // 2, width)), dtype=torch.float64)
    B = torch.tensor(draw(entries(K * rank, width)), dtype=torch.float64).reshape(K, rank)

    def make() -> LinearDiffusion:
        diffusion = LearnedDiffusion(K, rank, max_log_snr=2.0, min_log_snr=1.0, **options)
        with torch.no_grad():
            diffusion.lower.copy_(lower)
            diffusion.B.copy_(B)
        as_drawn = {"max_log_snr": 5.0, "min_log_snr": None}  # the clock's own end
        diffusion._restore(diffusion.settings() | as_drawn)
        return diffusion

    return make


TIMES = st.floats(-6, 0).map(lambda exponent: 10.0**exponent)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "least"), [(12.0, 1), (4.0, 3), (1.0, 5)])
def test_draws_are_right_or_refused(width: float, least: int) -> None:
    found: list[float | None] = []

    @few
    @given(diffusions(width), TIMES, st.floats(0.0, 0.99))
    def check(make: Callable[[], LinearDiffusion], s: float, part: float) -> None:
        diffusion = unless_refused(make)
        with mp.workdps(DPS):
            found.append(None if diffusion is None else worst_error(diffusion, s, part * s))
        assert found[-1] is None or found[-1] < DIGITS

    check()
    assert sum(error is not None for error in found) >= least  # not all is refused


@pytest.mark.slow
@few
@given(diffusions(2.0), st.floats(-2.0, 40.0))
def test_times_of_log_snr_are_those_of_the_reference_or_refused(
    make: Callable[[], LinearDiffusion], level: float
) -> None:
    def find() -> tuple[LinearDiffusion, float]:
        diffusion = make()
        with torch.no_grad():
            s = diffusion.time_at_log_snr(level).item()
            diffusion.log_snr(s)  # refused where its digits are lost
        return diffusion, s

    known = unless_refused(find)
    if known is None:
        return
    diffusion, s = known
    with mp.workdps(DPS):
        log_snr = marginal_truth(diffusion, diffusion.clock(s).item()).log_snr
    assert abs(float(log_snr - level)) < DIGITS


# -- singular cases --------------------------------------------------------------------------------


def stiff(kind: str) -> LinearDiffusion:
    ends: dict[str, Any] = {"max_log_snr": 9.0}
    if kind == "chain of 8":
        return HOLD(8, **ends)
    if kind == "light":
        return CLD(mass=1e-9, **ends)
    if kind == "heavy":
        return CLD(mass=1e6, **ends)
    if kind == "fast turning":
        return LinearDiffusion([[0, -1e4], [1e4, 0]], [[0, 0], [0, 1.0]], **ends)
    if kind == "weak coupling":
        return LinearDiffusion([[0, -1e-5], [1e-5, 0]], [[0, 0], [0, 1.0]], **ends)
    diffusion = LearnedDiffusion(4, 1, **ends)
    with torch.no_grad():
        diffusion.lower.copy_(fixed(1, 6))
        diffusion.B.copy_(fixed(2, 4, 1))
    return diffusion


@pytest.mark.parametrize("s", [1e-9, 1e-5, 0.3])
@pytest.mark.parametrize(
    "kind", ["chain of 8", "light", "heavy", "fast turning", "weak coupling", "rank 1"]
)
def test_singular_cases_are_right_down_to_time_0(kind: str, s: float) -> None:
    diffusion = stiff(kind)
    with mp.workdps(DPS):
        error = worst_error(diffusion, s, 0.9 * s)
    if (kind, s) == ("light", 0.3):  # it travels ‖A‖τ = 6e8: fast modes hide the slow one
        assert error is None
    else:
        assert error is not None and error < 10 * DIGITS


def test_blocks_whose_clocks_differ_by_a_million() -> None:
    """Each is itself at the time at which it has done the common part of its own way."""
    ends: dict[str, Any] = {"max_log_snr": 9.0, "min_log_snr": -5.0}
    blocks = [CLD(beta=ConstantBeta(beta), mass=m, **ends) for beta, m in ((1e-3, 1.0), (1e3, 0.5))]
    diffusion = PerDimensionDiffusion(blocks, [0, 1])
    s = torch.tensor([0.2, 0.7], dtype=torch.float64)
    marginal, local = diffusion.marginal(s), diffusion.cells.times(s)
    for j, block in enumerate(blocks):
        for i in range(2):
            with mp.workdps(100):
                true = marginal_truth(block, block.clock(local[j][i, 0]).item())
                assert covariance_error(exact(marginal.covariance[i, j]), true.Sigma) < 1e-10
            assert abs(marginal.log_snr[i, j].item() - float(true.log_snr)) < 1e-8


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3])
def test_a_time_varying_grid_of_8_variables_is_right_or_refused(size: float) -> None:
    """What varies is a common factor of Q and D, as a clock would have it: one step is exact."""
    chain = HOLD(8)
    Q, D = size * chain.Q, size * chain.D

    def at(matrix: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda s: (1 + torch.sin(3 * s) / 2)[..., None, None] * matrix

    made = unless_refused(
        lambda: TimeVaryingDiffusion(
            at(Q), at(D), beta=ConstantBeta(1.0), max_log_snr=200.0 if size < 1 else 40.0
        )
    )
    if made is None:
        assert size > 1
        return
    s = 0.7
    tau = s + (1 - math.cos(3 * s)) / 6
    with mp.workdps(DPS):
        M, P = moments(exact(-(Q + D)), exact(2 * D), mpf(tau))
        t = made.transition(s)
        assert covariance_error(exact(t.covariance), P) < DIGITS
        assert float(mp.norm(exact(t.matrix) - M, 1) / mp.norm(M, 1)) < DIGITS
