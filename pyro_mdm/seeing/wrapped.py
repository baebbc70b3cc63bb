"""Diffusions that are a linear one, but for what they do with the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Diffusion, Marginal, Times, Transition
from pyro_mdm.diffusions.closed import OneBlock
from pyro_mdm.diffusions.kernels import Factor
from pyro_mdm.diffusions.linear import Frozen, LinearDiffusion
from pyro_mdm.diffusions.priors import Prior
from pyro_mdm.diffusions.propagator import Propagator
from pyro_mdm.support.checks import check_instance
from pyro_mdm.support.settings import described

__all__ = ["WrappedDiffusion"]


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

    # -- ends, which may be set --------------------------------------------------------------------

    @property
    def max_log_snr(self) -> float:
        return self.base.max_log_snr

    @max_log_snr.setter
    def max_log_snr(self, value: float) -> None:
        self.base.max_log_snr = value

    @property
    def min_log_snr(self) -> float | None:
        return self.base.min_log_snr

    @min_log_snr.setter
    def min_log_snr(self, value: float | None) -> None:
        self.base.min_log_snr = value

    # -- what is the base's ------------------------------------------------------------------------

    @property
    def cut_time(self) -> float | None:
        return self.base.cut_time

    @property
    def prior(self) -> Prior:
        return self.base.prior

    @property
    def start_log_snr(self) -> Tensor:
        return self.base.start_log_snr

    @property
    def terminal_log_snr(self) -> Tensor:
        return self.base.terminal_log_snr

    @property
    def start_time(self) -> Tensor:
        return self.base.start_time

    @property
    def start(self) -> Marginal:
        return self.base.start

    @property
    def terminal(self) -> Marginal:
        return self.base.terminal

    @property
    def prior_covariance(self) -> Tensor:
        return self.base.prior_covariance

    @property
    def log_volume_ends(self) -> Tensor:
        return self.base.log_volume_ends

    @property
    def learns_ends(self) -> bool:
        return self.base.learns_ends

    @property
    def learns_stationary(self) -> bool:
        return self.base.learns_stationary

    @property
    def propagator(self) -> Propagator:
        return self.base.propagator

    @property
    def stationary_covariance(self) -> Tensor:  # type: ignore[override]
        return self.base.stationary_covariance

    @property
    def initial_covariance(self) -> Tensor:  # type: ignore[override]
        return self.base.initial_covariance

    @property
    def reference(self) -> Diffusion:
        return self.base

    def clock(self, s: Times) -> Tensor:
        return self.base.clock(s)

    def rate(self, s: Times) -> Tensor:
        return self.base.rate(s)

    def inverse_clock(self, tau: Tensor) -> Tensor:
        return self.base.inverse_clock(tau)

    def time_at_clock(self, tau: Tensor) -> Tensor:
        return self.base.time_at_clock(tau)

    def log_snr(self, s: Times) -> Tensor:
        return self.base.log_snr(s)

    def log_snr_rate(self, s: Times) -> Tensor:
        return self.base.log_snr_rate(s)

    def time_at_log_snr(self, value: Times) -> Tensor:
        return self.base.time_at_log_snr(value)

    def marginal(self, s: Times) -> Marginal:
        return self.base.marginal(s)

    def transition(self, s: Times, r: Times = 0.0) -> Transition:
        return self.base.transition(s, r)

    def drift_matrix(self, s: Times) -> Tensor:
        return self.base.drift_matrix(s)

    def noise_covariance(self, s: Times) -> Tensor:
        return self.base.noise_covariance(s)

    def dispersion_matrix(self, s: Times) -> Tensor:
        return self.base.dispersion_matrix(s)

    def clock_noise(self, s: Times) -> Tensor:
        return self.base.clock_noise(s)

    def divergence(self, s: Times, r: Times, dimensions: int = 1) -> Tensor:
        return self.base.divergence(s, r, dimensions)

    def log_volume(self, s: Times) -> Tensor:
        return self.base.log_volume(s)

    def log_volume_rate(self, s: Times) -> Tensor:
        return self.base.log_volume_rate(s)

    def time_at_log_volume(self, value: Times) -> Tensor:
        return self.base.time_at_log_volume(value)

    def frozen(self) -> Frozen:
        return self.base.frozen()

    def each(self, law: Callable[..., Any], *times: Tensor) -> Any:
        return self.base.each(law, *times)

    def simulate(self, y: Tensor, times: Tensor, simulation: Any = None) -> Tensor:
        return self.base.simulate(y, times, simulation)

    def factorization(self, tau: Tensor) -> tuple[Tensor, Tensor, Factor]:
        return self.base.factorization(tau)

    def check_precision(self, growth: Tensor, tau: Tensor, what: str) -> None:
        self.base.check_precision(growth, tau, what)

    def check(self, event_shape: Sequence[int]) -> None:
        self.base.check(event_shape)

    def settings(self) -> dict[str, Any]:
        return {"base": described(self.base)}

    def _device(self) -> torch.device:
        return self.base.start_time.device

    def extra_repr(self) -> str:
        return f"num_variables={self.num_variables}, max_log_snr={self.max_log_snr:g}"
