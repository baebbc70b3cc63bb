"""Batches of stored data on the device.

Data are uint8 (or small vectors), and are transformed on the device. The content of a batch is a
function of the step alone (:func:`pyro_mdm.training.indices`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mdm.randomness import seed_from
from pyro_mdm.training import indices

ON_DEVICE = 2 * 2**30
"""The most bytes of data that an accelerator holds all at once."""


class Batches:
    """This process's part of each batch, by step.

    Args:
        data: the data as stored, (n, *event_shape); may be memory-mapped.
        batch_size: N, over all processes and pieces.
        seed: the seed of the order.
        device: the device of the batches.
        pieces: the pieces to return, and their number S: piece r has data r, r + S, … of a batch.
        flip: whether to mirror each image left to right with probability ½.
        order: the numbers of the data in the batch of a step; None: whole permutations in turn.
    """

    def __init__(
        self,
        data: Tensor,
        batch_size: int,
        seed: int,
        device: torch.device,
        *,
        pieces: tuple[range, int] = (range(1), 1),
        flip: bool = False,
        order: Callable[[int], Tensor] | None = None,
    ) -> None:
        self.device, self._order = device, order
        self.data = data.to(device) if data.nbytes <= ON_DEVICE else data
        self.batch_size, self.seed, self.flip = batch_size, seed, flip
        self.wanted, self.count = pieces

    def __call__(self, step: int) -> list[Tensor]:
        """The pieces of the batch of ``step``, each (N/S, *event_shape), on the device."""
        chosen = self._order(step) if self._order else self._in_turn(step)
        if self.flip:
            generator = torch.Generator().manual_seed(seed_from(self.seed, "flip", step))
            mirrored = torch.rand(self.batch_size, generator=generator) < 0.5
        pieces = []
        for r in self.wanted:
            piece = self.data[chosen[r :: self.count].to(self.data.device)].to(self.device)
            if self.flip:
                mine = mirrored[r :: self.count].to(piece.device)
                piece = torch.where(
                    mine.reshape(-1, *[1] * (piece.dim() - 1)), piece.flip(-1), piece
                )
            pieces.append(piece)
        return pieces

    def _in_turn(self, step: int) -> Tensor:
        return indices(step, self.batch_size, len(self.data), self.seed)
