"""Draws of a posterior that exist already, as rows of a guide's unconstrained latents."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping

import torch
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor
from torch.distributions import biject_to

from pyro_mdm.support.traces import Site

__all__ = ["MIXED", "row", "unconstrained", "warn_of_same"]

MIXED = 1.05
"""The split R̂ up to which chains count as mixed."""
FEWEST = 16
"""Draws at least, of all chains together."""
SAME = 0.1
"""The largest share of draws that are equal to others by chance, or by a chain that stayed."""
FEWEST_OF_CHAIN = 4
"""Draws at least of a chain, whose halves R̂ compares."""


def unconstrained(draws: object, latents: Iterable[tuple[str, Site]]) -> Tensor:
    """The unconstrained latents of draws as of ``AutoMDM.fit``, (n, dim), in the order of latents.

    Other names among the draws are left out. ValueError where a latent has none, or draws of
    another shape or number, outside of its support, or too few; a warning where R̂ is above 1.05.
    """
    values = _by_name(draws)
    rows: list[Tensor] = []
    names: list[str] = []
    for name, site in latents:
        if name not in values:
            raise ValueError(
                f"there are no draws of {name!r}, but of {', '.join(map(repr, values)) or 'none'}; "
                "expected draws of every latent: hand over those of this program"
            )
        row = _of_site(name, site, values[name])
        if rows and row.shape[:2] != rows[0].shape[:2]:
            raise ValueError(
                f"{name!r} has draws of shape {tuple(row.shape[:2])} (chains, draws), expected "
                f"{tuple(rows[0].shape[:2])} as {names[0]!r} has"
            )
        rows.append(row)
        names.append(name)
    x = torch.cat(rows, -1)
    if x.shape[:2].numel() < FEWEST:
        raise ValueError(f"there are {x.shape[:2].numel()} draws, expected {FEWEST} at least")
    if x.shape[1] < FEWEST_OF_CHAIN:
        raise ValueError(
            f"there are {x.shape[1]} draws in each of {x.shape[0]} chains, expected "
            f"{FEWEST_OF_CHAIN} at least; give independent draws as (n, *shape)"
        )
    _warn_unless_mixed(rows, names)
    return x.flatten(0, 1)


def warn_of_same(x: Tensor, fitted: Tensor | None) -> None:
    """Warn if draws x (n, dim) are among those that a guide learned from, whose first unconstrained
    latents are ``fitted`` (m,); None: it learned from none."""
    if fitted is None or not len(x):
        return
    share = float(torch.isin(x[:, 0], fitted).double().mean())
    if share > SAME:
        warnings.warn(
            f"{share:.0%} of the draws are those that the guide was fitted to, expected others, as "
            "these cannot show what the guide misses; fit it to one half of the draws, and hand "
            "over the other",
            stacklevel=4,
        )


def row(values: Mapping[str, Tensor], latents: Iterable[tuple[str, Site]]) -> Tensor:
    """The unconstrained latents of one value by site, (dim,)."""
    pieces = [_of_site(name, site, values[name][None, None]) for name, site in latents]
    return torch.cat(pieces, -1)[0, 0]


def _by_name(draws: object) -> dict[str, Tensor]:
    """Tensors by name; those of ArviZ begin with chains and draws, as Pyro's grouped ones do."""
    draws = getattr(draws, "posterior", draws)
    if hasattr(draws, "data_vars"):
        return {str(name): torch.tensor(array.values) for name, array in draws.data_vars.items()}
    if not isinstance(draws, Mapping):
        raise TypeError(
            f"draws is {type(draws).__name__}, expected values by site, such as "
            "mcmc.get_samples(), or an InferenceData of ArviZ"
        )
    return {str(name): torch.as_tensor(value) for name, value in draws.items()}


def _of_site(name: str, site: Site, draws: Tensor) -> Tensor:
    """Unconstrained draws of a site, (chains, n, numbers)."""
    value = site["value"]
    shape = value.shape
    leading = draws.dim() - len(shape)
    if leading not in (1, 2) or draws.shape[leading:] != shape:
        raise ValueError(
            f"draws of {name!r} have shape {tuple(draws.shape)}, expected (n, *shape) or "
            f"(chains, n, *shape) with the site's shape {tuple(shape)}"
        )
    if leading == 1:
        draws = draws.unsqueeze(0)
    x: Tensor = biject_to(site["fn"].support).inv(draws.to(value)).reshape(*draws.shape[:2], -1)
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).any(2).sum())
        raise ValueError(
            f"{bad:,} draws of {name!r} are outside of its support, {site['fn'].support}, or on "
            "its boundary, expected none; hand over draws of this program, without rounding"
        )
    return x


def _warn_unless_mixed(rows: list[Tensor], names: list[str]) -> None:
    """Warn of the latent with the largest R̂; a single chain is compared by its halves."""
    largest, worst = max(
        (float(split_gelman_rubin(row, chain_dim=0, sample_dim=1).nan_to_num(math.inf).max()), name)
        for row, name in zip(rows, names, strict=True)
    )
    if largest > MIXED:
        warnings.warn(
            f"the chains have not mixed: R̂ is {largest:.2f} for {worst!r}, expected at most "
            f"{MIXED}. The guide learns what they visited, and its weights correct the shares of "
            "what it covers, but nobody can correct what no chain visited; run them for longer",
            stacklevel=4,
        )
