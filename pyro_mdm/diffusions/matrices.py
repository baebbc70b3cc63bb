"""K×K matrices: their products with the variables of states, and checks of those that are given."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Diffusion, Matrix, full_precision, report_variables
from pyro_mdm.support.checks import check_shape, real_tensor

__all__ = [
    "MAX_AMPLIFICATION",
    "apply_matrix",
    "apply_noise",
    "apply_to_dimensions",
    "apply_to_rows",
    "as_rows",
    "check_dispersion",
    "check_semidefinite",
    "check_skew",
    "covariance_matrix",
    "hides_noise",
    "noise_root",
    "of_counted",
    "of_rows",
    "outer",
    "scale_variables",
    "semidefinite_cholesky",
    "square_matrix",
    "symmetric_root",
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
    if not (isinstance(matrix, Tensor) and matrix.is_floating_point()):
        check_shape("matrix", matrix, ())
    if not (isinstance(y, Tensor) and y.is_floating_point()):
        check_shape("y", y, ())
    if matrix.dim() < 2:
        raise ValueError(
            f"matrix has shape {tuple(matrix.shape)}, expected (*batch, K, K); use apply_vector "
            "for the product with one row"
        )
    by_dimension = matrix.dim() > 2 and (event_dim is not None or matrix.dim() == y.dim() + 1 > 3)
    lead = 1 if event_dim is None else y.dim() - event_dim - 1
    if matrix.dim() > 2 and not by_dimension:
        lead = matrix.dim() - 2
    if not 0 <= lead < y.dim() or y.shape[lead] != matrix.shape[-1]:
        report_variables(y, matrix, lead)
    if by_dimension:
        dims = matrix.dim() - 3 if event_dim is None else event_dim
        with full_precision(y):
            return apply_to_dimensions(matrix.to(y), y, dims)
    several = matrix.dim() > 2 or lead != 1
    if several and (*matrix.shape[:-2], matrix.shape[-2]) not in (
        (*y.shape[:lead], y.shape[lead]),
        (y.shape[lead],),
    ):
        report_variables(y, matrix, lead)
    with full_precision(y):
        if not several:  # in as few operations as can be
            flat = y.flatten(2) if y.dim() > 2 else y.unsqueeze(-1)
            moved = torch.bmm(matrix.to(y).expand(len(y), -1, -1), flat)
            return moved.reshape(len(y), matrix.shape[0], *y.shape[2:])
        flat = y.reshape(*y.shape[: lead + 1], math.prod(y.shape[lead + 1 :]))
        return (matrix.to(y) @ flat).reshape(y.shape)


def apply_to_dimensions(matrix: Tensor, y: Tensor, event_dim: int) -> Tensor:
    """``matrix`` (*batch or 1, *event_shape, K, K) times y (*batch, K, *event_shape)."""
    at = y.dim() - event_dim - 1
    rows = y.movedim(at, -1).unsqueeze(-2)  # (*batch, *event_shape, 1, K)
    return (matrix * rows).sum(-1).movedim(-1, at)


def scale_variables(vector: Tensor, y: Tensor) -> Tensor:
    """The variables of y (*batch, K, *event_shape), each times its entry of ``vector``, like y.

    Args:
        vector: (K,) for all; (*batch, K); or per data dimension, (batch or 1, *event_shape, K).
    """
    vector = vector.to(y)
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
    vector = vector.to(x)
    if vector.dim() == event_dim + 2 > 2:
        vector = vector.movedim(-1, 1)
    else:
        vector = vector.reshape(*vector.shape, *[1] * event_dim)
    return vector * x.unsqueeze(x.dim() - event_dim)


def as_rows(y: Tensor) -> Tensor:
    """y (n, K, *event_shape) with the variables of each data dimension last: (n, d, K)."""
    return y.reshape(*y.shape[:2], -1).mT


def apply_to_rows(matrix: Tensor, rows: Tensor) -> Tensor:
    """``matrix`` (n, d or 1, K, K) times rows (n, d, K), one K×K block per data dimension."""
    return (matrix.to(rows.device) @ rows.unsqueeze(-1)).squeeze(-1)


def apply_noise(G: Tensor, y: Tensor) -> Tensor:
    """g² y, like y (n, K, *event_shape), for roots G (n, d or 1, K, K) of g² = G Gᵀ."""
    return apply_to_rows(G, apply_to_rows(G.mT, as_rows(y))).mT.reshape(y.shape)


def check_dispersion(diffusion: Diffusion, G: Tensor, y: Tensor) -> Tensor:
    """G(y, s) as (batch, d or 1, K, K), checked against the shape that its diffusion declares.

    Raises:
        ValueError: another shape.
    """
    n, K, event = len(y), diffusion.num_variables, y.shape[2:]
    if diffusion.noise_depends_on_state:
        if G.shape == (n, *event, K, K):
            return G.reshape(n, -1, K, K)
        expected = f"({', '.join(map(str, (n, *event, K, K)))}), a K×K block per data dimension"
    else:
        if G.shape in ((K, K), (n, K, K)):
            return G.expand(n, K, K).unsqueeze(1)
        if diffusion.maps and G.dim() == y.dim() + 1:
            return G.expand(n, *event, K, K).reshape(n, -1, K, K)
        expected = f"({n}, {K}, {K}) or ({K}, {K}), one block for all data dimensions"
    raise ValueError(
        f"the dispersion of {type(diffusion).__name__} has shape {tuple(G.shape)}, expected "
        f"{expected}, as noise_depends_on_state is {diffusion.noise_depends_on_state}"
    )


def noise_root(diffusion: Diffusion, y: Tensor, s: Tensor) -> Tensor:
    """G(y, s) as (n, d or 1, K, K) in y's dtype, checked by :func:`check_dispersion`."""
    return check_dispersion(diffusion, diffusion.dispersion(y, s), y).to(y)


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
    ratio = values / values[0].clamp_min(1e-300)
    return bool(((ratio > 1e-15) & (ratio < 1e-7)).any())


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric S with S S = matrix (K, K), positive semi-definite."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    return root


def square_matrix(name: str, value: Matrix) -> Tensor:
    """A (K, K) matrix of finite numbers in float64; raises ValueError for another value."""
    matrix = real_tensor(name, value, "a square matrix (K, K)").cpu().clone()
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
    v = v.cpu()
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


def semidefinite_cholesky(D: Tensor) -> Tensor:
    """The lower triangular L with L Lᵀ = D for semi-definite D (…, K, K), by columns.

    Gradients are those of the factor at constant rank: a pivot of rounding's size is held at zero,
    with its column. torch's Cholesky needs full rank, and eigenvectors of equal eigenvalues have no
    derivative.
    """
    K = D.shape[-1]
    tiny = 16 * K * torch.finfo(D.dtype).eps * D.detach().diagonal(dim1=-2, dim2=-1)
    rest, columns = D, []
    for k in range(K):
        pivot = rest[..., k, k]
        used = pivot.detach() > tiny[..., k]
        root = torch.where(used, pivot, 1.0).sqrt()
        column = torch.where(used[..., None], rest[..., :, k] / root[..., None], 0.0)
        column = torch.cat([torch.zeros_like(column[..., :k]), column[..., k:]], -1)
        columns.append(column)
        rest = rest - column[..., :, None] * column[..., None, :]
    return torch.stack(columns, -1)
