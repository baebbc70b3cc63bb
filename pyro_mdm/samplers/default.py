"""The sampler that is used where none is chosen."""

from __future__ import annotations

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.samplers.base import Sampler
from pyro_mdm.samplers.euler_maruyama import EulerMaruyama
from pyro_mdm.samplers.exponential import ExponentialIntegrator

__all__ = ["default_sampler"]


def default_sampler(diffusion: Diffusion) -> Sampler:
    """``ExponentialIntegrator(25)``; ``EulerMaruyama(256)`` for one without a closed form."""
    return ExponentialIntegrator(25) if diffusion.closed_form else EulerMaruyama(256)
