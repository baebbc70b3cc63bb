"""Hierarchical programs around learned likelihoods, held to truths that are known.

    python -m tests.benchmarks.hierarchies --tables docs/measured/data

- *gaussian*: units with parameters θ_i ~ N(μ, τ²) and four data of each, N(θ_i, σ²). The likelihood
  is learned anew in each repeat, by members, and the log evidence is compared with the exact one.
- *ranks*: simulation-based calibration of μ and log τ, by one likelihood.
- *factor*: five counts that are Poisson or geometric; the log Bayes factor is known.
- *ricker*: units of a Ricker map with Poisson counts, whose likelihood a particle filter has.
- *engines*: the same Gaussian program by AutoMDM and by NUTS.

All but the last integrate over parameters by quadrature, under the learned and the exact likelihood
alike, so that what differs is what is learned.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from scipy import stats
from torch import Tensor

from pyro_mdm.automatic import AutoMDM
from pyro_mdm.posteriors import AmortizedLikelihood, LearnedEvidence, LikelihoodMembers, simulate
from pyro_mdm.support.measured import Measured
from tests.benchmarks.frame import Options, Row, Study, main

NOISE, DATA = 0.5, 4
GROUPS = (2, 10, 50)
MEMBERS = 4
SMALL: dict[str, Any] = {"hidden": 16, "depth": 1, "form": "gaussian", "vectorized": True}

THETA = torch.linspace(-9, 9, 901, dtype=torch.float64)
MEAN = torch.linspace(-6, 6, 61, dtype=torch.float64)
LOG_SPREAD = torch.linspace(math.log(0.8) - 2, math.log(0.8) + 2, 41, dtype=torch.float64)
"""Places of quadrature, and so the supports of μ and log τ."""


def units() -> None:
    """The data of a unit."""
    theta = pyro.sample("theta", dist.Normal(0.0, 3.0))
    with pyro.plate("trials", DATA):
        pyro.sample("x", dist.Normal(theta, NOISE))


def drawn_units(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """μ and log τ of their priors, and data of n units, (n, DATA)."""
    mean, log_spread = 2 * torch.randn(()), math.log(0.8) + 0.5 * torch.randn(())
    theta = mean + log_spread.exp() * torch.randn(n, 1)
    return mean, log_spread, theta + NOISE * torch.randn(n, DATA)


def log_normal(x: Tensor, mean: Any, scale: Any) -> Tensor:
    return torch.distributions.Normal(mean, scale, validate_args=False).log_prob(x)


@functools.cache
def of_units_given_hyperparameters() -> Tensor:
    """p(θ | μ, τ) at all places, (means spreads, θ), times the width of a cell."""
    spread = LOG_SPREAD.exp().reshape(1, -1, 1)
    weight = log_normal(THETA, MEAN.reshape(-1, 1, 1), spread).exp() * (THETA[1] - THETA[0])
    return weight.reshape(-1, len(THETA))


def of_hyperparameters(log_likelihood: Tensor) -> Tensor:
    """log p(data, μ, log τ) on the grid, (means, spreads), of log p(x_i | θ) of units, (θ, n)."""
    largest = log_likelihood.amax(0)
    of_units = of_units_given_hyperparameters() @ (log_likelihood - largest).exp()
    joint = (of_units.clamp_min(1e-300).log() + largest).sum(1).reshape(len(MEAN), -1)
    prior = log_normal(MEAN, 0.0, 2.0).unsqueeze(1) + log_normal(LOG_SPREAD, math.log(0.8), 0.5)
    cell = (MEAN[1] - MEAN[0]) * (LOG_SPREAD[1] - LOG_SPREAD[0])
    return joint + prior + cell.log()


def learned(likelihood: AmortizedLikelihood, x: Tensor) -> Tensor:
    """log p(x_i | θ) at all θ, (θ, n)."""
    return likelihood.given(THETA.float().unsqueeze(1)).log_prob(x).double()


def exact(x: Tensor) -> Tensor:
    return log_normal(x.double(), THETA.reshape(-1, 1, 1), NOISE).sum(2)


def covered(found: LearnedEvidence, truth: float) -> bool:
    low, high = found.interval
    return low < truth < high


def gaussian(repeats: int) -> pd.DataFrame:
    """Errors of the log evidence by likelihoods that are learned anew."""
    rows = []
    for repeat in range(repeats):
        members = LikelihoodMembers.fit(
            units, ["theta"], ["x"], members=MEMBERS, simulations=1000, steps=300, seed=repeat,
            **SMALL,
        )  # fmt: skip
        torch.manual_seed(repeat)
        for n in GROUPS:
            _, _, x = drawn_units(n)
            truth = float(of_hyperparameters(exact(x)).flatten().logsumexp(0))

            def evidence(likelihood: AmortizedLikelihood, x: Tensor = x) -> Measured:
                joint = of_hyperparameters(learned(likelihood, x))
                return Measured(float(joint.flatten().logsumexp(0)), 0.0)

            found = members.evidence(evidence, {"x": x})
            rows.append(
                {
                    "groups": n,
                    "error": found.mean - truth,
                    "learning": found.learning,
                    "covered": float(covered(found, truth)),
                }
            )
        print("gaussian", repeat, rows[-1], flush=True)
    return summary(pd.DataFrame(rows), "groups")


def summary(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Means over repeats, with the coverage in percent and its standard error."""
    made = []
    for value, some in rows.groupby(by, sort=False):
        n, share = len(some), some.covered.mean()
        made.append(
            {
                by: value,
                "repeats": n,
                "mean_error": some.error.mean(),
                "mean_error_se": some.error.std() / math.sqrt(n),
                "root_mean_square": math.sqrt((some.error**2).mean()),
                "learning": some.learning.median(),
                "coverage": 100 * share,
                "coverage_se": 100 * math.sqrt(max(share * (1 - share), 0.05 * 0.95) / n),
            }
        )
    return pd.DataFrame(made)


def ranks(repeats: int, n: int = 10) -> pd.DataFrame:
    """Where true hyperparameters are in their posteriors: uniform, if these are right."""
    places: dict[str, list[tuple[float, float]]] = {"mean": [], "log_spread": []}
    options = SMALL | {"hidden": 32, "depth": 2}
    likelihood = AmortizedLikelihood.fit(
        units, ["theta"], ["x"], simulations=10_000, steps=2000, **options
    )
    torch.manual_seed(0)
    for _ in range(repeats):
        mean, log_spread, x = drawn_units(n)
        both = []
        for log_likelihood in (learned(likelihood, x), exact(x)):
            p = of_hyperparameters(log_likelihood)
            p = (p - p.flatten().logsumexp(0)).exp()
            both.append(
                (
                    _place(MEAN, p.sum(1), float(mean)),
                    _place(LOG_SPREAD, p.sum(0), float(log_spread)),
                )
            )
        for k, name in enumerate(places):
            places[name].append((both[0][k], both[1][k]))
    rows = []
    for name, pairs in places.items():
        found, truth = (pd.Series([pair[k] for pair in pairs]) for k in (0, 1))
        inside = ((found > 0.025) & (found < 0.975)).mean()
        rows.append(
            {
                "hyperparameter": name,
                "repeats": repeats,
                "coverage": 100 * inside,
                "coverage_se": 100 * math.sqrt(inside * (1 - inside) / repeats),
                "p_value": stats.kstest(found, "uniform").pvalue,
                "p_value_exact": stats.kstest(truth, "uniform").pvalue,
                "rank_difference": (found - truth).abs().mean(),
            }
        )
    return pd.DataFrame(rows)


def _place(grid: Tensor, p: Tensor, value: float) -> float:
    """The posterior's distribution function at a value, linear within cells."""
    step = float(grid[1] - grid[0])
    within = ((value - grid + step / 2) / step).clamp(0, 1)
    return float((within * p).sum())


# -- the Bayes factor of two simulators ------------------------------------------------------------


def steady() -> None:
    rate = pyro.sample("rate", dist.Exponential(0.5))
    with pyro.plate("days", 5):
        pyro.sample("counts", dist.Poisson(rate))


def bursts() -> None:
    success = pyro.sample("success", dist.Beta(2.0, 1.0))
    with pyro.plate("days", 5):
        pyro.sample("counts", dist.Geometric(success))


def exact_factor(counts: Tensor) -> float:
    n, total, log_gamma = len(counts), float(counts.sum()), math.lgamma
    log_steady = math.log(0.5) + log_gamma(total + 1) - (total + 1) * math.log(n + 0.5)
    log_steady -= sum(log_gamma(count + 1) for count in counts.tolist())
    log_bursts = math.log(2) + log_gamma(n + 2) + log_gamma(total + 1) - log_gamma(n + total + 3)
    return log_steady - log_bursts


def integrated(likelihood: AmortizedLikelihood, name: str, counts: Tensor) -> float:
    """log p(counts) by the midpoint rule in the quantiles of the prior."""
    u = (torch.arange(2000) + 0.5) / 2000
    theta = -(1 - u).log() / 0.5 if name == "rate" else u.sqrt()
    log_p = likelihood.given(theta).log_prob(counts).double()
    return float(log_p.logsumexp(0)) - math.log(len(u))


def factor(repeats: int) -> pd.DataFrame:
    """Errors of the log Bayes factor of data that either simulator made."""
    rows = []
    for repeat in range(repeats):
        options: dict[str, Any] = {"members": MEMBERS, "simulations": 2000, "steps": 400}
        options |= {"seed": repeat} | SMALL
        of_both = [
            LikelihoodMembers.fit(program, [latent], ["counts"], **options)
            for program, latent in ((steady, "rate"), (bursts, "success"))
        ]
        for kind, program in (("steady", steady), ("bursts", bursts)):
            counts = simulate(program, 1, seed=10_000 + repeat)["counts"][0]
            pairs = [
                integrated(one, "rate", counts) - integrated(other, "success", counts)
                for one, other in zip(*of_both, strict=True)
            ]
            found = LearnedEvidence.from_members([Measured(value, 0.0) for value in pairs])
            truth = exact_factor(counts)
            row = {"data_of": kind, "error": found.mean - truth, "learning": found.learning}
            rows.append(row | {"covered": float(covered(found, truth))})
        print("factor", repeat, rows[-2:], flush=True)
    return summary(pd.DataFrame(rows), "data_of")


# -- a Ricker map by brute force -------------------------------------------------------------------

STEPS, PROCESS, LEVEL = 8, 0.3, 5.0
LOG_R = torch.linspace(0.5, 5.5, 101, dtype=torch.float64)


def ricker() -> None:
    """Counts of a population N' = r N e^{-N + noise}."""
    log_r = pyro.sample("log_r", dist.Uniform(0.5, 5.5))
    size = torch.ones_like(log_r)
    means = []
    for t in range(STEPS):
        noise = pyro.sample(f"noise_{t}", dist.Normal(torch.zeros_like(log_r), PROCESS))
        size = size * (log_r - size + noise).exp()
        means.append(LEVEL * size)
    pyro.sample("counts", dist.Poisson(torch.stack(means, -1).clamp_min(1e-6)).to_event(1))


def filtered(counts: Tensor, particles: int = 4000) -> Tensor:
    """log p(counts | log r) at all places of the grid, by a bootstrap particle filter."""
    size = torch.ones(len(LOG_R), particles, dtype=torch.float64)
    total = torch.zeros(len(LOG_R), dtype=torch.float64)
    for count in counts.double():
        noise = PROCESS * torch.randn_like(size)
        size = size * (LOG_R.unsqueeze(1) - size + noise).exp()
        weight = torch.distributions.Poisson(LEVEL * size.clamp_min(1e-7)).log_prob(count)
        total = total + weight.logsumexp(1) - math.log(particles)
        chosen = torch.multinomial(weight.softmax(1), particles, replacement=True)
        size = size.gather(1, chosen)
    return total


def ricker_units(repeats: int, n: int = 5) -> pd.DataFrame:
    """The evidence of n units with log r_i ~ N(m, 0.3²), m ~ N(3, 0.5²), by members of one set of
    simulations, and by particle filters."""
    options: dict[str, Any] = {"members": MEMBERS, "simulations": 20_000, "steps": 1500}
    members = LikelihoodMembers.fit(
        ricker, ["log_r"], ["counts"], **options, **(SMALL | {"hidden": 64, "depth": 2})
    )
    middle = torch.linspace(1, 5, 81, dtype=torch.float64)
    weight = log_normal(LOG_R, middle.unsqueeze(1), 0.3).exp() * (LOG_R[1] - LOG_R[0])
    prior = log_normal(middle, 3.0, 0.5) + (middle[1] - middle[0]).log()

    def posterior(log_likelihood: Tensor) -> tuple[float, float, float]:
        largest = log_likelihood.amax(0)
        of_units = (weight @ (log_likelihood - largest).exp()).clamp_min(1e-300).log() + largest
        joint = of_units.sum(1) + prior
        p = joint.softmax(0)
        mean = float((p * middle).sum())
        return float(joint.logsumexp(0)), mean, float((p * (middle - mean).square()).sum().sqrt())

    rows = []
    torch.manual_seed(0)
    for repeat in range(repeats):
        m = 3 + 0.5 * torch.randn(())
        log_r = (m + 0.3 * torch.randn(n)).clamp(0.6, 5.4)
        seeds = range(1000 + repeat * n, 1000 + (repeat + 1) * n)
        counts = torch.stack(
            [
                simulate(pyro.condition(ricker, {"log_r": value}), 1, seed=seed)["counts"][0]
                for value, seed in zip(log_r, seeds, strict=True)
            ]
        )
        truth = [posterior(torch.stack([filtered(c) for c in counts], 1)) for _ in range(2)]
        of_members = [
            posterior(member.given(LOG_R.float().unsqueeze(1)).log_prob(counts).double())
            for member in members
        ]
        found = LearnedEvidence.from_members([Measured(one[0], 0.0) for one in of_members])
        exact_value = (truth[0][0] + truth[1][0]) / 2
        shift = sum(one[1] for one in of_members) / MEMBERS - truth[0][1]
        rows.append(
            {
                "units": n,
                "error": found.mean - exact_value,
                "learning": found.learning,
                "covered": float(covered(found, exact_value)),
                "shift": shift / truth[0][2],
                "filters": abs(truth[0][0] - truth[1][0]),
            }
        )
        print("ricker", repeat, rows[-1], flush=True)
    table = pd.DataFrame(rows)
    made = summary(table, "units")
    made["shift"] = math.sqrt((table["shift"] ** 2).mean())
    made["filters"] = table.filters.mean()
    return made


# -- inference of programs with sites --------------------------------------------------------------


def program(x: Tensor, likelihood: AmortizedLikelihood) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    log_spread = pyro.sample("log_spread", dist.Normal(math.log(0.8), 0.5))
    with pyro.plate("units", len(x)):
        theta = pyro.sample("theta", dist.Normal(mean, log_spread.exp()))
        pyro.sample("x", likelihood.given(theta), obs=x)


def engines(groups: Sequence[int]) -> pd.DataFrame:
    """The posterior and the evidence by AutoMDM, and the posterior by NUTS."""
    options = SMALL | {"hidden": 32, "depth": 2}
    likelihood = AmortizedLikelihood.fit(
        units, ["theta"], ["x"], simulations=10_000, steps=2000, **options
    )
    rows = []
    for n in groups:
        torch.manual_seed(n)
        _, _, x = drawn_units(n)
        tables = [of_hyperparameters(ll) for ll in (learned(likelihood, x), exact(x))]
        of_mean = [table.logsumexp(1).softmax(0) for table in tables]
        centers = [float((p * MEAN).sum()) for p in of_mean]
        spread = float((of_mean[1] * (MEAN - centers[1]).square()).sum().sqrt())
        pyro.clear_param_store()
        pyro.set_rng_seed(n)
        guide = AutoMDM(program, steps=8, width=32)
        guide.fit(x, likelihood, updates=200, start_updates=500, paths=64, progress=False)
        evidence = guide.importance(2000, x, likelihood).log_evidence
        drawn = guide.sample_posterior(1000, x, likelihood, resample=True)["mean"]
        row = {"groups": n, "exact": float(tables[1].flatten().logsumexp(0))}
        row |= {"learned": float(tables[0].flatten().logsumexp(0)), "automdm": evidence.mean}
        row |= {"automdm_se": evidence.standard_error}
        row["automdm_shift"] = (float(drawn.mean()) - centers[1]) / spread
        if n <= 10:
            run = MCMC(NUTS(program), num_samples=500, warmup_steps=200, disable_progbar=True)
            run.run(x, likelihood)
            row["nuts_shift"] = (float(run.get_samples()["mean"].mean()) - centers[1]) / spread
        rows.append(row)
        print("engines", row, flush=True)
    return pd.DataFrame(rows)


PARTS: dict[str, tuple[Callable[[int], pd.DataFrame], int]] = {
    "gaussian": (gaussian, 100),
    "ranks": (ranks, 400),
    "factor": (factor, 60),
    "ricker": (ricker_units, 20),
    "engines": (lambda repeats: engines(GROUPS[:repeats]), 3),
}


def measured(job: Row, options: Options) -> list[Row]:
    """The rows of a part, by so many repeats."""
    measure, repeats = PARTS[job["part"]]
    pyro.set_rng_seed(job["seed"])
    return measure(1 if options.small else repeats).to_dict("records")


STUDIES = {
    f"hierarchies-{name}": Study(
        measured, [{"part": name}], lambda rows: rows.drop(columns=["seed", "part"])
    )
    for name in PARTS
}

if __name__ == "__main__":
    main("hierarchies", __doc__, STUDIES)
