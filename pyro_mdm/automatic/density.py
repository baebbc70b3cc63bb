"""The density of a Pyro program, of many values of its latents at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.enum import config_enumerate
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.runtime import _ENUM_ALLOCATOR
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to

__all__ = ["ProgramDensity", "is_enumerated", "run"]

PATHS = "_mdm_paths"
"""The plate of many values of the latents."""
LEFT = (
    "write it so that values may have dimensions at their left, e.g. w[..., 0] for w[0], and "
    ".to_event(1) for what is one draw"
)


def run(program: Callable[..., Any], *args: Any, **kwargs: Any) -> poutine.Trace:
    """What a program draws and observes in a run, of which nothing outside knows."""
    trace: poutine.Trace = poutine.block(poutine.trace(program).get_trace)(*args, **kwargs)
    return prune_subsample_sites(trace)


def is_enumerated(site: Any) -> bool:
    """Whether a site is discrete, and summed over."""
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and getattr(site["fn"], "has_enumerate_support", False)
    )


class ProgramDensity:
    """log p(x, data) of rows of unconstrained latents, with Jacobians, summed over discrete sites.

    Args:
        program: as it is, without values to start from.
        trace: of one run.
        unpack: latents' sites, and what packed values (…, dim) have for each, where … end with as
            many dimensions of size 1 as plates take.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        trace: poutine.Trace,
        unpack: Callable[[Tensor], Iterable[tuple[dict[str, Any], Tensor]]],
    ) -> None:
        self.program, self._unpack = program, unpack
        self._latents: list[Any] = [
            site for _, site in trace.iter_stochastic_nodes() if not is_enumerated(site)
        ]
        self._is_checked = False
        sites = _densities(trace)
        self._frames = {f.name: f for site in sites for f in site["cond_indep_stack"]}
        dims = [frame.dim for frame in self._frames.values() if frame.dim is not None]
        self._nesting = -min(dims, default=0)
        self._is_summed = any(map(is_enumerated, sites))

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """log p of x (n, dim), (n,) nats; NaN where a distribution is not defined."""
        with pyro.validation_enabled(False) if self._is_checked else nullcontext():
            return self._log_density(x, *args, **kwargs)

    def _log_density(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        n, dim = len(x), self._free_dim()
        values, terms = {}, []
        for site, own in self.unpacked(x, -dim - 1):
            transform = biject_to(site["fn"].support)
            values[site["name"]] = transform(own)
            log_det = transform.log_abs_det_jacobian(own, values[site["name"]])
            terms.append(log_det.reshape(n, -1).sum(1))
        program = poutine.condition(self.program, data=values)
        saved = dict(vars(_ENUM_ALLOCATOR))  # of an enumeration around this one
        try:
            if self._is_summed:
                program = poutine.enum(config_enumerate(program), dim - 1)
            with poutine.block(), pyro.plate(PATHS, n, dim=dim):
                trace = poutine.trace(program).get_trace(*args, **kwargs)
        finally:
            vars(_ENUM_ALLOCATOR).update(saved)
        trace.compute_log_prob()
        if self._is_summed:
            terms += _summed(trace, n, dim)
        else:
            terms += [_of_rows(site["log_prob"], n) for site in _densities(trace)]
        return torch.stack(terms).sum(0)

    def unpacked(
        self, x: Tensor, left: int | None = None
    ) -> Iterable[tuple[dict[str, Any], Tensor]]:
        """Sites, and what x (n, dim) has for each, with ``left`` dimensions between rows and
        events, None for as many as plates take."""
        left = self._nesting if left is None else left
        return self._unpack(x.reshape(len(x), *[1] * left, -1))

    def by_site(self, x: Tensor) -> dict[str, Tensor]:
        """Latents in their supports, by site, (n, *shape)."""
        return {
            site["name"]: biject_to(site["fn"].support)(own).reshape(len(x), *site["value"].shape)
            for site, own in self.unpacked(x)
        }

    def _free_dim(self) -> int:
        """A dimension left of the program's plates that no plate around has."""
        with poutine.block(), ExitStack() as plates:
            for k in range(self._nesting):
                plates.enter_context(pyro.plate(f"{PATHS}_{k}", 1, dim=-1 - k))
            plates.enter_context(own := pyro.plate(PATHS, 1))
            return own.dim or -1

    # -- checks ------------------------------------------------------------------------------------

    @torch.enable_grad()
    def check(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError unless the program has one density of each of two values (2, dim)."""
        self._check_latents(*args, **kwargs)
        x = x.detach().requires_grad_()
        try:
            together = self(x, *args, **kwargs)
            apart = torch.cat([self(row, *args, **kwargs) for row in x.split(1)])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                "the program does not run for 2 values of its latents at once "
                f"({str(error).partition(chr(10))[0]}); {LEFT}"
            ) from error
        again = self(x, *args, **kwargs)
        if not torch.allclose(together, again, rtol=1e-7, equal_nan=True):
            parts = [f.name for f in self._frames.values() if f.full_size not in (None, f.size)]
            more = f", with all rows of the plate {parts[0]!r}" if parts else ""
            raise ValueError(
                "the program's density of the same latents changes from run to run "
                f"({together[0]:.8g}, then {again[0]:.8g}), expected one; give the whole program, "
                f"in which no site that is drawn is hidden{more}"
            )
        if not torch.allclose(together, apart, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                f"the program's density of 2 values of its latents at once is {together.tolist()}, "
                f"expected that of each alone, {apart.tolist()}; {LEFT}"
            )
        if not bool(together.isfinite().any()):
            raise ValueError(
                f"the program's density is {together.tolist()} near its start, expected finite "
                "numbers; choose another init_loc_fn, or mend the program"
            )
        (slope,) = torch.autograd.grad(together[0], x)
        if bool(slope[1].nan_to_num().any()):
            raise ValueError(
                "the program's density of one value of its latents depends on another that is "
                f"given beside, expected not; {LEFT}"
            )
        self.check_slope(x, *args, **kwargs)
        self._is_checked = True

    def _check_latents(self, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError if a latent has no proper density, or not always the same support."""
        for site in self._latents:
            for frame in site["cond_indep_stack"]:
                if frame.full_size not in (None, frame.size):
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
            runs = [run(self.program, *args, **kwargs) for _ in range(2)]
        except NotImplementedError:  # a site cannot be drawn, such as an improper one
            return
        for site in self._latents:
            self._check_support([each.nodes[site["name"]] for each in runs])

    @staticmethod
    def _check_support(runs: list[Any]) -> None:
        to_support = [biject_to(site["fn"].support) for site in runs]
        middle = torch.full_like(to_support[0].inv(runs[0]["value"]), 0.3)
        low, high = (transform(middle) for transform in to_support)
        if not torch.allclose(low, high):
            raise ValueError(
                f"the support of {runs[0]['name']!r} changes with other latents, expected the "
                "same in each run; draw it from a fixed one and move it, e.g. b * a for a of "
                "Uniform(0, 1)"
            )

    @torch.enable_grad()
    def check_slope(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError, with the site, if the density's gradient is NaN where it is finite."""
        x = x.detach().requires_grad_()
        density = self(x, *args, **kwargs)
        (slope,) = torch.autograd.grad(density.sum(), x)
        for (site, own), (_, at) in zip(self.unpacked(slope), self.unpacked(x), strict=True):
            wrong = own.isnan().reshape(len(x), -1).any(1) & density.isfinite()
            if bool(wrong.any()):
                value = biject_to(site["fn"].support)(at)[wrong][0].detach().squeeze()
                raise ValueError(
                    f"the gradient of the program's density by {site['name']!r} is nan where its "
                    f"value is {value.tolist()}, expected a number; mend the program, e.g. by "
                    "torch.where inside of functions whose derivative is infinite, such as sqrt"
                )


def _densities(trace: poutine.Trace) -> list[Any]:
    """What a trace has drawn or observed."""
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _of_rows(term: Tensor, n: int) -> Tensor:
    """A site's term, whose first dimension is that of n rows or 1, summed over others."""
    return term.expand(n, *term.shape[1:]).reshape(n, -1).sum(1)


def _summed(trace: poutine.Trace, n: int, dim: int) -> list[Tensor]:
    """Terms (n,) of the log density of n rows, which are along dim, summed over discrete sites."""
    trace.pack_tensors()
    symbols = trace.plate_to_symbol
    own = symbols[PATHS]
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    alone, scales = [], []
    for site in _densities(trace):
        if site["log_prob"].shape[:dim].numel() == 1:
            alone.append(_of_rows(site["log_prob"].reshape(site["log_prob"].shape[dim:]), n))
            continue
        # a mask holds inside of the sum, a scale outside, as in TraceEnum_ELBO
        log_prob, mask = site["packed"]["unscaled_log_prob"], site["packed"]["mask"]
        plates = frozenset(symbols[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        kept = plates if n > 1 else plates - {own}  # packed tensors have no dimension of size 1
        masked = log_prob if is_enumerated(site) else packed.scale_and_mask(log_prob, mask=mask)
        factors.setdefault(kept, []).append(masked)
        scales.append(float(site["scale"]))
    if not factors:
        return alone
    if len(set(scales)) > 1:
        raise ValueError(
            f"discrete sites and what depends on them have scales from {min(scales)} to "
            f"{max(scales)}, expected one"
        )
    summed = set(trace.symbol_to_dim) - set(symbols.values())
    total: Tensor = contract_to_tensor(factors, summed, frozenset([own] if n > 1 else []))
    return [*alone, scales[0] * total.reshape(n)]
