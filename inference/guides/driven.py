"""Noising paths driven by the data: a small network of x gives their means and scales.

    python -m inference.train --model digits --guide inference.guides.driven:scales
    python -m inference.train --model digits --guide inference.guides.driven:means_and_scales

Both start as VPSDE, keep its ends, and serve every score: discrete, denoiser and noise. A
denoiser's x̂ takes the place of x, and the volatility of the paths follows its errors.

After DiffEnc (Nielsen et al., ICLR 2024), NDM and NFDM (Bartosh et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pyro_mdm import VPSDE, DataDrivenDiffusion
from pyro_mdm.networks import MLP, UNet

WIDTH = 16
"""The channels at full resolution of the network for images, a quarter of those for vectors."""


def means_and_scales(
    event_shape: Sequence[int], max_log_snr: float = 13.0, min_log_snr: float = -10.0
) -> DataDrivenDiffusion:
    """VPSDE with means that move by at most 1, and scales S by a factor of at most e."""
    return _driven(event_shape, max_log_snr, min_log_snr, means=1.0)


def scales(
    event_shape: Sequence[int], max_log_snr: float = 13.0, min_log_snr: float = -10.0
) -> DataDrivenDiffusion:
    """VPSDE with scales that depend on the data, and so the times when dimensions are noised."""
    return _driven(event_shape, max_log_snr, min_log_snr, means=0.0)


def _driven(
    event_shape: Sequence[int], max_log_snr: float, min_log_snr: float, means: float
) -> DataDrivenDiffusion:
    base = VPSDE(max_log_snr=max_log_snr, min_log_snr=min_log_snr)
    outputs = event_shape[0] * DataDrivenDiffusion.outputs(means=means > 0)
    network = _network(event_shape, outputs)
    return DataDrivenDiffusion(base, network, means=means, scales=2.0)


def _network(event_shape: Sequence[int], outputs: int) -> nn.Module:
    """A network from data to so many outputs, 0 at first."""
    channels, *sizes = event_shape
    if not sizes:
        return MLP(channels, 4 * WIDTH, 2, out_features=outputs)
    patch = 2 if all(size % 2 == 0 for size in sizes) else 1
    return UNet(channels, outputs, base=WIDTH, multipliers=(1,), patch=patch)
