"""Densities of rows of numbers, each a process of its own that measures its processor time.

    python -m tests.benchmarks.tables.densities METHOD FOLDER SEED

reads ``train.npy`` and ``test.npy``, (n, d), standardized, and writes ``log_prob.npy``, nats of
each test row, and ``seconds.txt``. What a method chooses it chooses by the last tenth of the
training rows, whose order is random.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.runs import processor_seconds

Numbers = NDArray[np.float64]


def gaussian_mixture(train: Numbers, test: Numbers, seed: int) -> Numbers:
    """Full covariances; 1 to 10 components by validation, and then of all training rows."""
    from sklearn.mixture import GaussianMixture

    def fitted(number: int, rows: Numbers) -> Any:
        return GaussianMixture(number, reg_covar=1e-4, n_init=2, random_state=seed).fit(rows)

    held = len(train) // 10
    scores = [fitted(number, train[:-held]).score(train[-held:]) for number in range(1, 11)]
    return np.asarray(fitted(1 + int(np.argmax(scores)), train).score_samples(test))


def kernels(train: Numbers, test: Numbers, seed: int) -> Numbers:
    """A Gaussian kernel whose covariance is that of the rows times the square of a bandwidth, which
    five-fold cross-validation chooses."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KernelDensity

    root = np.linalg.cholesky(np.cov(train.T) + 1e-6 * np.eye(train.shape[1]))
    white = np.linalg.solve(root, train.T).T
    search = GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.1, 2, 20)}, cv=5)
    search.fit(white)
    found = search.best_estimator_.score_samples(np.linalg.solve(root, test.T).T)
    return np.asarray(found - np.log(np.diag(root)).sum())


def spline_flow(train: Numbers, test: Numbers, seed: int) -> Numbers:
    """zuko's neural spline flow: three autoregressive transforms of networks of 64, 64; the weights
    that are best by validation, until it has not fallen for 50 epochs."""
    import torch
    import zuko

    torch.manual_seed(seed)
    flow = zuko.flows.NSF(train.shape[1], transforms=3, hidden_features=(64, 64))
    optimizer = torch.optim.AdamW(flow.parameters(), 1e-3, weight_decay=1e-4)
    rows = torch.from_numpy(train).float()
    held = len(rows) // 10
    rows, kept = rows[:-held], rows[-held:]
    best, weights, waited = np.inf, copy.deepcopy(flow.state_dict()), 0
    for _ in range(1000):
        for batch in rows[torch.randperm(len(rows))].split(128):
            optimizer.zero_grad()
            (-flow().log_prob(batch).mean()).backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
            optimizer.step()
        with torch.no_grad():
            loss = float(-flow().log_prob(kept).mean())
        waited += 1
        if loss < best:
            best, weights, waited = loss, copy.deepcopy(flow.state_dict()), 0
        if waited == 50:
            break
    flow.load_state_dict(weights)
    with torch.no_grad():
        return np.asarray(flow().log_prob(torch.from_numpy(test).float()).double().numpy())


def diffusion(train: Numbers, test: Numbers, seed: int) -> Numbers:
    """This library's, a lower bound, as its user calls it."""
    import pandas as pd

    from inference.table import Table

    names = [f"x{j}" for j in range(train.shape[1])]
    table = Table(seed=seed).fit(pd.DataFrame(train, columns=names))
    return np.asarray(table.log_prob(pd.DataFrame(test, columns=names)).log_prob)


DENSITIES: dict[str, Callable[[Numbers, Numbers, int], Numbers]] = {
    "KDE": kernels,
    "Gaussian mixture": gaussian_mixture,
    "spline flow": spline_flow,
    "diffusion": diffusion,
}


def main() -> None:
    method, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    train, test = (np.load(folder / f"{name}.npy") for name in ("train", "test"))
    began = processor_seconds()
    values = DENSITIES[method](train, test, seed)
    (folder / "seconds.txt").write_text(f"{processor_seconds() - began:.2f}")
    np.save(folder / "log_prob.npy", values)


if __name__ == "__main__":
    main()
