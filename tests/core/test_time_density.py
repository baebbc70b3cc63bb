"""Where training looks along the way: unbiased wherever that is, and more where gradients vary."""

from __future__ import annotations

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import SVI
from scipy import stats

from pyro_mdm import (
    CLD,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    LearnedDiffusion,
    NoisePrediction,
    randomness,
)
from pyro_mdm.networks import MLP
from pyro_mdm.scores.density import BINS, AdaptiveDensity

DIMS = 3


def data(n: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, DIMS, generator=generator) + 0.5


def denoiser() -> Denoiser:
    torch.manual_seed(0)
    network = MLP(DIMS, hidden=8, depth=1)
    torch.nn.init.normal_(network.outlet.weight, std=0.3)
    return Denoiser.fit(network, data(256))


def noise_prediction(num_variables: int) -> NoisePrediction:
    torch.manual_seed(0)
    network = MLP(num_variables * DIMS, hidden=8, depth=1)
    torch.nn.init.normal_(network.outlet.weight, std=0.3)
    return NoisePrediction(network)


def filled(density: AdaptiveDensity) -> AdaptiveDensity:
    """One that has seen gradients which differ 30-fold along the way."""
    u = (torch.arange(10 * BINS, dtype=torch.float64) + 0.5) / (10 * BINS)
    density.note(u, torch.exp(-7.0 * u))
    density.update()
    return density


def test_it_is_uniform_until_gradients_were_seen():
    density = AdaptiveDensity()
    u = torch.rand(100, dtype=torch.float64)
    placed, weight = density.place(u)
    torch.testing.assert_close(placed, u)
    assert (weight == 1).all()
    density.note(u[:1], torch.ones(1))  # of one bin alone: nothing is known of the others
    placed, weight = density.place(u)
    assert (weight == 1).all()


def test_draws_follow_the_root_of_the_mean_square():
    density = filled(AdaptiveDensity())
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    placed, weight = density.place(u)
    assert (placed.diff() > 0).all() and placed[0] > 0 and placed[-1] < 1
    centre = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    r = torch.exp(-3.5 * centre)
    expected = 0.1 + 0.9 * r / r.mean()
    share = torch.histc(placed, BINS, 0, 1) / 100_000 * BINS
    torch.testing.assert_close(share, expected, rtol=2e-3, atol=2e-3)
    # an integral over u has the value that it has with uniform draws
    assert (weight * placed.cos()).mean().item() == pytest.approx(math.sin(1.0), rel=1e-4)


@pytest.mark.parametrize("n", [1, 3, 64])
def test_it_is_the_same_whatever_a_loss_is_counted_in_and_however_many_data_a_step_has(n):
    generator = torch.Generator().manual_seed(n)
    found = []
    for units in (1.0, 1e-12):
        density = AdaptiveDensity()
        generator.manual_seed(n)
        for _ in range(6_000 // n):
            u = torch.rand(n, generator=generator, dtype=torch.float64)
            density.note(u, units * torch.exp(-5 * u))
            density.update(unit=units**0.5)
        found.append(density.density)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=0)
    if n == 64:  # of the last 50 steps
        r = torch.exp(-2.5 * (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS)
        torch.testing.assert_close(found[0], 0.1 + 0.9 * r / r.mean(), rtol=0.05, atol=0)
    else:
        assert found[0][:4].mean() > 2 * found[0][-4:].mean()


def test_gradients_that_are_not_finite_are_passed_over():
    density = filled(AdaptiveDensity())
    before = density.density
    density.note(torch.tensor([0.1, 0.5]), torch.tensor([torch.inf, torch.nan]))
    density.update()
    assert torch.equal(density.density, before)


KINDS = {
    "denoiser": lambda: (VPSDE(max_log_snr=7.0), denoiser()),
    "moving ends": lambda: (
        LearnedDiffusion(2, max_log_snr=7.0, min_log_snr=-8.0, learn_ends=1.0),
        denoiser(),
    ),
    "raw state": lambda: (CLD(max_log_snr=7.0), noise_prediction(2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_term_and_its_gradients_are_unbiased(kind):
    """Of many data at once: what the placed draws give is what uniform ones give."""
    diffusion, score = KINDS[kind]()
    x = data(1_500)
    parameters = [p for p in [*score.parameters(), *diffusion.parameters()] if p.requires_grad]

    def estimate(times: str) -> tuple[torch.Tensor, torch.Tensor]:
        score.times = times
        if score.time_density is not None:
            filled(score.time_density)
        found, flats = [], []
        for seed in range(12):
            torch.manual_seed(seed)
            value = score.diffusion_term(diffusion, x)[0].mean()
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            flats.append(torch.cat([g.flatten() for g in gradients if g is not None]).double())
            found.append(value.detach().double())
        return torch.stack(found), torch.stack(flats)

    (uniform, by_uniform), (placed, by_placed) = estimate("log_volume"), estimate("adaptive")
    for one, other in ((uniform[:, None], placed[:, None]), (by_uniform, by_placed)):
        error = ((one.var(0) + other.var(0)) / len(one)).sqrt()
        gap = (one.mean(0) - other.mean(0)).abs()
        scale = one.mean(0).abs().max()
        many = float(stats.t.ppf(1 - 1e-6 / gap.numel(), 2 * len(one) - 2))  # errors are estimates
        assert (gap <= many * error + 1e-6 * scale).all(), (gap / error).max()
        assert float(error.mean()) <= 0.2 * scale  # a wrong weight would be seen


def test_programs_learn_where_to_look():
    pyro.clear_param_store()
    diffusion, score = VPSDE(max_log_snr=7.0), denoiser()
    score.times = "adaptive"
    model, guide = DiffusionModel(diffusion, score), DiffusionGuide(diffusion)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-4}), loss=MDM_ELBO())
    for _ in range(12):
        svi.step(data(64))
    density = score.time_density
    density.update()
    assert density.counts.gt(0).all()
    assert density.density.max() > 2 * density.density.min()
    seen = density.counts.clone()
    score.eval()
    svi.evaluate_loss(data(64))  # measuring is uniform, and tells it nothing
    density.update()
    assert torch.equal(density.counts, seen)


def test_a_batch_in_pieces_is_drawn_by_one_density():
    diffusion, score = VPSDE(max_log_snr=7.0), denoiser()
    score.times = "adaptive"
    density = filled(score.time_density)
    density.automatic = False
    other = copy.deepcopy(score)
    x = data(16)
    with randomness.piece(0, 1, 5):
        whole = score.diffusion_term(diffusion, x)[0]
    whole.sum().backward()
    for r in range(2):
        with randomness.piece(r, 2, 5):
            part = other.diffusion_term(diffusion, x[r::2])[0]
        torch.testing.assert_close(part, whole[r::2], rtol=1e-5, atol=1e-6)
        part.sum().backward()
    score.time_density.update()
    other.time_density.update()
    torch.testing.assert_close(
        score.time_density.density, other.time_density.density, rtol=1e-4, atol=1e-5
    )
    assert not torch.equal(score.time_density.density, torch.ones(BINS))


def test_what_it_knows_is_saved_with_the_score():
    score, other = denoiser(), denoiser()
    score.times = "adaptive"
    filled(score.time_density)
    other.load_state_dict(score.state_dict())
    assert other.times == "adaptive"
    assert torch.equal(other.time_density.density, score.time_density.density)
    score.times = "log_volume"
    assert score.time_density is None
    assert not any("density" in name for name in score.state_dict())


def test_denoisers_have_no_importance_times_of_the_paper():
    with pytest.raises(ValueError, match="'vpsde', which is for scores of the raw state"):
        denoiser().times = "vpsde"


def test_a_copy_that_is_told_something_has_times_of_its_own():
    score = denoiser()
    known = score.given_context(torch.zeros(1))
    known.times = "adaptive"
    assert known.time_density is not None
    assert score.times == "log_volume" and score.time_density is None


def test_what_is_noted_of_a_gradient_is_free_of_the_weight_of_its_draw():
    density = filled(AdaptiveDensity())
    before = density.squares.clone(), density.counts.clone()
    u, weight = density.place((torch.arange(48, dtype=torch.float64) + 0.5) / 48)
    assert weight.max() > 2 * weight.min()
    size = 1 + torch.rand(50, dtype=torch.float64)
    output = torch.zeros(50, 2, 3, dtype=torch.float64, requires_grad=True).mul(1.0)
    density.watch(output, u, weight)  # the last two rows are of no draw
    weights = torch.cat([weight, torch.ones(2, dtype=torch.float64)])
    (weights * size * output.flatten(1).sum(1)).sum().backward()
    density.update()
    bins = (u * BINS).long()
    squares = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, 6 * size[:48] ** 2)
    torch.testing.assert_close(density.squares, 0.98 * before[0] + squares)
    torch.testing.assert_close(
        density.counts, 0.98 * before[1] + torch.bincount(bins, minlength=BINS)
    )
