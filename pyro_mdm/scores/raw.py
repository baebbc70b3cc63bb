"""Scores of the raw state y: networks of all variables, for one diffusion."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.matrices import apply_matrix, scale_variables
from pyro_mdm.scores.base import Coefficients, Score, call_on_state

__all__ = ["NoisePrediction", "RawScore"]


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

    def score_at(self, diffusion: Kernels, y: Tensor, at: Coefficients) -> Tensor:
        """``-L^{-T} ε_θ``, like y."""
        seen = y if at.units is None else scale_variables(at.units, y)
        eps = call_on_state(self, seen, at)
        return apply_matrix(-at.whitener.mT, eps)


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

    def score_at(self, diffusion: Diffusion, y: Tensor, at: Coefficients) -> Tensor:
        if (units := at.units) is None:
            return call_on_state(self, y, at)
        return scale_variables(units, call_on_state(self, scale_variables(units, y), at))
