r"""How far bounds are below log p(x) and log p(obs), by data and measurements that a model draws.

A path that a model draws with its datum is an exact draw of the posterior of paths given the datum.
So log p(path, x) - log q(path | x) of it bounds log p(x) from above in expectation, as it does from
below for paths of the guide. Over data of the model the two differ by KL(p | q) + KL(q | p), which
the bound's own gap KL(q | p) never exceeds. With S weights the drawn path takes the place of one
noising path: the inverse of the mean weight is then unbiased for 1 / p(x). Both sides need a
density of whole paths, which a chain on a grid has.

Source: Grosse, Ghahramani & Adams, "Sandwiching the marginal likelihood using bidirectional Monte
Carlo", 2015; Grosse, Ancha & Roy, "Measuring the reliability of MCMC inference with bidirectional
Monte Carlo", 2016.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mdm.elbo import check_programs
from pyro_mdm.evaluation.importance import path_weights
from pyro_mdm.evaluation.weights import Gap
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.measurements.denoiser import MeasuredDenoiser
from pyro_mdm.measurements.twisted import Retained, checked_score, weighted_particles
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.chain import GenerativeChain
from pyro_mdm.paths.likelihood import chain_of, log_mean_weight, path_weight
from pyro_mdm.samplers.stochastic import Ancestral
from pyro_mdm.support.checks import Count, Several, check_count, checked_arguments
from pyro_mdm.support.modules import evaluating

__all__ = ["bound_gap", "simulated_measurement", "twisted_smc_gap"]


@checked_arguments
def bound_gap(
    model: DiffusionModel,
    guide: DiffusionGuide,
    *,
    simulated: Several = 64,
    samples: Count = 1,
    times: int | Tensor | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Gap:
    """The gap of bounds on log p(x), by data that the model draws with their paths.

    With one sample it is that of :func:`~pyro_mdm.bound`, and with more that of
    :func:`~pyro_mdm.evaluation.importance_weighted`, for the chain on a grid. Over data of the
    chain, the mean distance of its bound from its log p(x) is at most the gap. On other data the
    bound may be further off.

    Args:
        model: generative program over a diffusion in closed form.
        guide: noising program over the same diffusion.
        simulated: number of data that the model draws, 2 at least; as many as its contexts where
            these are given.
        samples: number S of paths for each datum.
        times: grid: a number N of times, or the times from ε to T, (N,); by default those of a
            model that is a chain, else 65.
        seed: seed of data and noise; the caller's random state stays as it is.
        progress: whether to show a progress bar.

    Returns:
        :class:`~pyro_mdm.evaluation.Gap`, nats per datum.

    Raises:
        ValueError: a diffusion without closed-form kernels, numbers below their least.
        KernelPrecisionError: a grid whose steps float64 does not resolve.

    Example:
        >>> from pyro_mdm import CLD, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> model = DiffusionModel(CLD(max_log_snr=6.0), Denoiser.fit(MLP(2), torch.randn(64, 2)))
        >>> result = bound_gap(model, DiffusionGuide(model.diffusion), simulated=8, times=9)
        >>> result.lower.mean < result.upper.mean
        True
    """
    check_programs(model, guide)
    model.check_given(torch.empty(simulated, *model.event_shape))
    model = model.without_context()
    chain = chain_of(model, model.times if times is None else times)
    start = model.diffusion.start_time
    devices = [start.device] if start.device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        path, x = drawn_with_paths(model, chain, simulated)
        exact = path_weight(model, chain, guide.law(x.double(), chain.times), x, path).cpu()
    noised = path_weights(model, guide, chain, x, samples, seed, progress)
    with_exact = torch.cat([exact[None], noised[1:]])
    return Gap.of_simulated(log_mean_weight(noised), log_mean_weight(with_exact))


def drawn_with_paths(
    model: DiffusionModel, chain: GenerativeChain, n: int
) -> tuple[Tensor, Tensor]:
    """Paths (n, N, K, *event_shape) in float64, and the data (n, *event_shape) at their ends."""
    path = chain.sample_in_float64(n)
    y = path[:, 0].to(model.bound_score.dtype)
    decoder = model.likelihood(model.diffusion, chain.score, y, len(model.event_shape))
    return path, decoder.sample()


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
