"""The base class of samplers: steps over a grid of times, by a diffusion and a score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion, UnsupportedDiffusionError, require
from pyro_mdm.diffusions.simulation import LIMIT, SimulationError
from pyro_mdm.randomness import for_data, normal_for_data
from pyro_mdm.samplers.grids import Grid, check_grid, grid_times, usual_grid
from pyro_mdm.scores.base import Score as Parameterization
from pyro_mdm.scores.base import project
from pyro_mdm.support.checks import check_count, describe
from pyro_mdm.support.doors import checked_arguments
from pyro_mdm.support.late_checks import check_values, settle
from pyro_mdm.support.progress import Progress, progress_bar
from pyro_mdm.support.settings import Recorded

__all__ = [
    "Noise",
    "Questions",
    "Sampler",
    "Watch",
    "by_step",
    "check_size",
]

Score = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T")
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
    reads_by_step: ClassVar[bool] = False
    """Whether :meth:`step` reads of every field of the plan the entry ``[i]`` alone.

    The fields are then tuples of their entries, which take no operation to read.
    """
    is_default: bool = False
    """Whether :func:`~pyro_mdm.samplers.default_sampler` made it."""
    calls: int = 0
    """The number of network calls of the last run."""

    def __init__(self, steps: int, grid: Grid | None = None) -> None:
        check_count("steps", steps, "the number of steps from T to ε")
        check_grid(grid, steps)
        self.steps, self.grid = steps, grid

    def times(self, diffusion: Diffusion) -> Tensor:
        """The decreasing grid of times, (steps + 1,), from T to ε."""
        grid = usual_grid(diffusion, self.default_grid) if self.grid is None else self.grid
        return grid_times(grid, diffusion.for_grids, self.steps)

    def plan(self, diffusion: Any, times: Tensor) -> Any:
        """The tensors of all steps that do not depend on the state; by default the times alone.

        A plan is a named tuple whose fields begin with the steps and whose field ``s`` holds the
        times of the score calls, or the times themselves.

        Args:
            diffusion: the noising diffusion that is reversed.
            times: times of the grid, (steps + 1,), or (steps + 1, …) for a batch of grids.
        """
        return times

    def planned(self, diffusion: Diffusion, times: Tensor) -> Any:
        """The plan, per data dimension where dimensions differ."""
        return diffusion.planned(self.plan, times)

    @abstractmethod
    def step(self, plan: Any, i: int, y: Tensor, ask: Questions, noise: Noise) -> Tensor:
        """The state after step i, like y (batch, K, *event_shape), in float64.

        Args:
            plan: result of :meth:`plan`.
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
        fix = f"use EulerMaruyama({self.steps})"
        require(diffusion, *self.needs, who=type(self).__name__, fix=fix)
        score = getattr(score, "parameterization", score)
        if self.noise is not None and isinstance(score, Parameterization):
            score.check_process(diffusion, self.noise)

    def integrate(self, y: Tensor, ask: Questions, noise: Noise, bar: Progress) -> Tensor:
        """y_ε from y at T (batch, K, *event_shape), both in float64."""
        times = self.times(ask.diffusion)
        plan = self.planned(ask.diffusion, times)
        at = getattr(plan, "s", times)
        ask.look_ahead(at, y.shape)
        if self.reads_by_step:
            plan = by_step(plan)
        starts, step = times.unbind(), self.stepping(ask)
        with ask.diffusion.laws_ahead(at):
            for i in range(self.steps):
                ask.watch(starts[i], y)
                y = step(plan, i, y, ask, noise)
                bar.update()
        return y

    def stepping(self, ask: Questions) -> Callable[..., Tensor]:
        """The function that takes the steps of a run, called as :meth:`step`, which it is."""
        return self.step

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
            generator: random generator on the diffusion's device; None: the global one.
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
        _check_score(score)
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
        device = diffusion.start_time.device
        self.check(diffusion, score)

        n, *rest = shape

        def noise() -> Tensor:
            return normal_for_data(shape, device, generator)

        def start(n: int, generator: torch.Generator | None) -> Tensor:
            return diffusion.prior.sample((n, *rest), generator)

        ask = Questions(diffusion, score, dtype, watch)
        with torch.set_grad_enabled(differentiable), self._counting(progress) as bar:
            y = self.integrate(for_data(start, n, device, generator), ask, noise, bar)
        settle()
        ask.watch(diffusion.start_time, y)
        self.calls = ask.calls
        return y.to(dtype)

    def _counting(self, progress: bool | Progress) -> AbstractContextManager[Progress]:
        if not isinstance(progress, bool):
            return nullcontext(progress)
        return progress_bar(self.steps, type(self).__name__, "steps", leave=True, shown=progress)

    def __repr__(self) -> str:
        named = {k: v for k, v in self.arguments().items() if k != "grid" or v is not None}
        text = ", ".join(f"{name}={getattr(self, name)}" for name in named)
        return f"{type(self).__name__}({text})"


class Questions:
    """The score and the denoiser, called in their own precision, with results in float64.

    Args:
        diffusion: the noising diffusion that is reversed.
        score: function ``score(y, s) -> like y``.
        dtype: dtype of the score's inputs.
        watch: function of the time and the state; None: none.

    Attributes:
        calls: number of network calls.
        ahead: the score at the times of a grid, where that can be computed before; or None.
        past: estimates of earlier steps for a multistep method, the newest first.
    """

    def __init__(
        self, diffusion: Diffusion, score: Score, dtype: torch.dtype, watch: Watch | None = None
    ) -> None:
        self.diffusion: Any = diffusion
        self._score, self.dtype = score, dtype
        self.calls = 0
        self._watch = watch
        self.ahead: Any = None
        self.past: deque[Any] = deque(maxlen=3)

    def look_ahead(self, times: Tensor, shape: torch.Size) -> None:
        """Compute what calls at entries of ``times`` (N,) need, for states of this shape."""
        ahead = getattr(self._score, "ahead", None)
        self.ahead = None if ahead is None else ahead(times, shape)

    def _ready(self, y: Tensor, s: Tensor) -> Any:
        """The coefficients of calls at the time s; None if they were not computed ahead."""
        return None if self.ahead is None else self.ahead.at(y, s)

    def watch(self, s: Tensor, y: Tensor) -> None:
        """Pass a state y at the time s to the ``watch`` function, if there is one."""
        if self._watch is not None:
            self._watch(s.detach(), y.detach())

    def score(self, y: Tensor, s: Tensor) -> Tensor:
        self.calls += 1
        if (ready := self._ready(y, s)) is not None:
            theta: Tensor = self.ahead.score(ready, y)
            return theta
        out = self._score(y.to(self.dtype), s.expand(len(y)))
        return self._checked("score", out, y.shape)

    def denoise(self, y: Tensor, s: Tensor, noise: float = 1.0) -> Tensor:
        """x̂ (batch, *event_shape), for the backward process with noise η g²."""
        if (ready := self._ready(y, s)) is not None:
            self.calls += 1
            x_hat: Tensor = self.ahead.denoise(ready, y)
            return x_hat
        denoise = getattr(self._score, "denoise", None)
        if denoise is None:
            return project(self.diffusion, self.score(y, s), y, s.expand(len(y)))
        self.calls += 1
        share = {"noise": noise} if self.diffusion.drifts_by_data else {}
        out = denoise(y.to(self.dtype), s.expand(len(y)), **share)
        return self._checked("denoiser", out, y.shape[:1] + y.shape[2:])

    def start(self, y: Tensor, s: Tensor) -> Tensor:
        """The denoised state ŵ = (x̂, m̂) at time 0, like y, where v_0's mean depends on x."""
        self.calls += 1
        score: Any = self._score
        out = score.start_hat(y.to(self.dtype), s.expand(len(y)))
        return self._checked("denoiser", out, y.shape)

    def velocity(self, y: Tensor, s: Tensor, noise: float = 0.0) -> Tensor:
        """The velocity f - (1 + η)/2 (g² s_θ + ∇·g²) of the backward process, like y.

        Args:
            y: states, (batch, K, *event_shape).
            s: one time, (), for all of them.
            noise: noise η of the process.
        """
        value: Tensor = self.diffusion.velocity(y, s, noise, self)
        return value

    def _checked(self, name: str, out: Tensor, shape: torch.Size) -> Tensor:
        if out.shape != shape:
            raise ValueError(f"the {name} has shape {tuple(out.shape)}, expected {tuple(shape)}")
        return out.double()


def by_step(plan: T) -> T:
    """A plan whose tensors (N, …) are tuples of N tensors, as in plans within it; or the times."""
    if not isinstance(plan, tuple):
        return plan
    fields = (f.unbind() if isinstance(f, Tensor) else by_step(f) for f in plan)
    made: Any = type(plan)
    entries: T = made(*fields)
    return entries


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


def _check_score(score: object) -> None:
    """Raises TypeError for an object that is not callable, or that has a score instead."""
    has_a_score = isinstance(score, Parameterization) or hasattr(score, "bound_score")
    if has_a_score or not callable(score):
        raise TypeError(
            f"score is {describe(score)}, expected a function score(y, s); pass model.bound_score"
        )
