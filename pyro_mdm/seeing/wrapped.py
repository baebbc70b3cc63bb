"""The base class of diffusions that change how data enter the paths of a linear one."""

from __future__ import annotations

from typing import TypeVar

from pyro_mdm.diffusions.base import Diffusion, remade
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.support.checks import check_instance
from pyro_mdm.support.modules import of_part
from pyro_mdm.support.settings import described

__all__ = ["WrappedDiffusion"]

W = TypeVar("W", bound="WrappedDiffusion")


class WrappedDiffusion(Kernels):
    """A diffusion with the kernels, clock, ends and prior of ``base``.

    The generative model reverses the base. A subclass defines the effect of data on noising paths.

    Args:
        base: linear diffusion, constant, time-varying or learned.

    Raises:
        TypeError: another kind of diffusion.
    """

    base: LinearDiffusion

    def __init__(self, base: LinearDiffusion) -> None:
        super().__init__()
        fix = "e.g. CLD(max_log_snr=9.0); dimensions share one block and one clock here"
        check_instance("base", base, LinearDiffusion, fix)
        self.base = base
        self.num_variables, self.horizon = base.num_variables, base.horizon

    def solved(self: W) -> W:
        base = self.base.solved()
        return self if base is self.base else remade(self, base=base)

    # -- members of the base

    max_log_snr = of_part("base")
    min_log_snr = of_part("base")
    cut_time = of_part("base")
    prior = of_part("base")
    prior_covariance = of_part("base")
    start = of_part("base")
    start_time = of_part("base")
    start_log_snr = of_part("base")
    terminal = of_part("base")
    terminal_log_snr = of_part("base")
    initial_covariance = of_part("base")
    clock = of_part("base")
    rate = of_part("base")
    time_at_clock = of_part("base")
    log_snr = of_part("base")
    log_snr_rate = of_part("base")
    time_at_log_snr = of_part("base")
    log_volume = of_part("base")
    drift_matrix = of_part("base")
    noise_covariance = of_part("base")
    dispersion = of_part("base")
    marginal = of_part("base")
    transition = of_part("base")
    propagator = of_part("base")
    by_dimension = of_part("base")
    check = of_part("base")

    @property
    def reference(self) -> Diffusion:
        return self.base

    def settings(self) -> dict[str, object]:
        return {"base": described(self.base)}

    def extra_repr(self) -> str:
        return f"num_variables={self.num_variables}, max_log_snr={self.max_log_snr:g}"
