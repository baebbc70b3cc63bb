r"""Simulation-based calibration: ranks of true parameters among draws of their posterior.

If θ* is drawn from the prior and x from the simulator, the rank of each entry of θ* among draws of
p(θ | x) is uniform (Talts et al., "Validating Bayesian Inference Algorithms with Simulation-Based
Calibration", 2018). This is necessary, not sufficient: the prior passes it too. So compare the log
density of the truth with that of the prior (:func:`~pyro_mdm.posteriors.log_prior`) and of a
Gaussian (:class:`LinearGaussian`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyro_mdm.posteriors.reading import Draws
from pyro_mdm.posteriors.simulation import simulate
from pyro_mdm.support.checks import checked_arguments

__all__ = ["NEW_SEED", "Calibration", "Sampled", "calibrate", "new_simulations", "ranks"]

NEW_SEED = 2**20
"""The number added to the seed of simulations that test a posterior. With the same seed they would
be its training data."""


class Sampled(Protocol):
    """The method of a posterior that can be calibrated, as of ``AmortizedPosterior``."""

    def sample(self, data: Mapping[str, Tensor], n: int, *, seed: int | None = None) -> Draws: ...


@dataclass(frozen=True, repr=False)
class Calibration:
    """Ranks of true parameters among draws of their posterior, with tests of uniformity."""

    ranks: dict[str, Tensor]  # (simulations, *shape) by site, whole numbers from 0 to draws
    draws: int  # from each posterior

    @classmethod
    def from_draws(cls, truth: Draws, drawn: Draws) -> Calibration:
        """The ranks of true parameters among draws of their posteriors.

        Args:
            truth: the true parameters by site, (simulations, *shape).
            drawn: the draws by site, (simulations, draws, *shape).
        """
        by_site = {
            name: ranks(value.transpose(0, 1), truth[name].reshape(len(value), *value.shape[2:]))
            for name, value in drawn.items()
        }
        return cls(by_site, next(iter(drawn.values())).shape[1])

    def p_values(self, bins: int = 10) -> dict[str, Tensor]:
        """The p-values of the χ² test that ranks are uniform, (*shape) by site.

        Args:
            bins: the number of bins, at most ``draws`` + 1; bins are of one size if it divides
                ``draws`` + 1.

        Raises:
            ValueError: fewer than two bins, or more than possible ranks.
        """
        if not 2 <= bins <= self.draws + 1:
            raise ValueError(
                f"bins is {bins}, expected from 2 to {self.draws + 1}, the number of ranks that "
                "there can be; take more draws"
            )
        return {name: _uniform_p_value(r, self.draws + 1, bins) for name, r in self.ranks.items()}

    @property
    def smallest(self) -> float:
        """The smallest p-value times the number of parameters (Bonferroni), at most 1."""
        by_site = self.p_values(min(10, self.draws + 1))
        values = torch.cat([p.reshape(-1) for p in by_site.values()])
        return min(1.0, float(values.min()) * len(values))

    def __repr__(self) -> str:
        n = len(next(iter(self.ranks.values())))
        return (
            f"Calibration({n} simulations, {self.draws} draws each, smallest p-value "
            f"{self.smallest:.3g} after Bonferroni)"
        )


@checked_arguments
def calibrate(
    posterior: Sampled,
    program: Callable[..., object],
    simulations: int = 300,
    draws: int = 99,
    *,
    vectorized: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Calibration:
    """The simulation-based calibration of a posterior, on new simulations.

    Args:
        posterior: the posterior.
        program: the simulator, without arguments.
        simulations: the number of pairs of θ* and x.
        draws: the number of draws of each posterior; with 99, ranks 0 to 99 fall evenly into ten
            bins.
        vectorized, progress: as for :func:`simulate`.
        seed: the seed of simulations and draws.

    Returns:
        The ranks, with p-values.

    Raises:
        ValueError: as for :func:`simulate`.
    """
    truth = new_simulations(program, simulations, vectorized, seed, progress)
    return Calibration.from_draws(truth, posterior.sample(truth, draws, seed=seed + 1))


def new_simulations(
    program: Callable[..., object], n: int, vectorized: bool, seed: int, progress: bool
) -> Draws:
    """New simulations, (n, *shape) by site, other than the training data of a posterior, whose seed
    ``seed`` may be; arguments as for :func:`simulate`."""
    return simulate(program, n, seed=NEW_SEED + seed, vectorized=vectorized, progress=progress)


@checked_arguments
def ranks(draws: Tensor, truth: Tensor, *, seed: int = 0) -> Tensor:
    """The ranks of true values among draws that predict them, whole numbers from 0 to m.

    A rank is the number of draws below the true value. Draws that are equal to it, as integers and
    atoms can be, count as below it in a random number, uniform from 0 to all of them. So ranks are
    uniform if the prediction is right. With u uniform in [0, 1), (rank + u) / (m + 1) is a
    probability integral transform.

    Args:
        draws: draws of the values, (m, *shape).
        truth: the true values, (*shape).
        seed: the seed of ranks among equal draws; the caller's random state is kept.

    Returns:
        The ranks, (*shape) int64.

    Example:
        >>> ranks(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([4.0]))
        tensor([2])
    """
    if draws.shape[1:] != truth.shape:
        raise ValueError(
            f"draws have shape {tuple(draws.shape)}, expected (m, *shape) for true values "
            f"{tuple(truth.shape)}"
        )
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(below.shape, generator=generator, dtype=torch.float64).to(below.device)
    return below + (places * (equal + 1)).long()


def _uniform_p_value(ranks: Tensor, values: int, bins: int) -> Tensor:
    """P-values (*shape) of a χ² test that ranks (n, *shape) below ``values`` are uniform."""
    n, flat = len(ranks), ranks.reshape(len(ranks), -1)
    cell = flat * bins // values
    width = (torch.arange(values) * bins // values).bincount(minlength=bins).double() / values
    counts = torch.stack([(cell == b).sum(0) for b in range(bins)]).double()
    expected = n * width.unsqueeze(-1)
    statistic = ((counts - expected).square() / expected).sum(0)
    half = torch.full_like(statistic, (bins - 1) / 2)
    return torch.special.gammaincc(half, statistic / 2).reshape(ranks.shape[1:])
