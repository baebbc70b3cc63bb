r"""Matrix exponentials of the Magnus steps of :mod:`~pyro_mdm.varying.magnus`.

2×2 matrices, of which there are many, are computed entry by entry, which halves the time of a
training step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["exponentials", "stretches"]

COEFFICIENTS = torch.tensor(
    [[1 / math.factorial(4 * j + i) for i in range(4)] for j in range(4)], dtype=torch.float64
)
"""The coefficients of exp at ‖Ω‖ ≤ ½, to the 15th power, in groups of 4."""

EVEN_AND_ODD = torch.tensor(
    [[1 / math.factorial(2 * k), 1 / math.factorial(2 * k + 1)] for k in range(8)],
    dtype=torch.float64,
)
"""The coefficients of cosh √δ and sinh √δ / √δ by powers of δ, to the 15th power of √δ."""

ENTRIES = torch.tensor(
    [[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0.5, -0.5, 0, 0]], dtype=torch.float64
)
"""The map from X (2, 2), flattened, to t, h, e, f: X = [[t + h, e], [f, t - h]]."""

MATRIX = torch.tensor(
    [[1, 0, 0, 1], [1, 0, 0, -1], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.float64
)
"""The inverse of :data:`ENTRIES`."""

BRACKET = torch.tensor([[1, 0, 0], [0, 0, 2], [0, 2, 0]], dtype=torch.float64)
"""The map from the vector product of (h, e, f) and (h', e', f') to their commutator."""


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
        A1, A2: matrices A at the Gauss points of a cell, times its length, (n, K, K); real or
            complex.
        factors: from :func:`stretches`, (J, 7); their negatives give the inverse.

    Returns:
        (n, J, K, K).
    """
    if A1.shape[-1] == 2:
        return _of_two(A1, A2, factors)
    X, Y = (A1 + A2) / 2, math.sqrt(3) * (A2 - A1)
    terms = torch.stack(_terms(torch.stack([X, Y]), _commutator), -3)
    return _exp((factors.to(terms.dtype) @ terms.flatten(-2)).unflatten(-1, A1.shape[-2:]))


def _terms(both: Tensor, bracket: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """The terms of Ω: ``both`` (2, …) are the mean and the difference over the cell."""
    once = bracket(both[0], both[1])
    twice = bracket(both, once[None])
    thrice = bracket(both[:, None], twice[None])
    crossed = thrice[0, 1] + thrice[1, 0]
    return [both[0], both[1], once, -twice[1], thrice[0, 0], crossed, thrice[1, 1]]


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


def _of_two(A1: Tensor, A2: Tensor, factors: Tensor) -> Tensor:
    """exp Ω for K = 2.

    With X = t I + X_0 and X_0² = δ I, δ = h² + e f: exp X = e^t (cosh √δ I + sinh √δ / √δ X_0).
    """
    factors = factors.to(A1.dtype)
    entries = torch.stack([A1, A2]).flatten(-2) @ ENTRIES.to(A1)
    both = torch.stack([(entries[0] + entries[1]) / 2, math.sqrt(3) * (entries[1] - entries[0])])
    t = both[..., 0].mT @ factors[:, :2].mT  # commutators have no trace
    w = factors @ torch.stack(_terms(both[..., 1:], _bracket), -2)
    delta = w[..., 0].square() + w[..., 1] * w[..., 2]
    second = delta * delta
    low = torch.stack([torch.ones_like(delta), delta, second, second * delta], -1)
    powers = torch.cat([low, low * (second * second)[..., None]], -1)
    hyperbolic: Tensor = (powers @ EVEN_AND_ODD.to(A1)) * t.exp()[..., None]
    entries = torch.cat([hyperbolic[..., :1], hyperbolic[..., 1:] * w], -1) @ MATRIX.to(A1)
    return entries.reshape(*entries.shape[:-1], 2, 2)


def _bracket(x: Tensor, y: Tensor) -> Tensor:
    """The commutator of matrices with entries h, e, f, (…, 3)."""
    cross: Tensor = torch.linalg.cross(x, y, dim=-1)
    return cross @ BRACKET.to(x)
