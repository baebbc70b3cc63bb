"""Kernels of linear diffusions by clock time, both ends, and times of given log SNR or volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.utils import parameters_to_vector

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.base import Marginal, UnreachableError, kept
from pyro_mdm.diffusions.clocks import Clock, Times, times_within
from pyro_mdm.diffusions.kernels import ConstantPropagator, Propagator, decay, volume_rate
from pyro_mdm.diffusions.matrices import MAX_AMPLIFICATION
from pyro_mdm.support.checks import check_number

__all__ = [
    "LinearProcess",
    "check_controllable",
    "check_precision",
    "factorization",
    "marginal_at",
    "positive_clock",
    "shown",
    "table_of",
    "targets",
    "unscaled_end",
    "CLOCK_END",
    "EndSettings",
    "Ends",
    "LOG_SNR",
    "LOG_VOLUME",
    "clock_at",
    "clocks_of_targets",
    "differentiable_once",
    "end_of_clock",
    "find_ends",
    "ClockTable",
    "reach_of",
    "root",
    "with_gradient",
]

CLOCK_END = "b(T)"
"""The name of the clock time of T, as it is kept."""
LOG_SNR, LOG_VOLUME = "log SNR", "log volume"
"""A coordinate that times are found by."""

EARLY, LATE = 32, 64
"""Numbers of knots of a table of λ."""
COARSE, FINE = 257, 1025
"""Numbers of knots of a table of κ, odd, so that every other one has both ends."""
MOST_STEPS = 60
"""Newton steps at most, each of which halves the bracket where it is no step of Newton's."""
NEAR, NEAR_ENOUGH = 1e-7, 1e-6
"""The size in log τ of a step after which the next one is below rounding, and of one after which
the next one but one is."""


T = TypeVar("T")


@dataclass(frozen=True)
class EndSettings:
    """λ(ε) and λ(T) as they are given, and how far each may be learned.

    Args:
        high: λ(ε).
        low: λ(T) that the clock is scaled to; None: the clock stays as it is.
        cut_time: ε as a time, instead of by ``high``.
        reach: how far λ(ε) and λ(T) may move, in units of log SNR; 0 holds an end fixed.

    Raises:
        TypeError, ValueError: ends that are not finite, in the wrong order or with ranges that
            meet; a range for an end that is not given.
    """

    high: float
    low: float | None = None
    cut_time: float | None = None
    reach: tuple[float, float] = (0.0, 0.0)

    def checked(self, horizon: float) -> EndSettings:
        """The ends as floats, checked for a diffusion that runs to ``horizon``."""
        high = check_number("max_log_snr", self.high, "a finite log SNR, e.g. 13")
        low, cut, reach = self.low, self.cut_time, self.reach
        if low is not None:
            low = check_number("min_log_snr", low, "a finite log SNR, e.g. -10")
        if low is not None and not low < high:
            raise ValueError(
                f"min_log_snr {low} must be below max_log_snr {high}: log SNR falls from the data "
                "to the noise; raise max_log_snr or lower min_log_snr"
            )
        if cut is not None:
            if not 0 < check_number("cut_time", cut, "a time in (0, T)") < horizon:
                raise ValueError(
                    f"cut_time is {cut}, expected a time between 0 and T = {horizon:g}"
                )
            if low is not None:
                raise ValueError(
                    f"cut_time is {cut} and min_log_snr {low}, expected one of them: min_log_snr "
                    "scales the clock, and so moves cut_time; give max_log_snr instead of cut_time"
                )
            if any(reach):
                raise ValueError(
                    f"learn_ends is {list(reach)}, but the diffusion is cut at the time {cut:g}; "
                    "give max_log_snr instead of cut_time"
                )
            cut = float(cut)
        if reach[1] and low is None:
            raise ValueError(
                f"min_log_snr is None, but λ(T) is learned within {reach[1]:g} of where it starts: "
                "λ(T) is left to the clock and has no range; give min_log_snr, e.g. -10, or "
                f"learn_ends=[{reach[0]:g}, 0]"
            )
        if low is not None and not low + reach[1] < high - reach[0]:
            raise ValueError(
                f"λ(ε) is learned down to {high - reach[0]:g} and λ(T) up to {low + reach[1]:g}, "
                "expected ranges that do not meet; lower learn_ends, or bring max_log_snr and "
                "min_log_snr further apart"
            )
        return EndSettings(high, low, cut, reach)

    def settings(self) -> dict[str, Any]:
        """Settings of the ends for a state dict."""
        return {"max_log_snr": self.high, "min_log_snr": self.low, "cut_time": self.cut_time}


def reach_of(learn_ends: float | Sequence[float]) -> tuple[float, float]:
    """The reach of both ends, given as one number or two.

    Raises:
        TypeError, ValueError: neither one number ≥ 0 nor two.
    """
    several = isinstance(learn_ends, Sequence)
    both = list(learn_ends) if several else [learn_ends] * 2  # type: ignore[arg-type]
    if len(both) != 2:
        raise ValueError(
            f"learn_ends is {learn_ends}, expected how far both ends may move, or one number for "
            "λ(ε) and one for λ(T), e.g. (1.0, 3.0)"
        )
    high, low = (check_number("learn_ends", r, "a reach in log SNR, e.g. 2.0") for r in both)
    if high < 0 or low < 0:
        raise ValueError(f"learn_ends is {learn_ends}, expected numbers ≥ 0 of log SNR, e.g. 2.0")
    return high, low


class Ends(NamedTuple):
    """The start and the end of a linear diffusion, found from its matrices and clock."""

    clocks: Tensor  # clock times of ε and T, (2,)
    start: Marginal  # of y_ε given x
    terminal: Marginal  # of y_T given x


class ProcessMatrices(Protocol):
    """The matrices of a linear diffusion."""

    remedy: str
    searched: int | None

    @property
    def when(self) -> str: ...
    @property
    def check_times(self) -> Times: ...
    def search_range(self, move: Propagator) -> tuple[float, float]: ...
    def at(self, name: str, s: Times) -> Tensor: ...
    def drift(self, s: Times | None = None) -> Tensor: ...
    def noise(self, s: Times | None = None) -> Tensor: ...
    def rates(self, s: Times | None = None) -> tuple[Tensor, Tensor]: ...
    def clocks(self, targets: Tensor) -> Tensor: ...
    def end_clock(self) -> Tensor: ...
    def without(self, name: str) -> TypeError: ...


class ProcessPrior(Protocol):
    """The prior of a linear diffusion."""

    sets_units: bool

    def shown(self) -> dict[str, Tensor]: ...
    def advice(self) -> str: ...


class LinearProcess(Protocol):
    """What the parts of a :class:`~pyro_mdm.LinearDiffusion` ask it, and of each other."""

    num_variables: int
    horizon: float
    beta: Clock
    has_graph: bool
    values: dict[str, Any]
    initial_covariance: Tensor

    def solved(self) -> LinearProcess: ...
    @property
    def given_ends(self) -> EndSettings: ...
    @property
    def matrices(self) -> ProcessMatrices: ...
    @property
    def prior_part(self) -> ProcessPrior: ...
    @property
    def propagator(self) -> Propagator: ...
    @property
    def prior_covariance(self) -> Tensor: ...
    @property
    def Q(self) -> Tensor: ...
    @property
    def D(self) -> Tensor: ...
    @property
    def min_log_snr(self) -> float | None: ...
    @property
    def terminal(self) -> Marginal: ...
    @property
    def ends(self) -> Ends: ...
    def clock(self, s: Times) -> Tensor: ...
    def rate(self, s: Times) -> Tensor: ...
    def time_at_clock(self, tau: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def get_parameter(self, name: str) -> nn.Parameter: ...
    def register_parameter(self, name: str, value: nn.Parameter | None) -> None: ...
    def get_buffer(self, name: str) -> Tensor: ...
    def register_buffer(self, name: str, value: Tensor | None) -> None: ...


# -- kernels by clock time -------------------------------------------------------------------------


def positive_clock(linear: LinearProcess, s: Times) -> Tensor:
    """The clock time of s in (0, T], like s. Raises ValueError outside."""
    s = times_within(linear.horizon, "s", s)
    if not bool((s > 0).all()):
        raise ValueError(
            "the distribution of y_s given x at s = 0, where y holds x itself: Σ is singular "
            "and log SNR infinite; use s > 0, e.g. the start_time ε"
        )
    return linear.clock(s)


def factorization(
    linear: LinearProcess, tau: Tensor, what: str = ""
) -> tuple[Tensor, Tensor, kernels.Factor]:
    """a, Σ and the factorization of Σ at clock times τ (…), with the growth of rounding.

    Args:
        what: the value, in words, whose digits are checked; empty: none.

    Raises:
        KernelPrecisionError: float64 cannot hold it.
    """
    units = torch.ones_like(linear.initial_covariance[0])
    if linear.prior_part.sets_units:
        units = linear.prior_covariance.detach().diagonal().sqrt()
    a, Sigma, factor = linear.propagator.factorized(tau, linear.initial_covariance, units)
    if what and not bool((factor.amplification <= MAX_AMPLIFICATION).all()):
        check_precision(linear, factor.amplification, tau, what)
    return a, Sigma, factor


def marginal_at(linear: LinearProcess, tau: Tensor) -> Marginal:
    """The distribution of y given x at clock times τ (…).

    Raises:
        KernelPrecisionError: float64 cannot hold it.
    """
    a, Sigma, factor = factorization(linear, tau, "the marginal covariance")
    L = kernels.lower_triangular(factor.root)
    return Marginal(a, Sigma, L, factor.readout, factor.log_snr, factor.log_det)


def check_controllable(linear: LinearProcess) -> None:
    """Raises UnreachableError unless noise reaches all variables."""
    with torch.no_grad():
        rates = linear.matrices.rates(linear.matrices.check_times)
        basis, _ = kernels.noise_basis(*rates, tolerance=1e-10)
    if (reached := basis.shape[1]) < linear.num_variables:
        raise UnreachableError(
            f"{type(linear).__name__}: noise reaches {reached} of {linear.num_variables} variables "
            f"with {shown(linear)}: (A, G) is not controllable{linear.prior_part.advice()}"
        )


def check_precision(linear: LinearProcess, growth: Tensor, tau: Tensor, what: str) -> None:
    """Raises KernelPrecisionError where rounding errors grow beyond the digits of float64."""
    if bool((growth <= MAX_AMPLIFICATION).all()):
        return
    check_controllable(linear)  # a more specific error than one of precision
    worst = int(growth.flatten().argmax())
    s = linear.time_at_clock(tau.detach()).expand(growth.shape).flatten()[worst].item()
    raise kernels.KernelPrecisionError(
        f"{type(linear).__name__}: float64 cannot hold {what} at s = {s:.3g} (rounding grows by "
        f"{growth.max().item():.1e}, expected at most {MAX_AMPLIFICATION:.0e}); lower "
        "max_log_snr, take longer steps, or bring the time scales of its matrices together"
    )


def shown(linear: LinearProcess) -> str:
    """The matrices in numbers, for messages."""
    return ", ".join(
        f"{name}{linear.matrices.when} = "
        f"{[[float(f'{v:.4g}') for v in row] for row in matrix.tolist()]}"
        for name, matrix in linear.prior_part.shown().items()
    )


# -- both ends -------------------------------------------------------------------------------------


def find_ends(linear: LinearProcess) -> Ends:
    """The ends of a linear diffusion at its parameters, differentiable in these.

    Raises:
        UnreachableError: a log SNR that is not reached, or a start that is not before T.
        KernelPrecisionError: kernels that float64 cannot hold.
    """
    cut = linear.given_ends.cut_time
    if linear.has_graph and not linear.matrices.searched:
        clocks, mean, covariance, factor = _learned_ends(linear)
    else:  # derivatives of cells are their own
        start = clocks_of_targets(linear)[0] if cut is None else linear.clock(cut)
        clocks = torch.stack([start, linear.matrices.end_clock()])
        mean, covariance, factor = factorization(linear, clocks)
    if cut is None and not bool(clocks[0] < clocks[1]):
        raise _nothing_left(linear)
    if not bool((factor.amplification <= MAX_AMPLIFICATION).all()):
        check_precision(linear, factor.amplification, clocks, "the marginal covariance")
    L = kernels.lower_triangular(factor.root)
    fields = (mean, covariance, L, factor.readout, factor.log_snr, factor.log_det)
    first, last = map(Marginal._make, zip(*map(torch.unbind, fields), strict=True))
    wanted = targets(linear)  # λ is what was asked for, without the rounding of its search
    if cut is None:
        first = first._replace(log_snr=wanted[0])
    if len(wanted) > 1:
        last = last._replace(log_snr=wanted[1])
    return Ends(clocks, first, last)


def _learned_ends(linear: LinearProcess) -> tuple[Tensor, Tensor, Tensor, kernels.Factor]:
    """Clock times of ε and T, a and Σ there and the factor of Σ, of constant matrices.

    They are evaluated at numbers near ε and T. One Newton step from there has the gradients of ε
    and T, and the derivatives in τ move all else along.
    """
    cut, wanted = linear.given_ends.cut_time, torch.stack(targets(linear))
    n = 0 if cut is not None else len(wanted)
    tau = root(linear, wanted, near=NEAR_ENOUGH) if n else wanted[:0]
    given = wanted[:0]
    if n < 2:  # the clock is its own
        end = unscaled_end(linear)[None]
        given = end if cut is None else torch.cat([linear.clock(cut)[None], end])
        tau = torch.cat([tau, given.detach()])
    a, Sigma, factor = factorization(linear, tau)
    F, W, log_snr, k, log_det, _ = factor
    with torch.no_grad():  # derivatives in τ, as numbers
        A, noise = linear.propagator.drift(tau), linear.propagator.noise(tau)
        column, readout = a[..., None], k[..., None]
        drawn, white, fall = A @ Sigma, W @ noise, decay(factor, noise)
        by_readout = fall[:, None, None] * readout - A.mT @ readout - W.mT @ (white @ readout)
        by_volume = (white * W).sum((-2, -1)) + 2 * A.diagonal(dim1=-2, dim2=-1).sum(-1)
        by_mean, by_root = (A @ column)[..., 0], A @ F + white.mT / 2
        by_covariance = drawn + drawn.mT + noise
    shift = given - given.detach()
    if n:
        shift = torch.cat([differentiable_once((wanted - log_snr[:n]) / -fall[:n]), shift])
    more = shift[:, None]
    moved = factor._replace(
        root=F + by_root * more[..., None],
        readout=k + by_readout[..., 0] * more,
        log_snr=log_snr - fall * shift,
        log_det=log_det + by_volume * shift,
    )
    return tau + shift, a + by_mean * more, Sigma + by_covariance * more[..., None], moved


def targets(linear: LinearProcess) -> tuple[Tensor, ...]:
    """λ(ε) and, if it is given, λ(T), 0-dim, as they are given and moved by what is learned."""
    given = linear.given_ends
    levels = [given.high] if given.low is None else [given.high, given.low]
    values = torch.tensor(levels, dtype=torch.float64, device="cpu")
    if any(given.reach):
        n, moved = len(levels), linear.get_parameter("moved_ends")
        values = values + values.new_tensor(given.reach[:n]) * torch.tanh(moved[:n])
    return values.unbind()


def clocks_of_targets(linear: LinearProcess) -> Tensor:
    """Clock times of :func:`targets`, (1,) or (2,). Raises UnreachableError."""
    linear, wanted = linear.solved(), targets(linear)
    if linear.has_graph and linear.matrices.searched is None:
        return linear.ends.clocks[: len(wanted)]
    return kept(linear, "clocks", partial(linear.matrices.clocks, torch.stack(wanted)))


def unscaled_end(linear: LinearProcess) -> Tensor:
    """The clock time of T before the clock is scaled, 0-dim."""
    return kept(linear, CLOCK_END, partial(end_of_clock, linear))


def end_of_clock(linear: LinearProcess) -> Tensor:
    """b(T) of the clock as it is given, 0-dim."""
    return linear.beta.integral(torch.tensor(linear.horizon, dtype=torch.float64, device="cpu"))


# -- inversion -------------------------------------------------------------------------------------


def clock_at(linear: LinearProcess, value: Tensor, name: str) -> Tensor:
    """The clock time τ at which λ or κ, by its name, has a value, like it; differentiable.

    Raises:
        UnreachableError: a λ that is not reached.
    """
    linear = linear.solved()
    if not (linear.has_graph or value.requires_grad) or not torch.is_grad_enabled():
        return root(linear, value, name)
    # the step that carries the gradient is one of Newton's too
    return with_gradient(linear, root(linear, value, name, NEAR_ENOUGH), value, name)


def with_gradient(linear: LinearProcess, tau: Tensor, value: Tensor, name: str = LOG_SNR) -> Tensor:
    """τ with gradients, from the root τ for ``value`` as a number: one Newton step."""
    here, slope = _coordinate(linear, linear.propagator, name, tau)
    wanted = -value if name == LOG_SNR else value
    return tau + differentiable_once((wanted - here) / slope.detach())


def root(linear: LinearProcess, value: Tensor, name: str = LOG_SNR, near: float = NEAR) -> Tensor:
    """The τ with λ(τ) or κ(τ) = value, without a gradient, by safe steps in log τ.

    Args:
        near: the size in log τ of a step after which no other follows.

    Raises:
        FloatingPointError: parameters or values that are not finite.
        UnreachableError: a λ that is not reached.
    """
    values = parameters_to_vector([value.flatten(), *linear.parameters()])
    if not bool(values.isfinite().all()):
        raise FloatingPointError(
            "the matrices, clock or ends of the diffusion have "
            f"{int((~values.isfinite()).sum())} parameters that are NaN or infinite, expected "
            "finite numbers; lower the learning rate of the diffusion, or clip its gradients"
        )
    table = kept(linear, f"table of {name}", partial(table_of, linear, name))
    with torch.no_grad():
        wanted = value.flatten() * (-1 if name == LOG_SNR else 1)
        room = 1e-9 * (1 + table.last.abs())
        inside = (wanted >= table.first - room) & (wanted <= table.last + room)
        if name == LOG_SNR and not bool(inside.all()):
            raise _unreachable(linear, -wanted[~inside][0].item(), table)
        # the knot before each log τ, its cubic Hermite interpolation, and the knot after
        i = torch.searchsorted(table.levels, wanted).clamp(1, len(table.levels) - 1)
        low, before, first = table.knots[i - 1], table.levels[i - 1], table.slope[i - 1]
        high, after, last = table.knots[i], table.levels[i], table.slope[i]
        h = after - before
        u = ((wanted - before) / h).clamp(0, 1)
        v = 1 - u
        x = v * v * (1 + 2 * u) * low + u * u * (1 + 2 * v) * high
        x = x + u * v * h * (v * first - u * last)
        x = torch.maximum(torch.minimum(x, high), low)
        for _ in range(MOST_STEPS):
            if not bool(x.isfinite().all()):
                raise _unreachable(linear, -wanted[0].item())  # nothing is known beside it
            tau = x.exp()
            here, slope = _coordinate(linear, table.move, name, tau)
            error = here - wanted
            step = -error / (tau * slope)
            low, high = torch.where(error < 0, x, low), torch.where(error < 0, high, x)
            inside = (x + step >= low) & (x + step <= high)
            previous, x = x, torch.where(inside, x + step, (low + high) / 2)
            if bool((((x - previous).abs() < near) & (error.abs() < 10 * near)).all()):
                break  # the next Newton step is below rounding
        return x.exp().reshape(value.shape)


def _coordinate(
    linear: LinearProcess, move: Propagator, name: str, tau: Tensor
) -> tuple[Tensor, Tensor]:
    """-λ or κ at clock times τ, both increasing, and its derivative in τ."""
    *_, factor = move.factorized(tau, linear.initial_covariance)
    if name == LOG_VOLUME:
        volume = factor.log_det - 2 * move.trace(None, tau)
        return volume, volume_rate(factor, move.noise(tau))
    return -factor.log_snr, decay(factor, move.noise(tau))


@torch.no_grad()
def table_of(linear: LinearProcess, name: str) -> ClockTable:
    """A table of λ from far below ε to far past T, or of κ from ε to T."""
    move = linear.propagator
    if name == LOG_VOLUME:
        # a table that stays is the finest; one that a step of training makes is not
        constant = isinstance(move, ConstantPropagator)
        learned = any(p.requires_grad for p in linear.parameters())
        first, last = linear.ends.clocks.log()
        way = torch.linspace(0, 1, FINE if constant and not learned else COARSE, device="cpu")
        x = torch.lerp(first, last, way.to(first))
    else:
        # λ falls like -log τ at the least for τ → 0, and like the slowest mode late
        fast, last_clock = linear.matrices.search_range(move)
        highest = linear.given_ends.high + linear.given_ends.reach[0]
        early, middle = -max(highest + 10.0, 80.0) - fast, -2.0 - fast
        first = (middle - early) * torch.linspace(-1, 0, EARLY, device="cpu") ** 3 + middle
        late = torch.linspace(middle, last_clock, LATE + 1, device="cpu")
        x = torch.cat([first, late[1:]]).to(linear.initial_covariance)
    tau = x.exp()
    levels, slope = _coordinate(linear, move, name, tau)
    # so early that nothing is left of its digits λ may be any number, and no value is sought there
    levels = levels.nan_to_num(torch.inf, torch.inf, -torch.inf).flip(0).cummin(0).values.flip(0)
    slope = 1 / (tau * slope)
    reached = levels[slope.isfinite() & levels.isfinite()]
    first, last = reached[[0, -1]] if len(reached) else x.new_full((2,), torch.nan)
    return ClockTable(x, levels, slope, move, first, last)


class ClockTable(NamedTuple):
    """log τ as a function of a coordinate, which increases."""

    knots: Tensor  # log τ (n,)
    levels: Tensor  # the coordinate there
    slope: Tensor  # d log τ by d coordinate
    move: Propagator
    first: Tensor  # the least and largest coordinate that is reached, 0-dim; NaN for none
    last: Tensor


def differentiable_once(value: Tensor) -> Tensor:
    """The value, whose gradient raises an error where it is differentiated by what gave the value.

    It is for roots that have the gradient of one Newton step, and for values with a Jacobian of
    numbers. Their gradients may still be differentiated by all else.
    """
    if not value.requires_grad:
        return value
    result = value.view_as(value)
    result.register_hook(partial(_once, value))
    return result


def _once(value: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a value, which is refused where it is differentiated by the value."""
    if not torch.is_grad_enabled():
        return grad
    refused: Tensor = _Refused.apply(value)
    return torch.where(torch.ones_like(grad, dtype=torch.bool), grad, refused)


class _Refused(torch.autograd.Function):
    """A value that has no derivative; the engine asks for it only where it is needed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> NoReturn:
        raise RuntimeError(
            "a second derivative by the ends or matrices of a diffusion was asked for, and times "
            "at given log SNRs have first derivatives only; hold the diffusion fixed, "
            "diffusion.requires_grad_(False), or take differences of first derivatives"
        )


# -- errors ----------------------------------------------------------------------------------------


def _unreachable(
    linear: LinearProcess, value: float, table: ClockTable | None = None
) -> UnreachableError:
    """The error for a value of λ that is not between those of a table."""
    reach = "none is"
    if table is not None and bool(table.first.isfinite()):
        reach = f"it is followed from {-table.first.item():.1f} down to {-table.last.item():.1f}"
    check_controllable(linear)
    names = dict(zip(map(float, targets(linear)), ("max_log_snr", "min_log_snr"), strict=False))
    name = names.get(value, "log SNR")
    one_curve = linear.matrices.searched and name == "max_log_snr"
    if one_curve and not value > _last_log_snr(linear):
        return _nothing_left(linear)
    return UnreachableError(
        f"{type(linear).__name__}: {name} {value:g} is out of reach of float64, "
        f"whatever the clock: with {shown(linear)} {reach}; ask for a log SNR between "
        f"these, or bring the time scales of its matrices together{linear.matrices.remedy}"
    )


def _nothing_left(linear: LinearProcess) -> UnreachableError:
    """The error for a start that is not before T."""
    check_controllable(linear)
    return UnreachableError(
        f"max_log_snr is {float(targets(linear)[0]):g}, but log SNR ends at "
        f"{_last_log_snr(linear):.6g} with {shown(linear)}: nothing is left between the start time "
        f"and T; use a faster clock, or set min_log_snr{linear.matrices.remedy}"
    )


def _last_log_snr(linear: LinearProcess) -> float:
    """λ where the clock ends."""
    _, _, factor = factorization(linear, linear.clock(linear.horizon))
    return float(factor.log_snr.detach())
