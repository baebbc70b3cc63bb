r"""The shape of a start: tails and scales that a Gaussian does not have.

A shape is an invertible map w of u, standard normal, before the Gaussian's loc + scale_tril w. That
of this module has a tail and a scale for each latent,

    z_i = u_i exp(h_i u_i² / 2),    w_i = z_i exp(Σ_{j<i} A_{ij} z_j),

where h ≥ 0 differs for both signs of u. With h = 0 and A = 0 it is the identity. With h = 0 it is
exact for a funnel, whose later latents have a scale with the logarithm A z: a learned
non-centring. A tail h > 0 falls like |w|^{-1/h}, up to logarithms.

Sources: Tukey's h distribution, of Tukey, "Modern techniques in data analysis", 1977; scales that
depend on earlier latents are an inverse autoregressive flow (Kingma et al., "Improved variational
inference with inverse autoregressive flow", 2016) whose networks are linear.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyro_mdm.automatic.maps import VectorMap

__all__ = ["Shape"]

THIN = 0.01
"""Tails h before training."""
NEWTON = 12
"""Steps of Newton's method for a tail's inverse, which is quadratic and monotone."""


class Shape(VectorMap):
    """The map w of u, both (…, dim), with tails h and scales A that are learned.

    Args:
        dim: the number of latents.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_tails = nn.Parameter(torch.full((2, dim), math.log(THIN)))
        self.scales = nn.Parameter(torch.zeros(dim, dim))

    def _tails(self, u: Tensor) -> Tensor:
        """h of the signs of u."""
        below, above = self.log_tails.exp()
        return torch.where(u < 0, below, above)

    def _log_scales(self, z: Tensor) -> Tensor:
        return z @ self.scales.tril(-1).mT

    def _call(self, u: Tensor) -> Tensor:
        z = u * (self._tails(u) * u.square() / 2).exp()
        return z * self._log_scales(z).exp()

    def _inverse(self, w: Tensor) -> Tensor:
        A, columns = self.scales.tril(-1), list[Tensor]()
        for i, column in enumerate(w.unbind(-1)):
            z = torch.stack([*columns, column], -1)
            columns.append(column * (-(z[..., :i] @ A[i, :i])).exp())
        z = torch.stack(columns, -1)
        # h u² = W(h z²) by Lambert's W, whose Newton steps start above
        y = self._tails(z) * z.square()
        root = y.log1p()
        for _ in range(NEWTON):
            root = (root.square() + y * (-root).exp()) / (1 + root)
        return z * (-root / 2).exp()

    def log_abs_det_jacobian(self, u: Tensor, w: Tensor) -> Tensor:
        square = self._tails(u) * u.square()
        log_scales = self._log_scales(u * (square / 2).exp())
        return (square / 2 + square.log1p() + log_scales).sum(-1)
