"""Networks of data for diffusions of their coordinates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.transforms import Transform
from pyro_mdm.support.checks import check_count
from pyro_mdm.support.settings import Recorded

__all__ = ["CoordinateNetwork"]


class CoordinateNetwork(Recorded, nn.Module):
    """A network of pixels for a diffusion of their frequencies, or of other coordinates.

    Its inputs are transformed to data, and its outputs to coordinates.

    Args:
        network: module called with data, (n, C, *spatial), and log SNR, (n,).
        transform: transform from data to coordinates.
        untransformed: number of the last input channels that are left as they are: maps of log
            SNR, or contexts.

    Call: coordinates (n, C, *spatial), log_snr (n,) -> (n, channels, *spatial); with a context too
    if the network takes one.
    """

    def __init__(self, network: nn.Module, transform: Transform, untransformed: int = 0) -> None:
        super().__init__()
        check_count("untransformed", untransformed, "the number of channels left as they are", 0)
        self.network, self.transform, self.untransformed = network, transform, untransformed
        self.context_size = int(getattr(network, "context_size", 0))

    def forward(self, inputs: Tensor, log_snr: Tensor, *context: Tensor) -> Tensor:
        seen = inputs.shape[1] - self.untransformed
        data = self.transform.inverse(inputs[:, :seen])
        if self.untransformed:
            data = torch.cat([data, inputs[:, seen:]], 1)
        output: Tensor = self.transform(self.network(data, log_snr, *context))
        return output
