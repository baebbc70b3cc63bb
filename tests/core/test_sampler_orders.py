"""Every sampler is held to its order, and to the published methods that it contains.

On Gaussian data with the exact score a sampler is an affine map of the state at T and of its
noises. It is read off basis states and basis noises in one run, so that the mean and the covariance
of what it draws are numbers without sampling error, to be compared with the exact marginal. On a
mixture, deterministic samplers are compared with the flow itself on the same starting points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_mdm import ALDA, CLD, VPSDE, HamiltonianDiffusion, NonlinearDiffusion, Simulated
from pyro_mdm.diffusions.base import SimulationError
from pyro_mdm.diffusions.clocks import as_times
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.samplers.base import GRIDS, Questions, Sampler, log_snr_grid, log_volume_grid
from pyro_mdm.samplers.exponential import (
    ExponentialIntegrator,
    StochasticExponentialIntegrator,
    transport,
)
from pyro_mdm.samplers.probability_flow import ADAPTIVE, ProbabilityFlow, ToleranceError
from pyro_mdm.samplers.stochastic import Ancestral, EulerMaruyama, Splitting, StochasticHeun
from pyro_mdm.simulated.reference import TorchSDE, increments
from pyro_mdm.support.progress import progress_bar
from tests.core.test_samplers import TabulatedScore, scalar
from tests.diffusions import DIFFUSIONS, DISTINCT, TYPICAL, truncation
from tests.mistakes import refused
from tests.problems import ExactScore, generator, mixture, normal
from tests.simulated.problems import Reversible

Factory = Callable[[int], Sampler]
SILENT = progress_bar(1, "", "", shown=False)
every_diffusion = pytest.mark.parametrize(
    "make", [make for _, make in DISTINCT], ids=[name for name, _ in DISTINCT]
)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def diffusion_called(name: str, max_log_snr: float = 6.0) -> LinearDiffusion:
    diffusion = dict(DIFFUSIONS)[name]()
    diffusion.max_log_snr = max_log_snr
    return diffusion


# -- exact laws on Gaussian data -------------------------------------------------------------------


class Recorder:
    """A score that is zero, and writes down the times that it is asked for."""

    dtype = torch.float64

    def __init__(self) -> None:
        self.times: list[Tensor] = []

    def __call__(self, y: Tensor, s: Tensor) -> Tensor:
        self.times.append(s[0])
        return torch.zeros_like(y)

    def denoise(self, y: Tensor, s: Tensor) -> Tensor:
        return self(y, s)[:, 0]


def marginal(diffusion: LinearDiffusion, s: Tensor) -> tuple[Tensor, Tensor]:
    """The exact mean and covariance of y_s."""
    data, m = scalar(), diffusion.marginal(s)
    return data.mean * m.mean, m.covariance + data.covariance[0, 0] * torch.outer(m.mean, m.mean)


def law(sampler: Sampler, linear: LinearDiffusion, diffusion=None) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance of what a sampler makes of the exact marginal at T.

    Args:
        diffusion: what the sampler sees, if not the linear diffusion itself.
    """
    diffusion = linear if diffusion is None else diffusion
    K, draws, recorder = linear.num_variables, [0], Recorder()

    def count() -> Tensor:
        draws[0] += 1
        return torch.zeros(1, K, 1).double()

    ask = Questions(diffusion, recorder, torch.float64)
    sampler.integrate(torch.zeros(1, K, 1).double(), ask, count, SILENT)
    score = TabulatedScore(linear, torch.stack(recorder.times).unique())

    probes = torch.eye(K * (1 + draws[0]) + 1, dtype=torch.float64)[:, :-1, None]
    noises = iter([probes[:, K * (1 + j) : K * (2 + j)] for j in range(draws[0])])
    ask = Questions(diffusion, score, torch.float64)
    out = sampler.integrate(probes[:, :K], ask, noises.__next__, SILENT)[..., 0]
    assert next(noises, None) is None
    M, root = (out[:-1] - out[-1]).mT.split([K, K * draws[0]], 1)
    mean, covariance = marginal(linear, as_times(linear.horizon))
    return M @ mean + out[-1], M @ covariance @ M.mT + root @ root.mT


def weak_errors(sampler: Sampler, linear: LinearDiffusion, diffusion=None) -> tuple[float, float]:
    """Of mean and covariance, in units of the exact marginal's standard deviations."""
    mean, covariance = law(sampler, linear, diffusion)
    true_mean, true_covariance = marginal(linear, linear.start_time)
    sd = true_covariance.diagonal().sqrt()
    L = torch.linalg.cholesky(true_covariance / sd / sd[:, None])
    error = (covariance - true_covariance) / sd / sd[:, None]
    white = torch.linalg.solve(L, torch.linalg.solve(L, error).mT)
    return torch.linalg.solve(L, (mean - true_mean) / sd).norm().item(), white.norm().item()


def assert_order(coarse: tuple[float, ...], fine: tuple[float, ...], order: int) -> None:
    """Of errors at n and at 2n steps: none falls slower than 2^-order, the slowest falls so."""
    above_rounding = [(c, f) for c, f in zip(coarse, fine, strict=True) if f > 1e-9]
    orders = [math.log2(c / f) for c, f in above_rounding]
    assert min(orders) == pytest.approx(order, abs=0.4), (coarse, fine)


S = StochasticExponentialIntegrator
EXPONENTIAL: dict[str, tuple[int, Factory]] = {
    "exponential_1": (1, lambda n: ExponentialIntegrator(n, 1)),
    "exponential_2": (2, lambda n: ExponentialIntegrator(n, 2)),
    "exponential_3": (3, lambda n: ExponentialIntegrator(n, 3)),
    "stochastic_1": (1, lambda n: S(n, noise=1.0, order=1)),
    "stochastic_2": (2, lambda n: S(n, noise=1.0, order=2)),
    "half_stochastic_1": (1, lambda n: S(n, noise=0.5, order=1)),
    "half_stochastic_2": (2, lambda n: S(n, noise=0.5, order=2)),
}
OTHERS: dict[str, tuple[int, Factory]] = {
    "euler_maruyama": (1, EulerMaruyama),
    "splitting_1": (1, Splitting),
    "splitting_2": (2, lambda n: Splitting(n, order=2)),
    "ancestral": (1, Ancestral),
    "stochastic_heun": (2, StochasticHeun),
    "flow_heun": (2, ProbabilityFlow),
}
CASES = [  # of one, two and three variables, each sampler with one and with several
    *((s, "learned_3") for s in EXPONENTIAL),
    *((s, ("vpsde", "cld", "alda")[i % 3]) for i, s in enumerate(EXPONENTIAL)),
    *((s, d) for i, s in enumerate(OTHERS) for d in ("vpsde", ("cld", "learned_3")[i % 2])),
    # and every kind of diffusion with one of the oldest
    *((list(OTHERS)[(i + 2) % 4], case[0]) for i, case in enumerate(DISTINCT) if case in TYPICAL),
]


@pytest.mark.parametrize(("name", "diffusion"), CASES, ids=["-".join(case) for case in CASES])
def test_every_sampler_has_its_weak_order(name, diffusion):
    order, make = (EXPONENTIAL | OTHERS)[name]
    linear = diffusion_called(diffusion)
    steps = 64 if name in ("euler_maruyama", "splitting_1", "splitting_2") else 32
    assert_order(*(weak_errors(make(n), linear) for n in (steps, 2 * steps)), order)


@pytest.mark.parametrize(
    ("method", "diffusion", "order"),
    [("euler", "cld", 1), ("srk", "vpsde", 2), ("srk", "cld", 2), ("reversible_heun", "vpsde", 2)],
)
def test_torchsdes_samplers_have_their_weak_order(method, diffusion, order):
    linear = diffusion_called(diffusion)
    assert_order(*(weak_errors(TorchSDE(n, method), linear) for n in (32, 64)), order)


def test_increments_of_brownian_motion_and_of_its_integral():
    noises, h = iter(torch.eye(2).double()), torch.tensor(0.3).double()
    root = torch.stack(increments(h, noises.__next__, area=True))
    expected = torch.tensor([[h, h**2 / 2], [h**2 / 2, h**3 / 3]]).double()
    torch.testing.assert_close(root @ root.mT, expected)
    assert increments(h, lambda: h, area=False) == (h.sqrt() * h, None)


@pytest.mark.parametrize("make", [StochasticHeun, ProbabilityFlow, TorchSDE])
def test_second_order_without_closed_forms(make):
    """A linear diffusion that is simulated: what a nonlinear one is asked, with a known answer."""
    linear = diffusion_called("cld")
    simulated = Simulated(linear)
    assert_order(*(weak_errors(make(n), linear, simulated) for n in (32, 64)), 2)


class Cubic(NonlinearDiffusion):
    """Motion in the potential y⁴/4, at rest from the start."""

    def __init__(self) -> None:
        super().__init__(1, horizon=2.0)

    def drift(self, y: Tensor, s: Tensor) -> Tensor:
        return -(y**3)

    def dispersion(self, y: Tensor, s: Tensor) -> Tensor:
        return math.sqrt(2) * torch.eye(1, dtype=torch.float64)


@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
def test_the_velocity_where_noise_depends_on_the_state(noise):
    """By hand; at rest f = ½ (g² s + ∇·g²), and what is left of it is -η f."""
    diffusion, y = Reversible(), normal(5, 6, 2, 3)
    diffusion.check((3,))
    s = torch.tensor(0.3).double()
    pull = (diffusion.covariance(y) @ y.sin().mT.unsqueeze(-1))[..., 0].mT
    found = Questions(diffusion, lambda y, s: y.sin(), torch.float64).velocity(y, s, noise)
    expected = diffusion.drift(y, s) - (1 + noise) / 2 * (pull + 3 * y)
    torch.testing.assert_close(found, expected)
    found = Questions(diffusion, lambda y, s: -y, torch.float64).velocity(y, s, noise)
    torch.testing.assert_close(found, -noise * diffusion.drift(y, s))


@pytest.mark.parametrize("make", [StochasticHeun, ProbabilityFlow, TorchSDE])
def test_explosions_are_said_and_errors_of_a_score_are_its_own(make):
    def fails(y: Tensor, s: Tensor) -> Tensor:
        raise AssertionError("mine")

    shape = (4, 1, 2)
    with pytest.raises(SimulationError, match=r"sampling exploded: a state of .* Take more steps"):
        make(30)(Cubic(), lambda y, s: 100 * y, shape, generator(1), dtype=torch.float64)
    sampler = ProbabilityFlow(20, "dopri5") if make is ProbabilityFlow else make(30)
    with pytest.raises(AssertionError, match="mine"):
        sampler(Cubic(), fails, shape)


# -- the flow of a mixture -------------------------------------------------------------------------


@pytest.mark.parametrize("diffusion", ["vpsde", "cld"])
def test_deterministic_samplers_have_their_order_on_a_mixture(diffusion):
    """In the error of z from the same starting points, in the middle and on average.

    Not in that of the mean or the covariance, in which errors of two signs may nearly cancel.
    """
    linear, data = diffusion_called(diffusion, 4.0), mixture()
    score, start = ExactScore(data, linear), data.noised(linear, linear.horizon, 100, seed=2)

    def z(sampler: Sampler) -> Tensor:
        ask = Questions(linear, score, torch.float64)
        y = sampler.integrate(start, ask, lambda: start, SILENT)
        return torch.einsum("k,bkd->bd", linear.start.readout, y)

    truth = z(ExponentialIntegrator(240, 3, grid="log_volume"))

    def errors(sampler: Sampler) -> tuple[float, float]:
        error = (z(sampler) - truth).norm(dim=1)
        return error.median().item(), error.mean().item()

    for name in ("exponential_1", "exponential_2", "exponential_3"):
        order, make = EXPONENTIAL[name]
        assert_order(*(errors(make(n)) for n in (30, 60)), order)


# -- one step, exactly -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "steps"),
    [pytest.param(m, (5, 40)[i % 2], id=f"{name}-{i % 2}") for i, (name, m) in enumerate(TYPICAL)],
)
def test_a_step_keeps_the_marginals_and_contains_the_posterior(make, steps):
    diffusion = make()
    times = log_volume_grid(diffusion, steps)
    m = diffusion.marginal(times)
    L, whitener = m.scale_tril, torch.linalg.inv(m.scale_tril)
    small = 1e-15 * torch.exp(diffusion.start.log_snr / 2).item()  # rounding of y_ε, seen from L
    near = truncation(diffusion)

    flow = transport(diffusion, times)
    turned = whitener[1:] @ flow.gain @ L[:-1]
    eye = torch.eye(diffusion.num_variables).double()
    torch.testing.assert_close(turned @ turned.mT, eye.expand_as(turned), rtol=0, atol=1e-11 + near)
    b = m.mean[1:] - (flow.gain @ m.mean[:-1, :, None])[..., 0]
    torch.testing.assert_close(flow.moments[:, 0], b, rtol=0, atol=100 * small + 1e-13 + near)
    kappa = diffusion.log_volume(times)
    torch.testing.assert_close(flow.volume, -kappa.diff(), rtol=1e-9, atol=1e-9 + near)

    exact, found = posterior(diffusion, times[:-1], times[1:]), transport(diffusion, times, 1.0)
    turned, expected = (whitener[1:] @ gain @ L[:-1] for gain in (found.gain, exact.gain))
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-11 + near)
    b = exact.mean_coefficient
    torch.testing.assert_close(found.moments[:, 0], b, rtol=1e-9, atol=1e-11 + near)
    size = exact.scale_tril.abs().amax((-2, -1), keepdim=True)
    torch.testing.assert_close(
        found.scale_tril / size, exact.scale_tril / size, rtol=0, atol=1e-8 + near
    )


# -- the published methods that are contained ------------------------------------------------------


def published(x: Tensor, lam: Tensor, x_hat: Callable[[Tensor, int], Tensor], order: int) -> Tensor:
    """DDIM and DPM-Solver++ for y = α x + σ ε, from the papers, λ = log α/σ as there.

    DDIM: Song, Meng & Ermon 2021, equation 12 with σ_t = 0. Order 2: Lu et al. 2022, DPM-Solver++,
    algorithm 2 (2M). Order 3: their expansion of the integral, with x̂' and x̂'' by divided
    differences of three values; the authors' code has half this x̂'', which is of order 2.
    """
    alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
    seen: list[Tensor] = []
    for i in range(len(lam) - 1):
        seen.append(x_hat(x, i))
        h, now = lam[i + 1] - lam[i], min(order, len(seen))
        if now == 1:
            noise = (x - alpha[i] * seen[-1]) / sigma[i]
            x = alpha[i + 1] * seen[-1] + sigma[i + 1] * noise
            continue
        phi_1 = torch.expm1(-h)
        kept = sigma[i + 1] / sigma[i] * x
        r = (lam[i] - lam[i - 1]) / h
        first = (seen[-1] - seen[-2]) / r
        if now == 2:
            ahead = (seen[-1] - seen[-2]) * (1 / r).clamp(max=1) / 2  # 1 / r in the paper
            x = kept - alpha[i + 1] * phi_1 * (seen[-1] + ahead)
            continue
        r_before = (lam[i - 1] - lam[i - 2]) / h
        second = (first - (seen[-2] - seen[-3]) / r_before) / (r + r_before)
        derivative, curvature = first + r * second, 2 * second
        phi_2 = phi_1 / h + 1
        phi_3 = phi_2 / h - 0.5
        x = kept - alpha[i + 1] * (phi_1 * seen[-1] - phi_2 * derivative + phi_3 * curvature)
    return x


@pytest.mark.parametrize("grid", ["log_snr", "quadratic"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_for_one_variable_they_are_ddim_and_dpm_solver(order, grid):
    diffusion, data = VPSDE(max_log_snr=9.0), mixture()
    score, sampler = ExactScore(data, diffusion), ExponentialIntegrator(12, order, grid)
    start = data.noised(diffusion, diffusion.horizon, 20, seed=4)
    times = sampler.times(diffusion)

    def x_hat(x: Tensor, i: int) -> Tensor:
        return score.denoise(x.unsqueeze(1), times[i].expand(len(x)))

    expected = published(start[:, 0], diffusion.log_snr(times) / 2, x_hat, order)
    ask = Questions(diffusion, score, torch.float64)
    found = sampler.integrate(start, ask, lambda: start, SILENT)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("make", [VPSDE, CLD, ALDA])
def test_noise_goes_from_the_deterministic_integrator_to_ancestral(make):
    diffusion = make()
    shape, score = (6, diffusion.num_variables, 2), ExactScore(mixture(), diffusion)

    def drawn(sampler: Sampler) -> Tensor:
        return sampler(diffusion, score, shape, generator(1))

    found = drawn(S(12, noise=1.0, order=1, grid="log_snr"))
    torch.testing.assert_close(found, drawn(Ancestral(12)), rtol=1e-6, atol=1e-8)
    assert torch.equal(drawn(S(12, noise=0.0, order=2)), drawn(ExponentialIntegrator(12, 2)))


# -- adaptive solvers ------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_adaptive_solvers_follow_the_flow_and_count_their_calls(solver):
    diffusion, shape = VPSDE(max_log_snr=4.0), (40, 1, 2)
    score = ExactScore(mixture(), diffusion)
    tolerance = 1e-6 if solver.startswith("dopri") else 1e-4
    sampler = ProbabilityFlow(5000, solver, rtol=tolerance, atol=tolerance)
    calls = []

    def counted(y: Tensor, s: Tensor) -> Tensor:
        calls.append(s[0].item())
        return score(y, s)

    found = sampler(diffusion, counted, shape, generator(1), dtype=torch.float64)
    exact = ExponentialIntegrator(200, 3)(diffusion, score, shape, generator(1))
    # errors of steps add up, most where paths to two modes part: the middle of all is at most 54
    # tolerances off, here 0.005, where one wrong step would leave 0.1
    assert float((found - exact).abs().median()) < 200 * tolerance
    assert sampler.calls == len(calls) > 10
    assert max(calls) <= diffusion.horizon and min(calls) >= diffusion.start_time.item()


# -- bad input -------------------------------------------------------------------------------------

T, EPSILON = 1.0, CLD().start_time.item()


def euler(grid: Any, n: int = 2, diffusion: Any = None) -> Any:
    """Draws on a grid."""
    diffusion = CLD() if diffusion is None else diffusion
    return EulerMaruyama(n, grid=grid)(diffusion, lambda y, s: -y, (3, 2, 2))


def adaptive(**options: Any) -> Any:
    diffusion, dtype = CLD(), options.pop("dtype", None)
    sampler = ProbabilityFlow(5, "dopri5", **options)
    return sampler(diffusion, ExactScore(mixture(), diffusion), (3, 2, 2), dtype=dtype)


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: S(10, order=3), "order is 3, expected 1 or 2"),
    (lambda: S(10, noise=1.5), r"noise is 1.5, expected a number from 0 \(no noise"),
    (adaptive, "dopri5 was at s = .* within 5 .* take more steps"),
    (lambda: adaptive(rtol=1e-9, dtype=torch.float32), "rtol is 1e-09, expected at least 1.2e-06"),
    (lambda: adaptive(grid="log_snr"), "grid is given, but dopri5 chooses its own steps"),
    (lambda: euler([T, EPSILON]), r"grid has shape \(2,\) for 2 steps, expected \(3,\)"),
    (lambda: euler([T, 0.2, 0.5, EPSILON], 3), "goes from 0.2 to 0.5, expected decreasing times"),
    (lambda: euler([2.0, 0.5, EPSILON]), r"grid holds s = 2, outside \[ε, T\] = \[0.0.*, 1\]"),
    (lambda: euler([T, 0.5, 1e-5]), r"grid holds s = 1e-05, outside \[ε, T\]"),
    (lambda: euler([0.9, 0.5, EPSILON]), "goes from s = 0.9 to .*, expected from T = 1 to ε = 0"),
    (lambda: euler(lambda d, n: log_snr_grid(d, n + 1)), r"grid has shape \(4,\) for 2 steps"),
    (
        lambda: euler("log_volume", diffusion=Simulated(CLD())),
        "'log_volume' needs closed-form kernels",
    ),
    (lambda: euler("progress"), "grid 'progress' needs paths that are simulated, which CLD"),
]


def test_what_does_not_exist_or_fit_is_said() -> None:
    refused((TypeError, ValueError, ToleranceError), *MISTAKES)


def test_diffusions_that_cannot_be_served():
    simulated = Simulated(CLD())
    score, shape = (lambda y, s: -y), (3, 2, 2)
    for sampler in (ExponentialIntegrator(5), S(5)):
        name = type(sampler).__name__
        with pytest.raises(TypeError, match=rf"{name} needs .* use EulerMaruyama\(5\)"):
            sampler(simulated, score, shape)
    for sampler in (StochasticHeun(5), ProbabilityFlow(5), TorchSDE(5)):
        assert sampler(simulated, score, shape).shape == shape

    class Turning(HamiltonianDiffusion):
        noise_depends_on_state = True

    seen = Turning.__new__(Turning)
    with pytest.raises(TypeError, match=r"noise that does not depend on the state.*EulerMaruyama"):
        StochasticHeun(5).check(seen)
    with pytest.raises(TypeError, match=r"method 'srk' needs noise that .* use method='euler'"):
        TorchSDE(5).check(seen)
    TorchSDE(5, "euler").check(seen)


@every_diffusion
def test_every_grid_serves_every_sampler(make):
    diffusion = make()
    for name in GRIDS.keys() - {"progress"}:
        times = ExponentialIntegrator(6, grid=name).times(diffusion)
        assert times.shape == (7,), name
        assert bool((times.diff() < 0).all()), name
        assert times[0] == diffusion.horizon, name
        torch.testing.assert_close(times[-1], diffusion.start_time, rtol=1e-12, atol=0)
    lam = diffusion.log_snr(log_snr_grid(diffusion, 40))
    torch.testing.assert_close(lam.diff(), lam.diff().mean().expand(40), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_may_be_a_function_or_its_times(name):
    if name in ("log_snr", "karras", "quadratic", "progress"):  # without a closed form too
        times = StochasticHeun(6, grid=name).times(Simulated(CLD()))
        assert times.shape == (7,) and bool((times.diff() < 0).all())
    if name == "progress":
        return
    diffusion = CLD()
    times = ExponentialIntegrator(6, grid=name).times(diffusion)
    for grid in (lambda d, n: GRIDS[name](d, n), times.tolist()):
        own = EulerMaruyama(6, grid=grid).times(diffusion)
        torch.testing.assert_close(own, times, rtol=1e-12, atol=0)
    if name == "karras":  # even in a power of the noise
        root = torch.exp(-diffusion.log_snr(times) / 14)
        torch.testing.assert_close(root.diff(), root.diff().mean().expand(6), rtol=1e-6, atol=0)
