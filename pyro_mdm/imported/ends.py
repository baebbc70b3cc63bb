"""The ends of log SNR between which a trained denoiser has its best bound."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_mdm.diffusions.presets import VPSDE
from pyro_mdm.likelihoods.base import Likelihood
from pyro_mdm.scores.denoiser import DenoiserScore, moments
from pyro_mdm.support.checks import Several, check_data, check_shape, checked_arguments
from pyro_mdm.support.modules import in_eval_mode

__all__ = ["best_ends", "errors_by_level"]

HALF_SEEN = -3.0, 0.0
"""The log SNRs, in units of the data's variance, between which a network is used in any case."""


def errors_by_level(
    x_hat: Callable[[Tensor, Tensor], Tensor], x: Tensor, noise: Tensor, levels: Tensor
) -> Tensor:
    """Mean squared errors of a denoiser x̂(z, λ) at log SNRs (m,), float64; ∞ where not finite.

    z is like the data x (n, *event_shape), and the noise is standard normal.
    """
    errors = []
    for lam in levels.to(x.device):
        z = x + torch.exp(-lam / 2).to(x.dtype) * noise
        errors.append((x_hat(z, lam) - x).double().square().mean())
    by_level = torch.stack(errors).cpu()
    return by_level.where(by_level.isfinite(), math.inf)


@torch.no_grad()
@checked_arguments
def best_ends(
    denoiser: DenoiserScore,
    x: Tensor,
    *,
    likelihood: Likelihood | None = None,
    context: Tensor | None = None,
    points: Several = 48,
    seed: int = 0,
) -> dict[str, float]:
    r"""The ends of log SNR with the best bound of data, as arguments: ``VPSDE(**best_ends(…))``.

    Per datum, the bound between λ₀ and λ₁ is

        E log p(x | y_{λ₁}) - ½ ∫_{λ₀}^{λ₁} e^λ E‖x - x̂(z, λ)‖² dλ - KL(q(y_{λ₀} | x), N(0, I))

    Above the best upper end, errors of the network cost more than the decoder gains; below the best
    lower end, more than the prior does. Both are in the range of the network, and data are half
    seen between them (``HALF_SEEN``).

    Args:
        denoiser: a trained denoiser, such as an :class:`~pyro_mdm.imported.ImportedDenoiser`.
        x: training data, (n, *event_shape); a hundred are enough.
        likelihood: the decoder p(x | y_ε) of the model; None: the denoiser's default.
        context: contexts of the data, (n, context_size), if the network takes some; None: those of
            the denoiser, or none.
        points: the number of log SNRs that are tried, evenly spaced.
        seed: the seed of the noise.

    Returns:
        ``max_log_snr`` and ``min_log_snr``.

    Raises:
        ValueError: data of another shape or that are not finite, a denoiser without a range.

    Example:
        >>> from pyro_mdm import VPSDE
        >>> from pyro_mdm.imported import from_velocity
        >>> from pyro_mdm.networks import MLP
        >>> x = torch.randn(100, 2)
        >>> diffusion = VPSDE(**best_ends(from_velocity(MLP(2), x), x))
    """
    check_data("x", x)
    check_shape("x", x, denoiser.event_shape or ())
    low, high = denoiser.trained_min.item(), denoiser.trained_max.item()
    if not math.isfinite(high - low):
        raise ValueError(
            f"the log SNRs that the denoiser was trained for are {low:g} to {high:g}, expected "
            "finite ones; set them by denoiser.set_trained_range"
        )
    given = denoiser if context is None else denoiser.given_context(context)
    likelihood = likelihood or denoiser.default_likelihood()
    levels = torch.linspace(low, high, points, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    noise /= noise.square().mean().sqrt()  # chance would tilt all errors e^λ ‖x - x̂‖² alike
    with in_eval_mode(denoiser):
        error = levels.exp() * errors_by_level(given.x_hat, x, noise, levels)
        decoded = torch.zeros_like(levels)  # the decoder's part where it takes over
        for i, level in enumerate(levels.tolist()):
            start = VPSDE(max_log_snr=level, min_log_snr=level - 1).to(x.device)
            alpha, sigma = (math.sqrt(1 / (1 + math.exp(sign * level))) for sign in (-1, 1))
            y = (alpha * x + sigma * noise)[:, None]
            log_prob = likelihood(start, given, y, x.dim() - 1).log_prob(x)
            decoded[i] = log_prob.double().mean().cpu() / x[0].numel()
    # nats per dimension, of the way from the least log SNR and of the prior
    way = torch.cat([error.new_zeros(1), torch.cumulative_trapezoid(error, levels) / 2])
    square = x.double().square().mean().cpu()
    prior = (levels.sigmoid() * (square - 1) - logsigmoid(-levels)) / 2
    units = levels + moments(x)[1].mean().log().cpu()
    ends = {}
    for name, costs, allowed in (
        ("max_log_snr", way - decoded, units >= min(HALF_SEEN[1], float(units[-1]))),
        ("min_log_snr", prior - way, units <= max(HALF_SEEN[0], float(units[0]))),
    ):
        ends[name] = float(levels[costs.where(allowed & costs.isfinite(), math.inf).argmin()])
    return ends
