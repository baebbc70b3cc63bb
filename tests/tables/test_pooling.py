"""Rubin's rules, and completed tables under parameters drawn anew."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression, LogisticRegression

from inference.impute import impute
from inference.table import Table as TableOfRuns
from pyro_mdm.samplers import ExponentialIntegrator
from pyro_mdm.tables import Table, pooled
from pyro_mdm.tables.completion import bootstrapped
from tests.mistakes import refused

# -- Rubin's rules ---------------------------------------------------------------------------------

FITNESS = [
    (47.0120, 10.4441, 171.216, 0.95984, 0.28520, 1.59910),
    (47.2407, 10.5040, 171.244, 0.93540, 0.26661, 1.75638),
    (47.4995, 10.5922, 171.909, 1.00766, 0.26302, 1.85795),
    (47.1485, 10.5279, 171.146, 0.95439, 0.26405, 1.75011),
    (47.0042, 10.4913, 172.072, 0.96528, 0.27275, 1.84807),
]
"""Means of three columns in five completed tables, and their standard errors, with 30 degrees of
freedom: the first example of PROC MIANALYZE in the SAS/STAT 9.22 User's Guide."""
TABLES = [pd.DataFrame({"row": [k]}) for k in range(5)]


def fitness(table: pd.DataFrame) -> Any:
    """The fits as statsmodels gives them."""
    numbers = FITNESS[table.row.iloc[0]]
    means = pd.Series(numbers[:3], ["oxygen", "time", "pulse"])
    return SimpleNamespace(params=means, bse=pd.Series(numbers[3:]), df_resid=30.0)


def test_the_numbers_are_those_of_another_program() -> None:
    oxygen = pooled(TABLES, fitness).loc["oxygen"]
    said = {"estimate": 47.1810, "standard_error": 0.99026, "df": 26.298}
    said |= {"low": 45.1466, "high": 49.2154}
    for name, value in said.items():
        assert oxygen[name] == pytest.approx(value, rel=3e-5), name


@pytest.mark.parametrize("df", [30.0, 3.0, np.inf])
@pytest.mark.parametrize("scale", [0.0, 0.1, 10.0])
def test_formulas_are_those_of_rubin_and_of_barnard(df: float, scale: float) -> None:
    """From little to nearly all information missing, with errors of few and of many degrees."""

    def fit(table: pd.DataFrame) -> Any:
        result = fitness(table)
        return SimpleNamespace(params=result.params * scale, bse=result.bse, df_resid=df)

    table, numbers, m = pooled(TABLES, fit), np.array(FITNESS), len(FITNESS)
    Q, between = scale * numbers[:, :3], scale**2 * numbers[:, :3].var(0, ddof=1) * (1 + 1 / m)
    T = (numbers[:, 3:] ** 2).mean(0) + between
    share = between / T
    inverse = share**2 / (m - 1)
    if df < np.inf:
        inverse += (df + 3) / ((df + 1) * df * (1 - share))
    with np.errstate(divide="ignore"):
        freedom, increase = 1 / inverse, share / (1 - share)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(T)
    right = {"estimate": Q.mean(0), "standard_error": np.sqrt(T), "df": freedom}
    right |= {"fmi": (increase + 2 / (freedom + 3)) / (increase + 1)}
    right |= {"low": Q.mean(0) - half, "high": Q.mean(0) + half}
    pd.testing.assert_frame_equal(table, pd.DataFrame(right, table.index), rtol=1e-9)


def two_columns(n: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    y = 1 + 0.8 * x + 0.6 * rng.standard_normal(n)
    return pd.DataFrame({"x": x, "y": y, "z": rng.standard_normal(n), "is_high": y > 1})


def least_squares(table: pd.DataFrame) -> tuple[dict[str, float], list[float]]:
    A = np.column_stack([np.ones(len(table)), table[["x", "z"]]])
    solution, square, *_ = np.linalg.lstsq(A, table["y"], rcond=None)
    cov = np.linalg.inv(A.T @ A) * square / (len(A) - 3)
    return dict(zip(["intercept", "x", "z"], solution, strict=True)), np.sqrt(np.diag(cov))


def test_errors_of_a_model_of_scikit_learn_are_those_of_refits() -> None:
    """On average those of least squares: each has a relative error of 1/√(2 · 19)."""
    ratios = []
    for seed in range(10):
        tables = [two_columns(seed=seed)] * 2
        formula = pooled(tables, least_squares)
        line = pooled(tables, lambda table: LinearRegression().fit(table[["x", "z"]], table["y"]))
        assert list(line.index) == ["intercept", "x", "z"]
        assert np.allclose(line.estimate, formula.estimate) and (line.df < 19).all()
        ratios.append((line.standard_error / formula.standard_error) ** 2)
    mean = np.mean(ratios)
    assert abs(mean - 1) < 5 * np.sqrt(2 / 19 / (10 * 3)) + 0.03


FITS: dict[str, tuple[Callable[[pd.DataFrame], Any], list[Any]]] = {
    "a Series of params": (lambda t: fit_of(pd.Series([1.0, 2.0], ["a", "b"])), ["a", "b"]),
    "an array of params": (lambda t: fit_of(np.array([1.0, 2.0])), ["const", "x1"]),
    "a pair of arrays": (lambda t: (np.ones(2), np.ones(2)), [0, 1]),
    "a pair of numbers": (lambda t: (1.0, 0.5), [0]),
    "a pair of dicts": (lambda t: ({"a": 1.0}, {"a": 1.0}), ["a"]),
    "a line without an intercept": (
        lambda t: LinearRegression(fit_intercept=False).fit(t[["x", "z"]], t.y),
        ["x", "z"],
    ),
    "a line of arrays": (
        lambda t: LinearRegression().fit(t[["x", "z"]].to_numpy(), t.y),
        ["intercept", "x0", "x1"],
    ),
    "odds": (lambda t: LogisticRegression().fit(t[["x", "z"]], t.is_high), ["intercept", "x", "z"]),
}


def fit_of(params: Any) -> Any:
    model = SimpleNamespace(exog_names=["const", "x1"])
    return SimpleNamespace(params=params, bse=params * 0 + 1.0, df_resid=10, model=model)


@pytest.mark.parametrize("name", FITS)
def test_every_kind_of_fit_has_names_and_intervals(name: str) -> None:
    fit, names = FITS[name]
    table = pooled([two_columns(seed=k) for k in range(3)], fit)
    assert list(table.index) == names
    assert list(table) == ["estimate", "standard_error", "df", "fmi", "low", "high"]
    assert np.isfinite(table.drop(columns="df")).all(axis=None)
    assert (table.low < table.estimate).all() and (table.estimate < table.high).all()
    narrow = pooled([two_columns(seed=k) for k in range(3)], fit, level=0.5)
    assert (narrow.high - narrow.low < table.high - table.low).all()


def test_tables_are_those_of_impute_or_one_after_another() -> None:
    tables = [two_columns(seed=k) for k in range(3)]
    whole = pd.concat(tables, keys=range(3), names=["draw", None])
    right = pooled(tables, least_squares)
    assert pooled(whole, least_squares).equals(right)
    assert pooled(iter(tables), least_squares).equals(right)


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: pooled(TABLES[:1], fitness), "number of 1 tables, expected at least 2"),
    (lambda: pooled(TABLES[0], fitness), "no number of a draw"),
    (
        lambda: pooled(TABLES, lambda t: ({f"a{t.row.iloc[0]}": 1.0}, [1.0])),
        "the fit to table 1 has the coefficients ['a1'], expected those of the first, ['a0']",
    ),
    (
        lambda: pooled(TABLES, lambda t: ({"a": np.nan}, [1.0])),
        "a has the estimate nan and the standard error 1.0 in table 0",
    ),
    (
        lambda: pooled(
            [two_columns()] * 2, lambda t: LinearRegression().fit(t[["x"]], t[["y", "z"]])
        ),
        "coefficients of shape (2, 1), expected those of one response",
    ),
    (lambda: pooled(TABLES, lambda t: 3.0), "fit returned 3.0, expected a result"),
    (lambda: pooled([*TABLES, None], fitness), "tables[5] is None"),
    (
        lambda: pooled([*TABLES, two_columns()], fitness),
        "of the columns ['x', 'y', 'z', 'is_high'], expected a DataFrame of the columns of the",
    ),
    (lambda: pooled(TABLES, fitness, level=95), "level is 95, expected"),
]


def test_mistakes_are_said() -> None:
    refused((TypeError, ValueError), *((make, re.escape(words)) for make, words in MISTAKES))


# -- parameters drawn anew -------------------------------------------------------------------------


def incomplete(n: int = 222) -> pd.DataFrame:
    """Numbers, of which y is missing in 60%, and levels of three kinds."""
    rng = np.random.default_rng(1)
    frame = two_columns(n, seed=1)[["x", "y"]].assign(
        works=rng.random(n) < 0.3,
        ward=rng.choice(["north", "east", "south"], n, p=[0.2, 0.3, 0.5]),
        size=rng.choice([1, 2, 3], n),
    )
    return frame.assign(y=frame.y.mask(rng.random(n) < 0.6))


@pytest.fixture(scope="module")
def fitted(brief: None) -> Table:
    """A table that is nearly its start, a Gaussian distribution."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few steps
        columns = {"x": "continuous", "y": "continuous", "size": "1<2<3"}
        table = Table(columns=columns, steps=1, seed=1, device="cpu").fit(incomplete())
    table.model.sampler = ExponentialIntegrator(4)
    return table


def state(table: Table) -> list[torch.Tensor]:
    return [value.clone() for value in table.model.state_dict().values()]


def bounds(freedom: int) -> tuple[float, float]:
    """The ratio of a variance to its expectation, but for one seed in a million."""
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], freedom) / freedom
    return float(low), float(high)


def test_draws_have_the_variance_of_parameters_in_closed_form(fitted: Table) -> None:
    """The mean of y at an x is a line of the rows with y, whose variance is σ² (1/n + x²/Σx²)."""
    train, copies, num, x = fitted.rows.train[:, :2].numpy(), 50, 40, 3.0
    seen = train[~np.isnan(train[:, 1])]
    off = seen[:, 0] - seen[:, 0].mean()
    slope, start = np.polyfit(seen[:, 0], seen[:, 1], 1)
    variance = np.mean((seen[:, 1] - start - slope * seen[:, 0]) ** 2)
    leverage = 1 / len(seen) + (x - seen[:, 0].mean()) ** 2 / (off @ off)
    rows = incomplete().head(1).assign(x=x, y=np.nan)
    rows = pd.concat([rows] * copies, ignore_index=True)
    for proper, right in ((True, leverage + 1 / copies), (False, 1 / copies)):
        means = fitted.impute(rows, num, proper=proper)["y"].groupby(level=0).mean()
        low, high = bounds(num - 1)
        assert low * 0.8 < means.var() / (variance * right) < high * 1.25, proper


def test_shares_of_levels_vary_like_those_of_samples(fitted: Table) -> None:
    num, n = 60, len(fitted.rows.train)
    low, high = bounds(num - 1)
    models = bootstrapped(fitted.rows, fitted.model, num)
    parts = [model.score_function.parts for model in models]
    kinds = 0
    for p, part in enumerate(fitted.model.score_function.parts):
        if not hasattr(part, "log_prior"):
            continue
        kinds += 1
        shares = torch.stack([one[p].log_prior.exp() for one in parts])
        assert torch.allclose(shares.sum(-1), torch.ones(()).double())
        prior = part.log_prior.exp()
        ratio = shares.var(0) / (prior * (1 - prior) / n)
        if prior.shape[-1] == 2 or type(part).__name__ == "OneHotDenoiser":
            assert bool((ratio > low * 0.9).all() and (ratio < high * 1.1).all()), ratio
        levels = getattr(part, "levels", None)
        if levels is not None:  # the mean, as that is what a sample has
            off = levels - (prior @ levels).unsqueeze(-1)
            variance = (prior * off**2).sum(-1) / n
            ratio = (shares @ levels).var(0) / variance
            assert bool((ratio > low * 0.9).all() and (ratio < high * 1.1).all()), ratio
    assert kinds == 3


def test_the_fitted_model_stays_as_it_is(fitted: Table) -> None:
    before, frame = state(fitted), incomplete()
    first = fitted.impute(frame, 2)
    models = bootstrapped(fitted.rows, fitted.model, 2)
    fitted.impute(frame, 2, proper=True)
    assert all(map(torch.equal, before, state(fitted)))
    assert first.equals(fitted.impute(frame, 2))
    weights = list(fitted.model.parameters())
    for model in models:
        assert all(map(lambda one, other: one is other, model.parameters(), weights))
        assert not all(map(torch.equal, model.state_dict().values(), before))


def test_draws_are_repeated_by_their_seed_and_keep_what_is_observed(fitted: Table) -> None:
    frame = incomplete()
    one, same, other = (fitted.impute(frame, 3, proper=True, seed=seed) for seed in (1, 1, 2))
    assert one.equals(same) and not one.equals(other)
    assert not one.loc[0].equals(one.loc[1])
    for k in range(3):
        pd.testing.assert_frame_equal(one.loc[k].where(frame.notna()), frame)
    assert one.notna().all(axis=None)


def test_a_column_that_a_sample_leaves_out_is_no_failure(brief: None) -> None:
    """Four rows have y, and one has a third level."""
    frame = incomplete(60)
    frame["y"] = frame["y"].where(np.arange(60) < 4, np.nan)
    frame["ward"] = np.where(np.arange(60) == 2, "south", frame["ward"].replace("south", "east"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = Table(steps=1, device="cpu", holdout=False).fit(frame)
        drawn = table.impute(frame, 6, proper=True)
    assert np.isfinite(drawn["y"]).all()


def test_saved_tables_make_the_same_draws_and_models_without_rows_say_so(
    fitted: Table, tmp_path: Path
) -> None:
    frame = incomplete().head(20)
    fitted.save_pretrained(tmp_path / "table")
    opened = Table.from_pretrained(tmp_path / "table")
    opened.model.sampler = fitted.model.sampler
    assert fitted.impute(frame, 2, proper=True).equals(opened.impute(frame, 2, proper=True))
    wine = Table.from_pretrained("wine")
    with pytest.raises(ValueError, match="proper=True draws samples of the training rows, and"):
        wine.impute(wine.sample(3), 2, proper=True)


def test_the_program_makes_the_same_draws(brief: None, tmp_path: Path) -> None:
    frame = incomplete(90)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = TableOfRuns(folder=tmp_path / "run", steps=2, accelerator="cpu").fit(frame)
    frame.to_parquet(tmp_path / "gaps.parquet")
    for proper in (False, True):
        impute(
            run=tmp_path / "run",
            data=str(tmp_path / "gaps.parquet"),
            out=tmp_path / "full.parquet",
            num=2,
            proper=proper,
            overwrite=True,
            accelerator="cpu",
        )
        written = pd.read_parquet(tmp_path / "full-draws.parquet")
        assert np.allclose(written["y"], table.impute(frame, 2, proper=proper, seed=0)["y"])
