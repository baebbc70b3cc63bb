"""K×K matrices: their products with the variables of states, and those of linear diffusions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Matrix, Times
from pyro_mdm.diffusions.propagator import ConstantPropagator, Propagator
from pyro_mdm.support.checks import check_shape, real_tensor

__all__ = [
    "MAX_AMPLIFICATION",
    "Constant",
    "Matrices",
    "SkewAndSemidefinite",
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
    check_shape("matrix", matrix, ())
    check_shape("y", y, ())
    one_each = matrix.dim() > 2 and (event_dim is not None or matrix.dim() == y.dim() + 1 > 3)
    lead = 1 if event_dim is None else y.dim() - event_dim - 1
    one = matrix.dim() == 2 or one_each
    _check_variables(y, matrix, lead if one else matrix.dim() - 2)
    if not one and matrix.shape[:-2] != y.shape[: matrix.dim() - 2]:
        raise ValueError(
            f"matrix has shape {tuple(matrix.shape)}, expected (*batch, K, K) of y {tuple(y.shape)}"
        )
    if matrix.dim() == 2 and event_dim is None:  # in as few operations as can be
        with full_precision(y):
            flat = y.flatten(2) if y.dim() > 2 else y.unsqueeze(-1)
            moved = torch.bmm(matrix.to(y.dtype).expand(len(y), -1, -1), flat)
            return moved.reshape(len(y), matrix.shape[0], *y.shape[2:])
    dims = matrix.dim() - 3 if event_dim is None else event_dim
    if one_each:
        with full_precision(y):
            return kernels.apply_to_dimensions(matrix.to(y.dtype), y, dims)
    batch = matrix.shape[:-2] or y.shape[: 1 if event_dim is None else y.dim() - event_dim - 1]
    with full_precision(y):
        flat = y.reshape(*batch, matrix.shape[-1], math.prod(y.shape[len(batch) + 1 :]))
        return (matrix.to(y.dtype) @ flat).reshape(y.shape)


def apply_vector(vector: Tensor, y: Tensor) -> Tensor:
    """The inner product of ``vector`` (*batch, K) with the variables of y: (*batch, *event_shape).

    One (K,) vector serves a y with a single batch dimension, (batch, K, *event_shape); so do
    vectors per data dimension, (batch or 1, *event_shape, K).
    """
    check_shape("vector", vector, ())
    check_shape("y", y, ())
    by_dimension = vector.dim() == y.dim() > 2
    sizes = y.shape[:1] + y.shape[2:] if by_dimension else y.shape[: vector.dim() - 1]
    if any(n not in (1, m) for n, m in zip(vector.shape[:-1], sizes, strict=True)):
        raise ValueError(
            f"vector has shape {tuple(vector.shape)}, expected (*batch, K) of y {tuple(y.shape)}"
        )
    _check_variables(y, vector, 1 if by_dimension else max(1, vector.dim() - 1))
    if by_dimension:
        with full_precision(y):
            return (vector.to(y.dtype).movedim(-1, 1) * y).sum(1)
    batch = vector.shape[:-1] or y.shape[:1]
    event = y.shape[len(batch) + 1 :]
    flat = y.reshape(*batch, vector.shape[-1], math.prod(event))
    with full_precision(y):
        return (vector.to(y.dtype).unsqueeze(-2) @ flat).reshape(*batch, *event)


def _check_variables(y: Tensor, factor: Tensor, batch_dim: int) -> None:
    """Raises ValueError unless y has the variables of a matrix or vector after its batch."""
    K = factor.shape[-1]
    if not 0 <= batch_dim < y.dim() or y.shape[batch_dim] != K:
        raise ValueError(
            f"y has shape {tuple(y.shape)}, expected (*batch, {K}, *event_shape) with {batch_dim} "
            f"batch dimensions, for a factor of shape {tuple(factor.shape)}"
        )


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
    ratio = values / values[0].clamp_min(1e-300)
    return bool(((ratio > 1e-15) & (ratio < 1e-7)).any())


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


# -- the matrices of a linear diffusion ------------------------------------------------------------


class Matrices(ABC):
    """Q and D of a linear diffusion: constant or varying in time, given or learned.

    The diffusion itself holds the parameters and buffers of the matrices, so that its state dict
    has their names.

    Attributes:
        linear: the linear diffusion that the matrices are part of.
        remedy: advice for error messages where the matrices are at fault.
        searched: the number of ends that are searched for along one curve; None: all that are
            given. It is 1 where the curve depends on the scale of the clock: the scale is found
            first, and with it λ(T), by :meth:`end_clock`.
    """

    linear: Any
    remedy = ""
    searched: int | None = None

    @abstractmethod
    def register(self) -> int:
        """Register the matrices' tensors with the diffusion, whose horizon is known; return K."""

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError unless Q is skew and D positive semi-definite."""

    @property
    def check_times(self) -> Times:
        """Times at which a check sees how the matrices vary."""
        return 0.0

    @property
    def when(self) -> str:
        """The time at which messages show the matrices, in brackets; empty for constant ones."""
        return ""

    def constant(self, name: str) -> Tensor:
        """Q or D, by its name, (K, K). Raises TypeError where it varies or is not given."""
        raise self.without(name)

    def at(self, name: str, s: Times) -> Tensor:
        """Q or D, by its name, at times s, (*s.shape, K, K), or (K, K) where it is constant."""
        return self.constant(name)

    @abstractmethod
    def drift(self, s: Times | None = None) -> Tensor:
        """A per unit of clock time at times s, of the shape of :meth:`at`; None: constant A.

        Raises TypeError for None where it varies in time, as do :meth:`noise` and :meth:`root`.
        """

    @abstractmethod
    def noise(self, s: Times | None = None) -> Tensor:
        """g² per unit of clock time, likewise."""

    def rates(self, s: Times | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`drift` and :meth:`noise`."""
        return self.drift(s), self.noise(s)

    @abstractmethod
    def root(self, s: Times | None = None) -> Tensor:
        """G per unit of clock time, G Gᵀ = g², likewise."""

    def without(self, name: str) -> TypeError:
        """The error for Q or D of a diffusion that is not given by them."""
        return TypeError(
            f"{type(self.linear).__name__} is given by its drift and dispersion and has no {name}, "
            "expected a diffusion that is given by these; use drift_matrix(s) and "
            "noise_covariance(s), or such a diffusion, e.g. VPSDE() or CLD()"
        )

    def no_constant(
        self, name: str, fix: str = "drift_matrix(s) and noise_covariance(s)"
    ) -> TypeError:
        """The error for a constant matrix of one that varies in time; ``fix`` is used instead."""
        kind = type(self.linear).__name__
        return TypeError(f"{kind} has no constant {name}: it varies in time; use {fix}")

    @abstractmethod
    def propagator(self) -> Propagator:
        """The propagator of the diffusion."""

    def fast(self) -> float:
        """The logarithm of the fastest rate, before whose time λ falls at least like -log τ."""
        return float(self.linear.propagator.speed.log())

    @abstractmethod
    def last_clock(self) -> float:
        """The logarithm of the latest clock time at which λ is searched for."""

    def precision(self) -> Tensor:
        """Σ_π^{-1} of the prior, (K, K), which may follow from the propagator."""
        precision: Tensor = torch.linalg.inv_ex(self.linear.prior_covariance).inverse
        return precision

    def end_clock(self) -> Tensor:
        """The clock time of T at which log SNR is ``min_log_snr``, 0-dim, where it is not on the
        one curve that is searched."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Settings of the matrices beside parameters and buffers, for a state dict."""
        return {}


class Constant(Matrices):
    """Matrices that are the same at all times."""

    def hides_noise(self) -> bool:
        """Whether rounding of g² hides noise in some direction."""
        return False

    def root(self, s: Times | None = None) -> Tensor:
        """The symmetric root, or of a learned g² a triangular one, differentiable at any rank."""

        def root() -> Tensor:
            noise = self.noise()
            if noise.requires_grad:
                return kernels.semidefinite_cholesky(noise)
            return symmetric_root(noise)

        value: Tensor = self.linear.kept("unit_dispersion", root)
        return value

    def propagator(self) -> Propagator:
        return ConstantPropagator(
            *self.rates(),
            precision=self.precision,
            root=self.root,
            hides_noise=self.hides_noise,
        )

    def last_clock(self) -> float:
        return 3.5 - float(self.linear.propagator.decay.log())


class SkewAndSemidefinite(Constant):
    """Given Q and D that are the same at all times.

    Args:
        Q, D: (K, K).
    """

    def __init__(self, Q: Matrix, D: Matrix) -> None:
        self._given = Q, D = square_matrix("Q", Q), square_matrix("D", D)
        if Q.shape != D.shape:
            raise ValueError(f"Q is {tuple(Q.shape)} and D is {tuple(D.shape)}, expected one shape")

    def register(self) -> int:
        for name, matrix in zip(("_Q", "_D"), self._given, strict=True):
            self.linear.register_buffer(name, matrix)
        return len(self._given[0])

    def check(self) -> None:
        check_skew("Q", self.linear.Q.detach(), 1e-12)
        check_semidefinite("D", self.linear.D.detach(), 1e-12)

    def constant(self, name: str) -> Tensor:
        matrix: Tensor = self.linear.get_buffer(f"_{name}")
        return matrix

    def at(self, name: str, s: Times) -> Tensor:
        matrix: Tensor = getattr(self.linear, name)  # as a subclass may have it
        return matrix

    def rates(self, s: Times | None = None) -> tuple[Tensor, Tensor]:
        Q, D, Sigma = self.linear.Q, self.linear.D, self.linear.stationary_covariance
        return -torch.linalg.solve_ex(Sigma, Q + D, left=False).result, 2 * D

    def drift(self, s: Times | None = None) -> Tensor:
        return self.rates()[0]

    def noise(self, s: Times | None = None) -> Tensor:
        noise: Tensor = 2 * self.linear.D
        return noise
