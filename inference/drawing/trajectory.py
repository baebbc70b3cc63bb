"""Animations of samples: every variable from noise to data."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inference.drawing.pictures import pixels_of, plane
from inference.settings.names import accepted
from models import Problem
from pyro_mdm import DiffusionModel, randomness
from pyro_mdm.randomness import seed_from
from pyro_mdm.support.modules import evaluating

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRAMES = 50
"""The most frames of an animation."""
MOST = 1024
"""The most samples in an animation."""
MILLISECONDS, LAST = 80, 2000
"""The durations of a frame and of the last frame, in milliseconds."""


def trajectory(
    model: DiffusionModel, n: int, sampler: Callable[..., Tensor], seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Times and states (n, K, *event_shape), float32, of about :data:`FRAMES` steps from T to ε.

    The samples are those of :func:`inference.drawing.sampling.draw` with the same seed. A sampler
    of your own that does not take ``watch`` is a TypeError.
    """
    frames: list[tuple[Tensor, Tensor]] = []
    every = max(1, math.ceil(getattr(sampler, "steps", 1) / FRAMES))
    seen = itertools.count()

    def watch(s: Tensor, y: Tensor) -> None:
        if next(seen) % every == 0 or bool(s <= model.diffusion.start_time):
            frames.append((s.cpu(), y.float().cpu()))

    if not accepted(sampler, {"watch": watch}):
        raise TypeError(
            f"{getattr(sampler, '__name__', sampler)} does not show its states, expected a sampler "
            "that takes watch(s, y); use one of pyro_mdm.samplers, or a .png"
        )
    shape = (n, model.diffusion.num_variables, *model.event_shape)
    with evaluating(model), randomness.stream(seed_from(seed, "states")), torch.no_grad():
        sampler(*model.drawn(n), shape, watch=watch)
    return frames


@torch.no_grad()
def animation(
    problem: Problem, model: DiffusionModel, states: list[tuple[Tensor, Tensor]]
) -> bytes:
    """The content of a GIF file with a panel for each variable and a frame for each step."""
    from matplotlib.figure import Figure

    K = model.diffusion.num_variables
    chosen = np.linspace(0, len(states) - 1, min(FRAMES, len(states))).round().astype(int)
    width = float(max(states[0][1].std(), states[-1][1].std()))
    images = problem.to_images(states[0][1][:1, 0].float()) is not None
    figure = Figure((3.2 * K, 3.5), dpi=100, layout="constrained")
    pictures = []
    for i in chosen:
        s, y = states[i]
        figure.clear()
        log_snr = float(model.diffusion.log_snr(torch.as_tensor(s).to(model.diffusion.start_time)))
        figure.suptitle(f"log SNR {log_snr:.1f}")
        for k, axes in enumerate(figure.subplots(1, K, squeeze=False)[0]):
            axes.set_title("x" if k == 0 else f"v_{k}", fontsize=10)
            if images:
                _draw_images(axes, y[:, k])
            else:
                _draw_points(axes, y[:, k], width)
        pictures.append(Image.fromarray(pixels_of(figure).movedim(0, -1).numpy()))
    first, *others = pictures
    durations = [MILLISECONDS] * len(others) + [LAST]
    buffer = io.BytesIO()
    first.save(buffer, "gif", save_all=True, append_images=others, duration=durations, loop=0)
    return buffer.getvalue()


def _draw_images(axes: Axes, v: Tensor) -> None:
    """Draw a grid of one variable, grey at 0, white or black at two standard deviations or 1."""
    from pyro_mdm.plots.pictures import image_grid

    scaled = v / max(1.0, 2 * float(v.std()))
    pixels = ((scaled.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    axes.imshow(image_grid(pixels).movedim(0, -1).numpy())
    axes.set_axis_off()


def _draw_points(axes: Axes, v: Tensor, width: float) -> None:
    axes.plot(*plane(v.flatten(1)), "C0.", ms=3, alpha=0.6)
    axes.set(xlim=(-4 * width, 4 * width), ylim=(-4 * width, 4 * width), aspect="equal")
