r"""Figures of a diffusion and its bound, drawn off screen with matplotlib.

Bounds are in bits/dim; estimated means are drawn with their standard errors. Figures of training
take records of its measurements, earliest first, as mappings that JSON can hold (:func:`snapshot`
makes those of the diffusion)::

    bounds      step; terms, name → (value, standard error); log_snr_edges, (n + 1,);
                diffusion_by_log_snr and diffusion_by_log_snr_error, (n,) in bits/dim, the
                error being that by the noise (Monte Carlo)
    snapshots   step; and the fields of snapshot

A diffusion without a closed form has simulated paths (:func:`paths_figure`).

matplotlib comes with ``pip install -e ".[plots]"``. Without it, importing ``pyro_mdm.plots``
raises ModuleNotFoundError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.linear import LinearDiffusion, frozen
from pyro_mdm.diffusions.presets import ALDA, CLD, MALDA, VPSDE
from pyro_mdm.paths.base import noising_law
from pyro_mdm.support.checks import tensor_device

if TYPE_CHECKING:
    from pyro_mdm.simulated.nonlinear import NonlinearDiffusion

__all__ = [
    "bound_figure",
    "clock_figure",
    "curves_figure",
    "diffusion_term_figure",
    "diffusion_term_history_figure",
    "draw_moments",
    "eigenvalues_figure",
    "log_snr_map_figure",
    "new_figure",
    "paths_figure",
    "preset_eigenvalues",
    "snapshot",
    "terms_figure",
    "variable_name",
    "views_figures",
]


DPI = 160
CARD = (5.6, 3.2)  # inches: the shape of an image on TensorBoard's first page
LEAST = 0.005  # bits/dim above and below a curve that an axis shows: less is no change
TIME = "noising time s   (0 data, T noise)"
MOST_IMAGES = 6  # rows of pictures of a diffusion's effect on data
COLUMNS = 100  # of a heat map, at most
PRIOR_DRAWS = 4096  # for the quantiles that paths should arrive at
PRESETS = {"VPSDE": VPSDE, "CLD": CLD, "MALDA": MALDA, "ALDA": ALDA}
Record = Mapping[str, Any]


# -- the bound -------------------------------------------------------------------------------------
def bound_figure(bounds: Mapping[str, Sequence[Record]], title: str = "") -> Figure:
    """The bound of each split of the data over training, with bands of ± 1 standard error.

    Args:
        bounds: records by split of the data, at least one each; a single record has a bar.
        title: title of the figure, in a line.

    Raises:
        ValueError: no split, or a split without a record.
    """
    _check_records(bounds)
    figure = new_figure(*CARD)
    axes = figure.add_subplot()
    for i, (split, records) in enumerate(bounds.items()):
        _draw_series(axes, records, "bits_per_dim", f"C{i}", split)
    axes.set(xlabel="training step", ylabel="bits/dim, lower is better")
    axes.set_title(title or "the bound", fontsize=10)
    axes.legend(fontsize=8, title="± 1 standard error, at the end", title_fontsize=8)
    return figure


def terms_figure(bounds: Mapping[str, Sequence[Record]]) -> Figure:
    """The terms of the bound over training, each in a panel with its band.

    Args:
        bounds: records by split of the data, at least one each; the terms of the last split with
            several are shown.

    Raises:
        ValueError: no split, or a split without a record.
    """
    _check_records(bounds)
    split = ([name for name, records in bounds.items() if len(records) > 1] or [*bounds])[-1]
    terms = [term for term in IN_WORDS if term in bounds[split][-1]["terms"]]
    figure = new_figure(*CARD)
    panels = figure.subplots(len(terms), sharex=True)
    for k, (term, axes) in enumerate(zip(terms, panels, strict=True)):
        _draw_series(axes, bounds[split], term, f"C{k + 3}")
        value, error = (numbers[-1] for numbers in _series(bounds[split], term)[1:])
        axes.set_title(f"{IN_WORDS[term]}, {_with_error(value, error)}", fontsize=9, loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    panels[-1].set_xlabel("training step")
    figure.supylabel(f"bits/dim ({split})", fontsize=9)
    return figure


def _check_records(bounds: Mapping[str, Sequence[Record]]) -> None:
    if not bounds or not all(bounds.values()):
        raise ValueError(f"records of {list(bounds)}, expected at least one of at least one split")


IN_WORDS = {
    "diffusion": "diffusion: along the path",
    "reconstruction": "reconstruction: at the start",
    "prior_kl": "prior KL: left in the noise",
    "context": "context: in the context",
}
"""The terms of the bound in words."""


def _draw_series(
    axes: Axes, records: Sequence[Record], term: str, color: str, label: str | None = None
) -> None:
    """Draw a term over training with its band; a single record has a bar."""
    steps, values, error = _series(records, term)
    if label is not None:
        label = f"{label} {_with_error(values[-1], error[-1])}"
    error = np.nan_to_num(error)  # an unknown error has no band
    if len(steps) == 1:
        axes.errorbar(steps, values, error, fmt="D", ms=4, capsize=3, color=color, label=label)
    else:
        axes.plot(steps, values, "o-", ms=2.5, lw=1, color=color, label=label)
        axes.fill_between(steps, values - error, values + error, color=color, alpha=0.25, lw=0)
    low, high = axes.dataLim.y0, axes.dataLim.y1
    margin = max(0.08 * (high - low), LEAST - (high - low) / 2)
    if math.isfinite(margin):
        axes.set_ylim(low - margin, high + margin)


def _series(records: Sequence[Record], term: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, values and standard errors; missing ones are NaN."""
    pairs = [record["terms"].get(term, (0.0, 0.0)) for record in records]
    values = np.array(pairs, dtype=float)  # None becomes NaN
    return np.array([r["step"] for r in records], dtype=float), values[:, 0], values[:, 1]


def _with_error(value: float, error: float) -> str:
    return f"{value:.3f}" + (f" ± {error:.3f}" if math.isfinite(error) else "")


def diffusion_term_figure(edges: object, mean: object, standard_error: object) -> Figure:
    """The density of the diffusion term over log SNR: its integral is the diffusion term.

    Args:
        edges: increasing bounds of the intervals of log SNR, (n + 1,).
        mean: diffusion term of each interval, (n,), in bits/dim; NaN where nothing was drawn.
        standard_error: Monte Carlo standard error of the diffusion term, (n,), in bits/dim.

    Raises:
        ValueError: shapes that do not fit together.
    """
    edges, mean, error = (
        torch.as_tensor(t, dtype=torch.float64).detach().cpu()
        for t in (edges, mean, standard_error)
    )
    n = len(edges) - 1
    if mean.shape != (n,) or error.shape != (n,):
        raise ValueError(
            f"{n + 1} edges, {tuple(mean.shape)} means and {tuple(error.shape)} standard errors, "
            f"expected ({n},) of both: one for each interval"
        )
    center, width = (edges[1:] + edges[:-1]) / 2, edges.diff()
    x, y, bars = (v.numpy() for v in (center, mean / width, error / width))
    figure = new_figure(*CARD)
    axes = figure.add_subplot()
    axes.stairs(y, edges.numpy(), color="C0", fill=True, alpha=0.25)
    axes.errorbar(x, y, bars, fmt="o", ms=3, capsize=3, color="C0")
    axes.axhline(0.0, color="0.6", lw=0.8)
    axes.set(xlabel="log SNR λ   (noise ← → data)", ylabel="bits/dim per unit of λ")
    total = _with_error(float(mean.nansum()), float(error.square().nansum().sqrt()))
    axes.set_title(f"diffusion term by noise level, {total} in all", fontsize=10)
    return figure


def diffusion_term_history_figure(bounds: Sequence[Record]) -> Figure:
    """Heat maps of the diffusion term by log SNR and step, and of its Monte Carlo error.

    In bits/dim per unit of log SNR: the integral of a column is the diffusion term at that step.
    Grey: nothing was drawn there. Of many records, about 100 are shown.

    Args:
        bounds: records of one split of the data, the earliest first.

    Raises:
        ValueError: no record.
    """
    if not bounds:
        raise ValueError("no record of a bound, expected at least one")
    bounds = _thin(bounds, COLUMNS)
    sides = _sides(np.array([record["step"] for record in bounds], dtype=float))
    figure = new_figure(9.6, 3.7)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, name, title in zip(
        panels,
        ("diffusion_by_log_snr", "diffusion_by_log_snr_error"),
        ("diffusion term by noise level over training", "its Monte Carlo standard error"),
        strict=True,
    ):
        edges = [np.array(record["log_snr_edges"], dtype=float) for record in bounds]
        columns = [
            np.array(record[name], dtype=float) / np.diff(edge)
            for record, edge in zip(bounds, edges, strict=True)
        ]
        values = np.concatenate(columns)
        values = values[np.isfinite(values)]
        # one outlier must not darken the rest
        low, high = (min(0.0, values.min()), np.quantile(values, 0.995)) if len(values) else (0, 1)
        norm = Normalize(low, max(high, low + 1e-12))
        for i, (edge, column) in enumerate(zip(edges, columns, strict=True)):
            axes.pcolormesh(sides[i : i + 2], edge, column[:, None], norm=norm, cmap="magma")
        label = "bits/dim per unit of λ"
        figure.colorbar(ScalarMappable(norm, "magma"), ax=axes, label=label, extend="max")
        axes.set(facecolor="0.8", xlabel="step", title=title)
    panels[0].set_ylabel("log SNR λ   (noise ↓ ↑ data)")
    return figure


def _thin(records: Sequence[Record], most: int) -> list[Record]:
    """At most ``most`` of the records, evenly chosen, with the first and the last."""
    chosen = np.linspace(0, len(records) - 1, min(most, len(records))).round().astype(int)
    return [records[i] for i in chosen]


def _sides(steps: np.ndarray) -> np.ndarray:
    """The sides of columns at ``steps``, half way between neighbours."""
    if len(steps) == 1:
        return np.array([0.0, 2 * max(steps[0], 1.0)])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])


MOST_LINES = 256
"""The largest number of lines of different clocks in a picture."""


# -- the diffusion ---------------------------------------------------------------------------------
@torch.no_grad()
def snapshot(diffusion: Diffusion, points: int = 65) -> dict[str, object]:
    """The numbers of a diffusion that the figures of training need, in lists.

    ``times`` s, 0 to T, with ``rate`` β(s) and ``clock`` b(s); ``start_time`` ε;
    ``terminal_log_snr`` λ(T). For a linear diffusion also ``Q`` and ``D``, (K, K), and
    ``eigenvalues`` of b(T) A_0, K pairs (real, imaginary), at the middle of the clock if they vary
    in time.

    Args:
        diffusion: the diffusion.
        points: number of times from 0 to T.
    """
    s = torch.linspace(0.0, diffusion.horizon, points, dtype=torch.float64)
    on_device = s.to(diffusion.start_time.device)
    matrices: dict[str, object] = {}
    if isinstance(diffusion, Kernels):
        middle = frozen(diffusion)
        matrices = {"Q": middle.Q.tolist(), "D": middle.D.tolist()}
        matrices["eigenvalues"] = _eigenvalues(diffusion)
    return matrices | {
        "times": s.tolist(),
        "rate": diffusion.rate(on_device).tolist(),
        "clock": diffusion.clock(on_device).tolist(),
        "start_time": diffusion.start_time.item(),
        "terminal_log_snr": diffusion.terminal_log_snr.item(),
    }


def _eigenvalues(diffusion: Kernels) -> list[list[float]]:
    A = diffusion.clock(diffusion.horizon) * frozen(diffusion).unit_drift
    values = torch.linalg.eigvals(A.cpu())
    return torch.view_as_real(values).tolist()


@torch.no_grad()
def preset_eigenvalues(diffusion: Diffusion) -> dict[str, list[list[float]]]:
    """Eigenvalues of b(T) A_0 of each preset with as many variables, by name.

    The presets' clocks are scaled to end at the log SNR of ``diffusion`` at T.
    """
    end = diffusion.terminal_log_snr.item()
    presets = {name: preset(min_log_snr=end) for name, preset in PRESETS.items()}
    K = diffusion.num_variables
    return {name: _eigenvalues(p) for name, p in presets.items() if p.num_variables == K}


def eigenvalues_figure(
    snapshots: Sequence[Record], presets: Mapping[str, Sequence[Sequence[float]]] | None = None
) -> Figure:
    """The eigenvalues μ of b(T) A_0 over training, in the complex plane.

    A mode of the drift is multiplied by e^μ until T: it decays by -Re μ e-folds and turns by Im μ
    radians. Modes on the real axis only decay (overdamped); pairs off it turn while they decay
    (underdamped); a pair that meets the axis is critically damped. Thin lines join eigenvalues of
    one damping ratio ζ = -Re μ / |μ|. If eigenvalues moved, a second panel shows how.

    Args:
        snapshots: records with ``step`` and ``eigenvalues``, at least one.
        presets: eigenvalues of presets by name, for comparison, see :func:`preset_eigenvalues`.

    Raises:
        ValueError: no snapshot.
    """
    if not snapshots:
        raise ValueError("no snapshot of a diffusion, expected at least one")
    others = {name: np.array(values, float) for name, values in (presets or {}).items()}
    trail = np.array([s["eigenvalues"] for s in snapshots], dtype=float)  # (n, K, 2)
    steps = np.array([s["step"] for s in snapshots], dtype=float)
    shown = np.concatenate([trail.reshape(-1, 2), *others.values()])
    left = 1.15 * shown[:, 0].min()
    top = max(1.2 * np.abs(shown[:, 1]).max(), 0.2 * abs(left))
    moved = bool(np.ptp(trail, axis=0).max() > 1e-6 * abs(left))

    figure = new_figure(*CARD)
    panels = figure.subplots(1, 2 if moved else 1, squeeze=False)[0]
    for axes in panels:
        axes.axhline(0.0, color="C3", lw=1.5, zorder=1, label="critical damping")
        real, imaginary = trail.reshape(-1, 2).T
        color = np.repeat(steps, trail.shape[1])
        drawn = axes.scatter(real, imaginary, c=color, s=16, cmap="viridis", zorder=3)
        label = f"step {steps[-1]:.0f}"
        axes.plot(*trail[-1].T, "o", ms=12, mfc="none", mec="C1", mew=2, ls="none", label=label)
        axes.set_xlabel("Re μ   (−Re μ: e-folds of decay)" if axes is panels[-1] else "Re μ")
    panels[0].set_ylabel("Im μ   (radians turned)")
    plane = panels[0]
    for ratio in (0.9, 0.7, 0.4):
        slope = math.sqrt(1 / ratio**2 - 1)
        end = max(left, -top / slope)
        plane.plot([end, 0, end], [slope * end, 0, -slope * end], color="0.85", lw=0.8, zorder=0)
        at = (0.94 * end, -0.94 * slope * end)
        plane.annotate(f"ζ = {ratio}", at, fontsize=8, color="0.4", ha="left", va="top")
    for (name, values), marker in zip(others.items(), "sD", strict=False):
        label = f"{name} with this λ(T)"
        plane.plot(*values.T, marker, ms=9, mfc="none", color="0.3", ls="none", label=label)
    plane.set(xlim=(left, -0.08 * left), ylim=(-top, top))
    plane.axvline(0.0, color="0.6", lw=0.8)
    plane.set_title("eigenvalues μ of b(T) A₀", fontsize=10)
    if moved:
        figure.colorbar(drawn, ax=panels[1], label="step")
        upper = trail[trail[..., 1] >= 0]
        margin = 0.1 * max(np.ptp(upper, axis=0).max(), 1e-3 * abs(left))
        ends = np.stack([upper.min(0) - margin, upper.max(0) + margin], 1)
        panels[1].set(xlim=ends[0], ylim=ends[1])
        panels[1].set_title("over training, Im μ ≥ 0", fontsize=10)
    handles, labels = plane.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def clock_figure(snapshots: Sequence[Record], most: int = 6) -> Figure:
    """The clock over training: β(s) and b(s) of ``most`` snapshots, with the first and the last.

    A clock that never changed is drawn once.

    Args:
        snapshots: records with ``step``, ``times``, ``rate`` and ``clock``, at least one.
        most: largest number of snapshots that are drawn.

    Raises:
        ValueError: no snapshot.
    """
    if not snapshots:
        raise ValueError("no snapshot of a diffusion, expected at least one")
    chosen = _thin(snapshots, most)
    if all(np.allclose(s["clock"], chosen[0]["clock"], rtol=1e-9) for s in chosen):
        chosen = chosen[-1:]
    figure = new_figure(8.6, 3.4)
    panels = figure.subplots(1, 2)
    colors = colormaps["viridis"](np.linspace(0, 1, len(chosen)))
    for axes, name, label in zip(panels, ("rate", "clock"), ("β(s)", "b(s)"), strict=True):
        for i, record in enumerate(chosen):
            width = 2.2 if i == len(chosen) - 1 else 1.2
            label_i = f"step {record['step']}"
            axes.plot(record["times"], record[name], color=colors[i], lw=width, label=label_i)
        axes.set(xlabel=TIME, ylabel=label, xlim=(0.0, chosen[-1]["times"][-1]))
        axes.set_ylim(bottom=0.0)
        if len(chosen) > 1:
            axes.legend(fontsize=8)
    panels[0].set_title("clock rate β(s)")
    panels[1].set_title(f"clock b(s), to b(T) = {chosen[-1]['clock'][-1]:.3g}")
    return figure


@torch.no_grad()
def log_snr_map_figure(diffusion: Kernels, points: int = 101) -> Figure:
    """The log SNR of each data dimension − the common one, from ε to T.

    Left, a line for each different clock. Right, for images, the map at three times; blue
    dimensions are noised early.

    Args:
        diffusion: diffusion with a clock for each data dimension.
        points: number of points from ε to T.
    """
    u = torch.linspace(0, 1, points, dtype=torch.float64)
    maps = diffusion.level(u).log_snr
    high, low = diffusion.max_log_snr, diffusion.terminal_log_snr
    common = high - u * (high - low)
    apart = maps - common.reshape(-1, *[1] * (maps.dim() - 1))
    lines = apart.flatten(1).unique(dim=1)
    image = apart[:, 0] if apart.dim() == 4 and min(apart.shape[2:]) > 1 else None
    figure = new_figure(9.0 if image is not None else 5.0, 3.2)
    grid = figure.add_gridspec(1, 4 if image is not None else 1)
    axes = figure.add_subplot(grid[0, 0])
    for line in lines.unbind(1)[:MOST_LINES]:
        axes.plot(u.cpu().numpy(), line.numpy(), lw=0.8, alpha=0.7)
    axes.set(xlabel="part u of the common way", ylabel="log SNR − the common one", xlim=(0, 1))
    axes.set_title(f"{lines.shape[1]} different, of {apart[0].numel()} in the map", fontsize=9)
    if image is None:
        return figure
    reach = float(image.abs().max()) or 1.0
    for i, fraction in enumerate((0.25, 0.5, 0.75)):
        axes = figure.add_subplot(grid[0, i + 1])
        at = image[round(fraction * (points - 1))].numpy()
        drawn = axes.imshow(at, cmap="coolwarm", vmin=-reach, vmax=reach)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"u = {fraction:g}", fontsize=9)
    figure.colorbar(drawn, ax=axes)
    return figure


@torch.no_grad()
def views_figures(diffusion: Diffusion, x: Tensor) -> dict[str, Figure]:
    """Figures of the effect of a diffusion on data, one for each of its views, by name.

    Columns are the data and then the stages of the view (``views``). Images
    have a row each. Other data have one row of points, by their first two features, coloured by the
    view of the first.

    Args:
        diffusion: diffusion that sees the data.
        x: data in model space, (n, *event_shape); a few images are drawn.
    """
    image = x.dim() == 4
    x = x[: MOST_IMAGES if image else 512].to(tensor_device(diffusion))
    figures = {}
    make: Callable[[Tensor], dict[str, Tensor]] | None = getattr(diffusion, "views", None)
    for name, value in (make(x) if make else {}).items():
        draw = _view_of_images if image else _view_of_points
        figures[name] = draw(name, value.double().cpu(), x.double().cpu())
    return figures


def _view_of_images(name: str, stages: Tensor, x: Tensor) -> Figure:
    """A figure of images, averaged over colours: red where a pixel is above 0, blue below."""
    columns, reach = len(stages) + 1, float(stages.abs().max()) or 1.0
    figure = new_figure(1.3 * columns + 0.8, 1.3 * len(x) + 0.5)
    figure.suptitle(name, fontsize=10)
    for i, row in enumerate(figure.subplots(len(x), columns, squeeze=False)):
        row[0].imshow(x[i].mean(0).numpy(), cmap="gray")
        for axes, stage in zip(row[1:], stages, strict=True):
            of_pixels = stage[i].mean(0).numpy()
            drawn = axes.imshow(of_pixels, cmap="coolwarm", vmin=-reach, vmax=reach)
        for axes in row:
            axes.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=figure.axes)
    return figure


def _view_of_points(name: str, stages: Tensor, x: Tensor) -> Figure:
    x, stages = x.flatten(1), stages.flatten(2)
    reach = float(stages.abs().max()) or 1.0
    figure = new_figure(2.4 * len(stages) + 0.8, 2.7)
    figure.suptitle(name, fontsize=10)
    second = x[:, 1] if x.shape[1] > 1 else torch.zeros(len(x))
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        at, of_first = (x[:, 0].numpy(), second.numpy()), stage[:, 0].numpy()
        drawn = axes.scatter(*at, c=of_first, s=4, cmap="coolwarm", vmin=-reach, vmax=reach)
        axes.set(xticks=[], yticks=[], aspect="equal")
    figure.colorbar(drawn, ax=figure.axes)
    return figure


@torch.no_grad()
def curves_figure(diffusion: LinearDiffusion, points: int = 200) -> Figure:
    """Three panels over time: a(s), the entries of Σ(s), and log SNR(s).

    Args:
        diffusion: linear diffusion of one block.
        points: number of times from ε to T.
    """
    T, start = diffusion.horizon, diffusion.start_time
    figure = new_figure(11.0, 3.5)
    left, middle, right = figure.subplots(1, 3)
    s, log_snr = draw_moments(left, middle, diffusion, points)
    left.set_title("a(s): mean of each variable per unit of x")
    middle.set_title("Σ(s): covariance given x")
    right.plot(s, log_snr, color="k")
    right.axhline(0.0, color="0.7", lw=0.8)
    right.set_title(
        f"log SNR(s): {log_snr[0]:.1f} at ε = {start:.2g}, {log_snr[-1]:.1f} at T", fontsize=11
    )
    for axes, label in ((left, "a(s)"), (middle, "Σ(s)"), (right, "log SNR")):
        axes.set(xlabel=TIME, ylabel=label, xlim=(0.0, T))
    return figure


def draw_moments(
    left: Axes, right: Axes, diffusion: LinearDiffusion, points: int = 200, fontsize: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a(s) and the entries of Σ(s) over time from ε to T.

    Args:
        left: axes of a(s).
        right: axes of Σ(s).
        diffusion: linear diffusion of one block.
        points: number of times from ε to T.
        fontsize: size of the legend's letters, in points.

    Returns:
        The times and their log SNRs, (points,) each.
    """
    K, start = diffusion.num_variables, diffusion.start_time
    times = torch.linspace(float(start), diffusion.horizon, points, dtype=torch.float64)
    marginal = diffusion.marginal(times.to(start.device))
    s = times.numpy()
    a, Sigma, log_snr = (
        t.cpu().numpy() for t in (marginal.mean, marginal.covariance, marginal.log_snr)
    )
    for i in range(K):
        name = variable_name(i)
        left.plot(s, a[:, i], label=name)
        for j in range(i, K):
            both = f"cov {name}, {variable_name(j)}"
            style, label = ("-", f"var {name}") if i == j else ("--", both)
            right.plot(s, Sigma[:, i, j], style, label=label)
    for axes in (left, right):
        axes.legend(fontsize=fontsize, ncols=1 if K < 4 else 2)
    return s, log_snr


@torch.no_grad()
def paths_figure(
    diffusion: NonlinearDiffusion, x: Tensor, *, points: int = 65, most: int = 24, seed: int = 0
) -> Figure:
    """Simulated noising paths from data: each variable over time, and in the plane for 2-D data.

    Each line is one datum, in the data dimension that varies most. Dashed lines at T are the 5, 50
    and 95% quantiles of the prior, which paths should reach.

    Args:
        diffusion: diffusion without a closed form.
        x: data in model space, (n, *event_shape); of more than ``most``, evenly chosen ones.
        points: number of times from ε to T, between which lines are straight.
        most: largest number of paths.
        seed: seed of the noise; the caller's random state is kept.

    Raises:
        ValueError: fewer than 2 data.
        SimulationError: a path exploded.
    """
    if len(x) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (n, *event_shape) with n ≥ 2")
    K, T = diffusion.num_variables, diffusion.horizon
    device = tensor_device(diffusion) or torch.device("cpu")
    dimension = int(x.flatten(1).var(0).argmax())
    chosen = torch.linspace(0, len(x) - 1, min(most, len(x))).round().long()
    x = x[chosen.to(x.device)].to(device)
    s = torch.linspace(float(diffusion.start_time), T, points, dtype=torch.float64)
    s = s.to(diffusion.start_time)
    with randomness.piece(0, 1, seed):
        y = noising_law(diffusion, x, s).rsample()  # (n, points, K, *event_shape)
    generator = torch.Generator(device).manual_seed(seed)
    prior = diffusion.prior.sample((PRIOR_DRAWS, K, 1), generator).squeeze(-1)
    at = torch.tensor([0.05, 0.5, 0.95], dtype=prior.dtype, device=prior.device)
    quantiles = prior.quantile(at, dim=0).cpu().numpy()
    times, lines = s.cpu().numpy(), y.flatten(3).cpu().numpy()

    plane = x.shape[1:] == (2,)
    columns = min(K, 3) + plane
    rows = math.ceil((K + plane) / columns)
    figure = new_figure(2.6 * columns, 2.7 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for k, axes in enumerate(grid[:K]):
        axes.plot(times, lines[:, :, k, dimension].T, lw=0.7, alpha=0.65)
        for quantile in quantiles[:, k]:
            axes.plot([0.86 * T, T], [quantile] * 2, "k--", lw=1.2)
        axes.set(xlim=(0.0, T), xlabel="noising time s", ylabel=variable_name(k))
        suffix = f", dimension {dimension}" if k == 0 and y[0, 0, 0].numel() > 1 else ""
        axes.set_title(f"{variable_name(k)} of {len(x)} data{suffix}", fontsize=10)
    grid[0].plot([], [], "k--", lw=1.2, label="5, 50, 95% of the prior")
    grid[0].legend(fontsize=8, loc="upper left")
    if plane:
        axes = grid[K]
        axes.plot(*lines[:, :, 0].transpose(2, 1, 0), lw=0.6, alpha=0.5)
        for i, (style, label) in enumerate((("ko", "at ε"), ("C3s", "at T"))):
            axes.plot(*lines[:, -i, 0].T, style, ms=3, label=label, zorder=3)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set(xlabel="x_0", ylabel="x_1")
        axes.set_title("x in the plane", fontsize=10)
        axes.legend(fontsize=8, loc="upper left")
    for axes in grid[K + plane :]:
        axes.axis("off")
    return figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, drawn off screen with any backend.

    Args:
        width: width in inches.
        height: height in inches.
    """
    figure = Figure((width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def variable_name(i: int) -> str:
    """The name of the i-th variable of the state: x, v1, v2, …"""
    return "x" if i == 0 else f"v{i}"
