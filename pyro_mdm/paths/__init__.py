r"""Pyro distributions of paths: the noising path (guide) and the generative path (model).

A value is the state at N times, (*batch, N, K, *event_shape). By default N = 1, the start time ε
alone. The evidence lower bound needs no more of the path, because Girsanov's theorem gives the
divergence of the two processes in continuous time,

    KL(Q ‖ P) = KL(q(y_T|x) ‖ π) + ½ ∫_ε^T E ‖s_θ(y_s, s) - ∇ log q(y_s|x)‖²_{g²(s)} ds.

On a grid ε = s_1 < … < s_N = T both paths are Markov chains with exact densities.

Source of the bound: Singhal, Goldstein & Ranganath, ICLR 2023, Theorem 1; in the form above its
closed-form parts are integrated out.
"""

from pyro_mdm.paths.base import (
    GenerativePath,
    NoisingLaw,
    NoisingPath,
    PathKL,
    PathLaw,
    different_diffusions,
    path_divergence,
    path_kl,
    prior_kl,
)
from pyro_mdm.paths.chain import GenerativeChain
from pyro_mdm.paths.density import density_bound

__all__ = [
    "GenerativeChain",
    "GenerativePath",
    "NoisingLaw",
    "NoisingPath",
    "PathKL",
    "PathLaw",
    "density_bound",
    "different_diffusions",
    "path_divergence",
    "path_kl",
    "prior_kl",
]
