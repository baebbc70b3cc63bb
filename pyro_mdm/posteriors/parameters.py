"""The unconstrained vector of all parameters of a program, and their values by site."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pyro_mdm.posteriors.reading import Draws, ParameterSite, is_interior, rows_of

__all__ = ["Parameters", "spread_of"]


class Parameters:
    """The sites of a program's parameters, side by side in a vector u of unconstrained numbers."""

    def __init__(self, sites: Sequence[ParameterSite]) -> None:
        self.sites = tuple(sites)

    def __iter__(self) -> Iterator[ParameterSite]:
        return iter(self.sites)

    def values(self, draws: Mapping[str, Tensor]) -> Draws:
        """The checked values by site, (n, *shape), of such values or of one, (*shape).

        Raises:
            ValueError: a site that is missing or has another shape; numbers n that differ; NaN.
        """
        values = {site.name: rows_of(draws, site.name, site.shape) for site in self}
        numbers = {name: len(value) for name, value in values.items()}
        if len(set(numbers.values())) > 1:
            counts = ", ".join(f"{n} of {name!r}" for name, n in numbers.items())
            raise ValueError(
                f"the numbers of parameters differ between sites ({counts}), expected one number "
                "n; give each site (n, *shape) values"
            )
        for name, value in values.items():
            if bool(value.isnan().any()):
                raise ValueError(
                    f"{int(value.isnan().sum())} values of {name!r} are NaN, expected numbers; "
                    "leave these parameters out"
                )
        return values

    def rows(self, draws: Mapping[str, Tensor]) -> tuple[Draws, torch.Size]:
        """The values (*batch, *shape) of a batch as rows by site, (n, *shape), and the shape of the
        batch.

        Raises:
            ValueError: a site that is missing or has another shape; batches that differ.
        """
        rows, batches = Draws(), dict[str, torch.Size]()
        for site in self:
            value = torch.as_tensor(draws.get(site.name, torch.empty(0))).detach()
            lead = value.dim() - len(site.shape)
            if lead < 0 or value.shape[lead:] != site.shape or not value.numel():
                sizes = ", ".join(["*batch", *map(str, site.shape)])
                raise ValueError(
                    f"there is no value of {site.name!r} among {list(draws)}, expected one"
                    if site.name not in draws
                    else f"{site.name!r} has shape {tuple(value.shape)}, expected ({sizes})"
                )
            rows[site.name] = value.to(torch.get_default_dtype()).reshape(-1, *site.shape)
            batches[site.name] = value.shape[:lead]
        if len(set(batches.values())) > 1:
            raise ValueError(
                f"the batches of parameters differ ({batches}), expected one; give each site the "
                "same draws"
            )
        return rows, next(iter(batches.values()))

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


def spread_of(numbers: Tensor) -> Tensor:
    """The standard deviations, (d,), of the numbers (n, d) of n parameters.

    Raises:
        ValueError: numbers that do not vary or are not finite.
    """
    spread = numbers.std(0)
    if not bool((spread > 0).all() and numbers.isfinite().all()):
        raise ValueError(
            f"{int((~(spread > 0)).sum())} of {numbers.shape[1]} parameters do not vary between "
            f"{len(numbers)} simulations, or are not finite; leave their sites out of latent"
        )
    return spread
