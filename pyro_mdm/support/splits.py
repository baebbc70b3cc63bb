"""Splits of data without official parts: by a seeded permutation, evenly over their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

__all__ = ["EVERY", "Rows", "split_rows", "spread"]

EVERY = 10
"""The number of data of which one is test and another validation."""
VALIDATION = 8
"""The place of validation data among 0 … 9 in the order of the split; 0 is test."""


class Rows(NamedTuple):
    """The increasing indices of each part, int64, and the settings of the split."""

    train: Tensor
    validation: Tensor
    test: Tensor
    seed: int | None
    stratified: bool  # evenly over several strata
    rare: int = 0  # data moved to training because no others have their category


def split_rows(
    n: int,
    holdout: bool,
    seed: int | None,
    strata: Tensor | None = None,
    categories: Sequence[Tensor] = (),
) -> Rows:
    """The parts of n data: every 10th is test, and with ``holdout`` every 10th validation.

    Data are counted in a random order in which strata (n,) follow each other, so that a tenth of
    each is test, to one datum. Test data are the same with and without ``holdout``. Without a seed
    the split is by index, 0, 10, 20, … into test and 8, 18, 28, … into validation, whatever strata
    and categories. ``categories`` has for each column the index of the category of each datum,
    below 0 for none; data of a category that no other part has go to training.
    """
    if seed is None:
        place = torch.arange(n)
        strata, categories = None, ()
    elif not 0 <= seed < 2**63:
        raise ValueError(f"split_seed is {seed}, expected a whole number from 0 to 2^63 - 1")
    else:
        generator = Generator().manual_seed(seed)
        order = torch.randperm(n, generator=generator)
        if strata is not None:  # strata in a random order, so that small ones are tested too
            kinds, index = strata.unique(return_inverse=True)
            turn = torch.randperm(len(kinds), generator=generator)[index]
            order = order[turn[order].argsort(stable=True)]
        place = order.argsort()
    wanted = place % EVERY == 0
    test = _known_elsewhere(wanted, ~wanted, categories)
    wanted = (place % EVERY == VALIDATION) & holdout
    validation = _known_elsewhere(wanted, ~(test | wanted), categories)
    train = ~(test | validation)
    rare = int((place[train] % EVERY == 0).sum() + (wanted & train).sum())
    several = strata is not None and len(strata.unique()) > 1
    first, second, third = (mask.nonzero()[:, 0] for mask in (train, validation, test))
    return Rows(first, second, third, seed=seed, stratified=several, rare=rare)


def _known_elsewhere(mask: Tensor, others: Tensor, categories: Sequence[Tensor]) -> Tensor:
    """The data of a part whose categories occur in ``others`` or in the rest of the part."""
    for codes in categories:
        unseen = mask & (codes >= 0) & ~torch.isin(codes, codes[others])
        mask, others = mask & ~unseen, others | unseen
    return mask


def spread(n: int, count: int) -> Tensor:
    """``count`` increasing indices spread evenly over range(n), int64."""
    return (2 * torch.arange(count) + 1) * n // (2 * count)
