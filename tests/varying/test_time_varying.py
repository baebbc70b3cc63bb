"""Diffusions whose Q(s) and D(s) vary: against an ODE solver, and against constant ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from mpmath import mp
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from pyro_mdm.diffusions.base import UnreachableError
from pyro_mdm.diffusions.clocks import Clock, ConstantBeta, LearnedBeta, LinearBeta, log_snr_times
from pyro_mdm.diffusions.closed import volume_growth
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.diffusions.presets import ALDA, CLD, MALDA, VPSDE, LearnedDiffusion
from pyro_mdm.samplers import Splitting
from pyro_mdm.samplers.base import information_grid
from pyro_mdm.samplers.exponential import transport
from pyro_mdm.varying.cells import MatrixCells
from pyro_mdm.varying.magnus import MagnusPropagator
from pyro_mdm.varying.time_varying import TimeVaryingDiffusion, TimeVaryingLearnedDiffusion
from tests.gradients import assert_gradients
from tests.problems import chain, fixed
from tests.varying.problems import learned_in_time, rubbing, turning

Field = Callable[[Tensor], Tensor]


# -- an independent solution -----------------------------------------------------------------------


def fields(K: int, kind: str) -> tuple[Field, Field]:
    """Q and D that do not commute, of full rank or a chain with noise on its last variable."""
    W = [fixed(10 * K + i, K, K) for i in range(3)]
    if kind == "chain":
        W = [torch.diag(1 + 0.2 * w.diagonal()[1:], 1) for w in W]
    skew = [w - w.mT for w in W]
    skew = [c * q / q.norm().clamp_min(1e-300) for c, q in zip((2.0, 0.6, 0.4), skew, strict=True)]
    if kind == "chain":
        B = [torch.zeros(K, 1, dtype=torch.float64) for _ in range(2)]
        B[0][-1], B[1][-1] = 1.2, 0.3
    else:
        B = [fixed(10 * K + 5 + i, K, K) for i in range(2)]
        B = [c * b / torch.linalg.matrix_norm(b, ord=2) for c, b in zip((1.0, 0.5), B, strict=True)]

    def Q(s: Tensor) -> Tensor:
        s = s[..., None, None]
        return skew[0] + skew[1] * torch.sin(2 * s) + skew[2] * s * s

    def D(s: Tensor) -> Tensor:
        s = s[..., None, None]
        root = B[0] + B[1] * torch.cos(2 * s)
        return root @ root.mT

    return Q, D


class Solved(NamedTuple):
    M: np.ndarray  # (n, K, K)
    P: np.ndarray
    pulled_back: np.ndarray  # P̃


def solve(diffusion: TimeVaryingDiffusion, times: list[float], r: float = 0.0) -> Solved:
    """M' = A M, P' = A P + P Aᵀ + g², and P̃' = W g² Wᵀ with W' = -W A, from r to each time.

    By DOP853 at a relative tolerance of 1e-13, one interval after the other, for scaled P: each
    entry is small where it begins.
    """
    K = diffusion.num_variables
    clock: Clock = diffusion.beta
    precision = np.linalg.inv(diffusion.stationary_covariance.numpy())

    def slope(s: float, flat: np.ndarray) -> np.ndarray:
        at = torch.tensor(s, dtype=torch.float64)
        D, beta = diffusion.D_function(at).numpy(), clock.rate(at).item()
        A = -beta * (diffusion.Q_function(at).numpy() + D) @ precision
        M, W, P, _ = flat.reshape(4, K, K)
        g2 = 2 * beta * D
        return np.stack([A @ M, -W @ A, A @ P + P @ A.T + g2, W @ g2 @ W.T]).ravel()

    state = np.stack([np.eye(K), np.eye(K), np.zeros((K, K)), np.zeros((K, K))]).ravel()
    found, before = [], r
    for s in times:
        solution = solve_ivp(slope, (before, s), state, "DOP853", rtol=1e-13, atol=1e-17)
        assert solution.success, solution.message
        state, before = solution.y[:, -1], s
        found.append(state.reshape(4, K, K))
    M, _, P, pulled = np.stack(found, 1)
    return Solved(M, P, pulled)


def relative(found: Tensor, truth: np.ndarray) -> float:
    """The largest error of covariances relative to sqrt(Σ_ii Σ_jj)."""
    sd = np.sqrt(np.einsum("...ii->...i", truth))
    return float(
        np.abs((found.detach().numpy() - truth) / sd[..., :, None] / sd[..., None, :]).max()
    )


def errors(diffusion: TimeVaryingDiffusion, truth: Solved, times: list[float]) -> dict[str, float]:
    """Of the marginals at ``times``."""
    s = torch.tensor(times, dtype=torch.float64)
    start = diffusion.initial_covariance.numpy()
    m = diffusion.marginal(s)
    Sigma = truth.P + truth.M @ start @ truth.M.swapaxes(1, 2)
    with mp.workdps(60):  # the ODE's digits are all that is lost
        log_snr = [
            float(mp.log((mp.matrix(S.tolist()) ** -1)[0, 0])) for S in truth.pulled_back + start
        ]
    early = [i for i, value in enumerate(log_snr) if value > -2]
    return {
        "mean": np.abs(m.mean.detach().numpy() - truth.M[:, :, 0]).max(),
        "covariance": relative(m.covariance, Sigma),
        "root": relative(m.scale_tril @ m.scale_tril.mT, Sigma),
        "log_snr": max(abs(m.log_snr[i].item() - log_snr[i]) for i in early),
    }


CASES = [(1, "full"), (2, "full"), (3, "full"), (8, "full"), (2, "chain"), (4, "chain")]
TIMES = [0.1, 0.2, 0.35, 0.6, 1.0]


@pytest.mark.parametrize(("K", "kind"), CASES)
def test_moments_are_those_of_an_ode_solver_to_the_fourth_order(K: int, kind: str) -> None:
    Q, D = fields(K, kind)
    options: dict[str, Any] = {"max_log_snr": 9.0, "beta": LinearBeta(0.1, 8.0)}
    fine = TimeVaryingDiffusion(Q, D, **options)
    truth = solve(fine, TIMES)
    error = errors(fine, truth, TIMES)
    coarse = errors(TimeVaryingDiffusion(Q, D, cells=64, **options), truth, TIMES)
    assert all(value < 1e-7 for value in error.values()), error
    for name, value in error.items():  # 4^4 is 256, less where coarse cells are cut
        assert value < coarse[name] / 40 or value < 1e-10, (name, value, coarse[name])


@pytest.mark.parametrize(("K", "kind"), CASES)
def test_transitions_are_those_of_an_ode_solver(K: int, kind: str) -> None:
    Q, D = fields(K, kind)
    diffusion = TimeVaryingDiffusion(Q, D, max_log_snr=9.0, beta=LinearBeta(0.1, 8.0))
    times = [0.35, 0.6, 1.0]
    truth = solve(diffusion, times, 0.3)
    t = diffusion.transition(torch.tensor(times, dtype=torch.float64), 0.3)
    assert np.abs(t.matrix.numpy() - truth.M).max() < 1e-7
    assert relative(t.covariance, truth.P) < 1e-7
    assert relative(t.scale_tril @ t.scale_tril.mT, truth.P) < 1e-7
    torch.testing.assert_close(
        t.log_det, 2 * t.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("K", [2, 3, 4])
def test_noise_of_x_begins_with_its_power_of_time(K: int) -> None:
    """Of a chain of order K like τ^{2K-1}, which float64 holds by positive terms alone."""
    Q, D = fields(K, "chain")
    diffusion = TimeVaryingDiffusion(Q, D, max_log_snr=30.0, beta=ConstantBeta(1.0))
    s = torch.tensor([1e-8, 1e-6, 1e-4], dtype=torch.float64)
    start = torch.zeros((), dtype=torch.float64)
    coupling = math.prod(Q(start)[i, i + 1].item() for i in range(K - 1))
    leading = 2 * D(start)[-1, -1].item() * (coupling / math.factorial(K - 1)) ** 2
    expected = leading / (2 * K - 1) * s ** (2 * K - 1)
    found = diffusion.transition(s).covariance[:, 0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    assert (found / expected - 1)[0].abs() < 1e-6  # its own corrections are of the order of s


# -- constant matrices -----------------------------------------------------------------------------


def held(matrix: Tensor) -> Field:
    return lambda s: matrix.expand(*s.shape, *matrix.shape)


def test_a_cell_of_a_straight_line_is_of_the_sixth_order() -> None:
    """Its mean against an ODE solver: the error of the exponent is of the seventh power of h."""
    W, E, B = fixed(1, 3, 3), fixed(2, 3, 3), fixed(3, 3, 3)
    eye, D0 = torch.eye(3, dtype=torch.float64), B @ B.mT / 9

    def Q(tau: Tensor) -> Tensor:
        return (W - W.mT) / 2 + tau[..., None, None] * (E - E.mT)

    def D(tau: Tensor) -> Tensor:
        return D0 + tau[..., None, None] * eye / 2

    def drift(tau: Tensor) -> Tensor:
        return -(Q(tau) + D(tau))

    def slope(tau: float, flat: np.ndarray) -> np.ndarray:
        t = torch.tensor(tau, dtype=torch.float64)
        return (drift(t).numpy() @ flat.reshape(3, 3)).ravel()

    errors = []
    for h in (0.4, 0.2):
        bounds = torch.tensor([0.0, h], dtype=torch.float64)
        cell = MagnusPropagator(MatrixCells(drift, D, drift, bounds, D, 3))
        M, _ = cell.moments(None, bounds[1:])
        exact = solve_ivp(slope, (0, h), eye.numpy().ravel(), "DOP853", rtol=1e-13, atol=1e-14)
        errors.append(float((M[0] - torch.from_numpy(exact.y[:, -1].reshape(3, 3))).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(7, abs=0.4), errors


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (VPSDE, {}),
        (ALDA, {}),
        (lambda **o: chain(5, **o), {}),
        (VPSDE, {"min_log_snr": -8.0, "beta": LearnedBeta(knots=5)}),
        (CLD, {"min_log_snr": -8.0, "beta": LearnedBeta(knots=5)}),
    ],
)
def test_of_constant_matrices_it_is_a_linear_diffusion(make: Any, options: Any) -> None:
    one = make(**copy.deepcopy(options)).requires_grad_(False)
    other = TimeVaryingDiffusion(
        held(one.Q),
        held(one.D),
        stationary_variance=one.stationary_covariance,
        **copy.deepcopy(options),
    ).requires_grad_(False)
    grids = [log_snr_times(d, 12) for d in (one, other)]
    torch.testing.assert_close(*grids, rtol=1e-9, atol=1e-13)
    s = grids[0]
    for a, b in zip(one.marginal(s), other.marginal(s), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    for a, b in zip(one.transition(s[1:], s[:-1]), other.transition(s[1:], s[:-1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)
    for name in ("log_snr", "log_snr_rate", "log_volume", "log_volume.rate", "clock"):
        asked = attrgetter(name)
        torch.testing.assert_close(asked(one)(s), asked(other)(s), rtol=1e-9, atol=0)
    steps = [posterior(d, s[1:], s[:-1]) for d in (one, other)]
    for field in ("gain", "covariance", "scale_tril", "log_det"):
        a, b = (getattr(p, field) for p in steps)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    for a, b in zip(*(transport(d, s.flip(0), 0.5, 3) for d in (one, other)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        information_grid(one, 9), information_grid(other, 9), rtol=1e-9, atol=0
    )
    plans = [Splitting(6).plan(d, s.flip(0)) for d in (one, other)]
    for name in ("first", "first_root", "second", "second_root"):
        a, b = (getattr(plan, name) for plan in plans)
        torch.testing.assert_close(a @ a.mT, b @ b.mT, rtol=1e-8, atol=1e-10)
    assert volume_growth(one, 1.0, 0.2, 3).item() == pytest.approx(
        volume_growth(other, 1.0, 0.2, 3).item()
    )


@pytest.mark.slow
def test_a_learned_one_starts_at_what_learned_starts_at() -> None:
    for K, rank, learn_beta in ((1, 1, False), (2, 2, True), (3, 1, False)):
        one = LearnedDiffusion(K, rank, learn_beta, min_log_snr=-10.0)
        other = TimeVaryingLearnedDiffusion(K, rank, learn_beta, min_log_snr=-10.0)
        s = torch.linspace(0, 1, 7, dtype=torch.float64)
        for name in ("Q", "D"):
            varying = other.matrices.at(name, s)
            torch.testing.assert_close(one.matrices.at(name, s).expand_as(varying), varying)
        torch.testing.assert_close(one.start_time, other.start_time, rtol=1e-9, atol=0)
        moved = other.terminal.log_det + other.start.readout.sum()
        moved.backward()
        assert other.B.grad is not None and bool((other.B.grad != 0).flatten(1).any(1).all())
    start = TimeVaryingLearnedDiffusion.from_diffusion(MALDA(), degree=2)
    torch.testing.assert_close(start.matrices.at("Q", 0.3), MALDA().Q)
    torch.testing.assert_close(start.matrices.at("D", 0.3), MALDA().D, rtol=0, atol=1e-10)


# -- the door --------------------------------------------------------------------------------------

J = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)


class Outside:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def __call__(self, s: Tensor) -> Tensor:
        return self.weight * turning(s)


def unfinished(s: Tensor) -> Tensor:
    return turning(s) / (s - 0.5).abs().sqrt()[..., None, None]


def growing(s: Tensor) -> Tensor:
    return turning(s) + torch.where(s > 0.5, s, 0.0)[..., None, None]


def negative(s: Tensor) -> Tensor:
    return (0.7 - s)[..., None, None] * EYE


def of(Q: Any, D: Any, **options: Any) -> TimeVaryingDiffusion:
    return TimeVaryingDiffusion(Q, D, **options)


MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: of(J, rubbing), TypeError, "Q is a Tensor.*, expected a function of times .* Linear"),
    (lambda: of(lambda s: J, rubbing), ValueError, r"Q\(s\) has shape \(2, 2\) for .* \(1,\), exp"),
    (lambda: of(turning, held(torch.eye(3).double())), ValueError, r"D\(s\) has shape .* \(65, 2"),
    (lambda: of(lambda s: turning(s).float(), rubbing), TypeError, r"Q\(s\) is torch.float32"),
    (lambda: of(turning, lambda s: 3), TypeError, r"D\(s\) is .*, expected a tensor of torch"),
    (lambda: of(unfinished, rubbing), ValueError, r"Q\(s\) is not finite at s = 0.5, expected"),
    (lambda: of(growing, rubbing), ValueError, r"Q\(s\) at s = 0.5\d+ is not skew-symmetric"),
    (lambda: of(turning, negative), ValueError, r"D\(s\) at s = 0.7\d+ is not positive semi-def"),
    (lambda: of(turning, lambda s: rubbing(s) @ (EYE + J)), ValueError, "at s = 0 is not"),
    (lambda: of(Outside(), rubbing), ValueError, "a tensor that requires a gradient, .* module"),
    (lambda: of(held(0 * J), held(torch.diag(EYE[1]))), UnreachableError, "noise reaches 1 of 2"),
    (lambda: of(held(J), lambda s: 1e6 * rubbing(s)), KernelPrecisionError, "scale Q, D or the"),
    (lambda: of(turning, rubbing, cells=0), ValueError, "cells is 0, expected at least 1"),
    (lambda: TimeVaryingLearnedDiffusion(2, degree=-1), ValueError, "degree is -1, expected at"),
    (lambda: of(turning, rubbing, max_log_snr=-40.0), UnreachableError, r"log SNR ends at -\d+"),
    (lambda: of(turning, rubbing, min_log_snr=-1e6), UnreachableError, "is out of reach"),
    (lambda: of(turning, rubbing).Q, TypeError, r"has no constant .* use \w+\(s\)"),
    (lambda: of(turning, rubbing).matrices.drift(), TypeError, r"has no constant .* use \w+\(s\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), MISTAKES, ids=[m for _, _, m in MISTAKES])
def test_what_is_wrong_is_named(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_copy_is_on_its_own() -> None:
    diffusion = learned_in_time(2, 2, 7, min_log_snr=-9.0)
    s = torch.tensor([0.2, 0.6], dtype=torch.float64)
    with torch.no_grad():
        _ = diffusion.start_time  # its grid is kept, and not all of it is computed
        copied = copy.deepcopy(diffusion)
        before = diffusion.transition(s, 0.1).covariance, diffusion.log_snr(s)
        diffusion.B.mul_(1.3)
        after = copied.transition(s, 0.1).covariance, copied.log_snr(s)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    plain = TimeVaryingDiffusion(turning, rubbing)
    plain.log_snr(s.clone().requires_grad_()).sum().backward()
    torch.testing.assert_close(copy.deepcopy(plain).log_snr(s), plain.log_snr(s), rtol=0, atol=0)


def test_a_module_may_be_learned() -> None:
    class Speed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, s: Tensor) -> Tensor:
            return turning(s) * (1 + self.rate * s)[..., None, None]

    diffusion = TimeVaryingDiffusion(Speed(), rubbing, min_log_snr=-9.0)
    (parameter,) = diffusion.parameters()

    def value() -> Tensor:
        return diffusion.start_time.log() + diffusion.log_volume(0.4) + diffusion.clock(1.0)

    assert_gradients(value, [parameter], rel=1e-6, abs=1e-8)
    assert isinstance(diffusion, LinearDiffusion)
