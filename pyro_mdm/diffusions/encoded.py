r"""Diffusions whose auxiliary variables start at an encoding of the data: v_0 ~ N(m_φ(x), Σ_v).

Given x the paths are those of the base, moved: with w = (x, m_φ(x)) and M(s) the drift's propagator
from time 0,

    y_s | x ~ N(M(s) w, Σ(s)),    ∇ log q(y_s | x) = -Σ^{-1} (y_s - M(s) w),

so that x enters where the path starts alone, and with exact networks the bound is tight. The score
that is learned is -Σ^{-1} (y - M E[w | y]): z is no longer sufficient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import Marginal, Times
from pyro_mdm.diffusions.linear import LinearDiffusion, shared
from pyro_mdm.diffusions.wrapped import WrappedDiffusion
from pyro_mdm.support.checks import check_instance

__all__ = ["EncodedDiffusion"]


class EncodedDiffusion(WrappedDiffusion):
    r"""A linear diffusion of K ≥ 2 variables with v_0 ~ N(m_φ(x), Σ_v), m_φ a network.

    The auxiliary variables are then an encoder of the data, and the state at T is what is left of
    it. Σ_v is the base's ``initial_variance``. The generative model is the base's; its score must
    see the whole state: :class:`~pyro_mdm.scores.StateDenoiser`, or one of the raw state.

    The decoder reads x from y_ε whatever m_φ is, by the first row of M(ε)^{-1}: it takes nothing of
    v_0 for granted. So λ of :attr:`start` is a little below ``max_log_snr``, which counts on v_0
    being known to Σ_v.

    Args:
        base: with two variables at least.
        encoder: m_φ, called with data (n, *event_shape); returns (n, (K-1)·C, *spatial) for data of
            C channels (or features), those of v_1 first.

    Raises:
        TypeError: a base that is not linear; an encoder that is no module.
        ValueError: a base of one variable; on call, an encoder that returns another shape, or
            values that are not finite.
    """

    starts_at_data = True

    def __init__(self, base: LinearDiffusion, encoder: nn.Module) -> None:
        super().__init__(base)
        if base.num_variables < 2:
            raise ValueError(
                f"base is a {type(base).__name__} with K = 1, which has no auxiliary variables to "
                "encode data in; use one with K ≥ 2, such as CLD or LearnedDiffusion(2)"
            )
        check_instance("encoder", encoder, nn.Module, "called as encoder(x), see EncodedDiffusion")
        self.encoder = encoder

    def encode(self, x: Tensor) -> Tensor:
        """m_φ(x), (n, K-1, *event_shape), for data (n, *event_shape), in their dtype."""
        K, C = self.num_variables, x.shape[1]
        dtype = next((p.dtype for p in self.encoder.parameters()), x.dtype)
        out = self.encoder(x.to(dtype))
        expected = (len(x), (K - 1) * C, *x.shape[2:])
        if not isinstance(out, Tensor) or out.shape != expected:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"the encoder {type(self.encoder).__name__} returned {got} for data "
                f"{tuple(x.shape)}, expected {expected}: {K - 1} means for each of {C} channels"
            )
        if not bool(out.isfinite().all()):
            raise ValueError(
                f"the encoder {type(self.encoder).__name__} returned values that are not finite; "
                "lower --diffusion_learning_rate, at which it is trained"
            )
        return out.to(x.dtype).unflatten(1, (K - 1, C))

    def displacement(self, x: Tensor, s: Times, event_dim: int | None = None) -> Tensor:
        """M(s) (0, m_φ(x)), like a state (*batch, K, *event_shape), in x's dtype."""
        event_dim = x.dim() - 1 if event_dim is None else event_dim
        batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
        flat = x.reshape(-1, *event)
        key = ("encoded", flat.data_ptr(), flat.shape, flat.stride(), flat.dtype)
        m, _ = shared(self, key, lambda: (self.encode(flat), flat))
        moved = (self.push(s).to(x.dtype) @ m.flatten(2)).reshape(len(flat), -1, *event)
        return moved.reshape(*batch, self.num_variables, *event)

    def push(self, s: Times) -> Tensor:
        """The columns of M(s) that v_0 is multiplied by, (*s.shape, K, K-1)."""
        found: Tensor = self.base.propagator.moments(None, self.clock(s))[0][..., 1:]
        return found

    @property
    def start(self) -> Marginal:
        """The law of y_ε given x and m_φ(x) = 0, and a readout that no m_φ moves."""
        base = self.base.start
        tau = self.clock(self.start_time)
        back, pulled = self.base.propagator.pulled_back(torch.zeros_like(tau), tau)
        return base._replace(readout=back[0], log_snr=-pulled[0, 0].log())

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """``mean of v_0``: m_φ(x), (K-1, n, *event_shape)."""
        return {"mean of v_0": self.encode(x).movedim(1, 0)}

    def check(self, event_shape: Any) -> None:
        super().check(event_shape)
        if not len(event_shape):
            raise ValueError(
                "data have no event dimension, which an encoder needs; give scalars the event "
                "shape (1,)"
            )
