"""The training loss as one function of tensors, which ``torch.compile`` takes whole.

Pyro's handlers and distributions cannot be traced. What :class:`~pyro_mdm.MDM_ELBO` evaluates with
them, at given log SNRs and noise, can be: the decoder's term, the prior KL and the diffusion term
are a few formulas around the network, and all that depends on the diffusion alone is computed
before. The draws are those of the loss that is not compiled, in the same order.

A learned diffusion is left to the programs: its ends move, the boundary terms need a subset of the
batch whose size depends on the draw, and its times are searched for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

import pyro_mdm.likelihoods as likelihoods
import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import Marginal, apply_vector, coordinates, kept
from pyro_mdm.diffusions.closed import (
    Kernels,
    denoising_error,
    is_usual_block,
    noised_state,
    prior_constants,
)
from pyro_mdm.diffusions.linear import clock_noise
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.likelihoods.base import normal_log_prob, posterior
from pyro_mdm.model import DiffusionModel
from pyro_mdm.scores.base import Coefficients, Score, coefficients, error_by_log_volume
from pyro_mdm.scores.denoiser import Denoiser, DenoiserScore
from pyro_mdm.scores.raw import NoisePrediction, RawScore
from pyro_mdm.support.checks import check_finite, check_weights
from pyro_mdm.support.modules import CompiledFunction

__all__ = ["WholeLoss", "negative_bound"]


class LossDraws(NamedTuple):
    """The draws of a loss, and the diffusion at its times."""

    noise: Tensor  # of y_ε, (n, K, *event_shape)
    epsilon: Tensor  # of the diffusion term, (n, *event_shape), or of a raw score (n, K, …)
    log_snr: Tensor  # λ (n,)
    at: Coefficients | None  # for a raw score


class Constants(NamedTuple):
    """Numbers of a fixed diffusion, each 0-dim but for the distribution at ε."""

    start: Marginal  # of y_ε
    width: Tensor  # of the way that the diffusion term is integrated over
    prior: Tensor  # prior KL of x = 0
    prior_square: Tensor  # its derivative in ‖x‖²
    entropy: Tensor | None  # H[q(y_ε | x)] - H[q(v_0)], in place of a decoder


def negative_bound(
    score: Score,
    decoder: likelihoods.Gaussian | None,
    diffusion: Kernels,
    x: Tensor,
    draws: LossDraws,
    constants: Constants,
) -> Tensor:
    """The negative bound of data at given draws, (n,) nats, of tensors alone.

    Args:
        score: the score, a denoiser or one of the raw state.
        decoder: the decoder; None: none, as for ``MDM_ELBO(decoder=False)``.
        diffusion: the noising diffusion.
        x: data, (n, *event_shape).
        draws: draws of the loss.
        constants: numbers of the diffusion.
    """
    if isinstance(score, DenoiserScore):
        term = denoising_error(x, draws.log_snr, draws.epsilon, score.x_hat)
        term = constants.width * term.double()
    else:
        assert draws.at is not None
        term = constants.width * error_by_log_volume(score, diffusion, x, draws.at, draws.epsilon)
    square = x.double().square().flatten(1).sum(1)
    loss = term + constants.prior + constants.prior_square * square
    if constants.entropy is not None:
        loss = loss + constants.entropy
    if decoder is not None:
        start = constants.start
        z = apply_vector(start.readout, noised_state(start, x, draws.noise).double())
        normal = posterior(z, start.log_snr, decoder.prior_mean, decoder.prior_variance)
        loss = loss - normal_log_prob(x.double(), *normal).flatten(1).sum(1)
    return loss.to(x.dtype)


class WholeLoss:
    """The loss of :class:`~pyro_mdm.MDM_ELBO` compiled whole, for programs that allow it.

    Args:
        backend: backend of ``torch.compile``.
        options: further arguments of ``torch.compile``.
    """

    def __init__(self, backend: str, options: Mapping[str, object]) -> None:
        self._compiled = CompiledFunction(negative_bound, backend, options)

    def __call__(
        self,
        model: object,
        guide: object,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        entropy: Callable[[Kernels], Tensor] | None = None,
    ) -> Tensor | None:
        """The loss, (), nats; None for programs or arguments that are left to Pyro.

        Args:
            model, guide: the programs.
            args, kwargs: their arguments.
            entropy: function of the diffusion that gives H[q(y_ε | x)] - H[q(v_0)] per dimension,
                which replaces the decoder's term; None: with the decoder.
        """
        if kwargs or len(args) != 1 or not isinstance(model, DiffusionModel):
            return None
        x, score, diffusion = args[0], model.score_function, model.diffusion
        if not isinstance(x, Tensor) or _PYRO_STACK:
            return None
        if not _serves(model, guide, x, entropy is None):
            return None
        model.check_data(x)
        check_finite("x", x)
        with torch.no_grad():
            draws = _draws(score, diffusion, x)
            constants = _constants(diffusion, x, isinstance(score, Denoiser), entropy)
            if isinstance(score, Denoiser):
                score.check_log_snr(draws.log_snr)
        decoder = cast(likelihoods.Gaussian, model.likelihood) if entropy is None else None
        bound = self._compiled.at(x.shape)(score, decoder, diffusion, x, draws, constants)
        check_finite(partial(check_weights, score.network), bound)
        return torch.as_tensor(bound.sum())


def _draws(score: Score, diffusion: Kernels, x: Tensor) -> LossDraws:
    """The draws in the order of the programs: the path's, the time's, and those of its noise."""
    K = diffusion.num_variables
    noise = randomness.normal((len(x), 1, K, *x.shape[1:]), x.dtype, x.device)[:, 0]
    u = randomness.low_discrepancy(len(x), torch.device("cpu"))
    if isinstance(score, Denoiser):
        epsilon = randomness.normal(x.shape, x.dtype, x.device)
        low, high = diffusion.terminal_log_snr, diffusion.start_log_snr
        return LossDraws(noise, epsilon, torch.lerp(low, high, u).to(x.device), None)
    s = diffusion.way.time_at(u)
    at = coefficients(diffusion, s, noise=clock_noise(diffusion, s))
    epsilon = randomness.normal((len(x), K, *x.shape[1:]), x.dtype, x.device)
    return LossDraws(noise, epsilon, at.log_snr, at)


def _constants(
    diffusion: Kernels, x: Tensor, denoises: bool, entropy: Callable[[Kernels], Tensor] | None
) -> Constants:
    dims = math.prod(x.shape[1:])

    def compute() -> Constants:
        prior, square = prior_constants(diffusion)
        width = diffusion.start_log_snr - diffusion.terminal_log_snr
        width = width if denoises else diffusion.log_volume.ends.diff()[0]
        whole = None if entropy is None else dims * entropy(diffusion).mean()
        return Constants(diffusion.start, width, dims * prior, square, whole)

    return kept(diffusion, f"loss of {dims}, {denoises}, {entropy is None}", compute)


def _serves(model: DiffusionModel, guide: object, x: Tensor, decoder: bool) -> bool:
    """Whether the loss of these programs is the one of :func:`negative_bound`."""
    diffusion, score = model.diffusion, model.score_function
    if type(model) is not DiffusionModel or type(guide) is not DiffusionGuide:
        return False
    if not isinstance(score, Denoiser | NoisePrediction | RawScore):
        return False
    return (
        x.dim() == 1 + len(model.event_shape) >= 2
        and guide.diffusion is diffusion
        and model.times is guide.times is guide.event_dim is None
        and torch.is_grad_enabled()
        and is_usual_block(diffusion)
        and coordinates(diffusion, x) is x
        and not any(parameter.requires_grad for parameter in diffusion.parameters())
        and not score.maps
        and score.times == "log_volume"
        and model.context is score.network_context is None
        and (not decoder or type(model.likelihood) is likelihoods.Gaussian)
    )
