r"""What a log-likelihood costs, and whether its errors hold the truth.

    python -m tests.benchmarks.likelihoods --runs runs/digits-learned-0-0 runs/mnist5k-learned-0-0

- *calls*: network calls per image after which the 95% interval of the mean over 500 images is
  ± 0.01 bits/dim, n (1.96 s / 0.01)² / 500, s being the standard deviation of one image's bits/dim
  after n calls, by estimator of the diffusion term. The network is that of a run with a denoiser
  (``--runs``), put under each diffusion with log SNR from -10 to the run's largest. *VPSDE's
  density* of times is ∝ β(s) / (1 - e^{-b(s)}), the paper's choice. The integrand over log SNR does
  not see the diffusion, so that estimators by log SNR are the same for all.
- *coverage*: the share of intervals of a run's bound, drawn to a half-width, that hold the mean of
  all repeats. *stopping*: the same of an integrand exp(σ ε - σ²/2) times a constant, whose
  diffusion term is known, drawn to 10% of it.
- *tails*: the share of generalized Pareto weights of tail index k that are flagged by k̂.
- *few-values*: the share of samples of normal values whose ±1.96 errors hold the mean. *repeats*:
  the same of the log of the mean of estimates of an evidence, beside the error by their spread
  alone, where it is NaN if the largest estimate is more than a tenth of the sum beyond an equal
  share.
- *baseline*: processor time of an evaluation before its first network call.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from inference.folders.loading import load_trained
from inference.measuring.bounds import baseline
from pyro_mdm import (
    ALDA,
    CLD,
    MALDA,
    VPSDE,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    LinearDiffusion,
)
from pyro_mdm.evaluation.closed_form import DIMS_AT_ONCE
from pyro_mdm.evaluation.comparison import compare
from pyro_mdm.evaluation.importance import weighted
from pyro_mdm.evaluation.weights import of_repeats
from pyro_mdm.likelihoods.base import Gaussian, Likelihood
from pyro_mdm.networks import UNet
from pyro_mdm.paths.likelihood import log_mean_weight
from pyro_mdm.randomness import low_discrepancy
from pyro_mdm.scores.base import Score
from pyro_mdm.support.measured import Z95, Measured, student_factor
from tests.benchmarks.frame import Options, Row, Study, in_turns, main, quartiles

__all__ = ["ESTIMATES", "Lognormal", "covered", "lognormal"]

# -- network calls ---------------------------------------------------------------------------------

IMAGES, HALF_WIDTH, MIN_LOG_SNR = 500, 0.01, -10.0
DIFFUSIONS: dict[str, type[LinearDiffusion]] = {
    "vpsde": VPSDE,
    "cld": CLD,
    "malda": MALDA,
    "alda": ALDA,
}
BY_TIME = ("one uniform time", "time by VPSDE's density")
REPEATED: dict[str, Row] = {
    "with low discrepancy": {"draws": 1, "control_variate": False, "adapt": False},
    "with likelihood ratio, coefficients by log SNR": {"draws": 1, "adapt": False},
    "with adaptive density": {"draws": 200},
}


def needed(variance: float) -> float:
    """Calls per image over IMAGES images; ``variance`` of one image's bits/dim after one call."""
    return variance * (Z95 / HALF_WIDTH) ** 2 / IMAGES


def by_time(
    model: DiffusionModel, x: Tensor, density: Callable[[Tensor], Tensor], calls: int
) -> float:
    """Variance of one draw with a time of the given density (constant between 20,000 knots)."""
    diffusion, unit = model.diffusion, x[0].numel() * math.log(2)
    start = float(diffusion.start_time)
    knots = torch.logspace(math.log10(start), 0, 20_001, dtype=torch.float64) * diffusion.horizon
    knots[0], knots[-1] = start, diffusion.horizon
    width, p = knots.diff(), density((knots[1:] + knots[:-1]) / 2)
    p = p / (p * width).sum()
    values = []
    for rows in torch.randint(len(x), (calls,)).split(250):
        i = torch.multinomial(p * width, len(rows), replacement=True)
        s = knots[i] + width[i] * torch.rand(len(rows), dtype=torch.float64)
        log_snr = diffusion.log_snr(s)
        log_snr = log_snr.clamp(float(diffusion.terminal_log_snr), diffusion.max_log_snr)
        h = model.score_function.integrand(diffusion, x[rows], log_snr)
        values.append(h.double() * diffusion.log_snr_rate(s) / p[i] / unit)
    return float(torch.cat(values).var())


def by_log_snr(model: DiffusionModel, x: Tensor, calls: int) -> float:
    """Variance of one draw with a uniform log SNR."""
    low, high = float(model.diffusion.terminal_log_snr), model.diffusion.max_log_snr
    values = []
    for rows in torch.randint(len(x), (calls,)).split(250):
        log_snr = low + (high - low) * torch.rand(len(rows), dtype=torch.float64)
        values.append(model.score_function.integrand(model.diffusion, x[rows], log_snr).double())
    return float(((high - low) * torch.cat(values) / (x[0].numel() * math.log(2))).var())


def repeated(model: DiffusionModel, x: Tensor, repeats: int, **options: object) -> Row:
    """Calls per image needed, calls per image made, and coverage in percent over repetitions."""
    guide, unit = DiffusionGuide(model.diffusion), x[0].numel() * math.log(2)
    found = [
        compare({"": (model, guide)}, x, seed=seed, **options)  # type: ignore[arg-type]
        for seed in range(repeats)
    ]
    bits = torch.tensor([f.estimates[""].bits_per_dim for f in found], dtype=torch.float64)
    errors = torch.tensor([f.estimates[""].monte_carlo_error / unit for f in found])
    made = sum(f.network_calls for f in found) / repeats / len(x)
    inside = ((bits - bits.mean()).abs() < Z95 * errors).double().mean()
    calls_needed = needed(float(bits.var()) * made * len(x))
    return {"calls": made, "calls_needed": calls_needed, "coverage_percent": 100 * float(inside)}


@functools.cache
def trained(run: Path) -> tuple[str, DiffusionModel, Tensor]:
    """The name of a run's data, its model, and its test images."""
    problem, model, _ = load_trained(run)[1]
    return problem.name, model, problem.to_model_space(problem.test)


def under(model: DiffusionModel, name: str) -> DiffusionModel:
    """The model under another diffusion."""
    high = model.diffusion.max_log_snr
    diffusion = model.diffusion
    if name != "learned":
        diffusion = DIFFUSIONS[name](max_log_snr=high, min_log_snr=MIN_LOG_SNR)
    score, likelihood = model.score_function, model.likelihood
    return DiffusionModel(diffusion, score, likelihood, model.event_shape).eval()


@torch.no_grad()
def calls(job: Row, options: Options) -> Row:
    """Calls per image by data set."""
    torch.manual_seed(job["seed"])
    row: Row = {}
    for run in options.runs:
        name, model, x = trained(run)
        if job["estimator"] in BY_TIME:
            model = under(model, job["diffusion"])
            diffusion, uniform = model.diffusion, job["estimator"] == BY_TIME[0]

            def density(s: Tensor, of: LinearDiffusion = diffusion, even: bool = uniform) -> Tensor:
                return torch.ones_like(s) if even else of.rate(s) / -torch.expm1(-of.clock(s))

            row[name] = needed(by_time(model, x, density, options.draws))
        elif job["estimator"] in REPEATED:
            half_width = HALF_WIDTH * math.sqrt(IMAGES / len(x))  # has the same calls per image
            more = {"half_width": half_width} if "adaptive" in job["estimator"] else {}
            settings = REPEATED[job["estimator"]] | more
            row[name] = repeated(model, x, options.repeats, **settings)["calls_needed"]
        else:
            row[name] = needed(by_log_snr(model, x, options.draws))
    return row


@torch.no_grad()
def reached(job: Row, options: Options) -> list[Row]:
    """What the adaptive density takes to a half-width."""
    rows = []
    for run in options.runs:
        name, model, x = trained(run)
        half_width = HALF_WIDTH * math.sqrt(IMAGES / len(x))
        found = repeated(model, x, options.repeats, half_width=half_width, draws=200)
        rows.append({"row": name} | found | {"intervals": options.repeats})
    return rows


# -- coverage --------------------------------------------------------------------------------------

TERM = 4.0  # nats


class Lognormal(Score):
    """Not a score at all: an integrand exp(σ ε - σ²/2) TERM / width for every datum and level."""

    def __init__(self, sigma: float) -> None:
        super().__init__(lambda inputs, log_snr: inputs)
        self.sigma = sigma

    def score_at(self, diffusion, y, at):  # type: ignore[no-untyped-def]
        return torch.zeros_like(y)

    def denoise_at(self, diffusion, y, at, noise=1.0):  # type: ignore[no-untyped-def]
        return y[..., 0, :]

    def default_likelihood(self) -> Likelihood:
        return Gaussian(0.0, 1e-12)  # whose noise does not count

    def integrand(self, diffusion, x, level, noise=None):  # type: ignore[no-untyped-def]
        width = diffusion.max_log_snr - diffusion.terminal_log_snr
        epsilon = noise.double().flatten(1)[:, 0]
        return (TERM / width * (self.sigma * epsilon - self.sigma**2 / 2).exp()).to(x.dtype)


@functools.cache
def programs(sigma: float) -> tuple[DiffusionModel, DiffusionGuide]:
    """Once, so that what is known of the diffusion is found once."""
    diffusion = VPSDE(max_log_snr=9.0)
    model = DiffusionModel(diffusion, Lognormal(sigma), event_shape=(1,))
    return model, DiffusionGuide(diffusion)


def lognormal(sigma: float, seed: int, half_width: float = 0.1) -> tuple[float, float, int, bool]:
    """Relative error of one estimate, its relative standard error, calls, and ``reached``."""
    x = torch.zeros(64, 1, dtype=torch.float64)
    width = half_width * TERM / math.log(2)
    options = {"draws": 10**6, "half_width": width, "batch_size": 10**6, "seed": seed, "bins": 4}
    found = compare({"": programs(sigma)}, x, **options)  # type: ignore[arg-type]
    estimate = found.estimates[""]
    error = estimate.monte_carlo_error / TERM
    return estimate.diffusion[0] / TERM - 1, error, found.network_calls, found.reached


def share_of(right: Tensor) -> Row:
    """The share of intervals that hold the truth, in percent, with its error."""
    share = float(right.double().mean())
    error = 100 * math.sqrt(share * (1 - share) / len(right))
    return {"coverage": 100 * share, "coverage_se": error}


def stopping(job: Row, options: Options) -> Row:
    found = [lognormal(job["sigma"], seed) for seed in range(options.repeats)]
    off, error, calls, reached = torch.tensor(found, dtype=torch.float64).unbind(1)
    bias = {"bias": 100 * float(off.mean()), "bias_se": 100 * float(off.std()) / len(off) ** 0.5}
    rest = {"calls": float(calls.mean()), "reached": 100 * float(reached.mean())}
    return bias | share_of(off.abs() < Z95 * error) | rest


@torch.no_grad()
def coverage(job: Row, options: Options) -> list[Row]:
    """Of the bounds of runs on some test images."""
    rows = []
    for run in options.runs:
        loaded = load_trained(run)[1]
        problem, model, guide = loaded
        x, _ = problem.transform(problem.test[:64], torch.Generator().manual_seed(0))
        unit, base = x[0].numel() * math.log(2), baseline([loaded])
        settings = {"draws": 10**4, "half_width": options.half_width, "baseline": base}
        estimates = [
            compare({"": (model, guide)}, x, seed=seed, **settings).estimates[""]
            for seed in range(options.repeats)
        ]
        bits = torch.tensor([e.bits_per_dim for e in estimates], dtype=torch.float64)
        errors = torch.tensor([e.monte_carlo_error / unit for e in estimates])
        rows.append({"run": run.name} | share_of((bits - bits.mean()).abs() < Z95 * errors))
    return rows


# -- tails, and few values -------------------------------------------------------------------------


def tails(job: Row, options: Options) -> Row:
    """The limit for so many weights, and the shares of data above it and above 0.7."""
    S, k = job["weights"], job["k"]
    generator = torch.Generator().manual_seed(job["seed"])
    uniform = torch.rand(S, 2000, dtype=torch.float64, generator=generator)
    found = weighted("", ((uniform**-k - 1) / k).log(), 1, 1)
    limits = {"flagged": found.pareto_limit, "flagged_at_0_7": 0.7}
    shares = {n: float((found.pareto_k > at).double().mean()) for n, at in limits.items()}
    return {"limit": found.pareto_limit} | shares


RUNS = 4_000
Law = Callable[[torch.Generator, int, int], Tensor]
"""Logs of positive estimates (n, R) whose mean is 1."""


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def lognormals(sigma: float) -> Law:
    """The distribution of estimates by many particles."""
    return lambda g, n, R: sigma * normal(g, n, R) - sigma**2 / 2


def student(degrees: int, scale: float) -> Law:
    """Estimates 1 + scale · t, of a tail on both sides, kept positive symmetrically."""

    def law(g: torch.Generator, n: int, R: int) -> Tensor:
        square = sum(normal(g, n, R).square() for _ in range(degrees))
        t = normal(g, n, R) / (square / degrees).sqrt()
        return (1 + (scale * t).clamp(-0.99, 0.99)).log()

    return law


def chi_square(degrees: int) -> Law:
    """Estimates whose logs are skewed to the left."""

    def law(g: torch.Generator, n: int, R: int) -> Tensor:
        return (sum(normal(g, n, R).square() for _ in range(degrees)) / degrees).log()

    return law


def mean_of_weights(sigma: float, number: int) -> Law:
    """Means of lognormal weights."""

    def law(g: torch.Generator, n: int, R: int) -> Tensor:
        return log_mean_weight(lognormals(sigma)(g, number, n * R)).reshape(n, R)

    return law


ESTIMATES: Mapping[str, Law] = {
    **{f"lognormal {s:g}": lognormals(s) for s in (0.05, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5)},
    "student 3, 0.05": student(3, 0.05),
    "student 3, 0.2": student(3, 0.2),
    "student 3, 0.4": student(3, 0.4),
    "student 5, 0.2": student(5, 0.2),
    "χ² 2": chi_square(2),
    "χ² 6": chi_square(6),
    "χ² 20": chi_square(20),
    "100 lognormal 1": mean_of_weights(1.0, 100),
    "100 lognormal 1.5": mean_of_weights(1.5, 100),
}
"""Distributions of estimates of an evidence of 1."""


def covered(law: Law, R: int, runs: int = RUNS, seed: int = 0) -> float:
    """The share of samples of R estimates whose ±1.96 errors hold the truth."""
    samples = law(torch.Generator().manual_seed(seed), runs, R)
    inside = 0
    for log_means in samples:
        value, error = of_repeats(log_means)
        inside += abs(value) <= Z95 * error
    return inside / runs


def repeats(job: Row, options: Options) -> Row:
    law, R = ESTIMATES[job["law"]], job["estimates"]
    samples = law(torch.Generator().manual_seed(R), RUNS, R).T
    value = log_mean_weight(samples)
    relative = (samples - value).exp()
    half = Z95 * student_factor(R - 1) * relative.std(0) / math.sqrt(R)
    given = (relative.amax(0) - 1) / R <= 0.1
    by_spread = float((value.abs() <= half)[given].double().mean())
    inside = covered(law, R, seed=R)
    return {"covered": inside, "by_spread": by_spread, "given": float(given.double().mean())}


def few_values(job: Row, options: Options) -> Row:
    """The share of samples of n normal values whose ±1.96 errors hold the mean, and of s/√n."""
    n = job["values"]
    values = normal(torch.Generator().manual_seed(n), RUNS, n)
    inside = sum(
        low <= 0 <= high for low, high in (Measured.from_values(v).interval for v in values)
    )
    plain = values.mean(1).abs() <= Z95 * values.std(1) / math.sqrt(n)
    return {"covered": inside / RUNS, "plain": float(plain.double().mean())}


# -- before the first network call -----------------------------------------------------------------


def first(job: Row, options: Options) -> Row:
    """Seconds of the baseline's integrals over all cells of noise level, of images 28×28."""
    torch.manual_seed(0)
    n = 8 if options.small else job["images"]
    grey = low_discrepancy(n, torch.device("cpu")).view(-1, 1, 1, 1)
    noise = 40 * torch.randn(n, 1, 28, 28)
    x = ((255 * grey + noise).clamp(0, 255).round() / 127.5 - 1).float()
    diffusion = VPSDE(max_log_snr=13.0)
    ends = diffusion.terminal_log_snr.item(), diffusion.max_log_snr
    edges = torch.linspace(*ends, 21, dtype=torch.float64)  # the bins of log_likelihood
    score = DiscreteDenoiser.fit(UNet(1, out_channels=2), x, levels=256)

    def integrals() -> None:
        for dim in range(0, 784, DIMS_AT_ONCE):
            score.baseline_integrals(x, edges, slice(dim, min(dim + DIMS_AT_ONCE, 784)))

    return quartiles("seconds", in_turns({"": integrals}, 5)[""] / 1e3)


BY_SPREAD = (
    "covered: by ±1.96 standard errors, by spread: by the spread of estimates alone, of the "
    "samples that the largest estimate does not flag, whose share is given"
)
BY_DIFFUSION = itertools.product(BY_TIME, (*DIFFUSIONS, "learned"))
STUDIES = {
    "likelihoods-calls": Study(
        calls,
        [
            *({"estimator": e, "diffusion": d} for e, d in BY_DIFFUSION),
            *({"estimator": e, "diffusion": "any"} for e in ("uniform log SNR", *REPEATED)),
        ],
        unit="network calls an image",
    ),
    "likelihoods-calls-reached": Study(reached),
    "likelihoods-stopping": Study(
        stopping, [{"sigma": s} for s in (0.5, 1.0, 1.5, 2.0)], unit="percent"
    ),
    "likelihoods-coverage": Study(coverage, unit="percent"),
    "likelihoods-tails": Study(
        tails,
        [{"weights": S, "k": k} for S in (64, 256, 1024, 4096) for k in (0.3, 0.5, 0.7, 0.9, 1.1)],
        unit="share",
        notes=["share of 2,000 data that are flagged"],
    ),
    "likelihoods-few-values": Study(
        few_values,
        [{"values": n} for n in (2, 3, 4, 8, 16, 64)],
        notes=[f"shares of {RUNS:,} samples; covered: by ±1.96 standard errors, plain: by s/√n"],
    ),
    "likelihoods-repeats": Study(
        repeats,
        [{"law": name, "estimates": R} for name in ESTIMATES for R in (4, 8, 16, 64)],
        notes=[f"shares of {RUNS:,} samples that hold the truth; {BY_SPREAD}"],
    ),
    "likelihoods-baseline": Study(
        first, [{"images": n} for n in (250, 1000, 4000, 7000)], unit="seconds"
    ),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="folders of runs")
    parser.add_argument("--repeats", type=int, default=40, help="estimates of one kind")
    parser.add_argument("--draws", type=int, default=20_000, help="of calls by single draws")
    parser.add_argument("--half_width", type=float, default=0.02, help="of coverage, bits/dim")


if __name__ == "__main__":
    main("likelihoods", __doc__, STUDIES, arguments)
