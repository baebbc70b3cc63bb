"""A diffusion that blurs images as it noises them.

    python -m inference.train --model digits --guide inference.guides.blurring:blurring \\
        --score denoiser

The state holds the cosine transform of an image; the network sees pixels. Discrete denoisers, whose
levels are of pixels, cannot be used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pyro_mdm import VPSDE, PerDimensionDiffusion
from pyro_mdm.by_dimension import BlurClocks, Frequencies

LEAST = 0.05
"""The factor d_min by which the highest frequency is damped at the end."""


def blurring(
    event_shape: Sequence[int],
    max_log_snr: float = 13.0,
    min_log_snr: float = -10.0,
    blur: float = 20.0,
) -> PerDimensionDiffusion:
    """VPSDE with a clock for every frequency; high frequencies are noised first.

    Args:
        event_shape: the shape of images, (C, H, W).
        max_log_snr: the log SNR of all frequencies at ε.
        min_log_snr: the log SNR of the lowest frequency at T.
        blur: the blur of the image at T, in pixels.
    """
    if len(event_shape) != 3:
        raise ValueError(f"event_shape is {tuple(event_shape)}, expected (C, H, W): images")
    _, H, W = event_shape
    i, j = torch.arange(H).double()[:, None], torch.arange(W).double()
    squares = math.pi**2 * ((i / H).square() + (j / W).square())
    different, clock_of = squares.unique(return_inverse=True)
    low = min_log_snr + 2 * math.log(LEAST)
    block = VPSDE(max_log_snr=max_log_snr, min_log_snr=low)
    clocks = BlurClocks(different, max_log_snr - low, blur, LEAST)
    return PerDimensionDiffusion(block, None, clocks, clock_of[None], transform=Frequencies())
