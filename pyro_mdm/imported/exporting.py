"""Models of this library as denoisers of other packages, whose samplers and guidance then run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import with_event_dims
from pyro_mdm.model import DiffusionModel
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.checks import checked_arguments, describe

__all__ = ["SigmaDenoiser", "to_azula"]


class SigmaDenoiser(nn.Module):
    """A model as a denoiser D(w, σ) of w = x + σ ε, as EDM, k-diffusion and ``deepinv`` call one.

    Args:
        model: a model with a denoiser, conditioned on its context if it has one.

    Raises:
        TypeError: a score that is no denoiser of z.

    Example:
        >>> from pyro_mdm import VPSDE, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> model = DiffusionModel(VPSDE(), Denoiser.fit(MLP(2), torch.randn(100, 2)))
        >>> SigmaDenoiser(model)(torch.randn(5, 2), 0.5).shape
        torch.Size([5, 2])
    """

    @checked_arguments
    def __init__(self, model: DiffusionModel) -> None:
        super().__init__()
        score = model.score_function
        if not isinstance(score, DenoiserScore):
            raise TypeError(
                f"the model's score is {describe(score)}, expected a denoiser of z, such as "
                "Denoiser or DiscreteDenoiser: others know one diffusion alone"
            )
        self.denoiser = score

    def forward(self, w: Tensor, sigma: Tensor | float, *_: object, **__: object) -> Tensor:
        """x̂, like w; other arguments, such as labels, are ignored.

        Args:
            w: noised data, (n, *event_shape).
            sigma: the standard deviation of the noise, a number, (n,), or (n, 1, …, 1).
        """
        s = torch.as_tensor(sigma, dtype=torch.float64, device=w.device)
        s = s.reshape(-1) if s.numel() > 1 else s.reshape(())
        return self.denoiser.x_hat(w, -2 * s.log())


def to_azula(
    model: DiffusionModel, schedule: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
) -> nn.Module:
    """A model as a ``Denoiser`` of ``azula``.

    Args:
        model: a model, as for :class:`SigmaDenoiser`.
        schedule: an azula ``Schedule`` between the model's ends; None: a ``VESchedule`` between
            them.

    Returns:
        The azula ``Denoiser``, a module.

    Raises:
        TypeError: a score that is no denoiser of z.
        ImportError: azula is not installed (``pip install -e ".[imported]"``).

    Example:
        >>> from pyro_mdm import VPSDE, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> model = DiffusionModel(VPSDE(), Denoiser.fit(MLP(2), torch.randn(100, 2)))
        >>> denoiser = to_azula(model)  # doctest: +SKIP
        >>> denoiser(torch.randn(5, 2), torch.tensor(0.5)).mean.shape  # doctest: +SKIP
        torch.Size([5, 2])
    """
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VESchedule

    denoise, chosen = SigmaDenoiser(model), schedule
    if chosen is None:
        diffusion = model.diffusion
        ends = (diffusion.start_log_snr, diffusion.terminal_log_snr)
        chosen = VESchedule(*(float(torch.exp(-end.detach() / 2)) for end in ends))
    scales: Callable[[Tensor], tuple[Tensor, Tensor]] = chosen

    class ModelDenoiser(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.denoise, self.schedule = denoise, scales

        def forward(self, x_t: Tensor, t: Tensor, **_: object) -> Any:
            alpha, sigma = self.schedule(t)
            z = x_t / with_event_dims(alpha, x_t)
            return DiracPosterior(self.denoise(z, sigma / alpha))

    return ModelDenoiser()
