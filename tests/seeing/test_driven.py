"""Paths that are driven by the data: their law, their bound, and the volatility they have."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inference.guides.driven import means_and_scales
from models import MODELS
from pyro_mdm import (
    CLD,
    VPSDE,
    DataDrivenDiffusion,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    LearnedDiffusion,
    NoisePrediction,
    condition,
    elbo_terms,
)
from pyro_mdm.diffusions.clocks import ConstantBeta
from pyro_mdm.evaluation import evidence_lower_bound
from pyro_mdm.networks import MLP
from pyro_mdm.samplers import (
    Ancestral,
    EulerMaruyama,
    ExponentialIntegrator,
    ProbabilityFlow,
    Splitting,
    StochasticExponentialIntegrator,
)
from pyro_mdm.scores.base import Score
from pyro_mdm.seeing import path_information_gap
from pyro_mdm.seeing.volatility import Volatility
from pyro_mdm.simulated import TorchSDE
from tests.gradients import assert_gradients, slope
from tests.mistakes import refused
from tests.problems import generator, normal

HIGH, LOW = 6.0, -6.0
VARIANCE = 1.3
"""Of Gaussian data in one dimension."""


def base(**options: Any) -> VPSDE:
    return VPSDE(max_log_snr=HIGH, min_log_snr=LOW, **options)


def driven(seed: int = 0, features: int = 2, **options: Any) -> DataDrivenDiffusion:
    """One whose network is some way into its training, in float64."""
    outputs = DataDrivenDiffusion.outputs(
        means=options.get("means", 1.0) > 0, scales=options.get("scales", 1.0) > 0
    )
    torch.manual_seed(seed)
    network = MLP(features, 8, 1, out_features=outputs * features).double()
    diffusion = DataDrivenDiffusion(options.pop("linear", base()), network, **options)
    with torch.no_grad():
        for parameter in network.outlet.parameters():
            parameter.copy_(0.3 * normal(seed + 1, *parameter.shape))
    return diffusion


def set_volatility(diffusion: DataDrivenDiffusion, rho: Tensor) -> None:
    """ρ at the knots, but at ε where it is 1."""
    with torch.no_grad():
        diffusion.volatility.weight.fill_(1e12)
        diffusion.volatility.errors.copy_(torch.stack([rho.square(), torch.ones_like(rho)]))


def wavy(diffusion: DataDrivenDiffusion) -> None:
    u = torch.linspace(0, 1, len(diffusion.volatility.weight), dtype=torch.float64)
    set_volatility(diffusion, 1 + 0.5 * torch.sin(3 * u))


class OneForAll(nn.Module):
    """Means a x and scales that do not depend on x: Gaussian data stay Gaussian."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.6, -1.5, 1.2], dtype=torch.float64))
        self.r = nn.Parameter(torch.tensor([1.2, -1.4, 1.5], dtype=torch.float64))

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return torch.cat([self.a * x, self.r.expand(len(x), 3)], 1)


def gaussian() -> DataDrivenDiffusion:
    """A driven diffusion of data N(0, VARIANCE) whose posterior is known; tanh is nowhere felt."""
    return DataDrivenDiffusion(base(), OneForAll(), means=1e7, scales=1e7)


class Exact(Denoiser):
    """x̂ = E[x | z] of data N(0, VARIANCE) under :func:`gaussian`, of which aims are linear."""

    def __init__(self, diffusion: DataDrivenDiffusion) -> None:
        super().__init__(MLP(1, 4, 1).double(), torch.zeros(1), torch.full((1,), VARIANCE))
        self.__dict__["known"] = diffusion

    def x_hat(self, z: Tensor, log_snr: Any) -> Tensor:
        lam = torch.as_tensor(log_snr, dtype=torch.float64).expand(len(z))
        lam = lam[:1] if bool((lam == lam[0]).all()) else lam
        mean, S2, *_ = moments(self.known, lam)
        return (mean * VARIANCE / (mean.square() * VARIANCE + S2))[:, None] * z


def moments(diffusion: DataDrivenDiffusion, lam: Tensor) -> tuple[Tensor, ...]:
    """Coefficients of x in the mean and the aims at log SNRs (n,), and S²; by calls at x = 0, 1."""
    with torch.no_grad():
        one, none = (diffusion.path(torch.full((len(lam), 1), v).double(), lam) for v in (1.0, 0.0))
        z = torch.zeros(len(lam), 1).double()
        aims = [a - b for a, b in zip(one.aims(z), none.aims(z), strict=True)]
        S2 = (none.stretch[:, 0] - lam).exp()
        return one.mean[:, 0], S2, aims[0][:, 0], aims[1][:, 0]


def along(n: int = 20_001) -> tuple[Tensor, float]:
    """Log SNRs from λ(T) to λ(ε), and the distance of two."""
    return torch.linspace(LOW, HIGH, n, dtype=torch.float64), (HIGH - LOW) / (n - 1)


def term_of_exact(diffusion: DataDrivenDiffusion) -> float:
    """⅛ ∫ e^λ/ρ E‖ΔU + ρ ΔR‖² dλ, by quadrature."""
    lam, h = along()
    mean, S2, flow, score = moments(diffusion, lam)
    left = VARIANCE * S2 / (mean.square() * VARIANCE + S2)  # of x, given z
    rho = diffusion.volatility(diffusion.fraction(lam))
    rate = lam.exp() / (8 * rho) * (flow + rho * score).square() * left
    return float(torch.trapezoid(rate, dx=h))


def information() -> float:
    """I(x; z_ε) - I(x; z_T) of data N(0, VARIANCE)."""
    return 0.5 * (math.log1p(VARIANCE * math.exp(HIGH)) - math.log1p(VARIANCE * math.exp(LOW)))


# -- marginals -------------------------------------------------------------------------------------


def test_rates_are_derivatives_by_log_snr() -> None:
    diffusion, x = driven(), normal(2, 5, 2)
    lam, h = torch.linspace(LOW + 1, HIGH - 1, 5, dtype=torch.float64), 1e-5
    with torch.no_grad():
        path, up, down = (diffusion.path(x, lam + step) for step in (0.0, h, -h))
    assert path.mean_rate.abs().max() > 0.03 and path.stretch_rate.abs().max() > 0.03
    torch.testing.assert_close((up.mean - down.mean) / (2 * h), path.mean_rate, atol=1e-9, rtol=0)
    slope = (up.stretch - down.stretch) / (2 * h)
    torch.testing.assert_close(slope, path.stretch_rate, atol=1e-9, rtol=0)


def test_both_ends_and_the_first_step_are_those_of_the_base() -> None:
    diffusion, linear, x = driven(), base(), normal(3, 4, 2)
    with torch.no_grad():
        for level in (HIGH, LOW):
            path = diffusion.path(x, torch.full((4,), level).double())
            torch.testing.assert_close(path.mean, x)
            assert path.stretch.abs().max() < 1e-12
        first = diffusion.path(x, torch.full((4,), HIGH).double())
    assert max(first.mean_rate.abs().max(), first.stretch_rate.abs().max()) < 1e-12
    assert diffusion.volatility(torch.zeros(1).double()) == 1.0
    for one, other in ((diffusion.start, linear.start), (diffusion.terminal, linear.terminal)):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)


def test_paths_have_the_marginals_that_they_are_made_for() -> None:
    """Given x the noising SDE is linear in z: moments by Runge-Kutta's method from ε on."""
    diffusion, x = driven(), normal(4, 3, 2)
    wavy(diffusion)

    def drift(z: Tensor, lam: Tensor) -> Tensor:
        """v f = ½ (z - U) - ½ ρ (z - R), by -dλ."""
        aims = diffusion.path(x, lam.expand(3)).aims(z)
        rho = diffusion.volatility(diffusion.fraction(lam))
        return 0.5 * (z - aims.flow) - 0.5 * rho * (z - aims.score)

    def change(state: Tensor, lam: Tensor) -> Tensor:
        mean, variance = state
        zero = torch.zeros_like(mean)
        pull = drift(torch.ones_like(mean), lam) - drift(zero, lam)
        noise = diffusion.volatility(diffusion.fraction(lam)) * torch.exp(-lam)
        return torch.stack([drift(mean, lam), 2 * pull * variance + noise])

    state = torch.stack([x, torch.full_like(x, math.exp(-HIGH))])
    lam, steps, end = torch.tensor(HIGH).double(), 60, -1.5
    h = (HIGH - end) / steps
    with torch.no_grad():
        for _ in range(steps):
            k1 = change(state, lam)
            k2 = change(state + h / 2 * k1, lam - h / 2)
            k3 = change(state + h / 2 * k2, lam - h / 2)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + change(state + h * k3, lam - h))
            lam = lam - h
        path = diffusion.path(x, lam.expand(3))
    assert (path.mean - x).abs().max() > 0.05
    torch.testing.assert_close(state[0], path.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state[1], (path.stretch - lam).exp(), atol=1e-5, rtol=1e-5)


# -- the bound -------------------------------------------------------------------------------------


def test_a_network_at_zero_is_the_base() -> None:
    network = MLP(2, 8, 1, out_features=2 * DataDrivenDiffusion.outputs()).double()
    x, score = normal(5, 64, 2), Denoiser.fit(MLP(2, 8, 1).double(), normal(5, 64, 2))
    for s in (score, NoisePrediction(MLP(2, 8, 1).double())):
        found = []
        for diffusion in (base(), DataDrivenDiffusion(base(), network)):
            torch.manual_seed(0)
            model = DiffusionModel(diffusion, s, score.default_likelihood(), (2,))
            found.append(elbo_terms(model, DiffusionGuide(diffusion), x).elbo)
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("best", [False, True])
def test_the_bound_of_gaussian_data_with_the_exact_network(best: bool) -> None:
    """At the best volatility it is tight, which needs ΔU in proportion to ΔR."""
    diffusion = gaussian()
    if best:
        u = torch.linspace(0, 1, len(diffusion.volatility.weight), dtype=torch.float64)
        _, _, flow, score = moments(diffusion, HIGH + u * (LOW - HIGH))
        set_volatility(diffusion, flow / score)
    term, least = term_of_exact(diffusion), information()
    assert term == pytest.approx(least, abs=1e-3) if best else term > least + 0.02
    model = DiffusionModel(diffusion, Exact(diffusion))
    x = VARIANCE**0.5 * normal(6, 400, 1)
    found = evidence_lower_bound(model, DiffusionGuide(diffusion), x, draws=8)
    assert abs(found.diffusion.mean - term) < 5 * found.diffusion.standard_error + 1e-3


def test_the_gap_of_gaussian_data_is_what_the_exact_network_loses() -> None:
    diffusion = gaussian()
    points = torch.linspace(-6, 6, 201, dtype=torch.float64)[:, None]
    weights = (-0.5 * points[:, 0].square() / VARIANCE).exp()
    found = path_information_gap(diffusion, points, weights, levels=64, draws=64)
    for value, known in (
        (found.diffusion, term_of_exact(diffusion)),
        (found.information, information()),
        (found.gap, term_of_exact(diffusion) - information()),
    ):
        assert abs(value.mean - known) < 5 * value.standard_error
    assert found.gap.mean > 5 * found.gap.standard_error


class Plugged(Score):
    """A denoiser's score as one of the raw state."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.network, denoiser.event_shape)
        self.__dict__["denoiser"] = denoiser

    def score_at(self, diffusion: Any, y: Tensor, at: Any) -> Tensor:
        return self.denoiser.score_at(diffusion, y, at)


def test_raw_scores_and_denoisers_have_one_loss() -> None:
    diffusion = driven()
    wavy(diffusion)
    denoiser = Denoiser(MLP(2, 8, 1).double(), torch.zeros(2), torch.ones(2))
    nn.init.normal_(denoiser.network.outlet.weight, std=0.3, generator=generator(1))
    x, noise = normal(7, 9, 2), normal(8, 9, 1, 2)
    level = torch.linspace(LOW + 0.1, HIGH - 0.1, 9, dtype=torch.float64)
    with torch.no_grad():
        one, other = (
            score.integrand(diffusion, x, level, noise) for score in (denoiser, Plugged(denoiser))
        )
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("raw", [False, True])
def test_gradients_of_the_bound(raw: bool) -> None:
    """By finite differences at the same draws, in the paths, and for a raw score in the clock."""
    linear = LearnedDiffusion(1, max_log_snr=HIGH, min_log_snr=None if raw else LOW)
    diffusion = driven(linear=linear).eval()
    wavy(diffusion)
    score: Score = NoisePrediction(MLP(2, 8, 1).double())
    if not raw:
        score = Denoiser(MLP(2, 8, 1).double(), torch.zeros(2), torch.ones(2))
    nn.init.normal_(score.network.outlet.weight, std=0.3, generator=generator(1))
    x = normal(9, 8, 2)

    def term() -> Tensor:
        torch.manual_seed(3)
        return score.diffusion_term(diffusion, x)[0].sum()

    network: Any = diffusion.network
    parameters = [network.outlet.weight, network.inlet.weight]
    parameters += [linear.B] if raw else []
    assert_gradients(term, parameters)


@pytest.mark.parametrize("end", ["of the clock", "start", "terminal"])
def test_the_ends_have_their_gradients_for_a_denoiser(end: str) -> None:
    """Of the mean over Gaussian data, by quadrature: ends bound the integral and set the pace."""
    linear = LearnedDiffusion(1, max_log_snr=HIGH, beta=ConstantBeta(0.5))
    if end != "of the clock":
        linear = LearnedDiffusion(1, max_log_snr=4.0, min_log_snr=0.0, learn_ends=1.0)
    parameter, entry = (
        (linear.B, 0) if end == "of the clock" else (linear.moved_ends, end == "terminal")
    )
    network = OneForAll()
    for part in network.parameters():
        part.data.mul_(0.3)
    diffusion = DataDrivenDiffusion(linear, network, means=1e7, scales=1e7).eval()
    score = Denoiser(MLP(1, 4, 1).double(), torch.zeros(1), torch.ones(1))

    def term() -> Tensor:
        low, high = diffusion.terminal_log_snr.item(), diffusion.max_log_snr
        lam = torch.linspace(low, high, 2001, dtype=torch.float64)
        mean, S2, flow, pull = moments(diffusion, lam)
        c = 1 / (1 + torch.exp(-lam))
        left = VARIANCE * (1 - c * mean).square() + c.square() * S2
        rate = lam.exp() / 8 * (flow + pull).square() * left
        return torch.trapezoid(rate, dx=(high - low) / 2000)

    slopes = []
    for seed in range(12):
        torch.manual_seed(seed)
        x = VARIANCE**0.5 * normal(30 + seed, 1024, 1)
        found = score.diffusion_term(diffusion, x)[0].mean()
        slopes.append(torch.autograd.grad(found, parameter)[0].flatten()[int(entry)])
    along = torch.zeros_like(parameter)
    along.view(-1)[int(entry)] = 1
    expected, found = slope(term, parameter, along, 1e-4), torch.stack(slopes)
    error = found.std() / len(found) ** 0.5
    assert abs(expected) > 6 * error
    assert abs(found.mean() - expected) < 5 * error


# -- the volatility --------------------------------------------------------------------------------


def test_the_volatility_is_the_best_for_errors_seen_before() -> None:
    volatility = Volatility()
    u = torch.rand(16000, dtype=torch.float64, generator=generator(0))
    flow, score = (2 + u).square(), (1 + u).square()
    assert bool((volatility(u) == 1).all())
    for part in range(40):
        i = slice(400 * part, 400 * part + 400)
        volatility.record(u[i], flow[i], score[i])
    known = torch.linspace(0.2, 1, 9, dtype=torch.float64)
    best = (2 + known) / (1 + known)
    found = volatility(known)
    assert bool((found > 1 + 0.6 * (best - 1)).all()) and bool((found < best + 0.01).all())
    volatility.record(u[:1], torch.tensor([math.inf]).double(), score[:1])  # is left out
    assert volatility.errors.isfinite().all()


def test_only_training_with_gradients_moves_the_volatility() -> None:
    diffusion, x = driven(), normal(12, 16, 2)
    score = Denoiser(MLP(2, 8, 1).double(), torch.zeros(2), torch.ones(2))
    with torch.no_grad():
        score.diffusion_term(diffusion, x)
    score.diffusion_term(diffusion.eval(), x)
    assert not diffusion.volatility.weight.any()
    score.diffusion_term(diffusion.train(), x)
    assert diffusion.volatility.weight.sum() == pytest.approx(16)


# -- samplers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampler",
    [
        ExponentialIntegrator(40),
        StochasticExponentialIntegrator(60, noise=0.5),
        Ancestral(80),
        EulerMaruyama(100, grid="log_snr"),
        ProbabilityFlow(30),
        TorchSDE(30),
    ],
    ids=str,
)
def test_samplers_end_in_gaussian_data(sampler: Any) -> None:
    diffusion = gaussian()
    wavy(diffusion)
    model = DiffusionModel(diffusion, Exact(diffusion), sampler=sampler)
    torch.manual_seed(1)
    start = diffusion.start
    with torch.no_grad():
        y = sampler(diffusion, model.bound_score, (4000, 1, 1), dtype=torch.float64)
        z = y / start.mean
    expected = VARIANCE + math.exp(-HIGH)
    assert z.var().item() == pytest.approx(expected, rel=0.04 + 5.5 * (2 / 4000) ** 0.5)
    assert abs(z.mean()) < 5 * (expected / 4000) ** 0.5


# -- the library around it -------------------------------------------------------------------------


def test_mistakes() -> None:
    network = MLP(2, 4, 1, out_features=12)
    refused(
        ValueError,
        (lambda: DataDrivenDiffusion(CLD(), network), "CLD of 2 variables, expected one"),
        (lambda: DataDrivenDiffusion(VPSDE(), network, means=0.0, scales=0.0), "both 0, and data"),
        (lambda: DataDrivenDiffusion(VPSDE(), network, means=-1), "means is -1, expected a range"),
        (lambda: DataDrivenDiffusion(VPSDE(), network, degree=2), "2, expected at least 3"),
        (lambda: DataDrivenDiffusion(VPSDE(), network, means=0.0).views(torch.randn(4, 2)),
         r"MLP returned \(4, 12\) .* expected \(4, 6\)"),
    )  # fmt: skip


def test_what_is_made_of_linear_kernels_is_refused() -> None:
    diffusion, x = driven(), normal(17, 8, 2)
    score = Denoiser.fit(MLP(4, 8, 1, out_features=2).double(), x, maps=True)
    model, guide = DiffusionModel(diffusion, score), DiffusionGuide(diffusion)
    law = model.path_law()
    refused(
        (TypeError, ValueError),
        (lambda: DiffusionModel(diffusion, score, times=5), "steps back by x̂ alone"),
        (lambda: guide.law(x, torch.tensor([0.5, 0.7])), "driven by the data; leave out times"),
        (lambda: model.log_prob(x, method="importance"), "steps back by x̂ alone"),
        (lambda: model.log_prob(x, method="flow"), r"log p_ode.* driven by the data"),
        (lambda: law.log_prob(guide.law(x).sample()), r"log p.* of a state alone needs a drift"),
        (lambda: condition(model, torch.tensor([True, False])), "driven by the data"),
        (lambda: Splitting(5)(diffusion, model.bound_score, (3, 1, 2)), "use EulerMaruyama"),
    )


def test_a_score_of_the_raw_state_knows_one_process() -> None:
    diffusion = driven()
    score = NoisePrediction(MLP(2, 8, 1).double())
    model = DiffusionModel(diffusion, score, event_shape=(2,))
    assert model.path_law().sample((3,)).isfinite().all()
    with pytest.raises(TypeError, match="NoisePrediction knows one process alone"):
        ExponentialIntegrator(3)(diffusion, model.bound_score, (3, 1, 2))
    wavy(diffusion)
    with pytest.raises(TypeError, match="NoisePrediction knows one process alone"):
        model.path_law().sample((3,))
    EulerMaruyama(8)(diffusion, model.bound_score, (3, 1, 2))


@pytest.mark.parametrize("score", ["discrete", "denoiser", "noise"])
def test_the_worked_guide_begins_as_the_base_and_learns(score: str) -> None:
    problem = MODELS["digits"]()
    x = problem.to_model_space(problem.train[:8])
    torch.manual_seed(0)
    model = problem.build(means_and_scales(problem.event_shape), score=score)
    assert not any(bool(view.any()) for view in model.diffusion.views(x).values())
    torch.nn.init.normal_(model.score_function.network.outlet[-1].weight, std=0.02)
    elbo_terms(model, DiffusionGuide(model.diffusion), x).elbo.sum().backward()
    outlet = model.diffusion.network.outlet[-1].weight
    means, scales = outlet.grad.unflatten(0, (2, -1))
    assert bool(means.any()) and bool(scales.any())
