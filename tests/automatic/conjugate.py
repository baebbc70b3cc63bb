"""A program whose posterior is Gaussian, for the guides of this room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mdm.automatic import AutoMDM

ONES = torch.ones(3, 2)
PRECISION = 1 + 3 / 0.25
CENTER, DEVIATION = 12 / PRECISION, PRECISION**-0.5
JOINT = dist.MultivariateNormal(torch.zeros(3), 0.25 * torch.eye(3) + torch.ones(3, 3))
EVIDENCE = 2 * float(JOINT.log_prob(torch.ones(3)))


def conjugate(data: Tensor = ONES) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", 3):
        pyro.sample("data", dist.Normal(mean, 0.5).to_event(1), obs=data)


def made(program: Callable[..., Any], *args: Any, **options: Any) -> AutoMDM:
    """A guide that has seen its program."""
    guide = AutoMDM(program, **{"steps": 4, **options})
    guide(*args)
    return guide
