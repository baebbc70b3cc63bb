"""A diffusion as an automatic guide of a Pyro program."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_median
from pyro.ops.provenance import detach_provenance
from torch import Tensor
from torch.distributions import constraints

from pyro_mdm.automatic.chain import Annealed, Chain, Ratio, Reversed
from pyro_mdm.automatic.checkup import Checkup, checked, second_fit
from pyro_mdm.automatic.density import ProgramDensity, is_enumerated, run
from pyro_mdm.automatic.draws import row, unconstrained
from pyro_mdm.automatic.fitting import COMPARED, Fitting
from pyro_mdm.automatic.gap import Gap, gap, gap_by_draws
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.presets import VPSDE
from pyro_mdm.posteriors.guide import ImportanceWeights
from pyro_mdm.posteriors.tempering import GROUPS
from pyro_mdm.support.checks import check_count, check_instance, check_number

__all__ = ["AutoMDM"]

STARTS = {"gaussian": Annealed, "particles": Reversed}
AT_A_TIME = 1_000
"""The number of paths that are drawn together."""
STORED = (
    "of Pyro's parameter store, where another guide has left them; call pyro.clear_param_store() "
    "before a new guide"
)
OF_TAILS = (
    "train longer, with more steps, or with start='particles'; a program whose posterior has heavy "
    "tails, or none that is proper, has such weights always"
)
"""The advice for weights that mislead."""


class _ChainLaw(TorchDistribution):
    """The distribution of the ends of paths.

    A draw's log density is the log ratio of its path's densities under guide and noising chain; no
    other value has one.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, chain: Chain, ratio: Ratio, batch_shape: Sequence[int] = ()) -> None:
        self.chain, self.ratio = chain, ratio
        self.drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(torch.Size(batch_shape), torch.Size([chain.dim]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _ChainLaw:
        return _ChainLaw(self.chain, self.ratio, batch_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape])
        path = self.chain.paths(self.ratio, shape.numel())
        x = self.ratio.place(path.u).reshape(*shape, self.chain.dim)
        self.drawn = detach_provenance(x), (path.cost + self.ratio.log_unit(path.u)).reshape(shape)
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        same = detach_provenance(value)  # pyro.render_model wraps values
        if self.drawn is None or self.drawn[0] is not same:
            raise NotImplementedError(
                "a value that this guide did not draw has no density in closed form; draw from the "
                "guide, or weigh other values by guide.importance(n)"
            )
        return self.drawn[1]


class AutoMDM(AutoMultivariateNormal):
    r"""A guide by a diffusion, from a Gaussian to the posterior of a program.

    It is :class:`~pyro.infer.autoguide.AutoMultivariateNormal`, followed by steps of a diffusion
    that feel the gradient of the program's density, and a network. The path is an auxiliary
    variable of the guide, and the program is extended by a noising chain, so that

        log w = log p(x, data) - log q(path) / r(path | x),    E w = p(data),

    whatever the parameters. Before training paths follow the gradient alone. Latents are those of
    ``AutoContinuous``: continuous sites with any support, in any plates. Discrete sites that can be
    enumerated are summed over in the gradient; train with ``TraceEnum_ELBO`` then.

    Args:
        model: the program, conditioned on its data or observing them.
        diffusion: diffusion of any Q, D and K, with Σ_∞ whose entry of x is 1; None:
            :class:`~pyro_mdm.VPSDE`.
        steps: number N of steps of the chain.
        start: kind of start. "gaussian", for posteriors of one mode and any number of latents: the
            chain is annealed from the Gaussian of the highest bound, and learns to raise the bound.
            Or "particles", for posteriors of several modes and up to about twenty latents:
            particles are tempered to the posterior, and the chain is a denoiser of theirs.
        width: width of the network's layers.
        init_loc_fn: start of the Gaussian, as of ``AutoMultivariateNormal``.
        init_scale: scale of the Gaussian at the start, as of ``AutoMultivariateNormal``.

    Source: Vargas et al., "Transport meets Variational Inference: Controlled Monte Carlo
    Diffusions", 2024; Blessing et al., "Underdamped Diffusion Bridges with Applications to
    Sampling", 2025.

    Example:
        >>> import pyro.distributions as dist
        >>> def program():
        ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
        ...     pyro.sample("b", dist.Normal(a**2, 0.5), obs=torch.tensor(1.0))
        >>> guide = AutoMDM(program, steps=4)
        >>> _ = guide.fit(updates=2, start_updates=2, progress=False)
        >>> guide.sample_posterior(5)["a"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        diffusion: LinearDiffusion | None = None,
        *,
        steps: int = 16,
        start: str = "gaussian",
        width: int = 64,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
    ) -> None:

        def start_of(site: dict[str, Any]) -> Tensor:
            drawn: Tensor = site["fn"].sample() if is_enumerated(site) else init_loc_fn(site)
            return drawn

        super().__init__(model, init_loc_fn=start_of, init_scale=init_scale)
        self._diffusion = VPSDE() if diffusion is None else diffusion
        fix = "e.g. VPSDE() or CLD()"
        check_instance("diffusion", self._diffusion, LinearDiffusion, fix)
        check_count("steps", steps, "the number of steps of the chain")
        check_count("width", width, "of the layers of the network")
        if start not in STARTS:
            raise ValueError(f"start is {start!r}, expected one of {', '.join(map(repr, STARTS))}")
        self.start, self._steps, self._width = start, steps, width
        self._program = (model,)  # as it is, without values to start from; not a module of this one
        self._start_values: dict[str, Any] = {"init_loc_fn": init_loc_fn, "init_scale": init_scale}
        self._budget: dict[str, Any] = {}  # of the last fit
        self.losses = torch.zeros(0)

    def _like_this(self, program: Callable[..., Any], *, start: str | None = None) -> AutoMDM:
        """A guide of a program with the settings of this one, before any fit."""
        return AutoMDM(
            program,
            copy.deepcopy(self._diffusion),
            steps=self._steps,
            start=start or self.start,
            width=self._width,
            **self._start_values,
        )

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        stored = [n for n in pyro.get_param_store() if n.startswith(f"{self._pyro_name}.")]
        if stored and not pyro.settings.get("module_local_params"):
            warnings.warn(f"this guide shares {stored[0]!r} and others {STORED}", stacklevel=2)
        try:
            super()._setup_prototype(*args, **kwargs)
            if self.loc.shape != (self.latent_dim,):
                raise ValueError(
                    f"the program has {self.latent_dim} latents, expected {len(self.loc)} as "
                    f"{STORED}"
                )
            chain = STARTS[self.start](self.latent_dim, self._diffusion, self._steps, self._width)
            self.chain = chain.to(self.loc)
            trace = run(self.model, *args, **kwargs)
            self._density = ProgramDensity(self._program[0], trace, self._unpack_latent)
            near = self.loc.detach() + 0.1 * torch.randn(2, self.latent_dim).to(self.loc)
            self._density.check(near, *args, **kwargs)
        except BaseException:
            self.prototype_trace = None  # the next call sets it up again
            raise

    @staticmethod
    def _prototype_hide_fn(site: dict[str, Any]) -> bool:
        hidden: bool = AutoMultivariateNormal._prototype_hide_fn(site)
        return hidden or is_enumerated(site)

    def log_density(self, x: Tensor, /, *args: Any, **kwargs: Any) -> Tensor:
        """log p(x, data) of unconstrained latents (n, latent_dim), with Jacobians, (n,) nats."""
        self._set_up(*args, **kwargs)
        if x.dim() != 2 or len(x) == 0 or x.shape[1] != self.latent_dim:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected (n, {self.latent_dim}): a row for each of "
                "n ≥ 1 values of all latents, unconstrained"
            )
        return self._density(x, *args, **kwargs)

    def _ratio(self, *args: Any, **kwargs: Any) -> Ratio:
        def density(x: Tensor) -> Tensor:
            return self._density(x, *args, **kwargs)

        return Ratio(density, self.loc, self.scale[..., None] * self.scale_tril)

    def get_posterior(self, *args: Any, **kwargs: Any) -> _ChainLaw:
        """The distribution of all latents, unconstrained, with densities along paths of draws."""
        return _ChainLaw(self.chain, self._ratio(*args, **kwargs))

    def get_base_dist(self) -> NoReturn:
        """Raises NotImplementedError: the guide is no transform of its Gaussian."""
        raise NotImplementedError(
            "AutoMDM is no transform of a simple distribution, as NeuTraReparam and others need; "
            "start NUTS from draws of it instead"
        )

    def get_transform(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises NotImplementedError: the guide is no transform of its Gaussian."""
        self.get_base_dist()

    def fit(
        self,
        *args: Any,
        updates: int = 1_000,
        start_updates: int = 1_000,
        paths: int = 128,
        particles: int = 2_048,
        learning_rate: float = 5e-3,
        draws: Any = None,
        seconds: float | None = None,
        progress: bool = True,
        **kwargs: Any,
    ) -> AutoMDM:
        """Fit the Gaussian, or temper particles, and then train the chain from there.

        Parameters of the program stay as they are. Learning rates fall to 0 by a cosine. Where an
        annealed chain ends with a lower bound than its Gaussian alone, it is that Gaussian. ``SVI``
        with ``Trace_ELBO`` trains the Gaussian, the chain and the program's parameters at once,
        from where they are.

        Args:
            args: positional arguments of the program.
            kwargs: keyword arguments of the program; functools.partial binds those with the names
                below.
            updates: number of updates of the chain.
            start_updates: number of updates of the Gaussian before.
            paths: number of paths drawn for an update.
            particles: number of particles that are tempered.
            learning_rate: learning rate of the chain; that of the Gaussian is four times as high.
            draws: draws of the posterior that exist already, by site, (n, *shape) or
                (chains, n, *shape), such as ``mcmc.get_samples()`` or an ``InferenceData`` of
                ArviZ. The chain becomes a denoiser of theirs, as of particles.
            seconds: number of seconds after which training ends, within ``updates``; tempering
                takes what it takes. None: no limit.
            progress: whether a progress bar is shown.

        Returns:
            The guide. Its ``losses`` are those of the chain, (updates,), nats.

        Raises:
            ValueError: numbers out of range, draws of another program, gradients that are not
                finite.
        """
        check_count("updates", updates, "of the chain", least=0)
        check_count("start_updates", start_updates, "of the Gaussian", least=0)
        check_count("paths", paths, "of an update")
        check_count("particles", particles, f"in {GROUPS} groups", least=2 * GROUPS)
        check_number("learning_rate", learning_rate, "of the chain", positive=True)
        if seconds is not None:
            check_number("seconds", seconds, "of the fit, or None", positive=True)
        if draws is not None and self.prototype_trace is None:
            self.start = "particles"  # a chain that denoises draws
        self._set_up(*args, **kwargs)
        self._budget = {
            "updates": updates,
            "start_updates": start_updates,
            "paths": paths,
            "particles": particles,
            "learning_rate": learning_rate,
            "seconds": seconds,
        }
        fitting = Fitting(
            self, args, kwargs, updates, start_updates, paths, learning_rate, seconds, progress
        )
        if isinstance(self.chain, Reversed):
            with torch.no_grad():
                x = (
                    fitting.tempered(particles)
                    if draws is None
                    else self.rows(draws, *args, **kwargs)
                )
            self.losses = fitting.to_draws(x)
        elif draws is not None:
            raise ValueError(
                f"the guide was set up with start={self.start!r}, whose chain does not learn from "
                "draws; make a new guide, and fit it with draws first"
            )
        else:
            self.losses = fitting.from_gaussian()
        return self

    def rows(self, draws: Any, /, *args: Any, **kwargs: Any) -> Tensor:
        """Unconstrained latents (n, latent_dim) of draws by site, as :meth:`fit` takes them."""
        self._set_up(*args, **kwargs)
        return unconstrained(draws, self._latents())

    def _become_gaussian_of(self, x: Tensor) -> None:
        covariance = x.T.cov() + torch.diag(1e-4 * x.var(0) + 1e-12)
        root = torch.linalg.cholesky(covariance.reshape(self.latent_dim, -1))
        self.loc.data = x.mean(0)
        self.scale = root.diagonal()
        self.scale_tril = root / root.diagonal()[:, None]

    def _set_up(self, *args: Any, **kwargs: Any) -> None:
        if self.prototype_trace is None:
            with pyro.poutine.block():
                self(*args, **kwargs)

    def _latents(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return self.prototype_trace.iter_stochastic_nodes()

    def _log_weights(self, n: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """n draws (n, latent_dim), unconstrained, and their log weights (n,)."""
        law = self.get_posterior(*args, **kwargs).expand((n,))
        x = law.rsample()
        return x, self.log_density(x, *args, **kwargs) - law.log_prob(x)

    @torch.no_grad()
    def _weighted(self, n: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._set_up(*args, **kwargs)
        sizes = [min(AT_A_TIME, n - done) for done in range(0, n, AT_A_TIME)]
        pieces = [self._log_weights(size, *args, **kwargs) for size in sizes]
        x, log_weights = (torch.cat(tensors) for tensors in zip(*pieces, strict=True))
        if lost := int((log_weights.isnan() | (log_weights == math.inf)).sum()):
            warnings.warn(
                f"{lost:,} of {n:,} draws have a density that is NaN or infinite, expected none, "
                "and count as impossible; mend the program",
                stacklevel=3,
            )
        return x, log_weights.double().nan_to_num(nan=-math.inf, posinf=-math.inf)

    @torch.no_grad()
    def two_sided(
        self, latents: Mapping[str, Tensor], paths: int, /, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Log weights of the guide's paths, and of noising paths from given latents, (paths,) each.

        The mean of the first is a lower bound on log p(data) in expectation; that of the second is
        an upper one where the latents are an exact draw of the posterior.

        Args:
            latents: a value of each latent, by site.
            paths: number of paths of each kind.
            args, kwargs: arguments of the program.
        """
        self._set_up(*args, **kwargs)
        x = row(latents, self._latents()).repeat(paths, 1)
        return self._weighted(paths, *args, **kwargs)[1], self.noised(x, *args, **kwargs)

    def noised(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Log weights of noising paths from unconstrained latents x (n, latent_dim), (n,) nats."""
        ratio = self._ratio(*args, **kwargs)
        u = ratio.inverse(x)
        log_q = self.chain.noising_cost(ratio, u) + ratio.log_unit(u)
        return (self.log_density(x, *args, **kwargs) - log_q).double()

    def gap(
        self,
        *args: Any,
        simulated: int = 20,
        draws: Any = None,
        paths: int = 256,
        **kwargs: Any,
    ) -> Gap:
        """How far the bound may be below log p(data), by draws of the posterior.

        For data that the program simulates, latents that made them are exact draws, and a guide
        like this one is fitted to each data set by the budget of the last fit. The guide's gap is
        at most the one returned, in expectation over these data.

        Args:
            args, kwargs: arguments of the program.
            simulated: number of simulated data sets.
            draws: draws of the posterior of the program's own data, as in :meth:`fit`, in place of
                simulated data. The gap is right as far as they are, and they should not be those
                of the fit; errors take them as independent.
            paths: number of paths of each kind: for a data set, or of all draws.

        Returns:
            :class:`~pyro_mdm.automatic.Gap`, nats.

        Source: Grosse, Ancha & Roy, "Measuring the reliability of MCMC inference with
        bidirectional Monte Carlo", 2016.
        """
        check_count("paths", paths, "the number of paths of each kind")
        if draws is None:

            def fitted(program: Callable[..., Any]) -> AutoMDM:
                return self._like_this(program).fit(*args, progress=False, **self._budget, **kwargs)

            return gap(self._program[0], fitted, *args, simulated=simulated, paths=paths, **kwargs)
        return gap_by_draws(self, draws, paths, args, kwargs)

    def check(
        self,
        *args: Any,
        other: Any = "fit",
        batches: int = 4,
        num_samples: int = 1_000,
        progress: bool = True,
        **kwargs: Any,
    ) -> Checkup:
        """Whether to trust the guide: tails and number of draws that count, agreement with a second
        fit, and what was kept. Where something is wrong, the first remedy by what is seen.

        Args:
            args, kwargs: arguments of the program.
            other: the second fit. "fit": one is made from the other start (particles for up to 20
                latents, otherwise a Gaussian from another seed), by the budget of the last fit;
                a guide of the same program that has been fitted; draws of the posterior, as in
                :meth:`fit`; None: none.
            batches: number of batches of draws, each with its own k̂.
            num_samples: number of draws in a batch.
            progress: whether a progress bar of the second fit is shown.

        Returns:
            A :class:`~pyro_mdm.automatic.Checkup`, to be printed.
        """
        check_count("batches", batches, "of draws")
        check_count("num_samples", num_samples, "the number of draws in a batch", least=25)
        self._set_up(*args, **kwargs)
        second = second_fit(self, other, batches * num_samples, progress, args, kwargs)
        return checked(self, second, batches, num_samples, args, kwargs)

    def importance(self, num_samples: int, /, *args: Any, **kwargs: Any) -> ImportanceWeights:
        """Importance weights of draws, with how many count, k̂ and log p(data).

        Args:
            num_samples: number of draws.
            args: positional arguments of the program.
            kwargs: keyword arguments of the program.
        """
        check_count("num_samples", num_samples, "the number of draws")
        weights = ImportanceWeights(self._weighted(num_samples, *args, **kwargs)[1])
        weights.warn(OF_TAILS, stacklevel=3)
        return weights

    def sample_posterior(
        self, num_samples: int, /, *args: Any, resample: bool = False, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Draws of all latents by site, (num_samples, *shape).

        Args:
            num_samples: number of draws.
            args: positional arguments of the program.
            kwargs: keyword arguments of the program.
            resample: whether draws are resampled by their weights, from ten times as many.
        """
        check_count("num_samples", num_samples, "the number of draws")
        x, log_weights = self._weighted(num_samples * (10 if resample else 1), *args, **kwargs)
        if resample:
            weights = ImportanceWeights(log_weights)
            weights.warn(OF_TAILS, stacklevel=3)
            x = x[torch.multinomial(weights.normalized, num_samples, replacement=True)]
        return self._density.by_site(x)

    def quantiles(self, quantiles: Sequence[float], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Quantiles of each latent by site, (len(quantiles), *shape), of draws of the guide."""
        levels = torch.as_tensor(quantiles, dtype=self.loc.dtype)
        return {
            name: value.quantile(levels.to(value), 0)
            for name, value in self.sample_posterior(COMPARED, *args, **kwargs).items()
        }

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of each latent by site, of draws of the guide."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}
