"""Pictures of tables: each column alone, columns in pairs, and whether predictions are calibrated.

A table is its columns by name, each (n,): a mapping of arrays, lists or tensors, or a data frame.
Numbers and dates are drawn in their own units, all else as categories. These stand in the order of
the column if it has one, as pandas' categorical columns do, or else by frequency. A missing entry
is None or NaN. A share of rows is one of the rows where the entry is present.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from pyro_mdm.plots.figures import new_figure
from pyro_mdm.support.measured import Z95, student_factor
from pyro_mdm.support.text import plain

__all__ = ["calibration_figure", "marginals_figure", "pairs_figure"]

Values = NDArray[np.float64]
Columns = Mapping[str, Any]

PANEL = (2.0, 1.62)
"""The width and height of a small panel, in inches."""
MOST_COLUMNS = 48
"""The largest number of columns in a picture of marginals, and of panels in one of calibration."""
MOST_LEVELS, MOST_BINS = 10, 30
"""The largest numbers of bars for a column of categories, and of bins for one of numbers."""
LETTERS = 22
"""The largest number of letters of a name."""
SPIKE = (5, 0.02, 2, 6)
"""The least count of a spike, its least share of rows, the least ratio of its count to that of any
number that is none, and the largest number of spikes."""
POINTS = 400
"""The largest number of points of a table in each panel of pairs."""
COMPARED, RANKED = 30, 1000
"""The largest numbers of columns and of rows for which dependence is measured."""
COLORS = {"observed": "0.5", "drawn": "C0"}
BINS = 10
"""The largest number of bins of a reliability curve, of about as many probabilities each."""


def marginals_figure(observed: Columns, drawn: Columns | None = None) -> Figure:
    """Each column of a table by itself, observed and drawn beside each other.

    Numbers have a histogram. A number that repeats often, such as 0, is a spike of its own beside
    it; where it would dwarf the bins it leaves the panel, and its share stands there. Small whole
    numbers and categories have bars, with the standard error of a share. Of more than 10 categories
    the rarest are one bar; of more than 48 columns the first are drawn.

    Args:
        observed: columns of the table by name, (n,) each.
        drawn: columns of rows that a model draws, by name; there may be more. None: the table
            alone.

    Raises:
        ValueError: no column; columns of different lengths, or without a value; a column that
            ``drawn`` does not have.
    """
    columns = _columns(observed, drawn)
    shown = columns[:MOST_COLUMNS]
    across = min(len(shown), max(3, math.ceil(math.sqrt(1.3 * len(shown)))), 8)
    figure, panels = _grid(len(shown), across)
    for axes, column in zip(panels, shown, strict=True):
        _draw_marginal(axes, column)
        axes.set_title(column.missing_in_words, fontsize=6.5, color="0.4", loc="right", pad=2)
    for axes in panels[::across]:
        axes.set_ylabel("share of rows", fontsize=7)
    note = "" if shown == columns else f", the first {len(shown)} of {len(columns)} columns"
    _legend(figure, columns[0], note)
    return figure


def pairs_figure(observed: Columns, drawn: Columns | None = None, *, most: int = 7) -> Figure:
    """Columns of a table in pairs, observed and drawn beside each other.

    Below the diagonal are rows, those of categories jittered; on it is each column alone. Above it
    stands how dependent two columns are: the rank correlation of numbers, and with categories the
    largest correlation that any scores of the categories have, which is never negative. Of a wider
    table those columns are drawn whose pairs are most dependent in ``observed``, and of more than
    30 columns the first 30 are considered.

    Args:
        observed: columns of the table by name, (n,) each.
        drawn: columns of rows that a model draws, by name; None: the table alone.
        most: largest number of columns, from 2 to 12.

    Raises:
        ValueError: ``most`` is not from 2 to 12; fewer than two columns; else as for
            :func:`marginals_figure`.
    """
    if not 2 <= most <= 12:
        raise ValueError(f"most is {most}, expected from 2 to 12 columns")
    columns = _columns(observed, drawn)
    if len(columns) < 2:
        raise ValueError(f"the table has one column, {columns[0].name!r}, expected at least two")
    shown = columns if len(columns) <= most else _most_dependent(columns[:COMPARED], most)
    k = len(shown)
    figure = new_figure(1.25 * k + 0.9, 1.1 * k + 1.0)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(k, k, squeeze=False)
    for i, row in enumerate(grid):
        for j, axes in enumerate(row):
            if i == j:
                _draw_marginal(axes, shown[i], named=False)
                _limit(axes, shown[i], "x")
                axes.tick_params(left=False, labelleft=False)
            elif i > j:
                _draw_pair(axes, shown[j], shown[i], seed=i * k + j)
            else:
                _draw_dependence(axes, shown[i], shown[j])
            axes.tick_params(labelsize=6, length=2, pad=1.5)
            axes.tick_params(axis="x", labelrotation=90 if shown[j].levels else 0)
            if i < k - 1 or (i != j and i < j):
                axes.tick_params(labelbottom=False, bottom=i == j or i > j)
            else:
                axes.set_xlabel(_short(shown[j].name), fontsize=7.5)
            if j > 0 and i != j:
                axes.tick_params(labelleft=False, left=i > j)
            if j == 0:
                axes.set_ylabel(_short(shown[i].name, 17), fontsize=7.5)
    figure.align_labels()
    note = ""
    if k < len(columns):
        among = f"the first {COMPARED} of " if len(columns) > COMPARED else ""
        note = f"; of {among}{len(columns)} columns the {k} most dependent"
    _legend(figure, columns[0], f"{note}; numbers: dependence")
    return figure


def calibration_figure(
    pit: Columns, classes: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None
) -> Figure:
    """Whether predictions of entries are calibrated, for all columns together and for each one.

    A panel of numbers has the share of true values inside of central intervals of the prediction,
    by the nominal level of these. It is below the diagonal where intervals are too narrow. A
    panel of categories has a reliability curve of all of them: how often a category is true, by
    the probability that was predicted, in bins of about as many.

    In 95 of 100 panels of a calibrated model a point of the curve is in the grey band, which is
    that of the binomial distribution, or on the error bar of a bin. Entries of a row are not
    independent: the band of all columns together is by rows.

    Args:
        pit: probability integral transforms by column, (n,) each, the same rows in all: the mass
            of the predicted distribution below the true value, plus a random fraction of the mass
            at it (by ranks, if the prediction is by draws). NaN where no entry was predicted.
        classes: predictions of categories by column: probabilities, (n, C), and the index of the
            true category, (n,), NaN where none was predicted. Frequencies among draws are noisy,
            and the largest one is too large. So give two of them, (2, n, C), of different draws:
            the first chooses the bins, the second gives the probabilities in them.

    Raises:
        ValueError: no column; other shapes; numbers outside of [0, 1]; a column without a
            prediction.
    """
    numbers = {name: _transforms(name, values) for name, values in pit.items()}
    predicted = {name: _predicted(name, *pair) for name, pair in (classes or {}).items()}
    if not numbers and not predicted:
        raise ValueError("no column was predicted, expected at least one in pit or classes")
    if len({len(u) for u in numbers.values()}) > 1:
        sizes = ", ".join(f"{len(u)} of {name!r}" for name, u in numbers.items())
        raise ValueError(f"pit has {sizes}, expected the same rows in all columns")
    together = int(len(numbers) > 1)
    drawn = [*numbers, *predicted][: MOST_COLUMNS - together]
    across = min(together + len(drawn), max(3, math.ceil(math.sqrt(together + len(drawn)))), 8)
    figure, panels = _grid(together + len(drawn), across, square=True)
    if together:
        _draw_coverage(panels[0], np.stack([*numbers.values()], 1), "all numbers", color="C1")
    for axes, name in zip(panels[together:], drawn, strict=True):
        if name in numbers:
            _draw_coverage(axes, numbers[name][:, None], name)
        else:
            _draw_reliability(axes, *predicted[name], name)
    for i, axes in enumerate(panels):
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.set_xticklabels(["0", "0.5", "1"])
        axes.set_yticklabels(["0", "0.5", "1"] if i % across == 0 else [])
        axes.tick_params(labelsize=7)
        if i % across == 0:
            axes.set_ylabel("true" if i >= together + len(numbers) else "share inside", fontsize=7)
    left = len(numbers) + len(predicted) - len(drawn)
    note = f"; {left} columns are left out" if left else ""
    figure.suptitle(f"calibration, with 95% bands of chance{note}", fontsize=9.5)
    return figure


# -- columns ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """A column as it is drawn: numbers, or codes of levels, by table, NaN where missing."""

    name: str
    values: dict[str, Values]
    levels: list[str] | None = None
    dates: bool = False

    @property
    def present(self) -> dict[str, Values]:
        """The numbers that are present."""
        return {label: v[~np.isnan(v)] for label, v in self.values.items()}

    @property
    def missing_in_words(self) -> str:
        share = float(np.isnan(self.values["observed"]).mean())
        return f"{share:.0%} missing" if share >= 0.005 else "<1% missing" if share else ""


def _columns(observed: Columns, drawn: Columns | None) -> list[_Column]:
    tables = {"observed": observed} | ({} if drawn is None else {"drawn": drawn})
    names = list(observed.keys())
    if not names:
        raise ValueError("the table has no column, expected at least one")
    for label, table in tables.items():
        if absent := [name for name in names if name not in table]:
            raise ValueError(f"{label} has no column {absent[0]!r}, expected {', '.join(names)}")
        sizes = {len(table[name]) for name in names}
        if len(sizes) > 1:
            raise ValueError(
                f"{label} has columns of {sorted(sizes)} rows, expected as many in all"
            )
    return [_column(str(name), {label: t[name] for label, t in tables.items()}) for name in names]


def _column(name: str, tables: Columns) -> _Column:
    missing = {label: _missing(values) for label, values in tables.items()}
    for label, absent in missing.items():
        if absent.all():
            raise ValueError(f"column {name!r} of {label} has no value, expected at least one")
    order = getattr(getattr(tables["observed"], "dtype", None), "categories", None)
    if order is None:
        arrays = {label: np.asarray(values) for label, values in tables.items()}
        dates = all(array.dtype.kind == "M" for array in arrays.values())
        numbers = {label: _numbers(array, missing[label]) for label, array in arrays.items()}
        values = {label: v for label, v in numbers.items() if v is not None}
        if len(values) == len(tables):
            distinct = np.unique(np.concatenate([v[~np.isnan(v)] for v in values.values()]))
            repeated = 4 * len(distinct) <= len(tables["observed"])
            if dates or len(distinct) > MOST_LEVELS or not (repeated or _whole(distinct)):
                return _Column(name, values, dates=dates)
            if _whole(distinct) and np.ptp(distinct) < MOST_BINS:
                return _Column(name, values)
            order = distinct.tolist()
    objects = {label: np.array([*values], dtype=object) for label, values in tables.items()}
    return _with_levels(name, objects, missing, None if order is None else list(order))


def _with_levels(
    name: str,
    tables: dict[str, NDArray[np.object_]],
    missing: dict[str, NDArray[np.bool_]],
    order: list[object] | None,
) -> _Column:
    """A column of categories; the rarest of many are one."""
    counts = [Counter(v[~missing[label]].tolist()) for label, v in tables.items()]
    often = list(dict.fromkeys(level for c in counts for level, _ in c.most_common()))
    kept = often if len(often) <= MOST_LEVELS else often[: MOST_LEVELS - 1]
    if order is not None:
        kept = [level for level in order if level in kept]
    place = {level: float(k) for k, level in enumerate(kept)}
    values = {
        label: np.array(
            [
                math.nan if gone else place.get(value, float(len(kept)))
                for value, gone in zip(v.tolist(), missing[label].tolist(), strict=True)
            ]
        )
        for label, v in tables.items()
    }
    rest = [f"{len(often) - len(kept)} others"] if len(often) > len(kept) else []
    words = [f"{v:g}" if isinstance(v, float) else _inner(str(v)) for v in kept]
    return _Column(name, values, [*words, *rest])


def _missing(values: object) -> NDArray[np.bool_]:
    if hasattr(values, "isna"):  # of pandas, whose missing values are not equal nor unequal
        return np.asarray(values.isna(), dtype=np.bool_)
    array = np.asarray(values)
    if array.dtype.kind == "O":
        return np.array([v is None or bool(v != v) for v in array], dtype=np.bool_)
    if array.dtype.kind in "fM":
        return np.asarray(np.isnat(array) if array.dtype.kind == "M" else np.isnan(array))
    return np.zeros(len(array), dtype=np.bool_)


def _numbers(array: NDArray[Any], missing: NDArray[np.bool_]) -> Values | None:
    """Numbers as float64, NaN where missing, dates as matplotlib's; None: they are no numbers."""
    if array.dtype.kind == "M":
        days = array.astype("datetime64[us]").astype(np.int64) / 86_400e6
        return np.where(missing, math.nan, days)
    if array.dtype.kind == "O":
        present = array[~missing]
        numbers = (isinstance(v, int | float | np.number) for v in present)
        if not all(numbers) or any(isinstance(v, bool) for v in present):
            return None
        return np.array([math.nan if m else float(v) for v, m in zip(array, missing, strict=True)])
    return array.astype(np.float64) if array.dtype.kind in "iuf" else None


def _whole(values: Values) -> bool:
    return bool((values == values.round()).all())


def _short(name: str, letters: int = LETTERS) -> str:
    return plain(name if len(name) <= letters else f"{name[: letters - 1].rstrip()}…")


def _inner(level: str) -> str:
    """A category by its start and its end, which tell it from others."""
    return plain(level if len(level) <= 11 else f"{level[:5]}…{level[-5:]}")


# -- one column ------------------------------------------------------------------------------------


def _draw_marginal(axes: Axes, column: _Column, *, named: bool = True) -> None:
    everything = np.concatenate([*column.present.values()])
    if column.levels is not None:
        _draw_bars(axes, column, np.arange(len(column.levels)))
        axes.set_xticks(range(len(column.levels)), column.levels)
        if named:
            crowded = sum(map(len, column.levels)) > 27
            axes.tick_params(axis="x", labelrotation=90 if crowded else 0)
    elif _whole(everything) and not column.dates and np.ptp(everything) < MOST_BINS:
        _draw_bars(axes, column, np.arange(everything.min(), everything.max() + 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    else:
        _draw_histogram(axes, column, everything)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))
    axes.tick_params(labelsize=6.5, length=2, pad=2)
    if named:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(_short(column.name, 30), fontsize=8)


def _sides(column: _Column) -> Iterator[tuple[str, Values, float]]:
    """Tables with their numbers, and where their bars stand, in widths of a bar."""
    several = len(column.values) > 1
    for i, (label, values) in enumerate(column.present.items()):
        yield label, values, i - 0.5 if several else 0.0


def _draw_bars(axes: Axes, column: _Column, places: NDArray[np.number]) -> None:
    width = 0.8 / len(column.values)
    for label, values, side in _sides(column):
        share = np.array([(values == place).mean() for place in places])
        error = np.sqrt(share * (1 - share) / len(values))
        at = places + side * width
        axes.bar(at, share, width, color=COLORS[label], alpha=0.9)
        axes.errorbar(at, share, error, fmt="none", ecolor="0.15", elinewidth=0.7)
    axes.set_ylim(0, None)


def _draw_histogram(axes: Axes, column: _Column, everything: Values) -> None:
    observed = column.present["observed"]
    tails = [(0.005, 0.995) if len(v) >= 200 else (0, 1) for v in column.present.values()]
    ends = [np.quantile(v, q) for v, q in zip(column.present.values(), tails, strict=True)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    margin = 0.1 * (high - low) or 0.5
    low, high = max(low - margin, everything.min()), min(high + margin, everything.max())
    bins = int(np.clip(math.isqrt(len(observed)), 8, MOST_BINS))
    spikes = _spikes(column)
    if _whole(everything):
        step = max(1, math.ceil((high - low + 1) / bins))
        edges = np.arange(math.floor(low), high + 1 + step, step) - 0.5
        spikes = spikes if step > 1 else spikes[:0]
    else:
        edges = np.linspace(low, high, bins + 1)
    reach, tallest = edges[-1] - edges[0], 0.0
    for label, values, _ in _sides(column):
        rest = values[~np.isin(values, spikes)]
        share = np.histogram(rest, edges)[0] / len(values)
        if label == "observed":
            axes.stairs(share, edges, color=COLORS[label], fill=True, alpha=0.55)
        else:
            axes.stairs(share, edges, color=COLORS[label], lw=1.3)
        tallest = max(tallest, float(share.max()))
    shares = np.array([[(v == w).mean() for v in column.present.values()] for w in spikes]).reshape(
        -1, len(column.values)
    )
    top = 1.12 * max(tallest, shares.max(initial=0.0))
    cut = tallest > 0 and int((shares > 1.9 * tallest).any(-1).sum()) == 1 and top > 3.5 * tallest
    top = 1.9 * tallest if cut else top
    width = reach / 45
    for spike, of_tables in zip(spikes, shares, strict=True):
        for (label, _, side), share in zip(_sides(column), of_tables, strict=True):
            axes.bar(spike + side * width, share, width, color=COLORS[label], alpha=0.9)
        if cut and of_tables.max() > top:
            words = " | ".join(f"{share:.0%}" for share in of_tables)
            right = spike < (edges[0] + edges[-1]) / 2
            at = spike + (1.3 if right else -1.3) * width
            axes.text(
                at, 0.97 * top, words, fontsize=6.5, va="top", ha="left" if right else "right"
            )
    axes.set_ylim(0, top or None)
    axes.set_xlim(edges[0] - 0.04 * reach, edges[-1] + 0.04 * reach)
    _mark_numbers(axes, column)


def _mark_numbers(axes: Axes, column: _Column, which: str = "x") -> None:
    """Ticks of numbers or dates, few of them."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if column.dates:
        locator = AutoDateLocator(minticks=2, maxticks=6)
        axis.set_major_locator(locator)
        axis.set_major_formatter(ConciseDateFormatter(locator))
    else:
        axis.set_major_locator(MaxNLocator(4))
        if max(map(abs, axis.get_view_interval())) >= 10_000:
            axis.set_major_formatter(EngFormatter(sep=""))


def _spikes(column: _Column) -> Values:
    """Numbers that repeat far more often than the others."""
    repeats, share, times, most = SPIKE
    often: set[float] = set()
    for values in column.present.values():
        numbers, counts = np.unique(values, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        counts = np.append(counts[order], 0)
        many = counts[:-1] >= max(repeats, share * len(values))
        ends = np.flatnonzero(many & (counts[:-1] >= times * counts[1:]))
        ends = ends[ends < most]
        often |= {*numbers[order[: ends[-1] + 1]].tolist()} if len(ends) else set()
    return np.array(sorted(often))


# -- two columns -----------------------------------------------------------------------------------


def _draw_pair(axes: Axes, across: _Column, up: _Column, seed: int) -> None:
    """Rows of both tables; in a category those of each table have their own half."""
    rng = np.random.default_rng(seed)
    both = {label: ~np.isnan(x) & ~np.isnan(up.values[label]) for label, x in across.values.items()}
    most = min(POINTS, *(int(there.sum()) for there in both.values()))  # as many of each
    points, colours = [], []
    for label, there in both.items():
        few = np.flatnonzero(there)
        few = few[np.linspace(0, len(few) - 1, most).astype(int)]
        side = 0.0 if len(both) == 1 else -0.2 if label == "observed" else 0.2
        place = []
        for column, shift in ((across, side), (up, 0.0 if across.levels else side)):
            wide = 0.15 if shift else 0.3
            jitter = shift + wide * rng.uniform(-1, 1, most) if column.levels else 0.0
            place.append(column.values[label][few] + jitter)
        points.append(np.stack(place, 1))
        colours += [COLORS[label]] * most
    order = rng.permutation(len(colours))  # so that no table covers the other
    x, y = np.concatenate(points)[order].T
    axes.scatter(x, y, s=3.5, lw=0, alpha=0.7, c=[colours[i] for i in order])
    for column, which in ((across, "x"), (up, "y")):
        _limit(axes, column, which)


def _limit(axes: Axes, column: _Column, which: str) -> None:
    """The axis of a column, the same in all panels."""
    if column.levels is not None:
        axes.set(**{f"{which}lim": (-0.6, len(column.levels) - 0.4)})
        axes.set(**{f"{which}ticks": range(len(column.levels))})
        axes.set(**{f"{which}ticklabels": column.levels})
        return
    both = np.concatenate([*column.present.values()])
    low, high = np.quantile(both, (0.002, 0.998))
    margin = max(0.06 * (high - low), 0.5 if _whole(both) else 0) or 0.5
    axes.set(**{f"{which}lim": (low - margin, high + margin)})
    _mark_numbers(axes, column, which)


def _draw_dependence(axes: Axes, one: _Column, other: _Column) -> None:
    axes.set(xticks=[], yticks=[])
    measured = {label: _dependence(one, other, label) for label in one.values}
    axes.set_facecolor((0.12, 0.47, 0.71, 0.3 * abs(np.nan_to_num(measured["observed"]))))
    for spine in axes.spines.values():
        spine.set_color("0.85")
    for i, (label, value) in enumerate(measured.items()):
        at = 0.5 if len(measured) == 1 else 0.64 - 0.28 * i
        words = "–" if math.isnan(value) else f"{value:.2f}".replace("-", "−")
        color = "0.3" if label == "observed" else COLORS[label]
        axes.text(
            0.5, at, words, fontsize=9, color=color, ha="center", va="center",
            transform=axes.transAxes,
        )  # fmt: skip


def _dependence(one: _Column, other: _Column, label: str = "observed") -> float:
    """The largest correlation of scores of two columns, with the sign of two of numbers."""
    x, y = one.values[label][:RANKED], other.values[label][:RANKED]
    there = ~np.isnan(x) & ~np.isnan(y)
    bases = [_scores(c, v[there]) for c, v in ((one, x), (other, y))]
    if min(basis.shape[1] for basis in bases) == 0:
        return math.nan  # a column that is constant where both are there
    product = bases[0].T @ bases[1]
    if one.levels is None and other.levels is None:
        return float(product[0, 0])
    return min(1.0, float(np.linalg.norm(product, 2)))


def _scores(column: _Column, values: Values) -> Values:
    """An orthonormal basis of centred scores, (n, r): ranks of numbers, any of categories."""
    if column.levels is None:
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        scores = (np.cumsum(counts) - (counts - 1) / 2)[place][:, None]
    else:
        scores = (values[:, None] == np.arange(len(column.levels))).astype(float)
    scores = scores - scores.mean(0) if len(scores) else scores
    if column.levels is None:
        length = float(np.linalg.norm(scores))
        return scores / length if length > 0 else scores[:, :0]
    basis, size, _ = np.linalg.svd(scores, full_matrices=False)
    return np.asarray(basis[:, size > 1e-9 * max(1.0, math.sqrt(len(scores)))])


def _most_dependent(columns: Sequence[_Column], most: int) -> list[_Column]:
    """The columns of the most dependent pairs, in their order."""
    pairs = [
        (abs(np.nan_to_num(_dependence(columns[i], columns[j]))), i, j)
        for i in range(len(columns))
        for j in range(i)
    ]
    chosen: list[int] = []
    for _, i, j in sorted(pairs, reverse=True):
        chosen += [k for k in (j, i) if k not in chosen]
    return [columns[k] for k in sorted(chosen[:most])]


# -- calibration -----------------------------------------------------------------------------------


def _transforms(name: str, values: ArrayLike) -> Values:
    u = np.asarray(values, dtype=np.float64)
    if u.ndim != 1 or ((u < 0) | (u > 1)).any():
        raise ValueError(f"pit of {name!r} has shape {u.shape}, expected (n,) numbers in [0, 1]")
    if np.isnan(u).all():
        raise ValueError(f"pit of {name!r} holds no number, expected at least one; leave it out")
    return u


def _predicted(
    name: str, probabilities: ArrayLike, true: ArrayLike
) -> tuple[Values, NDArray[np.int64]]:
    p, k = np.asarray(probabilities, dtype=np.float64), np.asarray(true, dtype=np.float64)
    p = p[None] if p.ndim == 2 else p
    if p.ndim != 3 or len(p) > 2 or k.shape != p.shape[1:2]:
        raise ValueError(
            f"classes of {name!r} have shapes {np.shape(probabilities)} and {k.shape}, expected "
            "(n, C) or (2, n, C) probabilities and which category was true, (n,)"
        )
    there = ~np.isnan(k)
    if not there.any():
        raise ValueError(f"no category of {name!r} was predicted; leave the column out")
    return p[:, there], k[there].astype(np.int64)


def _draw_coverage(axes: Axes, u: Values, name: str, color: str = "C0") -> None:
    """Coverage of central intervals by level; u is (rows, columns)."""
    levels = np.linspace(0, 1, 101)
    present = ~np.isnan(u)
    number = int(present.sum())
    inside = (2 * np.abs(np.where(present, u, 0.5) - 0.5))[..., None] <= levels
    inside &= present[..., None]
    share = inside.sum((0, 1)) / number
    if u.shape[1] == 1:
        low, high = _binomial_band(number, levels)
    else:  # entries of a row go together
        of_row = inside.sum(1) - levels * present.sum(1)[:, None]
        n = len(of_row)
        half = Z95 * float(student_factor(n - 1)) * np.sqrt(n) * of_row.std(0, ddof=1) / number
        low, high = levels - half, levels + half
    axes.fill_between(levels, low, high, color="0.85", lw=0)
    axes.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    axes.plot(levels, share, color=color, lw=1.5)
    at = float(share[90])
    axes.set_title(f"{_short(name, 26)}\n{at:.0%} in 90% intervals", fontsize=7.5)
    _count(axes, number)
    axes.set_xlabel("level of the interval", fontsize=7)


def _binomial_band(number: int, levels: Values) -> tuple[Values, Values]:
    """The 2.5% and 97.5% quantiles of the share of ``number`` entries, by its expectation."""
    k = torch.arange(number + 1, dtype=torch.float64)
    p = torch.from_numpy(levels).clamp(1e-12, 1 - 1e-12)[:, None]
    law = torch.distributions.Binomial(number, probs=p)
    below = law.log_prob(k).exp().cumsum(-1)
    low = (below < 0.025).sum(-1).double() / number
    high = (below < 0.975).sum(-1).double() / number
    return low.numpy(), high.numpy()


def _draw_reliability(axes: Axes, p: Values, true: NDArray[np.int64], name: str) -> None:
    """How often categories are true by their probabilities (1 or 2, n, C), in bins of as many."""
    sorting, chances = p[0], p[-1]
    hit = (true[:, None] == np.arange(chances.shape[1])).ravel()
    edges = np.quantile(sorting, np.linspace(0, 1, min(BINS, max(2, len(true) // 16)) + 1))
    bins = np.digitize(sorting.ravel(), np.unique(edges)[1:-1])
    entries_by_bin = [np.flatnonzero(bins == k) for k in np.unique(bins)]
    mean = np.array([chances.ravel()[entries].mean() for entries in entries_by_bin])
    share = np.array([hit[entries].mean() for entries in entries_by_bin])
    spread = np.sqrt(
        [(chances * (1 - chances)).ravel()[q].sum() / len(q) ** 2 for q in entries_by_bin]
    )
    axes.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    axes.errorbar(
        mean, share, Z95 * spread, fmt="o-", color="C2", ms=3, lw=1, capsize=1.5, clip_on=False
    )
    chosen = sorting.argmax(1)
    right = float((chosen == true).mean())
    sure = float(chances[np.arange(len(chances)), chosen].mean())
    axes.set_title(f"{_short(name, 26)}\n{right:.0%} right, {sure:.0%} predicted", fontsize=7.5)
    _count(axes, len(true))
    axes.set_xlabel("probability", fontsize=7)


def _count(axes: Axes, number: int) -> None:
    axes.text(0.96, 0.04, f"n = {number:,}", fontsize=6.5, color="0.4", ha="right")


# -- panels ----------------------------------------------------------------------------------------


def _grid(number: int, across: int, *, square: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure and its first ``number`` panels, in rows; others are empty."""
    down = math.ceil(number / across)
    width, height = (1.75, 2.05) if square else PANEL
    figure = new_figure(width * across + 0.3, height * down + 0.4)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes in panels[number:]:
        axes.axis("off")
    return figure, list(panels[:number])


def _legend(figure: Figure, column: _Column, more: str) -> None:
    """The tables, with their rows, above the panels."""
    handles = [
        Line2D([], [], lw=5, label=f"{label}, {len(values):,} rows", color=COLORS[label])
        for label, values in column.values.items()
    ]
    title = more.lstrip(";, ") or None
    figure.legend(
        handles=handles, title=title, title_fontsize=8, fontsize=8, ncols=2, frameon=False,
        loc="outside upper center",
    )  # fmt: skip
