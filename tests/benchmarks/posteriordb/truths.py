"""What reference draws say by themselves: the evidence, and how far as many draws are from others.

The evidence is by importance weights of a Student distribution that is fitted to reference draws.
The noise is what the energy distance of perfect draws exceeds once in a hundred times, by draws of
the reference that are held to others of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.benchmarks.densities.base import Draws
from tests.benchmarks.densities.references import Students, fitted
from tests.benchmarks.densities.scores import TOGETHER, of_weights
from tests.benchmarks.posteriordb.targets import Loaded

__all__ = ["VALUES", "noise", "truths"]

VALUES = ("log_z", "log_z_se", "ess", "k_hat", "noise")
WEIGHED = 20_000
SPLITS = 100
ROWS = 1_000


def truths(loaded: Loaded, draws: int, seed: int = 0) -> dict[str, float]:
    """log Z, its standard error, effective draws of all and k̂ of the weights; and the noise of
    energy distances of so many draws, by the names of ``VALUES``."""
    log_weights = weighed(loaded, WEIGHED, seed).log_weights
    assert log_weights is not None
    scores = of_weights(log_weights)
    made = {name: scores[name] for name in ("log_z", "ess", "k_hat")}
    made["log_z_se"] = math.sqrt((1 / made["ess"] - 1) / WEIGHED)
    return made | {"noise": noise(loaded.draws, draws, seed)}


def weighed(loaded: Loaded, n: int, seed: int) -> Draws:
    """Draws of the Student distribution, and their log weights."""
    student = Students(*(part.to(loaded.draws) for part in fitted(loaded.draws, loaded.target)))
    x = student.draw(n, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        pieces = [
            loaded.target.log_density(rows) - student.log_density(rows) for rows in x.split(ROWS)
        ]
    return Draws(x, torch.cat(pieces).nan_to_num(-math.inf, -math.inf, -math.inf))


def noise(x: Tensor, draws: int, seed: int) -> float:
    """The 99% quantile of energy distances, as scores have them, of draws to half of the others.

    Args:
        x: reference draws (n, dim), half of which methods are held to.
        draws: number of draws that are held to it, at most n / 2.
        seed: of the splits.
    """
    half = len(x) // 2
    scaled = (x / x.std(0)).float()
    far = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(x), generator=generator) for _ in range(SPLITS)]
    pieces = [[*of[:draws].split(TOGETHER), *of[-half:].split(TOGETHER)] for of in orders]
    of_draws = -(-draws // TOGETHER)
    sizes = torch.tensor([len(rows) for rows in pieces[0]]).double()
    member = torch.zeros(SPLITS, len(sizes), len(x)).to(far)
    for split, rows_of in enumerate(pieces):
        for piece, rows in enumerate(rows_of):
            member[split, piece, rows] = 1
    totals = ((member.flatten(0, 1) @ far).view_as(member) @ member.mT).double()
    within = totals.diagonal(0, 1, 2) / (sizes * (sizes - 1))
    between = totals[:, :of_draws, of_draws:].sum((1, 2)) / (draws * half)
    apart = 2 * between - within[:, :of_draws].mean(1) - within[:, of_draws:].mean(1)
    return float(apart.quantile(0.99))
