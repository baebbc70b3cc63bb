"""Reports of a diffusion in words and figures, by kernels in closed form or simulated paths."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pyro_mdm import Diffusion, LinearDiffusion, NonlinearDiffusion
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.linear import frozen
from pyro_mdm.plots import tensorboard
from pyro_mdm.plots.pictures import noising_figure

Data = Callable[[int], Tensor]
"""A function that returns at most so many training data in model space."""

CURVES, VIEWS = 256, 512
"""The number of data for simulated paths, and for views of a diffusion in closed form."""


@dataclass(frozen=True)
class ShownKernels:
    """Reports of a diffusion in closed form."""

    diffusion: LinearDiffusion
    seed: int

    @property
    def matrices(self) -> dict[str, Tensor]:
        """Q and D by name."""
        return dict(zip(("Q", "D"), frozen(self.diffusion), strict=False))

    @property
    def rank(self) -> str:
        """The rank of D, for tables; a dash where there is none."""
        return str(int(torch.linalg.matrix_rank(frozen(self.diffusion).D.detach())))

    @property
    def simulation(self) -> str:
        """The settings of the simulation, in words."""
        return "closed form"

    def write_numbers(self, writer: SummaryWriter, data: Data, step: int) -> None:
        """Write learned numbers as curves over training."""
        tensorboard.write_diffusion(writer, self.diffusion, step)

    def write_figures(self, writer: SummaryWriter, data: Data, step: int) -> None:
        """Write figures of the diffusion."""
        tensorboard.write_curves(writer, self.diffusion, step)
        tensorboard.write_views(writer, self.diffusion, data(VIEWS), step)

    def write_noising(self, writer: SummaryWriter, x: Tensor, step: int) -> None:
        """Write a figure of data x (n, *event_shape) at several times."""
        figure = noising_figure(self.diffusion, x, seed=self.seed)
        writer.add_figure("noising/noising", figure, step)


@dataclass(frozen=True)
class ShownPaths:
    """Reports of a diffusion whose paths are simulated."""

    diffusion: NonlinearDiffusion
    seed: int
    matrices: ClassVar[Mapping[str, Tensor]] = {}
    rank: ClassVar[str] = "–"

    @property
    def simulation(self) -> str:
        settings = self.diffusion.simulation
        solver = settings.solver(self.diffusion)
        return f"{solver}, steps of {settings.step_size:g}, {settings.objective}"

    def write_numbers(self, writer: SummaryWriter, data: Data, step: int) -> None:
        tensorboard.write_simulated(writer, self.diffusion, data(CURVES), step, seed=self.seed)

    def write_figures(self, writer: SummaryWriter, data: Data, step: int) -> None:
        tensorboard.write_paths(writer, self.diffusion, data(CURVES), step, seed=self.seed)

    def write_noising(self, writer: SummaryWriter, x: Tensor, step: int) -> None:
        """Do nothing, without kernels."""


@functools.singledispatch
def shown(diffusion: Diffusion, seed: int = 0) -> ShownKernels | ShownPaths:
    """The reports of a diffusion, by its kind; ``seed`` is that of paths and noise."""
    return ShownPaths(cast(NonlinearDiffusion, diffusion), seed)


@shown.register(Kernels)
def _(diffusion: Kernels, seed: int = 0) -> ShownKernels:
    return ShownKernels(cast(LinearDiffusion, diffusion), seed)
