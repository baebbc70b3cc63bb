"""The unconstrained vector of all parameters of a program, and their values by site."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pyro_mdm.posteriors.reading import Draws, ParameterSite, is_interior, number_of, rows_of

__all__ = ["Parameters", "lead_of", "spread_of"]


class Parameters:
    """The sites of a program's parameters, side by side in a vector u of unconstrained numbers."""

    def __init__(self, sites: Sequence[ParameterSite]) -> None:
        self.sites = tuple(sites)

    def __iter__(self) -> Iterator[ParameterSite]:
        return iter(self.sites)

    def values(self, draws: Mapping[str, Tensor]) -> Draws:
        """The checked values by site, (n, *shape), of such values or of one, (*shape)."""
        values = {site.name: rows_of(draws, site.name, site.shape) for site in self}
        number_of(values, "parameters", "give each site (n, *shape) values")
        for name, value in values.items():
            if bool(value.isnan().any()):
                raise ValueError(
                    f"{int(value.isnan().sum())} values of {name!r} are NaN, expected numbers; "
                    "leave these parameters out"
                )
        return values

    def batch(self, theta: Mapping[str, Tensor] | Tensor) -> tuple[Draws, torch.Size]:
        """The checked values by site, (*batch, *shape), and their batch shape; those of a single
        site may be a tensor.
        """
        shapes = [f"{site.name!r} of shape (*batch, *{tuple(site.shape)})" for site in self]
        expected = ", ".join(shapes)
        if not isinstance(theta, Mapping):
            if len(self.sites) > 1:
                raise ValueError(
                    f"theta is one tensor, expected parameters by site, {expected}; give a "
                    "dictionary"
                )
            theta = {self.sites[0].name: theta}
        if set(theta) != {site.name for site in self}:
            raise ValueError(
                f"theta has {', '.join(map(repr, theta)) or 'no sites'}, expected {expected}; name "
                "parameters as the simulator does"
            )
        values = {site.name: torch.as_tensor(theta[site.name]) for site in self}
        advice = f"; parameters are {expected}"
        leads = [lead_of(values[site.name], site.shape, site.name, advice) for site in self]
        try:
            return values, torch.broadcast_shapes(*leads)
        except RuntimeError:
            said = ", ".join(f"{name!r} {tuple(value.shape)}" for name, value in values.items())
            raise ValueError(
                f"theta has the shapes {said}, expected batches that are broadcast, {expected}"
            ) from None

    def rows(self, theta: Mapping[str, Tensor] | Tensor) -> tuple[Draws, torch.Size]:
        """The values of a batch as rows by site, (n, *shape), and the shape of the batch.

        Raises:
            ValueError: a batch without values; others as for :meth:`batch`.
        """
        values, batch = self.batch(theta)
        if not batch.numel():
            raise ValueError(
                f"theta has batches of shape {tuple(batch)}, expected at least one value of each "
                "site; leave out the call where there is none"
            )
        for site in self:
            value = values[site.name].expand(torch.Size([*batch, *site.shape]))
            values[site.name] = value.reshape(-1, *site.shape)
        return values, batch

    def unconstrained(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The unconstrained vectors u, (n, d), and log|det ∂u/∂θ|, (n,), of values by site (n,
        *shape)."""
        pairs = [site.unconstrained(values[site.name]) for site in self]
        log_det = torch.stack([log_det for _, log_det in pairs]).sum(0)
        return torch.cat([u for u, _ in pairs], 1), log_det

    def by_site(self, u: Tensor) -> tuple[Draws, Tensor]:
        """The values by site, (n, *shape), and log|det ∂θ/∂u|, (n,), of unconstrained vectors u (n,
        d)."""
        values, first, total = Draws(), 0, u.new_zeros(len(u))
        for site in self:
            shape = site.transform.inverse_shape(site.shape)
            size = math.prod(shape)
            block = u[:, first : first + size].reshape(len(u), *shape)
            value = site.transform(block)
            log_det = site.transform.log_abs_det_jacobian(block, value)
            total = total + log_det.reshape(len(u), -1).sum(1)
            values[site.name], first = value, first + size
        return values, total

    def inside(self, values: Mapping[str, Tensor]) -> Tensor:
        """Whether values by site (n, *shape) are in the interior of their support, (n,) bool."""
        return torch.stack([is_interior(s.support, values[s.name].detach()) for s in self]).all(0)


def lead_of(value: Tensor, shape: Sequence[int], name: str, advice: str = "") -> torch.Size:
    """The batch shape of values (*batch, *shape); ValueError for values of another shape."""
    lead = value.dim() - len(shape)
    if lead < 0 or tuple(value.shape[lead:]) != tuple(shape):
        sizes = ", ".join(["*batch", *map(str, shape)])
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected ({sizes}){advice}")
    return value.shape[:lead]


def spread_of(numbers: Tensor) -> Tensor:
    """The standard deviations, (d,), of the numbers (n, d) of n parameters."""
    spread = numbers.std(0)
    if not bool((spread > 0).all() and numbers.isfinite().all()):
        raise ValueError(
            f"{int((~(spread > 0)).sum())} of {numbers.shape[1]} parameters do not vary between "
            f"{len(numbers)} simulations, or are not finite; leave their sites out of latent"
        )
    return spread
