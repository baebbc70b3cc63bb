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
from pyro_mdm.automatic.chain import Chain
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.automatic.shape import Shape
from pyro_mdm.automatic.weighing import Weighing

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
    shape, u = rough(), torch.randn(200, D).double()
    u[0] = 0.0
    assert torch.allclose(shape.inv(shape(u)), u, rtol=1e-9, atol=1e-9)


def test_the_jacobian_of_a_shape_is_that_of_autograd() -> None:
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
    guide = AutoMDM(funnel, start="shaped", steps=2)
    guide.set_up()
    by_hand(guide)
    guide.chain.rest()
    _, log_weights = Weighing(guide).weighted(2_000)
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
    n, h = 40_000, nearly()
    chain = Chain(D, VPSDE(), 4)
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        chain.power *= 0.1
        if noised:
            v = 3 * torch.randn(n, 1)
            x = torch.cat([v, (v / 2).exp() * torch.randn(n, D - 1)], 1)
            _, u = h.ending_at(x)
            log_w = 1.3 - (density(x) - chain.noising_cost(h, u) - h.log_unit(u))
        else:
            path = chain.paths(h, n)
            log_w = density(h.place(path.u)) - path.cost - h.log_unit(path.u) - 1.3
    w = log_w.double().exp()
    assert abs(float(w.mean()) - 1) < 5 * float(w.std()) / math.sqrt(n)
    assert 0.05 < w.std() < 5, "neither constant nor wide"


def test_the_ratio_of_a_shape_is_one_density() -> None:
    """h = γ / N(0, I) in the coordinates u, up to the volume of the Gaussian."""
    h, u = nearly(), torch.randn(50, D)
    constant = h.scale_tril.diagonal().log().sum() + D / 2 * math.log(2 * math.pi)
    with torch.no_grad():
        expected = density(h.place(u)) - h.log_unit(u)
        assert torch.allclose(h(u) + constant, expected, atol=1e-4)
        assert torch.allclose(h.ending_at(h.place(u))[1], u, atol=1e-4)


def made(start: object, **settings: object) -> AutoMDM:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return AutoMDM(funnel, start=start, steps=2, **settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_fitted_shape_beats_the_gaussian_on_the_funnel() -> None:
    """The gap of the best Gaussian is over 1 nat in ten dimensions, 0.3 in four."""
    bounds = {}
    for start in ("gaussian", "shaped"):
        guide = made(start)
        guide.fit(updates=0, start_updates=1_500, progress=False)
        bounds[start] = Weighing(guide).weighted(4_000)[1].mean()
    assert bounds["shaped"] > -0.1 > bounds["gaussian"] + 0.2


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
