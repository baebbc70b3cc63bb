r"""Checks of a posterior beyond ranks: expected coverage, and calibration at one observation.

:func:`expected_coverage` is the share of credible regions of level α that hold the true parameters
of new simulations. It is α if the posterior is right, and lower if the posterior is too narrow
(Hermans et al., "A crisis in simulation-based inference? Beware, your posterior approximations can
be unfaithful", TMLR 2022).

Coverage and ranks are means over all data of the prior. A posterior may be right on average and
wrong at the observation that matters. :func:`calibrate_at` ranks the true parameters of only those
new simulations whose data are nearest to the observation. They are chosen by their data alone, so
ranks are uniform if the posterior is right there, after the local coverage test of Zhao, Dalmasso,
Izbicki & Lee ("Diagnostics for conditional density models and Bayesian inference algorithms", UAI
2021), with neighbours in place of a regression. With more simulations they are nearer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_mdm.posteriors.amortized import AmortizedPosterior
from pyro_mdm.posteriors.calibration import Calibration, new_simulations, ranks
from pyro_mdm.posteriors.guide import one_row
from pyro_mdm.posteriors.reading import Draws
from pyro_mdm.support.checks import Count, checked_arguments

__all__ = ["Coverage", "calibrate_at", "expected_coverage"]

PIECE = 2000
"""The number of densities that are computed together."""


@dataclass(frozen=True, repr=False)
class Coverage:
    """The levels of the smallest credible regions that hold the truth; uniform if they are right.

    The region of level α holds the truth where this level is at most α.
    """

    levels: dict[str, Tensor]  # of central intervals, (simulations, *shape) by site
    joint: Tensor | None = None  # of the highest-density region of all parameters, (simulations,)

    @classmethod
    def from_calibration(
        cls, calibration: Calibration, joint: Tensor | None = None, seed: int = 0
    ) -> Coverage:
        """The levels of central intervals, from the ranks of the truth.

        Args:
            calibration: the ranks of the truth.
            joint: the levels of highest-density regions, (simulations,); None: not computed.
            seed: the seed of the uniform numbers that are added to ranks.
        """
        places = {n: _places(r, calibration.draws, seed) for n, r in calibration.ranks.items()}
        return cls({name: (2 * place - 1).abs() for name, place in places.items()}, joint)

    def __len__(self) -> int:
        return len(next(iter(self.levels.values())))

    def by_site(self, level: float) -> dict[str, Tensor]:
        """The share of central intervals that hold the truth, (*shape) by site.

        Args:
            level: the level α of the intervals, from 0 to 1.
        """
        return {name: (levels <= level).double().mean(0) for name, levels in self.levels.items()}

    def of_region(self, level: float) -> float:
        """The share of highest-density regions that hold the truth; NaN if not computed.

        Args:
            level: the level α of the regions, from 0 to 1.
        """
        return math.nan if self.joint is None else float((self.joint <= level).double().mean())

    @checked_arguments
    def error(self, level: float) -> float:
        """The standard error √(α (1 - α) / n) of a share, if the posterior is right.

        Args:
            level: the level α.
        """
        if not 0 <= level <= 1:
            raise ValueError(f"level is {level}, expected a share from 0 to 1")
        return math.sqrt(level * (1 - level) / len(self))

    def __repr__(self) -> str:
        words = []
        for level in (0.5, 0.9):
            shares = torch.cat([s.reshape(-1) for s in self.by_site(level).values()])
            low, high = float(shares.min()), float(shares.max())
            held = f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}"
            joint = "" if self.joint is None else f", joint regions {self.of_region(level):.0%}"
            words.append(f"{level:.0%} intervals contain {held}{joint}, ± {self.error(level):.0%}")
        return f"Coverage({len(self)} simulations: {'; '.join(words)})"


@checked_arguments
def expected_coverage(
    posterior: AmortizedPosterior,
    program: Callable[..., object],
    simulations: int = 300,
    draws: int = 99,
    *,
    joint: bool = False,
    vectorized: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Coverage:
    """The expected coverage of a posterior's credible regions, on new simulations.

    Args:
        posterior, program, simulations, draws, vectorized, seed, progress: as for
            :func:`calibrate`.
        joint: whether highest-density regions of all parameters together are tested too. They need
            the densities of all ``simulations`` × ``draws`` draws.

    Returns:
        The levels of the smallest regions that hold the truth.

    Raises:
        ValueError: as for :func:`simulate`.
    """
    truth = new_simulations(program, simulations, vectorized, seed, progress)
    drawn = posterior.sample(truth, draws, seed=seed + 1)
    central = Calibration.from_draws(truth, drawn)
    if not joint:
        return Coverage.from_calibration(central, seed=seed)
    log_p = _densities(posterior, truth, drawn, draws, seed)
    sparser = ranks(-log_p[:, 1:].mT, -log_p[:, 0])  # draws of higher density than the truth
    return Coverage.from_calibration(central, _places(sparser, draws, seed + 1), seed)


def _places(rank: Tensor, draws: int, seed: int) -> Tensor:
    """The levels (rank + u) / (draws + 1) with u uniform, float64; uniform if ranks are."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(rank.shape, generator=generator, dtype=torch.float64)
    return (rank + u) / (draws + 1)


def _densities(
    posterior: AmortizedPosterior, truth: Draws, drawn: Draws, draws: int, seed: int
) -> Tensor:
    """The log densities of the truth and of draws given each datum, (simulations, 1 + draws), by
    one method: if the truth had a smaller error than the draws, its rank would not be uniform."""
    n = len(next(iter(drawn.values())))
    theta = {
        name: torch.cat([truth[name].reshape(n, 1, *value.shape[2:]), value], 1).flatten(0, 1)
        for name, value in drawn.items()
    }
    data = {name: truth[name] for name in posterior.observed}
    which = torch.arange(n).repeat_interleave(1 + draws)
    log_p: list[Tensor] = []
    for rows in torch.arange(len(which)).split(PIECE):
        some = {name: value[rows] for name, value in theta.items()}
        observed = {name: value[which[rows]] for name, value in data.items()}
        estimate = posterior.log_prob(some, observed, samples=1, seed=seed + len(log_p))
        log_p.append(estimate.value)
    return torch.cat(log_p).reshape(n, 1 + draws)


@checked_arguments
def calibrate_at(
    posterior: AmortizedPosterior,
    program: Callable[..., object],
    data: Mapping[str, Tensor],
    simulations: int = 10_000,
    nearest: Count = 300,
    draws: int = 99,
    *,
    vectorized: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Calibration:
    """The calibration of a posterior on the new simulations that are nearest to an observation.

    Args:
        posterior, program, draws, vectorized, seed, progress: as for :func:`calibrate`.
        data: the observation by site, (*shape). Its missing numbers (NaN) are hidden in all
            simulations.
        simulations: the number of new simulations.
        nearest: the number of simulations that are kept, by Mahalanobis distance.

    Returns:
        The ranks of the true parameters of these simulations.

    Raises:
        ValueError: several observations; ``nearest`` above ``simulations``.
    """
    if nearest > simulations:
        raise ValueError(
            f"nearest is {nearest}, expected at most simulations, {simulations}; lower it"
        )
    one, encoding = one_row(posterior.data(data)), posterior.encoding
    truth = new_simulations(program, simulations, vectorized, seed, progress)
    for name in posterior.observed:
        if bool((lacks := torch.as_tensor(data[name]).isnan()).any()):
            truth[name] = truth[name].to(one).masked_fill(lacks, math.nan)
    values, seen = encoding.values(posterior.data(truth)), encoding.seen(one)[0]
    here, there = (posterior.predictive.whitened(x, seen) for x in (encoding.values(one), values))
    rows = (there - here).norm(dim=1).argsort()[:nearest]
    near = {name: value[rows] for name, value in truth.items()}
    return Calibration.from_draws(near, posterior.sample(near, draws, seed=seed + 1))
