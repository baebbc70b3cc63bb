"""Training images that are turned, stretched and moved, of which the network is told.

Which augmentation a datum has had is a condition of the score's network, and bounds and samples are
of images that have had none (Jun et al. 2020, *Distribution Augmentation for Generative Modeling*;
Karras et al. 2022). So it learns nothing that is wrong of images as they are. A diffusion that is
learned is not told, and is that of all images together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.training.trainee import Trainee
from pyro_mdm.randomness import seed_from
from tests.benchmarks.ladder.networks import Located, places_of

ANGLE, STRETCH, SHEAR, SHIFT = 0.35, 0.2, 0.3, 0.25
"""Limits: radians, the log of a factor for each axis, a factor, and units of half the image."""


class Augmentation:
    """Affine maps of a part of each batch, functions of the seed and the step.

    Args:
        share: of the batch that is changed, on average.
        batch_size: N, of all processes and pieces together.
        seed: of what is drawn.
    """

    def __init__(self, share: float, batch_size: int, seed: int) -> None:
        self.share, self.batch_size, self.seed = share, batch_size, seed

    def maps(self, step: int) -> Tensor:
        """Where pixels of the new images come from, (N, 2, 3): those of images that stay as they
        are are the identity."""
        N, generator = self.batch_size, torch.Generator()
        generator.manual_seed(seed_from(self.seed, "augmentation", step))
        u = 2 * torch.rand(N, 6, generator=generator) - 1
        angle, shear = ANGLE * u[:, 0], SHEAR * u[:, 1]
        across, down = torch.exp(STRETCH * u[:, 2:4]).unbind(1)
        rows = [angle.cos() * across, shear - angle.sin() * down, SHIFT * u[:, 4]]
        rows += [angle.sin() * across, angle.cos() * down, SHIFT * u[:, 5]]
        found = torch.stack(rows, 1).reshape(N, 2, 3)
        changed = torch.rand(N, generator=generator) < self.share
        return torch.where(changed[:, None, None], found, torch.eye(2, 3))

    def __call__(self, images: Tensor, step: int, piece: int, pieces: int) -> tuple[Tensor, Tensor]:
        """A piece of the batch of ``step``, changed, and where its pixels come from.

        Args:
            images: codes of levels (n, C, H, W), data ``piece``, ``piece + pieces``, … of the
                batch.

        Returns:
            images, levels between pixels rounded, 0 from outside; places (n, 2, H, W), row and
            column from -1 to 1, beyond these outside.
        """
        maps = self.maps(step)[piece::pieces].to(images.device)
        same = (maps == torch.eye(2, 3, device=maps.device)).all((1, 2))
        H, W = images.shape[-2:]
        if H != W:  # places are in units of each side, and turns are in pixels
            ratio = max(H - 1, 1) / max(W - 1, 1)
            maps[:, 0, 1], maps[:, 1, 0] = maps[:, 0, 1] * ratio, maps[:, 1, 0] / ratio
        grid = F.affine_grid(maps, list(images.shape), align_corners=True)
        moved = F.grid_sample(images.float(), grid, align_corners=True).round().to(images.dtype)
        moved = torch.where(same[:, None, None, None], images, moved)
        return moved, grid.flip(-1).movedim(-1, 1)


class Shifts:
    """Half of each batch is moved by a pixel; in place of :class:`Augmentation`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, images: Tensor, step: int, piece: int, pieces: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed_from(self.seed, step))
        by = torch.randint(-1, 2, (len(images), 2), generator=generator)
        by[torch.rand(len(images), generator=generator) < 0.5] = 0
        H, W = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1))
        places = F.pad(places_of(H, W).to(images.device), (1, 1, 1, 1), value=1.5)
        windows = [
            (slice(None), slice(1 - dy, 1 - dy + H), slice(1 - dx, 1 - dx + W))
            for dy, dx in by.tolist()
        ]
        moved = torch.stack([x[w] for x, w in zip(padded, windows, strict=True)])
        return moved, torch.stack([places[window] for window in windows])


class Moves(Protocol):
    """Changes a piece of the batch of a step, and says where its pixels come from."""

    def __call__(
        self, images: Tensor, step: int, piece: int, pieces: int
    ) -> tuple[Tensor, Tensor]: ...


class Told:
    """The batches of a training, moved; its networks are told of a piece while it is used.

    Args:
        trainee: whose batches they are, in place of these.
        moves: what is done to each piece.
    """

    def __init__(self, trainee: Trainee, moves: Moves) -> None:
        self.trainee, self.batches, self.moves = trainee, trainee.batches, moves
        parts = trainee.programs.model.score_function.modules()
        self.networks = [part for part in parts if isinstance(part, Located)]

    def __call__(self, step: int) -> Iterator[Tensor]:
        """The pieces of this process of the batch of ``step``, in turn."""
        mine, pieces = self.trainee.mine, self.trainee.count
        for piece, images in zip(mine, self.batches(step), strict=True):
            moved, places = self.moves(images, step, piece, pieces)
            with ExitStack() as stack:
                for network in self.networks:
                    stack.enter_context(network.told(places))
                yield moved
