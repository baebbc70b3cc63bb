"""Rows with missing entries: bounds on what is there, training on it, and what fits ignore."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_mdm import (
    CLD,
    MDM,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    NoisePrediction,
    PerDimensionDiffusion,
    bound,
    condition,
    elbo_terms,
)
from pyro_mdm.by_dimension import Frequencies
from pyro_mdm.conditioning import RandomMaps
from pyro_mdm.evaluation import compare
from pyro_mdm.networks import MLP
from tests.core.test_distribution import exact
from tests.mistakes import refused
from tests.problems import (
    ENDS,
    D,
    ExactDenoiser as Exact,
    Silent,
    conditional_log_prob,
    correlated as gaussian,
    masks,
    normal,
)

NOTHING = torch.zeros(D, dtype=torch.bool)


def incomplete(n: int) -> tuple[Tensor, Tensor]:
    """Rows with NaN, of which the first is empty, and log p of what is there."""
    problem, missing = gaussian(), masks(5, n)[1]
    x = problem.sample(n, 1)
    known = conditional_log_prob(problem, x, torch.zeros_like(missing), missing)
    known[0], missing[0] = 0.0, True
    assert 0.2 < float(missing.double().mean()) < 0.5
    return torch.where(missing, math.nan, x), known


@torch.no_grad()
def test_the_bound_of_rows_is_the_log_density_of_what_is_there() -> None:
    x, known = incomplete(512)
    model = DiffusionModel(CLD(**ENDS), Exact(gaussian()))
    guide = DiffusionGuide(model.diffusion)
    found = bound(model, guide, x, draws=8)
    assert found.monte_carlo_error < 0.08
    assert abs(found.elbo.mean - known.mean()) < 5.5 * found.monte_carlo_error + 2e-3
    assert float(elbo_terms(model, guide, x).elbo[0]) == 0.0
    torch.manual_seed(0)
    assert abs(float((model.log_prob(x, draws=32) - known).mean())) < 0.4


def drawn_and_not(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of which every second is empty, log p of what is there, and which are empty."""
    x, known = incomplete(n)
    empty = (torch.arange(n) % 2 == 0) | x.isnan().all(1)
    return torch.where(empty[:, None], math.nan, x), torch.where(empty, 0, known), empty


@pytest.mark.parametrize("n", [6, 64])
@torch.no_grad()
def test_a_row_with_nothing_present_has_the_bound_0_and_no_error(n: int) -> None:
    """The logarithm of the density of nothing, wherever a bound is asked for."""
    x, _, empty = drawn_and_not(n)
    problem = gaussian()
    model, other = (DiffusionModel(kind(**ENDS), Exact(problem)) for kind in (CLD, VPSDE))
    found: list[Any] = [bound(model, DiffusionGuide(model.diffusion), x, draws=3)]
    if n > 8:
        pairs = {str(i): (m, DiffusionGuide(m.diffusion)) for i, m in enumerate((model, other))}
        for options in ({"draws": 1}, {"draws": 40, "half_width": 0.3}):
            found += compare(pairs, x, **options).estimates.values()
    for estimate in found:
        assert not bool(estimate.per_datum[empty].any())
        assert not bool(estimate.per_datum_error[empty].any())
        assert bool((estimate.per_datum[~empty] != 0).all())
    assert not bool(model.log_prob(x)[empty].any())
    nothing = torch.full_like(x, math.nan)
    of_nothing = bound(model, DiffusionGuide(model.diffusion), nothing)
    assert of_nothing.elbo == (0, 0) and of_nothing.monte_carlo_error == 0
    assert not bool(of_nothing.per_datum.any())


@torch.no_grad()
def test_every_way_to_ask_leaves_out_what_is_missing() -> None:
    """As a model that is conditioned by hand, at the same draws."""
    x = incomplete(24)[0][1:]
    model = DiffusionModel(VPSDE(**ENDS), Exact(gaussian()))
    guide, filled = DiffusionGuide(model.diffusion), x.nan_to_num(7.0)
    by_hand = condition(model, NOTHING, left_out=x.isnan())
    ways: list[Any] = [
        lambda model, x: elbo_terms(model, guide, x).elbo,
        lambda model, x: torch.tensor(MDM_ELBO().loss(model, guide, x)),
        lambda model, x: model.log_prob(x),
        lambda model, x: bound(model, guide, x).per_datum,
        lambda model, x: bound(model, guide, x[:5]).per_datum if model is not by_hand else None,
    ]
    for way in ways:
        found = []
        for asked, data in ((model, x), (by_hand, filled)):
            torch.manual_seed(3)
            found.append(way(asked, data))
        if found[1] is not None:
            torch.testing.assert_close(found[0], found[1])
        assert bool(found[0].isfinite().all())


@torch.no_grad()
def test_of_a_conditional_model_what_is_missing_is_left_out_too() -> None:
    x = incomplete(24)[0]
    x = x[~x[:, 1:].isnan().all(1)]
    first, missing = torch.tensor([True, False, False, False]), x.isnan()
    model = DiffusionModel(VPSDE(**ENDS), Exact(gaussian()))
    by_hand = condition(model, first & ~missing, left_out=missing)
    found = []
    for asked, data in ((condition(model, first), x), (by_hand, x.nan_to_num(7.0))):
        torch.manual_seed(3)
        found.append(elbo_terms(asked, DiffusionGuide(model.diffusion), data).elbo)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", ["levels", "subsets", "independent"])
@torch.no_grad()
def test_the_term_at_random_maps_is_that_of_what_is_there(kind: str) -> None:
    """Of independent dimensions, whose baseline is exact whatever is observed or left out."""
    n, diffusion = 6000, CLD(max_log_snr=7.0, min_log_snr=-6.0)
    score = Denoiser(
        Silent(3), torch.tensor([0.5, 0.0, -1.0]), torch.tensor([1.0, 0.3, 2.0]), maps=True
    )
    shares = {k: float(k == kind) for k in ("levels", "subsets", "independent")}
    score.training_maps = RandomMaps(**shares, missing="leave_out")
    x = score.data_mean + score.data_variance.sqrt() * normal(0, n, 3)
    missing = normal(1, n, 3) > torch.tensor([0.0, 0.5, 1.0])
    assert bool(missing.all(1).any())
    model = DiffusionModel(diffusion, score).train()
    torch.manual_seed(1)
    found = elbo_terms(model, DiffusionGuide(diffusion), torch.where(missing, math.nan, x))
    ends = [score.baseline_kl(x, end, ~missing) for end in (-6.0, 7.0)]
    off = found.diffusion - (ends[1] - ends[0])
    assert abs(float(off.mean())) < 5.5 * float(off.std()) / math.sqrt(n)
    assert float(off[missing.sum(1) == 2].mean().abs()) < 5.5 * float(off.std()) / math.sqrt(n / 5)
    assert bool((found.elbo[missing.all(1)] == 0).all())
    whole, levels = score.eval().diffusion_term(diffusion, x)  # which no map has a part in
    off = whole - (score.baseline_kl(x, 7.0) - score.baseline_kl(x, -6.0))
    assert abs(float(off.mean())) < 5.5 * float(off.std()) / math.sqrt(n)
    assert float(levels.min()) < -5.9 and float(levels.max()) > 6.9


def test_fits_ignore_what_is_missing() -> None:
    x = incomplete(300)[0]
    fitted = Denoiser.fit(MLP(2 * D, out_features=D), x, maps=True)
    columns = [column[~column.isnan()] for column in x.T]
    torch.testing.assert_close(fitted.data_mean, torch.stack([c.mean() for c in columns]))
    spread = torch.stack([c.var(correction=0) for c in columns])
    torch.testing.assert_close(fitted.data_variance, spread)
    levels = torch.tensor([-1.0, 0.2, 1.0])
    codes = torch.bucketize(x.nan_to_num(), torch.tensor([-0.5, 0.5]).double())
    data = torch.where(x.isnan(), math.nan, levels[codes])
    prior = DiscreteDenoiser.fit(MLP(2 * D, out_features=3 * D), data, levels, maps=True).log_prior
    share = torch.stack([(data == level).sum(0) / (~data.isnan()).sum(0) for level in levels], -1)
    assert float((prior.exp() - share).abs().max()) < 0.03


def test_what_cannot_leave_out_is_refused() -> None:
    x = torch.tensor([[0.0, math.nan], [1.0, 2.0]])
    told, one_level = MLP(4, out_features=2), Denoiser(MLP(2), torch.zeros(2))
    with_maps = Denoiser(told, torch.zeros(2), maps=True)
    blurring = PerDimensionDiffusion(
        VPSDE(**ENDS), block_of=torch.zeros(2, dtype=torch.int64), transform=Frequencies(1)
    )

    def loss_of(score: Any, x: Tensor = x, diffusion: Any = None) -> float:
        model = DiffusionModel(diffusion or VPSDE(**ENDS), score, event_shape=(2,))
        return MDM_ELBO().loss(model, DiffusionGuide(model.diffusion), x)

    refused(
        ValueError,
        (lambda: loss_of(one_level), "1 entries .*; if NaN stands .* maps=True"),
        (lambda: loss_of(NoisePrediction(MLP(2))), "1 entries that are NaN.*; if NaN stands"),
        (lambda: Denoiser.fit(MLP(2), x), "make the denoiser with maps=True"),
        (lambda: loss_of(with_maps, x / 0), "2 entries that are .*infinite, expected finite data"),
        (lambda: loss_of(with_maps, diffusion=blurring), "states that hold the data"),
        (lambda: Denoiser.fit(told, x[:1], maps=True), "no value in 1 of its"),
    )


def test_missing_entries_are_bounded_or_refused() -> None:
    x = torch.randn(40, 2)
    incomplete = torch.tensor([[0.3, math.nan], [math.nan, math.nan], [0.3, 1.0]])
    told = Denoiser.fit(MLP(4, out_features=2), x, maps=True)
    model = DiffusionModel(VPSDE(max_log_snr=6.0, min_log_snr=-8.0), told).eval()
    law = MDM(model.requires_grad_(False), method="elbo", draws=20_000, seed=0)
    found = law.log_prob(incomplete).detach()
    truth = torch.distributions.Normal(x.mean(0), x.std(0, False)).log_prob(incomplete.nan_to_num())
    truth = torch.where(incomplete.isnan(), 0, truth).sum(-1)
    assert float((found - truth).abs().max()) < 0.15
    assert float(found[1]) == 0.0 and float(truth[[0, 2]].abs().min()) > 0.5
    assert law.log_prob(incomplete[2]).shape == ()
    with pytest.raises(ValueError, match="Denoiser takes one log SNR for all dimensions"):
        exact().log_prob(torch.tensor([[0.3, math.nan, math.nan]], dtype=torch.float64))
