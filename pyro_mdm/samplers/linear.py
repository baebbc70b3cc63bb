"""Steps that are linear in the state, the score or x̂, and noise, with matrices made before.

Such a step is a function of tensors alone, which ``torch.compile`` takes whole.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import UnsupportedDiffusionError
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.samplers.base import Noise, Questions, Sampler
from pyro_mdm.scores.ahead import ScoreAhead
from pyro_mdm.support.whole import WholeFunction

__all__ = ["Answers", "LinearSampler", "LinearSteps", "combined"]

L = TypeVar("L", bound="LinearSampler[Any]")
P = TypeVar("P", bound=tuple[Any, ...])


class LinearSteps(NamedTuple):
    """Steps after which the state is a matrix times the state before, estimates and noise."""

    s: Tensor  # (steps,)
    matrix: Tensor  # (steps, K, columns): of the state, of each estimate, of the noise


def combined(matrix: Tensor, y: Tensor, *parts: Tensor) -> Tensor:
    """The product of a matrix with the variables of y and of other parts, like y.

    Args:
        matrix: (K, columns), or per data dimension, (1, *event_shape, K, columns).
        y: states, (n, K, *event_shape).
        parts: tensors with variables, like y, or x̂ (n, *event_shape), which counts as one.
    """
    parts = tuple(t if t.dim() == y.dim() else t.unsqueeze(1) for t in parts)
    return apply_matrix(matrix, torch.cat([y, *parts], 1))


def entries(plan: P, i: int) -> P:
    """The i-th entries of the fields of a plan."""
    made: Any = type(plan)
    entry: P = made(*(field[i] for field in plan))
    return entry


class LinearSampler(Sampler, Generic[P]):
    """The base class of samplers with such steps."""

    reads_by_step = True
    remembers: int = 0
    """The number of estimates of earlier steps that a step uses."""
    _compiled: WholeFunction | None = None

    @property
    def draws(self) -> int:
        """The number of noises that a step draws."""
        return 1 if self.noise is None or self.noise > 0 else 0

    def step(self, plan: P, i: int, y: Tensor, ask: Questions, noise: Noise) -> Tensor:
        return self.advance(entries(plan, i), y, ask, noise)

    @abstractmethod
    def advance(self, at: P, y: Tensor, ask: Answers, noise: Noise) -> Tensor:
        """The state after one step, like y (n, K, *event_shape); nothing but tensors matters.

        Args:
            at: the entries of the plan for the step.
            y: state before the step.
            ask: the score and the denoiser.
            noise: function that draws standard normal numbers, like y.
        """

    def times_of(self, at: P) -> tuple[Tensor, ...]:
        """The times of the score calls of a step, in their order."""
        s: Tensor = at[0]
        return (s,)

    # -- compiled ----------------------------------------------------------------------------------

    def compile(self: L, backend: str = "inductor", **options: object) -> L:
        """Compile a whole step, the network included, in place; returns the sampler.

        The first step of a run takes much longer, and so does that of every new shape. Results are
        the same up to rounding. It is for a :class:`~pyro_mdm.scores.Denoiser`, conditioned or not,
        :class:`~pyro_mdm.scores.NoisePrediction` or :class:`~pyro_mdm.scores.RawScore`, with a
        linear diffusion of one block; for another model a call raises UnsupportedDiffusionError.

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
        self._compiled = WholeFunction(whole_step, backend, options)
        return self

    def _is_whole(self) -> bool:
        """Whether :meth:`advance` is all that a step does."""
        return type(self).step is LinearSampler.step

    def stepping(self, ask: Questions) -> Callable[..., Tensor]:
        if (compiled := self._compiled) is None:
            return self.step
        ahead = ask.ahead
        if ahead is None:
            raise UnsupportedDiffusionError(
                f"a step of {type(self).__name__} is compiled, but the score of this model with "
                f"{type(ask.diffusion).__name__} cannot be computed ahead for the times of a grid; "
                "use a Denoiser and a linear diffusion of one block, or a sampler without compile()"
            )
        past = list[Tensor]()

        def step(plan: P, i: int, y: Tensor, ask: Questions, noise: Noise) -> Tensor:
            nonlocal past
            at = entries(plan, i)
            ready = [ahead.at(y, s) for s in self.times_of(at)]
            if not past:
                past = [y.new_zeros(len(y), *y.shape[2:]) for _ in range(self.remembers)]
            noises = [noise() for _ in range(self.draws)]
            later, past = compiled.at(y.shape)(self, ahead, at, ready, y, past, noises)
            ask.calls += len(ready)
            value: Tensor = ahead.checked(later, y)
            return value

        return step


def whole_step(
    sampler: LinearSampler[P],
    ahead: ScoreAhead[Any],
    at: P,
    ready: list[Any],
    y: Tensor,
    past: list[Tensor],
    noises: list[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The state after a step, and the estimates that the next step uses, of tensors alone.

    Args:
        sampler: the sampler.
        ahead: the score at the times of its grid, a :class:`~pyro_mdm.scores.ahead.ScoreAhead`.
        at: the entries of the plan for the step.
        ready: the score's coefficients for each call.
        y: states before the step, (n, K, *event_shape) in float64.
        past: estimates of earlier steps, the newest first.
        noises: standard normal numbers, each like y.
    """
    ask, drawn = Ready(ahead, ready, past), iter(noises)
    y = sampler.advance(at, y, ask, lambda: next(drawn))
    return y, list(ask.past)[: sampler.remembers]


class Ready:
    """The score and the denoiser at the times of one step's calls, one after the other."""

    def __init__(self, ahead: ScoreAhead[Any], ready: list[Any], past: list[Tensor]) -> None:
        self.ahead, self.ready, self.asked = ahead, ready, 0
        self.past: deque[Any] = deque(past, maxlen=3)

    def _next(self) -> Any:
        self.asked += 1
        return self.ready[self.asked - 1]

    def score(self, y: Tensor, s: Tensor) -> Tensor:
        value: Tensor = self.ahead.score(self._next(), y)
        return value

    def denoise(self, y: Tensor, s: Tensor, noise: float = 1.0) -> Tensor:
        value: Tensor = self.ahead.denoise(self._next(), y)
        return value

    def start(self, y: Tensor, s: Tensor) -> Tensor:
        raise NotImplementedError("the mean of v_0 is not computed ahead")


Answers = Questions | Ready
"""The score and the denoiser in use."""
