"""The bound of models over linear diffusions, by strata of noise level and a baseline."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Marginal, coordinates, for_data
from pyro_mdm.diffusions.closed import Kernels, noised_state
from pyro_mdm.evaluation.estimates import (
    Comparison,
    Difference,
    Estimate,
    Noise,
    population_error,
    resolved,
)
from pyro_mdm.evaluation.strata import (
    Draws,
    Integral,
    StrataPlan,
    StratifiedIntegrals,
    Target,
    cells,
    of_target,
)
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.base import prior_kl
from pyro_mdm.scores.base import Score, log_snr_at, rotated
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.checks import floating_dtypes
from pyro_mdm.support.measured import Z95, Measured
from pyro_mdm.support.progress import Progress, progress_bar

__all__ = ["ClosedFormComparison", "Pair", "SAFETY", "EstimateSettings", "Share", "precisions"]

FIRST_ROUND, SMALLEST_ROUND = 256, 64
PILOT_SHARE = 3  # the most draws of an estimate for each draw of its pilot
DIMS_AT_ONCE = 256  # dimensions integrated at a time, so that the baseline's tables stay in cache
MANY_CLOCKS = 64  # the most clocks by dimension that a baseline follows; else the common one
MANY_PASSES = 64  # passes over all data after which a round is an eighth of all draws before it

SAFETY = 1.3
"""The factor on the number of draws that the pilot estimates to be needed."""

Pair = tuple[DiffusionModel, DiffusionGuide]
"""A model and its guide."""

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """A process's share of the work, and sums over all processes."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @classmethod
    def from_group(cls, device: torch.device) -> Share:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise RuntimeError(
                "distributed=True, but this process belongs to no group; start the program with "
                "torchrun, or call torch.distributed.init_process_group"
            )
        return cls(device, torch.distributed.get_rank(), torch.distributed.get_world_size())

    def has(self, number: int) -> bool:
        """Whether this process does the task of this number."""
        return number % self.size == self.rank

    def first(self, value: T) -> T:
        """The first process's value, for decisions common to all."""
        values = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes of a CPU tensor; exact where all others have zeros."""
        if self.size == 1:
            return values
        moved = values.to(self.device)  # a group may reduce on its own kind of device alone
        torch.distributed.all_reduce(moved)
        return moved.cpu()


def precisions(x: Tensor, models: Iterable[DiffusionModel]) -> set[torch.dtype]:
    """The dtypes of the data and of the weights of the scores."""
    return {x.dtype}.union(*(floating_dtypes(model.score_function) for model in models))


@dataclass(frozen=True)
class EstimateSettings:
    """The arguments of :func:`~pyro_mdm.evaluation.compare`, and this process's share."""

    draws: int
    half_width: float | None
    share: Share
    batch_size: int = 256
    seed: int = 0
    control_variate: bool = True
    baseline: DenoiserScore | None = None
    bins: int = 20
    adapt: bool = True
    progress: bool = False
    distributed: bool = False


class ClosedFormComparison:
    """The state of a comparison: exact terms, and the draws so far.

    Args:
        programs: pairs (model, guide) by name, over linear diffusions.
        x: data in model space, (n, *event_shape).
        asked: the other arguments of :func:`~pyro_mdm.evaluation.compare`.
    """

    def __init__(self, programs: Mapping[str, Pair], x: Tensor, asked: EstimateSettings) -> None:
        self.x, self.asked, self.share = x, asked, asked.share
        self.names = list(programs)
        self.models = [model for model, _ in programs.values()]
        diffusions = [model.diffusion for model in self.models]
        self.num_dims = min(model.num_dims for model in self.models)
        self.unit = self.num_dims * math.log(2)
        self.generator = torch.Generator().manual_seed(asked.seed)
        self.contexts = torch.Generator().manual_seed(asked.seed)
        self.baseline = None
        if asked.control_variate:
            scores = (model.score_function for model in self.models)
            denoiser = next((s for s in scores if isinstance(s, DenoiserScore)), None)
            self.baseline = denoiser if asked.baseline is None else asked.baseline
        self.clocks = _shared_clocks(diffusions)
        self.baseline_x = x if self.clocks is None else coordinates(self.clocks, x)
        self.calls = [0] * len(self.models)

        lows = torch.stack([d.terminal_log_snr.detach().cpu() for d in diffusions])
        highs = torch.tensor([d.max_log_snr for d in diffusions], dtype=torch.float64)
        self.edges = _edges(lows, highs, asked.bins)
        self.ends = list(zip(lows.tolist(), highs.tolist(), strict=True))  # of λ, by model
        middle = (self.edges[1:] + self.edges[:-1]) / 2
        self.covers = (middle > lows[:, None]) & (middle < highs[:, None])
        self.counts = torch.ones(len(self.models), len(x), dtype=torch.bool)
        for m, model in enumerate(self.models):  # data with a dimension that its bound is about
            if (counted := model.score_function.counts(x)) is not None:
                self.counts[m] = counted.expand(x.shape).flatten(1).any(1)
        self.num_counted = max(1, int(self.counts.any(0).sum()))
        terms = density = None
        if self.baseline is not None:
            terms = self._baseline_terms(self.baseline)
            density = self._first_density(self.baseline, terms) if asked.adapt else None
        self.integrals = self._integrals(baseline=terms, density=density, adapt=asked.adapt)
        self.latent = any(Cap.NO_CONTEXT not in d.caps for d in diffusions)
        batches = x.split(asked.batch_size)
        context_kl = [torch.cat([for_data(d, batch).kl for batch in batches]) for d in diffusions]
        self.context_kl = torch.stack([kl.double().cpu() for kl in context_kl])  # (M, n)
        self.prior_kl = torch.stack([self._prior_kl(model) for model in self.models])
        self.reconstruction = torch.empty(0)  # (M, draws, n)

    def _prior_kl(self, model: DiffusionModel) -> Tensor:
        """KL(q(y_T | x) ‖ π) of each datum, (n,) float64 on the CPU."""
        diffusion, event_dim, values = model.diffusion, self.x.dim() - 1, []
        by_network = Cap.READOUT not in diffusion.caps
        for batch in self.x.split(self.asked.batch_size if by_network else len(self.x)):
            x, counts = coordinates(diffusion, batch.double()), model.score_function.counts(batch)
            values.append(prior_kl(diffusion, x, event_dim, counts))
        return torch.cat(values).cpu()

    def _integrals(self, **options: Any) -> StratifiedIntegrals:
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return StratifiedIntegrals(self.edges, self.covers, self.counts, seed=seed, **options)

    def until(self) -> Comparison:
        """The comparison by all ``draws``, or by as many as a pilot finds for the half-width."""
        draws, half_width = self.asked.draws, self.asked.half_width
        most = draws * self.num_counted
        if draws == 1 and half_width is None:
            most += min(self.num_counted, FIRST_ROUND)  # one draw of a datum has no spread
        pairs = list(itertools.combinations(range(len(self.models)), 2))
        targets: list[Target] = [*((m, None) for m in range(len(self.models))), *pairs]
        wanted = None if half_width is None else half_width * self.unit / Z95
        self._reconstruct_enough(targets, draws, wanted)
        total = most * len(self.models)
        with progress_bar(total, "evaluating", "calls", shown=self.asked.progress) as bar:
            if wanted is not None and (plan := self._pilot(targets, most, wanted, bar)):
                done = self.integrals.num_draws
                need = max(SMALLEST_ROUND, self._needed(plan, wanted))
                self.integrals = self._integrals(baseline=self.integrals.baseline, plan=plan)
                self._round(min(need, most - done), bar)
            else:
                while (left := most - self.integrals.num_draws) > 0:
                    self._round(min(self._round_size(), left), bar)
                    self.integrals.allocate(targets)
        reached = wanted is not None and max(map(self._error, targets)) <= wanted
        estimates = {name: self._estimate(m) for m, name in enumerate(self.names)}
        differences = resolved(self._difference(pair, estimates) for pair in pairs)
        return Comparison(estimates, differences, sum(self.calls), half_width, reached)

    # -- draws -------------------------------------------------------------------------------------

    def _round_size(self) -> int:
        done, n = self.integrals.num_draws, self.num_counted
        # whole passes, the first in two parts, so that the density can adapt early
        if done % n:
            return n - done % n
        if done == 0:
            return (n + 1) // 2
        # the cost of a round besides its calls is in proportion to all draws so far
        return n if done < MANY_PASSES * n else done // (8 * n) * n

    def _pilot(
        self, targets: list[Target], most: int, wanted: float, bar: Progress
    ) -> StrataPlan | None:
        """The plan of a pilot: rounds until the pilot is PILOT_SHARE of the draws needed.

        None where ``most`` leaves no room for a pilot: then all of it is drawn.
        """
        room, size = most // (PILOT_SHARE + 1), min(len(self.x), FIRST_ROUND)
        if room < SMALLEST_ROUND:
            return None
        while True:
            self._round(min(size, room - self.integrals.num_draws), bar)
            plan, done = self.share.first(self.integrals.plan(targets)), self.integrals.num_draws
            need = self._needed(plan, wanted)
            width = Z95 * math.sqrt(need / SAFETY / done) * wanted / self.unit
            bar.set_postfix_str(f"pilot: ± {width:.4f} of {Z95 * wanted / self.unit:g} bits/dim")
            if need <= PILOT_SHARE * done or done >= room:
                return plan
            size = max(SMALLEST_ROUND, min(done, math.ceil(need / PILOT_SHARE) - done))
            worst = max(map(plan.error, targets))
            self.integrals.allocate([t for t in targets if plan.error(t) > worst / 2])

    def _needed(self, plan: StrataPlan, wanted: float) -> int:
        """The number of draws at which every error is the one wanted."""
        need = 0.0
        for target in plan.spread:
            left = wanted**2 - self._reconstruction_error(target) ** 2
            need = max(need, plan.error(target) ** 2 / left if left > 0 else math.inf)
        return math.ceil(SAFETY * need) if math.isfinite(need) else 2**62

    def _round(self, size: int, bar: Progress) -> None:
        draws = self.share.first(self.integrals.draw(size))
        rates = torch.zeros(len(self.models) + 1, size, dtype=torch.float64)
        covered = self.covers[:, cells(draws.level, self.edges)]
        for i, batch in enumerate(_slices(size, self.asked.batch_size)):
            inside = [row.nonzero().squeeze(1) for row in covered[:, batch]]
            # drawn by all, so that it does not matter who uses it
            noise, seed = self._noise(batch.stop - batch.start), self._context_seed()
            for m, rows in enumerate(inside):
                self.calls[m] += len(rows)
            bar.update(sum(map(len, inside)))
            if self.share.has(i):  # the device is asked once
                rates[:, batch] = self._rates(
                    Draws(*(v[batch] for v in draws)), noise, inside, seed
                )
        *values, baseline = self.share.sum(rates)
        if self.baseline is None:
            baseline = None
        self.integrals.add(draws, torch.stack(values), baseline)

    def _rates(self, draws: Draws, noise: Tensor, inside: list[Tensor], seed: int) -> Tensor:
        """The integrands of models at their rows, and of the baseline, (M + 1, m) on the CPU."""
        datum, level, noise = (v.to(self.x.device) for v in (*draws, noise))
        x, M = self.x[datum], len(self.models)
        rates = torch.zeros(M + 1, len(x), dtype=torch.float64, device=x.device)
        for m, model in enumerate(self.models):
            if len(inside[m]):
                rows = inside[m].to(x.device)
                diffusion, score = self._of_data(model, datum[rows], seed)
                at = coordinates(diffusion, x[rows]), level[rows].clamp(*self.ends[m])
                rates[m, rows] = score.integrand(diffusion, *at, noise[rows]).double()
        if self.baseline is not None:
            rates[M] = self.baseline.for_rows(datum).baseline_integrand(
                self.baseline_x[datum], level, noise, self.clocks
            )
        return rates.cpu()  # the device is asked once

    def _reconstruct(self, data: Tensor) -> Tensor:
        """One draw of log p(x | y_ε) for the data at indices (k,), (M, k)."""
        decoded = torch.zeros(len(self.models), len(data), dtype=torch.float64)
        for i, batch in self._batches("reconstruction", len(data), self.asked.batch_size, "data"):
            datum = data[batch].to(self.x.device)
            noise, seed = self._noise(len(datum)), self._context_seed()
            for m, model in enumerate(self.models):
                self.calls[m] += getattr(model.likelihood, "network_calls", 0) * len(datum)
            if not self.share.has(i):
                continue
            x, noise, by_model = self.x[datum], noise.to(self.x.device), []
            for model in self.models:
                diffusion, score = self._of_data(model, datum, seed)
                y = _state(diffusion.start, coordinates(diffusion, x), noise)
                moved = diffusion.paths.displacement(x, diffusion.start_time)
                decoder = model.likelihood(diffusion, score, y if moved is None else y + moved)
                by_model.append(decoder.log_prob(x).double())
            decoded[:, batch] = torch.stack(by_model).cpu()
        return self.share.sum(decoded)

    def _reconstruct_enough(self, targets: list[Target], draws: int, wanted: float | None) -> None:
        """Draw the reconstruction as often as the diffusion term, or enough for the wanted error.

        Its own error is then at most a third of the wanted one. The number of draws comes from two
        draws of some data, which are no part of the estimate.
        """
        number = max(2, draws)
        if wanted is not None:
            few = torch.randperm(len(self.x), generator=self.generator)[:FIRST_ROUND]
            pilot = torch.stack([self._reconstruct(few) for _ in range(2)], 1)
            variance = max(float(of_target(pilot, t).var(0).mean()) for t in targets)
            costs = any(getattr(model.likelihood, "network_calls", 0) for model in self.models)
            need = SAFETY * 9 * variance / (len(self.x) * wanted**2)  # 9: a third of the error
            number = max(2, min(math.ceil(self.share.first(need)), draws if costs else 64))
        everything = torch.arange(len(self.x))
        self.reconstruction = torch.stack([self._reconstruct(everything) for _ in range(number)], 1)

    def _batches(
        self, what: str, number: int, size: int, units: str
    ) -> Iterator[tuple[int, slice]]:
        """Slices of ``number`` things by ``size``, numbered; with a bar if it takes long."""
        with progress_bar(number, what, units, delay=1, shown=self.asked.progress) as bar:
            for i, batch in enumerate(_slices(number, size)):
                yield i, batch
                bar.update(batch.stop - batch.start)

    def _noise(self, n: int) -> Tensor:
        K = max(model.diffusion.num_variables for model in self.models)
        shape = (n, K, *self.x.shape[1:])
        return torch.randn(shape, generator=self.generator, dtype=self.x.dtype)

    def _context_seed(self) -> int:
        """A seed for a part of the work, the same for all models and processes."""
        return int(torch.randint(2**31, (), generator=self.contexts)) if self.latent else 0

    def _of_data(self, model: DiffusionModel, datum: Tensor, seed: int) -> tuple[Kernels, Score]:
        """The diffusion and score of the data at indices (m,).

        A latent context is drawn by torch's generator, whose state :func:`compare` restores.
        """
        if self.latent:
            torch.manual_seed(seed)
            drawn = for_data(model.diffusion, self.x[datum])
            if drawn.context is not None:
                score = model.score_function.given_context(drawn.context)
                return cast(Kernels, drawn.diffusion), score
        return model.diffusion, model.score_function.for_rows(datum)

    def _baseline_terms(self, baseline: DenoiserScore) -> Tensor:
        """The baseline's diffusion term of each datum over each cell, (n, S)."""
        terms = torch.zeros(len(self.x), len(self.edges) - 1, dtype=torch.float64)
        edges = self.edges.to(self.x.device)
        if self.clocks is not None:
            edges = _edges_along(self.clocks, edges, self.x.shape[1:])
        size = math.prod(self.x.shape[1:])
        for i, dims in self._batches("baseline", size, DIMS_AT_ONCE, "dimensions"):
            if self.share.has(i):
                here = edges if edges.dim() == 1 else edges[:, dims]
                terms += baseline.baseline_integrals(self.baseline_x, here, dims).cpu()
        return self.share.sum(terms)

    def _first_density(self, baseline: DenoiserScore, terms: Tensor) -> Tensor:
        """The first round's density: the spread in each cell that the baseline's noise makes."""
        few = min(len(self.x), FIRST_ROUND)
        x, width = self.baseline_x[:few], self.edges.diff()
        span = self.edges[-1] - self.edges[0]
        u = (torch.randperm(few, generator=self.generator) + 0.5) / few
        level, noise = self.edges[0] + span * u, self._noise(few).to(x.device)
        score = baseline.for_rows(torch.arange(few, device=x.device))
        h0 = score.baseline_integrand(x, level.to(x.device), noise, self.clocks)
        h0 = self.share.first(h0.double().cpu())
        cell = cells(level, self.edges)
        rest = h0 - (terms / width)[torch.arange(few), cell]
        total = cell.bincount(rest.square(), len(width))
        number = cell.bincount(minlength=len(width))
        # a share of the overall spread: a cell with few of these draws may look quiet by chance
        return (total / number.clamp_min(1)).sqrt() + 0.3 * rest.square().mean().sqrt()

    # -- results -----------------------------------------------------------------------------------

    def _reconstruction_error(self, target: Target) -> float:
        terms = of_target(self.reconstruction, target)
        return math.sqrt(self.share.first(float(terms.var(0).mean())) / terms.numel())

    def _error(self, target: Target) -> float:
        """The Monte Carlo error of a target in nats."""
        error = float(self.integrals.errors([target])[0])
        return self.share.first(math.hypot(error, self._reconstruction_error(target)))

    def _terms(self, target: Target) -> _Terms:
        first, second = target
        exact = self.prior_kl, self.context_kl
        kl, context, draws = (of_target(v, target) for v in (*exact, self.reconstruction))
        integral = self.integrals.integral(first, second)
        counts = self.counts[first] | self.counts[first if second is None else second]
        # each datum's own estimate, moved to the mean of all draws; 0 stays 0
        shift = (integral.mean - integral.per_datum.nanmean()) * (len(counts) / counts.sum())
        diffusion = torch.where(counts, integral.per_datum + shift, 0)
        reconstruction = draws.mean(0)
        terms = {"reconstruction": reconstruction, "prior_kl": kl, "context": context}
        means = {name: Measured.from_values(values) for name, values in terms.items()}
        error = population_error(diffusion, integral.noise.variance, integral.error)
        means["diffusion"] = Measured(float(diffusion.mean()), error)
        # not shifted: the mean of all draws has the noise of both halves
        decoded = torch.stack([draws[::2].mean(0), draws[1::2].mean(0)])
        return _Terms(
            reconstruction - kl - diffusion - context,
            decoded - kl - context - integral.halves,
            integral.noise.plus(Noise.from_draws(draws, counts)),
            self._error(target),
            means,
            integral,
        )

    def _estimate(self, m: int) -> Estimate:
        terms, model = self._terms((m, None)), self.models[m]
        inside = self.covers[m].nonzero().squeeze(1)
        edges = self.edges[int(inside[0]) : int(inside[-1]) + 2]
        # levels as log SNR: the mass of a cell stays, and so do the ends, but for rounding
        log_snr_edges = log_snr_at(model.score_function, model.diffusion, edges).cpu()
        log_snr_edges[0], log_snr_edges[-1] = edges[0], edges[-1]
        stretch = edges.diff() / log_snr_edges.diff()
        variance, error = terms.noise.variance, terms.monte_carlo_error
        return Estimate(
            mean=float(terms.bound.mean()),
            standard_error=population_error(terms.bound, variance, error),
            monte_carlo_error=error,
            **terms.means,
            num_data=len(self.x),
            num_dims=self.num_dims,
            network_calls=self.calls[m],
            per_datum=terms.bound,
            per_datum_error=terms.noise.error,
            halves=terms.halves,
            log_snr_edges=log_snr_edges,
            density=terms.integral.density[inside] * stretch,
            density_error=terms.integral.density_error[inside] * stretch,
        )

    def _difference(self, pair: tuple[int, int], estimates: Mapping[str, Estimate]) -> Difference:
        terms, names = self._terms(pair), [self.names[m] for m in pair]
        return Difference.from_nats(
            {name: estimates[name] for name in names},
            -terms.bound,
            terms.means,
            terms.noise.variance,
            terms.monte_carlo_error,
            precisions(self.x, [self.models[m] for m in pair]),
        )


class _Terms(NamedTuple):
    """The terms of a model, or of a difference first − second, nats."""

    bound: Tensor  # (n,)
    halves: Tensor  # (2, n) of it
    noise: Noise  # of it, Monte Carlo
    monte_carlo_error: float  # of its mean
    means: dict[str, Any]  # Measured, of each term, with its error over data
    integral: Integral


@torch.no_grad()
def _shared_clocks(diffusions: Sequence[Kernels]) -> Kernels | None:
    """The first diffusion, if all have clocks by dimension; the baseline then follows its clocks.

    None for so many clocks that the baseline's integrals would take long.
    """
    first = diffusions[0]
    if not all(d.maps and d.context is None for d in diffusions):
        return None
    maps = first.level(torch.linspace(0, 1, 9, dtype=torch.float64)).log_snr
    return first if maps.flatten(1).unique(dim=1).shape[1] <= MANY_CLOCKS else None


def _edges_along(diffusion: Kernels, edges: Tensor, event_shape: Sequence[int]) -> Tensor:
    """The λ of each dimension, flattened, where the reference has ``edges``, (S + 1, d)."""
    high, low = diffusion.max_log_snr, diffusion.terminal_log_snr.detach()
    with torch.no_grad():
        maps = diffusion.level(((high - edges) / (high - low)).clamp(0, 1)).log_snr
    return maps.expand(len(edges), *event_shape).flatten(1)


def _edges(lows: Tensor, highs: Tensor, bins: int) -> Tensor:
    """Cells of noise level: ``bins`` even ones, cut at the ends of all ranges."""
    ends = torch.cat([lows, highs]).unique()
    even = torch.linspace(float(ends[0]), float(ends[-1]), bins + 1, dtype=torch.float64)
    # an even edge close to an end is dropped: the sliver between them would get no draws
    apart = (even[:, None] - ends).abs().amin(1) > 1e-3 * (even[1] - even[0])
    edges = torch.cat([even[apart], ends]).sort().values
    # ends of two models that differ by rounding are one
    return torch.cat([edges[:1], edges[1:][edges.diff() > 1e-6]])


def _slices(number: int, size: int) -> list[slice]:
    """Slices of ``number`` things, by ``size`` and what is left."""
    return [slice(first, min(first + size, number)) for first in range(0, number, size)]


def _state(marginal: Marginal, x: Tensor, noise: Tensor) -> Tensor:
    """y = a x + L η, (n, K, *event_shape), with the first variable of ``noise`` that of z."""
    if marginal.mean.dim() == 1:  # one for all data
        marginal = Marginal(*(t.expand(len(x), *t.shape) for t in marginal))
    return noised_state(marginal, x, rotated(marginal, noise))
