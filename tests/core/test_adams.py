"""Adams–Bashforth steps of the flow: orders, exact laws, derivatives, and rows of vmap."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_mdm import CLD, MDM, VPSDE, Denoiser, DiffusionModel, PerDimensionDiffusion, RawScore
from pyro_mdm.networks import MLP
from pyro_mdm.paths.adams import Divergences, walk
from pyro_mdm.paths.flow import Solver, flow_log_prob

MEANS = torch.tensor([1.0, -1.0]).double()
WEIGHTS = torch.tensor([0.6, 0.4]).double()


class Mixture(nn.Module):
    """F of the exact denoiser of a mixture of two Gaussians N(±1, V) in d dimensions.

    V has correlations, so the denoiser's Gaussian of independent dimensions is not exact.
    """

    def __init__(self, d: int, spread: float = 0.6) -> None:
        super().__init__()
        self.variance = spread * (0.7 * torch.eye(d).double() + 0.3)
        self.means = MEANS[:, None].expand(2, d)
        self.mean = WEIGHTS @ self.means
        between = WEIGHTS @ (self.means - self.mean).square()
        self.data_variance = self.variance.diagonal() + between

    @property
    def law(self) -> MixtureSameFamily:
        each = MultivariateNormal(self.means, self.variance)
        return MixtureSameFamily(Categorical(WEIGHTS), each)

    def forward(self, w: Tensor, log_snr: Tensor) -> Tensor:
        v, s2 = (-log_snr.double()).exp()[:, None], self.data_variance
        z = self.mean + w.double() * (s2 + v).sqrt()
        noised = self.variance + v[..., None] * torch.eye(len(s2)).double()  # (n, d, d)
        far = z.unsqueeze(1) - self.means  # (n, 2, d)
        solved = torch.linalg.solve(noised, far.mT).mT
        log_share = WEIGHTS.log() - 0.5 * (far * solved).sum(-1)
        share = log_share.softmax(1).unsqueeze(-1)
        x = (share * (self.means + solved @ self.variance)).sum(1)
        x_0 = self.mean + s2 / (s2 + v) * (z - self.mean)
        return ((x - x_0) / (s2 * v / (s2 + v)).sqrt()).to(w.dtype)


def exact(d: int, make: Any = VPSDE, **options: Any) -> tuple[MDM, MixtureSameFamily]:
    """A prior whose denoiser is exact, and its distribution."""
    network = Mixture(d)
    score = Denoiser(network, network.mean, network.data_variance)
    model = DiffusionModel(make(max_log_snr=9.0), score, event_shape=(d,)).eval().double()
    return MDM(model, **options), network.law


def wild(d: int, **options: Any) -> DiffusionModel:
    """A small network of random weights, frozen."""
    torch.manual_seed(0)
    network = MLP(2 * d if options.get("maps") else d, hidden=8, depth=1, out_features=d)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    ones = torch.ones(d, dtype=torch.float64)
    score = Denoiser(network.double(), 0.3 * ones, 2 * ones, **options)
    diffusion: Any = CLD(max_log_snr=6.0)
    if score.maps:
        diffusion = PerDimensionDiffusion([diffusion], torch.zeros(d, dtype=torch.int64))
    return DiffusionModel(diffusion, score, event_shape=(d,)).eval().requires_grad_(False)


@pytest.mark.parametrize("make", [VPSDE, CLD])
@pytest.mark.parametrize("d", [2, 10])
def test_values_and_gradients_are_those_of_the_law(d: int, make: Any) -> None:
    """Of a mixture, by default; errors of steps are up to 0.02 nats, and draws add less."""
    prior, law = exact(d, make)
    torch.manual_seed(0)
    x = law.sample((20,)).requires_grad_()
    found, truth = prior.log_prob(x), law.log_prob(x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    (wanted,) = torch.autograd.grad(truth.sum(), x)
    assert float((found - truth).detach().abs().max()) < 0.04
    assert float((gradient - wanted).abs().max()) < 0.04 * max(1.0, float(wanted.abs().max()))


class Linear:
    """dw/du = A(u) w with A(u) = cos(3u) B + u C, whose flow a fine solver gives."""

    has_jacobian = True

    def __init__(self, steps: int) -> None:
        torch.manual_seed(0)
        self.B, self.C = torch.randn(2, 3, 3, dtype=torch.float64) / 2
        self.u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        self.factor = torch.ones((), dtype=torch.float64)

    def matrix(self, u: Tensor) -> Tensor:
        return self.factor * ((3 * u).cos()[..., None, None] * self.B + u[..., None, None] * self.C)

    def velocity(self, node: int, w: Tensor) -> Tensor:
        return (self.matrix(self.u[node]) @ w.unsqueeze(-1)).squeeze(-1) + 0.1 * w.square()

    def divergences(self, w: Tensor, *, slopes: bool) -> Divergences:
        A = self.matrix(self.u).unsqueeze(1)
        J = A + 0.2 * torch.diag_embed(w)
        trace = J.diagonal(dim1=-2, dim2=-1).sum(-1)
        if not slopes:
            return Divergences(trace)
        return Divergences(trace, J, torch.full_like(w, 0.2))


def test_errors_fall_with_the_steps() -> None:
    """By 2³ for half a step, the order of the start."""
    w = torch.tensor([[0.5, -1.0, 0.3], [0.1, 0.2, -0.7]], dtype=torch.float64)
    truth = torch.cat([t.flatten() for t in walk(Linear(2000), w, 2000)])
    errors = [
        float((torch.cat([t.flatten() for t in walk(Linear(n), w, n)]) - truth).abs().max())
        for n in (20, 40, 80)
    ]
    assert errors[0] / errors[2] > 4**2.5  # by 4³ for few large steps of any field, 4² by order 2
    assert errors[0] < 1e-2


@pytest.mark.parametrize("steps", [3, 4, 5, 12])
def test_derivatives_are_those_of_the_recorded_steps(steps: int) -> None:
    """At few steps too, where nodes of the start and of the ends of the quadrature meet."""
    w = torch.tensor([[0.5, -1.0, 0.3], [0.1, 0.2, -0.7]], dtype=torch.float64).requires_grad_()
    field, recorded = Linear(steps), Linear(steps)
    recorded.factor.requires_grad_()  # so all steps are recorded
    weight = torch.arange(1.0, 7.0, dtype=torch.float64).view(2, 3)

    def loss(field: Linear) -> Tensor:
        end, gained = walk(field, w, steps)
        return (weight * end).sum() + (end * end).sum() + 2 * gained[0] - gained[1]

    (fast,), (slow,) = (torch.autograd.grad(loss(f), w) for f in (field, recorded))
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    # gradgradcheck asks a gradient that has a graph for its own derivatives alone
    (again,) = torch.autograd.grad(loss(field), w, create_graph=True)
    torch.testing.assert_close(again.detach(), slow, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda w: walk(field, w, steps), w)
    assert torch.autograd.gradgradcheck(lambda w: walk(field, w, steps), w)


@pytest.mark.parametrize("kind", ["plain", "own x_hat", "maps"])
def test_gradients_are_those_of_the_values(kind: str) -> None:
    """By finite differences, of first and second order, and of the same density as other steps."""
    model = wild(2, maps=kind == "maps")
    if kind == "own x_hat":

        class Own(Denoiser):
            def x_hat(self, z: Tensor, log_snr: Any) -> Tensor:
                return super().x_hat(z, log_snr) * 1.0

        one: Any = model.score_function
        model.score_function = Own(one.network, one.data_mean, one.data_variance)
    prior = MDM(model, solver=Solver("adams", steps=24))
    x = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(prior.log_prob, x)
    assert torch.autograd.gradgradcheck(prior.log_prob, x[:1])
    fine = MDM(model, solver=Solver("rk4", steps=24)).log_prob(x)
    torch.testing.assert_close(prior.log_prob(x), fine, rtol=0, atol=0.01)
    with torch.no_grad():
        torch.testing.assert_close(prior.log_prob(x), prior.log_prob(x.clone()))


def test_pieces_and_probes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = MDM(wild(3), solver=Solver("adams", steps=8))
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    whole = prior.log_prob(x)
    (of_whole,) = torch.autograd.grad(whole.sum(), x)
    monkeypatch.setattr("pyro_mdm.paths.flow.AT_ONCE", 150)  # two nodes at a time
    torch.testing.assert_close(prior.log_prob(x), whole, rtol=1e-10, atol=1e-10)
    (of_pieces,) = torch.autograd.grad(prior.log_prob(x).sum(), x)
    torch.testing.assert_close(of_pieces, of_whole, rtol=1e-10, atol=1e-10)
    monkeypatch.undo()
    probes = MDM(wild(3), solver=Solver("adams", steps=8, probes=64)).log_prob(x)
    assert 0 < float((probes - whole).detach().abs().max()) < 0.5
    (by_probes,) = torch.autograd.grad(probes.sum(), x)
    assert float((by_probes - of_whole).abs().max()) < 0.5


def test_rows_of_vmap_are_those_of_a_loop() -> None:
    prior, law = exact(2, solver=Solver("adams", steps=20))
    torch.manual_seed(0)
    x = law.sample((5,)).requires_grad_()
    loop, rows = torch.stack([prior.log_prob(row) for row in x]), torch.vmap(prior.log_prob)(x)
    # a network without parameters is called in float32
    torch.testing.assert_close(rows, loop, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(value.sum(), x)[0] for value in (loop, rows)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_inference_mode_and_constant_networks_change_nothing() -> None:
    prior = MDM(wild(2), solver=Solver("adams", steps=12))
    x = torch.tensor([[0.5, -0.2]], dtype=torch.float64)
    with torch.inference_mode():
        inside = prior.log_prob(x)
    torch.testing.assert_close(inside.clone(), prior.log_prob(x))
    model = prior.model
    y = x[:, None] * torch.ones(2, 1, dtype=torch.float64)  # data and velocities
    for method in ("adams", "rk4"):

        def density(y: Tensor, solver: Solver) -> Tensor:
            return flow_log_prob(model.diffusion, model.score_function, y, solver).log_prob

        solver = Solver(method, steps=12)
        with torch.inference_mode():  # of states from outside, and of those made inside
            inside = torch.stack([density(y, solver), density(y.clone(), solver)])
        torch.testing.assert_close(inside.clone(), density(y, solver).expand(2, -1))
    assert torch.autograd.gradcheck(prior.log_prob, x.clone().requires_grad_())

    class Nothing(nn.Module):
        def forward(self, w: Tensor, log_snr: Tensor) -> Tensor:
            return torch.zeros_like(w)

    model = DiffusionModel(VPSDE(), Denoiser(Nothing(), torch.zeros(2), torch.ones(2)))
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    found = MDM(model.eval().double(), solver=Solver("adams", steps=4)).log_prob(x)
    torch.testing.assert_close(found, normal, rtol=0, atol=1e-3)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="steps is 2, expected at least 3"):
        Solver("adams", steps=2)
    score = RawScore(MLP(2))
    y = torch.zeros(1, 1, 2)
    with pytest.raises(ValueError, match="of the flow of a denoiser, and the score is RawScore"):
        flow_log_prob(VPSDE(), score, y, Solver("adams"))
    broken = wild(2)
    broken.score_function.network.inlet.bias.data.fill_(math.inf)
    with pytest.raises(ValueError):
        MDM(broken, solver=Solver("adams", steps=4)).log_prob(torch.zeros(2, dtype=torch.float64))
