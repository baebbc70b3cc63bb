"""Pictures of data: samples in a grid, ranked images, noised data."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor, nn

from pyro_mdm.diffusions.base import coordinates, from_coordinates, typical
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.plots.figures import new_figure, variable_name
from pyro_mdm.support.checks import tensor_device

__all__ = [
    "draw_noising",
    "image_grid",
    "noising_figure",
    "pictures_figure",
    "ranked_images_figure",
]


def image_grid(images: Tensor, *, columns: int | None = None, side: int = 512) -> Tensor:
    """A grid of images, enlarged by a whole factor so that small ones can be seen.

    Args:
        images: images, (n, C, H, W) with C = 1 or 3: uint8, or numbers in [0, 1] (others are
            clipped).
        columns: number of images in a row; None: about as many as rows.
        side: largest side of the enlarged grid, in pixels.

    Returns:
        The grid, uint8 (3, height, width).

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
    gap = max(2, min(pixels.shape[2:]) // 10)
    blank = pixels.new_full((rows * columns - n, *pixels.shape[1:]), 96)
    cells = nn.functional.pad(torch.cat([pixels, blank]), (0, gap, 0, gap), value=96)
    grid = cells.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4)
    grid = grid.reshape(3, rows * cells.shape[2], -1)
    return nn.functional.pad(grid, (gap, 0, gap, 0), value=96)


def ranked_images_figure(images: Tensor, bits: Tensor, errors: Tensor) -> Figure:
    """Two rows of images: the better half by bits/dim, best first, and the worse, worst first.

    Args:
        images: images, (n, C, H, W) uint8 with C = 1 or 3, n ≥ 2.
        bits: bits/dim of each image, (n,), written above it.
        errors: Monte Carlo standard errors of the bits/dim, (n,).

    Raises:
        ValueError: other shapes.
    """
    n = len(images)
    if images.dim() != 4 or images.shape[1] not in (1, 3) or n < 2:
        raise ValueError(
            f"images has shape {tuple(images.shape)}, expected (n, C, H, W), n ≥ 2, C = 1 or 3"
        )
    if bits.shape != (n,) or errors.shape != (n,):
        raise ValueError(
            f"{tuple(bits.shape)} bits and {tuple(errors.shape)} errors, expected ({n},) of both"
        )
    order = bits.argsort().tolist()
    rows = {"best": order[: n // 2], "worst": order[: n // 2 - 1 : -1]}
    columns = len(rows["worst"])
    figure = new_figure(1.05 * columns + 0.4, 3.1)
    grid = figure.subplots(2, columns, squeeze=False)
    for (name, chosen), axes_row in zip(rows.items(), grid, strict=True):
        for axes in axes_row:
            axes.axis("off")
        for i, axes in zip(chosen, axes_row[: len(chosen)], strict=True):
            _image(axes, images[i])
            axes.set_title(f"{bits[i]:.2f} ± {errors[i]:.2f}", fontsize=9)
        axes_row[0].axis("on")
        axes_row[0].set_ylabel(name)
    figure.suptitle("test images by bits/dim, ± Monte Carlo error", fontsize=11)
    return figure


def pictures_figure(pictures: Mapping[str, Tensor], columns: int) -> Figure:
    """Pictures beside each other under their titles.

    Args:
        pictures: pictures (3, height, width) uint8 by title, in rows from the left.
        columns: number of pictures in a row.

    Raises:
        ValueError: no picture, or no column.
    """
    if not pictures or columns < 1:
        raise ValueError(f"{len(pictures)} pictures in {columns} columns, expected 1 or more")
    rows = math.ceil(len(pictures) / columns)
    figure = new_figure(2.7 * columns, 2.9 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(pictures) :]:
        axes.axis("off")
    for (title, picture), axes in zip(pictures.items(), grid[: len(pictures)], strict=True):
        _image(axes, picture)
        axes.set_title(title, fontsize=10)
    return figure


def _image(axes: Axes, pixels: Tensor) -> None:
    """Draw uint8 (C, H, W), C = 1 or 3, without ticks."""
    axes.imshow(pixels.movedim(0, -1).expand(-1, -1, 3).numpy())
    axes.set(xticks=[], yticks=[])


@torch.no_grad()
def noising_figure(
    diffusion: LinearDiffusion, x: Tensor, *, columns: int = 9, seed: int = 0
) -> Figure:
    r"""Noised data: a row for each variable, columns from data to noise at equal steps of log SNR.

    Each column is a draw of ``y_s | x``, all with the same ε. Images are scaled to the range of
    each row. Vectors are scattered by their first two coordinates, or by one and ε.

    Args:
        diffusion: the noising diffusion.
        x: images, (n, C, H, W), of which the first is drawn, or vectors, (n, features), in model
            space.
        columns: number of columns, from ε to T.
        seed: seed of the noise.

    Raises:
        ValueError: x of another shape.
    """
    if x.dim() not in (2, 4):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected images (n, C, H, W) or vectors (n, features)"
        )
    figure = new_figure(1.35 * columns + 0.6, 1.45 * diffusion.num_variables + 0.7)
    draw_noising(figure, diffusion, x, columns=columns, seed=seed)
    return figure


@torch.no_grad()
def _states(diffusion: Kernels, x: Tensor, s: Tensor, noise: Tensor) -> Tensor:
    """States at times s (N,), (N, n, K, *event_shape), on the CPU; noise is like a state."""
    device = tensor_device(diffusion)
    x = coordinates(diffusion, x.detach().to(device).double())
    at_typical, n, noise = typical(diffusion, x), len(x), noise.to(device)
    states = []
    for at in s:
        law = at_typical.marginal(at.expand(n))
        whitener = inverse_tril(law.scale_tril)
        states.append(at_typical.paths.noised(x, at.expand(n), noise, law, whitener).state.cpu())
    return torch.stack(states)


def draw_noising(
    figure: Figure | SubFigure,
    diffusion: Kernels,
    x: Tensor,
    *,
    columns: int = 9,
    seed: int = 0,
) -> None:
    """Draw :func:`noising_figure` into an empty figure or subfigure.

    Args:
        figure: the empty figure.
        diffusion: the noising diffusion.
        x: images or vectors, as for :func:`noising_figure`.
        columns: number of columns, from ε to T.
        seed: seed of the noise.
    """
    K, image = diffusion.num_variables, x.dim() == 4
    x = x[:1] if image else x[:512]
    ends = (diffusion.max_log_snr, float(diffusion.terminal_log_snr))
    log_snr = torch.linspace(*ends, columns, dtype=torch.float64)
    s = diffusion.time_at_log_snr(log_snr)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(x), K, *x.shape[1:], generator=generator, dtype=torch.float64)
    y = from_coordinates(diffusion, _states(diffusion, x, s, noise))  # (columns, n, K, *event)
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
                axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
            axes.set(xticks=[], yticks=[])
            if i == 0:
                axes.set_title(f"s = {s[column]:.3g}\nλ = {log_snr[column]:.1f}", fontsize=8)
            if column == 0:
                axes.set_ylabel(f"{variable_name(i)}  (±{reach:.2g})", fontsize=9)
