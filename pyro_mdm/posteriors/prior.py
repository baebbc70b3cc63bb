"""The distribution of a program's parameters: draws and densities without the rest of the program.

A run ends when the last parameter has been drawn, so no data are simulated. If the parameters can
be drawn in a plate, n draws take one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mdm.posteriors.dependence import seeded
from pyro_mdm.posteriors.parameters import Parameters
from pyro_mdm.posteriors.reading import SUPPORT_RUNS, Draws, Program, nodes_of, rows_of, sites_of
from pyro_mdm.support.checks import check_count, checked_arguments
from pyro_mdm.support.traces import Site

__all__ = ["ParameterPrior", "RemainingPrior", "log_prior"]

TESTED = 4
"""The number of parameters in the comparison of a run in a plate with a run for each."""

ROUNDING = 1e-4, 1e-3
"""The relative and absolute differences of log densities of float32 numbers, nats, that may be
rounding."""

OTHER = 1000
"""The seed of a second run, in which all sites but parameters are drawn anew."""


@checked_arguments
def log_prior(
    program: Program,
    latent: Sequence[str],
    draws: Mapping[str, Tensor],
    *,
    vectorized: bool = False,
) -> Tensor:
    """The prior log density log p(θ) of n parameters in θ's own space, (n,) float64, nats.

    The program runs for each of them, up to its last parameter.

    Args:
        program: the simulator, without arguments.
        latent: the names of the parameters' sites.
        draws: the parameters by site, (n, *shape).
        vectorized: whether to run the program once in a plate of n, which is quicker than n times.
            The program must then not mix entries of its batch
            (:func:`~pyro_mdm.posteriors.simulate`).

    Raises:
        ValueError: an unknown site; a parameter that is not drawn; parameters whose distribution
            depends on other sites, so that their density is not known.
    """
    law = ParameterPrior(program, latent, vectorized)
    values = law.values(draws)
    law.check(values)
    return law.log_prob(values)


class ParameterPrior:
    """The prior p(θ) of a program's parameters.

    Args:
        program: the simulator, without arguments.
        latent: the names of the parameters' sites.
        vectorized: whether n parameters are drawn by one run in a plate of n; None: if a test finds
            the same densities as in a run for each.
    """

    def __init__(
        self, program: Program, latent: Sequence[str], vectorized: bool | None = None
    ) -> None:
        sites = sites_of(program, latent)
        if fixed := [name for name, site in sites.items() if site["is_observed"]]:
            raise ValueError(
                f"site {fixed[0]!r} is computed or observed in the program, expected a sampled "
                f"site; give the sites that {fixed[0]!r} is computed from"
            )
        self._program = program
        self._shapes = {name: site["value"].shape for name, site in sites.items()}
        self._batches = {name: len(site["fn"].batch_shape) for name, site in sites.items()}
        with torch.no_grad():
            nodes = nodes_of(program).values()
        dims = [frame.dim for site in nodes for frame in site["cond_indep_stack"]]
        self._nesting = -min((dim for dim in dims if dim is not None), default=0)
        self.vectorized = self._can_be_in_a_plate() if vectorized is None else vectorized

    def values(self, draws: Mapping[str, Tensor]) -> Draws:
        """The checked parameters by site, (n, *shape), of such parameters or of one of each,
        (*shape).
        """
        return {name: rows_of(draws, name, shape) for name, shape in self._shapes.items()}

    def check(self, draws: Mapping[str, Tensor]) -> None:
        """Raise ValueError if the distribution of parameters, (n, *shape) by site, depends on other
        sites, so that their density is not known."""
        few = {name: value[:SUPPORT_RUNS] for name, value in self.values(draws).items()}
        if not torch.allclose(self.log_prob(few), self.log_prob(few, OTHER), *ROUNDING):
            raise ValueError(
                f"the distribution of {', '.join(self._shapes)} depends on sites that are not "
                "among them, so that its density is not known; name those in latent too"
            )

    def sample(self, n: int, *, seed: int | None = None, given: Draws | None = None) -> Draws:
        """n draws of the parameters by site, (n, *shape), given the values of known ones, (*shape).

        With a seed the caller's random state is kept. Each is drawn given those before it.
        """
        check_count("n", n, "the number of parameters")
        given = {k: value.expand(n, *value.shape) for k, value in (given or {}).items()}
        with seeded(seed):
            return self._runs(n, given)[0]

    def log_prob(
        self, draws: Mapping[str, Tensor], seed: int = 0, sites: Collection[str] | None = None
    ) -> Tensor:
        """The log densities, (n,) float64, nats, of parameters by site, (n, *shape): of all, or of
        some sites, each given those before it. The seed is that of the program's other draws."""
        values, sites = self.values(draws), self._shapes if sites is None else sites
        with seeded(seed):
            log_probs = self._runs(len(next(iter(values.values()))), values)[1]
        return torch.stack([log_probs[name] for name in sites]).sum(0)

    def _runs(self, n: int, given: Draws) -> tuple[Draws, Draws]:
        """The values of n draws by site, (n, *shape), and their log densities, (n,), by one run in
        a plate or by n, with the values of some sites, (n, *shape)."""
        if self.vectorized:
            inside = {name: [1] * (self._nesting - self._batches[name]) for name in given}
            rows = [{k: v.reshape(n, *inside[k], *v.shape[1:]) for k, v in given.items()}]
        else:
            rows = [{name: value[i] for name, value in given.items()} for i in range(n)]
        size, nesting, runs = n if self.vectorized else 0, self._nesting, list[_Parameters]()
        for values in rows:
            program = poutine.condition(self._program, values)
            runs.append(_Parameters(self._shapes).after(program, size, nesting))
        drawn, log_probs = Draws(), Draws()
        for name, shape in self._shapes.items():
            drawn[name] = torch.cat([run.values[name].reshape(-1, *shape) for run in runs])
            of_runs = [run.log_probs[name].reshape(size or 1, -1).sum(1) for run in runs]
            log_probs[name] = torch.cat(of_runs)
        return drawn, log_probs

    def _can_be_in_a_plate(self) -> bool:
        """Whether a few draws in a plate differ, and have the densities of a run for each."""
        self.vectorized = True
        try:
            with pyro.validation_enabled(False):
                values = self.sample(TESTED, seed=0)
                together = self.log_prob(values)
        except Exception:  # a program that takes no batch may raise any error
            return False
        if any(bool((value == value.roll(1, 0)).all()) for value in values.values()):
            return False
        self.vectorized = False
        return torch.allclose(together, self.log_prob(values), *ROUNDING)


class RemainingPrior:
    """The prior of parameters that are not given, as a density of unconstrained numbers u.

    They are drawn by the program, in which the given ones have their values, (*shape) by site. So a
    parameter is drawn given those before it. Given ones that come after it count as data
    (:meth:`log_given`). Errors are those of :class:`ParameterPrior`.
    """

    def __init__(self, program: Program, sites: Parameters, given: Draws) -> None:
        self._names = [site.name for site in sites]
        self._law = ParameterPrior(program, self._names)
        self._free = Parameters([site for site in sites if site.name not in given])
        self._given = given

    def sample(self, n: int) -> Tensor:
        """Draws of u, (n, d)."""
        drawn = self._law.sample(n, given=self._given)
        self._law.check(drawn)
        return self._free.unconstrained(drawn)[0]

    def log_prob(self, u: Tensor) -> Tensor:
        """The log density of u (n, d), (n,) float64, nats."""
        free, log_det = self._free.by_site(u)
        log_p = self._law.log_prob(self._with_given(free, len(u)), sites=free)
        return torch.where(self._free.inside(free), log_p + log_det, -math.inf)

    def values(self, u: Tensor) -> Draws:
        """The values of all parameters by site, (n, *shape)."""
        return self._with_given(self._free.by_site(u)[0], len(u))

    def log_given(self, values: Draws) -> Tensor:
        """The log density of the given parameters, each given those before it, (n,) float64, nats,
        at values of all parameters by site (n, *shape); 0 if none is given."""
        if not self._given:
            return torch.zeros((), dtype=torch.float64)
        return self._law.log_prob(values, sites=self._given)

    def _with_given(self, free: Draws, n: int) -> Draws:
        both = free | {name: value.expand(n, *value.shape) for name, value in self._given.items()}
        return {name: both[name] for name in self._names}


class _AllDrawn(Exception):
    """The last parameter of a run has been drawn."""


class _Parameters(Messenger):
    """Values and log densities of the parameters of one run, which ends with the last of them."""

    def __init__(self, names: Mapping[str, object]) -> None:
        super().__init__()
        self.names, self.values, self.log_probs = names, Draws(), Draws()

    def after(self, program: Callable[[], object], n: int = 0, nesting: int = 0) -> _Parameters:
        """The same object after a run, in a plate of n outside of the program's plates."""
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(self)
            if n:
                stack.enter_context(pyro.plate("_parameters", n, dim=-nesting - 1))
            with suppress(_AllDrawn):
                program()
        return self

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["name"] not in self.names:
            return
        log_prob = msg["fn"].log_prob(msg["value"])
        self.values[msg["name"]] = msg["value"]
        log_prob = scale_and_mask(log_prob, msg["scale"], msg["mask"])
        self.log_probs[msg["name"]] = log_prob.double()
        if len(self.values) == len(self.names):
            raise _AllDrawn
