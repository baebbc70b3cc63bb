"""Learned likelihoods of discrete numbers, and of mixed ones, held to those that are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_mdm.posteriors import AmortizedLikelihood, simulate
from pyro_mdm.posteriors.discrete import DiscreteLaw, Lattice, MixedLaw, law_of
from pyro_mdm.posteriors.reading import bounds_of
from tests.mistakes import refused

SMALL: dict[str, Any] = {
    "steps": 250,
    "batch_size": 128,
    "hidden": 16,
    "depth": 1,
    "vectorized": True,
}

LEVELS = Lattice(0.0, 1.0, 0.0, 2.0)
COUNT = Lattice(0.0, 1.0, 0.0, math.inf)
FIVES = Lattice(3.0, 5.0, -math.inf, math.inf)
BETWEEN = Lattice(-10.0, 1.0, -10.0, 40.0)
UNDER = Lattice(7.0, 1.0, -math.inf, 7.0)
THETA = torch.tensor([[0.3, -0.5], [1.0, 1.0], [-1.2, 0.2]])
RANGES = {
    COUNT: (0, 300),
    FIVES: (-997, 1003),
    BETWEEN: (-10, 41),
    UNDER: (-300, 8),
    LEVELS: (0, 3),
}


def random_law(*lattices: Lattice) -> DiscreteLaw:
    """A law of random weights, of numbers that have spread about 5."""
    torch.manual_seed(0)
    law = DiscreteLaw(2, lattices, 16, 1)
    for parameter in law.parameters():
        nn.init.normal_(parameter, std=0.2)
    for place, j in enumerate(law.wide):
        middle = lattices[j].coordinate(torch.tensor(float(lattices[j].value(torch.tensor(1.0)))))
        law.center[place] = middle
        law.unit[place] = 5.0 if lattices[j] is FIVES else 0.3
    return law.requires_grad_(False)


def values(lattice: Lattice) -> Tensor:
    """Those that have nearly all probability."""
    first, end = RANGES[lattice]
    return torch.arange(first, end, lattice.gap)


# -- laws of networks that have learned nothing ----------------------------------------------------


@pytest.mark.parametrize("lattice", RANGES, ids=["count", "fives", "between", "under", "levels"])
def test_probabilities_sum_to_one(lattice: Lattice) -> None:
    """Of a number after one of few values, and before one; later numbers change nothing."""
    for pair in ((LEVELS, lattice), (lattice, LEVELS), (lattice, COUNT)):
        law = random_law(*pair)
        grid = torch.cartesian_prod(*(values(own) for own in pair))
        p = law.by_datum(grid.unsqueeze(0), THETA).exp()
        torch.testing.assert_close(p.sum(1), torch.ones(3).double(), atol=2e-3, rtol=0)
        assert float(p.max()) < 0.97


def test_values_are_those_whose_cells_have_the_coordinate() -> None:
    for lattice in RANGES:
        x = values(lattice)
        torch.testing.assert_close(lattice.value(lattice.coordinate(x)), x.double())
        edges = torch.cat([lattice.coordinate(x - lattice.gap / 2 * side) for side in (0.9, -0.9)])
        assert torch.equal(lattice.value(edges), x.double().repeat(2))
        assert bool(lattice.has(x).all()) and not bool(lattice.has(x + 0.5).any())
    assert not bool(BETWEEN.has(torch.tensor([-11.0, 41.0, math.nan])).any())
    assert UNDER.value(torch.tensor([9.0, 0.0])).tolist() == [7.0, 7.0]


@pytest.mark.parametrize("pair", [(LEVELS, COUNT), (BETWEEN, LEVELS), (FIVES, UNDER)])
def test_draws_have_the_probabilities(pair: tuple[Lattice, Lattice]) -> None:
    law, theta, n = random_law(*pair), THETA[:1], 4000
    torch.manual_seed(1)
    drawn = law.sample(theta, n)
    assert drawn.shape == (1, n, 2)
    seen, counts = drawn[0].unique(dim=0, return_counts=True)
    expected = n * law.by_datum(seen.unsqueeze(0), theta)[0].exp()
    often = expected > 5
    apart = ((counts - expected).square() / expected)[often]
    rest = float(counts[~often].sum()), n - float(expected[often].sum())
    chi = float(apart.sum()) + (rest[0] - rest[1]) ** 2 / rest[1]
    assert int(often.sum()) > 4
    assert chi < float(often.sum()) + 5 * math.sqrt(2 * float(often.sum()))


def test_data_that_are_no_values_have_none_and_missing_ones_do_not_count() -> None:
    law, theta = random_law(LEVELS, COUNT), torch.randn(2, 2)
    x = torch.tensor([[1.0, 4.0], [1.0, -1.0], [3.0, 4.0], [0.5, 4.0], [1.0, 4.5]])
    log_p = law.by_datum(x.unsqueeze(0), theta)
    assert bool(log_p[:, 0].isfinite().all()) and bool((log_p[:, 1:] == -math.inf).all())
    missing = torch.cat([x[:1], x[:1] * math.nan]).unsqueeze(0)
    torch.testing.assert_close(
        law.by_datum(missing, theta).sum(1), log_p[:, 0], rtol=1e-5, atol=1e-5
    )
    many = x[:1].expand(1, 5000, 2)
    torch.testing.assert_close(
        law.by_datum(many, theta).sum(1), 5000 * log_p[:, 0], rtol=1e-5, atol=0
    )


# -- posteriors and evidence -----------------------------------------------------------------------


def trials() -> None:
    """A Beta prior, and binomial numbers of few values."""
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("series", 3):
        pyro.sample("k", dist.Binomial(10, p))


def log_beta(a: Tensor | float, b: Tensor | float) -> Tensor:
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def log_choose(n: float, k: Tensor) -> Tensor:
    return -torch.tensor(n + 1.0).double().log() - log_beta(n - k + 1, k + 1)


def test_the_posterior_and_the_evidence_of_binomial_numbers_are_those_of_a_conjugate_law() -> None:
    """Of more data than the program has, some of them missing."""
    likelihood = AmortizedLikelihood.fit(trials, ["p"], ["k"], simulations=2000, **SMALL)
    x = torch.tensor([3.0, 6.0, math.nan, 4.0, 4.0])
    known = x[x.isfinite()]
    a, b = 2 + float(known.sum()), 3 + float((10 - known).sum())
    result = likelihood.posterior({"k": x}, 2000, particles=2000, moves=3)
    p = result.draws["p"]
    assert float(p.mean()) == pytest.approx(a / (a + b), abs=0.05)
    assert float(p.std()) == pytest.approx(math.sqrt(a * b / (a + b + 1)) / (a + b), rel=0.3)
    exact = log_choose(10.0, known).sum() + log_beta(a, b) - log_beta(2.0, 3.0)
    assert result.log_evidence.mean == pytest.approx(float(exact), abs=0.4)
    drawn = likelihood.sample({"p": torch.full((500,), 0.3)}, plates={"series": 4}, seed=0)["k"]
    assert drawn.shape == (500, 4) and bool(((drawn >= 0) & (drawn <= 10)).all())
    assert float(drawn.mean()) == pytest.approx(3.0, abs=0.6)


@pytest.mark.slow
def test_the_bayes_factor_of_the_guide_is_the_exact_one() -> None:
    """Its example with another training: what it prints."""
    page = (Path(__file__).parents[2] / "docs/guide/simulator-likelihoods.md").read_text(
        encoding="utf-8"
    )
    (block,) = (part.split("```")[0] for part in page.split("```python\n") if "def bursts" in part)
    small = '"simulations": 2000, "steps": 500}'
    assert small in block
    more = '"simulations": 3000, "steps": 400, "hidden": 16, "vectorized": True}'
    names: dict[str, Any] = {}
    exec(block.replace(small, more), names)
    exact = names["log_steady"], names["log_bursts"]
    assert names["evidence"] == pytest.approx(exact, abs=0.25)
    x, grid = names["counts"].double(), (torch.arange(20_000).double() + 0.5) / 20_000
    for value, prior, law, top in (
        (exact[0], dist.Exponential(0.5), dist.Poisson, 40),
        (exact[1], dist.Beta(2.0, 1.0), dist.Geometric, 1),
    ):
        theta = top * grid
        joint = prior.log_prob(theta) + law(theta.unsqueeze(1)).log_prob(x).sum(1)
        assert value == pytest.approx(float(joint.exp().mean().log()) + math.log(top), abs=1e-3)


def categories() -> None:
    """Several kinds of data: a category, a number given it, and one that is made of draws."""
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    logits = torch.stack([theta, torch.zeros_like(theta), -theta], -1)
    with pyro.plate("data", 2):
        kind = pyro.sample("kind", dist.Categorical(logits=logits))
        pyro.sample("x", dist.Normal(theta + kind, 0.5))
    thrown = pyro.sample("thrown", dist.Binomial(60, torch.sigmoid(theta)))
    pyro.deterministic("prize", 5 * thrown + 2)


@pytest.fixture(scope="module")
def mixed() -> AmortizedLikelihood:
    return AmortizedLikelihood.fit(
        categories, ["theta"], ["kind", "x", "prize"], simulations=3000, form="gaussian", **SMALL
    )


@pytest.mark.slow
def test_a_density_of_mixed_data_is_that_of_the_program(
    mixed: AmortizedLikelihood, tmp_path: Path
) -> None:
    draws = simulate(categories, 300, seed=9, vectorized=True)
    theta, kind = draws["theta"].unsqueeze(1), draws["kind"]
    logits = torch.stack([theta, torch.zeros_like(theta), -theta], -1)
    exact = dist.Categorical(logits=logits).log_prob(kind)
    exact = exact + dist.Normal(theta + kind, 0.5).log_prob(draws["x"])
    thrown = dist.Binomial(60, theta.squeeze(1).sigmoid()).log_prob(draws["thrown"])
    log_p = mixed.log_prob(draws, draws)
    assert float((exact.sum(1) + thrown - log_p).mean()) == pytest.approx(0.0, abs=0.15)
    assert mixed.lattices[1][0]._replace(origin=2.0) == Lattice(2.0, 5.0, -math.inf, math.inf)
    without = {"kind": draws["kind"] * math.nan, "x": draws["x"] * math.nan}
    rest = mixed.log_prob(draws | without, draws)
    assert float((thrown - rest).mean()) == pytest.approx(0.0, abs=0.1)
    drawn = mixed.sample({"theta": torch.full((400,), 0.8)}, seed=0)
    assert drawn["kind"].shape == (400, 2) and drawn["prize"].shape == (400,)
    assert bool((drawn["prize"] % 5 == 2).all())
    for level in range(3):
        at = drawn["kind"] == level
        assert float(drawn["x"][at].mean()) == pytest.approx(0.8 + level, abs=0.3)
    few = {name: value[:9] for name, value in draws.items()}
    for form in ("mixture", "gaussian"):
        mixed.laws[0].form = mixed.laws[0].continuous.form = form
        mixed.save_pretrained(tmp_path)
        again = AmortizedLikelihood.from_pretrained(tmp_path, categories)
        saved, own = again.log_prob(few, few), mixed.log_prob(few, few)
        assert torch.equal(saved, own)
    torch.testing.assert_close(own, log_p[:9], rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("form", ["gaussian", "mixture"])
@pytest.mark.parametrize("n", [1, 3])
def test_the_network_is_evaluated_once_for_each_value_of_discrete_numbers(
    form: Any, n: int
) -> None:
    """Not for each of twelve data; the densities are those of one datum at a time."""
    torch.manual_seed(0)
    law = law_of(2, [Lattice(0.0, 1.0, 0.0, 1.0), None], 8, 1)
    assert isinstance(law, MixedLaw)
    for parameter in law.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    law.continuous.form = form
    x, theta = torch.randn(n, 12, 2), torch.randn(3, 2)
    x[..., 0] = (torch.arange(12) % 2).float()
    x[:, 7] = math.nan
    rows: list[int] = []
    law.continuous.gaussian.inlet.register_forward_hook(
        lambda _, args, __: rows.append(len(args[0]))
    )
    with torch.no_grad():
        together = law.by_datum(x, theta)
        assert sum(rows) == 3 * 2
        apart = torch.cat([law.by_datum(datum, theta) for datum in x.split(1, 1)], 1)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


# -- which numbers are discrete, and which values they have ----------------------------------------


def several_supports() -> None:
    theta = pyro.sample("theta", dist.Uniform(0.0, 2.0))
    pyro.sample("fixed", dist.Uniform(torch.tensor([1.0, -2.0]), 3.0).to_event(1))
    pyro.sample("half", dist.Uniform(-1.0, theta))
    pyro.sample("shifted", dist.Uniform(theta, theta + 1))
    pyro.sample("positive", dist.LogNormal(theta, torch.ones(2)).to_event(1))
    pyro.sample("real", dist.Normal(theta, 1.0))
    ends = dist.Uniform(torch.tensor([-1.0, 2.0]), torch.tensor([0.0, 4.0]))
    pyro.sample("mixture", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), ends))
    pyro.sample("count", dist.Poisson(theta).mask(False))
    pyro.sample("trials", dist.Binomial((1000 * theta).ceil() + 3, 0.5))  # another end in each run
    pyro.sample("coin", dist.Bernoulli(0.5))
    pyro.sample("hot", dist.OneHotCategorical(torch.ones(2)))
    pyro.sample("balls", dist.Multinomial(5, torch.ones(2)))
    pyro.deterministic("flag", theta > 1)
    pyro.deterministic("computed", theta)


def test_bounds_are_those_of_every_run() -> None:
    nothing = math.inf
    expected = {
        "fixed": ([1.0, -2.0], [3.0, 3.0]),
        "half": (-1.0, nothing),
        "shifted": (-nothing, nothing),
        "positive": ([0.0, 0.0], [nothing, nothing]),
        "real": (-nothing, nothing),
        "mixture": (-1.0, 4.0),
        "count": (0.0, nothing),
        "trials": (0.0, nothing),
        "coin": (0.0, 1.0),
        "hot": ([0.0, 0.0], [1.0, 1.0]),
        "balls": ([0.0, 0.0], [5.0, 5.0]),
        "flag": (0.0, 1.0),
        "computed": (-nothing, nothing),
    }
    bounds = bounds_of(several_supports, list(expected))
    assert {name: (low.tolist(), high.tolist()) for name, (low, high) in bounds.items()} == expected


def hidden_counts() -> None:
    a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
    pyro.deterministic("x", pyro.sample("k", dist.Poisson(a)).log1p())


def often_zero() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.deterministic("x", (pyro.sample("k", dist.Normal(a, 0.1)) - 0.7).relu())


def shares() -> None:
    a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
    pyro.sample("x", dist.Dirichlet(a * torch.ones(3)))


def test_numbers_that_repeat_and_are_not_whole_are_refused_and_values_are_of_the_support() -> None:
    fit = AmortizedLikelihood.fit
    draws = simulate(trials, 50, seed=0, vectorized=True)
    refused(
        TypeError,
        *(
            (
                lambda program=program: fit(program, ["a"], ["x"], simulations=60),
                r"a number of 'x' has \d+ values in 60 .* is not whole.*; observe the draw that",
            )
            for program in (hidden_counts, often_zero)
        ),
        (
            lambda: fit(shares, ["a"], ["x"], simulations=60),
            r"the 3 numbers of 'x' have 2 degrees of freedom \(Simplex.*; observe as many of them",
        ),
    )
    refused(
        ValueError,
        (
            lambda: fit(trials, ["p"], ["k"], draws=draws | {"k": draws["k"] + 8}),
            "'k' has the values .*, expected whole numbers from 0 to 10, its support",
        ),
    )
