"""Clock times of a linear diffusion at which log SNR or log volume has given values."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Times
from pyro_mdm.diffusions.closed import OneBlock
from pyro_mdm.diffusions.first_order import differentiable_once
from pyro_mdm.diffusions.propagator import ConstantPropagator
from pyro_mdm.support.late_checks import check_values

__all__ = ["LOG_SNR", "LOG_VOLUME", "Inversion"]

LOG_SNR, LOG_VOLUME = "log SNR", "log volume"
"""A coordinate that times are found by."""

KNOTS = 96
"""The number of late knots of a table of λ."""
COARSE, FINE = 257, 1025
"""Numbers of knots of a table of κ, odd, so that every other one has both ends."""
MOST_STEPS = 60
"""Newton steps at most, each of which halves the bracket where it is no step of Newton's."""
NEAR = 1e-7
"""The size in log τ of a step after which the next one is below rounding."""
ROUNDED = 1e-12
"""An error in log τ that is taken for rounding."""


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

        def limits() -> tuple[Tensor, Tensor]:
            low, high = self.linear.log_volume_ends
            room = 1e-9 * (1 + low.abs() + high.abs())
            return low - room, high + room

        with torch.no_grad():
            inside = wanted.clamp(*self.linear.kept("limits of log volume", limits)) == wanted
        check_values(inside.all(), partial(self._report_log_volume, wanted, inside))
        s: Tensor = self.linear.time_at_clock(self.clock_at(wanted, LOG_VOLUME))
        return s

    def _report_log_volume(self, wanted: Tensor, inside: Tensor) -> None:
        with torch.no_grad():
            low, high = self.linear.log_volume_ends.tolist()
        raise ValueError(
            f"log volume {wanted.detach()[~inside][0].item():.6g} is not between that of ε, "
            f"{low:.6g}, and of T, {high:.6g}; see log_volume_ends"
        )

    def _coordinate(self, name: str, tau: Tensor) -> tuple[Tensor, Tensor]:
        """-λ or κ at clock times τ, and its derivative in τ."""
        move, initial = self.linear.propagator, self.linear.initial_covariance
        if name == LOG_VOLUME:  # which is asked for between ε and T alone
            value, slope = move.log_volume(tau, initial, self.linear.end_laws.latest(move))
            return value, slope
        value, slope = move.log_snr(tau, initial)
        return -value, slope

    def root(self, value: Tensor, name: str = LOG_SNR) -> Tensor:
        """The τ with λ(τ) or κ(τ) = value, by safe steps in log τ.

        Args:
            value: a value of the coordinate with this name.
        """
        with torch.no_grad():
            wanted = value.detach().flatten() * (-1 if name == LOG_SNR else 1)
            table = self._table(name)
            if name == LOG_SNR:
                self._check_reached(-wanted, -table.levels[table.slope.isfinite()])
            low, x, high = table.interpolated(wanted)
            for _ in range(MOST_STEPS if table.steps is None else table.steps):
                if table.steps is None and not bool(x.isfinite().all()):
                    self._check_reached(-wanted, wanted[:0])  # nothing is known beside it
                error, step = self._newton(x, wanted, name)
                low, high = torch.where(error < 0, x, low), torch.where(error < 0, high, x)
                inside = (x + step >= low) & (x + step <= high)
                previous, x = x, torch.where(inside, x + step, (low + high) / 2)
                near = ((x - previous).abs() < NEAR) & (error.abs() < 10 * NEAR)
                if table.steps is None and bool(near.all()):
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
        return tau + differentiable_once((wanted - here) / slope.detach())

    def is_learned(self, value: Tensor) -> bool:
        """Whether the time of a ``value`` of λ or κ has a gradient."""
        return value.requires_grad or self.linear.is_learned()

    def _knots(self, name: str) -> Tensor:
        """log τ for λ from far below ε to far past T, for κ from ε to T."""
        if name == LOG_VOLUME:
            ends = self.linear.end_laws
            # a table that stays is the finest; one that a step of training makes is not
            constant = isinstance(self.linear.propagator, ConstantPropagator)
            number = FINE if constant and not self.linear.is_learned() else COARSE
            way = torch.linspace(0, 1, number, dtype=torch.float64)
            first, last = ends.start_clock().log(), ends.terminal_clock().log()
            return torch.lerp(first, last, way.to(first.device))
        # λ falls like -log τ at the least for τ → 0, and like the slowest mode late
        fast = self.linear.matrices.fast()
        early, middle = -max(self.linear.max_log_snr + 10.0, 80.0) - fast, -2.0 - fast
        late = torch.linspace(middle, self.linear.matrices.last_clock(), KNOTS + 1)[1:]
        x = torch.cat([torch.linspace(early, middle, 65), late])
        return x.to(self.linear.initial_covariance)

    def _table(self, name: str) -> _Table:

        def build() -> _Table:
            x = self._knots(name)
            tau = x.exp()
            coordinate, slope = self._coordinate(name, tau)
            table = _Table(x, coordinate, 1 / (tau * slope))
            return table if name == LOG_SNR else table.measured()

        with torch.no_grad():
            table: _Table = self.linear.kept(f"table of {name}", build)
            return table


class _Table(NamedTuple):
    """log τ as a function of a coordinate, which increases."""

    knots: Tensor  # log τ (n,)
    levels: Tensor  # the coordinate there
    slope: Tensor  # d log τ by d coordinate
    steps: int | None = None
    """Newton steps from what is interpolated to rounding; None: not known before they are made."""

    def interpolated(self, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The knot before each log τ (m,), its cubic Hermite interpolation, and the knot after."""
        knots, levels, slope = self.knots, self.levels, self.slope
        i = torch.searchsorted(levels, wanted).clamp(1, len(levels) - 1)
        low, high = knots[i - 1], knots[i]
        h = levels[i] - levels[i - 1]
        u = ((wanted - levels[i - 1]) / h).clamp(0, 1)
        x = (
            (1 + 2 * u) * (1 - u) ** 2 * low
            + u**2 * (3 - 2 * u) * high
            + u * (1 - u) * h * ((1 - u) * slope[i - 1] - u * slope[i])
        )
        return low, torch.maximum(torch.minimum(x, high), low), high

    def measured(self) -> _Table:
        """The table with its steps, by how far every other knot misses those between.

        With all knots the error is a sixteenth; half of that is taken off for what they miss.
        """
        all_knots = (self.knots, self.levels, self.slope)
        knots, levels, slope = (t[::2].contiguous() for t in all_knots)
        half = _Table(knots, levels, slope)
        _, x, _ = half.interpolated(self.levels[1::2].contiguous())
        error, steps = (x - self.knots[1::2]).abs().max().item() / 8, 0
        while not error < ROUNDED and steps < MOST_STEPS:
            # twice the square, as Newton's error is about half the change of the logarithmic slope
            error, steps = (2 * error**2 if error < 0.1 else error / 2), steps + 1
        return self._replace(steps=steps)
