"""A learned nonlinear drift, and the linear diffusion it starts as, for points of the plane.

    python -m inference.train --model toy --guide inference.guides.learned_drift:learned
    python -m inference.train --model toy --guide inference.guides.learned_drift:linear
    python -m inference.compare runs/toy-learned-0-0 runs/toy-linear-0-0 --out comparison

``learned`` is critically-damped Langevin diffusion with a small network in its drift, trained with
the score; ``linear`` is the same without the network. Both are simulated and scored alike, so that
equal steps are comparable. ``closed`` is the linear one in closed form, to see the cost of
simulation. ``steep`` shows what goes wrong with a network without a limit on its slope.

A function that returns a diffusion is a guide. A drift of your own, in formulas, is a subclass of
:class:`pyro_mdm.NonlinearDiffusion`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_mdm import CLD, LearnedDrift, LinearDiffusion, Simulated, Simulation
from pyro_mdm.diffusions.clocks import ConstantBeta
from pyro_mdm.networks import MLP

SIMULATION = Simulation(step_size=1 / 80, points=16, objective="local_dsm")
"""Settings for a small network: steps cost the most, so that points on a path are many."""


class Field(nn.Module):
    """A field on states with a Lipschitz constant of at most ``steepness``; 0 at first.

    The bound is for paths in continuous time. A field that changes much within one step of the
    simulation moves simulated paths differently, and training exploits this error of the step: the
    estimate of the bound gets better than any true one. So the Lipschitz constant is limited, by
    the Frobenius norms of the two layers.

    Call: states (n, features) and noise levels (n,) -> (n, features).
    """

    def __init__(self, features: int, hidden: int = 64, steepness: float = 1.0) -> None:
        super().__init__()
        self.inlet = nn.Linear(features + 1, hidden)
        self.outlet = nn.Linear(hidden, features, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))
        self.steepness, self.bend = steepness, 1.5 * hidden**0.5

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        W, V = self.inlet.weight, self.outlet.weight
        inputs = torch.cat([y, level[:, None] / 5], 1)
        h = inputs @ (W / W.norm()).mT + self.inlet.bias / self.bend
        h = torch.tanh(self.bend * h) / self.bend  # slope 1 at most
        return self.steepness * torch.tanh(self.gain) * (h @ (V / V.norm()).mT)


def closed(**options: Any) -> LinearDiffusion:
    """CLD at a constant rate, stationary by T; options are those of ``CLD``."""
    return CLD(beta=ConstantBeta(5.0), **options)


def linear(max_log_snr: float) -> Simulated:
    """CLD at a constant rate, simulated."""
    return Simulated(closed(max_log_snr=max_log_snr), SIMULATION)


def learned(max_log_snr: float) -> LearnedDrift:
    """CLD, simulated, with a network of x and v in the plane added to its drift."""
    return LearnedDrift(closed(max_log_snr=max_log_snr), Field(4), simulation=SIMULATION)


def steep(max_log_snr: float) -> LearnedDrift:
    """CLD with a network of unlimited slope, whose estimated bound is too good: see ``Field``."""
    return LearnedDrift(closed(max_log_snr=max_log_snr), MLP(4, 64, 1), simulation=SIMULATION)
