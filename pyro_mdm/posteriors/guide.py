r"""The posterior of one observation as a guide of its program, and weights that make it exact.

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
from pyro_mdm.posteriors.reading import Draws, ParameterSite, nodes_of
from pyro_mdm.samplers.probability_flow import ProbabilityFlow
from pyro_mdm.support.checks import Count, checked_arguments
from pyro_mdm.support.modules import evaluating

__all__ = [
    "Posterior",
    "PosteriorGuide",
    "ScoredDraws",
    "draw_by_flow",
    "one_row",
]

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
    """The methods of a posterior that a guide can be made of, as of ``AmortizedPosterior``."""

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
    with evaluating(model), torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        y = flow(*model.drawn(n), shape)
        z = model.likelihood(model.diffusion, model.score_function, y, len(shape) - 2).sample()
    theta = parameters_of(z)

    def score() -> Tensor:
        with torch.no_grad(), evaluating(model), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if seed is None else seed)
            return _flow_density(model, z, y) + coordinates(theta)[1].double()

    return ScoredDraws(theta, score)


def _flow_density(model: DiffusionModel, z: Tensor, y: Tensor) -> Tensor:
    """The log densities log q̂ (n,) of draws z (n, d) from the states y_ε (n, K, d) of the ODE."""
    noising = noising_law(model.diffusion, z.double(), event_dim=z.dim() - 1)
    solver = Solver(rtol=TOLERANCE, atol=TOLERANCE)
    return flow_weight(model, noising, z, solver, y.double().unsqueeze(1))[0]


class _Draws:
    """Draws of a posterior with their densities, handed out one by one."""

    def __init__(self, draw: Callable[[int, int], ScoredDraws], names: Sequence[str]) -> None:
        self.draw, self.names = draw, names
        self.blocks: list[ScoredDraws] = []
        self.place: dict[bytes, tuple[int, int]] = {}
        self.waiting = torch.empty(0)
        self.made = 0

    def take(self, n: int) -> Tensor:
        """The next n draws, (n, size), the sites side by side."""
        if (short := n - len(self.waiting)) > 0:
            self._make(max(short, min(MOST, max(FIRST, self.made))))
        rows, self.waiting = self.waiting[:n], self.waiting[n:]
        return rows

    def _make(self, n: int) -> None:
        with poutine.block():  # sites of programs that run for draws are not the guide's
            block = self.draw(n, len(self.blocks))
        rows = torch.cat([block.theta[name].reshape(n, -1) for name in self.names], 1)
        self.place |= {_key(row): (len(self.blocks), i) for i, row in enumerate(rows)}
        self.blocks.append(block)
        self.waiting = torch.cat([self.waiting, rows]) if len(self.waiting) else rows
        self.made += n

    def log_prob(self, rows: Tensor) -> Tensor | None:
        """The log densities of rows (n, size), (n,); None: some rows are not among these draws."""
        places = [self.place.get(_key(row)) for row in rows]
        with poutine.block():
            log_probs = [self.blocks[at[0]].log_prob[at[1]] for at in places if at is not None]
        return torch.stack(log_probs) if len(log_probs) == len(places) else None


def _key(row: Tensor) -> bytes:
    return row.detach().cpu().numpy().tobytes()


class _Joint(TorchDistribution):
    """The distribution of all parameters, side by side."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        draws: _Draws,
        score: Callable[[Tensor], Tensor],
        size: int,
        batch_shape: Sequence[int] = (),
    ) -> None:
        self.draws, self.score, self.size = draws, score, size
        super().__init__(torch.Size(batch_shape), torch.Size([size]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _Joint:
        return _Joint(self.draws, self.score, self.size, batch_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape])
        return self.draws.take(shape.numel()).reshape(*shape, self.size)

    def log_prob(self, value: Tensor) -> Tensor:
        rows = value.reshape(-1, self.size)
        log_q = self.draws.log_prob(rows)
        log_q = self.score(rows) if log_q is None else log_q
        return log_q.reshape(value.shape[:-1])


class PosteriorGuide:
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

    Example:
        >>> from pyro.infer import Importance, Predictive
        >>> from pyro_mdm.posteriors import ImportanceWeights
        >>> from pyro_mdm.posteriors import AmortizedPosterior
        >>> def program():
        ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(a, 1.0))
        >>> posterior = AmortizedPosterior.fit(program, ["a"], ["x"], simulations=50, steps=2)
        >>> observed = {"x": torch.tensor(0.5)}
        >>> guide = posterior.guide(observed, seed=0)
        >>> replicated = Predictive(program, guide=guide, num_samples=7)()
        >>> conditioned = pyro.condition(program, observed)
        >>> importance = Importance(conditioned, guide, num_samples=20).run()
        >>> weights = ImportanceWeights.from_importance(importance)
        >>> replicated["x"].shape, weights.log_weights.shape
        (torch.Size([7]), torch.Size([20]))
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
        self.sites = tuple(sites)
        self._posterior, self._data = posterior, dict(data)
        names = [site.name for site in self.sites]
        size = sum(site.shape.numel() for site in self.sites)

        def draw(n: int, block: int) -> ScoredDraws:
            return posterior.scored_draws(data, n, seed=None if seed is None else seed + block)

        self._joint = _Joint(_Draws(draw, names), self._score, size)
        self._program = program
        drawn = [name for name, site in nodes_of(program).items() if not site["is_observed"]]
        values = {name: torch.as_tensor(value) for name, value in data.items()}
        given = {name for name, value in values.items() if not bool(value.isnan().all())}
        self._conditioned = {
            n: values[n] for n in drawn if n in given and bool(values[n].isfinite().all())
        }
        self._others = [n for n in drawn if n not in given.union(names)] if nuisance else []

    def _split(self, rows: Tensor) -> Draws:
        """Values by site, (n, *shape), of rows (n, size)."""
        blocks = rows.split([site.shape.numel() for site in self.sites], 1)
        pairs = zip(self.sites, blocks, strict=True)
        return {site.name: block.reshape(-1, *site.shape) for site, block in pairs}

    def _score(self, rows: Tensor) -> Tensor:
        """The log densities of parameters that are no draws of this guide, (n,)."""
        return self._posterior.log_prob(self._split(rows), self._data).value

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
