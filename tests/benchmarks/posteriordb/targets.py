"""The posteriors by name, as targets of the study of automatic guides, with their references."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.benchmarks.densities.base import Target
from tests.benchmarks.densities.scores import Reference
from tests.benchmarks.densities.targets import of_program, sites_of
from tests.benchmarks.posteriordb import equations, latents, regressions, series
from tests.benchmarks.posteriordb.base import Folder, Posterior

__all__ = ["POSTERIORS", "Loaded", "worst_identity"]

POSTERIORS: dict[str, Posterior] = {
    **regressions.POSTERIORS,
    **series.POSTERIORS,
    **latents.POSTERIORS,
    **equations.POSTERIORS,
}


class Loaded:
    """A posterior with its data, in float64.

    Args:
        name: its name.
        folder: the folder of posteriordb.

    Attributes:
        target: the program and its density of unconstrained latents.
        draws: reference draws of these, (n, dim).
    """

    def __init__(self, name: str, folder: Folder) -> None:
        torch.set_default_dtype(torch.float64)
        posterior, data = POSTERIORS[name], folder.data(name)
        program = posterior.program(data)
        self.target: Target = of_program(name, program)
        values = posterior.sites(folder.draws(name), data)
        sites = sites_of(program)
        if values.keys() != sites.keys():
            raise ValueError(f"{name} has the sites {[*sites]}, and draws are of {[*values]}")
        rows = [
            site.transform.inv(values[key]).flatten(1)
            if site.shape
            else site.transform.inv(values[key])[:, None]
            for key, site in sites.items()
        ]
        self.draws: Tensor = torch.cat(rows, 1)

    @property
    def reference(self) -> Reference:
        return Reference(self.draws, None)


def worst_identity(loaded: Loaded, most: int = 10_000) -> float:
    """The largest number of standard errors by which the program's slope disagrees with draws.

    For draws of the density itself E[∂_j log p] = 0 and E[(x_j - m_j) ∂_j log p] = -1 in every
    dimension j, by integration by parts; a wrong prior, likelihood or Jacobian moves them.
    """
    x = loaded.draws[:most].clone().requires_grad_()
    (slope,) = torch.autograd.grad(loaded.target.log_density(x).sum(), x)
    x = x.detach()
    moved = (x - x.mean(0)) * slope + 1
    values = torch.cat([slope, moved], 1)
    off = values.mean(0) / (values.std(0) / math.sqrt(len(x)))
    return float(off.abs().max())
