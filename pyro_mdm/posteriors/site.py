r"""A learned likelihood as a distribution, for a sample site of any Pyro program.

``likelihood.given(theta)`` is the distribution of a simulator's data given its parameters. So in a
hierarchical program subjects are in a plate, their parameters have a population's distribution, and
their data are observed at a site whose density is learned. The density is differentiable in θ and
x, so that NUTS, SVI and :class:`~pyro_mdm.automatic.AutoMDM` run such a program.

Batches of θ and of data are broadcast, as for any distribution. A batch of many rows, such as one
of :func:`torch.func.vmap`, takes one call of the networks.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_mdm.posteriors.dependence import seeded
from pyro_mdm.posteriors.factors import (
    check_exchangeable,
    check_plates,
    factors_of,
    name_of,
    values_by_site,
)
from pyro_mdm.posteriors.laws import DataBounds
from pyro_mdm.posteriors.parameters import Parameters, lead_of
from pyro_mdm.posteriors.predictive import PriorPredictive, warn_of_outside
from pyro_mdm.posteriors.reading import Draws, Names, Plates, Structure

__all__ = ["DataDistribution", "LearnedLikelihood"]


class LearnedLikelihood(nn.Module, ABC):
    """A likelihood p(x | θ) of a simulator, which can be a site of any program.

    Attributes:
        structure: the structure of the program's parameters and data.
        domain: the parameters of the simulations.
    """

    structure: Structure
    domain: PriorPredictive

    @abstractmethod
    def bounds(self) -> list[DataBounds]:
        """The bounds of the numbers of a datum, of each factor."""

    @abstractmethod
    def misfit(self, data: Mapping[str, Tensor], sites: Names = None) -> float:
        """How much too low the log density of data is by the form of the distributions, nats.

        It is what a richer form gains on a held-out datum, with its error at 97.5%, times the
        number of data. 0: no richer form that was learned is better.

        Args:
            data: all data by site, (n, *shape).
            sites: the names of the data's sites, of whole factors; None: all.
        """

    @abstractmethod
    def outside(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Whether parameters are unlike all simulated ones (of any member), (*batch,) bool.

        There the likelihood is a guess. New parameters of the distribution of the simulated ones
        are outside with a chance of about 1 in 500 (:mod:`pyro_mdm.posteriors.predictive`).

        Args:
            theta: parameters by site, (*batch, *shape), such as those of all units of a plate.

        Raises:
            ValueError: parameters of another shape.
        """

    def fraction_outside(self, theta: Mapping[str, Tensor]) -> float:
        """The fraction of draws that are outside (:meth:`outside`), with a warning above 0.01.

        Args:
            theta: draws by site, (*batch, *shape), such as draws of a posterior.

        Raises:
            ValueError: as for :meth:`outside`.
        """
        outside = self.outside(theta).reshape(-1)
        return warn_of_outside(self.domain, outside)

    @abstractmethod
    def log_prob(
        self, data: Mapping[str, Tensor], theta: Mapping[str, Tensor], *, sites: Names = None
    ) -> Tensor:
        """The log densities log p(x | θ) of n pairs, (n,) float64, nats, differentiable in θ and x.

        They are -∞ outside of the support of θ and on its boundary. Along a plate whose data are
        exchangeable there may be any number of data, whose log densities are added. A datum that is
        NaN is missing and left out. Members have the log of their mean density.

        Args:
            data: data by site, (n, *shape), or one datum for all, (*shape).
            theta: parameters by site, (n, *shape), or those of all data, (*shape).
            sites: the names of the data's sites, of whole factors; None: all.

        Raises:
            ValueError: parameters that are NaN; numbers n that differ; data of another shape, or
                infinite; a datum with NaN in some but not all of its numbers.
        """

    @abstractmethod
    def drawn(self, theta: Mapping[str, Tensor], plates: Plates, sites: Names) -> Draws:
        """Random data of the global generator; arguments as for :meth:`sample`."""

    @torch.no_grad()
    def sample(
        self,
        theta: Mapping[str, Tensor],
        *,
        plates: Plates = None,
        sites: Names = None,
        seed: int | None = None,
    ) -> Draws:
        """Random data, (n, *shape) by site, one datum for each θ.

        Args:
            theta: parameters by site, (n, *shape).
            plates: the numbers of data in plates along which they are exchangeable, by name; those
                of the simulator by default.
            sites: the names of the sites that are drawn, of whole factors; None: all.
            seed: the seed of the draws; None: the global generator.

        Raises:
            ValueError: parameters that are NaN or outside of their support; a plate along which
                data are not exchangeable.
        """
        with seeded(seed):
            return self.drawn(theta, plates, sites)

    def given(
        self,
        theta: Mapping[str, Tensor] | Tensor,
        *,
        sites: str | Names = None,
        plates: Plates = None,
        datum_of: str | None = None,
        known_only: bool = False,
    ) -> DataDistribution:
        """The distribution of data given θ, for a sample site of any program; arguments and errors
        as for :class:`~pyro_mdm.posteriors.DataDistribution`."""
        return DataDistribution(
            self, theta, sites=sites, plates=plates, datum_of=datum_of, known_only=known_only
        )


class DataDistribution(TorchDistribution):
    """The distribution of a simulator's data given θ, by a learned likelihood.

    A value is the data of one simulation, with the plates of the simulator in the event. With
    ``datum_of`` a value is one datum of a plate, and the program has that plate around the site,
    which may take a subsample of the data. If there are several sites, a value has their numbers
    side by side, one site after the other (:meth:`joined`, :meth:`by_site`).

    A datum that is NaN is missing and left out of ``log_prob``, so units with fewer data are filled
    up with NaN. ``log_prob`` is -∞ where θ is NaN or outside of its support.

    ``likelihood.given(theta)`` makes it.

    Args:
        likelihood: the learned likelihood.
        theta: parameters by site, (*batch, *shape), or the values of a single site.
        sites: the names of the data's sites in a value, of whole factors; None: all.
        plates: the numbers of data in plates along which they are exchangeable, by name; those of
            the simulator by default.
        datum_of: the name of such a plate, if a value is one datum of it; None: a value is a whole
            simulation.
        known_only: whether parameters unlike all simulated ones have the density 0.

    Raises:
        ValueError: parameters of other names or shapes; a plate along which data are not
            exchangeable; some but not all sites of a factor.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        likelihood: LearnedLikelihood,
        theta: Mapping[str, Tensor] | Tensor,
        *,
        sites: str | Names = None,
        plates: Plates = None,
        datum_of: str | None = None,
        known_only: bool = False,
    ) -> None:
        self.likelihood, self.known_only, self.datum_of = likelihood, known_only, datum_of
        structure = likelihood.structure
        self.theta, batch = Parameters(structure.parameters).batch(theta)
        names = [sites] if isinstance(sites, str) else sites
        self._factors = factors_of(structure, names)
        self._plates = check_plates(structure, plates)
        if datum_of is not None:
            check_exchangeable(structure, datum_of, "datum_of")
            if others := [factor for factor in self._factors if factor.plate != datum_of]:
                raise ValueError(
                    f"datum_of is {datum_of!r} and {name_of(others[0])} has no place in it, "
                    "expected sites of that plate alone; name them in sites, with another site "
                    "for the others"
                )
            if datum_of in self._plates:
                raise ValueError(
                    f"plates and datum_of have {datum_of!r}, expected one of them: with datum_of a "
                    "value is one datum, and the plate around the site has their number"
                )
        chosen = [site.name for factor in self._factors for site in factor.sites]
        self.sites = [site.name for site in structure.data if site.name in chosen]
        self.shapes = self._event_shapes()
        several = len(self.sites) > 1
        side_by_side = torch.Size([sum(map(math.prod, self.shapes.values()))])
        event = side_by_side if several else self.shapes[self.sites[0]]
        # Pyro's validation of values would refuse NaN, which are missing data
        super().__init__(batch, event, validate_args=False)

    def _event_shapes(self) -> dict[str, torch.Size]:
        """The shapes of a value by site."""
        shapes = {}
        for factor in self._factors:
            for site in factor.sites:
                shape, dim = list(site.shape), factor.dim_of(site)
                if dim is not None and factor.plate == self.datum_of:
                    del shape[dim]
                elif dim is not None:
                    shape[dim] = self._plates.get(factor.plate or "", shape[dim])
                shapes[site.name] = torch.Size(shape)
        return {name: shapes[name] for name in self.sites}

    def expand(
        self, batch_shape: Sequence[int], _instance: DataDistribution | None = None
    ) -> DataDistribution:
        new = self._get_checked_instance(DataDistribution, _instance)
        new.__dict__.update(self.__dict__, _batch_shape=torch.Size(batch_shape))
        return new

    # -- values ------------------------------------------------------------------------------------

    def joined(self, data: Mapping[str, Tensor]) -> Tensor:
        """The value of data, (*batch, *event_shape).

        Args:
            data: data by site, (*batch, *shape).

        Raises:
            ValueError: a site that is missing or has another shape.
        """
        values, leads = list[Tensor](), list[torch.Size]()
        for name, shape in self.shapes.items():
            if name not in data:
                raise ValueError(
                    f"there is no value of {name!r} among {list(data)}, expected one; give NaN of "
                    f"shape {tuple(shape)} where it is missing"
                )
            values.append(torch.as_tensor(data[name]))
            leads.append(lead_of(values[-1], shape, name))
        if len(values) == 1:
            return values[0]
        lead, pairs = torch.broadcast_shapes(*leads), zip(values, self.shapes.values(), strict=True)
        rows = [
            value.expand(torch.Size([*lead, *shape])).reshape(torch.Size([*lead, shape.numel()]))
            for value, shape in pairs
        ]
        return torch.cat(rows, -1)

    def by_site(self, value: Tensor) -> Draws:
        """The data of a value by site, (*batch, *shape).

        Args:
            value: the value, (*batch, *event_shape).
        """
        if len(self.sites) == 1:
            return {self.sites[0]: value}
        blocks = value.split([shape.numel() for shape in self.shapes.values()], -1)
        pairs = zip(self.shapes.items(), blocks, strict=True)
        return {name: block.reshape(*value.shape[:-1], *shape) for (name, shape), block in pairs}

    @property
    def support(self) -> constraints.Constraint:
        """The constraint of values, by the bounds of data.

        Raises:
            NotImplementedError: bounded and unbounded numbers in a value of several dimensions.
        """
        lower, upper, is_discrete = (
            self.joined({name: ends[name] for name in self.sites}) for ends in self._ends()
        )
        event_dim = len(self.event_shape)
        if bool(is_discrete.any()):
            return _SomeDiscrete(lower, upper, is_discrete, event_dim)
        kinds = [_constraint(*pair) for pair in zip(lower.flatten(), upper.flatten(), strict=True)]
        if len({type(kind) for kind in kinds}) == 1:
            kind = _constraint(lower, upper)
            return constraints.independent(kind, event_dim) if event_dim else kind
        if event_dim == 1:
            return constraints.independent(constraints.cat(kinds, -1, [1] * len(kinds)), 1)
        raise NotImplementedError(
            f"some numbers of {', '.join(self.sites)} are bounded and others are not, and a value "
            f"has {event_dim} dimensions, expected one kind of numbers, or one dimension"
        )

    def _ends(self) -> list[Draws]:
        """The lower and the upper bound of each number, and whether it is discrete, by site."""
        ends: list[Draws] = [{}, {}, {}]
        pairs = zip(self.likelihood.structure.factors, self.likelihood.bounds(), strict=True)
        for factor, bounds in pairs:
            if factor not in self._factors:
                continue
            size = self._plates.get(factor.plate or "", factor.size)
            size = 1 if self.datum_of is not None else size
            for kind, numbers in zip(ends, bounds, strict=True):
                by_site = values_by_site(factor, numbers.expand(1, size, -1))
                kind |= {n: v.reshape(self.shapes[n]) for n, v in by_site.items()}
        return ends

    # -- densities and draws -----------------------------------------------------------------------

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density log p(x | θ), (*batch,), in the precision of θ, nats.

        Args:
            value: data, (*batch, *event_shape), NaN where a datum is missing.

        Raises:
            ValueError: data of another shape; infinite numbers; a datum with NaN in some but not
                all of its numbers.
        """
        return self.scored(value, list(self.theta.values()), self.batch_shape)

    def misfit(self, value: Tensor) -> float:
        """How much too low the log density of a value is by its form, nats, as by
        :meth:`LearnedLikelihood.misfit`; arguments and errors as for :meth:`log_prob`."""
        lead = torch.broadcast_shapes(self._lead(value, self.batch_shape), self.batch_shape)
        rows = value.expand(*lead, *self.event_shape).reshape(-1, *self.event_shape)
        return self.likelihood.misfit(self._data(rows), self.sites)

    def scored(self, value: Tensor, theta: Sequence[Tensor], batch: Sequence[int]) -> Tensor:
        """:meth:`log_prob` given these parameters, one tensor (*batch, *shape) for each site, of
        all rows in one call within ``vmap``; ``batch`` is the batch shape of both together."""
        try:
            return self._log_prob(value, theta, batch)
        except RuntimeError as error:
            if not str(error).startswith("vmap:"):
                raise
        return _AllRows.apply(self, batch, value, *theta)

    def _log_prob(self, value: Tensor, theta: Sequence[Tensor], batch: Sequence[int]) -> Tensor:
        value = torch.as_tensor(value)
        of_data = self._lead(value, batch)
        shapes = [site.shape for site in self.likelihood.structure.parameters]
        leads = [v.shape[: v.dim() - len(s)] for v, s in zip(theta, shapes, strict=True)]
        of_theta = torch.broadcast_shapes(*leads)
        lead = torch.broadcast_shapes(of_data, of_theta, tuple(batch))
        # the widest precision of θ: a float64 density of float32 θ would make all latents float64
        dtypes = [torch.get_default_dtype(), *(v.dtype for v in theta)]
        dtype = functools.reduce(torch.promote_types, dtypes)
        if lead.numel() == 0:
            return torch.zeros(lead, dtype=dtype)
        rows = _rows(value, of_data, lead, self.event_shape)
        parameters = Draws()
        for name, v, shape in zip(self.theta, theta, shapes, strict=True):
            v = v.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)  # has no density
            v = v.expand(torch.Size([*of_theta, *shape]))
            parameters[name] = _rows(v, of_theta, lead, shape)
        log_p = self.likelihood.log_prob(self._data(rows), parameters, sites=self.sites)
        if self.known_only:
            log_p = torch.where(self.likelihood.outside(parameters), -math.inf, log_p)
        return log_p.expand(lead.numel()).reshape(lead).to(dtype)

    def _lead(self, value: Tensor, batch: Sequence[int]) -> torch.Size:
        """The batch shape of a value."""
        named, advice = ", ".join(self.sites), "; the likelihood is of data of that shape alone"
        if plates := [f.plate for f in self._factors if f.plate not in (None, self.datum_of)]:
            advice = (
                f"; for another number of exchangeable data give plates={{{plates[0]!r}: n}}, "
                "with NaN for data that are missing. A series has a likelihood of its own length"
            )
        if len(self.sites) > 1:
            named, advice = f"({named})", "; use joined"
        lead = lead_of(value, self.event_shape, named, advice)
        try:
            torch.broadcast_shapes(lead, tuple(batch))
        except RuntimeError:
            raise ValueError(
                f"{named} has shape {tuple(value.shape)}, of a batch {tuple(lead)}, expected "
                f"(*batch, *{tuple(self.event_shape)}) for parameters of the batch {tuple(batch)}; "
                "give a datum for each"
            ) from None
        return lead

    def _data(self, rows: Tensor) -> Draws:
        """The data by site of values (n, *event_shape), for the likelihood, with a dimension of
        size 1 for the plate of ``datum_of``."""
        data = self.by_site(rows)
        if self.datum_of is not None:
            for factor in self._factors:
                for site in factor.sites:
                    if (dim := factor.dim_of(site)) is not None:
                        data[site.name] = data[site.name].unsqueeze(dim)
        return data

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Random data, (*sample_shape, *batch_shape, *event_shape).

        Args:
            sample_shape: the shape of the draws.

        Raises:
            ValueError: parameters that are NaN or outside of their support.
        """
        lead = torch.Size([*sample_shape, *self.batch_shape])
        theta = {
            site.name: self.theta[site.name].expand(torch.Size([*lead, *site.shape]))
            for site in self.likelihood.structure.parameters
        }
        rows, _ = Parameters(self.likelihood.structure.parameters).rows(theta)
        plates = self._plates | ({} if self.datum_of is None else {self.datum_of: 1})
        drawn = self.likelihood.sample(rows, plates=plates, sites=self.sites)
        data = {n: v.reshape(torch.Size([*lead, *self.shapes[n]])) for n, v in drawn.items()}
        return self.joined(data)


def _rows(value: Tensor, batch: Sequence[int], lead: torch.Size, shape: Sequence[int]) -> Tensor:
    """Values (*batch, *shape) as rows of a batch ``lead``, (n, *shape); one value is one row."""
    if math.prod(batch) == 1:
        return value.reshape(1, *shape)
    return value.expand(*lead, *shape).reshape(-1, *shape)


class _SomeDiscrete(constraints.Constraint):
    """The constraint of numbers between bounds, some of them whole; NaN are missing."""

    is_discrete = True

    def __init__(self, lower: Tensor, upper: Tensor, whole: Tensor, event_dim: int) -> None:
        self.lower, self.upper, self.whole = lower, upper, whole
        self._event_dim = event_dim
        super().__init__()

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        return self._event_dim

    def check(self, value: Tensor) -> Tensor:
        inside = (value >= self.lower) & (value <= self.upper)
        inside = inside & (~self.whole | (value == value.round()))
        inside = inside | value.isnan()
        return inside.flatten(inside.dim() - self.event_dim).all(-1) if self.event_dim else inside


def _constraint(lower: Tensor, upper: Tensor) -> constraints.Constraint:
    """The constraint of numbers that have bounds of one kind."""
    low, high = bool(lower.isfinite().all()), bool(upper.isfinite().all())
    if low and high:
        return constraints.interval(lower, upper)
    if low:
        return constraints.greater_than(lower)
    return constraints.less_than(upper) if high else constraints.real


class _AllRows(torch.autograd.Function):
    """``log_prob`` of all rows of :func:`torch.func.vmap` in one call."""

    generate_vmap_rule = False

    @staticmethod
    def forward(
        law: DataDistribution, batch: Sequence[int], value: Tensor, *theta: Tensor
    ) -> Tensor:
        return law.scored(value, theta, batch)

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None:
        pass

    @staticmethod
    def vmap(
        info: object,
        in_dims: Sequence[int | None],
        law: DataDistribution,
        batch: Sequence[int],
        value: Tensor,
        *theta: Tensor,
    ) -> tuple[Tensor, int]:
        shapes = [law.event_shape, *(s.shape for s in law.likelihood.structure.parameters)]
        tensors = list(zip((value, *theta), shapes, in_dims[2:], strict=True))
        deepest = max(len(batch), *(t.dim() - len(s) - (d is not None) for t, s, d in tensors))
        rows = list[Tensor]()
        for tensor, shape, d in tensors:
            if d is not None:  # dimensions of size 1, so that the rows come first
                ones = [1] * (deepest - (tensor.dim() - 1 - len(shape)))
                tensor = tensor.movedim(d, 0)
                tensor = tensor.reshape(len(tensor), *ones, *tensor.shape[1:])
            rows.append(tensor)
        n = next(t.shape[d] for t, _, d in tensors if d is not None)
        whole = (n, *[1] * (deepest - len(batch)), *batch)
        return law.scored(rows[0], rows[1:], whole), 0
