"""A linear diffusion with something added that the data decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Diffusion, Marginal, Times, Transition
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.priors import Prior
from pyro_mdm.support.checks import check_instance
from pyro_mdm.support.settings import described

__all__ = ["WrappedDiffusion"]


class WrappedDiffusion(Diffusion):
    """A diffusion that is ``base`` in all that a subclass does not change.

    Kernels, clock, ends and prior are those of the base, which is what the generative model
    reverses; what data do to noising paths is the subclass's.

    Args:
        base: a linear diffusion, constant, time-varying or learned.

    Raises:
        TypeError: another kind of diffusion.
    """

    closed_form = True
    base: Any

    def __init__(self, base: LinearDiffusion) -> None:
        super().__init__()
        fix = "e.g. CLD(max_log_snr=9.0); dimensions share one block and one clock here"
        check_instance("base", base, LinearDiffusion, fix)
        self.base = base
        self.num_variables, self.horizon = base.num_variables, base.horizon

    def __getattr__(self, name: str) -> Any:
        """What the base has and this does not."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "base":
                raise
            return getattr(super().__getattr__("base"), name)

    # -- ends, which may be set --------------------------------------------------------------------

    @property
    def max_log_snr(self) -> float:
        found: float = self.base.max_log_snr
        return found

    @max_log_snr.setter
    def max_log_snr(self, value: float) -> None:
        self.base.max_log_snr = value

    @property
    def min_log_snr(self) -> float | None:
        """λ(T) that the clock is scaled to, or None."""
        found: float | None = self.base.min_log_snr
        return found

    @min_log_snr.setter
    def min_log_snr(self, value: float | None) -> None:
        self.base.min_log_snr = value

    # -- what every diffusion answers --------------------------------------------------------------

    @property
    def prior(self) -> Prior:
        found: Prior = self.base.prior
        return found

    @property
    def start_log_snr(self) -> Tensor:
        found: Tensor = self.base.start_log_snr
        return found

    @property
    def terminal_log_snr(self) -> Tensor:
        found: Tensor = self.base.terminal_log_snr
        return found

    @property
    def start_time(self) -> Tensor:
        found: Tensor = self.base.start_time
        return found

    @property
    def start(self) -> Marginal:
        found: Marginal = self.base.start
        return found

    @property
    def reference(self) -> Diffusion:
        found: Diffusion = self.base
        return found

    def drift(self, y: Tensor, s: Times) -> Tensor:
        found: Tensor = self.base.drift(y, s)
        return found

    def dispersion(self, y: Tensor, s: Times) -> Tensor:
        found: Tensor = self.base.dispersion(y, s)
        return found

    def simulate(self, y: Tensor, times: Tensor, simulation: Any = None) -> Tensor:
        found: Tensor = self.base.simulate(y, times, simulation)
        return found

    def log_snr(self, s: Times) -> Tensor:
        found: Tensor = self.base.log_snr(s)
        return found

    def log_snr_rate(self, s: Times) -> Tensor:
        found: Tensor = self.base.log_snr_rate(s)
        return found

    def time_at_log_snr(self, value: Times) -> Tensor:
        found: Tensor = self.base.time_at_log_snr(value)
        return found

    def clock(self, s: Times) -> Tensor:
        found: Tensor = self.base.clock(s)
        return found

    def marginal(self, s: Times) -> Marginal:
        found: Marginal = self.base.marginal(s)
        return found

    def transition(self, s: Times, r: Times = 0.0) -> Transition:
        found: Transition = self.base.transition(s, r)
        return found

    def each(self, law: Callable[..., Any], *times: Tensor) -> Any:
        return law(self.base, *times)

    def check(self, event_shape: Any) -> None:
        self.base.check(event_shape)

    def settings(self) -> dict[str, Any]:
        return {"base": described(self.base)}

    def _device(self) -> torch.device:
        found: torch.device = self.base.start_time.device
        return found

    def extra_repr(self) -> str:
        return f"num_variables={self.num_variables}, max_log_snr={self.max_log_snr:g}"
