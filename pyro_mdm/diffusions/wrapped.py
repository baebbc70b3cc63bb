"""Diffusions that are a linear one, but for what they do with the data."""

from __future__ import annotations

from typing import Any

import torch

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.closed import OneBlock
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.support.checks import check_instance
from pyro_mdm.support.settings import described

__all__ = ["WrappedDiffusion"]


class _OfBase:
    """A member of a wrapped diffusion that is the base's, to read and to set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, of: WrappedDiffusion | None, owner: type | None = None) -> Any:
        return self if of is None else getattr(of.base, self.name)

    def __set__(self, of: WrappedDiffusion, value: object) -> None:
        setattr(of.base, self.name, value)


def _of_base() -> Any:
    return _OfBase()


class WrappedDiffusion(OneBlock):
    """A diffusion that is ``base`` in all that a subclass does not change.

    Kernels, clock, ends and prior are those of the base, which is what the generative model
    reverses; what data do to noising paths is the subclass's.

    Args:
        base: a linear diffusion, constant, time-varying or learned.

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

    # -- what is the base's

    max_log_snr = _of_base()
    min_log_snr = _of_base()
    cut_time = _of_base()
    prior = _of_base()
    prior_covariance = _of_base()
    start = _of_base()
    start_time = _of_base()
    start_log_snr = _of_base()
    terminal = _of_base()
    terminal_log_snr = _of_base()
    learns_ends = _of_base()
    learns_stationary = _of_base()
    stationary_covariance = _of_base()
    initial_covariance = _of_base()
    clock = _of_base()
    rate = _of_base()
    inverse_clock = _of_base()
    time_at_clock = _of_base()
    log_snr = _of_base()
    log_snr_rate = _of_base()
    time_at_log_snr = _of_base()
    log_volume = _of_base()
    log_volume_rate = _of_base()
    log_volume_ends = _of_base()
    time_at_log_volume = _of_base()
    drift_matrix = _of_base()
    noise_covariance = _of_base()
    dispersion_matrix = _of_base()
    clock_noise = _of_base()
    divergence = _of_base()
    marginal = _of_base()
    transition = _of_base()
    propagator = _of_base()
    factorization = _of_base()
    check_precision = _of_base()
    frozen = _of_base()
    each = _of_base()
    simulate = _of_base()
    check = _of_base()

    @property
    def reference(self) -> Diffusion:
        return self.base

    def settings(self) -> dict[str, Any]:
        return {"base": described(self.base)}

    def _device(self) -> torch.device:
        return self.base.start_time.device

    def extra_repr(self) -> str:
        return f"num_variables={self.num_variables}, max_log_snr={self.max_log_snr:g}"
