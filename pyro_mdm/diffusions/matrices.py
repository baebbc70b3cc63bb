"""K×K matrices: their products with the variables of states, and checks of given ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Matrix
from pyro_mdm.support.checks import real_tensor

__all__ = [
    "MAX_AMPLIFICATION",
    "apply_matrix",
    "apply_noise",
    "apply_to_rows",
    "apply_vector",
    "as_rows",
    "check_semidefinite",
    "check_skew",
    "covariance_matrix",
    "full_precision",
    "hides_noise",
    "of_counted",
    "of_rows",
    "outer",
    "scale_variables",
    "square_matrix",
    "symmetric_root",
    "with_event_dims",
]

MAX_AMPLIFICATION = 2e7
"""Rounding errors grown by more than this are refused: log det and log SNR keep about 1e-8."""


def apply_matrix(matrix: Tensor, y: Tensor, event_dim: int | None = None) -> Tensor:
    """The product of ``matrix`` (*batch, K, K) with the variables of y (*batch, K, *event_shape).

    One (K, K) matrix serves a y with a single batch dimension, (batch, K, *event_shape), or with
    several if ``event_dim`` says how many dimensions a datum has. So do matrices per data
    dimension, (batch or 1, *event_shape, K, K), with sizes of 1 where they are shared. In y's
    dtype.
    """
    own = matrix.dim() - 3 if event_dim is None else event_dim
    if matrix.dim() > 2 and (event_dim is not None or matrix.dim() == y.dim() + 1 > 3):
        with full_precision(y):
            return kernels.apply_to_dimensions(matrix.to(y.dtype), y, own)
    batch = matrix.shape[:-2] or y.shape[: 1 if event_dim is None else y.dim() - event_dim - 1]
    with full_precision(y):
        return (matrix.to(y.dtype) @ y.reshape(*batch, matrix.shape[-1], -1)).reshape(y.shape)


def apply_vector(vector: Tensor, y: Tensor) -> Tensor:
    """The inner product of ``vector`` (*batch, K) with the variables of y: (*batch, *event_shape).

    One (K,) vector serves a y with a single batch dimension, (batch, K, *event_shape); so do
    vectors per data dimension, (batch or 1, *event_shape, K).
    """
    if vector.dim() == y.dim() > 2:
        with full_precision(y):
            return (vector.to(y.dtype).movedim(-1, 1) * y).sum(1)
    batch = vector.shape[:-1] or y.shape[:1]
    flat = y.reshape(*batch, vector.shape[-1], -1)
    event = y.shape[len(batch) + 1 :]
    with full_precision(y):
        return (vector.to(y.dtype).unsqueeze(-2) @ flat).reshape(*batch, *event)


def scale_variables(vector: Tensor, y: Tensor) -> Tensor:
    """The variables of y (*batch, K, *event_shape), each times its entry of ``vector``, like y.

    Args:
        vector: (K,) for all; (*batch, K); or per data dimension, (batch or 1, *event_shape, K).
    """
    vector = vector.to(y.dtype)
    if vector.dim() == y.dim() > 2:
        return vector.movedim(-1, 1) * y
    batch_dim = max(vector.dim() - 1, 1)
    return vector.reshape(*vector.shape, *[1] * (y.dim() - batch_dim - 1)) * y


def outer(vector: Tensor, x: Tensor, event_dim: int | None = None) -> Tensor:
    """``vector`` times x (*batch, *event_shape), in x's dtype: (*batch, K, *event_shape).

    Args:
        vector: (K,) for all; (*batch, K); or per data dimension, (batch or 1, *event_shape, K).
        event_dim: number of dimensions of a datum, all of x's but the first by default.
    """
    event_dim = x.dim() - 1 if event_dim is None else event_dim
    vector = vector.to(x.dtype)
    if vector.dim() == event_dim + 2 > 2:
        vector = vector.movedim(-1, 1)
    else:
        vector = vector.reshape(*vector.shape, *[1] * event_dim)
    return vector * x.unsqueeze(x.dim() - event_dim)


def full_precision(like: Tensor) -> torch.autocast:
    """A context without autocast on the device of ``like``, for algebra outside the network."""
    return torch.autocast(like.device.type, enabled=False)


def as_rows(y: Tensor) -> Tensor:
    """y (n, K, *event_shape) with the variables of each data dimension last: (n, d, K)."""
    return y.reshape(*y.shape[:2], -1).mT


def apply_to_rows(matrix: Tensor, rows: Tensor) -> Tensor:
    """``matrix`` (n, d or 1, K, K) times rows (n, d, K), one K×K block per data dimension."""
    return (matrix @ rows.unsqueeze(-1)).squeeze(-1)


def apply_noise(G: Tensor, y: Tensor) -> Tensor:
    """g² y, like y (n, K, *event_shape), for roots G (n, d or 1, K, K) of g² = G Gᵀ."""
    return apply_to_rows(G, apply_to_rows(G.mT, as_rows(y))).mT.reshape(y.shape)


def check_skew(name: str, Q: Tensor, tolerance: float) -> None:
    """Raises ValueError unless Q (…, K, K) is skew-symmetric, up to rounding."""
    if (skew := (Q + Q.mT).abs().max().item()) > tolerance * max(1.0, Q.abs().max().item()):
        raise ValueError(
            f"{name} is not skew-symmetric: |Q + Qᵀ| reaches {skew:.3g}, expected 0; use Q = W - Wᵀ"
        )


def check_semidefinite(name: str, D: Tensor, tolerance: float) -> None:
    """Raises ValueError unless D (…, K, K) is symmetric positive semi-definite, up to rounding."""
    size = max(1.0, D.abs().max().item())
    if (asym := (D - D.mT).abs().max().item()) > tolerance * size:
        raise ValueError(
            f"{name} is not symmetric: |D - Dᵀ| reaches {asym:.3g}, expected 0; use D = B Bᵀ"
        )
    if (low := torch.linalg.eigvalsh(D).min().item()) < -tolerance * size:
        raise ValueError(
            f"{name} is not positive semi-definite: its smallest eigenvalue is {low:.3g}, "
            "expected ≥ 0; use D = B Bᵀ"
        )


def hides_noise(values: Tensor) -> bool:
    """Whether B Bᵀ, with half of the digits of B, loses directions of B.

    Args:
        values: the singular values of B, decreasing.
    """
    part = values / values[0].clamp_min(1e-300)
    return bool(((part > 1e-15) & (part < 1e-7)).any())


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric S with S S = matrix (K, K), positive semi-definite."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    return root


def square_matrix(name: str, value: Matrix) -> Tensor:
    """A (K, K) matrix of finite numbers in float64; raises ValueError for another value."""
    matrix = real_tensor(name, value, "a square matrix (K, K)").clone()
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}, expected a square matrix (K, K)")
    if not bool(matrix.isfinite().all()):
        raise ValueError(
            f"{name} has entries that are not finite: {matrix.tolist()}, expected finite numbers"
        )
    return matrix


def covariance_matrix(name: str, value: object, size: int) -> Tensor:
    """The positive definite matrix (size, size) given by a number, variances or itself."""
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
    # of a product that was computed both triangles are rounded, on some processors differently
    scale = matrix.diagonal().abs().sqrt()
    apart = (matrix - matrix.mT).abs() - 1e-12 * scale * scale.unsqueeze(-1)
    if not bool(matrix.isfinite().all()) or bool((apart > 0).any()):
        raise ValueError(f"{name} is {matrix.tolist()}, expected a finite symmetric matrix")
    matrix = (matrix + matrix.mT) / 2
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


def with_event_dims(value: Tensor, like: Tensor) -> Tensor:
    """A value per datum (*batch) as (*batch, 1, …, 1); a map (*batch, *event_shape) as it is."""
    return value.reshape(*value.shape, *[1] * (like.dim() - value.dim()))


def of_counted(value: Tensor, counted: Tensor | None) -> Tensor:
    """A value per dimension (*batch, *event_shape), set to 0 where the dimension does not count."""
    return value if counted is None else torch.where(counted, value, 0)


def of_rows(value: Tensor, event_dim: int, batch: Sequence[int]) -> Tensor:
    """A value for all data or for each of n, in a shape that broadcasts to (*batch, *event_shape).

    Args:
        value: (*event_shape) with ``event_dim`` dimensions, or (n, *event_shape).
        batch: the shape of the batch: n data in this order, or a multiple of them.

    Raises:
        ValueError: a batch that is no multiple of n.
    """
    if value.dim() == event_dim or (batch and batch[-1] == len(value)):
        return value
    number, n = math.prod(batch), len(value)
    if number % n:
        raise ValueError(
            f"what is observed differs between {n} data, and {number} are asked for; make it "
            f"a multiple of {n}, e.g. batch_size={n}, or condition the model for these data"
        )
    return value.repeat(number // n, *[1] * event_dim).reshape(*batch, *value.shape[1:])
