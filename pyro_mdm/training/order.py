"""The order of the data in training."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from pyro_mdm.randomness import seed_from
from pyro_mdm.support.checks import check_counts
from pyro_mdm.support.doors import checked_arguments

__all__ = ["indices"]


@checked_arguments
def indices(step: int, batch_size: int, n: int, seed: int) -> Tensor:
    """The indices of the data in a batch, (batch_size,) int64, from whole permutations in turn.

    Args:
        step: index of the step, from 0.
        batch_size: number of data in a batch.
        n: number of training data.
        seed: seed of the permutations.
    """
    check_counts({"batch_size": batch_size, "n": n}, "a number of data")
    position = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = position // n
    return torch.cat(
        [_permutation(e, n, seed)[position[epochs == e] % n] for e in epochs.unique().tolist()]
    )


@functools.lru_cache(maxsize=2)
def _permutation(epoch: int, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_from(seed, "order", epoch))
    return torch.randperm(n, generator=generator)
