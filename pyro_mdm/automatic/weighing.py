"""Draws of a guide for its program's data, and their importance weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_mdm.automatic.chain import Chain
from pyro_mdm.automatic.defensive import Defensive, Scored, defended
from pyro_mdm.automatic.density import ProgramDensity
from pyro_mdm.automatic.draws import row
from pyro_mdm.automatic.moments import uneven
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.evaluation.weights import ImportanceWeights
from pyro_mdm.support.traces import Site

__all__ = ["OF_TAILS", "Weighing", "paths_at_once", "refuse_subsample"]

SYSTEM = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")

AT_A_TIME = 1_000
"""The number of paths that are drawn together."""
ROUNDED = 5.0
"""The nats by which rounding may change the density of a large weight without a warning."""
OF_MEMORY = 0.5
"""The share of the free memory that paths may take."""
ENOUGH = 30
"""The number of draws for each latent by which correlations are estimated."""
OF_TAILS = (
    "train longer, with more steps, or with start='particles'; a program whose posterior has heavy "
    "tails, or none that is proper, has such weights always"
)
"""The advice for weights that mislead."""


class WeighedGuide(Protocol):
    """What is asked of a guide by a chain, as of ``ChainGuide``."""

    loc: Tensor
    latent_dim: int
    chain: Chain
    program_density: ProgramDensity

    @property
    def names(self) -> list[str]: ...

    def set_up(self, *args: object, **kwargs: object) -> None: ...

    def latents(self) -> Iterable[tuple[str, Site]]: ...

    def ratio(self, *args: object, **kwargs: object) -> Ratio: ...

    def get_posterior(self, *args: object, **kwargs: object) -> TorchDistribution: ...

    def of_all_rows(
        self,
        x: Tensor,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        *,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor]: ...


class Weighing:
    """The draws of a guide and their weights, for the arguments of its program.

    Args:
        guide: the guide, which this sets up.
        args, kwargs: arguments of the program.
    """

    def __init__(
        self,
        guide: WeighedGuide,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> None:
        self.guide, self.args, self.kwargs = guide, args, kwargs or {}
        self.guide.set_up(*self.args, **self.kwargs)

    def paths(self, n: int, *, keep: bool = False) -> Scored:
        """n draws with the densities of their paths."""
        law = self.guide.get_posterior(*self.args, **self.kwargs).expand((n,))
        x = law.rsample()
        return self._scored(x, law.log_prob(x), keep)

    def paths_to(self, x: Tensor, *, keep: bool = False) -> Scored:
        """Noising paths from unconstrained latents x (n, latent_dim) with their densities."""
        ratio, u = self._ratio().ending_at(x)
        log_q = self.guide.chain.noising_cost(ratio, u) + ratio.log_unit(u)
        return self._scored(x, log_q, keep)

    def _ratio(self) -> Ratio:
        return self.guide.ratio(*self.args, **self.kwargs)

    def _scored(self, x: Tensor, log_q: Tensor, keep: bool) -> Scored:
        log_p, kept = self.guide.of_all_rows(x, self.args, self.kwargs, keep=keep)
        return Scored(x, log_p.double(), log_q.double(), kept)

    @torch.no_grad()
    def drawn(self, n: int, *, keep: bool = False) -> Scored:
        """n draws, a few at a time, with a warning of densities that are none."""
        self._check_memory(n)
        sizes = [len(rows) for rows in torch.arange(n).split(self._at_a_time)]
        scored = _joined([self.paths(size, keep=keep) for size in sizes])
        if lost := int(scored.is_impossible.sum()):
            warnings.warn(
                f"{lost:,} of {n:,} draws have a density that is NaN or infinite, expected none, "
                "and count as impossible; mend the program",
                stacklevel=5,
            )
        return scored

    @property
    def _at_a_time(self) -> int:
        return paths_at_once(self.guide, AT_A_TIME)

    def _check_memory(self, n: int) -> None:
        """Raise MemoryError if there is none for the latents of n draws, and four copies."""
        loc, d = self.guide.loc, self.guide.latent_dim
        most = OF_MEMORY * free_bytes(loc.device) / (4 * loc.element_size() * max(1, d))
        if n > most:
            raise MemoryError(
                f"{n:,} draws of {d:,} latents are too many for the memory, expected at most "
                f"{most:,.0f}; take fewer, several times"
            )

    def weighted(self, n: int, *, keep: bool = False) -> tuple[Tensor, Tensor]:
        """n draws of the guide alone, and their log weights, whose mean is the bound."""
        drawn = self.drawn(n, keep=keep)
        log_weights = drawn.log_target - drawn.log_proposal
        return drawn.kept, log_weights.nan_to_num(-math.inf, -math.inf, -math.inf)

    @torch.no_grad()
    def weighed(self, n: int, *, keep: bool = False) -> tuple[Tensor, ImportanceWeights]:
        """n draws, and their weights, a quarter of which have heavy tails.

        These are around the components of a mixture, or in units of a start with a shape, or else
        in the latents. All draws are the guide's where no path leads back from given latents, and
        where there are fewer than 16.
        """
        loc, units, h = self.guide.loc, self._ratio(), None
        if units.mixture is not None:
            h = Defensive(*(tensor.double() for tensor in units.mixture.components()))
        elif units.shape is None and n > ENOUGH * self.guide.latent_dim:
            units = Ratio(units.log_density, 0 * loc, torch.eye(len(loc)).to(loc))

        def in_units(scored: Scored, u: Tensor) -> Scored:
            log_det = units.log_volume(u).double()
            log_p, log_q = scored.log_target + log_det, scored.log_proposal + log_det
            return Scored(u, log_p, log_q, scored.kept)

        def drawn(few: int) -> Scored:
            scored = self.drawn(few, keep=keep)
            return in_units(scored, units.units(scored.x))

        def at(u: Tensor) -> Scored:
            u = u.to(loc)
            self._check_memory(len(u))
            pieces = units.place(u).split(self._at_a_time)
            return in_units(_joined([self.paths_to(x, keep=keep) for x in pieces]), u)

        if n >= 16 and self._leads_back():
            kept, log_weights, defence = defended(drawn, at, n, h, self.rounding)
            return kept, ImportanceWeights(log_weights, defence)
        kept, log_weights = self.weighted(n, keep=keep)
        return kept, ImportanceWeights(log_weights)

    def rounding(self, x: Tensor) -> Tensor:
        """How far the density of draws x (n, latent_dim) is above that in float64, (n,) nats; 0
        where the program has no such run, or another density at the middle of the start too."""
        density, none = self.guide.program_density, torch.zeros(len(x), dtype=torch.float64)
        if density.plate is not None or x.dtype == torch.float64:
            return none
        x = torch.cat([self.guide.loc.detach()[None], x])
        try:
            exact = density.in_float64(x, *self.args, **self.kwargs)
        except RuntimeError:  # it mixes precisions
            return none
        middle, *_ = errors = density(x, *self.args, **self.kwargs) - exact
        if not abs(float(middle)) <= ROUNDED:
            return none
        error = errors[1:]
        if bool((wrong := ~(error.abs() <= ROUNDED)).any()):
            warnings.warn(
                f"rounding changes the density of {int(wrong.sum()):,} draws with large weights by "
                f"up to {float(error.abs().nan_to_num(math.inf).max()):.3g} nats, expected at most "
                f"{ROUNDED:g}; they have that of float64, and others that of float32: run the "
                "program in float64, torch.set_default_dtype(torch.float64)",
                stacklevel=6,
            )
        return error.nan_to_num(math.inf)  # impossible

    def _leads_back(self) -> bool:
        """Whether the start has an inverse, so that a path leads from given latents to noise."""
        try:
            self._ratio().units(self.guide.loc[None])
        except NotImplementedError:
            return False
        return True

    @torch.no_grad()
    def two_sided(self, latents: Mapping[str, Tensor], paths: int) -> tuple[Tensor, Tensor]:
        """Log weights of the guide's paths, and of noising paths from latents by site, (paths,).

        The mean of the first is a lower bound on log p(data) in expectation; that of the second is
        an upper one where the latents are an exact draw of the posterior.
        """
        x = row(latents, self.guide.latents()).repeat(paths, 1)
        return self.weighted(paths)[1], self.noised(x)

    def noised(self, x: Tensor) -> Tensor:
        """Log weights of noising paths from unconstrained latents x (n, latent_dim), (n,) nats."""
        refuse_subsample(self.guide, "weights of noising paths")
        noised = self.paths_to(x)
        return noised.log_target - noised.log_proposal

    def looked_at(self, n: int) -> tuple[Tensor, ImportanceWeights]:
        """n draws, kept, and their weights; warns of weights that mislead, and of the latent whose
        deviations differ between halves of the draws."""
        x, weights = self.weighed(n, keep=True)
        weights.warn(OF_TAILS, stacklevel=4)
        if (differs := uneven(x[:, : self.guide.latent_dim], weights)) is not None:
            at, low, high = differs
            warnings.warn(
                f"{self.guide.names[at]!r} has a deviation of {low:.3g} in one half of the draws "
                f"and of {high:.3g} in the other, unconstrained, expected about the same: a tail "
                "has few draws, and the deviation is likely too small; take more draws, or train "
                "longer",
                stacklevel=3,
            )
        return x, weights


def paths_at_once(guide: WeighedGuide, most: int, *, kept: bool = False) -> int:
    """The number of paths, at most a given one, for which there is memory; MemoryError where there
    is none for one. For an update the graphs of all steps are kept."""
    free = OF_MEMORY * free_bytes(guide.loc.device)
    size = guide.program_density.bytes_of_row * (guide.chain.steps + 1 if kept else 1)
    if size > free:
        raise MemoryError(
            f"a path takes {size / 2**30:.3g} GiB, expected at most {free / 2**30:.3g} GiB, "
            f"{OF_MEMORY:.0%} of what is free; take fewer steps, or, where the program asks a "
            "learned likelihood, fewer of its paths"
        )
    return most if size == 0 else int(min(most, free // size))


def refuse_subsample(guide: WeighedGuide, what: str) -> None:
    """Raise NotImplementedError if a plate of the guide's program draws a subsample."""
    plate = getattr(getattr(guide, "program_density", None), "plate", None)
    if plate is not None:
        raise NotImplementedError(
            f"{what} are for programs with all their rows, and the plate {plate!r} draws a "
            "subsample; take all rows, without subsample_size"
        )


def _joined(pieces: list[Scored]) -> Scored:
    return Scored(*(torch.cat(tensors) for tensors in zip(*pieces, strict=True)))


def free_bytes(device: torch.device) -> float:
    """The number of bytes that a process may still take on a device; infinite where unknown.

    On the host these are Linux's figures, with the limit of a container.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = math.inf
    try:
        (line,) = [one for one in SYSTEM.read_text().splitlines() if one.startswith("MemAvail")]
        free = 1024.0 * int(line.split()[1])
        most, used = (GROUP / name for name in ("memory.max", "memory.current"))
        return min(free, float(most.read_text()) - float(used.read_text()))
    except (OSError, ValueError):  # another system, no container, or one without a limit: "max"
        return free
