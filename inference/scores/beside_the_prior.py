"""A score of the raw state that starts as that of the prior.

python -m inference.train --score inference.scores.beside_the_prior:BesideThePrior
"""

from __future__ import annotations

from torch import Tensor

from pyro_mdm import Diffusion, RawScore
from pyro_mdm.scores import Coefficients


class BesideThePrior(RawScore):
    """The score s_θ(y, s) = ∇ log π(y) + F(y, λ(s)), for any diffusion; exact at T for F = 0."""

    def score_at(self, diffusion: Diffusion, y: Tensor, at: Coefficients) -> Tensor:
        """s_θ, like y, at the times of the states."""
        return diffusion.prior.score(y).to(y.dtype) + super().score_at(diffusion, y, at)
