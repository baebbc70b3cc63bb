r"""Blocks and clocks for each data dimension: channels, pixels or features noised differently.

Given x its dimensions are still independent: dimension j runs a linear diffusion of K variables,
its *block*, on a *clock* of its own,

    y_j | x ~ N(a_j(s) x_j, Σ_j(s)),    z_j = x_j + e^{-λ_j(s)/2} ε_j,

so log SNR and log volume are maps over dimensions, and the bound is a sum over them along the
common time,

    diffusion term = Σ_j ½ ∫ E (x_j - x̂_j(z, λ))² e^{λ_j} dλ_j.

For an exact x̂ this is the line integral of a gradient, and only the ends of the path through the
levels of noise matter. For any other x̂ the path matters too.

Dimensions may be coordinates C x of the data with C orthonormal, such as frequencies. Volumes,
densities and white noise are the same in both, so a bound on the density of the coordinates is one
on that of x.

Sources: Sahoo et al., "Diffusion Models With Learned Adaptive Noise", NeurIPS 2024, for K = 1;
Singhal, Goldstein & Ranganath, ICLR 2023, for K variables under one clock.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from pyro_mdm.by_dimension.cells import DimensionCells, marginal_of_block
from pyro_mdm.by_dimension.clocks import Clocks, SharedClock
from pyro_mdm.by_dimension.coordinates import Transform
from pyro_mdm.diffusions.base import (
    Level,
    Marginal,
    Times,
    Transition,
    remade,
    same_time,
)
from pyro_mdm.diffusions.clocks import (
    LogClock,
    TimeChange,
    as_times,
    even_times,
    log_snr_times,
    times_within,
)
from pyro_mdm.diffusions.closed import Denoise, GaussianPaths, Kernels, error_on_the_way
from pyro_mdm.diffusions.ends import differentiable_once
from pyro_mdm.diffusions.linear import GaussianPrior, LinearDiffusion, mean_volume_rate
from pyro_mdm.samplers.base import even_in_information, interpolated
from pyro_mdm.support.checks import check_count, checked_arguments
from pyro_mdm.support.modules import of_part
from pyro_mdm.support.settings import described

__all__ = ["PerDimensionDiffusion"]

P = TypeVar("P", bound="PerDimensionDiffusion")
KNOTS = 65
"""The number of knots of the table that inverts log volume."""
FINE = 513
"""The number of times between which an information grid is interpolated."""


def _of_blocks(name: str) -> Any:
    return property(lambda self: self.of_blocks(name))


class _DimensionPaths(GaussianPaths):
    def denoising_error(
        self,
        x: Tensor,
        level: Tensor,
        noise: Tensor,
        denoiser: Denoise,
        counted: Tensor | None = None,
    ) -> Tensor:
        high, low = self.diffusion.max_log_snr, self.diffusion.terminal_log_snr.detach()
        u = (high - level) / (high - low)
        value = error_on_the_way(self.diffusion, x, u, noise, denoiser, counted)
        return value / (high - low).to(x)


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
        transform: coordinates of the data, such as :class:`~pyro_mdm.by_dimension.Frequencies`.
            These are then noised, and "dimension" means one of them. Fit a
            :class:`~pyro_mdm.Denoiser` to ``coordinates(x)``.

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

    _networks: ClassVar[tuple[str, ...]] = ("_coordinates",)
    maps = True
    _kind_of_paths = _DimensionPaths
    block_of: Tensor
    clock_of: Tensor

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
        self.clocks: Clocks = SharedClock() if clocks is None else clocks
        self._coordinates = transform
        self.num_variables = blocks[0].num_variables
        block_of, clock_of = _index_maps(block_of, len(blocks), clock_of, self.clocks.number)
        self.register_buffer("block_of", block_of)
        self.register_buffer("clock_of", clock_of)
        self.cells = DimensionCells(blocks, self.clocks, block_of, clock_of)

    @property
    def transform(self) -> Transform | None:
        return self._coordinates

    # -- the common time ---------------------------------------------------------------------------

    @property
    def reference(self) -> LinearDiffusion:
        return cast(LinearDiffusion, self.blocks[0])

    def solved(self: P) -> P:
        blocks = [cast(LinearDiffusion, block).solved() for block in self.blocks]
        if self.made_from is not None or all(map(operator.is_, blocks, self.blocks)):
            return self
        cells = self.cells.with_blocks(blocks)
        return remade(self, blocks=nn.ModuleList(blocks), cells=cells)

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
    time_at_clock = of_part("reference")
    rate = of_part("reference")

    # -- maps --------------------------------------------------------------------------------------

    def level(self, u: Tensor) -> Level:
        """λ_j and -dλ_j/du at the fraction u (n,) of the reference's way in log SNR.

        Each is (n, *event_shape), with sizes of 1 along dimensions that share; differentiable in u,
        the clocks and the ends of learned blocks. No kernel is computed.
        """
        return self.cells.level(as_times(u))

    # -- kernels -----------------------------------------------------------------------------------

    def by_dimension(self, function: Callable[..., Any], *times: Times) -> Any:
        vectors = [*map(_vector, times)]
        local, shape = [*map(self.cells.times, vectors)], vectors[0].shape
        of_blocks = [
            function(block, *(t[i] for t in local))
            for i, block in enumerate(self.cells.blocks)
            if self.cells.of_block[i]
        ]
        return _merged(
            of_blocks, lambda pieces: self.cells.spread(torch.cat(pieces, len(shape)), shape)
        )

    def marginal(self, s: Times) -> Marginal:
        if (one := same_time(s)) is not None and isinstance(s, Tensor):
            return Marginal(*(t.expand(*s.shape, *t.shape[1:]) for t in self.marginal(one)))
        law: Marginal = self.by_dimension(marginal_of_block, s)
        return law

    def transition(self, s: Times, r: Times = 0.0) -> Transition:
        ends = torch.broadcast_tensors(
            times_within(self.horizon, "s", s), times_within(self.horizon, "r", r)
        )
        law: Transition = self.by_dimension(lambda block, s, r: block.transition(s, r), *ends)
        return law

    @property
    def terminal(self) -> Marginal:
        return self.marginal(self.horizon)

    def of_blocks(self, name: str) -> Any:
        """A constant of each block, (1, *event_shape, …)."""
        values = [getattr(block, name) for block in self.cells.blocks]
        repeated = self.cells.repeated
        return _merged(values, lambda pieces: self.cells.spread(repeated(pieces)[None], (1,)))

    start: Marginal = _of_blocks("start")
    prior_covariance: Tensor = _of_blocks("prior_covariance")
    initial_covariance: Tensor = _of_blocks("initial_covariance")

    @property
    def prior(self) -> GaussianPrior:
        return GaussianPrior(self.prior_covariance)

    def rated(
        self, rate: Callable[[LinearDiffusion, Tensor], Tensor], s: Times, power: float = 1.0
    ) -> Tensor:
        """``rate(block, local time)`` times a power of the speed of local time, by dimension."""
        if (one := same_time(s)) is not None and isinstance(s, Tensor):
            once = self.rated(rate, one, power)
            return once.expand(*s.shape, *once.shape[1:])
        s, values = _vector(s), []
        times = self.cells.times(s)
        for i, speed in enumerate(self.cells.speeds(s, times)):
            if self.cells.of_block[i]:
                value = rate(self.cells.blocks[i], times[i])
                more = (..., *[None] * (value.dim() - speed.dim()))
                values.append(value * speed.pow(power)[more])
        return self.cells.spread(torch.cat(values, s.dim()), s.shape)

    def drift_matrix(self, s: Times) -> Tensor:
        return self.rated(LinearDiffusion.drift_matrix, s)

    def noise_covariance(self, s: Times) -> Tensor:
        return self.rated(LinearDiffusion.noise_covariance, s)

    def dispersion(self, y: Tensor | None, s: Times) -> Tensor:
        return self.rated(lambda block, t: block.dispersion(None, t), s, power=0.5)

    @property
    def log_volume(self) -> MeanLogVolume:
        """The average of κ over dimensions, with the ends of one block."""
        return MeanLogVolume(self)

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

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.cells.forget()  # values of other matrices
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"num_variables={self.num_variables}, index map {tuple(self.block_of.shape)}"


class MeanLogVolume(TimeChange):
    """The average of log volume over the dimensions of a diffusion."""

    def __init__(self, diffusion: PerDimensionDiffusion) -> None:
        self.diffusion, self.cells = diffusion, diffusion.cells

    def __call__(self, s: Times) -> Tensor:
        s = as_times(s)
        if self.diffusion.num_variables == 1:  # κ is -λ, given by the clocks
            volumes = -self.cells.level(self.cells.progress(s.reshape(-1))).log_snr
        else:
            volumes = self.diffusion.by_dimension(lambda block, t: block.log_volume(t), s)
        return volumes.flatten(max(s.dim(), 1)).mean(-1).reshape(s.shape)

    def rate(self, s: Times) -> Tensor:
        s = as_times(s)
        at = s.reshape(-1)
        if self.diffusion.num_variables == 1:
            rates = self.cells.spread(self.cells.log_snr_rate(at), at.shape)
        else:
            rates = self.diffusion.rated(lambda block, t: block.log_volume.rate(t), at)
        value: Tensor = rates.flatten(1).mean(-1).reshape(s.shape)
        return value

    def rate_by_clock(self, s: Tensor, whitener: Tensor, g2: Tensor) -> Tensor:
        return mean_volume_rate(s, whitener, g2)

    @property
    def ends(self) -> Tensor:
        return self(torch.stack([self.diffusion.start_time, as_times(self.diffusion.horizon)]))

    def inverse(self, value: Tensor) -> Tensor:
        value = as_times(value)
        with torch.no_grad():
            s = self._root(value.detach().flatten()).reshape(value.shape)
        learned = value.requires_grad or self.cells.is_learned()
        if not (learned and torch.is_grad_enabled()):
            return s
        inside = s.clamp(self.diffusion.start_time.item(), self.diffusion.horizon)
        return s + differentiable_once((value - self(inside)) / self.rate(inside).detach())

    def _root(self, wanted: Tensor) -> Tensor:
        """The time, by safe Newton steps from a table, in the logarithm of the common clock."""
        times, volumes = self.cells.unless_moved(
            "log volume", self.diffusion.start_time, self._table
        )
        i = torch.searchsorted(volumes, wanted).clamp(1, KNOTS - 1)
        low, high = times[i - 1], times[i]
        s: Tensor = low + (high - low) * (
            (wanted - volumes[i - 1]) / volumes[i].sub(volumes[i - 1])
        ).clamp(0, 1)
        for _ in range(60):
            error = self(s) - wanted
            low, high = torch.where(error < 0, s, low), torch.where(error < 0, high, s)
            step = s - error / self.rate(s)
            inside = (step >= low) & (step <= high)
            s = torch.where(inside, step, (low + high) / 2)
            if bool((error.abs() < 1e-6).all()):
                break  # the error of a Newton step is its square
        return s

    def _table(self) -> tuple[Tensor, Tensor]:
        """Times from ε to T, evenly spaced in the logarithm of the clock, and log volume there."""
        times = even_times(self.diffusion, LogClock(self.diffusion), KNOTS)
        return times, self(times)


def _vector(s: Times) -> Tensor:
    """Times in float64, a single one as (1,)."""
    s = as_times(s)
    return s.reshape(1) if s.dim() == 0 else s


def _merged(laws: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """Named tuples of tensors, nested ones too, joined leaf by leaf."""
    one = laws[0]
    if one is None or isinstance(one, int | float):
        return one
    if isinstance(one, Tensor):
        return join(list(laws))
    joined = [_merged(leaf, join) for leaf in zip(*laws, strict=True)]
    return type(one)(*joined) if hasattr(one, "_fields") else tuple(joined)


def _check_blocks(blocks: Sequence[LinearDiffusion]) -> None:
    check_count("len(blocks)", len(blocks), "the number of blocks")
    if len({b.num_variables for b in blocks}) > 1 or len({b.max_log_snr for b in blocks}) > 1:
        raise ValueError(
            f"blocks have K = {[b.num_variables for b in blocks]} and max_log_snr "
            f"{[b.max_log_snr for b in blocks]}, expected one of each: all dimensions have as many "
            "variables, and are handed to the decoder at one level of noise"
        )
    if any(b.cut_time is not None for b in blocks):
        raise ValueError("blocks are cut at a time, expected max_log_snr; leave out cut_time")
    if len(blocks) > 1 and any(any(b.given_ends.reach) for b in blocks):
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
    blocks = _index_map("block_of", block_of, num_blocks)
    clocks = _index_map("clock_of", clock_of, num_clocks)
    if blocks.dim() and clocks.dim() and blocks.shape != clocks.shape:
        raise ValueError(
            f"block_of has shape {tuple(blocks.shape)} and clock_of {tuple(clocks.shape)}, "
            "expected one shape, that of a datum"
        )
    one, other = torch.broadcast_tensors(blocks, clocks)
    return one.clone(), other.clone()


def _index_map(name: str, value: object, number: int) -> Tensor:
    """The index of each dimension's block or clock, 0-dim where none is given."""
    if value is None:
        return torch.zeros((), dtype=torch.long, device="cpu")
    index = torch.as_tensor(value)
    whole = not index.is_floating_point() and index.dim() > 0 and index.numel() > 0
    if not whole or int(index.min()) < 0 or int(index.max()) >= number:
        values = f"from {index.min().item()} to {index.max().item()}" if index.numel() else "empty"
        raise ValueError(
            f"{name} is {index.dtype} of shape {tuple(index.shape)}, {values}, expected integers "
            f"from 0 to {number - 1}, in as many dimensions as a datum"
        )
    return index.long()


@even_in_information.register(PerDimensionDiffusion)
def _even_where_fastest(diffusion: PerDimensionDiffusion, steps: int) -> Tensor:
    """Decreasing times that follow, at every time, the dimension that changes fastest."""
    knots = log_snr_times(diffusion, FINE)
    change = diffusion.by_dimension(lambda block, t: block.log_volume(t) - block.log_snr(t), knots)
    fastest = change.diff(dim=0).flatten(1).amax(1)
    measure = torch.cat([fastest.new_zeros(1), fastest.cumsum(0)])
    s = interpolated(torch.linspace(0, 1, steps + 1).to(measure) * measure[-1], measure, knots)
    s[0], s[-1] = diffusion.start_time, diffusion.horizon
    return s.flip(0)
