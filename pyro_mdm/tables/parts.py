"""The dimensions of a vector split into parts, and joined in their order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Parts"]


class Parts:
    """The dimensions of a vector split into parts, each in the order of the whole.

    Args:
        part_of: the part of each dimension, (d,) int64, as :meth:`checked` returns it.
    """

    def __init__(self, part_of: Tensor) -> None:
        count = int(part_of.max()) + 1
        self.number = len(part_of)
        self.dims = [(part_of == p).nonzero().squeeze(1) for p in range(count)]
        self._order = torch.cat(self.dims).argsort()

    @staticmethod
    def checked(part_of: object, count: int) -> Tensor:
        """The part of each dimension as a tensor, (d,) int64.

        Args:
            part_of: the part of each dimension, numbers or a tensor.
            count: the number of parts.

        Raises:
            ValueError: other numbers than exactly those from 0 to ``count`` - 1.
        """
        parts = torch.as_tensor(part_of)
        if parts.dim() != 1 or parts.unique().tolist() != list(range(count)):
            raise ValueError(
                f"part_of is {parts.tolist()}, expected the number of a part for each dimension, "
                f"with every one of the {count} parts 0 … {count - 1}"
            )
        return parts.to(torch.int64)

    def split(self, x: Tensor) -> list[Tensor]:
        """The dimensions of each part, (…, d_p), of x, (…, d)."""
        return [x[..., dims] for dims in self.dims]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole, (…, d), of its parts, (…, d_p), in the dtype of the first."""
        return torch.cat([piece.to(parts[0].dtype) for piece in parts], -1)[..., self._order]
