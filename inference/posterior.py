"""Simulation-based inference: the posterior of a simulator, for any data.

    python -m inference.posterior --simulator two_moons
    python -m inference.posterior --simulator mine.py:program --latent [theta] --observed [x] \
        --data mine.json

A simulator is a Pyro program without arguments, which draws its parameters and its data. A
diffusion model of the parameters given the data learns from simulations alone
(:mod:`pyro_mdm.posteriors`).

The program prints the log density of the true parameters of new simulations. Beside it stand the
exact one, where it is known, that of the prior, and that of a Gaussian with a mean linear in the
data, fitted to the same simulations. It also tests whether the ranks of true parameters among draws
are uniform, which is necessary and not sufficient: those of the prior are.

With --data it answers for an observation of one's own: draws of its posterior in a file, pictures
of them and of what they predict, how usual the observation is for the simulator, and whether ranks
are uniform near it. Where the program has densities it prints the evidence log p(x) too: that of
two simulators of the same data, less each other, is the log Bayes factor.
"""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import Importance, Predictive
from torch import Tensor

from inference.commands.cli import check_positive, command_line
from inference.folders.checkpoints import write_atomically
from inference.folders.output import aligned, check_out, csv_bytes, png
from inference.folders.runs import RunError
from inference.settings.names import find, short_name, slug
from inference.simulators import Simulator
from pyro_mdm.posteriors import (
    AmortizedPosterior,
    Calibration,
    Coverage,
    ImportanceWeights,
    calibrate,
    calibrate_at,
    log_prior,
    simulate,
)
from pyro_mdm.posteriors.dependence import is_computed
from pyro_mdm.posteriors.reading import sites_of
from pyro_mdm.support.checks import describe
from pyro_mdm.support.measured import Measured

DRAWS = 99
"""Draws from each posterior for its ranks, which then fall evenly into ten bins."""

POINTS, REPLICATED = 1000, 200
"""Draws of the posterior in the picture by default, and simulations from it."""

NEAR = 20
"""New simulations for each that is near the observation."""

LEAST_NEAR = 100
"""New simulations below which there are too few near the observation."""

WEIGHTS = 1000
"""Draws of the posterior that are weighted for the evidence."""

HIDDEN = 0.3
"""The part of the simulations of which numbers are hidden, where the observation lacks some."""


def posterior(
    simulator: str = "two_moons",
    latent: list[str] | None = None,
    observed: list[str] | None = None,
    simulations: int = 10_000,
    steps: int = 8_000,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    scored: int = 200,
    calibration: int = 500,
    vectorized: bool = False,
    data: Path | None = None,
    num_samples: int = POINTS,
    near: int = 5_000,
    out: Path | None = None,
    save: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> AmortizedPosterior:
    """Learn p(θ | x) of a simulator from its draws, score it and check its calibration.

    Args:
        simulator: simulator: two_moons, linear_gaussian, or module:Name or file.py:Name of a Pyro
            program without arguments or of a Simulator.
        latent: names of the sites that are parameters; needed for a program of your own.
        observed: names of the sites that are data; needed for a program of your own.
        simulations: number of simulations to learn from.
        steps: number of training steps.
        batch_size: number of simulations per step.
        learning_rate: highest learning rate.
        scored: number of new simulations whose true parameters are scored.
        calibration: number of new simulations whose true parameters are ranked.
        vectorized: whether a program of your own may be run in a plate, which is quicker.
        data: file of an observation by site: a .json, or a .csv with a column for each site, in
            which null or an empty cell is missing. It may have true parameters too. By default a
            new simulation is observed.
        num_samples: number of draws of the posterior of the observation.
        near: number of new simulations, with --data, of which the twentieth that is nearest to the
            observation is ranked too; 0 for none.
        out: name of a .png file for draws of the posterior of the observation; by default
            posterior-<name>.png. Beside it are written -predictive.png and, with --data,
            -draws.csv.
        save: folder for the posterior, which AmortizedPosterior.from_pretrained opens.
        seed: seed of all random numbers.
        overwrite: replace the file of --out and the content of --save if they exist.
    """
    from pyro_mdm.plots.posteriors import (  # loads matplotlib
        posterior_columns,
        posterior_figure,
        predictive_figure,
    )

    check_positive(
        simulations=simulations,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        scored=scored,
        calibration=calibration,
        num_samples=num_samples,
    )
    if 0 != near < LEAST_NEAR:
        raise ValueError(
            f"--near is {near}, expected 0, or at least {LEAST_NEAR}, so that enough of them are "
            "near the observation"
        )
    chosen = _simulator(simulator, latent, observed)
    vectorized = vectorized or chosen.vectorized
    out = Path(f"posterior-{slug(simulator)}.png") if out is None else out
    check_out(out, (".png",), overwrite=overwrite)
    predictive, table = _beside(out, "-predictive.png"), _beside(out, "-draws.csv")
    for file in (predictive, *([table] if data is not None else [])):
        check_out(file, (file.suffix,), overwrite=overwrite)
    if save is not None:
        check_out(save, (), overwrite=overwrite, option="save")
    from_file = None if data is None else read_observation(data, chosen)
    learned = AmortizedPosterior.fit(
        chosen.program,
        chosen.latent,
        chosen.observed,
        simulations=simulations,
        missing=HIDDEN
        if from_file and _lacks({name: from_file[name] for name in chosen.observed})
        else 0.0,
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
    one = {name: value[0] for name, value in truth.items()} if from_file is None else from_file
    drawn = learned.sample(one, num_samples, seed=seed)
    if data is not None:
        print(_of_observation(learned, chosen, one, drawn))
        print(_evidence(learned, chosen, one, seed))
        if near:
            print(_near(learned, chosen, one, near, vectorized, seed))
        columns = posterior_columns(drawn)
        rows = zip(*(value.tolist() for value in columns.values()), strict=True)
        content = csv_bytes([dict(zip(columns, row, strict=True)) for row in rows])
        write_atomically(table, content)
        print(table)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        few = {name: value[:REPLICATED] for name, value in drawn.items()}
        replicated = Predictive(chosen.program, few, parallel=vectorized)()
    replicated = {
        name: replicated[name].reshape(-1, *truth[name].shape[1:]) for name in chosen.observed
    }
    parameters = {name: one[name] for name in chosen.latent if name in one}
    whole = parameters if len(parameters) == len(chosen.latent) else None
    write_atomically(out, png(posterior_figure(drawn, truth, whole)))
    observation = {name: one[name] for name in chosen.observed}
    write_atomically(predictive, png(predictive_figure(replicated, observation, truth)))
    print(f"{out}\n{predictive}")
    return learned


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(out.stem + ending)


# -- an observation --------------------------------------------------------------------------------


def read_observation(path: Path, simulator: Simulator) -> dict[str, Tensor]:
    """An observation by site, (*shape) each, and those true parameters that the file has.

    Args:
        path: a .json of lists by site, or a .csv with a column for each site, whose numbers stand
            below each other.

    Raises:
        RunError: no such file, or one of another kind; a site that is missing, has another number
            of values, or values that are no numbers.
    """
    shapes = {
        name: tuple(site["value"].shape)
        for name, site in sites_of(
            simulator.program, [*simulator.observed, *simulator.latent]
        ).items()
    }
    content = _content(path)
    if absent := [name for name in simulator.observed if name not in content]:
        raise RunError(
            f"--data {path} has no {absent[0]!r}, expected the sites of the data, "
            f"{', '.join(simulator.observed)}; it has {', '.join(map(str, content)) or 'nothing'}"
        )
    values = {}
    for name, shape in shapes.items():
        if name not in content:
            continue
        entries, size = content[name], math.prod(shape)
        if path.suffix == ".csv" and not any(cell not in (None, "") for cell in entries[size:]):
            entries = entries[:size]  # shorter columns end in empty cells
        try:
            value = torch.tensor(_numbers(entries), dtype=torch.get_default_dtype())
        except (TypeError, ValueError) as error:
            raise RunError(
                f"--data {path}: {name!r} has a value that is no number ({error}), expected "
                "numbers, and nothing where one is missing"
            ) from error
        if value.numel() != size:
            raise RunError(
                f"--data {path}: {name!r} has {value.numel()} values, expected {size}, of shape "
                f"{shape}; one observation has the shape that the program draws"
            )
        values[name] = value.reshape(shape)
    return values


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text())
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file, skipinitialspace=True))
            content = {name: [row[name] for row in rows] for name in (rows[0] if rows else [])}
        else:
            raise RunError(f"--data is {path}, expected a .json or a .csv file")
    except OSError as error:
        raise RunError(f"--data {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise RunError(f"--data {path} is damaged ({error}), expected values by site") from error
    if not isinstance(content, dict):
        raise RunError(f"--data {path} holds {describe(content)}, expected values by site")
    return content


def _numbers(value: Any) -> Any:
    """Nested lists of numbers, NaN for what is missing."""
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return math.nan if value is None or value == "" else float(value)


def _lacks(values: Mapping[str, Tensor]) -> bool:
    return any(bool(value.isnan().any()) for value in values.values())


def _of_observation(
    learned: AmortizedPosterior,
    simulator: Simulator,
    one: Mapping[str, Tensor],
    drawn: Mapping[str, Tensor],
) -> str:
    """The posterior of each parameter, in words, and how usual the observation is."""
    from pyro_mdm.plots.posteriors import posterior_columns  # loads matplotlib

    rows = [["parameter", "mean", "sd", "5%", "95%"]]
    single = {n: one[n].unsqueeze(0) for n in simulator.latent if n in one}
    true = posterior_columns(single)
    if true:
        rows[0].append("truth")
    for name, value in posterior_columns(drawn).items():
        low, high = value.quantile(value.new_tensor([0.05, 0.95])).tolist()
        cells = [float(value.mean()), float(value.std()), low, high]
        truth = [f"{float(true[name]):.4g}" if name in true else ""] if true else []
        rows.append([name, *(f"{cell:.4g}" for cell in cells), *truth])
    p = float(learned.predictive_p_value(one))
    usual = f"prior predictive p-value of the observation: {p:.2g}, small if unlike simulations"
    return f"{aligned(rows)}\n{usual}"


def _evidence(
    learned: AmortizedPosterior, simulator: Simulator, one: Mapping[str, Tensor], seed: int
) -> str:
    """log p(x) by weighted draws, in words, or why it is not known."""
    observation = {name: one[name] for name in simulator.observed}
    unknown = "the evidence log p(x) is not known"
    sites = sites_of(simulator.program, simulator.observed)
    if _lacks(observation):
        return f"{unknown}: numbers of the observation are missing"
    if computed := [name for name, site in sites.items() if is_computed(site)]:
        return f"{unknown}: {computed[0]!r} is computed, and has no density"
    conditioned = pyro.condition(simulator.program, observation)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is printed here
        torch.manual_seed(seed)
        guide = learned.guide(observation, seed=seed)
        try:
            importance = Importance(conditioned, guide, num_samples=WEIGHTS).run()
        except NotImplementedError as error:
            return f"{unknown}: a law of the program has no density ({error})"
        weights = ImportanceWeights.of(importance)
    said = (
        f"the evidence log p(x): {weights.log_evidence} nats, by {WEIGHTS:,} weights that count as "
        f"{weights.effective:,.0f} draws"
    )
    if weights.doubt:
        said += f"; NOT to be trusted, as {weights.doubt}: give more --simulations or --steps"
    return said


def _near(
    learned: AmortizedPosterior,
    simulator: Simulator,
    one: Mapping[str, Tensor],
    near: int,
    vectorized: bool,
    seed: int,
) -> str:
    """Ranks of the simulations that are nearest to the observation, in words."""
    nearest = max(1, near // NEAR)
    observation = {name: one[name] for name in simulator.observed}
    local = calibrate_at(
        learned, simulator.program, observation, near, nearest, DRAWS,
        vectorized=vectorized, seed=seed + 3, progress=True,
    )  # fmt: skip
    return f"near the observation, the nearest {nearest / near:.0%}: {_calibration(local)}"


# -- checks ----------------------------------------------------------------------------------------


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
    return truth, f"{scores}\n{_calibration(ranks)}\n{_coverage(ranks)}"


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
            f"--simulator {name} is a program of your own, expected --latent and --observed for "
            "its parameters and its data; name their sites, e.g. --latent [theta] --observed [x]"
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
            "no Gaussian was fitted: that takes ten simulations for each number of the data, and "
            "data that do not determine a parameter exactly"
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


def _coverage(drawn: Calibration) -> str:
    held = Coverage.of(drawn)
    words = [
        f"{level:.0%} ones {_shares(held.by_site(level))} (± {held.error(level):.0%})"
        for level in (0.5, 0.9)
    ]
    return f"central intervals hold the truth: {', '.join(words)}"


def _shares(shares: Mapping[str, Tensor]) -> str:
    every = torch.cat([share.reshape(-1) for share in shares.values()]).tolist()
    return " ".join(f"{share:.0%}" for share in every)


if __name__ == "__main__":
    command_line(posterior, unnamed="simulator")
