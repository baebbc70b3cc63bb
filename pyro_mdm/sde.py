r"""Diffusions as torchsde objects: the noising SDE and the generative one.

torchsde integrates two-dimensional states forward in time. So data dimensions are folded into the
batch, a state (batch, K, *event_shape) becoming (batch·d, K) with a K×K dispersion, and the
generative SDE runs in t = T - s,

    du = ( g²(T-t) s_θ(u, T-t) - A(T-t) u ) dt + G(T-t) dB_t,    g² = G Gᵀ

(Singhal, Goldstein & Ranganath, ICLR 2023, equation 3).

Example:
    >>> import torch, torchsde
    >>> from pyro_mdm import CLD
    >>> sde = CLD().forward_sde()
    >>> y0 = torch.zeros(5, 2, 3)  # 5 data of 3 dimensions, K = 2
    >>> ys = torchsde.sdeint(sde, fold(y0), torch.tensor([0.0, 0.1]), method="euler", dt=0.05)
    >>> unfold(ys[-1], (3,)).shape
    torch.Size([5, 2, 3])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions import LinearDiffusion

__all__ = ["ForwardSDE", "ReverseSDE", "fold", "unfold"]


def fold(y: Tensor) -> Tensor:
    """(batch, K, *event_shape) -> (batch·d, K)."""
    if y.dim() < 2:
        raise ValueError(f"y has shape {tuple(y.shape)}, expected (batch, K, *event_shape)")
    return y.movedim(1, -1).reshape(-1, y.shape[1])


def unfold(states: Tensor, event_shape: Sequence[int]) -> Tensor:
    """(batch·d, K) -> (batch, K, *event_shape)."""
    d = math.prod(event_shape)
    if states.dim() != 2 or states.shape[0] % d:
        raise ValueError(
            f"states have shape {tuple(states.shape)}, expected (batch·{d}, K): the {d} dimensions "
            f"of event shape {tuple(event_shape)} are folded into the batch"
        )
    return states.reshape(-1, *event_shape, states.shape[-1]).movedim(-1, 1)


class _LinearSDE(nn.Module):
    """What both directions share: additive Itô noise, one K×K dispersion for all states."""

    noise_type = "additive"
    sde_type = "ito"

    def __init__(self, diffusion: LinearDiffusion) -> None:
        super().__init__()
        self.diffusion = diffusion

    def _check(self, states: Tensor) -> None:
        K = self.diffusion.num_variables
        if states.dim() != 2 or states.shape[1] != K:
            raise ValueError(
                f"states have shape {tuple(states.shape)}, expected (batch·d, K) with the K = {K} "
                f"variables of {type(self.diffusion).__name__}; use pyro_mdm.sde.fold"
            )

    def _time(self, s: Tensor) -> Tensor:
        """s in float64, put back into [0, T] where the rounding of t moved it out."""
        T = self.diffusion.horizon
        slack = 4 * torch.finfo(s.dtype).eps * T
        s = s.double()
        return torch.where((s > -slack) & (s < T + slack), s.clamp(0.0, T), s)

    def _dispersion(self, s: Tensor, states: Tensor) -> Tensor:
        self._check(states)
        G = self.diffusion.dispersion(self._time(s)).to(states.dtype)
        return G.expand(states.shape[0], *G.shape)


class ForwardSDE(_LinearSDE):
    """dy = A(s) y ds + G(s) dB_s over states (batch·d, K), with torchsde's time s itself.

    Args:
        diffusion: the noising diffusion.

    Raises:
        ValueError: states of another shape, a time outside [0, T].
    """

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """A(t) y, like y (batch·d, K)."""
        self._check(y)
        return y @ self.diffusion.drift_matrix(self._time(t)).to(y.dtype).mT

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """G(t), (batch·d, K, K)."""
        return self._dispersion(t, y)


class ReverseSDE(_LinearSDE):
    """The generative SDE over states (batch·d, K), with torchsde's time t = T - s.

    Integrate from t = 0, where the state is drawn from N(0, Σ_π), to T - ε.

    Args:
        diffusion: the noising diffusion that is reversed.
        score: ``score(y, s) -> like y`` for y (batch, K, *event_shape) and s (batch,).
        event_shape: shape of a datum.

    Raises:
        ValueError: states of another shape, a time outside [0, T], a score of another shape.
    """

    def __init__(
        self,
        diffusion: LinearDiffusion,
        score: Callable[[Tensor, Tensor], Tensor],
        event_shape: Sequence[int],
    ) -> None:
        super().__init__(diffusion)
        self.score = score
        self.event_shape = torch.Size(event_shape)

    def f(self, t: Tensor, u: Tensor) -> Tensor:
        """g² s_θ(u, T - t) - A u, like u (batch·d, K)."""
        self._check(u)
        s = self._time(self.diffusion.horizon - t)
        y = unfold(u, self.event_shape)
        score = self.score(y, s.expand(len(y)))
        if score.shape != y.shape:
            raise ValueError(
                f"the score has shape {tuple(score.shape)}, expected y's {tuple(y.shape)}"
            )
        A = self.diffusion.drift_matrix(s).to(u.dtype)
        g2 = self.diffusion.noise_covariance(s).to(u.dtype)
        return fold(score.to(u.dtype)) @ g2 - u @ A.mT

    def g(self, t: Tensor, u: Tensor) -> Tensor:
        """G(T - t), (batch·d, K, K)."""
        return self._dispersion(self.diffusion.horizon - t, u)
