"""The density of a program whose plate draws a subsample: of its globals, and of each row.

Given the globals, rows of the plate are independent. So

    log p(x, z, data) = log p(x) + Σ_i log p(z_i, data_i | x),

and a subsample of B of N rows, drawn without replacement, estimates the sum without bias by N / B
times its own, as Pyro scales it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyro_mdm.automatic.density import ProgramDensity, alike, placed, run
from pyro_mdm.support.traces import Site, sample_sites

__all__ = ["PlateDensity", "Terms"]

SUBSAMPLES = 8
"""Subsamples by which it is seen whether a program takes the rows that the plate draws."""


class Terms(NamedTuple):
    """Log densities with Jacobians, nats, not scaled."""

    alone: Tensor  # of the globals and of data outside of the plate, (n,)
    rows: Tensor  # of each row's latents and data, (n, B)


class _Local(NamedTuple):
    """A latent of the plate."""

    site: Site
    shape: tuple[int, ...]  # of a row's unconstrained values
    axis: int  # of the plate in the unconstrained value, negative
    size: int


class PlateDensity(ProgramDensity):
    """log p of unconstrained globals and of rows of a plate that draws a subsample.

    Args:
        program: the program.
        trace: trace of one run of the program.
        unpack: function from packed globals, (dim,), to the sites with their values.
        plate: name of the plate.
    """

    def __init__(
        self,
        program: Callable[..., object],
        trace: poutine.Trace,
        unpack: Callable[[Tensor], Iterable[tuple[Site, Tensor]]],
        plate: str,
    ) -> None:
        super().__init__(program, trace, unpack)
        if self._is_summed:
            raise ValueError(
                f"the plate {plate!r} draws a subsample of its rows, and the program has discrete "
                "latents, expected continuous ones; sum over them by hand, e.g. by "
                "dist.MixtureSameFamily, or take all rows"
            )
        self.plate: str = plate
        frame = self._frames[plate]
        if frame.dim is None:
            raise ValueError(
                f"the plate {plate!r} is a loop over a subsample, expected rows at once; write "
                f"with pyro.plate({plate!r}, …)"
            )
        self.dim: int = frame.dim
        self.batch, self.size = int(frame.size), int(frame.full_size or frame.size)
        self._locals = [self._local(site) for site in self._latents if self._is_inside(site)]
        self.row_dim = sum(local.size for local in self._locals)

    def _is_inside(self, site: Site) -> bool:
        return any(frame.name == self.plate for frame in site["cond_indep_stack"])

    def _local(self, site: Site) -> _Local:
        transform = biject_to(site["fn"].support)
        shape = list(transform.inv(site["value"]).shape)
        axis = self.dim - (site["fn"].event_dim + len(shape) - site["value"].dim())
        del shape[axis]
        return _Local(site, tuple(shape), axis, torch.Size(shape).numel())

    @property
    def local_sites(self) -> list[Site]:
        """The latents of the plate."""
        return [local.site for local in self._locals]

    def subsample(self) -> Tensor:
        """The rows of a subsample, (B,)."""
        return torch.randperm(self.size)[: self.batch]

    def start(self) -> Tensor:
        """A value of a row's latents, (row_dim,): the mean over rows of those at the start."""
        rows = [torch.zeros(0)]
        for site, _, axis, _ in self._locals:
            u = biject_to(site["fn"].support).inv(site["value"].detach())
            rows.append(u.movedim(axis, 0).reshape(self.batch, -1).mean(0))
        return torch.cat(rows)

    def _near_start(self, x: Tensor) -> Tensor:
        """Latents of rows near the start, (n, B, row_dim), beside globals x (n, dim)."""
        return self.start().to(x) + 0.1 * torch.randn(len(x), self.batch, self.row_dim).to(x)

    def unpacked(self, z: Tensor) -> Iterator[tuple[Site, Tensor]]:
        """The latents of rows z (…, B, row_dim) by site, unconstrained, (…, *shape)."""
        pieces = z.split([local.size for local in self._locals], -1)
        for local, piece in zip(self._locals, pieces, strict=True):
            value = piece.reshape(*z.shape[:-1], *local.shape)
            yield local.site, value.movedim(z.dim() - 2, local.axis)

    def rows_by_site(self, z: Tensor) -> dict[str, Tensor]:
        """Latents of rows z (n, rows, row_dim) in their supports, by site, (n, *shape)."""
        return {site["name"]: placed(site, u)[0] for site, u in self.unpacked(z)}

    def terms(
        self, x: Tensor, z: Tensor, index: Tensor, /, *args: object, **kwargs: object
    ) -> Terms:
        """log p of globals x (n, dim) and of rows index (B,) with latents z (n, B, row_dim)."""
        result = self(torch.cat([x, z.flatten(1)], 1), index, *args, **kwargs)
        return Terms(result[:, 0], result[:, 1:])

    def __call__(self, packed: Tensor, index: Tensor, /, *args: object, **kwargs: object) -> Tensor:  # type: ignore[override]
        """The terms of packed globals and rows (n, dim + B row_dim), as (n, 1 + B)."""

        def of_one(row: Tensor) -> tuple[Tensor, list[Tensor]]:
            return self._terms_at(row, index, *args, **kwargs), []

        with pyro.validation_enabled(False):
            return self._of_rows(of_one, packed)[0]

    def _sites(self, packed: Tensor) -> Iterable[tuple[Site, Tensor]]:
        inside = self.batch * self.row_dim
        x, z = packed.split([len(packed) - inside, inside])
        return [*self._unpack(x), *self.unpacked(z.reshape(self.batch, self.row_dim))]

    def _terms_at(self, packed: Tensor, index: Tensor, *args: object, **kwargs: object) -> Tensor:
        values: dict[str, Tensor] = {self.plate: index}
        alone, rows = packed.new_zeros(()), packed.new_zeros(self.batch)
        terms: list[tuple[Site, Tensor, float]] = []
        for site, u in self._sites(packed):
            values[site["name"]], log_det = placed(site, u)
            terms.append((site, log_det, 1.0))
        trace = run(poutine.condition(self.program, data=values), *args, **kwargs)
        trace.compute_log_prob()
        scale = self.batch / self.size
        terms += [(site, site["log_prob"], scale) for site in sample_sites(trace).values()]
        for site, term, scale in terms:
            if self._is_inside(site):
                rows = rows + self._by_row(term) * scale
            else:
                alone = alone + term.sum()
        return torch.cat([alone[None], rows])

    def _by_row(self, terms: Tensor) -> Tensor:
        """The sum of each row, (B,), of terms that have the plate's dimension."""
        shape = torch.broadcast_shapes(terms.shape, (self.batch, *(1,) * (-self.dim - 1)))
        return terms.expand(shape).movedim(self.dim, 0).reshape(self.batch, -1).sum(1)

    # -- checks ------------------------------------------------------------------------------------

    def check(self, x: Tensor, *args: object, **kwargs: object) -> None:
        """Raise ValueError unless rows have one density each, and are those that the plate draws,
        by two values x of the globals, (2, dim)."""
        self._check_laws()
        self._check_latents(*args, **kwargs)
        z, index = self._near_start(x), self.subsample()
        packed = torch.cat([x, z.flatten(1)], 1)
        self._terms_at(packed[0], index, *args, **kwargs)  # by Pyro's checks
        fix = "give the whole program, in which no site that is drawn is hidden"
        self._check_density(fix, packed, index, *args, **kwargs)
        self._check_rows(x, z, index, *args, **kwargs)
        self._check_indices(x, z, *args, **kwargs)

    def _check_rows(
        self, x: Tensor, z: Tensor, index: Tensor, *args: object, **kwargs: object
    ) -> None:
        """Raise ValueError if half of the rows have another density beside other rows."""
        half = self.batch // 2
        others, beside = z.clone(), index.clone()
        others[:, half:] += 0.1 * torch.randn_like(z[:, half:])
        beside[half:] = (index[half:] + self.batch) % self.size
        first = self.terms(x, z, index, *args, **kwargs)
        again = self.terms(x, others, beside, *args, **kwargs)
        for what, one, other in (
            (f"rows of the plate {self.plate!r}", first.rows[:, :half], again.rows[:, :half]),
            ("sites outside of it", first.alone[:, None], again.alone[:, None]),
        ):
            if not alike(one, other):
                at = (one - other).abs().nan_to_num().argmax()
                raise ValueError(
                    f"{what} have another density beside other rows of the plate {self.plate!r} "
                    f"({float(one.flatten()[at]):.6g}, then {float(other.flatten()[at]):.6g}), "
                    "expected rows that are independent given the latents outside; take all rows, "
                    "without subsample_size"
                )

    def _check_indices(self, x: Tensor, z: Tensor, *args: object, **kwargs: object) -> None:
        """Raise ValueError if data stay the same when the plate draws other rows."""
        same = z[:, :1].expand_as(z)
        rows = [
            self.terms(x, same, self.subsample(), *args, **kwargs).rows for _ in range(SUBSAMPLES)
        ]
        differs = not alike(rows[0], rows[0][:, :1].expand_as(rows[0]))
        if differs and all(alike(rows[0], others) for others in rows[1:]):
            raise ValueError(
                f"data of the plate {self.plate!r} stay the same when it draws other rows, "
                f"expected those that it draws; give the program all data, and take data[rows] in "
                f"with pyro.plate({self.plate!r}, …) as rows"
            )

    def check_slope(self, x: Tensor, *args: object, **kwargs: object) -> None:
        packed = torch.cat([x, self._near_start(x).flatten(1)], 1)
        super().check_slope(packed, self.subsample(), *args, **kwargs)
