"""Diffusions without a closed form, in programs: bounds, gradients, pieces, sampling, mistakes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_mdm import (
    CLD,
    MDM_ELBO,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    GenerativePath,
    LearnedDiffusion,
    LearnedDrift,
    NoisePrediction,
    NonlinearDiffusion,
    RawScore,
    Simulated,
    SimulatedPath,
    Simulation,
    elbo_terms,
    randomness,
)
from pyro_mdm.diffusions.clocks import ConstantBeta, LinearBeta
from pyro_mdm.diffusions.linear import GaussianPrior
from pyro_mdm.likelihoods.base import Gaussian
from pyro_mdm.networks import MLP
from pyro_mdm.paths.base import prior_kl
from pyro_mdm.samplers.base import simulation_grid
from pyro_mdm.samplers.stochastic import Ancestral, EulerMaruyama, Splitting
from pyro_mdm.simulated.sde import ReverseSDE, fold, unfold
from tests.diffusions import TYPICAL
from tests.gradients import assert_gradients
from tests.mistakes import refused
from tests.problems import learned, normal

D = 2


class Net(nn.Module):
    """A small smooth network in float64, with nothing that starts at zero."""

    def __init__(self, width: int, seed: int, size: float = 0.5) -> None:
        super().__init__()
        self.inlet = nn.Linear(width + 1, 5, dtype=torch.float64)
        self.outlet = nn.Linear(5, width, dtype=torch.float64)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(size * normal(seed + i, *p.shape))

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return self.outlet(torch.tanh(self.inlet(torch.cat([y, level[:, None].to(y) / 10], 1))))


class Skewed(NonlinearDiffusion):
    """Noise that depends on the state, and a prior that is not stationary; it can learn."""

    noise_depends_on_state = True

    def __init__(self, **options: Any) -> None:
        super().__init__(2, **{"max_log_snr": 5.0, "min_log_snr": -5.0} | options)
        self.raw = nn.Parameter(normal(1, 4))

    def drift(self, y: Tensor, s: Any) -> Tensor:
        a, b, c, _ = self.raw.unbind()
        x, v = y.unbind(1)
        return torch.stack([v * (1 + 0.1 * a) - x, -x - 2 * v + b * v.sin() * 0.3 + 0.1 * c], 1)

    def dispersion(self, y: Tensor, s: Any) -> Tensor:
        x, v = y.unbind(1)
        late = torch.as_tensor(s, dtype=y.dtype).expand(len(y)).reshape(-1, *[1] * (x.dim() - 1))
        one = torch.ones_like(x) + late
        rows = [[one, 0.2 * x.sin()], [0.1 * one * self.raw[3], (1 + 0.3 * v**2).sqrt()]]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)


def drifting(simulation: Simulation | None = None, limit: float = 4.0) -> LearnedDrift:
    linear = CLD(max_log_snr=5.0, beta=ConstantBeta(3.0))
    return LearnedDrift(linear, Net(2 * D, 10), limit=limit, simulation=simulation)


def programs(
    diffusion: NonlinearDiffusion, dims: int = D, **options: Any
) -> tuple[DiffusionModel, DiffusionGuide]:
    score = RawScore(Net(diffusion.num_variables * dims, 20))
    model = DiffusionModel(diffusion, score, Gaussian(0.1, 0.8), (dims,), **options)
    return model, DiffusionGuide(diffusion)


MAKES: dict[str, Callable[..., NonlinearDiffusion]] = {
    "drift": drifting,
    "skewed": lambda simulation=None: Skewed(simulation=simulation),
    "simulated": lambda simulation=None: Simulated(
        learned(3, 2, 60, max_log_snr=5.0, beta=ConstantBeta(1.0)), simulation
    ),
}
every = pytest.mark.parametrize("name", MAKES)

ESTIMATORS: dict[str, dict[str, Any]] = {
    "exact": {"probes": "exact"},
    "gaussian": {"probes": 2, "probe_law": "gaussian", "points": 1, "method": "euler"},
    "local": {"objective": "local_dsm"},
}
estimators = pytest.mark.parametrize("estimator", ESTIMATORS)


def settings(estimator: str, **options: Any) -> Simulation:
    return Simulation(**{"step_size": 0.25, "points": 2} | ESTIMATORS[estimator] | options)


# -- times -----------------------------------------------------------------------------------------


def timed() -> list[tuple[str, Callable[[], NonlinearDiffusion]]]:
    found: list[tuple[str, Any]] = [(n, lambda m=m: Simulated(m())) for n, m in TYPICAL]
    found.append(("plain", lambda: Skewed(horizon=3.0)))
    found.append(("linear_clock", lambda: Skewed(beta=LinearBeta(0.1, 20.0))))
    return found


@pytest.mark.parametrize("make", [m for _, m in timed()], ids=[n for n, _ in timed()])
@torch.no_grad()
def test_levels_and_progress_go_from_one_end_to_the_other(make):
    diffusion = make()
    start, T = diffusion.start_time, diffusion.horizon
    low, high = float(diffusion.terminal_log_snr), diffusion.max_log_snr
    levels = torch.linspace(low, high, 41, dtype=torch.float64).flip(0)
    parts = torch.linspace(0, 1, 41, dtype=torch.float64)
    for values, time_at, value_at, rate_at, sign in (
        (levels, diffusion.time_at_log_snr, diffusion.log_snr, diffusion.log_snr_rate, -1),
        (parts, diffusion.time_at_progress, diffusion.progress, diffusion.progress_rate, 1),
    ):
        s = time_at(values)
        assert bool((s.diff() > 0).all())
        assert abs(float(s[0] - start)) < 1e-9 * T and float(s[-1]) == pytest.approx(T, rel=1e-12)
        torch.testing.assert_close(value_at(s), values, rtol=0, atol=1e-7)
        inner, h = s[1:-1], 1e-4 * (s[1:-1] - start).clamp_max(T / 100)
        slope = (value_at((inner + h).clamp_max(T)) - value_at(inner - h)) / (
            (inner + h).clamp_max(T) - inner + h
        )
        torch.testing.assert_close(sign * rate_at(inner), slope, rtol=1e-4, atol=0)
    half = (diffusion.clock(s) - diffusion.clock(start)) / (
        diffusion.clock(T) - diffusion.clock(start)
    )
    level = (high - diffusion.log_snr(s)) / (high - low)
    torch.testing.assert_close((half + level) / 2, diffusion.progress(s))
    grid = simulation_grid(diffusion, 7)
    assert float(grid[0]) == pytest.approx(T, rel=1e-12)
    assert float(grid[-1]) == pytest.approx(float(start), abs=1e-9)
    torch.testing.assert_close(
        diffusion.progress(grid), parts[:: 40 // 8].new_tensor([1 - i / 7 for i in range(8)])
    )


def test_the_start_is_the_data_with_a_little_noise():
    diffusion = Skewed(initial_variance=0.04, max_log_snr=6.0)
    start = diffusion.start
    torch.testing.assert_close(start.mean, torch.tensor([1.0, 0.0]).double())
    torch.testing.assert_close(
        start.covariance.diagonal(), torch.tensor([math.exp(-6), 0.04]).double()
    )
    assert float(start.log_snr) == 6.0
    linear = learned(3, 2, 60, max_log_snr=4.0)
    found, expected = Simulated(linear).start, linear.start
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


# -- laws of paths ---------------------------------------------------------------------------------


@torch.no_grad()
@every
def test_the_law_at_the_start_has_its_density(name):
    diffusion = MAKES[name]()
    x = normal(3, 5, D)
    law = SimulatedPath(diffusion, x)
    path = law.rsample()
    assert path.shape == (5, 1, diffusion.num_variables, D)
    start = diffusion.start
    q = torch.distributions.MultivariateNormal(x.unsqueeze(-1) * start.mean, start.covariance)
    torch.testing.assert_close(law.log_prob(path), q.log_prob(path.squeeze(1).mT).sum(-1))
    torch.manual_seed(0)
    again = law.rsample().squeeze(1)
    torch.manual_seed(0)
    noise = torch.randn(5, diffusion.num_variables, D, dtype=torch.float64)
    expected = start.mean[:, None] * x[:, None] + start.scale_tril @ noise
    torch.testing.assert_close(again, expected)


def test_expand_keeps_the_divergence_and_samples_have_left_dimensions():
    diffusion = drifting(Simulation(step_size=0.2))
    x = normal(4, 6, D)
    noising = SimulatedPath(diffusion, x).expand((2, 6))
    generative = GenerativePath(diffusion, RawScore(Net(2 * D, 20)), (D,)).expand((2, 6))
    assert noising.batch_shape == (2, 6) and noising.event_shape == (1, 2, D)
    assert noising.rsample().shape == (2, 6, 1, 2, D)
    assert noising.rsample((4,)).shape == (4, 2, 6, 1, 2, D)
    assert kl_divergence(noising, generative).shape == (2, 6)
    assert noising.log_prob(noising.rsample()).shape == (2, 6)
    assert generative.log_prob(noising.rsample()).shape == (2, 6)
    times = torch.tensor([0.3, 0.9], dtype=torch.float64)
    later = SimulatedPath(diffusion, x, times)
    assert later.rsample((4,)).shape == (4, 6, 2, 2, D)
    assert later.expand((3, 6)).rsample().shape == (3, 6, 2, 2, D)
    one = SimulatedPath(diffusion, x[0], event_dim=1)
    assert one.batch_shape == () and one.rsample().shape == (1, 2, D)


# -- gradients -------------------------------------------------------------------------------------


class FixedTimes(Simulated):
    """Times that do not move with what is learned, as in gradients they do not."""

    def __init__(self, linear: LearnedDiffusion, simulation: Simulation) -> None:
        super().__init__(linear, simulation)
        self.frozen = (copy.deepcopy(linear).requires_grad_(False),)  # in a tuple: no child

    @property
    def start_time(self) -> Tensor:
        return self.frozen[0].start_time

    def clock(self, s: Any) -> Tensor:
        return self.frozen[0].clock(s)

    def rate(self, s: Any) -> Tensor:
        return self.frozen[0].rate(s)

    def time_at_clock(self, tau: Tensor) -> Tensor:
        return self.frozen[0].time_at_clock(tau)


@estimators
@pytest.mark.parametrize("name", ["drift", "skewed", "learned"])
def test_gradients_are_those_of_the_seeded_loss(name, estimator):
    """To networks, the diffusion, its dispersion and its start, along a direction in each."""
    simulation = settings(estimator)
    if name == "learned":
        linear = LearnedDiffusion(2, 2, learn_beta=True, max_log_snr=5.0)
        with torch.no_grad():
            linear.B.add_(0.2 * normal(5, 2, 2))
            linear.beta.raw.add_(0.3 * normal(6, len(linear.beta.raw)))
        diffusion: NonlinearDiffusion = FixedTimes(linear, simulation)
    else:
        diffusion = MAKES[name](simulation)
    model, guide = programs(diffusion)
    x, elbo = normal(7, 6, D), MDM_ELBO()(model, guide)

    def loss() -> Tensor:
        pyro.set_rng_seed(8)
        return elbo(x)

    parameters = dict(model.named_parameters())
    # the loss is of the order of a million: shorter steps would show its rounding
    assert_gradients(loss, parameters.values(), h=1e-4, rel=1e-4, abs=1e-4, least=1e-7)


# -- reproducible noise, pieces --------------------------------------------------------------------


@estimators
@every
def test_loss_and_gradients_of_the_pieces_add_up_to_those_of_the_batch(name, estimator):
    N, count = 12, 2
    model, guide = programs(MAKES[name](settings(estimator)))
    loss_of, x = MDM_ELBO()(model, guide), normal(7, N, D)
    torch.manual_seed(7)
    whole = loss_of(x)
    whole.backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    total = 0.0
    for r in range(count):
        with randomness.piece(r, count, 7):
            loss = loss_of(x[r::count])
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-11)
    for key, p in model.named_parameters():
        size = float(expected[key].abs().max())
        torch.testing.assert_close(p.grad, expected[key], rtol=1e-8, atol=1e-10 * size, msg=key)


# -- programs --------------------------------------------------------------------------------------


OBJECTIVES = {"mdm": MDM_ELBO, "mean_field": TraceMeanField_ELBO, "trace": Trace_ELBO}


@torch.no_grad()
@every
def test_objectives_agree_on_the_bound(name):
    """Trace_ELBO by log_prob, TraceMeanField_ELBO by the registered divergence, and MDM_ELBO."""
    model, guide = programs(MAKES[name](Simulation(step_size=0.25, points=2)))
    x = normal(7, 1, D).expand(1800, D)
    found = {}
    for key, objective in OBJECTIVES.items():
        pyro.set_rng_seed(11)
        values = torch.tensor(
            [objective().loss(model, guide, part) / len(part) for part in x.chunk(12)]
        )
        found[key] = float(values.mean()), float(values.std() / math.sqrt(12))
    mean, error = found["mdm"]
    for key in ("mean_field", "trace"):
        assert abs(found[key][0] - mean) < 8 * math.hypot(error, found[key][1]), found
    assert error < 0.07 * abs(mean), found


@torch.no_grad()
@pytest.mark.parametrize("objective", ["ism", "local_dsm"])
def test_terms_add_up_and_mean_what_they_mean_for_a_linear_diffusion(objective):
    lin = CLD(max_log_snr=4.0, beta=ConstantBeta(5.0))
    diffusion = Simulated(lin, Simulation(step_size=0.025, points=2, objective=objective))
    model, guide = programs(diffusion)
    x = normal(7, 1, D).expand(4000, D)
    pyro.set_rng_seed(14)
    loss = MDM_ELBO().loss(model, guide, x)
    pyro.set_rng_seed(14)
    terms = elbo_terms(model, guide, x)
    for term in (terms.reconstruction, terms.prior_kl, terms.diffusion, terms.log_snr):
        assert term.shape == (4000,)
    assert float(-terms.elbo.sum()) == pytest.approx(loss, rel=1e-9)
    # the cross-entropy with π at T in excess of its entropy: the prior KL where paths arrive
    end = lin.terminal
    trace = torch.linalg.solve(lin.prior_covariance, end.covariance).trace()
    square = end.mean @ torch.linalg.solve(lin.prior_covariance, end.mean)
    expected = 0.5 * (D * (trace - 2) + square * x[0].square().sum())
    error = float(terms.prior_kl.std() / math.sqrt(4000))
    found = float(terms.prior_kl.mean())
    assert error < 0.045 and abs(found - float(expected)) < 5 * error + 0.01
    assert abs(found - float(prior_kl(lin, x[:1], 1))) < 5 * error + 0.02
    exact, linear_guide = programs(diffusion)[0], DiffusionGuide(lin)
    exact = DiffusionModel(lin, exact.score_function, exact.likelihood, (D,))
    closed = elbo_terms(exact, linear_guide, x)
    for a, b in (
        (terms.diffusion, closed.diffusion),
        (terms.reconstruction, closed.reconstruction),
    ):
        both = float((a.var() / 4000 + b.var() / 4000).sqrt())
        assert abs(float(a.mean() - b.mean())) < 5 * both + 0.03 * abs(float(b.mean()))


def test_the_guide_s_simulation_replaces_the_diffusion_s():
    diffusion = drifting(Simulation(step_size=0.5))
    mine = Simulation(step_size=0.25, method="euler")
    guide = DiffusionGuide(diffusion, simulation=mine)
    law = poutine.trace(guide).get_trace(normal(7, 3, D)).nodes["path"]["fn"]
    assert law.simulation is mine
    other = poutine.trace(DiffusionGuide(diffusion)).get_trace(normal(7, 3, D)).nodes["path"]["fn"]
    assert other.simulation is diffusion.simulation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predictive_generates_and_grids_of_times_are_in_the_trace(dtype):
    torch.manual_seed(1)
    linear = CLD(max_log_snr=5.0, beta=ConstantBeta(3.0))
    diffusion = LearnedDrift(linear, MLP(2 * D, hidden=8, depth=1).to(dtype))
    diffusion.simulation = Simulation(step_size=0.2)
    score = RawScore(MLP(2 * D, hidden=8, depth=1).to(dtype))
    model = DiffusionModel(diffusion, score, event_shape=(D,), sampler=EulerMaruyama(20))
    out = Predictive(model, num_samples=1)(batch_size=7)
    assert out["x"].shape == (1, 7, D) and out["path"].shape == (1, 7, 1, 2, D)
    assert bool(out["x"].isfinite().all())
    assert isinstance(DiffusionModel(diffusion, score, event_shape=(D,)).sampler, EulerMaruyama)
    x = normal(7, 4, D).to(dtype)
    trace = poutine.trace(DiffusionGuide(diffusion, times=4)).get_trace(x)
    assert trace.nodes["path"]["value"].shape == (4, 4, 2, D)
    assert trace.nodes["path"]["value"].dtype == dtype
    assert math.isfinite(MDM_ELBO().loss(model, DiffusionGuide(diffusion), x))
    model.zero_grad()
    MDM_ELBO()(model, DiffusionGuide(diffusion))(x).backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {dtype}


@torch.no_grad()
@pytest.mark.parametrize("objective", ["ism", "local_dsm"])
def test_a_user_s_autocast_leaves_matrices_alone(objective):
    """As for linear diffusions: only what the network itself does may be in low precision."""

    class Guarded(nn.Module):
        def forward(self, y: Tensor, level: Tensor) -> Tensor:
            return (1.3 * y).sin() - y

    diffusion = Simulated(
        CLD(max_log_snr=5.0, beta=ConstantBeta(3.0)), Simulation(0.2, objective=objective)
    )
    model = DiffusionModel(diffusion, RawScore(Guarded()), Gaussian(), (D,))
    x = normal(7, 20, D).float()
    found = []
    for enabled in (False, True):
        pyro.set_rng_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(elbo_terms(model, DiffusionGuide(diffusion), x))
    for a, b in zip(vars(found[0]).values(), vars(found[1]).values(), strict=True):
        assert torch.equal(a, b)


# -- a learned drift -------------------------------------------------------------------------------


def test_a_learned_drift_is_added_by_the_clock_and_within_its_limit():
    diffusion = drifting(limit=0.7)
    linear = diffusion.linear
    y, s = normal(7, 5, 2, D), torch.linspace(0.2, 1.0, 5).double()
    raw = diffusion.network(y.flatten(1), diffusion.log_snr(s)).reshape(y.shape)
    expected = linear.rate(s).reshape(5, 1, 1) * 0.7 * torch.tanh(raw / 0.7)
    added = diffusion.drift(y, s) - linear.drift(y, s)
    torch.testing.assert_close(added, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(diffusion.prior_current(y, s), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(diffusion.dispersion(y, s), linear.dispersion(None, s))
    one = torch.tensor(0.3).double()
    together = diffusion.drift(y, one)
    torch.testing.assert_close(together, diffusion.drift(y, one.expand(5)))


# -- sampling --------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_step_of_the_sampler_is_that_of_the_reverse_sde():
    diffusion = Skewed()
    score = Net(2 * D, 20)

    def theta(y: Tensor, s: Tensor) -> Tensor:
        return score(y.flatten(1), s.to(y)).reshape(y.shape)

    y, xi = normal(7, 5, 2, D), normal(8, 5, 2, D)
    sampler, times = EulerMaruyama(4), simulation_grid(diffusion, 4)

    class Ask:
        def __init__(self) -> None:
            self.diffusion = diffusion

        def score(self, y: Tensor, s: Tensor) -> Tensor:
            return theta(y, s.expand(len(y)))

    found = sampler.step(sampler.plan(diffusion, times), 1, y, Ask(), lambda: xi)
    sde, t = ReverseSDE(diffusion, theta, (D,)), diffusion.horizon - times[1]
    h = times[1] - times[2]
    G = sde.g(t, fold(y))
    expected = fold(y) + h * sde.f(t, fold(y)) + h.sqrt() * (G @ fold(xi).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found, unfold(expected, (D,)), rtol=1e-9, atol=1e-9)
    # and that of the definition: g² s_θ + ∇·g² - f
    s = times[1].expand(5)
    g2 = diffusion.dispersion(y, s) @ diffusion.dispersion(y, s).mT
    drift = (g2 @ theta(y, s).movedim(1, -1).unsqueeze(-1)).squeeze(-1).movedim(-1, 1)
    drift = drift + diffusion.noise_divergence(y, s) - diffusion.drift(y, s)
    torch.testing.assert_close(unfold(sde.f(t, fold(y)), (D,)), drift, rtol=1e-9, atol=1e-9)
    assert sde.noise_type == "general"


# -- what is refused -------------------------------------------------------------------------------


class Plain(NonlinearDiffusion):
    def __init__(self, depends: bool = False, G: Any = None, f: Any = None, **options: Any) -> None:
        super().__init__(options.pop("K", 2), **options)
        self.noise_depends_on_state, self.G, self.fun = depends, G, f

    def drift(self, y: Tensor, s: Any) -> Tensor:
        return -y if self.fun is None else self.fun(y)

    def dispersion(self, y: Tensor, s: Any) -> Tensor:
        return torch.eye(2).double() if self.G is None else self.G(y)


class Narrow(nn.Module):
    """A network that gives one number where a drift has as many as the state."""

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return y[:, :1]


def checked(**options: Any) -> None:
    """As a path of data of three dimensions is made of a diffusion."""
    SimulatedPath(Plain(**options), normal(7, 4, 3))


def in_programs(score: Any) -> float:
    """The loss of a score of a learned drift."""
    model = DiffusionModel(drifting(Simulation(step_size=0.5)), score, Gaussian(), (D,))
    return MDM_ELBO().loss(model, DiffusionGuide(model.diffusion), normal(7, 4, D))


def raw() -> RawScore:
    return RawScore(Net(2 * D, 20))


def path_at(times: list[float]) -> Tensor:
    diffusion = Simulated(CLD(max_log_snr=4.0), Simulation(step_size=0.5))
    return SimulatedPath(diffusion, normal(7, 4, D), torch.tensor(times).double()).rsample()


def density_at(times: list[float]) -> Tensor:
    law = SimulatedPath(drifting(Simulation(step_size=0.5)), normal(7, 4, D), torch.tensor(times))
    return law.log_prob(law.rsample())


def drawn_by(sampler: Any) -> Any:
    return DiffusionModel(drifting(), raw(), Gaussian(), (D,), sampler=sampler)(batch_size=2)


def discrete() -> DiscreteDenoiser:
    levels = torch.linspace(-1, 1, 5).double()
    x = levels[torch.randint(5, (20, D))]
    return DiscreteDenoiser.fit(MLP(D, hidden=4, depth=1, out_features=5 * D), x, levels).double()


def half_closed() -> float:
    model, guide = programs(Simulated(CLD(max_log_snr=5.0), Simulation(0.2)))
    return MDM_ELBO(decoder=False).loss(model, guide, normal(7, 4, D))


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Plain(K=0), "num_variables is 0, expected at least 1"),
    (lambda: Plain(horizon=0.0), "horizon is 0.0, expected a positive end"),
    (lambda: Plain(min_log_snr=13.0), "min_log_snr 13.0 must be below max_log_snr 13"),
    (lambda: Plain(prior=GaussianPrior(torch.eye(3))), "the prior is of K = 3 variables, expected"),
    (lambda: Plain(initial_variance=-1.0), "initial_variance"),
    (lambda: checked(f=lambda y: y[:, :1]), r"drift of Plain has shape \(16, 1, 3\), expected y's"),
    (lambda: checked(G=lambda y: torch.eye(3)), r"shape \(3, 3\), expected \(16, 2, 2\) or \(2"),
    (lambda: checked(G=lambda y: torch.ones(16, 3, 2, 2)), "one block for all data dimensions, as"),
    (lambda: checked(G=lambda y: torch.ones(16, 2, 2), depends=True), r"expected \(16, 3, 2, 2\)"),
    (lambda: checked(depends=True), r"shape \(2, 2\), expected .* noise_depends_on_state is T"),
    (lambda: checked(G=lambda y: math.nan * torch.eye(2)), "dispersion of Plain is not finite"),
    (lambda: checked(f=lambda y: y / 0), "the drift of Plain is not finite .*inf"),
    # scores and samplers of closed forms, and what only these or only simulations have
    (lambda: in_programs(Denoiser(MLP(D), 0.0, 1.0).double()), "Denoiser needs closed-form"),
    (lambda: in_programs(discrete()), "DiscreteDenoiser needs .*LearnedDrift .*; use"),
    (
        lambda: in_programs(NoisePrediction(MLP(2 * D)).double()),
        "NoisePrediction needs closed-form",
    ),
    (lambda: drawn_by(Splitting(4)), r"Splitting needs .*; use EulerMaruyama\(4\)"),
    (lambda: drawn_by(Ancestral(4)), r"Ancestral needs .*; use EulerMaruyama\(4\)"),
    (lambda: raw().denoise(drifting(), normal(7, 4, 2, D), 0.5), "LearnedDrift"),
    (half_closed, "decoder=False needs closed-form .*leave decoder out"),
    (lambda: density_at([0.5, 1.0]), r"path of LearnedDrift has no density at \[0.5"),
    (lambda: LearnedDrift(CLD(), Narrow()).check((D,)), r"Narrow returned \(16, 1\) for inputs"),
    # times and data
    (lambda: path_at([0.01, 0.5]), "times start at 0.01, before the start time"),
    (lambda: path_at([0.5, 0.4]), "expected an increasing vector"),
    (lambda: path_at([0.5, 1.5]), r"1.5 .*\[0, "),
    (lambda: SimulatedPath(drifting(), torch.full((3, D), math.nan)), "NaN or infinite"),
    (lambda: SimulatedPath(drifting(), torch.zeros(3, D).long()), "expected floating-point data"),
]


def test_what_cannot_be_is_named() -> None:
    refused((TypeError, ValueError, NotImplementedError), *REFUSED)


def test_a_guide_of_other_times_or_another_diffusion_is_refused():
    model, _ = programs(drifting(Simulation(step_size=0.5)))
    x = normal(7, 4, D)
    with pytest.raises(
        ValueError, match=r"guide's path is seen at \[0\.09.*, the model's at ε alone"
    ):
        MDM_ELBO().loss(model, DiffusionGuide(model.diffusion, times=4), x)
    for other in (drifting(), CLD(), model.diffusion.linear):
        for objective in (MDM_ELBO(), TraceMeanField_ELBO()):
            with pytest.raises(ValueError, match=r"one diffusion object: DiffusionGuide.model"):
                objective.loss(model, DiffusionGuide(other), x)
