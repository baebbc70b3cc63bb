r"""Parameterizations of the score: they own a network, not a diffusion.

``z = kᵀ y = x + e^{-λ/2} ε`` is sufficient for x given the whole state, whatever Q, D and K, so

    E[x | y_s] = E[x | z_s],    ∇ log q(y_s) = -Σ^{-1} ( y_s - a E[x | z_s] )    (exact),

and one network x̂(z, λ), λ = log SNR, gives the score of *every* linear diffusion
(:class:`Denoiser`, :class:`~pyro_mdm.DiscreteDenoiser`). Conversely any score defines a denoiser
through g² s_θ, the part of it that the loss depends on:

    x̂ = aᵀ Σ^{-1} g² ( s_θ + Σ^{-1} y ) / ( aᵀ Σ^{-1} g² Σ^{-1} a )

(:class:`NoisePrediction`, :class:`RawScore`). Diffusions without a closed form have no z; use
:class:`RawScore`, or :class:`~pyro_mdm.ResidualScore` in better coordinates.

Shapes: data ``(*batch, *event_shape)``, states ``(*batch, K, *event_shape)``, times and log SNRs
``(*batch)``, or one number for a single batch dimension (any batch if the score has an event
shape). Networks are called as ``network(inputs, log_snr)`` with ``(n, C, *spatial)`` and ``(n,)``.
"""

from pyro_mdm.scores.base import Coefficients, Score
from pyro_mdm.scores.denoiser import Denoiser, DenoiserScore
from pyro_mdm.scores.raw import NoisePrediction, RawScore

__all__ = [
    "Coefficients",
    "Denoiser",
    "DenoiserScore",
    "NoisePrediction",
    "RawScore",
    "Score",
]
