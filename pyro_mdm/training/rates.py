"""Learning rates by the step: a warm-up, and a decay to the end."""

from __future__ import annotations

import math
from typing import Literal

from pyro_mdm.support.doors import checked_arguments

__all__ = ["WARMUP", "Decay", "schedule", "schedule_within"]

Decay = Literal["cosine", "constant"]
"""A decay of learning rates, by its name."""
WARMUP = 100
"""The largest default number of steps in which rates rise."""
RISE = 0.1
"""The largest share of the seconds in which rates rise."""


@checked_arguments
def schedule(step: int, steps: int, warmup: int = 0, decay: Decay = "cosine") -> float:
    """The factor on learning rates, in [0, 1]: a linear warm-up times the decay.

    Args:
        step: index of the step, from 0.
        steps: number of all steps, at whose end a cosine is 0.
        warmup: number of steps in which the factor rises to 1.
        decay: name of the decay: "cosine", half a wave from 1 to 0, or "constant".
    """
    return min(1.0, (step + 1) / max(1, warmup)) * _decayed(step / max(1, steps), decay)


def schedule_within(
    share: float, step: int, steps: int, warmup: int = 0, decay: Decay = "cosine"
) -> float:
    """The factor on learning rates by the steps or the seconds, whichever lead further.

    Args:
        share: share of the seconds that has passed, in [0, 1]; 0 without a limit.
        step, steps, warmup, decay: as for :func:`~pyro_mdm.training.schedule`.
    """
    risen = min(1.0, max((step + 1) / max(1, warmup), share / RISE))
    return min(risen * _decayed(step / max(1, steps), decay), _decayed(share, decay))


def _decayed(share: float, decay: Decay) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share))) if decay == "cosine" else 1.0
