"""Blocks and clocks for each data dimension: kernels, bounds, samplers, densities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import (
    ALDA,
    CLD,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    GenerativeChain,
    LinearDiffusion,
    NoisePrediction,
    NoisingPath,
    PerDimensionDiffusion,
    RawScore,
    RectifiedFlow,
    ResidualScore,
    elbo_terms,
)
from pyro_mdm.by_dimension import BlurClocks, Clocks, LearnedClocks, SharedClock, TurnClocks
from pyro_mdm.by_dimension.cells import (
    log_snr_rate_of_block,
    marginal_of_block,
    time_of_block,
)
from pyro_mdm.diffusions.clocks import log_snr_times
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.networks import MLP
from pyro_mdm.paths.density import density_bound
from pyro_mdm.paths.flow import Solver, flow_log_prob
from pyro_mdm.samplers import (
    Ancestral,
    EulerMaruyama,
    ExponentialIntegrator,
    ProbabilityFlow,
    Sampler,
    Splitting,
    StochasticExponentialIntegrator,
    StochasticHeun,
)
from pyro_mdm.samplers.base import Questions
from pyro_mdm.samplers.exponential import transport
from pyro_mdm.simulated import TorchSDE
from tests.gradients import assert_gradients
from tests.mistakes import refused
from tests.problems import Silent, fixed, learned, normal
from tests.varying.problems import learned_in_time

ENDS: dict[str, Any] = {"max_log_snr": 8.0, "min_log_snr": -7.0}
D = 3  # data dimensions
MEAN = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)
VARIANCE = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)


def clocks(number: int) -> LearnedClocks:
    """Learned clocks some way into their training."""
    found = LearnedClocks(number)
    with torch.no_grad():
        found.logits.copy_(fixed(3, *found.logits.shape))
    return found


def blocks() -> list[LinearDiffusion]:
    return [CLD(**ENDS), learned(2, 2, 5, **ENDS)]


CASES: dict[str, Callable[[], PerDimensionDiffusion]] = {
    "blocks": lambda: PerDimensionDiffusion(blocks(), torch.tensor([0, 1, 0])),
    "clocks": lambda: PerDimensionDiffusion(
        VPSDE(**ENDS), clocks=clocks(2), clock_of=torch.tensor([1, 0, 1])
    ),
    "both": lambda: PerDimensionDiffusion(
        blocks(), torch.tensor([0, 1, 0]), clocks(2), torch.tensor([0, 1, 1])
    ),
    "varying": lambda: PerDimensionDiffusion(
        [CLD(**ENDS), learned_in_time(2, 2, 7, **ENDS)], torch.tensor([0, 1, 1])
    ),
    "turns": lambda: PerDimensionDiffusion(
        CLD(**ENDS), None, TurnClocks([[0.0, 0.5], [0.4, 1.0]]), torch.tensor([0, 1, 1])
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def exact() -> Denoiser:
    """That of data N(MEAN, VARIANCE)."""
    return Denoiser(Silent(D), MEAN, VARIANCE, maps=True)


def data(n: int, seed: int = 0) -> Tensor:
    return MEAN + VARIANCE.sqrt() * normal(seed, n, D)


def log_prob(x: Tensor) -> Tensor:
    return -0.5 * ((x - MEAN).square() / VARIANCE + (2 * math.pi * VARIANCE).log()).sum(1)


def local(diffusion: PerDimensionDiffusion, j: int, s: Tensor) -> tuple[Any, Tensor]:
    """The block of dimension j and its own times, found by the definition."""
    block: Any = diffusion.blocks[int(diffusion.block_of[j])]
    reference = diffusion.reference
    high, low = reference.max_log_snr, reference.terminal_log_snr
    u = ((high - reference.log_snr(s)) / (high - low)).clamp(0, 1)
    F = diffusion.clocks(u)[..., int(diffusion.clock_of[j])]
    return block, block.time_at_log_snr(high - F * (high - block.terminal_log_snr))


# -- clocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        SharedClock(),
        clocks(4),
        TurnClocks([[0.0, 0.3], [0.3, 1.0]], leak=0.1),
        BlurClocks([0.0, 0.3, 5.0], width=20.0, blur=4.0),
    ],
)
def test_clocks_run_from_0_to_1_at_their_rates(made: Clocks) -> None:
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    with torch.no_grad():
        F, rate = made(u), made.rate(u)
    assert F.shape == rate.shape == (101, made.number) and F.dtype == torch.float64
    torch.testing.assert_close(F[0], torch.zeros_like(F[0]), atol=1e-14, rtol=0)
    if isinstance(made, BlurClocks):
        kept = 0.95 * torch.exp(-8.0 * made.squares) + 0.05
        torch.testing.assert_close(F[-1], 1 + 2 * (math.log(0.05) - kept.log()) / 20.0)
    else:
        torch.testing.assert_close(F[-1], torch.ones_like(F[-1]))
    assert bool((rate > 0).all()) and bool((F.diff(dim=0) > 0).all())
    inner, h = u[5:-5] + 0.003, 1e-6  # no corner of a turn is here
    with torch.no_grad():
        slope = (made(inner + h) - made(inner - h)) / (2 * h)
        torch.testing.assert_close(slope, made.rate(inner), rtol=1e-6, atol=1e-7)


def test_learned_clocks_start_as_the_common_one() -> None:
    u = torch.linspace(0, 1, 9, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(LearnedClocks(2, degree=5)(u), u[:, None].expand(9, 2))


# -- kernels ---------------------------------------------------------------------------------------


@every_case
@torch.no_grad()
def test_kernels_are_those_of_each_dimensions_block_at_its_own_time(name: str) -> None:
    diffusion = CASES[name]()
    s = log_snr_times(diffusion, 7)[1:-1]
    marginal, of_map = diffusion.marginal(s), diffusion.level(diffusion.cells.progress(s)).log_snr
    step = diffusion.transition(s[1:], s[:-1])
    back = posterior(diffusion, s[1:], s[:-1])
    assert marginal.covariance.shape[:2] == (5, D)
    for j in range(D):
        block, t = local(diffusion, j, s)
        for found, known in (
            (marginal, block.marginal(t)),
            (step, block.transition(t[1:], t[:-1])),
            (back, posterior(block, t[1:], t[:-1])),
        ):
            for a, b in zip(found, known, strict=True):
                torch.testing.assert_close(a[:, j], b, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(of_map[:, j], marginal.log_snr[:, j], rtol=1e-9, atol=1e-7)


@torch.no_grad()
def test_one_variable_needs_no_factorization() -> None:
    """By exponentials of the clock, the same as by kernels, from s near 0 to T."""
    for block in (
        VPSDE(**ENDS),
        learned(1, 1, 10, **ENDS),
        VPSDE(stationary_variance=0.3, max_log_snr=20.0),
        learned_in_time(1, 1, 3, **ENDS),
    ):
        s = torch.cat([1e-3 * block.start_time[None], log_snr_times(block, 9)])
        for a, b in zip(marginal_of_block(block, s), block.marginal(s), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(log_snr_rate_of_block(block, s), block.log_snr_rate(s))
        lam = block.log_snr(s)
        torch.testing.assert_close(time_of_block(block, lam), s, rtol=1e-8, atol=1e-12)
        grids = torch.stack([s[1:], (s[1:] + s[-1]) / 2], 1)[:-1].flip(0)  # of two data
        for noise, powers in ((0.0, 1), (0.5, 3)):
            one, other = (transport(block, t, noise, powers) for t in (grids[:, None], grids))
            for a, b in zip(one, other, strict=True):
                if a is not None:
                    torch.testing.assert_close(a.squeeze(1), b, rtol=1e-6, atol=1e-9)


@every_case
@torch.no_grad()
def test_rates_are_derivatives_in_the_common_time(name: str) -> None:
    diffusion = CASES[name]()
    s, h = log_snr_times(diffusion, 6)[1:-1] * 1.01, 1e-5
    assert bool((s + h < diffusion.horizon).all())
    up, down = diffusion.marginal(s + h), diffusion.marginal(s - h)
    here = diffusion.marginal(s)
    A, g2 = diffusion.drift_matrix(s), diffusion.noise_covariance(s)
    slope = (up.mean - down.mean) / (2 * h)
    torch.testing.assert_close((A @ here.mean[..., None])[..., 0], slope, rtol=1e-4, atol=1e-5)
    slope = (up.covariance - down.covariance) / (2 * h)
    moved = A @ here.covariance + here.covariance @ A.mT + g2
    torch.testing.assert_close(moved, slope, rtol=1e-4, atol=1e-5)
    G = diffusion.dispersion(None, s)
    torch.testing.assert_close(G @ G.mT, g2)
    rate = -(up.log_snr - down.log_snr) / (2 * h)
    torch.testing.assert_close(
        diffusion.cells.spread(diffusion.cells.log_snr_rate(s), s.shape).expand_as(rate),
        rate,
        rtol=1e-4,
        atol=1e-5,
    )
    kappa = (diffusion.log_volume(s + h) - diffusion.log_volume(s - h)) / (2 * h)
    torch.testing.assert_close(diffusion.log_volume.rate(s), kappa, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(diffusion.log_volume.inverse(diffusion.log_volume(s)), s)


# -- bounds ----------------------------------------------------------------------------------------


def programs(diffusion: Any, score: Any) -> tuple[DiffusionModel, DiffusionGuide]:
    model = DiffusionModel(diffusion, score, exact().default_likelihood(), event_shape=(D,))
    return model, DiffusionGuide(diffusion)


@torch.no_grad()
def test_one_block_on_the_common_clock_is_that_block() -> None:
    block, x = CLD(**ENDS), data(64)
    alone = PerDimensionDiffusion(block, torch.zeros(1, dtype=torch.long))
    network = MLP(2 * D, out_features=2 * D).double()
    for score in (exact(), NoisePrediction(network)):
        found = []
        for diffusion in (block, alone):
            torch.manual_seed(0)
            found.append(elbo_terms(*programs(diffusion, score), x))
        for (_, a), (_, b) in zip(*(terms.items() for terms in found), strict=True):
            torch.testing.assert_close(a, b)
    for sampler in (
        EulerMaruyama(6, grid="log_snr"),
        ProbabilityFlow(3, grid="log_snr"),
        ExponentialIntegrator(5),
        TorchSDE(3, grid="log_snr"),
        StochasticHeun(3, grid="log_snr"),
    ):
        one, other = (
            sampler(
                diffusion,
                programs(diffusion, exact())[0].bound_score,
                (4, 2, D),
                torch.Generator().manual_seed(1),
            )
            for diffusion in (block, alone)
        )
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("both", "denoiser"), ("varying", "noise")])
def test_gradients_are_those_of_finite_differences(name: str, kind: str) -> None:
    diffusion, x = CASES[name](), data(5)
    torch.manual_seed(0)
    if kind == "denoiser":
        score: Any = Denoiser(MLP(2 * D, out_features=D).double(), MEAN, VARIANCE, maps=True)
    else:
        K = diffusion.num_variables
        score = NoisePrediction(MLP(K * D, out_features=K * D).double())
    for parameter in score.parameters():
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    model, guide = programs(diffusion, score)
    learned_ones = [p for p in diffusion.parameters() if p.requires_grad]
    assert learned_ones

    def loss() -> Tensor:
        torch.manual_seed(2)
        return elbo_terms(model, guide, x).elbo.sum()

    assert_gradients(loss, learned_ones, rel=2e-4, abs=1e-3, least=0)


@torch.no_grad()
def test_a_residual_score_begins_as_that_of_its_gaussian_fit() -> None:
    diffusion, x = CASES["both"](), data(3000)
    score = ResidualScore.fit(Silent(2 * D), diffusion, x, num_levels=65)
    fitted = Denoiser(Silent(D), x.mean(0), x.var(0, unbiased=False), maps=True)
    s = diffusion.time_at_log_snr(score.levels[[8, 32, 56]])
    y = normal(1, 3, 2, D)
    found, known = score.score(diffusion, y, s), fitted.score(diffusion, y, s)
    torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_chains_have_the_densities_of_their_dimensions() -> None:
    diffusion, x = CASES["both"](), data(6)
    times = log_snr_times(diffusion, 9)
    noising = NoisingPath(diffusion, x, times)
    chain = GenerativeChain(diffusion, exact(), (D,), times)
    torch.manual_seed(0)
    path = noising.rsample()
    known = [torch.zeros(6, dtype=torch.float64) for _ in range(2)]
    for j in range(D):
        block, t = local(diffusion, j, times)
        t = t.clamp(block.start_time.item(), block.horizon)
        one = Denoiser(Silent(1), MEAN[j : j + 1], VARIANCE[j : j + 1])
        mine = path[..., j : j + 1]
        known[0] += NoisingPath(block, x[:, j : j + 1], t).log_prob(mine)
        known[1] += GenerativeChain(block, one, (1,), t).log_prob(mine)
    torch.testing.assert_close(noising.log_prob(path), known[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(chain.log_prob(path), known[1], rtol=1e-5, atol=1e-4)
    assert chain.sample((4,)).shape == (4, 9, 2, D)


COVARIANCE = VARIANCE.sqrt()[:, None] * (0.3 * torch.eye(D).double() + 0.7) * VARIANCE.sqrt()


class Correlated(Denoiser):
    """The exact denoiser of data N(MEAN, COVARIANCE), whose rates of flow no dimension lacks."""

    def x_hat(self, z: Tensor, log_snr: Any) -> Tensor:
        v = torch.exp(-torch.as_tensor(log_snr, dtype=torch.float64)).expand(z.shape)
        whole = COVARIANCE + torch.diag_embed(v)
        solved = torch.linalg.solve(whole, (z.double() - MEAN).unsqueeze(-1))
        return (MEAN + (COVARIANCE @ solved).squeeze(-1)).to(z.dtype)


@pytest.mark.parametrize("name", ["blocks", "clocks"])
@torch.no_grad()
def test_the_flow_and_the_bound_on_a_state_know_its_density(name: str) -> None:
    diffusion, x = CASES[name]().requires_grad_(False), data(2)
    y = DiffusionGuide(diffusion).law(x).rsample()[:, 0]
    marginal, K = diffusion.start, diffusion.num_variables
    a, Sigma = marginal.mean.reshape(D, K), marginal.covariance.reshape(D, K, K)
    S = torch.block_diag(*Sigma) + (
        a[:, :, None, None] * COVARIANCE[:, None, :, None] * a[None, None]
    ).reshape(D * K, D * K)
    law = torch.distributions.MultivariateNormal((a * MEAN[:, None]).flatten(), S)
    known = law.log_prob(y.mT.flatten(1))
    score = Correlated(Silent(D), MEAN, VARIANCE, maps=True)
    for method, steps in (("rk4", 16), ("adams", 64)):
        flow = flow_log_prob(diffusion, score, y, Solver(method, steps=steps)).log_prob
        # but for the prior, which is not quite the law of y_T
        torch.testing.assert_close(flow, known, rtol=0, atol=0.2)
    many = density_bound(diffusion, score, y.repeat(120, 1, 1)).reshape(120, -1)
    error = many.std(0) / math.sqrt(len(many))
    assert bool(((many.mean(0) - known).abs() < 5 * error + 5e-3).all())


@torch.no_grad()
def test_the_flow_without_a_score_is_that_of_the_drift() -> None:
    """log p(y) = log π(M y) + log det M, where each dimension has its own M."""
    diffusion = CASES["blocks"]().requires_grad_(False)
    K, y = diffusion.num_variables, normal(4, 3, diffusion.num_variables, D)
    moved = diffusion.transition(diffusion.horizon, diffusion.start_time).matrix.reshape(D, K, K)
    known = diffusion.prior.log_prob(apply_matrix(moved[None], y)) + moved.logdet().sum()
    raw = RawScore(Silent(K * D))
    flow = flow_log_prob(diffusion, raw, y, Solver("rk4", steps=20)).log_prob
    torch.testing.assert_close(flow, known, rtol=0, atol=5e-3)


# -- samplers --------------------------------------------------------------------------------------

SAMPLERS: list[Sampler] = [
    EulerMaruyama(4),
    Splitting(4),
    Ancestral(4),
    ExponentialIntegrator(4),
    ExponentialIntegrator(5, order=3),
    StochasticExponentialIntegrator(5, noise=0.5),
]


@pytest.mark.parametrize(
    ("name", "sampler"),
    [(name, s) for name in CASES for s in SAMPLERS[:: 1 if name == "both" else 3]],
    ids=str,
)
@torch.no_grad()
def test_a_dimension_is_sampled_as_its_block_alone_on_its_own_times(
    name: str, sampler: Sampler
) -> None:
    """Independent data: every sampler does to dimension j what it does to block j with the grid of
    its own times, from the same noise. (Splitting asks in the middle of the common step.)"""
    diffusion, n = CASES[name](), 5
    times = sampler.times(diffusion)
    noises = normal(1, 50, n, diffusion.num_variables, D)

    def run(of: Any, score: Any, grid: Tensor, j: slice) -> Tensor:
        y, drawn = normal(2, n, of.num_variables, D)[..., j], iter(noises[..., j])
        ask = Questions(of, score, torch.float64)
        plan = sampler.planned(ask, grid, y)
        for i in range(sampler.steps):
            y = sampler.step(plan, i, y, ask, lambda: next(drawn))
        return y

    model = programs(diffusion, exact())[0]
    found = run(diffusion, model.bound_score, times, slice(None))
    for j in range(D):
        if isinstance(sampler, Splitting) and not (name == "blocks" and j != 1):
            continue
        block, t = local(diffusion, j, times)
        alone = Denoiser(Silent(1), MEAN[j : j + 1], VARIANCE[j : j + 1])
        one = DiffusionModel(block, alone)
        t = t.clamp(block.start_time.item(), block.horizon)
        known = run(block, one.bound_score, t, slice(j, j + 1))
        torch.testing.assert_close(found[..., j : j + 1], known, rtol=2e-5, atol=2e-6)


# -- folders and mistakes --------------------------------------------------------------------------


@torch.no_grad()
def test_what_is_kept_is_forgotten_when_anything_moves() -> None:
    diffusion = CASES["both"]()
    s = torch.tensor([0.3], dtype=torch.float64)
    before = diffusion.drift_matrix(s)
    assert torch.equal(diffusion.drift_matrix(s), before)
    diffusion.clocks.logits[:, 0] += 1.0
    clock = diffusion.drift_matrix(s)
    assert not torch.equal(clock, before)
    diffusion.blocks[1].min_log_snr = -6.0
    assert not torch.equal(diffusion.drift_matrix(s), clock)
    now = diffusion.drift_matrix(s)
    assert torch.equal(diffusion.to("cpu").drift_matrix(s), now)


def test_images_share_along_dimensions_of_size_1() -> None:
    colours = torch.tensor([0, 1, 1]).reshape(3, 1, 1)
    diffusion = PerDimensionDiffusion(blocks(), colours)
    x = normal(0, 4, 3, 2, 2)
    law = DiffusionGuide(diffusion).law(x)
    path = law.rsample()
    assert path.shape == (4, 1, 2, 3, 2, 2) and law.log_prob(path).shape == (4,)
    assert diffusion.marginal(0.5).covariance.shape == (1, 3, 1, 1, 2, 2)
    assert len(diffusion.cells) == 2
    with pytest.raises(ValueError, match="expected as many dimensions"):
        DiffusionGuide(diffusion).law(normal(0, 4, 3))


def test_mistakes_are_told() -> None:
    def made(*arguments: Any) -> Callable[[], object]:
        return lambda: PerDimensionDiffusion(*arguments)

    index, told_one = torch.tensor([0, 1]), Denoiser(Silent(D), MEAN, VARIANCE)
    refused(
        (TypeError, ValueError),
        (made([CLD(), VPSDE()], index), "expected one of each"),
        (made([CLD(), CLD(max_log_snr=3.0)], index), "expected one of each"),
        (made([CLD(), CLD()]), "neither block_of nor clock_of"),
        (made([CLD(), CLD()], torch.tensor([0, 2])), "expected integers from 0 to 1"),
        (made(CLD(), None, clocks(2), torch.tensor([0.5, 1.0])), "expected integers"),
        (made(CLD(cut_time=0.01), torch.tensor([0])), "leave out cut_time"),
        (made(["cld"], index), "blocks"),
        (lambda: TurnClocks([[0.5, 0.2]]), "beginning before its end"),
        (lambda: elbo_terms(*programs(CASES["clocks"](), told_one), data(4)), "maps=True"),
        (lambda: Denoiser(Silent(1), maps=True), "shape of a datum"),
    )
    assert PerDimensionDiffusion([ALDA()], index * 0).num_variables == 3


def test_a_block_that_no_dimension_has_is_not_computed() -> None:
    volume = PerDimensionDiffusion(blocks(), torch.tensor([1, 1])).log_volume
    s, h = torch.tensor([0.3, 0.6], dtype=torch.float64), 1e-5
    slope = (volume(s + h) - volume(s - h)) / (2 * h)
    torch.testing.assert_close(volume.rate(s), slope, rtol=1e-6, atol=0)


def test_what_is_kept_is_of_the_matrices_that_were_loaded() -> None:
    def noised(*friction: float) -> PerDimensionDiffusion:
        blocks = [
            LinearDiffusion([[0.0, -1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, g]]) for g in friction
        ]
        return PerDimensionDiffusion(blocks, torch.tensor([0, 1, 1]))

    one, other = noised(2.0, 1.0), noised(5.0, 1.0)
    s = torch.tensor(0.5)
    before = one.marginal(s).covariance
    one.load_state_dict(other.state_dict())
    after = one.marginal(s).covariance
    assert torch.equal(after, other.marginal(s).covariance)
    assert (after - before).abs().max() > 0.1


def test_time_t_is_that_of_blocks_whose_ends_are_set() -> None:
    diffusion = PerDimensionDiffusion([RectifiedFlow(), RectifiedFlow()], torch.tensor([0, 1]))
    for low in (-6.0, -12.0):
        diffusion.min_log_snr = low
        block = RectifiedFlow(min_log_snr=low)
        assert diffusion.horizon == block.horizon
        assert (diffusion.terminal.log_snr - low).abs().max() < 1e-6
