"""Maps that leave a density as it is: they are found, and modes have all their images."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mdm import AutoMDM
from pyro_mdm.automatic.symmetry import Symmetry

DATA = torch.linspace(-2.0, 2.5, 12)


def mixture() -> None:
    """Components of one plate, with weights of an event: three of everything."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(DATA)):
        components = dist.Normal(mean, scale)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=DATA)


def named() -> None:
    """The same with a prior that tells components apart."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    mean = pyro.sample("mean", dist.Normal(torch.tensor([-1.0, 0.0, 1.0]), 2.0).to_event(1))
    components = dist.Normal(mean, 1.0)
    law = dist.MixtureSameFamily(dist.Categorical(weights), components)
    pyro.sample("y", law.expand([len(DATA)]).to_event(1), obs=DATA)


def ordered() -> None:
    transform = dist.transforms.OrderedTransform()
    law = dist.TransformedDistribution(dist.Normal(0.0, 2.0).expand([3]).to_event(1), transform)
    mean = pyro.sample("mean", law)
    components = dist.Normal(mean, 1.0)
    mixed = dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), components)
    pyro.sample("y", mixed.expand([len(DATA)]).to_event(1), obs=DATA)


def factor() -> None:
    """One factor, whose loadings and scores change their signs together."""
    loadings = pyro.sample("loadings", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
    scores = pyro.sample("scores", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
    offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
    mean = offset + scores[:, None] * loadings
    pyro.sample("y", dist.Normal(mean, 0.5).to_event(2), obs=torch.arange(30.0).view(6, 5) / 15)


def factors() -> None:
    """Two factors, each with a sign, and both without a name."""
    loadings = pyro.sample("loadings", dist.Normal(0.0, 1.0).expand([5, 2]).to_event(2))
    scores = pyro.sample("scores", dist.Normal(0.0, 1.0).expand([6, 2]).to_event(2))
    mean = scores @ loadings.mT
    pyro.sample("y", dist.Normal(mean, 0.5).to_event(2), obs=torch.arange(30.0).view(6, 5) / 15)


def plain() -> None:
    a = pyro.sample("a", dist.Normal(1.0, 1.0))
    b = pyro.sample("b", dist.Gamma(2.0, 1.0))
    pyro.sample("y", dist.Normal(a, b), obs=torch.tensor(0.5))


def of(program: Callable[[], None]) -> tuple[AutoMDM, Symmetry]:
    guide = AutoMDM(program, steps=2)
    guide.set_up()
    density, x = guide.program_density, torch.randn(2, guide.latent_dim)
    return guide, Symmetry.from_density(density, guide.latents(), guide.log_density, x)


@pytest.mark.parametrize(
    "program, words",
    [
        (mixture, "permutations of 'weights', 'mean', 'scale'"),
        (named, ""),
        (ordered, ""),
        (factor, "signs of 'loadings', 'scores'"),
        (plain, ""),
    ],
)
def test_maps_are_those_of_the_program(program: Callable[[], None], words: str) -> None:
    _, symmetry = of(program)
    assert str(symmetry) == words and bool(symmetry) == bool(words)


@pytest.mark.parametrize("program", [mixture, factor, factors])
def test_images_have_the_same_density(program: Callable[[], None]) -> None:
    guide, symmetry = of(program)
    x = torch.randn(1, guide.latent_dim).expand(200, -1)
    images = symmetry.scattered(x)
    density = guide.program_density
    log_p = guide.log_density(images) - density.log_jacobian(images)
    torch.testing.assert_close(log_p, log_p[:1].expand(200), rtol=1e-4, atol=1e-4)
    distinct = {tuple((10 * image).round().int().tolist()) for image in images}
    assert len(distinct) == {mixture: 6, factor: 2, factors: 8}[program]


def test_images_of_draws_have_the_density_of_their_space() -> None:
    """Draws of a law that is the same in all orders, through a simplex: so are their images."""

    def simplex() -> None:
        pyro.sample("shares", dist.Dirichlet(torch.full((3,), 2.0)))

    guide, symmetry = of(simplex)
    shares = dist.Dirichlet(torch.full((3,), 2.0)).sample((20_000,))
    x = guide.rows({"shares": shares})
    images = symmetry.scattered(x)
    assert not torch.equal(images, x)
    torch.testing.assert_close(images.mean(0), x.mean(0), rtol=0.0, atol=0.04)
    torch.testing.assert_close(images.mT.cov(), x.mT.cov(), rtol=0.05, atol=0.04)


def pair() -> None:
    """Two means without a name, far from each other: two modes, log Z by symmetry 2 halves."""
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    law = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(mean, 0.3))
    data = torch.tensor([-3.0, -2.9, -3.2, 3.0, 3.1, 2.8])
    pyro.sample("y", law.expand([6]).to_event(1), obs=data)


@pytest.mark.slow
def test_particles_have_all_images_and_a_gaussian_is_told_of_them() -> None:
    particles = AutoMDM(pair, steps=2, start="particles")
    particles.fit(updates=20, start_updates=100, particles=512, progress=False)
    checked = particles.check(other=None)
    assert not checked.lacks and checked.is_trusted
    assert (
        abs(float((particles.sample_posterior(4_000)["mean"][:, 0] > 0).float().mean()) - 0.5) < 0.1
    )
    gaussian = AutoMDM(pair, steps=2).fit(updates=20, start_updates=200, progress=False)
    checked_gaussian = gaussian.check(other=None)
    assert "'mean'" in checked_gaussian.lacks and not checked_gaussian.is_trusted
    assert "images" in repr(checked_gaussian) and "particles" in repr(checked_gaussian)
    missing = checked.weights.log_evidence.mean - checked_gaussian.weights.log_evidence.mean
    assert abs(missing - math.log(2)) < 0.2 or not math.isfinite(
        checked_gaussian.weights.log_evidence.standard_error
    )
