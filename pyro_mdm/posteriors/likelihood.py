r"""The likelihood p(x | θ) of a simulator that is a Pyro program, learned from its draws.

The program shows which data are independent given θ (:func:`~pyro_mdm.posteriors.read_program`), so
p(x | θ) is a product of factors. Each factor is learned by itself, and data that are exchangeable
along a plate are learned one by one: 10,000 simulations of four data are 40,000 examples of one
distribution. For any number of data the log densities are added, with the same networks.

Real numbers have a Gaussian distribution whose mean and covariance a network computes, with a map
of heavy tails, and mixtures of the residuals; discrete numbers have probabilities
(:mod:`pyro_mdm.posteriors.laws`).

The expected log density of N data is too low by N times the misfit KL(p ‖ p̂). What a richer form
gains on held-out simulations is a lower bound of it, and N times that is a one-sided error
(:meth:`AmortizedLikelihood.misfit`).

Sequential Monte Carlo from the prior gives draws of the posterior, and the evidence p(x). It is not
amortized over x, but the distribution of a few numbers is learned well from few simulations.

Source of the approach: Papamakarios, Sterratt & Murray, "Sequential Neural Likelihood", AISTATS
2019; for data that are independent given θ, Geffner, Papamakarios & Mnih, ICML 2023.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pyro_mdm.budgets import Outcome
from pyro_mdm.evaluation.tempering import GROUPS, temper
from pyro_mdm.posteriors.dependence import seeded
from pyro_mdm.posteriors.discrete import Lattice, law_of
from pyro_mdm.posteriors.factors import (
    bounds_of_factor,
    check_plates,
    data_of,
    factors_of,
    inputs_of,
    lattices_of,
    name_of,
    values_by_site,
)
from pyro_mdm.posteriors.laws import DataBounds, FactorLaw, Form
from pyro_mdm.posteriors.parameters import Parameters, spread_of
from pyro_mdm.posteriors.predictive import PriorPredictive, warn_of_outside
from pyro_mdm.posteriors.prior import RemainingPrior
from pyro_mdm.posteriors.reading import (
    DataFactor,
    Draws,
    Names,
    Plates,
    check_data,
    check_given,
    check_program,
    number_of,
    read_program,
)
from pyro_mdm.posteriors.simulation import simulate
from pyro_mdm.posteriors.site import LearnedLikelihood
from pyro_mdm.posteriors.training import LearningOptions, TrainingOptions, to_learn_from
from pyro_mdm.support.checks import Count, check_count, checked_arguments
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.modules import evaluating, in_eval_mode
from pyro_mdm.support.saved import PretrainedError, damage_of, read_saved, write_saved

__all__ = ["OF_SIMULATIONS", "USUAL", "AmortizedLikelihood", "PosteriorDraws"]

FILE, KIND = "likelihood.safetensors", "a likelihood"
"""The file of a likelihood in its folder, and its kind in words."""

LEAST_PARTICLES = 20_000
"""The least number of particles by default."""

USUAL = TrainingOptions(steps=6_000, batch_size=1024, learning_rate=3e-3)
"""The usual options of training a network."""

OF_SIMULATIONS = {"vectorized", "workers", "folder", "leave_out"}
"""The options of :meth:`AmortizedLikelihood.fit` that are those of simulations."""


class PosteriorDraws(NamedTuple):
    """Draws of a posterior by sequential Monte Carlo, with the evidence."""

    draws: Draws  # (n, *shape) by site
    log_evidence: Measured  # log p(x, given), nats, with its error by 8 groups
    misfit: float  # how much too low the evidence is by the form of the likelihood, nats; or 0
    effective: float  # the least effective fraction of the particles at a step of the temperature
    acceptance: float  # the accepted fraction of the moves at the posterior


class AmortizedLikelihood(LearnedLikelihood):
    """The likelihood p(x | θ) for any θ, a density that is differentiable in θ and x.

    :meth:`fit` makes a likelihood and trains it. :meth:`sample` draws data, and :meth:`posterior`
    parameters for given data, with the evidence.

    Args:
        program: the simulator, without arguments.
        latent: the names of the parameters' sites.
        observed: the names of the data's sites.
        draws: simulations for the scales of θ, (n, *shape) by site (:func:`simulate`).
        hidden: the width of the networks; small networks have quick densities.
        depth: their number of blocks.
        exchangeable: the names of plates whose data are exchangeable, as for :func:`read_program`.

    Raises:
        TypeError: parameters that are not continuous; data that repeat and are not whole; numbers
            of data that are determined by others.
        ValueError: a site that is unknown, observed or named twice; a parameter that never varies,
            or whose support depends on others; data that never vary, are not finite, or are outside
            of their support.
    """

    mean: Tensor
    scale: Tensor
    domain: PriorPredictive  # the parameters of simulations
    simulations: Draws | None = None  # the training data; None: from a folder, which has none

    @checked_arguments
    def __init__(
        self,
        program: Callable[..., object],
        latent: Sequence[str],
        observed: Sequence[str],
        draws: Draws,
        *,
        hidden: int = 64,
        depth: int = 3,
        exchangeable: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._read(program, latent, observed, hidden, depth, exchangeable)
        check_data(draws, {site.name: site.shape for site in self.structure.data})
        self._make_laws([lattices_of(program, factor, draws) for factor in self.structure.factors])
        numbers = self._numbers(self.sites.values(draws))
        self.scale.copy_(spread_of(numbers))
        self.mean.copy_(numbers.mean(0))
        self.domain = PriorPredictive((numbers - self.mean) / self.scale)

    def _read(
        self,
        program: Callable[..., object],
        latent: Sequence[str],
        observed: Sequence[str],
        hidden: int,
        depth: int,
        exchangeable: Sequence[str],
    ) -> None:
        check_count("hidden", hidden, "the width of the networks")
        check_count("depth", depth, "the number of their blocks")
        self.structure = read_program(program, latent, observed, exchangeable=exchangeable)
        self.sites, self._program = Parameters(self.structure.parameters), program
        self.latent, self.observed = list(latent), list(observed)
        self.sizes: dict[str, Any] = {"hidden": hidden, "depth": depth}
        self.sizes["exchangeable"] = list(exchangeable)
        self.outcomes: dict[str, list[Outcome]] = {}
        self._places, first = dict[str, slice](), 0
        for site in self.sites:
            shape = site.shape if site.is_bounded else site.transform.inverse_shape(site.shape)
            self._places[site.name] = slice(first, first := first + math.prod(shape))
        self.register_buffer("mean", torch.zeros(first))
        self.register_buffer("scale", torch.ones(first))

    def _make_laws(self, lattices: Sequence[Sequence[Lattice | None]]) -> None:
        """Make untrained networks for the values of each number of each factor."""
        self.lattices = [tuple(of_factor) for of_factor in lattices]
        self.laws, hidden, depth = nn.ModuleList(), self.sizes["hidden"], self.sizes["depth"]
        inputs = {name: place.stop - place.start for name, place in self._places.items()}
        for factor, values in zip(self.structure.factors, self.lattices, strict=True):
            size = max(1, sum(inputs[name] for name in factor.parameters))
            self.laws.append(law_of(size, values, hidden, depth))

    @classmethod
    @checked_arguments
    def fit(
        cls,
        program: Callable[..., object],
        latent: Sequence[str],
        observed: Sequence[str],
        *,
        hidden: int = 64,
        depth: int = 3,
        form: Form | None = None,
        exchangeable: Sequence[str] = (),
        **learning: Unpack[LearningOptions],
    ) -> AmortizedLikelihood:
        """The likelihood trained on simulations, in evaluation mode.

        Args:
            program, latent, observed, hidden, depth, exchangeable: as for the class.
            form: the form of the distribution of real numbers, ``"gaussian"`` or ``"mixture"``;
                None: mixtures where they are better than a Gaussian on the validation data. What is
                given up by the other is measured in any case (:meth:`misfit`).
            learning: options by name, see :class:`LearningOptions`; usual are at most 6,000 steps
                for each network, until nothing is gained any more, batches of 1,024, which overfit
                less than small ones, and a learning rate of 3e-3. ``seconds`` are those of all
                networks, in equal parts.

        Raises:
            FloatingPointError: a loss that is not finite.
            TypeError, ValueError: as for the class, :func:`simulate` and :func:`read_draws`;
                numbers that are too small.
        """
        names = [*latent, *observed]
        with to_learn_from(program, names, learning, USUAL) as (draws, options):
            sites = program, latent, observed, draws
            new = cls(*sites, hidden=hidden, depth=depth, exchangeable=exchangeable)
            new.simulations = {name: draws[name] for name in names}
            patient = options.patient or learning.get("steps") is None
            options = options._replace(patient=patient, form=form)
            assert options.budget is not None
            options.budget.trainings = sum(law.trainings for _, law in new._chosen())
            theta = new._inputs(new.sites.values(draws))
            for factor, law in new._chosen():
                x, bounds = factor.data(draws), bounds_of_factor(program, factor)
                outcomes = law.fit(x, inputs_of(theta, factor), bounds, options)
                new.outcomes[name_of(factor)] = outcomes
        return new.eval().requires_grad_(False)

    def _chosen(self, sites: Names = None) -> list[tuple[DataFactor, Any]]:
        """The factors of the named sites with their distributions."""
        pairs = zip(self.structure.factors, self.laws, strict=True)
        chosen = factors_of(self.structure, sites)
        return [(factor, law) for factor, law in pairs if factor in chosen]

    def bounds(self) -> list[DataBounds]:
        return [law.bounds for _, law in self._chosen()]

    @property
    def gains(self) -> dict[str, Measured | None]:
        """The gain of mixtures over the Gaussian on held-out simulations, nats per datum, with its
        standard error, by the sites of a factor; None where there is one form alone."""
        return {name_of(factor): law.gain for factor, law in self._chosen()}

    def misfit(self, data: Mapping[str, Tensor], sites: Names = None) -> float:
        pairs = zip(self._chosen(sites), self.data(data, sites), strict=True)
        return sum(law.misfit * int((~x.isnan()).all(2).sum()) for (_, law), x in pairs)

    # -- folders -----------------------------------------------------------------------------------

    @checked_arguments
    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the likelihood to ``likelihood.safetensors`` in a folder.

        Args:
            folder: the folder; it is made if there is none.
        """
        self.save_all(Path(folder) / FILE, KIND, [self])

    @classmethod
    @checked_arguments
    def from_pretrained(
        cls, folder: str | os.PathLike[str], program: Callable[..., object] | None = None
    ) -> AmortizedLikelihood:
        """The likelihood that :meth:`save_pretrained` wrote, for the same simulator.

        Args:
            folder: the folder that the likelihood was written to.
            program: the simulator, for the prior of its parameters; the folder has no code.

        Raises:
            PretrainedError: a missing or damaged folder; a program with other factors.
            TypeError: no program.
            ValueError: a program without these sites.
        """
        (likelihood,) = cls.open_all(Path(folder) / FILE, KIND, program)
        return likelihood

    @staticmethod
    def save_all(path: Path, kind: str, likelihoods: Sequence[AmortizedLikelihood]) -> None:
        """Write likelihoods to a file, whose kind is given in words."""
        described, tensors = list[dict[str, object]](), dict[str, Tensor]()
        for place, one in enumerate(likelihoods):
            laws = [law for _, law in one._chosen()]
            gains = [None if law.gain is None else list(law.gain) for law in laws]
            named = {"latent": one.latent, "observed": one.observed, "sites": one._described}
            forms = {"forms": [law.form for law in laws], "lattices": one.lattices}
            described.append(named | one.sizes | forms | {"gains": gains})
            tensors |= {f"{place}.{name}": value for name, value in one.state_dict().items()}
        write_saved(path, kind, {"likelihoods": described}, tensors)

    @classmethod
    def open_all(
        cls, path: Path, kind: str, program: Callable[..., object] | None
    ) -> list[AmortizedLikelihood]:
        """The likelihoods that :meth:`save_all` wrote, for the same simulator; errors are those of
        :meth:`from_pretrained`."""
        file, opened = read_saved(path, kind), list[AmortizedLikelihood]()
        with damage_of(path):
            described = list(file.content["likelihoods"])
        for place, saved in enumerate(described):
            with damage_of(path):
                names = saved["latent"], saved["observed"]
                sizes = saved["hidden"], saved["depth"], saved["exchangeable"]
                gains = [gain if gain is None else Measured(*gain) for gain in saved["gains"]]
                sites, forms = saved["sites"], list(saved["forms"])
                lattices = [
                    [None if numbers is None else Lattice(*numbers) for numbers in of_factor]
                    for of_factor in saved["lattices"]
                ]
            program = check_program(program, cls.__name__, path.parent, [*names[0], *names[1]])
            new = cls.__new__(cls)
            nn.Module.__init__(new)
            new._read(program, *names, *sizes)
            if new._described != sites:
                raise PretrainedError(
                    f"the sites of the program are {new._described}, expected those of the "
                    f"likelihood in {path.parent}, {sites}; give the simulator that it is of"
                )
            with damage_of(path):
                start = f"{place}."
                ours = [name for name in file.tensors if name.startswith(start)]
                state = {name.removeprefix(start): file.tensors[name] for name in ours}
                new.domain = PriorPredictive(state["domain.kept"])
                with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced
                    new._make_laws(lattices)
                new.load_state_dict(state)
            for (_, law), gain, form in zip(new._chosen(), gains, forms, strict=True):
                for module in law.modules():
                    if isinstance(module, FactorLaw) and module.form is not None:
                        module.gain, module.form = gain, form
            opened.append(new.eval().requires_grad_(False))
        return opened

    @property
    def _described(self) -> list[dict[str, list[int] | str | None]]:
        """The shapes of the parameters, and of the data of each factor with its plate."""
        described: list[dict[str, list[int] | str | None]] = [
            {site.name: list(site.shape) for site in self.structure.parameters}
        ]
        for factor in self.structure.factors:
            shapes = {site.name: list(site.shape) for site in factor.sites}
            described.append({**shapes, "plate": factor.plate})
        return described

    # -- parameters and data -----------------------------------------------------------------------

    def _numbers(self, values: Mapping[str, Tensor]) -> Tensor:
        """The parameters as numbers, (n, k), unconstrained unless they are in an interval."""
        columns = [
            values[site.name] if site.is_bounded else site.unconstrained(values[site.name])[0]
            for site in self.sites
        ]
        return torch.cat([column.reshape(len(column), -1) for column in columns], 1)

    def _standardized(self, values: Mapping[str, Tensor]) -> Tensor:
        """The standardized inputs of networks for all parameters, (n, k)."""
        return (self._numbers(values) - self.mean) / self.scale

    def _inputs(self, values: Mapping[str, Tensor]) -> Draws:
        """The standardized inputs of networks for each site, (n, k)."""
        inputs = self._standardized(values)
        return {name: inputs[:, place] for name, place in self._places.items()}

    def data(self, data: Mapping[str, Tensor], sites: Names = None) -> list[Tensor]:
        """The data of each factor by place, (n or 1, places, m), NaN where a datum is missing.

        Args:
            data: data by site, (n, *shape), or one datum, (*shape).
            sites: the names of the sites, of whole factors; None: all.

        Raises:
            ValueError: a site that is missing or has another shape; numbers of data that differ;
                infinite numbers; a datum with NaN in some but not all of its numbers.
        """
        factors = factors_of(self.structure, sites)
        by_factor = {name_of(factor): data_of(factor, data) for factor in factors}
        several = {name: x for name, x in by_factor.items() if len(x) != 1}
        number_of(several or by_factor, "data", "give each site the same data")
        return list(by_factor.values())

    # -- parameters like simulated ones ------------------------------------------------------------

    @checked_arguments
    def outside(self, theta: Mapping[str, Tensor]) -> Tensor:
        rows, batch = self._rows(theta)
        return self.domain.outside(self._standardized(rows)).reshape(batch)

    def _rows(self, theta: Mapping[str, Tensor]) -> tuple[Draws, torch.Size]:
        """The parameters among values by site, (*batch, *shape), as rows (n, *shape), and the shape
        of the batch."""
        rows, batch = self.sites.rows({name: theta[name] for name in theta if name in self._places})
        return {k: v.detach().to(torch.get_default_dtype()) for k, v in rows.items()}, batch

    def refined(
        self,
        theta: Mapping[str, Tensor],
        *,
        program: Callable[..., object] | None = None,
        draws: Draws | None = None,
        seed: int = 1,
        **options: Any,
    ) -> AmortizedLikelihood:
        """The likelihood of a further round, trained on the old simulations and one at each θ.

        A likelihood needs no correction for the distribution of its parameters, so θ may be draws
        of a posterior, including those of all units of a hierarchical program.

        Args:
            theta: parameters by site, (*batch, *shape); each is simulated once.
            program: the simulator, if a quicker one was fitted in its place; None: the fitted one.
            draws: the simulations so far, (n, *shape) by site, for a likelihood from a folder;
                None: those that it was fitted to.
            seed: the seed of simulations, weights and noise.
            options: further options of :meth:`fit`.

        Raises:
            FloatingPointError, TypeError: as for :meth:`fit`.
            ValueError: parameters of another shape; no simulations; as for :meth:`fit`.
        """
        first = self.simulations if draws is None else draws
        if first is None:
            raise ValueError(
                "the likelihood is from a folder, which keeps no simulations, expected those of "
                "the first round; give them as draws"
            )
        how = {name: options.pop(name) for name in OF_SIMULATIONS & options.keys()}
        how["progress"] = options.get("progress", False)
        # of another seed in each round, or the noise of its runs would be that of the last round's
        how["seed"] = seed + max(map(len, first.values()))
        at, _ = self._rows(theta)
        new = simulate(self._program if program is None else program, at=at, **how)
        names = [*self.latent, *self.observed]
        both = {name: torch.cat([first[name], new[name].to(first[name])]) for name in names}
        of_fit: dict[str, Any] = self.sizes | options | {"draws": both, "seed": seed}
        return self.fit(self._program, self.latent, self.observed, **of_fit)

    # -- densities and draws -----------------------------------------------------------------------

    @checked_arguments
    def log_prob(
        self, data: Mapping[str, Tensor], theta: Mapping[str, Tensor], *, sites: Names = None
    ) -> Tensor:
        values, x = self.sites.values(theta), self.data(data, sites)
        n, m = len(next(iter(values.values()))), max(map(len, x))
        if n != m and 1 not in (n, m):
            raise ValueError(
                f"theta are {n} and data {m}, expected as many of both, or one of either"
            )
        inside = self.sites.inside(values)
        if bool(inside.all()):
            return self._log_prob(x, values, sites).expand(max(n, m))
        if n == 1 or not bool(inside.any()):
            return torch.full((max(n, m),), -math.inf, dtype=torch.float64)
        some = self._log_prob(
            [block[inside] if len(block) > 1 else block for block in x],
            {name: value[inside] for name, value in values.items()},
            sites,
        )
        nowhere = torch.full((n,), -math.inf, dtype=torch.float64)
        return nowhere.masked_scatter(inside, some)

    def _log_prob(
        self, x: Sequence[Tensor], values: Mapping[str, Tensor], sites: Names = None
    ) -> Tensor:
        inputs, total = self._inputs(values), torch.zeros((), dtype=torch.float64)
        for (factor, law), block in zip(self._chosen(sites), x, strict=True):
            with in_eval_mode(law):
                total = total + law.by_datum(block, inputs_of(inputs, factor)).sum(1)
        return total

    def drawn(self, theta: Mapping[str, Tensor], plates: Plates, sites: Names) -> Draws:
        values = self.sites.values(theta)
        plates = check_plates(self.structure, plates)
        if outside := int((~self.sites.inside(values)).sum()):
            raise ValueError(
                f"{outside} parameters are outside of their support, expected none; leave them out"
            )
        drawn, inputs = Draws(), self._inputs(values)
        for factor, law in self._chosen(sites):
            size = plates.get(factor.plate or "", factor.size)
            with evaluating(law):
                drawn |= values_by_site(factor, law.sample(inputs_of(inputs, factor), size))
        return {name: drawn[name] for name in self.observed if name in drawn}

    @torch.no_grad()
    @checked_arguments
    def posterior(
        self,
        data: Mapping[str, Tensor],
        n: Count = 10_000,
        *,
        given: Mapping[str, Tensor] | None = None,
        particles: int | None = None,
        moves: float = 5.0,
        seed: int = 0,
    ) -> PosteriorDraws:
        """Draws of p(θ | x) for one datum, and log p(x), by sequential Monte Carlo.

        With ``given`` they are draws of the other parameters given these and x, and the evidence is
        the joint log density of x and the given parameters.

        Particles go from the program's prior to the posterior
        (:mod:`pyro_mdm.evaluation.tempering`). More particles and moves reduce the Monte Carlo
        error. Of the error of the learned likelihood, ``misfit`` has that of its form, and
        :class:`~pyro_mdm.posteriors.LikelihoodMembers` has that of learning.

        Args:
            data: the datum by site, (*shape), as for :meth:`log_prob`.
            n: the number of draws.
            given: the values of known parameters by site, (*shape); None: none are known.
            particles: the number of particles; by default n, but at least 20,000.
            moves: the mean number of accepted moves of a particle at each temperature, and at the
                end.
            seed: the seed of the draws.

        Raises:
            ValueError: data with density 0 at all particles; several data; parameters whose prior
                depends on sites that are not among them; given values of all parameters, of an
                unknown site, of another shape or outside of their support; as for :meth:`data`.
        """
        values_of_given = self._checked_given(given or {})
        particles = max(n, LEAST_PARTICLES) if particles is None else particles
        check_count("particles", particles, "that of sequential Monte Carlo", 10 * GROUPS)
        x = self.data(data)
        if max(map(len, x)) > 1:
            raise ValueError(
                f"there are {max(map(len, x))} data, expected one; data along a plate are one "
                "datum, of shape (*shape), and for others there is another call each"
            )
        law = RemainingPrior(self._program, self.sites, values_of_given)
        in_group = 2 * math.ceil(particles / (2 * GROUPS))
        with seeded(seed), pyro.validation_enabled(False):
            u = law.sample(GROUPS * in_group)

            def density(u: Tensor) -> Tensor:
                """The log likelihood of the data and of the given parameters."""
                values = law.values(u)
                return self._log_prob(x, values) + law.log_given(values)

            result = temper(u.reshape(GROUPS, in_group, -1), law.log_prob, density, moves=moves)
            chosen = result.draws(n)
        values = {name: value.clone() for name, value in law.values(chosen).items()}
        warn_of_outside(self.domain, self.domain.outside(self._standardized(values)))
        numbers = result.log_constant, self.misfit(data), result.effective, result.acceptance
        return PosteriorDraws(values, *numbers)

    def _checked_given(self, given: Mapping[str, Tensor]) -> Draws:
        """The values of given parameters by site, (*shape)."""
        values = {name: torch.as_tensor(value).to(self.mean) for name, value in given.items()}
        check_given(values, {site.name: site.shape for site in self.sites})
        for site in self.sites:
            if site.name in values:
                site.check_inside(values[site.name])
        if len(values) == len(self._places):
            raise ValueError(
                f"given has all parameters, {list(values)}, expected some, so that others are "
                "drawn; log_prob has the density of the data, and sample draws data"
            )
        return {site.name: values[site.name] for site in self.sites if site.name in values}
