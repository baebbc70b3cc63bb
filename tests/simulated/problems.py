"""A simulated diffusion with a known answer."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mdm.simulated.nonlinear import NonlinearDiffusion


class Reversible(NonlinearDiffusion):
    """Noise that depends on the state: g² = I + y yᵀ, so that ∇·g² = 3 y, at rest in N(0, I).

    The drift is half of g² ∇log π + ∇·g², so that at rest nothing flows.
    """

    noise_depends_on_state = True
    stationary_prior = True

    def __init__(self) -> None:
        super().__init__(2)

    def drift(self, y: Tensor, s: object) -> Tensor:
        return (1 - y.square().sum(1, keepdim=True) / 2) * y

    def covariance(self, y: Tensor) -> Tensor:
        """g², (n, d, 2, 2)."""
        y = y.mT
        return torch.eye(2, dtype=y.dtype) + y.unsqueeze(-1) * y.unsqueeze(-2)

    def dispersion(self, y: Tensor, s: object) -> Tensor:
        return torch.linalg.cholesky(self.covariance(y))
