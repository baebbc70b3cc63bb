"""Scores that wrap a denoiser, for diffusions of which z is not a sufficient statistic."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

import pyro_mdm.likelihoods as likelihoods
from pyro_mdm.diffusions.base import Cap, Diffusion, UnsupportedDiffusionError, require
from pyro_mdm.scores.denoiser import DenoiserScore, NetworkOfDenoiser
from pyro_mdm.support.checks import check_instance

__all__ = ["WrappedDenoiser", "wrapping"]

WRAPPERS: list[type[WrappedDenoiser]] = []


class WrappedDenoiser(NetworkOfDenoiser):
    """A score around a denoiser, whose network has further inputs and outputs.

    Both read one network; its further channels come last. :func:`wrapping` picks the subclass for a
    diffusion.

    Args:
        denoiser: denoiser with one log SNR for all dimensions, over a network with the further
            channels of :meth:`more_inputs` and :meth:`more_outputs`.

    Raises:
        TypeError: an object that is no denoiser.
        ValueError: a denoiser with maps of log SNR, or without the shape of its data.
    """

    instead_of: ClassVar[Cap | None] = None
    """The capability that a denoiser needs and that the diffusions of this score lack."""

    def __init__(self, denoiser: DenoiserScore) -> None:
        fix = "e.g. Denoiser.fit(network, train_x)"
        check_instance("denoiser", denoiser, DenoiserScore, fix)
        if denoiser.maps or not denoiser.event_shape:
            what = "takes maps" if denoiser.maps else "lacks the shape of a datum"
            raise ValueError(
                f"denoiser {what}, expected one log SNR for all dimensions of data of a given "
                "shape; make it by fit(network, train_x), without maps"
            )
        super().__init__(denoiser.network, denoiser.event_shape)
        self.denoiser = denoiser

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.instead_of is not None:
            WRAPPERS.append(cls)

    @staticmethod
    def more_inputs(diffusion: Diffusion) -> int:
        """The number of further network inputs for each data dimension."""
        return 0

    @staticmethod
    def more_outputs(diffusion: Diffusion) -> int:
        """The number of further network outputs for each data dimension."""
        return 0

    def arguments(self) -> dict[str, object]:
        return {"denoiser": self.denoiser}

    def check_diffusion(self, diffusion: Diffusion) -> None:
        fix = "use ResidualScore or RawScore"
        require(diffusion, Cap.KERNELS, who=type(self).__name__, fix=fix)
        if self.instead_of in diffusion.caps:
            raise UnsupportedDiffusionError(
                f"{type(self).__name__} is for diffusions that a denoiser alone does not serve, "
                f"and it serves {type(diffusion).__name__}; use the denoiser itself"
            )

    def default_likelihood(self) -> likelihoods.Likelihood:
        return self.denoiser.default_likelihood()

    def call(self, inputs: Tensor, log_snr: Tensor, more: int) -> tuple[Tensor, Tensor]:
        """The outputs for inputs (n, channels, *spatial): the denoiser's, then the further ones."""
        C = self.denoiser.event_shape[0]  # type: ignore[index]
        channels = self.denoiser.outputs * C
        F = self.call_network(inputs, log_snr, 1, channels=channels + more * C)
        return F[:, :channels], F[:, channels:]


def wrapping(diffusion: Diffusion) -> type[WrappedDenoiser] | None:
    """The class of score that wraps a denoiser for this diffusion; None: none is needed."""
    return next((cls for cls in WRAPPERS if cls.instead_of not in diffusion.caps), None)
