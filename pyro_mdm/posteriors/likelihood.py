r"""The likelihood p(x | θ) of a simulator that is a Pyro program, learned from its draws.

The program says which data are independent given θ (:func:`~pyro_mdm.posteriors.read_program`), and
so into which factors p(x | θ) falls. Each is learned by itself, and data that are exchangeable
along a plate are learned one by one: 10,000 simulations of four data are 40,000 examples of one
law. For any number of data the log densities are added, with the same networks.

Real numbers have a Gaussian law whose mean and covariance are a network's, and a diffusion of what
is left; discrete ones have probabilities (:mod:`pyro_mdm.posteriors.laws`).

With it the posterior p(θ | x) ∝ p(θ) p(x | θ) has draws by sequential Monte Carlo from the prior,
and the evidence p(x). Nothing of this is amortized over x, but a network that has to know the law
of few numbers learns it well from few simulations.

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
from torch.distributions import constraints

from pyro_mdm.posteriors.discrete import Lattice, law_of
from pyro_mdm.posteriors.domain import Domain, warn_of_outside
from pyro_mdm.posteriors.factors import (
    bounds_of_factor,
    check_plates,
    data_of,
    factors_of,
    inputs_of,
    lattices_of,
    name_of,
    size_of,
    values_by_site,
)
from pyro_mdm.posteriors.folders import (
    check_program,
    damage_of,
    read_names,
    read_tensors,
    write_folder,
)
from pyro_mdm.posteriors.laws import STEPS, ConditionalGaussian, DataBounds, FactorLaw
from pyro_mdm.posteriors.parameters import Parameters, spread_of
from pyro_mdm.posteriors.prior import ParameterPrior
from pyro_mdm.posteriors.reading import (
    DataFactor,
    Draws,
    ParameterSite,
    read_program,
)
from pyro_mdm.posteriors.simulation import simulate
from pyro_mdm.posteriors.site import DataDistribution
from pyro_mdm.posteriors.tempering import GROUPS, Density, temper
from pyro_mdm.posteriors.training import TrainingOptions, to_learn_from
from pyro_mdm.pretrained import PretrainedError
from pyro_mdm.support.checks import check_count
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.modules import evaluating, in_eval_mode

__all__ = ["AmortizedLikelihood", "ConditionalGaussian", "PosteriorDraws"]

NAMES, TENSORS = "likelihood.json", "likelihood.safetensors"
"""The files of a likelihood: names of sites and sizes of networks, and the networks' weights."""

FEW_STEPS = 2
"""Steps of the flow that particles are led by first: what they miss is small, and weighted."""

LEAST_PARTICLES = {False: 20_000, True: 4_000}
"""Particles of sequential Monte Carlo, where fewer draws are asked for: without and with densities
of a flow, which take longer."""

MOVES = {False: 5.0, True: 2.0}
"""Accepted moves of a particle at each temperature, likewise."""


class PosteriorDraws(NamedTuple):
    """Draws of a posterior by sequential Monte Carlo."""

    draws: Draws  # (n, *shape) by site
    log_evidence: Measured  # log p(x), nats; its error, by 8 groups, is Student's: 1.96 are 95%
    effective: float  # the least effective part of the particles in a step of the temperature
    acceptance: float  # of the moves at the posterior


class AmortizedLikelihood(nn.Module):
    """The likelihood p(x | θ) for any θ, a density that is differentiable in θ and x.

    :meth:`fit` makes one and trains it. It has draws of data (:meth:`sample`), and for given data
    draws of the posterior with the evidence (:meth:`posterior`).

    Args:
        program: the simulator, without arguments.
        latent: the names of its parameters' sites.
        observed: the names of its data's sites.
        draws: simulations, for the scales of θ (:func:`simulate`).
        hidden, depth: width and number of blocks of the networks. Small ones have quick densities.

    Raises:
        TypeError: parameters that are not continuous; data that repeat and are not whole, or of
            which some determine others.
        ValueError: unknown or observed sites, or one named twice; a parameter that never varies, or
            whose support depends on others; data that never vary, are not finite, or are outside of
            their support.
    """

    mean: Tensor
    scale: Tensor
    domain: Domain | None  # where parameters were simulated; None: an earlier version's
    simulations: Draws | None = None  # that it was fitted to; a folder does not keep them

    def __init__(
        self,
        program: Callable[..., Any],
        latent: Sequence[str],
        observed: Sequence[str],
        draws: Draws,
        *,
        hidden: int = 64,
        depth: int = 3,
    ) -> None:
        super().__init__()
        self._read(program, latent, observed, hidden, depth)
        self.structure.check(draws)
        self._make_laws([lattices_of(program, factor, draws) for factor in self.structure.factors])
        seen = self._seen(self.sites.values(draws))
        self.scale.copy_(spread_of(seen))
        self.mean.copy_(seen.mean(0))
        self.domain = Domain((seen - self.mean) / self.scale)

    def _read(
        self,
        program: Callable[..., Any],
        latent: Sequence[str],
        observed: Sequence[str],
        hidden: int,
        depth: int,
    ) -> None:
        self.structure = read_program(program, latent, observed)
        self.sites = Parameters(self.structure.parameters)
        self.latent, self.observed = list(latent), list(observed)
        self.hidden, self.depth = hidden, depth
        self._program = program
        self.domain = None
        sizes = {site.name: _numbers(site) for site in self.structure.parameters}
        self._places, first = dict[str, slice](), 0
        for name, size in sizes.items():
            self._places[name], first = slice(first, first + size), first + size
        self.register_buffer("mean", torch.zeros(first))
        self.register_buffer("scale", torch.ones(first))

    def _make_laws(self, lattices: Sequence[Sequence[Lattice | None]]) -> None:
        """Networks that have learned nothing, for the values of each number of each factor."""
        inputs = {name: place.stop - place.start for name, place in self._places.items()}
        self.lattices = [tuple(of_factor) for of_factor in lattices]
        self.laws = nn.ModuleList(
            law_of(
                max(1, sum(inputs[name] for name in factor.parameters)),
                values,
                self.hidden,
                self.depth,
            )
            for factor, values in zip(self.structure.factors, self.lattices, strict=True)
        )

    @classmethod
    def fit(
        cls,
        program: Callable[..., Any],
        latent: Sequence[str],
        observed: Sequence[str],
        *,
        draws: Draws | str | os.PathLike[str] | None = None,
        simulations: int = 10_000,
        steps: int = 6_000,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
        hidden: int = 64,
        depth: int = 3,
        diffusion: bool = True,
        vectorized: bool = False,
        workers: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        leave_out: bool = False,
        seed: int = 0,
        progress: bool = False,
    ) -> AmortizedLikelihood:
        """A likelihood trained on simulations, nine tenths of them.

        The last tenth, at most 1,000, chooses between weights, and between the diffusion and the
        Gaussian alone.

        Args:
            program, latent, observed, hidden, depth: see the class.
            draws: simulations, (n, *shape) by site, as from :func:`simulate`, or the path of a
                folder that it wrote, of ``*.parquet`` or ``*.zarr``; None: new ones.
            simulations: the number of new simulations.
            steps, batch_size, learning_rate: settings of Adam for each network, with a cosine
                schedule that ends at zero. Of the moving averages of the weights the best are kept.
            diffusion: whether to learn what differs from a Gaussian law; kept where it is better.
            vectorized, workers, folder, leave_out: see :func:`simulate`.
            seed: the seed of simulations, weights and noise.
            progress: whether to show a progress bar.

        Raises:
            FloatingPointError: the loss is no number.
            TypeError, ValueError: what the class refuses; numbers that are too small.
        """
        options = TrainingOptions(steps, batch_size, learning_rate, progress)
        how = {"vectorized": vectorized, "workers": workers, "folder": folder}
        names = [*latent, *observed]
        with to_learn_from(
            program, draws, simulations, options, names=names, seed=seed, leave_out=leave_out, **how
        ) as chosen:
            likelihood = cls(program, latent, observed, chosen, hidden=hidden, depth=depth)
            likelihood.simulations = {name: chosen[name] for name in names}
            theta = likelihood._inputs(likelihood.sites.values(chosen))
            for factor, law in likelihood._factors:
                x, bounds = factor.data(chosen), bounds_of_factor(program, factor)
                law.fit(x, inputs_of(theta, factor), bounds, options, diffusion)
        return likelihood.eval().requires_grad_(False)

    @property
    def _factors(self) -> list[tuple[DataFactor, Any]]:
        return list(zip(self.structure.factors, self.laws, strict=True))

    def _chosen(self, sites: Sequence[str] | None) -> list[tuple[DataFactor, Any]]:
        chosen = factors_of(self.structure, sites)
        return [(factor, law) for factor, law in self._factors if factor in chosen]

    def bounds(self) -> list[DataBounds]:
        """The values that the numbers of a datum of each factor can have."""
        return [law.bounds for _, law in self._factors]

    @property
    def gains(self) -> dict[str, Measured | None]:
        """Nats per datum by which the diffusion is better than the Gaussian on held-out
        simulations, with standard errors, by the sites of a factor; None where none was learned."""
        return {name_of(factor): law.gain for factor, law in self._factors}

    # -- folders -----------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the likelihood to a folder.

        It holds the weights of the networks, and in ``likelihood.json`` their sizes and the names
        of the sites.
        """
        gains = [None if law.gain is None else list(law.gain) for _, law in self._factors]
        named = {"latent": self.latent, "observed": self.observed, "sites": self._described}
        sizes = {"hidden": self.hidden, "depth": self.depth, "gains": gains}
        sizes |= {"lattices": self.lattices}
        write_folder(folder, NAMES, named | sizes, {TENSORS: self.state_dict()})

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], program: Callable[..., Any] | None = None
    ) -> AmortizedLikelihood:
        """The likelihood that :meth:`save_pretrained` wrote, for the same simulator.

        Args:
            folder: the folder it was written to.
            program: the simulator, for the prior of its parameters; the folder holds no code.

        Raises:
            PretrainedError: the folder is missing or damaged, or the program has other factors.
            TypeError: no program.
            ValueError: a program without these sites.
        """
        saved, path = read_names(folder, NAMES), Path(folder) / NAMES
        with damage_of(path):
            names = saved["latent"], saved["observed"]
            sizes = saved["hidden"], saved["depth"]
            gains = [gain if gain is None else Measured(*gain) for gain in saved["gains"]]
            described = saved["sites"]
            lattices = [
                [None if numbers is None else Lattice(*numbers) for numbers in of_factor]
                for of_factor in saved.get("lattices", [])
            ]
        state = read_tensors(folder, saved, TENSORS)
        program = check_program(program, cls.__name__, folder, [*names[0], *names[1]])
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new._read(program, *names, *sizes)
        if new._described != described:
            raise PretrainedError(
                f"the sites of the program are {new._described}, expected those of the likelihood "
                f"in {folder}, {described}; give the simulator that it is of"
            )
        if (kept := state.get("domain.kept")) is not None:
            new.domain = Domain(kept)
        if not lattices:  # of an earlier version, whose data are all real
            lattices = [[None] * size_of(factor) for factor in new.structure.factors]
        with torch.random.fork_rng(devices=[]):  # weights are drawn that are replaced
            new._make_laws(lattices)
        for name, value in new.state_dict().items():
            if name.endswith(".upper"):  # which an earlier version does not have
                state.setdefault(name, value)
        with damage_of(path.with_name(TENSORS)):
            new.load_state_dict(state)
        for (_, law), gain in zip(new._factors, gains, strict=True):
            for module in law.modules():
                if isinstance(module, FactorLaw):
                    module.gain = gain
        return new.eval().requires_grad_(False)

    @property
    def _described(self) -> list[dict[str, Any]]:
        """Shapes of the parameters, and of the data in each factor with its plate."""
        parameters = {site.name: list(site.shape) for site in self.structure.parameters}
        factors = [
            {site.name: list(site.shape) for site in factor.sites} | {"plate": factor.plate}
            for factor in self.structure.factors
        ]
        return [parameters, *factors]

    # -- parameters and data -----------------------------------------------------------------------

    def _seen(self, values: Mapping[str, Tensor]) -> Tensor:
        """The parameters as numbers (n, k): as they are in an interval, else unconstrained."""
        columns = []
        for site in self.sites:
            value = values[site.name]
            columns.append(value if _is_bounded(site) else site.unconstrained(value)[0])
        return torch.cat([column.reshape(len(column), -1) for column in columns], 1)

    def _standardized(self, values: Mapping[str, Tensor]) -> Tensor:
        """What networks see of all parameters, (n, k)."""
        return (self._seen(values) - self.mean) / self.scale

    def _inputs(self, values: Mapping[str, Tensor]) -> Draws:
        """What networks see of each site, (n, k), standardized."""
        seen = self._standardized(values)
        return {name: seen[:, place] for name, place in self._places.items()}

    def data(self, data: Mapping[str, Tensor], sites: Sequence[str] | None = None) -> list[Tensor]:
        """Data of each factor, (n or 1, places, m), of which NaN are missing.

        Args:
            data: data by site, (n, *shape) or (*shape).
            sites: names of the sites of whole factors; None: all.

        Raises:
            ValueError: a site is missing, or of another shape; numbers of data differ; infinite
                numbers, or places of which a part is missing.
        """
        by_factor = [data_of(factor, data) for factor in factors_of(self.structure, sites)]
        n = max(map(len, by_factor))
        if odd := [len(values) for values in by_factor if len(values) not in (1, n)]:
            raise ValueError(
                f"there are {odd[0]} data of one site and {n} of another, expected one number; "
                "give each site the same data"
            )
        return by_factor

    # -- where it knows parameters -----------------------------------------------------------------

    def outside(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Whether parameters are unlike all that were simulated, (*batch,) bool.

        Outside the likelihood is a guess. Of new parameters of the simulations one in 500 is, by
        chance (:mod:`pyro_mdm.posteriors.domain`).

        Args:
            theta: parameters by site, (*batch, *shape), such as those of all units of a plate.

        Raises:
            ValueError: parameters of another shape; a likelihood of an earlier version.
        """
        if self.domain is None:
            raise ValueError(
                "the likelihood was saved by an earlier version, which kept no parameters, "
                "expected those of simulations; fit it again"
            )
        rows, batch = self.sites.rows(theta)
        return self.domain.outside(self._standardized(rows)).reshape(batch)

    def fraction_outside(self, theta: Mapping[str, Tensor]) -> float:
        """The fraction of draws that are outside (:meth:`outside`), with a warning above 0.01.

        Args:
            theta: draws by site, (*batch, *shape), such as a posterior's.
        """
        outside = self.outside(theta).reshape(-1)
        assert self.domain is not None  # or outside would have raised
        return warn_of_outside(self.domain, outside)

    def refined(
        self,
        theta: Mapping[str, Tensor],
        *,
        program: Callable[..., Any] | None = None,
        draws: Draws | None = None,
        steps: int = 6_000,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
        diffusion: bool = True,
        vectorized: bool = False,
        workers: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        leave_out: bool = False,
        seed: int = 1,
        progress: bool = False,
    ) -> AmortizedLikelihood:
        """A likelihood of these simulations and of new ones, one at each θ: a further round.

        A likelihood needs no correction for where its parameters come from. So they may be draws of
        a posterior, of all units of a hierarchical program too.

        Args:
            theta: parameters by site, (*batch, *shape), of which each is simulated once.
            program: the simulator, where the likelihood was fitted with a quick one in its place;
                None: that one.
            draws: the simulations so far, where the likelihood was opened from a folder.
            steps, batch_size, learning_rate, diffusion: see :meth:`fit`.
            vectorized, workers, folder, leave_out: see :func:`simulate`.
            seed: the seed of simulations, weights and noise.
            progress: whether to show progress bars.

        Raises:
            ValueError: parameters of another shape, or no simulations; what :meth:`fit` refuses.
        """
        first = self.simulations if draws is None else draws
        if first is None:
            raise ValueError(
                "the likelihood is from a folder, which keeps no simulations, expected those of "
                "the first round; give them as draws"
            )
        rows, _ = self.sites.rows(theta)
        how: dict[str, Any] = {"vectorized": vectorized, "workers": workers, "folder": folder}
        how |= {"leave_out": leave_out, "progress": progress}
        # of another seed in each round, or the noise of its runs would be that of the last round's
        how["seed"] = seed + max(map(len, first.values()))
        new = simulate(self._program if program is None else program, at=rows, **how)
        names = [*self.latent, *self.observed]
        both = {name: torch.cat([first[name], new[name].to(first[name])]) for name in names}
        return self.fit(
            self._program,
            self.latent,
            self.observed,
            draws=both,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            hidden=self.hidden,
            depth=self.depth,
            diffusion=diffusion,
            seed=seed,
            progress=progress,
        )

    # -- densities and draws -----------------------------------------------------------------------

    def given(
        self,
        theta: Mapping[str, Tensor] | Tensor,
        *,
        sites: str | Sequence[str] | None = None,
        plates: Mapping[str, int] | None = None,
        datum_of: str | None = None,
        known_only: bool = False,
    ) -> DataDistribution:
        """The distribution of data given θ, for a sample site of any program.

        Args:
            theta: parameters by site, (*batch, *shape); of a single site, its values alone.
            sites: sites of the data that are the value, whole factors; None: all of them.
            plates: the numbers of data in plates along which they are exchangeable, by name; those
                of the program by default.
            datum_of: the name of such a plate, of which a value is one datum.
            known_only: whether parameters unlike all that were simulated are impossible
                (:meth:`outside`).

        Raises:
            ValueError: what :class:`~pyro_mdm.posteriors.DataDistribution` refuses.
        """
        return DataDistribution(
            self, theta, sites=sites, plates=plates, datum_of=datum_of, known_only=known_only
        )

    def log_prob(
        self,
        data: Mapping[str, Tensor],
        theta: Mapping[str, Tensor],
        *,
        sites: Sequence[str] | None = None,
    ) -> Tensor:
        """log p(x | θ) of n pairs, (n,) float64, nats, differentiable in θ and x.

        Along a plate whose data are exchangeable there may be any number of data, whose log
        densities are added. A datum that is NaN is missing: it is left out.

        Args:
            data: data by site, (n, *shape), or one datum, (*shape), for all.
            theta: parameters by site, (n, *shape), or one for all data. Outside of the interior of
                their support the value is -∞.
            sites: names of the sites of whole factors, whose density it is; None: all.

        Raises:
            ValueError: parameters that are NaN; numbers n that differ; what :meth:`data` refuses.
        """
        values, x = self.sites.values(theta), self.data(data, sites)
        n, m = len(next(iter(values.values()))), max(map(len, x))
        if n != m and 1 not in (n, m):
            raise ValueError(
                f"theta are {n} and data {m}, expected as many of both, or one of either"
            )
        inside = self.sites.inside(values)
        if bool(inside.all()):
            return self._log_prob(x, values, sites=sites).expand(max(n, m))
        if n == 1 or not bool(inside.any()):
            return torch.full((max(n, m),), -math.inf, dtype=torch.float64)
        some = self._log_prob(
            [block[inside] if len(block) > 1 else block for block in x],
            {name: value[inside] for name, value in values.items()},
            sites=sites,
        )
        nowhere = torch.full((n,), -math.inf, dtype=torch.float64)
        return nowhere.masked_scatter(inside, some)

    def _log_prob(
        self,
        x: Sequence[Tensor],
        values: Mapping[str, Tensor],
        steps: int = STEPS,
        sites: Sequence[str] | None = None,
    ) -> Tensor:
        inputs, total = self._inputs(values), torch.zeros((), dtype=torch.float64)
        for (factor, law), block in zip(self._chosen(sites), x, strict=True):
            with in_eval_mode(law):
                total = total + law.log_prob(block, inputs_of(inputs, factor), steps)
        return total

    @torch.no_grad()
    def sample(
        self,
        theta: Mapping[str, Tensor],
        *,
        plates: Mapping[str, int] | None = None,
        sites: Sequence[str] | None = None,
        seed: int | None = None,
    ) -> Draws:
        """Data of n parameters, (n, *shape) by site.

        Args:
            theta: parameters by site, (n, *shape).
            plates: the numbers of data in plates along which they are exchangeable, by name; those
                of the program by default.
            sites: names of the sites of whole factors that are drawn; None: all.
            seed: the seed of the draws; None: the global generator.

        Raises:
            ValueError: parameters that are NaN or outside of their support; a plate of another
                kind.
        """
        values = self.sites.values(theta)
        plates = check_plates(self.structure, plates)
        if outside := int((~self.sites.inside(values)).sum()):
            raise ValueError(
                f"{outside} parameters are outside of their support, expected none; leave them out"
            )
        drawn: Draws = {}
        inputs = self._inputs(values)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for factor, law in self._chosen(sites):
                size = plates.get(factor.plate or "", factor.size)
                with evaluating(law):
                    drawn |= values_by_site(factor, law.sample(inputs_of(inputs, factor), size))
        return {name: drawn[name] for name in self.observed if name in drawn}

    @torch.no_grad()
    def posterior(
        self,
        data: Mapping[str, Tensor],
        n: int = 10_000,
        *,
        particles: int | None = None,
        moves: float | None = None,
        seed: int = 0,
    ) -> PosteriorDraws:
        """n draws of p(θ | x) for one datum, and log p(x), by sequential Monte Carlo.

        From draws of the program's prior particles are led to the posterior under the Gaussian
        laws, and from it to that under the diffusions where there are some
        (:mod:`pyro_mdm.posteriors.tempering`). More particles and moves make it more exact; the
        error of the learned likelihood stays, and is no part of the error of the evidence.

        Args:
            data: data by site, (*shape), as for :meth:`log_prob`.
            n: the number of draws.
            particles: number of particles. By default it is n, but at least 20,000, or 4,000 where
                a diffusion is part of the likelihood.
            moves: number of accepted moves of a particle at each temperature, and at the end; by
                default 5, or 2 where a diffusion is part of the likelihood.
            seed: the seed of the draws.

        Raises:
            ValueError: data that no parameters make; several data; parameters whose law depends on
                sites that are not among them; what :meth:`data` refuses.
        """
        check_count("n", n, "the number of draws")
        corrected = any(law.is_corrected for _, law in self._factors)
        particles = max(n, LEAST_PARTICLES[corrected]) if particles is None else particles
        moves = MOVES[corrected] if moves is None else moves
        check_count("particles", particles, "that of sequential Monte Carlo", 10 * GROUPS)
        x = self.data(data)
        if max(map(len, x)) > 1:
            raise ValueError(
                f"there are {max(map(len, x))} data, expected one; data along a plate are one "
                "datum, of shape (*shape), and for others there is another call each"
            )
        prior = ParameterPrior(self._program, self.latent)
        in_group = 2 * math.ceil(particles / (2 * GROUPS))
        with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            torch.manual_seed(seed)
            start = prior.sample(GROUPS * in_group)
            prior.check(start)
            u, _ = self.sites.unconstrained(start)
            accuracies = (0, FEW_STEPS, STEPS) if corrected else (0,)
            likelihoods = [self._density(x, steps) for steps in accuracies]
            result = temper(
                u.reshape(GROUPS, in_group, -1),
                self._unconstrained(prior),
                likelihoods,
                moves=moves,
            )
            chosen = result.draws(n)
        values = self.sites.by_site(chosen)[0]
        if self.domain is not None:
            warn_of_outside(self.domain, self.domain.outside(self._standardized(values)))
        return PosteriorDraws(values, result.log_constant, result.effective, result.acceptance)

    def _unconstrained(self, prior: ParameterPrior) -> Density:
        """The prior's log density of unconstrained numbers (n, d)."""

        def density(u: Tensor) -> Tensor:
            values, log_det = self.sites.by_site(u)
            return torch.where(
                self.sites.inside(values), prior.log_prob(values) + log_det, -math.inf
            )

        return density

    def _density(self, x: Sequence[Tensor], steps: int) -> Density:
        """The log likelihood as a function of unconstrained numbers (n, d)."""

        def density(u: Tensor) -> Tensor:
            return self._log_prob(x, self.sites.by_site(u)[0], steps)

        return density


def _is_bounded(site: ParameterSite) -> bool:
    support = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return hasattr(support, "lower_bound") and hasattr(support, "upper_bound")


def _numbers(site: ParameterSite) -> int:
    """How many numbers a network sees of a parameter's site."""
    return math.prod(site.shape if _is_bounded(site) else site.transform.inverse_shape(site.shape))
