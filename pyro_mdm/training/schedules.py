"""The order of training data, learning rates, and the end of a training by its values."""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor

from pyro_mdm.randomness import seed_from
from pyro_mdm.support.checks import (
    Several,
    check_count,
    check_counts,
    check_number,
    checked_arguments,
)

__all__ = ["FALL", "WARMUP", "Decay", "Patience", "indices", "schedule"]

Decay = Literal["cosine", "constant"]
"""A decay of learning rates, by its name."""
WARMUP = 100
"""The largest default number of steps in which rates rise."""
RISE = 0.1  # the largest share of the seconds in which rates rise
FALL = 0.005
"""The least change of a bound that counts as a fall, in bits/dim."""


@checked_arguments
def indices(step: int, batch_size: int, n: int, seed: int) -> Tensor:
    """The indices of the data in a batch, (batch_size,) int64, from whole permutations in turn.

    Args:
        step: index of the step, from 0.
        batch_size: number of data in a batch.
        n: number of training data.
        seed: seed of the permutations.
    """
    check_counts({"batch_size": batch_size, "n": n}, "a number of data")
    position = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = position // n
    return torch.cat(
        [_permutation(e, n, seed)[position[epochs == e] % n] for e in epochs.unique().tolist()]
    )


@functools.lru_cache(maxsize=2)
def _permutation(epoch: int, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_from(seed, "order", epoch))
    return torch.randperm(n, generator=generator)


@checked_arguments
def schedule(
    step: int, steps: int, warmup: int = 0, decay: Decay = "cosine", share: float = 0.0
) -> float:
    """The factor on learning rates, in [0, 1]: a linear warm-up times the decay.

    Args:
        step: index of the step, from 0.
        steps: number of all steps, at whose end a cosine is 0.
        warmup: number of steps in which the factor rises to 1.
        decay: name of the decay: "cosine", half a wave from 1 to 0, or "constant".
        share: share of the seconds that has passed, in [0, 1], which counts where it leads further
            than the steps; 0 without a limit.
    """
    risen = min(1.0, max((step + 1) / max(1, warmup), share / RISE))
    return min(risen * _decayed(step / max(1, steps), decay), _decayed(share, decay))


def _decayed(share: float, decay: Decay) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share))) if decay == "cosine" else 1.0


class Patience:
    """The count of values of a training that are no gain, after which it ends.

    ``limit`` values in turn without a gain of ``least_gain`` end it (None: never), after another
    ``cool_down`` of the steps taken by then. With a ``window`` the values are mean losses of so
    many steps. ``cooling`` is the first step after patience ran out, with the number that follow.
    """

    NUMBERS = ("lowest", "worse", "cooling")  # of a checkpoint, beside the losses of the window

    @checked_arguments
    def __init__(
        self, limit: int | None, least_gain: float, window: Several | None, cool_down: float
    ) -> None:
        if limit is not None:
            check_count("patience", limit, "the number of looks that find nothing better")
        for name, number in (("least_gain", least_gain), ("cool_down", cool_down)):
            if not check_number(name, number, "a number, at least 0") >= 0:
                raise ValueError(f"{name} is {number}, expected a number, at least 0")
        self.limit, self.least_gain, self.window = limit, least_gain, window
        self.cool_down = cool_down
        self.cooling: tuple[int, int] | None = None
        self.lowest, self.worse = math.inf, 0  # the last gain, and the values since without one
        self.losses: list[Tensor] = []  # of the window

    def watch_losses(self, window: int) -> None:
        """Compare mean losses, of a window by default, as there are no validations."""
        if self.limit is not None and self.window is None:
            self.window = window

    def add(self, loss: Tensor) -> None:
        """Add the loss of a step, (), to the window, if there is one."""
        if self.window is not None:
            self.losses.append(loss.detach())

    def look(self, value: float, step: int) -> None:
        """Compare a value of a validation after a step, if there is no window."""
        if self.window is None:
            self._compare(value, self.least_gain, step)

    def is_over(self, step: int) -> bool:
        """Whether training ends after a step.

        The mean loss of a window that is whole is compared first; the host waits for it here.
        """
        if len(self.losses) == self.window:
            losses = torch.stack(self.losses)
            losses, self.losses = losses[losses.isfinite()], []
            if len(losses) > 1:
                error = float(losses.std()) / math.sqrt(len(losses))
                self._compare(float(losses.mean()), max(error, self.least_gain), step)
        if self.cooling is not None:
            first, number = self.cooling
            return step - first >= number
        return self._ran_out

    @property
    def _ran_out(self) -> bool:
        return self.limit is not None and self.worse >= self.limit

    def _compare(self, value: float, least: float, step: int) -> None:
        """Count a value that is not lower than the last gain by as much."""
        gained = value <= self.lowest - least if least else value < self.lowest
        self.lowest, self.worse = (value, 0) if gained else (self.lowest, self.worse + 1)
        if self._ran_out and self.cool_down and self.cooling is None:
            self.cooling = step, math.ceil(self.cool_down * step)
