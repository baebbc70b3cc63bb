"""AutoMDM from draws that exist, its bounds from both sides, and what its check says."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_value
from pyro.infer.inspect import get_model_relations
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from pyro_mdm import CLD, VPSDE, AutoMDM, LearnedDiffusion, LinearDiffusion
from pyro_mdm.automatic import Gap
from pyro_mdm.automatic.bidirectional import gap_by_simulation
from pyro_mdm.automatic.checkup import Counterpart, checked, funnels
from pyro_mdm.automatic.fitting import become_gaussian
from pyro_mdm.automatic.moments import Moments, uneven
from pyro_mdm.automatic.weighing import Weighing
from pyro_mdm.evaluation.weights import ImportanceWeights
from tests.automatic.conjugate import CENTER, DEVIATION, EVIDENCE, PRECISION, conjugate, made


def simplex() -> None:
    """Latents with supports of their own, in a plate and outside."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("groups", 4):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("count", dist.Poisson(rate * weights[..., 0]), obs=torch.arange(4.0))


def funnel() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", 9):
        pyro.sample("x", dist.Normal(0.0, (z / 2).exp()))


def heavy() -> None:
    with pyro.plate("rows", 4):
        pyro.sample("x", dist.Cauchy(0.0, 1.0))


def heavy_transform() -> None:
    """Torch has it as a transform of a gamma distribution."""
    with pyro.plate("rows", 4):
        pyro.sample("x", dist.InverseGamma(1.0, 1.0))


def exact(n: int = 1_000) -> dict[str, Tensor]:
    """Draws of the posterior of the conjugate program."""
    return {"mean": CENTER + DEVIATION * torch.randn(n, 2)}


def solved(diffusion: LinearDiffusion | None = None) -> AutoMDM:
    """The guide whose Gaussian is the posterior of the conjugate program, and whose chain rests."""
    guide = made(conjugate, diffusion=diffusion)
    guide.loc.data = torch.full((2,), CENTER)
    guide.scale = torch.full((2,), DEVIATION)
    guide.scale_tril = torch.eye(2)
    guide.chain.rest()  # type: ignore[operator]
    return guide


# -- draws that exist ------------------------------------------------------------------------------


def test_draws_train_a_guide_with_the_evidence() -> None:
    """Those of chains, and of ArviZ, are the same."""
    draws = exact()
    chains = {name: value.reshape(4, 250, 2) for name, value in draws.items()}
    arrays = {name: SimpleNamespace(values=value.numpy()) for name, value in chains.items()}
    of_arviz = SimpleNamespace(posterior=SimpleNamespace(data_vars=arrays))
    guide = AutoMDM(conjugate, steps=4)
    guide.fit(draws=of_arviz, updates=10, start_updates=30, progress=False)
    assert guide.start == "particles"
    for others in (chains, of_arviz):
        assert torch.equal(guide.rows(others), guide.rows(draws))
    value, error = guide.importance(4_000).log_evidence
    assert 0 < error < 0.2 and abs(value - EVIDENCE) < 5.5 * error


def test_draws_of_a_guide_are_rows_of_its_latents() -> None:
    """Sites with supports of their own, in a plate and outside, and back."""
    guide = made(simplex)
    x = torch.randn(2_000, guide.latent_dim)  # so many that R̂ warns for no seed
    torch.testing.assert_close(
        guide.rows(guide.program_density.by_site(x)), x, rtol=1e-4, atol=1e-4
    )


def test_chains_that_have_not_mixed_are_said() -> None:
    stuck = exact(400)["mean"].reshape(4, 100, 2) + torch.arange(4.0)[:, None, None]
    with pytest.warns(UserWarning, match=r"not mixed: R̂ is \d.* for 'mean', expected at most 1.05"):
        made(conjugate).rows({"mean": stuck})


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: made(conjugate).rows({"a": torch.zeros(99)}), "no draws of 'mean', but of 'a'"),
    (lambda: made(conjugate).rows({"mean": torch.zeros(99, 3)}), r"\(99, 3\), expected .*\(2,\)"),
    (lambda: made(conjugate).rows(exact(9)), "there are 9 draws, expected 16 at least"),
    (
        lambda: made(conjugate).rows({"mean": torch.randn(8, 3, 2)}),
        "there are 3 draws in each of 8 chains, expected 4 at least",
    ),
    (lambda: made(conjugate).rows(torch.zeros(99, 2)), "draws is Tensor, expected values by site"),
    (lambda: made(conjugate).rows({"mean": torch.full((99, 2), torch.nan)}), "99 draws of 'mean'"),
    (
        lambda: made(simplex).rows({"weights": torch.ones(50, 3) / 3, "rate": torch.ones(40, 4)}),
        r"'rate' has draws of shape \(1, 40\) \(chains, draws\), expected \(1, 50\)",
    ),
    (
        lambda: made(simplex).rows({"weights": torch.ones(50, 3) / 3, "rate": -torch.ones(50, 4)}),
        "50 draws of 'rate' are outside of its support",
    ),
    (lambda: made(conjugate).fit(draws=exact(), progress=False), "does not learn from draws"),
    (lambda: AutoMDM(conjugate).fit(seconds=-1.0), "seconds is -1"),
    (lambda: solved().gap(simulated=1), "simulated is 1, expected at least 2"),
    (lambda: made(funnel).gap(), "observes nothing, expected data"),
    (lambda: made(factored).gap(), "'f' is a factor, which has no data to simulate"),
    (lambda: solved().check(num_samples=5), "num_samples is 5"),
]


def factored() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("f", -x.square())


@pytest.mark.parametrize("mistake, message", MISTAKES)
def test_mistakes_are_named(mistake: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        mistake()


# -- bounds from both sides ------------------------------------------------------------------------


@pytest.mark.parametrize("diffusion", [VPSDE(), CLD()])
def test_an_exact_guide_has_no_gap(diffusion: LinearDiffusion) -> None:
    below, above = Weighing(solved(diffusion)).two_sided({"mean": torch.tensor([0.7, 1.2])}, 50)
    for bound in (below, above):
        assert torch.allclose(bound, torch.full_like(bound, EVIDENCE), atol=1e-3)


@pytest.mark.parametrize("start", ["gaussian", "particles"])
def test_the_sides_of_a_guide_have_the_evidence_as_their_means(start: str) -> None:
    """E[w] of the guide's paths, and 1 / E[1/w] of those from exact draws, are p(data)."""
    guide = made(conjugate, start=start)
    with torch.no_grad():  # anything, as long as weights have a variance on both sides
        guide.loc.data = torch.full((2,), CENTER + 0.1)
        guide.scale = torch.full((2,), 1.1 * DEVIATION)
        guide.scale_tril = torch.eye(2)
        for parameter in guide.chain.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        below = Weighing(guide).weighted(10_000)[1] - EVIDENCE
        above = EVIDENCE - Weighing(guide).noised(guide.rows(exact(10_000)))
    for log_shares in (below, above):
        shares = log_shares.exp()
        error = float(shares.std()) / math.sqrt(len(shares))
        assert 1e-3 < error < 0.2 and abs(float(shares.mean()) - 1) < 5.5 * error


def center_of(program: Callable[..., Any]) -> Tensor:
    """The posterior mean of the conjugate program, conditioned on some data."""
    nodes: dict[str, Any] = pyro.poutine.trace(program).get_trace().nodes
    center: Tensor = 4 * nodes["data"]["value"].sum(0) / PRECISION
    return center


def gaussian(program: Callable[..., Any], center: Tensor, deviation: float) -> AutoMDM:
    """A guide of a program by this Gaussian, whose chain rests."""
    guide = AutoMDM(program, steps=2)
    guide()
    become_gaussian(guide, center.reshape(-1), deviation * torch.eye(center.numel()))
    guide.chain.rest()  # type: ignore[operator]
    return guide


def test_the_gap_is_the_sum_of_both_divergences() -> None:
    """Of two Gaussians in two dimensions whose deviations are as 2 to 1: 4 + 1/4 - 2 nats."""

    def fitted(program: Callable[..., Any]) -> AutoMDM:
        return gaussian(program, center_of(program), 2 * DEVIATION)

    result = gap_by_simulation(conjugate, fitted, 30, 16)
    assert result.data_sets == 30
    assert abs(result.gap.mean - 2.25) < 7 * result.gap.standard_error < 2.5
    assert not [*pyro.get_param_store()]


def test_the_gap_by_draws_is_that_of_the_data() -> None:
    result = solved().gap(draws=exact(), paths=100)
    assert abs(result.gap.mean) < 1e-3 and result.data_sets == 0
    assert "an estimate, no bound" in repr(result)


def test_parameters_of_the_program_stay_and_those_of_guides_go() -> None:
    def program() -> None:
        shift = pyro.param("shift", torch.tensor(0.3))
        x = pyro.sample("x", dist.Normal(shift, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.0))

    guide = AutoMDM(program, steps=2)
    guide.fit(updates=2, start_updates=2, progress=False)
    before = {name: value.clone() for name, value in pyro.get_param_store().items()}
    result = guide.gap(simulated=2, paths=4)
    assert isinstance(result, Gap) and "2 simulated data sets" in repr(result)
    assert set(before) == {*pyro.get_param_store()}
    for name, value in before.items():
        assert torch.equal(value, pyro.get_param_store()[name])


def test_a_guide_like_another_begins_without_its_fit() -> None:
    guide = AutoMDM(conjugate, LearnedDiffusion(num_variables=2), steps=2)
    first = guide.like_this(conjugate)
    guide.fit(updates=2, start_updates=2, progress=False)
    second = guide.like_this(conjugate)
    trained = dict(guide._diffusion.named_parameters())
    for name, value in first._diffusion.named_parameters():
        assert torch.equal(value, dict(second._diffusion.named_parameters())[name])
        assert not torch.equal(value, trained[name])


def test_what_a_program_computes_follows_its_latents() -> None:
    def program() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        twice = pyro.deterministic("twice", 2 * x)
        pyro.sample("y", dist.Normal(twice, 1.0), obs=torch.tensor(0.0))

    def posterior(program: Callable[..., Any]) -> AutoMDM:
        y = pyro.poutine.trace(program).get_trace().nodes["y"]["value"]
        return gaussian(program, 2 * y / 5, 5**-0.5)

    result = gap_by_simulation(program, posterior, 3, 4)
    assert abs(result.gap.mean) < 1e-4 and result.gap.standard_error < 1e-4


# -- the check -------------------------------------------------------------------------------------


def test_a_good_guide_is_trusted() -> None:
    result = solved().check(other=exact(4_000))
    assert result.is_trusted and result.kept == "Gaussian" and not result.remedies
    assert result.distance < 0.1
    lines = repr(result).splitlines()
    assert len(lines) == 4 and lines[-1] == "trust: yes"


def test_draws_elsewhere_are_no_agreement() -> None:
    result = solved().check(other={"mean": exact(4_000)["mean"] + 0.5 * DEVIATION})
    assert not result.is_trusted and result.is_apart and result.distant == "'mean'"
    assert "start='particles'" in result.remedies[0]


def test_a_second_fit_without_weights_is_no_agreement() -> None:
    nothing = ImportanceWeights(torch.full((100,), -math.inf))
    nowhere = Moments.from_weights(torch.zeros(100, 2), nothing)
    result = checked(solved(), Counterpart("start", nowhere, nothing), 4_000)
    assert math.isnan(result.distance) and not result.is_trusted


@pytest.mark.filterwarnings("ignore:all of 50 weights are 0")
def test_draws_that_are_impossible_have_no_weight() -> None:
    def program() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("positive", torch.where(x > 0, 0.0, -math.inf))

    guide = AutoMDM(program, steps=2, init_loc_fn=init_to_value(values={"x": torch.tensor(2.0)}))
    guide.set_up()
    guide.loc.data = torch.tensor([-50.0])
    weights = guide.importance(50)
    assert bool((weights.log_weights == -math.inf).all()) and weights.effective == 0


def test_few_draws_elsewhere_may_be_off_by_their_error() -> None:
    """By half a deviation, where that is twice the error of 16 draws and many of 4,000."""
    x = torch.randn(16, 2)
    x = (x - x.mean(0)) / x.std(0)
    few = {"mean": CENTER + DEVIATION * (x + 0.5)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # R̂ of so few
        result = solved().check(other=few)
    assert result.distance == pytest.approx(0.5, abs=0.1) and not result.is_apart


@pytest.mark.filterwarnings("ignore:the weights have a tail")
def test_a_missed_mode_is_seen_by_a_second_fit() -> None:
    def uneven_modes() -> None:
        x = pyro.sample("x", dist.Normal(0.5, 3.0))
        pyro.sample("square", dist.Normal(x.square(), 0.2), obs=torch.tensor(9.0))

    guide = AutoMDM(uneven_modes, steps=2)
    guide.fit(updates=5, start_updates=100, particles=512, progress=False)
    result = guide.check(progress=False)
    assert result.second is not None and result.second.name == "start 'particles'"
    assert not result.lacks and result.disagrees and not result.is_trusted
    assert "missed a mode" in repr(result)


@pytest.mark.parametrize(
    "program, words",
    [
        (funnel, "'z' scales 'x', a funnel"),
        (heavy, "'x' has heavy tails (Cauchy)"),
        (heavy_transform, "'x' has heavy tails (InverseGamma)"),
    ],
)
def test_remedies_are_by_what_is_seen(program: Callable[..., Any], words: str) -> None:
    result = made(program).check(other=None)
    assert not result.is_trusted and words in result.remedies[0]
    assert f"trust: no; {result.remedies[0]}" in repr(result)


def test_the_remedy_of_a_funnel_runs() -> None:
    program = pyro.poutine.reparam(funnel, config={"x": LocScaleReparam(0.0)})
    guide = made(program)
    assert funnels(guide) == {}
    pyro.clear_param_store()
    assert funnels(made(funnel)) == {"z": ["x"]}


def test_a_bound_that_still_rises_asks_for_updates() -> None:
    guide = made(heavy_free)
    guide.losses = torch.linspace(10.0, 0.0, 200)
    result = guide.check(other=None)
    assert not result.is_trusted and any("more updates" in remedy for remedy in result.remedies)
    assert "still rose in the last quarter" in result.remedies[0]


def heavy_free() -> None:
    """A posterior far from where an unfitted guide is."""
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    pyro.sample("y", dist.Normal(x, 0.01).to_event(1), obs=torch.full((3,), 20.0))


# -- a citizen of Pyro -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:this guide shares")
def test_its_graph_can_be_drawn() -> None:
    relations = get_model_relations(made(conjugate))
    assert "mean" in relations["sample_sample"]


# -- draws of the fit ------------------------------------------------------------------------------


def test_draws_of_the_fit_are_warned_of() -> None:
    """Whether all of them are handed over, some of them in another order, or beside others."""
    fitted, others = exact(200), exact(200)
    guide = AutoMDM(conjugate, steps=2)
    guide.fit(draws=fitted, updates=2, start_updates=2, progress=False)
    few = {"mean": fitted["mean"][torch.randperm(200)[:50]]}
    both = {"mean": torch.cat([few["mean"], others["mean"]])}
    looks: tuple[Callable[[Any], Any], ...] = (
        lambda draws: guide.gap(draws=draws, paths=100),
        lambda draws: guide.check(other=draws, num_samples=100),
    )
    for look in looks:
        look(others)  # a warning is an error
        for draws, share in ((fitted, "100%"), (few, "100%"), (both, "20%")):
            words = f"{share} of the draws are those .* expected others"
            with pytest.warns(UserWarning, match=words):
                look(draws)


# -- moments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.95, 1.5])
def test_errors_of_moments_are_those_of_repetitions(scale: float) -> None:
    """Of N(0, 1) by weighted draws of a wider or narrower Gaussian, of two numbers."""
    made_of: list[Moments] = []
    for _ in range(300):
        x = scale * torch.randn(400, 2, dtype=torch.float64)
        log_weights = (x.square() * (scale**-2 - 1)).sum(1) / 2
        made_of.append(Moments.from_weights(x, ImportanceWeights(log_weights)))
    for name in ("mean", "deviation"):
        values = torch.stack([getattr(one, name) for one in made_of])
        errors = torch.stack([getattr(one, f"{name}_error") for one in made_of])
        torch.testing.assert_close(errors.median(0).values, values.std(0), rtol=0.25, atol=0.0)


def test_a_latent_whose_halves_differ_is_named() -> None:
    """A few draws of a tail carry the deviation of 'b'."""
    x = torch.randn(4_000, 2)
    even = ImportanceWeights(torch.zeros(4_000))
    assert uneven(x, even) is None
    x[1, 1] = 200.0
    differs = uneven(x, even)
    assert differs is not None and differs[0] == 1 and differs[2] > 2 * differs[1]


def test_moments_are_by_site() -> None:
    def program() -> None:
        pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        pyro.sample("x", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))

    guide = AutoMDM(program, steps=2).fit(updates=0, start_updates=0, progress=False)
    moments = guide.moments(4_000)
    draws = guide.sample_posterior(4_000)
    for name, value in draws.items():
        assert moments[name].mean.shape == value.shape[1:]
        error = moments[name].mean_error
        assert error is not None and bool((error < 0.1 * moments[name].deviation).all())
