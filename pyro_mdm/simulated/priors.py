"""Priors that are not Gaussian: of a distribution of PyTorch, or of energies by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property

from pyro_mdm.diffusions.base import Prior, separate_node
from pyro_mdm.support.checks import check_count, checked_arguments
from pyro_mdm.support.settings import described

__all__ = ["DistributionPrior", "QuadraturePrior"]

POINTS = 4001
"""Nodes of a quadrature over one variable."""
REACH = 36.0
"""The integrand of a quadrature is followed to e^-36 of its highest value."""
FARTHEST = 1e18
"""The farthest place at which a quadrature looks for the end of a distribution."""
ROUGH = 1e-4
"""The most, in nats, that a normalizer may change if every second node is left out."""


class DistributionPrior(Prior):
    """A prior whose K variables per data dimension follow a distribution of PyTorch or Pyro.

    Its density is computed in the distribution's dtype; use float64 parameters. Samples are
    differentiable where the distribution has ``rsample``.

    Args:
        distribution: batch shape () and event shape (K,).
        num_samples: number of Monte Carlo samples for an entropy that the distribution lacks.

    Raises:
        ValueError: another shape.

    Example:
        >>> one = torch.distributions.StudentT(torch.full((2,), 5.0, dtype=torch.float64))
        >>> prior = DistributionPrior(torch.distributions.Independent(one, 1))
        >>> prior.sample((4, 2, 3)).shape
        torch.Size([4, 2, 3])
    """

    def __init__(self, distribution: Distribution, num_samples: int = 65536) -> None:
        if distribution.batch_shape or len(distribution.event_shape) != 1:
            raise ValueError(
                f"the distribution has batch shape {tuple(distribution.batch_shape)} and event "
                f"shape {tuple(distribution.event_shape)}, expected () and (K,): one data "
                "dimension of K variables; see torch.distributions.Independent"
            )
        self.distribution = distribution
        self.num_variables = distribution.event_shape[0]
        self.num_samples = num_samples
        used = torch.cuda.is_initialized()
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if used else []):
            drawn = distribution.sample()
        self._dtype, self._device = drawn.dtype, drawn.device

    def settings(self) -> dict[str, Any]:
        return {"distribution": _parameters(self.distribution)}

    def log_prob(self, y: Tensor) -> Tensor:
        self._check(y)
        value = y.movedim(1, -1).to(self._device, self._dtype)
        log_prob: Tensor = self.distribution.log_prob(value).to(y)
        return log_prob.flatten(1).sum(1) if log_prob.dim() > 1 else log_prob

    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Samples from torch's global generator, seeded here by ``generator``."""
        lead = torch.Size((shape[0], *shape[2:]))
        draw = self.distribution.rsample if self.distribution.has_rsample else None
        draw = draw or self.distribution.sample
        if generator is None:
            drawn = draw(lead)
        else:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            cuda = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(devices=cuda):
                torch.default_generator.manual_seed(seed)
                if cuda:
                    torch.cuda.manual_seed(seed)
                drawn = draw(lead).to(generator.device)
        return drawn.movedim(-1, 1).double()

    def entropy(self, num_dims: int = 1) -> Tensor:
        try:
            one: Tensor = self.distribution.entropy()
        except NotImplementedError:
            generator = torch.Generator().manual_seed(0)
            y = self.sample((self.num_samples, self.num_variables), generator)
            one = -self.distribution.log_prob(y.to(self._device, self._dtype)).mean()
        return num_dims * one.double()


class QuadraturePrior(Prior):
    r"""A prior π_1 ∝ exp(-Σ_k H_k(y_k)): K independent variables with an energy each.

    Normalizers, entropies and distribution functions are integrals over one variable, by the
    trapezoidal rule in u = asinh(1000 y). Its accuracy is exponential for smooth energies with
    light or heavy tails. Samples are quantiles of uniform numbers, with the distribution function
    interpolated linearly between nodes.

    Args:
        energies: H_k, each an elementwise function of a float64 tensor of any shape; exp(-H_k) must
            be integrable. Densities, entropies and samples are differentiable in their parameters.
        device: where the integrals are computed.

    Raises:
        ValueError: on use, an energy that returns another shape, is not finite on the support of
            its distribution, grows too slowly in either direction for exp(-H) to be integrable, or
            varies too quickly for the quadrature.

    Example:
        >>> quartic = QuadraturePrior([lambda y: y**4 / 4])
        >>> quartic.entropy()
        tensor(1.1914, dtype=torch.float64)
    """

    @checked_arguments
    def __init__(
        self,
        energies: Sequence[Callable[[Tensor], Tensor]],
        device: torch.device | str | None = None,
    ) -> None:
        self.energies = list(energies)
        self.num_variables = len(self.energies)
        self.device = torch.device("cpu" if device is None else device)

    def settings(self) -> dict[str, Any]:
        return {"energies": described(self.energies)}

    def log_prob(self, y: Tensor) -> Tensor:
        d = self._check(y)
        total = y.new_zeros(len(y), dtype=torch.float64)
        for k in range(self.num_variables):
            normalizer = self._table(k)[2].to(y.device)
            total = total - self._energy(k, y[:, k]).reshape(len(y), d).sum(1) - d * normalizer
        return total.to(y.dtype)

    def score(self, y: Tensor) -> Tensor:
        """-∇H, like y; the normalizer does not enter."""
        self._check(y)
        with torch.enable_grad():
            point = separate_node(y)
            energies = [self._energy(k, point[:, k]).sum() for k in range(self.num_variables)]
            (gradient,) = torch.autograd.grad(torch.stack(energies).sum(), point, create_graph=True)
        return -gradient if torch.is_grad_enabled() else -gradient.detach()

    @checked_arguments
    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        check_count("len(shape)", len(shape), "the number of dimensions of states", 2)
        lead = (shape[0], *shape[2:])
        device = self.device if generator is None else generator.device
        columns = []
        for k in range(self.num_variables):
            nodes, log_mass, _ = self._table(k)
            mass = log_mass.softmax(0)
            cells = (mass[1:] + mass[:-1]) / 2
            cdf = torch.cat([cells.new_zeros(1), cells.cumsum(0)]) / cells.sum()
            q = torch.rand(lead, generator=generator, dtype=torch.float64, device=device).to(cdf)
            i = torch.searchsorted(cdf.detach(), q).clamp(1, len(cdf) - 1)
            fraction = (q - cdf[i - 1]) / (cdf[i] - cdf[i - 1]).clamp_min(1e-300)
            u = _inverse(nodes)
            columns.append(_line(torch.lerp(u[i - 1], u[i], fraction.clamp(0, 1))))
        return torch.stack(columns, 1).to(device)

    def entropy(self, num_dims: int = 1) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for k in range(self.num_variables):
            nodes, log_mass, normalizer = self._table(k)
            energy = self._energy(k, nodes)
            total = total + (log_mass.softmax(0) * energy).sum() + normalizer
        return num_dims * total

    def _energy(self, k: int, v: Tensor) -> Tensor:
        """H_k, like v, float64."""
        energy = self.energies[k](v.double())
        if energy.shape != v.shape:
            raise ValueError(
                f"the energy of variable {k} returned shape {tuple(energy.shape)} for an argument "
                f"of shape {tuple(v.shape)}, expected the same: it is applied elementwise"
            )
        return energy.double()

    def _table(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes y(u) at equal steps of u, the log of exp(-H) dy/du there, and log ∫ exp(-H)."""
        low, high = self._bounds(k)
        u = torch.linspace(low, high, POINTS, dtype=torch.float64, device=self.device)
        log_mass = _log_stretch(u) - self._energy(k, _line(u))
        step = math.log((high - low) / (POINTS - 1))
        normalizer = torch.logsumexp(log_mass, 0) + step
        coarse = torch.logsumexp(log_mass.detach()[::2], 0) + step + math.log(2)
        if not (rough := abs(float(coarse - normalizer.detach()))) < ROUGH:
            raise ValueError(
                f"the energy of variable {k} varies too quickly: its normalizer changes by "
                f"{rough:.3g} nats if every second of {POINTS} nodes is left out, expected less "
                f"than {ROUGH:g}; use a smoother function, and modes that are not far apart for "
                "their width"
            )
        return _line(u), log_mass, normalizer

    @torch.no_grad()
    def _bounds(self, k: int) -> tuple[float, float]:
        """The points u on both sides where exp(-H) dy/du falls to e^-REACH of its maximum."""
        end = float(_inverse(torch.tensor(FARTHEST, dtype=torch.float64)))
        half = POINTS // 2
        steps = torch.arange(-half, half + 1, dtype=torch.float64, device=self.device)
        u = steps * (end / half)  # 0 among them
        y = _line(u)
        energy = self._energy(k, y)
        log_mass = (_log_stretch(u) - energy).nan_to_num(nan=-math.inf, neginf=-math.inf)
        near = (log_mass > log_mass.max() - REACH).nonzero().squeeze(1)
        first, last = (int(near[0]), int(near[-1])) if len(near) else (0, POINTS - 1)
        seen = slice(max(first - 1, 0), last + 2)
        if bool((wrong := ~energy[seen].isfinite()).any()):
            raise ValueError(
                f"the energy of variable {k} is {energy[seen][wrong][0].item()} at "
                f"{y[seen][wrong][0].item():.3g}, expected a finite function of one variable"
            )
        if first == 0 or last == POINTS - 1:
            raise ValueError(
                f"the energy of variable {k} hardly grows up to |y| = {FARTHEST:g}: exp(-H) is not "
                "integrable, or barely; add a confining term such as y²/2"
            )
        return float(u[first - 1]), float(u[last + 1])


def _line(u: Tensor) -> Tensor:
    """y(u) = sinh(u) / 1000: evenly spaced near 0, in proportion far from it."""
    return 1e-3 * u.sinh()


def _inverse(y: Tensor) -> Tensor:
    return (1e3 * y).asinh()


def _log_stretch(u: Tensor) -> Tensor:
    """log dy/du."""
    return torch.logaddexp(u, -u) - math.log(2e3)


def _parameters(distribution: Distribution) -> dict[str, Any]:
    """The class and tensors of a distribution, and of the distributions that it is made of."""
    parameters: dict[str, Any] = {"class": type(distribution).__name__}
    for name, value in vars(distribution).items():
        computed = isinstance(getattr(type(distribution), name, None), lazy_property)
        if isinstance(value, Distribution):
            parameters[name] = _parameters(value)
        elif isinstance(value, Tensor) and not computed:
            parameters[name] = value.tolist()
    return parameters
