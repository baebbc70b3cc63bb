r"""Linear diffusions of any drift and dispersion, at rest or not, and the prior that one gives.

    dy = A y β ds + G sqrt(β) dB,    M' = A M,    Σ' = A Σ + Σ Aᵀ + G Gᵀ

in clock time. With A = -(Q + D) Σ_∞^{-1} and G Gᵀ = 2 D there is a stationary distribution,
N(0, Σ_∞); see :class:`~pyro_mdm.LinearDiffusion`. Others have none: noise is added and nothing is
forgotten. Their kernels, readout and log SNR are computed in the same way. The prior is whatever is
near the distribution of y_T; by default it is that of data that are 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import Matrix, Times, UnreachableError
from pyro_mdm.diffusions.clocks import Clock, ConstantBeta, GeometricBeta
from pyro_mdm.diffusions.closed import OneBlock
from pyro_mdm.diffusions.linear import Frozen, LinearDiffusion
from pyro_mdm.diffusions.matrices import (
    Constant,
    Matrices,
    covariance_matrix,
    hides_noise,
    square_matrix,
)
from pyro_mdm.support.checks import check_number, real_tensor

__all__ = ["LinearSDE", "MomentumVE", "check_scales"]

FARTHEST = 25.0
"""The logarithm of the latest clock time of drifts that forget nothing, by the fastest rate."""


class LinearSDE(LinearDiffusion):
    r"""A linear diffusion ``dy = A y β ds + G sqrt(β) dB`` of any A and G.

    Args:
        A: (K, K), the drift per unit of clock time.
        G: (K, m), the dispersion per square root of clock time; G Gᵀ = g².
        beta: the clock β(s), constant 1 by default, so that A and G are those of time itself.
        horizon: T.
        prior_variance: Σ_π of the prior N(0, Σ_π) as a number (times the identity), K variances or
            a (K, K) matrix; None: Σ(T), the covariance of y_T given x, wherever the ends are.
        initial_variance, max_log_snr, min_log_snr, cut_time: as for
            :class:`~pyro_mdm.LinearDiffusion`; the clock is scaled to ``min_log_snr``.

    Raises:
        TypeError: on use, of Q and D, which only a diffusion that is given by them has.
        ValueError: a matrix of the wrong shape or not finite, a prior that is not positive
            definite, ends that make no sense.
        UnreachableError: noise that does not reach all variables, or a log SNR that is not reached.

    Example:
        >>> falling = LinearSDE([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], horizon=10.0)
        >>> falling.transition(2.0).covariance
        tensor([[2.6667, 2.0000],
                [2.0000, 2.0000]], dtype=torch.float64)

    Source: Särkkä & Solin, "Applied Stochastic Differential Equations", 2019, chapter 6.
    """

    def __init__(
        self,
        A: Matrix | Matrices,
        G: Matrix | None = None,
        *,
        beta: Clock | None = None,
        horizon: float = 1.0,
        prior_variance: float | Sequence[float] | Matrix | None = None,
        initial_variance: float | Sequence[float] = 0.01,
        max_log_snr: float = 13.0,
        min_log_snr: float | None = None,
        cut_time: float | None = None,
    ) -> None:
        super().__init__(
            A if isinstance(A, Matrices) else DriftAndDispersion(A, G),  # type: ignore[arg-type]
            beta=ConstantBeta(1.0) if beta is None else beta,
            horizon=horizon,
            stationary_variance=prior_variance,  # type: ignore[arg-type]
            initial_variance=initial_variance,
            max_log_snr=max_log_snr,
            min_log_snr=min_log_snr,
            cut_time=cut_time,
        )

    given_prior: Tensor | None
    """Σ_π where it is given."""

    def register_reference(self, variance: float | Sequence[float] | Matrix | None) -> None:
        given = None
        if variance is not None:
            given = covariance_matrix("prior_variance", variance, self.num_variables)
        self.register_buffer("given_prior", given)

    @property
    def prior_covariance(self) -> Tensor:
        """Σ_π (K, K) of the prior N(0, Σ_π): as given, or Σ(T)."""
        given = self.given_prior
        return self.terminal.covariance if given is None else given

    def at_rest(self) -> bool:
        return self.kept("at rest", lambda: OneBlock.at_rest(self))

    # -- matrices ----------------------------------------------------------------------------------

    def options(self) -> NoReturn:
        """No options for one of Q and D. Raises TypeError."""
        raise self.matrices.without("Q and D")

    def frozen(self) -> Frozen:
        """Half of g² as D, and as Q what A Σ_π turns; Q and D if the prior is stationary."""
        s = self.time_at_clock(self.clock(self.horizon) / 2)
        A = self.matrices.drift(s)
        moved = A @ self.prior_covariance
        return Frozen((moved.mT - moved) / 2, self.matrices.noise(s) / 2, A)

    def units(self) -> Tensor:
        return torch.ones_like(self.initial_covariance[0])

    def shown(self) -> str:
        s, when = self.checked_time("s", self.horizon / 2), self.matrices.when
        return ", ".join(
            f"{name}{when} = {[[float(f'{v:.4g}') for v in row] for row in matrix.tolist()]}"
            for name, matrix in (("A", self.matrices.drift(s)), ("g²", self.matrices.noise(s)))
        )

    def _uncontrollable(self, reached: int) -> UnreachableError:
        return UnreachableError(
            f"{type(self).__name__}: noise reaches {reached} of {self.num_variables} variables "
            f"with {self.shown()}: (A, G) is not controllable, and the covariance of y_s is "
            "singular; couple the variables through A, or give G more columns"
        )


class DriftAndDispersion(Constant):
    """Given A and G that are the same at all times.

    Args:
        A: (K, K);  G: (K, m).
    """

    def __init__(self, A: Matrix, G: Matrix) -> None:
        self._given = A, G = square_matrix("A", A), real_tensor("G", G, "a matrix (K, m)").clone()
        if G.dim() != 2 or len(G) != len(A) or not G.numel():
            raise ValueError(
                f"A is {tuple(A.shape)} and G is {tuple(G.shape)}, expected (K, K) and (K, m) with "
                "m ≥ 1: a column for each source of noise"
            )
        if not bool(G.isfinite().all()):
            raise ValueError(
                f"G has entries that are not finite: {G.tolist()}, expected finite numbers"
            )

    def register(self) -> int:
        for name, matrix in zip(("_A", "_G"), self._given, strict=True):
            self.linear.register_buffer(name, matrix)
        return len(self._given[0])

    def check(self) -> None:
        """Nothing to check: any A and G will do."""

    def drift(self, s: Times | None = None) -> Tensor:
        A: Tensor = self.linear.get_buffer("_A")
        return A

    def noise(self, s: Times | None = None) -> Tensor:
        G: Tensor = self.linear.get_buffer("_G")
        noise = G @ G.mT
        return (noise + noise.mT) / 2

    def root(self, s: Times | None = None) -> Tensor:
        """G itself, with columns of zeros if it has fewer than K; a square root if it has more."""
        G = self.linear.get_buffer("_G")
        K, m = G.shape
        return super().root(s) if m > K else nn.functional.pad(G, (0, K - m))

    def hides_noise(self) -> bool:
        """Whether rounding of G Gᵀ may hide noise."""
        return hides_noise(torch.linalg.svdvals(self.linear.get_buffer("_G")))

    def fast(self) -> float:
        noise: Tensor = torch.linalg.matrix_norm(self.noise(), ord=2)
        return math.log(max(self.linear.propagator.speed.item(), noise.item()))

    def last_clock(self) -> float:
        growth = torch.linalg.eigvals(self.drift()).real.max().item()
        if growth < -1e-10:
            return 3.5 - math.log(-growth)
        # λ of a growing mode comes to rest, and exp(A τ) soon is too large for its digits
        return min(FARTHEST - self.fast(), math.log(20 / max(growth, 1e-10)))


class MomentumVE(LinearSDE):
    r"""Momentum over a variance that explodes, K = 2, ``dx = v β ds``, ``dv = √β dB``.

    Nothing is damped and nothing pulls back: x is the integral of a Brownian motion, so that its
    paths have a derivative, and Σ grows like ``[[τ³/3, τ²/2], [τ²/2, τ]]`` with the clock time τ =
    b(s). There is no stationary distribution.

    Args:
        sigma_min, sigma_max: where the clock begins to be fast, and where it ends, as standard
            deviations sqrt(τ³/3) of x, which grows geometrically between them.
        options: keyword arguments of :class:`LinearSDE`.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, **options: Any) -> None:
        sigma_min, sigma_max = check_scales(sigma_min, sigma_max)
        if options.get("beta") is None:
            start, end = ((3 * sigma**2) ** (1 / 3) for sigma in (sigma_min, sigma_max))
            options["beta"] = GeometricBeta(start, end, options.get("horizon", 1.0))
        super().__init__([[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]], **options)


def check_scales(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """The least and largest noise, as floats. Raises ValueError unless 0 < σ_min < σ_max."""
    low = check_number("sigma_min", sigma_min, "a positive number, e.g. 0.01", positive=True)
    high = check_number("sigma_max", sigma_max, "a positive number, e.g. 50.0", positive=True)
    if not low < high:
        raise ValueError(
            f"sigma_min is {low:g} and sigma_max {high:g}, expected sigma_min < sigma_max: noise "
            "grows from the data to the prior"
        )
    return low, high
