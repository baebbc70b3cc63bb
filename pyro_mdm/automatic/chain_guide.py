"""A guide whose latents are the end of a chain: its density, its weights and its draws."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, NoReturn, TypeVar

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
from pyro_mdm.automatic.draws import unconstrained
from pyro_mdm.automatic.mixture import MOST, Mixture
from pyro_mdm.automatic.moments import Moments
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.automatic.shape import Shape
from pyro_mdm.automatic.weighing import OF_TAILS, Weighing
from pyro_mdm.budgets import Outcome
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.presets import VPSDE
from pyro_mdm.evaluation.weights import ImportanceWeights
from pyro_mdm.support.checks import check_count, check_instance, checked_arguments
from pyro_mdm.support.traces import Site

__all__ = ["COMPARED", "ChainGuide", "name_of_start", "parameters"]

G = TypeVar("G", bound="ChainGuide")

StartMap = Transform | Mixture | Callable[[], Transform]
STARTS: dict[str, Callable[[int], StartMap] | None] = {
    "gaussian": None,
    "shaped": Shape,
    "particles": Mixture,
}
Start = str | Callable[[int], StartMap]
"""A name of a start, or a function of the number of latents that makes an invertible map."""
COMPARED = 1_000
"""The number of paths by which a chain is judged."""
STORED = (
    "of Pyro's parameter store, where another guide has left them; call pyro.clear_param_store() "
    "before a new guide"
)


def parameters(kept: Callable[[str], bool]) -> AbstractContextManager[object]:
    """A context in which Pyro's parameter store has copies of some of its parameters, by name."""
    store = pyro.get_param_store()
    state = store.get_state()
    params = {  # an optimizer writes to them in place
        name: value.detach().clone().requires_grad_(value.requires_grad)
        for name, value in state["params"].items()
        if kept(name)
    }
    constraints_of = {name: law for name, law in state["constraints"].items() if kept(name)}
    return store.scope({"params": params, "constraints": constraints_of})


def name_of_start(start: Start) -> str:
    """A start in words: its name, or that of the function that makes it."""
    return start if isinstance(start, str) else getattr(start, "__name__", type(start).__name__)


class _ChainLaw(TorchDistribution):
    """The distribution of the ends of paths.

    A draw's log density is the log ratio of its path's densities under guide and noising chain; no
    other value has one.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
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

    loc: Tensor
    latent_dim: int
    chain: Chain
    program_density: ProgramDensity
    learned_from: Tensor | None = None
    """The first unconstrained latents of the draws that the guide learned from, (n,)."""

    def __init__(
        self,
        model: Callable[..., object],
        diffusion: LinearDiffusion | None = None,
        *,
        steps: int = 16,
        start: Start = "gaussian",
        width: int = 64,
        row_steps: int = 4,
        row_paths: int = 1,
        init_loc_fn: Callable[..., Tensor] = init_to_median,
        init_scale: float = 0.1,
    ) -> None:

        def start_of(site: Site) -> Tensor:
            return site["fn"].sample() if is_enumerated(site) else init_loc_fn(site)

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
        self._given = model, copy.deepcopy(self._diffusion), init_loc_fn, init_scale
        self.losses = torch.zeros(0)  # of the last fit
        self.outcomes: dict[str, Outcome] = {}  # of its trainings

    @property
    def program(self) -> Callable[..., object]:
        """The program as it was given."""
        return self._given[0]

    def like_this(self: G, program: Callable[..., object], *, start: Start | None = None) -> G:
        """A guide of a program with the settings of this one, before any fit.

        Args:
            program: the program.
            start: another start than that of this guide.
        """
        _, diffusion, init_loc_fn, init_scale = self._given
        return type(self)(
            program,
            copy.deepcopy(diffusion),
            steps=self._steps,
            start=start or self.start,
            width=self._width,
            row_steps=self.row_steps,
            row_paths=self.row_paths,
            init_loc_fn=init_loc_fn,
            init_scale=init_scale,
        )

    def _setup_prototype(self, *args: object, **kwargs: object) -> None:
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
            make = STARTS[self.start] if isinstance(self.start, str) else self.start
            self.shape = None if make is None else make(self.latent_dim)
            if isinstance(self.shape, torch.nn.Module):
                self.shape.to(self.loc)
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

    def _made_density(self, trace: Trace) -> ProgramDensity:
        """The density of the program, of which a trace is given; the chain is there."""
        return ProgramDensity(self.program, trace, self._unpack_latent)

    def _prototype_hide_fn(self, site: Site) -> bool:
        hidden: bool = AutoMultivariateNormal._prototype_hide_fn(site)
        return hidden or is_enumerated(site)

    def log_density(self, x: Tensor, /, *args: object, **kwargs: object) -> Tensor:
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

    def ratio(self, *args: object, **kwargs: object) -> Ratio:
        def density(x: Tensor) -> Tensor:
            return self.log_density(x, *args, **kwargs)

        self.set_up(*args, **kwargs)
        shape = self.shape
        if not (shape is None or isinstance(shape, Transform | Mixture)):
            shape = shape()  # zuko's flows make their transform from a context, here none
        return self.kind_of_ratio(density, self.loc, self.root, shape)

    def get_posterior(self, *args: object, **kwargs: object) -> _ChainLaw:
        """The distribution of all latents, unconstrained, with densities along paths of draws."""
        ratio = self.ratio(*args, **kwargs)  # sets the chain up, where this is the first call
        return _ChainLaw(self.chain, ratio)

    def get_base_dist(self) -> NoReturn:
        """Raises NotImplementedError: the guide is no transform of its Gaussian."""
        raise NotImplementedError(
            "AutoMDM is no transform of a simple distribution, as NeuTraReparam and others need; "
            "start NUTS from draws of it instead"
        )

    def get_transform(self, *args: object, **kwargs: object) -> NoReturn:
        """Raises NotImplementedError: the guide is no transform of its Gaussian."""
        self.get_base_dist()

    def rows(self, draws: object, /, *args: object, **kwargs: object) -> Tensor:
        """Unconstrained latents (n, latent_dim) of draws by site.

        The draws are as in ``AutoMDM.fit``."""
        self.set_up(*args, **kwargs)
        return unconstrained(draws, self.latents())

    def set_up(self, *args: object, **kwargs: object) -> None:
        if self.prototype_trace is None:
            with pyro.poutine.block():
                self._setup_prototype(*args, **kwargs)

    def latents(self) -> Iterable[tuple[str, Site]]:
        return self.prototype_trace.iter_stochastic_nodes()

    @property
    def names(self) -> list[str]:
        """The name of the site of each unconstrained latent."""
        shapes = self._unconstrained_shapes.items()
        return [name for name, shape in shapes for _ in range(shape.numel())]

    def log_weights(self, n: int, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """n draws (n, latent_dim), unconstrained, and their log weights (n,)."""
        law = self.get_posterior(*args, **kwargs).expand((n,))
        x = law.rsample()
        return x, self.log_density(x, *args, **kwargs) - law.log_prob(x)

    def of_all_rows(
        self,
        x: Tensor,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        *,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """log p(x, data) of draws x (n, latent_dim) by all rows of the program's plates, (n,), and
        the draws as :meth:`by_site` takes them: with the latents of all rows, where kept."""
        return self.log_density(x, *args, **kwargs), x

    def by_site(self, x: Tensor) -> dict[str, Tensor]:
        """All latents in their supports by site, (n, *shape), of draws x (n, …)."""
        return self.program_density.by_site(x)

    def importance(self, num_samples: int, /, *args: object, **kwargs: object) -> ImportanceWeights:
        """Importance weights of draws, with how many count and log p(data).

        A quarter of the draws are not the guide's, but have heavy tails, so that the evidence is
        right where the guide's tails are lighter than the posterior's
        (:mod:`pyro_mdm.automatic.defensive`).

        Args:
            num_samples: number of draws.
            args, kwargs: arguments of the program.
        """
        check_count("num_samples", num_samples, "the number of draws")
        _, weights = Weighing(self, args, kwargs).weighed(num_samples)
        weights.warn(OF_TAILS, stacklevel=3)
        return weights

    def sample_posterior(
        self, num_samples: int, /, *args: object, resample: bool = False, **kwargs: object
    ) -> dict[str, Tensor]:
        """Draws of all latents by site, (num_samples, *shape).

        Where a plate draws a subsample, they have the latents of all its rows.

        Args:
            num_samples: number of draws.
            args, kwargs: arguments of the program.
            resample: whether draws are resampled by their weights, from ten times as many.
        """
        check_count("num_samples", num_samples, "the number of draws")
        weighing = Weighing(self, args, kwargs)
        if resample:
            x, weights = weighing.looked_at(10 * num_samples)
            x = x[torch.multinomial(weights.normalized, num_samples, replacement=True)]
        else:
            x = weighing.drawn(num_samples, keep=True).kept
        return self.by_site(x)

    def moments(self, num_samples: int, /, *args: object, **kwargs: object) -> dict[str, Moments]:
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
        x, weights = Weighing(self, args, kwargs).looked_at(num_samples)
        values = self.by_site(x)
        return {name: Moments.from_weights(value, weights) for name, value in values.items()}

    @checked_arguments
    def quantiles(
        self, quantiles: Sequence[float], *args: object, **kwargs: object
    ) -> dict[str, Tensor]:
        """Quantiles of each latent by site, (len(quantiles), *shape), of draws of the guide."""
        if not all(0 <= level <= 1 for level in quantiles):
            raise ValueError(f"quantiles are {list(quantiles)}, expected levels from 0 to 1")
        x = Weighing(self, args, kwargs).drawn(COMPARED, keep=True).kept
        levels = torch.as_tensor(quantiles, dtype=self.loc.dtype)
        values = self.by_site(x).items()
        return {name: value.quantile(levels.to(value), 0) for name, value in values}

    def median(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """The median of each latent by site, of draws of the guide."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}
