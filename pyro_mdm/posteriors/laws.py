r"""Laws of the data of one factor given the parameters θ, learned from simulations.

Real numbers of a datum have first a Gaussian law N(x; m(θ), S(θ)), whose mean and covariance are a
network's. What is left, r = S^{-½} (x - m), is a diffusion model given θ, if that is better on
held-out simulations; else it is N(0, I). Its density is that of the probability flow, in a few
steps (:class:`ContinuousLaw`). Numbers in an interval, or above or below a bound, are seen without
bounds.

Discrete numbers have probabilities, one after the other (:class:`DiscreteLaw`),

    P(x | θ) = ∏_j P(x_j | x_1, …, x_{j-1}, θ).

Of a datum with numbers of both kinds, the discrete ones come first, and the others have a law given
θ and these (:class:`MixedLaw`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_mdm.contexts import Vectors
from pyro_mdm.diffusions.presets import VPSDE
from pyro_mdm.elbo import MDM_ELBO
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.networks import MLP
from pyro_mdm.paths.flow import Solver, flow_log_prob
from pyro_mdm.posteriors.training import VALIDATED, train
from pyro_mdm.scores.denoiser import Denoiser
from pyro_mdm.support.measured import Measured

__all__ = [
    "STEPS",
    "Bounds",
    "ConditionalGaussian",
    "ContinuousLaw",
    "DiscreteLaw",
    "FactorLaw",
    "Lattice",
    "MixedLaw",
    "law_of",
]

Bounds = tuple[Tensor, Tensor]
"""The ends of the support of each number, (m,) each, infinite where there is none."""

MAX_LOG_SNR = 9.0
"""λ where the flow of what a Gaussian leaves ends: noise of 0.011 of its standard deviation."""

STEPS = 8
"""Steps of the flow, of the classical Runge-Kutta method."""

AT_ONCE = 4096
"""Data whose densities are computed together, in cache."""

LEAST_GAIN = 0.05
"""Nats per datum by which a diffusion has to be better than the Gaussian, to be worth its time."""

DRAWS_OF_GAIN = 8
"""Draws of noise for each simulation that the gain is measured by."""

MOST_LEVELS = 32
"""Values of a discrete number up to which each has a probability of its own."""

COMPONENTS = 4
"""Logistic laws in the mixture of a discrete number that has more values."""


class Residual(nn.Module):
    """A residual network, whose outputs are zeros at first.

    Args:
        inputs, outputs: numbers that it takes and returns.
        hidden, depth: its width, and its number of blocks.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.inlet = nn.Linear(inputs, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
            )
            for _ in range(depth)
        )
        self.outlet = nn.Linear(hidden, outputs)
        for parameter in self.outlet.parameters():
            nn.init.zeros_(parameter)

    def trunk(self, theta: Tensor) -> Tensor:
        """What the outputs are linear in, (n, hidden), of inputs (n, k)."""
        h: Tensor = self.inlet(theta)
        for block in self.blocks:
            h = h + block(h)
        return h


class ConditionalGaussian(Residual):
    """The law N(x; m(θ), S(θ)) by a residual network of θ.

    The network returns m, log scales s, and the part L below the diagonal of a unit triangular
    matrix, so that r = e^{-s} (1 + L) (x - m) is N(0, I).

    Args:
        inputs, outputs: numbers of θ, and of x.
        hidden, depth: the network's width, and its number of blocks.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int = 64, depth: int = 2) -> None:
        super().__init__(inputs, 2 * outputs + outputs * (outputs - 1) // 2, hidden, depth)
        self.outputs = outputs

    def forward(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """m and s, (n, m) each, and 1 + L, (n, m, m), of θ (n, k)."""
        h, m = self.trunk(theta), self.outputs
        mean, log_scale, below = self.outlet(h).split([m, m, m * (m - 1) // 2], 1)
        factor = torch.eye(m, dtype=h.dtype, device=h.device).repeat(len(h), 1, 1)
        row, column = torch.tril_indices(m, m, -1)
        factor[:, row, column] = below
        return mean, log_scale, factor

    def residual(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """r, (n, k, m), of k data x (n or 1, k, m) of each θ, and log|det ∂r/∂x|, (n,)."""
        mean, log_scale, factor = self(theta)
        apart = (x - mean.unsqueeze(1)) @ factor.mT
        return apart * (-log_scale).exp().unsqueeze(1), -log_scale.sum(1)

    def data(self, r: Tensor, theta: Tensor) -> Tensor:
        """x at r, (n, k, m): the inverse of :meth:`residual`."""
        mean, log_scale, factor = self(theta)
        apart = (r * log_scale.exp().unsqueeze(1)).mT
        solved = torch.linalg.solve_triangular(factor, apart, upper=False, unitriangular=True)
        return solved.mT + mean.unsqueeze(1)


def _normal(r: Tensor) -> Tensor:
    """log N(r; 0, I), (*batch), of r (*batch, m)."""
    return -0.5 * (r.square() + math.log(2 * math.pi)).sum(-1)


class FactorLaw(nn.Module, ABC):
    """The learned law of the data of a factor, one datum of a plate at a time, given θ."""

    gain: Measured | None = None
    """Nats per datum by which a diffusion is better than the Gaussian; None: none was learned."""

    @property
    def is_corrected(self) -> bool:
        """Whether a diffusion is part of the law."""
        gain = self.gain
        return gain is not None and gain.mean > LEAST_GAIN and gain.mean > 2 * gain.standard_error

    @abstractmethod
    def fit(
        self,
        x: Tensor,
        theta: Tensor,
        bounds: tuple[Tensor, Tensor],
        diffusion: bool,
        **options: Any,
    ) -> None:
        """Learn the law of x (n, k, m) given θ (n, inputs).

        Args:
            bounds: of the support of each number.
            diffusion: whether a diffusion is learned too.
            options: of the training.
        """

    @abstractmethod
    def each(self, x: Tensor, theta: Tensor, steps: int = STEPS) -> Tensor:
        """log p of each of k data x (n or 1, k, m) given each θ, (n, k) float64; 0 if it is NaN."""

    def log_prob(self, x: Tensor, theta: Tensor, steps: int = STEPS) -> Tensor:
        """log p(x | θ), (n,) float64, of k data x (n or 1, k, m) of each θ (n, inputs).

        Args:
            steps: of the flow, if a diffusion is part of the law; 0 for the Gaussian alone.
        """
        return self.each(x, theta, steps).sum(1)

    @abstractmethod
    def sample(self, theta: Tensor, k: int) -> Tensor:
        """k data for each θ (n, inputs), (n, k, m)."""


# -- real numbers ----------------------------------------------------------------------------------


class ContinuousLaw(FactorLaw):
    """The law of real numbers: a Gaussian, and a diffusion of what it leaves.

    Numbers that have a lower bound are seen by the log of what they are above it, and those in an
    interval by their logit. Outside of its bounds a datum has the density 0.

    Args:
        inputs, outputs: numbers of θ, and of a datum.
        hidden, depth: width and number of blocks of the networks.
    """

    center: Tensor
    unit: Tensor
    lower: Tensor  # (m,), -∞ where there is no bound
    upper: Tensor  # (m,), ∞ likewise

    def __init__(self, inputs: int, outputs: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(outputs))
        self.register_buffer("unit", torch.ones(outputs))
        self.register_buffer("lower", torch.full((outputs,), -math.inf))
        self.register_buffer("upper", torch.full((outputs,), math.inf))
        self.gaussian = ConditionalGaussian(inputs, outputs, hidden, depth)
        context = Vectors(torch.zeros(inputs), torch.ones(inputs))
        network = MLP(outputs + context.size, hidden, depth, outputs)
        score = Denoiser(network, torch.zeros(outputs), torch.ones(outputs))
        self.model = DiffusionModel(VPSDE(max_log_snr=MAX_LOG_SNR), score, context=context)

    def fit(
        self,
        x: Tensor,
        theta: Tensor,
        bounds: tuple[Tensor, Tensor],
        diffusion: bool,
        **options: Any,
    ) -> None:
        (lower, upper), flat, n = bounds, x.flatten(0, 1), len(x)
        self.lower.copy_(torch.where((flat > lower).all(0), lower, -math.inf))
        self.upper.copy_(torch.where((flat < upper).all(0), upper, math.inf))
        flat = self._unbounded(flat)[0]
        spread = flat.std(0)
        self.center.copy_(flat.mean(0))
        self.unit.copy_(torch.where(spread > 0, spread, 1.0))
        x = self._scaled(x)[0]

        def of_gaussian(rows: Tensor) -> Tensor:
            r, log_det = self.gaussian.residual(x[rows], theta[rows])
            return -(_normal(r).mean(1) + log_det).mean()

        train(self.gaussian, of_gaussian, n, largest_gradient=20.0, **options)
        if not diffusion:
            return
        with torch.no_grad():
            r = self.gaussian.residual(x, theta)[0]
        loss = MDM_ELBO()(self.model, DiffusionGuide(self.model.diffusion))

        def chosen(rows: Tensor) -> tuple[Tensor, Tensor]:
            """A datum of each simulation, and its parameters."""
            return r[rows, torch.randint(r.shape[1], (len(rows),))], theta[rows]

        def of_diffusion(rows: Tensor) -> Tensor:
            return loss(*chosen(rows)) / len(rows)

        d = float(r.shape[2])
        train(self.model, of_diffusion, n, largest_gradient=d, **options)
        if not (held_out := min(VALIDATED, n // 10)):
            return
        rows = torch.arange(n - held_out, n)
        self.gain = self._measured(*chosen(rows.repeat(DRAWS_OF_GAIN)))

    def _unbounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers without bounds, like x (*batch, m), and log|det| of the map, (*batch): NaN where
        x is outside of its bounds."""
        low, high = self.lower.isfinite(), self.upper.isfinite()
        above = torch.where(low, x - torch.where(low, self.lower, 0.0), 1.0).log()
        below = torch.where(high, torch.where(high, self.upper, 0.0) - x, 1.0).log()
        above = torch.where(above.isfinite(), above, math.nan)
        below = torch.where(below.isfinite(), below, math.nan)
        width = torch.where(low & high, self.upper - self.lower, 1.0).log()
        u = torch.where(low | high, above - below, x)
        return u, (width - (above + below)).sum(-1)

    def _bounded(self, u: Tensor) -> Tensor:
        """x at numbers without bounds, inside of its bounds: the inverse of :meth:`_unbounded`."""
        low, high = self.lower.isfinite(), self.upper.isfinite()
        between = self.lower + (self.upper - self.lower) * u.sigmoid()
        one_sided = torch.where(low, self.lower + u.exp(), self.upper - (-u).exp())
        x = torch.where(low & high, between, torch.where(low | high, one_sided, u))
        inside = self.upper.new_tensor(math.inf)
        first = torch.where(low, self.lower.nextafter(inside), self.lower)
        last = torch.where(high, self.upper.nextafter(-inside), self.upper)
        return torch.minimum(torch.maximum(x, first), last)

    def _scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x in the coordinates of the laws, and log|det| of the map, as :meth:`_unbounded`."""
        x, log_det = self._unbounded(x)
        return (x - self.center) / self.unit, log_det - self.unit.log().sum()

    @torch.no_grad()
    def _measured(self, r: Tensor, theta: Tensor) -> Measured:
        """The gain on data r (n, m), whose noise is the same for both laws."""
        diffusion = self.model.diffusion
        score: Any = self.model.given_context(theta).score_function
        low, high = diffusion.terminal_log_snr, diffusion.start_log_snr
        level = low + (high - low) * (torch.rand(len(r)) + torch.arange(len(r))) / len(r)
        level = level[torch.randperm(len(r))]
        noise = torch.randn(len(r), 1, r.shape[1])
        apart = score.baseline_integrand(r, level, noise) - score.integrand(
            diffusion, r, level, noise
        )
        gained = (high - low) * apart.double()
        return Measured.of(gained.reshape(DRAWS_OF_GAIN, -1).mean(0))

    def each(self, x: Tensor, theta: Tensor, steps: int = STEPS) -> Tensor:
        present = ~x.isnan().any(2)
        x, of_scale = self._scaled(x)
        given = ~of_scale.isnan() & present
        r, log_det = self.gaussian.residual(torch.where(given.unsqueeze(2), x, 0.0), theta)
        each = _normal(r).double() + log_det.double().unsqueeze(1)
        each = each + torch.where(given, of_scale, 0.0).double()
        if steps and self.is_corrected and bool(given.any()):
            given = given.expand(each.shape)
            of_data = theta.unsqueeze(1).expand(*r.shape[:2], -1)[given]
            gained = self._flow(r[given], of_data, steps) - _normal(r[given]).double()
            each = each.masked_scatter(given, each[given] + gained)
        outside = torch.where(present, -math.inf, 0.0).double()
        return torch.where(given, each, outside)

    def _flow(self, r: Tensor, theta: Tensor, steps: int) -> Tensor:
        """log p(r | θ) under the diffusion, (n,) float64: that of r with the noise at ε."""
        diffusion, values = self.model.diffusion, list[Tensor]()
        scale = diffusion.start.mean  # of r in the state at ε, (1,)
        for part, context in zip(r.split(AT_ONCE), theta.split(AT_ONCE), strict=True):
            score = self.model.given_context(context).score_function
            y = part.double().unsqueeze(1) * scale.double().unsqueeze(1)
            density = flow_log_prob(diffusion, score, y, Solver("rk4", steps=steps)).log_prob
            values.append(density + r.shape[1] * scale.double().log().sum())
        return torch.cat(values)

    def sample(self, theta: Tensor, k: int) -> Tensor:
        n, m = len(theta), len(self.center)
        if self.is_corrected:
            model = self.model.given_context(theta.repeat_interleave(k, 0))
            r = model(batch_size=n * k).reshape(n, k, m)
        else:
            r = torch.randn(n, k, m)
        return self._bounded(self.gaussian.data(r, theta) * self.unit + self.center)


# -- discrete numbers ------------------------------------------------------------------------------


class Lattice(NamedTuple):
    """The evenly spaced values that a discrete number has."""

    origin: float  # one of them
    gap: float
    lower: float  # the least of them, -∞ if there is none
    upper: float  # the greatest, ∞ likewise

    @property
    def size(self) -> float:
        """The number of values."""
        return (self.upper - self.lower) / self.gap + 1

    def has(self, x: Tensor) -> Tensor:
        """Whether numbers are among the values; bool, like x."""
        steps = (x.double() - self.origin) / self.gap
        return (steps == steps.round()) & (x >= self.lower) & (x <= self.upper)

    def coordinate(self, x: Tensor) -> Tensor:
        """A growing function of numbers x, from half a gap below the values to half a gap above,
        float64.

        It is a square root above a lower bound, and an arcsine of one between two: in these the
        spread of a Poisson and of a binomial number hardly depend on the mean.
        """
        x = x.double()
        low, high = math.isfinite(self.lower), math.isfinite(self.upper)
        below = ((x - self.lower) / self.gap + 0.5).clamp_min(0).sqrt() if low else x
        above = ((self.upper - x) / self.gap + 0.5).clamp_min(0).sqrt() if high else x
        if low and high:
            return torch.atan2(below, above)
        return below if low else -above if high else x

    def value(self, z: Tensor) -> Tensor:
        """The values whose cells have coordinates z, float64; an end, where z is beyond it."""
        z = z.double()
        low, high = math.isfinite(self.lower), math.isfinite(self.upper)
        if low and high:
            part = z.clamp(0, math.pi / 2).sin().square()
            x = self.lower + self.gap * (self.size * part - 0.5)
        elif low:
            x = self.lower + self.gap * (z.clamp_min(0).square() - 0.5)
        elif high:
            x = self.upper - self.gap * (z.clamp_max(0).square() - 0.5)
        else:
            x = z
        x = self.origin + self.gap * ((x - self.origin) / self.gap).round()
        return x.clamp(self.lower, self.upper)


class Cells(NamedTuple):
    """Where discrete data (n, k, m) are: what networks are told of them, and at which values."""

    told: Tensor  # (n, k, features)
    level: Tensor  # (n, k, f), places of the numbers with few values among these, int64
    middle: Tensor  # (n, k, w), of the cells of others, in units of their spread
    width: Tensor  # (n, k, w)
    is_first: Tensor  # (n, k, w), whether it is the least value, bool
    is_last: Tensor  # (n, k, w)
    is_value: Tensor  # (n, k), whether all numbers are among their values, bool
    is_present: Tensor  # (n, k), whether none is NaN, bool


class Masked(nn.Linear):
    """A linear map of which some entries are 0.

    Args:
        mask: which are not, (outputs, inputs) bool.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.mask, self.bias)


class DiscreteLaw(FactorLaw):
    """The law of discrete numbers, each given θ and those before it in the datum.

    A number of few values has a probability for each. Another one has those of a mixture of
    logistic laws between the edges of cells around its values, in :meth:`Lattice.coordinate`; the
    cells of its least and greatest value are open (Salimans et al., "PixelCNN++", ICLR 2017). So
    probabilities sum to 1 for values of any range. What the network returns of θ is computed once
    for all data of a plate, and masked layers add to it what earlier numbers say (Germain et al.,
    "MADE", ICML 2015).

    Args:
        inputs: numbers of θ.
        lattices: the values of each number of a datum.
        hidden, depth: the network's width, and its number of blocks.
    """

    center: Tensor
    unit: Tensor
    start: Tensor
    never: Tensor

    def __init__(self, inputs: int, lattices: Sequence[Lattice], hidden: int, depth: int) -> None:
        super().__init__()
        m = len(lattices)
        few = [j for j, own in enumerate(lattices) if own.size <= MOST_LEVELS]
        wide = [j for j in range(m) if j not in few]
        levels = max((int(lattices[j].size) for j in few), default=0)
        of_number = 3 * COMPONENTS
        outputs = len(few) * levels + len(wide) * of_number
        self.network = Residual(inputs, outputs, hidden, depth)
        self.lattices, self.few, self.wide, self.levels = tuple(lattices), few, wide, levels
        self.features = len(few) * levels + len(wide)
        place, far = torch.arange(levels), torch.tensor(-math.inf)
        sizes = torch.tensor([[lattices[j].size] for j in few]).reshape(-1, 1)
        self.register_buffer("never", torch.where(place < sizes, 0.0, far), persistent=False)
        # components start apart, as equal ones would stay equal
        start = torch.stack(
            [
                torch.zeros(COMPONENTS),
                torch.linspace(-1, 1, COMPONENTS),
                torch.full((COMPONENTS,), -1.0),
            ]
        )
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("center", torch.zeros(len(wide), dtype=torch.float64))
        self.register_buffer("unit", torch.ones(len(wide), dtype=torch.float64))
        self.masked = nn.ModuleList()
        if m > 1:
            told = torch.tensor([j for j in few for _ in range(levels)] + wide)
            asked = [j for j in few for _ in range(levels)]
            asked += [j for j in wide for _ in range(of_number)]
            degree = torch.arange(hidden) * (m - 1) // hidden  # the last number that a unit sees
            self.masked.append(Masked(told <= degree.unsqueeze(1)))
            self.masked.append(Masked(degree <= degree.unsqueeze(1)))
            self.masked.append(Masked(degree < torch.tensor(asked).unsqueeze(1)))
            self.of_theta = nn.Linear(hidden, 2 * hidden)
            for parameter in self.masked[-1].parameters():
                nn.init.zeros_(parameter)

    def fit(
        self,
        x: Tensor,
        theta: Tensor,
        bounds: tuple[Tensor, Tensor],
        diffusion: bool,
        **options: Any,
    ) -> None:
        flat = x.flatten(0, 1)
        for place, j in enumerate(self.wide):
            z = self.lattices[j].coordinate(flat[:, j])
            spread = z.std()
            self.center[place] = z.mean()
            self.unit[place] = spread if float(spread) > 0 else 1.0
        cells = self.cells(x)

        def loss(rows: Tensor) -> Tensor:
            return -self._log_prob(Cells(*(part[rows] for part in cells)), theta[rows]).mean()

        train(self, loss, len(x), largest_gradient=20.0, **options)

    # -- data --------------------------------------------------------------------------------------

    @torch.no_grad()
    def cells(self, x: Tensor) -> Cells:
        """Where data x (n, k, m) are."""
        known = torch.stack([own.has(x[..., j]) for j, own in enumerate(self.lattices)], -1)
        origin = x.new_tensor([own.origin for own in self.lattices])
        inside = torch.where(known, x, origin)
        lattices = [self.lattices[j] for j in self.few]
        levels = [
            ((inside[..., j] - own.lower) / own.gap).round().long()
            for j, own in zip(self.few, lattices, strict=True)
        ]
        nothing = inside[..., :0]
        level = torch.stack(levels, -1) if levels else nothing.long()
        edges, ends = [], []
        for j in self.wide:
            own, value = self.lattices[j], inside[..., j].double()
            half = own.gap / 2
            edges.append(torch.stack([own.coordinate(value - half), own.coordinate(value + half)]))
            ends.append(torch.stack([value == own.lower, value == own.upper]))
        none = nothing.double().expand(2, *nothing.shape)
        low, high = (torch.stack(edges, -1) if edges else none).sub(self.center).div(self.unit)
        is_first, is_last = torch.stack(ends, -1) if ends else none.bool()
        middle, width = ((low + high) / 2).to(x), (high - low).to(x)
        hot = functional.one_hot(level, max(1, self.levels)).to(x).flatten(2)
        told = torch.cat([hot, middle], 2)
        present = ~x.isnan().any(2)
        return Cells(told, level, middle, width, is_first, is_last, known.all(2), present)

    # -- probabilities -----------------------------------------------------------------------------

    def _heads(self, told: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities of few values, (n, k, f, levels), and parameters of mixtures,
        (n, k, w, 3, components)."""
        h = self.network.trunk(theta)
        outputs = self.network.outlet(h).unsqueeze(1)
        if len(self.masked):
            first, second = self.of_theta(h).unsqueeze(1).chunk(2, 2)
            z = functional.silu(self.masked[0](told) + first)
            z = z + functional.silu(self.masked[1](z) + second)
            outputs = outputs + self.masked[2](z)
        logits, raw = outputs.split(
            [len(self.few) * self.levels, outputs.shape[2] - len(self.few) * self.levels], 2
        )
        logits = logits.unflatten(2, (len(self.few), self.levels)) + self.never
        raw = raw.unflatten(2, (len(self.wide), 3, COMPONENTS)) + self.start
        return logits.log_softmax(-1), raw

    def _log_prob(self, cells: Cells, theta: Tensor) -> Tensor:
        """log P of each datum given θ, (n, k), -∞ where it is not among the values."""
        logits, raw = self._heads(cells.told, theta)
        shape = torch.broadcast_shapes(logits.shape[:3], cells.level.shape)
        level = cells.level.unsqueeze(-1).expand(*shape, 1)
        of_few = logits.expand(*shape, -1).gather(3, level).squeeze(3).sum(2)
        weight, location, log_scale = raw.unbind(3)
        sharpness = (-log_scale).exp()
        half = cells.width.unsqueeze(-1) / 2
        apart = cells.middle.unsqueeze(-1) - location
        # σ(b) - σ(a) = σ(b) σ(-a) (1 - e^{a-b})
        up_to = functional.logsigmoid((apart + half) * sharpness)
        from_ = functional.logsigmoid((half - apart) * sharpness)
        within = (-torch.expm1(-2 * half * sharpness)).log()
        first, last = cells.is_first.unsqueeze(-1), cells.is_last.unsqueeze(-1)
        inner = torch.where(first | last, 0.0, within)
        each = torch.where(last, 0.0, up_to) + torch.where(first, 0.0, from_) + inner
        of_wide = (weight.log_softmax(-1) + each).logsumexp(-1).sum(2)
        total = (of_few + of_wide).double()
        return torch.where(cells.is_value, total, -math.inf)

    def each(self, x: Tensor, theta: Tensor, steps: int = STEPS) -> Tensor:
        cells, values = self.cells(x), list[Tensor]()
        size = max(1, AT_ONCE // max(1, x.shape[1]))
        for first in range(0, max(len(x), len(theta)), size):
            rows = slice(first, first + size)
            own = Cells(*(part[rows] if len(x) > 1 else part for part in cells))
            values.append(self._log_prob(own, theta[rows] if len(theta) > 1 else theta))
        return torch.where(cells.is_present, torch.cat(values), 0.0)

    @torch.no_grad()
    def sample(self, theta: Tensor, k: int) -> Tensor:
        origin = torch.tensor([own.origin for own in self.lattices])
        x = origin.to(theta).expand(len(theta), k, -1).clone()
        for j, own in enumerate(self.lattices):
            logits, raw = self._heads(self.cells(x).told, theta)
            if j in self.few:
                chances = logits[:, :, self.few.index(j)].exp().expand(-1, k, -1)
                level = torch.multinomial(chances.flatten(0, 1), 1).reshape(-1, k)
                x[:, :, j] = own.lower + own.gap * level.to(x)
                continue
            place = self.wide.index(j)
            weight, location, log_scale = raw[:, :, place].expand(-1, k, -1, -1).unbind(2)
            chosen = torch.multinomial(weight.softmax(-1).flatten(0, 1), 1).reshape(-1, k, 1)
            u = torch.rand(len(theta), k, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
            z = location.gather(2, chosen).squeeze(2).double()
            z = z + log_scale.gather(2, chosen).squeeze(2).double().exp() * u.logit()
            x[:, :, j] = own.value(z * self.unit[place] + self.center[place]).to(x)
        return x


class MixedLaw(FactorLaw):
    """The law of discrete numbers, and of real ones given these.

    Args:
        inputs: numbers of θ.
        lattices: the values of each number of a datum; None for a real number.
        hidden, depth: width and number of blocks of the networks.
    """

    def __init__(
        self, inputs: int, lattices: Sequence[Lattice | None], hidden: int, depth: int
    ) -> None:
        super().__init__()
        self.counted = [j for j, own in enumerate(lattices) if own is not None]
        self.real = [j for j, own in enumerate(lattices) if own is None]
        values = [own for own in lattices if own is not None]
        self.discrete = DiscreteLaw(inputs, values, hidden, depth)
        inputs = inputs + self.discrete.features
        self.continuous = ContinuousLaw(inputs, len(self.real), hidden, depth)

    def fit(
        self,
        x: Tensor,
        theta: Tensor,
        bounds: tuple[Tensor, Tensor],
        diffusion: bool,
        **options: Any,
    ) -> None:
        lower, upper = (bound[self.real] for bound in bounds)
        self.discrete.fit(x[..., self.counted], theta, bounds, diffusion, **options)
        given, real = self._given(x, theta)
        self.continuous.fit(real, given, (lower, upper), diffusion, **options)
        self.gain = self.continuous.gain

    def _given(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """What the real numbers of each datum are given, (n k, inputs), and these, (n k, 1, m)."""
        told = self.discrete.cells(x[..., self.counted]).told
        n, k = max(len(x), len(theta)), x.shape[1]
        given = torch.cat([theta.unsqueeze(1).expand(n, k, -1), told.expand(n, -1, -1)], 2)
        real = x[..., self.real].expand(n, -1, -1)
        return given.flatten(0, 1), real.reshape(n * k, 1, -1)

    def each(self, x: Tensor, theta: Tensor, steps: int = STEPS) -> Tensor:
        discrete = self.discrete.each(x[..., self.counted], theta)
        given, real = self._given(x, theta)
        return discrete + self.continuous.each(real, given, steps).reshape(discrete.shape)

    def sample(self, theta: Tensor, k: int) -> Tensor:
        x = torch.zeros(len(theta), k, len(self.counted) + len(self.real))
        x[..., self.counted] = self.discrete.sample(theta, k)
        x[..., self.real] = self.continuous.sample(self._given(x, theta)[0], 1).reshape(
            len(theta), k, -1
        )
        return x


def law_of(inputs: int, lattices: Sequence[Lattice | None], hidden: int, depth: int) -> FactorLaw:
    """The law of data whose numbers have values on lattices, or are real (None).

    Args:
        inputs: numbers of θ.
        lattices: of each number of a datum.
        hidden, depth: width and number of blocks of the networks.
    """
    values = [own for own in lattices if own is not None]
    if not values:
        return ContinuousLaw(inputs, len(lattices), hidden, depth)
    if len(values) < len(lattices):
        return MixedLaw(inputs, lattices, hidden, depth)
    return DiscreteLaw(inputs, values, hidden, depth)
