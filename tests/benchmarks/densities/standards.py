"""Standard targets of the literature on samplers, and one with a first-order phase transition.

Tables of sonar, ionosphere and German credit are read from a clone of the *Beyond ELBOs* study,
https://github.com/DenisBless/variational_sampling_methods, whose models and priors these are; the
prior of German credit is that of https://github.com/DenisBless/UnderdampedDiffusionBridges.
"""

from __future__ import annotations

import functools
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.benchmarks.densities.base import Modes, Target
from tests.benchmarks.densities.targets import of_program, seeded

__all__ = ["TABLES", "makers", "phase_transition", "seeds"]

SOURCE = "https://github.com/DenisBless/variational_sampling_methods"
TABLES = {
    "sonar": "sonar_full.pkl",
    "ionosphere": "ionosphere_full.pkl",
    "german_credit": "german.data-numeric",
}
"""Files of the folder targets/data."""


def makers(folder: Path) -> dict[str, Callable[[], Target]]:
    """Functions that make the targets, by name.

    Args:
        folder: a clone of the study's repository, of which the three tables are read.
    """
    made: dict[str, Callable[[], Target]] = {"seeds": seeds}
    made |= {name: functools.partial(regression, name, folder) for name in TABLES}
    for dim in (10, 20, 50):
        made[f"phase_transition_{dim}"] = functools.partial(phase_transition, dim)
    return made


# -- regressions -----------------------------------------------------------------------------------

GERMINATED = "10 23 23 26 17 5 53 55 32 46 10 8 10 8 23 0 3 22 15 32 3"
OF_SEEDS = "39 62 81 51 39 6 74 72 51 79 13 16 30 28 45 4 12 41 30 51 7"


def seeds() -> Target:
    """Germination of two kinds of seed by two extracts of roots, on 21 plates (Crowder, *Beta-
    binomial Anova for proportions*, 1978), with an effect of each plate."""
    germinated, total = (
        torch.tensor([float(number) for number in numbers.split()])
        for numbers in (GERMINATED, OF_SEEDS)
    )
    kind = (torch.arange(21) >= 11).float()
    extract = ((torch.arange(21) >= 5) & (kind == 0) | (torch.arange(21) >= 16)).float()

    def program() -> None:
        tau = pyro.sample("tau", dist.Gamma(0.01, 0.01)).unsqueeze(-1)
        names = ("a_0", "a_1", "a_2", "a_12")
        a = [pyro.sample(name, dist.Normal(0.0, 10.0)).unsqueeze(-1) for name in names]
        b = pyro.sample("b", dist.Normal(torch.zeros(21), tau.rsqrt()).to_event(1))
        logits = a[0] + a[1] * kind + a[2] * extract + a[3] * kind * extract + b
        pyro.sample("r", dist.Binomial(total, logits=logits).to_event(1), obs=germinated)

    return of_program("seeds", program)


class _Arrays(pickle.Unpickler):
    """Pickled arrays of numpy, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }:
            raise pickle.UnpicklingError(f"{module}.{name} is in the file, expected arrays only")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def table(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, columns) and labels of 0 and 1, (n,) (SystemExit: there is no such file)."""
    file = folder / "targets" / "data" / TABLES[name]
    if not file.exists():
        raise SystemExit(f"{file} is missing; git clone {SOURCE}, and pass its folder by --folder")
    if name == "german_credit":
        rows = np.loadtxt(file)
        return rows[:, :-1], rows[:, -1] - 1
    features, labels = _Arrays(io.BytesIO(file.read_bytes())).load()
    return features, (labels.reshape(-1) + 1) // 2


def regression(name: str, folder: Path) -> Target:
    """A logistic regression with an intercept: on standardized columns with prior N(0, 1), or of
    German credit on columns in units of their deviations with prior N(0, 10²)."""
    features, labels = table(name, folder)
    is_credit = name == "german_credit"
    spread = features.std(0)
    columns = (features - (0 if is_credit else features.mean(0))) / np.where(spread > 0, spread, 1)
    x = torch.from_numpy(np.column_stack([np.ones(len(columns)), columns])).float()
    y = torch.from_numpy(labels).float()
    scale = 10.0 if is_credit else 1.0

    def program() -> None:
        prior = dist.Normal(torch.zeros(x.shape[1]), scale).to_event(1)
        weights = pyro.sample("weights", prior)
        pyro.sample("labels", dist.Bernoulli(logits=weights @ x.T).to_event(1), obs=y)

    return of_program(name, program)


# -- a first-order phase transition ----------------------------------------------------------------


def phase_transition(dim: int = 10, narrow: float = 0.1, share: float = 0.9) -> Target:
    """A spike in a slab: a narrow Gaussian of most of the evidence in a standard one, under a
    uniform prior on [-5, 5]^dim (that of blackjax's sampling book has the share 0.9 in 10
    dimensions).

    At no temperature between are there draws on the way from the slab into the spike, whose volume
    is narrow^dim of the slab's.

    Args:
        dim: number of latents.
        narrow: deviation of the spike.
        share: the spike's part of the evidence.
    """
    half = 5.0
    box = dist.Uniform(torch.full((dim,), -half), half).to_event(1)
    scales = torch.tensor([1.0, narrow])
    log_masses = torch.tensor([1.0, share / (1 - share)]).log()  # the slab's peak is 1 high

    def log_likelihood(x: Tensor) -> Tensor:
        squares = x.square().sum(-1, keepdim=True) / scales.square()
        return (log_masses - squares / 2 - dim * scales.log()).logsumexp(-1)

    def program() -> None:
        pyro.factor("data", log_likelihood(pyro.sample("x", box)))

    def exact(n: int, seed: int) -> Tensor:
        generator = seeded(seed)
        in_spike = torch.rand(n, generator=generator) < share
        x = torch.randn(n, dim, generator=generator) * torch.where(in_spike, narrow, 1.0)[:, None]
        return ((x.clamp(-half, half) + half) / (2 * half)).logit(1e-6)

    # each Gaussian integrates to (2π)^{dim/2} in the box, but for what is outside of it
    inside = torch.erf(half / scales.double() / math.sqrt(2))
    total = (log_masses.double() + dim * inside.log()).logsumexp(0)
    log_z = float(total) + dim / 2 * math.log(2 * math.pi) - dim * math.log(2 * half)

    def is_slab(u: Tensor) -> Tensor:
        x = 2 * half * u.sigmoid() - half
        return (x.square().sum(-1) > dim * narrow).long()  # both are far from it

    return of_program(
        f"phase_transition_{dim}",
        program,
        log_z=log_z,
        exact=exact,
        modes=Modes(is_slab, torch.tensor([share, 1 - share])),
    )
