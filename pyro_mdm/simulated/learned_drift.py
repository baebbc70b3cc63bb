"""A linear diffusion that is simulated, and one with a network added to its drift."""

from __future__ import annotations

from abc import ABC
from typing import TypeVar

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import Diffusion, Marginal, Times, remade
from pyro_mdm.diffusions.clocks import as_times, times_within
from pyro_mdm.diffusions.linear import LinearDiffusion, at_rest
from pyro_mdm.simulated.nonlinear import NonlinearDiffusion
from pyro_mdm.simulated.simulation import Simulation
from pyro_mdm.support.checks import check_instance, check_network, check_number
from pyro_mdm.support.modules import of_part

__all__ = ["LearnedDrift", "Simulated"]

F = TypeVar("F", bound="_FromLinear")


class _FromLinear(NonlinearDiffusion, ABC):
    """A diffusion with the start, noise, prior and clock of a linear one."""

    def __init__(self, linear: LinearDiffusion, simulation: Simulation | None) -> None:
        check_instance("linear", linear, LinearDiffusion, f"e.g. {type(self).__name__}(CLD(), …)")
        if any(linear.given_ends.reach):
            raise ValueError(
                f"{type(linear).__name__} has learn_ends, but simulated paths keep the ends that "
                "they start with; leave it out"
            )
        super().__init__(
            linear.num_variables,
            beta=linear.beta,
            horizon=linear.horizon,
            max_log_snr=linear.max_log_snr,
            # nominal, and below the start even where the linear diffusion hardly noises
            min_log_snr=min(linear.terminal_log_snr.item(), linear.max_log_snr - 1e-6),
            simulation=simulation,
        )
        del self.beta  # the clock is the linear diffusion's
        self.linear = linear
        self.at_rest = at_rest(linear)

    def solved(self: F) -> F:
        linear = self.linear.solved()
        return self if linear is self.linear else remade(self, linear=linear)

    @property
    def max_log_snr(self) -> float:
        return self.linear.max_log_snr

    def as_tensor(self, value: Times) -> Tensor:
        """A number or tensor in float64, on the host, as the linear diffusion is."""
        return as_times(value)

    def checked_time(self, name: str, value: Times) -> Tensor:
        return times_within(self.horizon, name, value)

    prior = of_part("linear")
    clock = of_part("linear")
    rate = of_part("linear")
    time_at_clock = of_part("linear")

    @property
    def start_time(self) -> Tensor:
        """ε of the linear diffusion, held fixed in gradients."""
        return self.linear.start_time.detach()

    @property
    def start(self) -> Marginal:
        return self.linear.marginal(self.start_time)

    def dispersion(self, y: Tensor, s: Times) -> Tensor:
        return self.linear.dispersion(None, s)


class Simulated(_FromLinear):
    """A linear diffusion that is simulated from its drift and dispersion, without its closed form.

    Its bound differs from that in closed form by the bias of the step and by noise, which makes it
    a test of the simulation.

    Args:
        linear: the linear diffusion.
        simulation: settings of the simulation of paths.

    Raises:
        TypeError: a diffusion that is not linear.
        ValueError: one with ``learn_ends``.

    Example:
        >>> from pyro_mdm import CLD
        >>> diffusion = Simulated(CLD(), Simulation(step_size=0.1))
        >>> diffusion.simulate(torch.randn(4, 2, 3), torch.tensor([0.1, 1.0])).shape
        torch.Size([4, 2, 2, 3])
    """

    def __init__(self, linear: LinearDiffusion, simulation: Simulation | None = None) -> None:
        super().__init__(linear, simulation)
        self.stationary_prior = self.at_rest

    def drift(self, y: Tensor, s: Times) -> Tensor:
        return self.linear.drift(y, s)


class LearnedDrift(_FromLinear):
    r"""A linear diffusion with a small network added to its drift.

        dy = (A y + β u(y, λ)) ds + G dB

    ``u = c tanh(F / c)`` is within ± c, so that paths cannot run away. At F = 0, where networks of
    this library begin, the diffusion is the linear one. The prior is that of the linear diffusion;
    u may move the distribution at T away from it, which the term ``∇·(F π) / π`` of the bound
    (:mod:`pyro_mdm.simulated.path_integral`) accounts for.

    Args:
        linear: the linear diffusion, fixed or learned.
        network: the module F, called with the K variables as channels, (n, K·C, *spatial), and
            log SNRs, (n,); it returns the shape of its input.
        limit: the bound c on each entry of u.
        simulation: settings of the simulation of paths.

    Raises:
        TypeError: a diffusion that is not linear.
        ValueError: one with ``learn_ends``, a limit that is not positive, a network output of
            another shape.

    Example:
        >>> from pyro_mdm import CLD
        >>> from pyro_mdm.networks import MLP
        >>> diffusion = LearnedDrift(CLD(), MLP(2 * 3))  # K = 2 variables of 3 dimensions
        >>> y = torch.randn(4, 2, 3)
        >>> bool((diffusion.drift(y, 0.5) == CLD().drift(y, 0.5)).all())  # F = 0 at first
        True
    """

    def __init__(
        self,
        linear: LinearDiffusion,
        network: nn.Module,
        *,
        limit: float = 4.0,
        simulation: Simulation | None = None,
    ) -> None:
        super().__init__(linear, simulation)
        check_network("network", network, Diffusion)
        self.network = network
        expected = "a positive bound of the added drift"
        self.limit = check_number("limit", limit, expected, positive=True)

    def added(self, y: Tensor, s: Times) -> Tensor:
        """The added drift β u, like y.

        Args:
            y: states, (batch, K, *event_shape).
            s: times, (batch,), or one time.
        """
        s = self.as_tensor(s).expand(len(y))
        dtype = next((p.dtype for p in self.network.parameters()), y.dtype)
        inputs = (y.flatten(1, 2) if y.dim() > 2 else y).to(dtype)
        out = self.network(inputs, self.log_snr(s).to(inputs))
        if out.shape != inputs.shape:
            raise ValueError(
                f"{type(self.network).__name__} returned {tuple(out.shape)} for inputs "
                f"{tuple(inputs.shape)}, expected the same shape"
            )
        u = self.limit * torch.tanh(out / self.limit)
        rate = self.linear.rate(s).to(y).reshape(-1, *(1,) * (y.dim() - 1))
        return rate * u.to(y.dtype).reshape(y.shape)

    def drift(self, y: Tensor, s: Times) -> Tensor:
        """A(s) y + β(s) u(y, λ(s)), like y."""
        return self.linear.drift(y, s) + self.added(y, s)

    def prior_current(self, y: Tensor, s: Tensor) -> Tensor:
        """The probability velocity at π, like y.

        It is β u alone where the prior is stationary for the linear drift.
        """
        return self.added(y, s) if self.at_rest else super().prior_current(y, s)
