"""Simulation-based inference: the posterior of a simulator, for any data.

    python -m inference.posterior --simulator two_moons
    python -m inference.posterior --simulator mine.py:program --latent [theta] --observed [x] \
        --data mine.json

A simulator is a Pyro program without arguments, which draws its parameters and its data. A
diffusion model of the parameters given the data learns from simulations alone
(:mod:`pyro_mdm.posteriors`).

The command prints the log density of the true parameters of new simulations. For comparison it
prints the exact one, where it is known, that of the prior, and that of a Gaussian with a mean
linear in the data, fitted to the same simulations. It also tests whether the ranks of true
parameters among draws are uniform, which is necessary but not sufficient: the prior has uniform
ranks too.

With --data it gives the posterior of your own observation: draws in a file, pictures of them and of
their predictions, how usual the observation is for the simulator, and whether ranks are uniform
near it. Where the Pyro program has densities, the command also prints the evidence log p(x); the
difference of two of these, for two simulators of the same data, is the log Bayes factor.
With --hierarchy the simulator is of one unit and --data has many: p(x | θ) is learned, and your
hierarchical program around it has its posterior and its evidence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.commands.cli import check_options_positive, command_line
from inference.posteriors.files import Files
from inference.posteriors.hierarchy import HierarchyReport, hierarchy_named, read_units
from inference.posteriors.observations import is_incomplete, read_observation, simulator_named
from inference.posteriors.report import PosteriorOptions, PosteriorReport, check_near
from inference.settings.kinds import checked_options
from inference.settings.names import short_name, slug
from pyro_mdm.posteriors import AmortizedPosterior, LikelihoodMembers

__all__ = ["posterior", "read_observation"]

HIDDEN = 0.3
"""The fraction of the simulations of which numbers are hidden, where the observation lacks some."""


@checked_options(PosteriorOptions)
def posterior(
    simulator: str = "two_moons", **options: Any
) -> AmortizedPosterior | LikelihoodMembers:
    """Learn p(θ | x) of a simulator from its draws, score it and check its calibration.

    Args:
        simulator, options: options by name, see :class:`PosteriorOptions`.
    """
    settings = PosteriorOptions(simulator=simulator, **options)
    check_options_positive(settings, "simulations", "steps", "seconds", "batch_size", "scored")
    check_options_positive(settings, "learning_rate", "calibration", "num_samples")
    check_near(settings.near)
    chosen = simulator_named(
        settings.simulator, settings.latent, settings.observed, vectorized=settings.vectorized
    )
    out = settings.out or Path(f"posterior-{slug(settings.simulator)}.png")
    files = Files.beside(out)
    files.check(settings.save, with_draws=settings.data is not None, overwrite=settings.overwrite)
    training: dict[str, Any] = {
        name: getattr(settings, name)
        for name in ("simulations", "steps", "seconds", "learning_rate", "seed", "batch_size")
        if name != "batch_size" or settings.batch_size is not None
    }
    training |= {"progress": True, "vectorized": chosen.vectorized}
    if settings.hierarchy is not None:
        program = hierarchy_named(settings.hierarchy)
        units = read_units(settings.data, chosen.observed)
        likelihoods = LikelihoodMembers.fit(*chosen[:3], members=settings.members, **training)
        files.save(settings.save, likelihoods, settings.simulator)
        drawing = settings.num_samples, settings.seed
        HierarchyReport(likelihoods, program, units, *drawing).write(files)
        return likelihoods
    one = {} if settings.data is None else read_observation(settings.data, chosen)
    hides = is_incomplete({name: one[name] for name in chosen.observed if name in one})
    learned = AmortizedPosterior.fit(*chosen[:3], missing=HIDDEN if hides else 0.0, **training)
    files.save(settings.save, learned, settings.simulator)
    report = PosteriorReport(learned, chosen, settings.seed)
    truth, said = report.checks(settings.scored, settings.calibration)
    simulations = f"{short_name(settings.simulator)}: {settings.simulations:,} simulations"
    print(f"{simulations}, {learned.outcome}\n{said}")
    one = one or {name: value[0] for name, value in truth.items()}
    drawn = learned.sample(one, settings.num_samples, seed=settings.seed)
    if settings.data is not None:
        print(report.observation(one, drawn))
        print(report.evidence(one))
        if settings.near:
            print(report.near(one, settings.near))
    parameters = {name: one[name] for name in chosen.latent if name in one}
    whole = parameters if len(parameters) == len(chosen.latent) else None
    observation = {name: one[name] for name in chosen.observed}
    replicated = report.replicated(drawn, truth)
    files.draw(drawn, truth, whole, replicated, observation, with_draws=settings.data is not None)
    return learned


if __name__ == "__main__":
    command_line(posterior, unnamed="simulator", groups={"posterior": PosteriorOptions})
