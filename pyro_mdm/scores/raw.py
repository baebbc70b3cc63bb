"""Scores of the raw state y: networks of all variables, for one diffusion."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.matrices import apply_matrix, full_precision
from pyro_mdm.scores.base import Number, Score, call_on_state, level_of

__all__ = ["NoisePrediction", "RawScore"]


class NoisePrediction(Score):
    r"""The paper's parameterization: s_θ = -L^{-T} ε_θ(y_s, λ), with Σ = L Lᵀ lower triangular.

    Args:
        network: ε_θ, called with the K variables as channels, (n, K·C, *spatial), and λ; returns
            the shape of its input. Only its part in the range of G is trained, as the loss depends
            on g² s_θ.

    Raises:
        ValueError: NaN, states of the wrong shape, a network output of another shape.

    Source: Singhal, Goldstein & Ranganath, "Where to Diffuse, How to Diffuse, and How to Get Back",
    ICLR 2023, appendix on parameterization; Dockhorn et al., "Score-Based Generative Modeling with
    Critically-Damped Langevin Diffusion", ICLR 2022, eq. 9 and 10.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)

    def score(self, diffusion: Kernels, y: Tensor, s: Number) -> Tensor:
        """-L^{-T} ε_θ, like y."""
        s = self.checked_state(diffusion, y, s)
        marginal = diffusion.marginal(s)
        eps = call_on_state(self, y, level_of(diffusion, marginal, s), s.dim() or 1)
        with full_precision(y):
            return -apply_matrix(inverse_tril(marginal.scale_tril).mT, eps)


class RawScore(Score):
    """A network used as the score: s_θ(y, s) = F(y, λ(s)), like y, for any diffusion.

    Args:
        network: called with the K variables as channels, (n, K·C, *spatial), and the log SNR λ;
            returns the shape of its input.

    Raises:
        ValueError: NaN, states of the wrong shape, a network output of another shape.
    """

    serves_nonlinear = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)

    def score(self, diffusion: Diffusion, y: Tensor, s: Number) -> Tensor:
        s = self.checked_state(diffusion, y, s)
        return call_on_state(self, y, diffusion.log_snr(s), s.dim() or 1)
