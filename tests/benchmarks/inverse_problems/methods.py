"""Samplers of p(x | obs), ours and others', run in a process of one thread.

    python -m tests.benchmarks.inverse_problems.methods FOLDER

does the cells that the folder's ``cells.json`` names, of an exact problem or of images that are
there, and writes their rows to ``rows.json``. A method is asked for the draws that a budget allows:
``200 steps``, or as many steps as take ``600 calls`` of the network for each draw, or ``5 seconds``
of the processor for all draws. What a step takes is measured first, by two runs of few steps. What
a method does once for a denoiser, before any measurement, is not counted: ours looks at its draws.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm import CLD, VPSDE, DiffusionModel
from pyro_mdm.measurements import condition_on_measurements, twisted_smc
from pyro_mdm.samplers import Ancestral, ExponentialIntegrator, StochasticExponentialIntegrator
from pyro_mdm.scores.denoiser import DenoiserScore
from tests.benchmarks.inverse_problems.counting import Work, counted
from tests.benchmarks.inverse_problems.images import Images
from tests.benchmarks.inverse_problems.problems import Exact, InverseProblem, exact_problem
from tests.benchmarks.inverse_problems.scores import Reference, error_of_mean, error_of_weights

__all__ = [
    "COMPARED",
    "COMPARED_BY_IMAGES",
    "DEFAULT",
    "EXACT",
    "METHODS",
    "OF_PEERS",
    "OURS",
    "PARTICLES",
    "Drawn",
    "steps_within",
]

PARTICLES = 64
"""Of a repeat of twisted particles, whose draws are independent of those of other repeats."""
REFERENCE = 10_000
"""Exact draws that those of a method are held against."""
OF_EACH = 8
"""Draws of each repeat that are looked at."""
FEWEST = 2


class Drawn(NamedTuple):
    """Draws (n, k, d) for each of k data."""

    x: Tensor
    of_each: int = 1
    """Draws that follow each other and come from the same particles."""
    per_draw: float = 1.0
    """Independent draws cost so much more than these."""
    log_evidence: float = math.nan
    log_evidence_se: float = math.nan


Method = Callable[[InverseProblem, int, int], Drawn]
"""Of a problem, a number of steps and a number of draws."""

# -- ours ------------------------------------------------------------------------------------------

OWN: dict[str, Any] = {"covariance_from": -math.inf, "max_iterations": 20}
stochastic = functools.partial(StochasticExponentialIntegrator, noise=1.0)


def guided(diffusion: Any, sampler: Any, **options: Any) -> Method:
    """Draws of the model of data given a measurement."""

    def method(problem: InverseProblem, steps: int, n: int) -> Drawn:
        given = conditioned(problem, diffusion, sampler(steps), **options)
        with torch.no_grad():
            x = given(batch_size=n * len(problem.obs))
        return Drawn(x.reshape(n, len(problem.obs), -1))

    return method


def particles(diffusion: Any, number: int | None, **options: Any) -> Method:
    """Twisted particles: so many of each repeat, or one repeat of as many as there are draws."""

    def method(problem: InverseProblem, steps: int, n: int) -> Drawn:
        if len(problem.obs) > 1:
            each = [method(problem._replace(obs=obs[None]), steps, n) for obs in problem.obs]
            return each[0]._replace(x=torch.cat([one.x for one in each], 1))
        given = conditioned(problem, diffusion, Ancestral(steps), **options)
        P, repeats = (n, 1) if number is None else (number, max(n // OF_EACH, 1))
        drawn = twisted_smc(given, P, steps=steps, repeats=repeats)
        evidence = drawn.extrapolated
        if number is None:
            return Drawn(drawn.resampled(n).reshape(n, 1, -1), 1, 1.0, *evidence)
        weights = drawn.log_weights.softmax(1)
        chosen = torch.multinomial(weights, OF_EACH, replacement=True)
        x = drawn.x.flatten(2)
        x = torch.take_along_dim(x, chosen.unsqueeze(-1), 1).reshape(-1, 1, x.shape[-1])
        return Drawn(x, OF_EACH, OF_EACH, *evidence)

    return method


def conditioned(
    problem: InverseProblem,
    diffusion: Any,
    sampler: Any,
    **options: Any,
) -> DiffusionModel:
    """The model of data given what was measured of each of k data, or of one."""
    model = prior(problem.score, diffusion, problem.max_log_snr, problem.min_log_snr)
    obs = problem.obs.reshape(-1, *problem.operator.obs_shape)
    obs = obs[0] if len(obs) == 1 else obs
    given: DiffusionModel = condition_on_measurements(
        model, problem.operator, obs, problem.noise**2, **options
    )
    given.sampler = sampler
    return given


@functools.cache
def prior(
    score: DenoiserScore, diffusion: Any, max_log_snr: float, min_log_snr: float
) -> DiffusionModel:
    """The model of data, of which the library looks at draws once, before any measurement."""
    return DiffusionModel(diffusion(max_log_snr=max_log_snr, min_log_snr=min_log_snr), score)


DEFAULT = "default"
INDEPENDENT = f"one of {PARTICLES} particles"
OURS: dict[str, Method] = {
    DEFAULT: guided(VPSDE, stochastic),
    "default, without noise": guided(VPSDE, ExponentialIntegrator),
    "own covariance": guided(VPSDE, stochastic, **OWN),
    "linear covariance": guided(VPSDE, stochastic, covariance_from=math.inf),
    "own covariance, CLD": guided(CLD, stochastic, **OWN),
    "particles": particles(VPSDE, None),
    "particles, own covariance": particles(VPSDE, None, **OWN),
    INDEPENDENT: particles(VPSDE, PARTICLES),
}
"""This library's."""

# -- others ----------------------------------------------------------------------------------------


def flat(problem: InverseProblem) -> Callable[[Tensor], Tensor]:
    """H of flattened data (b, d), (b, m)."""
    operator = problem.operator
    return lambda x: operator(x.reshape(-1, *operator.event_shape)).flatten(1)


def x_hat_of(problem: InverseProblem, z: Tensor, log_snr: Tensor) -> Tensor:
    """E[x | z] of flattened z (b, d), in the denoiser's precision."""
    dtype = next(problem.score.parameters()).dtype
    shaped = z.reshape(-1, *problem.operator.event_shape).to(dtype)
    return problem.score.x_hat(shaped, log_snr.expand(len(z)).to(dtype)).flatten(1).to(z.dtype)


def azula(make: Callable[..., Any], one_datum: bool = False) -> Method:
    """A sampler of azula.

    Args:
        make: of a denoiser (azula's), the problem and what the sampler is to be told, the sampler.
        one_datum: whether the draws of a batch are particles of one datum.
    """

    def method(problem: InverseProblem, steps: int, n: int) -> Drawn:
        from azula.denoise import Denoiser, DiracPosterior
        from azula.noise import VPSchedule

        schedule = VPSchedule(
            alpha_min=math.exp(problem.min_log_snr / 2),
            sigma_min=math.exp(-problem.max_log_snr / 2),
        )

        class Ours(Denoiser):
            """x_t = α x + σ ε is α z, of log SNR 2 log(α/σ)."""

            def __init__(self) -> None:
                super().__init__()
                self.schedule = schedule

            def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
                alpha, sigma = schedule(t)
                return DiracPosterior(x_hat_of(problem, x_t / alpha, 2 * (alpha / sigma).log()))

        def draw(obs: Tensor) -> Tensor:
            options = {"steps": steps, "silent": True, "dtype": obs.dtype}
            sampler = make(Ours(), problem, obs, **options)
            d = math.prod(problem.operator.event_shape)
            score = problem.score
            start = sampler.init(
                (len(obs), d),
                mean=score.data_mean.flatten().to(obs),
                var=score.data_variance.flatten().to(obs),
            )
            return sampler(start)

        k, obs = len(problem.obs), problem.obs
        if one_datum:
            each = [draw(one.expand(n, -1)) for one in obs]
            return Drawn(torch.stack(each, 1))
        return Drawn(draw(obs.repeat(n, 1)).reshape(n, k, -1))

    return method


def mmps(iterations: int) -> Method:
    """Moment matching, by GMRES as by default."""

    def make(denoiser: Any, problem: InverseProblem, obs: Tensor, **options: Any) -> Any:
        from azula.guidance import MMPSDenoiser
        from azula.linalg.covariance import IsotropicCovariance
        from azula.sample import DDPMSampler

        noise = IsotropicCovariance(problem.noise**2)
        given = MMPSDenoiser(denoiser, obs, flat(problem), noise, iterations=iterations)
        return DDPMSampler(given, **options)

    return azula(make)


def tmpd(denoiser: Any, problem: InverseProblem, obs: Tensor, **options: Any) -> Any:
    from azula.guidance import TMPDenoiser
    from azula.sample import DDPMSampler

    return DDPMSampler(TMPDenoiser(denoiser, obs, flat(problem), problem.noise**2), **options)


def diffpir(weight: float, iterations: int) -> Method:
    """DiffPIR of a weight λ, 10 by default, with so many iterations of GMRES, by default one."""

    def make(denoiser: Any, problem: InverseProblem, obs: Tensor, **options: Any) -> Any:
        from azula.guidance import DiffPIRDenoiser
        from azula.sample import DDPMSampler

        given = DiffPIRDenoiser(
            denoiser, obs, flat(problem), problem.noise**2, lmbda=weight, iterations=iterations
        )
        return DDPMSampler(given, **options)

    return azula(make)


def dps(zeta: float) -> Method:
    """DPS of a strength, which users choose. The package divides by the norm of the residuals of
    the whole batch, which is √batch times that of a datum or so; this undoes that."""

    def make(denoiser: Any, problem: InverseProblem, obs: Tensor, **options: Any) -> Any:
        from azula.guidance import DPSSampler

        strength = zeta * math.sqrt(len(obs))
        return DPSSampler(denoiser, obs, flat(problem), zeta=strength, **options)

    return azula(make)


def pgdm(denoiser: Any, problem: InverseProblem, obs: Tensor, **options: Any) -> Any:
    from azula.guidance import PGDMSampler

    inverse = torch.linalg.pinv(problem.operator.matrix().double()).to(obs.dtype)
    return PGDMSampler(denoiser, obs, flat(problem), lambda y: y @ inverse.mT, eta=1.0, **options)


def tds(denoiser: Any, problem: InverseProblem, obs: Tensor, **options: Any) -> Any:
    """Particles, twisted by N(obs | H x̂, R + v H Hᵀ) with v = s² / (1 + s²) of the noise s² of z:
    the variance that data of variance 1 would have given z, if their dimensions were independent.
    """
    from azula.guidance import TDSSampler

    H, A = problem.operator.matrix().to(obs.dtype), flat(problem)
    values, vectors = torch.linalg.eigh(H @ H.mT)

    def twist(x_hat: Tensor, deviation: Tensor) -> Tensor:
        v = deviation**2 / (1 + deviation**2)
        variance = problem.noise**2 + v * values.clamp_min(0)
        rest = (obs - A(x_hat)) @ vectors
        return -0.5 * (rest.square() / variance + variance.log()).sum(1)

    return TDSSampler(denoiser, twist, **options)


def ddrm(problem: InverseProblem, steps: int, n: int) -> Drawn:
    """deepinv's DDRM, whose noise has the levels of azula's schedule."""
    import numpy as np
    from deepinv.physics import DecomposablePhysics, GaussianNoise
    from deepinv.sampling import DDRM

    H = problem.operator.matrix().to(problem.obs.dtype)
    U, values, Vh = torch.linalg.svd(H, full_matrices=True)
    m, d = H.shape
    singular = torch.zeros(1, d, dtype=H.dtype)
    singular[0, : len(values)] = values

    def spectral(obs: Tensor) -> Tensor:
        """Uᵀ obs, with as many entries as x has."""
        turned = obs @ U
        return torch.nn.functional.pad(turned, (0, d - m)) if m < d else turned[:, :d]

    physics = DecomposablePhysics(
        U=lambda y: y[:, :m] @ U.mT,
        U_adjoint=spectral,
        V=lambda x: x @ Vh,
        V_adjoint=lambda x: x @ Vh.mT,
        mask=singular,
        noise_model=GaussianNoise(problem.noise),
    )
    t = np.linspace(1, 0, steps)
    alpha = np.exp(problem.min_log_snr / 2 * t**2)
    levels = np.sqrt(1 - alpha**2 + math.exp(-problem.max_log_snr)) / alpha

    def denoiser(x: Tensor, sigma: Any) -> Tensor:
        log_snr = -2 * torch.as_tensor(sigma, dtype=x.dtype).log()
        return x_hat_of(problem, x, log_snr)

    x = DDRM(denoiser, sigmas=levels)(problem.obs.repeat(n, 1), physics)
    return Drawn(x.reshape(n, len(problem.obs), -1))


OF_PEERS: dict[str, Method] = {
    "azula, MMPS, 1 iteration": mmps(1),
    "azula, MMPS, 5 iterations": mmps(5),
    "azula, TMPD": azula(tmpd),
    "azula, PGDM": azula(pgdm),
    "azula, DPS, ζ = 1": dps(1.0),
    "azula, DPS, ζ = 0.1": dps(0.1),
    "azula, DiffPIR": diffpir(10.0, 1),
    "azula, DiffPIR, λ = 1, 5 iterations": diffpir(1.0, 5),
    "azula, TDS": azula(tds, one_datum=True),
    "deepinv, DDRM": ddrm,
}
"""Methods that need the peers' environment."""
EXACT = "exact draws"
METHODS: dict[str, Method] = OURS | OF_PEERS
COMPARED = [
    *(DEFAULT, "default, without noise", "own covariance"),
    *("own covariance, CLD", "particles", "particles, own covariance"),
    INDEPENDENT,
    *OF_PEERS,
]
"""Methods of the documentation's table of problems with known answers."""
ONE_BUDGET = {EXACT: "0 steps", INDEPENDENT: "100 steps"}
"""Methods that other budgets are nothing for."""
NOT_BY_IMAGES = ("0.1", "λ = 1, 5 iterations")
COMPARED_BY_IMAGES = [
    *(DEFAULT, "default, without noise", "linear covariance"),
    *(name for name in OF_PEERS if not name.endswith(NOT_BY_IMAGES)),
]

# -- budgets ---------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """What a step takes, and what does not depend on steps."""

    calls: float
    seconds: float
    calls_apart: float
    seconds_apart: float


def run(
    method: Method, problem: InverseProblem, work: Work, steps: int, n: int
) -> tuple[Drawn, float, float]:
    """Draws, network calls of each, and the seconds of all."""
    work.reset()
    began = time.process_time()
    drawn = method(problem, steps, n)
    seconds = time.process_time() - began
    return drawn, work.total * drawn.per_draw / drawn.x[..., 0].numel(), seconds


def cost_of(method: Method, problem: InverseProblem, work: Work, n: int) -> Cost:
    """By runs of 8 and 24 steps of so many draws."""
    few, more = 8, 24
    run(method, problem, work, FEWEST, FEWEST)  # loads what a method needs
    (_, calls_few, seconds_few), (_, calls, seconds) = (
        run(method, problem, work, steps, n) for steps in (few, more)
    )
    each = (calls - calls_few) / (more - few), (seconds - seconds_few) / (more - few)
    return Cost(*each, calls - more * each[0], seconds - more * each[1])


def steps_within(budget: str, cost: Callable[[], Cost]) -> int:
    """The steps that a budget allows: ``200 steps``, ``600 calls`` or ``5 seconds``."""
    number, unit = float(budget.split()[0]), budget.split()[1]
    if unit == "steps":
        return int(number)
    one = cost()
    each, apart = (
        (one.calls, one.calls_apart) if unit == "calls" else (one.seconds, one.seconds_apart)
    )
    return max(FEWEST, round((number - apart) / each))


# -- the process -----------------------------------------------------------------------------------


Row = dict[str, Any]
Scored = Callable[[Drawn], list[Row]]
"""Of draws, a row of scores or several."""


def of_exact(exact: Exact) -> Scored:
    """One row, beside the exact posterior."""
    law = exact.posterior
    reference = Reference(law.sample(REFERENCE, seed=1))

    def scored(drawn: Drawn) -> list[Row]:
        x = drawn.x[:, 0].double()
        row = {
            "energy": reference.energy(x, drawn.of_each),
            "floor": reference.floor(len(x)),
            "mean_error": error_of_mean(x, law),
            "weights_error": error_of_weights(x, law),
            "log_evidence": drawn.log_evidence,
            "log_evidence_se": drawn.log_evidence_se,
            "exact_log_evidence": exact.log_evidence,
        }
        return [row]

    return scored


def exact_draws(exact: Exact) -> Method:
    def method(problem: InverseProblem, steps: int, n: int) -> Drawn:
        x = exact.posterior.sample(n, seed=2).unsqueeze(1)
        return Drawn(x, 1, 1.0, exact.log_evidence, 0.0)

    return method


def rows_of(
    problem: InverseProblem, cells: list[Row], scored: Scored, methods: dict[str, Method] = METHODS
) -> list[Row]:
    """Scores of methods and budgets of a problem, and what they took."""
    work, rows = counted(problem.score), []
    costs: dict[tuple[str, int], Callable[[], Cost]] = {}
    done: dict[tuple[str, int, int], tuple[Drawn, float, float]] = {}
    for cell in cells:
        name, n = cell["method"], int(cell["draws"])
        method = methods[name]
        few = max(FEWEST, 64 // len(problem.obs))
        looked_at = n if cell["budget"].endswith("seconds") else min(n, few)
        if (name, looked_at) not in costs:
            costs[name, looked_at] = functools.cache(
                functools.partial(cost_of, method, problem, work, looked_at)
            )
        steps = steps_within(cell["budget"], costs[name, looked_at])
        if (name, n, steps) not in done:
            torch.manual_seed(zlib.crc32(f"{name} {n} {steps}".encode()))
            run(method, problem, work, FEWEST, FEWEST)  # loads what a method needs
            done[name, n, steps] = run(method, problem, work, steps, n)
        drawn, calls, seconds = done[name, n, steps]
        took = {"steps": steps, "calls": calls, "seconds": seconds}
        rows += [cell | took | row for row in scored(drawn)]
    return rows


def main() -> None:
    folder = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    asked = json.loads((folder / "cells.json").read_text())
    cells = asked["cells"]
    if "problem" in asked:
        exact = exact_problem(*asked["problem"])
        known = METHODS | {EXACT: exact_draws(exact)}
        rows = rows_of(exact.problem, cells, of_exact(exact), known)
    else:
        images = Images.load(folder)
        rows = rows_of(images.problem(), cells, lambda drawn: images.scores(drawn.x))
    (folder / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
