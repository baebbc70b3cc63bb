"""AutoMDM of plates that draw a subsample: unbiased by subsamples, by rows, and as a guide."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import init_to_value
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_mdm import CLD, LinearDiffusion
from pyro_mdm.automatic import AutoMDM
from pyro_mdm.automatic.checkup import Checkup, remedies_of
from pyro_mdm.automatic.fitting import Fitting
from pyro_mdm.automatic.weighing import Weighing

N = 10
NOISE = torch.linspace(0.5, 2.0, N)
DATA = torch.tensor([0.3, 1.8, -0.6, 2.2, 4.1, -1.0, 0.9, 0.4, 3.3, -2.5])
NEAR: dict[str, Any] = {
    "init_loc_fn": init_to_value(values={"mean": torch.tensor(0.5)}),
    "init_scale": 0.6,
}
"""A start near the posterior, which needs no fit."""


def hierarchy(batch: int, data: Tensor = DATA, noise: Tensor = NOISE) -> None:
    """Normal rows with normal means around a mean of them all."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(data), subsample_size=batch) as rows:
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(z, noise[rows]), obs=data[rows])


def of_rows(mean: Tensor) -> Tensor:
    """log p(y_i | mean), (N,)."""
    return dist.Normal(mean, (1 + NOISE.square()).sqrt()).log_prob(DATA)


EVIDENCE = float(
    dist.MultivariateNormal(
        torch.zeros(N), torch.diag(1 + NOISE.square()) + 4.0 * torch.ones(N, N)
    ).log_prob(DATA)
)


def heavy(batch: int) -> None:
    """Rows with precisions of their own: of Student's distribution, given the mean."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", N, subsample_size=batch) as rows:
        tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
        pyro.sample("y", dist.Normal(mean, tau.rsqrt()), obs=DATA[rows])


def nested(batch: int) -> None:
    """Latents of several supports, inside of a second plate and beside the first."""
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("columns", 3, dim=-1):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", N, subsample_size=batch, dim=-2) as rows:
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2)))
            z = pyro.sample("z", dist.Normal(shift, scale))
            law = dist.Normal(z + shares[..., 0], 0.5)
            pyro.sample("y", law, obs=DATA[rows][:, None].expand(-1, 3))
    pyro.sample("w", dist.Normal(shift.sum(), 1.0), obs=torch.tensor(0.4))


@pytest.fixture
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def made(program: Callable[..., Any], *args: Any, **options: Any) -> AutoMDM:
    """A guide that has seen its program, alone in the store."""
    pyro.clear_param_store()
    guide = AutoMDM(program, **{"steps": 3, "row_steps": 3, **options})
    guide(*args)
    return guide


def shaken(guide: AutoMDM, size: float = 0.05) -> AutoMDM:
    """The same with other parameters, at which nothing is exact."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return guide


# -- densities and weights -------------------------------------------------------------------------


@pytest.mark.parametrize("program", [hierarchy, heavy, nested])
def test_terms_are_those_of_pyro(program: Callable[[int], None]) -> None:
    guide = made(program, 4)
    plate = guide.plate
    assert plate is not None
    x, z = torch.randn(3, guide.latent_dim), torch.randn(3, 4, plate.row_dim)
    index = torch.tensor([7, 2, 9, 0])
    terms = plate.terms(x, z, index, 4)
    values = plate.by_site(x) | plate.rows_by_site(z)
    for i in range(3):
        data = {name: value[i] for name, value in values.items()} | {"rows": index}
        trace = poutine.trace(poutine.condition(lambda: program(4), data=data)).get_trace()
        log_det = 0.0
        for name, u in [(s["name"], u) for s, u in guide._unpack_latent(x[i])]:
            log_det += _log_det(trace, name, u)
        for name, u in [(s["name"], u) for s, u in plate.unpacked(z[i])]:
            log_det += N / 4 * _log_det(trace, name, u)
        total = float(terms.alone[i] + terms.rows[i].sum() * N / 4)
        assert total == pytest.approx(float(trace.log_prob_sum()) + log_det, rel=1e-5)


def _log_det(trace: Any, name: str, u: Tensor) -> float:
    transform = dist.transforms.biject_to(trace.nodes[name]["fn"].support)
    return float(transform.log_abs_det_jacobian(u, transform(u)).sum())


@pytest.mark.parametrize("how", ["weights", "svi"])
def test_losses_of_subsamples_are_unbiased_with_their_gradients(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all subsamples, for rows whose weights are exact."""
    guide = made(hierarchy, 9)
    plate = guide.plate
    assert plate is not None
    # the chain feels no data, so that its paths are the same for each subsample
    parameters = [guide.loc, *(p for n, p in guide.chain.named_parameters() if "rows" not in n)]

    def loss_of(subsample: Tensor) -> Tensor:
        pyro.set_rng_seed(1)
        if how == "weights":
            monkeypatch.setattr(plate, "subsample", lambda: subsample)
            return -guide.log_weights(1, 9)[1].sum()
        guide.create_plates = lambda _: pyro.plate("rows", N, subsample=subsample)
        loss: Tensor = Trace_ELBO().differentiable_loss(hierarchy, guide, 9)
        return loss

    subsamples = [torch.tensor(rows) for rows in itertools.combinations(range(N), 9)]
    mean = torch.stack([loss_of(rows) for rows in subsamples]).mean()
    pyro.set_rng_seed(1)
    law = guide.get_posterior(9).expand((1,) if how == "weights" else ())
    x = law.rsample()
    whole = (law.log_prob(x) - dist.Normal(0.0, 2.0).log_prob(x).sum() - of_rows(x).sum()).sum()
    assert mean.item() == pytest.approx(whole.item(), rel=1e-5)
    gradients = torch.autograd.grad(mean, parameters, allow_unused=True)
    expected = torch.autograd.grad(whole, parameters, allow_unused=True)
    for gradient, other in zip(gradients, expected, strict=True):
        assert (gradient is None) == (other is None)
        if gradient is not None and other is not None:
            torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["loc", "scale", "chain.rows.loc", "chain.rows.first.weight"])
@pytest.mark.usefixtures("_double")
def test_gradients_are_those_of_the_bound(name: str) -> None:
    """By differences, in float64, where the networks of rows see globals and gradients."""
    guide = shaken(made(heavy, 4, init_scale=0.6), 0.1)
    parameter = guide.get_parameter(f"{name}_unconstrained" if name == "scale" else name)

    def loss() -> Tensor:
        pyro.set_rng_seed(1)
        return -guide.log_weights(3, 4)[1].mean()

    direction = torch.randn_like(parameter)
    (slope,) = torch.autograd.grad(loss(), parameter)
    step, losses = 1e-5 * direction / direction.norm(), []
    with torch.no_grad():
        for change in (step, -2 * step):
            parameter += change
            losses.append(float(loss()))
    expected = (losses[0] - losses[1]) / 2e-5
    assert float((slope * direction).sum() / direction.norm()) == pytest.approx(expected, rel=1e-4)
    assert abs(expected) > 1e-3


def test_weights_of_rows_of_student_have_its_density_as_their_mean() -> None:
    """Where -∇²ℓ is not positive everywhere, and weights are not exact before training."""
    guide = made(heavy, 4)
    pyro.set_rng_seed(3)
    x = guide.get_posterior(4).expand((1,)).rsample()
    pyro.set_rng_seed(3)
    log_weights = guide.row_weights(4_000, 4).log_weights
    ratio = (log_weights - dist.StudentT(4.0, x[0], 1.0).log_prob(DATA).double()).exp()
    error = ratio.std(0) / math.sqrt(4_000)
    assert error.min() > 0 and error.max() < 0.1
    assert ((ratio.mean(0) - 1).abs() < 7 * error).all()


def test_weights_of_normal_rows_are_exact_before_training() -> None:
    guide = made(hierarchy, 4)
    weights = guide.row_weights(30, 4)
    assert weights.log_weights.shape == (30, N)
    assert weights.log_weights.std(0).max() < 1e-4
    pyro.set_rng_seed(3)
    x = guide.get_posterior(4).expand((1,)).rsample()
    pyro.set_rng_seed(3)
    of_others = guide.row_weights(1, 4).log_evidence.float()
    torch.testing.assert_close(of_others, of_rows(x[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("diffusion", [None, CLD()])
def test_weights_of_rows_have_their_evidence_as_their_mean(
    diffusion: LinearDiffusion | None,
) -> None:
    """Of normal rows, by parameters at random, at which weights have a variance."""
    guide = shaken(made(hierarchy, 4, diffusion=diffusion), 0.02)
    pyro.set_rng_seed(3)
    x = guide.get_posterior(4).expand((1,)).rsample()
    pyro.set_rng_seed(3)
    weights = guide.row_weights(4_000, 4)
    expected = of_rows(x[0]).double()
    ratio = (weights.log_weights - expected).exp()
    error = ratio.std(0) / math.sqrt(4_000)
    assert error.max() < 0.2
    assert ((ratio.mean(0) - 1).abs() < 7 * error).all()
    assert (weights.effective < 3_999).all() and weights.pareto_k.shape == (N,)


@pytest.mark.parametrize("batch, row_paths", [(4, 1), (9, 1), (4, 5)])
def test_a_full_pass_has_the_evidence_as_its_mean(batch: int, row_paths: int) -> None:
    """The last batch is filled up with rows that do not count again."""
    guide = made(hierarchy, batch, row_paths=row_paths, **NEAR)
    with torch.no_grad():
        guide.get_parameter("chain.rows.begin.2.bias").add_(0.1)
    weights = guide.importance(2_000, batch)
    value, error = weights.log_evidence.mean, weights.log_evidence.standard_error
    assert 0 < error < 0.2 and abs(value - EVIDENCE) < 5.5 * error


def test_more_paths_of_rows_raise_the_bound() -> None:
    guide = shaken(made(hierarchy, 5, **NEAR))
    pyro.set_rng_seed(2)
    one = Weighing(guide, (5,)).weighted(200)[1].mean()
    guide.row_paths = 8
    pyro.set_rng_seed(2)
    several = Weighing(guide, (5,)).weighted(200)[1].mean()
    assert several > one + 0.1


def test_rows_need_no_latents() -> None:
    def program() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", N, subsample_size=4):
            y = pyro.subsample(DATA, event_dim=0)
            noise = pyro.subsample((1 + NOISE.square()).sqrt(), event_dim=0)
            pyro.sample("y", dist.Normal(mean, noise), obs=y)

    guide = made(program, **NEAR)
    measured = guide.importance(2_000).log_evidence
    assert abs(measured.mean - EVIDENCE) < 5.5 * measured.standard_error < 0.5
    assert set(guide()) == {"mean"} == set(guide.sample_posterior(2))
    with pytest.raises(ValueError, match=r"no plate .* rows with latents"):
        guide.row_weights(3)


# -- a guide ---------------------------------------------------------------------------------------


def test_svi_trains_everything_and_has_the_bound() -> None:
    guide = shaken(made(nested, 4))
    before = {name: value.clone() for name, value in guide.named_parameters()}
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=2)
    svi = SVI(nested, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    for _ in range(2):
        svi.step(4)
    of_slopes = {"chain.power", "chain.trust"}  # which the chain of the globals does not see
    for name, value in guide.named_parameters():
        assert torch.equal(value, before[name]) == (name in of_slopes), name


@pytest.mark.parametrize("program", [hierarchy, heavy, nested])
def test_a_call_has_the_weight_of_its_subsample(program: Callable[[int], None]) -> None:
    """By Pyro's densities of the sites of a call, scaled as Pyro scales them."""
    guide = shaken(made(program, 4))
    plate = guide.plate
    assert plate is not None
    drawn = poutine.trace(guide).get_trace(4)
    replayed = poutine.trace(poutine.replay(program, drawn)).get_trace(4)
    nodes: dict[str, Any] = drawn.nodes
    latent, rows = nodes["_AutoMDM_latent"], nodes["_AutoMDM_rows"]
    z = rows["value"].reshape(1, 4, plate.row_dim)
    terms = plate.terms(latent["value"][None], z, nodes["rows"]["value"], 4)
    log_q = rows["fn"].log_q.flatten()
    weight = terms.alone + N / 4 * (terms.rows - log_q).sum() - latent["fn"].drawn[1]
    elbo = replayed.log_prob_sum() - drawn.log_prob_sum()
    assert elbo.item() == pytest.approx(weight.item(), rel=1e-4)


def test_the_bound_of_particles_is_the_mean_log_weight() -> None:
    guide = made(hierarchy, 9, **NEAR)
    with torch.no_grad():
        guide.get_parameter("chain.rows.begin.2.bias").add_(0.3)
    elbo = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    losses = torch.tensor([elbo.loss(hierarchy, guide, 9) for _ in range(20)])
    log_weights = Weighing(guide, (9,)).weighted(1_000)[1]
    error = math.hypot(losses.std() / math.sqrt(20), log_weights.std() / math.sqrt(1_000))
    assert abs(float(losses.mean() + log_weights.mean())) < 6.5 * error < 4.0


def test_draws_have_all_rows() -> None:
    guide = made(nested, 4)
    shapes = {"scale": (), "shift": (3,), "shares": (N, 3, 2), "z": (N, 3)}
    with pytest.warns(UserWarning):
        resampled = guide.sample_posterior(2, 4, resample=True)
    for draws in (guide.sample_posterior(2, 4), resampled):
        assert {name: value.shape[1:] for name, value in draws.items()} == shapes
    assert guide.median(4)["z"].shape == (N, 3)
    torch.testing.assert_close(draws["shares"].sum(-1), torch.ones(2, N, 3))
    of_batch = Predictive(nested, guide=guide, num_samples=3)(4)
    assert of_batch["z"].shape == (3, 4, 3)


def test_resampled_draws_are_the_posterior() -> None:
    guide = made(hierarchy, 5, **NEAR)
    draws = guide.sample_posterior(1_000, 5, resample=True)
    precision = float((1 / (1 + NOISE.square())).sum()) + 1 / 4
    center = float((DATA / (1 + NOISE.square())).sum()) / precision
    share = 1 / (1 + NOISE.square())  # of the datum in a row's mean
    expected = share * DATA + (1 - share) * center
    deviation = ((1 - share) + (1 - share).square() / precision).sqrt()
    error = 5.5 / math.sqrt(500)  # as many count at least, of 10,000
    assert abs(float(draws["mean"].mean()) - center) < error / math.sqrt(precision)
    assert ((draws["z"].mean(0) - expected).abs() < error * deviation).all()
    assert ((draws["z"].std(0) / deviation - 1).abs() < error).all()


def test_a_saved_guide_is_the_same() -> None:
    guide, again = shaken(made(heavy, 4)), made(heavy, 4)
    again.load_state_dict(guide.state_dict())
    values = []
    for one in (guide, again):
        pyro.set_rng_seed(5)
        values.append(one.row_weights(2, 4).log_weights)
    torch.testing.assert_close(*values)


class Counted(TorchDispatchMode):
    """Numbers that operations make, in floating point."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        some = result if isinstance(result, (tuple, list)) else (result,)
        views = ("alias", "detach", "t.default", "view", "expand")
        if not any(name in str(func) for name in views):
            self.total += sum(
                t.numel() for t in some if isinstance(t, Tensor) and t.is_floating_point()
            )
        return result


def test_a_step_costs_the_same_for_any_number_of_rows() -> None:
    counts = []
    for n in (50, 5_000):
        data, noise = torch.randn(n), torch.ones(n)
        guide = made(hierarchy, 4, data, noise)
        with Counted() as counted:
            (-guide.log_weights(2, 4, data, noise)[1].mean()).backward()
        counts.append(counted.total)
    assert counts[0] == counts[1] > 1_000


def test_a_fit_ends_and_keeps_what_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of normal data are exact before any training, which then is taken back."""
    guide = AutoMDM(hierarchy, steps=2, row_steps=2)
    guide.fit(5, updates=4, start_updates=4, learning_rate=0.1, progress=False)
    assert guide.row_weights(20, 5).log_weights.std(0).max() < 1e-4
    assert guide.losses.shape == (4,)
    reads = itertools.count()
    monkeypatch.setattr("pyro_mdm.budgets.monotonic", lambda: 0.01 * next(reads))
    guide.fit(5, seconds=0.5, progress=False)
    assert set(guide.outcomes) == {"Gaussian", "chain"}
    assert "kept: " in repr(guide.check(5, other=None, num_samples=100))


@pytest.mark.parametrize("size, is_kept", [(math.nan, False), (0.3, False), (0.0, True)])
def test_a_chain_of_rows_is_kept_where_its_bound_rises(
    size: float, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By trainings that lead to a bias that far from the exact one, 0, and from 0.1."""
    guide = made(hierarchy, 5, **NEAR)
    bias = guide.get_parameter("chain.rows.begin.2.bias")
    bias.data.fill_(0.1)

    def training(_: Fitting) -> Tensor:
        bias.data.fill_(size)
        return torch.zeros(0)

    monkeypatch.setattr(Fitting, "from_start", training)
    guide.fit(5, progress=False)
    assert (bias == (size if is_kept else 0.1)).all()


# -- mistakes --------------------------------------------------------------------------------------


def coupled() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", N, subsample_size=4) as rows:
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(z.mean(-1, keepdim=True), 1.0), obs=DATA[rows])


def summed() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", N, subsample_size=4):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
    pyro.sample("sum", dist.Normal(z.sum(), 1.0), obs=torch.tensor(3.0))


def fixed() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", N, subsample_size=4):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=DATA[:4])


def discrete() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", N, subsample_size=4) as rows:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(mean + z, 1.0), obs=DATA[rows])


def two() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    for name in ("first", "second"):
        with pyro.plate(name, N, subsample_size=4) as rows:
            pyro.sample(f"y_{name}", dist.Normal(mean, 1.0), obs=DATA[rows])


def loop() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", N, subsample_size=4):
        pyro.sample(f"y_{i}", dist.Normal(mean, 1.0), obs=DATA[i])


def inside() -> None:
    with pyro.plate("rows", N, subsample_size=4) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=DATA[rows])


def masked() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", N, subsample_size=4) as rows:
        known = torch.tensor([True, True, False, True])
        pyro.sample("y", dist.Normal(mean, 1.0), obs=DATA[rows], obs_mask=known)


@pytest.mark.filterwarnings("ignore:this guide shares")
@pytest.mark.parametrize(
    "program, options, message",
    [
        (coupled, {}, "rows of the plate 'rows' have another density beside other rows"),
        (summed, {}, "sites outside of it have another density beside other rows"),
        (fixed, {}, r"stay the same when it draws other rows.* data\[rows\]"),
        (discrete, {}, "'rows' draws a subsample .* has discrete latents"),
        (two, {}, "the plates 'first', 'second' draw subsamples, expected one at most"),
        (loop, {}, "'rows' is a loop over a subsample"),
        (inside, {}, "all latents are in the plate 'rows'"),
        (masked, {}, "'y_unobserved' is masked"),
        (lambda: hierarchy(4), {"start": "particles"}, "the start is 'gaussian'"),
    ],
)
def test_programs_that_cannot_be_subsampled_are_named(
    program: Callable[[], None], options: dict[str, Any], message: str
) -> None:
    guide = AutoMDM(program, steps=2, **options)
    for _ in range(2):  # what failed is not taken for done
        with pytest.raises(ValueError, match=message):
            guide.fit(updates=1, start_updates=1, progress=False)


@pytest.mark.parametrize(
    "call",
    [
        lambda guide: guide.gap(4),
        lambda guide: guide.check(4, other={"mean": torch.randn(30)}),
        lambda guide: Weighing(guide, (4,)).two_sided({"mean": torch.tensor(0.0)}, 3),
    ],
)
def test_what_needs_all_rows_is_refused(call: Callable[[AutoMDM], Any]) -> None:
    with pytest.raises(NotImplementedError, match="take all rows, without subsample_size"):
        call(made(hierarchy, 4))


def funnel(batch: int = N) -> None:
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    mean = pyro.sample("mean", dist.Normal(0.0, scale))
    subsample_size = batch if batch < N else None
    with pyro.plate("rows", N, subsample_size=subsample_size) as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=DATA[rows])


@pytest.mark.parametrize("batch, starts", [(N, {"particles", "shaped"}), (4, set())])
def test_remedies_name_starts_that_the_guide_may_take(batch: int, starts: set[str]) -> None:
    guide = made(funnel, batch)
    guide.fit(batch, updates=1, start_updates=1, progress=False)
    result = SimpleNamespace(disagrees=True, is_thin=False, second=None, lacks="", misfit=0.0)
    words = " ".join(remedies_of(guide, cast(Checkup, result), batch))
    assert "a funnel" in words and "heavy tails" in words and "disagree" in words
    assert set(re.findall(r"start='(\w+)'", words)) == starts


def test_equal_data_are_no_mistake() -> None:
    made(hierarchy, 4, torch.ones(N), torch.ones(N))
