r"""The generative SDE as a torchsde object, and states as torchsde takes them.

torchsde integrates two-dimensional states forward in time. So a state (batch, K, *event_shape) is
folded to (batch·d, K) with a K×K dispersion, and the generative SDE runs in t = T - s,

    du = ( g² s_θ(u, T-t) + ∇·g² - f(u, T-t) ) dt + G(u, T-t) dB_t,    g² = G Gᵀ

(Singhal, Goldstein & Ranganath, ICLR 2023, equation 3, where ∇·g² = 0 and f = A u; Anderson 1982).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import Diffusion, Times
from pyro_mdm.diffusions.matrices import noise_root

__all__ = ["FoldedSDE", "ReverseSDE", "fold", "unfold"]


def fold(y: Tensor) -> Tensor:
    """States (batch, K, *event_shape) as (batch·d, K)."""
    return y.movedim(1, -1).reshape(-1, y.shape[1])


def unfold(states: Tensor, event_shape: Sequence[int]) -> Tensor:
    """States (batch·d, K) as (batch, K, *event_shape)."""
    return states.reshape(-1, *event_shape, states.shape[-1]).movedim(-1, 1)


class StateNoise(Protocol):
    """A diffusion whose noise depends on the state."""

    def noise_divergence(self, y: Tensor, s: Times) -> Tensor:
        """∇·g², like y."""


class FoldedSDE(nn.Module):
    """An Itô SDE of a diffusion over folded states.

    Args:
        diffusion: the noising diffusion.
        event_shape: the shape of a datum.
    """

    sde_type = "ito"

    def __init__(self, diffusion: Diffusion, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.diffusion, self.event_shape = diffusion, torch.Size(event_shape)
        self.noise_type = "general" if diffusion.noise_depends_on_state else "additive"

    def folded(self, G: Tensor) -> Tensor:
        """Blocks (batch, d or 1, K, K) as (batch·d, K, K)."""
        return G.expand(-1, self.event_shape.numel(), -1, -1).flatten(0, 1)


class ReverseSDE(FoldedSDE):
    """The generative SDE over states (batch·d, K), in torchsde's time t = T - s.

    Integrate from t = 0, where the state is drawn from the prior, to T - ε.

    Args:
        diffusion: the noising diffusion that is reversed.
        score: ``score(y, s) -> like y`` for y (batch, K, *event_shape) and s (batch,).
        event_shape: the shape of a datum.
    """

    _last: tuple[Tensor, Tensor, Tensor] | None = None
    """The last state, time and drift: torchsde asks for some of them twice."""

    def __init__(
        self,
        diffusion: Diffusion,
        score: Callable[[Tensor, Tensor], Tensor],
        event_shape: Sequence[int],
    ) -> None:
        super().__init__(diffusion, event_shape)
        self.score = score

    def _at(self, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """y, and its times s (batch,), put back into [0, T] where rounding has moved them out."""
        y, T = unfold(u, self.event_shape), self.diffusion.horizon
        return y, (T - t.double()).clamp(0.0, T).expand(len(y))

    def f(self, t: Tensor, u: Tensor) -> Tensor:
        """g² s_θ(u, T - t) + ∇·g² - f(u, T - t), like u (batch·d, K)."""
        if self._last is None or self._last[0] is not u or self._last[1] != t:
            self._last = u, t, self._drift(t, u)
        return self._last[2]

    def _drift(self, t: Tensor, u: Tensor) -> Tensor:
        y, s = self._at(t, u)
        G = self.folded(noise_root(self.diffusion, y, s))
        white = G.mT @ fold(self.score(y, s).to(u.dtype)).unsqueeze(-1)
        drift = self.diffusion.drift(y, s)
        if self.noise_type == "general":
            drift = drift - cast(StateNoise, self.diffusion).noise_divergence(y, s)
        return (G @ white).squeeze(-1) - fold(drift.to(u.dtype))

    def g(self, t: Tensor, u: Tensor) -> Tensor:
        """G(u, T - t), (batch·d, K, K)."""
        return self.folded(noise_root(self.diffusion, *self._at(t, u)))
