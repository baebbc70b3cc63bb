"""A kind of diffusion that the library does not have, in this one file.

It is listed in ``KINDS`` of ``tests/products/test_truths.py``, and named on the command line by
``tests/programs/test_new_kind.py``. Nothing else knows of it: what callers ask, it answers by the
protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_mdm import CLD, LinearDiffusion
from pyro_mdm.by_dimension import Frequencies, Transform
from pyro_mdm.seeing.wrapped import WrappedDiffusion
from pyro_mdm.support.checks import check_instance
from pyro_mdm.support.settings import described


class TurnedDiffusion(WrappedDiffusion):
    """A linear diffusion of coordinates of the data, all on one clock.

    Args:
        base: which noises the coordinates.
        transform: an orthonormal map of the data, e.g. ``Frequencies()``.
    """

    def __init__(self, base: LinearDiffusion, transform: Transform) -> None:
        super().__init__(base)
        check_instance("transform", transform, Transform, "e.g. Frequencies()")
        self.turned = transform

    @property
    def transform(self) -> Transform:
        return self.turned

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"transform": described(self.turned)}


def turned(
    event_shape: Sequence[int], max_log_snr: float = 13.0, min_log_snr: float = -10.0
) -> TurnedDiffusion:
    """CLD of the frequencies of a vector or an image."""
    ends = {"max_log_snr": max_log_snr, "min_log_snr": min_log_snr}
    return TurnedDiffusion(CLD(**ends), Frequencies(max(1, len(event_shape) - 1)))
