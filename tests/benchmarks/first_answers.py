"""Answers of slow and fast programs within a few seconds: AutoMDM and what is quicker to have.

    python -m tests.benchmarks.first_answers --seconds 10 --tables docs/measured/data

The truth is log Z of the programs in densities/answers.py, in closed form, or by weights of many
draws of Student laws. Ways:

    auto_mdm         AutoMDM(program).fit(seconds=…), as a user calls it
    auto_mdm_usual   its fit() without seconds, of *six*
    auto_multivariate_normal
                     Pyro's guide by SVI in the same seconds (densities/baselines.py)
    auto_laplace     Pyro's AutoLaplaceApproximation, whose mode is sought by SVI
    laplace          the mode by BFGS, and weights of a Student law there (densities/laplace.py)

Seconds are those of the processor, which does not feel what runs beside, without the draws for the
scores.
"""

from __future__ import annotations

import functools
import time
from unittest import mock

import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, init_to_median
from torch import Tensor

from pyro_mdm import AutoMDM
from pyro_mdm.automatic.weighing import Weighing
from pyro_mdm.evaluation.weights import ImportanceWeights
from tests.benchmarks.densities.answers import PROGRAMS, start_of, truth
from tests.benchmarks.densities.base import Fitted, Target
from tests.benchmarks.densities.baselines import METHODS, Clock, descend, weigh
from tests.benchmarks.densities.laplace import laplace
from tests.benchmarks.densities.scores import OTHER
from tests.benchmarks.frame import Options, Row, Study, main, means
from tests.benchmarks.runs import processor_seconds

DRAWS = 4_000
LEFT_FOR_CURVATURE = 0.1
"""The share of the seconds that a search for a mode leaves."""


# -- ways ------------------------------------------------------------------------------------------


def auto_mdm(target: Target, seconds: float | None, seed: int) -> tuple[AutoMDM, int]:
    """A fitted guide, and the number of its updates."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    guide = AutoMDM(target.program).fit(seconds=seconds, progress=False)
    return guide, sum(outcome.steps for outcome in guide.outcomes.values())


def auto_laplace(target: Target, seconds: float, seed: int) -> Fitted:
    clock = Clock(seconds)
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    guide = AutoLaplaceApproximation(target.program, init_loc_fn=init_to_median)
    guide()  # which makes its parameters
    loss = functools.partial(Trace_ELBO().differentiable_loss, target.program, guide)
    search = Clock((1 - LEFT_FOR_CURVATURE) * seconds)
    updates = descend(guide.parameters(), loss, 0.02, search)
    law = guide.laplace_approximation().get_posterior()

    def sample(n: int) -> tuple[Tensor, Tensor]:
        x = law.sample((n,))
        return x, law.log_prob(x)

    return Fitted(functools.partial(weigh, target, sample), updates, clock.spent)


def plain_laplace(target: Target, seconds: float, seed: int) -> Fitted:
    clock = Clock(seconds)
    search = Clock((1 - LEFT_FOR_CURVATURE) * seconds)
    law = laplace(target, start_of(target, seed), lambda: search.left < 0)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        x = law.draw(n, torch.Generator().manual_seed(int(torch.randint(2**31, ()))))
        return x, law.log_density(x)

    return Fitted(functools.partial(weigh, target, sample), 0, clock.spent)


OTHERS = {
    "auto_multivariate_normal": METHODS["auto_multivariate_normal"],
    "auto_laplace": auto_laplace,
    "laplace": plain_laplace,
}
WAYS = ("auto_mdm", "auto_mdm_usual", *OTHERS)


@functools.cache
def known(name: str) -> tuple[Target, float]:
    """A program, and its log Z."""
    return PROGRAMS[name](), truth(name)[0]


def scores(job: Row, options: Options) -> Row:
    """The scores of a fit, beside the truth, and its time."""
    (target, log_z), way, seed = known(job["program"]), job["way"], job["seed"]
    began = processor_seconds()
    if way.startswith("auto_mdm"):
        seconds = None if way == "auto_mdm_usual" else options.seconds
        with mock.patch("pyro_mdm.budgets.monotonic", time.process_time):
            guide, updates = auto_mdm(target, seconds, seed)
    else:
        fitted = OTHERS[way](target, options.seconds, seed)
        updates = fitted.updates
    spent = processor_seconds() - began
    pyro.set_rng_seed(seed + OTHER)
    if way.startswith("auto_mdm"):
        log_weights = Weighing(guide).weighted(DRAWS)[1]
        weights = Weighing(guide).weighed(DRAWS)[1]
    else:
        log_weights = fitted.draw(DRAWS, seed + OTHER).log_weights
        weights = ImportanceWeights(log_weights)
    return {
        "gap": log_z - float(log_weights.mean()),
        "log_z_error": float(weights.log_evidence.mean) - log_z,
        "updates": updates,
        "fit_seconds": spent,
    }


STUDIES = {
    "automatic-first": Study(
        scores,
        [
            {"program": program, "way": way}
            for program in PROGRAMS
            for way in WAYS
            if way != "auto_mdm_usual" or program == "six"
        ],
        lambda rows: means(rows, ["program", "way"], ["updates", "fit_seconds"]),
        seeds=3,
        notes=[
            "fits within 10 seconds of the processor, with other work beside; auto_mdm_usual has "
            "no limit"
        ],
    )
}

if __name__ == "__main__":
    main("first_answers", __doc__, STUDIES)
