"""C2ST by the rules of the public benchmark, and our results beside those it published."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.neural_network import MLPClassifier

from tests.benchmarks.arena import classifiers, published


def test_the_steps_of_classifiers_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(450, 2)).astype(np.float32)
    y = (random.normal(size=450) < x[:, 0]).astype(int)
    network = MLPClassifier((20, 20), max_iter=8, random_state=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.fit(x, y)
    state = np.random.RandomState(3)
    ours = classifiers.Networks(1, 2, state)
    order = np.arange(450)
    for loss in network.loss_curve_:
        order = order[state.permutation(450)]
        total = 0.0
        for start in range(0, 450, 200):
            batch = order[start : start + 200]
            step = ours.step(x[None, batch], y[None, batch, None].astype(np.float32))
            total += len(batch) / 450 * step[0]
        assert total == pytest.approx(loss, rel=1e-5)
    for weights, expected in zip(ours.layers[::2], network.coefs_, strict=True):
        np.testing.assert_allclose(weights[0], expected, atol=1e-5)


def test_losses_are_compared_with_the_least_that_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "PATIENCE", 1)
    # after a rise, the third loss is a fall from the second alone
    losses, steps = iter([1.0, 1.5, 1.2, 0.1, 0.1]), []

    def step(networks: classifiers.Networks, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        steps.append(len(x))
        return np.array([next(losses)])

    monkeypatch.setattr(classifiers.Networks, "step", step)
    x, y = np.zeros((10, 1), np.float32), np.repeat([0, 1], 5)
    classifiers.accuracies(x, y, [(np.arange(8), np.arange(8, 10))], seed=0)
    assert len(steps) == 3


def test_published_results_are_compared_by_observation(tmp_path: Path) -> None:
    observations = range(1, 11)
    names = ("NPE", "NLE", "NRE", "SNPE", "SNLE", "SNRE", "REJ-ABC", "SMC-ABC")
    theirs = [
        (task, size, k, name, 0.6 + 0.02 * k + (0.1 if name == "NPE" else 0.2))
        for task in ("slcp", "gaussian_mixture")
        for size in ("10³", "10⁴")
        for k in observations
        for name in names
    ]
    columns = ["task", "num_simulations", "num_observation", "algorithm", "C2ST"]
    paper = pd.DataFrame(theirs, columns=columns)
    with pytest.raises(SystemExit, match="get them by git clone"):
        published.published(tmp_path)
    for name, rows in (("paper", paper), ("rerun", paper[20:].assign(C2ST=0.9))):
        file = tmp_path / "results" / published.FILES[name]
        file.parent.mkdir(parents=True)
        rows.to_csv(file, index=False)
    same = {"simulations": 10_000, "method": "likelihood", "log_prob": -1.0, "log_prob_se": 0.1}
    same |= {"coverage": 0.9, "coverage_se": 0.02, "sample_seconds": 1.0, "density_seconds": 0.5}
    fits = ("gaussian_mixture", 0), ("slcp", 0), ("slcp", 1), ("slcp", 2)
    rows = [(*fit, k) for fit in fits for k in observations if (fit[1], k) != (2, 7)]
    own = pd.DataFrame(rows, columns=["task", "seed", "observation"]).assign(**same, folds=5)
    own["c2st"] = 0.5 + 0.02 * own.observation + 0.1 * own.seed
    own["fit_seconds"] = 50.0 + own.seed
    own = pd.concat([own, own.assign(seed=3, folds=1)])
    own.to_csv(tmp_path / "rows.csv", index=False)
    published.write_tables(tmp_path / "rows.csv", tmp_path, tmp_path)

    def table(name: str) -> pd.DataFrame:
        return pd.read_csv(tmp_path / f"posteriors-{name}.csv", comment="#").set_index("task")

    rules = table("rules-10000")
    assert rules.index.tolist() == ["slcp", "gaussian_mixture"]
    cells = rules.loc["slcp"]
    assert (cells.seeds, cells.observations, cells.fit_seconds) == (2, 10, 50.5)
    assert (cells.c2st, cells.best) == (0.66, "NPE")
    assert cells.less_npe == cells.less_best == pytest.approx(-0.15)
    assert cells.less_best_high == cells.less_npe_low == pytest.approx(-0.15)  # all as far apart
    assert cells.less_snle == pytest.approx(-0.25)
    assert rules.less_npe["gaussian_mixture"] == pytest.approx(0.61 - 0.9)
    means = table("published")
    assert len(means) == 4 and means.npe["slcp"].tolist() == [0.81, 0.81]
    assert (means.snle["gaussian_mixture"] == 0.9).all()
    sizes = table("sizes").loc["slcp"]
    assert (sizes.c2st_10000, sizes.best_10000, sizes.best_1000) == (0.66, 0.81, 0.81)
    assert sizes.c2st_10000_se == pytest.approx(
        0.02 * np.std(range(10), ddof=1) / 10**0.5, abs=1e-3
    )
    assert np.isnan(sizes.c2st_1000) and np.isnan(sizes.best_100000)
