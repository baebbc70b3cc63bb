"""The guide: the noising diffusion started at the data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pyro
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion, require
from pyro_mdm.diffusions.simulation import Simulation
from pyro_mdm.model import check_diffusion, check_times
from pyro_mdm.paths.base import NoisingLaw
from pyro_mdm.paths.laws import noising_law
from pyro_mdm.program import Registered, batch_plate, grid_times, restored_times
from pyro_mdm.support.checks import check_count, check_instance
from pyro_mdm.support.settings import described

__all__ = ["DiffusionGuide"]


class DiffusionGuide(Registered):
    """The noising program ``path ~ q(path | x)``, in a plate of the batch like the model's.

    The path's distribution is in closed form (:class:`~pyro_mdm.paths.NoisingPath`) where the
    diffusion has one, as linear ones do, and simulated otherwise
    (:class:`~pyro_mdm.SimulatedPath`).

    Args:
        diffusion: the noising diffusion, the same object as the model's.
        times: times of the path, as the model's: a number N of times or the times from ε to T,
            (N,), for a grid; None for the state at ε alone.
        simulation: settings for simulating a nonlinear diffusion; the diffusion's by default.
        plate: name of the plate over the batch, the same as the model's.
        event_dim: number of dimensions of a datum, for data with sizes of outer plates before the
            batch's; by default all of x's but the first.

    Raises:
        TypeError: an object that is no diffusion, e.g. a model or a class.
        ValueError: a simulation for a diffusion in closed form. On call: no data, or data that
            :class:`DiffusionModel` refuses too.

    Site: ``"path"``, (*batch, N, K, *event_shape); before it ``"context"`` ~ q(c | x), (*batch,
    size), where the diffusion depends on one.

    Example:
        >>> from pyro_mdm import CLD
        >>> guide = DiffusionGuide(CLD())
        >>> guide(torch.randn(8, 2)).shape  # 8 data, one time, K = 2 variables, 2 dimensions
        torch.Size([8, 1, 2, 2])
    """

    def __init__(
        self,
        diffusion: Diffusion,
        times: int | Tensor | None = None,
        *,
        simulation: Simulation | None = None,
        plate: str = "data",
        event_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_instance("plate", plate, str, "it is the name of the plate over the batch")
        if event_dim is not None:
            check_count("event_dim", event_dim, "the number of dimensions of a datum", least=0)
        check_diffusion(diffusion)
        check_times(times)
        if simulation is not None:
            check_instance("simulation", simulation, Simulation, "e.g. Simulation(step_size=0.02)")
            fix = "leave it out, or simulate with Simulated(diffusion)"
            require(diffusion, Cap.SIMULATED, who="simulation", fix=fix)
        self.diffusion = diffusion
        self.times = times
        self.simulation = simulation
        self.plate = plate
        self.event_dim = event_dim

    @property
    def is_paired(self) -> bool:
        """Whether :class:`~pyro_mdm.MDM_ELBO` draws the context twice, one the other's baseline."""
        context = self.diffusion.context
        return context is not None and not context.reparameterized

    def settings(self) -> dict[str, Any]:
        simulation = None if self.simulation is None else dataclasses.asdict(self.simulation)
        return {"times": described(self.times), "simulation": simulation}

    def restore(self, saved: dict[str, Any]) -> None:
        self.times, simulation = restored_times(saved["times"]), saved["simulation"]
        self.simulation = None if simulation is None else Simulation(**simulation)

    def forward(
        self,
        x: Tensor | None = None,
        given: object = None,
        *,
        batch_size: int | None = None,
        num_data: int | None = None,
    ) -> Tensor:
        """A noising path of data, for the same arguments as the model's.

        Args:
            x: data, (batch, *event_shape). An entry that is NaN is missing and noised as 0; the
                model leaves it out or raises.
            given: contexts of the model, which do not affect the noise.
            batch_size: size of the batch, for a check against the data's.
            num_data: size of the data set of which x is a subsample; scales the loss.

        Returns:
            The path, (*batch, N, K, *event_shape).

        Raises:
            ValueError: no data, data that the diffusion cannot noise, or sizes that disagree.
        """
        if x is None:
            raise ValueError(f"the guide noises data and was given none (batch_size={batch_size})")
        times = None if self.times is None else grid_times(self.diffusion, self.times)
        if isinstance(x, Tensor) and x.is_floating_point():
            # a missing entry becomes 0: the model does not look at its noise
            x = x.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
        law = self.law(x, times)
        with self.running(), batch_plate(self.plate, law.batch_shape, batch_size, num_data):
            if (latent := self.diffusion.context) is not None:
                context = pyro.sample("context", latent.posterior(law.x, law.x_dim))
                law = self.law(x, times, context)
            return pyro.sample("path", law)

    def law(
        self, x: Tensor, times: Tensor | None = None, context: Tensor | None = None
    ) -> NoisingLaw:
        """The distribution of the path.

        Args:
            x: data, (batch, *event_shape).
            times: times of the path, (N,); None for the state at ε alone.
            context: latent contexts, (batch, size), of a diffusion that depends on one.
        """
        ours: dict[str, Any] = {"event_dim": self.event_dim, "simulation": self.simulation}
        diffusion = self.diffusion if context is None else self.diffusion.given(context)
        return noising_law(diffusion, x, times, **ours)
