"""Targets of the study of automatic guides, and the long runs that know them."""

from __future__ import annotations

import sys
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from tests.benchmarks.densities import references
from tests.benchmarks.densities.base import Modes, Target
from tests.benchmarks.densities.references import Students, annealed, reference
from tests.benchmarks.densities.targets import NAMES, sites_of, target

EXACT = ("many_well", "funnel", "mixture40", "brownian_motion", "two_sinusoids", "two_gaussians_25")


def within(values: Tensor, expected: float, errors: float = 5) -> bool:
    """Whether means of rows (n, ...) are what is expected, by their standard errors."""
    error = values.std(0) / len(values) ** 0.5
    return bool(((values.mean(0) - expected).abs() < errors * error).all())


# -- targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_density_is_what_pyro_computes(name: str) -> None:
    own = target(name)
    potential = initialize_model(own.program)[1]
    x = torch.randn(4, own.dim)
    expected = []
    for row in x:
        sites = sites_of(own.program).items()
        parts = row.split([site.shape.numel() for _, site in sites])
        latents = {key: u.reshape(site.shape) for (key, site), u in zip(sites, parts, strict=True)}
        expected.append(-float(potential(latents)))
    torch.testing.assert_close(own.log_density(x), torch.tensor(expected), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["many_well", "funnel", "mixture40"])
def test_log_z_is_the_integral_of_the_density(name: str) -> None:
    own = target(name)
    assert own.exact is not None and own.log_z is not None
    x = own.exact(10_000, 3)
    torch.testing.assert_close(own.exact(5, 3), own.exact(5, 3))
    # the mean of q / (p Z) is 1 for a law q whose tails are lighter
    if own.modes is not None:
        core = x[own.modes.of(x) == own.modes.probabilities.argmax()]
    else:
        core = x[x[:, 0].abs() < 0.5]
    q = dist.MultivariateNormal(core.double().mean(0), 0.8 * core.T.double().cov())
    assert within((q.log_prob(x.double()) - own.log_density(x) + own.log_z).exp(), 1.0)


@pytest.mark.parametrize("name", ["brownian_motion", "two_sinusoids"])
def test_log_z_is_an_integral_of_integrals_of_gaussians(name: str) -> None:
    own = target(name)
    assert own.exact is not None and own.log_z is not None
    n, rest = 4_000, own.dim - 2
    first = own.exact(n, 3)[:, :2]
    # the mean of q / (p Z) is 1 for the uniform law q on a box of the first two
    core = first
    if own.modes is not None:
        core = first[own.modes.of(first) == own.modes.probabilities.argmax()]
    low, high = core.quantile(torch.tensor([0.25, 0.75]), 0)
    inside = ((low < first) & (first < high)).all(1)
    # the log density of the others is a parabola, given by its slopes at 0 and at unit vectors
    others = torch.cat([torch.zeros(1, rest), torch.eye(rest)])
    pairs = [first[inside].repeat_interleave(rest + 1, 0), others.repeat(int(inside.sum()), 1)]
    x = torch.cat(pairs, 1).requires_grad_()
    value = own.log_density(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    value = value.detach().reshape(-1, rest + 1)[:, 0].double()
    slope = slope[:, 2:].reshape(-1, rest + 1, rest).double()
    curvature = slope[:, :1] - slope[:, 1:]
    along = torch.linalg.solve(curvature, slope[:, 0])
    marginal = (
        value + (along * slope[:, 0]).sum(1) / 2 - torch.logdet(curvature / (2 * torch.pi)) / 2
    )
    ratios = torch.zeros(n).double()
    ratios[inside] = (own.log_z - marginal).exp() / (high - low).prod().double()
    assert ratios.std() < 10 and within(ratios, 1.0)


@pytest.mark.parametrize("name", EXACT)
def test_exact_draws_have_steins_moments(name: str) -> None:
    own = target(name)
    assert own.exact is not None
    x = own.exact(5_000, 5).requires_grad_()
    (slope,) = torch.autograd.grad(own.log_density(x).sum(), x)
    assert within(x.detach() * slope, -1.0)


@pytest.mark.parametrize("name", ["many_well", "mixture40", "two_sinusoids"])
def test_modes_have_their_probabilities(name: str) -> None:
    own = target(name)
    assert own.exact is not None and own.modes is not None
    probabilities = own.modes.probabilities
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
    n = 20_000
    counts = own.modes.of(own.exact(n, 7)).bincount(minlength=len(probabilities))
    expected = n * probabilities
    assert (counts - expected).square().div(expected).sum() < 3 * len(counts)


# -- references ------------------------------------------------------------------------------------


def two_modes() -> Target:
    """Three in ten of one Gaussian and seven of another; log Z is 2."""
    first = dist.MultivariateNormal(torch.tensor([-3.0, 0.0]), torch.tensor([[1.0, 0.6], [0.6, 1]]))
    second = dist.MultivariateNormal(torch.tensor([3.0, 1.0]), torch.eye(2) / 4)

    def log_density(x: Tensor) -> Tensor:
        terms = (
            first.log_prob(x) + torch.tensor(0.3).log(),
            second.log_prob(x) + torch.tensor(0.7).log(),
        )
        return torch.stack(terms).logsumexp(0) + 2

    modes = Modes(lambda x: (x[:, 0] > 0).long(), torch.tensor([0.3, 0.7]))
    return Target("two_modes", 2, lambda: None, log_density, modes=modes)


def test_a_run_finds_log_z_and_the_shares_of_modes() -> None:
    own = two_modes()
    start = Students(torch.zeros(1, 2), 3 * torch.eye(2)[None])
    log_z, shares, moments = [], [], []
    for seed in range(12):
        x, each = annealed(own, start, 400, 1, seed)
        log_z.append(each)
        shares.append(float((x[:, 0] > 0).float().mean()))
        moments.append(x[x[:, 0] < 0].T.cov()[0, 1])
    # of twelve runs an estimate is more than nine of its own errors off twice in a million
    assert within(torch.tensor(log_z).sub(2).exp(), 1.0, 9) and torch.tensor(log_z).std() < 0.3
    assert within(torch.tensor(shares), 0.7, 9) and within(torch.stack(moments), 0.6, 9)


def test_students_are_those_of_pyro() -> None:
    factors = (torch.eye(3) + torch.rand(2, 3, 3) / 2).tril()
    own = Students(torch.randn(2, 3), factors)
    each = dist.MultivariateStudentT(references.FREEDOM, own.means, factors)
    law = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), each)
    x = own.draw(20_000, torch.Generator().manual_seed(0)).requires_grad_()
    torch.testing.assert_close(own.log_density(x), law.log_prob(x), rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(own.log_density(x).sum(), x)
    assert within(x.detach() * slope, -1.0)


def test_references_are_made_once_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(references, "target", lambda name: two_modes())
    monkeypatch.setattr(references, "KEPT", 100)
    with pytest.raises(SystemExit, match=r"funnel\.npz is missing, expected .*; make it by python"):
        reference("funnel", tmp_path)
    call = f"references --targets funnel --particles 400 --draws 2000 --folder {tmp_path}"
    monkeypatch.setattr(sys, "argv", call.split())
    references.main()
    held = reference("funnel", tmp_path)
    assert held.x.shape == (100, 2) and abs((held.x[:, 0] > 0).sum() - 70) < 20
    assert 0 < held.log_z_se < 0.1 and abs(held.log_z - 2) < 5 * held.log_z_se + 0.01
    assert f"log Z {held.log_z:.3f}" in capsys.readouterr().out
