r"""Which data of a program are independent given its parameters, and which are exchangeable.

Data that no common site feeds, other than parameters, are a group (:func:`grouped`). Then the
program is run with some values held and all others drawn anew: the laws of what is held have to
stay as they were (:class:`Laws`). In doubt data are together, and it is said why.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm.posteriors.dependence import ProgramRun, is_computed, run_holding

__all__ = ["SUPPORT_RUNS", "Group", "Laws", "Parts", "Plate", "grouped", "plates_of"]

SUPPORT_RUNS = 4
"""Runs of the program, in which supports and shapes have to be the same, and laws are compared."""

RTOL, ATOL = 1e-5, 1e-4
"""Tolerances within which log densities are the same, ATOL in nats. Computed values are the same
within ATOL of their spread."""

FRESH = 1000
"""The first seed of runs in which values are held, away from the seeds of other runs."""

ALL = torch.tensor(True)
"""The mask of values that are held in all places."""


class Plate(NamedTuple):
    """A plate that a site is in."""

    name: str
    size: int
    dim: int  # of the site's value that counts places, from the right: negative


def plates_of(site: Mapping[str, Any]) -> tuple[Plate, ...]:
    """Plates of a site that are entered by ``with``, and whose places its value has."""
    plates, shape = [], site["value"].shape
    for frame in site["cond_indep_stack"]:
        if frame.dim is None:
            continue
        dims = [d for d in range(-len(shape), 0) if shape[d] == frame.size]
        dim = frame.dim - site["fn"].event_dim
        if dim not in dims and is_computed(site) and len(dims) == 1:
            dim = dims[0]  # all dimensions of a computed value count as those of one event
        if dim in dims:
            plates.append(Plate(frame.name, frame.size, dim))
    return tuple(plates)


class Group(NamedTuple):
    """Data that depend on common sites."""

    data: list[str]
    sites: set[str]  # these, and what they depend on given the parameters


Parts = list[tuple[str | None, list[str]]]
"""Names of data that are independent of others given the parameters, with their plate."""


def grouped(
    latent: Sequence[str], data: Sequence[str], parents: Mapping[str, Collection[str]]
) -> tuple[dict[str, list[str]], list[Group], list[str]]:
    """Parameters that data depend on; data that depend on common sites; why there are no groups.

    Args:
        latent, data: the names of sites.
        parents: names of the sites that feed a site directly, by site.
    """

    def above(name: str) -> set[str]:
        """Sites that feed one, without parameters and what feeds it by way of them alone."""
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
    """Laws of sites given the parameters, compared between places and runs of a program.

    Args:
        program: the program, without arguments.
        latent: the names of its parameters' sites.
        nodes: sites of the program in one run, by name.
    """

    def __init__(
        self, program: Callable[..., Any], latent: Sequence[str], nodes: Mapping[str, Any]
    ) -> None:
        self.program, self.latent, self.nodes = program, latent, nodes
        self.plates = {name: {p.name: p for p in plates_of(s)} for name, s in self.nodes.items()}

    def completed(self, parents: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
        """Sites that feed each site directly, with parameters that were not seen to.

        One parameter is drawn anew and all else is held; laws that change are fed by it.
        """
        all_parents = {name: set(names) for name, names in parents.items()}
        drawn = [name for name in parents if not is_computed(self.nodes[name])]
        for parameter in self.latent:
            for seed in range(2):
                reference = run_holding(self.program, {}, seed)
                held = {n: (reference.values[n], ALL) for n in reference.values if n in drawn}
                held |= {
                    n: (reference.values[n], ALL) for n in reference.values if n in self.latent
                }
                held.pop(parameter, None)
                run = run_holding(self.program, held, FRESH + seed)
                for name in parents:
                    if name != parameter and not self._is_same(name, reference, run):
                        all_parents[name].add(parameter)
        return all_parents

    def parts(self, groups: Sequence[Group]) -> tuple[Parts, list[str]]:
        """Data that are independent given the parameters, with their plate, and why not more are.

        Args:
            groups: data that depend on common sites.
        """
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
                    notes.append(
                        f"data in the plate {plate.name!r} are not exchangeable given the "
                        f"parameters: the law of {min(strange)!r} differs between places, depends "
                        "on other places, or is not known"
                    )
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
                f"{', '.join(names)} are not seen to be independent given the parameters: laws "
                "change where all that feeds them is held, or are not known; draw all random "
                "numbers by pyro.sample"
            )
            return [(None, names)], notes
        parts: Parts = [(plate, group.data) for plate, group in by_plate.items()]
        return [*parts, *((None, group.data) for group in rest)], notes

    def _odd(self, plate: Plate, sites: set[str]) -> set[str]:
        """Sites in a plate whose law in some place is another, or depends on other places.

        One place's values are held in half of the places, then in the other half, and all else is
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

                    def before(law: Tensor, dim: int = dim, place: int = place) -> Tensor:
                        return law.movedim(dim, 0)[place]

                    def now(law: Tensor, dim: int = dim, half: Tensor = half) -> Tensor:
                        return law.movedim(dim, 0)[half]

                    if not self._is_same(name, reference, run, before, now):
                        odd.add(name)
        return odd

    def _are_apart(self, groups: Sequence[Group]) -> bool:
        """Whether laws of some groups stay as they are where others are drawn anew.

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
        before: Callable[[Tensor], Tensor] = Tensor.double,
        now: Callable[[Tensor], Tensor] = Tensor.double,
    ) -> bool:
        """Whether a site's law in one run is as it was in another, each at a part of it."""
        if name not in reference.laws or name not in run.laws:
            return False
        old, new = reference.laws[name].double(), run.laws[name].double()
        rtol, atol = RTOL, ATOL
        if is_computed(self.nodes[name]):
            rtol, atol = 0.0, ATOL * float(old.max() - old.min())
        return torch.allclose(now(new), before(old).expand_as(now(new)), rtol=rtol, atol=atol)


def _halvings(n: int) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Halves of n things by the digits of their numbers, two masks (n,) each, with a seed."""
    digits = max(1, (n - 1).bit_length())
    for seed in range(max(SUPPORT_RUNS, digits)):
        half = (torch.arange(n) >> seed % digits) % 2 == 0
        yield seed, (half, ~half)
