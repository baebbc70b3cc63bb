"""Ends of a linear diffusion: log SNR where it starts and where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mdm.support.checks import check_number

__all__ = ["Ends", "reach_of"]


@dataclass(frozen=True)
class Ends:
    """λ(ε) and λ(T) as they are given, and how far each may be learned.

    Args:
        high: λ(ε).
        low: λ(T) that the clock is scaled to; None: the clock stays as it is.
        cut_time: ε as a time, instead of by ``high``.
        reach: how far λ(ε) and λ(T) may move, in units of log SNR; 0 holds an end fixed.

    Raises:
        TypeError, ValueError: ends that are not finite, in the wrong order or with ranges that
            meet; a range for an end that is not given.
    """

    high: float
    low: float | None = None
    cut_time: float | None = None
    reach: tuple[float, float] = (0.0, 0.0)

    def checked(self, horizon: float) -> Ends:
        """The ends as floats, checked for a diffusion that runs to ``horizon``."""
        high = check_number("max_log_snr", self.high, "a finite log SNR, e.g. 13")
        low, cut, reach = self.low, self.cut_time, self.reach
        if low is not None:
            low = check_number("min_log_snr", low, "a finite log SNR, e.g. -10")
        if low is not None and not low < high:
            raise ValueError(
                f"min_log_snr {low} must be below max_log_snr {high}: log SNR falls from the data "
                "to the noise; raise max_log_snr or lower min_log_snr"
            )
        if cut is not None:
            if not 0 < check_number("cut_time", cut, "a time in (0, T)") < horizon:
                raise ValueError(
                    f"cut_time is {cut}, expected a time between 0 and T = {horizon:g}"
                )
            if low is not None:
                raise ValueError(
                    f"cut_time is {cut} and min_log_snr {low}, expected one of them: min_log_snr "
                    "scales the clock, and so moves cut_time; give max_log_snr instead of cut_time"
                )
            if any(reach):
                raise ValueError(
                    f"learn_ends is {list(reach)}, but the diffusion is cut at the time {cut:g}; "
                    "give max_log_snr instead of cut_time"
                )
            cut = float(cut)
        if reach[1] and low is None:
            raise ValueError(
                f"min_log_snr is None, but λ(T) is learned within {reach[1]:g} of where it starts: "
                "λ(T) is left to the clock and has no range; give min_log_snr, e.g. -10, or "
                f"learn_ends=[{reach[0]:g}, 0]"
            )
        if low is not None and not low + reach[1] < high - reach[0]:
            raise ValueError(
                f"λ(ε) is learned down to {high - reach[0]:g} and λ(T) up to {low + reach[1]:g}, "
                "expected ranges that do not meet; lower learn_ends, or bring max_log_snr and "
                "min_log_snr further apart"
            )
        return Ends(high, low, cut, reach)

    def values(self, moved: Tensor | None = None) -> Tensor:
        """λ(ε) and, if it is given, λ(T), (1,) or (2,); on the CPU without ``moved``.

        Args:
            moved: the parameter p (2,) of learned ends, λ + reach · tanh(p).
        """
        given = [self.high] if self.low is None else [self.high, self.low]
        values = torch.tensor(given, dtype=torch.float64)
        if moved is None:
            return values
        values, n = values.to(moved.device), len(given)
        return values + values.new_tensor(self.reach[:n]) * torch.tanh(moved[:n])

    def settings(self) -> dict[str, Any]:
        """Settings of the ends for a state dict."""
        return {"max_log_snr": self.high, "min_log_snr": self.low, "cut_time": self.cut_time}


def reach_of(learn_ends: float | Sequence[float]) -> tuple[float, float]:
    """The reach of both ends, given as one number or two.

    Raises:
        TypeError, ValueError: neither one number ≥ 0 nor two.
    """
    several = isinstance(learn_ends, Sequence)
    both = list(learn_ends) if several else [learn_ends] * 2  # type: ignore[arg-type]
    if len(both) != 2:
        raise ValueError(
            f"learn_ends is {learn_ends}, expected how far both ends may move, or one number for "
            "λ(ε) and one for λ(T), e.g. (1.0, 3.0)"
        )
    high, low = (check_number("learn_ends", r, "a reach in log SNR, e.g. 2.0") for r in both)
    if high < 0 or low < 0:
        raise ValueError(f"learn_ends is {learn_ends}, expected numbers ≥ 0 of log SNR, e.g. 2.0")
    return high, low
