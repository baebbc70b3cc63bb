"""Laws of rows whose entries are missing at random: what is missing depends on what is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.train import train
from pyro_mdm import (
    MDM_ELBO,
    VPSDE,
    DiffusionGuide,
    DiffusionModel,
    MixedDenoiser,
    OneHot,
    impute,
)
from pyro_mdm.conditioning import Completions, RandomMaps, completions as module
from pyro_mdm.conditioning.maps import Missing
from tests.brief import SHORT
from tests.mistakes import refused
from tests.problems import ExactDenoiser, bimodal, given_dimensions, normal
from tests.programs.running import assert_resumes

ENDS = {"max_log_snr": 9.0, "min_log_snr": -9.0}


def pair(n: int) -> tuple[Tensor, Tensor, list[Any]]:
    """A Gaussian pair of correlation 0.7, whose y is missing where x is above 0."""
    x = normal(0, n, 2)
    x[:, 1] = 0.7 * x[:, 0] + math.sqrt(0.51) * x[:, 1]
    return x, (x[:, 0] > 0).unsqueeze(1) & torch.tensor([False, True]), [None, None]


def branches(n: int) -> tuple[Tensor, Tensor, list[Any]]:
    """Four numbers in a chain; which of the last two is missing depends on the first two."""
    x = normal(1, n, 4)
    for j in range(1, 4):
        x[:, j] = 0.8 * x[:, j - 1] + 0.6 * x[:, j]
    u, missing = torch.sigmoid(normal(2, n, 2)), torch.zeros(n, 4, dtype=torch.bool)
    missing[:, 2] = u[:, 0] < torch.sigmoid(3 * x[:, 1])
    missing[:, 3] = torch.where(missing[:, 2], u[:, 1] < 0.2, u[:, 1] < torch.sigmoid(3 * x[:, 2]))
    return x, missing, [None] * 4


def categories(n: int) -> tuple[Tensor, Tensor, list[Any]]:
    """A category and two numbers of it; the category is missing where the first number is high."""
    k = (torch.arange(n) % 3).long()
    means = torch.tensor([[-1.2, 0.0], [1.2, 0.0], [0.0, 1.5]]).double()
    numbers = means[k] + 0.5 * normal(3, n, 2)
    one_hot = torch.nn.functional.one_hot(k, 3).double()
    missing = torch.zeros(n, 5, dtype=torch.bool)
    missing[:, :3] = torch.sigmoid(normal(4, n, 1)) < torch.sigmoid(2 * numbers[:, :1] - 0.5)
    return torch.cat([one_hot, numbers], 1), missing, [OneHot(3), None, None]


def trained(x: Tensor, levels: Sequence[Any], missing: Missing | None, steps: int) -> Any:
    """A model of incomplete rows, by completions or at maps of what is ``missing``."""
    torch.manual_seed(0)
    score = MixedDenoiser.from_gaussian(x, levels, hidden=32, depth=1)
    score.training_maps = RandomMaps(window=(-3.0, 3.0), missing=missing or "skip")
    model = DiffusionModel(VPSDE(**ENDS), score)
    loss = MDM_ELBO()(model, DiffusionGuide(model.diffusion))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    completions = Completions(x)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
        if missing is None and step % 40 == 0:
            completions.draw(model, seed=step)
        rows = torch.randint(len(x), (256,))
        optimizer.zero_grad()
        loss((x if missing else completions.x)[rows]).backward()
        optimizer.step()
    return model.eval()


def far(model: Any, x: Tensor) -> float:
    """The largest difference of means and covariances of samples and of whole rows, in deviations
    of these."""
    torch.manual_seed(5)
    with torch.no_grad():
        samples = model(batch_size=2000).double()
    x = x.double()
    scale = x.std(0)
    of_means = ((samples.mean(0) - x.mean(0)) / scale).abs().max()
    change = (samples.T.cov() - x.T.cov()) / scale / scale.unsqueeze(1)
    return float(torch.maximum(of_means, change.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "missing", "least", "most"),
    [
        (branches, None, 0.0, 0.5),
        (categories, None, 0.0, 0.5),
        (pair, "leave_out", 0.5, math.inf),
    ],
)
def test_completions_give_the_law_of_whole_rows(
    law: Any, missing: Any, least: float, most: float
) -> None:
    """Fits to data of three seeds are off by 0.26 at most, and by 0.7 and more at maps that follow
    what is missing."""
    whole, absent, levels = law(800)
    x = whole.masked_fill(absent, math.nan).float()
    assert least < far(trained(x, levels, missing, 240), whole) < most


@torch.no_grad()
def test_completions_are_draws_given_what_is_there() -> None:
    problem, n = bimodal(), 4000
    d = len(problem.mean)
    observed = torch.arange(d) == 0
    datum = problem.sample(1, 3)[0]
    rows = torch.where(observed, datum, math.nan).expand(n, d)
    whole = problem.sample(6, 4)
    completions = Completions(torch.cat([whole, rows]))
    assert completions.incomplete.tolist() == [*range(6, n + 6)]
    model = DiffusionModel(VPSDE(**ENDS), ExactDenoiser(problem))
    completions.draw(model, torch.arange(3, n + 6), steps=25, seed=1)
    found = completions.x
    assert torch.equal(found[:6], whole)
    assert torch.equal(found[6:, 0], datum[0].expand(n))
    exact = given_dimensions(problem, observed, datum, ~observed)
    off = found[6:, 1:].mean(0) - exact.mean
    error = exact.covariance.diagonal().sqrt() / math.sqrt(n)
    assert bool((off.abs() < 5.5 * error + 0.02).all())
    spread = found[6:, 1:].var(0) / exact.covariance.diagonal()
    assert bool(((spread - 1).abs() < 0.2).all())


def test_completions_are_drawn_anew_where_they_are_asked_for() -> None:
    whole, missing, levels = pair(60)
    x = whole.masked_fill(missing, math.nan).float()
    model = trained(x, levels, "skip", 1)
    completions = Completions(x)
    rows = completions.incomplete[:5]
    state = torch.get_rng_state()
    completions.draw(model, rows, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    first = completions.x.clone()
    assert first.isnan().any(1).sum() == missing.any(1).sum() - 5
    completions.draw(model, rows, seed=3)
    assert torch.equal(completions.x[rows], first[rows])
    completions.draw(model, rows, seed=4)
    assert not torch.equal(completions.x[rows], first[rows])
    assert completions.x.dtype == x.dtype and not bool(completions.missing[rows, 0].any())
    assert impute(model, x[rows], num=1).shape == (1, 5, 2)
    refused(ValueError, (lambda: Completions(torch.ones(3, dtype=torch.int64)), "expected float"))


@torch.no_grad()
@pytest.mark.parametrize("kind", [2, 3, OneHot(3), None], ids=str)
def test_completions_of_rare_values_are_values(kind: Any) -> None:
    """Levels that two of 2,000 rows have lie beyond ten deviations, and draws of them are levels;
    draws of numbers that are off by as many are the farthest that is there."""
    wide = 3 if isinstance(kind, OneHot) else 1
    code = torch.zeros(2000, dtype=torch.int64)
    code[:2] = 1
    if kind is None:
        x = normal(0, 2000, 1).float()
    elif isinstance(kind, OneHot):
        x = torch.nn.functional.one_hot(code, 3).float()
    else:
        x = 2.0 * code[:, None] / (kind - 1) - 1
    x = torch.cat([x, normal(5, 2000, 1).float()], 1)
    score = MixedDenoiser.from_gaussian(x, [kind, None], hidden=8, depth=1)
    model = DiffusionModel(VPSDE(**ENDS), score)
    gaps = x.repeat(9, 1)
    gaps[2000:, :wide] = math.nan
    completions = Completions(gaps)
    if kind is None:
        model.sampler = None
        with pytest.MonkeyPatch.context() as patch:
            far = torch.tensor([1e9, -math.inf, math.nan, 2.0]).repeat(4000)
            drawn = gaps.clone()
            drawn[2000:, 0] = far
            patch.setattr(
                "pyro_mdm.conditioning.completions.impute", lambda *a, **k: drawn[2000:][None]
            )
            completions.draw(model)
        found = completions.x[2000:2004, 0]
        ends = torch.stack([x[:, 0].max(), x[:, 0].min(), x[:, 0].mean(), torch.tensor(2.0)])
        torch.testing.assert_close(found, ends)
        return
    completions.draw(model, seed=1)
    model.check_data(completions.x)
    assert wide == 1 or bool((completions.x[:, :wide].sum(1) == 1).all())
    assert bool((completions.x[2000:, :wide] == x[0, :wide]).all(1).any())  # rare, and drawn


# -- runs ------------------------------------------------------------------------------------------


def people(n: int = 200) -> Any:
    import pandas as pd

    rng = np.random.default_rng(0)
    age = rng.normal(40, 10, n)
    height = age / 10 + rng.normal(size=n)
    return pd.DataFrame({"age": age, "height": np.where(age > 45, math.nan, height)})


@pytest.mark.slow
@pytest.mark.parametrize("most", [4096, 64])
def test_what_is_filled_is_a_function_of_the_step(
    tmp_path: Any, most: int, monkeypatch: pytest.MonkeyPatch, few_pictures: None
) -> None:
    """A run that resumes within a part of the training has the completions of that part."""
    monkeypatch.setattr(module, "DRAWS", 1)
    monkeypatch.setattr(module, "MOST", most)
    options: dict[str, Any] = SHORT | {"model": "tabular", "data": people(), "guide": "vpsde"}
    options |= {"test_size": None, "log_every": 3, "measure_every": 4}
    assert_resumes(3, tmp_path, **options)


def test_what_has_no_effect_on_gaps_is_refused(tmp_path: Any) -> None:
    options: dict[str, Any] = SHORT | {"model": "tabular", "guide": "vpsde", "run": tmp_path / "r"}
    options["test_size"] = None

    def attempt(**given: Any) -> Any:
        return lambda: train(**options | given)

    refused(
        ValueError,
        (attempt(data=people().dropna(), gaps="fill"), "no entry of the training data is missing"),
        (attempt(data=people(), gaps="skip", maps="levels"), "expected mixed or subsets"),
    )
