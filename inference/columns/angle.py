"""Angles in degrees, such as directions of wind, where 359 is next to 1.

python -m inference.train --model tabular --data wind.csv \\
    --columns wind=inference.columns.angle:Angle
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_mdm.tables import Bounded, Column, ColumnSpec
from pyro_mdm.tables.columns.base import Center, Values, check_numbers, no_number, numbers_of

if TYPE_CHECKING:
    from pandas import Series

CIRCLE = 360.0  # degrees


class Angle(Column):
    """An angle, with a density on the circle.

    The circle is cut in the middle of its widest gap, and what is then an interval is mapped to the
    line as a range of numbers is. So the density is exact: it is 0 at the cut alone. As cos and sin
    the column would have two dimensions, and a density in the plane that is none of an angle.

    Args:
        name: name of the column.
        values: angles that it is fitted to, in degrees, NaN where missing.
        everything: angles of all rows, none of which is the cut.
    """

    kind = "angle"

    def __init__(self, name: str, values: Values, everything: Values) -> None:
        super().__init__(name)
        angles = np.unique(everything[~np.isnan(everything)] % CIRCLE)
        gaps = np.diff(angles, append=angles[0] + CIRCLE)
        widest = gaps.argmax()
        self._cut = float((angles[widest] + gaps[widest] / 2) % CIRCLE)
        turned, all_turned = ((w - self._cut) % CIRCLE for w in (values, everything))
        self._line = Bounded(name, turned, all_turned, (0.0, CIRCLE))

    @classmethod
    def check(cls, name: str, values: Series[Any], spec: ColumnSpec) -> None:
        check_numbers(name, values, spec)

    @classmethod
    def fit(
        cls, name: str, values: Series[Any], train: NDArray[np.bool_], spec: ColumnSpec
    ) -> Angle:
        numbers = numbers_of(values)
        return cls(name, numbers[train], numbers)

    def read(self, values: Series[Any]) -> Values:
        return numbers_of(values) % CIRCLE  # NaN of an infinite one

    def refusal(self, value: object) -> str:
        return no_number(self.name, value)

    def values(self, codes: Values) -> Any:
        return codes

    def scaled(self, codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        turned = ((codes - self._cut) % CIRCLE).clamp_min(1e-9)  # the cut itself is beside it
        return self._line.scaled(turned)

    def unscaled(self, x: Tensor) -> Tensor:
        return (self._line.unscaled(x) + self._cut) % CIRCLE

    def center(self, draws: Values, center: Center) -> Values:
        """The direction of the sum of directions."""
        radians = np.radians(draws)
        return np.degrees(np.arctan2(np.sin(radians).sum(0), np.cos(radians).sum(0))) % CIRCLE

    @property
    def in_words(self) -> str:
        return f"angle: a density on the circle, cut at {self._cut:g}°"
