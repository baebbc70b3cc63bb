"""A learned nonlinear drift beside the linear diffusion it begins as, on points of the plane.

    python -m inference.train --model toy --guide inference.guides.learned_drift:learned
    python -m inference.train --model toy --guide inference.guides.learned_drift:linear
    python -m inference.compare runs/toy-learned-0-0 runs/toy-linear-0-0 --out comparison

``learned`` is critically-damped Langevin diffusion with a small network in its drift, trained with
the score; ``linear`` is the same without the network. Both are simulated and scored alike, so that
a budget of steps means the same for both. ``closed`` is the linear one in closed form, to see what
simulation costs.

``steep`` is what not to do: a network that may be as steep as it likes.

This is the whole of it: a function that returns a diffusion is a guide. A drift of your own, in
formulas, is a subclass of :class:`pyro_mdm.NonlinearDiffusion`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_mdm import CLD, LearnedDrift, LinearDiffusion, Simulated, Simulation
from pyro_mdm.diffusions.clocks import ConstantBeta
from pyro_mdm.networks import MLP

SIMULATION = Simulation(step_size=1 / 80, points=16, objective="local_dsm")
"""Beside so small a network steps cost the most, so that a path is looked at often."""


class Field(nn.Module):
    """A field on states that is nowhere steeper than ``steepness``; zero at first.

    The bound is of paths in continuous time. A field that changes much within one step of the
    simulation moves simulated paths as it would move no real ones, and a field that is trained
    finds out: it gains on the bound what only the step loses. So its Lipschitz constant is limited,
    by the Frobenius norms of its two layers.

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
    """CLD at a constant rate, at rest by T: options are those of ``CLD``."""
    return CLD(beta=ConstantBeta(5.0), **options)


def linear(max_log_snr: float) -> Simulated:
    """CLD at a constant rate, simulated."""
    return Simulated(closed(max_log_snr=max_log_snr), SIMULATION)


def learned(max_log_snr: float) -> LearnedDrift:
    """CLD, simulated, with a network added to its drift, which sees x and v in the plane."""
    return LearnedDrift(closed(max_log_snr=max_log_snr), Field(4), simulation=SIMULATION)


def steep(max_log_snr: float) -> LearnedDrift:
    """A network without limits, whose bound is soon better than any can be: see ``Field``."""
    return LearnedDrift(closed(max_log_snr=max_log_snr), MLP(4, 64, 1), simulation=SIMULATION)
