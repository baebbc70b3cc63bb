r"""Checks of what is learned on new simulations: ranks, coverage, and calibrated Bayes factors.

If θ* is drawn from the prior and x from the simulator, the rank of each entry of θ* among draws of
p(θ | x) is uniform (Talts et al., "Validating Bayesian Inference Algorithms with Simulation-Based
Calibration", 2018). This is necessary, not sufficient: the prior passes it too. So compare the log
density of the truth with that of the prior (:func:`~pyro_mdm.posteriors.log_prior`) and of a
Gaussian (:class:`LinearGaussian`).

:func:`expected_coverage` is the share of credible regions of level α that hold the true parameters
of new simulations. It is α if the posterior is right, and lower if the posterior is too narrow
(Hermans et al., "A crisis in simulation-based inference? Beware, your posterior approximations can
be unfaithful", TMLR 2022).

Coverage and ranks are means over all data of the prior. :func:`calibrate_at` ranks the true
parameters of only those new simulations whose data are nearest to an observation. They are chosen
by their data alone, so ranks are uniform if the posterior is right there, after the local coverage
test of Zhao, Dalmasso, Izbicki & Lee ("Diagnostics for conditional density models and Bayesian
inference algorithms", UAI 2021), with neighbours in place of a regression.

A log Bayes factor ℓ of learned likelihoods is off by N (KL_1 − KL_2) for N data, of the misfits of
both. So data are simulated by either, and the log odds of the first are fitted by a line, a + b ℓ,
which is ℓ if the factor is right (logistic regression: Platt, "Probabilistic outputs for support
vector machines", 1999).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_mdm.posteriors.amortized import AmortizedPosterior
from pyro_mdm.posteriors.guide import one_row
from pyro_mdm.posteriors.reading import Draws, Program, sites_of
from pyro_mdm.posteriors.simulation import simulate
from pyro_mdm.support.checks import Count, Several, checked_arguments
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.progress import progress_bar

__all__ = [
    "Calibration",
    "Coverage",
    "FactorCalibration",
    "Sampled",
    "calibrate",
    "calibrate_at",
    "calibrate_factor",
    "expected_coverage",
    "ranks",
]

NEW_SEED = 2**20
"""The number added to the seed of simulations that test a posterior. With the same seed they would
be its training data."""

PIECE = 2000
"""The number of densities that are computed together."""

PRIOR = 2.0, 1.0
"""The standard deviations of a and b about 0 and 1, where simulations do not determine them."""


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

    Raises:
        ValueError: as for :func:`simulate`.
    """
    truth = _new_simulations(program, simulations, vectorized, seed, progress)
    return Calibration.from_draws(truth, posterior.sample(truth, draws, seed=seed + 1))


def _new_simulations(
    program: Callable[..., object], n: int, vectorized: bool, seed: int, progress: bool
) -> Draws:
    """New simulations, (n, *shape) by site, other than the training data of a posterior, whose seed
    ``seed`` may be."""
    return simulate(program, n, seed=NEW_SEED + seed, vectorized=vectorized, progress=progress)


@checked_arguments
def ranks(draws: Tensor, truth: Tensor, *, seed: int = 0) -> Tensor:
    """The ranks, (*shape) int64, of true values among draws that predict them, from 0 to m.

    A rank is the number of draws below the true value. Draws that are equal to it, as integers and
    atoms can be, count as below it in a random number, uniform from 0 to all of them. So ranks are
    uniform if the prediction is right. With u uniform in [0, 1), (rank + u) / (m + 1) is a
    probability integral transform.

    Args:
        draws: draws of the values, (m, *shape).
        truth: the true values, (*shape).
        seed: the seed of ranks among equal draws; the caller's random state is kept.

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


# -- coverage, and calibration at an observation ---------------------------------------------------


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

    Raises:
        ValueError: as for :func:`simulate`.
    """
    truth = _new_simulations(program, simulations, vectorized, seed, progress)
    drawn = posterior.sample(truth, draws, seed=seed + 1)
    central = Calibration.from_draws(truth, drawn)
    if not joint:
        return Coverage.from_calibration(central, seed=seed)
    # by one method: if the truth had a smaller error than the draws, its rank would not be uniform
    theta = {
        name: torch.cat([truth[name].reshape(len(v), 1, *v.shape[2:]), v], 1).flatten(0, 1)
        for name, v in drawn.items()
    }
    which, log_ps = torch.arange(simulations).repeat_interleave(1 + draws), list[Tensor]()
    for rows in torch.arange(len(which)).split(PIECE):
        some = {name: value[rows] for name, value in theta.items()}
        data = {name: truth[name][which[rows]] for name in posterior.observed}
        estimate = posterior.log_prob(some, data, samples=1, seed=seed + len(log_ps))
        log_ps.append(estimate.value)
    log_p = torch.cat(log_ps).reshape(simulations, 1 + draws)
    sparser = ranks(-log_p[:, 1:].mT, -log_p[:, 0])  # draws of higher density than the truth
    return Coverage.from_calibration(central, _places(sparser, draws, seed + 1), seed)


def _places(rank: Tensor, draws: int, seed: int) -> Tensor:
    """The levels (rank + u) / (draws + 1) with u uniform, float64; uniform if ranks are."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(rank.shape, generator=generator, dtype=torch.float64)
    return (rank + u) / (draws + 1)


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

    Raises:
        ValueError: several observations; ``nearest`` above ``simulations``.
    """
    if nearest > simulations:
        raise ValueError(
            f"nearest is {nearest}, expected at most simulations, {simulations}; lower it"
        )
    one, encoding = one_row(posterior.data(data)), posterior.encoding
    truth = _new_simulations(program, simulations, vectorized, seed, progress)
    for name in posterior.observed:
        if bool((lacks := torch.as_tensor(data[name]).isnan()).any()):
            truth[name] = truth[name].to(one).masked_fill(lacks, math.nan)
    values, seen = encoding.values(posterior.data(truth)), encoding.seen(one)[0]
    here, there = (posterior.predictive.whitened(x, seen) for x in (encoding.values(one), values))
    rows = (there - here).norm(dim=1).argsort()[:nearest]
    near = {name: value[rows] for name, value in truth.items()}
    return Calibration.from_draws(near, posterior.sample(near, draws, seed=seed + 1))


# -- Bayes factors ---------------------------------------------------------------------------------


class FactorCalibration(NamedTuple):
    """Log Bayes factors of simulations of two simulators, nats."""

    first: Tensor  # (n,), of simulations of the first
    second: Tensor  # (n,), of simulations of the second

    def calibrated(self, log_factor: float) -> Measured:
        """The log odds of the first simulator at a log Bayes factor, nats, with their error.

        Args:
            log_factor: the log Bayes factor ℓ of the data.
        """
        values = torch.cat([self.first, self.second]).double()
        inputs = torch.stack([torch.ones_like(values), values], 1)
        is_first = (torch.arange(len(values)) < len(self.first)).double()
        center = torch.tensor([0.0, 1.0], dtype=torch.float64)
        precision = torch.tensor(PRIOR, dtype=torch.float64).pow(-2).diag()
        line = torch.zeros(2, dtype=torch.float64)  # from where Newton steps do not diverge
        for _ in range(50):  # Newton steps
            p = (inputs @ line).sigmoid()
            hessian = (inputs.mT * (p * (1 - p))) @ inputs + precision
            slope = inputs.mT @ (is_first - p) - precision @ (line - center)
            line = line + torch.linalg.solve(hessian, slope)
        at = torch.tensor([1.0, log_factor], dtype=torch.float64)
        return Measured(float(at @ line), math.sqrt(float(at @ torch.linalg.solve(hessian, at))))

    def __str__(self) -> str:
        right = float((self.first > 0).double().mean()), float((self.second < 0).double().mean())
        return (
            f"log Bayes factors of {len(self.first)} simulations of each: "
            f"{Measured.from_values(self.first)} by the first, above 0 in {right[0]:.0%}, and "
            f"{Measured.from_values(self.second)} by the second, below 0 in {right[1]:.0%}"
        )


@checked_arguments
def calibrate_factor(
    log_factor: Callable[[Draws], float],
    first: Program,
    second: Program,
    observed: Sequence[str],
    simulations: Several = 50,
    *,
    vectorized: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> FactorCalibration:
    """The log Bayes factors of new simulations of two simulators of the same data.

    Args:
        log_factor: the function that takes data by site, (*shape), and returns the log evidence of
            the first simulator − that of the second, nats.
        first, second: the simulators, without arguments, such as hierarchical programs whose data
            are drawn.
        observed: the names of the data's sites.
        simulations: the number of simulations of each, two or more.
        vectorized: as for :func:`simulate`.
        seed: the seed of the simulations.
        progress: whether to show a progress bar.

    Raises:
        ValueError: as for :func:`simulate`; a simulator without these sites.
    """
    factors = list[Tensor]()
    with progress_bar(2 * simulations, "factors", "simulations", shown=progress) as bar:
        for place, program in enumerate((first, second)):
            sites_of(program, observed)  # which refuses others
            drawn = _new_simulations(program, simulations, vectorized, seed + place, False)
            values = torch.empty(simulations, dtype=torch.float64)
            for row in range(simulations):
                values[row] = log_factor({name: drawn[name][row] for name in observed})
                bar.update()
            factors.append(values)
    return FactorCalibration(*factors)
