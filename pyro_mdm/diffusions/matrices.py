"""K×K matrices: acting on the variables of states, and checked where they are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Matrix
from pyro_mdm.support.checks import real_tensor

__all__ = [
    "MAX_AMPLIFICATION",
    "apply_matrix",
    "apply_vector",
    "covariance_matrix",
    "full_precision",
    "square_matrix",
]

# rounding errors grown by more than this are refused: log det and log SNR keep about 1e-8
MAX_AMPLIFICATION = 2e7


def apply_matrix(matrix: Tensor, y: Tensor) -> Tensor:
    """``matrix`` (*batch, K, K) on the variables of y (*batch, K, *event_shape), in y's dtype.

    One (K, K) matrix serves a y with a single batch dimension, (batch, K, *event_shape).
    """
    batch = matrix.shape[:-2] or y.shape[:1]
    with full_precision(y):
        return (matrix.to(y.dtype) @ y.reshape(*batch, matrix.shape[-1], -1)).reshape(y.shape)


def apply_vector(vector: Tensor, y: Tensor) -> Tensor:
    """``vector`` (*batch, K) contracted with the variables of y: (*batch, *event_shape).

    One (K,) vector serves a y with a single batch dimension, (batch, K, *event_shape).
    """
    batch = vector.shape[:-1] or y.shape[:1]
    flat = y.reshape(*batch, vector.shape[-1], -1)
    event = y.shape[len(batch) + 1 :]
    with full_precision(y):
        return (vector.to(y.dtype).unsqueeze(-2) @ flat).reshape(*batch, *event)


def full_precision(like: Tensor) -> torch.autocast:
    """Autocast switched off on the device of ``like``: algebra outside the network is exact."""
    return torch.autocast(like.device.type, enabled=False)


def square_matrix(name: str, value: Matrix) -> Tensor:
    """A (K, K) matrix of finite numbers in float64, checked."""
    matrix = real_tensor(name, value, "a square matrix (K, K)").clone()
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}, expected a square matrix (K, K)")
    if not bool(matrix.isfinite().all()):
        raise ValueError(
            f"{name} has entries that are not finite: {matrix.tolist()}, expected finite numbers"
        )
    return matrix


def covariance_matrix(name: str, value: Any, size: int) -> Tensor:
    """A number, ``size`` variances or a (size, size) matrix, as a positive definite matrix."""
    v = real_tensor(name, value, f"a number, {size} variances or a ({size}, {size}) covariance")
    if v.dim() <= 1 and v.shape in ((), (size,)):
        matrix = torch.diag(v.expand(size)).clone()
    elif v.shape == (size, size):
        matrix = v.clone()
    else:
        raise ValueError(
            f"{name} has shape {tuple(v.shape)}, expected a number, {size} variances or a "
            f"({size}, {size}) covariance"
        )
    if not bool(matrix.isfinite().all()) or not torch.equal(matrix, matrix.mT):
        raise ValueError(f"{name} is {matrix.tolist()}, expected a finite symmetric matrix")
    if size and not (low := torch.linalg.eigvalsh(matrix).min().item()) > 0:
        raise ValueError(
            f"{name} is {matrix.tolist()}, expected positive variances in every direction, and the "
            f"least is {low:.3g}; raise variances or lower correlations"
        )
    dependence = kernels.scaled_cholesky(matrix)[1].item() if size else 1.0
    if dependence > MAX_AMPLIFICATION:
        raise ValueError(
            f"{name} is {matrix.tolist()}, nearly singular: inverting it makes rounding grow by "
            f"{dependence:.1e}, expected at most {MAX_AMPLIFICATION:.0e}; lower correlations"
        )
    return matrix
