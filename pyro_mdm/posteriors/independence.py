r"""The data of a program that are independent given its parameters, and those exchangeable.

Data are in one group if a common site feeds them, other than parameters (:func:`grouped`). Then the
program is run with some values held and all others drawn anew: the distributions of held values
have to stay the same (:class:`Laws`). If in doubt, data stay together, with a note of the reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.posteriors.dependence import ProgramRun, run_holding
from pyro_mdm.support.traces import Site, is_computed

__all__ = ["SUPPORT_RUNS", "Group", "Laws", "Parts", "Plate", "grouped", "plates_of"]

SUPPORT_RUNS = 4
"""The number of runs that have to agree on supports and shapes, and are compared."""

RTOL, ATOL = 1e-5, 1e-4
"""The tolerances within which log densities are the same, ATOL in nats. Computed values are the
same within ATOL times their range."""

FRESH = 1000
"""The first seed of runs with held values, away from the seeds of other runs."""

ALL = torch.tensor(True)
"""The mask of values that are held at all places."""


class Plate(NamedTuple):
    """A plate that a site is in."""

    name: str
    size: int
    dim: int  # the dimension of the site's value along the plate, negative


def plates_of(site: Site) -> tuple[Plate, ...]:
    """The plates of a site of a trace that are entered by ``with`` and are in its value's shape."""
    plates, shape = [], site["value"].shape
    for frame in site["cond_indep_stack"]:
        if frame.dim is None:
            continue
        dims = [d for d in range(-len(shape), 0) if shape[d] == frame.size]
        dim = frame.dim - site["fn"].event_dim
        if dim not in dims and is_computed(site) and len(dims) == 1:
            dim = dims[0]  # a computed value has no batch shape, only one event
        if dim in dims:
            plates.append(Plate(frame.name, frame.size, dim))
    return tuple(plates)


class Group(NamedTuple):
    """The data that depend on common sites."""

    data: list[str]  # names of sites
    sites: set[str]  # the data and all sites that they depend on given the parameters


Parts = list[tuple[str | None, list[str]]]
"""The names of data that are independent of others given the parameters, with their plate."""


def grouped(
    latent: Sequence[str], data: Sequence[str], parents: Mapping[str, Collection[str]]
) -> tuple[dict[str, list[str]], list[Group], list[str]]:
    """The parameters that data depend on by site, the groups of data that depend on common sites,
    and the reasons why there are not more groups, given the sites that feed each site directly."""

    def above(name: str) -> set[str]:
        """The sites that feed a site, except parameters and sites that feed only these."""
        reached, waiting = set[str](), [name]
        while waiting:
            new = {p for p in parents[waiting.pop()] if p not in latent} - reached
            reached |= new
            waiting += new
        return reached

    behind = {name: {name} | above(name) for name in data}
    everything = set[str]().union(*behind.values())
    for parameter in latent:
        if led := above(parameter) & everything:
            note = (
                f"{min(led)!r} feeds the parameter {parameter!r} and data, so that data depend on "
                "each other given the parameters; if it is not data, name it in latent too"
            )
            return {name: list(latent) for name in data}, [], [note]
    groups: list[Group] = []
    for name, sites in behind.items():
        linked = [group for group in groups if group.sites & sites]
        names = [*(n for group in linked for n in group.data), name]
        joined = Group(names, sites.union(*(group.sites for group in linked)))
        groups = [*(group for group in groups if group not in linked), joined]
    feeding = {n: set[str]().union(*(parents[s] for s in sites)) for n, sites in behind.items()}
    return {n: [p for p in latent if p in feeding[n]] for n in data}, groups, []


class Laws:
    """The distributions of sites given the parameters, compared between places and runs; ``nodes``
    are the sites of one run of the program by name."""

    def __init__(
        self, program: Callable[..., object], latent: Sequence[str], nodes: Mapping[str, Site]
    ) -> None:
        self.program, self.latent, self.nodes = program, latent, nodes
        self.plates = {name: {p.name: p for p in plates_of(s)} for name, s in self.nodes.items()}

    def completed(self, parents: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
        """The sites that feed each site directly, with parameters that following values missed.

        One parameter at a time is drawn anew while all else is held: it feeds the sites whose
        distributions change.
        """
        all_parents = {name: set(names) for name, names in parents.items()}
        drawn = [name for name in parents if not is_computed(self.nodes[name])]
        for parameter in self.latent:
            for seed in range(2):
                reference = run_holding(self.program, {}, seed)
                names = {*drawn, *self.latent} - {parameter}
                held = {n: (v, ALL) for n, v in reference.values.items() if n in names}
                run = run_holding(self.program, held, FRESH + seed)
                for name in parents:
                    if name != parameter and not self._is_same(name, reference, run):
                        all_parents[name].add(parameter)
        return all_parents

    def parts(self, groups: Sequence[Group]) -> tuple[Parts, list[str]]:
        """The data of groups that are independent given the parameters, by name with their plate,
        and the reasons why there are not more parts."""
        by_plate: dict[str, Group] = {}
        rest, notes, odd = list[Group](), list[str](), dict[str, set[str]]()
        for group in groups:
            for plate in self.plates[group.data[0]].values():
                if plate.size < 2:
                    continue
                if outside := [s for s in group.sites if plate.name not in self.plates[s]]:
                    notes.append(
                        f"data in the plate {plate.name!r} are not independent given the "
                        f"parameters, as {min(outside)!r} is outside of it; if it is not data, "
                        "name it in latent too"
                    )
                    continue
                if plate.name not in odd:
                    odd[plate.name] = self._odd(plate, set().union(*(g.sites for g in groups)))
                if strange := group.sites & odd[plate.name]:
                    notes.append(self._note_of(plate, group, strange))
                    continue
                old = by_plate.get(plate.name, Group([], set()))
                joined = Group([*old.data, *group.data], old.sites | group.sites)
                by_plate[plate.name] = joined
                break
            else:
                rest.append(group)
        if not self._are_apart([*by_plate.values(), *rest]):
            names = [name for group in groups for name in group.data]
            notes.append(
                f"{', '.join(names)} are not seen to be independent given the parameters: "
                "distributions change where all that feeds them is held, or are not known; draw "
                "all random numbers by pyro.sample"
            )
            return [(None, names)], notes
        parts: Parts = [(plate, group.data) for plate, group in by_plate.items()]
        return [*parts, *((None, group.data) for group in rest)], notes

    def _note_of(self, plate: Plate, group: Group, strange: set[str]) -> str:
        """The reason why data are one datum in a plate, with a warning where it is not known."""
        # random numbers are not seen where a distribution changes though all values are held
        reference = run_holding(self.program, {}, 0)
        drawn = [n for n in reference.values if not is_computed(self.nodes[n])]
        run = run_holding(self.program, {n: (reference.values[n], ALL) for n in drawn}, FRESH)
        if unknown := sorted(n for n in strange if not self._is_same(n, reference, run)):
            note = (
                f"random numbers of {unknown[0]!r} in the plate {plate.name!r} are not seen, as "
                "its values come from outside of pyro.sample, or its distribution has no density, "
                f"so that {', '.join(group.data)} counts as one datum of {plate.size} places, "
                "expected exchangeable data that are learned one by one; if they are independent "
                "given the parameters, with one distribution, say so by "
                f"exchangeable=({plate.name!r},)"
            )
            warnings.warn(note, stacklevel=2)
            return note
        return (
            f"data in the plate {plate.name!r} are not exchangeable given the parameters: the "
            f"distribution of {min(strange)!r} differs between places or depends on other places"
        )

    def _odd(self, plate: Plate, sites: set[str]) -> set[str]:
        """The sites in a plate whose distribution differs between places or depends on others.

        One place's values are held at half of the places, then at the other half, and all else is
        drawn anew. For any two places there is a run that holds the first and not the second.
        """
        dims = {
            name: self.plates[name][plate.name].dim
            for name in sites
            if plate.name in self.plates[name] and self.plates[name][plate.name].size == plate.size
        }
        odd = sites - dims.keys()
        for seed, halves in _halvings(plate.size):
            reference, place = run_holding(self.program, {}, seed), seed % plate.size
            if not dims.keys() <= reference.values.keys():
                return sites
            for half in halves:
                held = {name: (reference.values[name], ALL) for name in self.latent}
                for name, dim in dims.items():
                    if not is_computed(self.nodes[name]):
                        value = reference.values[name].narrow(dim, place, 1)
                        held[name] = value, half.reshape(-1, *[1] * (-dim - 1))
                run = run_holding(self.program, held, FRESH + seed)
                for name, dim in dims.items():
                    if not is_computed(self.nodes[name]):
                        dim = dim + self.nodes[name]["fn"].event_dim
                    if not self._is_same(name, reference, run, (dim, place, half)):
                        odd.add(name)
        return odd

    def _are_apart(self, groups: Sequence[Group]) -> bool:
        """Whether the distributions of some groups stay the same if others are drawn anew.

        For any two groups there is a run that holds the first and not the second.
        """
        if len(groups) < 2:
            return True
        for seed, halves in _halvings(len(groups)):
            reference = run_holding(self.program, {}, seed)
            if not reference.values:
                return False
            for half in halves:
                held_groups = [group for group, held in zip(groups, half, strict=True) if held]
                sites = set[str]().union(*(group.sites for group in held_groups))
                drawn = {name for name in sites if not is_computed(self.nodes[name])}
                held = {name: (reference.values[name], ALL) for name in drawn.union(self.latent)}
                run = run_holding(self.program, held, FRESH + seed)
                if not all(self._is_same(name, reference, run) for name in sites):
                    return False
        return True

    def _is_same(
        self,
        name: str,
        reference: ProgramRun,
        run: ProgramRun,
        at: tuple[int, int, Tensor] | None = None,
    ) -> bool:
        """Whether a site's distribution is the same in two runs; or, with a dimension, a place and
        the mask of other places, at that place of the first and at those of the second."""
        if name not in reference.laws or name not in run.laws:
            return False
        old, new = reference.laws[name].double(), run.laws[name].double()
        rtol, atol = RTOL, ATOL
        if is_computed(self.nodes[name]):
            rtol, atol = 0.0, ATOL * float(old.max() - old.min())
        if at is not None:
            dim, place, mask = at
            old, new = old.movedim(dim, 0)[place], new.movedim(dim, 0)[mask]
        return torch.allclose(new, old.expand_as(new), rtol=rtol, atol=atol)


def _halvings(n: int) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """The halves of n indices by each binary digit, two masks (n,) bool, with a seed."""
    digits = max(1, (n - 1).bit_length())
    for seed in range(max(SUPPORT_RUNS, digits)):
        half = (torch.arange(n) >> seed % digits) % 2 == 0
        yield seed, (half, ~half)
