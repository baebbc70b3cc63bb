"""Models of data given linear measurements, held to exact posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from pyro_mdm import (
    CLD,
    MDM,
    VPSDE,
    Denoiser,
    DiffusionModel,
    DiscreteDenoiser,
    LinearDiffusion,
    NoisePrediction,
    PerDimensionDiffusion,
    condition,
)
from pyro_mdm.by_dimension import Frequencies
from pyro_mdm.conditioning import Labels, Replacement
from pyro_mdm.likelihoods import Tweedie
from pyro_mdm.measurements import (
    Blur,
    Downsample,
    FunctionOperator,
    LinearOperator,
    Mask,
    Matrix,
    MeasuredDenoiser,
    Particles,
    condition_on_measurements,
    twisted_smc,
)
from pyro_mdm.measurements.covariance import DataCovariance, reference
from pyro_mdm.measurements.solve import DenoiserCovariance, conjugate_gradients
from pyro_mdm.networks import MLP
from pyro_mdm.samplers import (
    Ancestral,
    EulerMaruyama,
    ExponentialIntegrator,
    ProbabilityFlow,
    StochasticExponentialIntegrator,
    StochasticHeun,
)
from pyro_mdm.support.measured import Measured
from tests.chains import chain_problem
from tests.gradients import assert_gradients
from tests.mistakes import refused
from tests.problems import (
    ENDS,
    D,
    ExactDenoiser as Exact,
    GaussianMixture,
    correlated as gaussian,
    fixed,
    given_measurement,
    normal,
    part,
    program,
    random_linear,
)

OWN: dict[str, Any] = {"covariance_from": -math.inf, "max_iterations": 20}
H = fixed(1, 2, D)
NOISE = torch.tensor([0.1, 0.3], dtype=torch.float64)
OBS = torch.tensor([1.2, -0.8], dtype=torch.float64)

DIFFUSIONS: dict[str, Callable[[], LinearDiffusion]] = {
    "vpsde": lambda: VPSDE(**ENDS),
    "random_3": lambda: random_linear(3, 114, **ENDS),
}


def exact(problem: GaussianMixture, noise: Tensor, z: Tensor, variance: Tensor) -> Tensor:
    """E[x | z, obs] of one datum, (d,): z is measured too, with the noise of each dimension."""
    both = torch.cat([torch.eye(D, dtype=torch.float64), H])
    law, _ = given_measurement(
        problem, both, torch.cat([z, OBS]), torch.cat([variance.expand(D), noise.expand(2)])
    )
    return law.mean


# -- the denoiser ----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("noise", [NOISE, torch.tensor(0.0).double()], ids=["noise", "exact"])
def test_the_denoiser_of_gaussian_data_is_exact(noise: Tensor) -> None:
    problem = gaussian()
    score = MeasuredDenoiser(Exact(problem), Matrix(H), OBS, noise, **OWN)
    log_snr = torch.tensor([-8.0, -2.0, 0.0, 3.0, 9.0], dtype=torch.float64)
    z = problem.sample(5, 3) + torch.exp(-log_snr / 2)[:, None] * normal(4, 5, D)
    found = score.x_hat(z, log_snr)
    for i in range(5):
        known = exact(problem, noise, z[i], torch.exp(-log_snr[i]))
        torch.testing.assert_close(found[i], known, rtol=1e-8, atol=1e-8)
    fit = score.given_obs(z, log_snr).fit
    for i, v in enumerate(torch.exp(-log_snr)):
        prior = problem.covariance
        C = prior - prior @ torch.linalg.solve(prior + v * torch.eye(D), prior)
        rest = OBS - H @ Exact(problem).x_hat(z[i : i + 1], log_snr[i : i + 1])[0]
        known = -0.5 * rest @ torch.linalg.solve(H @ C @ H.mT + noise * torch.eye(len(H)), rest)
        torch.testing.assert_close(fit[i], known, rtol=1e-6, atol=1e-8)
    # and where every dimension has a log SNR of its own
    found = score.x_hat(z[1:3], log_snr[torch.tensor([[0, 1, 2, 3], [3, 4, 2, 1]])])
    known = exact(problem, noise, z[1], torch.exp(-log_snr[:4]))
    torch.testing.assert_close(found[0], known, rtol=1e-8, atol=1e-8)


def test_a_covariance_is_the_networks() -> None:
    """Of continuous denoisers and of those of levels, whose derivatives are written by hand."""
    torch.manual_seed(0)
    levels = torch.linspace(-1, 1, 5).double()[torch.randint(5, (50, D))]
    scores = [
        Denoiser.fit(MLP(D, hidden=8), levels),
        DiscreteDenoiser.fit(MLP(D, out_features=2 * D, hidden=8), levels, 5, "tilt"),
        DiscreteDenoiser.fit(MLP(D, out_features=5 * D, hidden=8), levels, 5, "logits"),
    ]
    z, lam, w = normal(0, 3, D), torch.full((3,), 1.0).double(), normal(5, 3, D)
    v = torch.tensor([0.5, 0.4, 0.3, 0.2]).double().expand(3, D)
    for score in scores:
        network: Any = score.network.double()
        for p in network.parameters():  # outputs begin at 0
            p.data += 0.3 * torch.randn_like(p)

        def x_hat(at: Tensor, score: Any = score) -> Tensor:
            return score.x_hat(at, lam)

        J = torch.autograd.functional.jacobian(lambda at, of=x_hat: of(at).sum(0), z)
        C = J.movedim(0, 1) * v.unsqueeze(-2)
        assert float((C - C.mT).abs().max()) > 1e-4  # a network's is not symmetric
        with torch.no_grad():
            seen = DenoiserCovariance(x_hat, z, v)
            torch.testing.assert_close(seen(w), (C.mT @ w.unsqueeze(-1)).squeeze(-1))
            assert not seen.x_hat.requires_grad
        assert DenoiserCovariance(x_hat, z, v)(w).requires_grad


def test_systems_are_solved_each_with_its_own_steps() -> None:
    A = fixed(3, 4, 6, 6)
    S = A @ A.mT + 0.5 * torch.eye(6, dtype=torch.float64)
    S[1] = 2 * torch.eye(6)
    S[2] = -torch.eye(6)
    b = fixed(4, 4, 6)
    b[3] = 0

    B = fixed(5, 4, 2, 6)

    def product(p: Tensor) -> tuple[Tensor, Tensor]:
        return (S @ p.unsqueeze(-1)).squeeze(-1), (B @ p.unsqueeze(-1)).squeeze(-1)

    found = conjugate_gradients(product, b, 1e-10, 20)
    seldom = conjugate_gradients(product, b, 1e-10, 20, ask_every=20)
    assert torch.equal(found.u, seldom.u) and torch.equal(found.iterations, seldom.iterations)
    torch.testing.assert_close(found.u[:2], torch.linalg.solve(S[:2], b[:2].unsqueeze(-1))[..., 0])
    assert found.iterations.tolist()[1:] == [1, 0, 0] and 5 < int(found.iterations[0]) < 20
    few = conjugate_gradients(product, b, 1e-10, 2)
    assert few.iterations.tolist() == [2, 1, 0, 0] and float(few.rest[0].norm()) > 1e-3
    for tolerance in (0.03, 0.1, 0.2, 0.5):
        rough = conjugate_gradients(product, b, tolerance, 20)
        assert float(rough.rest[0].norm()) <= tolerance * float(b[0].norm())
    assert int(rough.iterations[0]) < int(found.iterations[0])
    for solution in (found, few, rough):
        Su, image = product(solution.u)
        torch.testing.assert_close(solution.image, image)
        torch.testing.assert_close(solution.rest, b - Su)
    known = conjugate_gradients(
        product, b, 1e-10, 1, lambda r: torch.linalg.solve(S, r.unsqueeze(-1))[..., 0]
    )
    torch.testing.assert_close(known.u[:2], found.u[:2])


# -- the covariance of x given z -------------------------------------------------------------------


def test_linear_estimates_have_the_covariance_of_gaussian_data() -> None:
    """Σ - Σ (Σ + V)^{-1} Σ, with as many directions as data have, with few, and with none."""
    A, v = fixed(6, D, D), fixed(7, 3, D)
    sigma = A @ A.mT + 0.1 * torch.eye(D, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(sigma)
    variance = torch.tensor([0.01, 1.0, 1e6]).double()
    for r in (D, 2, 0):
        kept, U = values[D - r :], vectors[:, D - r :]
        rest = torch.tensor(0.3).double()
        whole = U @ torch.diag(kept - rest) @ U.mT + rest * torch.eye(D)
        some = DataCovariance(rest, kept, U) if r else DataCovariance(rest.expand(D))
        wide = variance[:, None].expand(3, D)
        S = whole + variance[:, None, None] * torch.eye(D)
        C = whole - whole @ torch.linalg.solve(S, whole.expand(3, D, D))
        got = some.given(wide, by_dimension=False)(v)
        torch.testing.assert_close(got, (C @ v.unsqueeze(-1))[..., 0])
        own, each = whole.diagonal(), torch.tensor([0.1, 2.0, 0.3, 5.0]).double().expand(3, D)
        ends = torch.tensor([0.0, math.inf, 1.0, 1.0]).double().expand(3, D)  # seen, and left out
        got = some.given(ends, by_dimension=True)(v)[:, :2]
        torch.testing.assert_close(got, torch.stack([0 * v[:, 0], own[1] * v[:, 1]], 1))
        got = some.given(each, by_dimension=True)(v)
        torch.testing.assert_close(got, own * each / (own + each) * v)


def test_the_covariance_of_few_data_is_shrunk() -> None:
    """As in scikit-learn, by the formula of Ledoit and Wolf."""
    for n, d in ((6, 9), (40, 5)):
        x = fixed(8, n, d) @ torch.diag(torch.linspace(0.2, 3, d).double()) + 5
        known = torch.from_numpy(LedoitWolf().fit(x.numpy()).covariance_)
        torch.testing.assert_close(DataCovariance.fit(x).matrix((d,)), known)
    assert not DataCovariance.fit(torch.ones(5, 3)).matrix((3,)).any()


class Wrong(Exact):
    """A denoiser whose derivative is wrong by 0.5 below a level."""

    below = -math.inf

    def x_hat(self, z: Tensor, log_snr: Any) -> Tensor:
        wrong = torch.as_tensor(log_snr).max() < self.below
        return super().x_hat(z, log_snr) + 0.5 * wrong * (z - z.detach())


@torch.no_grad()
def test_a_denoisers_covariance_is_trusted_where_linear_estimates_are_no_better() -> None:
    """Two components far apart: z tells which one it is, what a linear estimate makes no use of."""
    apart = torch.zeros(2, D).double()
    apart[1, 0] = 6.0
    problem = GaussianMixture([0.5, 0.5], apart, 0.3 * torch.eye(D).double().expand(2, D, D))
    for below in (-math.inf, 2.0, math.inf):
        score = Wrong(problem)
        score.below = below
        model = DiffusionModel(VPSDE(**ENDS), score)
        covariance, trusted_from = reference(model, problem.sample(2000, 1))
        values = covariance.values
        assert values is not None and float(values.max()) == pytest.approx(9.3, rel=0.1)
        if math.isfinite(below):
            assert below <= trusted_from < below + 1
        else:
            # where noise hides the data, chance says which of both is ahead
            assert (trusted_from == math.inf) if below > 0 else (trusted_from < 1.5)


@torch.no_grad()
def test_what_is_known_of_a_model_is_kept_until_it_is_trained() -> None:
    torch.manual_seed(0)
    model = DiffusionModel(VPSDE(), Denoiser(MLP(D, hidden=8)), event_shape=(D,))
    state = torch.get_rng_state()
    first = reference(model)
    assert torch.equal(state, torch.get_rng_state()) and reference(model) is first
    next(model.parameters()).add_(0.1)
    second = reference(model)
    assert second is not first and reference(model) is second
    cast(Tensor, model.score_function.data_variance).mul_(2.0)
    assert reference(model) is not second
    with torch.inference_mode():  # of which torch does not count the changes
        data = torch.randn(50, D)
    third = reference(model, data)
    assert reference(model, data) is third and reference(model, data + 1) is not third


@torch.no_grad()
def test_few_directions_are_the_denoisers_and_all_others_linear() -> None:
    """Between the exact posterior mean and that of linear estimates, and near to what is exact."""
    problem, noise = gaussian(), torch.full((D,), 0.05).double()
    whole = torch.eye(D, dtype=torch.float64)
    z, log_snr = normal(3, 200, D), torch.zeros(200)
    obs = normal(4, 200, D)
    guess = DataCovariance.fit(problem.sample(12, 5))
    x_hat = {}
    for most in (0, 1, 2, D):
        level = -math.inf if most else math.inf
        score = MeasuredDenoiser(
            Exact(problem),
            Matrix(whole),
            obs,
            noise,
            data_covariance=guess,
            covariance_from=level,
            max_iterations=max(most, 1),
        )
        x_hat[most] = score.x_hat(z, log_snr)
    off = [float((x_hat[most] - x_hat[D]).norm()) for most in (0, 1, 2)]
    assert off[0] > 1.3 * off[1] > 1.3 * off[2] > 1e-3


# -- samples ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "sampler", [Ancestral(5), EulerMaruyama(30), ProbabilityFlow(5), StochasticHeun(30)], ids=repr
)
def test_every_other_sampler_serves_it(sampler: Any) -> None:
    model = program(gaussian(), VPSDE(max_log_snr=7.0), sampler=sampler)
    obs = OBS + torch.tensor([[0.0, 0.0], [30.0, 30.0]]).double()  # each datum has its own
    given = condition_on_measurements(model, H, obs, 0.01)
    found = given(batch_size=20)
    assert float((found[::2] @ H.mT - OBS).abs().mean()) < 0.6
    assert float((found[1::2] @ H.mT - obs[1]).abs().mean()) < 6
    assert MDM(given).sample((3, 2)).shape == (3, 2, D)
    assert given.for_rows(torch.tensor([1]))(batch_size=4).shape == (4, D)


def test_the_default_sampler_is_stochastic_and_a_chosen_one_is_kept(tmp_path: Path) -> None:
    """A chosen one that is like the default is kept too; loaded from a folder, that is the default,
    since folders do not say who chose it."""
    for sampler, kind in (
        (None, StochasticExponentialIntegrator),
        (ProbabilityFlow(5), ProbabilityFlow),
        (ExponentialIntegrator(25), ExponentialIntegrator),
    ):
        model = program(gaussian(), VPSDE(**ENDS), sampler=sampler)
        given = condition_on_measurements(model, H, OBS, NOISE)
        assert type(given.sampler) is kind
    model = DiffusionModel(VPSDE(), Denoiser(MLP(D, hidden=8)), event_shape=(D,))
    model.save_pretrained(tmp_path)
    again = DiffusionModel.from_pretrained(tmp_path)
    for sampler, kind in (
        (again.sampler, StochasticExponentialIntegrator),
        (ExponentialIntegrator(25), ExponentialIntegrator),
    ):
        again.sampler = sampler
        given = condition_on_measurements(again, H, OBS, NOISE, covariance_from=0.0)
        assert type(given.sampler) is kind


def test_it_is_saved_and_has_derivatives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DiffusionModel(VPSDE(), Denoiser(MLP(D, hidden=8)), event_shape=(D,))
    given = condition_on_measurements(model, Mask(torch.tensor([1, 0, 1, 0]).bool()), OBS, 0.1)
    given.save_pretrained(tmp_path)
    again = DiffusionModel.from_pretrained(tmp_path)
    z, log_snr = normal(0, 2, D).float(), torch.zeros(2)
    torch.testing.assert_close(*(m.score_function.x_hat(z, log_snr) for m in (given, again)))
    assert [*map(id, given.parameters())] == [*map(id, model.parameters())]
    last: Any = [*model.parameters()][-1]
    x_hat = given.score_function.x_hat
    assert_gradients(lambda: x_hat(z, log_snr).sum(), [last], h=1e-2, rel=1e-2, abs=1e-3)


# -- weighted samples ------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["vpsde", "random_3", "tweedie"])
def test_twisted_particles_have_the_evidence_and_posterior_of_the_chain(name: str) -> None:
    """Of few steps, which is another law than that of the data; with a poor covariance too, and a
    decoder that calls the network, which does not see obs, from y_ε of much noise.

    Of 32 repeats an estimate is more than 5.5 of its own standard errors off 5 times in a million.
    """
    diffusion: Any = VPSDE(max_log_snr=1.0, min_log_snr=-9.0)
    if name == "tweedie":
        model = program(gaussian(), diffusion, likelihood=Tweedie())
    else:
        model = program(gaussian(), DIFFUSIONS[name]())
    steps, chain = 8, chain_problem(model, 8)
    law, evidence = given_measurement(chain, H, OBS, NOISE)
    of_data = given_measurement(gaussian(), H, OBS, NOISE)[1]
    assert abs(float(evidence - of_data)) > (0.05 if name == "tweedie" else 0.15)
    torch.manual_seed(2)
    for level in (-math.inf,) if name == "tweedie" else (-math.inf, math.inf):
        given = condition_on_measurements(
            model, H, OBS, NOISE, covariance_from=level, max_iterations=20
        )
        found = twisted_smc(given, 512, steps=steps, repeats=32)
        value, error = found.log_evidence
        assert not abs(value - float(evidence)) >= 5.5 * error
        assert not error >= 0.3, "0.02 to 0.06 mostly; NaN where one in 32 is a tenth of the sum"
        mean, of_mean = found.posterior_mean
        assert bool(((mean - law.mean).abs() < 5.5 * of_mean).all())
        assert bool((of_mean < 0.4 * law.covariance.diagonal().sqrt()).all())
    if name == "tweedie":
        return
    x, seen = torch.tensor([0.3, -0.2]).double(), torch.tensor([0, 1, 0, 1]).bool()
    given = condition_on_measurements(model, Mask(seen), x, 0.0, **OWN)
    found = twisted_smc(given, 512, steps=steps, repeats=32)
    _, evidence = given_measurement(chain, Mask(seen).matrix(), x, torch.zeros(2).double())
    value, error = found.log_evidence
    assert abs(value - float(evidence)) < 5.5 * error < 1.5
    assert torch.equal(found.resampled(3)[:, seen], x.expand(3, 2))


def test_the_error_of_a_posterior_mean_is_that_of_repeats() -> None:
    x = normal(0, 3, 5, 2)
    unknown = Measured(math.nan, math.nan)
    mean, error = Particles(x, torch.zeros(3, 5).double(), 1, unknown).posterior_mean
    of_each = x.mean(1)
    torch.testing.assert_close(mean, of_each.mean(0))
    student = 4.302653 / 1.959964  # quantiles of 97.5%, of two degrees of freedom and normal
    torch.testing.assert_close(error, of_each.std(0) / math.sqrt(3) * student)
    mean, error = Particles(x[:1], torch.zeros(1, 5).double(), 1, unknown).posterior_mean
    assert bool(mean.isfinite().all()) and bool(error.isnan().all())


def evidence_of(model: Any, steps: int | None) -> float:
    """log p(OBS) of the chain of so many steps; of the data for None."""
    problem = gaussian() if steps is None else chain_problem(model, steps)
    return float(given_measurement(problem, H, OBS, NOISE)[1])


@torch.no_grad()
@pytest.mark.parametrize("steps", [30, 31])
def test_twisted_particles_say_what_the_grid_adds(steps: int) -> None:
    """By chains whose evidence is known; of an odd number of steps too. An error of 1.1 / 5.5 of
    the value at the most tells it from 0."""
    model = program(gaussian(), VPSDE(**ENDS))
    half = steps // 2
    known = {n: evidence_of(model, n) for n in (steps, half, None)}
    expected = (known[half] - known[steps]) * half / (steps - half)
    torch.manual_seed(4)
    given = condition_on_measurements(model, H, OBS, NOISE)
    found = twisted_smc(given, 64, steps=steps, repeats=128)
    value, error = found.grid_error
    assert abs(value - expected) < 5.5 * error < 1.1 * expected
    assert found.network_calls == steps + half
    process = found.extrapolated
    assert process.mean == pytest.approx(found.log_evidence.mean - value)
    ratio, own = steps / half, found.log_evidence.standard_error
    coarse = math.sqrt(((ratio - 1) * error) ** 2 - own**2)
    whole = math.hypot(ratio * own, coarse) / (ratio - 1)  # of (ratio fine - coarse) / (ratio - 1)
    assert 1 <= process.standard_error / math.hypot(whole, 0.25 * value) + 1e-9 < 1.05
    assert abs(process.mean - cast(float, known[None])) < 0.5 * abs(expected)
    if steps == 30:  # most of what there is
        assert known[steps] - known[None] == pytest.approx(0.185, abs=5e-4)
        assert expected == pytest.approx(0.146, abs=5e-4)


@pytest.mark.slow
@torch.no_grad()
def test_the_error_of_a_posterior_mean_knows_the_grid() -> None:
    """Which is most of it where there are many repeats: 8 of the errors over these, in the third
    dimension. 5.5 of the whole error hold the mean, were it of the chain alone: false alarm 1e-7.
    """
    model = program(gaussian(), VPSDE(**ENDS))
    law, _ = given_measurement(gaussian(), H, OBS, NOISE)
    torch.manual_seed(5)
    given = condition_on_measurements(model, H, OBS, NOISE)
    found = twisted_smc(given, 64, steps=16, repeats=512)
    mean, error = found.posterior_mean
    assert bool(((mean - law.mean).abs() < 5.5 * error).all())
    assert bool((error > found._replace(coarse=None).posterior_mean[1]).all())
    assert twisted_smc(given, 8, steps=15).coarse is None


@torch.no_grad()
def test_of_few_steps_twisted_particles_take_no_second_chain() -> None:
    given = condition_on_measurements(program(gaussian(), VPSDE(**ENDS)), H, OBS, NOISE)
    for steps, calls in ((1, 1), (15, 15), (16, 24)):
        found = twisted_smc(given, 8, steps=steps)
        assert found.network_calls == calls and math.isnan(found.interval[0])
        assert math.isnan(found.grid_error.mean) == (steps < 16)


@torch.no_grad()
def test_one_particle_of_each_repeat_is_an_independent_draw() -> None:
    """Of the chain's p(x | obs), with a covariance that makes weights differ; and few particles
    bound the evidence from below, by more the fewer they are."""
    model, steps, n = program(gaussian(), VPSDE(**ENDS)), 8, 3000
    law, evidence = given_measurement(chain_problem(model, steps), H, OBS, NOISE)
    diagonal = DataCovariance(torch.ones(D).double())
    score = MeasuredDenoiser(
        cast(Any, model.score_function),
        Matrix(H),
        OBS,
        NOISE,
        data_covariance=diagonal,
        covariance_from=math.inf,
    )
    given = model.with_score(score, model.likelihood)
    torch.manual_seed(3)
    many, few = (twisted_smc(given, P, steps=steps, repeats=n) for P in (32, 2))
    x = many.one_of_each()
    spread = law.covariance.diagonal().sqrt()
    assert x.shape == (n, D) and len(x.unique(dim=0)) == n
    assert bool(((x.mean(0) - law.mean).abs() < (5.5 / math.sqrt(n) + 0.03) * spread).all())
    plain = few.x[:, 0]
    assert float(((plain.mean(0) - law.mean) / spread).abs().max()) > 0.12, "weights matter"
    bounds = [p.lower_bound for p in (few, many)]
    assert bounds[0].mean < bounds[1].mean - 0.1 < float(evidence) - 0.1 + 5.5 * bounds[1][1]
    assert float(evidence) - bounds[1].mean < 0.3


def test_repeats_that_cannot_have_given_obs_have_no_draw() -> None:
    x = torch.arange(6.0).reshape(3, 2, 1)
    never = -math.inf
    log_weights = torch.tensor([[never, 0.0], [never, never], [0.5, never]]).double()
    found = Particles(x, log_weights, 5, Measured(math.nan, math.nan))
    assert found.one_of_each().flatten().tolist() == [1.0, 4.0]
    assert set(found.resampled(50).flatten().tolist()) == {1.0, 4.0}


# -- replacement -----------------------------------------------------------------------------------


@torch.no_grad()
def test_replacement_is_exact_for_independent_dimensions_and_nearly_for_others() -> None:
    """Noising again between repeats leaves the law as it is; observed entries are noised values."""
    problem, n = gaussian(), 500
    independent = GaussianMixture(
        [1.0], problem.means, torch.diag(problem.covariance.diagonal())[None]
    )
    x = problem.mean + torch.tensor([-2.0, 0.0, 2.0, 0.0])
    observed = torch.tensor([1, 0, 1, 0]).bool()
    values = torch.where(observed, x, math.nan)
    law, _ = given_measurement(
        problem, Mask(observed).matrix(), x[observed], torch.zeros(2).double()
    )
    law = part(law, ~observed)
    moved = (law.mean - problem.mean[~observed]) / law.covariance.diagonal().sqrt()
    assert float(moved.abs().max()) > 1.1
    for data, repeats, known, slack in (
        (independent, 3, part(independent, ~observed), 0.03),
        (problem, 1, law, 0.6),
    ):
        sampler = Replacement(Ancestral(40), observed, values, repeats)
        torch.manual_seed(1)
        found = program(data, CLD(max_log_snr=8.0), sampler=sampler)(batch_size=n)
        scale = math.sqrt(2) * math.exp(-8.0 / 2)  # noised once, and read once by the last step
        assert float((found[:, observed] - x[observed]).abs().max()) < 7 * scale
        found, spread = found[:, ~observed], known.covariance.diagonal().sqrt()
        off = (found.mean(0) - known.mean) / spread
        assert float(off.abs().max()) < 5.5 / math.sqrt(n) + slack
        off = (found.T.cov() - known.covariance) / spread / spread[:, None]
        assert float(off.abs().max()) < 5.5 * math.sqrt(2 / n) + slack


@torch.no_grad()
def test_measurements_of_data_with_a_context() -> None:
    """Told before or after: the denoiser that is asked is that of the context."""
    torch.manual_seed(0)
    network = MLP(D + 2, out_features=D, hidden=8)
    for p in network.parameters():
        p.data += 0.2 * torch.randn_like(p)
    model = DiffusionModel(
        VPSDE(), Denoiser(network), event_shape=(D,), context=Labels(2, dropout=0.1)
    )
    z, log_snr = normal(0, 3, D).float(), torch.zeros(3)
    same: dict[str, Any] = {"data": normal(2, 20, D), "covariance_from": 0.0}
    one, other = (
        condition_on_measurements(condition(model, context=c), H, OBS, NOISE, **same)
        for c in (0, 1)
    )
    late = condition_on_measurements(model, H, OBS, NOISE, **same).given_context(1)
    found = [m.score_function.x_hat(z, log_snr) for m in (one, other, late)]
    torch.testing.assert_close(found[1], found[2])
    assert float((found[0] - found[1]).abs().min()) > 1e-4
    assert late(batch_size=3).shape == (3, D)
    asked = []
    network.register_forward_hook(lambda module, inputs, out: asked.append(len(out)))
    for n in (3, 1000):  # of many contexts some are drawn from
        reference(condition(model, context=torch.arange(n) % 2))
    assert set(asked) == {64, 256}
    unknown: Any = late.score_function.without_context()
    assert float((unknown.x_hat(z, log_snr) - found[1]).abs().min()) > 1e-4


# -- operators -------------------------------------------------------------------------------------

IMAGE = (2, 4, 6)


def columns_backwards(x: Tensor) -> Tensor:
    return 2 * x.flip(-1)[..., :3]


OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "matrix": lambda: Matrix(fixed(2, 5, 48), IMAGE),
    "mask": lambda: Mask(fixed(2, *IMAGE) > 0),
    "blur": lambda: Blur(IMAGE, 0.8),
    "downsample": lambda: Downsample(IMAGE, 2),
    "function": lambda: FunctionOperator(columns_backwards, IMAGE),
}


@torch.no_grad()
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_have_their_adjoint(name: str) -> None:
    operator = OPERATORS[name]()
    operator.check()
    matrix, obs = operator.matrix(), fixed(3, 2, 3, *operator.obs_shape)
    found = operator.adjoint(obs)
    assert found.shape == (2, 3, *IMAGE)
    torch.testing.assert_close(found.flatten(2), obs.flatten(2) @ matrix)
    assert operator(found).shape == obs.shape
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(operator(found.float()), operator(found).float(), **close)
    torch.testing.assert_close(operator.adjoint(obs.float()), found.float(), **close)


def test_what_operators_do() -> None:
    x = torch.arange(48.0).double().reshape(IMAGE)
    torch.testing.assert_close(
        Downsample(IMAGE, 2)(x)[0, 0], torch.tensor([3.5, 5.5, 7.5]).double()
    )
    assert torch.equal(Mask(x > 45)(x), torch.tensor([46.0, 47.0]).double())
    blurred = Blur(IMAGE, 1.0)(x)
    row = torch.distributions.Normal(0.0, 1.0).log_prob(torch.arange(-3.0, 4.0)).exp().double()
    kernel = torch.outer(row, row) / row.sum() ** 2
    wide = torch.nn.functional.pad(x.flatten(0, -3).unsqueeze(1), (3, 3, 3, 3), mode="replicate")
    known = torch.nn.functional.conv2d(wide, kernel.to(x.dtype)[None, None]).reshape(x.shape)
    torch.testing.assert_close(blurred, known)
    torch.testing.assert_close(Blur(IMAGE, 1.0)(torch.ones_like(x)), torch.ones_like(x))
    assert float(blurred.std()) < float(x.std())


# -- what is refused -------------------------------------------------------------------------------


SEEN, AT_REST = torch.tensor([1, 0, 0, 0]).bool(), torch.zeros(D)


def measured(**changed: Any) -> DiffusionModel:
    model = program(gaussian(), VPSDE(**ENDS))
    options = {"H": H, "obs": OBS, "noise": NOISE}
    return condition_on_measurements(model, **options | changed)


def raw() -> DiffusionModel:
    model = DiffusionModel(VPSDE(**ENDS), NoisePrediction(MLP(D)), event_shape=(D,))
    return condition_on_measurements(model, H, OBS, NOISE)


def twice() -> DiffusionModel:
    known = condition(program(gaussian(), VPSDE(**ENDS)), SEEN, AT_REST)
    return condition_on_measurements(known, H, OBS, NOISE)


def blurring() -> DiffusionModel:
    diffusion = PerDimensionDiffusion(
        VPSDE(**ENDS), block_of=torch.zeros(D, dtype=torch.int64), transform=Frequencies(1)
    )
    return condition_on_measurements(program(gaussian(), diffusion), H, OBS, NOISE)


def double(adjoint: Any) -> FunctionOperator:
    return FunctionOperator(lambda x: 2 * x, (D,), adjoint)


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: measured(H=H[0]), r"H is a Tensor of shape \(4,\), expected finite numbers, \(m, d\)"),
    (lambda: measured(H=H[:, :3]), r"H has shape \(2, 3\), expected 4 columns"),
    (lambda: measured(H=Mask(torch.ones(3).bool())), r"H is of data of shape \(3,\), expected \(4"),
    (lambda: measured(obs=OBS[:1]), r"obs has shape \(1,\), expected that of H x, \(2\), or \(n"),
    (lambda: measured(obs=OBS * math.nan), "obs of shape .* holds nan"),
    (lambda: measured(noise=-0.1), "noise reaches -0.1, expected finite variances"),
    (lambda: measured(noise=NOISE[:1]), r"noise has shape \(1,\), expected a"),
    (lambda: measured(H=H[[0, 0]], noise=0.0), "of which H makes only 1 independent"),
    (
        lambda: twisted_smc(measured(noise=1e-9), 2, steps=2),
        "noise reaches 1e-09, expected at least .*give noise more variance",
    ),
    (lambda: measured(data=1e-3 * normal(0, 9, D)), "in the units of the model; scale them"),
    (lambda: measured(covariance_from=math.nan), "covariance_from is nan, expected a number"),
    (lambda: measured(data=torch.zeros(5, D).numpy()), "expected a Tensor of real numbers"),
    (lambda: measured(data=torch.zeros(3, 2)), "data have shape .3, 2., expected .n, 4. of at"),
    (lambda: measured(data=torch.randn(2, D)), "data have shape .2, 4., .* of at least 3 draws"),
    (lambda: measured(data=torch.ones(5, D)), "data are 5 times the same, expected draws that"),
    (raw, "expected a DenoiserScore; a measurement"),
    (twice, "conditioned already"),
    (lambda: condition(measured(), SEEN), "conditioned already"),
    (blurring, "states that hold the data"),
    (lambda: twisted_smc(program(gaussian(), VPSDE(**ENDS))), "expected a MeasuredDenoiser"),
    (lambda: twisted_smc(measured(obs=OBS.expand(3, 2))), "one for each datum"),
    (lambda: twisted_smc(measured(noise=0.0)), "coordinates"),
    *(
        (
            lambda part=part: twisted_smc(measured(), 2, steps=2, threshold=part),
            f"threshold is {said}",
        )
        for part, said in ((-0.1, "-0.1, expected a part"), (1.5, "1.5, .*write 0.5 for a half"))
    ),
    (lambda: twisted_smc(measured(), 2, steps=2).resampled(0), "n is 0, expected at least 1"),
    (lambda: Replacement(ProbabilityFlow(5), SEEN, AT_REST), "takes no steps on a grid"),
    (lambda: Replacement(Ancestral(5), AT_REST, AT_REST), r"write observed\.bool\(\)"),
    (lambda: Replacement(Ancestral(5), SEEN, AT_REST[:3]), r"values has shape \(3,\), expected"),
    (lambda: Replacement(Ancestral(5), SEEN, AT_REST * math.nan), "not finite"),
    (lambda: FunctionOperator(lambda x: x + 1, (D,)), "expected a linear H"),
    (lambda: double(lambda y: y), r"⟨H x, y⟩ is .* and ⟨x, Hᵀ y⟩ .*, expected them to be equal"),
    (lambda: double(lambda y: y[..., :3]), r"Hᵀ obs of FunctionOperator is a Tensor of shape \(2"),
    (
        lambda: measured(H=columns_backwards),
        "expected a Tensor of real numbers or a LinearOperator .*: a matrix",
    ),
    (lambda: Downsample(IMAGE, 4), "expected a divisor of the 4×6 pixels"),
    (lambda: Mask(torch.zeros(D).bool()), "no dimension is seen"),
    (lambda: measured(obs=OBS.expand(3, 2))(batch_size=4), "differs between 3 data, and 4 are"),
    (lambda: measured(obs=OBS.expand(3, 2)).log_prob(torch.zeros(2, D).double()), "obs are of 3"),
]


@pytest.mark.slow
def test_what_cannot_be_measured_is_said() -> None:
    refused((TypeError, ValueError), *MISTAKES)
