r"""What a run writes for people to look at.

Each function takes a :class:`torch.utils.tensorboard.SummaryWriter` and writes one kind of thing;
the ``*_figure`` functions make the figures alone. All bounds are in bits/dim.

    bits_per_dim, reconstruction, prior_kl, diffusion    each for train, validation and test, their
        standard errors, and margin charts of value ± standard error under "Custom scalars"
    diffusion term against log SNR                       where along the path the bits are spent
    entries and eigenvalues of Q and D, curves a(s), Σ(s), log SNR(s)
    samples, and noised data for every variable
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from pyro_mdm.diffusions import LinearDiffusion, apply_matrix

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = [
    "curves_figure",
    "diffusion_term_figure",
    "image_grid",
    "noising_figure",
    "write_bound",
    "write_diffusion",
    "write_diffusion_term",
    "write_layout",
    "write_noising",
    "write_samples",
]

TERMS = ("bits_per_dim", "reconstruction", "prior_kl", "diffusion")
PARTS = ("train", "validation", "test")
DPI = 110

Terms = Mapping[str, tuple[float, float]]


# -- the bound -------------------------------------------------------------------------------------


def write_layout(writer: SummaryWriter, parts: Sequence[str] = PARTS) -> None:
    """Lay out the margin charts of :func:`write_bound`; call once per run."""
    charts = {
        term: {
            f"{term} {part}": [
                "Margin",
                [f"{term}/{part}", f"interval/{term}/{part}/low", f"interval/{term}/{part}/high"],
            ]
            for part in parts
        }
        for term in TERMS
    }
    writer.add_custom_scalars({f"{t} (bits/dim ± 1 s.e.)": charts[t] for t in TERMS})


def write_bound(writer: SummaryWriter, part: str, terms: Terms, step: int) -> None:
    """Write the bound of one part of the data, term by term.

    Args:
        part: ``"train"``, ``"validation"`` or ``"test"``.
        terms: (value, standard error) in bits/dim of ``bits_per_dim``, ``reconstruction``,
            ``prior_kl`` and ``diffusion``, or of some of these.
        step: training steps so far.

    Raises:
        ValueError: a term of another name.
    """
    if unknown := sorted(set(terms) - set(TERMS)):
        raise ValueError(f"unknown terms {unknown}, expected some of {list(TERMS)}")
    for term, (value, error) in terms.items():
        writer.add_scalar(f"{term}/{part}", value, step)
        if math.isfinite(error):
            writer.add_scalar(f"standard_error/{term}/{part}", error, step)
            writer.add_scalar(f"interval/{term}/{part}/low", value - error, step)
            writer.add_scalar(f"interval/{term}/{part}/high", value + error, step)


def write_diffusion_term(
    writer: SummaryWriter, part: str, edges: Any, mean: Any, standard_error: Any, step: int
) -> None:
    """Write :func:`diffusion_term_figure` as ``diffusion_term_by_log_snr/<part>``."""
    figure = diffusion_term_figure(edges, mean, standard_error)
    writer.add_figure(f"diffusion_term_by_log_snr/{part}", figure, step)


def diffusion_term_figure(edges: Any, mean: Any, standard_error: Any) -> Figure:
    """The density of the diffusion term over log SNR: its integral is the diffusion term.

    Args:
        edges: (n + 1,) increasing bounds of the intervals of log SNR.
        mean: (n,) the diffusion term per interval, in bits/dim; NaN where nothing was drawn.
        standard_error: (n,) likewise.

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
    width = edges.diff()
    center = (edges[1:] + edges[:-1]) / 2
    figure = _figure(7.0, 4.0)
    axes = figure.add_subplot()
    axes.stairs((mean / width).numpy(), edges.numpy(), color="C0", fill=True, alpha=0.25)
    x, y, bars = (v.numpy() for v in (center, mean / width, error / width))
    axes.errorbar(x, y, bars, fmt="o", ms=3, capsize=3, color="C0")
    axes.axhline(0.0, color="0.6", lw=0.8)
    axes.set_xlabel("log SNR λ   (noise ← → data)")
    axes.set_ylabel("diffusion term (bits/dim per unit of λ)")
    axes.set_title(f"diffusion term by noise level, ± 1 s.e.; total {mean.nansum():.3f} bits/dim")
    return figure


# -- the diffusion ---------------------------------------------------------------------------------


@torch.no_grad()
def write_diffusion(writer: SummaryWriter, diffusion: LinearDiffusion, step: int) -> None:
    """Write Q and D, entry by entry and as eigenvalues, both ends of log SNR, and the curves.

    Q is skew-symmetric: its eigenvalues are ±iω, of which the frequencies |ω| are shown.
    """
    Q, D, K = diffusion.Q.cpu(), diffusion.D.cpu(), diffusion.num_variables
    for i in range(K):
        for j in range(i, K):
            if i != j:  # the lower triangle is the negative of this
                writer.add_scalar(f"Q/entry_{i}{j}", Q[i, j].item(), step)
            writer.add_scalar(f"D/entry_{i}{j}", D[i, j].item(), step)
    frequencies = torch.linalg.eigvals(Q).imag.abs().sort(descending=True).values
    for i, value in enumerate(torch.linalg.eigvalsh(D).flip(0)):
        writer.add_scalar(f"Q_eigenvalues/frequency_{i}", frequencies[i].item(), step)
        writer.add_scalar(f"D_eigenvalues/{i}", value.item(), step)
    start, end = diffusion.start_time.item(), diffusion.terminal_log_snr.item()
    writer.add_scalar("diffusion_ends/start_time", start, step)
    writer.add_scalar("diffusion_ends/terminal_log_snr", end, step)
    writer.add_figure("curves", curves_figure(diffusion), step)


@torch.no_grad()
def curves_figure(diffusion: LinearDiffusion, points: int = 200) -> Figure:
    """Three panels over time: a(s), the entries of Σ(s), and log SNR(s)."""
    K, T, start = diffusion.num_variables, diffusion.horizon, diffusion.start_time
    times = torch.linspace(float(start), T, points, dtype=torch.float64)
    marginal = diffusion.marginal(times.to(start.device))
    s = times.numpy()
    a, Sigma, log_snr = (
        t.cpu().numpy() for t in (marginal.mean, marginal.covariance, marginal.log_snr)
    )
    figure = _figure(12.0, 3.8)
    left, middle, right = figure.subplots(1, 3)
    for i in range(K):
        left.plot(s, a[:, i], label=_variable(i))
        for j in range(i, K):
            style = "-" if i == j else "--"
            label = f"var {_variable(i)}" if i == j else f"cov {_variable(i)}, {_variable(j)}"
            middle.plot(s, Sigma[:, i, j], style, label=label)
    left.set_title("a(s): mean of each variable per unit of x")
    middle.set_title("Σ(s): covariance given x")
    right.plot(s, log_snr, color="k")
    right.axhline(0.0, color="0.7", lw=0.8)
    right.set_title(f"log SNR(s): {log_snr[0]:.1f} at ε = {start:.2g} to {log_snr[-1]:.1f} at T")
    for axes, label in ((left, "a(s)"), (middle, "Σ(s)"), (right, "log SNR")):
        axes.set_xlabel("noising time s   (0 data, T noise)")
        axes.set_ylabel(label)
        axes.set_xlim(0.0, T)
    for axes in (left, middle):
        axes.legend(fontsize=8, ncols=1 if K < 4 else 2)
    return figure


def _variable(i: int) -> str:
    return "x" if i == 0 else f"v{i}"


# -- pictures --------------------------------------------------------------------------------------


def write_samples(writer: SummaryWriter, picture: Tensor, step: int) -> None:
    """Write a picture, uint8 (3, height, width) as of :func:`image_grid`, as ``samples``."""
    writer.add_image("samples", picture, step)


def image_grid(images: Tensor, *, columns: int | None = None, side: int = 512) -> Tensor:
    """Images in a grid, enlarged by a whole factor so that small ones can be seen.

    Args:
        images: (n, C, H, W) with C = 1 or 3: uint8, or numbers in [0, 1] (others are clipped).
        columns: images per row; None: about as many as rows.
        side: the grid is enlarged while it stays within this many pixels a side.

    Returns:
        uint8 (3, height, width).

    Raises:
        ValueError: another shape, or no image.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(
            f"images has shape {tuple(images.shape)}, expected (n, C, H, W), n ≥ 1, C = 1 or 3"
        )
    n, _, height, width = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    factor = max(1, side // (max(rows * height, columns * width)))
    pixels = images.detach().cpu()
    if pixels.dtype != torch.uint8:
        pixels = pixels.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels = pixels.expand(-1, 3, -1, -1)
    pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    gap, height, width = 2, height * factor, width * factor
    grid = torch.full(
        (3, rows * (height + gap) + gap, columns * (width + gap) + gap), 96, dtype=torch.uint8
    )
    for i in range(n):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        grid[:, top : top + height, left : left + width] = pixels[i]
    return grid


def write_noising(
    writer: SummaryWriter, diffusion: LinearDiffusion, x: Tensor, step: int, *, seed: int = 0
) -> None:
    """Write :func:`noising_figure` as ``noising``."""
    writer.add_figure("noising", noising_figure(diffusion, x, seed=seed), step)


@torch.no_grad()
def noising_figure(
    diffusion: LinearDiffusion, x: Tensor, *, columns: int = 9, seed: int = 0
) -> Figure:
    r"""Noised data: a row for each variable, columns from data to noise at equal steps of log SNR.

    Each column is a draw of ``y_s | x``, all with the same ε. Images are drawn in grey or colour
    with the range of each variable over the row; vectors as a scatter of their first two
    coordinates (against ε where there is one).

    Args:
        x: (n, C, H, W), of which the first is drawn, or (n, features), of which all are.

    Raises:
        ValueError: x of another shape.
    """
    if x.dim() not in (2, 4):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected images (n, C, H, W) or vectors (n, features)"
        )
    K, image = diffusion.num_variables, x.dim() == 4
    x = x[:1] if image else x[:512]
    device = diffusion.start_time.device
    ends = (diffusion.max_log_snr, float(diffusion.terminal_log_snr))
    log_snr = torch.linspace(*ends, columns, dtype=torch.float64, device=device)
    s = diffusion.time_at_log_snr(log_snr)
    marginal = diffusion.marginal(s)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(x), K, *x.shape[1:], generator=generator, dtype=torch.float64)
    y = torch.stack(
        [
            m.reshape(K, *[1] * (x.dim() - 1)).cpu() * x.detach().cpu().double()[:, None]
            + apply_matrix(L.cpu(), noise)
            for m, L in zip(marginal.mean, marginal.scale_tril, strict=True)
        ]
    )  # (columns, n, K, *event)
    figure = _figure(1.35 * columns + 0.6, 1.45 * K + 0.7)
    grid = figure.subplots(K, columns, squeeze=False)
    for i in range(K):
        reach = float(y[:, :, i].abs().quantile(0.98 if image else 1.0))
        for column, axes in enumerate(grid[i]):
            if image:
                pixels = ((y[column, 0, i] / reach + 1) / 2).clamp(0, 1).movedim(0, -1)
                axes.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0.0, vmax=1.0)
            else:
                points = y[column, :, i]
                other = points[:, 1] if points.shape[1] > 1 else noise[:, 0, 0]
                axes.plot(points[:, 0].numpy(), other.numpy(), ".", ms=2, alpha=0.5)
                axes.set_xlim(-reach, reach)
                axes.set_ylim(-reach, reach)
                axes.set_aspect("equal")
            axes.set_xticks([])
            axes.set_yticks([])
            if i == 0:
                axes.set_title(f"s = {s[column]:.3g}\nλ = {log_snr[column]:.1f}", fontsize=8)
            if column == 0:
                axes.set_ylabel(f"{_variable(i)}  (±{reach:.2g})", fontsize=9)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure((width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # drawn off screen, whatever backend the process has
    return figure
