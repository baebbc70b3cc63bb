"""Scores of the raw state y: networks of all variables, for one diffusion."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_mdm.diffusions.base import Diffusion, Marginal
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.diffusions.matrices import apply_matrix, full_precision, scale_variables
from pyro_mdm.scores.base import Number, Score, call_on_state, level_of

__all__ = ["NoisePrediction", "RawScore"]


class NoisePrediction(Score):
    r"""The paper's parameterization: s_θ = -L^{-T} ε_θ(y_s, λ), with Σ = L Lᵀ lower triangular.

    Without a law at rest, the network sees each variable over the standard deviation that it has at
    s given data of unit variance.

    Args:
        network: module ε_θ that is called with the K variables as channels, (n, K·C, *spatial), and
            λ; it returns the shape of its input. Only its part in the range of G is trained, as the
            loss depends on g² s_θ.

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
        seen = y if diffusion.at_rest() else scale_variables(_units(marginal), y)
        eps = call_on_state(self, seen, level_of(diffusion, marginal, s), s.dim() or 1)
        with full_precision(y):
            return -apply_matrix(inverse_tril(marginal.scale_tril).mT, eps)


class RawScore(Score):
    """A network used as the score: s_θ(y, s) = F(y, λ(s)), like y, for any diffusion.

    In closed form without a law at rest, s_θ = F(y/c, λ)/c: both in units of the standard
    deviations c(s) that the variables have given data of unit variance.

    Args:
        network: module that is called with the K variables as channels, (n, K·C, *spatial), and the
            log SNR λ; it returns the shape of its input.

    Raises:
        ValueError: NaN, states of the wrong shape, a network output of another shape.
    """

    serves_nonlinear = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)

    def score(self, diffusion: Diffusion, y: Tensor, s: Number) -> Tensor:
        s = self.checked_state(diffusion, y, s)
        log_snr, batch_dim = diffusion.log_snr(s), s.dim() or 1
        if not isinstance(diffusion, Kernels) or diffusion.at_rest():
            return call_on_state(self, y, log_snr, batch_dim)
        units = _units(diffusion.marginal(s))
        score = call_on_state(self, scale_variables(units, y), log_snr, batch_dim)
        return scale_variables(units, score)


def _units(marginal: Marginal) -> Tensor:
    """1/c (…, K), of the standard deviations c of variables given data of unit variance."""
    variance = marginal.covariance.diagonal(dim1=-2, dim2=-1)
    return (marginal.mean.square() + variance).rsqrt()
