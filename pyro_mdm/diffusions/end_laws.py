"""Both ends of a linear diffusion: where they are in clock time, and the kernels there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Marginal, UnreachableError
from pyro_mdm.diffusions.closed import OneBlock
from pyro_mdm.diffusions.ends import Ends
from pyro_mdm.diffusions.first_order import differentiable_once
from pyro_mdm.diffusions.host_ends import ends_on_host
from pyro_mdm.diffusions.matrices import MAX_AMPLIFICATION
from pyro_mdm.diffusions.propagator import ConstantPropagator, Propagator
from pyro_mdm.support.late_checks import check_values

__all__ = ["EndLaws"]

T = TypeVar("T")


class EndLaws:
    """The start and the end of a linear diffusion, found from λ there or from times.

    Args:
        linear: the linear diffusion that starts and stops there. It holds the parameter of
            learned ends, ``ends``.
        given: the ends as they are given.
    """

    def __init__(self, linear: OneBlock, given: Ends) -> None:
        self.linear: Any = linear
        self.given = given

    def _kept(self, name: str, compute: Callable[[], T]) -> T:
        value: T = self.linear.kept(name, compute)
        return value

    @property
    def terminal_log_snr(self) -> Tensor:
        """λ(T), 0-dim: the information about the data that is left at the prior.

        A constant where ``min_log_snr`` is given and not learned.
        """
        if self.given.low is not None:
            return self._targets()[1]
        return self.terminal.log_snr

    @property
    def max_log_snr(self) -> float:
        """λ at the start time ε; with a ``cut_time`` it follows the diffusion."""
        if self.cut_time is None and not self.given.reach[0]:
            return self.given.high
        with torch.no_grad():
            return float(self.start_log_snr)

    @max_log_snr.setter
    def max_log_snr(self, value: float) -> None:
        self.set(value, self.min_log_snr)

    @property
    def start_log_snr(self) -> Tensor:
        return self._targets()[0] if self.cut_time is None else self.start.log_snr

    @property
    def min_log_snr(self) -> float | None:
        if self.given.low is None or not self.given.reach[1]:
            return self.given.low
        with torch.no_grad():
            return float(self._targets()[1])

    @min_log_snr.setter
    def min_log_snr(self, value: float | None) -> None:
        self.set(self.max_log_snr, value)

    @property
    def learns_ends(self) -> bool:
        return any(self.given.reach)

    def targets(self) -> Tensor:
        """λ(ε) and, if the clock is scaled to it, λ(T): (1,) or (2,)."""

        def compute() -> Tensor:
            moved: Tensor | None = getattr(self.linear, "ends", None)
            targets: Tensor = self.linear.as_tensor(self.given.values(moved))
            return targets

        return self._kept("targets", compute)

    def _targets(self) -> tuple[Tensor, ...]:
        """:meth:`targets` one by one, 0-dim."""
        return self._kept("each target", lambda: self.targets().unbind())

    def set(self, high: float, low: float | None) -> None:
        """Set both ends by λ; learned ones start anew there."""
        ends = Ends(high, low, reach=self.given.reach).checked(self.linear.horizon)
        self.linear.forget()
        self.given = ends
        if any(ends.reach):
            with torch.no_grad():
                self.linear.ends.zero_()

    @property
    def cut_time(self) -> float | None:
        """ε, if it was given as a time; None once an end is set by its log SNR."""
        return self.given.cut_time

    @property
    def start_time(self) -> Tensor:
        """ε, 0-dim: the time at which log SNR equals ``max_log_snr``, or ``cut_time``."""
        start: Tensor
        start = self._kept("start_time", lambda: self.linear.inverse_clock(self.start_clock()))
        return start

    @property
    def start(self) -> Marginal:
        return self._both()[0]

    @property
    def terminal(self) -> Marginal:
        return self._both()[1]

    def _both(self) -> tuple[Marginal, Marginal]:
        def compute() -> tuple[Marginal, Marginal]:
            start, terminal = zip(*(field.unbind() for field in self.laws()), strict=True)
            return Marginal(*start), Marginal(*terminal)

        return self._kept("both ends", compute)

    def laws(self) -> Marginal:
        """The marginals at ε and T, (2, …)."""

        def compute() -> Marginal:
            if (ends := self._from_host()) is not None:
                return ends[1]
            clocks = torch.stack([self.start_clock(), self.terminal_clock()])
            law: Marginal = self.linear.clock_marginal(clocks)
            return law

        return self._kept("ends", compute)

    def _from_host(self) -> tuple[Tensor, Marginal] | None:
        """The clock times of ε and T and the kernels there, where matrices are learned and λ is
        given at one or both; they have first derivatives only."""
        if self.cut_time is not None or not self.linear.is_learned():
            return None

        def compute() -> tuple[Tensor, Marginal] | None:
            move, targets = self.linear.propagator, self.targets()
            if not isinstance(move, ConstantPropagator):
                return None
            # the clock of a T whose λ is not given
            rest = () if self.given.low is not None else (self.terminal_clock(),)
            A, noise = move.drift(targets), move.noise(targets)
            matrices = A, noise, self.linear.initial_covariance, self.linear.units()
            with torch.no_grad():
                find = partial(ends_on_host, *matrices, targets, *rest)
                host = self._kept("ends on the host", find)
                if host is None:
                    return None
                # so that nobody asks the device for these again
                self._kept("latest clock", lambda: host.clocks[1])
                move.sizes, move.speed = host.sizes, A.new_tensor(host.sizes[1])
            if not host.clocks[0] < host.clocks[1]:
                self._report_order()
            if max(host.growth) > MAX_AMPLIFICATION:
                growth, clocks = (A.new_tensor(n) for n in (host.growth, host.clocks))
                self.linear.check_precision(growth, clocks, "the marginal covariance")
            # the change is zero, with the gradients of what the values are computed from
            ends = torch.cat([targets, *(clock.reshape(1) for clock in rest)])
            both = torch.cat([A.flatten(), noise.flatten()]).expand(2, -1)
            given = torch.cat([both, ends.unsqueeze(-1)], -1)
            change = (differentiable_once(given) - given.detach()).unsqueeze(-1)
            row = torch.baddbmm(host.values.unsqueeze(-1), host.slopes, change).squeeze(-1)
            K = len(A)
            clocks, a, Sigma, L, k, log_snr, log_det = row.split([1, K, K * K, K * K, K, 1, 1], -1)
            square = (2, K, K)
            law = Marginal(a, Sigma.view(square), L.view(square), k, log_snr[:, 0], log_det[:, 0])
            return clocks[:, 0], law

        return self._kept("ends by the host", compute)

    def start_clock(self) -> Tensor:
        """The clock time of ε, 0-dim."""
        if self.cut_time is not None:
            cut: Tensor = self.linear.clock(self.cut_time)
            return cut
        if (ends := self._from_host()) is not None:
            return ends[0][0]
        start, end = self.clocks()[0], self.terminal_clock()
        check_values(start.detach() < end.detach(), self._report_order)
        return start

    def _report_order(self) -> None:
        raise self.nothing_left()

    def terminal_clock(self) -> Tensor:
        """The clock time of T, 0-dim."""
        end: Tensor
        end = self._kept("terminal clock", lambda: self.linear.clock(self.linear.horizon))
        return end

    def latest(self, move: Propagator) -> float | None:
        """The clock time of T as a number, for which a device is asked once; None for matrices that
        vary in time, whose propagators do not need it."""
        if not isinstance(move, ConstantPropagator):
            return None
        with torch.no_grad():
            return self._kept("latest clock", lambda: self.terminal_clock().item())

    def clocks(self) -> Tensor:
        """Clock times of ``max_log_snr`` and, if given, ``min_log_snr``: (1,) or (2,)."""

        def compute() -> Tensor:
            if (ends := self._from_host()) is not None:
                return ends[0][: len(self.targets())]
            targets, n = self.targets(), self.linear.matrices.searched
            inversion = self.linear.inversion
            end = self.linear.clock(self.linear.horizon).reshape(1) if n is not None else None
            with torch.no_grad():
                roots = self._kept("roots", lambda: inversion.root(targets[:n]))
            clocks = inversion.with_gradient(roots, targets[:n])
            return clocks if end is None or len(targets) == n else torch.cat([clocks, end])

        return self._kept("end_clocks", compute)

    @property
    def log_volume_ends(self) -> Tensor:

        def compute() -> Tensor:
            tau = torch.stack([self.start_clock(), self.terminal_clock()])
            ends: Tensor = self.laws().log_det - 2 * self.linear.propagator.trace(None, tau)
            return ends

        return self._kept("log_volume_ends", compute)

    def clock_scale(self) -> Tensor:
        """The number that β is multiplied by, 0-dim."""

        def scale() -> Tensor:
            end: Tensor = self.linear.beta.integral(self.linear.as_tensor(self.linear.horizon))
            if self.given.low is None:
                return torch.ones_like(end)
            matrices = self.linear.matrices
            scaled = self.clocks()[1] if matrices.searched is None else matrices.end_clock()
            return scaled / end

        return self._kept("clock_scale", scale)

    # -- errors ------------------------------------------------------------------------------------

    def unreachable(self, log_snr: float, reach: str) -> UnreachableError:
        """The error for a λ that is not reached, given what is."""
        self.linear.check_controllable()
        names = {self.max_log_snr: "max_log_snr", self.min_log_snr: "min_log_snr"}
        name = names.get(log_snr, "log SNR")
        one_curve = self.linear.matrices.searched and name == "max_log_snr"
        if one_curve and not log_snr > self._last_log_snr():
            return self.nothing_left()
        return UnreachableError(
            f"{type(self.linear).__name__}: {name} {log_snr:g} is out of reach of float64, "
            f"whatever the clock: with {self.linear.shown()} {reach}; ask for a log SNR between "
            "these, or bring the time scales of its matrices together"
            f"{self.linear.matrices.remedy}"
        )

    def nothing_left(self) -> UnreachableError:
        """The error for a start that is not before T."""
        self.linear.check_controllable()
        return UnreachableError(
            f"max_log_snr is {self.max_log_snr:g}, but log SNR ends at {self._last_log_snr():.6g} "
            f"with {self.linear.shown()}: nothing is left between the start time and T; use a "
            f"faster clock, or set min_log_snr{self.linear.matrices.remedy}"
        )

    def _last_log_snr(self) -> float:
        """λ where the clock ends."""
        _, _, factor = self.linear.factorization(self.linear.clock(self.linear.horizon))
        return float(factor.log_snr.detach())
