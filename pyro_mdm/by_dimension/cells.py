"""Cells: the different pairs of a block and a clock of a diffusion per dimension."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_mdm.by_dimension.clocks import Clocks, SharedClock
from pyro_mdm.diffusions.base import Level, Marginal
from pyro_mdm.diffusions.ends import positive_clock
from pyro_mdm.diffusions.kernels import ConstantPropagator
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.linear_matrices import StationaryPrior

__all__ = ["DimensionCells", "log_snr_rate_of_block", "marginal_of_block", "time_of_block"]

T = TypeVar("T")


class _Kept(NamedTuple):
    """A value, with everything that it was computed from."""

    s: Tensor
    ends: list[tuple[float, float | None]]
    parameters: list[Tensor]
    value: object


@dataclass
class DimensionCells:
    """The different pairs of block and clock, each of which is computed once, in order of blocks.

    Args:
        blocks: linear diffusions, of which the first is the reference.
        clocks: clocks, as functions of the fraction u of the reference's way in log SNR.
        block_of, clock_of: the index of each dimension's block and clock, of one shape.
    """

    blocks: Sequence[LinearDiffusion]
    clocks: Clocks
    block_of: Tensor
    clock_of: Tensor
    _kept: dict[str, _Kept] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number = self.clocks.number
        # unique() sorts, so cells come by block
        cells, self._cell_of = (self.block_of * number + self.clock_of).unique(return_inverse=True)
        self._clock_of_cell = cells % number
        self.of_block = torch.bincount(cells // number, minlength=len(self.blocks)).tolist()

    def with_blocks(self, blocks: Sequence[LinearDiffusion]) -> DimensionCells:
        """The cells of other blocks in place of these, with values of their own."""
        cells = copy.copy(self)
        cells.blocks, cells._kept = blocks, {}
        return cells

    def __len__(self) -> int:
        return len(self._clock_of_cell)

    @property
    def reference(self) -> LinearDiffusion:
        """The block whose time is the common one."""
        return self.blocks[0]

    def spread(self, value: Tensor, shape: Sequence[int]) -> Tensor:
        """Values of cells (*shape, cells, …) with the axes of the map in place of the cells'."""
        entries: Tensor = value.index_select(len(shape), self._cell_of.flatten())
        spread: Tensor = entries.unflatten(len(shape), tuple(self._cell_of.shape))
        return spread

    def repeated(self, values: list[Tensor]) -> Tensor:
        """Values of blocks (…) for each cell, (cells, …)."""
        return torch.stack(values).repeat_interleave(torch.tensor(self.of_block, device="cpu"), 0)

    # -- levels, without a kernel ------------------------------------------------------------------

    def level(self, u: Tensor) -> Level:
        """λ and -dλ/du of each dimension at the fraction u (n,) of the reference's way."""
        lam = self.reference.start_log_snr - self._of_clocks(self.clocks(u)) * self._widths()
        return Level(self.spread(lam, u.shape), self.spread(self._rates(u), u.shape))

    def progress(self, s: Tensor) -> Tensor:
        """The fraction u of the reference's way in log SNR at time s, like s."""
        high, low = self.reference.start_log_snr, self.reference.terminal_log_snr
        inside = torch.maximum(s, self.reference.start_time)
        return ((high - self.reference.log_snr(inside)) / (high - low)).clamp(0, 1)

    def log_snr_rate(self, s: Tensor) -> Tensor:
        """-dλ/ds of each cell, (*s.shape, cells)."""
        width = self.reference.start_log_snr - self.reference.terminal_log_snr
        progress_rate = self.reference.log_snr_rate(s) / width
        return self._rates(self.progress(s)) * progress_rate.unsqueeze(-1)

    def _rates(self, u: Tensor) -> Tensor:
        return self._of_clocks(self.clocks.rate(u)) * self._widths()

    def _widths(self) -> Tensor:
        """λ(ε) - λ(T) of each cell's block, (cells,)."""
        start = self.reference.start_log_snr
        return self.repeated([start - block.terminal_log_snr for block in self.blocks])

    def _of_clocks(self, values: Tensor) -> Tensor:
        return values.index_select(-1, self._clock_of_cell)

    # -- times -------------------------------------------------------------------------------------

    def times(self, s: Tensor) -> list[Tensor]:
        """The time of each cell in its own block, (*s.shape, cells of the block), by block.

        Log SNR is inverted for these. Without gradients the last ones are kept, because a drift and
        a dispersion are usually asked for at the same times.
        """
        if torch.is_grad_enabled() and (s.requires_grad or self.is_learned()):
            return self._found_times(s)
        return self.unless_moved("times", s, lambda: self._found_times(s))

    def _found_times(self, s: Tensor) -> list[Tensor]:
        of_cells = [s.unsqueeze(-1).expand(*s.shape, self.of_block[0])]
        shared = int(isinstance(self.clocks, SharedClock))  # then the first block's are these
        if shared == len(self.blocks):
            return of_cells
        parts = self._of_clocks(self.clocks(self.progress(s))).split(self.of_block, -1)
        for block, done in zip(self.blocks[shared:], parts[shared:], strict=True):
            high, low = block.start_log_snr, block.terminal_log_snr
            times = time_of_block(block, high - done * (high - low))
            of_cells.append(times.clamp_min(0).clamp_max(block.horizon))
        return of_cells[1 - shared :]

    def speeds(self, s: Tensor, times: list[Tensor]) -> list[Tensor]:
        """The derivative of each cell's time in the common one, (*s.shape, cells), by block."""
        rates = list(self.log_snr_rate(s).split(self.of_block, -1))
        for i, (block, t) in enumerate(zip(self.blocks, times, strict=True)):
            if i == 0 and isinstance(self.clocks, SharedClock):
                rates[i] = torch.ones_like(t)
            else:
                rates[i] = rates[i] / log_snr_rate_of_block(block, t)
        return rates

    # -- what is kept ------------------------------------------------------------------------------

    def parameters(self) -> list[Tensor]:
        """What the cells depend on."""
        parameters = [p for block in self.blocks for p in block.parameters()]
        weights = getattr(self.clocks, "weights", None)
        given = [weights] if isinstance(weights, Tensor) else []
        return parameters + list(self.clocks.parameters()) + given

    def is_learned(self) -> bool:
        """Whether kernels have gradients."""
        return any(p.requires_grad for p in self.parameters())

    def unless_moved(self, name: str, s: Tensor, compute: Callable[[], T]) -> T:
        """The value kept under this name, computed anew for other times or changed parameters."""
        parameters, kept = self.parameters(), self._kept.get(name)
        ends = [(block.max_log_snr, block.min_log_snr) for block in self.blocks]
        same = kept is not None and kept.ends == ends and torch.equal(kept.s, s)
        if kept is None or not (same and all(map(torch.equal, kept.parameters, parameters))):
            copies = [p.detach().clone() for p in parameters]
            self._kept[name] = kept = _Kept(s.detach().clone(), ends, copies, compute())
        value: T = kept.value  # type: ignore[assignment]
        return value

    def forget(self) -> None:
        """Drop all values that are kept."""
        self._kept.clear()


# -- a block at very many times, of one variable without a factorization ---------------------------


def _is_plain(block: LinearDiffusion) -> bool:
    """Whether closed forms of one variable at rest hold."""
    constant = isinstance(block.propagator, ConstantPropagator)
    return block.num_variables == 1 and constant and isinstance(block.prior_part, StationaryPrior)


def marginal_of_block(block: LinearDiffusion, s: Tensor) -> Marginal:
    """The block's marginal, for K = 1 by two exponentials."""
    if not _is_plain(block):
        return block.marginal(s)
    S = block.stationary_covariance[0, 0]
    done = 2 * block.D[0, 0] / S * positive_clock(block, s)
    a, variance = (-done / 2).exp()[..., None], -S * torch.expm1(-done)
    covariance, log_snr = variance[..., None, None], -(S * torch.expm1(done)).log()
    return Marginal(a, covariance, covariance.sqrt(), 1 / a, log_snr, variance.log())


def log_snr_rate_of_block(block: LinearDiffusion, s: Tensor) -> Tensor:
    """-dλ/ds, for K = 1 by one exponential."""
    if not _is_plain(block):
        return block.log_snr_rate(s)
    by_clock = 2 * block.D[0, 0] / block.stationary_covariance[0, 0]
    rate = block.rate(s) * -by_clock  # first: gradients are added in this order
    return rate / torch.expm1(-by_clock * positive_clock(block, s))


def time_of_block(block: LinearDiffusion, value: Tensor) -> Tensor:
    """The time with a log SNR, for K = 1 by one logarithm."""
    if not _is_plain(block):
        return block.time_at_log_snr(value)
    S = block.stationary_covariance[0, 0]
    return block.time_at_clock(S / (2 * block.D[0, 0]) * torch.log1p((-value).exp() / S))
