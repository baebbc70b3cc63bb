"""A guide whose latents are the end of a chain: its density, its weights and its draws."""

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
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_mdm.automatic.chain import Chain
from pyro_mdm.automatic.density import ProgramDensity, is_enumerated, run
from pyro_mdm.automatic.draws import row, unconstrained
from pyro_mdm.automatic.mixture import MOST, Mixture
from pyro_mdm.automatic.moments import Moments, uneven
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.automatic.shape import Shape
from pyro_mdm.automatic.symmetry import Symmetry
from pyro_mdm.budgets import Budget, Outcome
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.presets import VPSDE
from pyro_mdm.evaluation.defensive import Defensive, Scored, defended
from pyro_mdm.posteriors.weights import ImportanceWeights
from pyro_mdm.support.checks import check_count, check_instance
from pyro_mdm.support.doors import checked_arguments
from pyro_mdm.support.memory import free_bytes

__all__ = ["COMPARED", "ChainGuide", "parameters"]

STARTS = {"gaussian": None, "shaped": Shape, "particles": Mixture}
Start = str | Callable[[int], Any]
"""A name of a start, or a function of the number of latents that makes an invertible map."""
COMPARED = 1_000
"""The number of paths by which a chain is judged."""
AT_A_TIME = 1_000
"""The number of paths that are drawn together."""
ROUNDED = 5.0
"""The nats by which rounding may change the density of a large weight without a warning."""
OF_MEMORY = 0.5
"""The share of the free memory that paths may take."""
ENOUGH = 30
"""The number of draws for each latent by which correlations are estimated."""
STORED = (
    "of Pyro's parameter store, where another guide has left them; call pyro.clear_param_store() "
    "before a new guide"
)
OF_TAILS = (
    "train longer, with more steps, or with start='particles'; a program whose posterior has heavy "
    "tails, or none that is proper, has such weights always"
)
"""The advice for weights that mislead."""


def parameters(kept: Callable[[str], bool]) -> Any:
    """A context in which Pyro's parameter store has copies of some of its parameters, by name."""
    store = pyro.get_param_store()
    state: Any = {
        kind: {name: value for name, value in values.items() if kept(name)}
        for kind, values in dict[str, Any](store.get_state()).items()
    }
    state["params"] = {  # an optimizer writes to them in place
        name: value.detach().clone().requires_grad_(value.requires_grad)
        for name, value in state["params"].items()
    }
    return store.scope(state)


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
        ratio = self.ratio.of_paths(shape.numel())
        path = self.chain.paths(ratio, shape.numel())
        x = ratio.place(path.u).reshape(*shape, self.chain.dim)
        self.drawn = detach_provenance(x), (path.cost + ratio.log_unit(path.u)).reshape(shape)
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        same = detach_provenance(value)  # pyro.render_model wraps values
        if self.drawn is None or self.drawn[0] is not same:
            raise NotImplementedError(
                "a value that this guide did not draw has no density in closed form; draw from the "
                "guide, or weigh other values by guide.importance(n)"
            )
        return self.drawn[1]


class ChainGuide(AutoMultivariateNormal):
    """A guide by a chain of a diffusion, from a Gaussian to the posterior of a program.

    Its arguments are those of :class:`AutoMDM`, which can be fitted and checked.
    """

    learned_from: Tensor | None = None
    """The first unconstrained latents of the draws that the guide learned from, (n,)."""

    def __init__(
        self,
        model: Callable[..., Any],
        diffusion: LinearDiffusion | None = None,
        *,
        steps: int = 16,
        start: Start = "gaussian",
        width: int = 64,
        row_steps: int = 4,
        row_paths: int = 1,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
    ) -> None:

        def start_of(site: dict[str, Any]) -> Tensor:
            drawn: Tensor = site["fn"].sample() if is_enumerated(site) else init_loc_fn(site)
            return drawn

        check_instance("model", model, Callable, "give the program")  # type: ignore[arg-type]
        super().__init__(model, init_loc_fn=start_of, init_scale=init_scale)
        self._diffusion = VPSDE() if diffusion is None else diffusion
        fix = "e.g. VPSDE() or CLD()"
        check_instance("diffusion", self._diffusion, LinearDiffusion, fix)
        check_count("steps", steps, "the number of steps of the chain")
        check_count("width", width, "of the layers of the network")
        if not callable(start) and start not in STARTS:
            raise ValueError(
                f"start is {start!r}, expected one of {', '.join(map(repr, STARTS))}, or a "
                "function of the number of latents that makes a transform, such as "
                "spline_autoregressive"
            )
        check_count("row_steps", row_steps, "the number of steps of the chain of rows")
        check_count("row_paths", row_paths, "the number of paths of a row for a weight")
        self.start, self._steps, self._width = start, steps, width
        self.row_steps, self.row_paths = row_steps, row_paths
        # as they are, without values to start from or a fit; no modules of this one
        self._given = model, copy.deepcopy(self._diffusion)
        self._start_values: dict[str, Any] = {"init_loc_fn": init_loc_fn, "init_scale": init_scale}
        self.losses = torch.zeros(0)  # of the last fit
        self.outcomes: dict[str, Outcome] = {}  # of its trainings
        self._budget: dict[str, Any] = {}  # of it too

    @property
    def program(self) -> Callable[..., Any]:
        """The program as it was given."""
        return self._given[0]

    @property
    def start_name(self) -> str:
        """The start in words: its name, or that of the function that makes it."""
        if isinstance(self.start, str):
            return self.start
        return str(getattr(self.start, "__name__", type(self.start).__name__))

    def like_this(self, program: Callable[..., Any], *, start: Start | None = None) -> Any:
        """A guide of a program with the settings of this one, before any fit.

        Args:
            program: the program.
            start: another start than that of this guide.
        """
        return type(self)(
            program,
            copy.deepcopy(self._given[1]),
            steps=self._steps,
            start=start or self.start,
            width=self._width,
            row_steps=self.row_steps,
            row_paths=self.row_paths,
            **self._start_values,
        )

    def alone(self) -> Any:
        """A context in which Pyro's parameter store has no parameters of this guide."""
        return parameters(lambda name: not name.startswith(f"{self._pyro_name}."))

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
            self.shape = self._made_shape()
            beside = MOST if isinstance(self.shape, Mixture) else 0
            chain = Chain(self.latent_dim, self._diffusion, self._steps, self._width, beside)
            self.chain = chain.to(self.loc)
            trace = run(self.model, *args, **kwargs)
            self.program_density = self._made_density(trace)
            near = self.loc.detach() + 0.1 * torch.randn(2, self.latent_dim).to(self.loc)
            self.program_density.check(near, *args, **kwargs)
        except BaseException:
            self.prototype_trace = None  # the next call sets it up again
            raise

    def _made_shape(self) -> Any:
        """The map of the start before its Gaussian, None if it has none."""
        make: Any = STARTS[self.start] if isinstance(self.start, str) else self.start
        if make is None:
            return None
        shape = make(self.latent_dim)
        return shape.to(self.loc) if isinstance(shape, torch.nn.Module) else shape

    def _made_density(self, trace: Trace) -> ProgramDensity:
        """The density of the program, of which a trace is given; the chain is there."""
        return ProgramDensity(self.program, trace, self._unpack_latent)

    def _prototype_hide_fn(self, site: dict[str, Any]) -> bool:
        hidden: bool = AutoMultivariateNormal._prototype_hide_fn(site)
        return hidden or is_enumerated(site)

    def log_density(self, x: Tensor, /, *args: Any, **kwargs: Any) -> Tensor:
        """log p(x, data) of unconstrained latents (n, latent_dim), with Jacobians, (n,) nats."""
        self.set_up(*args, **kwargs)
        if x.dim() != 2 or len(x) == 0 or x.shape[1] != self.latent_dim:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected (n, {self.latent_dim}): a row for each of "
                "n ≥ 1 values of all latents, unconstrained"
            )
        return self.program_density(x, *args, **kwargs)

    @property
    def kind_of_ratio(self) -> type[Ratio]:
        """The class of log h that the chain sees."""
        return Ratio

    @property
    def root(self) -> Tensor:
        """The Cholesky factor of the Gaussian's covariance, (latent_dim, latent_dim)."""
        return self.scale[..., None] * self.scale_tril

    def ratio(self, *args: Any, **kwargs: Any) -> Ratio:
        def density(x: Tensor) -> Tensor:
            return self.log_density(x, *args, **kwargs)

        shape = self.shape
        if not (shape is None or isinstance(shape, Transform | Mixture)):
            shape = shape()  # zuko's flows make their transform from a context, here none
        return self.kind_of_ratio(density, self.loc, self.root, shape)

    def get_posterior(self, *args: Any, **kwargs: Any) -> _ChainLaw:
        """The distribution of all latents, unconstrained, with densities along paths of draws."""
        return _ChainLaw(self.chain, self.ratio(*args, **kwargs))

    def get_base_dist(self) -> NoReturn:
        """Raises NotImplementedError: the guide is no transform of its Gaussian."""
        raise NotImplementedError(
            "AutoMDM is no transform of a simple distribution, as NeuTraReparam and others need; "
            "start NUTS from draws of it instead"
        )

    def get_transform(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises NotImplementedError: the guide is no transform of its Gaussian."""
        self.get_base_dist()

    def rows(self, draws: object, /, *args: Any, **kwargs: Any) -> Tensor:
        """Unconstrained latents (n, latent_dim) of draws by site.

        The draws are as in ``AutoMDM.fit``."""
        self.set_up(*args, **kwargs)
        return unconstrained(draws, self.latents())

    def symmetry(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Symmetry:
        """The maps that leave the program's density as it is at two draws x (2, latent_dim)."""

        def log_density(rows: Tensor) -> Tensor:
            return self.log_density(rows, *args, **kwargs)

        return Symmetry.from_density(self.program_density, self.latents(), log_density, x)

    def become_mixture(self, x: Tensor, symmetry: Symmetry, budget: Budget | None) -> Tensor:
        """Take the mixture of images of draws x (n, latent_dim), fitted within a budget, and return
        the images in units of their deviations."""
        distinct = x.unique(dim=0, return_inverse=True)[1]
        x = symmetry.scattered(x)
        self.become_gaussian(x.mean(0), torch.diag(x.std(0).clamp_min(1e-6)))
        self.chain.reset()
        w = (x - self.loc) / self.scale
        self.shape.fit(w, distinct, budget)
        return w

    def become_gaussian(self, loc: Tensor, root: Tensor) -> None:
        """Take a mean (latent_dim,) and a Cholesky factor (latent_dim, latent_dim)."""
        self.loc.data, self.scale = loc, root.diagonal()
        self.scale_tril = root / root.diagonal()[:, None]

    def set_up(self, *args: Any, **kwargs: Any) -> None:
        if self.prototype_trace is None:
            with pyro.poutine.block():
                self._setup_prototype(*args, **kwargs)

    def latents(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return self.prototype_trace.iter_stochastic_nodes()

    @property
    def names(self) -> list[str]:
        """The name of the site of each unconstrained latent."""
        shapes = self._unconstrained_shapes.items()
        return [name for name, shape in shapes for _ in range(shape.numel())]

    def log_weights(self, n: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """n draws (n, latent_dim), unconstrained, and their log weights (n,)."""
        law = self.get_posterior(*args, **kwargs).expand((n,))
        x = law.rsample()
        return x, self.log_density(x, *args, **kwargs) - law.log_prob(x)

    def of_all_rows(
        self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], *, keep: bool = False
    ) -> tuple[Tensor, Tensor]:
        """log p(x, data) of draws x (n, latent_dim) by all rows of the program's plates, (n,), and
        the draws as :meth:`by_site` takes them: with the latents of all rows, where kept."""
        return self.log_density(x, *args, **kwargs), x

    def paths(
        self, n: int, args: tuple[Any, ...], kwargs: dict[str, Any], *, keep: bool = False
    ) -> Scored:
        """n draws with the densities of their paths."""
        law = self.get_posterior(*args, **kwargs).expand((n,))
        x = law.rsample()
        return self._scored(x, law.log_prob(x), args, kwargs, keep)

    def paths_to(
        self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], *, keep: bool = False
    ) -> Scored:
        """Noising paths from unconstrained latents x (n, latent_dim) with their densities."""
        ratio, u = self.ratio(*args, **kwargs).ending_at(x)
        log_q = self.chain.noising_cost(ratio, u) + ratio.log_unit(u)
        return self._scored(x, log_q, args, kwargs, keep)

    def _scored(
        self, x: Tensor, log_q: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], keep: bool
    ) -> Scored:
        log_p, kept = self.of_all_rows(x, args, kwargs, keep=keep)
        return Scored(x, log_p.double(), log_q.double(), kept)

    def by_site(self, x: Tensor) -> dict[str, Tensor]:
        """All latents in their supports by site, (n, *shape), of draws x (n, …)."""
        return self.program_density.by_site(x)

    def weighted(self, n: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """n draws of the guide alone, and their log weights, whose mean is the bound."""
        return self._weighted(n, args, kwargs, False)

    def _weighted(
        self, n: int, args: tuple[Any, ...], kwargs: dict[str, Any], keep: bool
    ) -> tuple[Tensor, Tensor]:
        drawn = self._in_pieces(self.paths, torch.arange(n), args, kwargs, keep)
        log_weights = drawn.log_target - drawn.log_proposal
        return drawn.kept, log_weights.nan_to_num(-math.inf, -math.inf, -math.inf)

    def paths_at_once(self, most: int, *, kept: bool = False) -> int:
        """The number of paths, at most a given one, for which there is memory; MemoryError where
        there is none for one. For an update the graphs of all steps are kept."""
        density, free = self.program_density, OF_MEMORY * free_bytes(self.loc.device)
        size = density.bytes_of_row * (self.chain.steps + 1 if kept else 1)
        if size > free:
            raise MemoryError(
                f"a path takes {size / 2**30:.3g} GiB, expected at most {free / 2**30:.3g} GiB, "
                f"{OF_MEMORY:.0%} of what is free; take fewer steps, or, where the program asks a "
                "learned likelihood, fewer of its paths"
            )
        return most if size == 0 else int(min(most, free // size))

    def _check_memory(self, n: int) -> None:
        """Raise MemoryError if there is none for the latents of n draws, and four copies."""
        free = OF_MEMORY * free_bytes(self.loc.device)
        most = free / (4 * self.loc.element_size() * max(1, self.latent_dim))
        if n > most:
            raise MemoryError(
                f"{n:,} draws of {self.latent_dim:,} latents are too many for the memory, expected "
                f"at most {most:,.0f}; take fewer, several times"
            )

    @torch.no_grad()
    def _in_pieces(
        self,
        made: Callable[..., Scored],
        rows: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        keep: bool,
    ) -> Scored:
        """What is made of a number of draws, or of points, a few at a time."""
        self.set_up(*args, **kwargs)
        self._check_memory(len(rows))
        pieces = [
            made(piece if piece.dim() > 1 else len(piece), args, kwargs, keep=keep)
            for piece in rows.split(self.paths_at_once(AT_A_TIME))
        ]
        scored = Scored(*(torch.cat(tensors) for tensors in zip(*pieces, strict=True)))
        if rows.dim() == 1 and (lost := int(scored.is_impossible.sum())):
            warnings.warn(
                f"{lost:,} of {len(rows):,} draws have a density that is NaN or infinite, expected "
                "none, and count as impossible; mend the program",
                stacklevel=5,
            )
        return scored

    @torch.no_grad()
    def weighed(
        self, n: int, args: tuple[Any, ...], kwargs: dict[str, Any], *, keep: bool = False
    ) -> tuple[Tensor, ImportanceWeights]:
        """n draws, and their weights, a quarter of which have heavy tails.

        These are around the components of a mixture, or in units of a start with a shape, or else
        in the latents. All draws are the guide's where no path leads back from given latents, and
        where there are fewer than 16.
        """
        self.set_up(*args, **kwargs)
        units, h = self.ratio(*args, **kwargs), None
        if units.mixture is not None:
            h = Defensive(*(tensor.double() for tensor in units.mixture.components()))
        elif units.shape is None and n > ENOUGH * self.latent_dim:
            units = Ratio(units.log_density, 0 * self.loc, torch.eye(len(self.loc)).to(self.loc))

        def in_units(scored: Scored, u: Tensor) -> Scored:
            log_det = units.log_volume(u).double()
            log_p, log_q = scored.log_target + log_det, scored.log_proposal + log_det
            return Scored(u, log_p, log_q, scored.kept)

        def drawn(few: int) -> Scored:
            scored = self._in_pieces(self.paths, torch.arange(few), args, kwargs, keep)
            return in_units(scored, units.units(scored.x))

        def at(u: Tensor) -> Scored:
            u = u.to(self.loc)
            scored = self._in_pieces(self.paths_to, units.place(u), args, kwargs, keep)
            return in_units(scored, u)

        if n >= 16 and self._leads_back(args, kwargs):
            kept, log_weights, defence = defended(
                drawn, at, n, h, lambda x: self._rounding(x, args, kwargs)
            )
            return kept, ImportanceWeights(log_weights, defence)
        kept, log_weights = self._weighted(n, args, kwargs, keep)
        return kept, ImportanceWeights(log_weights)

    def _rounding(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """How far the density of draws x (n, latent_dim) is above that in float64, (n,) nats; 0
        where the program has no such run, or another density at the middle of the start too."""
        density, none = self.program_density, torch.zeros(len(x), dtype=torch.float64)
        if density.plate is not None or x.dtype == torch.float64:
            return none
        x = torch.cat([self.loc.detach()[None], x])
        try:
            exact = density.in_float64(x, *args, **kwargs)
        except RuntimeError:  # it mixes precisions
            return none
        middle, *_ = errors = density(x, *args, **kwargs) - exact
        if not abs(float(middle)) <= ROUNDED:
            return none
        error = errors[1:]
        if bool((wrong := ~(error.abs() <= ROUNDED)).any()):
            warnings.warn(
                f"rounding changes the density of {int(wrong.sum()):,} draws with large weights by "
                f"up to {float(error.abs().nan_to_num(math.inf).max()):.3g} nats, expected at most "
                f"{ROUNDED:g}; they have that of float64, and others that of float32: run the "
                "program in float64, torch.set_default_dtype(torch.float64)",
                stacklevel=6,
            )
        return error.nan_to_num(math.inf)  # impossible

    def _leads_back(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the start has an inverse, so that a path leads from given latents to noise."""
        try:
            self.ratio(*args, **kwargs).units(self.loc[None])
        except NotImplementedError:
            return False
        return True

    @torch.no_grad()
    def two_sided(
        self, latents: Mapping[str, Tensor], paths: int, /, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Log weights of the guide's paths, and of noising paths from latents by site, (paths,).

        The mean of the first is a lower bound on log p(data) in expectation; that of the second is
        an upper one where the latents are an exact draw of the posterior.
        """
        self.set_up(*args, **kwargs)
        x = row(latents, self.latents()).repeat(paths, 1)
        return self.weighted(paths, *args, **kwargs)[1], self.noised(x, *args, **kwargs)

    def noised(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Log weights of noising paths from unconstrained latents x (n, latent_dim), (n,) nats."""
        noised = self.paths_to(x, args, kwargs)
        return noised.log_target - noised.log_proposal

    def importance(self, num_samples: int, /, *args: Any, **kwargs: Any) -> ImportanceWeights:
        """Importance weights of draws, with how many count and log p(data).

        A quarter of the draws are not the guide's, but have heavy tails, so that the evidence is
        right where the guide's tails are lighter than the posterior's
        (:mod:`pyro_mdm.evaluation.defensive`).

        Args:
            num_samples: number of draws.
            args, kwargs: arguments of the program.
        """
        check_count("num_samples", num_samples, "the number of draws")
        _, weights = self.weighed(num_samples, args, kwargs)
        weights.warn(OF_TAILS, stacklevel=3)
        return weights

    def sample_posterior(
        self, num_samples: int, /, *args: Any, resample: bool = False, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Draws of all latents by site, (num_samples, *shape).

        Where a plate draws a subsample, they have the latents of all its rows.

        Args:
            num_samples: number of draws.
            args, kwargs: arguments of the program.
            resample: whether draws are resampled by their weights, from ten times as many.
        """
        check_count("num_samples", num_samples, "the number of draws")
        if resample:
            x, weights = self._looked_at(10 * num_samples, args, kwargs)
            x = x[torch.multinomial(weights.normalized, num_samples, replacement=True)]
        else:
            x = self._in_pieces(self.paths, torch.arange(num_samples), args, kwargs, True).kept
        return self.by_site(x)

    def _looked_at(
        self, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, ImportanceWeights]:
        """n draws, kept, and their weights; warns of weights that mislead, and of the latent whose
        deviations differ between halves of the draws."""
        x, weights = self.weighed(n, args, kwargs, keep=True)
        weights.warn(OF_TAILS, stacklevel=4)
        if (differs := uneven(x[:, : self.latent_dim], weights)) is not None:
            at, low, high = differs
            warnings.warn(
                f"{self.names[at]!r} has a deviation of {low:.3g} in one half of the draws and of "
                f"{high:.3g} in the other, unconstrained, expected about the same: a tail has few "
                "draws, and the deviation is likely too small; take more draws, or train longer",
                stacklevel=3,
            )
        return x, weights

    def moments(self, num_samples: int, /, *args: Any, **kwargs: Any) -> dict[str, Moments]:
        """Means and deviations of all latents by site, by weighted draws, with their errors.

        Args:
            num_samples: number of draws.
            args, kwargs: arguments of the program.

        Returns:
            The :class:`~pyro_mdm.automatic.moments.Moments` of each site, of its shape.

        Warns:
            UserWarning: weights that mislead, or a latent whose deviation differs between halves of
                the draws.
        """
        check_count("num_samples", num_samples, "the number of draws", least=4)
        x, weights = self._looked_at(num_samples, args, kwargs)
        values = self.by_site(x)
        return {name: Moments.from_weights(value, weights) for name, value in values.items()}

    @checked_arguments
    def quantiles(self, quantiles: Sequence[float], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Quantiles of each latent by site, (len(quantiles), *shape), of draws of the guide."""
        if not all(0 <= level <= 1 for level in quantiles):
            raise ValueError(f"quantiles are {list(quantiles)}, expected levels from 0 to 1")
        levels = torch.as_tensor(quantiles, dtype=self.loc.dtype)
        return {
            name: value.quantile(levels.to(value), 0)
            for name, value in self.sample_posterior(COMPARED, *args, **kwargs).items()
        }

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of each latent by site, of draws of the guide."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}
