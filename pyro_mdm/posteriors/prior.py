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

    Raises:
        ValueError: an unknown site, or one that is computed or observed.
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
        self._nesting = _nesting(program)
        self.vectorized = self._can_be_in_a_plate() if vectorized is None else vectorized

    def values(self, draws: Mapping[str, Tensor]) -> Draws:
        """The checked parameters by site, (n, *shape), of such parameters or of one of each,
        (*shape).

        Raises:
            ValueError: a site that is missing or has another shape.
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
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            if self.vectorized:
                return self._drawn(n, given)
            runs = [self._run({k: value[i] for k, value in given.items()}) for i in range(n)]
        return {name: torch.stack([run.values[name] for run in runs]) for name in self._shapes}

    def _drawn(self, n: int, given: Draws) -> Draws:
        drawn = self._run_in_plate(n, given).values
        return {name: drawn[name].reshape(n, *shape) for name, shape in self._shapes.items()}

    def log_prob(
        self, draws: Mapping[str, Tensor], seed: int = 0, sites: Collection[str] | None = None
    ) -> Tensor:
        """The log densities, (n,) float64, nats, of parameters by site, (n, *shape): of all, or of
        some sites, each given those before it. The seed is that of the program's other draws."""
        values, sites = self.values(draws), self._shapes if sites is None else sites
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.vectorized:
                return self._log_prob_in_plate(values, sites)
            n, log_probs = len(next(iter(values.values()))), []
            for i in range(n):
                run = self._run({name: value[i] for name, value in values.items()})
                log_probs.append(torch.stack([run.log_probs[name].sum() for name in sites]).sum())
        return torch.stack(log_probs)

    def _log_prob_in_plate(self, values: Draws, sites: Collection[str]) -> Tensor:
        n = len(next(iter(values.values())))
        run = self._run_in_plate(n, values)
        return torch.stack([run.log_probs[name].reshape(n, -1).sum(1) for name in sites]).sum(0)

    def _run(self, given: Draws) -> _Parameters:
        """One run, with values of some sites, (*shape)."""
        return _Parameters(self._shapes).after(poutine.condition(self._program, given))

    def _run_in_plate(self, n: int, given: Draws) -> _Parameters:
        """A run of n draws in a plate, with values of some sites, (n, *shape)."""
        rows = {}
        for name, value in given.items():
            ones = [1] * (self._nesting - self._batches[name])
            rows[name] = value.reshape(n, *ones, *value.shape[1:])
        conditioned = poutine.condition(self._program, rows)
        return _Parameters(self._shapes).after(conditioned, n, self._nesting)

    def _can_be_in_a_plate(self) -> bool:
        """Whether a few draws in a plate differ, and have the densities of a run for each."""
        with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            torch.manual_seed(0)
            try:
                values = self._drawn(TESTED, {})
                together = self._log_prob_in_plate(values, self._shapes)
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
        """Draws of u, (n, d).

        Raises:
            ValueError: the distribution of parameters depends on sites that are not among them.
        """
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


def _nesting(program: Program) -> int:
    """The number of dimensions that the plates of a program take."""
    with torch.no_grad():
        sites = nodes_of(program).values()
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    dims = [frame.dim for frame in frames if frame.dim is not None]
    return -min(dims, default=0)


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
