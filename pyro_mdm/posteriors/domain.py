r"""Where a likelihood knows its parameters: near those that were simulated.

A learned likelihood has a value for any θ, and outside of the simulations it is a guess. So some of
their parameters are kept, as data are for :class:`~pyro_mdm.posteriors.predictive.PriorPredictive`.
A θ is outside if it is farther from the nearest of one half than each of the other half is: of new
parameters of the same distribution, one in their number + 1 is, by chance.
"""

from __future__ import annotations

import warnings
from functools import cached_property

import torch
from torch import Tensor

from pyro_mdm.posteriors.predictive import PriorPredictive

__all__ = ["Domain", "warn_of_outside"]

FEW_OUTSIDE = 0.01
"""The fraction of draws outside, above which a warning says so; chance makes 0.002 with 1,000
simulations."""


class Domain(PriorPredictive):
    """Parameters of some simulations, to which others are compared.

    Args:
        x: parameters as networks see them, (n, k); of more than 1,000 the first are kept.
    """

    @cached_property
    def _near(self) -> tuple[Tensor, Tensor]:
        """The half that distances are to, and the largest of the other half's distances."""
        near = self._whitened(self.kept[self.compared :])
        usual = torch.cdist(self._whitened(self.kept[: self.compared]), near).amin(1)
        return near, usual.max()

    def _whitened(self, x: Tensor) -> Tensor:
        return self.whitened(x, torch.ones(x.shape[1], dtype=torch.bool))

    @torch.no_grad()
    def outside(self, x: Tensor) -> Tensor:
        """Whether parameters (n, k) are farther from others than all that are kept, (n,) bool.

        Parameters that are not finite are.
        """
        near, limit = self._near
        finite = x.isfinite().all(1)
        distance = torch.cdist(self._whitened(torch.where(finite.unsqueeze(1), x, 0.0)), near)
        return ~finite | (distance.amin(1) > limit)


def warn_of_outside(domain: Domain, outside: Tensor) -> float:
    """The fraction of draws that are outside of a domain, (n,) bool, with a warning of more than
    0.01 of them, and more than chance makes of new parameters of the simulations."""
    count, fraction = int(outside.sum()), float(outside.double().mean())
    if fraction > FEW_OUTSIDE and not domain.is_chance(count, len(outside)):
        warnings.warn(
            f"{fraction:.1%} of {len(outside):,} draws of the parameters are unlike all that were "
            "simulated. There the likelihood is a guess; simulate there too, by "
            "likelihood.refined(draws), or make such parameters impossible, by "
            "likelihood.given(theta, known_only=True)",
            stacklevel=3,
        )
    return fraction
