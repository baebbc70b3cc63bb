"""Settings of simulated paths and of the estimate of the bound on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.paths.flow import ProbeLaw, Probes
from pyro_mdm.support.checks import check_count, check_number
from pyro_mdm.support.settings import Recorded

__all__ = ["Simulation"]


@dataclass(frozen=True)
class Simulation(Recorded):
    """Settings for simulating paths and estimating the bound on them.

    Args:
        step_size: the average step, as a fraction of the way from ε to T
            (:meth:`~pyro_mdm.NonlinearDiffusion.progress`); within a stratum steps are
            even in s. Its bias is of first order in the step for ``euler`` and of second for
            ``srk``; measure it with :func:`pyro_mdm.simulated.evaluation.step_size_bias`.
        points: number of evaluations of the integrand along a path, at drawn times. More pay off
            where the network is cheap beside the steps.
        method: of torchsde: ``srk`` (two drift evaluations per step; for noise that does not depend
            on the state, and the default there) or ``euler`` (the default otherwise).
        objective: ``ism`` or ``local_dsm``, see :mod:`pyro_mdm.simulated.path_integral`.
        increment: of ``local_dsm``, as a fraction of a step. Where noise depends on the state, its
            bias is of first order in this.
        probes: number of Hutchinson probes, or ``exact``; by default exact for up to 8 derivatives
            and otherwise 1.
        probe_law: ``rademacher`` (±1) or ``gaussian``.

    Raises:
        ValueError: a step size that is not positive, an unknown name, fewer than 1 probe.
    """

    step_size: float = 0.02
    points: int = 4
    method: Literal["euler", "srk"] | None = None
    objective: Literal["ism", "local_dsm"] = "ism"
    increment: float = 0.05
    probes: Probes = None
    probe_law: ProbeLaw = "rademacher"

    def __post_init__(self) -> None:
        expected = "a positive part of the way from ε to T, e.g. 0.02"
        check_number("step_size", self.step_size, expected, positive=True)
        expected = "a part of a step, in (0, 1)"
        if not 0 < check_number("increment", self.increment, expected) < 1:
            raise ValueError(f"increment is {self.increment}, expected {expected}")
        check_count("points", self.points, "the number of evaluations along a path")
        choices = {
            "method": (None, "euler", "srk"),
            "objective": ("ism", "local_dsm"),
            "probe_law": ("rademacher", "gaussian"),
        }
        for name, values in choices.items():
            if getattr(self, name) not in values:
                text = ", ".join(map(str, values))
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {text}")
        if self.probes not in (None, "exact") and not (
            type(self.probes) is int and self.probes >= 1
        ):
            raise ValueError(f"probes is {self.probes!r}, expected 'exact' or a number ≥ 1")

    def steps(self) -> int:
        """The number of steps of a path, a multiple of its points."""
        return self.points * max(1, math.ceil(1 / (self.points * self.step_size) - 1e-9))

    def solver(self, diffusion: Diffusion) -> str:
        """The torchsde method for a diffusion.

        Raises:
            ValueError: ``srk`` for noise that depends on the state.
        """
        if not diffusion.noise_depends_on_state:
            return self.method or "srk"
        if self.method == "srk":
            raise ValueError(
                f"method is 'srk', but the noise of {type(diffusion).__name__} depends on the "
                "state; use method='euler'"
            )
        return "euler"
