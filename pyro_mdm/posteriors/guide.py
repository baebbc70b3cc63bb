r"""Learned posteriors as guides: of one observation's program, and of the units of a plate.

A learned posterior q(θ | x) approximates p(θ | x). If the program has densities, draws of q have
the importance weights

    w = p(θ, x) / q(θ | x),

with which they are exact: weighted means tend to those of p(θ | x), and the mean weight to p(x),
the evidence. :class:`PosteriorGuide` is a Pyro guide, so that Pyro's own ``Importance`` computes
the weights, and :class:`~pyro_mdm.posteriors.ImportanceWeights` says how far they can be trusted.

Draws and their density have to be of one distribution. Here it is that of the probability-flow
ODE, whose state y_ε gives θ by the decoder p(θ | y_ε). With this state and the noising distribution
q(y | θ) the density is estimated by

    q̂(θ) = p_ode(y) p(θ | y) / q(y | θ).

1/q̂ is unbiased for 1/q, so the error of q̂ does not bias weighted means (Grosse,
Ghahramani & Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo", 2015,
has the identity, for upper bounds).

In a hierarchical program unit i has parameters θ_i ~ p(θ | η) and data x_i, and
:class:`LocalGuide` draws of q(θ_i | x_i) for all units, or for a subsample. The posterior was
trained under its own prior, not the population's distribution, so it is too wide a guide where
units have much in common. The bound of SVI holds for any guide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any, ClassVar, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.base import noising_law
from pyro_mdm.paths.flow import Solver
from pyro_mdm.paths.likelihood import flow_weight
from pyro_mdm.posteriors.dependence import seeded
from pyro_mdm.posteriors.reading import Draws, ParameterSite, nodes_of
from pyro_mdm.samplers.probability_flow import ProbabilityFlow
from pyro_mdm.support.checks import Count, checked_arguments
from pyro_mdm.support.modules import evaluating

__all__ = ["LocalGuide", "Posterior", "PosteriorGuide", "ScoredDraws", "draw_by_flow", "one_row"]

JOINT = "_posterior"
"""The name of a guide's auxiliary site, which has the density of all parameters together."""

FIRST, MOST = 100, 10_000
"""The first and the largest number of draws that are made together. In between it is the number of
draws made so far."""

TOLERANCE = 1e-5
"""The relative and the absolute tolerance of the ODE, for draws and densities alike."""


class ScoredDraws:
    """Draws of parameters with their log density, which is computed at the first access.

    Args:
        theta: the parameters by site, (n, *shape).
        score: the function that returns log q(θ) in θ's own space, (n,), nats.
    """

    def __init__(self, theta: Draws, score: Callable[[], Tensor]) -> None:
        self.theta, self._score = theta, score

    @cached_property
    def log_prob(self) -> Tensor:
        """The log densities log q(θ) of the draws in θ's own space, (n,) float64, nats."""
        return self._score().detach().double()


class Posterior(Protocol):
    """The methods of a posterior that guides can be made of, as of ``AmortizedPosterior``."""

    def scored_draws(
        self, data: Mapping[str, Tensor], n: int, *, seed: int | None = None
    ) -> ScoredDraws: ...

    def log_prob(self, theta: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Any: ...


def one_row(x: Tensor) -> Tensor:
    """The data x (1, m); ValueError unless they are of one observation."""
    if len(x) != 1:
        raise ValueError(
            f"the data are {len(x)} observations, expected one, as a guide is of one; make a "
            "guide for each"
        )
    return x


@torch.no_grad()
def draw_by_flow(
    model: DiffusionModel,
    parameters_of: Callable[[Tensor], Draws],
    coordinates: Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]],
    n: int,
    *,
    seed: int | None = None,
) -> ScoredDraws:
    """n draws of a model by the probability-flow ODE, with the density that they are drawn from.

    The model is of coordinates (n, d) given n rows of context, which ``parameters_of`` takes to
    parameters by site, (n, *shape). Its inverse also returns log|det|, (n,).
    """
    shape = (n, model.diffusion.num_variables, *model.event_shape)
    flow = ProbabilityFlow(1000, "dopri5", rtol=TOLERANCE, atol=TOLERANCE)
    with evaluating(model), seeded(seed):
        y = flow(*model.drawn(n), shape)
        z = model.likelihood(model.diffusion, model.score_function, y, len(shape) - 2).sample()
    theta = parameters_of(z)

    def score() -> Tensor:
        with torch.no_grad(), evaluating(model), seeded(0 if seed is None else seed):
            noising = noising_law(model.diffusion, z.double(), event_dim=z.dim() - 1)
            states, solver = y.double().unsqueeze(1), Solver(rtol=TOLERANCE, atol=TOLERANCE)
            log_q: Tensor = flow_weight(model, noising, z, solver, states)[0]
            return log_q + coordinates(theta)[1].double()

    return ScoredDraws(theta, score)


class _Vectors(TorchDistribution):
    """A distribution of vectors by the functions that draw, (*shape, size), and score them."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        draw: Callable[[torch.Size], Tensor],
        score: Callable[[Tensor], Tensor],
        size: int,
        batch_shape: Sequence[int] = (),
    ) -> None:
        self._draw, self._score = draw, score
        super().__init__(torch.Size(batch_shape), torch.Size([size]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _Vectors:
        return _Vectors(self._draw, self._score, self.event_shape[0], batch_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._draw(torch.Size([*sample_shape, *self.batch_shape]))

    def log_prob(self, value: Tensor) -> Tensor:
        return self._score(value)


class _Guide:
    """A guide whose sites are blocks of the vectors of a posterior's draws."""

    def __init__(self, posterior: Posterior, sites: Sequence[ParameterSite]) -> None:
        self.sites, self._posterior = tuple(sites), posterior
        self._sizes = [site.shape.numel() for site in self.sites]

    def _joined(self, theta: Draws, n: int) -> Tensor:
        """The values by site, (n, *shape), side by side, (n, size)."""
        return torch.cat([theta[site.name].reshape(n, -1) for site in self.sites], 1)

    def _split(self, vectors: Tensor) -> Draws:
        """The values by site, (*batch, *shape), of vectors (*batch, size)."""
        pairs = zip(self.sites, vectors.split(self._sizes, -1), strict=True)
        return {s.name: value.reshape(*vectors.shape[:-1], *s.shape) for s, value in pairs}


class PosteriorGuide(_Guide):
    """The posterior of one observation as a Pyro guide of its program.

    Each call draws all parameters jointly, at their own sites and in their own plates. Draws are
    made and scored in blocks, and handed out one by one. Sites that are neither parameters nor data
    are drawn from the program given the parameters and the observation, so that weights are right.
    The arguments of a call are ignored, as the program takes none.

    ``posterior.guide(data)`` makes it.

    Args:
        posterior: the posterior (:class:`Posterior`).
        program: the simulator, without arguments.
        sites: the sites of the parameters.
        data: the observation by site, (*shape).
        nuisance: whether the guide draws sites that are neither parameters nor data. False: the
            program draws them, or they are enumerated.
        seed: the seed of the draws; None: the global generator.
    """

    @checked_arguments
    def __init__(
        self,
        posterior: Posterior,
        program: Callable[..., object],
        sites: Sequence[ParameterSite],
        data: Mapping[str, Tensor],
        *,
        nuisance: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__(posterior, sites)
        self._program, self._data, self._seed = program, dict(data), seed
        self._blocks = list[ScoredDraws]()
        self._places = dict[bytes, tuple[int, int]]()
        self._waiting, self._made = torch.empty(0, sum(self._sizes)), 0
        self._joint = _Vectors(self._drawn, self._log_prob, sum(self._sizes))
        drawn = [name for name, site in nodes_of(program).items() if not site["is_observed"]]
        values = {name: torch.as_tensor(value) for name, value in data.items()}
        given = {name for name, value in values.items() if not bool(value.isnan().all())}
        self._conditioned = {
            n: values[n] for n in drawn if n in given and bool(values[n].isfinite().all())
        }
        names = [site.name for site in self.sites]
        self._others = [n for n in drawn if n not in given.union(names)] if nuisance else []

    def _drawn(self, shape: torch.Size) -> Tensor:
        """The next draws, (*shape, size)."""
        n = shape.numel()
        if (short := n - len(self._waiting)) > 0:
            self._draw_block(max(short, min(MOST, max(FIRST, self._made))))
        vectors, self._waiting = self._waiting[:n], self._waiting[n:]
        return vectors.reshape(*shape, vectors.shape[1])

    def _draw_block(self, n: int) -> None:
        place = len(self._blocks)
        seed = None if self._seed is None else self._seed + place
        with poutine.block():  # sites of programs that run for draws are not the guide's
            block = self._posterior.scored_draws(self._data, n, seed=seed)
        vectors = self._joined(block.theta, n)
        self._places |= {_key(vector): (place, i) for i, vector in enumerate(vectors)}
        self._blocks.append(block)
        self._waiting = torch.cat([self._waiting, vectors])
        self._made += n

    def _log_prob(self, value: Tensor) -> Tensor:
        """The log densities, (*batch,), of vectors (*batch, size), which are not computed again for
        draws of this guide."""
        vectors = value.reshape(-1, value.shape[-1])
        places = [self._places.get(_key(vector)) for vector in vectors]
        with poutine.block():
            log_q = [self._blocks[at[0]].log_prob[at[1]] for at in places if at is not None]
            if len(log_q) == len(places):
                return torch.stack(log_q).reshape(value.shape[:-1])
            scored: Tensor = self._posterior.log_prob(self._split(vectors), self._data).value
        return scored.reshape(value.shape[:-1])

    def __call__(self, *args: object, **kwargs: object) -> Draws:
        """Draw all parameters, each at its site.

        Returns:
            The parameters by site, (*shape).
        """
        joint = pyro.sample(JOINT, self._joint, infer={"is_auxiliary": True})
        batch, values = joint.shape[:-1], self._split(joint.reshape(-1, joint.shape[-1]))
        every = {p.name: (p.size, p.dim + s.event_dim) for s in self.sites for p in s.plates}
        plates = {name: pyro.plate(name, size, dim=dim) for name, (size, dim) in every.items()}
        for site in self.sites:
            shape = torch.broadcast_shapes(site.shape, (*batch, *[1] * site.event_dim))
            values[site.name] = values[site.name].reshape(shape)
            with ExitStack() as stack:
                for plate in site.plates:
                    stack.enter_context(plates[plate.name])
                pyro.sample(site.name, dist.Delta(values[site.name], event_dim=site.event_dim))
        if self._others:
            given = poutine.condition(self._program, data=self._conditioned | values)
            poutine.block(given, expose=self._others)()
        return values

    @checked_arguments
    def initial_params(self, chains: Count = 1) -> Draws:
        """Draws in unconstrained coordinates, from which chains of NUTS start.

        Args:
            chains: the number of chains.

        Returns:
            The draws as ``MCMC(NUTS(program), …, num_chains=chains, initial_params=…)`` takes them:
            (chains, *unconstrained shape) by site, without the first dimension for one chain.
        """
        drawn = self._split(self._joint.sample((chains,)))
        starts = {site.name: site.transform.inv(drawn[site.name]) for site in self.sites}
        return starts if chains > 1 else {name: value[0] for name, value in starts.items()}


def _key(vector: Tensor) -> bytes:
    return vector.detach().cpu().numpy().tobytes()


class LocalGuide(_Guide):
    """The posteriors of m data as the guide of their parameters, one by one in a plate.

    A call draws the parameters of some data, each at its own site in the plate around the call. The
    numbers of a parameter are dependent, so its site in the program has them as one event
    (``to_event``), whatever the simulator has. Draws are made in blocks, and handed out once.

    ``posterior.local_guide(data)`` makes it.

    Args:
        posterior: the posterior (:class:`Posterior`).
        sites: the sites of its parameters.
        data: data by site, (m, *shape).
        m: the number of data.
        names: the names of the program's sites by those of the simulator's, where they differ.
        block: the number of draws of a datum that are made together.

    Raises:
        ValueError: names of unknown parameters.

    Example:
        >>> import torch
        >>> from pyro_mdm.posteriors import AmortizedPosterior
        >>> def simulator():
        ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(a, 1.0))
        >>> posterior = AmortizedPosterior.fit(simulator, ["a"], ["x"], simulations=50, steps=2)
        >>> local = posterior.local_guide({"x": torch.randn(9)}, block=2)
        >>> def guide():
        ...     with pyro.plate("units", 9, subsample_size=3) as rows:
        ...         local(rows)
        >>> pyro.poutine.trace(guide).get_trace().nodes["a"]["value"].shape
        torch.Size([3])
    """

    @checked_arguments
    def __init__(
        self,
        posterior: Posterior,
        sites: Sequence[ParameterSite],
        data: Mapping[str, Tensor],
        m: Count,
        *,
        names: Mapping[str, str] | None = None,
        block: Count = 16,
    ) -> None:
        super().__init__(posterior, sites)
        self.names, available = dict(names or {}), [site.name for site in self.sites]
        if unknown := [name for name in self.names if name not in available]:
            raise ValueError(
                f"names has {unknown[0]!r}, expected parameters of the simulator, of "
                f"{', '.join(available)}"
            )
        self._data, self._m, self._block = data, m, block
        self._vectors = torch.empty(m, block, sum(self._sizes))
        self._log_q = torch.empty(m, block, dtype=torch.float64)
        self._next = torch.full((m,), block)

    def __call__(self, rows: Tensor | None = None) -> Draws:
        """Draw the parameters of some data in the plate around the call.

        Args:
            rows: the indices of the data, (b,) int64, as a plate with a subsample gives them; None:
                all data.

        Returns:
            The parameters by the program's sites, (b, *shape).

        Raises:
            ValueError: rows that are no indices of data, or one of them twice.
        """
        rows = torch.arange(self._m) if rows is None else torch.as_tensor(rows)
        if rows.dim() != 1 or bool(((rows < 0) | (rows >= self._m)).any()):
            raise ValueError(
                f"rows has shape {tuple(rows.shape)} and values up to {int(rows.max())}, expected "
                f"(b,) numbers from 0 to {self._m - 1}; give what the plate gives, `with plate as "
                "rows`"
            )
        if rows.unique().numel() < rows.numel():
            raise ValueError(
                f"rows has {rows.numel()} numbers, {rows.unique().numel()} of them different, "
                "expected each once: a repeated datum would have one draw of its parameters twice"
            )
        last = list[Tensor]()  # the last draws with their densities

        def draw(shape: torch.Size) -> Tensor:
            taken = [self._take(some) for some in rows.expand(shape).reshape(-1, len(rows))]
            vectors, log_q = (torch.stack(both) for both in zip(*taken, strict=True))
            last[:] = vectors.reshape(*shape, -1), log_q.reshape(shape)
            return last[0]

        def score(value: Tensor) -> Tensor:
            if not last or not torch.equal(last[0], value):
                raise NotImplementedError(
                    "a guide of local latents has densities of its last draws alone, expected "
                    "those; for other parameters there is posterior.log_prob(theta, data)"
                )
            return last[1].to(value.dtype)

        name = "_posterior_" + "_".join(site.name for site in self.sites)
        law = _Vectors(draw, score, sum(self._sizes), rows.shape)
        joint, values = self._split(pyro.sample(name, law, infer={"is_auxiliary": True})), Draws()
        for site in self.sites:
            name = self.names.get(site.name, site.name)
            law_of_site = dist.Delta(joint[site.name], event_dim=len(site.shape))
            values[name] = pyro.sample(name, law_of_site)
        return values

    def _take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A new draw for each row (b,), (b, size), and its log density, (b,)."""
        if bool((empty := self._next[rows] >= self._block).any()):
            self._fill(rows[empty].unique())
        place = self._next[rows]
        self._next[rows] += 1
        return self._vectors[rows, place], self._log_q[rows, place]

    def _fill(self, rows: Tensor) -> None:
        with poutine.block(), torch.no_grad():
            chosen = {name: torch.as_tensor(value)[rows] for name, value in self._data.items()}
            drawn = self._posterior.scored_draws(chosen, self._block)
            vectors = self._joined(drawn.theta, len(rows) * self._block)
            self._vectors[rows] = vectors.reshape(len(rows), self._block, -1)
            self._log_q[rows] = drawn.log_prob.reshape(len(rows), self._block)
        self._next[rows] = 0
