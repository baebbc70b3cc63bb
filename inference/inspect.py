"""An inspection of diffusions: a table and a figure, without a network unless a run's is asked.

    python -m inference.inspect --guide cld
    python -m inference.inspect --guide vpsde,cld,malda,alda --model mnist5k
    python -m inference.inspect --guide run:runs/digits-learned-0-0
    python -m inference.inspect --guide run:runs/digits-learned-0-0 --draws 16

What is printed is defined in :mod:`inference.measuring.inspection`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from inference.commands.cli import check_positive, command_line
from inference.folders.checkpoints import write_atomically
from inference.folders.loading import load_trained
from inference.folders.output import check_out, png
from inference.measuring.inspection import (
    FORMING,
    MIXED,
    look,
    prior_kl_curve,
    table,
    time_of_clock,
)
from inference.settings.diffusion import (
    LEARNED_MIN_LOG_SNR,
    build_diffusion,
    check_ends,
    give_learned_end,
)
from inference.settings.names import slug
from inference.settings.options import DataOptions, Guide, StationaryVariance
from inference.settings.problems import build_problem, with_split
from models import Problem
from models.kinds import kind_of
from pyro_mdm import LinearDiffusion
from pyro_mdm.evaluation import GaussianPosterior, auxiliary_use
from pyro_mdm.support.text import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

DPI = 110


@torch.no_grad()
def figure(names: Sequence[str], diffusions: Sequence[LinearDiffusion], x: Tensor) -> Figure:
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
        mu = torch.linalg.eigvals(diffusion.frozen().unit_drift)
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


# -- the program -----------------------------------------------------------------------------------


def inspect(
    guide: str = "learned",
    model: str = "digits",
    protocol: Literal["discrete", "dequantized"] | None = None,
    data: Path | None = None,
    image_size: int | None = None,
    num_variables: int | None = None,
    rank: int | None = None,
    stationary_variance: StationaryVariance | None = None,
    max_log_snr: float | None = None,
    min_log_snr: float | None = None,
    draws: int | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Print the properties of diffusions before training with them, and draw them.

    Args:
        guide: diffusion, or several with commas between them: vpsde, cld, malda, alda, hold, ve,
            subvp, rectified_flow, cosine, momentum_ve, learned (as it starts), module:Name,
            file.py:Name, or run:FOLDER for the diffusion that a run ended with.
        model: data set for the prior KL and the noised images, as for inference.train.
        protocol: protocol of images: discrete, with levels in [-1, 1], by default; or dequantized,
            as in the paper.
        data: files of the data set, as for inference.train.
        image_size: side of images, as for inference.train, with --model images.
        num_variables: number K of variables of learned, 2 by default.
        rank: rank of the matrix D of learned, K by default.
        stationary_variance: stationary variance Σ_∞ of learned, as for inference.train.
        max_log_snr: log SNR at the start time; by default the data set's.
        min_log_snr: log SNR at time T, to which clocks are scaled; by default -10 for learned and
            for learned diffusions of your own; other clocks are not scaled.
        draws: number of draws of each test datum by which it is measured, for run:FOLDER, how much
            the run's network makes of the auxiliary variables; 16 are enough for a first look. By
            default this is not measured.
        out: name of a .png file for the figure; by default inspect-<model>-<guides>.png in the
            current folder.
        overwrite: replace the file of --out if it exists.
    """
    names = [name.strip() for name in guide.split(",")]
    asked = Guide(
        num_variables=num_variables,
        rank=rank,
        stationary_variance=stationary_variance,
        max_log_snr=max_log_snr,
        min_log_snr=min_log_snr,
    )
    if "learned" not in names and (surplus := _for_learned(asked)):
        raise ValueError(
            f"{', '.join(surplus)} is for --guide learned, and {guide} has its own; leave it out, "
            "or add learned to the guides"
        )
    if draws is not None:
        _check_draws(draws, names)
    slugs = map(slug, (model, *names))
    out = out if out is not None else Path(f"inspect-{'-'.join(slugs)}.png")
    check_out(out, (".png",), overwrite=overwrite)
    data_options = DataOptions(
        model=model, protocol=protocol, data=data, image_size=image_size, holdout=False
    )
    problem = build_problem(with_split(data_options))
    x = problem.to_model_space(problem.test, torch.Generator().manual_seed(0)).double()
    diffusions = [_diffusion(replace(asked, guide=name), problem) for name in names]
    seen = [look(name, diffusion, x) for name, diffusion in zip(names, diffusions, strict=True)]
    inspected = zip(names, diffusions, seen, strict=True)
    drawn = {name: diffusion for name, diffusion, inspection in inspected if not inspection.errors}
    print(f"{model}: {len(x)} test data, {x[0].numel()} dims, mean square {x.square().mean():.3g}")
    print(table(seen))
    if draws is not None:
        for name in names:
            print(_used(name, draws))
    if drawn:
        write_atomically(out, png(figure(list(drawn), list(drawn.values()), x)))
        print(out)


def _check_draws(draws: int, names: Sequence[str]) -> None:
    """Raises ValueError unless there are draws, and runs to measure."""
    check_positive(draws=draws)
    others = [name for name in names if not name.startswith("run:")]
    if others:
        raise ValueError(
            f"--draws is {draws}, and {', '.join(others)} has no network to measure; leave it out, "
            "or name runs alone: --guide run:FOLDER"
        )


def _used(name: str, draws: int) -> str:
    """What a run's network makes of the auxiliary variables, on the run's own test data."""
    _, (problem, model, guide), _ = load_trained(Path(name.removeprefix("run:")))
    if model.diffusion.num_variables < 2:
        return f"{name}: K = 1, without auxiliary variables"
    generator = torch.Generator().manual_seed(0)
    law = GaussianPosterior.fit(problem.to_model_space(problem.train, generator))
    x = problem.to_model_space(problem.test, generator)
    return f"{name}: {auxiliary_use(model, guide, x, draws=draws, posterior=law, progress=True)}"


def _for_learned(asked: Guide) -> list[str]:
    """The given options that are for learned alone."""
    names = ("num_variables", "rank", "stationary_variance")
    return [f"--{name}" for name in names if getattr(asked, name) is not None]


def _diffusion(asked: Guide, problem: Problem) -> LinearDiffusion:
    """A diffusion with the given ends, or its own."""
    name, high, low = asked.guide, asked.max_log_snr, asked.min_log_snr
    if name.startswith("run:"):
        for option, value in (("max_log_snr", high), ("min_log_snr", low)):
            if value is not None:
                raise ValueError(
                    f"--{option} is {value:g}, but {name} ended with its own; leave it out"
                )
        diffusion = load_trained(Path(name.removeprefix("run:")))[1].model.diffusion
    else:
        guide = asked if name == "learned" else Guide(guide=name, min_log_snr=low)
        if name == "learned" and low is None:
            guide = replace(guide, min_log_snr=LEARNED_MIN_LOG_SNR)
        guide = replace(guide, max_log_snr=problem.max_log_snr if high is None else high)
        diffusion = build_diffusion(guide, event_shape=problem.event_shape)
        check_ends(asked, diffusion)
        give_learned_end(diffusion)
    if kind_of(diffusion).simulated:
        raise ValueError(
            f"{name} is {type(diffusion).__name__}, expected a LinearDiffusion, since all that is "
            "shown here is computed in closed form. See its paths and its drift by "
            "pyro_mdm.plots.figures.paths_figure and field_figure, or TensorBoard of a run"
        )
    return cast(LinearDiffusion, diffusion)


if __name__ == "__main__":
    command_line(inspect, listed=["guide"])
