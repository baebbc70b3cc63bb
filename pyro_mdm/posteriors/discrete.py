r"""Distributions of data with discrete numbers given the parameters θ, learned from simulations.

The probability of discrete numbers is a product of conditional ones (:class:`DiscreteLaw`),

    P(x | θ) = ∏_j P(x_j | x_1, …, x_{j-1}, θ).

In a datum with numbers of both kinds the discrete ones come first, and the real ones have a
distribution given θ and these (:class:`MixedLaw`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyro_mdm.budgets import Outcome
from pyro_mdm.posteriors.autoregressive import Autoregressive
from pyro_mdm.posteriors.encoding import center_and_unit
from pyro_mdm.posteriors.laws import Bounds, ContinuousLaw, DataBounds, FactorLaw
from pyro_mdm.posteriors.training import TrainingOptions, train

__all__ = ["Cells", "DiscreteLaw", "Lattice", "MixedLaw", "law_of"]

MOST_LEVELS = 32
"""The most values of a discrete number that have a probability each; more share a mixture."""

COMPONENTS = 4
"""The number of logistic distributions in the mixture of a discrete number of more values."""


class Lattice(NamedTuple):
    """The evenly spaced values that a discrete number has."""

    origin: float  # one of the values
    gap: float  # the distance of neighbouring values
    lower: float  # the least value; -∞: there is none
    upper: float  # the greatest value; ∞: there is none

    @property
    def size(self) -> float:
        """The number of values, which may be ∞."""
        return (self.upper - self.lower) / self.gap + 1

    def has(self, x: Tensor) -> Tensor:
        """Whether numbers x (any shape) are among the values, bool of the same shape."""
        steps = (x.double() - self.origin) / self.gap
        return (steps == steps.round()) & (x >= self.lower) & (x <= self.upper)

    def coordinate(self, x: Tensor) -> Tensor:
        """The coordinates of numbers x (any shape), an increasing function, float64.

        The function is defined from half a gap below the values to half a gap above. It is a square
        root above a lower bound and an arcsine of a square root between two bounds: the standard
        deviation of a Poisson or a binomial number then hardly depends on the mean.
        """
        x = x.double()
        low, high = math.isfinite(self.lower), math.isfinite(self.upper)
        below = ((x - self.lower) / self.gap + 0.5).clamp_min(0).sqrt() if low else x
        above = ((self.upper - x) / self.gap + 0.5).clamp_min(0).sqrt() if high else x
        if low and high:
            return torch.atan2(below, above)
        return below if low else -above if high else x

    def value(self, z: Tensor) -> Tensor:
        """The values in whose cells coordinates z (any shape) are, float64; an end for z beyond."""
        z = z.double()
        low, high = math.isfinite(self.lower), math.isfinite(self.upper)
        if low and high:
            fraction = z.clamp(0, math.pi / 2).sin().square()
            x = self.lower + self.gap * (self.size * fraction - 0.5)
        elif low:
            x = self.lower + self.gap * (z.clamp_min(0).square() - 0.5)
        elif high:
            x = self.upper - self.gap * (z.clamp_max(0).square() - 0.5)
        else:
            x = z
        x = self.origin + self.gap * ((x - self.origin) / self.gap).round()
        return x.clamp(self.lower, self.upper)


class Cells(NamedTuple):
    """The values of discrete data (n, k, m), with f numbers of few values and w of more."""

    features: Tensor  # (n, k, features), the inputs of networks
    level: Tensor  # (n, k, f), indices of values, of numbers with few values, int64
    middle: Tensor  # (n, k, w), middles of the cells of other numbers, standardized
    width: Tensor  # (n, k, w), widths of these cells, in the same unit
    is_first: Tensor  # (n, k, w), whether the value is the least one, bool
    is_last: Tensor  # (n, k, w), whether the value is the greatest one, bool
    is_value: Tensor  # (n, k), whether all numbers are among their values, bool
    is_present: Tensor  # (n, k), whether none is NaN, bool


class DiscreteLaw(FactorLaw):
    """The distribution of discrete numbers, each given θ and the numbers before it in the datum.

    A number of few values has a probability for each value. A number of more values has a mixture
    of logistic distributions of :meth:`Lattice.coordinate`: the probability of a value is the mass
    of its cell, and the cells of the least and the greatest value are open (Salimans et al.,
    "PixelCNN++", ICLR 2017). So probabilities sum to 1 for values of any range.
    """

    center: Tensor
    unit: Tensor
    start: Tensor
    never: Tensor

    def __init__(self, inputs: int, lattices: Sequence[Lattice], hidden: int, depth: int) -> None:
        super().__init__()
        m = len(lattices)
        few = [j for j, lattice in enumerate(lattices) if lattice.size <= MOST_LEVELS]
        wide = [j for j in range(m) if j not in few]
        levels = max((int(lattices[j].size) for j in few), default=0)
        of_few = [j for j in few for _ in range(levels)]
        given = torch.tensor(of_few + wide)
        asked = torch.tensor(of_few + [j for j in wide for _ in range(3 * COMPONENTS)])
        self.network = Autoregressive(inputs, given, asked, m, hidden, depth)
        self.lattices, self.few, self.wide, self.levels = tuple(lattices), few, wide, levels
        self.features = len(few) * levels + len(wide)
        place, far = torch.arange(levels), torch.tensor(-math.inf)
        sizes = torch.tensor([[lattices[j].size] for j in few]).reshape(-1, 1)
        self.register_buffer("never", torch.where(place < sizes, 0.0, far), persistent=False)
        # components start apart, as equal ones would have equal gradients and stay equal
        location, constant = torch.linspace(-1, 1, COMPONENTS), torch.ones(COMPONENTS)
        start = torch.stack([0 * constant, location, -constant])
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("center", torch.zeros(len(wide), dtype=torch.float64))
        self.register_buffer("unit", torch.ones(len(wide), dtype=torch.float64))

    def fit(
        self, x: Tensor, theta: Tensor, bounds: Bounds, options: TrainingOptions
    ) -> list[Outcome]:
        flat = x.flatten(0, 1)
        if self.wide:
            z = torch.stack([self.lattices[j].coordinate(flat[:, j]) for j in self.wide], 1)
            center, unit = center_and_unit(z)
            self.center.copy_(center)
            self.unit.copy_(unit)
        cells = self.cells(x)

        def loss(rows: Tensor) -> Tensor:
            return -self._log_prob(Cells(*(tensor[rows] for tensor in cells)), theta[rows]).mean()

        return [train(self, loss, len(x), options, largest_gradient=20.0)]

    # -- data --------------------------------------------------------------------------------------

    @property
    def bounds(self) -> DataBounds:
        lower, upper = (
            torch.tensor([getattr(lattice, end) for lattice in self.lattices])
            for end in ("lower", "upper")
        )
        return DataBounds(lower, upper, torch.ones_like(lower, dtype=torch.bool))

    @torch.no_grad()
    def cells(self, x: Tensor) -> Cells:
        """The cells of data x (n, k, m). A number that is no value is taken for the origin."""
        lattices = self.lattices
        is_value = torch.stack([lattice.has(x[..., j]) for j, lattice in enumerate(lattices)], -1)
        inside = torch.where(is_value, x, x.new_tensor([lattice.origin for lattice in lattices]))
        levels = [
            ((inside[..., j] - lattices[j].lower) / lattices[j].gap).round() for j in self.few
        ]
        level = torch.stack([inside[..., 0], *levels], -1)[..., 1:].long()
        none = is_value.new_zeros(2, *x.shape[:-1])  # there may be no number of many values
        edges, ends = [none.double()], [none]
        for j in self.wide:
            lattice, value = lattices[j], inside[..., j].double()
            sides = value - lattice.gap / 2, value + lattice.gap / 2
            edges.append(torch.stack([lattice.coordinate(side) for side in sides]))
            ends.append(torch.stack([value == lattice.lower, value == lattice.upper]))
        low, high = (torch.stack(edges, -1)[..., 1:] - self.center) / self.unit
        is_first, is_last = torch.stack(ends, -1)[..., 1:]
        middle, width = ((low + high) / 2).to(x), (high - low).to(x)
        hot = functional.one_hot(level, max(1, self.levels)).to(x).flatten(2)
        features = torch.cat([hot, middle], 2)
        present = ~x.isnan().any(2)
        return Cells(features, level, middle, width, is_first, is_last, is_value.all(2), present)

    # -- probabilities -----------------------------------------------------------------------------

    def _heads(self, features: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The log probabilities of few values, (n, k, f, levels), and the parameters of mixtures,
        (n, k, w, 3, components)."""
        outputs = self.network(features, theta)
        logits, raw = outputs.tensor_split([len(self.few) * self.levels], 2)
        logits = logits.unflatten(2, (len(self.few), self.levels)) + self.never
        raw = raw.unflatten(2, (len(self.wide), 3, COMPONENTS)) + self.start
        return logits.log_softmax(-1), raw

    def _log_prob(self, cells: Cells, theta: Tensor) -> Tensor:
        """log P of each datum given θ, (n, k), -∞ where it is not among the values."""
        logits, raw = self._heads(cells.features, theta)
        shape = torch.broadcast_shapes(logits.shape[:3], cells.level.shape)
        level = cells.level.unsqueeze(-1).expand(*shape, 1)
        of_few = logits.expand(*shape, -1).gather(3, level).squeeze(3).sum(2)
        weight, location, log_scale = raw.unbind(3)
        sharpness = (-log_scale).exp()
        half = cells.width.unsqueeze(-1) / 2
        apart = cells.middle.unsqueeze(-1) - location
        # σ(b) - σ(a) = σ(b) σ(-a) (1 - e^{a-b}), a product whose log is exact in both tails
        up_to = functional.logsigmoid((apart + half) * sharpness)
        from_ = functional.logsigmoid((half - apart) * sharpness)
        within = (-torch.expm1(-2 * half * sharpness)).log()
        first, last = cells.is_first.unsqueeze(-1), cells.is_last.unsqueeze(-1)
        inner = torch.where(first | last, 0.0, within)
        log_mass = torch.where(last, 0.0, up_to) + torch.where(first, 0.0, from_) + inner
        of_wide = (weight.log_softmax(-1) + log_mass).logsumexp(-1).sum(2)
        total = (of_few + of_wide).double()
        return torch.where(cells.is_value, total, -math.inf)

    def of_piece(self, x: Tensor, theta: Tensor) -> Tensor:
        cells = self.cells(x)
        return torch.where(cells.is_present, self._log_prob(cells, theta), 0.0)

    @torch.no_grad()
    def sample(self, theta: Tensor, k: int) -> Tensor:
        origin = torch.tensor([lattice.origin for lattice in self.lattices])
        x = origin.to(theta).expand(len(theta), k, -1).clone()
        for j, lattice in enumerate(self.lattices):
            logits, raw = self._heads(self.cells(x).features, theta)
            if j in self.few:
                chances = logits[:, :, self.few.index(j)].exp().expand(-1, k, -1)
                level = torch.multinomial(chances.flatten(0, 1), 1).reshape(-1, k)
                x[:, :, j] = lattice.lower + lattice.gap * level.to(x)
                continue
            place = self.wide.index(j)
            weight, location, log_scale = raw[:, :, place].expand(-1, k, -1, -1).unbind(2)
            chosen = torch.multinomial(weight.softmax(-1).flatten(0, 1), 1).reshape(-1, k, 1)
            # u = 0 or 1 would have an infinite logit
            u = torch.rand(len(theta), k, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
            z = location.gather(2, chosen).squeeze(2).double()
            z = z + log_scale.gather(2, chosen).squeeze(2).double().exp() * u.logit()
            x[:, :, j] = lattice.value(z * self.unit[place] + self.center[place]).to(x)
        return x


class MixedLaw(FactorLaw):
    """The distribution of discrete numbers, and of real ones (without a lattice) given these."""

    trainings = 1 + ContinuousLaw.trainings

    def __init__(
        self, inputs: int, lattices: Sequence[Lattice | None], hidden: int, depth: int
    ) -> None:
        super().__init__()
        self.counted = [j for j, lattice in enumerate(lattices) if lattice is not None]
        self.real = [j for j, lattice in enumerate(lattices) if lattice is None]
        values = [lattice for lattice in lattices if lattice is not None]
        self.discrete = DiscreteLaw(inputs, values, hidden, depth)
        inputs = inputs + self.discrete.features
        self.continuous = ContinuousLaw(inputs, len(self.real), hidden, depth)

    def fit(
        self, x: Tensor, theta: Tensor, bounds: Bounds, options: TrainingOptions
    ) -> list[Outcome]:
        lower, upper = (bound[self.real] for bound in bounds)
        outcomes = self.discrete.fit(x[..., self.counted], theta, bounds, options)
        given, real = self._given(x, theta)
        outcomes += self.continuous.fit(real, given, (lower, upper), options)
        self.form, self.gain = self.continuous.form, self.continuous.gain
        return outcomes

    @property
    def bounds(self) -> DataBounds:
        kinds = zip(self.discrete.bounds, self.continuous.bounds, strict=True)
        order = torch.tensor(self.counted + self.real).argsort()
        return DataBounds(*(torch.cat(pair)[order] for pair in kinds))

    def _given(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of the distribution of real numbers, (n k, inputs), and these, (n k, 1, m)."""
        features = self.discrete.cells(x[..., self.counted]).features
        n, k = max(len(x), len(theta)), x.shape[1]
        given = torch.cat([theta.unsqueeze(1).expand(n, k, -1), features.expand(n, -1, -1)], 2)
        real = x[..., self.real].expand(n, -1, -1)
        return given.flatten(0, 1), real.reshape(n * k, 1, -1)

    def of_piece(self, x: Tensor, theta: Tensor) -> Tensor:
        discrete = self.discrete.of_piece(x[..., self.counted], theta)
        n, k = discrete.shape
        features = self.discrete.cells(x[..., self.counted]).features
        patterns, which = features.flatten(0, 1).unique(dim=0, return_inverse=True)
        if 2 * len(patterns) > k:
            given, real = self._given(x, theta)
            return discrete + self.continuous.of_piece(real, given).reshape(n, k)
        # one evaluation of the network of θ for each value of the discrete numbers, not each datum
        which, log_p = which.reshape(len(features), k), torch.zeros_like(discrete)
        for place, pattern in enumerate(patterns):
            given = torch.cat([theta, pattern.expand(len(theta), -1)], 1)
            here = self.continuous.of_piece(x[..., self.real], given)
            log_p = torch.where(which == place, here, log_p)
        return discrete + log_p

    def sample(self, theta: Tensor, k: int) -> Tensor:
        x = torch.zeros(len(theta), k, len(self.counted) + len(self.real))
        x[..., self.counted] = self.discrete.sample(theta, k)
        x[..., self.real] = self.continuous.sample(self._given(x, theta)[0], 1).reshape(
            len(theta), k, -1
        )
        return x


def law_of(inputs: int, lattices: Sequence[Lattice | None], hidden: int, depth: int) -> FactorLaw:
    """The untrained distribution of data with discrete numbers, real ones or both; arguments as
    for :class:`MixedLaw`."""
    values = [lattice for lattice in lattices if lattice is not None]
    if not values:
        return ContinuousLaw(inputs, len(lattices), hidden, depth)
    if len(values) < len(lattices):
        return MixedLaw(inputs, lattices, hidden, depth)
    return DiscreteLaw(inputs, values, hidden, depth)
