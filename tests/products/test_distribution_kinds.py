"""``MDM`` of every kind of model, and what Pyro does with a distribution.

A new kind joins by a line in :data:`KINDS`: samples and densities have the shapes of a
distribution, in plates and without, SVI and ``Predictive`` take it, and NUTS does or is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from torch import nn

from pyro_mdm import (
    CLD,
    MDM,
    VPSDE,
    DataDrivenDiffusion,
    Denoiser,
    DiffusionModel,
    DiscreteDenoiser,
    EncodedDiffusion,
    LearnedDiffusion,
    MixedDenoiser,
    NoisePrediction,
    OneHot,
    PerDimensionDiffusion,
    RawScore,
    Simulated,
    Simulation,
    StateDenoiser,
    TimeVaryingDiffusion,
    condition,
)
from pyro_mdm.by_dimension import Frequencies, LearnedClocks
from pyro_mdm.conditioning import Labels
from pyro_mdm.measurements import condition_on_measurements
from pyro_mdm.networks import MLP
from pyro_mdm.paths.flow import Solver
from pyro_mdm.samplers import EulerMaruyama, ExponentialIntegrator
from pyro_mdm.seeing import ContextClocks, ContextDiffusion, DiscreteContext, GaussianContext
from tests.problems import LinearEncoder, normal
from tests.varying.problems import rubbing, turning

ENDS: dict[str, Any] = {"max_log_snr": 4.0, "min_log_snr": -6.0}
WHERE = torch.tensor([1, 0])
FEW = EulerMaruyama(8)
COLUMNS: list[Any] = [None, 3, OneHot(3)]


def data() -> torch.Tensor:
    return normal(0, 20, 2).float()


def network(width: int, outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return MLP(width, hidden=8, depth=1, out_features=outputs)


def denoiser(width: int = 2, **options: Any) -> Denoiser:
    return Denoiser.fit(network(width), data(), **options)


def blocks(**options: Any) -> PerDimensionDiffusion:
    return PerDimensionDiffusion([CLD(**ENDS), CLD(friction=1.0, **ENDS)], WHERE, **options)


def in_context(context: Any) -> DiffusionModel:
    diffusion = ContextDiffusion(VPSDE(**ENDS), context, ContextClocks(2, 2), WHERE)
    return DiffusionModel(diffusion, denoiser(6, maps=True))


def levels() -> DiffusionModel:
    x = torch.randint(3, (30, 2), generator=torch.Generator().manual_seed(0)) - 1.0
    return DiffusionModel(VPSDE(**ENDS), DiscreteDenoiser.fit(network(2, 6), x, levels=3))


def columns(maps: bool) -> DiffusionModel:
    """A number, three levels that have an order, and three categories."""
    chosen = torch.arange(30) % 3
    x = torch.cat([normal(1, 30, 1), chosen[:, None] - 1.0, torch.eye(3)[chosen]], 1).float()
    outputs = MixedDenoiser.num_outputs(COLUMNS)
    score = MixedDenoiser.fit(network(10 if maps else 5, outputs), x, COLUMNS, maps=maps)
    return DiffusionModel(CLD(**ENDS), score)


def conditioned() -> DiffusionModel:
    model = DiffusionModel(CLD(**ENDS), denoiser(4, maps=True))
    return condition(model, torch.tensor([True, False]), torch.tensor([0.3, 0.0]))


def measured() -> DiffusionModel:
    model = DiffusionModel(CLD(**ENDS), denoiser(), sampler=ExponentialIntegrator(2))
    return condition_on_measurements(model, torch.eye(2)[:1], torch.tensor([0.5]), 0.1)


def simulated() -> DiffusionModel:
    diffusion = Simulated(VPSDE(max_log_snr=2.0), Simulation(step_size=0.1))
    score = RawScore(network(2))
    return DiffusionModel(diffusion, score, event_shape=(2,), sampler=FEW)


KINDS: dict[str, Callable[[], DiffusionModel]] = {
    "vpsde": lambda: DiffusionModel(VPSDE(**ENDS), denoiser()),
    "learned": lambda: DiffusionModel(LearnedDiffusion(3, **ENDS), denoiser()),
    "time-varying": lambda: DiffusionModel(
        TimeVaryingDiffusion(turning, rubbing, **ENDS), denoiser()
    ),
    "blocks": lambda: DiffusionModel(blocks(), denoiser(4, maps=True)),
    "clocks": lambda: DiffusionModel(
        PerDimensionDiffusion(VPSDE(**ENDS), None, LearnedClocks(2), WHERE), denoiser(4, maps=True)
    ),
    "frequencies": lambda: DiffusionModel(blocks(transform=Frequencies(1)), denoiser(4, maps=True)),
    "encoded": lambda: DiffusionModel(
        EncodedDiffusion(CLD(**ENDS), LinearEncoder(1).float()),
        StateDenoiser(Denoiser(network(4, 4), torch.zeros(2), torch.ones(2))),
        event_shape=(2,),
    ),
    "gaussian context": lambda: in_context(GaussianContext(nn.Linear(2, 4), 2)),
    "discrete context": lambda: in_context(DiscreteContext(nn.Linear(2, 2), 2)),
    "driven": lambda: DiffusionModel(
        DataDrivenDiffusion(VPSDE(**ENDS), network(2, DataDrivenDiffusion.outputs() * 2)),
        denoiser(),
    ),
    "simulated": simulated,
    "raw score": lambda: DiffusionModel(
        VPSDE(**ENDS), RawScore(network(2)), None, (2,), sampler=FEW
    ),
    "noise": lambda: DiffusionModel(
        VPSDE(**ENDS), NoisePrediction(network(2)), None, (2,), sampler=FEW
    ),
    "levels": levels,
    "columns": lambda: columns(maps=False),
    "columns, maps": lambda: columns(maps=True),
    "labels": lambda: DiffusionModel(VPSDE(**ENDS), denoiser(5), context=Labels(3)),
    "conditioned": conditioned,
    "measured": measured,
    "chain": lambda: DiffusionModel(VPSDE(**ENDS), denoiser(), times=4),
}
BOUNDED = {
    *("encoded", "gaussian context", "discrete context", "driven", "simulated", "raw score"),
    *("noise", "levels", "columns", "columns, maps", "conditioned", "chain"),
}
"""Kinds whose ``log_prob`` is no density by default."""
every_kind = pytest.mark.parametrize("kind", KINDS)


def law_of(kind: str) -> MDM:
    model = KINDS[kind]().eval().requires_grad_(False)
    options: dict[str, Any] = {"context": 1} if kind == "labels" else {}
    if kind not in BOUNDED:
        options["solver"] = Solver("rk4", steps=2)  # in place of finding how many are enough
    if kind == "chain":
        options["method"] = "importance"
    if isinstance(model.sampler, ExponentialIntegrator):
        model.sampler = ExponentialIntegrator(2)
    law = MDM(model, **options)
    assert kind in BOUNDED or law.method == "flow"
    return law


@every_kind
def test_samples_and_densities_have_the_shapes_of_a_distribution(kind: str) -> None:
    law = law_of(kind)
    for shape in ((), (2, 3)):
        x = law.sample(shape)
        assert x.shape == (*shape, *law.event_shape)
        assert law.log_prob(x).shape == shape
    assert bool(law.log_prob(x).isfinite().all()) and bool(law.support.check(x).all())
    wide = law.expand((3,))
    x = wide.sample((2,))
    assert x.shape == (2, 3, *law.event_shape) and wide.log_prob(x).shape == (2, 3)
    if law.has_rsample:
        assert wide.rsample((2,)).shape == x.shape and law.rsample().shape == law.event_shape


@every_kind
def test_plates_predictive_and_svi_take_it(kind: str) -> None:
    law = law_of(kind)
    event = len(law.event_shape)

    def program(y: torch.Tensor | None = None) -> torch.Tensor:
        with pyro.plate("groups", 2, dim=-2), pyro.plate("rows", 3):
            x = pyro.sample("x", law)
            pyro.sample("y", dist.Normal(x, 1.0).to_event(event), obs=y)
        return x

    x = program()
    assert x.shape == (2, 3, *law.event_shape)
    for parallel in (False, True):
        drawn = Predictive(program, num_samples=2, parallel=parallel)()
        assert drawn["x"].shape == drawn["y"].shape == (2, *x.shape)

    def guide(y: torch.Tensor) -> None:
        with pyro.plate("groups", 2, dim=-2), pyro.plate("rows", 3):
            pyro.sample("x", dist.Delta(x, event_dim=event))

    loss = SVI(program, guide, pyro.optim.Adam({}), Trace_ELBO()).evaluate_loss(x)
    assert loss == loss and abs(loss) < 1e6


@every_kind
def test_nuts_walks_on_a_density_and_is_refused_else(kind: str) -> None:
    law = law_of(kind)

    def program() -> None:
        x = pyro.sample("x", law)
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=torch.zeros(law.event_shape))

    kernel = NUTS(program, max_tree_depth=1, step_size=0.01, adapt_step_size=False)
    mcmc = MCMC(kernel, num_samples=1, warmup_steps=0, disable_progbar=True)
    if kind not in BOUNDED:
        mcmc.run()
        assert mcmc.get_samples()["x"].shape == (1, *law.event_shape)
        return
    discrete = law.support.is_discrete
    words = "discrete sample site 'x'" if discrete else "and MCMC needs one density"
    with pytest.raises(ValueError, match=words):
        mcmc.run()
