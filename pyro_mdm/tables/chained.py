"""Completions of rows before there is a model of them, by chained equations.

A model of rows with entries missing at random completes them itself, see
:class:`~pyro_mdm.conditioning.Completions`, but begins with scales of its columns and with a first
completion, which must be those of whole rows: where one of two groups lacks a column, its present
values are those of the other group, and a model that begins with these leaves them slowly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm.tables.columns.base import Values
from pyro_mdm.tables.covariance import drawn_rows

__all__ = ["Block", "chained_completions"]

Block = tuple[slice, bool]
"""The dimensions of a column, or of a part of one, and whether they are of levels."""

SWEEPS = 4
"""The number of sweeps up to the first table that is kept."""
LEAF = 15
"""The fewest rows of a leaf, which are the donors of entries that fall into it."""
MOST, FEATURES = 4096, 60
"""The most rows that lines and trees are fitted to, and the most dimensions where trees are."""
REACH = 0.5
"""The largest distance of a drawn number from the range of present ones, as a fraction of the
range: a line may extrapolate, but not anywhere."""


def chained_completions(
    x: Tensor, blocks: Sequence[Block], *, num: int = 1, seed: int = 0
) -> Tensor:
    """Draws of the missing entries of rows, each column's given all others, in turn, repeatedly.

    A number is the prediction of a linear regression, which extrapolates to rows unlike those with
    the column, and the residual of a donor: a row in the same leaf of a tree of residuals, or any
    row if the tree predicts them no better than their mean. Levels are those of a donor in the same
    leaf of a tree of levels. The first draws are of a Gaussian distribution: columns that are
    nearly one never leave the means from which scikit-learn's ``IterativeImputer`` starts.

    For x (n, d), NaN where an entry is missing, and blocks of dimensions that are drawn together,
    it returns ``num`` tables of one chain, (num, n, d), in float64.

    Source: van Buuren & Groothuis-Oudshoorn, "mice: Multivariate imputation by chained equations
    in R", 2011; the donors in leaves are those of Doove, van Buuren & Dusseldorp, "Recursive
    partitioning for missing data imputation in the presence of interaction effects", 2014.
    """
    rng, missing = np.random.default_rng(seed), x.isnan().cpu().numpy()
    rows = drawn_rows(x.cpu(), torch.Generator().manual_seed(seed)).numpy()
    gaps = [block for block in blocks if missing[:, block[0]].any()]
    gaps.sort(key=lambda block: int(missing[:, block[0]].any(1).sum()))
    completed = []
    for sweep in range(SWEEPS + num - 1):
        for dims, is_level in gaps:
            gone = missing[:, dims].any(1)
            others, y = np.delete(rows, np.arange(x.shape[1])[dims], 1), rows[~gone, dims]
            draw = _levels if is_level else _numbers
            rows[gone, dims] = draw(others[~gone], y, others[gone], rng)
        if sweep >= SWEEPS - 1:
            completed.append(rows.copy())
    return torch.from_numpy(np.stack(completed))


def _levels(x: Values, y: Values, new: Values, rng: np.random.Generator) -> Values:
    """Levels of donors in the same leaf, (m, w), given features of rows with and without them."""
    return np.asarray(y[_donors(x, y, new, rng)])


def _numbers(x: Values, y: Values, new: Values, rng: np.random.Generator) -> Values:
    """Numbers on a line with residuals of donors, (m, 1), or of any row where a tree of one half of
    the rows predicts the residuals of the other half no better than their mean."""
    from sklearn.linear_model import Ridge
    from sklearn.tree import DecisionTreeRegressor

    y = y[:, 0]
    line = Ridge().fit(x, y)
    residual, half = y - line.predict(x), rng.permutation(len(y)) % 2 == 0
    gain = 0.0
    for fitted in (half, ~half) if len(y) >= 4 * LEAF and x.shape[1] < FEATURES else ():
        tree = DecisionTreeRegressor(min_samples_leaf=LEAF, random_state=0)
        tree.fit(x[fitted][:MOST], residual[fitted][:MOST])
        left = residual[~fitted] - tree.predict(x[~fitted])
        gain += float(((residual[~fitted] - residual[fitted].mean()) ** 2).sum() - (left**2).sum())
    donors = _donors(x, residual, new, rng) if gain > 0 else rng.integers(len(y), size=len(new))
    reach = REACH * np.ptp(y)
    drawn = np.clip(line.predict(new) + residual[donors], y.min() - reach, y.max() + reach)
    return np.asarray(drawn)[:, None]


def _donors(x: Values, y: Values, new: Values, rng: np.random.Generator) -> NDArray[np.int64]:
    """The indices of donors, (m,), drawn from the same leaf of a tree of y."""
    from sklearn.tree import DecisionTreeRegressor

    chosen = rng.permutation(len(y))[:MOST]
    tree = DecisionTreeRegressor(min_samples_leaf=LEAF, random_state=0).fit(x[chosen], y[chosen])
    leaf, leaf_of_new = tree.apply(x[chosen]), tree.apply(new)
    order = np.argsort(leaf, kind="stable")
    first = np.searchsorted(leaf[order], leaf_of_new)
    last = np.searchsorted(leaf[order], leaf_of_new, "right")
    return np.asarray(chosen[order[rng.integers(first, last)]])
