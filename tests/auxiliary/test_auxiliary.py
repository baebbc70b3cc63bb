"""What is made of auxiliary variables, against closed forms and quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_mdm import (
    CLD,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    LinearDiffusion,
    NoisePrediction,
    PerDimensionDiffusion,
    Simulated,
)
from pyro_mdm.auxiliary import (
    AuxiliaryUse,
    GaussianPosterior,
    auxiliary_information,
    auxiliary_use,
)
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.scores import Score
from tests.diffusions import DIFFUSIONS
from tests.problems import GaussianMixture, Silent, learned, normal

MEAN, VARIANCE = 0.2, 0.49
TOP = 4.0
CASES: list[tuple[str, Callable[[], LinearDiffusion]]] = [
    ("cld", lambda: CLD(max_log_snr=TOP)),
    ("learned_3_rank_1", lambda: learned(3, 1, 54, max_log_snr=TOP)),
]
cases = pytest.mark.parametrize("make", [make for _, make in CASES], ids=[n for n, _ in CASES])


class EveryDimension(Score):
    """The exact score of data whose dimensions are independent draws of a law of one dimension."""

    def __init__(self, problem: GaussianMixture) -> None:
        super().__init__(Silent())
        self.problem = problem

    def score_at(self, diffusion: Any, y: Tensor, at: Any) -> Tensor:
        (n, K, d), s = y.shape, at.s.expand(len(y))
        rows = self.problem.score(diffusion, y.mT.reshape(-1, K, 1), s.repeat_interleave(d))
        return rows.reshape(n, d, K).mT


class Linear(nn.Module):
    """ε_θ = ½ y: what it makes of the state has nothing to do with what that says of x."""

    def forward(self, y: Tensor, log_snr: Tensor) -> Tensor:
        return 0.5 * y


def used(diffusion: Any, score: Any, x: Tensor, **options: Any) -> AuxiliaryUse:
    model = DiffusionModel(diffusion, score, event_shape=x.shape[1:])
    return auxiliary_use(model, DiffusionGuide(diffusion), x, **options)


@torch.no_grad()
def on_the_way(
    diffusion: LinearDiffusion, value: Callable[[Tensor, Any], Tensor], points: int = 1000
) -> float:
    """½ ∫ value(s, law) ds from ε to T, by the midpoint rule in log volume."""
    s = diffusion.way.time_at((torch.arange(points).double() + 0.5) / points)
    rate = value(s, diffusion.marginal(s)) * diffusion.way.speed(s)
    return 0.5 * float(rate.mean())


def lost_without_v(diffusion: LinearDiffusion, mmse: Callable[[Tensor], Tensor]) -> float:
    """½ ∫ (mmse(λ_x) - mmse(λ)) e^λ (-dλ/ds) ds."""

    def value(s: Tensor, law: Any) -> Tensor:
        of_x = (law.mean[:, 0].square() / law.covariance[:, 0, 0]).log()
        pace = law.log_snr.exp() * diffusion.log_snr_rate(s)
        return (mmse(of_x) - mmse(law.log_snr)) * pace

    return on_the_way(diffusion, value)


def near(measured: tuple[float, float], truth: float, resolves: float = 0.8) -> bool:
    """Within five standard errors, of which five are less than the truth."""
    mean, error = measured
    assert 5 * error < resolves * abs(truth), f"{mean} ± {error} resolves nothing of {truth}"
    return abs(mean - truth) < 5 * error


@cases
def test_what_gaussian_data_lose_without_v_is_known(make: Callable[[], LinearDiffusion]) -> None:
    diffusion, d = make(), 64
    mean, variance = torch.full((d,), MEAN).double(), torch.full((d,), VARIANCE).double()
    x = mean + variance.sqrt() * normal(1, 80, d)
    posterior = GaussianPosterior(mean, torch.diag(variance))
    score = Denoiser(Silent(), mean, variance)
    use = used(diffusion, score, x, draws=6, posterior=posterior)

    def mmse(log_snr: Tensor) -> Tensor:
        return VARIANCE / (1 + VARIANCE * log_snr.exp())

    assert near(use.loss_x_alone, d * lost_without_v(diffusion, mmse))
    ends = [diffusion.max_log_snr, float(diffusion.terminal_log_snr.detach())]
    information = [0.5 * d * math.log1p(VARIANCE * math.exp(end)) for end in ends]
    assert near(use.diffusion, information[0] - information[1])
    assert use.x_alone.mean == pytest.approx(use.diffusion.mean + use.loss_x_alone.mean)
    assert use.z_alone.mean == pytest.approx(use.diffusion.mean + use.loss_z_alone.mean)
    assert -1e-18 < use.loss_z_alone.mean <= 0
    assert (use.num_data, use.num_dims, use.network_calls) == (80, d, 36)


def test_what_a_mixture_loses_without_v_is_known() -> None:
    """The score is the exact one of the raw state, and draws are from the exact posterior."""
    diffusion = CLD(max_log_snr=TOP)
    problem = GaussianMixture(
        [0.4, 0.6], torch.tensor([[-0.9], [0.7]]), torch.tensor([[[0.04]], [[0.09]]])
    )
    d = 8
    w, m, c = problem.log_weights.exp(), problem.means[:, 0], problem.covariances[:, 0, 0]

    def posterior(z: Tensor, log_snr: Tensor) -> Tensor:
        shape, v = z.shape, (-log_snr).exp().repeat_interleave(d)[:, None]
        z = z.reshape(-1, 1)
        log_joint = w.log() - 0.5 * ((z - m).square() / (c + v) + (c + v).log())
        i = torch.multinomial(log_joint.softmax(1), 1)
        of_mean = m[i] + c[i] / (c[i] + v) * (z - m[i])
        drawn = of_mean + (c[i] * v / (c[i] + v)).sqrt() * torch.randn_like(z)
        return drawn.reshape(shape)

    z = torch.linspace(-60.0, 60.0, 3001, dtype=torch.float64)
    levels = torch.linspace(-6.0, TOP, 41, dtype=torch.float64)

    def at(level: Tensor) -> Tensor:
        """E Var(x | z) = E x² - E (E[x | z])²."""
        v = (-level).exp()
        density = (w * MultivariateNormal(m[:, None], (c + v)[:, None, None]).log_prob(
            z[:, None, None]).exp()).sum(1)  # fmt: skip
        x_hat = problem.x_hat(z[:, None], level)[:, 0]
        second = (w * (c + m.square())).sum()
        return second - (density * x_hat.square()).sum() * (z[1] - z[0])

    known = torch.stack([at(level) for level in levels])

    def mmse(log_snr: Tensor) -> Tensor:
        i = ((log_snr - levels[0]) / (levels[1] - levels[0])).clamp(0, 39.999)
        low = i.long()
        return torch.lerp(known[low], known[low + 1], i - low)

    x = problem.sample(60 * d, 3).reshape(60, d)
    use = used(diffusion, EveryDimension(problem), x, draws=6, posterior=posterior)
    assert near(use.loss_x_alone, d * lost_without_v(diffusion, mmse))
    assert abs(use.loss_z_alone.mean) < 1e-12
    assert near(use.diffusion, d * on_the_way(diffusion, lambda s, law: (
        mmse(law.log_snr) * law.log_snr.exp() * diffusion.log_snr_rate(s))))  # fmt: skip


@cases
def test_what_a_score_makes_of_noise_is_known(make: Callable[[], LinearDiffusion]) -> None:
    """For s_θ = -½ L^{-T} y it is h = (Σ^{-1} - ½ L^{-T}) y, of r alone."""
    diffusion, x = make(), normal(1, 100, 4)
    use = used(diffusion, NoisePrediction(Linear()), x, draws=6)

    def value(s: Tensor, law: Any) -> Tensor:
        W = inverse_tril(law.scale_tril)
        h = W.mT @ W - 0.5 * W.mT
        snr = law.log_snr.exp()[:, None, None]
        of_r = law.covariance - law.mean[..., None] * law.mean[..., None, :] / snr
        spread = h @ of_r @ h.mT
        return (spread * diffusion.noise_covariance(s)).sum((-2, -1))

    assert near(use.loss_z_alone, -4 * on_the_way(diffusion, value))
    assert use.z_alone.mean < use.diffusion.mean


@pytest.mark.parametrize("make", [make for _, make in DIFFUSIONS], ids=[n for n, _ in DIFFUSIONS])
def test_information_is_that_of_gaussian_laws(make: Callable[[], LinearDiffusion]) -> None:
    """I(x; v | x_s) = I(x; y_s) - I(x; x_s), from determinants of covariances."""
    diffusion = make()
    with torch.no_grad():
        s = diffusion.time_at_log_snr(torch.tensor([[3.0, 0.5], [-1.0, -2.0]]).double())
        law = diffusion.marginal(s)
    told = auxiliary_information(diffusion, s, VARIANCE)
    both = law.covariance + VARIANCE * law.mean[..., None] * law.mean[..., None, :]
    whole = torch.logdet(both) - torch.logdet(law.covariance)
    of_x = (both[..., 0, 0] / law.covariance[..., 0, 0]).log()
    torch.testing.assert_close(told.nats, (whole - of_x) / 2, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(told.log_snr, law.log_snr)
    several = auxiliary_information(diffusion, s, torch.tensor([VARIANCE, 0.0]))
    torch.testing.assert_close(several.nats, told.nats / 2)


def test_information_of_one_variable_is_none() -> None:
    assert float(auxiliary_information(VPSDE(max_log_snr=9.0), 0.3).nats) == pytest.approx(0)


def test_the_start_costs_what_its_posterior_is_off() -> None:
    """KL of q(v_0 | x, y_ε) from p(v_0 | x, y_ε), both Gaussian; for s_θ = -½ L^{-T} y."""
    diffusion = CLD(max_log_snr=TOP)
    x, n = normal(1, 300, 1), 300
    use = used(diffusion, NoisePrediction(Linear()), x, draws=4)
    start, step = diffusion.start, diffusion.transition(diffusion.start_time)
    M, P, Sigma_v = step.matrix, step.covariance, diffusion.initial_covariance[1, 1]
    y = start.mean * x + normal(5, n, 2) @ start.scale_tril.mT
    back = torch.linalg.inv(M)
    score = -0.5 * y @ inverse_tril(start.scale_tril)
    joint_mean, joint = (y + score @ P) @ back.mT, back @ P @ back.mT

    def of_v(mean: Tensor, covariance: Tensor) -> MultivariateNormal:
        """v_0 given x, where (x, v_0) is Gaussian."""
        gain = covariance[1, 0] / covariance[0, 0]
        middle = mean[:, 1:] + gain * (x - mean[:, :1])
        return MultivariateNormal(middle, (covariance[1, 1] - gain * covariance[0, 1])[None, None])

    gain = Sigma_v * M[:, 1] @ torch.linalg.inv(start.covariance)
    left = Sigma_v - gain @ M[:, 1] * Sigma_v
    q = MultivariateNormal(((y - start.mean * x) @ gain)[:, None], left[None, None])
    kl = kl_divergence(q, of_v(joint_mean, joint))
    mean, error = float(kl.mean()), float(kl.std()) / math.sqrt(n)
    assert abs(use.start_gap.mean - mean) < 5 * math.hypot(error, use.start_gap.standard_error)
    assert 5 * math.hypot(error, use.start_gap.standard_error) < 0.8 * mean


def test_what_the_joint_decoder_loses_is_a_difference_of_bounds() -> None:
    diffusion, x = CLD(max_log_snr=TOP), normal(1, 300, 2)
    score = NoisePrediction(Linear())
    use = used(diffusion, score, x, draws=4)
    start = diffusion.start
    y = start.mean[:, None] * x.unsqueeze(1) + start.scale_tril @ normal(5, 300, 2, 2)
    s = diffusion.start_time.expand(300)
    x_hat = score.denoise(diffusion, y, s)
    alone = -0.5 * ((x - x_hat).square() * math.exp(TOP) + math.log(2 * math.pi) - TOP).sum(1)
    P = diffusion.transition(diffusion.start_time).covariance
    off = score.score(diffusion, y, s) + torch.linalg.solve(
        start.covariance, y - start.mean[:, None] * x.unsqueeze(1)
    )
    constant = diffusion.initial_covariance[1, 1].log() - diffusion.log_volume.ends[0]
    constant = constant - math.log(2 * math.pi) - 1
    constant = constant + torch.linalg.solve(start.covariance, P).diagonal().sum()
    joint = constant - 0.5 * (off * (P @ off)).sum((1, 2))
    loss = alone - joint
    error = math.hypot(float(loss.std()) / math.sqrt(300), use.joint_loss.standard_error)
    assert abs(use.joint_loss.mean - float(loss.mean())) < 5 * error
    assert 5 * error < 0.8 * abs(use.joint_loss.mean)


def test_gaussian_draws_are_from_the_posterior() -> None:
    mean = torch.tensor([[0.5, -0.3]]).double()
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double()
    posterior, n = GaussianPosterior(mean, covariance), 20000
    torch.manual_seed(0)
    z = torch.tensor([[1.0, 0.2]]).double().expand(n, 1, 2)
    drawn = posterior(z, torch.full((n,), 0.7).double()).flatten(1)
    noise = math.exp(-0.7) * torch.eye(2).double()
    gain = covariance @ torch.linalg.inv(covariance + noise)
    right = mean[0] + gain @ (z[0, 0] - mean[0])
    left = covariance - gain @ covariance
    assert bool(((drawn.mean(0) - right).abs() < 5 * (left.diagonal() / n).sqrt()).all())
    spread = (left.diagonal() * left.diagonal()[:, None] + left.square()) / n
    assert bool(((drawn.mT.cov() - left).abs() < 5 * spread.sqrt()).all())
    x = normal(2, 50, 1, 2)
    fitted = GaussianPosterior.fit(x)
    torch.testing.assert_close(fitted.mean, x.mean(0))
    whole = fitted.axes @ torch.diag(fitted.variances) @ fitted.axes.mT
    torch.testing.assert_close(whole, x.flatten(1).mT.cov())


def test_draws_are_by_default_from_a_fit_of_the_data() -> None:
    diffusion, x = CLD(max_log_snr=TOP), normal(1, 20, 2)
    score = NoisePrediction(Linear())
    before = torch.get_rng_state()
    ours = used(diffusion, score, x, draws=1)
    assert ours == used(diffusion, score, x, draws=1, posterior=GaussianPosterior.fit(x))
    assert ours != used(diffusion, score, x, draws=1, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_are_read_in_nats_and_bits() -> None:
    use = used(CLD(max_log_snr=TOP), NoisePrediction(Linear()), normal(1, 20, 2), draws=1)
    assert [name for name, _ in use.items()] == list(use.in_bits())
    nats, bits = use.diffusion.mean, use.in_bits()["diffusion"].mean
    assert nats == pytest.approx(bits * 2 * math.log(2))
    assert "lost without v" in str(use) and "20 data of 2 dimensions" in str(use)


def by_dimension() -> PerDimensionDiffusion:
    return PerDimensionDiffusion([CLD(max_log_snr=TOP), CLD(max_log_snr=TOP)], torch.arange(2))


@pytest.mark.parametrize(
    ("make", "x", "message"),
    [
        (lambda: VPSDE(max_log_snr=TOP), torch.randn(4, 2), "has K = 1 variable"),
        (lambda: CLD(max_log_snr=TOP), torch.randn(1, 2), "whose spread gives the error"),
        (by_dimension, torch.randn(4, 2), "one log SNR for all data dimensions"),
    ],
)
def test_what_cannot_be_asked(make: Callable[[], Any], x: Tensor, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        used(make(), NoisePrediction(Linear()), x)


def test_mistakes_of_arguments() -> None:
    model = DiffusionModel(CLD(max_log_snr=TOP), NoisePrediction(Linear()), event_shape=(2,))
    guide = DiffusionGuide(model.diffusion)
    with pytest.raises(TypeError, match=r"model is DiffusionGuide.* expected a DiffusionModel"):
        auxiliary_use(guide, model, torch.randn(4, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="draws"):
        auxiliary_use(model, guide, torch.randn(4, 2), draws=0)
    with pytest.raises(ValueError, match="none of them below 0"):
        auxiliary_information(model.diffusion, 0.5, -1.0)
    with pytest.raises(TypeError, match="closed-form kernels"):
        auxiliary_information(Simulated(CLD(max_log_snr=TOP)), 0.5)
    with pytest.raises(ValueError, match="expected \\(2, 2\\)"):
        GaussianPosterior(torch.zeros(2), torch.eye(3))
    with pytest.raises(ValueError, match="expected none below 0"):
        GaussianPosterior(torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0])))
