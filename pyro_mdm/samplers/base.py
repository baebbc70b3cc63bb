"""The base class of samplers, steps by a diffusion and a score, and the grids of their times."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, singledispatch
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import (
    Cap,
    Diffusion,
    SimulationError,
    UnsupportedDiffusionError,
    require,
)
from pyro_mdm.diffusions.clocks import even_times, log_snr_times
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.ends import factorization
from pyro_mdm.diffusions.kernels import Factor
from pyro_mdm.diffusions.linear import LinearDiffusion, linear_of
from pyro_mdm.paths.base import BoundScore
from pyro_mdm.randomness import for_data, normal_for_data
from pyro_mdm.scores.base import (
    Coefficients,
    Score as Parameterization,
    check_process,
    coefficients,
    project,
)
from pyro_mdm.support.checks import (
    Count,
    check_count,
    check_finite,
    check_values,
    check_weights,
    checked_arguments,
    describe,
    real_tensor,
    settle,
    tensor_device,
)
from pyro_mdm.support.modules import CompiledFunction
from pyro_mdm.support.progress import Progress, progress_bar
from pyro_mdm.support.settings import Recorded

__all__ = [
    "Plan",
    "GRIDS",
    "Grid",
    "Progressing",
    "NEED",
    "check_grid",
    "even_in_information",
    "check_need",
    "given_times",
    "information_grid",
    "interpolated",
    "karras_grid",
    "log_snr_grid",
    "log_volume_grid",
    "quadratic_grid",
    "simulation_grid",
    "tabulated",
    "At",
    "LIMIT",
    "Noise",
    "Questions",
    "Sampler",
    "Watch",
    "check_size",
]


LIMIT = 1e6
"""A state beyond this has exploded."""

Plan = TypeVar("Plan", bound=tuple[Any, ...])
Score = Callable[[Tensor, Tensor], Tensor]
Grid = str | Sequence[float] | Callable[[Any, int], Tensor]
"""A name in :data:`GRIDS`, the times themselves, or a function of a diffusion and a number of steps
that returns them."""
Noise = Callable[[], Tensor]
"""A function that draws standard normal noise of the shape of a state."""
Watch = Callable[[Tensor, Tensor], object]
"""A function of the time and the state, which is called before each step and at the end."""


class Sampler(Recorded, ABC):
    """An integrator of a generative process.

    Args:
        steps: number of steps from T to ε, at least 1.
        grid: grid of times: a name in :data:`~pyro_mdm.samplers.base.GRIDS`, the times from T to
            ε, (steps + 1,), or a function of a diffusion and the number of steps that returns them;
            by default the sampler's own grid.

    Raises:
        TypeError: on call, a diffusion that the sampler or the grid does not support.
        ValueError: an unknown grid, times that do not decrease, or, on call, do not run from T to
            ε; on call, a shape whose second entry is not the diffusion's K, a score or denoiser
            that returns another shape or entries that are not finite.
    """

    needs: ClassVar[tuple[Cap, ...]] = (Cap.KERNELS,)
    """The capabilities that the sampler needs of a diffusion."""
    default_grid: ClassVar[str] = "information"
    """The grid for diffusions with a closed form; for others it is ``progress``."""
    noise: float | None = None
    """The noise η of the process, from 0 for the probability flow to 1 for the reversed SDE.

    None: that of the score, whatever its noise.
    """
    is_default: bool = False
    """Whether :func:`~pyro_mdm.samplers.default_sampler` made it."""
    calls: int = 0
    """The number of network calls of the last run."""
    calls_a_step: int = 1
    """The number of network calls of a step."""
    remembers: int = 0
    """The number of estimates of earlier steps that a step uses."""
    by_x_hat: ClassVar[bool] = False
    """Whether steps are by x̂, or by ŵ of a score that estimates the mean of v_0 too."""
    _compiled: CompiledFunction[Callable[..., tuple[Tensor, list[Tensor]]]] | None = None

    def __init__(self, steps: int, grid: Grid | None = None) -> None:
        check_count("steps", steps, "the number of steps from T to ε")
        check_grid(grid, steps)
        self.steps, self.grid = steps, grid

    def times(self, diffusion: Diffusion) -> Tensor:
        """The decreasing grid of times, (steps + 1,), from T to ε."""
        caps, grid = diffusion.caps, self.grid
        if grid is None:
            grid = self.default_grid if Cap.KERNELS in caps else "progress"
        common = diffusion if Cap.NO_CONTEXT in caps else diffusion.reference
        if not isinstance(grid, str):
            return given_times(grid, common, self.steps)
        if grid in NEED:
            check_need(grid, common)
        return GRIDS[grid](common, self.steps)

    def plan(self, diffusion: Any, times: Tensor) -> Any:
        """All of the steps that does not depend on the state; by default the times alone.

        A plan is the times themselves, or a named tuple of tensors that begin with the steps. It
        has the times of the score calls in its field ``s``, and in ``later`` those of second calls.
        :meth:`step` is given a list of the entries of each step, and in place of these times the
        diffusion there.

        Args:
            diffusion: the noising diffusion that is reversed.
            times: times of the grid, (steps + 1,), or (steps + 1, …) for a batch of grids.
        """
        return times

    def plan_by_dimension(self, diffusion: Diffusion, times: Tensor) -> Any:
        """The plan where data dimensions differ.

        Its fields are (steps, 1, *event_shape, …), or (steps, n, *event_shape, …) for n data whose
        contexts are given, and ``s`` holds the common times.
        """
        kernels, common = cast(Kernels, diffusion), self.plan(diffusion.reference, times)
        if isinstance(common, Tensor):
            return common  # the times themselves
        if Cap.NO_CONTEXT in diffusion.caps:
            plan = kernels.by_dimension(self.plan, times)
            return type(plan)(*(field.unsqueeze(1) for field in plan))._replace(s=common.s)
        return kernels.by_dimension(self.plan, times.unsqueeze(1))._replace(s=common.s)

    def planned(self, ask: Questions, times: Tensor, y: Tensor) -> Any:
        """The plan's entries by step, for states like y; times and other plans as they are.

        Its times become coefficients, computed for all of them at once, unless they differ between
        data or the score is no model's.
        """
        diffusion = ask.diffusion
        plan = (self.plan_by_dimension if diffusion.maps else self.plan)(diffusion, times)
        if not hasattr(plan, "_fields"):
            return plan
        ready = isinstance(ask.given, BoundScore) and Cap.NO_CONTEXT in diffusion.caps
        fields: list[Sequence[object]] = []
        for name, field in zip(plan._fields, plan, strict=True):
            if ready and name in ("s", "later"):
                raw = not ask.given.parameterization.denoises
                fields.append(coefficients(diffusion, field, raw=raw).rows(y.device, raw))
            else:
                fields.append(field.to(y.device, non_blocking=True).unbind())
        return list(map(type(plan), *fields))

    @abstractmethod
    def step(self, plan: Any, i: int, y: Tensor, ask: Questions, noise: Noise) -> Tensor:
        """The state after step i, like y (batch, K, *event_shape), in float64.

        Args:
            plan: entries of :meth:`plan` by step, or the times.
            i: index of the step, from 0 at T.
            y: state before the step, (batch, K, *event_shape), in float64.
            ask: the score and the denoiser.
            noise: function that draws standard normal numbers, like y.
        """

    def check(self, diffusion: Diffusion, score: object = None) -> None:
        """Raises TypeError for a diffusion or a score that the sampler does not support.

        Args:
            diffusion: the noising diffusion that is reversed.
            score: the score in use; None if it is not chosen yet.
        """
        who, fix = type(self).__name__, f"use EulerMaruyama({self.steps})"
        if not isinstance(diffusion, Diffusion) or not diffusion.caps.issuperset(self.needs):
            require(diffusion, *self.needs, who=who, fix=fix)
        score = getattr(score, "parameterization", score)
        if self.noise is not None and isinstance(score, Parameterization) and not score.denoises:
            check_process(score, diffusion, self.noise)
        free = score is None or Cap.READOUT in diffusion.caps or hasattr(score, "start_hat_at")
        if self.by_x_hat and not free:
            fix = "use StateDenoiser, or a sampler by the score alone, such as EulerMaruyama(256)"
            require(diffusion, Cap.READOUT, who=f"{who} by x̂", fix=fix)

    def integrate(self, y: Tensor, ask: Questions, noise: Noise, bar: Progress | None) -> Tensor:
        """y_ε from y at T (batch, K, *event_shape), both in float64."""
        times = self.times(ask.diffusion)
        plan = self.planned(ask, times, y)
        step = self.step if self._compiled is None else self._compiled_step
        for i in range(self.steps):
            if ask.watch is not None:
                ask.watch(times[i].detach(), y.detach())
            y = step(plan, i, y, ask, noise)
            if bar is not None:
                bar.update()
        self.calls = ask.calls or self.steps * self.calls_a_step
        return y

    def _compiled_step(
        self, plan: Sequence[Plan], i: int, y: Tensor, ask: Questions, noise: Noise
    ) -> Tensor:
        """:meth:`step` by the function that is compiled."""
        at, score = plan[i], ask.given
        if not isinstance(at[0], Coefficients) or ask.diffusion.maps or self._compiled is None:
            raise UnsupportedDiffusionError(
                f"a step of {type(self).__name__} is compiled, but the coefficients of "
                f"{type(ask.diffusion).__name__} differ between data or dimensions, or the score "
                "is no model's; use a linear diffusion of one block, or a sampler without compile()"
            )
        past = list(ask.past)
        if not past:
            past = [y.new_zeros(len(y), *y.shape[2:]) for _ in range(self.remembers)]
        noises = [] if self.noise == 0 else [noise()]
        compiled = self._compiled.at(y.shape)
        y, past = compiled(self, ask.diffusion, score, at, y, past, noises)
        ask.past = deque(past)
        check_finite(partial(check_weights, score.parameterization.network), y)
        check_finite("y", y)
        return y

    @checked_arguments
    def __call__(
        self,
        diffusion: Diffusion,
        score: Score,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        *,
        dtype: torch.dtype | None = None,
        progress: bool | Progress = False,
        watch: Watch | None = None,
        differentiable: bool = False,
    ) -> Tensor:
        """y_ε of the given shape (batch, K, *event_shape).

        Args:
            diffusion: the noising diffusion that is reversed.
            score: function ``score(y, s) -> like y``, see :mod:`pyro_mdm.samplers` for optional
                attributes.
            shape: shape of the states, (batch, K, *event_shape).
            generator: random generator on the device of the states; None: the global one, of the
                device of the score.
            dtype: dtype of the score's inputs and of the result; None: the score's.
            progress: whether to show the steps (:mod:`pyro_mdm.support.progress`), or a bar that
                counts them.
            watch: function of the time and the state (float64), called before each step and at the
                end; None: none.
            differentiable: whether to keep the graph, so that y_ε has derivatives in the parameters
                of score and diffusion. The times of the grid are constants, unless the grid is a
                function that keeps their derivatives.

        Returns:
            States at ε, (batch, K, *event_shape), in ``dtype``.
        """
        has_a_score = isinstance(score, Parameterization) or hasattr(score, "bound_score")
        if has_a_score or not callable(score):
            what = f"score is {describe(score)}, expected a function score(y, s)"
            raise TypeError(f"{what}; pass model.bound_score")
        K = diffusion.num_variables
        if len(shape) < 2 or shape[1] != K:
            raise ValueError(
                f"shape is {tuple(shape)}, expected (batch, K, *event_shape) with the K = {K} "
                f"variables of {type(diffusion).__name__}"
            )
        other: Any = score.diffusion if isinstance(score, BoundScore) else diffusion
        if (other.made_from or other) is not (diffusion.made_from or diffusion):
            raise ValueError(
                f"diffusion is a {type(diffusion).__name__}, and the score is of another one, a "
                f"{type(other).__name__}; pass score.diffusion, or a model over your diffusion"
            )
        if diffusion.context is not None:
            raise UnsupportedDiffusionError(
                f"the noising of {type(diffusion).__name__} depends on a context, which is not "
                f"given; draw it from its prior: sampler(*model.drawn({shape[0]}), shape)"
            )
        dtype = dtype or getattr(score, "dtype", None) or torch.get_default_dtype()
        device = None if generator is None else generator.device
        if device is None and isinstance(score, BoundScore):
            device = tensor_device(score.parameterization)
        device = torch.get_default_device() if device is None else device
        self.check(diffusion, score)
        ask = Questions(diffusion, score, dtype, watch)
        noise = partial(normal_for_data, shape, device, generator)
        counting: AbstractContextManager[Progress | None]
        if progress is True:
            counting = progress_bar(self.steps, type(self).__name__, "steps", leave=True)
        else:  # a bar that is given stays open
            counting = nullcontext(None if progress is False else progress)
        with torch.set_grad_enabled(differentiable), counting as bar:
            y = for_data(diffusion.prior.sample, shape, device, generator)
            y = self.integrate(y, ask, noise, bar)
        settle()
        if watch is not None:
            watch(diffusion.start_time, y.detach())
        return y.to(dtype)

    def __repr__(self) -> str:
        named = {k: v for k, v in self.arguments().items() if k != "grid" or v is not None}
        text = ", ".join(f"{name}={getattr(self, name)}" for name in named)
        return f"{type(self).__name__}({text})"


At = Tensor | Coefficients
"""One time, 0-dim, or the diffusion there, where its coefficients are ready."""


class Questions:
    """The score and the denoiser, called in their own precision, with results in float64.

    Args:
        diffusion: the noising diffusion that is reversed.
        score: function ``score(y, s) -> like y``.
        dtype: dtype of the score's inputs.
        watch: function of the time and the state; None: none.

    Attributes:
        calls: number of network calls by these questions.
        past: estimates of earlier steps for a multistep method, the newest first.
    """

    def __init__(
        self, diffusion: Diffusion, score: Score, dtype: torch.dtype, watch: Watch | None = None
    ) -> None:
        self.diffusion: Any = diffusion
        self.given: Any = score
        self.dtype, self.watch = dtype, watch
        self.calls = 0
        self.past: deque[Tensor] = deque(maxlen=3)

    def score(self, y: Tensor, at: At) -> Tensor:
        """s_θ, like y (n, K, *event_shape)."""
        self.calls += 1
        if not isinstance(at, Tensor):
            return cast(Tensor, self.given.score_at(y, at))
        out = self.given(y.to(self.dtype), at.expand(len(y)))
        return self._checked("score", out, y.shape)

    def denoise(self, y: Tensor, at: At, noise: float = 1.0) -> Tensor:
        """x̂ (n, *event_shape), for the backward process with noise η g²."""
        if not hasattr(self.given, "denoise"):
            time = cast(Tensor, at)  # no model's score has coefficients
            return project(self.score(y, at), y, coefficients(self.diffusion, time))
        self.calls += 1
        if not isinstance(at, Tensor):
            return cast(Tensor, self.given.denoise_at(y, at, noise))
        share = {"noise": noise} if self.diffusion.paths.drifts_by_data else {}
        out = self.given.denoise(y.to(self.dtype), at.expand(len(y)), **share)
        return self._checked("denoiser", out, y.shape[:1] + y.shape[2:])

    def velocity(self, y: Tensor, s: Tensor, noise: float = 0.0) -> Tensor:
        """The velocity f - (1 + η)/2 (g² s_θ + ∇·g²) of the backward process, like y.

        Args:
            y: states, (batch, K, *event_shape).
            s: one time, (), for all of them.
            noise: noise η of the process.
        """
        value: Tensor = self.diffusion.paths.velocity(y, s, noise, self)
        return value

    def _checked(self, name: str, out: Tensor, shape: torch.Size) -> Tensor:
        if out.shape != shape:
            raise ValueError(f"the {name} has shape {tuple(out.shape)}, expected {tuple(shape)}")
        return out.double()


def check_size(y: Tensor, s: Tensor, i: int, steps: int) -> None:
    """Raises SimulationError if the state has exploded in step i at the time s."""
    small = torch.linalg.vector_norm(y.detach(), math.inf) < LIMIT
    check_values(small, partial(_report_size, y, s, i, steps))


def _report_size(y: Tensor, s: Tensor, i: int, steps: int) -> None:
    raise SimulationError(
        f"sampling exploded: a state of {y.abs().max().item():.3g} at s = {s.item():.4g}, in step "
        f"{i + 1} of {steps} back from T. Take more steps (a drift that contracts strongly expands "
        "in reverse until the score is learned), or train on"
    )


# -- grids of times, decreasing from T to ε --------------------------------------------------------
@checked_arguments
def log_snr_grid(diffusion: Diffusion, steps: int) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε, equally spaced in log SNR.

    For a nonlinear diffusion the log SNR is nominal.

    Args:
        diffusion: the noising diffusion.
        steps: number of steps.
    """
    return log_snr_times(diffusion, steps + 1).flip(0)


@torch.no_grad()
@checked_arguments
def log_volume_grid(diffusion: Kernels, steps: Count) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε, equally spaced in log volume κ.

    See :class:`~pyro_mdm.diffusions.linear.LogVolume`. For K = 1 it is log SNR; for K > 1
    it moves where log SNR pauses.

    Args:
        diffusion: diffusion with closed-form kernels.
        steps: number of steps.
    """
    return even_times(diffusion, diffusion.log_volume, steps + 1).flip(0)


@torch.no_grad()
@checked_arguments
def karras_grid(diffusion: Diffusion, steps: int, rho: float = 7.0) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε, equally spaced in σ^(1/ρ) with ``σ = e^{-λ/2}``.

    Args:
        diffusion: the noising diffusion.
        steps: number of steps.
        rho: exponent ρ; the larger, the shorter the steps near the data.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
    NeurIPS 2022, equation 5, with ρ = 7.
    """
    ends = torch.stack([diffusion.terminal_log_snr, diffusion.start_log_snr])
    first, last = (-ends / (2 * rho)).exp()
    root = torch.lerp(first, last, torch.linspace(0, 1, steps + 1).to(first))
    s = diffusion.time_at_log_snr((-2 * rho * root.log())[1:-1])
    return torch.cat([s.new_tensor([diffusion.horizon]), s, diffusion.start_time[None]])


@torch.no_grad()
@checked_arguments
def quadratic_grid(diffusion: Diffusion, steps: Count) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε, equally spaced in √s.

    Args:
        diffusion: the noising diffusion.
        steps: number of steps.

    Source: Song, Meng & Ermon, "Denoising Diffusion Implicit Models", ICLR 2021, appendix D.
    """
    last = diffusion.start_time.sqrt()
    first = last.new_tensor(diffusion.horizon).sqrt()
    s = torch.lerp(first, last, torch.linspace(0, 1, steps + 1).to(first)).square()
    s[0], s[-1] = diffusion.horizon, diffusion.start_time
    return s


@torch.no_grad()
@checked_arguments
def information_grid(diffusion: Kernels, steps: int) -> Tensor:
    r"""Decreasing times (steps + 1,) from T to ε, even in the effect of noise on all variables.

    The measure is ``-λ(s) + ∫ tr(Σ^{-1} g²) ds``, in closed form because the integral is
    ``log det Σ - 2 ∫ tr A``. For K = 1 both parts are -λ and the grid is :func:`log_snr_grid`. For
    K > 1 log SNR can pause while auxiliary variables forget fast; steps that are even in λ alone
    are then so long that explicit steps of the score overshoot. With blocks and clocks per data
    dimension, the measure follows at every time the dimension that changes fastest.

    Args:
        diffusion: diffusion with closed-form kernels.
        steps: number of steps.
    """
    return even_in_information(diffusion, steps)


@singledispatch
def even_in_information(diffusion: Kernels, steps: int) -> Tensor:
    """The times of :func:`information_grid`, with a function for each kind of diffusion."""
    check_count("steps", steps, "the number of steps")
    tau, factor = tabulated(linear_of(diffusion))
    values = factor.log_det - 2 * diffusion.propagator.trace(None, tau) - factor.log_snr
    wanted = values[0] + (values[-1] - values[0]) * torch.linspace(0, 1, steps + 1).to(values)
    s = diffusion.time_at_clock(interpolated(wanted, values, tau))
    s[0], s[-1] = diffusion.start_time, diffusion.horizon
    return s.flip(0)


class Progressing(Protocol):
    """A simulated diffusion, whose ``progress`` is the fraction of the way from ε to T."""

    @property
    def start_time(self) -> Tensor: ...

    def time_at_progress(self, progress: Tensor) -> Tensor: ...


@checked_arguments
def simulation_grid(diffusion: Progressing, steps: int) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε, even in the diffusion's ``progress``.

    Args:
        diffusion: simulated diffusion.
        steps: number of steps.
    """
    fraction = torch.linspace(0, 1, steps + 1).to(diffusion.start_time)
    return diffusion.time_at_progress(fraction).flip(0)


GRIDS: dict[str, Callable[[Any, int], Tensor]] = {
    "information": information_grid,
    "log_snr": log_snr_grid,
    "log_volume": log_volume_grid,
    "karras": karras_grid,
    "quadratic": quadratic_grid,
    "progress": simulation_grid,
}
"""Grids by name. ``information`` and ``log_volume`` need a closed form, ``progress`` is for
diffusions without one, and the others are for all."""

NEED = {"information": Cap.KERNELS, "log_volume": Cap.KERNELS, "progress": Cap.SIMULATED}
"""The capability that a grid needs of a diffusion; the other grids serve all."""


KNOTS = 1024
"""The number of times of a table, even in clock time, and of as many even in its logarithm."""


def tabulated(linear: LinearDiffusion) -> tuple[Tensor, Factor]:
    """Increasing clock times (n,) from ε to T, and the factorization of Σ there."""
    start, end = linear.clock(linear.start_time), linear.clock(linear.horizon)
    fraction = torch.linspace(0, 1, KNOTS).to(end)
    tau = torch.cat([start * (end / start) ** fraction, start + (end - start) * fraction[1:-1]])
    tau = tau.clamp(start, end).unique()  # rounding may repeat or pass an end
    _, _, factor = factorization(linear, tau)
    return tau, factor


def interpolated(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Linear interpolation at x, like x, of values (n,) at increasing knots (n,)."""
    i = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    weight = (x - knots[i - 1]) / (knots[i] - knots[i - 1])
    return torch.lerp(values[i - 1], values[i], weight.clamp(0, 1))


def check_grid(grid: object, steps: int) -> None:
    """Raises TypeError or ValueError unless a sampler can take the grid.

    Args:
        grid: a name in :data:`GRIDS`, steps + 1 decreasing times, a function, or None.
        steps: number of steps.
    """
    if grid is None or callable(grid):
        return
    if isinstance(grid, str):
        if grid not in GRIDS:
            raise ValueError(
                f"grid is {grid!r}, expected one of {', '.join(GRIDS)}, the times from T to ε, or "
                "a function of a diffusion and the number of steps that returns them"
            )
        return
    _check_times(real_tensor("grid", grid, f"a name, or {steps + 1} times from T to ε"), steps)


def check_need(name: str, diffusion: Diffusion) -> None:
    """Raises UnsupportedDiffusionError for a grid of :data:`NEED` and a diffusion without it."""
    others = ", ".join(other for other in GRIDS if NEED.get(other) != NEED[name])
    fix = f"use one of {others}, or None for the sampler's own"
    require(diffusion, NEED[name], who=f"grid {name!r}", fix=fix)


def given_times(
    grid: Sequence[float] | Callable[[Any, int], Tensor], diffusion: Diffusion, steps: int
) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε in float64, checked.

    Args:
        grid: the times, or a function that returns them.
        diffusion: the noising diffusion.
        steps: number of steps.

    Raises:
        ValueError: another number of times, not decreasing, or not from T to ε.
    """
    given = grid(diffusion, steps) if callable(grid) else grid
    times = real_tensor("grid", given, f"{steps + 1} times from T to ε").to(diffusion.start_time)
    _check_times(times, steps)
    T, start = diffusion.horizon, diffusion.start_time.item()
    first, last = times[0].item(), times[-1].item()
    room = 1e-6 * T  # for ends that come rounded, as in float32; they are replaced by exact ones
    if first > T + room or last < start - room:
        bad = first if first > T + room else last
        raise ValueError(
            f"grid holds s = {bad:.6g}, outside [ε, T] = [{start:.6g}, {T:.6g}] of this diffusion; "
            "begin at diffusion.horizon and end at diffusion.start_time"
        )
    if first < T - room or last > start + room:
        raise ValueError(
            f"grid goes from s = {first:.6g} to {last:.6g}, expected from T = {T:.6g} to "
            f"ε = {start:.6g}; begin at diffusion.horizon and end at diffusion.start_time"
        )
    times = times.clone()
    times[0], times[-1] = T, start
    return times


def _check_times(times: Tensor, steps: int) -> None:
    if times.shape != (steps + 1,):
        raise ValueError(
            f"grid has shape {tuple(times.shape)} for {steps} steps, expected ({steps + 1},): the "
            "times from T to ε, both among them"
        )
    if not bool((times.diff() < 0).all()):
        i = int((~(times.diff() < 0)).nonzero()[0])
        raise ValueError(
            f"grid goes from {times[i].item():.6g} to {times[i + 1].item():.6g}, expected "
            "decreasing times; generation runs from T back to ε"
        )
