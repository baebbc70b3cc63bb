"""The bound of data in numbers: each term with its standard error, without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from pyro_mdm.elbo import check_programs, elbo_terms
from pyro_mdm.evaluation.comparison import EstimateOptions, evidence_lower_bound
from pyro_mdm.evaluation.estimates import FEWEST, InNats, Noise
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.base import warn_of_prior
from pyro_mdm.support.checks import Count, check_data, checked_arguments
from pyro_mdm.support.measured import ALL_TERMS, NO_TERM, TERMS, Measured, student_factor
from pyro_mdm.support.modules import evaluating
from pyro_mdm.support.progress import progress_bar

__all__ = ["Bound", "bound"]

NAMES = (*ALL_TERMS, "elbo")


@dataclass(frozen=True, repr=False)
class Bound(InNats):
    """A lower bound on the mean log-likelihood of data, by term, in nats per datum.

    Terms are (mean, standard error). The error is over the data and includes the noise of the
    estimate; for one datum it is that noise alone. ``monte_carlo_error`` is the change in ``elbo``
    that other noise for the same data would make, and falls with more draws.

    Example:
        >>> from pyro_mdm import VPSDE, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> x = torch.randn(64, 2)
        >>> model = DiffusionModel(VPSDE(), Denoiser.fit(MLP(2), x))
        >>> found = bound(model, DiffusionGuide(model.diffusion), x)
        >>> [name for name, _ in found.items()]
        ['reconstruction', 'prior_kl', 'diffusion', 'elbo']
        >>> found.bits_per_dim.mean > 0
        True
    """

    _signs: ClassVar[Mapping[str, int]] = {"reconstruction": -1, "elbo": -1}

    reconstruction: Measured  # E log p(x | y_ε)
    prior_kl: Measured  # KL(q(y_T|x) ‖ π)
    diffusion: Measured  # ½ ∫ E ‖s_θ - ∇ log q‖²_{g²} ds
    elbo: Measured  # reconstruction - prior_kl - diffusion - context
    monte_carlo_error: float  # NaN where a single draw has no estimate of it
    num_dims: int  # d, of a datum
    per_datum: Tensor  # (n,) bound of each datum, nats
    per_datum_error: Tensor  # (n,) its Monte Carlo error, of which 1.96 are 95%; NaN for one draw
    context: Measured = NO_TERM  # KL(q(c|x) ‖ p(c)); 0 without a latent context

    def _names(self) -> Sequence[str]:
        return NAMES if self.context.mean else (*TERMS, "elbo")

    @property
    def num_data(self) -> int:
        """The number of data, n."""
        return len(self.per_datum)

    @property
    def bits_per_dim(self) -> Measured:
        """The bound in bits/dim, -elbo / (d ln 2), with its standard error.

        For dequantized data use :func:`pyro_mdm.bits_per_dim`.
        """
        return self.in_bits()["elbo"]

    def __repr__(self) -> str:
        title = f"bound of {self.num_data} data of {self.num_dims} dimensions"
        return self._table(f"{title}, mean ± standard error")


@checked_arguments
def bound(
    model: Callable[..., object],
    guide: Callable[..., object],
    x: Tensor,
    *,
    draws: Count = 4,
    batch_size: Count = 256,
    seed: int = 0,
    progress: bool = False,
) -> Bound:
    """Estimate the evidence lower bound of data: ``print(bound(model, guide, x))``.

    For a :class:`DiffusionModel` and its guide this is
    :func:`pyro_mdm.evaluation.evidence_lower_bound`, which has more settings. Estimates by
    :func:`elbo_terms` are averaged for chains on a grid (``times``), whose exact discrete-time
    bound it is, for programs of your own, and for fewer than 8 data.

    Args:
        model: generative program over a diffusion, linear or not.
        guide: noising program over the same diffusion.
        x: data in model space, (n, *event_shape), n ≥ 1. NaN where an entry is missing, for a
            denoiser with maps: the bound is then on the density of the entries that are present,
            exactly 0 where there are none, and bits per dimension are still divided by the number
            of all dimensions.
        draws: number of network evaluations per datum for the diffusion term; for a simulated
            diffusion it is rounded up to whole paths, at least two. With one draw, up to 256 data
            are drawn twice, so that there is an error.
        batch_size: number of data per network call, which bounds the memory.
        seed: seed of the noise; the caller's random state stays as it is.
        progress: whether to show a progress bar.

    Returns:
        :class:`Bound`, in nats per datum and bits/dim. Where a prior that is no stationary
        distribution does not cover the data, there is a warning with its KL.

    Raises:
        TypeError: x that is no tensor, swapped programs.
        ValueError: data that the programs refuse, numbers below 1.

    Example:
        >>> from pyro_mdm import VPSDE, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> x = torch.randn(64, 2)
        >>> model = DiffusionModel(VPSDE(), Denoiser.fit(MLP(2), x))
        >>> bound(model, DiffusionGuide(model.diffusion), x, draws=2).per_datum.shape
        torch.Size([64])
    """
    check_programs(model, guide)
    check_data("x", x, missing=True)
    if isinstance(model, DiffusionModel):
        model.check_data(x)
        warn_of_prior(model.diffusion, x)
    ours = isinstance(model, DiffusionModel) and isinstance(guide, DiffusionGuide)
    if ours and model.times is None and guide.times is None and len(x) >= FEWEST:  # type: ignore
        options: EstimateOptions = {"batch_size": batch_size, "seed": seed, "progress": progress}
        estimate = evidence_lower_bound(model, guide, x, draws=draws, **options)  # type: ignore
        names = [f.name for f in fields(Bound) if f.name != "elbo"]
        elbo = Measured(estimate.mean, estimate.standard_error)
        return Bound(elbo=elbo, **{name: getattr(estimate, name) for name in names})
    devices = [x.device] if x.device.type == "cuda" else []
    with evaluating(model, guide), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return _averaged(model, guide, x, draws, batch_size, progress)


def _averaged(
    model: Callable[..., object],
    guide: Callable[..., object],
    x: Tensor,
    draws: int,
    batch_size: int,
    progress: bool,
) -> Bound:
    n = len(x)
    drawn = torch.empty(draws, len(NAMES), n, dtype=torch.float64)
    with progress_bar(draws * n, "bound", "draws", shown=progress) as bar:
        for rows in torch.arange(n).split(batch_size):
            chosen = x[rows.to(x.device)]
            model_of_rows = model.for_rows(rows) if isinstance(model, DiffusionModel) else model
            for draw in range(draws):
                terms = elbo_terms(model_of_rows, guide, chosen)
                if terms.elbo.shape != rows.shape:
                    raise ValueError(
                        f"the terms of the programs have shape {tuple(terms.elbo.shape)} for x of "
                        f"shape {tuple(chosen.shape)}, expected one for each datum, "
                        f"({len(rows)},); give x a single batch dimension, and the programs the "
                        "whole of it"
                    )
                values = torch.stack([getattr(terms, name).double() for name in NAMES])
                drawn[draw][:, rows] = values.detach().cpu()
                bar.update(len(rows))
    means = drawn.mean(0)
    error_of_mean = torch.full((len(NAMES),), math.nan)
    per_datum_error = torch.full((n,), math.nan, dtype=torch.float64)
    if draws > 1:  # by Student's t, so that 1.96 errors hold 95%
        variance = drawn.var(0).sum(1) / draws
        error_of_mean = variance.sqrt() / n * student_factor(n * (draws - 1))
        per_datum_error = Noise.from_draws(drawn[:, -1]).error
    if n > 1:
        measured = [Measured.from_values(values) for values in means]
    else:
        measured = [*map(Measured, means[:, 0].tolist(), error_of_mean.tolist())]
    return Bound(
        **dict(zip(NAMES, measured, strict=True)),
        monte_carlo_error=float(error_of_mean[-1]),
        num_dims=model.num_dims if isinstance(model, DiffusionModel) else math.prod(x.shape[1:]),
        per_datum=means[-1],
        per_datum_error=per_datum_error,
    )
