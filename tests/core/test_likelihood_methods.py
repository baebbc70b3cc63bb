"""Likelihoods by weights: of a chain on a grid, and of the probability-flow ODE."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import (
    CLD,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    LearnedDiffusion,
    NoisePrediction,
    NonlinearDiffusion,
    RawScore,
    Simulated,
    Simulation,
    likelihoods,
    randomness,
)
from pyro_mdm.diffusions.base import separate_node
from pyro_mdm.diffusions.clocks import LinearBeta, log_snr_times
from pyro_mdm.evaluation import Weighted, log_likelihood
from pyro_mdm.evaluation.importance import importance_weighted, probability_flow
from pyro_mdm.networks import MLP
from pyro_mdm.paths.base import BoundScore
from pyro_mdm.paths.flow import Solver, divergence, flow_log_prob, with_divergence
from pyro_mdm.paths.likelihood import chain_of
from tests import problems
from tests.core.test_distribution import with_weights
from tests.gradients import assert_gradients
from tests.known_bound import DIMS, MEAN, VARIANCE, data, denoiser, programs
from tests.mistakes import refused
from tests.simulated.problems import Reversible

DIFFUSIONS = {
    "vpsde": lambda: VPSDE(max_log_snr=8.0),
    "cld": lambda: CLD(max_log_snr=8.0),
    "rank1": lambda: LearnedDiffusion(2, 1, max_log_snr=8.0, min_log_snr=-12.0),
}
every = pytest.mark.parametrize("make", DIFFUSIONS.values(), ids=DIFFUSIONS)


def true_log_prob(x: Tensor) -> Tensor:
    return torch.distributions.Normal(MEAN, math.sqrt(VARIANCE)).log_prob(x).sum(-1)


@torch.no_grad()
def test_one_weight_is_that_of_its_path() -> None:
    """log w = log p(x | y_ε) + log p_θ(path) - log q(path | x), at the same draw."""
    model, guide = programs(CLD(max_log_snr=8.0), denoiser(0.3), dims=2)
    x, times = data(6, dims=2), log_snr_times(model.diffusion, 9)
    found = importance_weighted(model, guide, x, samples=1, times=times, seed=4)
    chain, law = chain_of(model, times), guide.law(x, times)
    with randomness.piece(0, 1, 4):
        path = law.rsample()
        decoder = model.likelihood(model.diffusion, model.score_function, path[:, 0])
    known = decoder.log_prob(x) + chain.log_prob(path) - law.log_prob(path)
    torch.testing.assert_close(found.per_datum, known, rtol=1e-9, atol=1e-9)


class BesideRest(nn.Module):
    """The score of N(0, 1), which holds states together, and something random."""

    def __init__(self, features: int = 1) -> None:
        super().__init__()
        self.network = MLP(features, hidden=8, depth=1).double()
        for p in self.network.parameters():
            nn.init.normal_(p, std=0.3)

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return torch.tanh(self.network(y, level)) - y


@torch.no_grad()
def test_probes_are_unbiased_for_the_density_of_the_flow() -> None:
    score = RawScore(BesideRest(3))
    for k, p in enumerate(score.parameters()):
        p.copy_(0.3 * problems.fixed(k, *p.shape))  # on which the error hangs
    diffusion = VPSDE(max_log_snr=4.0)
    y = problems.fixed(9, 1, 1, 3)
    truth = flow_log_prob(diffusion, score, y, Solver("rk4", steps=20)).log_prob
    many = y.expand(200, 1, 3)
    found = flow_log_prob(diffusion, score, many, Solver("rk4", steps=20, probes=1)).log_prob
    error = float(found.std()) / math.sqrt(200)
    assert 1e-4 < error < 0.15 and abs(float(found.mean() - truth)) < 6 * error


@torch.no_grad()
def test_the_density_of_the_flow_is_a_density() -> None:
    """Whatever the network: ∫ p_ode(y_ε) dy = 1 by quadrature, for a linear and a simulated one."""
    torch.manual_seed(0)
    score = RawScore(BesideRest())
    y = torch.linspace(-9, 9, 361, dtype=torch.float64)[:, None, None]
    for diffusion in (VPSDE(max_log_snr=4.0), Simulated(VPSDE(max_log_snr=4.0))):
        found = flow_log_prob(diffusion, score, y, Solver("rk4", steps=30))
        total = float(found.log_prob.exp().sum()) * 18 / 360
        assert total == pytest.approx(1, abs=2e-3) and found.calls == 120


class Times(nn.Module):
    """a y for the score."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return self.a * y


class Decay(NonlinearDiffusion):
    """dy = β(s) (-0.8 y ds) + dB, β from 0.5 to 3."""

    def __init__(self) -> None:
        super().__init__(1, beta=LinearBeta(0.5, 3.0), horizon=1.5)

    def drift(self, y: Tensor, s: Tensor) -> Tensor:
        return -0.8 * self.rate(s).reshape(-1, 1, 1) * y

    def dispersion(self, y: Tensor, s: Tensor) -> Tensor:
        return torch.eye(1, dtype=torch.float64)


@torch.no_grad()
def test_the_flow_of_a_simulated_diffusion_is_timed_by_its_clock() -> None:
    """Without a score it is y_T = e^{-0.8 b(T)} y; in time s, whatever its speed."""
    diffusion, y = Decay(), problems.normal(2, 5, 1, 2)
    log_scale = -0.8 * float(diffusion.clock(1.5))
    expected = diffusion.prior.log_prob(math.exp(log_scale) * y) + 2 * log_scale
    found = flow_log_prob(diffusion, RawScore(Times(0.0)), y, Solver("rk4", steps=100))
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_nothing_flows_at_rest_where_noise_depends_on_the_state() -> None:
    diffusion, y = Reversible(), problems.normal(4, 5, 2, 2)
    found = flow_log_prob(diffusion, RawScore(Times(-1.0)), y, Solver("rk4", steps=2))
    torch.testing.assert_close(found.log_prob, diffusion.prior.log_prob(y))


def noise(found: Weighted) -> float:
    """The standard error of Σ_x p(x), by the spread of the weights that were drawn alone."""
    square = 1 / found.effective_samples - 1 / found.num_weights
    return float((found.per_datum.exp().square() * square).sum().sqrt())


def test_probabilities_of_levels_add_up_to_one() -> None:
    """p_grid(x) over all x of a dimension of three levels; the flow's too."""
    torch.manual_seed(1)
    train_x = torch.randint(3, (200, 1)) - 1.0
    network = MLP(1, hidden=16, depth=1, out_features=3)
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    diffusion = CLD(max_log_snr=5.0)
    score = DiscreteDenoiser.fit(network, train_x, levels=3)
    model = DiffusionModel(diffusion, score, event_shape=(1,)).eval().requires_grad_(False)
    guide = DiffusionGuide(diffusion)
    x = torch.tensor([[-1.0], [0.0], [1.0]])
    found = importance_weighted(model, guide, x, samples=300, times=33)
    error = noise(found)
    assert error < 0.4  # 0.02 mostly; weights have heavy tails
    assert abs(float(found.per_datum.exp().sum()) - 1) < 6 * error
    solver = Solver("rk4", steps=24)
    flow = probability_flow(model, guide, x, samples=30, solver=solver)
    error = noise(flow)
    assert error < 0.05 and abs(float(flow.per_datum.exp().sum()) - 1) < 6 * error
    assert float(flow.bound.mean) < flow.mean


def test_mistakes() -> None:
    model, guide = programs(VPSDE(max_log_snr=8.0), denoiser())
    x, two = data(4), Solver(probes=2)
    simulated = Simulated(VPSDE(max_log_snr=8.0), Simulation(step_size=0.25, points=1))
    raw = DiffusionModel(simulated, RawScore(MLP(DIMS)), event_shape=(DIMS,))
    refused(
        (TypeError, ValueError),
        (
            lambda: probability_flow(model, guide, x, samples=3, solver=two),
            "samples is 3 and probes 2",
        ),
        (lambda: importance_weighted(raw, DiffusionGuide(simulated), x.float()), "and its bound"),
        (lambda: log_likelihood(model, guide, x, method="flow", draws=3), "draws is no option of"),
        (lambda: model.log_prob(x[:, 0], method="importance"), "x has shape"),
        (lambda: model.log_prob(x, times=9), "times are of method 'importance', and method is"),
    )


# -- by name ---------------------------------------------------------------------------------------


@every
def test_log_prob_of_a_model_is_a_function_of_x(make) -> None:
    """It agrees with the truth, to what its draws leave; a seed fixes them."""
    model, _ = programs(make(), denoiser())
    model.eval().requires_grad_(False)
    x = data(3)
    truth = true_log_prob(x)
    repeated = x.repeat(300, 1)
    for method, options in {"elbo": {}, "importance": {"times": 17}}.items():
        once, again = (model.log_prob(x, method=method, seed=2, **options) for _ in range(2))
        assert torch.equal(once, again)
        found = model.log_prob(repeated, method=method, seed=2, **options)
        draws = found.detach().reshape(300, 3)
        error = draws.std(0) / math.sqrt(300)
        assert bool((draws.mean(0) < truth + 6 * error + 0.02).all())
        if method == "elbo":  # which is tight where the score is exact
            assert bool((draws.mean(0) > truth - 6 * error - 0.05).all())
    if make is DIFFUSIONS["rank1"]:  # slow
        return
    flow = model.log_prob(x, method="flow", solver=Solver(rtol=1e-4, atol=1e-4))
    torch.testing.assert_close(flow, truth, atol=0.04, rtol=0)


def test_log_prob_of_weights_is_the_log_of_their_mean() -> None:
    model, _ = programs(VPSDE(max_log_snr=8.0), denoiser(), dims=1)
    model.requires_grad_(False)
    x = data(5, dims=1)

    def drawn(number: int, draws: int) -> Tensor:
        many = x.repeat(number, 1)
        found = model.log_prob(many, method="importance", draws=draws, times=9)
        return found.reshape(number, 5)

    one, four = drawn(400, 1), drawn(400, 4)
    error = float((one.mean(1).std() / 20).hypot(four.mean(1).std() / 20))
    assert float(one.mean()) + 3 * error < float(four.mean())
    ones, fours = (weights.exp() / one.exp().mean(0) for weights in (one, four))
    spread = (ones.var(0) + fours.var(0)).sqrt() / 20
    assert bool(((ones.mean(0) - fours.mean(0)).abs() < 6 * spread).all())
    assert float(spread.max()) < 0.6


# -- the divergence of a score ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [VPSDE, CLD, lambda **o: LearnedDiffusion(2, **o)])
@pytest.mark.parametrize("kind", ["denoiser", "noise"])
def test_the_divergence_of_a_score_is_that_of_its_jacobian(
    make, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    diffusion = make(max_log_snr=6.0)
    K, d = diffusion.num_variables, 3
    if kind == "denoiser":
        network = with_weights(MLP(d))
        score = Denoiser(network, torch.zeros(d).double(), torch.ones(d).double())
    else:
        score = NoisePrediction(with_weights(MLP(K * d)))
    bound = BoundScore(diffusion, score)
    s = torch.tensor([0.01, 0.2, 0.5, 0.9]).double()
    y = separate_node(torch.randn(4, K, d).double())
    theta, found = with_divergence(bound, y, s, "exact")
    torch.testing.assert_close(theta, bound(y, s))
    g2 = diffusion.noise_covariance(s).detach()
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda v, i=i: g2[i] @ bound(v[None], s[i : i + 1])[0], y[i].detach()
        )
        torch.testing.assert_close(
            found[i], jacobian.reshape(K * d, -1).trace(), rtol=1e-7, atol=1e-6
        )

    def every_sign(shape: tuple[int, ...], law: str, like: Tensor) -> Tensor:
        numbers = math.prod(shape[1:])
        signs = 2.0 * (torch.arange(shape[0])[:, None] // 4 >> torch.arange(numbers) & 1) - 1
        return signs.reshape(shape).to(like)

    # each vector of signs is as probable as any other, and over all of them the mean is exact
    monkeypatch.setattr("pyro_mdm.paths.flow._probe", every_sign)
    number = 2 ** (K * d)
    many = separate_node(y.detach().repeat(number, 1, 1))
    by_probe = with_divergence(bound, many, s.repeat(number), 1)[1]
    torch.testing.assert_close(by_probe.reshape(number, 4).mean(0), found)


class Failing(torch.autograd.Function):
    """2 y, whose derivatives fail as often as there are errors left."""

    errors: list[RuntimeError]

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return 2 * y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if Failing.errors:
            raise Failing.errors.pop(0)
        return 2 * grad


@pytest.mark.parametrize(
    ("errors", "raised"),
    [
        ([RuntimeError("takes no batch")], None),
        ([RuntimeError("takes no batch"), RuntimeError("is broken")], "is broken"),
        ([torch.OutOfMemoryError("no memory")], "no memory"),
    ],
)
def test_a_derivative_that_takes_no_batch_is_taken_by_rows_and_other_errors_are_raised(
    errors: list[RuntimeError], raised: str | None
) -> None:
    Failing.errors = list(errors)
    y = separate_node(torch.randn(3, 2, 6).double())
    field: Any = Failing.apply(y)
    with pytest.raises(RuntimeError, match=raised) if raised else nullcontext():
        found = divergence(field, y, None, "exact", create_graph=False)
        torch.testing.assert_close(found.value, torch.full((3,), 24.0).double())
    assert not Failing.errors


def test_near_the_data_probes_leave_what_is_known_alone() -> None:
    """Σ^{-1} y is large there and has cross terms of variables, which no probe sees."""
    torch.manual_seed(0)
    diffusion = LearnedDiffusion(2, max_log_snr=9.0, min_log_snr=-10.0)
    x = torch.randint(3, (50, 8)) - 1.0
    network = with_weights(MLP(8, out_features=24), 0.05)
    score = DiscreteDenoiser.fit(network, x.double(), levels=3)
    s = diffusion.start_time.detach().expand(50)
    y = separate_node(DiffusionGuide(diffusion).law(x.double()).rsample()[:, 0])
    bound, G = BoundScore(diffusion, score), diffusion.dispersion(None, s).unsqueeze(1).detach()
    spread = []
    for probes in (1, "exact"):
        found = with_divergence(bound, y, s, probes)[1].detach()
        plain = divergence(bound(y, s), y, G, probes).value.detach()
        spread.append((found, plain))
    (found, plain), (exact, same) = spread
    torch.testing.assert_close(exact, same)
    assert float((found - exact).std()) < 0.1 * float((plain - exact).std())


@pytest.mark.parametrize(
    ("method", "probes"), [("elbo", 0), ("importance", 0), ("flow", 0), ("flow", 1)]
)
def test_log_prob_has_derivatives_whatever_the_levels(method: str, probes: int) -> None:
    """In x and in a weight, by finite differences at the same draws, of 256 levels."""
    torch.manual_seed(0)
    train_x = (torch.randint(256, (50, 2)) / 127.5 - 1).double()
    network = with_weights(MLP(2, out_features=4), 0.1)
    score = DiscreteDenoiser.fit(network, train_x, levels=256)
    model = DiffusionModel(VPSDE(max_log_snr=4.0), score, likelihoods.Gaussian())
    x, weight = train_x[:3].clone().requires_grad_(), next(network.parameters())
    options: dict = {
        "importance": {"times": 5},
        "flow": {"solver": Solver("rk4", steps=4, probes=probes)},
    }.get(method, {})

    def total() -> Tensor:
        return model.log_prob(x, method=method, seed=1, **options).sum()

    assert_gradients(total, [x, weight], h=1e-6, rel=1e-4, abs=1e-4)
