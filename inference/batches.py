"""Batches of stored data on the device, a whole batch at once.

Data are uint8 (or small vectors), and what a network sees is made of them on the device. Which data
a batch holds is a function of the step alone (:func:`inference.recipe.indices`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference.recipe import indices
from inference.seeds import seed_from

ON_DEVICE = 2 * 2**30
"""Bytes of data up to which an accelerator holds them all."""


class Batches:
    """This process's part of each batch, by step.

    Args:
        data: (n, *event_shape) as stored; may be memory-mapped.
        batch_size: N, of all processes and pieces together.
        seed: of the order.
        device: where batches go.
        pieces: which pieces of the batch are wanted, and of how many: piece r of S holds its data
            r, r + S, …
        flip: mirror each image left to right with probability ½.
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
    ) -> None:
        self.device = device
        self.data = data.to(device) if data.nbytes <= ON_DEVICE else data
        self.batch_size, self.seed, self.flip = batch_size, seed, flip
        self.wanted, self.count = pieces

    def __call__(self, step: int) -> list[Tensor]:
        """The pieces of the batch of ``step``, each (N/S, *event_shape), on the device."""
        chosen = indices(step, self.batch_size, len(self.data), self.seed)
        if self.flip:
            generator = torch.Generator().manual_seed(seed_from(self.seed, "flip", step))
            mirrored = torch.rand(self.batch_size, generator=generator) < 0.5
        parts = []
        for r in self.wanted:
            part = self.data[chosen[r :: self.count].to(self.data.device)].to(self.device)
            if self.flip:
                mine = mirrored[r :: self.count].to(part.device)
                part = torch.where(mine.reshape(-1, *[1] * (part.dim() - 1)), part.flip(-1), part)
            parts.append(part)
        return parts
