"""Tasks of the public benchmark of simulators, and the scores of their posteriors."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pyro import poutine

from pyro_mdm.posteriors import simulate
from tests.benchmarks import posteriors, runs
from tests.benchmarks.arena import methods, scores, tasks
from tests.benchmarks.arena.tasks import TASKS, by_site, flat

SIZES = {
    "two_moons": (2, 2),
    "slcp": (5, 8),
    "slcp_distractors": (5, 100),
    "gaussian_linear": (10, 10),
    "gaussian_linear_uniform": (10, 10),
    "gaussian_mixture": (2, 2),
    "bernoulli_glm": (10, 10),
    "bernoulli_glm_raw": (10, 100),
    "sir": (2, 10),
    "lotka_volterra": (4, 20),
}
"""Parameters and data of the benchmark's tasks."""


# -- tasks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_simulations_are_vectors_of_the_benchmark_and_back(name: str) -> None:
    task = TASKS[name]
    draws = simulate(task.program, 5, seed=0, vectorized=True)
    for names, size in zip((task.latent, task.observed), SIZES[name], strict=True):
        vectors = flat(draws, names)
        assert vectors.shape == (5, size) and vectors.isfinite().all()
        assert len(vectors.unique(dim=0)) == 5
        back = by_site(task, names, vectors)
        assert all(torch.equal(back[site], draws[site]) for site in names)
        one = by_site(task, names, vectors[3])
        assert all(torch.equal(one[site], draws[site][3]) for site in names)


def law_of(name: str, site: str, **values: Any) -> Any:
    """The law of a site of a task, given values of others."""
    given = {own: torch.as_tensor(value) for own, value in values.items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return poutine.trace(poutine.condition(TASKS[name].program, given)).get_trace().nodes[site]


def test_slcp_has_four_independent_data_of_one_covariance() -> None:
    site = law_of("slcp", "x", theta=[0.5, -1.0, 1.2, -0.7, 0.4])
    s, t = 1.2**2, 0.7**2
    covariance = torch.tensor([[s**2, math.tanh(0.4) * s * t], [math.tanh(0.4) * s * t, t**2]])
    torch.testing.assert_close(site["fn"].covariance_matrix, covariance.expand(4, 2, 2))
    torch.testing.assert_close(site["fn"].loc, torch.tensor([0.5, -1.0]).expand(4, 2))
    assert [frame.name for frame in site["cond_indep_stack"]] == ["data"]
    at_zero = law_of("slcp", "x", theta=[0.5, -1.0, 0.0, 0.0, 3.0])["fn"]
    assert at_zero.log_prob(torch.zeros(4, 2)).isfinite().all()


def test_data_of_the_glm_are_sums_at_spikes() -> None:
    u = tasks.stimulus()
    spikes = torch.zeros(100)
    spikes[[0, 4, 50]] = 1
    x = law_of("bernoulli_glm", "x", spikes=spikes)["value"]
    lags = [sum(float(u[t - k]) for t in (0, 4, 50) if t >= k) for k in range(9)]
    torch.testing.assert_close(x, torch.tensor([3.0, *lags]))
    weights = torch.arange(1.0, 10) / 10
    logits = law_of("bernoulli_glm", "spikes", offset=0.3, filter=weights)["fn"].base_dist.logits
    present = 0.3 + sum(float(weights[k] * u[4 - k]) for k in range(5))
    assert float(logits[4]) == pytest.approx(present, abs=1e-5)


def test_lotka_volterra_conserves_what_it_conserves() -> None:
    a, b, c, d = 0.9, 0.05, 0.8, 0.06
    rates = {"alpha": a, "beta": b, "gamma": c, "delta": d}
    u, v = (
        law_of("lotka_volterra", site, **rates)["fn"].base_dist.loc.double()
        for site in ("prey", "predators")
    )
    assert u.std() > 0.5
    kept = d * u.exp() - c * u + b * v.exp() - a * v
    start = d * 30 - c * math.log(30) + b
    torch.testing.assert_close(kept, torch.full_like(kept, start), rtol=1e-4, atol=0)


def test_distractors_do_not_depend_on_the_parameters_and_data_are_among_them() -> None:
    fixed = tasks.distractors()
    assert fixed.order.unique().numel() == 100
    theta = torch.tensor([0.5, -1.0, 0.1, 0.1, 0.4])
    data, noise = torch.randn(4, 2), torch.randn(92)
    x = law_of("slcp_distractors", "x", theta=theta, data=data, distractors=noise)["value"]
    parts = fixed.apart(x)
    assert torch.equal(parts["data"], data) and torch.equal(parts["distractors"], noise)
    near = [law_of("slcp_distractors", "data", theta=theta * s)["fn"].base_dist for s in (1, 2)]
    one = law_of("slcp", "x", theta=theta)["fn"]
    torch.testing.assert_close(near[0].covariance_matrix, one.covariance_matrix.expand(4, 2, 2))
    assert not torch.equal(near[0].loc, near[1].loc)
    # the share of draws below the center of each component, in each number
    torch.manual_seed(0)
    drawn = fixed.law().sample((400,))
    below = (drawn.unsqueeze(1) < fixed.loc).float().mean(0)
    scale = fixed.scale_tril.square().sum(-1).sqrt()
    apart = (fixed.loc.unsqueeze(1) - fixed.loc) / scale
    expected = (0.5 + apart / (2 * (2 + apart.square()).sqrt())).mean(1)  # Student's, 2 degrees
    torch.testing.assert_close(below, expected, rtol=0, atol=6 * 0.5 / 400**0.5)


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_c2st_tells_laws_that_differ_alone() -> None:
    rng = np.random.default_rng(0)
    reference, same = rng.normal(size=(2, 200, 2))
    assert scores.c2st(reference, same) == pytest.approx(0.5, abs=5 * 0.5 / 400**0.5)
    reference, other = rng.normal(size=(2, 400, 1))
    best = 0.5 * (1 + math.erf(1 / 2**0.5))
    unit = 1e-4  # is of no matter
    accuracy = scores.c2st(unit * reference, unit * (other + 2), folds=2)
    assert accuracy == pytest.approx(best, abs=5 * (best * (1 - best) / 320) ** 0.5)


def fake_environment(folder: Path, task: str, draws: int) -> Path:
    """References of a task that are draws of its prior, for the first two observations."""
    for k in (1, 2):
        place = folder / "sbibm" / "sbibm" / "tasks" / task / "files" / f"num_observation_{k}"
        place.mkdir(parents=True)
        own = simulate(TASKS[task].program, draws, seed=100 + k, vectorized=True)
        theta, x = (flat(own, names) for names in (TASKS[task].latent, TASKS[task].observed))
        for name, rows in (
            ("observation.csv", x[:1]),
            ("true_parameters.csv", theta[:1]),
            ("reference_posterior_samples.csv.bz2", theta),
        ):
            pd.DataFrame(rows.numpy()).to_csv(place / name, index=False)
    return folder


def in_process(python: Path | str, module: str, arguments: Sequence[str], limit: float) -> None:
    """What a process of a method or of scores does, here."""
    folder = Path(arguments[-1])
    if module.endswith("methods"):
        problem = methods.Problem.load(folder)
        methods.answer_of(problem, methods.METHODS[arguments[0]]).save(folder)
    else:
        sys.argv = [module, *arguments]
        scores.main()


def test_the_program_goes_on_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = fake_environment(tmp_path, "gaussian_mixture", 300)
    monkeypatch.setattr(runs, "run_process", in_process)
    file = tmp_path / "rows.csv"

    def call(*more: str) -> pd.DataFrame:
        fixed = "--tasks gaussian_mixture --simulations 500 --methods prior --seeds 1 --folds 1"
        small = f"--draws 300 --densities 20 --new 40 --environment {environment} --out {file}"
        monkeypatch.setattr(sys, "argv", ["", *fixed.split(), *small.split(), *more])
        with pytest.raises(SystemExit) as end:
            posteriors.main()
        assert end.value.code == 0
        return pd.read_csv(file)

    assert call("--observations", "1").observation.tolist() == [1]
    rows = call("--observations", "1", "2")
    assert rows.observation.tolist() == [1, 2]
    # the reference is the prior: nothing to tell, and its density is known
    assert rows.c2st.between(0.5 - 5 * 0.5 / 120**0.5, 0.5 + 5 * 0.5 / 120**0.5).all()
    assert (rows.coverage - 0.9).abs().max() < 5 * rows.coverage_se.max()
    assert rows.log_prob.tolist() == pytest.approx([-2 * math.log(20)] * 2, rel=1e-4)
