"""Networks of data that are asked about coordinates of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.transforms import Transform
from pyro_mdm.support.checks import check_count
from pyro_mdm.support.settings import Recorded

__all__ = ["CoordinateNetwork"]


class CoordinateNetwork(Recorded, nn.Module):
    """A network of pixels for a diffusion of their frequencies, or of any coordinates.

    Its inputs are brought back to data, and its outputs to coordinates.

    Args:
        network: called with data, (n, C, *spatial), and log SNR (n,).
        transform: from data to coordinates.
        told: how many of the last input channels are left as they are: those that a denoiser is
            told of maps of log SNR, or of contexts.

    Call: coordinates (n, C, *spatial), log_snr (n,) -> (n, channels, *spatial); with a context too
    if the network takes one.
    """

    def __init__(self, network: nn.Module, transform: Transform, told: int = 0) -> None:
        super().__init__()
        check_count("told", told, "the number of channels that are left as they are", 0)
        self.network, self.transform, self.told = network, transform, told
        self.context_size = int(getattr(network, "context_size", 0))

    def forward(self, inputs: Tensor, log_snr: Tensor, *context: Tensor) -> Tensor:
        """The network's output in coordinates, of the network's shape."""
        seen = inputs.shape[1] - self.told
        data = self.transform.inverse(inputs[:, :seen])
        if self.told:
            data = torch.cat([data, inputs[:, seen:]], 1)
        output: Tensor = self.transform(self.network(data, log_snr, *context))
        return output
