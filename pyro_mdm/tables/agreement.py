"""The agreement of a model's samples with the rows of a table that it was trained on.

Missing entries of rows are drawn by the model given the others: if it is right, the completed rows
and the samples have one distribution, whatever the reason that entries are missing.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm.conditioning.imputation import impute
from pyro_mdm.model import DiffusionModel
from pyro_mdm.randomness import seed_from
from pyro_mdm.support.checks import tensor_device
from pyro_mdm.support.modules import evaluating
from pyro_mdm.tables.columns import Column, Mixed, encode
from pyro_mdm.tables.columns.skipped import ABSENT, Skipped
from pyro_mdm.tables.rows import TableRows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Agreement", "Distance", "agreement"]

Values = NDArray[np.float64]

ROWS = 1000
"""The most rows, and the number of samples, that are compared."""
RESAMPLES = 100
"""The number of resamples of the rows, for the noise of a distance: its 95% quantile then has five
resamples beyond it."""
FEWEST = 50
"""The fewest rows, and samples, with both columns of a pair that is compared."""
PROBED, LEAST, COLUMNS = 10, 200, 40
"""The rows whose draws are timed, the fewest rows that are compared within some seconds, and the
most columns whose pairs are compared."""
LARGE = 0.1
"""The distance of two distributions, or change of a correlation, above which it is reported."""
EXPECTED = 12.0
"""The least expected number of rows with two values, were these independent, at which their absence
counts as a rule: it is 0 by chance with probability e^{-12} = 6e-6."""
BROKEN = 0.005
"""The fraction of samples that break rules above which there is a warning."""
LINES, WARNED = 5, 8
"""The most columns, and the most pairs, that are named; the most of both in a warning."""


class Distance(NamedTuple):
    """The distance between samples and rows, from 0 to 1, with its noise."""

    name: str  # the column or pair
    value: float
    noise: float  # the distance below which 95% of resampled rows are

    @property
    def is_large(self) -> bool:
        """Whether it is above 0.1 and twice its noise."""
        return self.value > max(LARGE, 2 * self.noise)

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f} (noise {self.noise:.2f})"


@dataclass(frozen=True)
class Agreement:
    """The agreement of samples with rows.

    Attributes:
        columns: the distance of each column: the largest difference of distribution functions of
            numbers, or half the sum of differences of probabilities of levels.
        pairs: the difference of the correlation of each pair among rows that have both columns, by
            ranks of numbers, or by the scores of levels that are most correlated.
        rules: the number of pairs of values that no row has, though at least 12 rows
            would by chance.
        broken: the fraction of samples that have such a pair.
        rows, samples: columns by name, as for :func:`pyro_mdm.plots.tables.pairs_figure`.
    """

    columns: list[Distance]
    pairs: list[Distance]
    rules: int
    broken: float
    rows: Mapping[str, object]
    samples: Mapping[str, object]

    @property
    def differs(self) -> list[str]:
        """The differences that are larger than noise, in words."""
        large = [str(one) for one in (*self.columns, *self.pairs) if one.is_large]
        if self.broken > BROKEN:
            large.append(f"{self.broken:.1%} of samples break a rule of the rows")
        return large

    def warn(self, what: str) -> None:
        """Warn if samples of the model that is called ``what`` differ by more than noise."""
        if differences := self.differs:
            warnings.warn(
                f"samples of {what} differ from its rows by more than chance: "
                f"{'; '.join(differences[:WARNED])}. Samples and densities are wrong by as much; "
                "more steps, or other kinds of these columns, may help",
                stacklevel=3,
            )

    def figure(self) -> Figure:
        """The figure of columns in pairs, of rows and of samples."""
        from pyro_mdm.plots.tables import marginals_figure, pairs_figure

        draw = pairs_figure if len(self.rows) > 1 else marginals_figure
        return draw(self.rows, self.samples)

    def __str__(self) -> str:
        lines = ["samples beside rows, as distances from 0 to 1:"]
        for what, distances in (("columns", self.columns), ("correlations", self.pairs)):
            worst = sorted(distances, key=lambda one: one.noise - one.value)[:LINES]
            if worst:
                lines.append(f"  {what} that differ most: {', '.join(map(str, worst))}")
        if self.rules:
            lines.append(
                f"  {self.rules} pairs of values are in no row together, and in {self.broken:.1%} "
                "of samples"
            )
        return "\n".join(lines)


@torch.no_grad()
def agreement(
    table: TableRows,
    model: DiffusionModel,
    samples: Tensor | None = None,
    *,
    seed: int = 0,
    seconds: float | None = None,
) -> Agreement | None:
    """The agreement of samples of a trained model with its training rows.

    Args:
        table, model: the training rows, and their model, trained at maps with entries observed.
        samples: samples of the model, in model space, (m, d); None: 1,000 new ones.
        seed: the seed of the draws.
        seconds: the time of draws, by which fewer rows and samples are compared, or none below 200,
            where the result is None; None: no limit.
    """
    generator = torch.Generator().manual_seed(seed_from(seed, "agreement"))
    chosen = torch.randperm(len(table.train), generator=generator)[:ROWS]
    x = table.to_model_space(table.train[chosen], generator)
    x = x.to(tensor_device(model.score_function))
    with evaluating(model), torch.random.fork_rng([x.device] if x.is_cuda else []):
        if seconds is not None:
            began = monotonic()
            impute(model, x[:PROBED], num=1, seed=seed)
            model(batch_size=PROBED)
            number = int(PROBED * seconds / (monotonic() - began)) - PROBED
            if number < min(LEAST, len(x)):
                return None
            x = x[:number]
        x = impute(model, x, num=1, seed=seed)[0]
        if samples is None:
            torch.manual_seed(seed_from(seed, "samples"))
            samples = model(batch_size=ROWS if seconds is None else len(x))
    columns = table.columns
    rows, drawn = (encode(columns, table.to_table(one)).numpy() for one in (x, samples))
    forbidden = [*_forbidden(columns, table.train.numpy())]
    events = [*map(_events, columns, drawn.T)]
    broken = np.zeros(len(drawn), dtype=bool)
    for (i, a), (j, b) in forbidden:
        broken |= (events[i] == a) & (events[j] == b)
    return Agreement(
        _marginals(columns, rows, drawn, np.random.default_rng(seed)),
        _correlations(columns, rows, drawn),
        len(forbidden),
        float(broken.mean()),
        table.as_columns(x),
        table.as_columns(samples),
    )


def _marginals(
    columns: list[Column], rows: Values, samples: Values, rng: np.random.Generator
) -> list[Distance]:
    """The distance of each column of codes of rows, (n, d), and of samples, (m, d)."""
    n, m, distances = len(rows), len(samples), []
    # both are drawn from one distribution, as rows and samples are if the model is right
    resampled = [(rng.integers(0, n, n), rng.integers(0, n, m)) for _ in range(RESAMPLES)]
    for column, real, drawn in zip(columns, rows.T, samples.T, strict=True):
        ordered = column.levels is None
        noise = np.quantile([_distance(real[a], real[b], ordered) for a, b in resampled], 0.95)
        distances.append(Distance(column.name, _distance(real, drawn, ordered), float(noise)))
    return distances


def _correlations(columns: list[Column], rows: Values, samples: Values) -> list[Distance]:
    """The differences of correlations, each among rows that have both columns."""
    distances = []
    for i, j in itertools.combinations(range(min(COLUMNS, len(columns))), 2):
        pair = columns[i], columns[j]
        ranked = all(map(_is_ordered, pair))
        both = [codes[np.isfinite(codes[:, [i, j]]).all(1)] for codes in (rows, samples)]
        if min(map(len, both)) < FEWEST:
            continue
        scores = [(_scores(pair[0], c[:, i]), _scores(pair[1], c[:, j])) for c in both]
        in_rows, in_samples = (_correlation(a, b, ranked) for a, b in scores)
        size = math.prod(max(score.shape[1], 1) for score in scores[0])
        # twice the standard error of a difference, more for the largest of several scores
        errors = sum(1 / len(codes) for codes in both)
        noise = 2 * math.sqrt(errors * size) * (1 - in_rows**2)
        name = f"{pair[0].name} × {pair[1].name}"
        distances.append(Distance(name, abs(in_rows - in_samples), noise))
    return distances


def _is_ordered(column: Column) -> bool:
    return column.levels is None or column.kind == "ordinal"


def _distance(rows: Values, samples: Values, ordered: bool) -> float:
    """The largest difference of two distribution functions, or half the sum of the differences of
    probabilities where values have no order."""
    values = np.unique(np.concatenate([rows, samples]))
    counts = [
        np.bincount(np.searchsorted(values, v), minlength=len(values)) for v in (rows, samples)
    ]
    off = counts[0] / len(rows) - counts[1] / len(samples)
    return float(np.abs(off.cumsum()).max() if ordered else np.abs(off).sum() / 2)


def _scores(column: Column, codes: Values) -> Values:
    """An orthonormal basis of centred scores, (n, r): the ranks of numbers, or all scores of
    levels."""
    if _is_ordered(column):
        _, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
        scores = (np.cumsum(counts) - (counts - 1) / 2)[places][:, None]
        centred = scores - scores.mean(0)
        return centred / max(float(np.linalg.norm(centred)), 1e-12)
    scores = (codes[:, None] == np.arange(column.levels or 0)).astype(float)
    basis, sizes, _ = np.linalg.svd(scores - scores.mean(0), full_matrices=False)
    return basis[:, sizes > 1e-9 * math.sqrt(len(codes))]


def _correlation(one: Values, other: Values, ranked: bool) -> float:
    """The largest correlation of scores, with a sign if both are ranks."""
    if not one.shape[1] or not other.shape[1]:
        return 0.0
    product = one.T @ other
    return float(product[0, 0]) if ranked else float(np.linalg.norm(product, 2))


# -- rules -----------------------------------------------------------------------------------------


def _events(column: Column, codes: Values) -> Values:
    """Events of codes, (n,): levels; of numbers the index of an atom, -1 for no atom and -2 for
    absent; NaN where missing."""
    there = codes
    if column.levels is None:
        there = np.where(np.isfinite(codes), -1.0, codes)
        if isinstance(column, Mixed):
            for k, atom in enumerate(column.atoms.tolist()):
                there[codes == atom] = k
        elif not isinstance(column, Skipped):
            there[:] = math.nan
    return np.where(codes == ABSENT, -2.0, there)


def _forbidden(
    columns: list[Column], rows: Values
) -> Iterator[tuple[tuple[int, float], tuple[int, float]]]:
    """Pairs of events of two columns that no row has, though 12 rows would if the
    columns were independent."""
    events = [*map(_events, columns, rows.T)]
    for i, j in itertools.combinations(range(len(columns)), 2):
        there = np.isfinite(events[i]) & np.isfinite(events[j])
        first, second = events[i][there], events[j][there]
        if not len(first):
            continue
        for a, b in itertools.product(np.unique(first), np.unique(second)):
            is_a, is_b = first == a, second == b
            if is_a.mean() * is_b.sum() >= EXPECTED and not (is_a & is_b).any():
                yield (i, float(a)), (j, float(b))
