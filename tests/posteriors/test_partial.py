"""Tasks of conditionals of parameters and data: programs, masks, exact draws, scores and table."""

from __future__ import annotations

import itertools
import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import ensemble
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from inference.simulators.two_moons import OFFSET, RADIUS, WIDTH, shift
from tests.benchmarks.partial import __main__ as command, checks, references, summary
from tests.benchmarks.partial.references import reference, slcp_means, walk_on_grid
from tests.benchmarks.partial.scores import c2st
from tests.benchmarks.partial.tasks import KINDS, TASKS, covariance, mask_of

FAR = 5.5
"""Standard errors that a right mean of draws exceeds in one of 26 million."""


def near(draws: Tensor, mean: float | Tensor, variance: float | Tensor) -> bool:
    """Whether draws (n, …) of a Gaussian number have a mean and a variance, up to chance."""
    n = len(draws)
    mean, variance = torch.as_tensor(mean), torch.as_tensor(variance)
    off = (draws.mean(0) - mean).abs() / (variance / n).sqrt()
    wide = (draws.var(0) / variance - 1).abs() / math.sqrt(2 / n)
    return bool((off < FAR).all() and (wide < FAR).all())


def mask(task: str, *given: int) -> Tensor:
    chosen = torch.zeros(TASKS[task].numbers, dtype=torch.bool)
    chosen[list(given)] = True
    return chosen


# -- programs and masks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tree", "hmm", "slcp"])
def test_log_densities_are_those_of_the_programs(name: str) -> None:
    # a datum of SLCP may have a standard deviation of 1e-3, where float32 leaves four digits
    assert checks.density_difference(TASKS[name], 10) < 1e-3


def test_the_density_of_two_moons_integrates_to_1() -> None:
    task, half = TASKS["two_moons"], 0.2
    edge = (torch.arange(400, dtype=torch.float64) + 0.5) / 400 * 2 * half - half
    x = torch.cartesian_prod(edge, edge) + torch.tensor([OFFSET, 0.0])
    theta = torch.tensor([0.2, 0.5], dtype=torch.float64)
    z = torch.cat([theta.expand(len(x), -1), x + shift(theta)], 1)
    total = task.log_density(z).exp().sum() * (2 * half / 400) ** 2
    assert float(total) == pytest.approx(0.25, rel=1e-4)  # the density of θ
    z[:, 0] = 1.5
    assert bool((task.log_density(z) == -math.inf).all())


@pytest.mark.parametrize("name", TASKS)
def test_masks_are_of_their_kind(name: str) -> None:
    task, generator = TASKS[name], torch.Generator().manual_seed(0)
    p = task.parameters
    for kind in KINDS:
        drawn = torch.stack([mask_of(task, kind, generator) for _ in range(50)])
        parameters, data = drawn[:, :p], drawn[:, p:]
        assert not drawn.all(1).any()
        pairs = data.unflatten(1, (-1, task.together))
        assert bool((pairs.all(-1) == pairs.any(-1)).all())
        if kind in ("posterior", "part", "joint"):
            assert not parameters.any()
        if kind in ("posterior", "joint"):
            assert data.all() if kind == "posterior" else not data.any()
        if kind == "likelihood":
            assert parameters.all() and not data.any()
        if kind == "part":
            assert data.any(1).all() and not data.all(1).any()


# -- exact draws -----------------------------------------------------------------------------------


def test_draws_on_a_grid_are_those_of_a_gaussian_tree() -> None:
    """With Gaussian data, the joint distribution is known: all means and the covariance."""
    parents, scale, seen = [None, 0, 1, 1], 0.7, {1: 0.4, 3: -0.9}
    grid = references._grid(8.0, 1000)
    prior = torch.zeros(4, 4, dtype=torch.float64)  # precision of the walk
    for j, up in enumerate(parents):
        edge = torch.zeros(4, dtype=torch.float64)
        edge[j] = 1.0
        if up is not None:
            edge[up] = -1.0
        prior += edge.outer(edge) / scale**2
    log_local, precision, linear = grid.new_zeros(4, len(grid)), prior.clone(), grid.new_zeros(4)
    for j, value in seen.items():
        log_local[j] = Normal(grid, 0.5).log_prob(torch.tensor(value, dtype=torch.float64))
        precision[j, j] += 4
        linear[j] += 4 * value
    known = {2: torch.tensor(0.3, dtype=torch.float64)}
    free = [0, 1, 3]
    within = precision[free][:, free]
    mean = torch.linalg.solve(within, linear[free] - precision[free, 2] * 0.3)
    exact = torch.linalg.inv(within)
    generator = torch.Generator().manual_seed(0)
    drawn = walk_on_grid(parents, scale, log_local, grid, known, 1_500, generator)
    assert bool((drawn[:, 2] == 0.3).all())
    # whitened, so that covariances count too
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(exact), (drawn[:, free] - mean).T, upper=False
    ).T
    assert near(whitened, 0.0, 1.0)
    products = (whitened.T @ whitened / len(drawn)).fill_diagonal_(0)
    assert float(products.abs().max()) < FAR / math.sqrt(len(drawn))


@pytest.mark.parametrize("known", [(), (0,), (1,), (0, 1)])
def test_the_weight_of_a_covariance_is_an_integral_over_means(known: tuple[int, ...]) -> None:
    theta = torch.tensor([[0.9, 1.1, 0.4], [1.3, -0.8, -0.7]], dtype=torch.float64)
    z = TASKS["slcp"].draws(1, seed=3)[0].double()
    z[:2], z[2:5], z[5:] = torch.tensor([0.3, -0.2]), theta[0], 0.5 * torch.randn(8)
    given = mask("slcp", *known, *range(5, 11))  # three of the four data
    log_weight, mean, root = slcp_means(theta, given, z)
    edge = torch.linspace(-6, 6, 601, dtype=torch.float64)
    axes = [z[j : j + 1] if j in known else edge for j in range(2)]
    means = torch.cartesian_prod(*axes)
    data, step = z[5:11].unflatten(0, (3, 2)), 0.02
    for k in range(2):
        law = MultivariateNormal(data, covariance(theta[k]))
        log_p = sum(law.log_prob(means[:, None])[:, j] for j in range(3))
        whole = log_p.logsumexp(0) + (2 - len(known)) * math.log(step)
        # a factor of 2π for each of three data, and its root for each mean that is left
        constant = (3 - 0.5 * (2 - len(known))) * math.log(2 * math.pi)
        assert float(log_weight[k] - constant) == pytest.approx(float(whole), abs=1e-6)
        chance = log_p.softmax(0)
        free = [j for j in range(2) if j not in known]
        if free:
            expected = (chance.unsqueeze(1) * means)[:, free].sum(0)
            assert torch.allclose(mean[k], expected, atol=1e-6)
            spread = torch.einsum("n,ni,nj->ij", chance, *[means[:, free] - expected] * 2)
            assert torch.allclose(root[k] @ root[k].mT, spread, atol=1e-6)


@pytest.mark.parametrize(
    "given", [m for m in itertools.product([False, True], repeat=4) if not all(m)]
)
def test_draws_of_two_moons_are_on_the_moon_for_every_mask(given: tuple[bool, ...]) -> None:
    task, chosen = TASKS["two_moons"], torch.tensor(given)
    z = task.draws(1, seed=5)[0]
    drawn = reference("two_moons", task, chosen, z, 500, 0)
    assert torch.equal(drawn[:, chosen], z[chosen].double().expand(500, -1))
    theta, x = drawn.split(2, 1)
    p = x - shift(theta)
    radius = torch.hypot(p[:, 0] - OFFSET, p[:, 1])
    assert bool((theta.abs() <= 1).all() and (p[:, 0] > OFFSET - 1e-4).all())
    assert bool(((radius - RADIUS).abs() < 6 * WIDTH).all())
    assert bool((drawn[:, ~chosen].std(0) > 0).all())


@pytest.mark.parametrize(
    ("name", "kind", "repeats"),
    [("two_moons", kind, 100) for kind in ("posterior", "few", "many", "part")]
    + [("tree", "part", 50)],
)
def test_true_numbers_have_uniform_ranks_among_reference_draws(
    name: str, kind: str, repeats: int
) -> None:
    ranks = checks.ranks_of(name, kind, repeats)
    assert checks.least_p_value(ranks) > 1e-6


# -- scores, files and table -----------------------------------------------------------------------


def test_c2st_tells_draws_apart_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    few_trees = partial(ensemble.RandomForestClassifier, n_estimators=10)
    monkeypatch.setattr(ensemble, "RandomForestClassifier", few_trees)
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 100, 2))
    # 200 rows are right by chance with an error of 0.035
    assert abs(c2st(first, second) - 0.5) < FAR * 0.036
    assert c2st(first, second + 6) > 0.98
    assert c2st(first, np.full((100, 2), np.nan)) == 1.0


def test_rows_are_added_and_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, random = tmp_path / "rows.csv", np.random.default_rng(0)
    monkeypatch.setattr(command, "c2st", lambda *draws: random.uniform(0.4, 0.6))
    arguments = ["--tasks", "two_moons", "--methods", "reference", "--conditions", "2"]
    monkeypatch.setattr(sys, "argv", ["", *arguments, "--draws", "50", "--out", str(out)])
    for _ in range(2):  # the second finds all rows
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == 0
    rows = pd.read_csv(out)
    assert len(rows) == 1 + 2 * 5 and rows.c2st.between(0.2, 0.8).all()
    assert (rows[rows.kind == "part"].numbers == 2).all()  # the parameters alone
    summary.of_conditionals(out, tmp_path)
    table = pd.read_csv(tmp_path / "partial-conditionals.csv", comment="#")
    table = table.set_index("conditional")
    row = table.loc["two_moons, reference"]
    means = rows.groupby("kind").c2st.mean()
    assert row.c2st_posterior == pytest.approx(means.posterior, abs=1e-3)
    assert row.c2st == pytest.approx(means[list(KINDS[:5])].mean(), abs=1e-3)
    error = rows[rows.kind == "few"].c2st.std() / math.sqrt(2)
    assert row.c2st_few_se == pytest.approx(error, abs=1e-3)
    assert table.loc["slcp, simformer, published"].c2st == pytest.approx(0.739, abs=1e-3)
    assert not (tmp_path / "partial-draws.csv").exists()
