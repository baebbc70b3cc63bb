"""A page for an image that was restored: its measurement, likely images, and their spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from pyro_mdm.plots.figures import new_figure
from pyro_mdm.support.text import plain

__all__ = ["restoration_figure"]

COLUMNS = 6
"""The number of pictures in a row: of draws, and of the way from noise."""
UNSEEN = "#9db8de"
"""The colour of pixels that are not seen."""


def restoration_figure(
    measured: Tensor,
    seen: Tensor | None,
    draws: Tensor,
    half_width: Tensor,
    way: Tensor,
    log_snr: Sequence[float],
    *,
    title: str = "",
    interval: str = "90%",
) -> Figure:
    """A page of a restored image, whose pixels range from -1 to 1.

    It has the measurement, the mean of the draws, and the half-width of the interval of each pixel,
    averaged over its channels; some of the draws; and x̂ of the first draw, from noise on.

    Args:
        measured: the measurement, an image (C, h, w) of any size, or numbers, (m,).
        seen: mask of its pixels that are seen, bool (h, w); None: all.
        draws: draws of the image, (S, C, H, W).
        half_width: half-width of the interval, (C, H, W).
        way: estimates x̂ on the way from noise to the image, (L, C, H, W).
        log_snr: log SNRs of the L pictures, (L,).
        title: title of the page.
        interval: name of the interval, in words.

    Raises:
        ValueError: images of other channels than 1 or 3.
    """
    if draws.dim() != 4 or draws.shape[1] not in (1, 3):
        raise ValueError(
            f"draws has shape {tuple(draws.shape)}, expected (S, C, H, W) with C = 1 or 3"
        )
    height, width = draws.shape[2:]
    side = 1.5 * min(2.0, max(0.5, height / width))  # inches, of 1.5 wide
    strip = len(way) > 0
    figure = new_figure(1.6 * COLUMNS, 2.1 * side + (1 + strip) * (side + 0.35) + 0.6)
    ratios = [2.1 * side, *[side + 0.35] * (1 + strip)]
    rows: Any = figure.subfigures(2 + strip, 1, height_ratios=ratios)
    top = np.ravel(rows[0].subplots(1, 3))
    if measured.dim() == 3:
        _draw(top[0], measured, seen)
        top[0].set_title("measured" if seen is None else "measured (blue: not seen)", fontsize=10)
    else:
        top[0].plot(measured.flatten().numpy(), "C0.", ms=3)
        top[0].set_title(f"measured: {measured.numel()} numbers", fontsize=10)
    _draw(top[1], draws.double().mean(0))
    top[1].set_title(f"mean of {len(draws)} draws", fontsize=10)
    heat = top[2].imshow(half_width.double().mean(0).numpy(), cmap="viridis", vmin=0.0)
    top[2].set(xticks=[], yticks=[])
    top[2].set_title(f"half-width of the {interval} interval", fontsize=10)
    bar = rows[0].colorbar(heat, ax=top[2], shrink=0.8)
    bar.set_label("pixels range from -1 to 1", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    _row(rows[1], draws[:COLUMNS], [f"draw {i + 1}" for i in range(min(COLUMNS, len(draws)))])
    if strip:
        _row(rows[2], way, [f"λ = {value:.1f}" for value in log_snr])
        rows[2].suptitle("x̂ of draw 1 on its way from noise, at log SNR λ", fontsize=10)
    if title:
        figure.suptitle(plain(title), fontsize=11)
    return figure


def _row(figure: SubFigure, images: Tensor, titles: Sequence[str]) -> None:
    axes = np.ravel(figure.subplots(1, COLUMNS))
    for ax in axes[len(images) :]:
        ax.axis("off")
    for ax, image, title in zip(axes, images, titles, strict=False):
        _draw(ax, image)
        ax.set_title(title, fontsize=9)


def _draw(axes: Axes, image: Tensor, seen: Tensor | None = None) -> None:
    """Draw an image (C, H, W) of pixels from -1 to 1, where it is seen."""
    pixels = ((image.double().clamp(-1, 1) + 1) / 2).movedim(0, -1).expand(-1, -1, 3).numpy()
    if seen is not None:
        pixels = np.concatenate([pixels, seen.double().unsqueeze(-1).numpy()], -1)
        axes.set_facecolor(UNSEEN)
    axes.imshow(pixels)
    axes.set(xticks=[], yticks=[])
