r"""The probability-flow ODE by ODE solvers, for every diffusion.

    dy/ds = f - ½ ∇·g² - ½ g² s_θ

has the marginals of the reversed SDE where s_θ is exact. It is integrated over the logarithm of the
clock, which gives changes near the data as much room as others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion
from pyro_mdm.diffusions.clocks import LogClock, LogSNR, TimeChange
from pyro_mdm.diffusions.closed import GaussianPaths, Kernels
from pyro_mdm.samplers.base import At, Grid, Noise, Questions, check_size
from pyro_mdm.samplers.exponential import LinearSampler, combined
from pyro_mdm.scores.base import Coefficients
from pyro_mdm.support.checks import check_number
from pyro_mdm.support.progress import Progress

__all__ = ["ADAPTIVE", "ProbabilityFlow", "ToleranceError"]

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
"""torchdiffeq's solvers that choose their steps."""

ROUNDING = 10.0
"""The least relative tolerance, in units of the rounding of the score's precision."""


class ToleranceError(ArithmeticError):
    """An adaptive solver that did not reach ε."""


class FlowSteps(NamedTuple):
    """The matrices of Heun's steps in closed form."""

    s: At  # (steps,), or in a step the diffusion at its start
    later: At  # (steps,), or in a step the diffusion at its end
    predictor: Tensor  # (steps, K, 2 K), of the state and the score
    corrector: Tensor  # (steps, K, 3 K), of the state, the predicted one, and the score there


class ProbabilityFlow(LinearSampler[FlowSteps]):
    """The probability-flow ODE by Heun's method on a grid, or by an adaptive solver of torchdiffeq.

    After a run ``calls`` is the number of score calls. Adaptive solvers weigh the error over the
    batch as a whole, so a state depends slightly on the others of its batch.

    Args:
        steps: number of steps of ``heun`` (order 2, two calls each); the largest number of steps of
            an adaptive solver.
        solver: name of the solver, ``heun`` or one of :data:`ADAPTIVE`.
        rtol: relative tolerance of an adaptive solver, for the error of a step.
        atol: absolute tolerance of an adaptive solver, for the error of a step.
        grid: times at which steps of ``heun`` end, see :class:`Sampler`.

    Raises:
        ValueError: another solver, a tolerance that is not positive or below the precision of the
            score, a grid for an adaptive solver; see also :class:`Sampler`.
        ToleranceError: on call, more steps would be needed.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential
    Equations", ICLR 2021, equation 13.
    """

    needs = ()
    noise = 0.0
    calls_a_step = 2

    def __init__(
        self,
        steps: int,
        solver: str = "heun",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        grid: Grid | None = None,
    ) -> None:
        super().__init__(steps, grid)
        if solver not in ("heun", *ADAPTIVE):
            raise ValueError(
                f"solver is {solver!r}, expected heun, or one of {', '.join(ADAPTIVE)}"
            )
        if solver != "heun" and grid is not None:
            raise ValueError(f"grid is given, but {solver} chooses its own steps; leave it out")
        self.solver = solver
        self.rtol = check_number("rtol", rtol, "a positive number, e.g. 1e-5", positive=True)
        self.atol = check_number("atol", atol, "a positive number, e.g. 1e-5", positive=True)

    def plan(self, diffusion: Diffusion, times: Tensor) -> FlowSteps | Tensor:
        return _planned(diffusion, times)

    def plan_by_dimension(self, diffusion: Diffusion, times: Tensor) -> Tensor:
        return times  # all at the common pace

    def step(
        self, plan: Sequence[FlowSteps] | Tensor, i: int, y: Tensor, ask: Questions, noise: Noise
    ) -> Tensor:
        if isinstance(plan, Tensor):
            check_size(y, plan[i], i, self.steps)
            return self._general(plan, i, y, ask)
        at = plan[i]
        check_size(y, at.s.s if isinstance(at.s, Coefficients) else at.s, i, self.steps)
        ahead = combined(at.predictor, y, ask.score(y, at.s))
        return combined(at.corrector, y, ahead, ask.score(ahead, at.later))

    def _is_whole(self) -> bool:
        return super()._is_whole() and self.solver == "heun"

    @staticmethod
    def _general(plan: Tensor, i: int, y: Tensor, ask: Questions) -> Tensor:
        diffusion = ask.diffusion
        s, later = plan[i], plan[i + 1]
        pace = _pace(diffusion)
        h = pace(later) - pace(s)
        here = ask.velocity(y, s) / pace.rate(s)
        there = ask.velocity(y + h * here, later) / pace.rate(later)
        value: Tensor = y + h / 2 * (here + there)
        return value

    def integrate(self, y: Tensor, ask: Questions, noise: Noise, bar: Progress | None) -> Tensor:
        if self.solver == "heun":
            return super().integrate(y, ask, noise, bar)
        least = ROUNDING * torch.finfo(ask.dtype).eps
        if self.rtol < least:
            raise ValueError(
                f"rtol is {self.rtol:g}, expected at least {least:.1e}: the score is called in "
                f"{ask.dtype}; raise it, or pass dtype=torch.float64 with a network of that "
                "precision"
            )
        return self._adapted(y, ask, bar)

    def _adapted(self, y: Tensor, ask: Questions, bar: Progress | None) -> Tensor:
        import torchdiffeq  # loads scipy

        flow = _Flow(ask, bar)
        start = ask.diffusion.start_time
        ends = flow.pace.ends.flip(0)
        try:
            states: Tensor = torchdiffeq.odeint(
                flow,
                y,
                ends,
                rtol=self.rtol,
                atol=self.atol,
                method=self.solver,
                options={"max_num_steps": self.steps},
            )
        except AssertionError as error:
            if not str(error).startswith(("max_num_steps", "underflow in dt")):
                raise  # not torchdiffeq's own
            raise ToleranceError(
                f"{self.solver} was at s = {flow.reached:.4g} after {flow.steps} steps, expected "
                f"ε = {start.item():.4g} within {self.steps} (rejected ones count; "
                f"rtol = {self.rtol:g}, atol = {self.atol:g}): take more steps or larger tolerances"
            ) from error
        if bar is not None:
            bar.update(self.steps - flow.steps)
        self.calls = ask.calls
        return states[-1]


@singledispatch
def _planned(diffusion: Diffusion, times: Tensor) -> FlowSteps | Tensor:
    """The times, or in closed form the matrices of all steps."""
    return times


@_planned.register(Kernels)
def _in_closed_form(diffusion: Kernels, times: Tensor) -> FlowSteps | Tensor:
    if type(diffusion.paths).velocity is not GaussianPaths.velocity:
        return times
    pace = _pace(diffusion)
    rate = pace.rate(times)[..., None, None]
    A, half = diffusion.drift_matrix(times) / rate, diffusion.noise_covariance(times) / (2 * rate)
    h, eye = pace(times).diff(dim=0)[..., None, None], torch.eye(diffusion.num_variables).to(A)
    predictor = torch.cat([eye + h * A[:-1], -h * half[:-1]], -1)
    # y + h/2 (here + there) = (y + predicted + h there) / 2
    parts = [eye.expand_as(A[1:]), eye + h * A[1:], -h * half[1:]]
    return FlowSteps(times[:-1], times[1:], predictor, torch.cat(parts, -1) / 2)


class _Flow:
    """dy/dw as called by torchdiffeq, for the diffusion's pace w; it counts the accepted steps."""

    def __init__(self, ask: Questions, bar: Progress | None) -> None:
        self.ask, self.bar, self.steps, self.pace = ask, bar, 0, _pace(ask.diffusion)
        self.horizon = self.reached = ask.diffusion.horizon

    def __call__(self, w: Tensor, y: Tensor) -> Tensor:
        s = self._time(w)
        value: Tensor = self.ask.velocity(y, s) / self.pace.rate(s)
        return value

    def callback_accept_step(self, w: Tensor, y: Tensor, dw: Tensor) -> None:
        self.steps += 1
        if self.ask.watch is not None:
            self.ask.watch(self._time(w).detach(), y.detach())
        self.reached = self._time(w + dw).item()
        if self.bar is not None:
            self.bar.update()

    def _time(self, w: Tensor) -> Tensor:
        """The time at a pace, like the pace."""
        # rounding, and a solver that looks past the ends, may leave [ε, T], where kernels are not
        return self.pace.inverse(w).clamp(self.ask.diffusion.start_time.item(), self.horizon)


def _pace(diffusion: Diffusion) -> TimeChange:
    """The time change by which flows are smooth."""
    return LogClock(diffusion) if Cap.KERNELS in diffusion.caps else LogSNR(diffusion)
