"""Densities of programs with many values of their latents at once, and what has none."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from pyro_mdm.automatic import AutoMDM

DATA = torch.tensor([1.0, 0.5, -1.0, 2.0])


def made(program: Callable[..., Any]) -> AutoMDM:
    guide = AutoMDM(program, steps=2)
    guide()
    return guide


# -- discrete sites --------------------------------------------------------------------------------


def mixture(size: int = 4, mask: Tensor | None = None) -> None:
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    known = torch.ones(4).bool() if mask is None else mask
    with pyro.plate("data", size, subsample=torch.arange(4)), poutine.mask(mask=known):
        own = pyro.sample("own", dist.Categorical(torch.tensor([0.3, 0.7])))
        mean = torch.where(own == 0, means[..., 0], means[..., 1])
        pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA)


def tenth() -> None:
    with poutine.scale(scale=0.1):
        mixture()


def chained() -> None:
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    own: Any = 0
    for t in pyro.markov(range(4)):
        stay = torch.where(torch.as_tensor(own) == 0, 0.8, 0.3)
        own = pyro.sample(f"own{t}", dist.Bernoulli(stay)).long()
        mean = torch.where(own == 0, means[..., 0], means[..., 1])
        pyro.sample(f"x{t}", dist.Normal(mean, 1.0), obs=DATA[t])


def of_forty() -> None:
    mixture(40)


def half() -> None:
    mixture(mask=torch.tensor([True, True, False, False]))


PROGRAMS = (mixture, of_forty, tenth, half, chained)


def by_pyro(program: Callable[[], Any], row: Tensor) -> float:
    def guide() -> None:
        pyro.sample("means", dist.Delta(row, event_dim=1))

    return -TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(program), guide)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("rows", [1, 3])
def test_discrete_sites_are_summed_over_as_by_pyro(program: Callable[[], Any], rows: int) -> None:
    x = torch.randn(rows, 2)
    expected = torch.tensor([by_pyro(program, row) for row in x])
    torch.testing.assert_close(made(program).log_density(x), expected)


def test_sums_around_are_not_disturbed() -> None:
    guide = made(chained)
    program = config_enumerate(chained)
    before = TraceEnum_ELBO(max_plate_nesting=2).loss(program, guide)
    assert math.isfinite(before)


def test_scales_that_differ_are_refused() -> None:
    def program() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        own = pyro.sample("own", dist.Bernoulli(0.5))
        with poutine.scale(scale=0.5):
            pyro.sample("x", dist.Normal(mean + own, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"scales from 0\.5 to 1\.0, expected one"):
        made(program)


# -- programs as they are written ------------------------------------------------------------------


def regression() -> None:
    x = torch.linspace(-1, 1, 12).reshape(6, 2)
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    root = pyro.sample("root", dist.LKJCholesky(2, 1.5))
    with pyro.plate("rows", 6):
        pyro.sample("y", dist.Normal(x @ w + w.mean(), noise), obs=torch.ones(6))
    pyro.sample("pair", dist.MultivariateNormal(w, scale_tril=noise * root), obs=torch.zeros(2))
    pyro.factor("odd", -w[0].abs())


def unplated() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean, torch.ones(2)), obs=torch.ones(2))


@pytest.mark.parametrize("program", [regression, unplated])
def test_programs_need_not_be_written_for_many_values(program: Callable[[], Any]) -> None:
    guide = made(program)
    _, potential, transforms, _ = initialize_model(program)
    names = list(transforms)
    x = torch.randn(3, guide.latent_dim)
    for row, value in zip(x, guide.log_density(x), strict=True):
        sizes = [transforms[name](site["value"]).shape for name, site in sites_of(program)]
        parts = row.split([math.prod(size) for size in sizes])
        by_site = {n: p.reshape(s) for n, p, s in zip(names, parts, sizes, strict=True)}
        assert float(value) == pytest.approx(-float(potential(by_site)), rel=1e-5)


def counted() -> None:
    shares, p = torch.zeros(3), pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    shares[:] = p
    pyro.sample("counts", dist.Multinomial(6, shares), obs=torch.tensor([1.0, 2.0, 3.0]))
    pyro.sample("own", dist.Bernoulli(p[0]))


def placed() -> None:
    both = torch.zeros(2)
    both[0] = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(both, 1.0).to_event(1), obs=torch.ones(2))


@pytest.mark.parametrize("program", [counted, placed])
def test_programs_that_cannot_be_batched_are_run_row_by_row(program: Callable[[], Any]) -> None:
    with pytest.warns(UserWarning, match="one after another"):
        guide = made(program)
    _, potential, transforms, _ = initialize_model(config_enumerate(program), max_plate_nesting=0)
    (name,) = transforms
    x = torch.randn(3, guide.latent_dim, requires_grad=True)
    value = guide.log_density(x)
    shape = x.shape[1:] if guide.latent_dim > 1 else ()
    expected = -torch.stack([potential({name: row.reshape(shape)}) for row in x])
    torch.testing.assert_close(value, expected)
    slopes = (torch.autograd.grad(of.sum(), x)[0] for of in (value, expected))
    torch.testing.assert_close(*slopes)


def test_rows_whose_matrix_is_singular_have_no_density() -> None:
    def program() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 0.2))  # so that no draw is below -2
        root = torch.linalg.cholesky(torch.eye(2) * (x + 2))
        pyro.sample(
            "y", dist.MultivariateNormal(torch.zeros(2), scale_tril=root), obs=torch.ones(2)
        )

    value = made(program).log_density(torch.tensor([[0.5], [-3.0], [1.0], [-2.5]]))
    assert value.isnan().tolist() == [False, True, False, True]
    expected = dist.Normal(0.0, 0.2).log_prob(torch.tensor(0.5))
    expected = expected + 2 * dist.Normal(0.0, 2.5**0.5).log_prob(torch.tensor(1.0))
    assert float(value[0]) == pytest.approx(float(expected), rel=1e-5)


def test_latents_of_one_hot_are_summed_over() -> None:
    def program() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        own = pyro.sample("own", dist.OneHotCategorical(torch.tensor([0.3, 0.7])))
        pyro.sample("y", dist.Normal(mean + own[..., 1], 1.0), obs=torch.tensor(1.0))

    parts = [
        math.log(p) + dist.Normal(m, 1.0).log_prob(torch.tensor(1.0))
        for p, m in ((0.3, 0.5), (0.7, 1.5))
    ]
    expected = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.5)) + torch.logaddexp(*parts)
    assert float(made(program).log_density(torch.tensor([[0.5]]))) == pytest.approx(float(expected))


def sites_of(program: Callable[[], Any]) -> list[tuple[str, Any]]:
    trace = poutine.trace(program).get_trace()
    return list(poutine.util.prune_subsample_sites(trace).iter_stochastic_nodes())


# -- programs without one density ------------------------------------------------------------------


def some_latents() -> None:
    with pyro.plate("rows", 100, subsample=torch.arange(3)):
        pyro.sample("z", dist.Gamma(2.0, 1.0))


def masked() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4):
        known = torch.tensor([True, True, False, True])
        pyro.sample("y", dist.Normal(mean, 1.0), obs=DATA, obs_mask=known)


def moving() -> None:
    most = pyro.sample("most", dist.LogNormal(0.0, 1.0))
    pyro.sample("part", dist.Uniform(torch.zeros(()), most))


def changing() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.tensor(random.random()))


WITHOUT: list[tuple[Callable[..., Any], str]] = [
    (some_latents, "'z' is in the plate 'rows' with 3 of 100 rows, expected all"),
    (changing, "changes from run to run"),
    (masked, "'y_unobserved' is masked, .* flat in part"),
    (moving, "the support of 'part' changes with other latents"),
]


@pytest.mark.filterwarnings("ignore:this guide shares")
@pytest.mark.parametrize("program, message", WITHOUT)
def test_programs_without_one_density_are_named(program: Callable[..., Any], message: str) -> None:
    guide = AutoMDM(program, steps=2)
    for _ in range(2):  # what failed is not taken for done
        with pytest.raises(ValueError, match=message):
            guide.fit(updates=1, start_updates=1, progress=False)


def five() -> None:
    with pyro.plate("rows", 5):
        pyro.sample("x", dist.Normal(0.0, 1.0))


FIRST_CALLS: dict[str, Callable[[AutoMDM], Any]] = {
    "call": lambda guide: guide(),
    "get_posterior": lambda guide: guide.get_posterior().sample(),
    "log_density": lambda guide: guide.log_density(torch.zeros(3, 5)),
    "log_weights": lambda guide: guide.log_weights(3),
    "importance": lambda guide: guide.importance(32).effective,
    "sample_posterior": lambda guide: guide.sample_posterior(3),
    "resampled": lambda guide: guide.sample_posterior(3, resample=True),
    "moments": lambda guide: guide.moments(32),
    "quantiles": lambda guide: guide.quantiles([0.1, 0.9]),
    "median": lambda guide: guide.median(),
}


@pytest.mark.filterwarnings("ignore:.* with heavy tails count", "ignore:.*of (the )?draws")
@pytest.mark.parametrize("call", FIRST_CALLS.values(), ids=FIRST_CALLS)
def test_any_call_may_be_the_first(call: Callable[[AutoMDM], Any]) -> None:
    found = call(AutoMDM(five, steps=2))
    assert found is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the weights have a tail")
def test_a_density_that_is_nowhere_in_part_is_said_and_counts_as_zero() -> None:
    def program() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("positive", torch.log(x + 1) * 2)

    guide = AutoMDM(program, steps=4, init_scale=1.0)
    with pytest.warns(UserWarning, match="draws have a density that is NaN or infinite"):
        raw = guide.importance(4_000)
        guide.fit(updates=50, start_updates=100, progress=False)
        trained = guide.importance(4_000)
    grid = torch.linspace(-1, 8, 100_001)[1:].double()
    log_p = dist.Normal(0.0, 1.0).log_prob(grid) + 2 * torch.log(grid + 1)
    evidence = float(log_p.logsumexp(0) + math.log(9 / 100_000))
    assert abs(raw.log_evidence.mean - evidence) < 5.5 * raw.log_evidence.standard_error
    assert abs(trained.log_evidence.mean - evidence) < 0.1
    assert raw.log_evidence.standard_error < 0.8  # the tail counts
