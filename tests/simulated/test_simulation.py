r"""Simulated paths and the bound that is estimated on them, against what is known without them.

At a single state the integrand of (1) is compared with that of the implicit bound, written out here
with automatic differentiation: every term, to rounding. Over whole paths it is compared with closed
forms of linear diffusions and with simulations of its own.

The step size biases a path. Where closed forms are compared, paths run twice with the same noise,
in N and in 2N steps: for a method of first order the coarse bias is 2 (coarse - fine), so that
2 fine - coarse is the truth within standard errors, and up to a part of the bias (higher orders).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torchsde
from torch import Tensor
from torch.autograd.functional import jacobian

from pyro_mdm import (
    CLD,
    VPSDE,
    LinearDiffusion,
    NonlinearDiffusion,
    Simulated,
    Simulation,
)
from pyro_mdm.diffusions.base import Prior, SimulationError
from pyro_mdm.diffusions.clocks import ConstantBeta, LinearBeta, log_snr_times
from pyro_mdm.diffusions.linear import GaussianPrior
from pyro_mdm.paths.base import prior_kl
from pyro_mdm.paths.flow import divergence
from pyro_mdm.simulated.integration import advance
from pyro_mdm.simulated.path_integral import path_integral
from pyro_mdm.simulated.priors import QuadraturePrior
from pyro_mdm.simulated.sde import fold
from tests.mistakes import refused
from tests.problems import learned, normal

SE = 5.5  # standard errors allowed: 4e-8 of false alarms per number compared

EXACT = Simulation(
    step_size=1.0, points=1, method="euler", probes="exact"
)  # one step is enough where no time passes


def check_mean(values: Tensor, truth: Tensor | float, largest_error: float, more: float = 0.0):
    """The mean of independent values is the truth, at a standard error that means something."""
    error = float(values.std() / math.sqrt(len(values)))
    assert error <= largest_error, f"standard error {error:.2e} is too large to test anything"
    off = abs(float(values.mean() - truth))
    assert off <= SE * error + more, f"off by {off:.3e}, {off / error:.1f} standard errors"


# -- diffusions that are not linear ----------------------------------------------------------------


def spread(s: Tensor | float, y: Tensor) -> Tensor:
    """A time per datum, to multiply states with."""
    return torch.as_tensor(s, dtype=y.dtype).expand(len(y)).reshape(-1, *[1] * (y.dim() - 1))


def blocks(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """(n, *event, K, K) of entries (n, *event)."""
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


class Problem(NonlinearDiffusion):
    """Starts where a test wants it to."""

    def __init__(
        self, K: int, prior: Prior | None = None, begin: float = 0.0, **options: Any
    ) -> None:
        options = {"max_log_snr": 4.0, "min_log_snr": -4.0} | options
        super().__init__(K, prior=prior, **options)
        self.begin = begin

    @property
    def start_time(self) -> Tensor:
        return self.as_tensor(self.begin)


class Cubic(Problem):
    """dy = (-y³ + cos 3s) ds + 1.1 (1 + s) dB."""

    def __init__(self, **options: Any) -> None:
        super().__init__(1, **options)

    def drift(self, y, s):
        return -(y**3) + (3 * spread(s, y)).cos()

    def dispersion(self, y, s):
        return 1.1 * (1 + torch.as_tensor(s)[..., None, None]) * torch.ones(1, 1).double()


class Bending(Problem):
    """dy = (½ - a y) ds + √(1 + b y²) (1 - s/3) dB, with a and b to be learned."""

    noise_depends_on_state = True

    def __init__(self, **options: Any) -> None:
        super().__init__(1, **options)
        self.pull = torch.nn.Parameter(torch.tensor(2.5, dtype=torch.float64))
        self.growth = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def drift(self, y, s):
        return 0.5 - self.pull * y

    def dispersion(self, y, s):
        root = (1 + self.growth * y.square()).sqrt() * (1 - spread(s, y) / 3)
        return blocks([[root[:, 0]]])


class Additive(Problem):
    """K = 2: a pendulum whose data dimensions pull each other, with noise that is not symmetric."""

    def __init__(self, **options: Any) -> None:
        prior = QuadraturePrior([lambda x: x.square() / 2 + 1 - x.cos(), lambda v: 0.7 * v**2])
        super().__init__(2, prior=prior, **options)

    def drift(self, y, s):
        x, v = y.unbind(1)
        mean = x.mean(-1, keepdim=True)
        return torch.stack([1.3 * v, -x.sin() - v - 0.5 * (x - mean).tanh() * (1 + mean)], 1)

    def dispersion(self, y, s):
        G = torch.tensor([[0.2, 0.3], [-0.4, 1.0]], dtype=torch.float64)
        return G * (1 + torch.as_tensor(s)[..., None, None])


class Mixed(Problem):
    """K = 2: every entry of G depends on both variables, and π is a correlated Gaussian."""

    noise_depends_on_state = True

    def __init__(self, **options: Any) -> None:
        prior = GaussianPrior(torch.tensor([[1.2, 0.3], [0.3, 0.8]], dtype=torch.float64))
        super().__init__(2, prior=prior, **options)

    def drift(self, y, s):
        x, v = y.unbind(1)
        mean = x.mean(-1, keepdim=True)
        return torch.stack([v - 0.5 * x * (1 + v.tanh()), -x - v + 0.3 * mean * v.sin()], 1)

    def dispersion(self, y, s):
        x, v = y.unbind(1)
        late = spread(s, x)
        return blocks(
            [
                [1 + 0.3 * (x + v).sin(), 0.2 * v * (1 - late)],
                [0.3 * x.tanh() + 0.2 * v.cos(), (1 + (x - v).square() / 4).sqrt() + late],
            ]
        )


PROBLEMS = {p.__name__: p for p in (Cubic, Bending, Additive, Mixed)}
problems = pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS.keys())


def score(y: Tensor, s: Tensor) -> Tensor:
    """A score of no diffusion: nonlinear, and coupling variables and data dimensions."""
    late = spread(s, y)
    return (
        (0.4 - 0.2 * late) * y.flip(1).sin()
        - 0.8 * y
        + 0.3 * y.square().sum(-1, keepdim=True).cos()
    )


# -- the integrand, state by state -----------------------------------------------------------------


def implicit_integrand(diffusion: NonlinearDiffusion, y: Tensor, s: Tensor) -> Tensor:
    """∇ℓ·f + ½ g²:∇∇ℓ - ½ ‖s_θ‖²_{g²} - ∇·(g² s_θ - f) - ½ ∇·∇·g², a datum at a time.

    The implicit bound's integrand and, by Itô, the rate at which log π(y_s) grows.
    """
    K, d = y.shape[1:]
    m = K * d

    def whole(z: Tensor) -> Tensor:
        return z.reshape(1, K, d)

    def f(z: Tensor) -> Tensor:
        return diffusion.drift(whole(z), s).flatten()

    def theta(z: Tensor) -> Tensor:
        return score(whole(z), s).flatten()

    def g2(z: Tensor) -> Tensor:
        G = diffusion.dispersion(whole(z), s.reshape(1)).reshape(-1, K, K)
        apart = torch.eye(d, dtype=z.dtype)
        return torch.einsum("dij,de->idje", (G @ G.mT).expand(d, K, K), apart).reshape(m, m)

    def log_prior(z: Tensor) -> Tensor:
        return diffusion.prior.log_prob(whole(z)).squeeze(0)

    def d_log_prior(z: Tensor) -> Tensor:
        return jacobian(log_prior, z, create_graph=True)

    def d_g2(z: Tensor) -> Tensor:
        return torch.einsum("ijj->i", jacobian(g2, z, create_graph=True))

    values = []
    for z in y.flatten(1):
        growth = d_log_prior(z) @ f(z) + 0.5 * (g2(z) * jacobian(d_log_prior, z)).sum()
        squared = theta(z) @ g2(z) @ theta(z)
        flux = jacobian(lambda z: g2(z) @ theta(z) - f(z), z).trace()
        values.append(growth - 0.5 * squared - flux - 0.5 * jacobian(d_g2, z).trace())
    return torch.stack(values).detach()


def integrand(diffusion: NonlinearDiffusion, y: Tensor, simulation: Simulation = EXACT) -> Tensor:
    """What is integrated over s, at states y of the start time."""
    first, still = torch.zeros(len(y)).double(), Tape(torch.zeros(1, *fold(y).shape).double())
    found = path_integral(diffusion, score, y, simulation, fraction=first, brownian=still)
    start = diffusion.start_time
    torch.testing.assert_close(found.level, diffusion.log_snr(start).expand(1, len(y)))
    value = found.value * diffusion.progress_rate(start)
    torch.testing.assert_close(found.density[0] * diffusion.log_snr_rate(start), value.detach())
    assert found.end is None
    return value


@pytest.mark.quick
@problems
@pytest.mark.parametrize("begin", [0.0, 0.7])
def test_the_integrand_is_the_implicit_bound_s(make, begin):
    """Each of its terms: ½ ‖r‖², ∇ℓ · g² r, (∇·g²) · r, tr(Gᵀ J G) and c, with their signs."""
    diffusion = make(begin=begin)
    y = normal(1, 6, diffusion.num_variables, 2)
    expected = -implicit_integrand(diffusion, y, diffusion.start_time)
    found = integrand(diffusion, y)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=1e-9)
    assert float(expected.abs().max()) > 1
    with torch.no_grad():
        quiet = integrand(diffusion, y)
    torch.testing.assert_close(quiet, found.detach(), rtol=1e-12, atol=1e-12)
    assert not quiet.requires_grad


# -- divergences -----------------------------------------------------------------------------------


def field(y: Tensor) -> Tensor:
    return score(y, torch.tensor(0.3)) + 0.2 * y.flip(-1) * y


def jacobians(y: Tensor) -> Tensor:
    """(n, m, m), data dimensions outside: index (j, k) for dimension j and variable k."""
    n, K, d = y.shape
    full = [jacobian(lambda z: field(z.unsqueeze(0)).squeeze(0), one) for one in y]
    return torch.stack(full).permute(0, 2, 1, 4, 3).reshape(n, K * d, K * d)


ROOTS = {
    "none": None,
    "shared": normal(5, 4, 1, 3, 3),
    "each": normal(6, 4, 2, 3, 3),
    "of_rank_1": normal(7, 4, 1, 3, 3) * torch.tensor([0.0, 1.0, 0.0]).double(),
}


def pushed(y: Tensor, G: Tensor | None) -> Tensor:
    """Gᵀ J G, (n, m, m)."""
    J = jacobians(y)
    if G is None:
        return J
    n, K, d = y.shape
    root = torch.einsum("njab,ji->njaib", G.expand(n, d, K, K), torch.eye(d).double())
    root = root.reshape(n, d * K, d * K)
    return root.mT @ J @ root


@pytest.mark.parametrize("G", ROOTS.values(), ids=ROOTS.keys())
def test_the_exact_divergence_is_the_trace_of_the_jacobian(G):
    y = normal(8, 4, 3, 2).requires_grad_()
    expected = pushed(y.detach(), G).diagonal(dim1=1, dim2=2).sum(-1)
    found = divergence(field(y), y, G, "exact")
    torch.testing.assert_close(found.value, expected, rtol=1e-10, atol=1e-10)
    assert not found.variance.any()
    by_default = divergence(field(y), y, G, None)
    torch.testing.assert_close(by_default.value, expected, rtol=1e-10, atol=1e-10)


def test_few_derivatives_are_exact_by_default_and_many_are_probed():
    small, large = normal(9, 2, 2, 4).requires_grad_(), normal(9, 2, 3, 3).requires_grad_()
    assert not divergence(field(small), small, None, None).variance.any()
    assert bool(divergence(field(large), large, None, None).variance.isnan().all())
    ranged = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    ranged[..., 2] = 1.0  # of rank 1: three derivatives
    assert not divergence(field(large), large, ranged, None).variance.any()
    constant = torch.ones_like(large).detach()
    assert not divergence(constant, large, None, 1).value.any()


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
@pytest.mark.parametrize("G", ROOTS.values(), ids=ROOTS.keys())
def test_probes_are_unbiased_and_know_their_variance(G, law):
    n, repeats = 4, 16000
    y = normal(10, n, 3, 2)
    M = pushed(y, G)
    symmetric = (M + M.mT) / 2
    if law == "rademacher":  # whose squares are 1
        symmetric = symmetric - torch.diag_embed(symmetric.diagonal(dim1=1, dim2=2))
    variance = 2 * symmetric.square().sum((1, 2))
    many = y.repeat_interleave(repeats, 0).requires_grad_()
    root = None if G is None else G.repeat_interleave(repeats, 0)
    for probes in (1, 3):
        torch.manual_seed(probes)
        found = divergence(field(many), many, root, probes, law=law)
        values = found.value.detach().reshape(n, repeats)
        trace = M.diagonal(dim1=1, dim2=2).sum(-1)
        error = (variance / probes / repeats).sqrt() + 1e-12
        assert bool(((values.mean(1) - trace).abs() < SE * error).all())
        # Gaussian probes have heavy tails: standard deviations of this variance reach 5%, else 1.7%
        rtol = 0.3 if law == "gaussian" else 0.12
        torch.testing.assert_close(values.var(1), variance / probes, rtol=rtol, atol=1e-12)
        if probes == 1:
            assert bool(found.variance.isnan().all())
        else:
            stated = found.variance.reshape(n, repeats).mean(1)
            torch.testing.assert_close(stated, variance / probes, rtol=0.12, atol=1e-12)


def test_the_variance_of_the_probes_is_that_of_the_estimate():
    """Of r and of F, each with probes of its own, weighted as the value is."""
    n = 6000
    for make, objective in ((Mixed, "ism"), (Mixed, "local_dsm"), (Additive, "ism")):
        diffusion = make()
        y = normal(11, 1, 2, 2).expand(n, 2, 2)
        ends = torch.full((n,), 0.6, dtype=torch.float64)
        settings = Simulation(1.0, 1, probes=2, objective=objective, method="euler")
        bm, noise = Tape(torch.zeros(1, n * 2, 2).double()), torch.ones(n, 2, 2).double()
        with torch.no_grad():
            found = path_integral(
                diffusion, score, y, settings, fraction=ends, brownian=bm, noise=noise
            )
        assert float(found.probe_variance.mean()) > 1e-3
        torch.testing.assert_close(
            found.value.var(), found.probe_variance.mean(), rtol=0.15, atol=0
        )


# -- paths -----------------------------------------------------------------------------------------


class Tape(torchsde.BaseBrownian):
    """A Brownian motion over [0, 1] by its increments over equal steps, (N, rows, K)."""

    levy_area_approximation = "none"

    def __init__(self, increments: Tensor) -> None:
        zero = torch.zeros_like(increments[:1])
        self.path = torch.cat([zero, increments.cumsum(0)])

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        i, j = (round(float(t) * (len(self.path) - 1)) for t in (ta, tb))
        return self.path[j] - self.path[i]

    def __repr__(self):
        return "Tape"

    dtype = property(lambda self: self.path.dtype)
    device = property(lambda self: self.path.device)
    shape = property(lambda self: self.path.shape[1:])


def brownian(rows: int, K: int, steps: int, seed: int) -> torchsde.BaseBrownian:
    """One that can be asked again, at no cost, for steps of any size that ``steps`` divides."""
    return torchsde.BrownianInterval(
        0.0,
        1.0,
        size=(rows, K),
        dtype=torch.float64,
        entropy=seed,
        levy_area_approximation="space-time",
        dt=1.0 / steps,
        cache_size=None,
    )


def assert_standard_normal(white: Tensor) -> None:
    """Rows (n, m) are independent and standard normal, by their moments up to the second."""
    n, m = white.shape
    assert float(white.mean(0).abs().max()) * math.sqrt(n) < SE
    error = (white.mT @ white / n - torch.eye(m).double()) * math.sqrt(n)
    assert float(error.abs().max()) < SE * math.sqrt(2)


@torch.no_grad()
def test_paths_at_common_times_are_the_markov_chain():
    lin = learned(3, 3, 60)
    diffusion = Simulated(lin)
    torch.manual_seed(1)
    n, K = 6000, lin.num_variables
    start = lin.start
    y = start.mean[:, None] * 0.7 + start.scale_tril @ normal(2, n, K, 1)
    begin = lin.start_time.reshape(1)
    times = torch.cat([begin, begin + torch.tensor([0.1, 0.13, 0.4], dtype=torch.float64)])
    path = diffusion.simulate(y, times, Simulation(step_size=0.01))
    assert path.shape == (n, 4, K, 1) and torch.equal(path[:, 0], y)
    steps = lin.transition(times[1:], times[:-1])
    rest = path[:, 1:] - steps.matrix @ path[:, :-1]
    white = torch.linalg.solve_triangular(steps.scale_tril, rest, upper=False)
    assert_standard_normal(white.flatten(1))
    alone = diffusion.simulate(y, times[:1])
    assert torch.equal(alone, y.unsqueeze(1))


@torch.no_grad()
def test_steps_of_a_path_are_those_of_euler_and_maruyama():
    """Written out, with noise that depends on the state, between knots of each row's own."""
    diffusion = Mixed(horizon=2.0)
    n, d, K, steps = 5, 3, 2, 4
    y = normal(3, n, K, d)
    knots = torch.stack([torch.linspace(0, 0.3, n), torch.linspace(0.4, 0.5, n)]).double()
    knots = torch.cat([knots, torch.linspace(1.9, 1.2, n, dtype=torch.float64)[None]])
    increments = normal(4, 2 * steps, n * d, K) / math.sqrt(2 * steps)
    found = advance(diffusion, y, knots, steps, Simulation(), Tape(increments))
    state = y
    for i in range(2 * steps):
        begin, end = knots[i // steps], knots[i // steps + 1]
        s = begin + (end - begin) * (i % steps) / steps
        h = ((end - begin) / steps)[:, None, None]
        xi = increments[i].reshape(n, d, K, 1) * math.sqrt(2 * steps)
        kick = (diffusion.dispersion(state, s) @ xi).squeeze(-1).mT
        state = state + h * diffusion.drift(state, s) + h.sqrt() * kick
        if i % steps == steps - 1:
            torch.testing.assert_close(found[i // steps], state, rtol=1e-6, atol=1e-7)
    still = advance(diffusion, y, knots[:1].expand(2, n), 3, Simulation())
    assert torch.equal(still[0], y)


@torch.no_grad()
@pytest.mark.parametrize(("method", "order"), [("euler", 1.0), ("srk", 1.5)])
def test_strong_orders(method, order):
    """Against the finest path of the same noise: srk of order 1½ for additive noise."""
    n, diffusion = 200, Additive()
    knots = torch.tensor([0.0, 1.0], dtype=torch.float64)
    bm = brownian(n * 2, 2, 512, seed=3)
    settings = Simulation(method=method)
    y = normal(5, n, 2, 2)
    ends = {N: advance(diffusion, y, knots, N, settings, bm)[0] for N in (512, 16, 32)}
    errors = [float((ends[N] - ends[512]).square().mean().sqrt()) for N in (16, 32)]
    assert math.log2(errors[0] / errors[1]) > order - 0.15
    assert errors[1] < {"euler": 0.05, "srk": 0.005}[method]


# -- the integral ----------------------------------------------------------------------------------

X = 0.8
LINEAR: dict[str, Callable[[], LinearDiffusion]] = {
    "vpsde": lambda: VPSDE(max_log_snr=3.5, beta=ConstantBeta(3.0)),
    "cld": lambda: CLD(max_log_snr=4.0, beta=ConstantBeta(3.0)),
    "learned_3": lambda: learned(3, 3, 60, max_log_snr=4.0, beta=LinearBeta(0.5, 3.0)),
}


def wrong(lin: LinearDiffusion) -> Tensor:
    """C of a score s(y) = -C y."""
    K = lin.num_variables
    return torch.linalg.inv(lin.prior_covariance) + 0.7 * normal(12, K, K)


def path_divergence(lin: LinearDiffusion, C: Tensor) -> Tensor:
    """KL(q(y_T|x) ‖ π) + ½ ∫ E ‖-C y + Σ^{-1}(y - a x)‖²_{g²} ds at x = X."""
    s = log_snr_times(lin, 4000)
    marginal, g2 = lin.marginal(s), lin.noise_covariance(s)
    M = torch.linalg.inv(marginal.covariance) - C
    mean = -(C @ marginal.mean.unsqueeze(-1)) * X
    second = mean @ mean.mT + M @ marginal.covariance @ M.mT
    rate = 0.5 * (g2 @ second).diagonal(dim1=1, dim2=2).sum(-1)
    x = torch.tensor([[X]], dtype=torch.float64)
    return prior_kl(lin, x, 1).squeeze() + torch.trapezoid(rate, s)


def start_divergence(lin: LinearDiffusion) -> Tensor:
    """E log q(y_ε|x)/π(y_ε) at x = X."""
    start, prior = lin.start, lin.prior_covariance
    q = torch.distributions.MultivariateNormal(X * start.mean, start.covariance)
    p = torch.distributions.MultivariateNormal(torch.zeros_like(start.mean), prior)
    return torch.distributions.kl_divergence(q, p)


@functools.cache
def known_divergence(name: str) -> tuple[float, Tensor]:
    """That of the path of a wrong score, and without that of its start."""
    lin = LINEAR[name]()
    whole = path_divergence(lin, wrong(lin))
    return whole.item(), whole - start_divergence(lin)


def start_states(lin: LinearDiffusion, n: int) -> Tensor:
    start = lin.start
    return (X * start.mean[:, None] + start.scale_tril @ normal(13, n, len(start.mean), 1)).detach()


def run(
    lin: LinearDiffusion, n: int, counts: Sequence[int], **options: Any
) -> list[tuple[Tensor, Tensor]]:
    """(values, variances by probes) for each number of steps, with the same noise."""
    C, K = wrong(lin), lin.num_variables
    y = start_states(lin, n)
    fraction = (torch.arange(n).double() + 0.37)[torch.randperm(n)] / n
    bm = brownian(n, K, max(counts), seed=6)
    found = []
    for N in sorted(counts, reverse=True):
        diffusion = Simulated(lin, Simulation(**{"step_size": 1 / N, "points": 1} | options))
        assert diffusion.simulation.steps() == N
        torch.manual_seed(7)
        estimate = path_integral(
            diffusion,
            lambda y, s: -(C @ y),
            y,
            diffusion.simulation,
            fraction=fraction,
            brownian=bm,
            noise=normal(14, n * diffusion.simulation.points, 1, K),
        )
        found.append((estimate.value, estimate.probe_variance))
    return found[::-1]


ESTIMATORS: dict[str, dict[str, Any]] = {
    "ism": {"probes": "exact"},
    "ism_euler": {"method": "euler"},
    "rademacher": {"probes": 1},
    "gaussian": {"probes": 2, "probe_law": "gaussian"},
    "points": {"points": 3},
    "local_points_euler": {"objective": "local_dsm", "points": 2, "method": "euler"},
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "estimator"),  # each estimator with one of the three
    [(n, e) for i, e in enumerate(ESTIMATORS) for j, n in enumerate(LINEAR) if (i + j) % 3 == 1],
)
def test_the_divergence_of_paths_is_the_closed_form(name, estimator):
    """A wrong linear score, whose divergence from the noised path is a Gaussian integral."""
    lin = LINEAR[name]()
    size, truth = known_divergence(name)
    n = {"vpsde": 6000, "cld": 10000, "learned_3": 5000}[name]
    counts = (60, 120) if name == "cld" and "euler" in estimator else (24, 48)
    (coarse, _), (fine, _) = run(lin, n, counts, **ESTIMATORS[estimator])
    change = float((coarse - fine).mean())
    check_mean(2 * fine - coarse, truth, largest_error=0.05 * size, more=0.5 * abs(change))
    assert abs(change) < 0.2 * size


@torch.no_grad()
@pytest.mark.parametrize("points", [1, 4])
def test_times_are_weighted_by_what_is_left_out(points):
    """r constant and data at 0: pairs of opposite noise leave ½ ∫ ‖r‖²_{g²} ds, with no error."""
    r = torch.tensor([0.6, -0.8]).double()
    for lin in (CLD(max_log_snr=5.0), learned(2, 1, 108, max_log_snr=6.0, min_log_snr=-8.0)):
        n = 256
        half = lin.start.scale_tril @ normal(15, n, 2, 1)
        u = (torch.arange(n).double() + 0.5) / n
        increments = normal(16, 20, n, 2) / math.sqrt(20)
        diffusion = Simulated(lin)
        precision = torch.linalg.inv(lin.prior_covariance)
        found = path_integral(
            diffusion,
            lambda y, s, P=precision: -(P @ y) + r[:, None],
            torch.cat([half, -half]),
            Simulation(1 / 20, points, "euler"),
            fraction=torch.cat([u, u]),
            brownian=Tape(torch.cat([increments, -increments], 1)),
        )
        gone = lin.clock(lin.horizon) - lin.clock(lin.start_time)
        expected = 0.5 * gone * (r @ lin.matrices.noise() @ r)
        assert float(found.value.mean()) == pytest.approx(float(expected), rel=1e-3)
        at = (torch.arange(points).double()[:, None] + torch.cat([u, u])) / points
        s = diffusion.time_at_progress(at)
        torch.testing.assert_close(found.level, diffusion.log_snr(s))
        value = (found.density * diffusion.log_snr_rate(s) / diffusion.progress_rate(s)).mean(0)
        torch.testing.assert_close(value, found.value)


@torch.no_grad()
@pytest.mark.parametrize("objective", ["ism", "local_dsm"])
@pytest.mark.parametrize("probes", ["exact", 1])
def test_a_model_at_rest_has_the_prior_s_density(objective, probes):
    """r = 0 and π stationary: the integral is 0 for every path, whatever the steps."""
    for make in LINEAR.values():
        diffusion = Simulated(make())
        y = start_states(diffusion.linear, 20)
        settings = Simulation(0.2, 3, objective=objective, probes=probes)
        found = path_integral(diffusion, lambda y, s, d=diffusion: d.prior.score(y), y, settings)
        assert torch.equal(found.value, torch.zeros_like(found.value))
        assert torch.equal(found.density, torch.zeros(3, 20).double())


# -- general diffusions: the bound over whole paths ------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("make", [Cubic, Additive, Bending, Mixed])
def test_local_dsm_has_the_expectation_of_ism(make):
    """At the states of its own increment; if noise depends on them, as it gets short."""
    n, part = 40000, 0.5
    K = make().num_variables
    y, xi, first = normal(18, 1, K, 1).expand(n, K, 1), normal(19, n, 1, K), normal(24, n, K)
    depends = make.noise_depends_on_state
    bias = []
    for increment in (0.2, 0.1) if depends else (0.3,):
        diffusion = make(begin=0.1)
        settings = Simulation(1.0, 1, "euler", increment=increment, probes="exact")
        s = diffusion.time_at_progress(part)
        r = s - increment * (s - 0.1)
        found = path_integral(
            diffusion,
            score,
            y,
            dataclasses.replace(settings, objective="local_dsm"),
            fraction=torch.full((n,), part).double(),
            brownian=Tape(first[None]),
            noise=xi,
        ).value
        times = [t.expand(n) for t in (torch.tensor(0.1).double(), r, s)]
        h = [float(times[1][0]) - 0.1, float(s - r)]
        G = diffusion.dispersion(y, times[0]).reshape(-1, K, K)
        before = y + h[0] * diffusion.drift(y, times[0])
        before = before + math.sqrt(h[0]) * G @ first.unsqueeze(-1)
        G = diffusion.dispersion(before, times[1] if depends else times[2]).reshape(-1, K, K)
        after = before + h[1] * diffusion.drift(before, times[1])
        kick = math.sqrt(h[1]) * G @ xi.mT
        there = make(begin=float(s))
        rate = diffusion.progress_rate(s)
        ism = sum(integrand(there, after + sign * kick, settings) for sign in (1, -1)) / (2 * rate)
        size = float(ism.std())
        if not depends:
            check_mean(found - ism, 0.0, largest_error=0.05 * size)
        bias.append((float((found - ism).mean()), float((found - ism).std() / math.sqrt(n))))
    if depends:
        (coarse, error), (fine, _) = bias
        assert abs(2 * fine - coarse) < SE * 3 * error + 0.02 * size, bias
        assert abs(coarse) < 0.15 * size + SE * error, bias


# -- what is refused -------------------------------------------------------------------------------


def test_steps_and_methods():
    for step_size, points, count in (
        (1.0, 1, 1),
        (2.0, 1, 1),
        (0.1, 1, 10),
        (0.3, 1, 4),
        (0.1, 3, 12),
        (1.0, 5, 5),
    ):
        assert Simulation(step_size, points).steps() == count
    diffusion = Cubic()
    assert Simulation().solver(diffusion) == "srk"
    assert Simulation(method="euler").solver(diffusion) == "euler"
    assert Simulation().solver(Mixed()) == "euler"
    with pytest.raises(ValueError, match=r"'srk', but the noise of Mixed depends on the state"):
        Simulation(method="srk").solver(Mixed())


class Exploding(Cubic):
    def drift(self, y, s):
        return 3 * y**3


class Broken(Cubic):
    def drift(self, y, s):
        return y * math.nan


class Wide(Cubic):
    def drift(self, y, s):
        return y.repeat(1, 2, 1)


def integral(diffusion: NonlinearDiffusion, score: Any = score, **options: Any) -> object:
    y = torch.tensor([0.0, 2.0, 3.0]).double().reshape(3, 1, 1)
    last = torch.full((3,), 0.999, dtype=torch.float64)
    return path_integral(diffusion, score, y, Simulation(0.05, 1, **options), fraction=last)


def test_bad_settings_paths_and_scores_are_named():
    def made(**options: Any) -> Callable[[], Simulation]:
        return lambda: Simulation(**options)

    refused(
        (TypeError, ValueError),
        (made(step_size="0.1"), r"step_size is '0\.1', expected a positive part of the way"),
        (made(step_size=0.0), r"step_size is 0\.0, expected a positive part of the way"),
        (made(step_size=math.inf), r"step_size is inf"),
        (made(points=0), r"points is 0, expected at least 1"),
        (made(increment=0.0), r"increment is 0\.0, expected a part of a step, in \(0, 1\)"),
        (made(method="heun"), r"method is 'heun', expected one of None, euler, srk"),
        (made(objective="dsm"), r"objective is 'dsm', expected one of ism, local_dsm"),
        (made(probe_law="normal"), r"probe_law is 'normal', expected one of rademacher, gaussian"),
        (made(probes=0), r"probes is 0, expected 'exact' or a number ≥ 1"),
        (made(probes=1.5), r"probes is 1\.5"),
        (lambda: integral(Wide()), r"drift of Wide has shape \(3, 2, 1\), expected y's \(3"),
        (
            lambda: integral(Cubic(), lambda y, s: y[..., 0]),
            r"score has shape \(3, 1\), expected y",
        ),
    )
    refused(
        SimulationError,
        (
            lambda: integral(Exploding()),
            r"a path of Exploding exploded: a state of .* at s = 0\..* with steps of up to 0\.0.* "
            "of 3 paths.*Try a smaller step_size",
        ),
        (lambda: integral(Broken()), r"state of nan .*\(3 of 3 paths\)"),
    )
    assert issubclass(SimulationError, ArithmeticError)
