r"""Decoders p(x | y_ε), and bits per dimension.

At the start time ε, where λ = log SNR is largest, the state contains
``z = kᵀ y_ε = x + e^{-λ/2} ε``. A likelihood is called with the diffusion, the score and the state
and returns a Pyro distribution of x with the batch shape of the state and its event shape.
"""

from pyro_mdm.likelihoods.base import (
    Gaussian,
    JointTweedie,
    Likelihood,
    Reading,
    Tweedie,
    bits_per_dim,
    read_state,
)

__all__ = [
    "Gaussian",
    "JointTweedie",
    "Likelihood",
    "Reading",
    "Tweedie",
    "bits_per_dim",
    "read_state",
]
