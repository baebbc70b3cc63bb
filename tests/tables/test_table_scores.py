"""The scores by which imputers and generators of tables are compared, by laws known exactly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.benchmarks import imputation, runs, table_density, table_samples
from tests.benchmarks.tables import data, methods, scores, summary


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


def test_coverage_of_values_beside_all_draws() -> None:
    draws = np.linspace(0, 1, 50)[:, None]
    covered = [scores.covered(draws, np.array([w]))[0] for w in (-1.0, 0.505, 2.0)]
    assert covered == [0.0, 1.0, 0.0]


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


def test_missing_entries_depend_on_a_driver_where_it_is_there() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.permutation(9000) * 1.0, "b": rng.random(9000)})
    missing, _ = data.missing_of(table, "by a column with gaps", "a", rng)
    gone, high = missing[:, 0], (table["a"] >= 4500).to_numpy()
    within(gone.astype(float), 0.3)
    for rows, share in ((gone & high, 0.3), (gone & ~high, 0.3), (~gone & high, 0.45)):
        within(missing[rows, 1].astype(float), share)


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


def test_a_category_that_training_rows_lack_is_wrong() -> None:
    task = small_task()
    task.asked[:, 2] = True
    task.truth[0, 2] = np.nan
    drawn = np.nan_to_num(np.repeat(task.truth[None], 5, 0))
    assert imputation.scores_of(task, drawn, None)["accuracy"] == pytest.approx(0.9)


def test_dummies_and_frames_are_the_rows_again() -> None:
    problem = small_task().problem
    dummies = methods.Dummies(methods.levels_of(problem))
    x = dummies(problem.rows)
    assert x.shape == (40, 4)
    assert (np.isnan(x[:, 2]) == np.isnan(problem.rows[:, 2])).all()
    np.testing.assert_array_equal(dummies.rows(x[:30]), problem.rows[:30])
    np.testing.assert_array_equal(problem.codes(problem.frame(True)), problem.rows[30:])


def test_a_file_of_rows_goes_on_where_it_ended(tmp_path: runs.Path) -> None:
    file, jobs = tmp_path / "rows.csv", [{"seed": k} for k in range(4)]

    def work(job: runs.Row) -> runs.Row:
        if job["seed"] == 2 and len(done) < 4:
            raise RuntimeError("at first")
        return {"value": 0.5 + job["seed"]}

    done: list[int] = []
    rows = runs.Rows(file, ["seed"], ["value"])
    assert runs.run_all(jobs, work, rows, workers=1) == [{"seed": 2}]
    done = [0] * 4
    assert runs.run_all(jobs, work, runs.Rows(file, ["seed"], ["value"]), workers=2) == []
    assert pd.read_csv(file).value.tolist() == [0.5, 1.5, 3.5, 2.5]
    with pytest.raises(SystemExit, match="choose another file"):
        runs.Rows(file, ["seed"], ["another"])


def test_summaries_pair_by_seed(tmp_path: runs.Path) -> None:
    rows = [
        dict.fromkeys(imputation.SCORES, value + gain)
        | {"seed": seed, "table": table, "mechanism": "30%", "method": method, "cpu_seconds": 1.0}
        for seed, value in enumerate([0.1, 0.9, 0.5])
        for table in ("wage", "pima")
        for method, gain in (("diffusion", 0.0), ("mean", 0.25))
    ]
    file = tmp_path / "imputation.csv"
    pd.DataFrame(rows).to_csv(file, index=False)
    summary.of_imputation(file, tmp_path)
    tables = pd.read_csv(tmp_path / "imputation-tables.csv", comment="#")
    assert tables.task.tolist() == ["pima, 30%"] * 2 + ["wage, 30%"] * 2
    assert tables.method.tolist() == ["mean", "diffusion"] * 2
    other = tables[tables.method == "mean"].iloc[0]
    assert (other.crps_less_ours, other.crps_less_ours_low, other.crps_less_ours_high) == (
        0.25,
        0.25,
        0.25,
    )
    ranks = pd.read_csv(tmp_path / "imputation-ranks.csv", comment="#").set_index("method")
    assert ranks.rank_crps.to_dict() == {"diffusion": 1.0, "mean": 2.0}
    assert ranks.accuracy_less_best["diffusion"] == -0.25


def test_noise_hides_that_numbers_are_rounded() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.integers(300, size=200) / 10, "b": rng.random(200)})
    table["atom"] = np.where(rng.random(200) < 0.3, 0.0, table["b"])
    assert [table_density.step_of(own) for own in table.to_numpy().T[:2]] == [0.1, 0.0]
    train, test = table_density.rows_of(table, 0)
    assert train.shape == (160, 2) and test.shape == (40, 2)
    assert len(np.unique(train[:, 0])) == 160
    np.testing.assert_allclose((train.mean(0), train.std(0)), [[0, 0], [1, 1]], atol=1e-12)


def test_copies_of_rows_are_told() -> None:
    rng = np.random.default_rng(0)
    train, others, fresh = rng.standard_normal((3, 400, 3))
    assert table_samples.closer(train, train, others) == 1.0
    assert table_samples.closer(others, train, others) == 0.5
    assert abs(table_samples.closer(fresh, train, others) - 0.5) < 0.15
    assert table_samples.closer(fresh + 9, train, others) == 0.0


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
