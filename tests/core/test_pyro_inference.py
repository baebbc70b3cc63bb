"""Pyro's inference on the two programs: each class is right, or refused with the fix.

Paths in continuous time have a bound for a log density, which may be averaged. Whatever takes
exponentials of it, or walks on it, is refused. Paths on a grid have a density, and all is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer
from pyro.infer import SVI, Importance, Predictive, RenyiELBO, Trace_ELBO, autoguide as auto
from pyro.infer.importance import vectorized_importance_weights
from scipy.stats import t as student
from torch import Tensor

from pyro_mdm import (
    CLD,
    MDM,
    MDM_ELBO,
    VPSDE,
    DiffusionGuide,
    DiffusionModel,
    Simulated,
    Simulation,
)
from pyro_mdm.automatic import AutoMDM
from pyro_mdm.networks import MLP
from pyro_mdm.paths.flow import Solver
from pyro_mdm.scores import RawScore
from tests.known_bound import DIMS, MEAN, VARIANCE, data, denoiser, exact_bound
from tests.mistakes import refused

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "pyro.md"
LOG_SNR = 3.0


def pair(times: int | None = None) -> tuple[DiffusionModel, DiffusionGuide]:
    """With the exact denoiser; data may have a dimension of particles before the batch's."""
    diffusion = VPSDE(max_log_snr=LOG_SNR)
    model = DiffusionModel(diffusion, denoiser(), event_shape=(DIMS,), times=times)
    return model, DiffusionGuide(diffusion, times, event_dim=1)


def adam() -> Any:
    return pyro.optim.Adam({"lr": 1e-3})


def step(loss: Any) -> Callable[..., object]:
    return lambda model, guide, x: SVI(model, guide, adam(), loss).step(x)


def walk(kernel: Callable[..., Any], **options: Any) -> Callable[..., object]:
    def run(model: Any, guide: Any, x: Tensor) -> None:
        chain = {"num_samples": 1, "warmup_steps": 0, "disable_progbar": True}
        infer.MCMC(kernel(model, **options), **chain).run(x)

    return run


def importance(model: Any, guide: Any, x: Tensor) -> Importance:
    return Importance(model, guide, num_samples=3).run(x)


def compiled(model: Any, guide: Any, x: Tensor) -> object:
    def proposal(x: Tensor, observations: Any = None) -> None:
        guide(x)

    return infer.CSIS(model, proposal, adam(), num_inference_samples=3).run(x)


def vectorized(model: Any, guide: Any, x: Tensor) -> Tensor:
    options = {"num_samples": 3, "max_plate_nesting": 1}
    return vectorized_importance_weights(model, guide, x, **options)[0]


def laplace(model: Any, guide: Any, x: Tensor) -> None:
    approximation = auto.AutoLaplaceApproximation(model)
    SVI(model, approximation, adam(), Trace_ELBO()).step(x)
    approximation.laplace_approximation(x)


def weighed(model: Any, guide: Any, x: Tensor) -> object:
    return infer.WeighedPredictive(model, guide=guide, num_samples=3)(x, model_guide=model)


def automatic(model: Any, guide: Any, x: Tensor) -> None:
    latents = len(x) * model.path_law().event_shape.numel()
    AutoMDM(model, steps=1).log_density(torch.zeros(1, latents).double(), x)


FEW = {"num_particles": 3}
MANY = {"vectorize_particles": True, "max_plate_nesting": 1, **FEW}
OF_DRAWS = {"max_plate_nesting": 1, "strict_enumeration_warning": False}
WEIGHING: dict[str, Callable[..., object]] = {
    "RenyiELBO": step(RenyiELBO(**FEW)),
    "ReweightedWakeSleep": step(infer.ReweightedWakeSleep(vectorize_particles=False, **FEW)),
    "TraceTailAdaptive_ELBO": step(infer.TraceTailAdaptive_ELBO(**MANY)),
    "TraceTMC_ELBO": step(infer.TraceTMC_ELBO(**OF_DRAWS)),
    "Importance": importance,
    "EmpiricalMarginal": lambda *args: infer.EmpiricalMarginal(importance(*args), "path"),
    "CSIS": compiled,
    "vectorized_importance_weights": vectorized,
    "WeighedPredictive": weighed,
    "NUTS": walk(infer.NUTS, max_tree_depth=1, step_size=1e-3, adapt_step_size=False),
    "HMC": walk(infer.HMC, num_steps=1, step_size=1e-3, adapt_step_size=False),
    "RandomWalkKernel": walk(infer.RandomWalkKernel),
    "SVGD": lambda model, guide, x: infer.SVGD(model, infer.RBFSteinKernel(), adam(), 3, 1).step(x),
    "AutoLaplaceApproximation": laplace,
    "AutoMDM": automatic,
}
AVERAGING: dict[str, Callable[[], Any]] = {
    "MDM_ELBO": lambda: MDM_ELBO(),
    "Trace_ELBO": lambda: Trace_ELBO(),
    "Trace_ELBO, vectorized": lambda: Trace_ELBO(**MANY),
    "TraceMeanField_ELBO": lambda: infer.TraceMeanField_ELBO(),
    "TraceGraph_ELBO": lambda: infer.TraceGraph_ELBO(),
    "TraceEnum_ELBO": lambda: infer.TraceEnum_ELBO(**OF_DRAWS),
    "JitTrace_ELBO": lambda: infer.JitTrace_ELBO(),
}


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.filterwarnings("ignore:the program cannot be run for many values:UserWarning")
@pytest.mark.parametrize("name", WEIGHING)
def test_whatever_weighs_by_a_path_is_refused_in_continuous_time(name: str) -> None:
    """With what has a density instead; and there it runs."""
    shown = {"EmpiricalMarginal": "Importance", "NUTS": "MCMC", "HMC": "MCMC"}
    shown["RandomWalkKernel"] = "MCMC"
    with pytest.raises(ValueError, match=r"times=65\) and DiffusionGuide") as refusal:
        WEIGHING[name](*pair(), data(2))
    assert f"and {shown.get(name, name)} takes it for a log density" in str(refusal.value)
    pyro.clear_param_store()
    WEIGHING[name](*pair(4), data(2))


def test_a_class_of_ones_own_is_refused_like_that_it_inherits_from() -> None:
    class Mine(RenyiELBO):
        pass

    class Adaptive(infer.TraceTailAdaptive_ELBO):
        pass

    refused(
        ValueError,
        (lambda: Mine().loss(*pair(), data(2)), "and Mine takes it for a log density"),
        (lambda: step(Adaptive(**MANY))(*pair(), data(2)), "and Adaptive takes it"),
    )


def test_diffusions_without_chains_are_refused_too() -> None:
    diffusion = Simulated(CLD(max_log_snr=4.0), Simulation(step_size=0.25))
    model = DiffusionModel(diffusion, RawScore(MLP(4)), event_shape=(2,))
    with pytest.raises(ValueError, match="or use SVI with MDM_ELBO"):
        RenyiELBO().loss(model, DiffusionGuide(diffusion), data(2, 2).float())


# -- right -----------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("name", AVERAGING)
def test_objectives_that_average_have_the_exact_bound(name: str) -> None:
    """Of 300 data, on average over 20 calls, by Student's t: one false alarm in 1e7.

    Weights of three particles would add more than a nat for each datum.
    """
    model, guide = pair()
    x, objective = data(300), AVERAGING[name]()
    with torch.no_grad():
        losses = torch.tensor([objective.loss(model, guide, x) for _ in range(20)]) / len(x)
    known = -float(exact_bound(model.diffusion, x).mean())
    error = float(losses.std()) / math.sqrt(len(losses))
    assert error < 0.15
    assert abs(float(losses.mean()) - known) < student.isf(5e-8, len(losses) - 1) * error + 1e-9


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        (auto.AutoNormal, infer.TraceMeanField_ELBO),
        (auto.AutoMultivariateNormal, MDM_ELBO),
        (auto.AutoDelta, Trace_ELBO),
    ],
)
def test_automatic_guides_of_paths_have_a_bound(kind: Any, objective: Any) -> None:
    """The law of y_ε given x is Gaussian, and at it the bound is that of the noising path."""
    model, _ = pair()
    x = data(200)
    guide = kind(model, init_loc_fn=lambda site: torch.zeros(200, 1, 1, DIMS).double())
    guide(x)
    start = model.diffusion.start
    loc = (start.mean * x.unsqueeze(-1)).reshape(200, 1, 1, DIMS)
    scale = start.scale_tril.expand(200, 1, 1, DIMS)
    with torch.no_grad():
        if kind is auto.AutoMultivariateNormal:
            guide.loc.copy_(loc.flatten())
            guide.scale = scale.flatten()
            guide.scale_tril = torch.eye(200 * DIMS).to(scale)
        elif kind is auto.AutoNormal:
            guide.locs.path.copy_(loc)
            guide.scales.path = scale
        else:
            guide.path.copy_(loc)
        losses = torch.tensor([objective().loss(model, guide, x) for _ in range(20)]) / len(x)
    error = float(losses.std()) / math.sqrt(len(losses))
    known = -float(exact_bound(model.diffusion, x).mean())
    if kind is auto.AutoDelta:  # log p(y_ε, x) at one point: less its entropy and spread
        variance = float(start.covariance)
        marginal = float(start.mean) ** 2 * VARIANCE + variance
        y = dist.Normal(float(start.mean) * MEAN, math.sqrt(marginal))
        known = -float(y.log_prob(loc).sum() / 200 + decoded(model, loc, x).mean())
    assert error < 0.15
    assert abs(float(losses.mean()) - known) < student.isf(5e-8, 19) * error + 2e-3


def decoded(model: DiffusionModel, path: Tensor, x: Tensor) -> Tensor:
    law = model.likelihood(model.diffusion, model.score_function, path[:, 0], 1)
    found: Tensor = law.log_prob(x)
    return found


@pytest.mark.slow
@pytest.mark.quick
def test_weights_of_paths_on_a_grid_are_right() -> None:
    """log p(x) of a Gaussian chain is known, and the mean weight is p(x), whoever weighs.

    The chain is linear, so that its joint law with x is Gaussian, and its parts are found by
    derivatives. The relative error of a mean of n weights is their relative deviation over √n:
    5.5 of them is one false alarm in 2e7.
    """
    diffusion, n = VPSDE(max_log_snr=1.0, min_log_snr=-2.0), 400
    model = DiffusionModel(diffusion, denoiser(), event_shape=(1,), times=9).requires_grad_(False)
    guide = DiffusionGuide(diffusion, 9, event_dim=1)
    x = data(1, 1)
    known = float(evidence(model, x))
    pyro.set_rng_seed(3)
    options = {"num_samples": n, "max_plate_nesting": 1}
    weights = (vectorized_importance_weights(model, guide, x, **options)[0] - known).exp()
    error = float(weights.std()) / math.sqrt(n)
    assert error < 0.05
    assert abs(float(weights.mean()) - 1) < 5.5 * error
    found = Importance(model, guide, num_samples=n // 4).run(x).get_log_normalizer()
    assert abs(math.exp(float(found) - known) - 1) < 2 * 7 * error  # its error is uncertain too
    renyi = RenyiELBO(num_particles=n, vectorize_particles=True, max_plate_nesting=1)
    assert abs(math.exp(-renyi.loss(model, guide, x) - known) - 1) < 7 * error


def evidence(model: DiffusionModel, x: Tensor) -> Tensor:
    """log ∫ p(path, x) of a log density that is quadratic in the path, by its expansion at 0."""
    law: Any = model.path_law()
    shape = (1, *law.event_shape)

    def joint(flat: Tensor) -> Tensor:
        path = flat.reshape(shape)
        return (law.log_prob(path) + decoded(model, path, x)).sum()

    zero = torch.zeros(math.prod(shape), dtype=torch.float64)
    curvature = -torch.autograd.functional.hessian(joint, zero)
    slope = torch.autograd.functional.jacobian(joint, zero)
    best = torch.linalg.solve(curvature, slope)
    volume = len(zero) * math.log(2 * math.pi) - torch.logdet(curvature)
    return joint(best) + 0.5 * volume


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_from_either_program(parallel: bool) -> None:
    """Of the model without data, and of noised data: moments within 5.5 errors."""
    model, guide = pair()
    number, rows = (60, 50) if parallel else (4, 750)
    drawn = Predictive(model, num_samples=number, parallel=parallel)(batch_size=rows)["x"]
    n = drawn.numel()
    assert drawn.shape == (number, rows, DIMS)
    assert abs(float(drawn.mean()) - MEAN) < 5.5 * math.sqrt(VARIANCE / n) + 0.02
    assert abs(float(drawn.var() / VARIANCE) - 1) < 5.5 * math.sqrt(2 / n) + 0.04
    x = data(rows)
    paths = Predictive(guide, num_samples=number, parallel=parallel)(x)["path"].reshape(
        -1, *x.shape
    )
    start = model.diffusion.start
    white = (paths - float(start.mean) * x) / float(start.scale_tril)
    assert abs(float(white.mean())) < 5.5 / math.sqrt(n)
    assert abs(float(white.var()) - 1) < 5.5 * math.sqrt(2 / n)


# -- MDM in programs of others ---------------------------------------------------------------------


def prior(**options: Any) -> MDM:
    model, _ = pair()
    return MDM(model.eval().requires_grad_(False), **options)


def observing(law: MDM) -> Callable[[Tensor], None]:
    def program(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("x", law, obs=x)

    return program


def nothing(x: Tensor) -> None:
    pass


@pytest.mark.parametrize(
    ("options", "averaged", "weighed"),
    [
        ({}, None, None),
        ({"method": "elbo"}, None, "with other noise at every call, and Importance needs one"),
        ({"method": "importance", "times": 5}, None, None),
        ({"method": "elbo", "draws": 8, "seed": 0}, "leave the seed out", "use method='flow'"),
        (
            {"method": "importance", "times": 5, "draws": 8, "seed": 0},
            "leave the seed out",
            "nats off, for all data alike and once for each row",
        ),
    ],
    ids=["flow", "bound", "weights", "seeded bound", "seeded weights"],
)
def test_a_bound_by_mdm_is_averaged_and_never_weighed(
    options: dict[str, Any], averaged: str | None, weighed: str | None
) -> None:
    """A seed is no way around it: its error is common to all data, and added once for each."""
    law, x = prior(**options), data(3)
    calls = {
        averaged: lambda: SVI(observing(law), nothing, adam(), Trace_ELBO()).evaluate_loss(x),
        weighed: lambda: Importance(observing(law), nothing, num_samples=2).run(x),
    }
    for message, call in calls.items():
        if message is None:
            call()
        else:
            refused(ValueError, (call, message))


def test_a_seeded_bound_without_a_number_of_draws_is_refused() -> None:
    """Of one draw it integrates to hundreds."""
    refused(
        ValueError,
        (lambda: prior(method="elbo", seed=0).log_prob(data(1)), "seed is 0 and draws is not"),
        (lambda: prior(method="importance", seed=0).log_prob(data(1)), "use method='flow'"),
    )


def test_a_seeded_bound_of_enough_draws_is_taken() -> None:
    """Where the noise is small: a path that ends after little more than a start."""
    diffusion = VPSDE(max_log_snr=-2.0, min_log_snr=-2.01)
    model = DiffusionModel(diffusion, denoiser(), event_shape=(DIMS,)).eval()
    law = MDM(model.requires_grad_(False), method="elbo", draws=20_000, seed=0)
    Importance(observing(law), nothing, num_samples=1).run(data(2))


def test_automatic_guides_by_diffusions_take_a_diffusion_as_prior() -> None:
    """By the flow's density, of all rows at once; a bound is named as what it is."""

    def program(law: MDM) -> None:
        x = pyro.sample("x", law)
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=torch.zeros(DIMS).double())

    law = prior(solver=Solver("rk4", steps=4))
    guide = AutoMDM(program, steps=2)
    x = data(4).requires_grad_()
    found = guide.log_density(x, law)
    known = law.log_prob(x) + dist.Normal(x, 0.5).log_prob(torch.zeros(DIMS)).sum(1)
    torch.testing.assert_close(found, known)
    (slope,) = torch.autograd.grad(found.sum(), x, create_graph=True)
    torch.testing.assert_close(slope, torch.autograd.grad(known.sum(), x)[0])
    assert slope.square().sum().requires_grad
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"site 'x': .* with other noise .* and AutoMDM needs one"):
        AutoMDM(program, steps=2).log_density(x, prior(method="elbo"))


# -- the page --------------------------------------------------------------------------------------


def test_the_page_says_which_are_refused() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name in WEIGHING:
        (row,) = [row for row in rows if f"`{name}`" in row]
        assert "refused" in row, name
    for name in AVERAGING:
        (row,) = [row for row in rows if f"`{name.partition(',')[0].removeprefix('Jit')}`" in row]
        assert "refused" not in row, name
