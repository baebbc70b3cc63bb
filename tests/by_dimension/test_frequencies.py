"""Diffusions of frequencies: coordinates in which densities stay what they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import fft
from torch import Tensor, nn

from inference.folders.loading import load_trained
from inference.guides.blurring import blurring
from inference.train import train
from pyro_mdm import (
    Denoiser,
    DiffusionModel,
    DiscreteDenoiser,
    NoisingPath,
)
from pyro_mdm.by_dimension import BlurClocks, Frequencies
from pyro_mdm.by_dimension.coordinates import CoordinateNetwork, cosine_basis
from pyro_mdm.levels import DiscretizedGaussian
from tests.brief import SHORT
from tests.problems import Silent, fixed, generator, normal

SHAPE = (1, 4, 4)


def variances() -> Tensor:
    """Of the frequencies of the data: low ones are strong, as in photographs."""
    i = torch.arange(4).double()
    return (2.0 / (1 + i[:, None] ** 2 + i**2) ** 3)[None] * (0.5 + fixed(3, 1, 4, 4).square())


def score() -> Denoiser:
    mean = torch.full(SHAPE, 0.2, dtype=torch.float64)
    return Denoiser(Silent(*SHAPE), mean, variances(), maps=True)


def diffusion(low: float = -7.0) -> Any:
    return blurring(SHAPE, max_log_snr=8.0, min_log_snr=low, blur=2.0)


def test_the_cosine_transform_is_orthonormal_and_scipys() -> None:
    x = normal(1, 3, 2, 5, 8)
    torch.testing.assert_close(cosine_basis(7) @ cosine_basis(7).mT, torch.eye(7).double())
    known = torch.from_numpy(fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho"))
    torch.testing.assert_close(Frequencies()(x), known)
    torch.testing.assert_close(Frequencies().inverse(known), x)
    known = torch.from_numpy(fft.dct(x.numpy(), axis=-1, norm="ortho"))
    torch.testing.assert_close(Frequencies(1)(x), known)
    with pytest.raises(ValueError, match="dimensions along which"):
        Frequencies(3)(torch.zeros(2, 2))


@torch.no_grad()
def test_blurred_frequencies_have_the_log_snr_of_the_paper() -> None:
    blurred = diffusion()
    u = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    of_map, _ = blurred.level(u)
    i = torch.arange(4).double() / 4
    squares = math.pi**2 * (i[:, None].square() + i.square())
    tau = 0.5 * 2.0**2 * torch.sin(math.pi * u / 2).square()
    kept = 0.95 * torch.exp(-squares * tau[:, None, None]) + 0.05
    known = 8.0 - 15.0 * u[:, None, None] + 2 * kept.log()
    torch.testing.assert_close(of_map[:, 0], known)
    assert len(blurred.cells) == len(squares.unique())


@torch.no_grad()
def test_levels_are_of_pixels() -> None:
    """Whatever states hold: a decoder of levels reads pixels, and a denoiser of levels is
    refused."""
    blurred, levels = diffusion(), torch.linspace(-1, 1, 9, dtype=torch.float64)
    x = levels[torch.randint(9, (50, *SHAPE), generator=generator(3))]
    y = NoisingPath(blurred, x).sample()[:, 0]
    for decoder in (DiscretizedGaussian(9), DiscretizedGaussian(9, LEVEL_PRIOR)):
        law = decoder(blurred, score(), y)
        assert float(law.log_prob(x).min()) > -1e-3 and torch.equal(law.sample(), x)
    refused = DiscreteDenoiser(Silent(*SHAPE), 9, LEVEL_PRIOR, "logits", maps=True)
    with pytest.raises(TypeError, match=r"hold a transform of the data; use a Denoiser, fitted to"):
        DiffusionModel(blurred, refused)


LEVEL_PRIOR = torch.full((*SHAPE, 9), 1 / 9, dtype=torch.float64).log()


def test_networks_see_pixels() -> None:
    seen = []

    class Looking(nn.Module):
        def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
            seen.append(inputs)
            return inputs[:, :1]

    network = CoordinateNetwork(Looking(), Frequencies(), untransformed=1)
    x, channel = normal(0, 2, *SHAPE), normal(1, 2, *SHAPE)
    out = network(torch.cat([Frequencies()(x), channel], 1), torch.zeros(2))
    torch.testing.assert_close(seen[0], torch.cat([x, channel], 1))
    torch.testing.assert_close(out, Frequencies()(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["denoiser", "noise"])
def test_a_blurring_guide_is_trained(kind: str, tmp_path: Path) -> None:
    """And measured, by a baseline of its frequencies where the score is no denoiser."""
    options: dict[str, Any] = SHORT | {"model": "digits", "steps": 2, "batch_size": 8}
    options |= {"guide": "inference.guides.blurring:blurring", "test_size": 16, "figures": False}
    train(**options, score=kind, run=tmp_path / "run")
    assert load_trained(tmp_path / "run")[1].model.diffusion.transform.dims == 2
    with pytest.raises(ValueError, match="whose levels are of pixels"):
        train(**options, run=tmp_path / "other")


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="expected more than"):
        BlurClocks([1.0], width=2.0)
    with pytest.raises(ValueError, match="images"):
        blurring((3,))
