"""What programs say and draw of a diffusion by its kind: kernels in closed form, or paths."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pyro_mdm import Diffusion, LinearDiffusion, NonlinearDiffusion
from pyro_mdm.diffusions.per_dimension import PerDimensionDiffusion
from pyro_mdm.diffusions.wrapped import WrappedDiffusion
from pyro_mdm.plots import tensorboard

__all__ = ["Shown", "shown"]

D = TypeVar("D", bound=Diffusion)

Data = Callable[[int], Tensor]
"""Gives so many training data, at most, in model space."""

CURVES, VIEWS = 256, 512
"""Data that simulated paths start at, and that views of a diffusion in closed form are of."""


class Shown(ABC, Generic[D]):
    """What there is to see of a diffusion."""

    def __init__(self, diffusion: D, seed: int) -> None:
        self.diffusion, self.seed = diffusion, seed

    @property
    @abstractmethod
    def matrices(self) -> dict[str, Tensor]:
        """Q and D as they are, by name; empty where there are none."""

    @property
    @abstractmethod
    def rank(self) -> str:
        """The rank of D, or a dash; runs of one table have the same columns."""

    @property
    @abstractmethod
    def simulation(self) -> str:
        """How paths are simulated and the bound is estimated; every run has an entry."""

    @abstractmethod
    def write_numbers(self, writer: SummaryWriter, data: Data, step: int) -> None:
        """Curves over training of what is learned."""

    @abstractmethod
    def write_figures(self, writer: SummaryWriter, data: Data, step: int) -> None:
        """Figures of the diffusion as it is."""

    @abstractmethod
    def write_noising(self, writer: SummaryWriter, x: Tensor, step: int) -> None:
        """Data x (n, *event_shape) at several times, where kernels draw them."""


class Kernels(Shown[LinearDiffusion]):
    """Of a diffusion in closed form."""

    @property
    def matrices(self) -> dict[str, Tensor]:
        return dict(zip(("Q", "D"), self.diffusion.frozen(), strict=False))

    @property
    def rank(self) -> str:
        return str(int(torch.linalg.matrix_rank(self.diffusion.frozen().D.detach())))

    @property
    def simulation(self) -> str:
        return "closed form"

    def write_numbers(self, writer: SummaryWriter, data: Data, step: int) -> None:
        tensorboard.write_diffusion(writer, self.diffusion, step)

    def write_figures(self, writer: SummaryWriter, data: Data, step: int) -> None:
        tensorboard.write_curves(writer, self.diffusion, step)
        tensorboard.write_views(writer, self.diffusion, data(VIEWS), step)

    def write_noising(self, writer: SummaryWriter, x: Tensor, step: int) -> None:
        tensorboard.write_noising(writer, self.diffusion, x, step, seed=self.seed)


class Paths(Shown[NonlinearDiffusion]):
    """Of a diffusion whose paths are simulated."""

    @property
    def matrices(self) -> dict[str, Tensor]:
        return {}

    @property
    def rank(self) -> str:
        return "–"

    @property
    def simulation(self) -> str:
        own = self.diffusion.simulation
        return f"{own.solver(self.diffusion)}, steps of {own.step_size:g}, {own.objective}"

    def write_numbers(self, writer: SummaryWriter, data: Data, step: int) -> None:
        tensorboard.write_simulated(writer, self.diffusion, data(CURVES), step, seed=self.seed)

    def write_figures(self, writer: SummaryWriter, data: Data, step: int) -> None:
        tensorboard.write_paths(writer, self.diffusion, data(CURVES), step, seed=self.seed)

    def write_noising(self, writer: SummaryWriter, x: Tensor, step: int) -> None:
        return


@functools.singledispatch
def shown(
    diffusion: Diffusion, seed: int = 0
) -> Shown[LinearDiffusion] | Shown[NonlinearDiffusion]:
    """What there is to see of a diffusion, by its kind; ``seed`` is of paths and noise."""
    return Paths(cast(NonlinearDiffusion, diffusion), seed)


@shown.register(LinearDiffusion)
@shown.register(PerDimensionDiffusion)
@shown.register(WrappedDiffusion)
def _(diffusion: Diffusion, seed: int = 0) -> Shown[LinearDiffusion]:
    return Kernels(cast(LinearDiffusion, diffusion), seed)
