"""The mean and covariance of noised data, by simulation."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mdm import randomness
from pyro_mdm.diffusions.closed import noised_state
from pyro_mdm.scores.residual import noised_moments
from pyro_mdm.simulated.integration import advance
from pyro_mdm.simulated.nonlinear import NonlinearDiffusion

__all__: list[str] = []


@noised_moments.register(NonlinearDiffusion)
def _fitted(
    diffusion: NonlinearDiffusion, train_x: Tensor, s: Tensor, num_paths: int, seed: int
) -> tuple[Tensor, Tensor]:
    with randomness.piece(0, 1, seed):
        states = _noised_data(diffusion, train_x, s, num_paths)
    mean = states.mean(1)
    centred = (states - mean.unsqueeze(1)).movedim(2, -1)  # (M, n, *event, K)
    return mean, torch.einsum("mn...i,mn...j->m...ij", centred, centred) / num_paths


def _noised_data(
    diffusion: NonlinearDiffusion, train_x: Tensor, s: Tensor, num_paths: int
) -> Tensor:
    """States (M, n, K, *event_shape) of ``num_paths`` paths from data to each time of s (M,)."""
    chosen = torch.arange(num_paths) * len(train_x) // num_paths
    x = train_x[chosen].to(s.device).double()
    diffusion.check(x.shape[1:])
    x = x.repeat(len(s), *[1] * (x.dim() - 1))
    noise = randomness.normal((len(x), diffusion.num_variables, *x.shape[1:]), x.dtype, x.device)
    y = noised_state(diffusion.start, x, noise)
    start, ends = diffusion.start_time, s.repeat_interleave(num_paths)
    knots = torch.stack([start.expand(len(ends)), torch.maximum(ends, start)])
    settings = diffusion.simulation
    y = advance(diffusion, y, knots, settings.steps(), settings)
    return y.reshape(len(s), num_paths, *y.shape[2:])
