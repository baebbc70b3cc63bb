"""Clocks for each pixel, chosen by a latent context of the datum.

    python -m inference.train --model digits --guide inference.guides.latent_context:gaussian
    python -m inference.train --model digits --guide inference.guides.latent_context:discrete

The guide draws a context c given x, and noises each pixel at a pace that depends on c; the model
draws c first. KL(q(c | x) ‖ p(c)) is a term of the bound. TensorBoard shows which pixels of an
image are noised early (blue) and late.

After Sahoo et al., "Diffusion Models With Learned Adaptive Noise", NeurIPS 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inference.guides.encoder import Encoder
from pyro_mdm import VPSDE
from pyro_mdm.seeing import (
    Context,
    ContextClocks,
    ContextDiffusion,
    DiscreteContext,
    GaussianContext,
)


class Summary(nn.Module):
    """A network of a datum with few outputs: averages of features, mixed; 0 at first.

    Call: data (n, C, *spatial) -> (n, outputs).
    """

    def __init__(self, event_shape: Sequence[int], outputs: int, width: int = 32) -> None:
        super().__init__()
        self.features = Encoder(event_shape, width, width)
        last: Any = self.features.layers[-1]
        last.reset_parameters()
        self.side = min(4, *event_shape[1:]) if len(event_shape) > 1 else 1
        self.last = nn.Linear(width * event_shape[0] * self.side**2, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = nn.functional.silu(self.features(x))
        if h.dim() > 2:
            h = nn.functional.adaptive_avg_pool2d(h, self.side)
        return self.last(h.flatten(1))


def _diffusion(event_shape: Sequence[int], context: Context, **ends: Any) -> ContextDiffusion:
    """VPSDE with a clock for each pixel (or feature), common to all channels."""
    shape = (1, *event_shape[1:]) if len(event_shape) > 1 else tuple(event_shape)
    clock_of = torch.arange(math.prod(shape)).reshape(shape)
    return ContextDiffusion(
        VPSDE(**ends), context, ContextClocks(clock_of.numel(), context.size), clock_of
    )


def gaussian(
    event_shape: Sequence[int], max_log_snr: float = 13.0, min_log_snr: float = -10.0, size: int = 4
) -> ContextDiffusion:
    """VPSDE with clocks chosen by a Gaussian context of ``size`` numbers."""
    context = GaussianContext(Summary(event_shape, 2 * size), size)
    return _diffusion(event_shape, context, max_log_snr=max_log_snr, min_log_snr=min_log_snr)


def discrete(
    event_shape: Sequence[int], max_log_snr: float = 13.0, min_log_snr: float = -10.0, size: int = 4
) -> ContextDiffusion:
    """VPSDE with clocks chosen by a discrete context of ``size`` values."""
    context = DiscreteContext(Summary(event_shape, size), size)
    return _diffusion(event_shape, context, max_log_snr=max_log_snr, min_log_snr=min_log_snr)
