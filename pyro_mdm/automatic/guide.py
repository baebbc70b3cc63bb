"""A diffusion as an automatic guide of a Pyro program."""

from __future__ import annotations

import functools
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_median
from pyro.infer.enum import config_enumerate
from pyro.ops.contract import contract_to_tensor
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from pyro_mdm.automatic.chain import Annealed, Chain, Ratio, Reversed
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.presets import VPSDE
from pyro_mdm.posteriors.guide import ImportanceWeights
from pyro_mdm.posteriors.tempering import GROUPS, temper
from pyro_mdm.support.checks import check_count, check_instance
from pyro_mdm.support.progress import Progress, progress_bar

__all__ = ["AutoMDM"]

STARTS = {"gaussian": Annealed, "particles": Reversed}
PATHS = "_mdm_paths"
"""The plate of many values of the latents."""
AT_A_TIME = 1_000
"""Paths that are drawn together."""
CLIP = 10.0
"""Of the norm of gradients."""
WORST = 50.0
"""Nats below the median beyond which a path's weight doesn't count in an update."""
COMPARED = 1_000
"""Paths by which the chain and its Gaussian are compared."""
STORED = (
    "of Pyro's parameter store, where another guide has left them; call pyro.clear_param_store() "
    "before a new guide, or once pyro.settings.set(module_local_params=True)"
)
OF_TAILS = (
    "train longer, with more steps, or with start='particles'; a program whose posterior has heavy "
    "tails, or none that is proper, has such weights always"
)
"""What to do about weights that mislead."""
OF_PRIOR = 200
"""Draws of the prior, by whose spread particles start."""


class _ChainLaw(TorchDistribution):
    """The law of the ends of paths. A draw's log density is the log ratio of its path's densities
    under guide and noising chain, of which no other value has one."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, chain: Chain, ratio_at: Callable[[int], Ratio], batch_shape: Sequence[int] = ()
    ) -> None:
        self.chain, self.ratio_at = chain, ratio_at
        self.drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(torch.Size(batch_shape), torch.Size([chain.dim]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _ChainLaw:
        return _ChainLaw(self.chain, self.ratio_at, batch_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.batch_shape])
        ratio = self.ratio_at(len(self.batch_shape))
        path = self.chain.paths(ratio, shape.numel())
        x = ratio.place(path.u).reshape(*shape, self.chain.dim)
        rest = -(path.u.square().sum(1) + self.chain.dim * math.log(2 * math.pi)) / 2
        volume = ratio.scale_tril.diagonal().log().sum()
        self.drawn = x, (path.cost + rest - volume).reshape(shape)
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        if self.drawn is None or self.drawn[0] is not value:
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

    whatever the parameters. Until it is trained it is the Gaussian. Latents are those of
    ``AutoContinuous``: continuous sites with any support, in any plates. Discrete sites that can be
    enumerated are summed over in the gradient; train with ``TraceEnum_ELBO`` then.

    Args:
        model: the program, conditioned on its data or observing them.
        diffusion: of any Q, D and K, with Σ_∞ whose entry of x is 1; None:
            :class:`~pyro_mdm.VPSDE`.
        steps: N, of the chain.
        start: "gaussian", for posteriors of one mode and any number of latents: the chain is
            annealed from the Gaussian of the highest bound, and learns to raise the bound. Or
            "particles", for posteriors of several modes and up to about twenty latents: particles
            are tempered to the posterior, and the chain is a denoiser of theirs.
        width: of the network's layers.
        init_loc_fn, init_scale: of the Gaussian, as of ``AutoMultivariateNormal``.

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
        super().__init__(model, init_loc_fn=init_loc_fn, init_scale=init_scale)
        self._diffusion = VPSDE() if diffusion is None else diffusion
        fix = "e.g. VPSDE() or CLD()"
        check_instance("diffusion", self._diffusion, LinearDiffusion, fix)
        check_count("steps", steps, "the number of steps of the chain")
        check_count("width", width, "of the layers of the network")
        if start not in STARTS:
            raise ValueError(f"start is {start!r}, expected one of {', '.join(map(repr, STARTS))}")
        self.start, self._steps, self._width = start, steps, width
        self._program = (model,)  # as it is, without values to start from; not a module of this one

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        stored = [n for n in pyro.get_param_store() if n.startswith(f"{self._pyro_name}.")]
        if stored and not pyro.settings.get("module_local_params"):
            warnings.warn(f"this guide shares {stored[0]!r} and others {STORED}", stacklevel=2)
        super()._setup_prototype(*args, **kwargs)
        sites = _densities(_run(self.model, *args, **kwargs))
        frames = [frame for site in sites for frame in site["cond_indep_stack"]]
        dims = [frame.dim for frame in frames if frame.dim is not None]
        self._nesting = -min(dims, default=0)
        self._enumerated = any(_is_enumerated(site) for site in sites)
        if self.loc.shape != (self.latent_dim,):
            raise ValueError(
                f"the program has {self.latent_dim} latents, expected {len(self.loc)} as {STORED}"
            )
        chain = STARTS[self.start](self.latent_dim, self._diffusion, self._steps, self._width)
        self.chain = chain.to(self.loc)
        self._check_program(*args, **kwargs)

    @torch.no_grad()
    def _check_program(self, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError unless the program has one density of each of many values."""
        x = self.loc + 0.1 * torch.randn(2, self.latent_dim).to(self.loc)
        fix = (
            "write it so that values may have dimensions at their left, e.g. w[..., 0] for w[0], "
            "and .to_event(1) for what is one draw"
        )
        try:
            together = self.log_density(x, *args, **kwargs)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                "the program does not run for 2 values of its latents at once "
                f"({str(error).partition(chr(10))[0]}); {fix}"
            ) from error
        apart = torch.cat([self.log_density(row, *args, **kwargs) for row in x.split(1)])
        again = self.log_density(x, *args, **kwargs)
        if not torch.allclose(together, again, equal_nan=True):
            raise ValueError(
                "the program's density of the same latents changes from run to run "
                f"({together[0]:.6g}, then {again[0]:.6g}), expected one; give the whole program, "
                "in which no site that is drawn is hidden"
            )
        if not torch.allclose(together, apart, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                f"the program's density of 2 values of its latents at once is {together.tolist()}, "
                f"expected that of each alone, {apart.tolist()}; {fix}"
            )
        if not bool(together.isfinite().any()):
            raise ValueError(
                f"the program's density is {together.tolist()} near its start, expected finite "
                "numbers; choose another init_loc_fn, or mend the program"
            )
        self._check_slope(x, *args, **kwargs)

    def _check_slope(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError, with the site, if the density's gradient is NaN where it is finite."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            density = self.log_density(x, *args, **kwargs)
            (slope,) = torch.autograd.grad(density.sum(), x)
        for (site, own), (_, at) in zip(self._unpacked(slope), self._unpacked(x), strict=True):
            wrong = own.isnan().reshape(len(x), -1).any(1) & density.isfinite()
            if bool(wrong.any()):
                value = biject_to(site["fn"].support)(at)[wrong][0].detach().squeeze()
                raise ValueError(
                    f"the gradient of the program's density by {site['name']!r} is nan where its "
                    f"value is {value.tolist()}, expected a number; mend the program, e.g. by "
                    "torch.where inside of functions whose derivative is infinite, such as sqrt"
                )

    @staticmethod
    def _prototype_hide_fn(site: dict[str, Any]) -> bool:
        hidden: bool = AutoMultivariateNormal._prototype_hide_fn(site)
        return hidden or _is_enumerated(site)

    def log_density(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """log p(x, data) of unconstrained latents (n, latent_dim), with Jacobians, (n,) nats."""
        return self._log_density(self._nesting, x, args=args, kwargs=kwargs)

    def _log_density(
        self, left: int, x: Tensor, *, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """The same, where plates take so many dimensions."""
        n = len(x)
        values, terms = {}, []
        for site, own in self._unpacked(x, left):
            transform = biject_to(site["fn"].support)
            values[site["name"]] = transform(own)
            log_det = transform.log_abs_det_jacobian(own, values[site["name"]])
            terms.append(log_det.reshape(n, -1).sum(1))
        program = poutine.condition(self._program[0], data=values)
        if self._enumerated:
            program = poutine.enum(config_enumerate(program), -left - 2)
        with poutine.block(), pyro.plate(PATHS, n, dim=-left - 1):
            trace = poutine.trace(program).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        if self._enumerated:
            terms.append(_summed(trace, n))
        else:
            every = (site["log_prob"] for site in _densities(trace))
            terms += [term.expand(n, *term.shape[1:]).reshape(n, -1).sum(1) for term in every]
        return torch.stack(terms).sum(0)

    def _ratio(self, left: int, *args: Any, **kwargs: Any) -> Ratio:
        scale_tril = self.scale[..., None] * self.scale_tril
        density = functools.partial(self._log_density, left, args=args, kwargs=kwargs)
        return Ratio(density, self.loc, scale_tril)

    def get_posterior(self, *args: Any, **kwargs: Any) -> _ChainLaw:
        """The law of all latents, unconstrained, whose draws have densities along their paths."""

        def ratio_at(outside: int) -> Ratio:
            return self._ratio(max(outside, self._nesting), *args, **kwargs)

        return _ChainLaw(self.chain, ratio_at)

    def fit(
        self,
        *args: Any,
        updates: int = 1_000,
        start_updates: int = 1_000,
        paths: int = 128,
        particles: int = 2_048,
        learning_rate: float = 5e-3,
        progress: bool = True,
        **kwargs: Any,
    ) -> AutoMDM:
        """Fit the Gaussian, or temper particles, and then train the chain from there.

        Learning rates fall to 0 by a cosine. Where an annealed chain ends with a lower bound than
        its Gaussian alone, it is that Gaussian. ``SVI`` with ``Trace_ELBO`` trains the Gaussian and
        the chain at once, from where they are.

        Args:
            args, kwargs: of the program.
            updates: of the chain.
            start_updates: of the Gaussian before.
            paths: drawn for an update.
            particles: that are tempered.
            learning_rate: of the chain; that of the Gaussian is four times as high.
            progress: whether a progress bar is shown.
        """
        self._set_up(*args, **kwargs)
        ratio = functools.partial(self._ratio, self._nesting, *args, **kwargs)
        chain, dim = self.chain, self.latent_dim

        def train(parameters: Iterable[Tensor], bound: Callable[[], Tensor], what: str) -> None:
            own = start_updates if what == "Gaussian" else updates
            rate = 4 * learning_rate if what == "Gaussian" else learning_rate
            bar = progress_bar(own, what, "updates", shown=progress)
            made = _ascend(parameters, bound, rate, own, bar)
            if made < own / 2:
                self._check_slope(self._log_weights(100, *args, **kwargs)[0], *args, **kwargs)
                raise ValueError(
                    f"gradients were finite in {made} of {own} updates of the {what}, expected "
                    "most; mend the program's derivatives, or choose another init_loc_fn"
                )

        if isinstance(chain, Reversed):
            with torch.no_grad():
                x = self._tempered(particles, *args, **kwargs)
                self._become_gaussian_of(x)
                data = ratio().inverse(x)

            def forward_bound() -> Tensor:
                return chain.log_ratio(ratio(), data[torch.randint(len(data), (paths,))])

            train(chain.parameters(), forward_bound, "chain")
            return self

        def bound_of_gaussian(n: int = paths) -> Tensor:
            u = torch.randn(n, dim).to(self.loc)
            return ratio()(u) + self._volume() + dim * math.log(2 * math.pi) / 2

        def bound_of_chain(n: int = paths) -> Tensor:
            return self._log_weights(n, *args, **kwargs)[1]

        gaussian = [p for name, p in self.named_parameters() if not name.startswith("chain.")]
        train(gaussian, bound_of_gaussian, "Gaussian")
        train(chain.parameters(), bound_of_chain, "chain")
        with torch.no_grad():
            gain = bound_of_chain(COMPARED).mean() - bound_of_gaussian(COMPARED).mean()
        if isinstance(chain, Annealed) and not bool(gain >= 0):
            chain.rest()
        return self

    def _tempered(self, n: int, *args: Any, **kwargs: Any) -> Tensor:
        """Particles of the posterior (n, latent_dim), from a Gaussian like the prior."""
        rows = []
        for _ in range(OF_PRIOR):
            trace = _run(self._program[0], *args, **kwargs)
            each = [(trace.nodes[name], site) for name, site in self._latents()]
            own = [biject_to(site["fn"].support).inv(drawn["value"]) for drawn, site in each]
            rows.append(torch.cat([value.flatten() for value in own]))
        low, middle, high = torch.stack(rows).quantile(
            torch.tensor([0.05, 0.5, 0.95]).to(rows[0]), 0
        )
        prior = torch.distributions.Normal(middle, ((high - low) / 3.29).clamp_min(1e-3))

        def start(x: Tensor) -> Tensor:
            return prior.log_prob(x).sum(1)

        def gain(x: Tensor) -> Tensor:
            return self.log_density(x, *args, **kwargs) - start(x)

        first = prior.sample((GROUPS, n // GROUPS))
        return temper(first, start, [gain]).draws(n)

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

    def _volume(self) -> Tensor:
        return (self.scale.log() + self.scale_tril.diagonal(dim1=-2, dim2=-1).log()).sum()

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
        parts = [self._log_weights(size, *args, **kwargs) for size in sizes]
        x, log_weights = (torch.cat(of) for of in zip(*parts, strict=True))
        return x, log_weights.double().nan_to_num(nan=-math.inf, posinf=-math.inf)

    def importance(self, num_samples: int, *args: Any, **kwargs: Any) -> ImportanceWeights:
        """Importance weights of draws, with how many count, k̂ and log p(data).

        Args:
            num_samples: the number of draws.
            args, kwargs: of the program.
        """
        check_count("num_samples", num_samples, "the number of draws")
        weights = ImportanceWeights(self._weighted(num_samples, *args, **kwargs)[1])
        weights.warn(OF_TAILS, stacklevel=3)
        return weights

    def sample_posterior(
        self, num_samples: int, *args: Any, resample: bool = False, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Draws of all latents by site, (num_samples, *shape).

        Args:
            num_samples: how many.
            args, kwargs: of the program.
            resample: whether they are resampled by their weights, of ten times as many.
        """
        check_count("num_samples", num_samples, "the number of draws")
        x, log_weights = self._weighted(num_samples * (10 if resample else 1), *args, **kwargs)
        if resample:
            weights = ImportanceWeights(log_weights)
            weights.warn(OF_TAILS, stacklevel=3)
            x = x[torch.multinomial(weights.normalized, num_samples, replacement=True)]
        return self._by_site(x)

    def _by_site(self, x: Tensor) -> dict[str, Tensor]:
        return {
            site["name"]: biject_to(site["fn"].support)(own).reshape(len(x), *site["value"].shape)
            for site, own in self._unpacked(x)
        }

    def _unpacked(
        self, x: Tensor, left: int | None = None
    ) -> Iterable[tuple[dict[str, Any], Tensor]]:
        """Sites, and what rows of x (n, latent_dim) have for each, with dimensions for plates."""
        left = self._nesting if left is None else left
        return self._unpack_latent(x.reshape(len(x), *[1] * left, -1))

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


def _run(program: Callable[..., Any], *args: Any, **kwargs: Any) -> poutine.Trace:
    trace: poutine.Trace = poutine.block(poutine.trace(program).get_trace)(*args, **kwargs)
    return trace


def _is_enumerated(site: Any) -> bool:
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and getattr(site["fn"], "has_enumerate_support", False)
    )


def _densities(trace: poutine.Trace) -> list[Any]:
    """What a trace has drawn or observed."""
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _summed(trace: poutine.Trace, n: int) -> Tensor:
    """The log density of each of many values, summed over enumerated sites, (n,)."""
    trace.pack_tensors()
    symbols = trace.plate_to_symbol
    own = symbols[PATHS]
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for site in _densities(trace):
        plates = frozenset(symbols[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        kept = plates if n > 1 else plates - {own}  # packed tensors have no dimension of size 1
        factors.setdefault(kept, []).append(site["packed"]["log_prob"])
    dims = set(trace.symbol_to_dim) - set(symbols.values())
    total: Tensor = contract_to_tensor(factors, dims, frozenset([own] if n > 1 else []))
    return total.reshape(n)


def _ascend(
    parameters: Iterable[Tensor],
    bound: Callable[[], Tensor],
    learning_rate: float,
    updates: int,
    bar: Progress,
) -> int:
    """Steps of Adam on the mean of a bound (n,), of which the worst parts don't count.

    Returns:
        How many gradients were finite; others are left out.
    """
    made = 0
    own = list(parameters)
    optimizer = torch.optim.Adam(own, learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    with bar:
        for _ in range(updates):
            optimizer.zero_grad()
            value = bound()
            (-value.clamp_min(value.detach().nanmedian() - WORST).mean()).backward()
            if nn.utils.clip_grad_norm_(own, CLIP).isfinite():
                made += 1
            else:
                optimizer.zero_grad()
            optimizer.step()
            schedule.step()
            bar.update()
    return made
