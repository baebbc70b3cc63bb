"""The sampler of the configurations released with the paper.

python -m inference.sample RUN --sampler inference.samplers.published:Euler --steps 500

Euler-Maruyama over times s = ε + (T - ε)(1 - u)², u even from 0 to 1, whose last step adds no
noise. The library's own grids are even in what noise does, and the library's last step is the
decoder's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_mdm.diffusions import Diffusion
from pyro_mdm.samplers import EulerMaruyama
from pyro_mdm.samplers.base import Grid, Noise, Questions
from pyro_mdm.samplers.exponential import LinearSteps


def quadratic_from_start(diffusion: Diffusion, steps: int) -> Tensor:
    """Decreasing times (steps + 1,) from T to ε, whose distance from ε is quadratic."""
    start, end = diffusion.start_time, diffusion.start_time.new_tensor(diffusion.horizon)
    return start + (end - start) * torch.linspace(1, 0, steps + 1).to(start).square()


class Euler(EulerMaruyama):
    """Euler-Maruyama without noise in its last step, by default at :func:`quadratic_from_start`."""

    def __init__(self, steps: int = 500, grid: Grid | None = None) -> None:
        super().__init__(steps, quadratic_from_start if grid is None else grid)

    def step(
        self, plan: Sequence[LinearSteps] | Tensor, i: int, y: Tensor, ask: Questions, noise: Noise
    ) -> Tensor:
        last = i == self.steps - 1
        return super().step(plan, i, y, ask, (lambda: torch.zeros_like(y)) if last else noise)
