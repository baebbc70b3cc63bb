r"""The loss in the bound by noising paths driven by the data, whatever the network.

Such paths hold more information on x than their ends do, which a Markov generative process cannot
use. With the exact network, whose aims are E[U | z] and E[R | z], the diffusion term is

    ⅛ ∫ e^λ/ρ E‖ΔU + ρ ΔR‖² dλ  =  I(x; z_ε) - I(x; z_T)  +  ⅛ ∫ e^λ/ρ E‖ΔU - ρ ΔR‖² dλ,

where ΔU = U - E[U | z], ΔR = R - E[R | z] (:class:`~pyro_mdm.seeing.data_driven.Aims`). The
mutual information is the term of a linear diffusion, for which U = R; the rest is the gap.

Source: derived for this library, from Girsanov's theorem for the noising paths and their mixture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.seeing.data_driven import DataDrivenDiffusion
from pyro_mdm.support.checks import Count, Several, check_data, checked_arguments, tensor_device
from pyro_mdm.support.measured import Measured, student_factor
from pyro_mdm.support.modules import evaluating

__all__ = ["PathInformation", "path_information_gap"]


class PathInformation(NamedTuple):
    """The diffusion term of the exact network and its parts, with errors, in nats per datum."""

    diffusion: Measured  # the sum of the two others
    information: Measured  # I(x; z_ε) - I(x; z_T): the least diffusion term of any model
    gap: Measured  # the loss of any model


@checked_arguments
def path_information_gap(
    diffusion: DataDrivenDiffusion,
    points: Tensor,
    weights: Tensor | None = None,
    *,
    levels: Count = 256,
    draws: Several = 64,
    seed: int = 0,
) -> PathInformation:
    """The information in noising paths beyond that in their ends, for data of a given distribution.

    The distribution is one of finitely many points: a grid over a density in a few dimensions, or a
    data set. Posterior means are sums over the points, which stand for the exact network.

    Args:
        diffusion: diffusion of the paths.
        points: points of the data distribution, (N, *event_shape).
        weights: probabilities of the points, (N,), up to a factor; None: equal.
        levels: number of equal intervals of log SNR, in each of which one is drawn.
        draws: number of draws of x and the noise at each log SNR, at least 2.
        seed: seed of the draws.

    Returns:
        :class:`PathInformation`. Errors are those of the draws at each log SNR.

    Raises:
        TypeError: another kind of diffusion; points that are not a tensor.
        ValueError: points that are not finite, weights of another shape or below 0, too few levels
            or draws.

    Example:
        >>> from pyro_mdm import VPSDE
        >>> from pyro_mdm.networks import MLP
        >>> network = MLP(1, 8, 1, out_features=DataDrivenDiffusion.outputs())
        >>> diffusion = DataDrivenDiffusion(VPSDE(max_log_snr=9.0), network)
        >>> path_information_gap(diffusion, torch.linspace(-2, 2, 9)[:, None]).gap.mean
        0.0
    """
    check_data("points", points, tensor_device(diffusion))
    law = _checked_weights(points, weights)
    generator = torch.Generator().manual_seed(seed)
    with evaluating(diffusion):
        high, low = diffusion.max_log_snr, diffusion.terminal_log_snr.item()
        u = (torch.arange(levels) + torch.rand(levels, generator=generator).double()) / levels
        rates = [
            _rates(diffusion, points, law, high + fraction * (low - high), draws, generator)
            for fraction in u.tolist()
        ]
    total, gap = torch.stack(rates, 1) * (high - low)  # (levels, draws) each

    def measured(value: Tensor) -> Measured:
        error = (value.var(1) / draws).sum().sqrt() / levels
        error = error * student_factor(levels * (draws - 1))
        return Measured(value.mean().item(), error.item())

    return PathInformation(measured(total), measured(total - gap), measured(gap))


def _rates(
    diffusion: DataDrivenDiffusion,
    points: Tensor,
    law: Tensor,
    log_snr: float,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Draws of the diffusion term and the gap per unit of λ, (2, draws), float64 on the CPU."""
    x = points.double()
    levels = x.new_full((len(x),), log_snr)
    path = diffusion.path(x, levels)
    mean, mean_rate, h, h_rate = (t.expand_as(x).flatten(1) for t in path)
    chosen = torch.multinomial(law.cpu(), draws, replacement=True, generator=generator).to(x.device)
    noise = torch.randn(draws, mean.shape[1], generator=generator, dtype=torch.float64).to(x.device)
    z = mean[chosen] + ((h - levels[:, None]) / 2).exp()[chosen] * noise

    precision = (levels[:, None] - h).exp()
    square = z.square() @ precision.mT - 2 * z @ (precision * mean).mT
    square = square + (precision * mean.square() - precision.log()).sum(1)
    posterior = (law.log() - 0.5 * square).softmax(1)  # (draws, N)
    # both aims are linear in z, given x
    pulls = h_rate, -torch.expm1(-h)
    aims = (mean + 2 * mean_rate - pulls[0] * mean, mean - pulls[1] * mean)
    flow, score = (
        (a[chosen] - posterior @ a) + z * (b[chosen] - posterior @ b)
        for a, b in zip(aims, pulls, strict=True)
    )
    rho = diffusion.volatility(diffusion.fraction(levels[:1])).to(x)
    weight = levels[0].exp() / (8 * rho)
    both = torch.stack([flow + rho * score, flow - rho * score])
    values: Tensor = (weight * both.square().sum(2)).cpu()
    return values


def _checked_weights(points: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return torch.full((len(points),), 1 / len(points), dtype=torch.float64).to(points.device)
    weights = torch.as_tensor(weights).to(points.device, torch.float64)
    if weights.shape != (len(points),) or not bool((weights >= 0).all()) or not weights.sum() > 0:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)} and a least entry of {weights.min():.3g}, "
            f"expected a probability, up to a factor, of each of the {len(points)} points"
        )
    return weights / weights.sum()
