"""Models of some dimensions given others, held to exact conditional laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_mdm import (
    CLD,
    MDM,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    LearnedDiffusion,
    NoisePrediction,
    PerDimensionDiffusion,
    bound,
    condition,
    elbo_terms,
)
from pyro_mdm.by_dimension import Frequencies, TurnClocks
from pyro_mdm.conditioning import ConditionedDenoiser
from pyro_mdm.evaluation import importance_weighted, probability_flow
from pyro_mdm.levels import NetworkPosterior
from pyro_mdm.likelihoods import JointTweedie, Tweedie
from pyro_mdm.networks import MLP
from pyro_mdm.seeing import StateDenoiser
from tests.mistakes import refused
from tests.problems import (
    ENDS,
    D,
    ExactDenoiser as Exact,
    GaussianMixture,
    Silent,
    bimodal as mixture,
    conditional_log_prob,
    correlated as gaussian,
    given_dimensions as posterior,
    masks,
    normal,
    part,
    program,
)

# -- the denoiser ----------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [gaussian, mixture])
def test_the_denoiser_is_that_of_the_conditional_law(made: Callable[[], GaussianMixture]) -> None:
    """To rounding, for every mask: the exact denoiser of p(x_u | x_o) as a law of its own."""
    problem, x = made(), made().sample(3, 1)
    for seed in range(6):
        observed, left_out = masks(seed)
        asked = ~(observed | left_out)
        score = ConditionedDenoiser(Exact(problem), observed, x[0], left_out)
        z, log_snr = 3 * normal(seed, 5, D), torch.tensor([-8.0, -2.0, 0.0, 3.0, 9.0])
        found = score.x_hat(z, log_snr)
        law = posterior(problem, observed, x[0], asked) if observed.any() else part(problem, asked)
        torch.testing.assert_close(found[:, asked], law.x_hat(z[:, asked], log_snr.double()))
        assert torch.equal(found[:, observed], x[0, observed].expand(5, -1))
        assert torch.equal(found[:, left_out], problem.mean[left_out].expand(5, -1))


# -- bounds ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["cld", "per_dimension"])
def test_rows_with_missing_entries(name: str) -> None:
    """Each with a mask of its own, drawn in any order; the control variate counts alike."""
    problem, x = gaussian(), gaussian().sample(512, 1)
    observed, left_out = masks(5, 512)
    known = conditional_log_prob(problem, x, observed, left_out)
    diffusion: Any = CLD(**ENDS)
    if name == "per_dimension":
        clocks = TurnClocks([[0.0, 0.7], [0.2, 1.0]], leak=0.1)
        diffusion = PerDimensionDiffusion(diffusion, None, clocks, torch.tensor([0, 1, 1, 0]))
    model = condition(program(problem, diffusion), observed, x, left_out)
    junk = torch.where(left_out, 100 * normal(9, 512, D), x)
    guide = DiffusionGuide(diffusion)
    found = bound(model, guide, junk, draws=8)
    assert found.monte_carlo_error < 0.055
    assert abs(found.elbo.mean - known.mean()) < 5.5 * found.monte_carlo_error + 2e-3
    off = (found.per_datum - known) / found.per_datum_error
    assert float(off.abs().nanmedian()) < 1  # 0.7 for each datum's own
    estimates = torch.stack([elbo_terms(model, guide, junk).elbo for _ in range(16)]).mean(1)
    assert abs(estimates.mean() - known.mean()) < 5.5 * estimates.std() / math.sqrt(16) + 2e-3


@torch.no_grad()
def test_a_chain_has_the_bound_of_the_conditional_law() -> None:
    """That of the exact denoiser of p(x_u | x_o), on the same grid."""
    problem = gaussian()
    x = problem.sample(1, 4).expand(4000, D)
    observed, left_out = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0]]).bool()
    asked = ~(observed | left_out)
    diffusion = VPSDE(max_log_snr=3.0, min_log_snr=-5.0)
    model = condition(program(problem, diffusion, times=12), observed, None, left_out)
    alone = program(posterior(problem, observed, x[0], asked), diffusion, times=12)
    guide = DiffusionGuide(diffusion, times=12)
    one, other = elbo_terms(model, guide, x).diffusion, elbo_terms(alone, guide, x[:, asked])
    error = math.sqrt(float(one.var() + other.diffusion.var()) / len(x))
    assert abs(float(one.mean() - other.diffusion.mean())) < 5.5 * error < 0.25


def test_learning_the_diffusion_has_the_gradient_of_its_end() -> None:
    """Of the diffusion term, ½ e^λ E‖x_u - x̂_u‖² at λ(T) by the change of λ(T), with masks."""
    problem, n = gaussian(), 64
    x = problem.sample(n, 1)
    observed, left_out = masks(5, n)
    diffusion = LearnedDiffusion(2, diagonal=True, seed=5, max_log_snr=9.0)
    score = ConditionedDenoiser(Exact(problem), observed, None, left_out)
    weight = next(iter(diffusion.parameters()))
    (slope,) = torch.autograd.grad(diffusion.terminal_log_snr, weight)
    low = diffusion.terminal_log_snr.detach()
    with torch.no_grad():
        many = [score.integrand(diffusion, x, low.expand(n)).sum() for _ in range(100)]
    known = -torch.stack(many).mean()
    draws = []
    for _ in range(100):
        value, _ = score.diffusion_term(diffusion, x)
        (gradient,) = torch.autograd.grad(value.sum(), weight)
        draws.append((gradient * slope).sum() / slope.square().sum())
    found = torch.stack(draws)
    error = math.hypot(float(found.std()), float(torch.stack(many).std())) / math.sqrt(100)
    assert abs(float(found.mean() - known)) < 5.5 * error < 0.6 * abs(float(known))


@torch.no_grad()
def test_the_entropy_without_a_decoder_is_of_what_is_generated() -> None:
    problem, x = gaussian(), gaussian().sample(8, 1)
    observed, left_out = masks(5, 8)
    counted = (~(observed | left_out)).sum(1)
    for diffusion in (CLD(**ENDS), VPSDE(**ENDS)):
        model = condition(program(problem, diffusion), observed, None, left_out)
        guide = DiffusionGuide(diffusion)
        losses = []
        for decoder in (True, False):
            torch.manual_seed(0)
            losses.append(MDM_ELBO(decoder=decoder).loss(model, guide, x))
        torch.manual_seed(0)
        terms = elbo_terms(model, guide, x)
        assert losses[0] == pytest.approx(-float(terms.elbo.sum()))
        whole = program(part(problem, torch.tensor([0])), diffusion)
        torch.manual_seed(0)
        one = elbo_terms(whole, guide, x[:, :1])
        torch.manual_seed(0)
        each = MDM_ELBO(decoder=False).loss(whole, guide, x[:, :1])
        each = (each - float((one.prior_kl + one.diffusion).sum())) / len(x)
        known = float((terms.prior_kl + terms.diffusion).sum()) + each * float(counted.sum())
        assert losses[1] == pytest.approx(known)


# -- samples ---------------------------------------------------------------------------------------


def test_rows_of_a_subsampling_plate() -> None:
    """In the plate of a program around it: each datum with its own mask, scaled to all of them."""
    problem, n, rows = gaussian(), 6, torch.tensor([4, 1, 5])
    x = problem.sample(n, 7)
    observed, left_out = masks(5, n)
    diffusion = VPSDE(**ENDS)
    conditioned = condition(program(problem, diffusion), observed, x, left_out)
    noising = DiffusionGuide(diffusion, event_dim=1)

    def model() -> None:
        with pyro.plate("rows", n, subsample=rows) as i:
            conditioned.for_rows(i)(x[i])

    def guide() -> None:
        with pyro.plate("rows", n, subsample=rows) as i:
            noising(x[i])

    torch.manual_seed(0)
    losses = torch.tensor([MDM_ELBO(num_particles=16).loss(model, guide) for _ in range(16)])
    each = conditional_log_prob(problem, x, observed, left_out)[rows]
    error = float(losses.std()) / 4
    assert abs(float(losses.mean()) + n / len(rows) * float(each.sum())) < 5.5 * error < 25
    found = conditioned.for_rows(rows)(batch_size=3)
    assert torch.equal(found[observed[rows]], x[rows][observed[rows]])
    whole = condition(program(problem, diffusion), observed[0], x[0])
    assert whole.for_rows(rows) is whole


@torch.no_grad()
def test_imputation_of_rows_that_miss_different_entries() -> None:
    """Values may be NaN where they are missing; several draws of the rows at once."""
    problem, x = gaussian(), gaussian().sample(5, 7)
    observed = masks(2, 5)[0]
    missing = torch.where(observed, x, math.nan)
    model = condition(program(problem, VPSDE(**ENDS)), observed, missing)
    torch.manual_seed(1)
    found = model(batch_size=2000).reshape(400, 5, D)
    assert bool(found.isfinite().all())
    assert torch.equal(torch.where(observed, found, x), x.expand_as(found))
    for j in range(5):
        asked = ~observed[j]
        law = posterior(problem, observed[j], x[j], asked) if observed[j].any() else problem
        off = (found[:, j, asked].mean(0) - law.mean) / law.covariance.diagonal().sqrt()
        assert float(off.abs().max()) < 5.5 / math.sqrt(400) + 0.02


@torch.no_grad()
def test_chains_and_distributions_of_other_programs_sample_it() -> None:
    problem, x = gaussian(), gaussian().sample(6, 7)
    observed = torch.tensor([True, False, True, False])
    chain = condition(program(problem, VPSDE(**ENDS), times=9), observed, x)
    assert torch.equal(chain(batch_size=6)[:, observed], x[:, observed])
    model = condition(program(problem, VPSDE(**ENDS)), observed, x[0])
    law = MDM(model, draws=2)
    found = law.sample((3, 2))
    assert torch.equal(found[..., observed], x[0, observed].expand(3, 2, -1))
    assert law.log_prob(found).shape == (3, 2)
    assert not law.has_rsample


# -- levels ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("form", ["tilt", "logits"])
def test_a_discrete_denoiser_of_no_opinion_has_its_histogram_whatever_is_observed(
    form: Any,
) -> None:
    levels = torch.tensor([-1.0, -0.2, 0.5, 1.0], dtype=torch.float64)
    chances = torch.tensor([0.1, 0.2, 0.4, 0.3])
    torch.manual_seed(3)
    x = levels[torch.multinomial(chances, 100 * D, True)].reshape(100, D)
    outputs = 2 * D if form == "tilt" else 4 * D
    score = DiscreteDenoiser.fit(Silent(outputs), x, levels, form, maps=True)
    observed, left_out = masks(5, 100)
    counted = ~(observed | left_out)
    known = score.baseline_log_prob(x, counted)
    each = score.log_prior[torch.arange(D), (x.unsqueeze(-1) == levels).int().argmax(-1)]
    torch.testing.assert_close(known, torch.where(counted, each, 0).sum(1))
    junk = torch.where(left_out, 0.123, x)  # on no level
    for decoder in (None, NetworkPosterior()):
        model = DiffusionModel(CLD(**ENDS), score, decoder)
        conditioned = condition(model, observed, junk, left_out)
        found = bound(conditioned, DiffusionGuide(model.diffusion), junk, draws=2)
        # the control variate leaves no noise, and the prior's mismatch is small
        torch.testing.assert_close(found.per_datum, known, rtol=0, atol=5e-3)
        drawn = conditioned(batch_size=100)
        assert torch.equal(drawn[observed], x[observed])
        assert bool((drawn.unsqueeze(-1) - levels).abs().amin(-1).max() < 1e-6)
        assert bool(elbo_terms(conditioned, DiffusionGuide(model.diffusion), drawn).elbo.all())


# -- what it is made of ----------------------------------------------------------------------------


def test_the_baseline_counts_what_is_generated() -> None:
    problem, x = gaussian(), gaussian().sample(10, 1)
    observed, left_out = masks(5, 10)
    counted = ~(observed | left_out)
    score = ConditionedDenoiser(Exact(problem), observed, None, left_out)
    edges = torch.tensor([-8.0, 0.0, 3.0], dtype=torch.float64)
    by_dimension = [
        Denoiser(Silent(1), problem.mean[j : j + 1], problem.covariance[j, j][None])
        for j in range(D)
    ]
    for of in (
        lambda s, v: s.baseline_log_prob(v),
        lambda s, v: s.baseline_kl(v, 2.0),
        lambda s, v: s.baseline_integrals(v, edges, slice(0, v.shape[1])).T,
    ):
        each = torch.stack([of(s, x[:, j : j + 1]) for j, s in enumerate(by_dimension)], -1)
        torch.testing.assert_close(of(score, x), torch.where(counted, each, 0).sum(-1))
    parts = [score.baseline_integrals(x, edges, dims) for dims in (slice(0, 1), slice(1, D))]
    torch.testing.assert_close(sum(parts), score.baseline_integrals(x, edges, slice(0, D)))


def test_parameters_are_those_of_the_model_and_are_trained() -> None:
    x = gaussian().sample(12, 1).float()
    network = MLP(features=2 * D, out_features=D, hidden=8)
    model = DiffusionModel(VPSDE(**ENDS), Denoiser.fit(network, x, maps=True))
    observed = torch.tensor([True, False, False, True])
    conditioned = condition(model, observed, x)
    assert [*map(id, conditioned.parameters())] == [*map(id, model.parameters())]
    MDM_ELBO().loss_and_grads(conditioned, DiffusionGuide(model.diffusion), x)
    assert all(p.grad is not None for p in network.parameters())
    tweedie = DiffusionModel(VPSDE(**ENDS), model.score_function, Tweedie())
    terms = elbo_terms(condition(tweedie, observed), DiffusionGuide(tweedie.diffusion), x)
    assert terms.elbo.shape == (12,)


def test_one_network_is_shared_saved_and_replaced(tmp_path: Path) -> None:
    """It has one name in Pyro too, so that a program of both models steps it once."""
    x, first = gaussian().sample(12, 1).float(), torch.tensor([True, False, False, True])
    network = MLP(features=2 * D, out_features=D, hidden=8)
    model = DiffusionModel(VPSDE(**ENDS), Denoiser.fit(network, x, maps=True))
    conditioned = condition(model, first, x[0])
    with pyro.poutine.trace(param_only=True) as capture:
        model(batch_size=1)
        conditioned(batch_size=1)
    assert len(capture.trace.nodes) == len([*model.parameters()])
    conditioned.save_pretrained(tmp_path)
    again = DiffusionModel.from_pretrained(tmp_path)
    assert set(again.state_dict()) == set(conditioned.state_dict())
    assert sum("network" in name for name in again.state_dict()) == len(network.state_dict())
    drawn = []
    for one in (conditioned, again):
        torch.manual_seed(0)
        drawn.append(one(batch_size=3))
    torch.testing.assert_close(drawn[0][:, 0], x[0, 0].expand(3))
    torch.testing.assert_close(drawn[0], drawn[1])
    seeing = StateDenoiser(Denoiser.fit(MLP(D, hidden=8), x))
    for made in (conditioned.score_function, seeing):
        made.network = other = MLP(features=2 * D, out_features=D, hidden=9)
        assert made.network is other and made.denoiser.network is other
        assert sum("network" in name for name in made.state_dict()) == len(other.state_dict())


# -- what is refused -------------------------------------------------------------------------------


def test_mistakes() -> None:
    problem, x, diffusion = gaussian(), gaussian().sample(6, 1), VPSDE(**ENDS)
    model, observed = program(problem, diffusion), torch.tensor([True, False, False, False])
    blurring = PerDimensionDiffusion(
        diffusion, block_of=torch.zeros(D, dtype=torch.int64), transform=Frequencies(1)
    )
    of_noise = DiffusionModel(diffusion, NoisePrediction(MLP(D)), event_shape=(D,))
    of_one_level = DiffusionModel(diffusion, Denoiser(MLP(D)), event_shape=(D,))
    jointly = program(problem, diffusion, likelihood=JointTweedie())
    levels = DiscreteDenoiser.fit(Silent(2 * D), torch.ones(9, D), 4, "tilt", maps=True)
    of_levels, rows = DiffusionModel(diffusion, levels), observed.expand(3, D)
    guide, of_rows = DiffusionGuide(diffusion), condition(model, observed.expand(6, D), x)
    whole = "is a density of all dimensions together"
    refused(
        (TypeError, ValueError),
        (lambda: condition(of_noise, observed), "expected a DenoiserScore"),
        (lambda: condition(of_one_level, observed), "maps=True"),
        (lambda: condition(Exact(problem), observed), "expected a DiffusionModel"),
        (lambda: condition(condition(model, observed), observed), "conditioned already"),
        (lambda: condition(jointly, observed), "JointTweedie"),
        (lambda: condition(program(problem, blurring), observed), "states that hold the data"),
        # masks and values
        (lambda: condition(model, observed.double()), r"observed\.bool\(\)"),
        (lambda: condition(model, observed[:3]), r"observed has shape \(3,\)"),
        (lambda: condition(model, observed, left_out=rows[None]), r"shape \(1, 3, 4\)"),
        (lambda: condition(model, observed, left_out=~observed), "no dimension of a datum"),
        (lambda: condition(model, observed, left_out=observed), "both observed and left out"),
        (lambda: condition(model, rows, torch.zeros(2, D)), "for the same number of data"),
        (lambda: condition(model, observed, torch.zeros(2, D), ~rows), "for the same number of"),
        (lambda: condition(model, observed, x[0] * math.nan), "1 observed .* not fin"),
        (lambda: condition(of_levels, observed, torch.full((D,), 0.123)), r"0\.123"),
        # calls
        (lambda: condition(model, observed)(batch_size=2), "no values of what is observed"),
        (lambda: elbo_terms(condition(model, observed, x[0]), guide, x), "5 observed .* differ"),
        (lambda: elbo_terms(of_rows, guide, x[:4]), "differs between 6 data, and x has 4"),
        (lambda: of_rows(batch_size=4), "differs between 6 data, and 4 are asked for"),
        (lambda: Trace_ELBO().loss(of_rows, guide, x), whole),
        (lambda: importance_weighted(of_rows, guide, x, samples=2, times=5), whole),
        (lambda: probability_flow(of_rows, guide, x), whole),
        (lambda: of_rows.log_prob(x, method="flow"), whole),
    )
