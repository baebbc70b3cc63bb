"""The end of a training by its values: patience, and the last fall of a bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_mdm.support.checks import check_count, check_number
from pyro_mdm.support.doors import Several, checked_arguments

__all__ = ["FALL", "Patience", "last_fall"]

FALL = 0.005
"""The least change of a bound that counts as a fall, in bits/dim."""


@checked_arguments
def last_fall(bounds: Mapping[int, float]) -> tuple[int, int]:
    """The step at which a bound last fell, and the number of measurements after it.

    A fall is by at least :data:`~pyro_mdm.training.patience.FALL` from the last one; the first
    measurement counts as a fall.

    Args:
        bounds: bounds by step, in bits/dim, the earliest first.
    """
    if not bounds:
        raise ValueError(
            "there are no bounds, expected one measurement at least; give them by step"
        )
    step, *later = bounds
    after = 0
    for other in later:
        fell = bounds[other] <= bounds[step] - FALL
        step, after = (other, 0) if fell else (step, after + 1)
    return step, after


class Patience:
    """The count of values of a training that are no gain, after which it ends.

    Args:
        limit: number of values in turn without a gain, after which training ends; None: no limit.
        least_gain: least fall of a value that is a gain.
        window: number of steps whose mean loss is a value; None: no such values.
        cool_down: part of the steps taken by then that follow before training ends.

    Attributes:
        cooling: the first step after patience ran out, and the number of steps that follow; None
            before.

    Raises:
        ValueError: numbers out of range.
    """

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
        self._lowest, self._worse = math.inf, 0  # the last gain, and the values since without one
        self._losses: list[Tensor] = []  # of the window

    def add(self, loss: Tensor) -> None:
        """Add the loss of a step, (), to the window, if there is one."""
        if self.window is not None:
            self._losses.append(loss.detach())

    def look(self, value: float, step: int) -> None:
        """Compare a value of a validation after a step, if there is no window."""
        if self.window is None:
            self._compare(value, self.least_gain, step)

    def is_over(self, step: int) -> bool:
        """Whether training ends after a step."""
        if self.cooling is not None:
            first, number = self.cooling
            return step - first >= number
        return self._ran_out

    def compare_losses(self, step: int) -> None:
        """Compare the mean loss of a window that is whole; the host waits for it here."""
        if len(self._losses) != self.window:
            return
        losses = torch.stack(self._losses)
        losses, self._losses = losses[losses.isfinite()], []
        if len(losses) > 1:
            error = float(losses.std()) / math.sqrt(len(losses))
            self._compare(float(losses.mean()), max(error, self.least_gain), step)

    @property
    def _ran_out(self) -> bool:
        return self.limit is not None and self._worse >= self.limit

    def _compare(self, value: float, least: float, step: int) -> None:
        """Count a value that is not lower than the last gain by as much."""
        gained = value <= self._lowest - least if least else value < self._lowest
        self._lowest, self._worse = (value, 0) if gained else (self._lowest, self._worse + 1)
        if self._ran_out and self.cool_down and self.cooling is None:
            self.cooling = step, math.ceil(self.cool_down * step)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state."""
        return {
            "lowest": self._lowest,
            "worse": self._worse,
            "losses": [loss.clone() for loss in self._losses],
            "cooling": self.cooling,
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore the state of a checkpoint, with losses on a device."""
        self._worse, self._lowest, self.cooling = state["worse"], state["lowest"], state["cooling"]
        self._losses = [loss.to(device) for loss in state["losses"]]
