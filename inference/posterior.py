"""Simulation-based inference: the posterior of a simulator, for any data.

    python -m inference.posterior --simulator two_moons
    python -m inference.posterior --simulator mine.py:program --latent [theta] --observed [x]

A simulator is a Pyro program without arguments, which draws its parameters and its data. A
diffusion model of the parameters given the data learns from simulations alone
(:mod:`pyro_mdm.posteriors`).

The program prints the log density of the true parameters of new simulations. Beside it stand the
exact one, where it is known, that of the prior, and that of a Gaussian with a mean linear in the
data, fitted to the same simulations. It also tests whether the ranks of true parameters among draws
are uniform, which is necessary and not sufficient: those of the prior are.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inference.checkpoints import write_atomically
from inference.cli import check_positive, command_line
from inference.names import find, short_name, slug
from inference.output import aligned, check_out, png
from inference.simulators import Simulator
from pyro_mdm.posteriors import AmortizedPosterior, Calibration, calibrate, log_prior, simulate
from pyro_mdm.support.measured import Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWS = 99
"""Draws from each posterior for its ranks, which then fall evenly into ten bins."""

SHOWN, POINTS = 3, 1000
"""The number of posteriors in the picture, and of points in each."""


def posterior(
    simulator: str = "two_moons",
    latent: list[str] | None = None,
    observed: list[str] | None = None,
    simulations: int = 10_000,
    steps: int = 5_000,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    scored: int = 200,
    calibration: int = 500,
    vectorized: bool = False,
    out: Path | None = None,
    save: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> AmortizedPosterior:
    """Learn p(θ | x) of a simulator from its draws, score it and check its calibration.

    Args:
        simulator: two_moons, linear_gaussian, module:Name or file.py:Name, a Pyro program without
            arguments or a Simulator.
        latent: names of the sites that are parameters; needed for a program of your own.
        observed: names of the sites that are data; needed for a program of your own.
        simulations: number of simulations to learn from.
        steps: training steps.
        batch_size: simulations per step.
        learning_rate: highest learning rate.
        scored: new simulations whose true parameters are scored.
        calibration: new simulations whose true parameters are ranked.
        vectorized: whether a program of your own may be run in a plate, which is quicker.
        out: a .png for draws of some posteriors, with the truth; by default posterior-<name>.png.
        save: a folder for the posterior, which AmortizedPosterior.from_pretrained opens.
        seed: seed of everything random.
        overwrite: replace ``out`` and the content of ``save`` if they exist.
    """
    check_positive(
        simulations=simulations,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        scored=scored,
        calibration=calibration,
    )
    chosen = _simulator(simulator, latent, observed)
    vectorized = vectorized or chosen.vectorized
    out = Path(f"posterior-{slug(simulator)}.png") if out is None else out
    check_out(out, (".png",), overwrite=overwrite)
    if save is not None:
        check_out(save, (), overwrite=overwrite, option="save")
    learned = AmortizedPosterior.fit(
        chosen.program,
        chosen.latent,
        chosen.observed,
        simulations=simulations,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        vectorized=vectorized,
        seed=seed,
        progress=True,
    )
    if save is not None:
        learned.save_pretrained(save)
        print(
            f"{save}: open it by AmortizedPosterior.from_pretrained({str(save)!r}, program), which "
            f"needs the program of {simulator} too; the folder holds no code"
        )
    truth, said = _checked(learned, chosen, scored, calibration, vectorized, seed)
    print(f"{short_name(simulator)}: {simulations:,} simulations, {steps:,} steps")
    print(said)
    few = {name: value[:SHOWN] for name, value in truth.items()}
    drawn = learned.sample(few, POINTS, seed=seed)
    write_atomically(out, png(_figure(few, drawn)))
    print(out)
    return learned


def _checked(
    learned: AmortizedPosterior,
    simulator: Simulator,
    scored: int,
    calibration: int,
    vectorized: bool,
    seed: int,
) -> tuple[dict[str, Tensor], str]:
    """New simulations, and a posterior's scores and ranks on them, in words."""
    program = simulator.program
    truth = simulate(program, scored, seed=seed + 1, vectorized=vectorized, progress=True)
    density = learned.log_prob(truth, truth, seed=seed, progress=True)
    ranks = calibrate(
        learned, program, calibration, DRAWS, seed=seed + 2, vectorized=vectorized, progress=True
    )
    scores = _scores(density.value, learned, simulator, truth)
    return truth, f"{scores}\n{_calibration(ranks)}"


def _simulator(name: str, latent: list[str] | None, observed: list[str] | None) -> Simulator:
    named = find("simulator", name)
    if isinstance(named, Simulator):
        return named._replace(
            latent=named.latent if latent is None else tuple(latent),
            observed=named.observed if observed is None else tuple(observed),
        )
    if not callable(named):
        raise TypeError(
            f"--simulator {name} is {named!r}, expected a Pyro program without arguments, or a "
            "Simulator of inference.simulators"
        )
    if latent is None or observed is None:
        raise ValueError(
            f"--simulator {name} is a program of your own, of which parameters and data are not "
            "known; name their sites, e.g. --latent [theta] --observed [x]"
        )
    return Simulator(named, tuple(latent), tuple(observed))


def _scores(
    value: Tensor, learned: AmortizedPosterior, simulator: Simulator, truth: dict[str, Tensor]
) -> str:
    """Mean log densities of true parameters: ours, the exact one, and two baselines."""
    rows, notes = [["log density of the truth, nats", str(Measured.of(value))]], []
    better = []
    if simulator.log_posterior is not None:
        exact = simulator.log_posterior(truth).double()
        rows += [
            ["of the exact posterior", str(Measured.of(exact))],
            ["exact less ours, paired: the divergence", str(Measured.of(exact - value))],
        ]
    try:
        prior = log_prior(simulator.program, simulator.latent, truth)
    except ValueError as error:
        notes.append(f"the prior's score is not known: {error}")
    else:
        gain = Measured.of(value - prior)
        rows += [
            ["of the prior", str(Measured.of(prior))],
            ["ours less the prior's, paired", str(gain)],
        ]
        better += ["the prior"] if gain.mean < -2 * gain.standard_error else []
    if learned.gaussian is None:
        notes.append(
            "no Gaussian was fitted: it takes ten simulations for each number of the data, which "
            "must not tell a parameter exactly"
        )
    else:
        r, log_det = learned.coordinates(truth, learned.data(truth))
        law = torch.distributions.Normal(0.0, 1.0)
        gaussian = (law.log_prob(r).sum(1) + log_det).double()
        gain = Measured.of(value - gaussian)
        rows += [
            ["of a Gaussian, its mean linear in the data", str(Measured.of(gaussian))],
            ["ours less the Gaussian's, paired", str(gain)],
        ]
        better += ["a Gaussian"] if gain.mean < -2 * gain.standard_error else []
    if better:
        notes.append(
            f"warning: {' and '.join(better)} {'is' if len(better) == 1 else 'are'} better, so "
            "that ranks below say little; give more --simulations or --steps"
        )
    return "\n".join([aligned(rows), *notes])


def _calibration(drawn: Calibration) -> str:
    n = len(next(iter(drawn.ranks.values())))
    values = ", ".join(
        f"{name} {' '.join(f'{p:.2g}' for p in values.reshape(-1).tolist())}"
        for name, values in drawn.p_values().items()
    )
    word = "uniform, as far as that tells" if drawn.smallest > 0.05 else "NOT uniform"
    return (
        f"ranks of the truth among {drawn.draws} draws, {n} simulations: {word} (p-values of a χ² "
        f"test: {values}; smallest times their number {drawn.smallest:.2g})"
    )


def _names(drawn: dict[str, Tensor]) -> list[str]:
    """The names of all parameters, for draws (m, n, *shape) by site: a, or b[0], b[1], …"""
    return [
        name if value.dim() == 2 else f"{name}[{', '.join(map(str, place))}]"
        for name, value in drawn.items()
        for place in itertools.product(*map(range, value.shape[2:]))
    ]


def _figure(truth: dict[str, Tensor], drawn: dict[str, Tensor]) -> Figure:
    """Draws of the first two parameters of each datum, and the truth."""
    from matplotlib.figure import Figure

    points = torch.cat([v.reshape(*v.shape[:2], -1) for v in drawn.values()], -1)
    known = torch.cat([truth[name].reshape(len(points), -1) for name in drawn], -1)
    names = _names(drawn)
    figure = Figure((3.4 * len(points), 3.4), dpi=110, layout="constrained")
    for i, axes in enumerate(figure.subplots(1, len(points), squeeze=False)[0]):
        if len(names) == 1:
            axes.hist(points[i, :, 0].numpy(), bins=50, color="C0", density=True)
            axes.axvline(float(known[i, 0]), color="C1", label="truth")
            axes.set_ylabel("density")
        else:
            axes.plot(points[i, :, 0], points[i, :, 1], "C0.", ms=2, alpha=0.5, label="draws")
            axes.plot(known[i, 0], known[i, 1], "C1*", ms=12, label="truth")
            axes.set_ylabel(names[1])
        axes.set_xlabel(names[0])
        axes.set_title(f"datum {i + 1}", fontsize=9)
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    command_line(posterior, unnamed="simulator")
