"""A mixture as the start of a chain: its density is exact, and it has the modes of draws."""

from __future__ import annotations

import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_mdm import CLD, AutoMDM
from pyro_mdm.automatic.chain import Chain
from pyro_mdm.automatic.mixture import MOST, Mixture, _by_splits, _split
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.automatic.weighing import Weighing

MEANS = torch.tensor([[-2.0, 1.0, 0.0], [1.5, 1.0, 0.5], [0.0, -2.0, -1.0]])
SHARES = torch.tensor([0.2, 0.5, 0.3])
LOG_Z = 1.3


def law() -> dist.TorchDistribution:
    """Three components of different covariances."""
    roots = 0.4 * torch.eye(3).repeat(3, 1, 1)
    roots[1, 2, 0] = 0.3
    roots[2, 1, 1] = 0.15
    each = dist.MultivariateNormal(MEANS, scale_tril=roots)
    return dist.MixtureSameFamily(dist.Categorical(SHARES), each)


def density(x: Tensor) -> Tensor:
    return law().log_prob(x) + LOG_Z


def near(size: float = 0.1) -> Mixture:
    """A mixture not far from the law, wider, with parameters that are not 0."""
    mixture = Mixture(3)
    mixture.number = 3
    with torch.no_grad():
        mixture.means[:3] = MEANS
        mixture.roots[:3] = 0.5 * torch.eye(3)
        mixture.roots[:3, 1, 0] = 0.2
        mixture.log_shares[:3] = torch.tensor([0.3, 0.4, 0.3]).log()
        for parameter in mixture.parameters():
            parameter += size * torch.randn_like(parameter)
    return mixture


def ratio(mixture: Mixture) -> Ratio:
    """With a Gaussian's location and scale beyond the mixture's."""
    root = torch.tensor([[1.1, 0.0, 0.0], [0.1, 1.0, 0.0], [0.0, 0.1, 1.2]])
    return Ratio(density, torch.tensor([0.1, 0.0, -0.1]), root, mixture)


def weights(n: int, *, noised: bool) -> Tensor:
    """w / Z of paths that the chain generates, or of noising paths from exact draws, (n,)."""
    pyro.set_rng_seed(0)  # of the parameters
    h, chain = ratio(near()), Chain(3, CLD(), 3, beside=MOST)
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        chain.power *= 0.1
        if noised:
            h, u = h.ending_at(law().sample((n,)))
            cost = chain.noising_cost(h, u)
        else:
            h = h.of_paths(n)
            u, cost = chain.paths(h, n)
        log_w = density(h.place(u)) - cost - h.log_unit(u)
    return (log_w.double() - LOG_Z).exp()


def test_weights_mean_z_from_a_mixture() -> None:
    w = weights(40_000, noised=False)
    assert 0.05 < w.std() < 5, "neither constant nor wide"
    assert abs(float(w.mean()) - 1) < 5 * float(w.std()) / 200


def test_noising_paths_from_a_mixture_are_weighed_as_generated_ones() -> None:
    """E_q[w g(w)] = E_r[g(w)] with g = 1 / (1 + w), so that both sides are bounded."""
    w, w_noised = weights(40_000, noised=False), weights(40_000, noised=True)
    generated, noised = w / (1 + w), 1 / (1 + w_noised)
    error = math.sqrt(float(generated.var() + noised.var())) / 200
    assert abs(float(generated.mean() - noised.mean())) < 5 * error
    assert noised.std() > 0.01, "weights that differ"


def test_weights_of_the_start_are_those_of_the_mixture() -> None:
    mixture, n = near(), 200
    h, u = ratio(mixture).of_paths(n), torch.randn(n, 3)
    with torch.no_grad():
        x = h.place(u)
        means, roots, log_shares = mixture.components()
        each = dist.MultivariateNormal(
            h.loc + means @ h.scale_tril.mT, scale_tril=h.scale_tril @ roots
        )
        exact = dist.MixtureSameFamily(dist.Categorical(logits=log_shares), each).log_prob(x)
        assert torch.allclose(h.log_unit(u), exact, atol=1e-4)
        again, u_again = ratio(mixture).ending_at(x)
        assert torch.allclose(again.place(u_again), x, atol=1e-4)


@pytest.mark.parametrize("number", [1, 3])
def test_components_are_those_of_the_draws(number: int) -> None:
    """Of draws of one Gaussian or of three, by the density of other draws."""
    one = dist.MultivariateNormal(torch.zeros(3), 0.5 * torch.eye(3) + 0.5)
    truth = law() if number == 3 else one
    mixture = Mixture(3)
    mixture.fit(truth.sample((4_000,)))
    assert mixture.number == number
    with torch.no_grad():
        means, roots, log_shares = mixture.components()
    each = dist.MultivariateNormal(means, scale_tril=roots)
    fitted = dist.MixtureSameFamily(dist.Categorical(logits=log_shares), each)
    x = truth.sample((10_000,))
    apart = (truth.log_prob(x) - fitted.log_prob(x)).mean()
    assert float(log_shares.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert 0 <= apart < 0.03


@pytest.mark.slow
def test_components_with_two_modes_are_split() -> None:
    """Of 2⁵ modes in ten latents, whose probabilities differ by a factor of 5⁵."""
    w = torch.randn(16_000, 10)
    w[:, ::2] = 0.25 * w[:, ::2] + torch.where(torch.rand(16_000, 5) < 5 / 6, 1.0, -1.0)
    mixture = Mixture(10)
    mixture.fit(w)
    with torch.no_grad():
        means, _, log_shares = mixture.components()
    modes = (means[:, ::2] > 0).long() @ 2 ** torch.arange(5)
    assert 25 <= mixture.number <= 40 and len(modes.unique()) >= 25
    exact = (means[:, ::2] > 0).sum(1) * math.log(5) - 5 * math.log(6)
    often = exact > math.log(0.05)
    shares = torch.zeros(32).index_add(0, modes, log_shares.exp())[modes]
    torch.testing.assert_close(shares[often].log(), exact[often], rtol=0, atol=0.2)


@pytest.mark.parametrize("dim", [1, 5])
def test_a_narrow_component_stands_beside_a_wide_one(dim: int) -> None:
    """By the divergence from a standard normal, and one of a hundredth of its scale."""
    means = torch.stack([torch.zeros(dim), 3 * torch.ones(dim)])
    scales = torch.tensor([[1.0], [0.01]]).expand(2, dim)
    parts = dist.Normal(means, scales).to_event(1)
    truth = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts)
    mixture = Mixture(dim)
    mixture.fit(truth.sample((4_000,)))
    x = truth.sample((10_000,))
    with torch.no_grad():
        assert (truth.log_prob(x) - mixture.log_density(x)).mean() < 0.05


def test_halves_have_the_moments_of_their_component() -> None:
    """Mean, covariance, and a third central moment of 0.9³, as the points are 0.9 as far apart."""
    w = (
        torch.randn(5_000, 3).double()
        @ torch.tensor([[1.0, 0.3, 0], [0, 1, 0], [0, 0.5, 1]]).double()
    )
    w[:, 0] += torch.where(torch.rand(5_000) < 0.2, -6.0, 1.0)
    one = next(_by_splits(w, 64))[0]
    means, roots, log_shares = _split(w, one, 64)
    assert len(means) == 2
    shares, covariances = log_shares.exp(), roots @ roots.mT
    apart = means - w.mean(0)
    torch.testing.assert_close(shares.sum(), torch.ones(()).double())
    torch.testing.assert_close(shares @ means, w.mean(0))
    outer = torch.einsum("k,ki,kj->ij", shares, apart, apart)
    total = outer + (shares[:, None, None] * covariances).sum(0)
    torch.testing.assert_close(total, w.T.cov(correction=0), rtol=1e-6, atol=1e-6)
    third = shares @ apart[:, 0] ** 3 + 3 * (shares * apart[:, 0] * covariances[:, 0, 0]).sum()
    exact = 0.9**3 * (w[:, 0] - w[:, 0].mean()).pow(3).mean()
    torch.testing.assert_close(third, exact)


def test_all_draws_count_in_many_latents() -> None:
    """The divergence of a Gaussian with n draws' moments is d (d + 3) / 4 n nats on average."""
    d, n = 50, 3_000
    root = torch.eye(d) + 0.1 * torch.randn(d, d).tril(-1)
    truth = dist.MultivariateNormal(torch.zeros(d), scale_tril=root)
    mixture = Mixture(d)
    mixture.fit(truth.sample((n,)))
    x = truth.sample((4_000,))
    with torch.no_grad():
        apart = float((truth.log_prob(x) - mixture.log_density(x)).mean())
    assert mixture.number == 1 and apart == pytest.approx(d * (d + 3) / 4 / n, rel=0.3)


def test_repeated_draws_are_no_components() -> None:
    """Draws that are there several times explain their copies, which says nothing."""
    w = torch.randn(200, 4)
    mixture = Mixture(4)
    mixture.fit(w.repeat(6, 1), torch.arange(200).repeat(6))
    assert mixture.number == 1
    mixture.fit(w.repeat(6, 1))
    assert mixture.number > 1


def test_draws_of_no_width_have_components() -> None:
    """Two points, and a latent that never moves."""
    w = torch.zeros(40, 2)
    w[::2, 0] = 1
    mixture = Mixture(2)
    mixture.fit(w)
    assert all(bool(tensor.isfinite().all()) for tensor in mixture.components())


@pytest.mark.slow
def test_shares_are_learned_where_particles_are_in_wrong_numbers() -> None:
    """Nine of ten draws are in the mode that has a quarter."""

    def program() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        logits = torch.tensor([math.log(3.0), 0.0])
        modes = dist.Normal(torch.tensor([-4.0, 4.0]), 1.0)
        log_p = (modes.log_prob(x[..., :1]) + logits).logsumexp(-1) - x[..., 1].square() / 2
        pyro.factor("modes", log_p - dist.Normal(0.0, 10.0).log_prob(x).sum(-1))

    x = torch.randn(4_000, 2)
    x[:, 0] += torch.where(torch.rand(4_000) < 0.9, 4.0, -4.0)
    guide = AutoMDM(program, start="particles", steps=2)
    guide.fit(draws={"x": x}, updates=0, start_updates=1_000, progress=False)
    right = (guide.sample_posterior(20_000)["x"][:, 0] > 0).double().mean()
    assert 0.25 < right < 0.7


def test_shares_stay_where_svi_trains() -> None:
    """It has no gradients of discrete draws, and ours are zero on average."""
    guide = AutoMDM(wells, start="particles", steps=2)
    guide.fit(updates=1, start_updates=1, particles=512, progress=False)
    before = guide.shape.components()[2].detach().clone()
    svi = SVI(wells, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(3):
        svi.step()
    torch.testing.assert_close(guide.shape.components()[2].detach(), before)


def wells() -> None:
    """Five double wells have 32 modes."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
    pyro.factor("wells", (_well(x) - dist.Normal(0.0, 1.0).log_prob(x)).sum())


def _well(x: Tensor) -> Tensor:
    return -(x**4) + 6 * x**2 + x / 2


def test_many_modes_need_no_chain() -> None:
    """Draws of all modes, and Z by quadrature."""
    grid = torch.linspace(-4, 4, 20_001).double()
    log_p = _well(grid)
    log_z = 5 * float(log_p.logsumexp(0) + math.log(8 / 20_000))
    drawn = torch.multinomial(log_p.softmax(0), 5 * 4_000, replacement=True)
    guide = AutoMDM(wells, start="particles", steps=2)
    guide.fit(
        draws={"x": grid[drawn].float().reshape(-1, 5)},
        updates=0,
        start_updates=200,
        progress=False,
    )
    log_weights = Weighing(guide).weighted(4_000)[1]
    w = (log_weights - log_z).exp()
    assert guide.shape.number >= 16 and abs(float(w.mean()) - 1) < 0.15
    assert 0 < log_z - float(log_weights.mean()) < 0.6


def test_a_mixture_is_saved_and_loaded() -> None:
    guide = AutoMDM(wells, start="particles", steps=2)
    guide.fit(updates=1, start_updates=1, particles=512, progress=False)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    pyro.clear_param_store()
    other = AutoMDM(wells, start="particles", steps=2)
    other.set_up()
    other.load_state_dict(torch.load(file))
    assert 1 < other.shape.number == guide.shape.number <= MOST
    draws = []
    for one in (guide, other):
        pyro.set_rng_seed(1)
        draws.append(Weighing(one).weighted(50))
    assert all(torch.equal(*pair) for pair in zip(*draws, strict=True))
