"""Denoisers that are told the log SNR of every dimension, and training at random maps of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inference.folders.loading import load_trained
from inference.train import train
from pyro_mdm import VPSDE, Denoiser, DiscreteDenoiser, LearnedDiffusion
from pyro_mdm.conditioning import RandomMaps
from pyro_mdm.conditioning.maps import LEFT_OUT, OBSERVED
from pyro_mdm.networks import UNet
from pyro_mdm.scores.base import map_channels
from pyro_mdm.scores.denoiser import DenoiserScore
from tests.brief import SHORT, be_brief
from tests.by_dimension.test_per_dimension import MEAN, VARIANCE, data
from tests.mistakes import refused
from tests.problems import Silent, normal

inf = math.inf


def shaken(network: nn.Module) -> nn.Module:
    for i, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(i))
    return network


def images() -> Tensor:
    index = torch.randint(5, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return torch.linspace(-1, 1, 5)[index]


def score_of(form: Any) -> DenoiserScore:
    outputs = {None: 1, "tilt": 2, "logits": 5}[form]
    network = shaken(UNet(2, outputs, base=8, multipliers=(1,)))
    if form is None:
        return Denoiser.fit(network, images(), maps=True)
    return DiscreteDenoiser.fit(network, images(), 5, form, maps=True)


@pytest.mark.parametrize("form", [None, "tilt", "logits"])
@torch.no_grad()
def test_what_denoisers_make_of_maps(form: Any) -> None:
    """Observed dimensions are known, left-out ones unseen, and a constant map is a number."""
    score, z = score_of(form), images()[:6] + 0.1 * normal(1, 6, 1, 4, 4).float()
    level = torch.full((6, 1, 4, 4), 3.0, dtype=torch.float64)
    level[..., 0], level[..., 1] = inf, -inf
    found = score.x_hat(z, level)
    assert bool(found.isfinite().all())
    assert torch.equal(found[..., 0], z[..., 0])
    other = z.clone()
    other[..., 1] = 0.37
    torch.testing.assert_close(score.x_hat(other, level), found, rtol=0, atol=1e-6)
    other = z.clone()
    other[..., 0] += 0.5  # what is observed is told to the others
    assert float((score.x_hat(other, level) - found)[..., 2:].abs().max()) > 1e-4
    of_map = score.x_hat(z, torch.full((6, 1, 4, 4), 2.0))
    for one in (torch.full((6,), 2.0), 2.0, torch.full((1, 1, 1, 1), 2.0)):
        torch.testing.assert_close(score.x_hat(z, one), of_map, rtol=1e-5, atol=1e-5)


def test_what_networks_are_told_of_a_map() -> None:
    z = torch.zeros(2, 1, 1, 3)
    level = torch.tensor([[-inf, 5.0, inf]]).reshape(1, 1, 1, 3)
    inputs, average = map_channels(z, level, (2,))
    assert inputs.shape == (2, 2, 1, 3)
    torch.testing.assert_close(inputs[:, 1], torch.tensor([-3.0, 0.5, 3.0]).expand(2, 1, 3))
    torch.testing.assert_close(average, torch.full((2,), 5.0 / 3))


@torch.no_grad()
def test_random_maps_have_their_shares_and_one_size() -> None:
    n, law = 4000, RandomMaps(levels=1.0, subsets=2.0, independent=1.0)
    torch.manual_seed(0)
    maps = law.draw((n, 2, 3), -5.0, 7.0, torch.device("cpu"))
    flat, weight = maps.log_snr.flatten(1), maps.weight.flatten(1)
    between = flat.isfinite()
    assert torch.equal(between, weight > 0) and bool(between.any(1).all())
    torch.testing.assert_close(weight.sum(1), torch.full((n,), 12.0 * 6).double())
    assert float(flat[between].min()) >= -5.0 and float(flat[between].max()) <= 7.0
    middle = torch.where(between, flat, math.nan)
    spread = middle.nan_to_num(-inf).amax(1) - middle.nan_to_num(inf).amin(1)
    one_level = spread == 0
    assert float((~one_level).double().mean()) == pytest.approx(0.25, abs=0.04)
    subset = one_level & ~between.all(1)
    # a point of the simplex leaves all six generated with probability 2/(7·8)
    assert float(subset.double().mean()) == pytest.approx(0.5 * (1 - 1 / 28), abs=0.045)
    for role in (inf, -inf):
        share = (flat[subset] == role).double().mean()
        assert float(share) == pytest.approx(0.343, abs=0.06)


@torch.no_grad()
def test_all_that_is_not_observed_is_generated_where_nothing_is_left_out() -> None:
    n, law = 4000, RandomMaps(levels=0.0, subsets=1.0, independent=0.0, left_out=False)
    torch.manual_seed(0)
    maps = law.draw((n, 6), -5.0, 7.0, torch.device("cpu"))
    number = maps.log_snr.isfinite().sum(1)
    assert torch.equal(maps.log_snr.isfinite(), maps.log_snr != OBSERVED)
    # any number of six is as probable as another, and 0 becomes 1
    shares = torch.bincount(number, minlength=7).double() / n
    expected = torch.tensor([0.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]).double() / 7
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.045)


@torch.no_grad()
def test_maps_are_drawn_without_a_look_at_what_is_missing() -> None:
    """Data that have what a map needs count as all data do, and others not."""
    n, present = 4000, torch.rand(4000, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    for law in (RandomMaps(), RandomMaps(1.0, 0.0, 0.0), RandomMaps(0.0, 1.0, 0.0)):
        drawn = []
        for there in (torch.ones_like(present), present):
            torch.manual_seed(0)
            drawn.append(law.draw((n, 5), -5.0, 7.0, torch.device("cpu"), there))
        whole, some = drawn
        asked = whole.log_snr != LEFT_OUT
        serves = (present | ~asked).all(1)
        assert 0 < int(serves.sum()) < n
        torch.testing.assert_close(some.weight, whole.weight * serves.unsqueeze(1))
        torch.testing.assert_close(some.log_snr[serves], whole.log_snr[serves])
        assert not bool((some.weight[~present] > 0).any())


@pytest.mark.parametrize(
    "options",
    [
        {"guide": "inference.guides.by_dimension:per_pixel", "figures": True},
        {"guide": "inference.guides.by_dimension:per_channel"},
        {"guide": "vpsde", "maps": "mixed"},
    ],
    ids=["pixel", "channel", "maps"],
)
def test_runs_are_trained_at_maps(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_brief(monkeypatch, figures=True)
    train(**SHORT | {"steps": 2, "figures": False} | options, run=tmp_path / "run")
    model = load_trained(tmp_path / "run")[1].model
    score: Any = model.score_function
    assert score.maps and not score.training
    if "maps" in options:
        found = score.x_hat(torch.tensor([[0.3, 0.1]]), torch.tensor([[inf, 0.0]]))
        assert float(found[0, 0].detach()) == pytest.approx(0.3)
    else:
        assert model.diffusion.maps and len(model.diffusion.cells) == 2


def test_mistakes_are_told() -> None:
    told_one = Denoiser(Silent(3), MEAN, VARIANCE)
    score = Denoiser(Silent(3), MEAN, VARIANCE, maps=True).train()
    score.training_maps = RandomMaps()
    score.diffusion_term(VPSDE(), data(4))
    run: dict[str, Any] = {"model": "toy", "accelerator": "cpu"}
    pixels = "inference.guides.by_dimension:per_pixel"
    refused(
        (TypeError, ValueError),
        (lambda: setattr(told_one, "training_maps", RandomMaps()), "maps=True"),
        (lambda: setattr(told_one, "training_maps", "subsets"), "RandomMaps"),
        (lambda: RandomMaps(-1.0, 1.0, 1.0), "none below 0"),
        (lambda: RandomMaps(0.0, 0.0, 0.0), "none below 0"),
        (lambda: RandomMaps(window=(3.0, -3.0)), "the smaller one first"),
        (lambda: RandomMaps(missing="drop"), "expected one of skip, leave_out"),  # type: ignore[arg-type]
        (lambda: score.diffusion_term(LearnedDiffusion(2), data(4)), "min_log_snr is given"),
        (lambda: score.x_hat(data(4), torch.zeros(4, 2)), "log_snr has shape"),
        (lambda: score.x_hat(data(4), torch.full((4, 3), math.nan)), "holds nan"),
        (lambda: train(**run, score="noise", maps="mixed"), "--maps is mixed, which is for"),
        (lambda: train(**run, guide=pixels, maps="subsets"), "use a guide of one clock"),
    )


def test_state_dicts_say_whether_there_are_maps() -> None:
    for maps in (False, True):
        score = Denoiser(Silent(3), MEAN, VARIANCE, maps=maps)
        assert score.settings()["maps"] == maps
        again = Denoiser(Silent(3), MEAN, VARIANCE, maps=maps)
        again.load_state_dict(score.state_dict())
        with pytest.raises(RuntimeError, match="maps"):
            Denoiser(Silent(3), MEAN, VARIANCE, maps=not maps).load_state_dict(score.state_dict())


@pytest.mark.parametrize("window", [(-3.0, 3.0), (-2.0, 5.0), (0.0, 1.0)])
def test_a_window_weighs_log_snrs_as_it_says(window: tuple[float, float]) -> None:
    """The mean of weight · f over draws is ∫ w f, w(λ) = σ(a - λ), and few draws are outside."""
    b, a = window
    n = 100_000
    law = RandomMaps(levels=1.0, subsets=0.0, independent=0.0, window=window)
    torch.manual_seed(0)
    maps = law.draw((n, 1), -4.0, 9.0, torch.device("cpu"))
    lam, grid = maps.log_snr[:, 0], torch.linspace(-4.0, 9.0, 100_001).double()
    assert float(lam.min()) >= -4.0 and float(lam.max()) <= 9.0

    def f(at: Tensor) -> Tensor:
        return torch.sigmoid(at - b) * (1 + (at / 3).cos())

    mean = (maps.weight[:, 0] * f(lam)).mean()
    known = torch.trapezoid(torch.sigmoid(a - grid) * f(grid), grid)
    torch.testing.assert_close(mean, known, rtol=2e-3, atol=0)
    density = torch.sigmoid(grid - b) * torch.sigmoid(a - grid)
    share = torch.trapezoid(density[grid < b], grid[grid < b]) / torch.trapezoid(density, grid)
    assert float((lam < b).double().mean()) == pytest.approx(float(share), abs=2e-3)
