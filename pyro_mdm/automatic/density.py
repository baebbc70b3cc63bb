"""The density of a Pyro program, of many values of its latents at once.

A program is run once for all rows, under :func:`torch.func.vmap`, so that it is written for one
value of each latent, as for NUTS.
"""

from __future__ import annotations

import string
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.infer.enum import config_enumerate
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR, Message
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pyro_mdm.paths.base import PathLaw
from pyro_mdm.support.inference import Inference
from pyro_mdm.support.traces import Site, sample_sites

__all__ = [
    "ProgramDensity",
    "alike",
    "is_enumerated",
    "layers",
    "placed",
    "run",
]

UNBATCHED = (
    "boolean mask",
    "inplace",
    "`data`",
    "setup_context",
    "Batching rule",
    "broadcast shape",
)
"""Phrases of errors of operations that vmap refuses and that are right for a single row."""


def run(program: Callable[..., object], *args: object, **kwargs: object) -> poutine.Trace:
    """The trace of a run of a program, without effect outside."""
    trace: poutine.Trace = poutine.block(poutine.trace(program).get_trace)(*args, **kwargs)
    return prune_subsample_sites(trace)


def is_enumerated(site: Site) -> bool:
    """Whether a site is discrete, and summed over."""
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and getattr(site["fn"], "has_enumerate_support", False)
    )


class ProgramDensity:
    """log p(x, data) of rows of unconstrained latents, with Jacobians, summed over discrete sites.

    Args:
        program: the program.
        trace: trace of one run of the program.
        unpack: function from packed latents, (dim,), to the sites with their values.
    """

    plate: str | None = None
    """The plate that draws a subsample, where there is one."""

    def __init__(
        self,
        program: Callable[..., object],
        trace: poutine.Trace,
        unpack: Callable[[Tensor], Iterable[tuple[Site, Tensor]]],
    ) -> None:
        self.program, self._unpack = program, unpack
        sites = sample_sites(trace).values()
        names = [name for name, _ in trace.iter_stochastic_nodes()]
        latents = [site for site in sites if site["name"] in names]
        self._latents = [site for site in latents if not is_enumerated(site)]
        self._laws = {site["name"]: site["fn"] for site in sites}
        self._frames = {f.name: f for site in sites for f in site["cond_indep_stack"]}
        dims = [frame.dim for frame in self._frames.values() if frame.dim is not None]
        self._first_free_dim = min(dims, default=0) - 1
        self._is_summed = any(map(is_enumerated, sites))
        self._is_batched = True
        self.bytes_of_row = 0
        """The bytes that a row's gradient keeps for its own gradient, after a check."""

    def __call__(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """log p of x (n, dim), (n,) nats; NaN where a distribution is not defined."""
        factors: list[_Factor] = []

        def of_one(row: Tensor) -> tuple[Tensor, list[Tensor]]:
            trace, terms = self._run_at(row, *args, **kwargs)
            sites = sample_sites(trace).values()
            alone = [site for site in sites if not self._is_factor(site)]
            terms += [site["log_prob"].sum() for site in alone]
            trace.symbolize_dims()
            factor_sites = [site for site in sites if self._is_factor(site)]
            factors[:] = [_Factor.of_site(site, trace.plate_to_symbol) for site in factor_sites]
            return torch.stack(terms).sum(), [_masked(site) for site in factor_sites]

        saved = dict(vars(_ENUM_ALLOCATOR))  # of an enumeration around this one
        try:
            with pyro.validation_enabled(False), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")
                alone, log_factors = self._of_rows(of_one, x)
        except torch.linalg.LinAlgError:  # of some rows: these have no density
            if len(x) == 1:
                return torch.nan * x.sum(1)
            return torch.cat([self(half, *args, **kwargs) for half in x.chunk(2)])
        finally:
            vars(_ENUM_ALLOCATOR).update(saved)
        return alone + _summed(log_factors, factors) if log_factors else alone

    def in_float64(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """log p of x (n, dim), (n,) nats, by a run in float64."""
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with _Double():
                return self(x.double(), *args, **kwargs)
        finally:
            torch.set_default_dtype(usual)

    def drawn(self, *args: object, **kwargs: object) -> poutine.Trace:
        """A run with latents of its own, whose density may be NaN."""
        with pyro.validation_enabled(False):
            return run(self.program, *args, **kwargs)

    def _of_rows(
        self, of_one: Callable[[Tensor], tuple[Tensor, list[Tensor]]], x: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The results of a function for each row."""
        if self._is_batched:
            return torch.func.vmap(of_one)(x)
        alone, by_row = zip(*map(of_one, x), strict=True)
        return torch.stack(alone), [
            torch.stack(log_factors) for log_factors in zip(*by_row, strict=True)
        ]

    def by_site(self, x: Tensor) -> dict[str, Tensor]:
        """Latents in their supports, by site, (n, *shape)."""

        def of_one(row: Tensor) -> dict[str, Tensor]:
            return {site["name"]: placed(site, u)[0] for site, u in self._unpack(row)}

        return dict(torch.func.vmap(of_one)(x))

    def log_jacobian(self, x: Tensor) -> Tensor:
        """log |d value / d x| of rows of unconstrained latents x (n, dim), (n,)."""

        def of_one(row: Tensor) -> Tensor:
            return torch.stack([placed(*pair)[1].sum() for pair in self._unpack(row)]).sum()

        return torch.func.vmap(of_one)(x)

    def _run_at(
        self, row: Tensor, *args: object, **kwargs: object
    ) -> tuple[poutine.Trace, list[Tensor]]:
        """A run with these latents, and the logarithms of Jacobians."""
        values, log_dets = {}, []
        for site, u in self._unpack(row):
            values[site["name"]], log_det = placed(site, u)
            log_dets.append(log_det.sum())
        program = poutine.condition(self.program, data=values)
        if self._is_summed:
            program = _Enumeration(self._first_free_dim)(config_enumerate(program))
        trace = run(program, *args, **kwargs)
        trace.compute_log_prob()
        return trace, log_dets

    def _sites(self, packed: Tensor) -> Iterable[tuple[Site, Tensor]]:
        """The sites, and the unconstrained latents, of what a call takes for one row."""
        return self._unpack(packed)

    def _is_factor(self, site: Site) -> bool:
        """Whether a site's density depends on discrete sites that are summed over."""
        shape = site["log_prob"].shape
        of_plates = -self._first_free_dim - 1
        return self._is_summed and shape[: max(0, len(shape) - of_plates)].numel() > 1

    # -- checks ------------------------------------------------------------------------------------

    def check(self, x: Tensor, *args: object, **kwargs: object) -> None:
        """Raise ValueError unless the program has one density of each of two values (2, dim)."""
        self._check_laws()
        self._check_latents(*args, **kwargs)
        for row in x:  # by Pyro's own checks
            self._run_at(row, *args, **kwargs)
        subsampled = [f.name for f in self._frames.values() if f.full_size not in (None, f.size)]
        more = f", with all rows of the plate {subsampled[0]!r}" if subsampled else ""
        fix = f"give the whole program, in which no site that is drawn is hidden{more}"
        self._check_density(fix, x, *args, **kwargs)

    def _check_density(self, fix: str, x: Tensor, *args: object, **kwargs: object) -> None:
        """Raise ValueError unless there is one density of rows x (n, dim), with its gradient."""
        try:
            first, again = self._twice(x, *args, **kwargs)
            ProgramDensity.check_slope(self, x, *args, **kwargs)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            if "randomness" in reason:
                raise ValueError(
                    "the program draws anew in each run what is none of its latents, expected one "
                    f"density; {fix}, and networks in eval()"
                ) from error
            raise ValueError(
                f"the program does not run for many values of its latents at once ({reason}); "
                "write it for torch.func.vmap, with torch.where for if, and torch.stack for "
                "torch.tensor of latents or values set in place"
            ) from error
        self.bytes_of_row = self._bytes_of(x, *args, **kwargs) // len(x)
        if not alike(first, again):
            one, other = (float(density.flatten()[0]) for density in (first, again))
            raise ValueError(
                "the program's density of the same latents changes from run to run "
                f"({one:.8g}, then {other:.8g}), expected one; {fix}"
            )
        if not bool(first.isfinite().any()):
            raise ValueError(
                f"the program's density is {first.tolist()} near its start, expected finite "
                "numbers; choose another init_loc_fn, or mend the program"
            )

    def _twice(self, x: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """The density, two times; of a program that cannot be batched, row by row from now on."""
        try:
            first = self(x, *args, **kwargs)
        except RuntimeError as error:
            of_path = any(isinstance(law, PathLaw) for law in self._laws.values())
            unbatched = (*UNBATCHED, "data-dependent") if of_path else UNBATCHED
            if not any(words in str(error) for words in unbatched):
                raise
            self._is_batched = False
            warnings.warn(
                "the program cannot be run for many values at once "
                f"({str(error).partition(chr(10))[0]}), and is run for one after another, which "
                "may take a hundred times as long",
                stacklevel=2,
            )
            first = self(x, *args, **kwargs)
        return first, self(x, *args, **kwargs)

    @torch.enable_grad()
    def _bytes_of(self, x: Tensor, *args: object, **kwargs: object) -> int:
        """The bytes that the graph of the gradient at rows x (n, dim) keeps; 0 where unknown."""
        kept = dict[int, int]()

        def seen(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        x = x.detach().requires_grad_()
        try:
            with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
                density = self(x, *args, **kwargs).sum()
                torch.autograd.grad(density, x, create_graph=True)
        except RuntimeError:  # torch.func's derivatives inside of a program have no hooks
            return 0
        return sum(kept.values())

    def _check_laws(self) -> None:
        """Raise ValueError if a site's ``log_prob`` is no density, such as a bound on one."""
        for name, law in self._laws.items():
            if (check := getattr(layers(law)[-1], "check_density", None)) is not None:
                try:
                    check(Inference("AutoMDM", walks=True))
                except ValueError as error:
                    raise ValueError(f"site {name!r}: {error}") from error

    def _check_latents(self, *args: object, **kwargs: object) -> None:
        """Raise ValueError if a latent has no proper density, or not always the same support."""
        for site in self._latents:
            for frame in site["cond_indep_stack"]:
                if frame.name != self.plate and frame.full_size not in (None, frame.size):
                    raise ValueError(
                        f"{site['name']!r} is in the plate {frame.name!r} with {frame.size} of "
                        f"{frame.full_size} rows, expected all; a latent has no density for rows "
                        "that are left out"
                    )
            if isinstance(site["mask"], Tensor) and not bool(site["mask"].all()):
                raise ValueError(
                    f"{site['name']!r} is masked, so that its density is flat in part, expected a "
                    "proper one; observe what is known as a site of its own, without obs_mask"
                )
        try:
            runs = [sample_sites(self.drawn(*args, **kwargs)) for _ in range(2)]
        except NotImplementedError:  # a site cannot be drawn, such as an improper one
            return
        for name in (site["name"] for site in self._latents):
            to_support = [biject_to(trace[name]["fn"].support) for trace in runs]
            middle = torch.full_like(to_support[0].inv(runs[0][name]["value"]), 0.3)
            low, high = (transform(middle) for transform in to_support)
            if not torch.allclose(low, high):
                raise ValueError(
                    f"the support of {name!r} changes with other latents, expected the same in "
                    "each run; draw it from a fixed one and move it, e.g. b * a for a of "
                    "Uniform(0, 1)"
                )

    @torch.enable_grad()
    def check_slope(self, x: Tensor, *args: object, **kwargs: object) -> None:
        """Raise ValueError, with the site, if the density's gradient is NaN where it is finite."""
        x = x.detach().requires_grad_()
        density = self(x, *args, **kwargs).view(len(x), -1).sum(1)
        (slope,) = torch.autograd.grad(density.sum(), x)
        wrong = slope.isnan().any(1) & density.isfinite()
        for row, its_slope in zip(x[wrong].detach(), slope[wrong], strict=True):
            pairs = zip(self._sites(row), self._sites(its_slope), strict=True)
            site, at = next((site, at) for (site, at), (_, g) in pairs if g.isnan().any())
            raise ValueError(
                f"the gradient of the program's density by {site['name']!r} is nan where its value "
                f"is {biject_to(site['fn'].support)(at).tolist()}, expected a number; mend the "
                "program, e.g. by torch.where inside of functions whose derivative is infinite, "
                "such as sqrt"
            )


def placed(site: Site, u: Tensor) -> tuple[Tensor, Tensor]:
    """The value of a site in its support, and log|det| by its batch."""
    transform = biject_to(site["fn"].support)
    value = transform(u)
    log_det = transform.log_abs_det_jacobian(u, value)
    inner = log_det.dim() - value.dim() + site["fn"].event_dim
    return value, log_det.flatten(-inner).sum(-1) if inner else log_det


def layers(law: TorchDistribution) -> list[TorchDistribution]:
    """A distribution, and those inside of events, expansions and transforms."""
    inner = getattr(law, "base_dist", None)
    return [law] if inner is None else [law, *layers(inner)]


def alike(first: Tensor, again: Tensor) -> bool:
    """Whether densities differ by less than a thousand roundings: threads and GPUs may sum in
    another order in each run, and a hidden draw changes far more."""
    rounding = 1e3 * torch.finfo(first.dtype).eps
    return torch.allclose(first, again, rtol=rounding, atol=rounding, equal_nan=True)


class _Double(TorchFunctionMode):
    """Functions of float32 are those of float64, whose arguments are the same numbers. What is
    written in place stays the tensor that it is."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        def doubled(value: object) -> object:
            if isinstance(value, Tensor) and value.dtype == torch.float32:
                return value.double()
            return value

        name = str(getattr(func, "__name__", ""))
        kept = int(name == "__setitem__" or (name.endswith("_") and not name.endswith("__")))
        later, named = tree_map(doubled, (args[kept:], kwargs or {}))
        return func(*args[:kept], *later, **named)


class _Enumeration(EnumMessenger):
    """Enumeration under vmap, which refuses a value's ``data``, whose shape alone is asked for."""

    def _pyro_post_sample(self, msg: Message) -> None:
        value = msg["value"]
        assert value is not None
        super()._pyro_post_sample({**msg, "value": torch.zeros(()).expand(value.shape)})


class _Factor(NamedTuple):
    """The density of a site, with the discrete sites on which it depends."""

    symbols: dict[int, str]  # of its dimensions
    plates: frozenset[str]
    scale: float

    @classmethod
    def of_site(cls, site: Site, symbols: dict[str, str]) -> _Factor:
        plates = frozenset(symbols[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        return cls(site["infer"]["_dim_to_symbol"], plates, float(site["scale"]))


def _masked(site: Site) -> Tensor:
    """A factor: masks hold inside of the sum, scales outside, as in ``TraceEnum_ELBO``."""
    log_p: Tensor = site["unscaled_log_prob"]
    return log_p if is_enumerated(site) else scale_and_mask(log_p, mask=site["mask"])


def _summed(log_factors: Sequence[Tensor], factors: Sequence[_Factor]) -> Tensor:
    """The log density (n,) of factors (n, …), summed over discrete sites."""
    scales = {factor.scale for factor in factors}
    if len(scales) > 1:
        raise ValueError(
            f"discrete sites and what depends on them have scales from {min(scales)} to "
            f"{max(scales)}, expected one"
        )
    n = len(log_factors[0])
    plates = frozenset().union(*(factor.plates for factor in factors))
    every = {symbol for factor in factors for symbol in factor.symbols.values()}
    rows = next(letter for letter in string.ascii_letters if letter not in every | plates)
    kept = frozenset([rows] if n > 1 else [])  # a dimension of size 1 is packed away
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for log_factor, factor in zip(log_factors, factors, strict=True):
        whole = packed.pack(log_factor, {**factor.symbols, -log_factor.dim(): rows})
        tree.setdefault(factor.plates | kept, []).append(whole)
    total: Tensor = contract_to_tensor(tree, every - plates, kept)
    return scales.pop() * total.reshape(n)
