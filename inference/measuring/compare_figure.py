"""The picture of a comparison, drawn from its tables (see :mod:`inference.compare`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.folders.output import Row
from pyro_mdm.support.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
FEW = 6
"""The most runs with error bands of the diffusion term and a cumulative difference."""

NARROW = 0.02
"""The width of cells of log SNR below which they are too noisy to draw."""


def comparison_figure(
    bounds: Sequence[Row], differences: Sequence[Row], by_log_snr: Sequence[Row], title: str = ""
) -> Figure:
    """A forest plot of bounds and paired differences, best run on top; the diffusion term by λ.

    Arguments are the fields of :class:`inference.measuring.compare_tables.Tables`, and a title.
    """
    from matplotlib.figure import Figure

    names = [row["run"] for row in bounds]
    colors = _colors(names)
    # log SNRs of simulated diffusions are nominal: sums up to one of them do not compare
    simulated = any(row["simulated"] for row in bounds)
    few = 1 < len(names) <= FEW and not simulated
    height = 1.4 + 0.32 * max(len(names), 4)
    figure = Figure((13.0, height + 4.2), dpi=DPI, layout="constrained")
    figure.suptitle(plain(title))
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, 4.2])
    top, bottom = parts
    if len(names) > 1:
        left, right = top.subplots(1, 2, sharey=True)
        _differences(right, names, differences, colors)
    else:
        left = top.subplots()
    _bounds(left, bounds, colors)
    if few:
        density, cumulative = bottom.subplots(1, 2, sharex=True)
        _cumulative_differences(cumulative, names, by_log_snr, colors)
    else:
        density = bottom.subplots()
    _diffusion_term(density, names, by_log_snr, colors)
    if simulated:
        density.set_xlabel("log SNR λ, nominal where simulated   (noise ← → data)")
    if len(names) > FEW:
        bottom.legend(loc="outside right upper", fontsize=7)
    else:
        density.legend(fontsize=8)
    return figure


def _colors(names: Sequence[str]) -> dict[str, Any]:
    if len(names) <= 10:
        return {name: f"C{i}" for i, name in enumerate(names)}
    from matplotlib import colormaps

    colors = colormaps["turbo"](np.linspace(0.03, 0.97, len(names)))
    return dict(zip(names, colors, strict=True))


def _bounds(axes: Axes, bounds: Sequence[Row], colors: dict[str, Any]) -> None:
    for i, row in enumerate(bounds):
        value, color = row["bits_per_dim"], colors[row["run"]]
        noise = row["monte_carlo_half_width_95_bits_per_dim"]
        axes.hlines(i, row["low_95_bits_per_dim"], row["high_95_bits_per_dim"], color, lw=1.2)
        axes.hlines(i, value - noise, value + noise, color, lw=6, alpha=0.4)
        axes.plot(value, i, "o", ms=4, color=color)
    axes.set_yticks(range(len(bounds)), [plain(row["run"]) for row in bounds], fontsize=8)
    axes.set_ylim(len(bounds) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("bits/dim")
    axes.set_title("bound, 95% over the data (thin), noise alone (thick)", fontsize=10)


def _differences(
    axes: Axes, names: Sequence[str], differences: Sequence[Row], colors: dict[str, Any]
) -> None:
    best = names[0]
    axes.axvline(0.0, color="0.4", lw=0.9)
    for row in differences:
        if best not in (row["first"], row["second"]):
            continue
        sign = 1.0 if row["second"] == best else -1.0
        name = row["first"] if row["second"] == best else row["second"]
        i, color = names.index(name), colors[name]
        value = sign * row["difference_bits_per_dim"]
        noise = row["monte_carlo_half_width_95_bits_per_dim"]
        ends = sorted(sign * row[end] for end in ("low_95_bits_per_dim", "high_95_bits_per_dim"))
        axes.hlines(i, ends[0], ends[1], color, lw=1.2)
        axes.hlines(i, value - noise, value + noise, color, lw=6, alpha=0.4)
        face = color if row["resolved"] else "white"
        axes.plot(value, i, "o", ms=5, color=color, markerfacecolor=face)
        text = f"{value:+.4f} ± {(ends[1] - ends[0]) / 2:.4f}"
        axes.text(1.01, i, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.tick_params(labelleft=False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"bits/dim − that of {plain(best)}")
    axes.set_title("paired difference from the best ± 95%: ● resolved, ○ not", fontsize=10)


def _diffusion_term(
    axes: Axes, names: Sequence[str], by_log_snr: Sequence[Row], colors: dict[str, Any]
) -> None:
    for name in names:
        rows = _wide(by_log_snr, name)
        x = [(row["log_snr_low"] + row["log_snr_high"]) / 2 for row in rows]
        y = np.array([row["diffusion_bits_per_dim_per_log_snr"] for row in rows])
        error = np.array([row["monte_carlo_error_bits_per_dim_per_log_snr"] for row in rows])
        axes.plot(x, y, "o-", ms=2.5, lw=1.1, color=colors[name], label=plain(name))
        if len(names) <= FEW:
            axes.fill_between(x, y - error, y + error, color=colors[name], alpha=0.25, lw=0)
        else:
            axes.errorbar(x, y, error, fmt="none", color=colors[name], lw=0.7, alpha=0.6)
    axes.axhline(0.0, color="0.6", lw=0.8)
    axes.set_xlabel("log SNR λ   (noise ← → data)")
    axes.set_ylabel("bits/dim per unit of λ")
    axes.set_title("diffusion term by noise level, ± 1 Monte Carlo s.e.", fontsize=10)


def _cumulative_differences(
    axes: Axes, names: Sequence[str], by_log_snr: Sequence[Row], colors: dict[str, Any]
) -> None:
    """Draw ∫_{λ_min}^λ of the diffusion term − that of the best run."""
    sums = {name: _cumulative(by_log_snr, name) for name in names}
    edges = np.unique(np.concatenate([x for x, _ in sums.values()]))
    best = np.interp(edges, *sums[names[0]])
    axes.axhline(0.0, color=colors[names[0]], lw=1.1)
    for name in names[1:]:
        axes.plot(edges, np.interp(edges, *sums[name]) - best, color=colors[name], lw=1.3)
    axes.set_xlabel("log SNR λ   (noise ← → data)")
    axes.set_ylabel("bits/dim")
    axes.set_title(
        f"diffusion term from λ(T) up to λ − that of {names[0]} (no errors shown)", fontsize=10
    )


def _cumulative(by_log_snr: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [row for row in by_log_snr if row["run"] == name]
    edges = [rows[0]["log_snr_low"], *(row["log_snr_high"] for row in rows)]
    return np.array(edges), np.cumsum([0.0, *(row["diffusion_bits_per_dim"] for row in rows)])


def _wide(by_log_snr: Sequence[Row], name: str) -> list[Row]:
    rows = [row for row in by_log_snr if row["run"] == name]
    return [row for row in rows if row["log_snr_high"] - row["log_snr_low"] > NARROW]
