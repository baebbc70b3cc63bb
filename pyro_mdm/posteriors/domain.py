r"""The parameters at which a learned likelihood can be trusted: those near simulated ones.

A learned likelihood has a value for any θ, but away from the simulations it is a guess. So some of
their parameters are kept in two halves, as data are in
:class:`~pyro_mdm.posteriors.predictive.PriorPredictive`. A θ is outside if its distance to the
nearest parameters of one half is larger than that of all parameters of the other half, n of them.
New parameters of the same distribution are outside with probability 1 / (n + 1).
"""

from __future__ import annotations

import warnings
from functools import cached_property

import torch
from torch import Tensor

from pyro_mdm.posteriors.predictive import PriorPredictive

__all__ = ["Domain", "warn_of_outside"]

FEW_OUTSIDE = 0.01
"""The fraction of draws outside above which there is a warning; with 1,000 simulations it is 0.002
by chance."""


class Domain(PriorPredictive):
    """The parameters of some simulations as inputs of networks x (n, k), which others are compared
    with; of more than 1,000 the first are kept."""

    @cached_property
    def _near(self) -> tuple[Tensor, Tensor]:
        """The half that distances are to, and the largest distance of the other half."""
        near = self._whitened(self.kept[self.compared :])
        usual = torch.cdist(self._whitened(self.kept[: self.compared]), near).amin(1)
        return near, usual.max()

    def _whitened(self, x: Tensor) -> Tensor:
        return self.whitened(x, torch.ones(x.shape[1], dtype=torch.bool))

    @torch.no_grad()
    def outside(self, x: Tensor) -> Tensor:
        """Whether parameters, as inputs of networks x (n, k), are outside of the simulations, (n,)
        bool. Those that are not finite are outside."""
        near, limit = self._near
        finite = x.isfinite().all(1)
        distance = torch.cdist(self._whitened(torch.where(finite.unsqueeze(1), x, 0.0)), near)
        return ~finite | (distance.amin(1) > limit)


def warn_of_outside(domain: Domain, outside: Tensor) -> float:
    """The fraction of draws that are outside (n,), with a warning if it is above 0.01, and
    larger than chance explains for new parameters of the same distribution."""
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
