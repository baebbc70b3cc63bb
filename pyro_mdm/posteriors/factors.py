"""The data of the factors of p(x | θ), by place and by site, and the values of their numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_mdm.posteriors.discrete import Lattice
from pyro_mdm.posteriors.laws import Bounds
from pyro_mdm.posteriors.reading import (
    DataFactor,
    DataSite,
    Draws,
    Names,
    Plates,
    Program,
    Structure,
    bounds_of,
    number_of,
    sites_of,
)
from pyro_mdm.support.checks import check_count

__all__ = [
    "bounds_of_factor",
    "check_exchangeable",
    "check_plates",
    "data_of",
    "factors_of",
    "inputs_of",
    "lattices_of",
    "name_of",
    "values_by_site",
]

LEAST_DISTINCT = 0.5
"""The fraction of distinct values among simulations, below which a number is discrete."""


def factors_of(structure: Structure, sites: Names) -> list[DataFactor]:
    """The factors of the named sites of the data; None: all."""
    if sites is None:
        return list(structure.factors)
    available = [site.name for site in structure.data]
    if unknown := [name for name in sites if name not in available]:
        raise ValueError(
            f"sites has {unknown[0]!r}, expected sites of the data, of {', '.join(available)}"
        )
    if not sites:
        raise ValueError(f"sites is empty, expected some of {', '.join(available)}")
    chosen = []
    for factor in structure.factors:
        names = [site.name for site in factor.sites]
        some = [name for name in names if name in sites]
        if some and len(some) < len(names):
            raise ValueError(
                f"sites has {', '.join(some)} of {name_of(factor)}, expected all of them or none, "
                "since their joint distribution is learned; name the others too"
            )
        if some:
            chosen.append(factor)
    return chosen


def check_plates(structure: Structure, plates: Plates) -> dict[str, int]:
    """The numbers of data in plates along which data are exchangeable, by name."""
    plates = dict(plates or {})
    for name, size in plates.items():
        check_exchangeable(structure, name, "plates")
        check_count(f"plates[{name!r}]", size, "the number of data")
    return plates


def check_exchangeable(structure: Structure, plate: str, argument: str) -> None:
    """Raise ValueError unless data are exchangeable along a plate, given the parameters. The
    message names the argument."""
    names = [factor.plate for factor in structure.factors if factor.plate is not None]
    if plate in names:
        return
    shapes = [
        f"{site.name!r} has shape {tuple(site.shape)} there"
        for site in structure.data
        if plate in [frame.name for frame in site.plates]
    ]
    there = f"{', '.join(shapes)}, as one datum; " if shapes else "the program has no such plate; "
    notes = f" ({'; '.join(structure.notes)})" if structure.notes and shapes else ""
    raise ValueError(
        f"{argument} has {plate!r}, expected plates along which data are exchangeable given the "
        f"parameters ({', '.join(names) or 'there are none'}){notes}; {there}leave it out"
    )


def inputs_of(inputs: Mapping[str, Tensor], factor: DataFactor) -> Tensor:
    """The inputs of networks for the parameters of a factor, (n, k), of those of each site, (n,
    inputs); one zero if it has none."""
    if factor.parameters:
        return torch.cat([inputs[name] for name in factor.parameters], 1)
    return torch.zeros(len(next(iter(inputs.values()))), 1)


def bounds_of_factor(program: Program, factor: DataFactor) -> Bounds:
    """The ends of the support of each number of a factor's datum in all places, (m,) each."""
    ends = bounds_of(program, [site.name for site in factor.sites])
    lower, upper = (factor.data({name: pair[i] for name, pair in ends.items()}) for i in (0, 1))
    return lower.amin((0, 1)), upper.amax((0, 1))


def lattices_of(program: Program, factor: DataFactor, draws: Draws) -> list[Lattice | None]:
    """The values of each number of a factor's datum, m of them, by simulations (n, *shape) by site;
    None for a real number.

    Raises:
        TypeError: numbers that repeat more often than a density can explain, and are not whole;
            numbers that are determined by others.
        ValueError: discrete numbers outside of their support.
    """
    lower, upper = (bound.tolist() for bound in bounds_of_factor(program, factor))
    x, sites = factor.data(draws), list[DataSite]()
    for site in factor.sites:
        _check_freedom(program, site)
        sites += [site] * (math.prod(site.shape) // factor.size)
    return [_lattice(site, x[:, :, j], lower[j], upper[j]) for j, site in enumerate(sites)]


def _check_freedom(program: Program, site: DataSite) -> None:
    """Raise TypeError for data on a support of fewer dimensions, where they have no density."""
    try:
        support = sites_of(program, [site.name])[site.name]["fn"].support
        free = math.prod(biject_to(support).inverse_shape(site.shape))
    except NotImplementedError:  # the support is unknown, or discrete
        return
    if free < (numbers := math.prod(site.shape)):
        raise TypeError(
            f"the {numbers} numbers of {site.name!r} have {free} degrees of freedom ({support}), "
            "expected free numbers, which have a density; observe as many of them, by "
            "pyro.deterministic"
        )


def _lattice(site: DataSite, x: Tensor, lower: float, upper: float) -> Lattice | None:
    """The values of a number x (n, places) of a site; None for a real number."""
    distinct = [place.unique().numel() for place in x.unbind(1) if bool((place != place[0]).any())]
    repeats = bool(distinct) and min(distinct) < LEAST_DISTINCT * len(x)
    if not (site.is_discrete or repeats):
        return None
    if bool((x != x.round()).any()):
        raise TypeError(
            f"a number of {site.name!r} has {min(distinct, default=1)} values in {len(x)} "
            "simulations and is not whole, expected whole numbers, which have probabilities, or "
            "numbers that do not repeat, which have a density; observe the draw that it is made "
            "from, or use AmortizedPosterior, which learns from any data"
        )
    values = [int(value) for value in x.unique().tolist()]
    gap = 1
    if not (math.isfinite(lower) or math.isfinite(upper)):
        gap = math.gcd(*(value - values[0] for value in values)) or 1
    origin = lower if math.isfinite(lower) else upper if math.isfinite(upper) else values[0]
    lattice = Lattice(float(origin), float(gap), lower, upper)
    if not bool(lattice.has(x).all()):
        raise ValueError(
            f"{site.name!r} has the values {values[0]} to {values[-1]} in the simulations, "
            f"expected whole numbers from {lower:g} to {upper:g}, its support by the program; "
            "leave others out"
        )
    return lattice


def name_of(factor: DataFactor) -> str:
    """The names of a factor's sites, for messages."""
    return ", ".join(site.name for site in factor.sites)


def data_of(factor: DataFactor, data: Mapping[str, Tensor]) -> Tensor:
    """The data of a factor by place, (n, places, m), the sites side by side.

    They are by site, (n, *shape), or one datum, (*shape), with any number of places along the
    factor's plate, and NaN where a datum is missing.
    """
    sites, by_place = [], dict[str, Tensor]()
    for site in factor.sites:
        dim, shape = factor.dim_of(site), list(site.shape)
        if dim is not None and site.name in data:
            value = torch.as_tensor(data[site.name])
            if value.dim() >= len(shape):
                by_place[site.name], shape[dim] = value.movedim(dim, 0), value.shape[dim]
        sites.append(site._replace(shape=torch.Size(shape)))
    number_of(by_place, f"data in the plate {factor.plate!r}", "give NaN where one is missing")
    x = factor._replace(sites=tuple(sites)).data(data)
    missing = x.isnan()
    if bool(x.isinf().any()):
        raise ValueError(
            f"{int(x.isinf().sum())} numbers of {name_of(factor)} are infinite, expected finite "
            "numbers; leave these data out"
        )
    if bool((missing.any(2) & ~missing.all(2)).any()):
        raise ValueError(
            f"a part of the {x.shape[2]} numbers of a datum of {name_of(factor)} is NaN, expected "
            "all or none, since their joint distribution is learned; use AmortizedPosterior.fit(…, "
            "missing=0.3), which takes any part"
        )
    return x


def values_by_site(factor: DataFactor, x: Tensor) -> Draws:
    """The data of a factor by site, (n, *shape), of x by place (n, places, m): the inverse of
    :func:`data_of`."""
    values, first = Draws(), 0
    for site in factor.sites:
        dim, shape = factor.dim_of(site), list(site.shape)
        if dim is not None:
            del shape[dim]
        size = math.prod(shape)
        value = x[:, :, first : first + size].reshape(*x.shape[:2], *shape)
        place = len(site.shape) + dim + 1 if dim is not None else 0
        values[site.name] = value.movedim(1, place) if dim is not None else value.squeeze(1)
        first += size
    return values
