r"""Blocks and clocks for each data dimension: channels, pixels or features noised differently.

Given x its dimensions are still independent: dimension j runs a linear diffusion of K variables,
its *block*, on a *clock* of its own,

    y_j | x ~ N(a_j(s) x_j, Σ_j(s)),    z_j = x_j + e^{-λ_j(s)/2} ε_j,

so log SNR and log volume are maps over dimensions, and the bound is a sum over them along the
common time,

    diffusion term = Σ_j ½ ∫ E (x_j - x̂_j(z, λ))² e^{λ_j} dλ_j.

For an exact x̂ this is the line integral of a gradient, and only the ends of the path through the
levels of noise matter. For any other x̂ the path matters too.

Sources: Sahoo et al., "Diffusion Models With Learned Adaptive Noise", NeurIPS 2024, for K = 1;
Singhal, Goldstein & Ranganath, ICLR 2023, for K variables under one clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import Level, Marginal, Times, Transition, same_time
from pyro_mdm.diffusions.closed import Denoise, Kernels
from pyro_mdm.diffusions.dimension_clocks import Clocks, SharedClock
from pyro_mdm.diffusions.first_order import differentiable_once
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.linear_sde import LinearSDE
from pyro_mdm.diffusions.propagator import ConstantPropagator
from pyro_mdm.diffusions.transforms import Transform
from pyro_mdm.support.checks import check_count
from pyro_mdm.support.doors import checked_arguments
from pyro_mdm.support.modules import of_part
from pyro_mdm.support.settings import described

__all__ = ["ManyTimes", "PerDimensionDiffusion"]

KNOTS = 65
"""The number of knots of the table that inverts log volume."""


def _of_blocks(name: str) -> Any:
    return property(lambda diffusion: diffusion.of_blocks(name))


class PerDimensionDiffusion(Kernels):
    """A linear diffusion for each data dimension: one of several blocks, on one of several clocks.

    The common time is that of the first block, the *reference*: ε, T, ``log_snr(s)`` and
    ``clock(s)`` are that block's, and the clocks give the times of the others. Kernels have a block
    for each dimension: those of :meth:`marginal` are (*batch, *event_shape, K, K), with sizes of 1
    along dimensions that share, and a batch dimension of 1 for one time. Each different block is
    computed once.

    Args:
        blocks: linear diffusions with one K and one ``max_log_snr``, constant, time-varying or
            learned.
        block_of: the index of each dimension's block: integers of as many dimensions as a datum,
            with the sizes of the event shape or 1. 0 for all by default.
        clocks: one for all by default.
        clock_of: the index of each dimension's clock, likewise.
        transform: coordinates of the data, such as :class:`~pyro_mdm.diffusions.Frequencies`. These
            are then noised, and "dimension" means one of them. Fit a :class:`~pyro_mdm.Denoiser` to
            ``coordinates(x)``.

    Raises:
        ValueError: blocks of different K or λ(ε), invalid indices, neither ``block_of`` nor
            ``clock_of``.

    Example:
        >>> from pyro_mdm import CLD, PerDimensionDiffusion, VPSDE
        >>> colours = torch.tensor([0, 1, 1]).reshape(3, 1, 1)  # of images (3, H, W)
        >>> diffusion = PerDimensionDiffusion([CLD(), CLD(mass=1.0)], colours)
        >>> diffusion.marginal(0.5).covariance.shape
        torch.Size([1, 3, 1, 1, 2, 2])
    """

    maps = True
    block_of: Tensor
    clock_of: Tensor
    _cell_of: Tensor  # of each entry of the index maps, flattened
    _clock_of_cell: Tensor

    @checked_arguments
    def __init__(
        self,
        blocks: LinearDiffusion | Sequence[LinearDiffusion],
        block_of: Tensor | Sequence[int] | None = None,
        clocks: Clocks | None = None,
        clock_of: Tensor | Sequence[int] | None = None,
        *,
        transform: Transform | None = None,
    ) -> None:
        super().__init__()
        blocks = [blocks] if isinstance(blocks, nn.Module) else list(blocks)
        _check_blocks(blocks)
        self.blocks = nn.ModuleList(blocks)
        self.clocks: Any = SharedClock() if clocks is None else clocks
        self._coordinates = transform
        self.num_variables = blocks[0].num_variables
        block_of, clock_of = _index_maps(block_of, len(blocks), clock_of, self.clocks.number)
        pair = block_of * self.clocks.number + clock_of
        cells, cell_of = pair.unique(return_inverse=True)
        block_of_cell = cells // self.clocks.number
        self.register_buffer("block_of", block_of)
        self.register_buffer("clock_of", clock_of)
        self.register_buffer("_cell_of", cell_of.flatten(), persistent=False)
        self.register_buffer("_clock_of_cell", cells % self.clocks.number, persistent=False)
        self._kept: dict[str, _Kept] = {}
        # unique() sorts, so cells come by block
        self._cells_of_block = torch.bincount(block_of_cell, minlength=len(blocks)).tolist()

    @property
    def num_cells(self) -> int:
        """The number of different pairs of block and clock."""
        return len(self._clock_of_cell)

    @property
    def transform(self) -> Transform | None:
        return self._coordinates

    def coordinates(self, x: Tensor) -> Tensor:
        return x if self.transform is None else self.transform(x)

    def from_coordinates(self, x: Tensor) -> Tensor:
        return x if self.transform is None else self.transform.inverse(x)

    # -- the common time ---------------------------------------------------------------------------

    @property
    def reference(self) -> LinearDiffusion:
        return cast(LinearDiffusion, self.blocks[0])

    @property
    def max_log_snr(self) -> float:
        return self.reference.max_log_snr

    @max_log_snr.setter
    def max_log_snr(self, value: float) -> None:
        for block in self.blocks:
            block.max_log_snr = value  # type: ignore[assignment]

    @property
    def min_log_snr(self) -> float | None:
        return self.reference.min_log_snr

    @min_log_snr.setter
    def min_log_snr(self, value: float | None) -> None:
        for block in self.blocks:
            block.min_log_snr = value  # type: ignore[assignment]

    horizon: float = of_part("reference")
    cut_time = of_part("reference")
    start_time: Tensor = of_part("reference")
    start_log_snr: Tensor = of_part("reference")
    terminal_log_snr: Tensor = of_part("reference")
    log_snr = of_part("reference")
    log_snr_rate = of_part("reference")
    time_at_log_snr = of_part("reference")
    clock = of_part("reference")
    inverse_clock = of_part("reference")
    time_at_clock = of_part("reference")
    rate = of_part("reference")
    frozen = of_part("reference")

    # -- maps --------------------------------------------------------------------------------------

    def level(self, u: Tensor) -> Level:
        """λ_j and -dλ_j/du at the fraction u (n,) of the reference's way in log SNR.

        Each is (n, *event_shape), with sizes of 1 along dimensions that share; differentiable in u,
        the clocks and the ends of learned blocks. No kernel is computed.
        """
        width = self._widths()
        lam = self.start_log_snr - self._of_cells(self.clocks(u)) * width
        rate = self._of_cells(self.clocks.rate(u)) * width
        return Level(self._spread(lam, u.shape), self._spread(rate, u.shape))

    def log_snr_map_at(self, s: Times) -> Tensor:
        return self.level(self.progress(self._vector(s))).log_snr

    def progress(self, s: Tensor) -> Tensor:
        """The fraction u of the reference's way in log SNR at time s, like s."""
        high, low = self.start_log_snr, self.terminal_log_snr
        inside = torch.maximum(s, self.start_time)
        return ((high - self.reference.log_snr(inside)) / (high - low)).clamp(0, 1)

    def _widths(self) -> Tensor:
        """λ(ε) - λ(T) of each cell's block, (cells,)."""
        widths = torch.stack([self.start_log_snr - b.terminal_log_snr for b in self._each_block()])
        number = torch.tensor(self._cells_of_block, device=widths.device)
        return widths.repeat_interleave(number)

    def _of_cells(self, of_clocks: Tensor) -> Tensor:
        return of_clocks.index_select(-1, self._clock_of_cell)

    def _each_block(self) -> list[Any]:
        return list(self.blocks)

    def _spread(self, value: Tensor, shape: Sequence[int]) -> Tensor:
        """Values of cells (*shape, cells, …) laid out over dimensions, (*shape, *index map, …)."""
        dim = len(shape)
        entries: Tensor = value.index_select(dim, self._cell_of)
        spread: Tensor = entries.unflatten(dim, tuple(self.block_of.shape))
        return spread

    # -- kernels -----------------------------------------------------------------------------------

    def denoising_error(
        self, x: Tensor, level: Tensor, noise: Tensor, denoiser: Denoise, counted: Tensor | None
    ) -> Tensor:
        width = self.max_log_snr - self.terminal_log_snr.detach()
        u = (self.max_log_snr - level) / width
        return self.error_on_the_way(x, u, noise, denoiser, counted) / width.to(x.dtype)

    def read_start(self, y: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
        rows = y.double().movedim(y.dim() - 1 - event_dim, -1)
        z = (rows * self.start.readout).sum(-1)
        return self.from_coordinates(z), self.start_log_snr  # λ(ε) is common to all

    def planned(self, plan: Callable[[Any, Tensor], Any], times: Tensor) -> Any:
        """The plans of all blocks: fields (N, 1, *event_shape, …), and ``s``, the common times."""
        common = plan(self.reference, times)
        if isinstance(common, Tensor):
            return common  # the times themselves
        return _by_step(self.by_dimension(plan, times))._replace(s=common.s)

    def local_times(self, s: Tensor) -> list[Tensor]:
        """The time of each cell in its own block, (*s.shape, cells of the block), by block.

        Log SNR is inverted for these. Without gradients the last ones are kept, because a drift and
        a dispersion are usually asked for at the same times.
        """
        if torch.is_grad_enabled() and (s.requires_grad or self._is_learned()):
            return self._find_local_times(s)
        times: list[Tensor] = self._unless_moved("times", s, lambda: self._find_local_times(s))
        return times

    def _unless_moved(self, name: str, s: Tensor, find: Callable[[], Any]) -> Any:
        """The value kept under this name, computed anew for other times or changed parameters."""
        parameters = list(self.parameters())
        kept = self._kept.get(name)
        ends = [(b.max_log_snr, b.min_log_snr) for b in self._each_block()]
        same = kept is not None and kept.ends == ends and torch.equal(kept.s, s)
        if kept is None or not (same and all(map(torch.equal, kept.parameters, parameters))):
            copies = [p.detach().clone() for p in parameters]
            self._kept[name] = kept = _Kept(s.detach().clone(), ends, copies, find())
        return kept.value

    def _is_learned(self) -> bool:
        return any(p.requires_grad for p in self.parameters())

    def _find_local_times(self, s: Tensor) -> list[Tensor]:
        of_cells: list[Tensor] = []
        shared = isinstance(self.clocks, SharedClock)
        parts = None
        for i, block in enumerate(self._each_block()):
            n = self._cells_of_block[i]
            if i == 0 and shared:
                of_cells.append(s.unsqueeze(-1).expand(*s.shape, n))
                continue
            if parts is None:
                done = self._of_cells(self.clocks(self.progress(s)))
                parts = done.split(self._cells_of_block, -1)
            high, low = block.start_log_snr, block.terminal_log_snr
            times = ManyTimes(block).time_at_log_snr(high - parts[i] * (high - low))
            of_cells.append(times.clamp_min(0).clamp_max(block.horizon))
        return of_cells

    def by_dimension(self, function: Callable[..., Any], *times: Tensor) -> Any:
        times = tuple(map(self._vector, times))
        local = [self.local_times(t) for t in times]
        dim = times[0].dim()
        laws = [
            function(block, *(t[i] for t in local))
            for i, block in enumerate(self._each_block())
            if self._cells_of_block[i]
        ]
        return _merged(laws, lambda parts: self._spread(torch.cat(parts, dim), times[0].shape))

    def marginal(self, s: Times) -> Marginal:
        if (one := same_time(s)) is not None and isinstance(s, Tensor):
            return Marginal(*(t.expand(*s.shape, *t.shape[1:]) for t in self.marginal(one)))
        law: Marginal = self.by_dimension(
            lambda block, t: ManyTimes(block).marginal(t), self.as_tensor(s)
        )
        return law

    def transition(self, s: Times, r: Times = 0.0) -> Transition:
        ends = torch.broadcast_tensors(self.checked_time("s", s), self.checked_time("r", r))
        law: Transition = self.by_dimension(lambda block, s, r: block.transition(s, r), *ends)
        return law

    @property
    def terminal(self) -> Marginal:
        return self.marginal(self.horizon)

    def of_blocks(self, name: str) -> Any:
        """A constant of each block, (1, *event_shape, …)."""
        laws = [getattr(block, name) for block in self._each_block()]
        number = torch.tensor(self._cells_of_block, device=self.block_of.device)

        def spread(parts: list[Tensor]) -> Tensor:
            return self._spread(torch.stack(parts).repeat_interleave(number, 0)[None], (1,))

        return _merged(laws, spread)

    start: Marginal = _of_blocks("start")
    prior_covariance: Tensor = _of_blocks("prior_covariance")
    initial_covariance: Tensor = _of_blocks("initial_covariance")

    def at_rest(self) -> bool:
        return all(block.at_rest() for block in self._each_block())

    def _speed(self, s: Tensor, local: list[Tensor]) -> list[Tensor]:
        """The derivative of each cell's time in the common one, (*s.shape, cells), by block."""
        rates: list[Tensor] = []
        parts = self._log_snr_rate(s).split(self._cells_of_block, -1)
        for i, (block, t) in enumerate(zip(self._each_block(), local, strict=True)):
            if i == 0 and isinstance(self.clocks, SharedClock):
                rates.append(torch.ones_like(t))
            else:
                rates.append(parts[i] / ManyTimes(block).log_snr_rate(t))
        return rates

    def _log_snr_rate(self, s: Tensor) -> Tensor:
        """-dλ/ds of each cell, (*s.shape, cells)."""
        progress_rate = self.reference.log_snr_rate(s) / (
            self.start_log_snr - self.terminal_log_snr
        )
        of_clocks = self._of_cells(self.clocks.rate(self.progress(s)))
        return of_clocks * self._widths() * progress_rate.unsqueeze(-1)

    def log_snr_map_rate(self, s: Times) -> Tensor:
        """-dλ_j/ds, (*s.shape or 1, *event_shape), with sizes of 1 where dimensions share."""
        s = self._vector(s)
        return self._spread(self._log_snr_rate(s), s.shape)

    def _vector(self, s: Times) -> Tensor:
        """Times in float64, a single one as (1,)."""
        s = self.as_tensor(s)
        return s.reshape(1) if s.dim() == 0 else s

    def _rated(self, matrix: Callable[[Any, Tensor], Tensor], s: Times, power: float) -> Tensor:
        """``matrix(block, local time)`` times a power of the speed of local time."""
        if (one := same_time(s)) is not None and isinstance(s, Tensor):
            once = self._rated(matrix, one, power)
            return once.expand(*s.shape, *once.shape[1:])
        s = self._vector(s)
        local = self.local_times(s)
        matrices = [
            matrix(block, t) * rate.pow(power)[..., None, None]
            for block, t, rate in zip(self._each_block(), local, self._speed(s, local), strict=True)
        ]
        return self._spread(torch.cat(matrices, s.dim()), s.shape)

    def drift_matrix(self, s: Times) -> Tensor:
        return self._rated(lambda block, t: block.drift_matrix(t), s, 1.0)

    def noise_covariance(self, s: Times) -> Tensor:
        return self._rated(lambda block, t: block.noise_covariance(t), s, 1.0)

    def dispersion_matrix(self, s: Times) -> Tensor:
        return self._rated(lambda block, t: block.dispersion_matrix(t), s, 0.5)

    def clock_noise(self, s: Times) -> Tensor:
        s = self._vector(s)
        g2, rate = self.noise_covariance(s), self.reference.rate(s)
        return g2 / rate.reshape(*rate.shape, *[1] * (g2.dim() - rate.dim()))

    def divergence(self, s: Times, r: Times, dimensions: int = 1) -> Tensor:
        """``Σ_j ∫_r^s tr A_j`` over ``dimensions`` dimensions, (…) as s and r, 0-dim as (1,)."""
        ends = torch.broadcast_tensors(self.checked_time("s", s), self.checked_time("r", r))
        traces = self.by_dimension(lambda block, s, r: block.divergence(s, r), *ends)
        average: Tensor = traces.flatten(max(ends[0].dim(), 1)).mean(-1)
        return dimensions * average

    # -- log volume --------------------------------------------------------------------------------

    def log_volume(self, s: Times) -> Tensor:
        """The average of κ over dimensions, like s; increasing, with the ends of one block."""
        s = self.as_tensor(s)
        if self.num_variables == 1:  # κ is -λ, given by the clocks
            volumes = -self.log_snr_map_at(s)
        else:
            volumes = self.by_dimension(lambda block, t: block.log_volume(t), s)
        return volumes.flatten(max(s.dim(), 1)).mean(-1).reshape(s.shape)

    def log_volume_rate(self, s: Times) -> Tensor:
        s = self.as_tensor(s)
        at = s.reshape(-1)
        if self.num_variables == 1:
            return self.log_snr_map_rate(at).flatten(1).mean(-1).reshape(s.shape)
        rates = iter(self._speed(at, self.local_times(at)))
        laws = self.by_dimension(lambda block, t: block.log_volume_rate(t) * next(rates), at)
        value: Tensor = laws.flatten(1).mean(-1).reshape(s.shape)
        return value

    @property
    def log_volume_ends(self) -> Tensor:
        return self.log_volume(torch.stack([self.start_time, self.as_tensor(self.horizon)]))

    def time_at_log_volume(self, value: Times) -> Tensor:
        value = self.as_tensor(value)
        with torch.no_grad():
            s = self._root(value.detach().flatten()).reshape(value.shape)
        learned = value.requires_grad or any(p.requires_grad for p in self.parameters())
        if not (learned and torch.is_grad_enabled()):
            return s
        inside = s.clamp(self.start_time.item(), self.horizon)
        rate = self.log_volume_rate(inside).detach()
        return s + differentiable_once((value - self.log_volume(inside)) / rate)

    def _root(self, wanted: Tensor) -> Tensor:
        """The time, by safe Newton steps from a table, in the logarithm of the common clock."""
        times, volumes = self._unless_moved("log volume", self.start_time, self._table)
        i = torch.searchsorted(volumes, wanted).clamp(1, KNOTS - 1)
        low, high = times[i - 1], times[i]
        s: Tensor = low + (high - low) * (
            (wanted - volumes[i - 1]) / volumes[i].sub(volumes[i - 1])
        ).clamp(0, 1)
        for _ in range(60):
            error = self.log_volume(s) - wanted
            low, high = torch.where(error < 0, s, low), torch.where(error < 0, high, s)
            step = s - error / self.log_volume_rate(s)
            inside = (step >= low) & (step <= high)
            s = torch.where(inside, step, (low + high) / 2)
            if bool((error.abs() < 1e-6).all()):
                break  # the error of a Newton step is its square
        return s

    def _table(self) -> tuple[Tensor, Tensor]:
        """Times from ε to T, evenly spaced in the logarithm of the clock, and log volume there."""
        first, last = self.clock(self.start_time).log(), self.clock(self.horizon).log()
        knots = first + (last - first) * torch.linspace(0, 1, KNOTS).to(first)
        times = self.inverse_clock(knots.exp()).clamp_max(self.horizon)
        times[0], times[-1] = self.start_time, self.horizon
        return times, self.log_volume(times)

    # -- the door ----------------------------------------------------------------------------------

    def check(self, event_shape: Sequence[int]) -> None:
        """Raises ValueError unless the index maps fit data of this shape."""
        shape = tuple(self.block_of.shape)
        fits = len(shape) == len(event_shape)
        if not fits or any(n not in (1, m) for n, m in zip(shape, event_shape, strict=True)):
            raise ValueError(
                f"block_of and clock_of have shape {shape}, and a datum {tuple(event_shape)}, "
                "expected as many dimensions, each of the datum's size or 1"
            )

    def settings(self) -> dict[str, Any]:
        parts = {"blocks": self.blocks, "clocks": self.clocks, "transform": self.transform}
        return {name: described(value) for name, value in parts.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PerDimensionDiffusion:
        self._kept.clear()  # it is where the diffusion was
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept.clear()  # of other matrices
        super()._load_from_state_dict(*args, **kwargs)

    def _device(self) -> torch.device:
        return self.block_of.device

    def extra_repr(self) -> str:
        return f"num_variables={self.num_variables}, index map {tuple(self.block_of.shape)}"


class ManyTimes(NamedTuple):
    """A block's distributions at very many times, for one variable without a factorization."""

    block: LinearDiffusion

    def _is_plain(self) -> bool:
        """Whether closed forms of one variable at rest hold."""
        block = self.block
        constant = isinstance(block.propagator, ConstantPropagator)
        return block.num_variables == 1 and constant and not isinstance(block, LinearSDE)

    def marginal(self, s: Tensor) -> Marginal:
        """The block's marginal, for K = 1 by two exponentials."""
        if not self._is_plain():
            return self.block.marginal(s)
        S = self.block.stationary_covariance[0, 0]
        done = 2 * self.block.D[0, 0] / S * self.block.positive_clock(s)
        a, variance = (-done / 2).exp(), -S * torch.expm1(-done)
        return Marginal(
            a[..., None],
            variance[..., None, None],
            variance.sqrt()[..., None, None],
            1 / a[..., None],
            -(S * torch.expm1(done)).log(),
            variance.log(),
        )

    def log_snr_rate(self, s: Tensor) -> Tensor:
        """-dλ/ds, for K = 1 by one exponential."""
        if not self._is_plain():
            return self.block.log_snr_rate(s)
        by_clock = 2 * self.block.D[0, 0] / self.block.stationary_covariance[0, 0]
        rate = self.block.rate(s) * -by_clock  # first: gradients are added in this order
        return rate / torch.expm1(-by_clock * self.block.positive_clock(s))

    def time_at_log_snr(self, value: Tensor) -> Tensor:
        """The time with a log SNR, for K = 1 by one logarithm."""
        if not self._is_plain():
            s: Tensor = self.block.time_at_log_snr(value)
            return s
        S = self.block.stationary_covariance[0, 0]
        tau = S / (2 * self.block.D[0, 0]) * torch.log1p((-value).exp() / S)
        return self.block.time_at_clock(tau)


class _Kept(NamedTuple):
    """A value, with everything that it was computed from."""

    s: Tensor
    ends: list[tuple[float, float | None]]
    parameters: list[Tensor]
    value: Any


def _merged(laws: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """Named tuples of tensors, nested ones too, joined leaf by leaf."""
    one = laws[0]
    if one is None or isinstance(one, int | float):
        return one
    if isinstance(one, Tensor):
        return join(list(laws))
    joined = [_merged(leaf, join) for leaf in zip(*laws, strict=True)]
    return type(one)(*joined) if hasattr(one, "_fields") else tuple(joined)


def _by_step(plan: Any) -> Any:
    """Fields (steps, *event_shape, …) with a batch dimension of 1 after the steps."""
    if plan is None:
        return None
    return plan.unsqueeze(1) if isinstance(plan, Tensor) else type(plan)(*map(_by_step, plan))


def _check_blocks(blocks: list[Any]) -> None:
    check_count("len(blocks)", len(blocks), "the number of blocks")
    if len({b.num_variables for b in blocks}) > 1 or len({b.max_log_snr for b in blocks}) > 1:
        raise ValueError(
            f"blocks have K = {[b.num_variables for b in blocks]} and max_log_snr "
            f"{[b.max_log_snr for b in blocks]}, expected one of each: all dimensions have as many "
            "variables, and are handed to the decoder at one level of noise"
        )
    if any(b.cut_time is not None for b in blocks):
        raise ValueError("blocks are cut at a time, expected max_log_snr; leave out cut_time")
    if len(blocks) > 1 and any(b.learns_ends for b in blocks):
        raise ValueError(
            f"one of {len(blocks)} blocks has learn_ends, and would leave the λ(ε) that all share; "
            "leave it out, or use one block"
        )


def _index_maps(
    block_of: object, num_blocks: int, clock_of: object, num_clocks: int
) -> tuple[Tensor, Tensor]:
    """The index maps of blocks and clocks, checked, of one shape."""
    if block_of is None and clock_of is None:
        raise ValueError(
            "neither block_of nor clock_of is given, expected at least one, which says what each "
            "dimension has; for one block and clock use the block itself"
        )
    maps = []
    for name, value, number in (
        ("block_of", block_of, num_blocks),
        ("clock_of", clock_of, num_clocks),
    ):
        if value is None:
            maps.append(torch.zeros((), dtype=torch.long))
            continue
        index = torch.as_tensor(value)
        whole = not index.is_floating_point() and index.dim() > 0 and index.numel() > 0
        if not whole or int(index.min()) < 0 or int(index.max()) >= number:
            values = (
                f"from {index.min().item()} to {index.max().item()}" if index.numel() else "empty"
            )
            raise ValueError(
                f"{name} is {index.dtype} of shape {tuple(index.shape)}, {values}, expected "
                f"integers from 0 to {number - 1}, in as many dimensions as a datum"
            )
        maps.append(index.long())
        if len({one.shape for one in maps if one.dim()}) > 1:
            raise ValueError(
                f"block_of has shape {tuple(maps[0].shape)} and clock_of {tuple(index.shape)}, "
                "expected one shape, that of a datum"
            )
    one, other = torch.broadcast_tensors(*maps)
    return one.clone(), other.clone()
