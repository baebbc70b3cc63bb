r"""How far a guide's bound may be below the evidence, by exact draws of the posterior.

Latents that a program draws with its data are an exact draw of the posterior of those data. So
log p(x, data) - log q(x) of them bounds the evidence from above in expectation, as it does from
below for draws x of the guide. The two differ by

    E[log p/q under p] - E[log p/q under q] = KL(p | q) + KL(q | p),

which the guide's own gap KL(q | p) never exceeds. Paths count as latents: the noising chain draws
those that lead away from x.

Source: Grosse, Ghahramani & Adams, "Sandwiching the marginal likelihood using bidirectional Monte
Carlo", 2015; Grosse, Ancha & Roy, "Measuring the reliability of MCMC inference with bidirectional
Monte Carlo", 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoContinuous, AutoNormal
from torch import Tensor
from torch.distributions import biject_to

from pyro_mdm.automatic.density import run
from pyro_mdm.automatic.draws import row, warn_of_same
from pyro_mdm.evaluation.looseness import Gap
from pyro_mdm.posteriors.dependence import is_computed
from pyro_mdm.support.checks import check_count
from pyro_mdm.support.doors import checked_arguments
from pyro_mdm.support.measured import Measured

__all__ = ["gap", "gap_by_draws", "parameters"]

PATHS = 64
"""Draws of a guide for each data set."""


class TwoSided(Protocol):
    """A guide with weights of its own paths, and of noising paths."""

    learned_from: Tensor | None

    def rows(self, draws: object, /, *args: Any, **kwargs: Any) -> Tensor: ...

    def weighted(self, n: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]: ...

    def noised(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor: ...


@checked_arguments
def gap(
    program: Callable[..., Any],
    fit: Callable[[Callable[..., Any]], Callable[..., Any]],
    *args: Any,
    simulated: int = 20,
    paths: int = PATHS,
    **kwargs: Any,
) -> Gap:
    """The gap between bounds of simulated data sets, by guides that are fitted to each.

    Parameters of the program stay as they are, and those of the guides are forgotten.

    Args:
        program: the Pyro program, which draws its data by ``pyro.sample``, observed or not.
        fit: function that returns a fitted guide of a program conditioned on its data: an automatic
            guide with a density, :class:`AutoMDM`, or a function that samples the program's
            latents.
        args, kwargs: arguments of the program and of its guide.
        simulated: number of data sets, 2 at least.
        paths: number of draws of the guide for each of them.

    Raises:
        ValueError: the program observes nothing, or something that cannot be drawn.

    Example:
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def program():
        ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
        ...     pyro.sample("b", dist.Normal(a, 1.0), obs=torch.tensor(1.0))
        >>> def fit(program):
        ...     return AutoNormal(program)  # and svi.step() as often as it takes
        >>> gap(program, fit, simulated=3).data_sets
        3
    """
    check_count("simulated", simulated, "the number of simulated data sets", least=2)
    check_count("paths", paths, "the number of draws of the guide")
    trace = run(program, *args, **kwargs)
    names = {name for name, site in trace.nodes.items() if site["type"] == "param"}
    sides: list[Tensor] = []
    for _ in range(simulated):
        conditioned, latents = _simulated(program, *args, **kwargs)
        with parameters(names.__contains__):  # no other guide has left any here
            guide = fit(conditioned)
            bounds = _bounds(conditioned, guide, latents, paths, *args, **kwargs)
        sides.append(torch.stack(bounds))
    return Gap.of_simulated(*torch.stack(sides).unbind(1))


def parameters(kept: Callable[[str], bool]) -> Any:
    """A context in which Pyro's parameter store has copies of some of its parameters, by name."""
    store = pyro.get_param_store()
    state: Any = {
        kind: {name: value for name, value in values.items() if kept(name)}
        for kind, values in dict[str, Any](store.get_state()).items()
    }
    state["params"] = {  # an optimizer writes to them in place
        name: value.detach().clone().requires_grad_(value.requires_grad)
        for name, value in state["params"].items()
    }
    return store.scope(state)


@torch.no_grad()
def gap_by_draws(
    guide: TwoSided, draws: object, paths: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Gap:
    """The gap of a guide for its program's data, by draws of the posterior, taken with
    replacement."""
    x = guide.rows(draws, *args, **kwargs)
    warn_of_same(x, guide.learned_from)
    x = x[torch.randint(len(x), (paths,))]
    lower = Measured.from_values(guide.weighted(paths, *args, **kwargs)[1])
    upper = Measured.from_values(guide.noised(x, *args, **kwargs))
    error = math.hypot(lower.standard_error, upper.standard_error)
    return Gap(lower, upper, Measured(upper.mean - lower.mean, error), data_sets=0)


def _simulated(
    program: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """The program conditioned on data that it has drawn, and the latents that it drew with them."""
    nodes: dict[str, Any] = run(poutine.uncondition(program), *args, **kwargs).nodes
    drawn = ((name, site) for name, site in nodes.items() if site["type"] == "sample")
    sites = {name: site for name, site in drawn if not is_computed(site)}  # they follow others
    observed = {name for name, site in sites.items() if site["infer"].get("was_observed")}
    if factors := [name for name in observed if isinstance(sites[name]["fn"], dist.Unit)]:
        raise ValueError(
            f"{factors[0]!r} is a factor, which has no data to simulate, expected sites that draw "
            "them; write it as pyro.sample with obs="
        )
    if not observed:
        raise ValueError("the program observes nothing, expected data by pyro.sample with obs=")
    # a graph to the program's parameters would take their derivative out of its density
    data = {name: sites[name]["value"].detach() for name in observed}
    latents = {name: s["value"].detach() for name, s in sites.items() if name not in observed}
    return poutine.condition(program, data=data), latents


@torch.no_grad()
def _bounds(
    program: Callable[..., Any],
    guide: Callable[..., Any],
    latents: Mapping[str, Tensor],
    paths: int,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The bounds of one data set from below and above, () each."""
    if (two_sided := getattr(guide, "two_sided", None)) is not None:
        below, above = two_sided(latents, paths, *args, **kwargs)
        return below.mean(), above.mean()
    below = -torch.tensor(Trace_ELBO(num_particles=paths).loss(program, guide, *args, **kwargs))
    joint, guided = (
        torch.as_tensor(run(poutine.condition(f, data=values), *args, **kwargs).log_prob_sum())
        for f, values in (
            (program, dict(latents)),
            (guide, _values(guide, latents, *args, **kwargs)),
        )
    )
    return below.to(joint), joint - guided


def _values(
    guide: Callable[..., Any], latents: Mapping[str, Tensor], *args: Any, **kwargs: Any
) -> dict[str, Tensor]:
    """The values of a guide's sites at given latents: automatic guides sample unconstrained ones,
    and have their latents from there."""
    values, unconstrained = {}, set()
    nodes: dict[str, Any] = run(guide, *args, **kwargs).nodes
    auxiliary = [name for name, s in nodes.items() if s.get("infer", {}).get("is_auxiliary")]
    packed = iter([name for name in auxiliary if name.endswith("_latent")])  # in order of guides
    for module in guide.modules() if isinstance(guide, torch.nn.Module) else ():
        if not isinstance(module, (AutoContinuous, AutoNormal)):
            continue
        sites = [*module.prototype_trace.iter_stochastic_nodes()]
        if isinstance(module, AutoContinuous):
            values[next(packed)] = row(latents, sites)
        else:
            for name, site in sites:
                values[f"{name}_unconstrained"] = biject_to(site["fn"].support).inv(latents[name])
        unconstrained |= {name for name, _ in sites}
    return values | {name: value for name, value in latents.items() if name not in unconstrained}
