"""Standard errors of few values: whoever reports them, ±1.96 of them hold 95%."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from inference.training.recipe import LossWindow
from pyro_mdm import VPSDE, Denoiser, DiffusionGuide, DiffusionModel, bound
from pyro_mdm.evaluation.estimates import Difference, Noise, population_error
from pyro_mdm.evaluation.importance import weighted
from pyro_mdm.evaluation.tempering import TemperedParticles
from pyro_mdm.evaluation.weights import Gap, of_repeats
from pyro_mdm.measurements import Particles
from pyro_mdm.networks import MLP
from pyro_mdm.posteriors.amortized import LogDensity
from pyro_mdm.posteriors.members import LearnedEvidence
from pyro_mdm.support.measured import Z95, Measured, student_factor
from pyro_mdm.tables.conditional import _shares
from tests.benchmarks.likelihoods import ESTIMATES, covered

RUNS = 800
SMALL = 0.05
"""The spread of logs of estimates, beside which that of their mean's log is small."""

Reported = Callable[[Tensor], tuple[float, float]]
"""A mean and its error, of values (n,) with mean 0."""


def particles(log_means: Tensor) -> Particles:
    none = Measured(math.nan, math.nan)
    x = log_means.reshape(-1, 1, 1).expand(-1, 4, 1)
    return Particles(x, log_means[:, None].expand(-1, 4), 4, none)


def of_estimates(values: Tensor) -> Tensor:
    """Logs of estimates whose mean is 1."""
    return SMALL * values - SMALL**2 / 2


def loss_window(values: Tensor) -> tuple[float, float]:
    window = LossWindow()
    for value in values.tolist():
        window.add(value)
    return window.mean_and_error


def members(values: Tensor) -> tuple[float, float]:
    """Members that share simulations, whose error is as large as that among them."""
    evidence = LearnedEvidence.from_members([Measured(float(v), 0.0) for v in values])
    return evidence.mean, evidence.learning / math.sqrt(len(values) + 1)


def posterior_mean(values: Tensor) -> tuple[float, float]:
    found = particles(torch.zeros_like(values))._replace(
        x=values.reshape(-1, 1, 1).expand(-1, 4, 1)
    )
    mean, error = found.posterior_mean
    return float(mean), float(error)


def noise(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(Noise.from_draws(values[:, None]).error)


def population(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), population_error(values, torch.zeros_like(values), 0.0)


def probabilities(values: Tensor) -> tuple[float, float]:
    """Of two levels of a table's column, by the jackknife over bounds."""
    logits = torch.stack([values * SMALL, torch.zeros_like(values)], -1)[:, None]
    p, errors = _shares(logits.numpy())
    return float(p[0, 0]) - 0.5, float(errors[0, 0])


REPORTED: Mapping[str, Reported] = {
    "Measured": Measured.from_values,
    "of_repeats": lambda v: of_repeats(of_estimates(v)),
    "Particles.log_evidence": lambda v: particles(of_estimates(v)).log_evidence,
    "Particles.extrapolated": lambda v: particles(of_estimates(v)).extrapolated,
    "Particles.lower_bound": lambda v: particles(v).lower_bound,
    "Particles.posterior_mean": posterior_mean,
    "TemperedParticles": lambda v: TemperedParticles(v, of_estimates(v), 1.0, 0.3, 1).log_constant,
    "Gap": lambda v: Gap.of_simulated(v - v**2, 2 * v - v**2).gap,
    "LearnedEvidence": members,
    "Weighted": lambda v: (w := weighted("x", v[None], 1, 1)) and (w.mean, w.standard_error),
    "LogDensity": lambda v: LogDensity(v, v * math.nan).mean,
    "LossWindow": loss_window,
    "Noise": noise,
    "population_error": population,
    "probabilities": probabilities,
}
"""What reports a standard error of n values alone."""


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name", REPORTED)
def test_its_errors_cover(name: str, n: int) -> None:
    values = torch.randn(RUNS, n, dtype=torch.float64)
    inside = 0
    for sample in values:
        mean, error = REPORTED[name](sample)
        inside += abs(mean) <= Z95 * error
    # of normal values 95% with a deviation of 0.8%; s/√n has 71% at 2 and 85% at 4
    assert 0.91 < inside / RUNS < 0.99


@torch.no_grad()
@pytest.mark.parametrize("n", [3, 8])
def test_a_bound_has_the_error_of_its_data(n: int) -> None:
    """From 8 data on too, which take another way."""
    x = torch.randn(n, 2, dtype=torch.float64)
    model = DiffusionModel(VPSDE(), Denoiser.fit(MLP(2), x)).double()
    found = bound(model, DiffusionGuide(model.diffusion), x, draws=4)
    expected = Measured.from_values(found.per_datum).standard_error
    if n < 8:
        assert found.elbo.standard_error == pytest.approx(expected)
    else:  # without the noise of single data, which says little of the mean's
        noise = math.hypot(found.monte_carlo_error, float(found.per_datum_error.mean()))
        least = math.sqrt(max(expected**2 - noise**2 * float(student_factor(n - 1)) ** 2, 0.0))
        assert least <= found.elbo.standard_error <= 1.5 * expected
    assert found.reconstruction.standard_error > 0


def test_a_difference_has_a_p_value_of_5_percent_at_the_end_of_its_interval() -> None:
    """And of 1% at Student's quantile, not at the normal one."""
    n, none = 8, (0.0, 0.0)
    for t, p in ((2.364624, 0.05), (3.499483, 0.01)):
        error = 0.1 * float(student_factor(n - 1))
        found = Difference("a", "b", (0.1 * t, error), none, none, none, 0.0, degrees=n - 1)
        assert found.p_value == pytest.approx(p, rel=1e-4)
        assert (found.interval[0] == pytest.approx(0, abs=1e-6)) == (p == 0.05)


@pytest.mark.parametrize("R", [4, 8])
@pytest.mark.parametrize("law", ESTIMATES)
def test_no_sample_of_repeats_is_flagged_and_errors_cover(law: str, R: int) -> None:
    """The error by the spread alone covers 68% of what it did not flag, of 8 lognormal
    estimates of σ = .8, and ever less beyond."""
    assert covered(ESTIMATES[law], R, RUNS // 2) > 0.9 - 5 * math.sqrt(0.09 / (RUNS // 2))
