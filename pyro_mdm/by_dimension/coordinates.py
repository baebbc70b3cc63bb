"""Coordinates of data, such as frequencies, and networks of data for diffusions of these."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pyro_mdm.support.checks import check_count
from pyro_mdm.support.settings import Recorded, Restorable

__all__ = ["CoordinateNetwork", "Frequencies", "Transform", "cosine_basis"]


class Transform(Restorable, nn.Module, ABC):
    """An orthonormal map of data and its inverse, on any number of leading dimensions."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The coordinates of data (…, *event_shape), of the same shape."""

    @abstractmethod
    def inverse(self, coordinates: Tensor) -> Tensor:
        """Data from their coordinates."""


class Frequencies(Transform):
    """The orthonormal cosine transform (DCT-II) along the last dimensions: height and width.

    Coordinate 0 along a dimension is its mean times √n; higher frequencies follow in order.

    Args:
        dims: number of dimensions, the last ones.

    Example:
        >>> x = torch.randn(5, 1, 8, 8)
        >>> frequencies = Frequencies()
        >>> torch.allclose(frequencies.inverse(frequencies(x)), x, atol=1e-5)
        True
    """

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        check_count("dims", dims, "the number of last dimensions that are transformed")
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return self._along(x, transposed=False)

    def inverse(self, coordinates: Tensor) -> Tensor:
        return self._along(coordinates, transposed=True)

    def _along(self, x: Tensor, transposed: bool) -> Tensor:
        if x.dim() < self.dims:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected at least the {self.dims} dimensions along "
                "which frequencies are taken; see dims"
            )
        with torch.autocast(x.device.type, enabled=False):
            for dim in range(-self.dims, 0):
                C = cosine_basis(x.shape[dim]).to(x)
                rows = x.movedim(dim, -1)
                x = (rows @ (C if transposed else C.mT)).movedim(-1, dim)
        return x


def cosine_basis(n: int) -> Tensor:
    """The orthonormal C (n, n) float64: C_kj = √(2/n) cos(π k (j + ½) / n), and √(1/n) in row 0."""
    j = torch.arange(n, dtype=torch.float64)
    C = (math.pi / n * j[:, None] * (j + 0.5)).cos() * math.sqrt(2 / n)
    C[0] = math.sqrt(1 / n)
    return C


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
