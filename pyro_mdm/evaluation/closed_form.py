"""The bound of models over linear diffusions, by strata of noise level and a baseline."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Marginal
from pyro_mdm.diffusions.closed import Kernels, noised_state
from pyro_mdm.diffusions.per_dimension import PerDimensionDiffusion
from pyro_mdm.evaluation.estimates import (
    Comparison,
    Difference,
    Estimate,
    Noise,
    population_error,
    resolved,
    rounding,
)
from pyro_mdm.evaluation.strata import (
    Draws,
    Integral,
    StrataPlan,
    StratifiedIntegrals,
    Target,
    cells,
)
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.divergence import prior_kl
from pyro_mdm.scores.base import rotated
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.checks import floating_dtypes
from pyro_mdm.support.measured import Z95, Measured
from pyro_mdm.support.progress import Progress, progress_bar

__all__ = ["ClosedFormComparison", "Pair", "SAFETY", "EstimateSettings", "Share", "precisions"]

FIRST_ROUND = 256
SMALLEST_ROUND = 64

PILOT_SHARE = 3
"""The most draws of an estimate for each draw of the pilot that says how many there must be."""

SAFETY = 1.3
"""The factor on the number of draws that the pilot estimates to be needed."""

DIMS_AT_ONCE = 256
"""The number of dimensions integrated at a time, so that the baseline's tables stay in cache."""

MANY_CLOCKS = 64
"""The most cells whose clocks a baseline follows; with more it follows the common clock."""

MANY_PASSES = 64
"""The number of passes over all data after which a round is an eighth of all draws before it."""

Pair = tuple[DiffusionModel, DiffusionGuide]
"""A model and its guide."""


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

    def first(self, values: Tensor) -> Tensor:
        """The first process's values of a CPU tensor, for decisions common to all."""
        return self.sum(values if self.rank == 0 else torch.zeros_like(values))

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
    batch_size: int
    seed: int
    control_variate: bool
    baseline: DenoiserScore | None
    bins: int
    adapt: bool
    progress: bool
    share: Share


class ClosedFormComparison:
    """The state of a comparison: exact terms, and the draws so far.

    Args:
        programs: pairs (model, guide) by name, over linear diffusions.
        x: data in model space, (n, *event_shape).
        asked: the other arguments of :func:`~pyro_mdm.evaluation.compare`.
    """

    def __init__(self, programs: Mapping[str, Pair], x: Tensor, asked: EstimateSettings) -> None:
        self.asked, self.share = asked, asked.share
        self.names = list(programs)
        self.models = [model for model, _ in programs.values()]
        self.x = x
        self.num_dims = min(model.num_dims for model in self.models)
        self.unit = self.num_dims * math.log(2)
        self.generator = torch.Generator().manual_seed(asked.seed)
        self.contexts = torch.Generator().manual_seed(asked.seed)
        scores, baseline = [m.score_function for m in self.models], asked.baseline
        if baseline is None:
            baseline = next((s for s in scores if isinstance(s, DenoiserScore)), None)
        self.baseline = baseline if asked.control_variate else None
        self.clocks = _shared_clocks([m.diffusion for m in self.models])
        self.baseline_x = x if self.clocks is None else self.clocks.coordinates(x)
        self.calls = [0] * len(self.models)

        lows = torch.stack([m.diffusion.terminal_log_snr.detach().cpu() for m in self.models])
        highs = torch.tensor([m.diffusion.max_log_snr for m in self.models], dtype=torch.float64)
        self.edges = _edges(lows, highs, asked.bins)
        self.ends = list(zip(lows.tolist(), highs.tolist(), strict=True))  # of λ, by model
        middle = (self.edges[1:] + self.edges[:-1]) / 2
        self.covers = (middle > lows[:, None]) & (middle < highs[:, None])
        self.counts = torch.stack([_counts(m, x) for m in self.models])
        self.num_counted = int(self.counts.any(0).sum())
        baseline_terms = self._baseline_terms() if self.baseline is not None else None
        density = (
            self._first_density(baseline_terms)
            if asked.adapt and baseline_terms is not None
            else None
        )
        self.integrals = self._integrals(
            baseline=baseline_terms, density=density, adapt=asked.adapt
        )
        self.latent = any(Cap.NO_CONTEXT not in m.diffusion.caps for m in self.models)
        self.context_kl = torch.stack([self._context_kl(m.diffusion) for m in self.models])
        self.prior_kl = torch.stack([self._prior_kl(m) for m in self.models])
        self.reconstruction = torch.empty(0)  # (draws, M, n)

    def _context_kl(self, diffusion: Kernels) -> Tensor:
        """KL(q(c | x) ‖ p(c)) of each datum, (n,) float64 on the CPU."""
        batches = self.x.split(self.asked.batch_size)
        return torch.cat([diffusion.for_data(batch).kl for batch in batches]).double().cpu()

    def _prior_kl(self, model: DiffusionModel) -> Tensor:
        """KL(q(y_T | x) ‖ π) of each datum, (n,) float64 on the CPU."""
        diffusion, event_dim = model.diffusion, self.x.dim() - 1
        by_network = Cap.READOUT not in diffusion.caps
        size = self.asked.batch_size if by_network else len(self.x)
        batches = [
            prior_kl(
                diffusion,
                diffusion.coordinates(batch.double()),
                event_dim,
                model.score_function.counts(batch),
            )
            for batch in self.x.split(size)
        ]
        return torch.cat(batches).cpu()

    def _integrals(self, **options: Any) -> StratifiedIntegrals:
        seed = int(torch.randint(2**62, (), generator=self.generator))
        options["counts"] = self.counts
        return StratifiedIntegrals(self.edges, self.covers, len(self.x), seed=seed, **options)

    def until(self) -> Comparison:
        """The comparison by all ``draws``, or by as many as a pilot finds for the half-width."""
        draws, half_width = self.asked.draws, self.asked.half_width
        data = self.num_counted or 1
        most = draws * data
        if draws == 1 and half_width is None:
            most += min(data, FIRST_ROUND)  # one draw of a datum has no spread
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
        reached = wanted is not None and max(self._errors(targets)) <= wanted
        estimates = {name: self._estimate(m) for m, name in enumerate(self.names)}
        differences = resolved(self._difference(pair, estimates) for pair in pairs)
        return Comparison(estimates, differences, sum(self.calls), half_width, reached)

    # -- draws -------------------------------------------------------------------------------------

    def _round_size(self) -> int:
        done, n = self.integrals.num_draws, self.num_counted or 1
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
            plan, done = self._plan(targets), self.integrals.num_draws
            need = self._needed(plan, wanted)
            width = Z95 * math.sqrt(need / SAFETY / done) * wanted / self.unit
            bar.set_postfix_str(f"pilot: ± {width:.4f} of {Z95 * wanted / self.unit:g} bits/dim")
            if need <= PILOT_SHARE * done or done >= room:
                return plan
            size = max(SMALLEST_ROUND, min(done, math.ceil(need / PILOT_SHARE) - done))
            worst = max(map(plan.error, targets))
            self.integrals.allocate([t for t in targets if plan.error(t) > worst / 2])

    def _plan(self, targets: list[Target]) -> StrataPlan:
        """The plan of the next draws, the same for all processes."""
        plan = self.integrals.plan(targets)
        numbers = [[by_target[t] for t in targets] for by_target in (plan.spread, plan.skewness)]
        spread, skewness = self.share.first(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return StrataPlan(
            self.share.first(plan.coefficients),
            self.share.first(plan.density),
            plan.num_draws,
            dict(zip(targets, spread, strict=True)),
            dict(zip(targets, skewness, strict=True)),
        )

    def _needed(self, plan: StrataPlan, wanted: float) -> int:
        """The number of draws at which every error is the one wanted."""
        need = 0.0
        for target in plan.spread:
            left = wanted**2 - self._reconstruction_error(target) ** 2
            need = max(need, plan.error(target) ** 2 / left if left > 0 else math.inf)
        return math.ceil(SAFETY * need) if math.isfinite(need) else 2**62

    def _round(self, size: int, bar: Progress) -> None:
        draws = Draws(*map(self.share.first, self.integrals.draw(size)))
        values = torch.zeros(len(self.models), size, dtype=torch.float64)
        baseline = torch.zeros(size, dtype=torch.float64)
        covered = self.covers[:, cells(draws.level, self.edges)].numpy()
        for i, batch in enumerate(_slices(size, self.asked.batch_size)):
            inside = [np.flatnonzero(row) for row in covered[:, batch]]
            datum = draws.datum[batch].to(self.x.device)
            noise = self._noise(len(datum))  # drawn by all, so that it does not matter who uses it
            seed = self._context_seed()
            for m, rows in enumerate(inside):
                self.calls[m] += len(rows)
            bar.update(sum(map(len, inside)))
            if not self.share.has(i):
                continue
            x = self.x[datum]
            level, noise = draws.level[batch].to(x.device), noise.to(x.device)
            rates = torch.zeros(len(self.models) + 1, len(x), dtype=torch.float64, device=x.device)
            for m, (model, rows) in enumerate(zip(self.models, inside, strict=True)):
                if not len(rows):
                    continue
                here = torch.from_numpy(rows).to(x.device)
                diffusion, score = self._of_data(model, datum[here], seed)
                h = score.integrand(
                    diffusion,
                    diffusion.coordinates(x[here]),
                    level[here].clamp(*self.ends[m]),
                    noise[here],
                )
                rates[m, here] = h.double()
            if self.baseline is not None:
                rates[-1] = self._baseline(datum).baseline_integrand(
                    self.baseline_x[datum], level, noise, self.clocks
                )
            *of_models, baseline[batch] = rates.cpu()  # the device is asked once
            values[:, batch] = torch.stack(of_models)
        values = self.share.sum(values)
        if self.baseline is not None:
            baseline = self.share.sum(baseline)
        self.integrals.add(draws, values, baseline if self.baseline is not None else None)

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
            x, noise = self.x[datum], noise.to(self.x.device)
            by_model = []
            for model in self.models:
                diffusion, score = self._of_data(model, datum, seed)
                y = _state(diffusion.start, diffusion.coordinates(x), noise)
                moved = diffusion.displacement(x, diffusion.start_time)
                y = y if moved is None else y + moved
                law = model.likelihood(diffusion, score, y)
                by_model.append(law.log_prob(x).double())
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
            pilot = torch.stack([self._reconstruct(few) for _ in range(2)])
            variance = max(float(_of_target(pilot, t).var(0).mean()) for t in targets)
            costs = any(getattr(model.likelihood, "network_calls", 0) for model in self.models)
            need = SAFETY * 9 * variance / (len(self.x) * wanted**2)  # 9: a third of the error
            need = float(self.share.first(torch.tensor([need], dtype=torch.float64)))
            number = max(2, min(math.ceil(need), draws if costs else 64))
        everything = torch.arange(len(self.x))
        self.reconstruction = torch.stack([self._reconstruct(everything) for _ in range(number)])

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

    def _of_data(self, model: DiffusionModel, datum: Tensor, seed: int) -> tuple[Any, Any]:
        """The diffusion and score of the data at indices (m,).

        A latent context is drawn by torch's generator, whose state :func:`compare` restores.
        """
        if not self.latent:
            return model.diffusion, model.score_function.for_rows(datum)
        torch.manual_seed(seed)
        drawn = model.diffusion.for_data(self.x[datum])
        if drawn.context is None:
            return model.diffusion, model.score_function.for_rows(datum)
        return drawn.diffusion, model.score_function.given_context(drawn.context)

    def _baseline(self, datum: Tensor) -> DenoiserScore:
        """The baseline of these data (m,)."""
        assert self.baseline is not None
        baseline: Any = self.baseline.for_rows(datum)  # one of its kind
        return baseline

    def _baseline_terms(self) -> Tensor:
        """The baseline's diffusion term of each datum over each cell, (n, S)."""
        assert self.baseline is not None
        terms = torch.zeros(len(self.x), len(self.edges) - 1, dtype=torch.float64)
        edges = self.edges.to(self.x.device)
        if self.clocks is not None:
            edges = _edges_along(self.clocks, edges, self.x.shape[1:])
        size = math.prod(self.x.shape[1:])
        for i, dims in self._batches("baseline", size, DIMS_AT_ONCE, "dimensions"):
            if self.share.has(i):
                here = edges if edges.dim() == 1 else edges[:, dims]
                terms += self.baseline.baseline_integrals(self.baseline_x, here, dims).cpu()
        return self.share.sum(terms)

    def _first_density(self, baseline_terms: Tensor) -> Tensor:
        """The first round's density: the spread in each cell that the baseline's noise makes."""
        assert self.baseline is not None
        few = min(len(self.x), FIRST_ROUND)
        x, width = self.baseline_x[:few], self.edges.diff()
        log_snr = self.edges[0] + (self.edges[-1] - self.edges[0]) * (
            (torch.randperm(few, generator=self.generator) + 0.5) / few
        )
        noise = self._noise(few).to(x.device)
        rows = torch.arange(few, device=x.device)
        at = log_snr.to(x.device)
        h0 = self._baseline(rows).baseline_integrand(x, at, noise, self.clocks)
        h0 = self.share.first(h0.double().cpu())
        cell = cells(log_snr, self.edges)
        rest = h0 - (baseline_terms / width)[torch.arange(few), cell]
        total = torch.zeros_like(width).index_add_(0, cell, rest.square())
        number = torch.zeros_like(width).index_add_(0, cell, torch.ones_like(rest))
        # a share of the overall spread: a cell with few of these draws may look quiet by chance
        return (total / number.clamp_min(1)).sqrt() + 0.3 * rest.square().mean().sqrt()

    # -- results -----------------------------------------------------------------------------------

    def _reconstruction_of(self, target: Target) -> Tensor:
        """The draws of the reconstruction, (draws, n)."""
        return _of_target(self.reconstruction, target)

    def _reconstruction_error(self, target: Target) -> float:
        terms = self._reconstruction_of(target)
        return math.sqrt(float(self.share.first(terms.var(0).mean())) / terms.numel())

    def _errors(self, targets: list[Target]) -> list[float]:
        """Monte Carlo errors in nats."""
        pairs = zip(self.integrals.errors(targets).tolist(), targets, strict=True)
        errors = [math.hypot(error, self._reconstruction_error(t)) for error, t in pairs]
        return self.share.first(torch.tensor(errors, dtype=torch.float64)).tolist()

    def _terms(self, target: Target) -> _Terms:
        first, second = target
        kl = self.prior_kl[first] - (0 if second is None else self.prior_kl[second])
        context = self.context_kl[first] - (0 if second is None else self.context_kl[second])
        integral, draws = self.integrals.integral(first, second), self._reconstruction_of(target)
        counts = self.counts[first] | self.counts[first if second is None else second]

        def shifted(per_datum: Tensor) -> Tensor:
            """Each datum's own estimate, moved to the mean of all draws; 0 stays 0."""
            shift = (integral.mean - per_datum.nanmean()) * (len(counts) / counts.sum())
            return torch.where(counts, per_datum + shift, 0)

        # not shifted: the mean of all draws has the noise of both halves
        decoded = torch.stack([draws[::2].mean(0), draws[1::2].mean(0)])
        return _Terms(
            draws.mean(0),
            kl,
            context,
            shifted(integral.per_datum),
            decoded - kl - context - integral.halves,
            integral.noise.plus(Noise.from_draws(draws, counts)),
            self._errors([target])[0],
            integral,
        )

    def _estimate(self, m: int) -> Estimate:
        terms = self._terms((m, None))
        per_datum = terms.reconstruction - terms.prior_kl - terms.diffusion - terms.context
        mine = self.covers[m].nonzero().squeeze(1)
        first, last = int(mine[0]), int(mine[-1]) + 1
        edges, inside = self.edges[first : last + 1], slice(first, last)
        # levels as log SNR: the mass of a cell stays
        log_snr_edges = self._log_snr_at(self.models[m], edges)
        stretch = edges.diff() / log_snr_edges.diff()
        return Estimate(
            mean=float(per_datum.mean()),
            standard_error=population_error(
                per_datum, terms.noise.variance, terms.monte_carlo_error
            ),
            monte_carlo_error=terms.monte_carlo_error,
            **terms.measured(),
            num_data=len(self.x),
            num_dims=self.num_dims,
            network_calls=self.calls[m],
            per_datum=per_datum,
            per_datum_error=terms.noise.error,
            halves=terms.halves,
            log_snr_edges=log_snr_edges,
            density=terms.integral.density[inside] * stretch,
            density_error=terms.integral.density_error[inside] * stretch,
        )

    def _log_snr_at(self, model: DiffusionModel, level: Tensor) -> Tensor:
        diffusion = model.diffusion
        at = level.to(diffusion.start_time.device)
        log_snr = model.score_function.log_snr_at(diffusion, at).cpu()
        log_snr[0], log_snr[-1] = level[0], level[-1]  # the ends are the same, but for rounding
        return log_snr

    def _difference(self, pair: tuple[int, int], estimates: Mapping[str, Estimate]) -> Difference:
        names = self.names[pair[0]], self.names[pair[1]]
        dtypes = precisions(self.x, [self.models[m] for m in pair])
        terms = self._terms(pair)
        total = terms.diffusion + terms.prior_kl + terms.context - terms.reconstruction
        error = population_error(total, terms.noise.variance, terms.monte_carlo_error)
        return Difference.from_nats(
            names,
            Measured(float(total.mean()), error),
            terms.measured(),
            terms.monte_carlo_error,
            self.unit,
            rounding(estimates[names[0]], estimates[names[1]], dtypes),
            len(total) - 1,
        )


class _Terms(NamedTuple):
    """The terms of a model, or of a difference first − second, for each datum (n,), nats."""

    reconstruction: Tensor
    prior_kl: Tensor
    context: Tensor
    diffusion: Tensor
    halves: Tensor  # (2, n) of all four, as a bound
    noise: Noise  # of the three together, Monte Carlo
    monte_carlo_error: float  # of their mean
    integral: Integral

    def measured(self) -> dict[str, Any]:
        """The mean of each term by name, with its error over data."""
        noise, error = self.integral.noise.variance, self.integral.error
        return {
            "reconstruction": Measured.from_values(self.reconstruction),
            "prior_kl": Measured.from_values(self.prior_kl),
            "context": Measured.from_values(self.context),
            "diffusion": Measured(
                float(self.diffusion.mean()), population_error(self.diffusion, noise, error)
            ),
        }


def _counts(model: DiffusionModel, x: Tensor) -> Tensor:
    """Whether a datum has a dimension that the model's bound is about, bool (n,)."""
    counted = model.score_function.counts(x)
    if counted is None:
        return torch.ones(len(x), dtype=torch.bool)
    return counted.expand(x.shape).flatten(1).any(1).cpu()


def _of_target(terms: Tensor, target: Target) -> Tensor:
    """Terms (draws, n) of a model, or of the difference of two, from (draws, M, n)."""
    first, second = target
    return terms[:, first] if second is None else terms[:, first] - terms[:, second]


def _shared_clocks(diffusions: list[Any]) -> PerDimensionDiffusion | None:
    """The first diffusion, if all have clocks by dimension; the baseline then follows its clocks.

    None for so many clocks that the baseline's integrals would take long.
    """
    first = diffusions[0]
    fixed = all(d.maps and d.context is None for d in diffusions)
    if fixed and first.num_cells <= MANY_CLOCKS:
        return first
    return None


def _edges_along(diffusion: Kernels, edges: Tensor, event_shape: Sequence[int]) -> Tensor:
    """The λ of each dimension, flattened, where the reference has ``edges``, (S + 1, d)."""
    high, low = diffusion.max_log_snr, diffusion.terminal_log_snr.detach()
    with torch.no_grad():
        maps = diffusion.level(((high - edges) / (high - low)).clamp(0, 1)).log_snr
    return maps.expand(len(edges), *event_shape).flatten(1)


def _edges(lows: Tensor, highs: Tensor, bins: int) -> Tensor:
    """Cells of noise level: ``bins`` even ones, cut at the ends of all ranges."""
    ends = np.unique(torch.cat([lows, highs]).numpy())
    even = torch.linspace(ends[0], ends[-1], bins + 1, dtype=torch.float64).numpy()
    # an even edge close to an end is dropped: the sliver between them would get no draws
    apart = np.abs(even[:, None] - ends).min(1) > 1e-3 * (even[1] - even[0])
    edges = np.sort(np.append(even[apart], ends))
    # ends of two models that differ by rounding are one
    return torch.from_numpy(edges[np.append(True, np.diff(edges) > 1e-6)])


def _slices(number: int, size: int) -> list[slice]:
    """Slices of ``number`` things, by ``size`` and what is left."""
    return [slice(first, min(first + size, number)) for first in range(0, number, size)]


def _state(marginal: Marginal, x: Tensor, noise: Tensor) -> Tensor:
    """y = a x + L η, (n, K, *event_shape), with the first variable of ``noise`` that of z."""
    if marginal.mean.dim() > 1:  # one for each data dimension
        return noised_state(marginal, x, rotated(marginal, noise))
    one = Marginal(*(t.unsqueeze(0) for t in marginal))
    noise = rotated(one, noise.transpose(0, 1).flatten(1).unsqueeze(0))
    return noised_state(marginal, x, noise.reshape(-1, len(x), *x.shape[1:]).transpose(0, 1))
