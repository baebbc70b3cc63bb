"""The inference program: the noising diffusion started at the data."""

from __future__ import annotations

import pyro
from torch import Tensor

from pyro_mdm.diffusions import LinearDiffusion
from pyro_mdm.laws import NoisingPath
from pyro_mdm.model import Registered, data_plate, grid_times

__all__ = ["DiffusionGuide"]


class DiffusionGuide(Registered):
    """``path ~ q(path | x)`` under ``plate("data")``.

    Args:
        diffusion: the noising diffusion, the same object as the model's.
        times: as the model's: None for the state at ε alone, a number N or (N,) times for a grid.

    Site: ``"path"``, (*batch, N, K, *event_shape).
    """

    def __init__(self, diffusion: LinearDiffusion, times: int | Tensor | None = None) -> None:
        super().__init__()
        self.diffusion = diffusion
        self.times = times

    def forward(
        self,
        x: Tensor | None = None,
        *,
        batch_size: int | None = None,
        num_data: int | None = None,
    ) -> Tensor:
        """Noise x (batch, *event_shape); returns the path. Takes the model's arguments."""
        self.register()
        if x is None:
            raise ValueError(f"the guide noises data and was given none (batch_size={batch_size})")
        times = None if self.times is None else grid_times(self.diffusion, self.times)
        with data_plate(len(x), num_data):
            return pyro.sample("path", NoisingPath(self.diffusion, x, times))
