"""Log SNRs and times that Python has read, so that no step of a sampler waits for one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mdm.diffusions.memory import writes
from pyro_mdm.scores.base import Number

__all__ = ["Levels"]

MOST = 2**16
"""The most numbers that are read at once."""


class Levels:
    """The numbers of a grid, which are read all at once when the first of them is asked for.

    A sampler's log SNRs and times are views of one tensor, that of its whole grid.

    Args:
        function: function of such a grid, like it, whose values are read instead; None: the grid's.
    """

    def __init__(self, function: Callable[[Tensor], Tensor] | None = None) -> None:
        self._function = function
        self._grid: Tensor | None = None  # held, so that no other comes to its place
        self._writes: tuple[tuple[int, int], ...] = ()
        self._numbers: list[float] = []

    def number(self, log_snr: Number) -> float | None:
        """λ, or the function there, where it is one number for all data; None where it may differ.

        Args:
            log_snr: a number, or log SNRs or times of any shape.
        """
        if not isinstance(log_snr, Tensor):
            return float(log_snr)
        if not log_snr.numel() or any(log_snr.stride()) or log_snr.dtype != torch.float64:
            return None
        base = log_snr if log_snr._base is None else log_snr._base
        if base.numel() > MOST or not base.is_contiguous():
            return None
        # torch does not count the writes to tensors of its inference mode
        if base is not self._grid or base.is_inference() or writes((base,)) != self._writes:
            self._grid, self._writes = base, writes((base,))
            flat = base.detach().flatten()
            self._numbers = (flat if self._function is None else self._function(flat)).tolist()
        return self._numbers[log_snr.storage_offset() - base.storage_offset()]
