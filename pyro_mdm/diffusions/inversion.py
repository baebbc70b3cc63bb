"""Clock times of a linear diffusion at which log SNR or log volume has given values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Marginal, UnreachableError
from pyro_mdm.diffusions.propagator import ConstantPropagator, Propagator

if TYPE_CHECKING:
    from pyro_mdm.diffusions.linear import LinearDiffusion

__all__ = ["LOG_SNR", "LOG_VOLUME", "FoundEnds", "Inversion", "decay", "volume_rate"]

LOG_SNR, LOG_VOLUME = "log SNR", "log volume"  # coordinates that times are found by


class Inversion:
    """Searches in log τ, of which -λ and κ are increasing functions.

    Args:
        diffusion: whose clock times τ are searched for.
    """

    def __init__(self, diffusion: LinearDiffusion) -> None:
        self.diffusion = diffusion

    def _coordinate(self, of: str, tau: Tensor) -> tuple[Tensor, Tensor]:
        """-λ or κ at clock times τ, and its derivative in τ."""
        move = self.diffusion.propagator
        *_, factor = self.diffusion._factorized(move, tau, move.travelled(tau))
        noise = move.noise(tau)
        if of == LOG_SNR:
            return -factor.log_snr, decay(factor, noise)
        return self.diffusion._log_volume(factor.log_det, tau), volume_rate(factor, noise)

    def root(
        self,
        value: Tensor,
        guess: Tensor | None = None,
        of: str = LOG_SNR,
        *,
        move: Propagator | None = None,
        enough: float = 1e-6,
    ) -> Tensor:
        """The τ with λ(τ) or κ(τ) = value: by steps in log τ from a guess, or safe ones.

        Args:
            value: of the coordinate ``of``;  guess: τ near there, like it.
            move: a propagator of constant Q and D that is known; only steps from a guess use it.
            enough: a step of Halley's from a guess is the last where it is smaller, in log τ: what
                is left to do after it is of the order of its cube.
        """
        with torch.no_grad():
            wanted = value.detach().flatten() * (-1 if of == LOG_SNR else 1)
            if guess is not None and guess.shape == wanted.shape:
                x, move = guess.log(), move or self.diffusion.propagator
                halley = of == LOG_SNR and isinstance(move, ConstantPropagator)
                small = enough if halley else 1e-7  # after one of Newton's its square is left
                for _ in range(12):
                    if halley:
                        error, step = self._halley(move, x, wanted)
                    else:
                        error, step = self._newton(x, wanted, of)
                    x = x + step
                    if not bool((step.abs() < 3).all()):
                        break
                    if bool(((step.abs() < small) & (error.abs() < 10 * small)).all()):
                        return x.exp().reshape(value.shape)
            knots, found, slope = self._table(of)
            if of == LOG_SNR:
                self._check_reached(-wanted, -found[slope.isfinite()])
            i = torch.searchsorted(found, wanted).clamp(1, len(found) - 1)
            low, high = knots[i - 1], knots[i]
            # cubic Hermite interpolation of log τ as a function of the coordinate
            h = found[i] - found[i - 1]
            u = ((wanted - found[i - 1]) / h).clamp(0, 1)
            x = (
                (1 + 2 * u) * (1 - u) ** 2 * low
                + u**2 * (3 - 2 * u) * high
                + u * (1 - u) * h * ((1 - u) * slope[i - 1] - u * slope[i])
            )
            x = torch.maximum(torch.minimum(x, high), low)
            for _ in range(60):
                if not bool(x.isfinite().all()):
                    self._check_reached(-wanted, wanted[:0])  # nothing is known beside it
                error, step = self._newton(x, wanted, of)
                low, high = torch.where(error < 0, x, low), torch.where(error < 0, high, x)
                inside = (x + step >= low) & (x + step <= high)
                previous, x = x, torch.where(inside, x + step, (low + high) / 2)
                if bool((((x - previous).abs() < 1e-7) & (error.abs() < 1e-6)).all()):
                    break  # Newton's next step is below rounding
        return x.exp().reshape(value.shape)

    def _check_reached(self, log_snr: Tensor, found: Tensor) -> None:
        """Whether values of λ are between those found at the earliest and the latest time."""
        known = found[found.isfinite()]
        if known.numel():
            low, high = known.min().item(), known.max().item()
            room = 1e-9 * (1 + abs(low))
            missed = log_snr[~((log_snr >= low - room) & (log_snr <= high + room))]
            if not len(missed):
                return
        diffusion = self.diffusion
        diffusion._check_controllable()
        names = {diffusion.max_log_snr: "max_log_snr", diffusion.min_log_snr: "min_log_snr"}
        value = log_snr[0].item() if not known.numel() else missed[0].item()
        reach = f"it is followed from {high:.1f} down to {low:.1f}" if known.numel() else "none is"
        raise UnreachableError(
            f"{type(diffusion).__name__}: {names.get(value, 'log SNR')} {value:g} is out of reach "
            f"of float64, whatever the clock: with {diffusion._matrices()} {reach}; ask for a log "
            "SNR between these, or bring the time scales of Q and D together"
            f"{diffusion._remedy()}"
        )

    def _newton(self, x: Tensor, wanted: Tensor, of: str) -> tuple[Tensor, Tensor]:
        """The coordinate less ``wanted`` at log τ = x, and Newton's step in x."""
        tau = x.exp()
        found, slope = self._coordinate(of, tau)
        error = found - wanted
        return error, -error / (tau * slope)

    def _halley(self, move: Propagator, x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The same of -λ with Halley's step, which is of third order, for constant A and g².

        With r = -λ' = SNR kᵀ g² k and the readout k, see :class:`FoundEnds`,
        r' = r² - 2 SNR kᵀ g² (Aᵀ k + Σ^{-1} g² k).
        """
        tau = x.exp()
        *_, factor = self.diffusion._factorized(move, tau, move.travelled(tau))
        A, noise, k = move.drift(tau), move.noise(tau), factor.readout
        rate, gk = decay(factor, noise), k @ noise
        turned = (gk * (k @ A)).sum(-1) + _times(factor.whitener, gk).square().sum(-1)
        bend = rate.square() - 2 * factor.log_snr.exp() * turned
        error = -factor.log_snr - wanted
        step = -error / (tau * rate)
        # f' = τ r and f'' = τ r + τ² r' in log τ
        curved = 1 + step * (1 + tau * bend / rate) / 2
        return error, torch.where((curved - 1).abs() < 0.5, step / curved, step)

    def with_gradient(self, tau: Tensor, value: Tensor, of: str = LOG_SNR) -> Tensor:
        """τ, given as a number the root for ``value``: one Newton step carries gradients."""
        if not (self.is_learned(value) and torch.is_grad_enabled()):
            return tau
        found, slope = self._coordinate(of, tau)
        wanted = -value if of == LOG_SNR else value
        return tau + (wanted - found) / slope.detach()

    def is_learned(self, value: Tensor) -> bool:
        """Whether the time of a ``value`` of λ or κ has a gradient."""
        return value.requires_grad or any(p.requires_grad for p in self.diffusion.parameters())

    def _table(self, of: str) -> tuple[Tensor, Tensor, Tensor]:
        """log τ, the coordinate there (increasing), and d log τ by d coordinate.

        For λ from far below ε to far past T, for κ from ε to T.
        """

        def build() -> tuple[Tensor, Tensor, Tensor]:
            if of == LOG_VOLUME:
                first, last = (
                    self.diffusion._start_clock().log().item(),
                    self.diffusion.clock(self.diffusion.horizon).log().item(),
                )
                x = torch.linspace(first, last, 129, dtype=torch.float64)
            else:
                # λ falls like -log τ at the least for τ → 0, and like the slowest mode late
                fast = self.diffusion.propagator.speed.log().item()
                lowest = -max(self.diffusion.max_log_snr + 10.0, 80.0) - fast
                x = torch.cat(
                    [
                        torch.linspace(lowest, -2.0 - fast, 65),
                        torch.linspace(-2.0 - fast, self.diffusion._last_clock(), 97)[1:],
                    ]
                )
            x = x.to(self.diffusion.stationary_covariance)
            tau = x.exp()
            found, slope = self._coordinate(of, tau)
            return x, found, 1 / (tau * slope)

        with torch.no_grad():
            return self.diffusion._cached(f"table of {of}", build)


class FoundEnds:
    """The laws at the two ends, and how they follow their clock times as λ there is held.

    With Σ' = A Σ + Σ Aᵀ + g² and X = L^{-1} A L, one factorization gives the times (by Newton's
    step, see :meth:`Inversion.with_gradient`) and, by derivatives in time, all that is asked there:

        L' = L Φ(X + Xᵀ + L^{-1} g² L^{-T}),    k' = (-λ') k - Aᵀ k - Σ^{-1} g² k,

    Φ being the lower triangle with half of the diagonal, and k the readout.

    Args:
        roots: clock times τ of ε and T (2,), numbers, near where λ is the target.
        targets: λ at both, or (1,) at ε alone.
        a, Sigma, factor: at the roots, with gradients at given times.
        A, noise: the drift and g² per unit of clock time, without.
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
        """Whether little is left to the clock times.

        Laws are off by its square, their derivatives by itself, each times how fast these vary in
        log τ: about 1, and up to 1,000 where λ nearly pauses.
        """
        with torch.no_grad():
            left = self.clocks / self._roots[: len(self.clocks)] - 1
            return bool((left.abs() < 1e-9).all())

    def marginal(self, clocks: Tensor) -> Marginal:
        """The laws at ``clocks``, which are near the roots: with first derivatives alone."""
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
            k_rate = self._rate[:, None] * k - k @ A - _times(W.mT, _times(W, k @ noise))
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


def decay(factor: kernels.Factor, unit_noise: Tensor) -> Tensor:
    """-dλ/dτ = SNR kᵀ g² k."""
    root = (factor.log_snr / 2).exp()[..., None] * factor.readout
    if root.shape[-1] == 1:  # the square first: numbers stay what they have been, to the last bit
        return root[..., 0].square() * unit_noise[..., 0, 0]
    return (_times(unit_noise, root) * root).sum(-1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(…, K, K) and (…, K) -> (…, K)."""
    if matrix.dim() == 2:
        return vector @ matrix.mT
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def volume_rate(factor: kernels.Factor, unit_noise: Tensor) -> Tensor:
    """dκ/dτ = tr(Σ^{-1} g²)."""
    W = factor.whitener
    return ((W @ unit_noise) * W).sum((-2, -1))
