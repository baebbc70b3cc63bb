"""Auxiliary variables that start at an encoding of the data, learned with the rest.

    python -m inference.train --model digits --guide inference.guides.encoder:cld
    python -m inference.train --model digits --guide inference.guides.encoder:learned

v_0 ~ N(m(x), Σ_v) instead of N(0, Σ_v): the generative model makes x together with a learned
encoding of it. Programs, scores, samplers and pictures need nothing else than the guide.
TensorBoard shows m(x) beside x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pyro_mdm import CLD, EncodedDiffusion, LearnedDiffusion, LinearDiffusion


class Encoder(nn.Module):
    """A small network of the data, convolutional for images, whose outputs are 0 at first.

    Call: data (n, C, *spatial) -> (n, outputs·C, *spatial).
    """

    def __init__(self, event_shape: Sequence[int], outputs: int = 1, width: int = 32) -> None:
        super().__init__()
        C = event_shape[0]

        def layer(inputs: int, outputs: int) -> nn.Module:
            if len(event_shape) == 1:
                return nn.Linear(inputs, outputs)
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        last: Any = layer(width, outputs * C)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            layer(C, width), nn.SiLU(), layer(width, width), nn.SiLU(), last
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _encoded(base: LinearDiffusion, event_shape: Sequence[int]) -> EncodedDiffusion:
    return EncodedDiffusion(base, Encoder(event_shape, base.num_variables - 1))


def cld(
    event_shape: Sequence[int], max_log_snr: float = 13.0, min_log_snr: float = -10.0
) -> EncodedDiffusion:
    """Critically-damped Langevin diffusion whose velocities encode the data."""
    return _encoded(
        CLD(max_log_snr=max_log_snr, min_log_snr=min_log_snr, initial_variance=0.25), event_shape
    )


def learned(
    event_shape: Sequence[int], max_log_snr: float = 13.0, min_log_snr: float = -10.0
) -> EncodedDiffusion:
    """A learned diffusion whose velocities encode the data."""
    ends: dict[str, Any] = {"max_log_snr": max_log_snr, "min_log_snr": min_log_snr}
    return _encoded(LearnedDiffusion(2, initial_variance=0.25, **ends), event_shape)
