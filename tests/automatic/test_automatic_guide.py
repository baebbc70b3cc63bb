"""AutoMDM as a guide: its density is Pyro's, its weights are right, its draws are by site."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDiscreteParallel, AutoGuideList, init_to_value
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from pyro_mdm import CLD, VPSDE, LinearDiffusion
from pyro_mdm.automatic import AutoMDM
from pyro_mdm.automatic.weighing import Weighing
from pyro_mdm.evaluation.tempering import TemperedParticles, temper
from pyro_mdm.evaluation.weights import ImportanceWeights
from tests.automatic.conjugate import CENTER, DEVIATION, EVIDENCE, conjugate, made

DATA = torch.tensor([1.0, 0.5, -1.0, 2.0])
QUICK: dict[str, Any] = {"updates": 20, "start_updates": 100, "progress": False}


def groups(data: Tensor = DATA) -> None:
    """Latents with supports of their own, inside and outside of a plate."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("groups", 4):
        means = dist.Normal(torch.zeros(2), scale.unsqueeze(-1)).to_event(1)
        mean = pyro.sample("mean", means).sum(-1)
        pyro.sample("data", dist.Normal(mean * weights[..., 0], 0.5), obs=data)


def mixture() -> None:
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", 4):
        own = pyro.sample("own", dist.Categorical(torch.tensor([0.3, 0.7])))
        mean = torch.where(own == 0, means[..., 0], means[..., 1])
        pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA)


def test_the_density_is_that_of_pyro() -> None:
    guide = made(groups)
    _, potential, transforms, _ = initialize_model(groups)
    x = torch.randn(5, guide.latent_dim)
    shapes = {"weights": (2,), "scale": (), "mean": (4, 2)}
    assert set(shapes) == set(transforms)
    for row, value in zip(x, guide.log_density(x), strict=True):
        parts = row.split([math.prod(shape) for shape in shapes.values()])
        by_site = {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        assert float(value) == pytest.approx(-float(potential(by_site)), rel=1e-5)


@pytest.mark.parametrize("diffusion", [None, CLD()])
def test_weights_have_the_evidence_as_their_mean(diffusion: LinearDiffusion | None) -> None:
    guide = AutoMDM(conjugate, diffusion, steps=4).fit(**QUICK)
    weights = guide.importance(4_000)
    value, error = weights.log_evidence.mean, weights.log_evidence.standard_error
    assert 0 < error < 0.2 and abs(value - EVIDENCE) < 5.5 * error


@pytest.mark.slow
def test_training_raises_the_bound_and_its_draws_are_the_posterior() -> None:
    guide = AutoMDM(conjugate, steps=4).fit(updates=150, start_updates=300, progress=False)
    assert ImportanceWeights(Weighing(guide).weighted(2_000)[1]).effective > 1_900
    draws = guide.sample_posterior(2_000)["mean"]
    assert draws.shape == (2_000, 2)
    error = DEVIATION / math.sqrt(2_000)
    assert (draws.mean(0) - CENTER).abs().max() < 5 * error
    assert (draws.std(0) / DEVIATION - 1).abs().max() < 0.1
    low, high = guide.quantiles([0.159, 0.841])["mean"]
    torch.testing.assert_close((high - low) / 2, torch.full((2,), DEVIATION), rtol=0.15, atol=0)
    torch.testing.assert_close(guide.median()["mean"], torch.full((2,), CENTER), rtol=0.1, atol=0)


def test_the_bound_of_svi_is_the_mean_log_weight() -> None:
    guide = AutoMDM(groups, steps=4).fit(**QUICK)
    elbo = Trace_ELBO(num_particles=2_000, vectorize_particles=True, max_plate_nesting=1)
    log_weights = Weighing(guide).weighted(2_000)[1]
    error = float(log_weights.std()) * math.sqrt(2 / 2_000)
    assert abs(elbo.loss(groups, guide) + float(log_weights.mean())) < 5 * error < 0.5


def test_svi_trains_everything() -> None:
    guide = made(groups)
    before = {name: value.clone() for name, value in guide.named_parameters()}
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(groups, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    for _ in range(3):
        svi.step(DATA)
    for name, value in guide.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_gradients_by_the_gaussian_are_those_of_finite_differences() -> None:
    """Of SVI, whose chain starts where its Gaussian does."""

    def program() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        y = torch.tensor([1.0, 0.5]).double()
        pyro.sample("y", dist.Normal(x.square(), 0.5).to_event(1), obs=y)

    guide = AutoMDM(program, CLD(), steps=3, init_scale=0.5)
    guide()
    guide.to(torch.float64)
    with torch.no_grad():
        for parameter in guide.chain.parameters():
            parameter += 0.1 * torch.randn_like(parameter)

    def bound() -> Tensor:
        pyro.set_rng_seed(1)
        return guide.log_weights(200)[1].mean()

    for name in ("loc", "scale_unconstrained"):
        parameter = guide.get_parameter(name)
        (slope,) = torch.autograd.grad(bound(), parameter)
        for i in range(2):
            ends = []
            for step in (1e-4, -1e-4):
                with torch.no_grad():
                    parameter[i] += step
                    ends.append(float(bound()))
                    parameter[i] -= step
            assert float(slope[i]) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-4, abs=1e-5)


def test_a_fit_leaves_no_gradients() -> None:
    known = torch.tensor(1.0, requires_grad=True)

    def program() -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(mean[..., 0] * known, 1.0), obs=torch.tensor(1.0))

    guide = AutoMDM(program, steps=2).fit(updates=2, start_updates=2, progress=False)
    assert known.grad is None and all(p.grad is None for p in guide.parameters())


def test_particles_start_as_wide_as_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def seen(first: Tensor, *rest: Any, **options: Any) -> TemperedParticles:
        starts.append(first)
        return temper(first, *rest, **options)

    monkeypatch.setattr("pyro_mdm.automatic.fitting.temper", seen)

    def program() -> None:
        pyro.sample("x", dist.Normal(5.0, 3.0))

    made(program, start="particles").fit(updates=1, particles=4_000, progress=False)
    (first,) = starts
    assert first.shape == (8, 500, 1)
    assert 2.5 < first.std() < 3.5 and abs(float(first.mean()) - 5) < 1


@pytest.mark.parametrize(
    "price, seconds, most, number",
    [
        (0.5, 72.0, 4_000, 4_000),
        (0.5, 72.0, None, 16_384),
        (30.0, 72.0, 4_000, 704),
        (1e4, 72.0, 4_000, 256),
        (0.0, 0.01, None, 256),
    ],
)
def test_particles_are_as_many_as_there_is_time_for(
    price: float, seconds: float, most: int | None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that 1,000 particles move on."""
    now, sizes = [0.0], []

    def seen(first: Tensor, *rest: Any, **options: Any) -> TemperedParticles:
        sizes.append(first.shape[:2].numel())
        now[0] += price * sizes[-1] / 1_000
        return temper(first, *rest, **options)

    def program() -> None:
        now[0] += 1e-3
        pyro.sample("x", dist.Normal(0.0, 3.0))

    monkeypatch.setattr("pyro_mdm.automatic.fitting.temper", seen)
    monkeypatch.setattr("pyro_mdm.budgets.monotonic", lambda: now[0])
    guide = made(program, start="particles")
    options = {"updates": 1, "start_updates": 1, "progress": False}
    guide.fit(particles=most, seconds=seconds, **options)
    assert sizes[0] == 256 and sizes[-1] == pytest.approx(number, abs=16)


def test_it_is_a_guide_as_others_are() -> None:
    guide = made(groups)
    replicated = Predictive(groups, guide=guide, num_samples=3)()
    assert replicated["scale"].shape[0] == 3
    both = AutoGuideList(mixture)
    both.append(AutoMDM(mixture, steps=2))
    both.append(AutoDiscreteParallel(pyro.poutine.block(mixture, expose=["own"])))
    assert set(both()) == {"means", "own"}


@pytest.mark.filterwarnings("ignore:at guide site")  # Pyro's, of any continuous guide there
def test_others_of_a_list_may_come_before() -> None:
    both = AutoGuideList(mixture)
    both.append(AutoDiscreteParallel(pyro.poutine.block(mixture, expose=["own"])))
    both.append(AutoMDM(mixture, steps=2))
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    svi = SVI(mixture, both, pyro.optim.Adam({"lr": 0.01}), elbo)
    assert all(math.isfinite(svi.step()) for _ in range(2))


def test_other_values_have_no_density() -> None:
    law = made(conjugate).get_posterior()
    with pytest.raises(NotImplementedError, match="has no density in closed form"):
        law.log_prob(torch.zeros(2))


@pytest.mark.filterwarnings("ignore:.* has a deviation of")
def test_weights_that_mislead_are_said() -> None:
    def heavy() -> None:
        with pyro.plate("rows", 10):
            pyro.sample("x", dist.Cauchy(0.0, 1.0))

    guide = made(heavy)
    with pytest.warns(UserWarning, match="of 250 draws with heavy tails count, expected 267"):
        guide.importance(1_000)
    with pytest.warns(UserWarning, match="heavy tails count"):
        guide.sample_posterior(100, resample=True)


def test_guides_that_share_parameters_are_named() -> None:
    made(conjugate)
    with pytest.warns(UserWarning, match=r"shares 'AutoMDM\.loc' .*clear_param_store"):
        made(conjugate)
    with pyro.settings.context(module_local_params=True):
        made(groups)


@pytest.mark.filterwarnings("ignore:this guide shares")
def test_guides_that_cannot_share_parameters_are_refused() -> None:
    made(conjugate)
    with pytest.raises(ValueError, match="11 latents, expected 2 as of Pyro's parameter store"):
        made(groups)


def test_an_improper_site_starts_where_it_is_told() -> None:
    guide = AutoMDM(flat, steps=4, init_loc_fn=HALF).fit(**QUICK)
    value = guide.importance(1_000).log_evidence
    assert abs(value.mean) < 5.5 * value.standard_error + 0.01


def test_it_is_no_transform_of_its_gaussian() -> None:
    with pytest.raises(NotImplementedError, match="no transform of a simple distribution"):
        made(conjugate).get_transform()


def nothing() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def branching() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x if x > 0 else 2 * x, 1.0), obs=torch.tensor(0.0))


def hiding() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x + torch.randn(()), 1.0), obs=torch.tensor(0.0))


def rootless() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    mean = torch.where(s > 0, s, (s - s).sqrt())  # a derivative of 0 times infinity
    pyro.sample("y", dist.Normal(x + mean, 1.0), obs=torch.tensor(0.0))


def bent() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("bent", (x - x).abs().pow(1.5))  # a second derivative of 0 times infinity


def impossible() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("never", x - torch.inf)


def flat() -> None:
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, torch.Size(), torch.Size()))
    pyro.sample("y", dist.Normal(x, 0.5), obs=torch.tensor(1.0))


HALF = init_to_value(values={"x": torch.tensor(0.5)})
WIDE = LinearDiffusion(Q=[[0.0]], D=[[1.0]], stationary_variance=4.0)

MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: AutoMDM(conjugate, start="nuts"), "start is 'nuts', expected one of 'gaussian'"),
    (lambda: AutoMDM(conjugate, steps=0), "steps is 0"),
    (lambda: AutoMDM(conjugate, VPSDE), "diffusion"),
    (lambda: AutoMDM(nothing)(), "found no latent variables"),
    (lambda: AutoMDM(branching)(), r"does not run for many values .* torch\.where for if"),
    (lambda: AutoMDM(hiding)(), "draws anew in each run what is none of its latents"),
    (lambda: AutoMDM(impossible)(), "near its start, expected finite"),
    (lambda: AutoMDM(rootless)(), r"by 's' is nan where its value is .*mend the program"),
    (lambda: AutoMDM(bent, steps=2).fit(**QUICK), "finite in 0 of 20 updates of the chain"),
    (lambda: AutoMDM(conjugate, WIDE)(), r"Σ_∞ has the first row \[4.0\], expected 1 for x"),
    (lambda: AutoMDM(conjugate).fit(paths=0), "paths is 0"),
    (lambda: AutoMDM(conjugate).fit(paths=2.5), "paths is 2.5"),  # type: ignore[arg-type]
    (lambda: AutoMDM(conjugate).fit(particles=31), "particles is 31, expected at least 32"),
    (lambda: AutoMDM(conjugate).fit(learning_rate=-1.0), "learning_rate is -1"),
    (lambda: AutoMDM(flat, start="particles", init_loc_fn=HALF).fit(), "cannot be drawn"),
    (lambda: made(conjugate).log_density(torch.zeros(3, 1)), r"\(3, 1\), expected \(n, 2\)"),
    (lambda: made(conjugate).log_density(torch.zeros(0, 2)), r"\(0, 2\), expected \(n, 2\)"),
    (lambda: made(conjugate).importance(0), "num_samples is 0"),
]


@pytest.mark.parametrize("mistake, message", MISTAKES)
def test_mistakes_are_named(mistake: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        mistake()
