"""A score of the raw state that starts as that of the prior.

python -m inference.train --score inference.scores.beside_the_prior:BesideThePrior
"""

from __future__ import annotations

from torch import Tensor

from pyro_mdm import Diffusion, RawScore


class BesideThePrior(RawScore):
    """The score s_θ(y, s) = ∇ log π(y) + F(y, λ(s)), for any diffusion; exact at T for F = 0."""

    def score(self, diffusion: Diffusion, y: Tensor, s: float | Tensor) -> Tensor:
        """s_θ(y, s), like y."""
        return diffusion.prior.score(y).to(y.dtype) + super().score(diffusion, y, s)
