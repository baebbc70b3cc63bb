"""Whether a fitted automatic guide can be trusted, in a few lines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyro_mdm.automatic.chain_guide import ChainGuide, name_of_start
from pyro_mdm.automatic.density import layers, run
from pyro_mdm.automatic.draws import warn_of_same
from pyro_mdm.automatic.moments import Moments
from pyro_mdm.automatic.symmetry import Symmetry
from pyro_mdm.automatic.weighing import Weighing
from pyro_mdm.evaluation.weights import ImportanceWeights
from pyro_mdm.posteriors.traces import sample_sites

__all__ = [
    "MOST_FOR_PARTICLES",
    "Checkup",
    "Counterpart",
    "checked",
    "funnels",
    "remedies_of",
    "second",
]

FEWEST = 100
"""Draws that count, below which nothing is trusted."""
MISFIT = 1.0
"""Nats of misfit, above which an evidence is not trusted."""
RISING = 5.0
"""Standard errors by which the bound rises in the last quarter of a training that is too short."""
FEW_UPDATES = 20
"""Updates in a quarter of a training, below which nothing is said of their rise."""
MOST_FOR_PARTICLES = 50
"""Latents up to which particles find modes in reasonable time (page *Automatic guides*)."""
HEAVY = ("Cauchy", "HalfCauchy", "StudentT", "Pareto", "Stable", "InverseGamma")
"""Distributions whose tails a Gaussian does not cover."""


@dataclass(frozen=True)
class Counterpart:
    """The means and the evidence of another fit, or of draws of the posterior.

    Args:
        name: the kind of fit, or "draws".
        moments: their means and deviations.
        weights: their weights; None for draws, which have none.
    """

    name: str
    moments: Moments
    weights: ImportanceWeights | None


@dataclass(frozen=True)
class Checkup:
    """The result of :meth:`AutoMDM.check`; printed, it is three lines, a verdict and a remedy.

    Args:
        weights: the weights of its draws.
        kept: the part that the fit kept: "chain", or "Gaussian" or another "start".
        second: the other fit; None if there is none.
        distance: the largest distance of two means, in deviations; NaN without another fit.
        distant: the latent that has it.
        is_apart: whether it is more than the errors of both explain.
        misfit: nats by which the forms of learned likelihoods make the evidence too low.
        lacks: the maps that leave the program's density as it is, and not the draws, in words; ""
            if there are none.
        remedies: remedies in words, the first to be tried first.
    """

    weights: ImportanceWeights
    kept: str
    second: Counterpart | None
    distance: float
    distant: str
    is_apart: bool
    misfit: float
    lacks: str
    remedies: tuple[str, ...]

    @property
    def is_trusted(self) -> bool:
        """Whether the weights are not thin, no images of modes are missed, the misfit is small, and
        the other fit agrees, where there is one."""
        return not (self.is_thin or self.disagrees or self.lacks or self.misfit > MISFIT)

    @property
    def is_thin(self) -> bool:
        """Whether too few draws count, or the weights mislead."""
        return bool(self.weights.doubt) or self.weights.effective < FEWEST

    @property
    def disagrees(self) -> bool:
        """Whether the other fit has a higher evidence, or differs in a mean, by more than the
        errors. One with a lower evidence has missed something itself."""
        if self.second is None:
            return False
        other = self.second.weights
        if other is None or other.doubt or self.weights.doubt or self.weights.agrees_with(other):
            return self.is_apart
        return self.weights.log_evidence.mean < other.log_evidence.mean

    def __repr__(self) -> str:
        lines = [f"weights: {self.weights}"]
        if self.lacks:
            lines.append(f"images: {self.lacks} have other modes, which no draw comes near")
        if self.misfit:
            lines.append(f"misfit: a richer form of likelihoods gains up to {self.misfit:.2g} nats")
        if self.second is None:
            lines.append("second fit: none, so that a missed mode would not be seen")
        else:
            other = self.second.weights
            evidence = "" if other is None else f" log evidence {other.log_evidence},"
            lines.append(
                f"second fit: {self.second.name},{evidence} means differ by at most "
                f"{self.distance:.2f} deviations ({self.distant})"
            )
        remedy = "" if self.is_trusted else "; " + (*self.remedies, "train longer")[0]
        trust = "yes" if self.is_trusted else "no"
        return "\n".join([*lines, f"kept: the {self.kept}", f"trust: {trust}{remedy}"])


def second(
    guide: ChainGuide, other: object, n: int, /, *args: object, **kwargs: object
) -> Counterpart:
    """The means and the evidence by n draws of another guide, or by draws of the posterior."""
    if isinstance(other, ChainGuide):
        x, weights = Weighing(other, args, kwargs).weighed(n)
        start = name_of_start(other.start)
        return Counterpart(f"start {start!r}", Moments.from_weights(x, weights), weights)
    x = guide.rows(other, *args, **kwargs)
    warn_of_same(x, guide.learned_from)
    return Counterpart("draws", Moments(x.mean(0), x.std(0), float(len(x))), None)


def checked(
    guide: ChainGuide, other: Counterpart | None, n: int, /, *args: object, **kwargs: object
) -> Checkup:
    """The check of a guide that has been fitted, by n draws."""
    x, weights = Weighing(guide, args, kwargs).weighed(n)
    moments, lacks = Moments.from_weights(x, weights), ""
    distance, at, is_apart = math.nan, 0, False
    if other is not None:
        distance, at, is_apart = moments.apart(other.moments)
    if guide.program_density.plate is None and weights.effective >= FEWEST:
        density, best = guide.program_density, x[weights.log_weights.topk(2).indices]
        log_density = guide.ratio(*args, **kwargs).log_density
        symmetry = Symmetry.from_density(density, guide.latents(), log_density, best)
        images = Moments.from_weights(symmetry.scattered(x), weights)
        lacks = str(symmetry) if symmetry and moments.apart(images)[2] else ""
    start = "Gaussian" if guide.shape is None else "start"
    kept = start if guide.chain.is_at_rest else "chain"
    distant = repr(guide.names[at])
    misfit = _misfit(guide, *args, **kwargs)
    result = Checkup(weights, kept, other, distance, distant, is_apart, misfit, lacks, ())
    if result.is_trusted:
        return result
    return replace(result, remedies=tuple(remedies_of(guide, result, *args, **kwargs)))


def _misfit(guide: ChainGuide, /, *args: object, **kwargs: object) -> float:
    """The misfits of the data of all sites with a learned likelihood, nats."""
    sites = sample_sites(guide.program_density.drawn(*args, **kwargs)).values()
    pairs = [(layers(site["fn"])[-1], site) for site in sites if site["is_observed"]]
    return sum(s["scale"] * law.misfit(s["value"]) for law, s in pairs if hasattr(law, "misfit"))


def remedies_of(
    guide: ChainGuide, result: Checkup, /, *args: object, **kwargs: object
) -> Iterator[str]:
    """Remedies in words. If both fits are sure of themselves, no shape is to blame."""
    is_whole = guide.program_density.plate is None  # with a subsample there is one start
    by_particles = (
        is_whole and guide.latent_dim <= MOST_FOR_PARTICLES and guide.start != "particles"
    )
    if result.misfit > MISFIT:
        yield "a form of a learned likelihood is too poor: fit it by form=None, which chooses one"
    if result.lacks:
        yield "modes have images: " + (
            "take start='particles', which learns them all"
            if by_particles
            else "order what has no name, or give it different priors, so that one image is left"
        )
    disagreement = "the fits disagree, so that one has missed a mode or has not converged: " + (
        "take start='particles', and compare two seeds of it"
        if by_particles
        else "fit it to draws of long NUTS chains from several starts, fit(draws=…)"
    )
    if result.disagrees and not result.is_thin:
        yield disagreement
    yield from _of_shape(guide, is_whole and guide.start == "gaussian", *args, **kwargs)
    other = None if result.second is None else result.second.weights
    if result.is_thin and (result.disagrees or (other is not None and not other.doubt)):
        yield disagreement
    if (rise := _rise(guide.losses)) > RISING:
        yield (
            f"the bound still rose in the last quarter of the updates, by {rise:.0f} standard "
            "errors: give fit more updates"
        )
    yield (
        "give the guide more steps and fit more updates"
        + ", or take start='particles'" * by_particles
    )


def _of_shape(
    guide: ChainGuide, by_shaped: bool, /, *args: object, **kwargs: object
) -> Iterator[str]:
    for parent, children in funnels(guide, *args, **kwargs).items():
        names = ", ".join(map(repr, children))
        yield (
            f"{parent!r} scales {names}, a funnel where data say little of them: non-centre "
            f"them, pyro.poutine.reparam(program, config={{{children[0]!r}: LocScaleReparam(0.0)}})"
            + ", or take start='shaped'"
            * by_shaped
        )
    for name, site in guide.latents():
        kinds = [type(law).__name__ for law in layers(site["fn"])]
        if heavy := [kind for kind in kinds if kind in HEAVY]:  # some are transforms of others
            yield (
                f"{name!r} has heavy tails ({heavy[0]}), which Gaussians do not cover: "
                + "take start='shaped', " * by_shaped
                + "write it as a scale mixture, or as a function of a uniform latent"
            )
            break


def funnels(guide: ChainGuide, /, *args: object, **kwargs: object) -> dict[str, list[str]]:
    """Latents on which the scale of other latents depends, by name, with those."""
    nodes = sample_sites(guide.program_density.drawn(*args, **kwargs))
    values = {name: nodes[name]["value"] for name, _ in guide.latents()}

    def scales(moved: dict[str, Tensor]) -> dict[str, Tensor]:
        program = poutine.condition(guide.program, data=values | moved)
        sites = sample_sites(run(program, *args, **kwargs))
        made = {name: getattr(layers(sites[name]["fn"])[-1], "scale", None) for name in values}
        return {name: scale for name, scale in made.items() if isinstance(scale, Tensor)}

    before, result = scales({}), dict[str, list[str]]()
    for parent, value in values.items():
        to_support = biject_to(nodes[parent]["fn"].support)
        after = scales({parent: to_support(to_support.inv(value) + 0.5)})
        both = [name for name in before if name in after]
        children = [name for name in both if not torch.allclose(before[name], after[name])]
        if children and children != [parent]:
            result[parent] = children
    return result


def _rise(losses: Tensor) -> float:
    """How far the loss fell between the last two quarters, in standard errors."""
    quarter = len(losses) // 4
    if quarter < FEW_UPDATES:
        return 0.0
    third, last = losses[-2 * quarter : -quarter].double(), losses[-quarter:].double()
    error = math.sqrt(float(third.var() + last.var()) / quarter)
    return float(third.mean() - last.mean()) / max(error, 1e-12)
