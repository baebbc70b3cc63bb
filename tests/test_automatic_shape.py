"""Starts of a shape: maps are exact, and weights are right, whatever the shape."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import spline_autoregressive
from torch import Tensor

from pyro_mdm import VPSDE, AutoMDM
from pyro_mdm.automatic.chain import Annealed, Reversed
from pyro_mdm.automatic.marginals import Marginals
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.automatic.shape import Shape

D = 4


def funnel(dim: int = D) -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(0.0, (v / 2).exp()).expand([dim - 1]).to_event(1))


def rough(dim: int = D) -> Shape:
    """A shape with parameters anywhere, float64."""
    shape = Shape(dim).double()
    with torch.no_grad():
        shape.log_tails.copy_((torch.rand(2, dim) / 5).double().log())
        shape.scales.copy_(torch.randn(dim, dim) / 4)
    return shape


def test_the_inverse_of_a_shape_is_exact() -> None:
    torch.manual_seed(0)
    shape, u = rough(), torch.randn(200, D).double()
    u[0] = 0.0
    assert torch.allclose(shape.inv(shape(u)), u, rtol=1e-9, atol=1e-9)


def test_a_shape_without_tails_has_an_inverse_too() -> None:
    shape = rough()
    with torch.no_grad():
        shape.log_tails.fill_(-math.inf)
    u = torch.randn(50, D).double()
    assert torch.allclose(shape.inv(shape(u)), u)


def test_the_jacobian_of_a_shape_is_that_of_autograd() -> None:
    torch.manual_seed(0)
    shape, u = rough(), torch.randn(20, D).double()
    exact = torch.stack([torch.autograd.functional.jacobian(shape, row).logdet() for row in u])
    assert torch.allclose(shape.log_abs_det_jacobian(u, shape(u)), exact)


def test_tails_fall_as_their_power() -> None:
    """P(|w| > t) has the slope -1/h in log t, for large t."""
    shape = Shape(1).double()
    with torch.no_grad():
        shape.log_tails.copy_(torch.tensor([[0.5], [0.25]]).double().log())
    for sign, h in ((-1.0, 0.5), (1.0, 0.25)):
        u = sign * torch.tensor([[20.0], [20.1]]).double()
        log_w = shape(u).detach().abs().log()[:, 0]
        log_p = torch.special.log_ndtr(-u.abs())[:, 0]
        slope = float((log_p[1] - log_p[0]) / (log_w[1] - log_w[0]))
        assert abs(slope + 1 / h) < 0.01 / h


def by_hand(guide: AutoMDM) -> None:
    """The shape and the Gaussian that are the funnel."""
    with torch.no_grad():
        guide.shape.log_tails.fill_(-math.inf)
        guide.shape.scales[1:, 0] = 1.5
        guide.loc.zero_()
    guide.scale = torch.tensor([3.0, *[1.0] * (D - 1)])
    guide.scale_tril = torch.eye(D)


def test_a_shape_is_exact_for_the_funnel() -> None:
    pyro.clear_param_store()
    guide = AutoMDM(funnel, start="shaped", steps=2)
    guide.set_up()
    by_hand(guide)
    guide.chain.rest()
    _, log_weights = guide.weighted(2_000)
    assert torch.allclose(log_weights, torch.zeros(2_000).double(), atol=1e-4)


def density(x: Tensor) -> Tensor:
    """The funnel's, with exp(1.3) for Z."""
    v = x[:, :1]
    return (
        dist.Normal(0.0, 3.0).log_prob(v)[:, 0]
        + dist.Normal(0.0, (v / 2).exp()).log_prob(x[:, 1:]).sum(1)
        + 1.3
    )


def nearly() -> Ratio:
    """Units near the funnel's, so that weights have a variance."""
    shape = Shape(D)
    with torch.no_grad():
        shape.log_tails.fill_(math.log(0.05))
        shape.scales[1:, 0] = 1.5
    root = torch.tensor([3.0, *[1.1] * (D - 1)]).diag()
    root[2, 1] = 0.2  # of two children, whose scales are the same
    return Ratio(density, torch.tensor([0.1, *[0.0] * (D - 1)]), root, shape)


@pytest.mark.parametrize("noised", [False, True])
def test_weights_mean_z_from_a_shape(noised: bool) -> None:
    """E_q[w] = Z, and E[1/w] = 1/Z of noising paths from exact draws."""
    torch.manual_seed(0)
    n, h = 40_000, nearly()
    chain = Annealed(D, VPSDE(), 4)
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        chain.power *= 0.1
        if noised:
            v = 3 * torch.randn(n, 1)
            x = torch.cat([v, (v / 2).exp() * torch.randn(n, D - 1)], 1)
            u = h.inverse(x)
            log_w = 1.3 - (density(x) - chain.noising_cost(h, u) - h.log_unit(u))
        else:
            path = chain.paths(h, n)
            log_w = density(h.place(path.u)) - path.cost - h.log_unit(path.u) - 1.3
    w = log_w.double().exp()
    assert abs(float(w.mean()) - 1) < 5 * float(w.std()) / math.sqrt(n)
    assert 0.05 < w.std() < 5, "neither constant nor wide"


def test_the_ratio_of_a_shape_is_one_density() -> None:
    """h and log_unit are of the same x: h - log N(u) = log γ(x) - log_unit(u)."""
    torch.manual_seed(0)
    h, u = nearly(), torch.randn(50, D)
    unit = Ratio(density, torch.zeros(D), torch.eye(D)).log_unit(u)
    with torch.no_grad():
        assert torch.allclose(
            h(u) + unit + D / 2 * math.log(2 * math.pi), h(u) - u.square().sum(1) / 2
        )
        assert torch.allclose(h.inverse(h.place(u)), u, atol=1e-4)


def made(start: object, **settings: object) -> AutoMDM:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return AutoMDM(funnel, start=start, steps=2, **settings)  # type: ignore[arg-type]


def test_a_fitted_shape_beats_the_gaussian_on_the_funnel() -> None:
    """The gap of the best Gaussian is over 1 nat in ten dimensions, 0.3 in four."""
    bounds = {}
    for start in ("gaussian", "shaped"):
        guide = made(start)
        guide.fit(updates=0, start_updates=1_500, progress=False)
        bounds[start] = guide.weighted(4_000)[1].mean()
    assert bounds["shaped"] > -0.1 > bounds["gaussian"] + 0.2


def modes(n: int) -> Tensor:
    """Draws of two narrow modes, and of a latent with a scale of its own, float64."""
    x = torch.randn(n, 2).double()
    x[:, 0] = torch.where(torch.rand(n) < 0.3, -3.0, 2.0) + 0.2 * x[:, 0]
    x[:, 1] = 5 + 0.01 * x[:, 1]
    return x


def fitted(n: int = 4_000) -> Marginals:
    torch.manual_seed(0)
    marginals = Marginals(2).double().requires_grad_(False)
    marginals.fit(modes(n))
    return marginals


def test_marginals_are_the_identity_at_first() -> None:
    z = 2 * torch.randn(100, 3).double()
    marginals = Marginals(3).double()
    log_det = marginals.log_abs_det_jacobian(z, marginals(z))
    assert torch.allclose(marginals(z), z, atol=1e-3) and bool((log_det.abs() < 1e-2).all())


def test_marginals_are_those_of_draws() -> None:
    """Draws of the map, and its inverse of new draws: quantiles within their errors."""
    marginals, n = fitted(), 20_000
    z = marginals.inv(modes(n))
    assert (z.mean(0).abs() < 0.1).all() and ((z.std(0) - 1).abs() < 0.1).all()
    x = marginals(torch.randn(n, 2).double())
    # the fit's draws have an error of 0.007, and Gaussian ones at most 0.008
    assert abs(float((x[:, 0] < 0).double().mean()) - 0.3) < 0.05
    assert abs(float(x[:, 1].mean()) - 5) < 0.002 and abs(float(x[:, 1].std()) - 0.01) < 0.002


def test_the_map_of_marginals_is_exact() -> None:
    marginals = fitted()
    z = torch.cat([torch.randn(200, 2), 5 + torch.rand(20, 2), -5 - torch.rand(20, 2)]).double()
    x = marginals(z)
    assert torch.allclose(marginals.inv(x), z, atol=1e-7)
    exact = torch.stack([torch.autograd.functional.jacobian(marginals, row).logdet() for row in z])
    assert torch.allclose(marginals.log_abs_det_jacobian(z, x), exact)


def test_weights_of_two_modes_mean_z_from_marginals() -> None:
    """The start has nearly equal weights on a product of modes, whose Z is known."""
    torch.manual_seed(1)
    marginals, n = fitted(), 20_000

    def log_density(x: Tensor) -> Tensor:
        left, right = dist.Normal(-3.0, 0.2), dist.Normal(2.0, 0.2)
        both = [left.log_prob(x[:, 0]) + math.log(0.3), right.log_prob(x[:, 0]) + math.log(0.7)]
        return torch.stack(both).logsumexp(0) + dist.Normal(5.0, 0.01).log_prob(x[:, 1]) + 1.3

    h = Ratio(log_density, torch.zeros(2).double(), torch.eye(2).double(), outer=marginals)
    chain = Reversed(2, VPSDE(), 8).double()
    with torch.no_grad():
        path = chain.paths(h, n)
        w = (log_density(h.place(path.u)) - path.cost - h.log_unit(path.u) - 1.3).exp()
    assert abs(float(w.mean()) - 1) < 5 * float(w.std()) / math.sqrt(n)
    assert 0.01 < w.std() < 0.5


def test_many_wells_need_no_denoiser() -> None:
    """Five double wells have 32 modes, of which marginals have all, and Z is by quadrature."""

    def log_density(x: Tensor) -> Tensor:
        return -(x**4) + 6 * x**2 + x / 2

    def program() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
        pyro.factor("wells", (log_density(x) - dist.Normal(0.0, 1.0).log_prob(x)).sum())

    grid = torch.linspace(-4, 4, 20_001).double()
    log_p = log_density(grid)
    log_z = 5 * float(log_p.logsumexp(0) + math.log(8 / 20_000))
    pyro.set_rng_seed(0)
    shares = log_p.softmax(0)
    exact = grid[torch.multinomial(shares, 5 * 2_000, replacement=True)].float().reshape(-1, 5)
    pyro.clear_param_store()
    guide = AutoMDM(program, start="particles", steps=4)
    guide.fit(draws={"x": exact}, updates=0, progress=False)
    weights = guide.importance(4_000)
    assert weights.effective > 2_000
    assert abs(weights.log_evidence.mean - log_z) < 5 * weights.log_evidence.standard_error


class Lazy(torch.nn.Module):
    """A module that makes its transform when it is called, as zuko's do."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shape = Shape(dim)

    def forward(self) -> Shape:
        return self.shape


def conjugate() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize("start", [spline_autoregressive, Lazy])
def test_a_start_is_any_function_that_makes_a_transform(start: Any) -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoMDM(conjugate, start=start, steps=2, init_scale=0.7)
    guide.fit(updates=2, start_updates=20, progress=False)
    assert "start" in guide.outcomes and any("shape" in name for name in guide.state_dict())
    u, ratio = torch.randn(10, 2), guide.ratio()
    placed, state, again = ratio.place(u), guide.state_dict(), guide.like_this(conjugate)
    slopes = [torch.autograd.functional.jacobian(lambda u: ratio.place(u[None])[0], v) for v in u]
    density = dist.Normal(0.0, 1.0).log_prob(u).sum(1) - torch.stack(slopes).det().abs().log()
    torch.testing.assert_close(ratio.log_unit(u), density, rtol=0, atol=1e-4)
    pyro.clear_param_store()
    again.set_up()
    again.load_state_dict(state)
    assert torch.equal(again.ratio().place(u), placed)


def test_another_start_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'flow', expected one of .* or a function"):
        AutoMDM(conjugate, start="flow")
