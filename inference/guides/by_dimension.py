"""Learned blocks for each channel, and learned clocks for each pixel.

    python -m inference.train --model digits --guide inference.guides.by_dimension:per_pixel

Denoisers are told a map of log SNR, as a second channel for each channel of the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pyro_mdm import VPSDE, LearnedDiffusion, PerDimensionDiffusion
from pyro_mdm.by_dimension import LearnedClocks


def per_channel(
    event_shape: Sequence[int], max_log_snr: float = 13.0, min_log_snr: float = -10.0
) -> PerDimensionDiffusion:
    """A learned diffusion of two variables for each channel (or feature) of the data."""
    channels = event_shape[0]
    ends: dict[str, Any] = {"max_log_snr": max_log_snr, "min_log_snr": min_log_snr}
    blocks = [LearnedDiffusion(2, **ends) for _ in range(channels)]
    block_of = torch.arange(channels).reshape(-1, *[1] * (len(event_shape) - 1))
    return PerDimensionDiffusion(blocks, block_of)


def per_pixel(
    event_shape: Sequence[int], max_log_snr: float = 13.0, min_log_snr: float = -10.0
) -> PerDimensionDiffusion:
    """VPSDE with a learned clock for each pixel (or feature), common to all channels."""
    shape = (1, *event_shape[1:]) if len(event_shape) > 1 else tuple(event_shape)
    clock_of = torch.arange(math.prod(shape)).reshape(shape)
    block = VPSDE(max_log_snr=max_log_snr, min_log_snr=min_log_snr)
    return PerDimensionDiffusion(block, clocks=LearnedClocks(clock_of.numel()), clock_of=clock_of)
