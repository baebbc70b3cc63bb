r"""Denoisers that see the whole state, for diffusions whose auxiliary variables encode the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion, apply_vector, full_precision
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.scores.base import Coefficients, Number, coefficients, rotated
from pyro_mdm.seeing.wrapping import WrappedDenoiser

__all__ = ["StateDenoiser"]


class StateDenoiser(WrappedDenoiser):
    r"""The score of an :class:`~pyro_mdm.EncodedDiffusion`, from estimates of x and of m_φ(x).

        s_θ(y, s) = -Σ^{-1} (y - M(s) ŵ),    ŵ = (x̂, m̂)

    Both come from one network call. m̂ is an output; x̂ is the denoiser's at z̃ = kᵀ (y - M (0, m̂)),
    in which the noise is ``e^{-λ/2}`` where m̂ is right. The network sees z, as the denoiser scales
    it, and the K-1 directions of ``L^{-1} y`` without x, whose mean depends on m_φ(x) and whose
    noise has unit variance. Where encoder and outputs are 0 it is the denoiser.

    Args:
        denoiser: denoiser over a network with K·C channels and (outputs + K - 1)·C outputs.

    Raises:
        TypeError: an object that is no denoiser.
        ValueError: a denoiser with maps, or without the shape of its data; states of the wrong
            shape, NaN, a network output of another shape.

    Example:
        >>> from pyro_mdm import CLD, Denoiser, EncodedDiffusion
        >>> from pyro_mdm.networks import MLP
        >>> diffusion = EncodedDiffusion(CLD(), torch.nn.Linear(2, 2))
        >>> denoiser = Denoiser.fit(MLP(features=4), torch.randn(100, 2))  # K = 2, 2 dimensions
        >>> score = StateDenoiser(denoiser)
        >>> score.score(diffusion, torch.zeros(3, 2, 2), torch.full((3,), 0.5)).shape
        torch.Size([3, 2, 2])
    """

    instead_of = Cap.READOUT

    @staticmethod
    def more_inputs(diffusion: Diffusion) -> int:
        return diffusion.num_variables - 1

    @staticmethod
    def more_outputs(diffusion: Diffusion) -> int:
        return diffusion.num_variables - 1

    def score_at(self, diffusion: Kernels, y: Tensor, at: Coefficients) -> Tensor:
        """``-Σ^{-1} (y - M ŵ)``, like y; the linear algebra in float64."""
        at, state, x, m = self._estimates(diffusion, y, at)
        law = at.marginal
        with full_precision(y):
            W = at.whitener
            rest = state.double() - outer(law.mean, x.double()) - _push(diffusion, at.s, m)
            theta: Tensor = -apply_matrix(W.mT, apply_matrix(W, rest))
        return theta.to(y.dtype).reshape(y.shape)

    def denoise_at(
        self, diffusion: Kernels, y: Tensor, at: Coefficients, noise: float = 1.0
    ) -> Tensor:
        return self.start_hat_at(diffusion, y, at).select(y.dim() - 1 - self._event_dim, 0)

    def start_hat(self, diffusion: Kernels, y: Tensor, s: Number) -> Tensor:
        """ŵ = (x̂, m̂), like y: an estimate of E[w | y], with w = (x, m_φ(x))."""
        return self.start_hat_at(diffusion, y, self.coefficients(diffusion, y, s))

    def start_hat_at(self, diffusion: Kernels, y: Tensor, at: Coefficients) -> Tensor:
        """ŵ as by :meth:`start_hat`, for the diffusion at the times of the states."""
        *_, x, m = self._estimates(diffusion, y, at)
        return torch.cat([x.unsqueeze(1), m], 1).reshape(y.shape)

    @property
    def _event_dim(self) -> int:
        return len(self.event_shape or ())

    def _estimates(
        self, diffusion: Kernels, y: Tensor, at: Coefficients
    ) -> tuple[Coefficients, Tensor, Tensor, Tensor]:
        """Coefficients and states flattened to n, x̂ (n, *event_shape), m̂ (n, K-1, …)."""
        y = y.to(self.dtype or y.dtype)
        state = y.reshape(-1, diffusion.num_variables, *y.shape[y.dim() - self._event_dim :])
        s = at.s.expand(y.shape[: y.dim() - 1 - self._event_dim]).reshape(-1)
        at = coefficients(diffusion, s, raw=False)
        marginal, denoiser = at.marginal, self.denoiser
        lam = marginal.log_snr
        denoiser.check_log_snr(lam)
        with full_precision(y):
            z = apply_vector(marginal.readout, state.double())
            white = apply_matrix(at.whitener, state.double())
            rest = rotated(marginal, white)[:, 1:].to(y.dtype).flatten(1, 2)
        inputs = torch.cat([denoiser.inputs(z.to(y.dtype), lam), rest], 1)
        F, m = self.call(inputs, lam, diffusion.num_variables - 1)
        m = m.unflatten(1, (diffusion.num_variables - 1, -1))
        with full_precision(y):
            push = apply_vector(marginal.readout, _push(diffusion, at.s, m))
        return at, state, denoiser.read((z - push).to(y.dtype), lam, F), m


def _push(diffusion: Any, s: Tensor, m: Tensor) -> Tensor:
    """M(s) (0, m), (n, K, *event_shape) in float64."""
    moved: Tensor = diffusion.push(s).to(m.device) @ m.double().flatten(2)
    return moved.reshape(len(m), -1, *m.shape[2:])
