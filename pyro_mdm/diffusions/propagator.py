r"""Propagators: the law by which a linear diffusion moves between two clock times.

For ``dy = A(τ) y dτ + G(τ) dB`` in clock time τ = b(s), over the time τ_0 to τ_1,

    M' = A M,  M(τ_0) = I,    P = ∫ M(τ_1, u) g² M(τ_1, u)ᵀ du,    P̃ = M^{-1} P M^{-T},

where P̃, the noise pulled back to τ_0, is a sum of positive terms too. Marginals, transitions,
posteriors, samplers and bounds are computed from these. For constant Q and D they have a closed
form; for varying ones :mod:`pyro_mdm.varying.magnus` computes them by small steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels

__all__ = ["ConstantPropagator", "Halves", "Propagator", "Root"]


class Root(NamedTuple):
    """A root F of a covariance, F Fᵀ, not necessarily triangular."""

    root: Tensor  # F (…, K, K)
    inverse: Tensor  # F^{-1} (…, K, K)
    log_det: Tensor  # log det F Fᵀ, (…)
    growth: Tensor  # estimated growth of rounding errors, (…)


class Halves(NamedTuple):
    """Both halves of a step of the diffusion of B and g², run backwards, the later half first."""

    first: Tensor  # M (…, K, K)
    first_root: Tensor  # of the noise gained, (…, K, K)
    second: Tensor
    second_root: Tensor
    growth: Tensor  # of rounding errors, (…)


class Propagator(ABC):
    """A linear diffusion between clock times, in float64, differentiable in its parameters.

    ``start`` and ``duration`` are clock times (…) and lengths ≥ 0 (…), broadcast together; a start
    of None is time 0. What is constant in time may come without their dimensions.
    """

    @abstractmethod
    def drift(self, tau: Tensor) -> Tensor:
        """A per unit of clock time, (K, K) or (*tau.shape, K, K)."""

    @abstractmethod
    def noise(self, tau: Tensor) -> Tensor:
        """g² per unit of clock time, (K, K) or (*tau.shape, K, K)."""

    @abstractmethod
    def dispersion(self, tau: Tensor) -> Tensor:
        """G per unit of clock time with G Gᵀ = g², (K, K) or (*tau.shape, K, K)."""

    @property
    @abstractmethod
    def speed(self) -> Tensor:
        """The largest 2-norm of A, 0-dim, without gradient."""

    @property
    @abstractmethod
    def decay(self) -> Tensor:
        """The decay rate of the slowest mode, at least about 1e-12; 0-dim, without gradient."""

    @abstractmethod
    def travelled(self, tau: Tensor) -> Tensor:
        """``∫_0^τ ‖A‖``, like τ, without gradient; M^{-1} loses digits as its exponential."""

    @abstractmethod
    def effort(self, tau: Tensor) -> Tensor:
        """``∫_0^τ (‖A‖ - 2 tr A)``, like τ, without gradient; log det Σ plus this increases."""

    @abstractmethod
    def trace(self, start: Tensor | None, duration: Tensor, copies: int = 1) -> Tensor:
        """``∫ tr A`` times ``copies``, the number of dimensions, (…)."""

    @abstractmethod
    def moments(self, start: Tensor | None, duration: Tensor) -> tuple[Tensor, Tensor]:
        """M and P, (…, K, K).

        Raises:
            KernelPrecisionError: the drift moves further than float64 can follow.
        """

    def both_moments(self, tau: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """M and P, and M^{-1} and P̃, from time 0 to times τ of which :meth:`travelled` is small."""
        index = torch.arange(tau.numel(), device=tau.device)
        forward = self.moments(None, tau)
        W, pulled = self.pulled_back_at(tau.flatten(), tau, index)
        return forward, (W.reshape(forward[0].shape), pulled.reshape(forward[0].shape))

    @abstractmethod
    def pulled_back(self, start: Tensor, duration: Tensor) -> tuple[Tensor, Tensor]:
        """M^{-1} and P̃, (…, K, K). Raises KernelPrecisionError as :meth:`moments` does."""

    @abstractmethod
    def pulled_back_at(self, near: Tensor, tau: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """M^{-1} and P̃ from time 0 to times ``near`` (n,), the flattened τ (…) at ``index`` (n,).

        For :meth:`travelled` below 20. The computation of :meth:`moments` of τ may be shared.
        """

    @abstractmethod
    def root(self, start: Tensor | None, duration: Tensor, *, noise_last: bool = False) -> Root:
        """A root of P for positive durations.

        Args:
            noise_last: whether the last :attr:`new` columns span G's range at the end.

        Raises:
            KernelPrecisionError: noise does not reach all variables.
        """

    @property
    @abstractmethod
    def new(self) -> int:
        """The number of columns of a :meth:`root` that noise enters by; K where G's range turns."""

    @abstractmethod
    def pulled_back_root(self, start: Tensor | None, duration: Tensor) -> Root:
        """A root of P̃ for positive durations."""

    @abstractmethod
    def halves(self, start: Tensor, duration: Tensor) -> Halves:
        """Both halves of each step, from its end back to its start, by dy = B y dτ + G dB.

        ``B = -(A + g² Σ_π^{-1})``, of the diffusion of (-Q, D) where Σ_π is at rest.
        """


Basis = tuple[Tensor, Tensor]


class ConstantPropagator(Propagator):
    """The propagator of constant A and g²: closed forms that depend on the duration alone.

    Args:
        drift, noise: A and g² per unit of clock time, (K, K).
        backward: B of :meth:`halves`.
        root: G per unit of clock time.
        basis: the directions that noise reaches, as from ``kernels.noise_basis``.
        hides_noise: whether rounding of D hides noise in some direction.
    """

    def __init__(
        self,
        drift: Tensor,
        noise: Tensor,
        *,
        backward: Callable[[], Tensor],
        root: Callable[[], Tensor],
        basis: Callable[[], Basis],
        hides_noise: Callable[[], bool],
    ) -> None:
        self._A, self._GG = drift, noise
        self._reversed, self._root = backward, root
        self._basis, self._hides_noise = basis, hides_noise

    def drift(self, tau: Tensor) -> Tensor:
        return self._A

    def noise(self, tau: Tensor) -> Tensor:
        return self._GG

    def dispersion(self, tau: Tensor) -> Tensor:
        return self._root()

    @cached_property
    def speed(self) -> Tensor:
        norm: Tensor = torch.linalg.matrix_norm(self._A.detach(), ord=2)
        return norm

    @property
    def decay(self) -> Tensor:
        slowest: Tensor = -torch.linalg.eigvals(self._A.detach()).real.max()
        return slowest.clamp_min(1e-12)

    def travelled(self, tau: Tensor) -> Tensor:
        return tau.detach() * self.speed

    def effort(self, tau: Tensor) -> Tensor:
        return (self.speed - 2 * self._A.detach().trace()) * tau.detach()

    def trace(self, start: Tensor | None, duration: Tensor, copies: int = 1) -> Tensor:
        return copies * self._A.diagonal().sum() * duration

    @cached_property
    def _forward(self) -> kernels.Series:
        return kernels.exponential_series(self._A)

    @cached_property
    def _backward(self) -> kernels.Series:
        return self._forward.reversed()

    @cached_property
    def _both(self) -> kernels.Series:
        terms = torch.stack([self._forward.terms, self._backward.terms])
        return kernels.Series(self._forward.norm, terms)

    def moments(self, start: Tensor | None, duration: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.transition_moments(self._A, self._GG, duration, self._forward)

    def both_moments(
        self, tau: Tensor, back: Tensor | None = None, reach: float | None = None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """M and P, M^{-1} and P̃; the second pair to times ``back``, like τ, where given.

        Args:
            reach: the largest ‖A‖τ, if Python knows it.
        """
        both = tau.unsqueeze(0) if back is None else torch.stack([tau, back])
        M, P = kernels.transition_moments(self._A, self._GG, both, self._both, reach)
        return (M[0], P[0]), (M[1], P[1])

    def pulled_back_at(self, near: Tensor, tau: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return self._pulled_back(near)

    def pulled_back(self, start: Tensor, duration: Tensor) -> tuple[Tensor, Tensor]:
        return self._pulled_back(duration)

    def _pulled_back(self, duration: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.transition_moments(-self._A, self._GG, duration, self._backward)

    def root(self, start: Tensor | None, duration: Tensor, *, noise_last: bool = False) -> Root:
        U, order = self._basis()
        basis = (U.flip(-1), order.flip(0)) if noise_last else (U, order)
        return self._rooted(self._A, duration, basis)

    def _rooted(self, A: Tensor, duration: Tensor, basis: Basis) -> Root:
        root, inverse, log_det, growth = kernels.transition_factor(A, self._GG, duration, basis)
        if self._hides_noise():
            growth = torch.full_like(growth, torch.inf)
        return Root(root, inverse, log_det, growth)

    @property
    def new(self) -> int:
        return int((self._basis()[1] == 0).sum())

    def pulled_back_root(self, start: Tensor | None, duration: Tensor) -> Root:
        return self._rooted(-self._A, duration, self._basis())

    def halves(self, start: Tensor, duration: Tensor) -> Halves:
        A, half = self._reversed(), duration / 2
        M, _ = kernels.transition_moments(A, self._GG, half)
        root, _, _, growth = kernels.transition_factor(A, self._GG, half, self._basis())
        return Halves(M, root, M, root, growth)
