"""A trained model as a distribution of somebody else's program."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_mdm import (
    CLD,
    MDM,
    VPSDE,
    Denoiser,
    DiffusionModel,
    DiscreteDenoiser,
    elbo_terms,
)
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.networks import MLP
from pyro_mdm.paths.flow import Solver, flow_log_prob
from pyro_mdm.samplers import ExponentialIntegrator
from tests.test_elbo import DIMS, MEAN, VARIANCE, data, denoiser, programs

BRIEF = Solver("rk4", steps=4)


def exact(make=CLD, **options) -> MDM:
    """Of Gaussian data with their exact score."""
    model, _ = programs(make(max_log_snr=8.0), denoiser())
    return MDM(model.eval().requires_grad_(False), **options)


def with_weights(network: torch.nn.Module, std: float = 0.3) -> torch.nn.Module:
    """Of random weights, the last layer's too."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return network.double()


def true_log_prob(x):
    return torch.distributions.Normal(MEAN, math.sqrt(VARIANCE)).log_prob(x).sum(-1)


@pytest.mark.parametrize("make", [VPSDE, CLD])
def test_flow_is_the_density_and_its_gradient(make) -> None:
    law = exact(make, method="flow", solver=Solver("rk4", steps=40))
    x = data(4).requires_grad_()
    found, truth = law.log_prob(x), true_log_prob(x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    (wanted,) = torch.autograd.grad(truth.sum(), x)
    # but for the prior's mismatch at T, e^{-10} of the variance
    torch.testing.assert_close(found, truth, atol=0.02, rtol=0)
    torch.testing.assert_close(gradient, wanted, atol=0.02, rtol=0.02)


def test_elbo_is_that_of_the_programs_and_differentiable_in_x() -> None:
    law = exact(method="elbo", seed=3, draws=500)
    x = data(4).requires_grad_()
    found = law.log_prob(x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    (wanted,) = torch.autograd.grad(true_log_prob(x).sum(), x)
    assert torch.equal(found, law.log_prob(x)), "fixed draws make it a function"
    fresh = exact(method="elbo", seed=None)
    assert not torch.equal(fresh.log_prob(x), fresh.log_prob(x))
    guide = DiffusionGuide(law.model.diffusion)
    torch.manual_seed(0)
    terms = torch.stack([elbo_terms(law.model, guide, x.detach()).elbo for _ in range(500)])
    error = terms.std(0) / math.sqrt(len(terms))
    assert bool(((found - terms.mean(0)).abs() < 8 * error).all())
    torch.testing.assert_close(gradient, wanted, atol=0.4, rtol=0.1)


def test_shapes_are_those_of_a_distribution() -> None:
    law = exact(method="flow", solver=BRIEF).expand((2, 1))
    assert law.batch_shape == (2, 1) and law.event_shape == (DIMS,)
    x = law.sample((5,))
    assert x.shape == (5, 2, 1, DIMS) and law.log_prob(x).shape == (5, 2, 1)
    assert law.log_prob(x.float()).dtype == torch.float32
    assert exact().expand((7,)).sample().shape == (7, DIMS)


def test_samples_are_those_of_the_model() -> None:
    torch.manual_seed(0)
    law = exact()
    law.model.sampler = ExponentialIntegrator(20)
    x = law.sample((4000,))
    error = math.sqrt(VARIANCE / 4000 / DIMS)
    assert abs(float(x.mean()) - MEAN) < 6 * error + 0.02
    assert float(x.var()) == pytest.approx(VARIANCE, rel=0.1)


def test_it_is_the_prior_of_a_program_whose_posterior_is_known() -> None:
    """x from the model, observed through noise: SVI finds the Gaussian posterior."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    prior, noise = exact(draws=2), 0.5
    observed = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)

    def program() -> None:
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x, noise).to_event(1), obs=observed)

    guide = AutoNormal(program, init_loc_fn=lambda site: torch.zeros(DIMS, dtype=torch.float64))
    steps = 200
    optim = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.1 ** (1 / steps)})
    svi = SVI(program, guide, optim, loss=Trace_ELBO(num_particles=2))
    for _ in range(steps):
        svi.step()
    precision = 1 / VARIANCE + 1 / noise**2
    mean = (MEAN / VARIANCE + observed / noise**2) / precision
    torch.testing.assert_close(guide.median()["x"], mean, atol=0.12, rtol=0)
    lower, upper = guide.quantiles([0.159, 0.841])["x"]
    spread = (upper - lower) / 2
    torch.testing.assert_close(spread, torch.full_like(spread, precision**-0.5), atol=0.08, rtol=0)


def test_probes_are_drawn_anew_unless_a_seed_fixes_them() -> None:
    torch.manual_seed(0)
    solver, x = Solver("rk4", steps=4, probes=1), data(3)
    network = with_weights(MLP(DIMS), 0.1)
    score = Denoiser(network, torch.zeros(DIMS).double(), torch.ones(DIMS).double())
    model = DiffusionModel(CLD(max_log_snr=6.0), score, event_shape=(DIMS,))
    path = DiffusionGuide(model.diffusion).law(x).rsample()[:, 0]
    one, other = (
        flow_log_prob(model.diffusion, score, path, solver).log_prob.detach() for _ in range(2)
    )
    assert not torch.equal(one, other)
    fixed = MDM(model, method="flow", solver=solver, seed=1)
    assert torch.equal(fixed.log_prob(x), fixed.log_prob(x))


def test_mistakes() -> None:
    model, _ = programs(VPSDE(max_log_snr=8.0), denoiser())
    with pytest.raises(ValueError, match="method is 'ode', expected one of elbo, imp"):
        MDM(model, method="ode")
    with pytest.raises(TypeError, match=r"model is .*, expected a DiffusionModel"):
        MDM(model.diffusion)
    with pytest.raises(ValueError):
        MDM(model).log_prob(torch.zeros(2, DIMS + 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="draws is 0"):
        MDM(model, draws=0)
    chain = DiffusionModel(model.diffusion, denoiser(), event_shape=(DIMS,), times=5)
    with pytest.raises(ValueError, match="a chain on a grid"):
        MDM(chain)
    with pytest.raises(ValueError, match="rtol is 1e-16, finer than float64 can hold"):
        Solver(rtol=1e-16)
    with pytest.raises(ValueError, match="method is 'heun', expected one of dopri5"):
        Solver("heun")


def test_samples_have_derivatives_by_the_parameters() -> None:
    """Of every weight of a network, by finite differences at the same noise."""
    torch.manual_seed(0)
    network = with_weights(MLP(2, hidden=8, depth=1))
    score = Denoiser(network, torch.zeros(2).double(), torch.ones(2).double())
    law = MDM(DiffusionModel(CLD(max_log_snr=5.0), score, event_shape=(2,)))
    law.model.sampler = ExponentialIntegrator(4)
    assert law.has_rsample

    def loss() -> torch.Tensor:
        torch.manual_seed(1)
        return law.rsample((6,)).square().sum()

    weight = next(network.parameters())
    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn_like(weight)
    with torch.no_grad():
        values = []
        for step in (1e-5, -1e-5):
            weight.add_(step * direction)
            values.append(float(loss()))
            weight.sub_(step * direction)
    slope = (values[0] - values[1]) / 2e-5
    assert abs(slope) > 1e-3
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)
    torch.manual_seed(1)
    assert law.rsample((6,)).shape == (6, 2) and not law.sample((2,)).requires_grad


def test_levels_have_no_derivatives() -> None:
    x = torch.randint(3, (30, 1)) - 1.0
    score = DiscreteDenoiser.fit(MLP(1, out_features=3), x, levels=3)
    law = MDM(DiffusionModel(VPSDE(max_log_snr=5.0), score))
    assert not law.has_rsample
    with pytest.raises(NotImplementedError, match="draw what has no derivative; use sample"):
        law.rsample()
    own = exact()
    own.model.sampler = lambda diffusion, score, shape: torch.zeros(shape)
    assert not own.has_rsample


def test_importance_weights_are_a_tighter_bound_of_their_chain() -> None:
    torch.manual_seed(0)
    law, x = exact(method="importance", times=17, draws=16), data(6)
    single = exact(method="importance", times=17)
    one = single.log_prob(x.repeat(64, 1)).reshape(64, -1)
    many = law.log_prob(x.repeat(4, 1)).reshape(4, -1)
    error = float(one.mean(1).std()) / 8
    assert float(many.mean()) > float(one.mean()) + 4 * error
    chain, _ = programs(CLD(max_log_snr=8.0), denoiser(), times=17)
    assert MDM(chain, method="importance").log_prob(x).shape == (6,)
