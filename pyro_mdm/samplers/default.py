"""The default sampler."""

from __future__ import annotations

from pyro_mdm.diffusions.base import Cap, Diffusion
from pyro_mdm.samplers.base import Sampler
from pyro_mdm.samplers.exponential import ExponentialIntegrator, StochasticExponentialIntegrator
from pyro_mdm.samplers.stochastic import EulerMaruyama
from pyro_mdm.scores.base import Score
from pyro_mdm.support.checks import checked_arguments

__all__ = ["default_sampler"]


@checked_arguments
def default_sampler(diffusion: Diffusion, score: Score | None = None) -> Sampler:
    """The default sampler of a diffusion and a score.

    ``ExponentialIntegrator(25)`` for a denoiser (or where no score is given),
    ``StochasticExponentialIntegrator(50)`` for a score of the raw state, and for a denoiser given
    measurements, because a process without noise would keep their errors, and
    ``EulerMaruyama(256)`` without a closed form, or where v_0's mean depends on data and the score
    does not estimate it. It is marked :attr:`~pyro_mdm.samplers.Sampler.is_default`.

    Args:
        diffusion: the noising diffusion that is reversed.
        score: the score; None: a denoiser.
    """
    chosen = _chosen(diffusion, score)
    chosen.is_default = True
    return chosen


def _chosen(diffusion: Diffusion, score: Score | None) -> Sampler:
    has_kernels = Cap.KERNELS in diffusion.caps
    if not has_kernels or not (Cap.READOUT in diffusion.caps or hasattr(score, "start_hat_at")):
        return EulerMaruyama(256)
    if score is None or (score.denoises and not score.approximates):
        return ExponentialIntegrator(25)
    return StochasticExponentialIntegrator(50)
