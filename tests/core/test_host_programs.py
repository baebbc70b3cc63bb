"""Programs around a diffusion: further latent sites, plates, scales, masks, autoguides.

Data are Gaussian, as in :mod:`tests.known_bound`: every program here has a known bound and a known
gradient, whatever site it is of.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from scipy.stats import t as student
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_mdm import CLD, MDM_ELBO, VPSDE, DiffusionGuide, DiffusionModel, elbo_terms
from pyro_mdm.samplers.stochastic import EulerMaruyama
from tests.known_bound import MEAN, OBJECTIVES, VARIANCE, data, denoiser, exact_bound
from tests.mistakes import refused
from tests.problems import normal

DIMS, ONE = 16, torch.tensor(1.0)
Program = Callable[..., Any]


@pytest.fixture
def diffusion() -> CLD:
    return CLD(max_log_snr=3.0)


@pytest.fixture
def pair(diffusion: CLD) -> tuple[DiffusionModel, DiffusionGuide]:
    """With the exact denoiser, so that the bound of every datum is closed form."""
    return DiffusionModel(diffusion, denoiser(), event_shape=(DIMS,)), DiffusionGuide(diffusion)


def parameter(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def check(
    objective: Any,
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    truth: Callable[[], Tensor],
    parameters: list[Tensor],
    repeats: int = 60,
    largest_error: float = 0.2,
) -> None:
    """The loss and its gradient are on average minus those of ``truth()``."""
    pyro.set_rng_seed(1)
    drawn = []
    for _ in range(repeats):
        loss = objective.differentiable_loss(model, guide, *args)
        gradients = torch.autograd.grad(loss, parameters) if parameters else ()
        drawn.append(torch.cat([loss.detach().reshape(1), *(g.reshape(-1) for g in gradients)]))
    exact = -truth()
    expected = [exact.detach().reshape(1)]
    if parameters:
        expected += [g.reshape(-1) for g in torch.autograd.grad(exact, parameters)]
    found, known = torch.stack(drawn), torch.cat(expected)
    error = found.std(0) / math.sqrt(repeats)
    scale = known.abs().clamp_min(1.0)
    assert bool((error <= largest_error * scale).all()), f"errors {error}, of {known}"
    limit = student.isf(2.5e-7, repeats - 1) * error + 1e-6 * scale
    assert bool(((found.mean(0) - known).abs() <= limit).all()), (
        f"{found.mean(0)} ± {error}, expected {known}"
    )


# -- further latent sites --------------------------------------------------------------------------


def shifted(mdm: Program) -> Program:
    """x - b ~ MDM with b ~ N(0, 1)."""

    def model(x: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        mdm(x - b.unsqueeze(-1))

    return model


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        (MDM_ELBO, {}),
        (OBJECTIVES["mean_field"], {}),
        (MDM_ELBO, {"num_particles": 4}),
        (MDM_ELBO, {"num_particles": 4, "vectorize_particles": True}),
    ],
    ids=["mdm", "mean_field", "particles", "vectorized"],
)
def test_a_latent_location_over_a_diffusion(
    objective: Any, options: dict[str, Any], pair: Any
) -> None:
    """E_q of the bound at x - b, less KL(q(b) ‖ p(b))."""
    mdm, _ = pair
    noising = DiffusionGuide(mdm.diffusion, event_dim=1)  # data are (particles, n, d) if vectorized
    x = data(50, DIMS)
    loc, scale = parameter(0.4), parameter(0.2)

    def guide(x: Tensor) -> None:
        noising(x - pyro.sample("b", dist.Normal(loc, scale)).unsqueeze(-1))

    def truth() -> Tensor:
        nodes, weights = hermite()
        values = [exact_bound(mdm.diffusion, x - (loc + scale * e)).sum() for e in nodes]
        kl = kl_divergence(dist.Normal(loc, scale), dist.Normal(0.0, 1.0))
        return (weights * torch.stack(values)).sum() - kl

    programs = shifted(mdm), guide
    check(objective(**options), *programs, (x,), truth, [loc, scale], largest_error=3.0)


def hermite() -> tuple[Tensor, Tensor]:
    """Nodes and weights of E f(ε), ε ~ N(0, 1), exact for polynomials of degree 19."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(10)
    return torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))


def latent_x(pair: Any, loc: Tensor, scale: Tensor, noise: float) -> tuple[Program, Program]:
    """y = x + noise, x ~ MDM; q(x) = N(loc, scale²)."""
    mdm, noising = pair

    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            x = mdm()
            pyro.sample("y", dist.Normal(x, noise).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            noising(pyro.sample("x", dist.Normal(loc, scale).to_event(1)))

    return model, guide


@pytest.mark.quick
def test_latent_data_under_a_path(pair: Any) -> None:
    """log p(y) itself at q = p(x | y), and the bound with its gradient away from it.

    Here the closed-form KL(q(x) ‖ p(x | y_ε)), which is registered, would be wrong: the guide draws
    y_ε given x. TraceMeanField_ELBO takes it, and misses.
    """
    mdm, _ = pair
    noise = 0.6
    y = data(30, DIMS) + noise * normal(5, 30, DIMS)
    gain = VARIANCE / (VARIANCE + noise**2)
    best = (MEAN + gain * (y - MEAN), torch.tensor(math.sqrt(VARIANCE * (1 - gain))).double())

    def bound(loc: Tensor, scale: Tensor) -> Tensor:
        """E_q of the bound at x (quadratic in x, dimension by dimension) + log p(y | x) + H[q]."""
        nodes, weights = hermite()
        total = sum(
            w * exact_bound(mdm.diffusion, loc + scale * e).sum()
            + w * dist.Normal(loc + scale * e, noise).log_prob(y).sum()
            for e, w in zip(nodes, weights, strict=True)
        )
        return total + dist.Normal(loc, scale).entropy().sum()

    loc, scale = (v.clone().requires_grad_() for v in best)
    evidence = dist.Normal(MEAN, math.sqrt(VARIANCE + noise**2)).log_prob(y).sum()
    log_p = dist.Normal(MEAN, math.sqrt(VARIANCE)).log_prob(y).sum(-1)
    mismatch = (exact_bound(mdm.diffusion, y) - log_p).abs().max()
    assert abs(float((bound(loc, scale) - evidence).detach())) < 30 * float(mismatch) + 1e-6
    loc, scale = (best[0] + 0.3).requires_grad_(), parameter(0.5)
    spread = scale.expand(30, DIMS)
    model, guide = latent_x(pair, loc, spread, noise)
    check(MDM_ELBO(), model, guide, (y,), lambda: bound(loc, spread), [scale, loc], 150, 3.0)
    pyro.set_rng_seed(2)
    with pytest.warns(UserWarning, match="mean field restriction"):
        wrong = [OBJECTIVES["mean_field"]().loss(model, guide, y) for _ in range(10)]
    assert sum(wrong) / 10 > -float(bound(loc, spread).detach()) + 20


def test_several_diffusions_in_one_program(pair: Any) -> None:
    """Each in a scope of its own, with a plate of its own name."""
    first, first_guide = pair
    other = VPSDE(max_log_snr=4.0)
    second = DiffusionModel(other, denoiser(), event_shape=(4,), plate="rows")
    second_guide = DiffusionGuide(other, plate="rows")
    x, z = data(40, DIMS), data(25, 4)

    def both(a: Program, b: Program) -> Program:
        def program(x: Tensor, z: Tensor) -> None:
            scope(a, prefix="a")(x)
            scope(b, prefix="b")(z)

        return program

    def truth() -> Tensor:
        return exact_bound(first.diffusion, x).sum() + exact_bound(other, z).sum()

    for objective in (MDM_ELBO(), OBJECTIVES["mean_field"]()):
        programs = both(first, second), both(first_guide, second_guide)
        check(objective, *programs, (x, z), truth, [], 30, 5.0)
    with pytest.raises(ValueError, match=r"no term for a second path, 'b/path'; use MDM_ELBO"):
        elbo_terms(both(first, second), both(first_guide, second_guide), x, z)


# -- sites that are not reparameterized, or enumerated ---------------------------------------------


SHIFTS = (-0.5, 0.6, 1.5)


def mixture(pair: Any, logits: Tensor, local: bool) -> tuple[Program, Program]:
    """x - shift[k] ~ MDM, one k for all or one for each datum."""
    mdm, noising = pair
    shifts = torch.tensor(SHIFTS, dtype=torch.float64)
    prior = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)

    def pick(law: Callable[[], Any], run: Program) -> Program:
        def program(x: Tensor) -> None:
            with pyro.plate("rows", len(x)) if local else contextlib.nullcontext():
                run(x - shifts[pyro.sample("k", law())].unsqueeze(-1))

        return program

    model = pick(lambda: dist.Categorical(prior), mdm)
    guide = pick(lambda: dist.Categorical(logits=logits), noising)
    return model, guide


@pytest.mark.parametrize("closed", [True, False], ids=["registered", "drawn"])
@pytest.mark.parametrize("local", [False, True], ids=["global", "local"])
def test_score_function_gradients(
    local: bool, closed: bool, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A categorical site, whose bound and gradient are sums over its values."""
    if not closed:
        monkeypatch.setattr("pyro_mdm.elbo.kl_divergence", _no_kl)
    mdm, _ = pair
    x = data(6, DIMS)
    logits = parameter([0.4, -0.2, 0.1])

    def truth() -> Tensor:
        q = logits.softmax(-1)
        values = torch.stack([exact_bound(mdm.diffusion, x - c) for c in SHIFTS])  # (3, n)
        prior = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
        kl = (q * (q.log() - prior.log())).sum()
        n = len(x) if local else 1
        return (q @ values).sum() - n * kl

    model, guide = mixture(pair, logits, local)
    check(MDM_ELBO(), model, guide, (x,), truth, [logits], repeats=120, largest_error=11.0)


@pytest.mark.parametrize("closed", [True, False], ids=["registered", "drawn"])
@pytest.mark.parametrize("local", [False, True], ids=["global", "local"])
def test_a_discrete_site_s_own_divergence(
    local: bool, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no path, whose noise would hide it: log p - log q in loss and gradient."""
    if not closed:
        monkeypatch.setattr("pyro_mdm.elbo.kl_divergence", _no_kl)
    prior, logits = torch.tensor([0.05, 0.15, 0.8]).double(), parameter([0.4, -0.2, 0.1])
    n = 4 if local else 1
    y, means = torch.linspace(-1, 1, n).double(), torch.tensor(SHIFTS, dtype=torch.float64)

    def model() -> None:
        with pyro.plate("rows", n):
            k = pyro.sample("k", dist.Categorical(prior))
            pyro.sample("y", dist.Normal(means[k], 1.0), obs=y)

    def guide() -> None:
        with pyro.plate("rows", n):
            pyro.sample("k", dist.Categorical(logits=logits))

    def truth() -> Tensor:
        q = logits.softmax(-1)
        log_y = dist.Normal(means, 1.0).log_prob(y[:, None]).sum(0)
        return (q * (log_y - n * (q / prior).log())).sum()

    check(MDM_ELBO(), model, guide, (), truth, [logits], repeats=200, largest_error=0.2)


def _no_kl(q: Any, p: Any) -> Tensor:
    raise NotImplementedError


def test_only_costs_of_its_own_plate_element_are_in_a_score_function_gradient(pair: Any) -> None:
    """The gradient of a local site does not get noisier with the number of other data."""
    logits = [parameter([0.4, -0.2, 0.1]) for _ in range(2)]
    spread = []
    for n, p in zip((2, 200), logits, strict=True):
        model, guide = mixture(pair, p, local=True)
        pyro.set_rng_seed(4)
        x = data(n, DIMS)
        drawn = [
            torch.autograd.grad(MDM_ELBO().differentiable_loss(model, guide, x), p)[0] / n
            for _ in range(40)
        ]
        spread.append(float(torch.stack(drawn).std(0).norm()))
    assert spread[1] < 0.4 * spread[0]  # 1/10 if independent; 10 times it with all costs


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
def test_enumeration_is_refused_by_name(kind: str, pair: Any) -> None:
    logits = parameter([0.4, -0.2, 0.1])
    model, guide = mixture(pair, logits, local=False)
    enumerated = poutine.infer_config(
        guide, lambda site: {"enumerate": kind} if site["name"] == "k" else {}
    )
    with pytest.raises(ValueError, match=r"site 'k' asks for enumeration, .*leave out infer="):
        MDM_ELBO().loss(model, enumerated, data(4, DIMS))


# -- plates, scales, masks, particles --------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_plate_of_ones_own_that_subsamples(objective: str, pair: Any) -> None:
    """The programs use it: the loss is that of all data, on average over subsamples."""
    mdm, noising = pair
    x = data(40, DIMS)

    def program(run: Program) -> Program:
        def within(x: Tensor) -> None:
            with pyro.plate("N", len(x), subsample_size=10) as i:
                run(x[i])

        return within

    trace = poutine.trace(program(mdm)).get_trace(x)
    assert [f.name for f in trace.nodes["x"]["cond_indep_stack"]] == ["N"]
    assert trace.nodes["path"]["value"].shape == (10, 1, 2, DIMS)
    programs = program(mdm), program(noising)
    truth = exact_bound(mdm.diffusion, x).sum
    check(OBJECTIVES[objective](), *programs, (x,), truth, [], 60, 28.0)


def test_plates_around_at_other_dims(pair: Any) -> None:
    """Every datum counts once for each element of a plate around; its own sizes may be given."""
    mdm, noising = pair
    x = data(12, DIMS)
    grouped = DiffusionGuide(mdm.diffusion, event_dim=1)

    def around(run: Program, outer: int) -> Program:
        def program(x: Tensor) -> None:
            with pyro.plate("groups", outer, dim=-2):
                run(x)

        return program

    truth = exact_bound(mdm.diffusion, x).sum()
    for objective in (MDM_ELBO(), OBJECTIVES["mean_field"]()):
        programs = around(mdm, 3), around(noising, 3)
        check(objective, *programs, (x,), lambda: 3 * truth, [], 30, 5.0)
        programs = around(mdm, 4), around(grouped, 4)
        check(objective, *programs, (x.reshape(4, 3, DIMS),), lambda: truth, [], 30, 5.0)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m, g, x: g(x, batch_size=5), r"batch_size is 5, but x has 6 data"),
        (lambda m, g, x: inside(m, 10, subsample_size=3)(x), r"size 3 at dim -1.* give it dim=-2"),
        (lambda m, g, x: inside(g, 4)(x), r"x has 6 data, .* plate 'N', which has size 4"),
        (lambda m, g, x: inside(m, 60, subsample_size=6)(x, num_data=60), "scales the loss"),
        (lambda m, g, x: m(x.reshape(2, 3, DIMS)), r"plate at dim -2 is missing; .* 2, dim=-2\)"),
        (lambda m, g, x: inside(m, 3, dim=-2)(x.reshape(2, 3, DIMS)), r"dim -2 'N' has size 3"),
    ],
)
def test_plates_that_do_not_fit_are_refused_by_name(run: Program, message: str, pair: Any) -> None:
    with pytest.raises(ValueError, match=message):
        run(*pair, data(6, DIMS))


def inside(run: Program, size: int, **options: Any) -> Program:
    def program(*args: Any, **kwargs: Any) -> None:
        with pyro.plate("N", size, **options):
            run(*args, **kwargs)

    return program


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_masks_and_scales(objective: str, pair: Any) -> None:
    """A mask leaves data out; a scale of both programs multiplies their bound."""
    mdm, noising = pair
    x = data(40, DIMS)
    kept = torch.arange(40) % 3 > 0

    def weighed(run: Program) -> Program:
        return poutine.scale(poutine.mask(run, mask=kept), scale=0.25)

    def truth() -> Tensor:
        return 0.25 * exact_bound(mdm.diffusion, x)[kept].sum()

    programs = weighed(mdm), weighed(noising)
    check(OBJECTIVES[objective](), *programs, (x,), truth, [], 60, 5.0)


def test_a_scale_or_mask_of_one_program_alone(pair: Any) -> None:
    """Of a path it is refused; another site then has log p - log q, each with its own."""
    mdm, noising = pair
    x = data(8, DIMS)
    with pytest.raises(ValueError, match=r"'path' has the scale 0\.5 in the model and 1\.0 in the"):
        MDM_ELBO().loss(poutine.scale(mdm, scale=0.5), noising, x)
    kept = torch.arange(8) > 3
    with pytest.raises(ValueError, match=r"the mask None in the model and of shape \(8,"):
        MDM_ELBO().loss(mdm, poutine.mask(noising, mask=kept), x)
    loc = parameter(0.4)

    def model() -> None:
        with poutine.scale(scale=0.5):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(loc, 1.0))

    def truth() -> Tensor:
        half_log_p = 0.5 * (-0.5 * math.log(2 * math.pi) - 0.5 * (loc**2 + 1))
        return half_log_p + 0.5 * math.log(2 * math.pi * math.e)

    check(MDM_ELBO(), model, guide, (), truth, [loc], repeats=200, largest_error=0.1)


# -- autoguides, MAP, auxiliary sites, training ----------------------------------------------------


def quick(diffusion: CLD) -> DiffusionModel:
    """An autoguide runs the model once to see its sites, path and all."""
    sampler = EulerMaruyama(steps=2)
    return DiffusionModel(diffusion, denoiser(), event_shape=(DIMS,), sampler=sampler)


def test_a_list_of_autoguides_and_a_diffusion_guide(diffusion: CLD) -> None:
    """A global and a local site by AutoNormal and AutoDelta, the path inside the list's plate."""
    mdm, noising = quick(diffusion), DiffusionGuide(diffusion)
    x, y = data(30, DIMS), normal(7, 30) + 1.0

    def model(x: Tensor, y: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("rows", len(x)):
            w = pyro.sample("w", dist.Normal(b, 1.0))
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)
            mdm(x)

    def path(x: Tensor, y: Tensor) -> None:
        with guide.plates["rows"]:
            noising(x)

    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["b"])))
    guide.append(AutoDelta(poutine.block(model, expose=["w"])))
    guide.append(path)

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=MDM_ELBO())
    for _ in range(200):
        svi.step(x, y)
    b, w = (guide.median(x, y)[name].detach() for name in ("b", "w"))
    # where the gradients vanish: w = (b + y) / 2, b = Σ w / (n + 1)
    # to what steps of this rate leave; a term counted twice moves w by more than that
    assert float((w - (b + y) / 2).abs().max()) < 0.25
    assert abs(float(b - w.sum() / 31)) < 0.15


def test_auxiliary_sites_of_the_guide(pair: Any) -> None:
    """A guide may draw what the model does not have: -log q counts."""
    mdm, noising = pair
    x = data(20, DIMS)
    scale = parameter(0.5)

    def guide(x: Tensor) -> None:
        pyro.sample("a", dist.Normal(0.0, scale), infer={"is_auxiliary": True})
        noising(x)

    def truth() -> Tensor:
        return exact_bound(mdm.diffusion, x).sum() + dist.Normal(0.0, scale).entropy()

    check(MDM_ELBO(), mdm, guide, (x,), truth, [scale], largest_error=5.0)


# -- programs that do not match, and guides that are effects ---------------------------------------


def extra(program: Program, name: str, obs: Tensor | None = None) -> Program:
    """A program with one site more."""

    def longer(x: Tensor) -> None:
        pyro.sample(name, dist.Normal(0.0, 1.0), obs=obs)
        program(x)

    return longer


@pytest.mark.parametrize(
    ("options", "programs", "message"),
    [
        ({}, lambda m, g: (extra(m, "b", ONE), extra(g, "b")), r"'b' is observed in the model and"),
        ({}, lambda m, g: (extra(m, "b"), g), r"'b' is latent in the model and absent from"),
        ({}, lambda m, g: (m, extra(g, "b")), r"'b' is in the guide and absent from the model"),
        ({"decoder": False}, lambda m, g: (extra(m, "y", ONE), g), r"sites .* leave decoder out"),
    ],
)
def test_sites_that_do_not_match_are_named(
    options: dict[str, Any], programs: Any, message: str, pair: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        MDM_ELBO(**options).loss(*programs(*pair), data(4, DIMS))


def test_a_site_outside_its_plate_is_named(pair: Any) -> None:
    """As by Pyro's own objectives, where validation is on: batched values without a plate."""
    mdm, noising = pair
    law = dist.Normal(torch.zeros(3), 1.0)

    def model(x: Tensor) -> None:
        pyro.sample("b", law)
        mdm(x)

    def guide(x: Tensor) -> None:
        pyro.sample("b", law)
        noising(x)

    with pytest.raises(ValueError, match='at site "b", invalid log_prob shape'):
        MDM_ELBO().loss(model, guide, data(4, DIMS))


def test_a_path_that_the_guide_draws_too_early_is_warned_of(pair: Any) -> None:
    mdm, noising = pair

    def guide(x: Tensor) -> None:
        noising(x)
        pyro.sample("b", dist.Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match=r"draws the path 'path' before \['b'\], the model after"):
        MDM_ELBO().loss(extra(mdm, "b"), guide, data(4, DIMS))


# -- guide and model of one diffusion --------------------------------------------------------------


@pytest.mark.parametrize("objective", [*OBJECTIVES.values(), TraceGraph_ELBO, RenyiELBO])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: CLD(max_log_snr=3.0), r"each have a CLD\(.*max_log_snr=3\) of their own, exp"),
        (lambda: CLD(max_log_snr=4.0), r"the guide runs CLD\(.*max_log_snr=4\) .* max_log_snr=3\)"),
        (lambda: VPSDE(), r"the guide runs VPSDE\(num_variables=1.* model reverses CLD\(num_va"),
        (lambda: CLD(friction=1.0, max_log_snr=3.0), r", 1\.0\]\] .* with D .* 2\.0\]"),
    ],
)
def test_programs_over_two_diffusion_objects_are_found_by_every_objective(
    other: Any, message: str, objective: Any, pair: Any
) -> None:
    """Before shapes are, in a message that tells the two apart."""
    with pytest.raises(ValueError, match=message) as found:
        objective().loss(pair[0], DiffusionGuide(other()), data(4, DIMS))
    assert "DiffusionGuide(model.diffusion)" in str(found.value)


def test_a_path_of_other_shapes_is_refused(pair: Any) -> None:
    mdm, noising = pair
    x = data(4, DIMS)
    chain = DiffusionModel(mdm.diffusion, mdm.score_function, event_shape=(DIMS,), times=3)
    of_scalars = inside(DiffusionGuide(mdm.diffusion, event_dim=0), 4, dim=-2)
    given = poutine.condition(mdm, {"path": torch.zeros(4, 1, 3, DIMS)})
    refused(
        ValueError,
        (lambda: Trace_ELBO().loss(chain, noising, x), r"'path' has shape \(4, 1, 2, 16\), exp"),
        (lambda: Trace_ELBO().loss(mdm, of_scalars, x), r"data have shape \(\), expected \(16,\)"),
        (lambda: given(x), r"'path' has shape \(4, 1, 3, 16\), expected .* \(1, 2, 16\) after"),
    )
