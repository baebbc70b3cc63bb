"""Completions of rows before there is a model of them, by chained equations.

A model of rows with entries missing at random completes them itself, see
:class:`~pyro_mdm.conditioning.Completions`, and begins with scales of its columns and with a first
completion. Both must be those of whole rows: where one of two groups lacks a column, its present
values are those of the other group, and a model that begins with these leaves them slowly.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["chained_completions"]

Values = NDArray[Any]

SWEEPS, NEAREST = 5, 40
"""The number of sweeps, and the most columns that a column is predicted by, drawn by their
correlation with it."""
LEAF = 15
"""The fewest rows of a leaf, which are the donors of entries that fall into it."""
MOST = 4096
"""The most rows that lines and trees are fitted to."""
REACH = 0.5
"""The largest distance of a drawn number from the range of present ones, as a fraction of the
range: a line may extrapolate, but not anywhere."""


def chained_completions(x: Tensor, *, num: int = 1, seed: int = 0) -> Tensor:
    """Draws of the missing entries of rows, each column's given all others, in turn, by
    scikit-learn's ``IterativeImputer``.

    A number is the prediction of a linear regression, which extrapolates to rows unlike those with
    the column, and the residual of a donor: a row in the same leaf of a tree of residuals, or any
    row if the tree predicts them no better than their mean.

    Args:
        x: rows, (n, d), NaN where an entry is missing; each column has an entry.
        num: the number of completed tables.
        seed: the seed of the draws.

    Returns:
        Rows without a gap, (num, n, d), in float64.

    Source: van Buuren & Groothuis-Oudshoorn, "mice: Multivariate imputation by chained equations
    in R", 2011; the donors in leaves are those of Doove, van Buuren & Dusseldorp, "Recursive
    partitioning for missing data imputation in the presence of interaction effects", 2014.
    """
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    rows = x.double().cpu().numpy()
    least, most = np.nanmin(rows, 0), np.nanmax(rows, 0)
    ends = {"min_value": least - REACH * (most - least), "max_value": most + REACH * (most - least)}
    imputer = IterativeImputer(
        _line_with_donors(np.random.default_rng(seed)),
        max_iter=SWEEPS,
        tol=0.0,
        n_nearest_features=NEAREST if rows.shape[1] > NEAREST else None,
        skip_complete=True,
        random_state=seed,
        **ends,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "\\[IterativeImputer\\] Early stopping criterion")
        completed = [imputer.fit_transform(rows)]
        completed += [imputer.transform(rows) for _ in range(num - 1)]
    return torch.from_numpy(np.stack(completed))


def _line_with_donors(rng: np.random.Generator) -> Any:
    """An estimator whose predictions are draws, from a generator."""
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.linear_model import Ridge
    from sklearn.tree import DecisionTreeRegressor

    class LineWithDonors(RegressorMixin, BaseEstimator):
        def fit(self, x: Values, y: Values) -> Any:
            chosen = rng.permutation(len(y))[:MOST]
            x, y = x[chosen], y[chosen]
            self.line = Ridge().fit(x, y)
            self.residual = y - self.line.predict(x)
            self.tree = DecisionTreeRegressor(min_samples_leaf=LEAF, random_state=0)
            if not self._gains(x):
                self.tree.set_params(max_leaf_nodes=None, max_depth=1, min_samples_leaf=len(y))
            leaf = self.tree.fit(x, self.residual).apply(x)
            self.order = np.argsort(leaf, kind="stable")
            self.leaf = leaf[self.order]
            return self

        def _gains(self, x: Values) -> bool:
            """Whether a tree of one half of the rows predicts the other half better than its mean
            does."""
            half, gain = rng.permutation(len(x)) % 2 == 0, 0.0
            if half.sum() < 2 * LEAF or (~half).sum() < 2 * LEAF:
                return False
            for fitted in (half, ~half):
                new = self.residual[~fitted]
                off = new - self.residual[fitted].mean()
                predicted = self.tree.fit(x[fitted], self.residual[fitted]).predict(x[~fitted])
                gain += float((off**2 - (new - predicted) ** 2).sum())
            return gain > 0

        def predict(self, x: Values) -> Values:
            leaf = self.tree.apply(x)
            first = np.searchsorted(self.leaf, leaf)
            last = np.searchsorted(self.leaf, leaf, "right")
            donors = self.order[rng.integers(first, last)]
            return np.asarray(self.line.predict(x) + self.residual[donors])

    return LineWithDonors()
