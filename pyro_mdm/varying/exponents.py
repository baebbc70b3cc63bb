r"""Matrix exponentials of the Magnus steps of :mod:`~pyro_mdm.varying.magnus`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["exponentials", "stretches"]

COEFFICIENTS = torch.tensor(
    [[1 / math.factorial(4 * j + i) for i in range(4)] for j in range(4)], dtype=torch.float64
)
"""The coefficients of exp at ‖Ω‖ ≤ ½, to the 15th power, in groups of 4."""


def stretches(length: Tensor, middle: Tensor) -> Tensor:
    """The factors for :func:`exponentials` of J stretches of a cell, (J, 7).

    Args:
        length, middle: length and middle of each stretch, (J,), as fractions of the cell; the
            middle of the cell is 0.
    """
    fifth = length**5
    factors = [length, length * middle, -(length**3) / 12, fifth / 240]
    factors += [fifth / 720, fifth * middle / 720, fifth * middle**2 / 720]
    return torch.stack(factors, -1)


def exponentials(A1: Tensor, A2: Tensor, factors: Tensor) -> Tensor:
    """exp Ω of stretches of n cells in which A is linear, for ‖Ω‖ up to about ½.

    Args:
        A1, A2: matrices A at the Gauss points of a cell, times its length, (n, K, K).
        factors: from :func:`stretches`, (J, 7); their negatives give the inverse.

    Returns:
        (n, J, K, K).
    """
    both = torch.stack([(A1 + A2) / 2, math.sqrt(3) * (A2 - A1)])  # mean and difference
    once = _commutator(both[0], both[1])
    twice = _commutator(both, once[None])
    thrice = _commutator(both[:, None], twice[None])
    crossed = thrice[0, 1] + thrice[1, 0]
    of_more = (-twice[1], thrice[0, 0], crossed, thrice[1, 1])
    terms = torch.stack([*both, once, *of_more], -3)
    return _exp((factors @ terms.flatten(-2)).unflatten(-1, A1.shape[-2:]))


def _commutator(X: Tensor, Y: Tensor) -> Tensor:
    return X @ Y - Y @ X


def _exp(X: Tensor) -> Tensor:
    """exp X of (…, K, K) with ‖X‖ up to about ½, by a Taylor series of fixed order."""
    K = X.shape[-1]
    X2 = X @ X
    eye = torch.eye(K, dtype=X.dtype, device=X.device).expand_as(X)
    powers = torch.stack([eye, X, X2, X2 @ X], -3).flatten(-2)
    groups = COEFFICIENTS.to(X) @ powers
    groups = groups.reshape(*groups.shape[:-1], K, K)
    fourth = X2 @ X2
    total = groups[..., -1, :, :]
    for j in range(len(COEFFICIENTS) - 2, -1, -1):
        total = groups[..., j, :, :] + fourth @ total
    return total
