"""Linear diffusions without a law at rest: their numbers, what they are equal to, what is refused.

Suites over ``tests.diffusions.DIFFUSIONS`` hold them to what all diffusions owe.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor, nn

from pyro_mdm import (
    CLD,
    VE,
    VPSDE,
    Cosine,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    Interpolant,
    LearnedDiffusion,
    LinearSDE,
    MomentumVE,
    NoisePrediction,
    PerDimensionDiffusion,
    RawScore,
    RectifiedFlow,
    Simulated,
    SubVP,
    TimeVaryingSDE,
    bound,
    elbo_terms,
)
from pyro_mdm.automatic import AutoMDM
from pyro_mdm.diffusions import ConstantBeta, GeometricBeta, LinearDiffusion, UnreachableError
from pyro_mdm.diffusions.clocks import log_snr_times
from pyro_mdm.diffusions.linear import at_rest, frozen
from pyro_mdm.likelihoods import Gaussian
from tests.mistakes import refused
from tests.problems import normal
from tests.varying.problems import less_data, more_noise

Digits = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def _digits() -> Any:
    with mp.workdps(80):
        yield


# -- digits ----------------------------------------------------------------------------------------


def bent(s: Any) -> Any:
    """∫β of 0.1 → 20, in digits."""
    return s * (mpf(0.1) + mpf(19.9) * s / 2)


INTERPOLANTS: dict[str, tuple[Callable[[], Interpolant], Digits, Digits]] = {
    "ve": (
        lambda: VE(sigma_min=0.0625, sigma_max=32.0),
        lambda s: mpf(1),
        lambda s: mpf(0.0625) * mp.sqrt(mpf(512) ** (2 * s) - 1),
    ),
    "subvp": (SubVP, lambda s: mp.exp(-bent(s) / 2), lambda s: 1 - mp.exp(-bent(s))),
    "rectified_flow": (RectifiedFlow, lambda s: 1 - s, lambda s: s),
    "cosine": (Cosine, lambda s: mp.cos(mp.pi * s / 2), lambda s: mp.sin(mp.pi * s / 2)),
    "given": (
        lambda: Interpolant(less_data, more_noise),
        lambda s: mp.cos(mpf(1.55) * s),
        lambda s: mpf(1.3) * mp.sin(mpf(1.55) * s),
    ),
}
every_interpolant = pytest.mark.parametrize(
    ("make", "alpha", "sigma"), INTERPOLANTS.values(), ids=INTERPOLANTS
)


def near(found: Tensor, true: Any, tolerance: float = 1e-10) -> None:
    """One number, to a relative error."""
    error = float(abs(mpf(found.item()) - true) / abs(true))
    assert error < tolerance, f"{found.item()} for {mp.nstr(true, 17)}: {error:.2g}"


@pytest.mark.quick
@every_interpolant
@torch.no_grad()
def test_interpolants_have_their_digits(
    make: Callable[[], Interpolant], alpha: Digits, sigma: Digits
) -> None:
    """Laws, log SNR, matrices, transitions and inverses, from α and σ in 80 digits."""
    diffusion = make()
    early = diffusion.time_at_log_snr(60.0).item()
    assert diffusion.log_snr(early).item() == pytest.approx(60.0, abs=1e-8)
    for s in (early, 1e-4, 0.1, 0.6, diffusion.horizon):
        law, t = diffusion.marginal(s), mpf(s)
        a, variance = alpha(t), sigma(t) ** 2
        near(law.mean[0], a)
        near(law.covariance[0, 0], variance)
        near(law.scale_tril[0, 0], sigma(t))
        near(law.readout[0], 1 / a)
        assert abs(float(mpf(law.log_snr.item()) - mp.log(a**2 / variance))) < 1e-10
        assert abs(float(mpf(law.log_det.item()) - mp.log(variance))) < 1e-10
        by_log_a = mp.diff(lambda u: mp.log(alpha(u)), t)
        by_log_snr = mp.diff(lambda u: 2 * mp.log(alpha(u) / sigma(u)), t, h=t * mpf(10) ** -30)
        if by_log_a:
            near(diffusion.drift_matrix(s)[0, 0], by_log_a)
        near(diffusion.noise_covariance(s)[0, 0], -variance * by_log_snr)
        near(diffusion.log_snr_rate(s), -by_log_snr)
        near(diffusion.time_at_log_snr(law.log_snr), t)
    for s, r in ((0.3001, 0.3), (0.6, 0.2), (0.5, 0.0)):
        step, late, first = diffusion.transition(s, r), mpf(s), mpf(r)
        M = alpha(late) / alpha(first)
        near(step.matrix[0, 0], M)
        near(step.covariance[0, 0], sigma(late) ** 2 - M**2 * sigma(first) ** 2)


@pytest.mark.parametrize("t", [1e-9, 1e-4, 0.3, 40.0])
@torch.no_grad()
def test_momentum_is_the_integral_of_a_brownian_motion(t: float) -> None:
    """[[t³/3, t²/2], [t²/2, t]] and its factor, to rounding, however graded."""
    diffusion = LinearSDE([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], horizon=50.0)
    step, s = diffusion.transition(t), mpf(t)
    M = torch.tensor([[1.0, t], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(step.matrix, M, rtol=1e-14, atol=0)
    for (i, j), true in {(0, 0): s**3 / 3, (0, 1): s**2 / 2, (1, 1): s}.items():
        near(step.covariance[i, j], true, 1e-14)
    L = step.scale_tril
    for entry, true in (
        (L[0, 0], mp.sqrt(s**3 / 3)),
        (L[1, 0], mp.sqrt(3 * s) / 2),
        (L[1, 1], mp.sqrt(s) / 2),
    ):
        near(entry, true, 1e-13)
    assert abs(float(mpf(step.log_det.item()) - mp.log(s**4 / 12))) < 1e-12
    near(diffusion.marginal(t).log_snr.exp(), 1 / (s**3 / 3 - s**4 / 4 / (s + mpf(0.01))), 1e-9)


# -- equal ends and priors -------------------------------------------------------------------------

ENDS: dict[str, Any] = {"max_log_snr": 8.0, "min_log_snr": -6.0}
EQUAL: dict[str, Callable[..., LinearDiffusion]] = {
    "vpsde": lambda prior_variance=1.0: VPSDE(stationary_variance=prior_variance, **ENDS),
    "cosine": lambda **prior: Cosine(**prior, **ENDS),
    "ve": lambda **prior: VE(**prior, **ENDS),
    "subvp": lambda **prior: SubVP(**prior, **ENDS),
    "rectified_flow": lambda **prior: RectifiedFlow(**prior, **ENDS),
    "given": lambda **prior: Interpolant(less_data, more_noise, **prior, **ENDS),
    "momentum_ve": lambda **prior: MomentumVE(**prior, **ENDS),
}


def of_unit_data(make: Callable[..., LinearDiffusion]) -> LinearDiffusion:
    """With the prior that y_T of data of variance 1 has, a aᵀ + Σ at T."""
    end = make().terminal
    if make is EQUAL["vpsde"]:  # at rest it is that prior
        torch.testing.assert_close(
            end.covariance + end.mean[:, None] * end.mean, torch.ones(1, 1).double()
        )
        return make()
    return make(prior_variance=end.covariance + end.mean[:, None] * end.mean)


class Bent(nn.Module):
    """A network that is no posterior mean."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
        return self.weight * torch.sin(inputs + 0.3 * log_snr[:, None])


def programs(diffusion: LinearDiffusion, score: Any) -> tuple[DiffusionModel, DiffusionGuide]:
    model = DiffusionModel(diffusion, score, Gaussian(0.0, 1.0), (3,)).double()
    return model, DiffusionGuide(diffusion)


@pytest.mark.parametrize("name", [name for name in EQUAL if name != "vpsde"])
def test_equal_ends_and_priors_have_equal_bounds(name: str) -> None:
    """Of one denoiser, to rounding, with the same noise: theory says that only these matter."""
    x, score = 1.5 * normal(1, 16, 3), Denoiser(Bent(), torch.zeros(3), torch.ones(3))
    terms, drawn = [], []
    for make in (EQUAL["vpsde"], EQUAL[name]):
        model, guide = programs(of_unit_data(make), score)
        with torch.no_grad():
            torch.manual_seed(3)
            terms.append(elbo_terms(model, guide, x))
            torch.manual_seed(4)
            drawn.append(score.diffusion_term(guide.diffusion, x)[0])
    one, other = terms
    torch.testing.assert_close(other.prior_kl, one.prior_kl, rtol=1e-9, atol=1e-12)
    assert bool((one.prior_kl > 1e-7).all())
    torch.testing.assert_close(*drawn, rtol=1e-8, atol=1e-10)
    if name != "momentum_ve":  # whose y_ε, and all after it, takes other random numbers
        torch.testing.assert_close(other.diffusion, one.diffusion, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(other.reconstruction, one.reconstruction, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [NoisePrediction, RawScore])
def test_scores_of_the_state_are_well_scaled_and_see_one_diffusion(kind: Any) -> None:
    """Networks see variables of variance 1 at every noise level, so that dividing the state by a
    function of time changes nothing for scores of the raw state either."""
    seen: list[Tensor] = []

    class Watching(Bent):
        def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
            seen.append(inputs.detach())
            return super().forward(inputs, log_snr)

    x, score, values = normal(1, 4000, 3), kind(Watching()), {}
    for name in ("ve", "rectified_flow", "momentum_ve"):
        diffusion = EQUAL[name]()
        s = log_snr_times(diffusion, 9)
        for at in s:
            law = diffusion.marginal(at)
            K = diffusion.num_variables
            y = law.mean[:, None] * x[:, None] + law.scale_tril @ normal(2, len(x), K, 3)
            found = score.double().score(diffusion, y, at.expand(len(y)))
            spread = seen.pop().unflatten(1, (K, 3)).std((0, 2))
            torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0.08, atol=0)
            # in the units of noise alone, σ/α: the score of z times e^{-λ/2}
            values.setdefault(name, []).append(found[:, 0] * law.scale_tril[0, 0])
    for one, other in zip(values["ve"], values["rectified_flow"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_raw_scores_at_rest_see_the_state_as_it_is() -> None:
    y = normal(2, 5, 2, 3)

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
            return self.weight * inputs

    s = torch.full((5,), 0.3).double()
    assert torch.equal(RawScore(Same()).score(CLD(mass=4.0), y, s), y)


# -- priors ----------------------------------------------------------------------------------------


def test_a_prior_follows_the_end_unless_it_is_given() -> None:
    diffusion, given = MomentumVE(), MomentumVE(prior_variance=[9.0, 4.0])
    for low in (-4.0, -12.0):
        diffusion.min_log_snr = given.min_log_snr = low
        end = diffusion.marginal(1.0).covariance
        torch.testing.assert_close(diffusion.prior_covariance, end, rtol=1e-10, atol=0)
        assert given.prior_covariance.diagonal().tolist() == [9.0, 4.0]
    assert VE().prior_covariance.item() == pytest.approx(50**2 - 0.01**2, rel=1e-12)


def test_who_is_at_rest() -> None:
    cld = LinearSDE([[0.0, 1.0], [-1.0, -2.0]], [[0.0], [2.0]], prior_variance=1.0)
    assert at_rest(cld) and at_rest(Cosine()) and at_rest(CLD())
    for other in (VE(), MomentumVE(), RectifiedFlow(), Cosine(prior_variance=2.0)):
        assert not at_rest(other)
    two = torch.tensor([0, 1])
    assert not at_rest(PerDimensionDiffusion([VE(**ENDS), VPSDE(**ENDS)], two))
    assert not Simulated(VE()).stationary_prior and Simulated(CLD()).stationary_prior
    torch.testing.assert_close(frozen(cld).Q, CLD().Q)
    torch.testing.assert_close(frozen(cld).D, CLD().D)


def test_a_prior_that_does_not_cover_the_data_is_said() -> None:
    x = 3 * normal(1, 16, 3)
    score = Denoiser(Bent(), torch.zeros(3), torch.full((3,), 9.0))
    size = x.square().mean().sqrt().item()
    small = VE(sigma_max=2.0)
    nats = x.square().mean().item() / 2 / small.prior_covariance.item()
    expected = rf"prior KL of VE is {nats:.3g} nats per .* root mean square is {size:.3g}, at log"
    with pytest.warns(UserWarning, match=expected):
        assert bound(*programs(small, score), x, draws=2).prior_kl[0] == pytest.approx(3 * nats)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound(*programs(VE(sigma_max=15.0), score), x, draws=2)
        bound(*programs(VPSDE(beta=ConstantBeta(1.0)), score), x, draws=2)  # at rest


# -- functions of time -----------------------------------------------------------------------------


def as_functions(**options: Any) -> TimeVaryingSDE:
    """Sub-VP, by its drift and dispersion."""

    def b(s: Tensor) -> Tensor:
        return s * (0.1 + 9.95 * s)

    def A(s: Tensor) -> Tensor:
        return (-(0.1 + 19.9 * s) / 2)[..., None, None]

    def G(s: Tensor) -> Tensor:
        return ((0.1 + 19.9 * s) * -torch.expm1(-2 * b(s))).sqrt()[..., None, None]

    return TimeVaryingSDE(A, G, **options)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the prior KL")
@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("K", [1, 2, 3])
def test_any_number_of_sources_of_noise_is_taken_by_both(K: int, columns: int) -> None:
    """By constant matrices, and by functions of time that are constant."""
    A = torch.diag(torch.full((K,), -1.0)) + torch.diag(torch.ones(max(K - 1, 0)), 1)[:K, :K]
    G = torch.eye(3)[3 - K :, :columns].flip(1) + torch.linspace(0.5, 1.0, columns)
    A, G = A.double(), G.double()
    constant = LinearSDE(A, G)
    varying = TimeVaryingSDE(
        lambda s: A.expand(*s.shape, K, K), lambda s: G.expand(*s.shape, K, columns), cells=16
    )
    s = torch.tensor([0.1, 0.6, 1.0]).double()
    for one, other in zip(varying.marginal(s), constant.marginal(s), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    root = varying.matrices.root(s)
    assert root.shape == (3, K, K)
    torch.testing.assert_close(root @ root.mT, (G @ G.mT).expand(3, K, K))
    x, bounds = normal(0, 9, 3), []
    for diffusion in (constant, varying):
        model = DiffusionModel(diffusion, Denoiser(Bent(), torch.zeros(3), torch.ones(3)))
        bounds.append(bound(model, DiffusionGuide(diffusion), x, draws=1).elbo.mean)
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-5)


@torch.no_grad()
def test_functions_of_time_agree_with_closed_forms() -> None:
    varying, closed = as_functions(), SubVP()
    torch.testing.assert_close(varying.terminal_log_snr, closed.terminal_log_snr, rtol=1e-7, atol=0)
    torch.testing.assert_close(varying.start_time, closed.start_time, rtol=1e-6, atol=0)
    s = torch.tensor([1e-3, 0.1, 0.5, 1.0]).double()
    for one, other in zip(varying.marginal(s), closed.marginal(s), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    s = torch.tensor([0.02, 0.3, 0.8]).double()
    for one, other in zip(varying.transition(s, s / 2), closed.transition(s, s / 2), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    # both halves of a step of the splitting, whose references are the priors
    halves = []
    for diffusion in (varying, closed):
        clock = diffusion.clock(s), diffusion.clock(s / 2)
        halves.append(diffusion.propagator.halves(clock[1], clock[0] - clock[1]))
    whole = [h.second @ h.first for h in halves]
    torch.testing.assert_close(whole[0], whole[1], rtol=1e-6, atol=0)
    noise = [h.second_root**2 + h.second**2 * h.first_root**2 for h in halves]
    torch.testing.assert_close(noise[0], noise[1], rtol=1e-6, atol=0)


def test_functions_of_time_scale_their_clock_and_are_saved() -> None:
    diffusion = as_functions(min_log_snr=-4.0)
    assert diffusion.terminal.log_snr.item() == pytest.approx(-4.0, abs=1e-8)
    assert torch.equal(diffusion.prior_covariance, diffusion.terminal.covariance)
    assert diffusion.get_extra_state().numel() and not list(diffusion.parameters())
    refused(TypeError, (diffusion.matrices.drift, "no constant A: it varies in time; use"))


# -- what is kept, and programs --------------------------------------------------------------------


# -- mistakes --------------------------------------------------------------------------------------


def line(s: Tensor) -> Tensor:
    return 1 - s


def same(s: Tensor) -> Tensor:
    return s


def test_mistakes_are_answered_with_the_time_and_the_fix() -> None:
    learned = torch.ones((), dtype=torch.float64, requires_grad=True)
    refused(
        UnreachableError,
        (lambda: Interpolant(line, same), r"α is 0 at s = 1, where .* give min_log_snr, e\.g\."),
        (lambda: SubVP(min_log_snr=-20.0), r"-20, but .* at -10.0\d* at s = 1, .* faster clock"),
        (lambda: VE(sigma_max=3.0, min_log_snr=-12.0), r"ends at -2.197\d* at s = 1, .*sigma_max"),
        (lambda: LinearSDE([[0.0]], [[1.0]], min_log_snr=-99.0), "min_log_snr -99 is out of reach"),
        (lambda: LinearSDE(torch.zeros(2, 2), [[1.0], [0.0]]), "reaches 1 of 2 .*columns"),
    )
    refused(
        ValueError,
        (lambda: Interpolant(lambda s: (4 * s).cos(), same), r"α rises at s = 0\.785\d*, expected"),
        (
            lambda: Interpolant(line, lambda s: (3 * s).sin(), **ENDS),
            r"σ falls at s = 0\.52\d*, expected .* end at this time",
        ),
        (lambda: Interpolant(lambda s: 2 - s, same), "α is 2 at s = 0, expected 1, .* divide"),
        (lambda: Interpolant(line, lambda s: s + 0.1), r"σ is 0\.1 at s = 0, expected 0, .* subtr"),
        (
            lambda: Interpolant(lambda s: line(s.clamp_max(0.5)), lambda s: s.clamp_max(0.5)),
            r"log SNR does not fall at s = 0\.5, where α is 0\.5 and σ 0\.5, expected",
        ),
        (
            lambda: Interpolant(torch.ones_like, lambda s: 1 / (0.5 - s) - 2),
            r"σ\(s\) is not finite at s = 0\.5, expected",
        ),
        (lambda: Interpolant(line, lambda s: s[None]), r"σ\(s\) has shape .* expected the same"),
        (
            lambda: Interpolant(line, lambda s: learned * s, **ENDS),
            "requires a gradient, .* LearnedDiff",
        ),
        (lambda: VE(3.0, 1.0), "sigma_min is 3 and sigma_max 1, expected sigma_min < sigma_max"),
        (lambda: VE(prior_variance=-1.0), "prior_variance is .*expected positive"),
        (lambda: GeometricBeta(2.0, 1.0), "start is 2 and end 1, expected start < end"),
        (lambda: LinearSDE([[0.0]], [[1.0], [1.0]]), r"G is \(2, 1\), expected \(K, K\) and"),
        (
            lambda: TimeVaryingSDE(lambda s: s[..., None, None], line),
            "expected .* or any number of columns",
        ),
        (lambda: LinearSDE([[0.0]], [[math.nan]]), "G has entries that are not finite"),
    )
    refused(
        TypeError,
        (lambda: Interpolant(lambda s: 1.0, same), r"α\(s\) is 1\.0, .* torch\.ones_like\(s\)"),
        (lambda: Interpolant(0.5, same), "alpha is 0.5, expected a function"),  # type: ignore[arg-type]
        (lambda: LearnedDiffusion.from_diffusion(VE()), "VE is given by .* no Q and D, expected"),
        (lambda: MomentumVE().Q, r"MomentumVE is given by .* use drift_matrix\(s\)"),
        (lambda: TimeVaryingSDE([[1.0]], line), "expected a function .* use LinearSDE"),  # type: ignore[arg-type]
        (lambda: SubVP(beta=3.0), "beta is 3.0"),
    )


def test_programs_over_two_diffusions_are_told_apart() -> None:
    score = Denoiser(Bent(), torch.zeros(3), torch.ones(3))
    model, _ = programs(VE(), score)
    for other, word in ((VE(sigma_max=20.0), "prior_covariance"), (VE(), "of their own")):
        with pytest.raises(ValueError, match=f"{word}.*one diffusion object"):
            elbo_terms(model, DiffusionGuide(other), normal(1, 4, 3))


def test_a_chain_from_rest_refuses_a_prior_that_is_none() -> None:
    def model() -> None:
        import pyro.distributions as dist

        pyro.sample("x", dist.Normal(0.0, 1.0))

    guide = AutoMDM(model, diffusion=VE(prior_variance=1.0))
    with pytest.raises(ValueError, match="prior of VE is no stationary one, expected one"):
        guide()
