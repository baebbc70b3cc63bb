"""Permutations and signs of latents that leave the density of a program as it is.

Components of a mixture and factors have no names: with a mode of the posterior its images are modes
too, K! by permutations of K components, 2 by a sign. Particles come to some of them, and a Gaussian
to one. Which maps leave the density alone is seen by the density itself, at two values of the
latents: axes of one size are permuted, alone, with those of their plate, or with all others of that
size, and sites with real values, or slices of them, change their sign, alone or two together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_mdm.automatic.density import ProgramDensity
from pyro_mdm.support.traces import Site

__all__ = ["Symmetry"]

MOST = 4
"""The largest size of an axis that is permuted: more have more images than a mixture components."""
MOST_SITES = 12
"""The most sites of which two together change their sign."""
ROUNDINGS = 100
"""The number of roundings by which the density of an image may differ."""

Axes = tuple[tuple[str, int], ...]
"""Sites with an axis each, counted from the last, of one size."""
Signs = dict[str, Tensor]
"""A sign of each number of a site, 1 or -1."""
Values = dict[str, Tensor]
Map = TypeVar("Map", Axes, Signs)


@dataclass(frozen=True)
class Symmetry:
    """The maps that leave a density as it is, found by :meth:`from_density`."""

    density: ProgramDensity
    latents: tuple[tuple[str, Site], ...]  # by name, with a value of each
    permuted: tuple[Axes, ...]  # together
    signs: tuple[Signs, ...]  # changed together

    @classmethod
    def from_density(
        cls,
        density: ProgramDensity,
        latents: Iterable[tuple[str, Site]],
        log_density: Callable[[Tensor], Tensor],
        x: Tensor,
    ) -> Symmetry:
        """The maps that leave log_density (n, dim) -> (n,) as it is at two values x (2, dim)."""
        sites = tuple(latents)
        candidates: list[Axes | Signs] = [*_axes(sites), *_signs(sites)]
        values = density.by_site(x)
        images = [x] + [_image(candidate, values, sites) for candidate in candidates]
        stacked = torch.cat(images)
        log_p = torch.cat([log_density(rows) for rows in stacked.split(64)])
        log_p = (log_p - density.log_jacobian(stacked)).view(-1, 2)
        rounding = ROUNDINGS * torch.finfo(x.dtype).eps
        same = torch.isclose(log_p[1:], log_p[:1], rtol=rounding, atol=rounding)
        holds = (same & log_p[:1].isfinite()).all(1).tolist()
        kept = list(itertools.compress(candidates, holds))
        permuted = [axes for axes in kept if isinstance(axes, tuple)]
        signs = [one for one in kept if isinstance(one, dict)]
        return cls(density, sites, tuple(_smallest(permuted)), tuple(_smallest(signs)))

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.permuted or self.signs)

    def __str__(self) -> str:
        permuted = [f"permutations of {_named(axes)}" for axes in self.permuted]
        return ", and ".join(permuted + [f"signs of {_named(signs)}" for signs in self.signs])

    @torch.no_grad()
    def scattered(self, x: Tensor) -> Tensor:
        """Images of unconstrained latents x (n, dim), drawn for each row, (n, dim)."""
        if not self:
            return x
        values = self.density.by_site(x)
        for axes in self.permuted:
            size = values[axes[0][0]].shape[axes[0][1]]
            order = torch.rand(len(x), size).argsort(1).to(x.device)
            for name, axis in axes:
                moved = values[name].movedim(axis, 1)
                index = order.view(*order.shape, *(1,) * (moved.dim() - 2)).expand_as(moved)
                values[name] = moved.gather(1, index).movedim(1, axis)
        for signs in self.signs:
            changes = (torch.rand(len(x)) < 0.5).to(x.device)
            for name, sign in signs.items():
                shape = (len(x), *(1,) * sign.dim())
                values[name] = torch.where(changes.view(shape), values[name] * sign, values[name])
        images = _rows(values, self.latents)
        return torch.where(images.isfinite().all(1, keepdim=True), images, x)


def _image(candidate: Axes | Signs, values: Values, sites: tuple[tuple[str, Site], ...]) -> Tensor:
    """The image of two values by site, (2, *shape), as rows (2, dim); NaN outside of a support."""
    if isinstance(candidate, dict):
        image = values | {name: values[name] * sign for name, sign in candidate.items()}
    else:
        image = values | {name: _swapped(values[name], axis) for name, axis in candidate}
    return _rows(image, sites)


def _rows(values: Values, sites: tuple[tuple[str, Site], ...]) -> Tensor:
    """Unconstrained latents (n, dim) of values by site; not finite outside of a support."""
    columns = [biject_to(site["fn"].support).inv(values[name]) for name, site in sites]
    return torch.cat([column.reshape(len(column), -1) for column in columns], 1)


def _swapped(value: Tensor, axis: int) -> Tensor:
    """Two rows have two maps that generate all permutations: a swap, and a rotation."""
    first, second = value.unbind(0)
    order = [1, 0, *range(2, value.shape[axis])]
    index = torch.tensor(order, device=value.device)
    return torch.stack([first.index_select(axis, index), second.roll(1, axis)])


def _axes(sites: tuple[tuple[str, Site], ...]) -> Iterator[Axes]:
    """Axes of one size, alone, with those of their plate, and all."""
    sizes: dict[int, list[tuple[str, int]]] = {}
    plates: dict[str, list[tuple[str, int]]] = {}
    for name, site in sites:
        shape = site["value"].shape
        for axis in range(-len(shape), 0):
            if 2 <= shape[axis] <= MOST:
                sizes.setdefault(shape[axis], []).append((name, axis))
        for frame in site["cond_indep_stack"]:
            if frame.dim is not None and 2 <= (frame.size or 0) <= MOST:
                axis = frame.dim - site["fn"].event_dim
                plates.setdefault(frame.name, []).append((name, axis))
    alone = [((name, axis),) for pairs in sizes.values() for name, axis in pairs]
    joint = [tuple(pairs) for pairs in (*plates.values(), *sizes.values())]
    yield from dict.fromkeys([*alone, *joint])


def _signs(sites: tuple[tuple[str, Site], ...]) -> Iterator[Signs]:
    """Signs of sites with real values, alone and two together, and of slices of one size."""
    real: dict[str, Tensor] = {}
    for name, site in sites:
        support = site["fn"].support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if support in (constraints.real, constraints.real_vector):
            real[name] = torch.ones_like(site["value"])
    yield from ({name: -one} for name, one in real.items())
    if len(real) <= MOST_SITES:
        for first, second in itertools.combinations(real, 2):
            yield {first: -real[first], second: -real[second]}
    for size in range(2, MOST + 1):
        pairs = ((name, axis) for name, one in real.items() for axis in range(-one.dim(), 0))
        axes = [(name, axis) for name, axis in pairs if real[name].shape[axis] == size]
        for k in range(size if axes else 0):
            yield {name: real[name].index_fill(axis, torch.tensor(k), -1.0) for name, axis in axes}


def _smallest(candidates: list[Map]) -> list[Map]:
    """Those of which no smaller ones are a subset, which generate them."""
    names = [{key if isinstance(key, str) else key[0] for key in one} for one in candidates]
    is_smallest = [not any(fewer < one for fewer in names) for one in names]
    return list(itertools.compress(candidates, is_smallest))


def _named(names: Axes | Signs) -> str:
    """The sites in words."""
    return ", ".join(repr(name if isinstance(name, str) else name[0]) for name in names)
