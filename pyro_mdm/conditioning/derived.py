"""Denoisers derived from another one, whose network and baseline they share."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from pyro_mdm.levels.likelihoods import LevelDistribution
from pyro_mdm.scores.base import Number
from pyro_mdm.scores.denoiser import DenoiserScore, NetworkOfDenoiser
from pyro_mdm.support.modules import of_part, replace

__all__ = ["DerivedDenoiser"]

D = TypeVar("D", bound="DerivedDenoiser")


class DerivedDenoiser(NetworkOfDenoiser, DenoiserScore):
    """A denoiser derived from another one, with its parameters, baseline and decoder.

    Args:
        denoiser: the denoiser from which it is derived.
    """

    def __init__(self, denoiser: DenoiserScore) -> None:
        super().__init__(denoiser.network, denoiser.event_shape, maps=denoiser.maps)
        self.denoiser = denoiser

    def arguments(self) -> dict[str, object]:
        """The constructor's arguments; the network is the denoiser's own."""
        return {name: v for name, v in super().arguments().items() if name != "network"}

    def changed(self: D, denoiser: DenoiserScore | None = None, **buffers: Tensor | None) -> D:
        """A copy with another denoiser or other buffers, which are not checked again."""
        denoiser = self.denoiser if denoiser is None else denoiser
        new = type(self).__new__(type(self), **self.arguments() | {"denoiser": denoiser} | buffers)
        made = new.__dict__["_given"]  # the constructor's arguments of the copy
        return replace(self, denoiser=denoiser, _given=made, **buffers)

    # -- contexts, which the denoiser's network receives -------------------------------------------

    network_context = of_part("denoiser")

    def given_context(self: D, context: Tensor | None, *, knows_unknown: bool = False) -> D:
        return self.changed(self.denoiser.given_context(context, knows_unknown=knows_unknown))

    def without_context(self: D) -> D:
        return self.changed(self.denoiser.without_context())

    # -- members of the denoiser -------------------------------------------------------------------

    def posterior(self, z: Tensor, log_snr: Number) -> LevelDistribution:
        """p_θ(x | z) of a discrete denoiser, see :class:`~pyro_mdm.levels.NetworkPosterior`.

        Args:
            z: readouts, (*batch, *event_shape).
            log_snr: log SNR λ, (*batch) or a number.

        Raises:
            TypeError: the denoiser is not discrete.
        """
        posterior = getattr(self.denoiser, "posterior", None)
        if posterior is None:
            raise TypeError(
                f"NetworkPosterior needs a score with a posterior over levels, got "
                f"{type(self.denoiser).__name__}; use DiscreteDenoiser"
            )
        distribution: LevelDistribution = posterior(z, log_snr)
        return distribution

    groups = of_part("denoiser")
    typical = of_part("denoiser")
    data_mean = of_part("denoiser")
    data_variance = of_part("denoiser")
    check_values = of_part("denoiser")
    baseline_x_hat = of_part("denoiser")
    baseline_log_prob = of_part("denoiser")
    baseline_kl = of_part("denoiser")
    baseline_integrals = of_part("denoiser")
    default_likelihood = of_part("denoiser")
