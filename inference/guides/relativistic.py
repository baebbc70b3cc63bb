"""A nonlinear diffusion from an energy: relativistic motion with a friction that fades.

    python -m inference.train --model toy --guide inference.guides.relativistic:Relativistic

The kinetic energy m c² sqrt(1 + v²/(m c²)) grows like |v|: stationary velocities have exponential
tails, and x moves no faster than c. Friction 2 γ / (1 + v²/(m c²)) is strong for slow motion and
weak for fast motion, so that D depends on the state. The stationary law ∝ exp(-H) is the generative
model's prior; any such energy and matrices make a diffusion (Ma, Chen & Fox 2015).

Source of the kinetic energy: Lu et al., "Relativistic Monte Carlo", AISTATS 2017.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_mdm import HamiltonianDiffusion, Simulation
from pyro_mdm.diffusions.clocks import ConstantBeta


class Relativistic(HamiltonianDiffusion):
    """The diffusion of H = x²/2 + m c² sqrt(1 + v²/(m c²)) with m = 1.

    Args:
        speed: c, the limit of the speed; for large c it is like CLD.
        friction: γ.
        options: options of :class:`HamiltonianDiffusion` (max_log_snr, …).
    """

    def __init__(self, speed: float = 1.5, friction: float = 1.0, **options: Any) -> None:
        c2 = speed**2

        def potential(x: Tensor) -> Tensor:
            return x.square() / 2

        def kinetic(v: Tensor) -> Tensor:
            return c2 * (1 + v.square() / c2).sqrt()

        def fading(y: Tensor) -> Tensor:
            v = y[:, 1]
            gamma = 2 * friction / (1 + v.square() / c2)
            return torch.diag_embed(torch.stack([torch.zeros_like(v), gamma], -1))

        options.setdefault("beta", ConstantBeta(6.0))
        options.setdefault("simulation", Simulation(step_size=1 / 48, objective="local_dsm"))
        super().__init__([potential, kinetic], [[0.0, -1.0], [1.0, 0.0]], fading, **options)
