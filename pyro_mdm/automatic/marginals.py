"""The marginal distributions of draws, as a map from standard normals.

Each latent is x = m(z), increasing, with z standard normal where x has the distribution of the
draws. Modes that single latents show are then none of z, and a Gaussian of z covers them. The map
is a rational quadratic spline within the range of the draws, and linear beyond. Half of its knots
are quantiles of the draws, where most of these are. The others are evenly spaced, which resolves
gaps.

Source: Durkan, Bekasov, Murray & Papamakarios, "Neural Spline Flows", 2019.
"""

from __future__ import annotations

import torch
from pyro.distributions.transforms import Spline
from torch import Tensor

from pyro_mdm.automatic.ratio import VectorMap

__all__ = ["Marginals"]

BOUND = 4.0
"""The standard normals between which the map is a spline."""
BINS = 32
"""The bins of the spline, even."""
SHARE = 0.2
"""The share of Gaussian distributions in all marginal distributions together, without which weights
in the gaps and the tails of the draws may have no variance."""
LEAST = 1e-3
"""The least width and height of a bin, as a fraction, and the least slope, by Pyro's spline."""
BEYOND = 0.15
"""The part of the range of the draws that is added at both of its ends."""


class Marginals(VectorMap):
    """The map x of z, both (…, dim); the identity until it is fitted.

    Args:
        dim: the number of latents.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spline = Spline(dim, BINS, bound=BOUND, order="quadratic")
        self.register_buffer("middle", torch.zeros(dim))
        self.register_buffer("unit", torch.ones(dim))
        even = torch.full((dim, BINS), 1 / BINS)
        self._become(even, even)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take the marginal distributions of draws x (n, dim).

        A share of them is of a Gaussian with their mean and deviation, so that gaps are not empty.
        """
        low, high = x.min(0).values, x.max(0).values
        self.middle = (low + high) / 2
        self.unit = ((0.5 + BEYOND) * (high - low) / BOUND).clamp_min(1e-6)
        y = ((x - self.middle) / self.unit).double()
        levels = torch.linspace(0, 1, BINS // 2 + 2, dtype=y.dtype, device=y.device)[1:-1]
        even = 2 * BOUND * torch.linspace(0, 1, BINS // 2 + 1).to(y)[1:-1] - BOUND
        knots = torch.cat([y.quantile(levels, 0), even[:, None].expand(-1, y.shape[1])])
        end = torch.full_like(knots[:1], BOUND)
        knots = torch.cat([-end, knots.sort(0).values, end]).T.contiguous()
        heights = _shares(knots.diff())
        knots = 2 * BOUND * torch.cat([end.T * 0, heights.cumsum(-1)], -1) - BOUND
        below = torch.searchsorted(y.sort(0).values.T.contiguous(), knots)
        normal = torch.special.ndtr((knots - y.mean(0)[:, None]) / y.std(0)[:, None])
        levels = below / len(y) + SHARE / self.spline.input_dim * (normal - below / len(y))
        z = torch.special.ndtri(levels).clamp(-BOUND, BOUND)
        z = torch.cat([-end.T, z[:, 1:-1], end.T], -1)
        self._become(_shares(z.diff()), heights)

    @torch.no_grad()
    def _become(self, widths: Tensor, heights: Tensor) -> None:
        """Take bins with these widths in z and heights in x, (dim, bins), as fractions."""
        slopes = (heights[:, 1:] + heights[:, :-1]) / (widths[:, 1:] + widths[:, :-1])
        more = (slopes - LEAST).clamp_min(LEAST)
        spline = self.spline
        spline.unnormalized_widths.copy_((widths - LEAST).clamp_min(1e-9).log())
        spline.unnormalized_heights.copy_((heights - LEAST).clamp_min(1e-9).log())
        # the inverse of softplus
        spline.unnormalized_derivatives.copy_(more + (-torch.expm1(-more)).log())

    def _call(self, z: Tensor) -> Tensor:
        return self.middle + self.unit * self.spline(z)

    def _inverse(self, x: Tensor) -> Tensor:
        return self.spline.inv((x - self.middle) / self.unit)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        slopes = self.spline.log_abs_det_jacobian(x, (y - self.middle) / self.unit)
        return (slopes.reshape(x.shape) + self.unit.log()).sum(-1)


def _shares(lengths: Tensor) -> Tensor:
    """Lengths (dim, bins) as fractions of their sum, none below the spline's least one."""
    shares = (lengths / lengths.sum(-1, keepdim=True)).clamp_min(2 * LEAST)
    return shares / shares.sum(-1, keepdim=True)
