r"""Diffusions whose auxiliary variables start at an encoding of the data: v_0 ~ N(m_φ(x), Σ_v).

Given x the paths are those of the base, with another mean. With w = (x, m_φ(x)) and M(s) the
drift's propagator from time 0,

    y_s | x ~ N(M(s) w, Σ(s)),    ∇ log q(y_s | x) = -Σ^{-1} (y_s - M(s) w).

x enters through the start of the path alone, so that the bound is tight with exact networks. The
learned score is ``-Σ^{-1} (y - M E[w | y])``, for which z is no longer sufficient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import Times, full_precision, remade
from pyro_mdm.diffusions.closed import GaussianPaths
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.seeing.wrapped import WrappedDiffusion
from pyro_mdm.support.checks import check_instance, checked_arguments

__all__ = ["EncodedDiffusion", "check_encoded"]


class EncodedPaths(GaussianPaths):
    """Paths whose v_0 starts around m_φ(x)."""

    diffusion: EncodedDiffusion
    starts_at_data = True

    def __init__(self, diffusion: EncodedDiffusion) -> None:
        super().__init__(diffusion)
        self._encodings: dict[object, tuple[Tensor, Tensor]] = {}

    def _encoded(self, x: Tensor) -> Tensor:
        """m_φ(x), of one that is solved once for the same data and mode of gradients."""
        if self.diffusion.made_from is None:
            return self.diffusion.encode(x)
        key = x.data_ptr(), x.shape, x.stride(), x.dtype, torch.is_grad_enabled()
        if key not in self._encodings:  # x is held, so that no other comes to its place
            self._encodings[key] = self.diffusion.encode(x), x
        return self._encodings[key][0]

    def displacement(self, x: Tensor, s: Times, event_dim: int | None = None) -> Tensor:
        """M(s) (0, m_φ(x)), like a state (*batch, K, *event_shape), in x's dtype."""
        event_dim = x.dim() - 1 if event_dim is None else event_dim
        batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
        flat = x.reshape(-1, *event)
        m = self._encoded(flat)
        moved = (self.diffusion.push(s).to(x) @ m.flatten(2)).reshape(len(flat), -1, *event)
        return moved.reshape(*batch, self.diffusion.num_variables, *event)

    def without_displacement(self, y: Tensor, event_dim: int) -> Tensor:
        """y_ε - M(ε) (0, m_φ(x_0)), like y in float64; see the class. It calls m_φ once."""
        tau = self.diffusion.clock(self.diffusion.start_time)
        back, _ = self.diffusion.base.propagator.pulled_back(torch.zeros_like(tau), tau)
        state = y.double()
        with full_precision(state):
            x = (state.movedim(y.dim() - 1 - event_dim, -1) @ back[0].to(state)).to(y.dtype)
        return state - self.displacement(x, self.diffusion.start_time, event_dim)


class EncodedDiffusion(WrappedDiffusion):
    r"""A linear diffusion of K ≥ 2 variables with v_0 ~ N(m_φ(x), Σ_v), m_φ a network.

    The auxiliary variables start as an encoding of the data. Σ_v is the base's
    ``initial_variance``. The generative model is the base's, with a score that sees the whole
    state: :class:`~pyro_mdm.seeing.StateDenoiser`, or one of the raw state.

    Decoders subtract M(ε) (0, m_φ(x)), which the encoding adds to the state, and then read x from
    y_ε as for the base, with the noise of λ(ε). Since x is not given, m_φ is evaluated at x_0, the
    first variable of ``M(ε)^{-1} y_ε``: an estimate of x that assumes nothing about v_0. It is
    noisier than the decoders' readout, but close enough to x for m_φ, and needs no score. Further
    information on x in v_0 is not used.

    The loss in the bound is up to 2 (ρ c)² nats for each data dimension, where c is the slope of
    m_φ and ρ the base's readout of M(ε) e_1. For CLD ρ is 0.034 at λ(ε) = 9 and 0.007 at 13 with
    Σ_v = 0.01, and 0.012 and 0.001 with Σ_v = 0.25.

    Args:
        base: linear diffusion of at least two variables.
        encoder: module m_φ called with data, (n, *event_shape), which returns
            (n, (K-1)·C, *spatial) for data of C channels (or features), those of v_1 first.

    Raises:
        TypeError: a base that is not linear; an encoder that is not a module.
        ValueError: a base of one variable; on call, an encoder that returns another shape, or
            values that are not finite.

    Example:
        >>> from pyro_mdm import CLD
        >>> diffusion = EncodedDiffusion(CLD(), nn.Linear(2, 2))
        >>> diffusion.encode(torch.randn(5, 2)).shape  # K - 1 = 1 auxiliary variable
        torch.Size([5, 1, 2])
    """

    _networks = ("encoder",)
    _kind_of_paths = EncodedPaths

    @checked_arguments
    def __init__(self, base: LinearDiffusion, encoder: nn.Module) -> None:
        super().__init__(base)
        if base.num_variables < 2:
            raise ValueError(
                f"base is a {type(base).__name__} with K = 1, which has no auxiliary variables to "
                "encode data in; use one with K ≥ 2, such as CLD or LearnedDiffusion(2)"
            )
        check_instance("encoder", encoder, nn.Module, "called as encoder(x), see EncodedDiffusion")
        self.encoder = encoder

    def solved(self) -> EncodedDiffusion:
        """One that encodes data of one loss once, beside what follows from the base."""
        return self if self.made_from is not None else remade(self, base=self.base.solved())

    def encode(self, x: Tensor) -> Tensor:
        """m_φ(x), (n, K-1, *event_shape), for data (n, *event_shape), in their dtype."""
        K, C = self.num_variables, x.shape[1]
        dtype = next((p.dtype for p in self.encoder.parameters()), x.dtype)
        out = self.encoder(x.to(dtype))
        expected = (len(x), (K - 1) * C, *x.shape[2:])
        check_encoded(self.encoder, x, out, expected, f": {K - 1} means for each of {C} channels")
        value: Tensor = out.to(x.dtype).unflatten(1, (K - 1, C))
        return value

    def push(self, s: Times) -> Tensor:
        """The columns of M(s) that multiply v_0, (*s.shape, K, K-1)."""
        M, _ = self.base.propagator.moments(None, self.clock(s))
        return M[..., 1:]

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """``mean of v_0``: m_φ(x), (K-1, n, *event_shape)."""
        return {"mean of v_0": self.encode(x).movedim(1, 0)}

    def check(self, event_shape: Sequence[int]) -> None:
        super().check(event_shape)
        if not len(event_shape):
            raise ValueError(
                "data have no event dimension, which an encoder needs; give scalars the event "
                "shape (1,)"
            )


def check_encoded(
    encoder: nn.Module, x: Tensor, out: object, expected: tuple[int, ...], why: str = ""
) -> None:
    """Raises ValueError unless an encoder's output for data x is finite, and of this shape."""
    name = type(encoder).__name__
    if not isinstance(out, Tensor) or out.shape != expected:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"the encoder {name} returned {got} for data {tuple(x.shape)}, expected {expected}{why}"
        )
    if not bool(out.isfinite().all()):
        raise ValueError(
            f"the encoder {name} returned values that are not finite; lower the "
            "learning rate of the diffusion, at which it is trained"
        )
