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
from typing import Any, NamedTuple

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_mdm import likelihoods, randomness
from pyro_mdm.diffusions.base import Marginal
from pyro_mdm.diffusions.closed import OneBlock, is_usual_block, noised_data, noised_state
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.matrices import apply_matrix, apply_vector, with_event_dims
from pyro_mdm.diffusions.memory import kept
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.divergence import prior_kl
from pyro_mdm.scores.ahead import is_plain
from pyro_mdm.scores.base import Score
from pyro_mdm.scores.denoiser import Denoiser
from pyro_mdm.scores.raw import NoisePrediction, RawScore, state_units
from pyro_mdm.support.checks import check_weights
from pyro_mdm.support.late_checks import check_all_finite, check_finite
from pyro_mdm.support.whole import WholeFunction

__all__ = ["WholeLoss", "negative_bound"]


class LossDraws(NamedTuple):
    """The draws of a loss, and what follows from them and the diffusion alone."""

    noise: Tensor  # of y_ε, (n, K, *event_shape)
    epsilon: Tensor  # of the diffusion term, (n, *event_shape), or of a raw score (n, K, …)
    log_snr: Tensor  # λ (n,)
    law: Marginal | None  # of the state at its time, (n, …), for a raw score
    clock_noise: Tensor | None  # g² by the clock, (n, K, K) or (K, K), for a raw score


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
    at_rest: bool,
    x: Tensor,
    draws: LossDraws,
    constants: Constants,
) -> Tensor:
    """The negative bound of data at given draws, (n,) nats, of tensors alone.

    Args:
        score: the score, a denoiser or one of the raw state.
        decoder: the decoder; None: none, as for ``MDM_ELBO(decoder=False)``.
        at_rest: whether the prior is stationary.
        x: data, (n, *event_shape).
        draws: draws of the loss.
        constants: numbers of the diffusion.
    """
    square = x.double().square().flatten(1).sum(1)
    if isinstance(score, Denoiser):
        term = _denoising_term(score, x, draws, constants)
    else:
        term = _raw_term(score, at_rest, x, draws, constants)
    loss = term.double() + constants.prior + constants.prior_square * square
    if constants.entropy is not None:
        loss = loss + constants.entropy
    if decoder is not None:
        loss = loss - _decoded(decoder, x, draws, constants)
    return loss.to(x.dtype)


def _denoising_term(score: Denoiser, x: Tensor, draws: LossDraws, constants: Constants) -> Tensor:
    """½ (λ_ε - λ_T) e^λ ‖x - x̂(z, λ)‖², (n,)."""
    mu, s2 = score.data_mean.to(x.dtype), score.data_variance.to(x.dtype)
    v = with_event_dims(torch.exp(-draws.log_snr).to(x.dtype), x)
    z = noised_data(x, draws.log_snr, draws.epsilon)
    unit = (s2 + v).rsqrt()
    scaled = (z - mu) * unit
    F = score.output(x.shape, scaled, draws.log_snr.to(x.dtype)).to(x.dtype)
    x_hat = mu + unit * (s2 * scaled + (s2 * v).sqrt() * F)
    weight = 0.5 * constants.width * draws.log_snr.exp()
    return weight.to(x.dtype) * (x - x_hat).square().flatten(1).sum(1)


def _raw_term(
    score: Score, at_rest: bool, x: Tensor, draws: LossDraws, constants: Constants
) -> Tensor:
    """½ (κ_T - κ_ε) ‖s_θ - ∇ log q‖²_{g²} by the rate of κ, (n,)."""
    law: Any = draws.law
    g2: Any = draws.clock_noise
    W = inverse_tril(law.scale_tril)
    y = noised_state(law, x, draws.epsilon)
    units = None if at_rest else with_event_dims(state_units(law).to(x.dtype), y)
    seen = (y if units is None else units * y).flatten(1, 2)
    F = score.output(seen.shape, seen, draws.log_snr.to(x.dtype)).to(x.dtype).reshape(y.shape)
    if isinstance(score, NoisePrediction):
        theta = -apply_matrix(W.mT, F)
    else:
        theta = F if units is None else units * F
    error = theta.double() + apply_matrix(W.mT, draws.epsilon.double())
    square = (error * apply_matrix(g2, error)).flatten(1).sum(1)
    return 0.5 * constants.width * square / ((W @ g2) * W).sum((-2, -1))


def _decoded(
    decoder: likelihoods.Gaussian, x: Tensor, draws: LossDraws, constants: Constants
) -> Tensor:
    """log p(x | y_ε) of a Gaussian decoder, (n,) in float64."""
    start = constants.start
    y = noised_state(start, x, draws.noise)
    z = apply_vector(start.readout, y.double())
    ratio = torch.exp(-start.log_snr) / decoder.prior_variance
    mean = z + ratio / (1 + ratio) * (decoder.prior_mean - z)
    log_scale = -(start.log_snr + ratio.log1p()) / 2
    white = (x.double() - mean) * torch.exp(-log_scale)
    terms = -0.5 * white.square() - log_scale - 0.5 * math.log(2 * math.pi)
    return terms.flatten(1).sum(1)


class WholeLoss:
    """The loss of :class:`~pyro_mdm.MDM_ELBO` compiled whole, for programs that allow it.

    Args:
        backend: backend of ``torch.compile``.
        options: further arguments of ``torch.compile``.
    """

    def __init__(self, backend: str, options: Mapping[str, Any]) -> None:
        self._compiled = WholeFunction(negative_bound, backend, options)

    def __call__(
        self,
        model: object,
        guide: object,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        entropy: Callable[[Any], Tensor] | None = None,
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
        if _PYRO_STACK or not _serves(model, guide, args[0], entropy is None):
            return None
        x, score, diffusion = args[0], model.score_function, model.diffusion
        model.check_data(x)
        check_finite("x", x)
        with torch.no_grad():
            draws = _draws(score, diffusion, x)
            constants = _constants(diffusion, x, isinstance(score, Denoiser), entropy)
            if isinstance(score, Denoiser):
                score.check_log_snr(draws.log_snr)
        fixed: Any = diffusion
        at_rest = kept(fixed, "at rest", fixed.at_rest)
        decoder = model.likelihood if entropy is None else None
        bound = self._compiled.at(x.shape)(score, decoder, at_rest, x, draws, constants)
        check_all_finite(bound, partial(check_weights, score.network))
        return torch.as_tensor(bound.sum())


def _draws(score: Score, diffusion: OneBlock, x: Tensor) -> LossDraws:
    """The draws in the order of the programs: the path's, the time's, and those of its noise."""
    K = diffusion.num_variables
    noise = randomness.normal((len(x), 1, K, *x.shape[1:]), x.dtype, x.device)[:, 0]
    u = randomness.low_discrepancy(len(x), x.device)
    if isinstance(score, Denoiser):
        epsilon = randomness.normal(x.shape, x.dtype, x.device)
        low, high = diffusion.terminal_log_snr, diffusion.start_log_snr
        return LossDraws(noise, epsilon, torch.lerp(low, high, u), None, None)
    s = diffusion.time_on_the_way(u)
    law = diffusion.marginal(s)
    epsilon = randomness.normal((len(x), K, *x.shape[1:]), x.dtype, x.device)
    return LossDraws(noise, epsilon, law.log_snr, law, diffusion.clock_noise(s))


def _constants(
    diffusion: OneBlock, x: Tensor, denoises: bool, entropy: Callable[[Any], Tensor] | None
) -> Constants:
    shape, device = x.shape[1:], x.device

    def compute() -> Constants:
        nothing = torch.zeros(2, *shape, dtype=torch.float64, device=device)
        nothing[1].view(-1)[0] = 1.0
        of_nothing, of_one = prior_kl(diffusion, nothing, len(shape)).unbind()
        if denoises:
            width = diffusion.start_log_snr - diffusion.terminal_log_snr
        else:
            width = diffusion.log_volume_ends.diff()[0]
        whole = None if entropy is None else math.prod(shape) * entropy(diffusion).mean()
        return Constants(diffusion.start, width, of_nothing, of_one - of_nothing, whole)

    name = f"loss of {tuple(shape)}, {denoises}, {entropy is None}"
    return kept(diffusion, name, compute)


def _serves(model: DiffusionModel, guide: object, x: object, decoder: bool) -> bool:
    """Whether the loss of these programs is the one of :func:`negative_bound`."""
    diffusion, score = model.diffusion, model.score_function
    if type(model) is not DiffusionModel or type(guide) is not DiffusionGuide:
        return False
    if not isinstance(x, Tensor) or x.dim() != 1 + len(model.event_shape) or x.dim() < 2:
        return False
    ours = guide.diffusion is diffusion and model.times is None and guide.times is None
    if not ours or guide.event_dim is not None or not torch.is_grad_enabled():
        return False
    if not is_usual_block(diffusion) or diffusion.coordinates(x) is not x:
        return False
    if any(parameter.requires_grad for parameter in diffusion.parameters()):
        return False
    kind = next((k for k in (Denoiser, NoisePrediction, RawScore) if isinstance(score, k)), None)
    if kind is None or not is_plain(score, kind) or score.maps or score.times != "log_volume":
        return False
    if model.context is not None or score.network_context is not None:
        return False
    return not decoder or type(model.likelihood) is likelihoods.Gaussian
