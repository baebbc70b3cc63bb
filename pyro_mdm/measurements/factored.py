r"""Linear systems with the covariance of linear estimates, factored once for all noise levels.

With data of covariance Σ, ``S = H Σ Hᵀ + R`` and ``K = Σ Hᵀ S^{-1}``, a measurement leaves x the
covariance ``P = Σ - K H Σ``. Readouts with noise of variance V alone leave it ``C = Σ - Σ (Σ +
V)^{-1} Σ``. By Woodbury's identity, for one number V,

    (H C Hᵀ + R)^{-1} = S^{-1} + Kᵀ (P + V)^{-1} K
    C Hᵀ (H C Hᵀ + R)^{-1} = (1 + P/V)^{-1} K

so that the eigenvectors of P serve every V. No term is subtracted, and R may be 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.measurements.covariance import DataCovariance
from pyro_mdm.measurements.operators import LinearOperator

__all__ = ["AtLevels", "Factored", "factored"]

LARGEST = 1024
"""The most dimensions, and the most observations, whose covariances are factored."""
SINGULAR = 1e-14
"""The ratio of an eigenvalue of S, in units of its diagonal, to the largest, at which it counts as
0: exact observations of what does not vary."""


def factored(
    covariance: DataCovariance, operator: LinearOperator, noise: Tensor
) -> Factored | None:
    """The factors of linear systems, or None where they are too large, or H is learned.

    Args:
        covariance: the covariance of data.
        operator: H.
        noise: variances R, () or (*obs_shape).
    """
    shapes = operator.event_shape, operator.obs_shape
    if max(torch.Size(shape).numel() for shape in shapes) > LARGEST:
        return None
    with torch.enable_grad():
        H = operator.matrix()
    if H.requires_grad:  # it is learned: the factors would not have its derivatives
        return None
    return Factored.compute(
        covariance.matrix(shapes[0]), H, noise.expand(shapes[1]).flatten(), shapes[0]
    )


class Factored(NamedTuple):
    """The covariance that a measurement leaves, ``P = W diag(p) Wᵀ``, and what weighs obs."""

    inverse: Tensor  # S^{-1}, (m, m)
    gain: Tensor  # Wᵀ K, (d, m)
    values: Tensor  # p, (d,)
    vectors: Tensor  # W, (d, d)
    shape: tuple[int, ...]  # of data

    @classmethod
    @torch.no_grad()
    def compute(
        cls, covariance: Tensor, H: Tensor, noise: Tensor, shape: tuple[int, ...]
    ) -> Factored:
        """The factors for Σ (d, d), a matrix H (m, d) and variances R (m,) of data of a shape."""
        spread = covariance @ H.mT
        S = H @ spread + noise.diag()
        # in units of their own, precise observations keep their digits beside others
        scale = torch.where(S.diagonal() > 0, S.diagonal().rsqrt(), 0)
        inner = torch.linalg.pinv(scale[:, None] * S * scale, rtol=SINGULAR, hermitian=True)
        inverse = scale[:, None] * inner * scale
        gain = spread @ inverse
        left = -gain @ H
        left.diagonal().add_(1)
        P = left @ covariance @ left.mT + (gain * noise) @ gain.mT  # Joseph's form: none below 0
        values, vectors = torch.linalg.eigh((P + P.mT) / 2)
        return cls(inverse, vectors.mT @ gain, values.clamp_min(0), vectors, shape)

    def at(self, variance: Tensor) -> AtLevels:
        """The inverse at variances V, (n, 1) or (1, 1)."""
        return AtLevels(self, variance)


class AtLevels:
    """The inverse of ``H C Hᵀ + R`` for noise of z of some variances; see :class:`Factored`."""

    def __init__(self, factors: Factored, variance: Tensor) -> None:
        self._factors = factors
        self._variance, self._total = variance, factors.values + variance

    def u(self, r: Tensor) -> Tensor:
        return self._u(r, self._weighed(r))

    def image(self, r: Tensor) -> Tensor:
        return self._image(self._weighed(r))

    def solved(self, r: Tensor) -> tuple[Tensor, Tensor]:
        weighed = self._weighed(r)
        return self._u(r, weighed), self._image(weighed)

    def _weighed(self, r: Tensor) -> Tensor:
        return (r @ self._factors.gain.mT) / self._total

    def _u(self, r: Tensor, weighed: Tensor) -> Tensor:
        return torch.addmm(r @ self._factors.inverse, weighed, self._factors.gain)

    def _image(self, weighed: Tensor) -> Tensor:
        image = (weighed * self._variance) @ self._factors.vectors.mT
        return image.unflatten(-1, self._factors.shape)
