"""Clock times of a linear diffusion at which log SNR or log volume has given values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Marginal, Times
from pyro_mdm.diffusions.closed import OneBlock
from pyro_mdm.diffusions.propagator import decay, times, volume_rate

__all__ = ["LOG_SNR", "LOG_VOLUME", "MovingEnds", "Inversion"]

LOG_SNR, LOG_VOLUME = "log SNR", "log volume"
"""A coordinate that times are found by."""

KNOTS = 96
"""The number of knots of a table of λ."""


class Inversion:
    """A search for the clock times τ at which -λ or κ, both increasing, has a given value.

    Args:
        linear: the linear diffusion, which keeps tables of both until it changes.
    """

    def __init__(self, linear: OneBlock) -> None:
        self.linear: Any = linear

    def clock_at(self, value: Tensor, name: str) -> Tensor:
        """The clock time at which λ or κ, by its name, has a value; differentiable."""
        return self.with_gradient(self.root(value, name), value, name)

    def time_at_log_snr(self, value: Times) -> Tensor:
        """The time s with λ(s) = value, like value; differentiable in the diffusion and in value.

        Raises:
            ValueError: a value below λ(T), which this diffusion never reaches.
            UnreachableError: a value too high for float64.
        """
        wanted: Tensor = self.linear.as_tensor(value)
        with torch.no_grad():
            low = self.linear.terminal_log_snr
        if not bool((wanted >= low - 1e-9 * (1 + low.abs())).all()):
            raise ValueError(
                f"log SNR {wanted.min().item():.6g} is never reached: it ends at λ(T) = "
                f"{low.item():.6g}; use a larger value, a faster clock or a longer horizon"
            )
        s: Tensor = self.linear.time_at_clock(self.clock_at(wanted, LOG_SNR))
        return s

    def time_at_log_volume(self, value: Times) -> Tensor:
        """The time s in [ε, T] with κ(s) = value, like value; differentiable in both.

        Raises:
            ValueError: a value outside [κ(ε), κ(T)].
        """
        wanted: Tensor = self.linear.as_tensor(value)
        with torch.no_grad():
            low, high = self.linear.log_volume_ends.tolist()
        room = 1e-9 * (1 + abs(low) + abs(high))
        outside = ~((wanted >= low - room) & (wanted <= high + room))
        if bool(outside.any()):
            raise ValueError(
                f"log volume {wanted.detach()[outside][0].item():.6g} is not between that of ε, "
                f"{low:.6g}, and of T, {high:.6g}; see log_volume_ends"
            )
        s: Tensor = self.linear.time_at_clock(self.clock_at(wanted, LOG_VOLUME))
        return s

    def _coordinate(self, name: str, tau: Tensor) -> tuple[Tensor, Tensor]:
        """-λ or κ at clock times τ, and its derivative in τ."""
        move, initial = self.linear.propagator, self.linear.initial_covariance
        along = move.log_volume if name == LOG_VOLUME else move.log_snr
        value, slope = along(tau, initial)
        return (value if name == LOG_VOLUME else -value), slope

    def root(self, value: Tensor, name: str = LOG_SNR) -> Tensor:
        """The τ with λ(τ) or κ(τ) = value, by safe steps in log τ.

        Args:
            value: a value of the coordinate with this name.
        """
        with torch.no_grad():
            wanted = value.detach().flatten() * (-1 if name == LOG_SNR else 1)
            knots, levels, slope = self._table(name)
            if name == LOG_SNR:
                self._check_reached(-wanted, -levels[slope.isfinite()])
            i = torch.searchsorted(levels, wanted).clamp(1, len(levels) - 1)
            low, high = knots[i - 1], knots[i]
            # cubic Hermite interpolation of log τ as a function of the coordinate
            h = levels[i] - levels[i - 1]
            u = ((wanted - levels[i - 1]) / h).clamp(0, 1)
            x = (
                (1 + 2 * u) * (1 - u) ** 2 * low
                + u**2 * (3 - 2 * u) * high
                + u * (1 - u) * h * ((1 - u) * slope[i - 1] - u * slope[i])
            )
            x = torch.maximum(torch.minimum(x, high), low)
            for _ in range(60):
                if not bool(x.isfinite().all()):
                    self._check_reached(-wanted, wanted[:0])  # nothing is known beside it
                error, step = self._newton(x, wanted, name)
                low, high = torch.where(error < 0, x, low), torch.where(error < 0, high, x)
                inside = (x + step >= low) & (x + step <= high)
                previous, x = x, torch.where(inside, x + step, (low + high) / 2)
                if bool((((x - previous).abs() < 1e-7) & (error.abs() < 1e-6)).all()):
                    break  # the next Newton step is below rounding
        return x.exp().reshape(value.shape)

    def _check_reached(self, log_snr: Tensor, reached: Tensor) -> None:
        """Raise UnreachableError unless values of λ are between those that are reached."""
        reached = reached[reached.isfinite()]
        if reached.numel():
            low, high = reached.min().item(), reached.max().item()
            room = 1e-9 * (1 + abs(low))
            missed = log_snr[~((log_snr >= low - room) & (log_snr <= high + room))]
            if not len(missed):
                return
        value = log_snr[0].item() if not reached.numel() else missed[0].item()
        reach = (
            f"it is followed from {high:.1f} down to {low:.1f}" if reached.numel() else "none is"
        )
        raise self.linear.end_laws.unreachable(value, reach)

    def _newton(self, x: Tensor, wanted: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The coordinate less ``wanted`` at log τ = x, and Newton's step in x."""
        tau = x.exp()
        here, slope = self._coordinate(name, tau)
        error = here - wanted
        return error, -error / (tau * slope)

    def with_gradient(self, tau: Tensor, value: Tensor, name: str = LOG_SNR) -> Tensor:
        """τ with gradients, from the root τ for ``value`` as a number: one Newton step."""
        if not (self.is_learned(value) and torch.is_grad_enabled()):
            return tau
        here, slope = self._coordinate(name, tau)
        wanted = -value if name == LOG_SNR else value
        return tau + (wanted - here) / slope.detach()

    def is_learned(self, value: Tensor) -> bool:
        """Whether the time of a ``value`` of λ or κ has a gradient."""
        return value.requires_grad or self.linear.is_learned()

    def _knots(self, name: str) -> Tensor:
        """log τ for λ from far below ε to far past T, for κ from ε to T."""
        if name == LOG_VOLUME:
            first, last = (
                self.linear.end_laws.start_clock().log().item(),
                self.linear.clock(self.linear.horizon).log().item(),
            )
            x = torch.linspace(first, last, 129, dtype=torch.float64)
        else:  # λ falls like -log τ at the least for τ → 0, and like the slowest mode late
            fast = self.linear.matrices.fast()
            early, middle = -max(self.linear.max_log_snr + 10.0, 80.0) - fast, -2.0 - fast
            late = torch.linspace(middle, self.linear.matrices.last_clock(), KNOTS + 1)[1:]
            x = torch.cat([torch.linspace(early, middle, 65), late])
        return x.to(self.linear.initial_covariance)

    def _table(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """The knots in log τ, the coordinate there (increasing), d log τ by d coordinate."""

        def build() -> tuple[Tensor, Tensor, Tensor]:
            x = self._knots(name)
            tau = x.exp()
            coordinate, slope = self._coordinate(name, tau)
            return x, coordinate, 1 / (tau * slope)

        with torch.no_grad():
            table: tuple[Tensor, Tensor, Tensor] = self.linear.kept(f"table of {name}", build)
            return table


class MovingEnds:
    """The kernels at both ends, and their derivatives in the clock times at which λ is held.

    With Σ' = A Σ + Σ Aᵀ + g² and X = L^{-1} A L, one factorization gives the times, by a Newton
    step as in :meth:`Inversion.with_gradient`, and the derivatives in time of

        L' = L Φ(X + Xᵀ + L^{-1} g² L^{-T}),    k' = (-λ') k - Aᵀ k - Σ^{-1} g² k,

    where Φ keeps the lower triangle with half of the diagonal, and k is the readout.

    Args:
        roots: clock times τ of ε and T (2,), as numbers, near where λ is the target.
        targets: λ at both, or (1,) at ε alone.
        a, Sigma, factor: at the roots, with gradients at fixed times.
        A, noise: the drift and g² per unit of clock time, without gradients.
    """

    def __init__(
        self,
        roots: Tensor,
        targets: Tensor,
        a: Tensor,
        Sigma: Tensor,
        factor: kernels.Factor,
        A: Tensor,
        noise: Tensor,
    ) -> None:
        self._roots, self._a, self._Sigma, self.factor = roots, a, Sigma, factor
        self._A, self._noise = A, noise
        with torch.no_grad():
            self._rate = decay(factor, noise)
        n = len(targets)
        self.clocks = roots[:n] + (factor.log_snr[:n] - targets) / self._rate[:n]

    def close(self) -> bool:
        """Whether the clock times are close to the roots.

        Kernels are wrong by the square of the distance in log τ, their derivatives by the distance,
        times the rate at which they vary in log τ: about 1, and up to 1,000 where λ nearly pauses.
        """
        with torch.no_grad():
            left = self.clocks / self._roots[: len(self.clocks)] - 1
            return bool((left.abs() < 1e-9).all())

    def marginal(self, clocks: Tensor) -> Marginal:
        """The kernels at ``clocks``, which are near the roots, with first derivatives only."""
        factor, A, noise = self.factor, self._A, self._noise
        L = kernels.lower_triangular(factor.root)
        with torch.no_grad():
            W, k = factor.whitener, factor.readout
            turned = self._Sigma @ A.mT
            Sigma_rate = turned + turned.mT + noise
            # L^{-1} by way of the whitener, which has digits that L has lost
            inverse = torch.linalg.solve_triangular(L, factor.root, upper=False) @ W
            turned = inverse @ A @ L
            Phi = (turned + turned.mT + inverse @ noise @ inverse.mT).tril()
            Phi.diagonal(dim1=-2, dim2=-1).mul_(0.5)
            k_rate = self._rate[:, None] * k - k @ A - times(W.mT, times(W, k @ noise))
            volume = volume_rate(factor, noise) + 2 * A.diagonal().sum()
        late = clocks - self._roots
        one, two = late[:, None], late[:, None, None]
        return Marginal(
            torch.addcmul(self._a, one, self._a.detach() @ A.mT),
            torch.addcmul(self._Sigma, two, Sigma_rate),
            torch.addcmul(L, two, L.detach() @ Phi),
            torch.addcmul(factor.readout, one, k_rate),
            factor.log_snr - late * self._rate,
            factor.log_det + late * volume,
        )
