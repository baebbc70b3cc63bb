r"""Networks for the numbers of a datum in turn, p(x | θ) = ∏_j p(x_j | x_1, …, x_{j-1}, θ).

:class:`Autoregressive` evaluates the network of θ once for all data of a plate, and masked layers
add the dependence on earlier numbers (Germain et al., "MADE", ICML 2015). By it
:class:`ResidualMixture` has a mixture of Gaussian distributions for each number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_mdm.posteriors.gaussian import Residual

__all__ = ["Autoregressive", "Masked", "ResidualMixture"]

COMPONENTS = 8
"""The number of Gaussian distributions in the mixture of a number."""


class Masked(nn.Linear):
    """A linear map whose weights outside of a mask (outputs, inputs) are fixed at 0."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.mask, self.bias)


class Autoregressive(nn.Module):
    """A network of θ and of features of a datum, whose outputs for a number see those before it.

    Of the m numbers of a datum, each feature is of one that is given, (features,) int64, and each
    output is for one that is asked, (outputs,) int64. The inputs represent θ.
    """

    def __init__(
        self, inputs: int, given: Tensor, asked: Tensor, m: int, hidden: int, depth: int
    ) -> None:
        super().__init__()
        self.network = Residual(inputs, len(asked), hidden, depth)
        self.masked = nn.ModuleList()
        if m == 1:
            return
        degree = torch.arange(hidden) * (m - 1) // hidden  # the last input of a unit
        self.masked.append(Masked(given <= degree.unsqueeze(1)))
        self.masked.append(Masked(degree <= degree.unsqueeze(1)))
        self.masked.append(Masked(degree < asked.unsqueeze(1)))
        self.of_theta = nn.Linear(hidden, 2 * hidden)
        for parameter in self.masked[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, theta: Tensor) -> Tensor:
        """The outputs, (n, k or 1, outputs), for features of k data (n or 1, k, features) of each
        of the inputs theta (n, inputs)."""
        h = self.network.trunk(theta)
        outputs: Tensor = self.network.outlet(h).unsqueeze(1)
        if not len(self.masked):
            return outputs
        first, second = self.of_theta(h).unsqueeze(1).chunk(2, 2)
        z = functional.silu(self.masked[0](features) + first)
        z = z + functional.silu(self.masked[1](z) + second)
        return outputs + self.masked[2](z)


class ResidualMixture(nn.Module):
    """Mixtures of Gaussian distributions of m residuals of a datum in turn, given θ as inputs; at
    first near N(0, I). Arguments as for :class:`Autoregressive`."""

    start: Tensor

    def __init__(self, inputs: int, m: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.m, numbers = m, torch.arange(m)
        asked = numbers.repeat_interleave(3 * COMPONENTS)
        self.network = Autoregressive(inputs, numbers, asked, m, hidden, depth)
        # components start apart, as equal ones would have equal gradients and stay equal
        location = torch.linspace(-1, 1, COMPONENTS)
        log_scale = (1 - location.var(correction=0)).log() / 2
        start = [torch.zeros(COMPONENTS), location, log_scale.expand(COMPONENTS)]
        self.register_buffer("start", torch.stack(start), persistent=False)

    def _components(self, r: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, locations and log scales of the components, (n, k or 1, m, components)."""
        raw = self.network(r.asinh(), theta).unflatten(2, (self.m, 3, COMPONENTS)) + self.start
        weight, location, log_scale = raw.unbind(3)
        return weight.log_softmax(-1), location, log_scale

    def log_prob(self, r: Tensor, theta: Tensor) -> Tensor:
        """The log density, (n, k), nats, of residuals r (n, k, m) of k data of each theta (n,
        inputs)."""
        weight, location, log_scale = self._components(r, theta)
        z = (r.unsqueeze(-1) - location) * (-log_scale).exp()
        log_p = weight - 0.5 * (z.square() + math.log(2 * math.pi)) - log_scale
        return log_p.logsumexp(-1).sum(-1)

    @torch.no_grad()
    def sample(self, theta: Tensor, k: int) -> Tensor:
        """Random residuals of k data of each θ (n, inputs), (n, k, m)."""
        r = theta.new_zeros(len(theta), k, self.m)
        for j in range(self.m):
            weight, location, log_scale = (
                raw[:, :, j].expand(-1, k, -1) for raw in self._components(r, theta)
            )
            chosen = torch.multinomial(weight.exp().flatten(0, 1), 1).reshape(-1, k, 1)
            center, scale = location.gather(2, chosen), log_scale.gather(2, chosen).exp()
            r[:, :, j] = (center + scale * torch.randn_like(center)).squeeze(2)
        return r
