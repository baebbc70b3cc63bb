"""Learned posteriors in words: their scores and ranks, and what they say of an observation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
from pyro.infer import Importance, Predictive
from torch import Tensor

from inference.folders.output import aligned
from inference.posteriors.observations import is_incomplete
from inference.simulators import Simulator
from pyro_mdm import posteriors
from pyro_mdm.posteriors import AmortizedPosterior, Calibration
from pyro_mdm.posteriors.reading import sites_of
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.traces import is_computed

DRAWS = 99
"""Draws from each posterior for its ranks, which then fall evenly into ten bins."""

POINTS = 1000
"""Draws of the posterior in the picture by default."""

REPLICATED = 200
"""Simulations from draws of the posterior in the picture."""

NEAR = 20
"""New simulations for each that is near the observation."""

LEAST_NEAR = 100
"""New simulations below which there are too few near the observation."""

WEIGHTS = 1000
"""Draws of the posterior that are weighted for the evidence."""


@dataclass(frozen=True, kw_only=True)
class PosteriorOptions:
    """The posterior.

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

    simulator: str = "two_moons"
    latent: list[str] | None = None
    observed: list[str] | None = None
    simulations: int = 10_000
    steps: int | None = None
    seconds: float | None = None
    batch_size: int | None = None
    learning_rate: float = 2e-3
    scored: int = 200
    calibration: int = 500
    vectorized: bool = False
    hierarchy: str | None = None
    members: int = 4
    data: Path | None = None
    num_samples: int = POINTS
    near: int = 5_000
    out: Path | None = None
    save: Path | None = None
    seed: int = 0
    overwrite: bool = False


def check_near(near: int) -> None:
    """Check a number of new simulations of which some are near the observation.

    Raises:
        ValueError: so few that too few are near.
    """
    if 0 != near < LEAST_NEAR:
        raise ValueError(
            f"--near is {near}, expected 0, or at least {LEAST_NEAR}, so that enough of them are "
            "near the observation"
        )


class PosteriorReport(NamedTuple):
    """A posterior that was learned from a simulator, and the seed of all that it is asked."""

    learned: AmortizedPosterior
    simulator: Simulator
    seed: int

    # -- checks by new simulations -----------------------------------------------------------------

    def checks(self, scored: int, calibration: int) -> tuple[dict[str, Tensor], str]:
        """New simulations by site, (scored, …), and the scores and ranks on them, in words."""
        learned, (program, *_, vectorized), seed = self
        truth = posteriors.simulate(
            program, scored, seed=seed + 1, vectorized=vectorized, progress=True
        )
        density = learned.log_prob(truth, truth, seed=seed, progress=True)
        ranks = posteriors.calibrate(
            learned, program, calibration, DRAWS,
            seed=seed + 2, vectorized=vectorized, progress=True,
        )  # fmt: skip
        scores = self.scores(density.value, truth)
        return truth, f"{scores}\n{uniformity(ranks)}\n{central_intervals(ranks)}"

    def scores(self, value: Tensor, truth: dict[str, Tensor]) -> str:
        """Mean log densities of true parameters: ours (n,), the exact one, and two baselines."""
        learned, simulator, _ = self
        rows, notes = [["log density of the truth, nats", str(Measured.from_values(value))]], []
        if simulator.log_posterior is not None:
            exact = simulator.log_posterior(truth).double()
            rows += [
                ["of the exact posterior", str(Measured.from_values(exact))],
                ["exact − ours, paired: the divergence", str(Measured.from_values(exact - value))],
            ]
        baselines: list[tuple[str, str, str, Tensor]] = []
        try:
            prior = posteriors.log_prior(simulator.program, simulator.latent, truth)
        except ValueError as error:
            notes.append(f"the prior's score is not known: {error}")
        else:
            baselines.append(("the prior", "of the prior", "the prior's", prior))
        if learned.gaussian is None:
            notes.append(
                "no Gaussian was fitted: it needs ten simulations for each number of the data, and "
                "data that do not determine a parameter exactly"
            )
        else:
            r, log_det = learned.coordinates(truth, learned.data(truth))
            law = torch.distributions.Normal(0.0, 1.0)
            gaussian = (law.log_prob(r).sum(1) + log_det).double()
            title = "of a Gaussian, its mean linear in the data"
            baselines.append(("a Gaussian", title, "the Gaussian's", gaussian))
        better = []
        for name, title, whose, density in baselines:
            gain = Measured.from_values(value - density)
            rows += [
                [title, str(Measured.from_values(density))],
                [f"ours − {whose}, paired", str(gain)],
            ]
            better += [name] if gain.mean < -2 * gain.standard_error else []
        if better:
            notes.append(
                f"warning: {' and '.join(better)} {'is' if len(better) == 1 else 'are'} better, so "
                "that ranks below say little; give more --simulations or --steps"
            )
        return "\n".join([aligned(rows), *notes])

    # -- an observation ----------------------------------------------------------------------------

    def observation(self, one: Mapping[str, Tensor], drawn: Mapping[str, Tensor]) -> str:
        """Draws of the posterior of an observation by parameter, and how usual it is, in words."""
        true = {n: one[n].unsqueeze(0) for n in self.simulator.latent if n in one}
        rows = quantile_rows(drawn, true)
        p = float(self.learned.predictive_p_value(one))
        usual = (
            f"prior predictive p-value of the observation: {p:.2g} (small: unlike the simulations)"
        )
        return f"{aligned(rows)}\n{usual}"

    def evidence(self, one: Mapping[str, Tensor]) -> str:
        """log p(x) by weighted draws, in words, or why it is not known."""
        learned, simulator, seed = self
        observation = {name: one[name] for name in simulator.observed}
        unknown = "the evidence log p(x) is not known"
        sites = sites_of(simulator.program, simulator.observed)
        if is_incomplete(observation):
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
                return f"{unknown}: a distribution of the program has no density ({error})"
            weights = posteriors.ImportanceWeights.from_importance(importance)
        said = (
            f"the evidence log p(x): {weights.log_evidence} nats, by {WEIGHTS:,} weights that "
            f"count as {weights.effective:,.0f} draws"
        )
        if weights.doubt:
            said += f"; NOT to be trusted, as {weights.doubt}: give more --simulations or --steps"
        return said

    def near(self, one: Mapping[str, Tensor], near: int) -> str:
        """Ranks of those of ``near`` simulations that are nearest to an observation, in words."""
        learned, simulator, seed = self
        nearest = max(1, near // NEAR)
        observation = {name: one[name] for name in simulator.observed}
        local = posteriors.calibrate_at(
            learned, simulator.program, observation, near, nearest, DRAWS,
            vectorized=simulator.vectorized, seed=seed + 3, progress=True,
        )  # fmt: skip
        return f"near the observation, the nearest {nearest / near:.0%}: {uniformity(local)}"

    def replicated(
        self, drawn: Mapping[str, Tensor], truth: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Data by site, (n, …), that the program draws with parameters of the posterior.

        Args:
            drawn: draws of the parameters by site, of which the first few are taken.
            truth: simulations, whose shapes the data have.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            few = {name: value[:REPLICATED] for name, value in drawn.items()}
            data = Predictive(self.simulator.program, few, parallel=self.simulator.vectorized)()
        shapes = {name: truth[name].shape[1:] for name in self.simulator.observed}
        return {name: data[name].reshape(-1, *shape) for name, shape in shapes.items()}


def quantile_rows(
    drawn: Mapping[str, Tensor], truth: Mapping[str, Tensor] | None = None
) -> list[list[str]]:
    """Rows of a table of parameters, the first with its titles.

    Args:
        drawn: draws by site, (n, *shape).
        truth: true values by site, (1, *shape), of some or no sites.
    """
    from pyro_mdm.plots.posteriors import posterior_columns  # loads matplotlib

    true = posterior_columns(truth or {})
    rows = [["parameter", "mean", "sd", "5%", "95%", *(["truth"] if true else [])]]
    for name, value in posterior_columns(drawn).items():
        low, high = value.quantile(value.new_tensor([0.05, 0.95])).tolist()
        cells = [float(value.mean()), float(value.std()), low, high]
        last = [f"{float(true[name]):.4g}" if name in true else ""] if true else []
        rows.append([name, *(f"{cell:.4g}" for cell in cells), *last])
    return rows


def uniformity(drawn: Calibration) -> str:
    """Whether ranks are uniform, in words."""
    n = len(next(iter(drawn.ranks.values())))
    values = ", ".join(
        f"{name} {' '.join(f'{p:.2g}' for p in values.reshape(-1).tolist())}"
        for name, values in drawn.p_values().items()
    )
    word = "uniform, as far as this test shows" if drawn.smallest > 0.05 else "NOT uniform"
    return (
        f"ranks of the truth among {drawn.draws} draws, {n} simulations: {word} (p-values of a χ² "
        f"test: {values}; smallest times their number {drawn.smallest:.2g})"
    )


def central_intervals(drawn: Calibration) -> str:
    """How often central intervals contain the truth, in words."""
    held, words = posteriors.Coverage.from_calibration(drawn), []
    for level in (0.5, 0.9):
        every = torch.cat([share.reshape(-1) for share in held.by_site(level).values()])
        shares = " ".join(f"{share:.0%}" for share in every.tolist())
        words.append(f"{level:.0%} ones {shares} (± {held.error(level):.0%})")
    return f"central intervals contain the truth: {', '.join(words)}"
