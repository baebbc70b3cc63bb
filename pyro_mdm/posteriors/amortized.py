r"""Simulation-based inference: p(θ | x) of a simulator that is a Pyro program, for any x.

A simulator draws its parameters θ at latent sites and its data x at other sites. From draws of both
:class:`AmortizedPosterior` learns a diffusion model of θ with x as context. It uses the simulator's
draws alone, so that the program needs no densities. The posterior has samples and ``log_prob``, a
log density in θ's own space with its error.

Source of the approach: Papamakarios & Murray, NeurIPS 2016; with diffusions Geffner et al., ICML
2023, and Sharrock et al., ICML 2024.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pyro_mdm.budgets import Outcome
from pyro_mdm.conditioning.contexts import EncodedContext, Vectors
from pyro_mdm.contexts import GivenContext
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.presets import VPSDE
from pyro_mdm.elbo import MDM_ELBO
from pyro_mdm.evaluation.importance import probability_flow
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.networks import MLP
from pyro_mdm.paths.flow import Solver
from pyro_mdm.posteriors.dependence import seeded
from pyro_mdm.posteriors.encoding import Encoding
from pyro_mdm.posteriors.gaussian import LinearGaussian
from pyro_mdm.posteriors.guide import (
    LocalGuide,
    PosteriorGuide,
    ScoredDraws,
    draw_by_flow,
    one_row,
)
from pyro_mdm.posteriors.parameters import Parameters, spread_of
from pyro_mdm.posteriors.predictive import PriorPredictive
from pyro_mdm.posteriors.reading import (
    Draws,
    check_data,
    check_program,
    named_sites,
    number_of,
    rows_of,
)
from pyro_mdm.posteriors.training import LearningOptions, TrainingOptions, to_learn_from, train
from pyro_mdm.pretrained import TENSORS, PretrainedError, save_folder
from pyro_mdm.scores.denoiser import Denoiser
from pyro_mdm.support.checks import Count, check_count, check_number, checked_arguments
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.modules import evaluating
from pyro_mdm.support.saved import damage_of

__all__ = ["DEPTH", "HIDDEN", "NOISE", "USUAL", "AmortizedPosterior", "LogDensity"]

NOTE = "pyro_mdm.posterior"
"""The note of the sites' names and the parameters' scales, beside a model."""

NOISE = {"min_log_snr": -5.0, "max_log_snr": 12.0}
"""λ(T), and λ(ε), where the decoder takes over. Residuals have unit variance, so the noise at ε has
a standard deviation of 0.0025."""

USUAL = TrainingOptions(steps=8_000, batch_size=256, learning_rate=2e-3)
"""The usual options of training."""

HIDDEN, DEPTH = 128, 3
"""The width and the number of blocks of the MLP."""


class LogDensity(NamedTuple):
    """The log density log p(θ | x) of n pairs, nats, with the Monte Carlo error of each."""

    value: Tensor  # (n,)
    error: Tensor  # (n,), standard errors; NaN where too few draws count, and for one draw

    @property
    def mean(self) -> Measured:
        """The mean over the pairs, with its standard error."""
        return Measured.from_values(self.value)


class AmortizedPosterior(nn.Module):
    """The posterior p(θ | x) for any x: a diffusion model of θ given x.

    θ is unconstrained. A Gaussian distribution whose mean is linear in x
    (:class:`LinearGaussian`) is fitted to the simulations, and the model is of its residual r, so
    that only the difference from a Gaussian is learned. Where there are too few simulations for a
    Gaussian, r is θ in units of its standard deviation. :meth:`fit` makes a posterior and trains
    it.

    Args:
        program: the simulator, without arguments.
        latent: the names of the parameters' sites.
        observed: the names of the data's sites.
        draws: simulations for the scales of θ and x, (n, *shape) by site (:func:`simulate`).
        network: the module that takes z, encoded x and 1, (n, d + m + 1), and the log SNR, (n,),
            and returns (n, d). With ``missing`` its input has m more numbers, 1 where a number of x
            is present and 0 elsewhere. An MLP by default.
        diffusion: the diffusion that noises r, VPSDE by default.
        missing: whether numbers of x may be missing (NaN).
        encoder: the module that takes encoded x, (n, m), or (n, 2 m) with ``missing``, and returns
            (n, size), for sets, sequences or images. It is trained with the network, whose input
            has these numbers in place of x. None: no encoder.

    Attributes:
        model: the model of r given encoded x.
        noising: its guide; with ``model`` and :meth:`coordinates` for a training loop of your own.
        gaussian: the Gaussian distribution; None if none was fitted.
        outcome: how the training by :meth:`fit` ended; None: from a folder, or not trained.

    Raises:
        TypeError: parameters that are not continuous.
        ValueError: a site that is unknown, observed or named twice; a parameter that never varies,
            or whose support depends on others; numbers of parameters and data that differ.
    """

    mean: Tensor
    scale: Tensor
    program: Callable[..., object]
    outcome: Outcome | None = None

    @checked_arguments
    def __init__(
        self,
        program: Callable[..., object],
        latent: Sequence[str],
        observed: Sequence[str],
        draws: Draws,
        network: nn.Module | None = None,
        diffusion: LinearDiffusion | None = None,
        *,
        missing: bool = False,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._name_sites(program, latent, observed)
        u, _ = self.sites.unconstrained(self.sites.values(draws))
        self.register_buffer("scale", spread_of(u))
        self.register_buffer("mean", u.mean(0))
        check_data(draws, self._data_shapes)
        self.encoding = Encoding.fit(self._numbers(draws), missing)
        x = self.data(draws)
        number_of({"parameters": u, "data": x}, "draws", "give what simulate returns")
        self.gaussian = LinearGaussian.fit((u - self.mean) / self.scale, self.encoding.values(x))
        self.predictive = PriorPredictive(self.encoding.values(x))
        context: GivenContext = Vectors.fit(x)
        if encoder is not None:
            with torch.no_grad(), evaluating(encoder):
                size = encoder(x[:2]).shape[-1]
            context = EncodedContext(encoder, size, x.shape[1:])
        r, _ = self.coordinates(draws, x)
        d = u.shape[1]
        if network is None:
            network = MLP(d + context.size, hidden=HIDDEN, depth=DEPTH, out_features=d)
        diffusion = VPSDE(**NOISE) if diffusion is None else diffusion
        self.model = DiffusionModel(diffusion, Denoiser.fit(network, r), context=context)
        self.noising = DiffusionGuide(diffusion)

    @classmethod
    @checked_arguments
    def fit(
        cls,
        program: Callable[..., object],
        latent: Sequence[str],
        observed: Sequence[str],
        *,
        missing: float = 0.0,
        network: nn.Module | None = None,
        diffusion: LinearDiffusion | None = None,
        encoder: nn.Module | None = None,
        **learning: Unpack[LearningOptions],
    ) -> AmortizedPosterior:
        """The posterior trained on simulations, in evaluation mode.

        Args:
            program, latent, observed, network, diffusion, encoder: as for the class.
            missing: the fraction of the simulations of a step that have numbers of x hidden. Each
                of these simulations draws a probability uniformly, and hides each number with it.
                If the fraction is positive, data may have NaN.
            learning: options by name, see :class:`LearningOptions`; usual are 8,000 steps, batches
                of 256 and a learning rate of 2e-3.

        Raises:
            FloatingPointError: a loss that is not finite.
            TypeError, ValueError: as for the class, :func:`simulate` and :func:`read_draws`;
                numbers that are too small; ``missing`` outside [0, 1].
        """
        if not 0 <= check_number("missing", missing, "a part of the simulations, e.g. 0.3") <= 1:
            raise ValueError(f"missing is {missing}, expected a number in [0, 1], e.g. 0.3")
        sites, gaps = (program, latent, observed), missing > 0
        with to_learn_from(program, [*latent, *observed], learning, USUAL) as (draws, options):
            posterior = cls(*sites, draws, network, diffusion, missing=gaps, encoder=encoder)
            x = posterior.data(draws)
            r = posterior.coordinates(draws, x)[0]
            elbo = MDM_ELBO()(posterior.model, posterior.noising)

            def loss(rows: Tensor) -> Tensor:
                chosen, coordinates = x[rows], r[rows]
                if missing:
                    chosen = posterior.encoding.hide(chosen, missing)
                    of_rows = {name: values[rows] for name, values in draws.items()}
                    coordinates = posterior.coordinates(of_rows, chosen)[0]
                return elbo(coordinates, chosen) / len(rows)

            size = float(r.shape[1])
            posterior.outcome = train(elbo, loss, len(x), options, largest_gradient=size)
        return posterior.eval()

    @checked_arguments
    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the posterior to a folder.

        The model is as :meth:`DiffusionModel.save_pretrained` writes it. Beside it, in the same
        file, are the names of the sites, the scales of the parameters, and the encoded data of at
        most 1,000 simulations, for :meth:`predictive_p_value`.

        Args:
            folder: the folder; it is made if there is none.
        """
        named = {"latent": self.latent, "observed": self.observed, "shapes": self._shapes}
        beside = {"mean": self.mean, "scale": self.scale, "kept": self.predictive.kept}
        beside |= {f"encoding.{name}": b for name, b in self.encoding.named_buffers()}
        law = {} if self.gaussian is None else self.gaussian._asdict()
        beside |= {f"gaussian.{name}": value for name, value in law.items()}
        save_folder(self.model, folder, {NOTE: named}, beside)

    @classmethod
    @checked_arguments
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        program: Callable[..., object] | None = None,
        *,
        classes: Mapping[str, object] | None = None,
    ) -> AmortizedPosterior:
        """The posterior that :meth:`save_pretrained` wrote, for the same simulator.

        Args:
            folder: the folder that the posterior was written to.
            program: the simulator, for the supports of its parameters; the folder has no code.
            classes: the classes of an encoder or a network of your own by name, as for
                :meth:`DiffusionModel.from_pretrained`.

        Raises:
            PretrainedError: a missing or damaged folder; sites of other shapes.
            TypeError: no program.
            ValueError: a program without these sites.
        """
        opened = DiffusionModel.opened(folder, classes or {})
        if NOTE not in opened.notes:
            raise PretrainedError(
                f"{folder} has a model that is of no posterior, expected what "
                "AmortizedPosterior.save_pretrained writes"
            )
        saved = opened.notes[NOTE]
        with damage_of(Path(folder) / TENSORS):
            latent, observed, shapes = saved["latent"], saved["observed"], saved["shapes"]
            tensors: dict[str, dict[str, Tensor]] = {"": {}, "encoding": {}, "gaussian": {}}
            for address, tensor in opened.beside.items():
                module, _, name = address.rpartition(".")
                tensors[module][name] = tensor
            mean, scale, kept = (tensors[""][name] for name in ("mean", "scale", "kept"))
            encoding, predictive = Encoding(**tensors["encoding"]), PriorPredictive(kept)
            gaussian = LinearGaussian(**tensors["gaussian"]) if tensors["gaussian"] else None
        program = check_program(program, cls.__name__, folder, [*latent, *observed])
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new._name_sites(program, latent, observed)
        if new._shapes != shapes:
            raise PretrainedError(
                f"the sites of the program have the shapes {new._shapes}, expected those of the "
                f"posterior in {folder}, {shapes}; give the simulator that it is of"
            )
        new.register_buffer("mean", mean)
        new.register_buffer("scale", scale)
        new.encoding, new.gaussian, new.predictive = encoding, gaussian, predictive
        new.model, new.noising = opened.model, DiffusionGuide(opened.model.diffusion)
        return new.eval()

    def _name_sites(
        self, program: Callable[..., object], latent: Sequence[str], observed: Sequence[str]
    ) -> None:
        self.latent, self.observed = list(latent), list(observed)
        # a simulator that is a module must not become a submodule, whose weights would be trained
        object.__setattr__(self, "program", program)
        sites, data = named_sites(program, self.latent, self.observed)
        self.sites = Parameters(sites)
        self._data_shapes = {n: site["value"].shape for n, site in data.items()}

    @property
    def _shapes(self) -> dict[str, list[int]]:
        shapes = {site.name: site.shape for site in self.sites} | self._data_shapes
        return {name: list(shape) for name, shape in shapes.items()}

    # -- coordinates -------------------------------------------------------------------------------

    def data(self, draws: Mapping[str, Tensor]) -> Tensor:
        """The encoded data that networks take, (n, m), or (n, 2 m) with ``missing``.

        Args:
            draws: data by site, (n, *shape), or one datum, (*shape).

        Raises:
            ValueError: a site that is missing or has another shape; infinite numbers, or NaN where
                none may be missing; numbers of data that differ between sites.
        """
        return self.encoding(self._numbers(draws))

    def _numbers(self, draws: Mapping[str, Tensor]) -> Tensor:
        values = {name: rows_of(draws, name, shape) for name, shape in self._data_shapes.items()}
        several = {name: value for name, value in values.items() if len(value) != 1}
        n = number_of(several or values, "data", "give each site the same data")
        return torch.cat([v.reshape(len(v), -1).expand(n, -1) for v in values.values()], 1)

    def coordinates(self, draws: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """The model's coordinates r of parameters, (n, d), and log|det ∂r/∂θ|, (n,).

        Args:
            draws: parameters by site, (n, *shape).
            x: the encoded datum of each, (n, m) or (n, 2 m), from :meth:`data`.
        """
        u, log_det = self.sites.unconstrained(self.sites.values(draws))
        u, log_det = (u - self.mean) / self.scale, log_det - self.scale.log().sum()
        if self.gaussian is None:
            return u, log_det
        root = self._roots(self.gaussian, x)
        errors = u.double() - self.gaussian.mean(self.encoding.values(x))
        r = torch.linalg.solve_triangular(root, errors.unsqueeze(-1), upper=False).squeeze(-1)
        return r.to(u), log_det - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _roots(self, gaussian: LinearGaussian, x: Tensor) -> Tensor:
        """The root of the Gaussian's covariance, (d, d); (n, d, d) where x may lack numbers."""
        spread = self.encoding.spread(x)
        if spread is None:
            return gaussian.root
        covariances, which = spread
        return gaussian.roots(covariances)[which]

    def parameters_of(self, r: Tensor, x: Tensor) -> Draws:
        """The parameters by site, (n, *shape), at coordinates r: the inverse of
        :meth:`coordinates`.

        Args:
            r: the coordinates, (n, d).
            x: the encoded datum of each, (n, m) or (n, 2 m), from :meth:`data`.
        """
        if self.gaussian is not None:
            root = self._roots(self.gaussian, x)
            mean = self.gaussian.mean(self.encoding.values(x))
            r = (mean + (root @ r.double().unsqueeze(-1)).squeeze(-1)).to(r)
        return self.sites.by_site(r * self.scale + self.mean)[0]

    # -- samples and densities ---------------------------------------------------------------------

    @torch.no_grad()
    @checked_arguments
    def sample(self, data: Mapping[str, Tensor], n: Count, *, seed: int | None = None) -> Draws:
        """Draws of p(θ | x) for each of m data.

        Args:
            data: data by site, (m, *shape), or one datum, (*shape).
            n: the number of draws for each datum.
            seed: the seed of the draws; None: the global generator.

        Returns:
            Draws by site, (m, n, *shape), or (n, *shape) of one datum.

        Raises:
            ValueError: as for :meth:`data`.
        """
        x = self.data(data)
        repeated = x.repeat_interleave(n, 0)
        model = self.model.given_context(repeated)
        with evaluating(model), seeded(seed):
            r = model(batch_size=n * len(x))
        shapes = self._data_shapes.items()
        one = all(torch.as_tensor(data[name]).dim() == len(shape) for name, shape in shapes)
        self._warn_of(x)
        lead = (n,) if one else (len(x), n)
        drawn = self.parameters_of(r, repeated).items()
        return {name: value.reshape(*lead, *value.shape[1:]) for name, value in drawn}

    @checked_arguments
    def predictive_p_value(self, data: Mapping[str, Tensor]) -> Tensor:
        """The prior predictive p-values of n data, (n,), small for data unlike all simulations.

        The statistic is the distance to the nearest of the simulations that are kept
        (:mod:`pyro_mdm.posteriors.predictive`). A posterior far from the simulations is a guess,
        and :meth:`sample` and :meth:`guide` warn of more such data than chance explains.

        Args:
            data: data by site, (n, *shape), or one datum, (*shape).

        Raises:
            ValueError: as for :meth:`data`.
        """
        x = self.data(data)
        return self.predictive.p_values(self.encoding.values(x), self.encoding.seen(x))

    def _warn_of(self, x: Tensor) -> None:
        if said := self.predictive.warning(self.encoding.values(x), self.encoding.seen(x)):
            warnings.warn(said, stacklevel=5)

    @checked_arguments
    def guide(
        self, data: Mapping[str, Tensor], *, nuisance: bool = True, seed: int | None = None
    ) -> PosteriorGuide:
        """The posterior of one observation as a Pyro guide of the program.

        Arguments are those of :class:`PosteriorGuide`. Several observations are a ValueError, and
        so is what :meth:`data` refuses.
        """
        self._warn_of(one_row(self.data(data)))
        sites = self.sites.sites
        return PosteriorGuide(self, self.program, sites, data, nuisance=nuisance, seed=seed)

    def scored_draws(
        self, data: Mapping[str, Tensor], n: int, *, seed: int | None = None
    ) -> ScoredDraws:
        """Draws of p(θ | x) for each of m data, with the density that they are drawn from.

        Arguments and errors are those of :meth:`sample`. Draws are by site, (m n, *shape), the n
        draws of a datum one after another.
        """
        check_count("n", n, "the number of draws for each datum")
        repeated = self.data(data).repeat_interleave(n, 0)
        maps = partial(self.parameters_of, x=repeated), partial(self.coordinates, x=repeated)
        return draw_by_flow(self.model.given_context(repeated), *maps, len(repeated), seed=seed)

    @checked_arguments
    def local_guide(
        self, data: Mapping[str, Tensor], *, names: Mapping[str, str] | None = None, block: int = 16
    ) -> LocalGuide:
        """The posteriors of m data as a guide of the local latents of a hierarchical program;
        arguments and errors are those of :class:`LocalGuide` and :meth:`data`."""
        x = self.data(data)
        self._warn_of(x)
        rows = {name: data[name] for name in self._data_shapes}
        return LocalGuide(self, self.sites.sites, rows, len(x), names=names, block=block)

    @torch.no_grad()
    @checked_arguments
    def log_prob(
        self,
        theta: Mapping[str, Tensor],
        data: Mapping[str, Tensor],
        *,
        samples: int = 4,
        solver: Solver | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> LogDensity:
        """The log density log p(θ | x) of n pairs in θ's own space, by the probability-flow ODE.

        It is -∞ outside of the support of θ and on its boundary, with error 0.

        Args:
            theta: parameters by site, (n, *shape).
            data: data by site, (n, *shape), or one datum for all, (*shape).
            samples: the number of draws of the state at ε for each pair.
            solver: the ODE solver, by default dopri5 with tolerances of 1e-4 and exact divergences.
            seed: the seed of the draws.
            progress: whether to show a progress bar.

        Raises:
            ValueError: parameters that are NaN; numbers n that differ; as for :meth:`data`.
        """
        solver = Solver(rtol=1e-4, atol=1e-4) if solver is None else solver
        values, x = self.sites.values(theta), self.data(data)
        inside = self.sites.inside(values)
        n = len(inside)
        if len(x) not in (1, n):
            raise ValueError(
                f"theta are {n} and data {len(x)}, expected as many of both, or one datum"
            )
        x = x.expand(n, -1)
        value = torch.full((n,), -math.inf, dtype=torch.float64)
        error = torch.zeros(n, dtype=torch.float64)
        if bool(inside.any()):
            chosen = {name: v[inside] for name, v in values.items()}
            z, log_det = self.coordinates(chosen, x[inside])
            model = self.model.given_context(x[inside])
            estimate = probability_flow(
                model, self.noising, z, samples=samples, solver=solver, seed=seed, progress=progress
            )
            there = inside.cpu()
            value[there] = estimate.per_datum + log_det.double().cpu()
            error[there] = estimate.per_datum_error
        return LogDensity(value, error)
