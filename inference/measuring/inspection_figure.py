"""The figure of an inspection, see :mod:`inference.inspect`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from inference.measuring.inspection import FORMING, MIXED, prior_kl_curve, time_of_clock
from models.kinds import kind_of
from pyro_mdm import LinearDiffusion
from pyro_mdm.diffusions.linear import frozen
from pyro_mdm.support.text import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

DPI = 110


@torch.no_grad()
def inspection_figure(
    names: Sequence[str], diffusions: Sequence[LinearDiffusion], x: Tensor
) -> Figure:
    """The figure of diffusions whose kernels float64 holds.

    On top, all of them: log SNR(s), prior KL(s) with the relaxation times, and the eigenvalues of
    A_0. Below, one row each: a(s), Σ(s), and noised data for every variable, at equal steps of log
    SNR from ε to T.

    Args:
        names: the diffusions' names, for titles.
        x: data in model space: images (n, C, H, W) with C = 1 or 3, of which the first is drawn,
            or vectors (n, features), drawn as points.
    """
    from matplotlib.figure import Figure

    from pyro_mdm.plots.pictures import draw_noising

    heights = [3.6, *(1.05 * d.num_variables + 1.3 for d in diffusions)]
    result = Figure((15.0, sum(heights)), dpi=DPI, layout="constrained")
    panels = result.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    # of several blocks and clocks the first, as in the table
    shown = [
        cast(LinearDiffusion, d.reference) if kind_of(d).by_dimension else d for d in diffusions
    ]
    _draw_overview(panels[0], names, shown, x)
    for panel, name, block, diffusion in zip(panels[1:], names, shown, diffusions, strict=True):
        left, right = panel.subfigures(1, 2, width_ratios=[5.2, 9.8])
        panel.suptitle(
            f"{plain(name)}, K = {diffusion.num_variables}", fontsize=11, x=0.01, ha="left"
        )
        _draw_moments(left, block)
        draw_noising(right, diffusion, x)
    return result


def _draw_overview(
    panel: SubFigure, names: Sequence[str], diffusions: Sequence[LinearDiffusion], x: Tensor
) -> None:
    snr, kl, plane = panel.subplots(1, 3)
    for i, (name, diffusion) in enumerate(zip(names, diffusions, strict=True)):
        color, end = f"C{i}", diffusion.horizon
        start = diffusion.start_time.item()
        s = torch.linspace(start, end, 200, dtype=torch.float64)
        snr.plot(s, diffusion.log_snr(s), color=color, label=plain(name))
        kl.plot(s, prior_kl_curve(diffusion, x, s), color=color, label=plain(name))
        mu = torch.linalg.eigvals(frozen(diffusion).unit_drift)
        tau = (1 / -mu.real.max()).item()
        relaxed = time_of_clock(diffusion, tau)
        if start < relaxed < math.inf:
            kl.axvline(relaxed, color=color, ls=":", lw=1)
        plane.plot(mu.real, mu.imag, "o", color=color, ms=9 - i % 4 * 2, mew=1.5, mfc="none")
    snr.axhspan(-FORMING, FORMING, color="0.93", zorder=0)
    snr.set_title("log SNR (grey: where images form)")
    snr.legend(fontsize=8)
    kl.set_yscale("log")
    kl.axhline(MIXED, color="0.5", lw=0.8)
    kl.set_title("prior KL if the path ended at s (dots: relaxation)")
    plane.axhline(0, color="k", lw=0.8)
    plane.axvline(0, color="0.7", lw=0.8, ls="--")
    plane.set_title("eigenvalues of A_0; pairs meet on the line")
    plane.set_xlabel("Re μ   (decay per unit of the clock)")
    plane.set_ylabel("Im μ   (turning)")
    plane.margins(0.15)
    for axes, label in ((snr, "log SNR"), (kl, "bits/dim")):
        axes.set_xlabel("noising time s")
        axes.set_ylabel(label)


def _draw_moments(panel: SubFigure, diffusion: LinearDiffusion) -> None:
    from pyro_mdm.plots.figures import draw_moments

    left, right = panel.subplots(1, 2)
    draw_moments(left, right, diffusion, fontsize=7)
    for axes, title in ((left, "a(s)"), (right, "Σ(s)")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("s", fontsize=8)
        axes.tick_params(labelsize=8)
