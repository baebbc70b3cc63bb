r"""Bounds of models whose noising diffusion is simulated, with errors, and paired differences.

A round simulates one path for every datum, from y_ε to T. It evaluates the integrand once in every
stratum of the path, at offsets spread evenly over the data. Rounds are independent: their spread is
the Monte Carlo error. A pilot of two rounds, left out of the estimate, says how many rounds a
half-width takes. The decoder and the divergence share y_ε, so that its noise cancels.

The step of the simulation adds a bias. :func:`step_size_bias` measures it by simulating the same
paths (the same Brownian motion) with half the step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

import pyro_mdm.randomness as seeded
from pyro_mdm.diffusions.base import Cap, require
from pyro_mdm.evaluation.closed_form import SAFETY, EstimateSettings, Pair, precisions
from pyro_mdm.evaluation.comparison import compare_paths
from pyro_mdm.evaluation.estimates import (
    Comparison,
    Difference,
    Estimate,
    Noise,
    population_error,
    resolved,
)
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.simulated.integration import brownian_motion
from pyro_mdm.simulated.nonlinear import NonlinearDiffusion
from pyro_mdm.simulated.path_integral import path_integral
from pyro_mdm.simulated.paths import SimulatedPath, arrival
from pyro_mdm.support.checks import checked_arguments
from pyro_mdm.support.measured import TERMS, Z95, Measured, student_factor
from pyro_mdm.support.modules import evaluating
from pyro_mdm.support.progress import Progress, progress_bar

__all__ = ["StepSizeBias", "step_size_bias"]

ROWS = 2048
"""The most paths that are simulated together: a step of fewer takes almost as long."""

PILOT = 2
"""Rounds that say how many a half-width takes; they are left out of the estimate, as a stopping
rule that looks at them would bias it."""


@dataclass(frozen=True)
class StepSizeBias:
    """The difference of the bound with a step and with half of it, at the same noise.

    The bias of the whole step is twice the difference for a method of first order, and 4/3 of it
    for a method of second order (mostly ``srk``).

    Attributes:
        step_size: the whole step, a fraction of ``progress`` from ε to T.
        difference: mean bound with the whole step − with half of it, nats per datum.
        standard_error: the standard error of the difference, over data and noise, nats.

    Example:
        >>> bias = StepSizeBias(step_size=0.01, difference=-0.02, standard_error=0.005)
        >>> [round(end, 3) for end in bias.interval]
        [-0.03, -0.01]
    """

    step_size: float
    difference: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the difference, nats."""
        return Measured(self.difference, self.standard_error).interval


@checked_arguments
def step_size_bias(
    model: DiffusionModel, guide: DiffusionGuide, x: Tensor, *, draws: int = 4, seed: int = 0
) -> StepSizeBias:
    """The change of the bound when the step of the simulation is halved.

    Args:
        model, guide: programs over one simulated diffusion.
        x: data in model space, (n, *event_shape), at least 8.
        draws: the number of paths of each datum; each is simulated twice.
        seed: the seed of the noise.

    Returns:
        A :class:`StepSizeBias`.

    Raises:
        ValueError: a linear diffusion, which is not simulated; fewer than 8 data.

    Example:
        >>> from pyro_mdm import CLD, DiffusionGuide, DiffusionModel, RawScore, Simulation
        >>> from pyro_mdm.networks import MLP
        >>> from pyro_mdm.simulated import Simulated
        >>> diffusion = Simulated(CLD(), Simulation(step_size=0.25))
        >>> score = RawScore(MLP(2 * 2))  # of K = 2 variables, each of two dimensions
        >>> model = DiffusionModel(diffusion, score, event_shape=(2,))
        >>> bias = step_size_bias(model, DiffusionGuide(diffusion), torch.randn(8, 2), draws=1)
        >>> bias.step_size
        0.25
    """
    fix = "ask it of a NonlinearDiffusion, or of Simulated(diffusion)"
    require(model.diffusion, Cap.SIMULATED, who="the bias of a step size", fix=fix)
    if len(x) < 8 or draws < 1:
        raise ValueError(f"{len(x)} data and {draws} draws, expected at least 8 and 1")
    changes = torch.zeros(draws, len(x), dtype=torch.float64)
    step, batches = 0.0, enumerate(torch.arange(len(x)).split(ROWS))
    with evaluating(model):
        for m, (k, rows) in itertools.product(range(draws), batches):
            with seeded.piece(0, 1, _seed(seed, m, k)):
                law = cast(SimulatedPath, guide.law(x[rows]))
                step = 1 / law.simulation.steps()
                changes[m, rows] = _halved(model.for_rows(rows), law)
    return StepSizeBias(step, *Measured.from_values(changes.mean(0)))


def _halved(model: DiffusionModel, law: SimulatedPath) -> Tensor:
    """The integral with half the step − with the whole, (n,): the bound has it with a minus
    sign."""
    diffusion, settings = model.diffusion, law.simulation
    y = law.rsample().squeeze(1)
    n, d, K = len(y), law.num_dims, diffusion.num_variables
    area = "space-time" if settings.solver(diffusion) == "srk" else "none"
    fraction = seeded.low_discrepancy(n, y.device)
    brownian = brownian_motion(n, d, K, y.dtype, y.device, area)
    noise = seeded.normal((n * settings.points, d, K), y.dtype, y.device)
    steps = settings.steps()
    probes = int(seeded.uniform((1,), torch.float64, y.device) * 2**52)  # the same for both steps
    values = []
    for times in (1, 2):
        refined = replace(settings, step_size=1 / (times * steps))
        with seeded.piece(0, 1, probes):
            integral = path_integral(
                diffusion,
                model.score,
                y,
                refined,
                fraction=fraction,
                brownian=brownian,
                noise=noise,
            )
            values.append(integral.value)
    return (values[1] - values[0]).double().cpu()


class _Rounds:
    """Draws of one model, by round and datum."""

    def __init__(
        self, model: DiffusionModel, guide: DiffusionGuide, x: Tensor, asked: EstimateSettings
    ) -> None:
        self.model, self.guide, self.x, self.share = model, guide, x, asked.share
        self.seed = asked.seed
        self.calls = 0
        self.number = 0  # of rounds, forgotten ones too
        diffusion = model.diffusion
        ends = (float(diffusion.terminal_log_snr), diffusion.max_log_snr)
        self.edges = torch.linspace(*ends, asked.bins + 1, dtype=torch.float64)
        self.forget()

    def forget(self) -> None:
        """Leave all rounds so far out of the estimate."""
        self.terms: list[Tensor] = []  # (3, n) each: TERMS, in nats
        self.probe_variance = 0.0  # summed over draws
        # number, sum, sum of squares
        self.histogram = torch.zeros(3, len(self.edges) - 1, dtype=torch.float64)

    @property
    def calls_per_path(self) -> int:
        """The number of score evaluations on each path."""
        settings = self.guide.simulation or self.model.diffusion.simulation
        return int(settings.points) * (2 if settings.objective == "local_dsm" else 1)

    def add(self, bar: Progress) -> None:
        """Add a round: a path for every datum."""
        n, r, seed = len(self.x), self.number, self.seed
        generator = torch.Generator().manual_seed(_seed(seed, r))
        spread = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
        terms = torch.zeros(3, n, dtype=torch.float64)
        probe = torch.zeros(1, dtype=torch.float64)
        histogram = torch.zeros_like(self.histogram)
        for k, rows in enumerate(torch.arange(n).split(ROWS)):
            if self.share.has(k):
                with seeded.piece(0, 1, _seed(seed, r, k)):
                    self._draw(rows, spread[rows].double(), terms, histogram, probe)
            bar.update(len(rows) * self.calls_per_path)
        self.number += 1
        self.terms.append(self.share.sum(terms))
        self.histogram += self.share.sum(histogram)
        self.probe_variance += float(self.share.sum(probe))
        decoder = getattr(self.model.likelihood, "network_calls", 0)
        self.calls += n * (self.calls_per_path + decoder)

    def _draw(
        self, rows: Tensor, spread: Tensor, terms: Tensor, histogram: Tensor, probe: Tensor
    ) -> None:
        device, diffusion = self.x.device, self.model.diffusion
        model, x = self.model.for_rows(rows), self.x[rows.to(device)]
        law = cast(SimulatedPath, self.guide.law(x))
        path = law.rsample()
        y = path.squeeze(1)
        integral = path_integral(
            diffusion, model.score, y, law.simulation, fraction=spread.to(device), to_end=True
        )
        start = law.log_prob(path) - diffusion.prior.log_prob(y)
        decoded = model.likelihood(diffusion, model.score_function, y, x.dim() - 1).log_prob(x)
        excess = arrival(law, path, integral.end)
        # decoded and start share the noise of y, which cancels in their difference
        for row, value in enumerate((decoded, excess, start + integral.value - excess)):
            terms[row, rows] = value.double().cpu()
        probe += integral.probe_variance.double().sum().cpu()
        level, density = integral.level.flatten().cpu(), integral.density.double().flatten().cpu()
        cell = (torch.bucketize(level, self.edges) - 1).clamp(0, len(self.edges) - 2)
        for row, value in enumerate((torch.ones_like(density), density, density.square())):
            histogram[row].index_add_(0, cell, value)

    # -- results -----------------------------------------------------------------------------------

    def totals(self) -> Tensor:
        """The bound, (rounds, n)."""
        terms = torch.stack(self.terms)
        return terms[:, 0] - terms[:, 1] - terms[:, 2]

    def means(self) -> dict[str, Tensor]:
        """The mean of each of TERMS over rounds, (n,)."""
        return dict(zip(TERMS, torch.stack(self.terms, 1).mean(1), strict=True))

    def estimate(self) -> Estimate:
        """The estimate from all rounds."""
        totals = self.totals()
        n = totals.shape[1]
        per_datum = totals.mean(0)
        noise = Noise.from_draws(totals)
        monte_carlo_error = _mean_error(noise.variance, len(totals))
        number, total, squares = self.histogram
        density = total / number.clamp_min(1)
        # rounding may take a difference of squares below 0
        variance = (squares / number.clamp_min(1) - density**2).clamp_min(0)
        terms = {name: Measured.from_values(term) for name, term in self.means().items()}
        return Estimate(
            mean=float(per_datum.mean()),
            standard_error=population_error(per_datum, noise.variance, monte_carlo_error),
            monte_carlo_error=monte_carlo_error,
            **terms,
            num_data=n,
            num_dims=math.prod(self.x.shape[1:]),
            network_calls=self.calls,
            per_datum=per_datum,
            per_datum_error=noise.error,
            halves=torch.stack([totals[::2].mean(0), totals[1::2].mean(0)]),
            log_snr_edges=self.edges,
            density=density,
            density_error=(variance / number.clamp_min(1)).sqrt(),
            probe_error=math.sqrt(self.probe_variance) / (n * len(totals)),
        )


@compare_paths.register(NonlinearDiffusion)
def _compare(
    first: NonlinearDiffusion,
    programs: Mapping[str, Pair],
    x: Tensor,
    linear: Comparison | None,
    asked: EstimateSettings,
) -> Comparison:
    """The comparison of models of which some, or all, are simulated.

    Simulated models of one shape see the same noise, so that their differences are paired over data
    and noise. A linear and a simulated model are paired over data alone.
    """
    half_width, share = asked.half_width, asked.share
    linear_estimates = {} if linear is None else linear.estimates
    simulated = {
        name: _Rounds(model, guide, x, asked)
        for name, (model, guide) in programs.items()
        if name not in linear_estimates
    }
    unit = math.log(2) * math.prod(x.shape[1:])
    wanted = None if half_width is None else half_width * unit / Z95
    # two rounds at least have a spread, which is the error
    most = {name: max(2, asked.draws // r.calls_per_path) for name, r in simulated.items()}
    total = sum(most[name] * rounds.calls_per_path for name, rounds in simulated.items())
    with progress_bar(total * len(x), "evaluating", "calls", shown=asked.progress) as bar:
        number = max(most.values())
        if wanted is not None and min(most.values()) >= 2 * PILOT:
            for _, rounds in itertools.product(range(PILOT), simulated.values()):
                rounds.add(bar)
            need = PILOT * SAFETY * _needed(programs, linear_estimates, simulated, wanted)
            number = max(2, min(number - PILOT, math.ceil(min(share.first(need), number))))
            most = {name: limit - PILOT for name, limit in most.items()}
            for rounds in simulated.values():
                rounds.forget()
        for r, (name, rounds) in itertools.product(range(number), simulated.items()):
            if r < most[name]:
                rounds.add(bar)
    estimates = {
        name: linear_estimates[name] if name in linear_estimates else simulated[name].estimate()
        for name in programs
    }
    paired = {} if linear is None else {(d.first, d.second): d for d in linear.differences}
    differences = []
    for pair in itertools.combinations(programs, 2):
        dtypes = precisions(x, [programs[name][0] for name in pair])
        other = paired.get(pair)
        differences.append(other or _difference(pair, estimates, simulated, dtypes))
    widths = [Z95 * e.monte_carlo_error for e in estimates.values()]
    widths += [Z95 * d.monte_carlo_error * unit for d in differences]
    return Comparison(
        estimates,
        resolved(differences),
        sum(e.network_calls for e in estimates.values()),
        half_width,
        half_width is not None and max(widths) <= half_width * unit,
    )


def _needed(
    programs: Mapping[str, Pair],
    linear: Mapping[str, Estimate],
    simulated: Mapping[str, _Rounds],
    wanted: float,
) -> float:
    """The factor by which the rounds so far must grow to bring every error down to ``wanted``."""
    estimates = {name: rounds.estimate() for name, rounds in simulated.items()}
    need = max((e.monte_carlo_error / wanted) ** 2 for e in estimates.values())
    estimates |= linear
    for pair in itertools.combinations(programs, 2):
        fixed = [linear[name].monte_carlo_error for name in pair if name in linear]
        if len(fixed) == 2:
            continue
        _, error = _pair_noise(pair, estimates, simulated)
        moving = error**2 - sum(fixed) ** 2
        left = wanted**2 - sum(fixed) ** 2
        need = max(need, moving / left if left > 0 else math.inf)
    return need


def _difference(
    pair: tuple[str, str],
    estimates: Mapping[str, Estimate],
    simulated: Mapping[str, _Rounds],
    dtypes: set[torch.dtype],
) -> Difference:
    first, second = (estimates[name] for name in pair)
    per_datum = second.per_datum - first.per_datum  # bits are minus nats
    variance, error = _pair_noise(pair, estimates, simulated)
    if all(key in simulated for key in pair):  # paired over data
        one, other = (simulated[key].means() for key in pair)
        terms = {name: Measured.from_values(one[name] - other[name]) for name in TERMS}
    else:
        ends = [(getattr(first, name), getattr(second, name)) for name in TERMS]
        apart = [Measured(a[0] - b[0], math.hypot(a[1], b[1])) for a, b in ends]
        terms = dict(zip(TERMS, apart, strict=True))
    both = {name: estimates[name] for name in pair}
    return Difference.from_nats(both, per_datum, terms, variance, error, dtypes)


def _pair_noise(
    pair: tuple[str, str], estimates: Mapping[str, Estimate], simulated: Mapping[str, _Rounds]
) -> tuple[Tensor, float]:
    """The variances of the noise of each datum's difference, (n,), and the error of their mean."""
    both = [simulated[name].totals() for name in pair if name in simulated]
    if len(both) == 2 and both[0].shape == both[1].shape:
        variance = Noise.from_draws(both[0] - both[1]).variance
        return variance, _mean_error(variance, len(both[0]))
    first, second = (estimates[name] for name in pair)
    variance = first.per_datum_error.square() + second.per_datum_error.square()
    return variance, math.hypot(first.monte_carlo_error, second.monte_carlo_error)


def _mean_error(variance: Tensor, rounds: int) -> float:
    """The error of the mean of data whose noise has these variances by so many rounds, (n,)."""
    n = len(variance)
    return math.sqrt(float(variance.sum())) / n * float(student_factor(n * (rounds - 1)))


def _seed(*numbers: int) -> int:
    """One seed for each use of randomness, with the constants of Knuth's MMIX generator."""
    state = 0
    for number in numbers:
        state = (state * 6364136223846793005 + number + 1442695040888963407) % 2**62
    return state
