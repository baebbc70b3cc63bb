"""A trained model as a distribution of somebody else's program."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal

from pyro_mdm import (
    CLD,
    MDM,
    VPSDE,
    Denoiser,
    DiffusionModel,
    DiscreteDenoiser,
    LearnedDiffusion,
    PerDimensionDiffusion,
    RawScore,
)
from pyro_mdm.networks import MLP
from pyro_mdm.paths.flow import Solver
from pyro_mdm.samplers import ExponentialIntegrator
from tests.benchmarks.flow_steps import model_of
from tests.gradients import assert_gradients
from tests.known_bound import DIMS, MEAN, VARIANCE, data, denoiser, programs
from tests.mistakes import refused

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


def program(prior: MDM) -> None:
    """x from the model, observed through noise."""
    x = pyro.sample("x", prior)
    pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=torch.zeros(DIMS).double())


DRAWN = {"seed": 0, "draws": 2}


@pytest.mark.parametrize("method", ["flow", "elbo", "importance"])
def test_it_is_one_function_of_the_datum(method) -> None:
    """At every call, wherever the datum stands in a batch, and in either mode of the model."""
    options = {"solver": Solver("rk4", steps=4, probes=1)} if method == "flow" else DRAWN
    law, x = exact(method=method, **options), data(5)
    found = law.log_prob(x)
    assert torch.equal(found, law.log_prob(x))
    torch.testing.assert_close(law.log_prob(x.flip(0)[:2]), found.flip(0)[:2], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(law.log_prob(x[3]), found[3], rtol=1e-9, atol=1e-9)
    law.model.train()
    assert torch.equal(found, law.log_prob(x)) and law.model.training
    assert not torch.equal(found, exact(method=method, **options | {"seed": 1}).log_prob(x))


def test_other_draws_hardly_change_a_value() -> None:
    """Of a network in 30 dimensions: 0.1 nats is the promise."""
    torch.manual_seed(0)
    network = with_weights(MLP(30, hidden=32, depth=1), 0.15).float()
    x = torch.randn(6, 30)
    model = DiffusionModel(CLD(max_log_snr=9.0), Denoiser.fit(network, x)).eval()
    model.requires_grad_(False)
    assert MDM(model).method == "flow"
    values = torch.stack([MDM(model, seed=seed).log_prob(x) for seed in range(4)])
    assert float(values.std(0).mean()) < 0.1  # 0.03 of a network this wild, 0.0005 of trained ones
    fine = MDM(model, solver=Solver("rk4", steps=24)).log_prob(x)
    assert float((values[0] - fine).abs().max()) < 0.1
    assert float((fine - 0.5 * x.square().sum(-1)).std()) > 0.2, "the network says something"


def by_dimension(max_log_snr: float) -> PerDimensionDiffusion:
    return PerDimensionDiffusion([CLD(min_log_snr=-8.0)], torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("make", [VPSDE, CLD, by_dimension])
def test_the_density_of_a_flow_is_normalized(make) -> None:
    """Whatever the network says: a sign, a ½ or a determinant that is wrong would show."""
    maps = make not in (VPSDE, CLD)
    network = MLP(2 if maps else 1, hidden=16, depth=1, out_features=1)
    for k, p in enumerate(network.parameters()):  # not of a seed: some are too wild for 24 steps
        p.data = 0.4 * torch.sin(k + torch.arange(p.numel())).view_as(p)
    mean, variance = torch.full((1,), 0.7), torch.full((1,), 2.0)
    score = Denoiser(network, mean.double(), variance.double(), maps=maps)
    model = DiffusionModel(make(max_log_snr=8.0), score, event_shape=(1,)).eval()
    law = MDM(model.requires_grad_(False), method="flow", solver=Solver("rk4", steps=24))
    x = torch.linspace(-14.0, 14.0, 401, dtype=torch.float64)[:, None]
    density = law.log_prob(x).exp()
    assert float(torch.trapezoid(density, x[:, 0])) == pytest.approx(1.0, abs=3e-3)
    by_default = MDM(model).log_prob(x).exp()
    assert float(torch.trapezoid(by_default, x[:, 0])) == pytest.approx(1.0, abs=0.01)
    fitted = torch.distributions.Normal(0.7, math.sqrt(2.0)).log_prob(x).exp()[:, 0]
    assert float(torch.trapezoid((density - fitted).abs(), x[:, 0])) > 0.1


def few_levels() -> DiffusionModel:
    x = torch.randint(3, (30, 1)) - 1.0
    score = DiscreteDenoiser.fit(MLP(1, out_features=3), x, levels=3)
    return DiffusionModel(VPSDE(max_log_snr=5.0), score).eval().requires_grad_(False)


def test_levels_are_discrete() -> None:
    law = MDM(few_levels())
    assert law.support.is_discrete and law.method == "elbo"
    assert law.support.check(torch.tensor([[-1.0], [0.5], [math.nan]])).tolist() == [1, 0, 0]

    def latent() -> None:
        pyro.sample("x", law)

    with pytest.raises(NotImplementedError, match=r"x takes 3 levels.*Observe x"):
        torch.distributions.biject_to(law.support)
    with pytest.raises(ValueError, match="cannot handle discrete sample site 'x'"):
        MCMC(NUTS(latent), num_samples=2, warmup_steps=1, disable_progbar=True).run()
    with pytest.raises(ValueError, match="cannot handle discrete sample site 'x'"):
        AutoNormal(latent)()


def test_hmc_is_refused_where_there_is_no_function_to_walk_on() -> None:
    of_raw_score = exact()
    of_raw_score.model.score_function = RawScore(MLP(2 * DIMS)).double()
    for prior in (exact(method="elbo"), of_raw_score):
        with pytest.raises(ValueError, match="by 'elbo' here, with other noise at every call"):
            MCMC(NUTS(program), num_samples=2, warmup_steps=1, disable_progbar=True).run(prior)
        assert not torch.equal(prior.log_prob(data(2)), prior.log_prob(data(2)))


def test_mistakes() -> None:
    model, _ = programs(VPSDE(max_log_snr=8.0), denoiser())
    chain = DiffusionModel(model.diffusion, denoiser(), event_shape=(DIMS,), times=5)
    wide = torch.zeros(2, DIMS + 1, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"model is .*, expected a DiffusionModel"):
        MDM(model.diffusion)
    refused(
        ValueError,
        (lambda: MDM(model).log_prob(wide), ""),
        (lambda: MDM(chain), "a chain on a grid"),
        (lambda: Solver(rtol=1e-16), "rtol is 1e-16, finer than float64 can hold"),
        (lambda: Solver("heun"), "method is 'heun', expected one of dopri5"),
        (lambda: exact(method="elbo", solver=BRIEF), "of method 'flow', and method is 'elbo'"),
        (lambda: exact(times=9), "add method='importance'"),
    )
    assert exact(solver=BRIEF).method == "flow"


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

    assert_gradients(loss, [next(network.parameters())], rel=1e-4)
    torch.manual_seed(1)
    assert law.rsample((6,)).shape == (6, 2) and not law.sample((2,)).requires_grad


def test_levels_have_no_derivatives() -> None:
    law = MDM(few_levels())
    assert not law.has_rsample
    with pytest.raises(NotImplementedError, match="have no derivative; use sample"):
        law.rsample()
    own = exact()
    own.model.sampler = lambda diffusion, score, shape: torch.zeros(shape)
    assert not own.has_rsample


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["denoiser", "raw score", "maps"])
def test_a_density_has_derivatives_by_the_diffusion(kind) -> None:
    """By finite differences in D and learned ends, at the same draws."""
    torch.manual_seed(0)
    ends = {} if kind == "raw score" else {"learn_ends": 1.0}
    one = LearnedDiffusion(2, max_log_snr=4.0, min_log_snr=-6.0, **ends).double()
    diffusion = one
    if kind == "maps":
        diffusion = PerDimensionDiffusion([one], torch.zeros(2, dtype=torch.int64))
    if kind == "raw score":
        score = RawScore(with_weights(MLP(4, hidden=8, depth=1), 0.1))
    else:
        maps = kind == "maps"
        network = with_weights(MLP(4 if maps else 2, hidden=8, depth=1, out_features=2), 0.3)
        ones = torch.ones(2, dtype=torch.float64)
        score = Denoiser(network, 0.3 * ones, 2 * ones, maps=maps)
    model = DiffusionModel(diffusion, score, event_shape=(2,)).eval()
    law = MDM(model, method="flow", solver=Solver("rk4", steps=4))
    x = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    names = {"raw score": ["B"], "denoiser": ["B", "moved_ends"], "maps": ["moved_ends"]}[kind]
    parameters = [one.get_parameter(name) for name in names]
    assert_gradients(lambda: law.log_prob(x).sum(), parameters, h=1e-4, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_a_value_that_more_steps_change_is_warned_of(monkeypatch) -> None:
    """How many steps narrow modes take is in test_flow_mass.py."""
    monkeypatch.setattr("pyro_mdm.distribution.AGREE", 1e-12)
    with pytest.warns(UserWarning, match="320 steps of the flow differs by .* from that by 640"):
        MDM(model_of("two", 9.0)).log_prob(torch.zeros(2, 1, dtype=torch.float64))
