"""Scores of the raw state y: networks of all variables, for one diffusion."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_mdm.diffusions.base import Diffusion, Marginal
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.matrices import apply_matrix, full_precision, scale_variables
from pyro_mdm.scores.base import Number, Score, call_on_state, level_of

__all__ = ["NoisePrediction", "RawScore", "state_units"]


class NoisePrediction(Score):
    r"""The paper's parameterization, ``s_θ = -L^{-T} ε_θ(y_s, λ)`` with Σ = L Lᵀ and L triangular.

    For a diffusion without a stationary distribution, the network receives each variable divided by
    the standard deviation that it has at s given data of unit variance.

    Args:
        network: module ε_θ called with the K variables as channels, (n, K·C, *spatial), and λ,
            (n,), which returns the shape of its input. Only its part in the range of G is trained,
            as the loss depends on g² s_θ.

    Raises:
        ValueError: NaN, states of the wrong shape, a network output of another shape.

    Source: Singhal, Goldstein & Ranganath, "Where to Diffuse, How to Diffuse, and How to Get Back",
    ICLR 2023, appendix on parameterization; Dockhorn et al., "Score-Based Generative Modeling with
    Critically-Damped Langevin Diffusion", ICLR 2022, eq. 9 and 10.

    Example:
        >>> import torch
        >>> from pyro_mdm import CLD
        >>> from pyro_mdm.networks import MLP
        >>> score = NoisePrediction(MLP(features=4))  # K = 2 variables of 2 dimensions
        >>> score.score(CLD(), torch.zeros(3, 2, 2), 0.5).shape
        torch.Size([3, 2, 2])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)

    def score(self, diffusion: Kernels, y: Tensor, s: Number) -> Tensor:
        """``-L^{-T} ε_θ``, like y."""
        s = self.checked_state(diffusion, y, s)
        marginal = diffusion.marginal(s)
        seen = y if diffusion.at_rest() else scale_variables(state_units(marginal), y)
        eps = call_on_state(self, seen, level_of(diffusion, marginal, s), s.dim() or 1)
        with full_precision(y):
            return -apply_matrix(inverse_tril(marginal.scale_tril).mT, eps)


class RawScore(Score):
    """A network used as the score: s_θ(y, s) = F(y, λ(s)), like y, for any diffusion.

    For a diffusion in closed form without a stationary distribution, s_θ = F(y/c, λ)/c, in units of
    the standard deviations c(s) that the variables have given data of unit variance.

    Args:
        network: module called with the K variables as channels, (n, K·C, *spatial), and the log SNR
            λ, (n,), which returns the shape of its input.

    Raises:
        ValueError: NaN, states of the wrong shape, a network output of another shape.

    Example:
        >>> import torch
        >>> from pyro_mdm import CLD
        >>> from pyro_mdm.networks import MLP
        >>> score = RawScore(MLP(features=4))  # K = 2 variables of 2 dimensions
        >>> score.score(CLD(), torch.zeros(3, 2, 2), 0.5).shape
        torch.Size([3, 2, 2])
    """

    serves_nonlinear = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)

    def score(self, diffusion: Diffusion, y: Tensor, s: Number) -> Tensor:
        s = self.checked_state(diffusion, y, s)
        log_snr, batch_dim = diffusion.log_snr(s), s.dim() or 1
        if not isinstance(diffusion, Kernels) or diffusion.at_rest():
            return call_on_state(self, y, log_snr, batch_dim)
        units = state_units(diffusion.marginal(s))
        score = call_on_state(self, scale_variables(units, y), log_snr, batch_dim)
        return scale_variables(units, score)


def state_units(marginal: Marginal) -> Tensor:
    """1/c (…, K), for the standard deviations c of the variables given data of unit variance."""
    variance = marginal.covariance.diagonal(dim1=-2, dim2=-1)
    return (marginal.mean.square() + variance).rsqrt()
