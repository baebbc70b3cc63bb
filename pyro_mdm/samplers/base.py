"""The base class of samplers: steps over a grid of times, by a diffusion and a score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import (
    Cap,
    Diffusion,
    SimulationError,
    UnsupportedDiffusionError,
    require,
)
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.paths.base import BoundScore
from pyro_mdm.randomness import for_data, normal_for_data
from pyro_mdm.samplers.grids import GRIDS, NEED, Grid, check_grid, check_need, given_times
from pyro_mdm.scores.base import Coefficients, check_process, coefficients, project
from pyro_mdm.scores.base import Score as Parameterization
from pyro_mdm.support.checks import (
    check_count,
    check_finite,
    check_values,
    check_weights,
    checked_arguments,
    describe,
    settle,
    tensor_device,
)
from pyro_mdm.support.modules import CompiledFunction
from pyro_mdm.support.progress import Progress, progress_bar
from pyro_mdm.support.settings import Recorded

__all__ = [
    "At",
    "LIMIT",
    "LinearSampler",
    "LinearSteps",
    "Noise",
    "Questions",
    "Sampler",
    "Watch",
    "check_size",
    "combined",
]


LIMIT = 1e6
"""A state beyond this has exploded."""

L = TypeVar("L", bound="LinearSampler[Any]")
Plan = TypeVar("Plan", bound=tuple[Any, ...])
Score = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]
"""A function that draws standard normal noise of the shape of a state."""
Watch = Callable[[Tensor, Tensor], object]
"""A function of the time and the state, which is called before each step and at the end."""


class Sampler(Recorded, ABC):
    """An integrator of a generative process.

    Args:
        steps: number of steps from T to ε, at least 1.
        grid: grid of times: a name in :data:`~pyro_mdm.samplers.grids.GRIDS`, the times from T to
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


class LinearSteps(NamedTuple):
    """Steps after which the state is a matrix times the state before, estimates and noise."""

    s: At  # (steps,), or in a step the diffusion at its time
    matrix: Tensor  # (steps, K, columns): of the state, of each estimate, of the noise


def combined(matrix: Tensor, y: Tensor, *estimates: Tensor) -> Tensor:
    """The product of a matrix with the variables of y and of estimates, like y in float64.

    Args:
        matrix: (K, columns), or per data dimension, (1, *event_shape, K, columns).
        y: states, (n, K, *event_shape).
        estimates: tensors with variables, like y, or x̂ (n, *event_shape), which counts as one;
            the noise too.
    """
    columns = [y]
    for estimate in estimates:
        columns.append(estimate if estimate.dim() == y.dim() else estimate.unsqueeze(1))
    together = torch.cat(columns, 1)
    if matrix.dim() > 2:
        return apply_matrix(matrix, together)
    flat = together.flatten(2) if y.dim() > 2 else together.unsqueeze(-1)
    return torch.bmm(matrix.expand(len(y), -1, -1), flat).reshape(y.shape)


class LinearSampler(Sampler, Generic[Plan]):
    """The base class of samplers with such steps."""

    def compile(self: L, backend: str = "inductor", **options: object) -> L:
        """Compile a whole step, the network included, in place; returns the sampler.

        The first step of a run takes much longer, and so does that of every new shape. Results are
        the same up to rounding. It is for the score of a model with a linear diffusion of one
        block, such as a :class:`~pyro_mdm.scores.Denoiser`, conditioned or not,
        :class:`~pyro_mdm.scores.NoisePrediction` or :class:`~pyro_mdm.scores.RawScore`; for another
        diffusion a call raises UnsupportedDiffusionError.

        Args:
            backend: backend of ``torch.compile``.
            options: further arguments of ``torch.compile``, such as ``mode``.

        Raises:
            TypeError: a subclass with steps of its own.
        """
        if not self._is_whole():
            raise TypeError(
                f"{type(self).__name__} has a step of its own, which may depend on more than "
                "tensors, expected that of the library's sampler; use it without compile()"
            )
        self._compiled = CompiledFunction(whole_step, backend, options)
        return self

    def _is_whole(self) -> bool:
        """Whether the step is the library's, which depends on tensors alone."""
        return type(self).step.__module__.startswith("pyro_mdm.samplers.")


def whole_step(
    sampler: LinearSampler[Plan],
    diffusion: Diffusion,
    score: BoundScore,
    at: Plan,
    y: Tensor,
    past: list[Tensor],
    noises: list[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The state after a step, and the estimates that the next one uses.

    Args:
        sampler: the sampler.
        diffusion: the diffusion that is reversed.
        score: the score of a model.
        at: the entries of the plan for the step.
        y: states before the step, (n, K, *event_shape) in float64.
        past: estimates of earlier steps, the newest first.
        noises: standard normal numbers, each like y.
    """
    ask, drawn = Questions(diffusion, score, score.dtype), iter(noises)
    ask.past = deque(past, maxlen=3)
    y = sampler.step([at], 0, y, ask, lambda: next(drawn))
    return y, list(ask.past)[: sampler.remembers]
