r"""The structure of a simulator's program: its parameters, its data, and how these are related.

:func:`read_program` finds the parameters that data depend on, and the factors of the distribution
of data given the parameters θ,

    p(x | θ) = ∏_f p(x_f | θ),  with  p(x_f | θ) = ∏_i p(x_{f,i} | θ)

for data that are exchangeable along a plate: each place i has the same distribution, and places are
independent given θ. Sites that are not named are integrated out, which keeps that true where they
are in the plate too.

There are two tests. Values are followed from site to site, which shows the sites that feed each
site. And the program is run with some values held and all others drawn anew: the distributions of
held values have to stay the same. If in doubt, data are one factor without a plate, which is always
right. A few runs can miss rare cases: places that seldom depend on each other, or draws outside of
Pyro that seldom matter. The number of data in a plate is that of the program; its author has to
know whether the same distributions hold for other numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import suppress
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import MixtureSameFamily, Transform, biject_to, constraints

from pyro_mdm.posteriors.dependence import ChangedSites, parents_of, seeded, with_other_draws
from pyro_mdm.posteriors.independence import SUPPORT_RUNS, Laws, Parts, Plate, grouped, plates_of
from pyro_mdm.support.checks import checked_arguments, describe
from pyro_mdm.support.traces import Site, is_computed, is_subsample, sample_sites

__all__ = [
    "SUPPORT_RUNS",
    "DataSite",
    "Draws",
    "DataFactor",
    "Names",
    "ParameterSite",
    "Plate",
    "Plates",
    "Program",
    "Structure",
    "base_of",
    "bounds_of",
    "check_data",
    "check_given",
    "check_program",
    "check_same",
    "is_interior",
    "named_sites",
    "nodes_of",
    "number_of",
    "read_program",
    "rows_of",
    "sites_of",
    "with_same_sites",
]

Program = Callable[..., object]
"""A Pyro program."""

Draws = dict[str, Tensor]
"""Values by the names of sites, (n, *shape) each."""

Names = Sequence[str] | None
"""The names of the data's sites, of whole factors; None: all."""

Plates = Mapping[str, int] | None
"""The numbers of data in plates along which they are exchangeable; None: those of the simulator."""

# -- runs -----------------------------------------------------------------------------------------


def nodes_of(program: Program, seed: int = 0) -> dict[str, Site]:
    """The sample sites of one run of a program that does not fail, by name, as Pyro traces them;
    the seed is that of the first run."""

    def traced(seed: int) -> dict[str, Site]:
        with seeded(seed):
            return sample_sites(poutine.trace(program).get_trace())

    nodes = with_other_draws(traced, seed).items()
    return {name: site for name, site in nodes if not is_subsample(site)}


class _Shapes(Messenger):
    """The shapes of the sites of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes = dict[str, tuple[int, ...]]()

    def _pyro_post_sample(self, msg: Site) -> None:
        if not is_subsample(msg):
            self.shapes[msg["name"]] = _shape(msg)


def with_same_sites(program: Program, nodes: Mapping[str, Site]) -> Program:
    """The program, whose runs are ChangedSites unless they have the sites and shapes of nodes."""
    shapes = {name: _shape(site) for name, site in nodes.items()}

    def run() -> object:
        with _Shapes() as seen:
            value = program()
        check_same(shapes, seen.shapes)
        return value

    return run


def check_same(first: Mapping[str, object], other: Mapping[str, object]) -> None:
    """Raise ChangedSites unless two runs have the same shapes by site."""
    if first == other:
        return
    changed = sorted(
        name for name in first.keys() | other.keys() if first.get(name) != other.get(name)
    )
    shapes = [str(shapes.get(changed[0], "none")) for shapes in (first, other)]
    raise ChangedSites(
        f"the program draws {changed[0]!r} of shape {shapes[0]} and in another run {shapes[1]}, "
        "expected the same sites of the same shapes in every run; draw as many numbers each time, "
        "or hide sites that are neither parameters nor data: poutine.block(program, expose=[…])"
    )


def _shape(site: Site) -> tuple[int, ...]:
    return tuple(getattr(site["value"], "shape", ()))


def rows_of(values: Mapping[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    """The checked values of a site, (n, *shape), of values by site (n, *shape) or one value,
    (*shape).
    """
    if name not in values:
        raise ValueError(
            f"there is no value of {name!r} among {list(values)}, expected one; give each site by "
            "its name"
        )
    value = torch.as_tensor(values[name]).to(torch.get_default_dtype())
    if value.dim() and not len(value):  # a plate may be empty
        raise ValueError(f"{name!r} has shape {tuple(value.shape)}, expected one value at least")
    tail = tuple(value.shape[value.dim() - len(shape) :]) if len(shape) <= value.dim() else None
    if tail != tuple(shape) or value.dim() > len(shape) + 1:
        sizes = ", ".join(["n", *map(str, shape)])
        raise ValueError(f"{name!r} has shape {tuple(value.shape)}, expected ({sizes})")
    return value if value.dim() > len(shape) else value.unsqueeze(0)


def number_of(values: Mapping[str, Sized], what: str, fix: str) -> int:
    """The number of values of each site; ValueError, with ``what`` they are, if it differs."""
    numbers = {name: len(value) for name, value in values.items()}
    if len(set(numbers.values())) > 1:
        counts = ", ".join(f"{n} of {name!r}" for name, n in numbers.items())
        raise ValueError(
            f"the numbers of {what} differ between sites ({counts}), expected one number; {fix}"
        )
    return next(iter(numbers.values()), 0)


def check_given(given: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise ValueError unless given values, (*shape) by site, are of known sites, and finite."""
    for name, value in given.items():
        if name not in shapes:
            raise ValueError(f"there is no site {name!r}, expected some of {list(shapes)}")
        if tuple(value.shape) != tuple(shapes[name]):
            raise ValueError(
                f"{name!r} has shape {tuple(value.shape)}, expected one value, "
                f"{tuple(shapes[name])}; leave a site out, and it is drawn"
            )
        if bool(value.isinf().any()):
            raise ValueError(f"{name!r} has infinite values, expected numbers")


# -- parts of a program ----------------------------------------------------------------------------


class ParameterSite(NamedTuple):
    """A site of parameters."""

    name: str
    shape: torch.Size  # of one draw
    support: constraints.Constraint  # of its values
    transform: Transform  # from unconstrained numbers to values
    event_dim: int = 0  # the number of dimensions of an event
    plates: tuple[Plate, ...] = ()  # outermost first; those entered by ``with``

    def unconstrained(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The unconstrained numbers of values, (n, k), and log|det ∂u/∂θ|, (n,).

        Args:
            value: the values, (n, *shape).
        """
        u = self.transform.inv(value)
        log_det = self.transform.log_abs_det_jacobian(u, value)
        return u.reshape(len(u), -1), -log_det.reshape(len(u), -1).sum(1)

    @property
    def is_bounded(self) -> bool:
        """Whether values are in an interval."""
        support = base_of(self.support)
        return hasattr(support, "lower_bound") and hasattr(support, "upper_bound")

    def check_inside(self, value: Tensor) -> None:
        """Raise ValueError unless a value, (*shape), is inside of the support."""
        if not bool(is_interior(self.support, value.unsqueeze(0))):
            raise ValueError(
                f"the value of {self.name!r} is {value.tolist()}, expected one inside of its "
                f"support, {self.support}; check its units, or leave it out, and it is drawn"
            )


class DataSite(NamedTuple):
    """A site of data."""

    name: str
    shape: torch.Size  # of one draw
    is_discrete: bool
    plates: tuple[Plate, ...]  # outermost first; those entered by ``with``
    parameters: tuple[str, ...]  # the parameters that its distribution may depend on


class DataFactor(NamedTuple):
    """Data that are independent of all other data given the parameters."""

    sites: tuple[DataSite, ...]
    plate: str | None  # a plate along which data are exchangeable given the parameters

    @property
    def size(self) -> int:
        """The number of places of the plate; 1 without a plate."""
        dim = self.dim_of(self.sites[0])
        return 1 if dim is None else self.sites[0].shape[dim]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of parameters that the distribution may depend on."""
        return tuple(dict.fromkeys(name for site in self.sites for name in site.parameters))

    def dim_of(self, site: DataSite) -> int | None:
        """The dimension of a site's value along the plate; None: there is no plate.

        Args:
            site: one of the sites.
        """
        return next((plate.dim for plate in site.plates if plate.name == self.plate), None)

    def data(self, draws: Mapping[str, Tensor]) -> Tensor:
        """The data by place, (n, size, m), the sites side by side.

        Args:
            draws: values by site, (n, *shape), or one value, (*shape).

        Raises:
            ValueError: a site that is missing or has another shape.
        """
        columns = []
        for site in self.sites:
            value = rows_of(draws, site.name, site.shape)
            dim = self.dim_of(site)
            value = value.unsqueeze(1) if dim is None else value.movedim(dim, 1)
            columns.append(value.flatten(2) if value.dim() > 2 else value.unsqueeze(2))
        return torch.cat(columns, 2)


class Structure(NamedTuple):
    """The structure of a program's parameters and data."""

    parameters: tuple[ParameterSite, ...]
    data: tuple[DataSite, ...]
    factors: tuple[DataFactor, ...]  # of p(x | θ)
    notes: tuple[str, ...]  # the reasons why data in plates, or at several sites, are one factor


def check_data(draws: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise ValueError for data of simulations, (n, *shape) by site, that never vary or are not
    finite."""
    for name, shape in shapes.items():
        value = rows_of(draws, name, shape)
        value = value.reshape(len(value), -1)
        odd = ~value.isfinite().all(1)
        if bool(odd.any()):
            raise ValueError(
                f"{name!r} is infinite or NaN in {int(odd.sum())} of {len(value)} "
                f"simulations (the first is number {int(odd.nonzero()[0])}), expected finite "
                "numbers; leave these simulations out, parameters too, or have the program "
                "draw an indicator of what is missing"
            )
        if len(value) > 1 and bool((value == value[0]).all()):
            raise ValueError(
                f"{name!r} is the same in all {len(value)} simulations, expected data "
                "that vary; leave it out of observed, or draw parameters that it depends on"
            )


def check_program(
    program: Callable[..., object] | None,
    kind: str,
    folder: str | os.PathLike[str],
    names: Sequence[str],
) -> Callable[..., object]:
    """The program for what is opened from a folder, of a class named by ``kind``."""
    if not callable(program):
        raise TypeError(
            f"program is {describe(program)}, expected the simulator that the {kind} in {folder} "
            f"is of, with the sites {', '.join(names)}; a folder holds no code: "
            f"{kind}.from_pretrained(folder, program)"
        )
    return program


def sites_of(program: Program, names: Sequence[str]) -> dict[str, Site]:
    """The named sites of a program, as Pyro traces them."""
    return _chosen(nodes_of(program), names)


def bounds_of(program: Program, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """The ends of the supports of named sites, two tensors (*shape); ±∞ where there is none.

    An end that differs between runs of the program depends on its draws and counts as none.
    """
    runs = [_chosen(nodes_of(program, seed), names) for seed in range(SUPPORT_RUNS)]
    bounds = {}
    for name in names:
        ends = [_ends(run[name]) for run in runs]
        lower, upper = (torch.stack([end[i] for end in ends]) for i in (0, 1))
        bounds[name] = (
            torch.where((lower == lower[0]).all(0), lower[0], -math.inf),
            torch.where((upper == upper[0]).all(0), upper[0], math.inf),
        )
    return bounds


def _ends(site: Site) -> tuple[Tensor, Tensor]:
    """The ends of the support of a site in one run, (*shape) each."""
    shape, law = site["value"].shape, site["fn"]
    support: constraints.Constraint = constraints.real
    with suppress(NotImplementedError):
        support = base_of(law.support or support)
    while hasattr(law, "base_dist"):
        law = law.base_dist
    is_mixture = isinstance(law, MixtureSameFamily)  # its components may differ in their bounds
    lower, upper = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    is_binary = isinstance(support, type(constraints.boolean) | type(constraints.one_hot))
    if is_binary or site["value"].dtype == torch.bool:
        lower, upper = 0, 1
    elif isinstance(support, constraints.multinomial):
        lower = 0
    ends = []
    for bound, nothing, outermost in ((lower, -math.inf, "min"), (upper, math.inf, "max")):
        end = torch.as_tensor(nothing if bound is None else bound, dtype=torch.get_default_dtype())
        ends.append((getattr(end, outermost)() if is_mixture else end).expand(shape))
    return ends[0], ends[1]


def _chosen(nodes: Mapping[str, Site], names: Sequence[str]) -> dict[str, Site]:
    available = list(nodes)
    for name in names:
        if name not in available:
            raise ValueError(
                f"the program has no site {name!r}, expected one of {', '.join(available)}; name "
                "those of its parameters in latent, and of its data in observed"
            )
    if not names:
        raise ValueError(f"no site is named, expected at least one of {', '.join(available)}")
    return {name: nodes[name] for name in names}


def named_sites(
    program: Program, latent: Sequence[str], observed: Sequence[str]
) -> tuple[list[ParameterSite], dict[str, Site]]:
    """The parameters of a program, and the sites of its data by name, checked in several runs."""
    nodes = nodes_of(program)
    chosen, data = _chosen(nodes, latent), _chosen(nodes, observed)
    parameters = [_of_parameter(name, site) for name, site in chosen.items()]
    for names in (latent, observed):
        if again := [name for name in chosen | data if list(names).count(name) > 1]:
            raise ValueError(
                f"site {again[0]!r} is named twice, expected once; name each site once"
            )
    if twice := set(latent) & set(observed):
        raise ValueError(
            f"{sorted(twice)} are both latent and observed, expected parameters in one and "
            "data in the other"
        )
    if fixed := [n for n, site in data.items() if site["is_observed"] and not is_computed(site)]:
        raise ValueError(
            f"site {fixed[0]!r} is observed in the program, expected data that it draws; leave "
            "out obs"
        )
    same = with_same_sites(program, nodes)
    for seed in range(1, SUPPORT_RUNS):
        others = nodes_of(same, seed)
        for site in parameters:
            now = _of_parameter(site.name, others[site.name]).transform
            origin = torch.zeros(site.transform.inverse_shape(site.shape))
            if not torch.allclose(now(origin), site.transform(origin)):
                raise ValueError(
                    f"the support of site {site.name!r} depends on other sites, expected one that "
                    "is the same in every run; draw a number of fixed support and scale it, e.g. "
                    "u ~ Uniform(0, 1), b = a * u"
                )
    return parameters, data


def _of_parameter(name: str, site: Site) -> ParameterSite:
    support: constraints.Constraint = site["fn"].support  # type: ignore[assignment]
    if support.is_discrete:
        raise TypeError(
            f"site {name!r} is discrete, {describe(site['fn'])}, expected real numbers; sum it out "
            "in the program, or leave it out of latent"
        )
    shape, event_dim = site["value"].shape, site["fn"].event_dim
    return ParameterSite(name, shape, support, biject_to(support), event_dim, plates_of(site))


def base_of(support: constraints.Constraint) -> constraints.Constraint:
    """The constraint of a single event of independent ones."""
    while (inner := getattr(support, "base_constraint", None)) is not None:
        support = inner
    return support


def is_interior(support: constraints.Constraint, value: Tensor) -> Tensor:
    """Whether values (n, *shape) are inside a support and not on its boundary, (n,) bool.

    Closed supports include their boundary, where unconstrained numbers are infinite.
    """
    support = base_of(support)
    if isinstance(support, constraints.cat | constraints.stack):
        if isinstance(support, constraints.cat):
            pieces = value.split(support.lengths, support.dim)
        else:
            pieces = value.unbind(support.dim)
        pairs = zip(support.cseq, pieces, strict=True)
        return torch.stack([is_interior(constraint, piece) for constraint, piece in pairs]).all(0)
    inside = _of_rows(support.check(value)) & _of_rows(value.isfinite())
    if hasattr(support, "lower_bound"):
        inside = inside & _of_rows(value > support.lower_bound)
    if hasattr(support, "upper_bound"):
        inside = inside & _of_rows(value < support.upper_bound)
    if isinstance(support, type(constraints.simplex)):
        inside = inside & _of_rows(value > 0)
    return inside


def _of_rows(entries: Tensor) -> Tensor:
    """Whether all entries (n, *shape) of a row are true, (n,) bool."""
    return entries.reshape(len(entries), -1).all(1)


# -- reading ---------------------------------------------------------------------------------------


@checked_arguments
def read_program(
    program: Program,
    latent: Sequence[str],
    observed: Sequence[str],
    *,
    exchangeable: Sequence[str] = (),
) -> Structure:
    """The structure of a program's parameters and data, from a few dozen runs of it.

    Sites that are not named, discrete ones too, are drawn and integrated out. An unnamed site of
    ``pyro.deterministic`` is replaced by the sites that it is computed from.

    Args:
        program: the simulator, without arguments.
        latent: the names of the parameters' sites.
        observed: the names of the data's sites.
        exchangeable: the names of plates whose data have one distribution given the parameters, and
            are independent of each other and of other data. This is taken as true, for simulators
            that draw outside of Pyro, whose plates are otherwise one datum, with a warning.

    Raises:
        TypeError: parameters that are not continuous.
        ValueError: a site that is unknown or named twice; data that are observed; a parameter whose
            support depends on others; sites or shapes that change from run to run; a plate of
            ``exchangeable`` that has no data.

    Example:
        >>> import pyro.distributions as dist
        >>> def program():
        ...     rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("days", 5):
        ...         pyro.sample("counts", dist.Poisson(rate))
        >>> (factor,) = read_program(program, ["rate"], ["counts"]).factors
        >>> factor.plate, factor.size
        ('days', 5)
    """
    program = with_same_sites(program, nodes_of(program))
    parameters, data = named_sites(program, latent, observed)
    declared = _declared(data, exchangeable)
    rest = [name for name in data if not any(name in names for _, names in declared)]
    parts: Parts = [(None, rest)] if rest else []
    with pyro.validation_enabled(False), torch.no_grad():
        try:
            seeds = range(SUPPORT_RUNS, 2 * SUPPORT_RUNS)
            parents = parents_of(program, [*latent, *observed], seeds)
        except ChangedSites:
            raise
        except Exception as error:  # a program that refuses followed tensors may raise any error
            fed = {name: list(latent) for name in data}
            notes = [f"the program cannot be followed ({type(error).__name__}: {error})"]
        else:
            laws = Laws(program, latent, nodes_of(program))
            fed, groups, notes = grouped(latent, list(data), laws.completed(parents))
            groups = [g._replace(data=[n for n in g.data if n in rest]) for g in groups]
            if not notes:
                parts, notes = laws.parts([group for group in groups if group.data])
    parts = [*declared, *parts]
    sites = {name: _of_data(name, site, fed[name]) for name, site in data.items()}
    factors = [DataFactor(tuple(sites[n] for n in names), plate) for plate, names in parts]
    return Structure(tuple(parameters), tuple(sites.values()), tuple(factors), tuple(notes))


def _declared(data: Mapping[str, Site], exchangeable: Sequence[str]) -> Parts:
    """The data of plates along which they are declared to be exchangeable."""
    declared: Parts = []
    for plate in exchangeable:
        taken = [name for _, names in declared for name in names]
        inside = {name: [p.name for p in plates_of(site)] for name, site in data.items()}
        if not (names := [n for n in data if plate in inside[n] and n not in taken]):
            plates = sorted({name for names in inside.values() for name in names})
            raise ValueError(
                f"exchangeable has {plate!r}, expected plates that data are in by `with`, of "
                f"{', '.join(plates) or 'which there are none'}, each once; name one of these"
            )
        declared.append((plate, names))
    return declared


def _of_data(name: str, site: Site, parameters: Sequence[str]) -> DataSite:
    discrete = not site["value"].is_floating_point()
    with suppress(NotImplementedError):
        discrete = discrete or bool(getattr(site["fn"].support, "is_discrete", False))
    return DataSite(name, site["value"].shape, discrete, plates_of(site), tuple(parameters))
