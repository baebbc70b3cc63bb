"""What every sampler does with a diffusion, a score and a number of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.scores.base import Score as Parameterization
from pyro_mdm.scores.base import project
from pyro_mdm.support.checks import check_count, check_instance, describe
from pyro_mdm.support.progress import Progress, progress_bar
from pyro_mdm.support.settings import Recorded

__all__ = ["Questions", "Sampler"]

Score = Callable[[Tensor, Tensor], Tensor]


class Sampler(Recorded, ABC):
    """An integrator of the generative SDE.

    Args:
        steps: number of steps from T to ε, at least 1.

    Raises:
        ValueError: on call, a shape whose second entry is not the diffusion's K, a score or
            denoiser that answers in another shape or with entries that are not finite.
    """

    def __init__(self, steps: int) -> None:
        check_count("steps", steps, "the number of steps from T to ε")
        self.steps = steps

    @abstractmethod
    def times(self, diffusion: LinearDiffusion) -> Tensor:
        """The decreasing grid of times, (steps + 1,), from T to ε."""

    @abstractmethod
    def plan(self, diffusion: LinearDiffusion, times: Tensor) -> Any:
        """Everything the steps need that does not depend on the state, for all steps at once."""

    @abstractmethod
    def step(
        self, plan: Any, i: int, y: Tensor, ask: Questions, noise: Callable[[], Tensor]
    ) -> Tensor:
        """The state after step i, like y (batch, K, *event_shape), in float64."""

    def check(self, diffusion: Diffusion) -> None:
        """Raises TypeError for a diffusion that the sampler cannot integrate."""
        if not isinstance(diffusion, LinearDiffusion):
            raise TypeError(
                f"{type(self).__name__} needs the closed-form kernels of a LinearDiffusion, and "
                f"{type(diffusion).__name__} has none; use EulerMaruyama({self.steps})"
            )

    @torch.no_grad()
    def __call__(
        self,
        diffusion: Diffusion,
        score: Score,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        *,
        dtype: torch.dtype | None = None,
        progress: bool | Progress = False,
    ) -> Tensor:
        """y_ε of the given shape (batch, K, *event_shape).

        Args:
            diffusion: the noising diffusion that is reversed.
            score: ``score(y, s) -> like y``, see the module's text for optional attributes.
            shape: (batch, K, *event_shape).
            generator: source of randomness, on the diffusion's device.
            dtype: precision of the score's inputs and of the result.
            progress: whether to show the steps (:mod:`pyro_mdm.support.progress`), or what counts
                them.
        """
        check_instance("diffusion", diffusion, Diffusion, "the order is (diffusion, score, shape)")
        _check_score(score)
        K = diffusion.num_variables
        if not isinstance(shape, Sequence):
            raise TypeError(
                f"shape is {describe(shape)}, expected (batch, K, *event_shape) of the states; "
                f"e.g. (64, {K}, 2)"
            )
        if len(shape) < 2 or shape[1] != K:
            raise ValueError(
                f"shape is {tuple(shape)}, expected (batch, K, *event_shape) with the K = {K} "
                f"variables of {type(diffusion).__name__}"
            )
        dtype = dtype or getattr(score, "dtype", None) or torch.get_default_dtype()
        device = diffusion.start_time.device
        self.check(diffusion)

        def noise() -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)

        ask = Questions(diffusion, score, dtype)
        fitting: Any = diffusion  # of the kind that this sampler is for
        times = self.times(fitting)
        plan = self.plan(fitting, times)
        y = diffusion.prior.sample(tuple(shape), generator).to(device)
        with self._counting(progress) as bar:
            for i in range(self.steps):
                y = self.step(plan, i, y, ask, noise)
                bar.update()
        return y.to(dtype)

    def _counting(self, progress: bool | Progress) -> AbstractContextManager[Progress]:
        if not isinstance(progress, bool):
            return nullcontext(progress)
        return progress_bar(self.steps, type(self).__name__, "steps", leave=True, shown=progress)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in self.settings().items())
        return f"{type(self).__name__}({arguments})"


class Questions:
    """The score and the denoiser, asked in their own precision and answering in float64."""

    def __init__(self, diffusion: Any, score: Score, dtype: torch.dtype) -> None:
        self.diffusion, self._score, self.dtype = diffusion, score, dtype

    def score(self, y: Tensor, s: Tensor) -> Tensor:
        out = self._score(y.to(self.dtype), s.expand(len(y)))
        return self._checked("score", out, y.shape)

    def denoise(self, y: Tensor, s: Tensor) -> Tensor:
        denoise = getattr(self._score, "denoise", None)
        if denoise is None:
            return project(self.diffusion, self.score(y, s), y, s.expand(len(y)))
        out = denoise(y.to(self.dtype), s.expand(len(y)))
        return self._checked("denoiser", out, y.shape[:1] + y.shape[2:])

    def _checked(self, name: str, out: Tensor, shape: torch.Size) -> Tensor:
        if out.shape != shape:
            raise ValueError(f"the {name} has shape {tuple(out.shape)}, expected {tuple(shape)}")
        return out.double()


def _check_score(score: Any) -> None:
    """Raises TypeError for what has a score in it, or is none."""
    has_a_score = isinstance(score, Parameterization) or hasattr(score, "bound_score")
    if has_a_score or not callable(score):
        raise TypeError(
            f"score is {describe(score)}, expected a function score(y, s); pass model.bound_score"
        )
