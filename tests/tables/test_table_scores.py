"""The scores by which imputers and generators of tables are compared, by laws known exactly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.benchmarks import imputation, table_density, table_samples
from tests.benchmarks.tables import data, scores


def within(values: np.ndarray, expected: float) -> None:
    """The mean is what is expected, by five standard errors."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) < 5 * error


def test_crps_is_unbiased() -> None:
    # of N(0, 1): w (2 Φ(w) - 1) + 2 φ(w) - 1/√π
    w = 0.7
    exact = w * (2 * stats.norm.cdf(w) - 1) + 2 * stats.norm.pdf(w) - 1 / np.sqrt(np.pi)
    draws = np.random.default_rng(0).standard_normal((4, 20_000))
    within(scores.crps(draws, np.full(20_000, w)), exact)


@pytest.mark.parametrize("levels", [1, 2, 7, 1000])
def test_coverage_of_the_true_law_is_exact_whatever_repeats(levels: int) -> None:
    rng = np.random.default_rng(0)
    draws = rng.integers(levels, size=(50, 4000)).astype(float)
    truth = rng.integers(levels, size=4000).astype(float)
    covered = scores.covered(draws, truth)
    assert covered.min() >= 0 and covered.max() <= 1
    if levels == 1:
        np.testing.assert_allclose(covered, 0.9)
    else:
        within(covered, 0.9)


def test_log_score_is_of_a_normal_law_and_one_part_of_the_marginal_one() -> None:
    draws = np.random.default_rng(0).normal(2, 0.3, (50, 3))
    w = np.array([2.0, 1.5, 9.0])
    own = stats.norm(draws.mean(0), draws.std(0, ddof=1)).pdf(w)
    expected = -np.log((50 * own + stats.norm.pdf(w)) / 51)
    np.testing.assert_allclose(scores.log_score(draws, w), expected)
    same = scores.log_score(np.full((50, 1), 2.0), np.array([2.0]), floor=0.25)
    lowest = (50 * stats.norm(2, 0.5).pdf(2.0) + stats.norm.pdf(2.0)) / 51
    np.testing.assert_allclose(same, -np.log(lowest))


def test_scores_of_categories() -> None:
    draws = np.array([[0, 0], [0, 1], [2, 1], [0, 0]])
    shares = scores.frequencies(draws, 3)
    np.testing.assert_allclose(shares[0], np.array([10, 1, 4]) / 15)
    np.testing.assert_allclose(shares.sum(1), 1)
    truth = np.array([0, 1])
    assert scores.accuracy(shares, truth).tolist() == [1.0, 0.5]  # 0 and 1 are drawn as often
    np.testing.assert_allclose(scores.brier(shares, truth)[0], (25 + 1 + 16) / 225)
    np.testing.assert_allclose(scores.log_score_of_categories(shares, truth)[0], -np.log(10 / 15))


def test_missing_entries_depend_on_the_driver_alone() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.permutation(4000) * 1.0, "b": rng.random(4000)})
    missing, scored = data.missing_of(table, "by a column", "a", rng)
    assert not missing[:, 0].any() and (missing == scored).all()
    high = (table["a"] >= 2000).to_numpy()
    within(missing[high, 1].astype(float), 0.45)
    within(missing[~high, 1].astype(float), 0.15)
    within(data.missing_of(table, "60%", "a", rng)[0].ravel().astype(float), 0.6)


def test_what_was_not_asked_is_not_scored() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.random((9000, 4)), columns=list("abcd"))
    missing, scored = data.missing_of(table, "by a question", "a", rng)
    high = (table["a"] > table["a"].median()).to_numpy()
    (asked,) = np.flatnonzero(missing[high].all(0))  # a third of the three others
    assert not scored[high, asked].any()
    within(scored[~high, asked].astype(float), 0.3)
    assert (missing == scored)[:, np.delete(np.arange(4), asked)].all()
    within(missing[:, 0].astype(float), 0.3)


def small_task() -> data.Task:
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(9, size=40), rng.random(40), rng.integers(3, size=40)], 1)
    problem = data.Problem(rows, 30, ["n", "x", "c"], [None, None, ["a", "b", "d"]], 0, 5)
    asked = rng.random((10, 3)) < 0.5
    problem.rows[30:][asked] = np.nan
    truth = rng.permuted(rows[:10], axis=0)
    blank = np.array([0, 0, np.nan])
    whole = np.array([True, False, False])
    return data.Task(problem, truth, asked, rows[:30].mean(0) + blank, blank + 1, whole)


def test_whole_numbers_are_rounded_and_single_values_scored_where_they_can_be() -> None:
    task = small_task()
    draws = np.repeat(task.truth[None], 5, 0)
    exact = imputation.scores_of(task, draws, None)
    assert (exact["rmse"], exact["accuracy"]) == (0, 1)
    assert exact["crps"] == pytest.approx(0, abs=1e-9)
    shifted = draws + np.array([0.3, 0, 0])  # of whole numbers, which rounding takes away
    assert imputation.scores_of(task, shifted, None) == exact
    single = imputation.scores_of(task, None, task.truth)
    assert single == {"rmse": 0.0, "accuracy": 1.0}


def test_noise_hides_that_numbers_are_rounded() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.integers(300, size=200) / 10, "b": rng.random(200)})
    table["atom"] = np.where(rng.random(200) < 0.3, 0.0, table["b"])
    assert [table_density.step_of(own) for own in table.to_numpy().T[:2]] == [0.1, 0.0]
    train, test = table_density.rows_of(table, 0)
    assert train.shape == (160, 2) and test.shape == (40, 2)
    assert len(np.unique(train[:, 0])) == 160
    np.testing.assert_allclose((train.mean(0), train.std(0)), [[0, 0], [1, 1]], atol=1e-12)


def test_errors_of_pairs() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 2))
    x[:, 1] = x[:, 0]
    assert table_samples.correlation_error(x, x) == 0
    flipped = table_samples.correlation_error(x, x * [1, -1])
    assert flipped == pytest.approx(2)
    codes = np.repeat([[0, 0], [1, 1]], 50, 0)
    apart = np.repeat([[0, 1], [1, 0]], 50, 0)
    levels = np.array([2, 2])
    assert table_samples.association_error(codes, codes, levels) == 0
    assert table_samples.association_error(codes, apart, levels) == 1
