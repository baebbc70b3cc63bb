"""The mass of the flow's density and its error in the mean, by the steps that MDM chooses. By hand.

    python -m tests.benchmarks.flow_steps --tables docs/measured/data

Data are mixtures in one dimension with their exact denoisers. The mass is by quadrature, and the
error in the mean is that to four times as many steps, over draws of the data.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch

from pyro_mdm import MDM, VPSDE, DiffusionModel
from pyro_mdm.paths.flow import Solver
from tests.benchmarks.frame import Options, Row, Study, main
from tests.problems import ExactDenoiser, GaussianMixture

__all__ = ["MODES", "Steps", "by_steps", "chosen"]

MODES = {
    "one of two sizes": ([0.0, 0.0], [1.0, 0.3], [0.5, 0.5]),
    "two": ([-1.0, 1.0], [0.5, 0.5], [0.5, 0.5]),
    "two, narrower": ([-1.0, 1.0], [0.3, 0.3], [0.5, 0.5]),
    "two, narrow": ([-1.0, 1.0], [0.1, 0.1], [0.5, 0.5]),
    "two, sharp": ([-1.0, 1.0], [0.03, 0.03], [0.5, 0.5]),
    "three, unequal": ([-1.0, 0.3, 1.0], [0.05, 0.1, 0.02], [0.2, 0.5, 0.3]),
    "five": ([-2.0, -1.0, 0.0, 1.0, 2.0], [0.05] * 5, [0.2] * 5),
    "a sharp one beside a wide one": ([0.0, 3.0], [0.3, 0.02], [0.7, 0.3]),
}
"""Means, standard deviations and weights of mixtures."""


class Steps(NamedTuple):
    """The density by a number of steps."""

    steps: int
    mass: float  # its integral
    mean_error: float  # of log p in the mean over data, nats


def mixture(name: str) -> GaussianMixture:
    means, deviations, weights = (torch.tensor(v, dtype=torch.float64) for v in MODES[name])
    return GaussianMixture(weights, means[:, None], deviations.square()[:, None, None])


def grid(problem: GaussianMixture) -> torch.Tensor:
    """Points that resolve all modes and what is between them, (n,)."""
    means, deviations = problem.means[:, 0], problem.covariances[:, 0, 0].sqrt()
    near = means[:, None] + deviations[:, None] * torch.linspace(-7, 7, 141).double()
    between = torch.linspace(float(means.min()) - 3, float(means.max()) + 3, 601).double()
    return torch.cat([near.flatten(), between]).unique()


def model_of(name: str, max_log_snr: float) -> DiffusionModel:
    return DiffusionModel(VPSDE(max_log_snr=max_log_snr), ExactDenoiser(mixture(name))).eval()


def chosen(model: DiffusionModel) -> int:
    """The number of steps that MDM takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the most steps are too few
        return MDM(model)._steps


@torch.no_grad()
def by_steps(name: str, model: DiffusionModel, steps: int) -> Steps:
    problem = mixture(name)
    law, fine = (MDM(model, solver=Solver("adams", steps=n)) for n in (steps, 4 * steps))
    x, drawn = grid(problem), problem.sample(500)
    mass = torch.trapezoid(law.log_prob(x[:, None]).exp(), x)
    return Steps(steps, float(mass), float((law.log_prob(drawn) - fine.log_prob(drawn)).mean()))


def measured(job: Row, options: Options) -> Row:
    """The density by the chosen number of steps and by twenty."""
    torch.manual_seed(job["seed"])
    model = model_of(job["modes"], job["max_log_snr"])
    found, twenty = (by_steps(job["modes"], model, n) for n in (chosen(model), 20))
    by_twenty = {"mass_by_20": twenty.mass, "error_by_20": twenty.mean_error}
    return found._asdict() | by_twenty


STUDIES = {
    "posteriors-flow-steps": Study(
        measured,
        [{"modes": name, "max_log_snr": high} for name in MODES for high in (9, 12)],
        notes=["mass is the integral of exp log p, errors of log p are in the mean, in nats"],
        digits=4,
    )
}

if __name__ == "__main__":
    main("flow_steps", __doc__, STUDIES)
