r"""Diffusions as torchsde objects: the noising SDE and the generative one.

torchsde integrates two-dimensional states forward in time. So a state (batch, K, *event_shape) is
folded to (batch·d, K) with a K×K dispersion, and the generative SDE runs in t = T - s,

    du = ( g² s_θ(u, T-t) + ∇·g² - f(u, T-t) ) dt + G(u, T-t) dB_t,    g² = G Gᵀ

(Singhal, Goldstein & Ranganath, ICLR 2023, equation 3, where ∇·g² = 0 and f = A u; Anderson 1982).

Example:
    >>> import torch, torchsde
    >>> from pyro_mdm import CLD
    >>> sde = ForwardSDE(CLD())
    >>> y0 = torch.zeros(5, 2, 3)  # 5 data of 3 dimensions, K = 2
    >>> ys = torchsde.sdeint(sde, fold(y0), torch.tensor([0.0, 0.1]), method="euler", dt=0.05)
    >>> unfold(ys[-1], (3,)).shape
    torch.Size([5, 2, 3])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import Cap, Diffusion, Times, require
from pyro_mdm.diffusions.matrices import check_dispersion

__all__ = [
    "ForwardSDE",
    "ReverseSDE",
    "fold",
    "noise_type",
    "unfold",
]


def fold(y: Tensor) -> Tensor:
    """States (batch, K, *event_shape) as (batch·d, K)."""
    if y.dim() < 2:
        raise ValueError(f"y has shape {tuple(y.shape)}, expected (batch, K, *event_shape)")
    return y.movedim(1, -1).reshape(-1, y.shape[1])


def unfold(states: Tensor, event_shape: Sequence[int]) -> Tensor:
    """States (batch·d, K) as (batch, K, *event_shape)."""
    d = math.prod(event_shape)
    if states.dim() != 2 or states.shape[0] % d:
        raise ValueError(
            f"states have shape {tuple(states.shape)}, expected (batch·{d}, K): the {d} dimensions "
            f"of event shape {tuple(event_shape)} are folded into the batch"
        )
    return states.reshape(-1, *event_shape, states.shape[-1]).movedim(-1, 1)


class StateNoise(Protocol):
    """A diffusion whose noise depends on the state."""

    def noise_divergence(self, y: Tensor, s: Times) -> Tensor:
        """∇·g², like y."""


def noise_type(diffusion: Diffusion) -> str:
    """torchsde's name of the kind of noise."""
    return "general" if diffusion.noise_depends_on_state else "additive"


class _DiffusionSDE(nn.Module):
    """An Itô SDE with K×K dispersions, in either direction."""

    sde_type = "ito"

    def __init__(self, diffusion: Diffusion, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.diffusion = diffusion
        self.event_shape = torch.Size(event_shape)
        self.noise_type = noise_type(diffusion)

    def _state(self, states: Tensor) -> Tensor:
        K = self.diffusion.num_variables
        if states.dim() != 2 or states.shape[1] != K:
            raise ValueError(
                f"states have shape {tuple(states.shape)}, expected (batch·d, K) with the K = {K} "
                f"variables of {type(self.diffusion).__name__}; use pyro_mdm.simulated.sde.fold"
            )
        return unfold(states, self.event_shape)

    def _time(self, s: Tensor) -> Tensor:
        """s in float64, put back into [0, T] where rounding of t has moved it out."""
        T = self.diffusion.horizon
        slack = 4 * torch.finfo(s.dtype).eps * T
        s = s.double()
        return torch.where((s > -slack) & (s < T + slack), s.clamp(0.0, T), s)

    def _drift(self, y: Tensor, s: Tensor) -> Tensor:
        return self.diffusion.drift(y, s.expand(len(y)))

    def _dispersion(self, states: Tensor, s: Tensor) -> Tensor:
        y, s = self._state(states), self._time(s)
        G = check_dispersion(self.diffusion, self.diffusion.dispersion(y, s.expand(len(y))), y)
        G = G.to(states)
        return G.expand(-1, y[0, 0].numel(), -1, -1).reshape(len(states), *G.shape[2:])


class ForwardSDE(_DiffusionSDE):
    """The noising SDE dy = f(y, s) ds + G(y, s) dB_s over states (batch·d, K), in time s.

    Args:
        diffusion: the noising diffusion.
        event_shape: shape of a datum, for a drift that couples data dimensions.

    Raises:
        ValueError: states of another shape, a time outside [0, T].
    """

    def __init__(self, diffusion: Diffusion, event_shape: Sequence[int] = ()) -> None:
        fix = "draw states at a time by diffusion.paths.noised"
        require(diffusion, Cap.OWN_DRIFT, who="An SDE from a state alone", fix=fix)
        super().__init__(diffusion, event_shape)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """f(y, t), like y (batch·d, K)."""
        return fold(self._drift(self._state(y), self._time(t)).to(y.dtype))

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """G(y, t), (batch·d, K, K)."""
        return self._dispersion(y, t)


class ReverseSDE(_DiffusionSDE):
    """The generative SDE over states (batch·d, K), in torchsde's time t = T - s.

    Integrate from t = 0, where the state is drawn from the prior, to T - ε.

    Args:
        diffusion: the noising diffusion that is reversed.
        score: ``score(y, s) -> like y`` for y (batch, K, *event_shape) and s (batch,).
        event_shape: shape of a datum.

    Raises:
        ValueError: states of another shape, a time outside [0, T], a score of another shape.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        score: Callable[[Tensor, Tensor], Tensor],
        event_shape: Sequence[int],
    ) -> None:
        super().__init__(diffusion, event_shape)
        self.score = score

    def f(self, t: Tensor, u: Tensor) -> Tensor:
        """g² s_θ(u, T - t) + ∇·g² - f(u, T - t), like u (batch·d, K)."""
        y = self._state(u)
        s = self._time(self.diffusion.horizon - t)
        score = self.score(y, s.expand(len(y)))
        if score.shape != y.shape:
            raise ValueError(
                f"the score has shape {tuple(score.shape)}, expected y's {tuple(y.shape)}"
            )
        G = self._dispersion(u, s)
        white = G.mT @ fold(score.to(u.dtype)).unsqueeze(-1)
        drift = self._drift(y, s)
        if self.noise_type == "general":
            drift = drift - cast(StateNoise, self.diffusion).noise_divergence(y, s.expand(len(y)))
        return (G @ white).squeeze(-1) - fold(drift.to(u.dtype))

    def g(self, t: Tensor, u: Tensor) -> Tensor:
        """G(u, T - t), (batch·d, K, K)."""
        return self._dispersion(u, self.diffusion.horizon - t)
