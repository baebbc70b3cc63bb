"""Images larger than a network's, by overlapping windows, held to textures of known law."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_mdm import (
    CLD,
    VPSDE,
    Denoiser,
    DiffusionModel,
    DiscreteDenoiser,
    NoisePrediction,
    PerDimensionDiffusion,
    condition,
)
from pyro_mdm.conditioning import Labels, windowed
from pyro_mdm.conditioning.windows import WindowedDenoiser, Windows
from pyro_mdm.levels import DiscretizedGaussian
from pyro_mdm.measurements import Downsample, LinearOperator, Mask, condition_on_measurements
from pyro_mdm.measurements.covariance import DataCovariance, WindowedCovariance
from pyro_mdm.networks import MLP, UNet
from pyro_mdm.samplers import ExponentialIntegrator
from tests.mistakes import refused
from tests.problems import ENDS, Silent, normal

WINDOW, SIZE = (8, 8), (12, 20)
LENGTH = 1.6
"""Pixels in which the texture's correlation falls by a factor of e: a fifth of a window."""


class Texture(Denoiser):
    """E[x | z] of a stationary Gaussian texture of unit variance, on a grid of any size."""

    def __init__(self, *size: int) -> None:
        super().__init__(Silent(1, *size), torch.zeros(1, *size), torch.ones(1, *size))
        along = [torch.arange(n, dtype=torch.float64) for n in size]
        rows, columns = (torch.exp(-(t[:, None] - t).abs() / LENGTH) for t in along)
        self.spectrum, self.basis = torch.linalg.eigh(torch.kron(rows, columns))

    def x_hat(self, z: Tensor, log_snr: Any) -> Tensor:
        _, lam = self._values("z", z, log_snr)
        lam = lam.reshape(*lam.shape, 1, 1)
        share = self.spectrum / (self.spectrum + torch.exp(-lam))
        return (z.flatten(-2) @ self.basis * share @ self.basis.mT).reshape(z.shape)


def both() -> list[DiffusionModel]:
    """The texture by windows, and exactly."""
    small, whole = (
        DiffusionModel(VPSDE(**ENDS), Texture(*size), sampler=ExponentialIntegrator(24))
        for size in (WINDOW, SIZE)
    )
    return [windowed(small, SIZE), whole]


def draws(model: DiffusionModel, n: int) -> Tensor:
    """Samples by the probability flow, whose states begin alike for all models of one size."""
    torch.manual_seed(0)
    return model(batch_size=n).detach()[:, 0]


# -- right and without a seam ----------------------------------------------------------------------


def test_a_texture_has_no_seam() -> None:
    """Variances, and those of differences of neighbours, are right everywhere, also across edges of
    windows; and so each sample is nearly that of the exact denoiser."""
    found, exact = (draws(model, 256) for model in both())
    assert float((found - exact).square().mean()) < 0.04**2
    for of, most in (
        (lambda x: x, 0.04),
        (lambda x: x.diff(dim=1), 0.04),
        (lambda x: x.diff(dim=2), 0.04),
        (lambda x: x[:, :, 6:] - x[:, :, :-6], 0.05),
    ):
        ratio = of(found).square().mean(0) / of(exact).square().mean(0)
        assert float((ratio - 1).abs().max()) < most
        assert float((ratio - 1).mean().abs()) < 0.01


def half_seen() -> Mask:
    seen = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(1)) < 0.3
    seen[..., 6:11] = False  # a gap of more than half a window
    return Mask(seen)


@pytest.mark.slow
@pytest.mark.parametrize("operator", [half_seen(), Downsample((1, *SIZE))], ids=["mask", "coarse"])
def test_a_measured_texture_is_that_of_the_exact_denoiser(operator: LinearOperator) -> None:
    _, whole = both()
    obs = operator(draws(whole, 1).double().unsqueeze(1))[0]
    obs = obs + 0.1 * normal(2, *obs.shape)
    own: dict[str, Any] = {"covariance_from": -math.inf, "max_iterations": 12}
    found, exact = (
        draws(condition_on_measurements(model, operator, obs, 0.1**2, **own), 4) for model in both()
    )
    spread = exact.std(0).mean()
    assert float((found - exact).square().mean().sqrt()) < 0.08 * spread < 0.08


@pytest.mark.slow
def test_a_larger_image_has_the_covariance_of_its_windows() -> None:
    """The linear one is a sum over windows, and guidance by it alone is near to the exact one's."""
    small, whole = Texture(*WINDOW), both()[1]
    L = torch.linalg.cholesky(small.basis @ small.spectrum.diag() @ small.basis.mT)
    data = (normal(5, 2000, 64) @ L.mT).reshape(-1, 1, *WINDOW)
    of_window = DataCovariance.fit(data)  # not diagonal, so that it matters where it is weighted
    made = WindowedCovariance(of_window, WINDOW, SIZE)
    v, V = normal(4, 2, 1, *SIZE), torch.tensor([0.5, 3.0]).double().reshape(2, 1, 1, 1)
    known = torch.zeros_like(v)
    windows = made.windows
    for index, weights in zip(windows.index, windows.weights, strict=True):
        part = v.flatten(2)[:, :, index] * weights.sqrt()
        V_of_part = V.expand(2, 1, *WINDOW)
        image = of_window.given(V_of_part, by_dimension=False)(part.unflatten(-1, WINDOW))
        known.flatten(2)[:, :, index] += image.flatten(2) * weights.sqrt()
    found = made.given(V.expand(2, 1, *SIZE), by_dimension=False)(v)
    torch.testing.assert_close(found, known)

    operator = half_seen()
    obs = operator(draws(whole, 1).double().unsqueeze(1))[0]
    guided = condition_on_measurements(both()[0], operator, obs, 0.1**2, data=data)
    exact = condition_on_measurements(whole, operator, obs, 0.1**2, covariance_from=-math.inf)
    exact.score_function.max_iterations = 40
    far, near = (draws(model, 4) - draws(exact, 4) for model in (both()[0], guided))
    assert float(near.square().mean().sqrt()) < 0.2 < 0.5 < float(far.square().mean().sqrt())


@pytest.mark.slow
@torch.no_grad()
def test_it_is_saved_with_its_windows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 1, *WINDOW)
    small = DiffusionModel(VPSDE(**ENDS), Denoiser.fit(UNet(1, base=8, multipliers=(1,)), x))
    operator = half_seen()
    obs = normal(1, *operator.obs_shape)
    given = condition_on_measurements(windowed(small, SIZE), operator, obs, 0.1, data=x)
    given.save_pretrained(tmp_path)
    again = DiffusionModel.from_pretrained(tmp_path)
    torch.testing.assert_close(draws(again, 2), draws(given, 2))


def test_independent_pixels_are_exact() -> None:
    score = Denoiser(Silent(1, *WINDOW), torch.full((1, *WINDOW), 0.3), torch.ones(1, *WINDOW))
    whole = Denoiser(Silent(1, *SIZE), torch.full((1, *SIZE), 0.3), torch.ones(1, *SIZE))
    made, lam = WindowedDenoiser(score, SIZE), torch.tensor([-3.0, 0.0, 4.0])
    z = normal(0, 2, 3, 1, *SIZE)  # batch dimensions of any number
    for log_snr in (lam.expand(2, 3), 1.0):
        torch.testing.assert_close(made.x_hat(z, log_snr), whole.x_hat(z, log_snr))
    torch.testing.assert_close(made.data_mean, whole.data_mean)
    torch.testing.assert_close(made.data_variance, whole.data_variance)
    assert made.typical.shape == whole.typical.shape


@pytest.mark.parametrize("size", [(8, 8), (9, 32), (20, 8), (15, 25)])
def test_windows_cover_every_pixel_and_overlap_by_half(size: tuple[int, int]) -> None:
    windows = Windows(WINDOW, size)
    image = torch.arange(math.prod(size)).double().reshape(1, *size)
    parts = windows.cut(image)
    assert parts.shape == (len(windows), 1, *WINDOW)
    assert torch.equal(windows.choose(parts), image)
    torch.testing.assert_close(windows.blend(parts), image)
    starts = parts[:, 0, 0, 0].long()
    for place in (starts // size[1], starts % size[1]):
        assert place.unique().diff().numel() == 0 or int(place.unique().diff().max()) <= 4
    inside = torch.arange(8).minimum(torch.arange(8).flip(0))  # pixels to the edge of a window
    inside = torch.minimum(inside[:, None], inside).expand(len(windows), 8, 8)
    assert int(windows.choose(inside)[3:-3, 3:-3].min()) >= 2


# -- what a network is told ------------------------------------------------------------------------


class Echo(Silent):
    """A network that says what it is told of each datum."""

    context_size = 3

    def forward(self, inputs: Tensor, log_snr: Tensor, *context: Tensor) -> Tensor:
        told = context[0] @ torch.arange(1.0, 4.0).to(context[0])
        return told.reshape(-1, 1, 1, 1).expand_as(inputs)


def test_each_datum_has_its_own_context_in_all_of_its_windows() -> None:
    score = Denoiser(Echo(), torch.zeros(1, *WINDOW), torch.ones(1, *WINDOW))
    model = DiffusionModel(VPSDE(**ENDS), score, context=Labels(3, dropout=0.1))
    given = windowed(condition(model, context=torch.tensor([2, 0])), SIZE).score_function
    found = given.x_hat(torch.zeros(4, 1, *SIZE), 0.0)
    assert all(float(found[i].std()) < 1e-6 for i in range(4))
    ratio = found[:, 0, 0, 0] / found[1, 0, 0, 0]
    torch.testing.assert_close(ratio, torch.tensor([3.0, 1.0, 3.0, 1.0]))
    again = given.for_rows(torch.tensor([1, 1, 0])).x_hat(torch.zeros(3, 1, *SIZE), 0.0)
    torch.testing.assert_close(again[:, 0, 0, 0] / found[1, 0, 0, 0], torch.tensor([1.0, 1.0, 3.0]))


def test_maps_of_log_snr_are_cut_like_the_data() -> None:
    torch.manual_seed(0)
    network = UNet(2, out_channels=1, base=8, multipliers=(1,))
    score = Denoiser(network, torch.zeros(1, *WINDOW), torch.ones(1, *WINDOW), maps=True)
    made, z = WindowedDenoiser(score, (10, 15)), torch.randn(2, 1, 10, 15)
    maps = torch.zeros(2, 1, 10, 15).double()
    torch.testing.assert_close(made.x_hat(z, maps), made.x_hat(z, 0.0))
    maps[:, :, 3, 7:] = math.inf
    torch.testing.assert_close(made.x_hat(z, maps)[:, :, 3, 7:], z[:, :, 3, 7:])


# -- the decoder -----------------------------------------------------------------------------------


def test_levels_are_decoded_pixel_by_pixel() -> None:
    """As without windows, where the decoder is alike in all places."""
    torch.manual_seed(0)
    levels = torch.linspace(-1, 1, 5)
    x = levels[torch.randint(5, (200, 1, 4, 4))]
    network = UNet(1, out_channels=2, base=8, multipliers=(1,))
    diffusion = CLD(max_log_snr=6.0)
    score = DiscreteDenoiser.fit(network, x, 5, "tilt")
    model = DiffusionModel(diffusion, score, DiscretizedGaussian(5))
    large = windowed(model, (4, 7))
    y = torch.randn(3, 2, 1, 4, 7).double()
    law: Any = large.likelihood(diffusion, large.score_function, y)
    known: Any = DiscretizedGaussian(5)(diffusion, large.score_function, y, 3)
    value = levels[torch.randint(5, (3, 1, 4, 7))].double()
    torch.testing.assert_close(law.log_prob(value), known.log_prob(value))
    assert law.expand((3,)).sample((2,)).shape == (2, 3, 1, 4, 7)
    assert set(law.sample().unique().tolist()) <= set(levels.double().tolist())
    given = condition_on_measurements(
        large, Mask(torch.ones(1, 4, 7) > 0), value[0, 0].flatten(), 0.0
    )
    found = given(batch_size=2)
    assert found.shape == (2, 1, 4, 7)
    agree = (found - value[0]).abs() < 0.3  # up to the noise of the start
    assert float(agree.float().mean()) > 0.9


# -- mistakes --------------------------------------------------------------------------------------


def test_mistakes() -> None:
    network, x = UNet(1, base=8, multipliers=(1,)), torch.randn(50, 1, 8, 8)

    def of(score: Any, diffusion: Any = None, **options: Any) -> DiffusionModel:
        return DiffusionModel(diffusion or VPSDE(**ENDS), score, **options)

    model = of(Denoiser.fit(network, x))
    assert windowed(model, (8, 8)) is model
    large = windowed(model, (8, 12))
    middle = torch.nn.functional.pad(torch.ones(1, 4, 4), (2, 2, 2, 2))
    digits = of(Denoiser(network, middle, torch.full((1, 8, 8), 0.3)))
    vector = of(Denoiser.fit(MLP(4), torch.randn(50, 4)))
    clocks = PerDimensionDiffusion(VPSDE(**ENDS), block_of=torch.zeros(1, 8, 8).long())
    apart = of(Denoiser.fit(network, x), clocks)
    noise = of(NoisePrediction(network), event_shape=(1, 8, 8))
    refused(
        ValueError,
        (lambda: windowed(model, (8, 7)), "size is 8×7 pixels, .* at least 8×8, .* pad the image"),
        (lambda: windowed(model, (8, 9, 1)), "size is 8×9×1 pixels, expected a height and width"),
        (lambda: windowed(digits, (8, 9)), r"38% of the variance of pixels .* at most 10%: .*8×8"),
    )
    refused(
        TypeError,
        (lambda: windowed(vector, (8, 9)), r"data of shape \(4,\), expected \(C, H, W\) of images"),
        (lambda: windowed(apart, (8, 9)), "one log SNR for all data dimensions.* such as VPSDE"),
        (lambda: windowed(noise, (8, 9)), "NoisePrediction.*expected a DenoiserScore"),
        (lambda: windowed(large, (8, 20)), "conditioned already, .* windowed.model, size. first"),
        (lambda: large.score_function.baseline_kl(x, 0.0), "denoiser by 2 windows has no baseline"),
        (lambda: of(large.score_function), "a decoder by windowed"),
    )
