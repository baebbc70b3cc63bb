r"""Propagators: how a linear diffusion moves between two clock times.

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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels

__all__ = [
    "ConstantPropagator",
    "Halves",
    "Propagator",
    "Root",
    "TRAVELLED",
    "decay",
    "times",
    "volume_rate",
]

TRAVELLED = 20.0
"""‖A‖τ beyond which M^{-1} has no correct digit."""
STIFF = 1e3  # ‖A‖τ above which early times do not double as often as late ones: a bit each time
FEW = 16  # times: for so few, computing both routes costs less than choosing


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


def decay(factor: kernels.Factor, unit_noise: Tensor) -> Tensor:
    """-dλ/dτ = SNR kᵀ g² k."""
    root = (factor.log_snr / 2).exp()[..., None] * factor.readout
    return (times(unit_noise, root) * root).sum(-1)


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Products of (…, K, K) and (…, K), (…, K)."""
    if matrix.dim() == 2:
        return vector @ matrix.mT
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def volume_rate(factor: kernels.Factor, unit_noise: Tensor) -> Tensor:
    """dκ/dτ = tr(Σ^{-1} g²)."""
    W = factor.whitener
    return ((W @ unit_noise) * W).sum((-2, -1))


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
    def moments(
        self, start: Tensor | None, duration: Tensor, latest: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """M and P, (…, K, K).

        Args:
            latest: a number that no duration exceeds, as for :meth:`factorized`.

        Raises:
            KernelPrecisionError: the drift moves further than float64 can follow.
        """

    def both_moments(self, tau: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """M and P, and M^{-1} and P̃, from time 0 to times τ of which :meth:`travelled` is small."""
        index = torch.arange(tau.numel(), device=tau.device)
        forward = self.moments(None, tau)
        W, pulled = self.pulled_back_at(tau.flatten(), tau, index)
        return forward, (W.reshape(forward[0].shape), pulled.reshape(forward[0].shape))

    # -- given x -----------------------------------------------------------------------------------

    def factorization(
        self, tau: Tensor, initial: Tensor, units: Tensor, latest: float | None = None
    ) -> tuple[Tensor, Tensor, kernels.Factor]:
        """a, Σ and the factorization of Σ at clock times τ (…).

        The growth of rounding has three parts: that of the factorization; the distance that the
        drift travels, as the last digits of A for slow modes are lost to fast ones; and the ratio
        of what is left of the other variables to what is left of x, each in its unit.

        Args:
            initial: Σ_0 (K, K).
            units: standard deviations of the variables, (K,).
            latest: as for :meth:`factorized`.
        """
        M, a, Sigma, factor = self.factorized(tau, initial, latest)
        with torch.no_grad():
            left = (M * units / units[:, None]).square().sum(-2)
            left = (left.mean(-1) / left[..., 0].clamp_min(1e-300)).sqrt()
            growth = self.travelled(tau).clamp_min(1.0) * left.clamp_min(1.0)
        return a, Sigma, factor._replace(amplification=factor.amplification * growth)

    def log_snr(self, tau: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
        """λ at clock times τ (…) from Σ_0, and -dλ/dτ."""
        *_, factor = self.factorized(tau, initial)
        return factor.log_snr, decay(factor, self.noise(tau))

    def log_volume(
        self, tau: Tensor, initial: Tensor, latest: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """κ at clock times τ (…) from Σ_0, and dκ/dτ; ``latest`` as for :meth:`factorized`."""
        *_, factor = self.factorized(tau, initial, latest)
        return factor.log_det - 2 * self.trace(None, tau), volume_rate(factor, self.noise(tau))

    def factorized(
        self, tau: Tensor, initial: Tensor, latest: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor, kernels.Factor]:
        """M, a, Σ and its factor at clock times τ from Σ_0.

        Σ is factored itself or pulled back to time 0, by whichever route keeps more digits.

        Args:
            latest: a number that no τ exceeds, for a constant propagator; without it this waits
                for the device.
        """
        if tau.dim() != 1:  # products of (n, K, K) are one operation each
            of_all = self.factorized(tau.reshape(-1), initial, latest)
            shaped = [t.reshape((*tau.shape, *t.shape[1:])) for t in (*of_all[:3], *of_all[3])]
            return shaped[0], shaped[1], shaped[2], kernels.Factor(*shaped[3:])
        near = self.travelled(tau) < TRAVELLED
        back: Any = None
        if latest is not None and isinstance(self, ConstantPropagator):
            latest = latest if latest * self.sizes[0] < STIFF else None
        if latest is not None and isinstance(self, ConstantPropagator):
            norm, speed = self.sizes
            limit = TRAVELLED / speed  # beyond, the second route is not taken
            back = None if latest < limit else tau.clamp_max(limit)
            (M, P), back = self.both_moments(tau, back, latest * norm)
        elif tau.numel() > 0 and bool(near.all()):
            (M, P), back = self.both_moments(tau)
        elif isinstance(self, ConstantPropagator) and tau.numel() <= FEW and bool(near.any()):
            (M, P), back = self.both_moments(tau, torch.where(near, tau, tau[near].detach().min()))
        else:
            M, P = self.moments(None, tau)
        a, Sigma = M[..., 0], torch.baddbmm(P, M @ initial, M.mT)
        if back is not None:
            W, of_start = back
            direct, pulled = kernels.both_factors(Sigma, M, W, of_start, initial)
            pulled = pulled._replace(log_det=pulled.log_det + 2 * self.trace(None, tau))
            better = near & (pulled.amplification < direct.amplification)
            if latest is None and bool(better.all()):  # no gradient then passes the other route
                return M, a, Sigma, pulled
            here = [better, better[:, None], better[:, None, None]]
            fields = (
                torch.where(here[d.dim() - 1], p, d) for d, p in zip(direct, pulled, strict=True)
            )
            return M, a, Sigma, kernels.Factor(*fields)
        direct = kernels.direct_factor(Sigma, a)
        if not bool(near.any()):
            return M, a, Sigma, direct
        index = near.nonzero()[:, 0]
        near_tau = tau[index]
        W, of_start = self.pulled_back_at(near_tau, tau, index)
        pulled = kernels.pulled_back_factor(M[index], W, of_start, initial)
        log_det = pulled.log_det + 2 * self.trace(None, near_tau)
        pulled = pulled._replace(log_det=log_det)
        better = pulled.amplification < direct.amplification[index]
        chosen = (index[better],)
        fields = (d.index_put(chosen, p[better]) for d, p in zip(direct, pulled, strict=True))
        return M, a, Sigma, kernels.Factor(*fields)

    @abstractmethod
    def pulled_back(self, start: Tensor, duration: Tensor) -> tuple[Tensor, Tensor]:
        """M^{-1} and P̃, (…, K, K). Raises KernelPrecisionError as :meth:`moments` does."""

    @abstractmethod
    def pulled_back_at(self, near: Tensor, tau: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """M^{-1} and P̃ from time 0 to times ``near`` (n,), the flattened τ (…) at ``index`` (n,).

        For :meth:`travelled` below 20. The computation of :meth:`moments` of τ may be shared.
        """

    @abstractmethod
    def root(self, start: Tensor | None, duration: Tensor, latest: float | None = None) -> Root:
        """A root of P for positive durations.

        Args:
            latest: a number that no duration exceeds, as for :meth:`factorized`.

        Raises:
            KernelPrecisionError: noise does not reach all variables.
        """

    def noise_last_root(self, start: Tensor | None, duration: Tensor) -> Root:
        """A root of P whose last :attr:`new` columns span G's range at the end."""
        return self.root(start, duration)

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
        precision: Σ_π^{-1} of the prior, for :meth:`halves`.
        root: G per unit of clock time.
        hides_noise: whether rounding of D hides noise in some direction.
    """

    def __init__(
        self,
        drift: Tensor,
        noise: Tensor,
        *,
        precision: Callable[[], Tensor],
        root: Callable[[], Tensor],
        hides_noise: Callable[[], bool],
    ) -> None:
        self._A, self._GG = drift, noise
        self._precision, self._root = precision, root
        self._hiding = hides_noise
        self._roundings: dict[tuple[int, bool], kernels.Rounding] = {}

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

    @cached_property
    def sizes(self) -> tuple[float, float]:
        """‖A‖_1 and ‖A‖_2 as numbers, for which the device is asked once."""
        norm, speed = torch.stack([self._both.norm, self.speed]).tolist()
        return norm, max(speed, 1e-300)

    @property
    def decay(self) -> Tensor:
        slowest: Tensor = -torch.linalg.eigvals(self._A.detach()).real.max()
        return slowest.clamp_min(1e-12)

    def travelled(self, tau: Tensor) -> Tensor:
        return tau.detach() * self.speed

    def effort(self, tau: Tensor) -> Tensor:
        return (self.speed - 2 * self._A.detach().trace()) * tau.detach()

    def trace(self, start: Tensor | None, duration: Tensor, copies: int = 1) -> Tensor:
        return copies * self._A.trace() * duration

    @cached_property
    def _hides_noise(self) -> bool:
        return self._hiding()

    @cached_property
    def _basis(self) -> Basis:
        """The directions that noise reaches."""
        with torch.inference_mode(False):  # gradients of durations may pass it later
            return kernels.noise_basis(self._A, self._GG)

    @cached_property
    def _both(self) -> kernels.Series:
        return kernels.both_series(self._A, self._GG)

    def _one(self, way: int) -> kernels.Series:
        return kernels.Series(self._both.norm, self._both.terms[way])

    def moments(
        self, start: Tensor | None, duration: Tensor, latest: float | None = None
    ) -> tuple[Tensor, Tensor]:
        reach = None if latest is None else latest * self.sizes[0]
        return kernels.transition_moments(self._A, self._GG, duration, self._one(0), reach)

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
        return kernels.transition_moments(-self._A, self._GG, duration, self._one(1))

    def root(self, start: Tensor | None, duration: Tensor, latest: float | None = None) -> Root:
        return self._rooted(1, duration, latest=latest)

    def noise_last_root(self, start: Tensor | None, duration: Tensor) -> Root:
        return self._rooted(1, duration, noise_last=True)

    def _rooted(
        self, way: int, duration: Tensor, noise_last: bool = False, latest: float | None = None
    ) -> Root:
        """A root of P, or of P̃ for ``way`` = -1."""
        A, (U, order), key = way * self._A, self._basis, (way, noise_last)
        basis = (U.flip(-1), order.flip(0)) if noise_last else (U, order)
        if key not in self._roundings:
            self._roundings[key] = kernels.basis_rounding(A, self._GG, basis)
        root, inverse, log_det, growth = kernels.transition_factor(
            A, self._GG, duration, basis, self._roundings[key], latest
        )
        if self._hides_noise:
            growth = torch.full_like(growth, torch.inf)
        return Root(root, inverse, log_det, growth)

    @property
    def new(self) -> int:
        return int((self._basis[1] == 0).sum())

    def pulled_back_root(self, start: Tensor | None, duration: Tensor) -> Root:
        return self._rooted(-1, duration)

    def halves(self, start: Tensor, duration: Tensor) -> Halves:
        A, half = -(self._A + self._GG @ self._precision()), duration / 2
        M, _ = kernels.transition_moments(A, self._GG, half)
        root, _, _, growth = kernels.transition_factor(A, self._GG, half, self._basis)
        return Halves(M, root, M, root, growth)
