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
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_mdm.automatic.chain_guide import ChainGuide, parameters
from pyro_mdm.automatic.density import run
from pyro_mdm.automatic.draws import warn_of_same
from pyro_mdm.automatic.weighing import Weighing
from pyro_mdm.evaluation.weights import Gap
from pyro_mdm.support.checks import check_count
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.traces import is_computed, sample_sites

__all__ = ["gap_by_draws", "gap_by_simulation"]

Program = Callable[..., object]


def gap_by_simulation(
    program: Program,
    fitted: Callable[[Program], ChainGuide],
    simulated: int,
    paths: int,
    /,
    *args: object,
    **kwargs: object,
) -> Gap:
    """The gap of the guides that are fitted to a program's simulated data sets.

    Parameters of the program stay as they are, and those of the guides are forgotten.
    """
    check_count("simulated", simulated, "the number of simulated data sets", least=2)
    nodes = run(program, *args, **kwargs).nodes
    names = {name for name, site in nodes.items() if site["type"] == "param"}
    sides: list[Tensor] = []
    for _ in range(simulated):
        conditioned, latents = _simulated(program, *args, **kwargs)
        with parameters(names.__contains__):  # no other guide has left any here
            bounds = Weighing(fitted(conditioned), args, kwargs).two_sided(latents, paths)
        sides.append(torch.stack(bounds).mean(1))
    return Gap.of_simulated(*torch.stack(sides).unbind(1))


@torch.no_grad()
def gap_by_draws(
    guide: ChainGuide, draws: object, paths: int, /, *args: object, **kwargs: object
) -> Gap:
    """The gap of a guide for its program's data, by draws of the posterior, taken with
    replacement."""
    x = guide.rows(draws, *args, **kwargs)
    warn_of_same(x, guide.learned_from)
    x = x[torch.randint(len(x), (paths,))]
    weighing = Weighing(guide, args, kwargs)
    lower = Measured.from_values(weighing.weighted(paths)[1])
    upper = Measured.from_values(weighing.noised(x))
    error = math.hypot(lower.standard_error, upper.standard_error)
    return Gap(lower, upper, Measured(upper.mean - lower.mean, error), data_sets=0)


def _simulated(
    program: Program, *args: object, **kwargs: object
) -> tuple[Program, dict[str, Tensor]]:
    """The program conditioned on data that it has drawn, and the latents that it drew with them."""
    drawn = sample_sites(run(poutine.uncondition(program), *args, **kwargs)).items()
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
