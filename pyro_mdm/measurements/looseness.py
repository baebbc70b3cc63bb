"""How far the evidence of particles is below log p(obs), by measurements that are simulated."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mdm.evaluation.looseness import Gap, drawn_with_paths
from pyro_mdm.measurements.denoiser import MeasuredDenoiser
from pyro_mdm.measurements.retained import Retained
from pyro_mdm.measurements.twisted import checked_score, weighted_particles
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.chain import GenerativeChain
from pyro_mdm.samplers.stochastic import Ancestral
from pyro_mdm.support.argument_types import Several, checked_arguments
from pyro_mdm.support.checks import check_count
from pyro_mdm.support.modules import evaluating

__all__ = ["simulated_measurement", "twisted_smc_gap"]


@checked_arguments
def twisted_smc_gap(
    model: DiffusionModel,
    num_particles: int = 256,
    *,
    simulated: Several = 20,
    steps: int = 100,
    threshold: float = 0.5,
) -> Gap:
    """The gap of :func:`twisted_smc`, by measurements of data that the model draws.

    A datum is drawn with its path, and measured. Given the measurement they are an exact draw of
    the posterior. Kept among the particles, it makes the inverse of their mean weight unbiased for
    1 / p(obs), and its logarithm an upper bound on log p(obs) in expectation. The lower bound is
    :attr:`Particles.lower_bound` of one repeat without the draw. Over such measurements the mean
    distance of the lower bound from the chain's log p(obs) is at most the gap. For other
    measurements it may be further off.

    Args:
        model: a model of :func:`condition_on_measurements`; the value of its obs is not used.
        num_particles: number P of particles.
        simulated: number of measurements that are simulated, 2 at least. Each takes two runs.
        steps, threshold: as for :func:`twisted_smc`.

    Returns:
        :class:`~pyro_mdm.evaluation.Gap`, nats per measurement.

    Raises:
        TypeError, ValueError: as for :func:`twisted_smc`.

    Source: Grosse, Ancha & Roy, "Measuring the reliability of MCMC inference with bidirectional
    Monte Carlo", 2016; for particles, Andrieu, Doucet & Holenstein, "Particle Markov chain Monte
    Carlo methods", JRSS B 2010.

    Example:
        >>> from pyro_mdm import CLD, Denoiser
        >>> from pyro_mdm.measurements import condition_on_measurements
        >>> from pyro_mdm.networks import MLP
        >>> model = DiffusionModel(CLD(max_log_snr=9.0), Denoiser.fit(MLP(2), torch.randn(100, 2)))
        >>> obs = torch.zeros(1)
        >>> conditioned = condition_on_measurements(model, torch.ones(1, 2), obs, noise=0.1)
        >>> twisted_smc_gap(conditioned, 16, simulated=4, steps=10).data_sets
        4
    """
    sides: list[list[float]] = [[], []]
    for _ in range(simulated):
        given, retained = simulated_measurement(model, steps)
        for side, exact in zip(sides, (None, retained), strict=True):
            particles = weighted_particles(
                given, num_particles, steps=steps, threshold=threshold, retained=exact
            )
            side.append(particles.lower_bound.mean)
    return Gap.of_simulated(*torch.tensor(sides, dtype=torch.float64))


@torch.no_grad()
def simulated_measurement(model: DiffusionModel, steps: int) -> tuple[DiffusionModel, Retained]:
    """The model of a simulated measurement, and the path and the datum that it is of."""
    score = checked_score(model)
    diffusion, event = model.diffusion, model.event_shape
    check_count("steps", steps, "the number of steps from T to ε")
    times = Ancestral(steps).times(diffusion).flip(0)
    with evaluating(model):
        chain = GenerativeChain(diffusion, score.denoiser, event, times)
        path, x = drawn_with_paths(model, chain, 1)
        clean = score.operator(x.double())
        if isinstance(score.noise, Tensor):
            obs = clean + score.noise.sqrt() * torch.randn_like(clean)
        else:
            obs = score.noise(clean).sample()
    again = MeasuredDenoiser(
        score.denoiser,
        score.operator,
        obs[0].to(score.obs.dtype),
        score.noise,
        data_covariance=score.data_covariance,
        covariance_from=score.covariance_from,
        max_iterations=score.max_iterations,
    )
    return model.with_score(again, model.likelihood), Retained(path[0].flip(0), x[0])
