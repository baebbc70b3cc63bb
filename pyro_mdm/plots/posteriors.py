"""Pictures of posteriors: parameters in pairs, and simulations from them beside the data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm.plots.figures import new_figure
from pyro_mdm.support.text import plain

__all__ = ["posterior_columns", "posterior_figure", "predictive_figure"]

Values = NDArray[np.float64]
Draws = Mapping[str, Tensor]
Bands = tuple[tuple[float, float, str], ...]

PRIOR, POSTERIOR, TRUTH = "0.8", "C0", "C3"
"""The colours of a prior, of a posterior, and of true or observed values."""
POINTS, BINS = 2000, 30
"""The largest numbers of points in a panel and of bins in a histogram."""
MOST = 12
"""The largest number of parameters in a picture."""
BANDS: Bands = ((0.05, 0.95, "#c6dbef"), (0.25, 0.75, "#6baed6"))
"""Quantiles of bands of predictions, and their colours."""
OF_PRIOR: Bands = ((0.05, 0.95, "0.88"),)
"""The band of the prior."""


def posterior_columns(draws: Draws) -> dict[str, Tensor]:
    """Draws (n, *shape) by site as columns (n,), with the names of sites: a, or b[0], b[1], …"""
    columns = {}
    for name, value in draws.items():
        places = itertools.product(*map(range, value.shape[1:]))
        for place, column in zip(places, value.reshape(len(value), -1).unbind(1), strict=True):
            columns[f"{name}[{', '.join(map(str, place))}]" if place else name] = column
    return columns


def posterior_figure(
    drawn: Draws, prior: Draws | None = None, truth: Draws | None = None, *, most: int = 6
) -> Figure:
    """Draws of a posterior, each parameter alone and in pairs, over those of the prior.

    Axes are those of the posterior, with some room around it. Of more parameters the first are
    drawn.

    Args:
        drawn: draws of the posterior by site, (n, *shape).
        prior: draws of the prior by site, (m, *shape).
        truth: true parameters by site, (*shape); None: not drawn.
        most: largest number of parameters, from 1 to 12.

    Raises:
        ValueError: ``most`` is not from 1 to 12.
    """
    if not 1 <= most <= MOST:
        raise ValueError(f"most is {most}, expected from 1 to {MOST} parameters")
    every = posterior_columns(drawn)
    names = list(every)[:most]
    k = len(names)
    layers = {"prior": prior, "posterior": drawn}
    columns = {
        layer: [posterior_columns(draws)[name].double().cpu().numpy() for name in names]
        for layer, draws in layers.items()
        if draws is not None
    }
    true_values = None
    if truth is not None:
        single = {name: value.reshape(1, *drawn[name].shape[1:]) for name, value in truth.items()}
        true_values = [float(posterior_columns(single)[name]) for name in names]
    figure = new_figure(max(3.4, 1.5 * k + 0.8), max(3.0, 1.45 * k + 0.7))
    grid = figure.subplots(k, k, squeeze=False)
    priors = columns.get("prior", columns["posterior"])
    limits = [_limits(values, priors[i], None if true_values is None else true_values[i])
              for i, values in enumerate(columns["posterior"])]  # fmt: skip
    for i, row in enumerate(grid):
        for j, axes in enumerate(row):
            if j > i:
                axes.axis("off")
                continue
            for layer, values in columns.items():
                color = PRIOR if layer == "prior" else POSTERIOR
                if i == j:
                    _histogram(axes, values[i], limits[i], color, filled=layer == "prior")
                else:
                    few = slice(0, POINTS)
                    axes.plot(
                        values[j][few], values[i][few], ".", ms=3, mew=0, color=color, alpha=0.6
                    )
            if true_values is not None:
                axes.axvline(true_values[j], color=TRUTH, lw=0.9)
                if i != j:
                    axes.axhline(true_values[i], color=TRUTH, lw=0.9)
            _label(axes, i, j, names, limits)
    handles = [
        Line2D([], [], lw=4, label=layer, color=PRIOR if layer == "prior" else POSTERIOR)
        for layer in columns
    ]
    handles += [] if true_values is None else [Line2D([], [], lw=1, label="truth", color=TRUTH)]
    left = f"the first {k} of {len(every)} parameters" if k < len(every) else None
    _legend(figure, handles, left)
    return figure


def _limits(values: Values, prior: Values, truth: float | None) -> tuple[float, float]:
    """The range of a posterior with room around it, as far as the prior is, and the truth."""
    low, high = np.quantile(values, (0.002, 0.998))
    room = 0.6 * (high - low) or 0.5
    ends = prior.min(), prior.max()
    start, end = max(low - room, min(ends[0], low)), min(high + room, max(ends[1], high))
    if truth is not None:
        start, end = min(start, truth), max(end, truth)
    margin = 0.03 * (end - start) or 0.5
    return float(start - margin), float(end + margin)


def _histogram(
    axes: Axes, values: Values, limits: tuple[float, float], color: str, *, filled: bool
) -> None:
    """A density on the axis's range, of which less than all values may be there."""
    bins = int(np.clip(np.sqrt(len(values)), 8, BINS))
    counts, edges = np.histogram(values, bins, limits)
    density = counts / len(values) / np.diff(edges)
    if filled:
        axes.stairs(density, edges, color=color, fill=True, alpha=0.6)
    else:
        axes.stairs(density, edges, color=color, lw=1.3)


def _label(axes: Axes, i: int, j: int, names: list[str], limits: list[tuple[float, float]]) -> None:
    axes.set_xlim(limits[j])
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(labelsize=6.5, length=2, pad=2)
    if i == j:
        axes.set_ylim(0, None)
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    else:
        axes.set_ylim(limits[i])
        axes.yaxis.set_major_locator(MaxNLocator(3))
    last = i == len(names) - 1
    axes.tick_params(labelbottom=last, labelleft=j == 0)
    if last:
        axes.set_xlabel(plain(names[j]), fontsize=8)
    if j == 0 and i > 0:
        axes.set_ylabel(plain(names[i]), fontsize=8)


def predictive_figure(replicated: Draws, observed: Draws, prior: Draws | None = None) -> Figure:
    """Simulations from a posterior beside the observation: one panel for each site of data.

    Numbers of a site stand in the order of its value, as bands from the 5% to the 95% quantile and
    from the 25% to the 75% one. A missing number (NaN) has bands alone.

    Args:
        replicated: simulations from the posterior by site, (n, *shape).
        observed: observed values by site, (*shape).
        prior: simulations from the prior by site, (m, *shape), whose outer band is drawn beneath.
    """
    names = list(observed)
    figure = new_figure(4.2 * min(3, len(names)), 2.9 * -(-len(names) // 3) + 0.3)
    panels = figure.subplots(-(-len(names) // 3), min(3, len(names)), squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        layers = [(replicated[name], BANDS)]
        if prior is not None:
            layers = [(prior[name], OF_PRIOR), *layers]
        for values, bands in layers:
            flat = values.double().reshape(len(values), -1)
            for low, high, color in bands:
                ends = torch.tensor([low, high], dtype=torch.float64)
                lower, upper = flat.nanquantile(ends, 0).numpy()
                at = np.arange(len(lower) + 1) - 0.5
                axes.stairs(upper, at, baseline=lower, fill=True, color=color, lw=0)
        observation = torch.as_tensor(observed[name]).double().reshape(-1).numpy()
        axes.plot(np.arange(len(observation)), observation, "o", ms=3.5, color=TRUTH)
        axes.use_sticky_edges = False
        axes.autoscale_view()
        axes.tick_params(labelsize=7, length=2)
        if len(observation) > 1:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set_xlabel(f"place in {plain(name)}", fontsize=8)
        else:
            axes.set(xticks=[], xlim=(-1.5, 1.5))
        axes.set_ylabel(plain(name), fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(names) :]:
        axes.axis("off")
    handles = [
        Line2D([], [], lw=5, color=OF_PRIOR[0][2], label="prior predictive"),
        Line2D([], [], lw=5, color=BANDS[1][2], label="posterior predictive"),
        Line2D([], [], ls="", marker="o", ms=4, color=TRUTH, label="observed"),
    ]
    _legend(figure, handles[0 if prior is not None else 1 :], None)
    return figure


def _legend(figure: Figure, handles: list[Line2D], title: str | None) -> None:
    figure.legend(
        handles=handles, title=title, title_fontsize=8, fontsize=8, ncols=3, frameon=False,
        loc="outside upper center",
    )  # fmt: skip
