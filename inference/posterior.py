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

from inference.commands.cli import check_positive, command_line
from inference.posteriors.files import Files
from inference.posteriors.hierarchy import HierarchyReport, hierarchy_named, read_units
from inference.posteriors.observations import is_incomplete, read_observation, simulator_named
from inference.posteriors.report import PosteriorReport, check_near
from inference.settings.kinds import checked_options
from inference.settings.names import short_name, slug
from pyro_mdm.posteriors import AmortizedPosterior, LikelihoodMembers

__all__ = ["posterior", "read_observation"]

POINTS = 1000
"""Draws of the posterior in the picture by default."""

HIDDEN = 0.3
"""The fraction of the simulations of which numbers are hidden, where the observation lacks some."""


@checked_options
def posterior(
    simulator: str = "two_moons",
    latent: list[str] | None = None,
    observed: list[str] | None = None,
    simulations: int = 10_000,
    steps: int | None = None,
    seconds: float | None = None,
    batch_size: int | None = None,
    learning_rate: float = 2e-3,
    scored: int = 200,
    calibration: int = 500,
    vectorized: bool = False,
    hierarchy: str | None = None,
    members: int = 4,
    data: Path | None = None,
    num_samples: int = POINTS,
    near: int = 5_000,
    out: Path | None = None,
    save: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> AmortizedPosterior | LikelihoodMembers:
    """Learn p(θ | x) of a simulator from its draws, score it and check its calibration.

    Args:
        simulator: simulator: two_moons, linear_gaussian, or module:Name or file.py:Name of a Pyro
            program without arguments or of a Simulator.
        latent: names of the sites that are parameters; needed for a program of your own.
        observed: names of the sites that are data; needed for a program of your own.
        simulations: number of simulations to learn from.
        steps: largest number of training steps; by default as many as fit into --seconds, or else
            8,000 for 10,000 simulations, with --hierarchy 6,000 for each network, in proportion to
            the number of simulations above, and to its square root below.
        seconds: most seconds of training, which ends earlier if nothing is gained; with --hierarchy
            those of all likelihoods, without the guides of the hierarchical program.
        batch_size: number of simulations per step; by default 256, with --hierarchy 1,024.
        learning_rate: highest learning rate.
        scored: number of new simulations whose true parameters are scored.
        calibration: number of new simulations whose true parameters are ranked.
        vectorized: whether a program of your own may be run in a plate, which is quicker.
        hierarchy: module:Name or file.py:Name of a Pyro program of two arguments, the learned
            likelihood and the data of many units by site; --data has them then, with a column unit
            if it is a .csv.
        members: number of likelihoods for --hierarchy, each from half of the simulations, whose
            spread is the error of learning.
        data: file of an observation by site: a .json, or a .csv with a column for each site, in
            which null or an empty cell is missing. It may have true parameters too. By default a
            new simulation is observed.
        num_samples: number of draws from the posterior of the observation.
        near: number of new simulations, with --data; the twentieth of them that is nearest to the
            observation is ranked too; 0 for none.
        out: name of a .png file for draws from the posterior of the observation; by default
            posterior-<name>.png. Beside it are written -predictive.png and, with --data,
            -draws.csv.
        save: folder for the posterior, which AmortizedPosterior.from_pretrained opens; with
            --hierarchy for the likelihoods, which LikelihoodMembers.from_pretrained opens.
        seed: seed of all random numbers.
        overwrite: whether the file of --out and the content of --save are replaced if they exist.
    """
    check_positive(
        simulations=simulations, steps=steps, seconds=seconds, batch_size=batch_size, scored=scored
    )
    check_positive(learning_rate=learning_rate, calibration=calibration, num_samples=num_samples)
    check_near(near)
    chosen = simulator_named(simulator, latent, observed, vectorized=vectorized)
    files = Files.beside(Path(f"posterior-{slug(simulator)}.png") if out is None else out)
    files.check(save, with_draws=data is not None, overwrite=overwrite)
    training: dict[str, Any] = {
        "simulations": simulations, "steps": steps, "seconds": seconds, "progress": True,
        "learning_rate": learning_rate, "vectorized": chosen.vectorized, "seed": seed,
    }  # fmt: skip
    training |= {} if batch_size is None else {"batch_size": batch_size}
    if hierarchy is not None:
        program, units = hierarchy_named(hierarchy), read_units(data, chosen.observed)
        likelihoods = LikelihoodMembers.fit(*chosen[:3], members=members, **training)
        files.save(save, likelihoods, simulator)
        HierarchyReport(likelihoods, program, units, num_samples, seed).write(files)
        return likelihoods
    one = {} if data is None else read_observation(data, chosen)
    hides = is_incomplete({name: one[name] for name in chosen.observed if name in one})
    learned = AmortizedPosterior.fit(*chosen[:3], missing=HIDDEN if hides else 0.0, **training)
    files.save(save, learned, simulator)
    report = PosteriorReport(learned, chosen, seed)
    truth, said = report.checks(scored, calibration)
    print(f"{short_name(simulator)}: {simulations:,} simulations, {learned.outcome}\n{said}")
    one = one or {name: value[0] for name, value in truth.items()}
    drawn = learned.sample(one, num_samples, seed=seed)
    if data is not None:
        print(report.observation(one, drawn))
        print(report.evidence(one))
        if near:
            print(report.near(one, near))
    parameters = {name: one[name] for name in chosen.latent if name in one}
    whole = parameters if len(parameters) == len(chosen.latent) else None
    observation = {name: one[name] for name in chosen.observed}
    replicated = report.replicated(drawn, truth)
    files.draw(drawn, truth, whole, replicated, observation, with_draws=data is not None)
    return learned


if __name__ == "__main__":
    command_line(posterior, unnamed="simulator")
