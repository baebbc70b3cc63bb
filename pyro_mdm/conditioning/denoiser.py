"""Denoisers of some dimensions of a datum given others, with their decoder.

A network that receives maps of log SNR denoises x_u given x_o: observed dimensions have log SNR +∞,
and those that are left out -∞; see :mod:`pyro_mdm.conditioning.conditioned`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.conditioning.derived import DerivedDenoiser
from pyro_mdm.diffusions.base import Diffusion, with_event_dims
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.matrices import of_counted, of_rows
from pyro_mdm.levels.likelihoods import LevelDistribution
from pyro_mdm.likelihoods.base import (
    DecoderDistribution,
    JointTweedie,
    Likelihood,
    StateScore,
    log_prob_by_dimension,
)
from pyro_mdm.scores.base import Number, Score
from pyro_mdm.scores.denoiser import DenoiserScore, denoiser_of
from pyro_mdm.support.checks import (
    check_instance,
    check_mask,
    check_values,
    checked_arguments,
    real_tensor,
    tensor_device,
)
from pyro_mdm.support.modules import cached_on

__all__ = [
    "ConditionedDecoder",
    "ConditionedDenoiser",
    "ConditionedLikelihood",
    "checked_denoiser",
    "number_of_data",
]

C = TypeVar("C", bound="ConditionedDenoiser")
AGREEMENT = 1e-6
"""The largest distance of data from observed values, relative to 1 + their size: float32 rounds."""


class ConditionedDenoiser(DerivedDenoiser):
    """The denoiser of x_u given x_o; see :func:`~pyro_mdm.condition`.

    Args:
        denoiser: denoiser of all dimensions, with :attr:`~pyro_mdm.scores.Score.maps`.
        observed: mask of observed dimensions, bool, (*event_shape) or (n, *event_shape).
        values: observed values, (*event_shape) or (n, *event_shape); None: for any data.
        left_out: mask of dimensions that are integrated out, bool, shaped like ``observed``; None:
            none.

    Raises:
        TypeError: a score that is no denoiser, or masks that are not bool.
        ValueError: masks or values that do not fit, see :func:`~pyro_mdm.condition`.
    """

    observed: Tensor
    values: Tensor | None
    left_out: Tensor | None
    fill: Tensor

    @checked_arguments
    def __init__(
        self,
        denoiser: DenoiserScore,
        observed: Tensor,
        values: Tensor | None = None,
        left_out: Tensor | None = None,
    ) -> None:
        super().__init__(checked_denoiser(denoiser))
        event, device = tuple(denoiser.event_shape or ()), tensor_device(denoiser)
        observed = _mask("observed", observed, event).to(device)
        left_out = None if left_out is None else _mask("left_out", left_out, event).to(device)
        self.register_buffer("observed", observed)
        self.register_buffer("left_out", left_out)
        self.register_buffer("fill", denoiser.typical.expand(event).clone())
        values = None if values is None else self._checked_values(values, event).to(device)
        self.register_buffer("values", values)
        self._check_masks()

    def _checked_values(self, values: Tensor, event: tuple[int, ...]) -> Tensor:
        """The values in float64 where they are observed, the fill elsewhere."""
        values = real_tensor("values", values, "the observed values, (*event_shape)")
        _check_shape("values", values, event)
        _check_one_number(len(event), observed=self.observed, values=values, left_out=self.left_out)
        values = values.to(self.observed.device)
        observed = self.observed.expand(torch.broadcast_shapes(self.observed.shape, values.shape))
        bad = observed & ~values.isfinite()
        if bool(bad.any()):
            raise ValueError(
                f"values has {int(bad.sum())} observed entries that are not finite; set observed "
                "to False there, or left_out to True"
            )
        self.denoiser.check_values(values.expand(observed.shape), observed)
        return torch.where(self.observed, values, self.fill)

    def _check_whole(self, name: str, mask: Tensor) -> None:
        """Raises ValueError for a mask (…, d) with a part of a column."""
        if self.groups is None:
            return
        groups = self.groups.to(mask.device)
        whole = cached_on(groups, "sizes", torch.bincount)
        number = mask.new_zeros(*mask.shape[:-1], len(whole), dtype=torch.int64)
        number.index_add_(-1, groups, mask.to(torch.int64))
        right = (number == 0) | (number == whole)
        check_values(right.all(), partial(_report_split, name, groups, right))

    def _check_masks(self) -> None:
        observed, left = self.observed, self.left_out
        event_dim = len(self.event_shape or ())
        self._check_whole("the mask of what is observed", observed)
        if left is not None:
            self._check_whole("left_out", left)
            _check_one_number(event_dim, observed=observed, left_out=left)
            if number := int((observed & left).sum()):
                raise ValueError(
                    f"{number} dimensions are both observed and left out, expected at most one of "
                    "the two"
                )
        some = self._counted.flatten(self._counted.dim() - event_dim).any(-1)
        check_values(some.all(), _report_nothing)

    def arguments(self) -> dict[str, object]:
        return {
            "denoiser": self.denoiser,
            "observed": self.observed,
            "values": self.values,
            "left_out": self.left_out,
        }

    # -- the masks and values of data --------------------------------------------------------------

    @property
    def _counted(self) -> Tensor:
        return ~self.observed if self.left_out is None else ~(self.observed | self.left_out)

    def counts(self, x: Tensor) -> Tensor:
        return self._for(x, self._counted)

    def _for(self, x: Tensor, value: Tensor) -> Tensor:
        """A mask or values, of all or of n data, made broadcastable to x (*batch, *event)."""
        event_dim = len(self.event_shape or ())
        return of_rows(value, event_dim, x.shape[: x.dim() - event_dim])

    def given(self: C, x: Tensor) -> C:
        return self.changed(values=x)

    def for_rows(self: C, rows: Tensor) -> C:
        event_dim = len(self.event_shape or ())
        tensors = (self.observed, self.values, self.left_out)
        denoiser = self.denoiser.for_rows(rows)
        same = all(t is None or t.dim() == event_dim for t in tensors)
        if same and denoiser is self.denoiser:
            return self
        chosen = [t[rows % len(t)] if t is not None and t.dim() > event_dim else t for t in tensors]
        observed, values, left_out = chosen
        return self.changed(denoiser, observed=observed, values=values, left_out=left_out)

    def leaving_out(self, missing: Tensor) -> ConditionedDenoiser:
        """The denoiser that leaves out missing entries too.

        The bound of a datum of which nothing remains is 0.

        Args:
            missing: mask of missing entries, bool, (n, *event_shape).
        """
        self._check_whole("the mask of what is missing (NaN)", missing)
        left_out = missing if self.left_out is None else missing | self.left_out
        return self.changed(observed=self.observed & ~missing, left_out=left_out)

    def as_noised(self) -> ConditionedDenoiser:
        """The denoiser that sees observed entries as noisy as the others, in z.

        For decoders that call the network, where the noise has variance ``e^{-λ(ε)}``.
        """
        return self.changed(observed=torch.zeros_like(self.observed), values=None)

    def check_data(self, x: Tensor) -> None:
        event_dim = len(self.event_shape or ())
        rows = x.shape[x.dim() - event_dim - 1]
        for n in number_of_data(self.observed, self.values, self.left_out, event_dim=event_dim):
            if n != rows:
                raise ValueError(
                    f"what is observed differs between {n} data, and x has {rows}; condition the "
                    "model for these data, each time for those of a batch"
                )
        if self.values is None:
            return
        off = (x.double() - self.values).abs() > AGREEMENT * (1 + self.values.abs())
        off = off & self.observed
        if bool(off.any()):
            value = self.values.expand(x.shape)[off][0].item()
            raise ValueError(
                f"{int(off.sum())} observed entries of x differ from the values that are observed, "
                f"e.g. {x[off][0].item():.6g} where {value:.6g} is; set them in x, or leave out "
                "values for a model of any data"
            )

    # -- the denoiser ------------------------------------------------------------------------------

    def integrand(
        self, diffusion: Kernels, x: Tensor, level: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """:meth:`DenoiserScore.integrand` of the generated dimensions, given the others."""
        epsilon = randomness.normal(x.shape, x.dtype, x.device) if noise is None else noise[:, 0]
        x_hat = self.given(x).x_hat
        return diffusion.paths.denoising_error(x, level, epsilon, x_hat, self.counts(x))

    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        """E[x | z_u, x_o], like z (*batch, *event_shape); the data's mean where left out.

        Raises:
            ValueError: no values were given.
        """
        z, maps = self._with_observed(z, log_snr)
        return self._exact(z, maps, self.denoiser.x_hat(z, maps))

    def posterior(self, z: Tensor, log_snr: Number) -> LevelDistribution:
        return super().posterior(*self._with_observed(z, log_snr))

    def _with_observed(self, z: Tensor, log_snr: Number) -> tuple[Tensor, Tensor]:
        """z with the observed values put in, and the map of log SNR, both like z."""
        _, lam = self._values("z", z, log_snr)
        maps = with_event_dims(lam.to(z.device), z).expand(z.shape)
        if self.left_out is not None:
            maps = torch.where(self._for(z, self.left_out), -math.inf, maps)
        if self.values is None:
            check_values(~self.observed.any(), _report_no_values)
            return z, maps
        observed = self._for(z, self.observed)
        maps = torch.where(observed, math.inf, maps)
        return torch.where(observed, self._for(z, self.values).to(z.dtype), z), maps

    def _exact(self, z: Tensor, maps: Tensor, x_hat: Tensor) -> Tensor:
        """x̂, like z, with observed values and the fill where the network has no say."""
        x_hat = torch.where(maps == math.inf, z, x_hat)
        return torch.where(maps == -math.inf, self.fill.to(z.dtype), x_hat)

    def completed(self, x: Tensor) -> Tensor:
        """Data (*batch, *event_shape) with observed values put in, and the mean where left out.

        Raises:
            ValueError: no values were given.
        """
        x, maps = self._with_observed(x, 0.0)
        return self._exact(x, maps, x)

    # -- the baseline, over the generated dimensions -----------------------------------------------

    def baseline_log_prob(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """log p_0(x_u), (*batch), nats."""
        return self.denoiser.baseline_log_prob(*self._where_counted(x, counted))

    def baseline_kl(self, x: Tensor, log_snr: Number, counted: Tensor | None = None) -> Tensor:
        """KL( q(z_λ,u | x_u) ‖ p_0(z_λ,u) ), (*batch), nats."""
        x, counted = self._where_counted(x, counted)
        return self.denoiser.baseline_kl(x, log_snr, counted)

    def baseline_integrals(
        self, x: Tensor, edges: Tensor, dims: slice, counted: Tensor | None = None
    ) -> Tensor:
        x, counted = self._where_counted(x, counted)
        return self.denoiser.baseline_integrals(x, edges, dims, counted)

    def _where_counted(self, x: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
        """Data with a valid value where they do not count, and the mask of those that do."""
        ours = self.counts(x)
        ours = ours if counted is None else ours & counted
        return torch.where(ours, x, self.fill.to(x.dtype)), ours

    def default_likelihood(self) -> Likelihood:
        return ConditionedLikelihood(self.denoiser.default_likelihood())


class ConditionedLikelihood(Likelihood):
    """The decoder p(x_u | y_ε) of a :class:`ConditionedDenoiser`.

    Args:
        likelihood: decoder of all dimensions, independent given y_ε. One that calls the network
            (``network_calls``) sees the observed entries as noisy as y_ε has them.

    Raises:
        TypeError: a decoder whose dimensions depend on each other.
    """

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        check_instance("likelihood", likelihood, Likelihood, "see pyro_mdm.likelihoods")
        if isinstance(likelihood, JointTweedie):
            raise TypeError(
                "likelihood is JointTweedie, a decoder of x and v_0 together, expected one of "
                "independent dimensions; use Tweedie, or the score's own"
            )
        self.likelihood = likelihood

    @property
    def network_calls(self) -> int:  # type: ignore[override]
        return self.likelihood.network_calls

    def forward(
        self, diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None = None
    ) -> ConditionedDecoder:
        fix = "condition(model, observed, values) makes both"
        check_instance("score", score, ConditionedDenoiser, fix)
        ours = cast(ConditionedDenoiser, score)
        asked = ours.as_noised() if self.network_calls else ours
        return ConditionedDecoder(self.likelihood(diffusion, asked, y, event_dim), ours)


class ConditionedDecoder(DecoderDistribution):
    """The distribution of x with observed entries at their values.

    Entries that are left out have the data's mean. ``log_prob`` is that of the generated entries
    alone.

    Args:
        distribution: the decoder's distribution of all dimensions, which are independent.
        score: the denoiser with the masks and values.
    """

    def __init__(self, distribution: TorchDistributionMixin, score: ConditionedDenoiser) -> None:
        self._distribution: Any = distribution
        self._score = score
        super().__init__(
            self._distribution.batch_shape, self._distribution.event_shape, validate_args=False
        )

    def expand(
        self, batch_shape: Sequence[int], _instance: ConditionedDecoder | None = None
    ) -> ConditionedDecoder:
        new = super().expand(batch_shape, _instance)
        new._distribution = self._distribution.expand(torch.Size(batch_shape))
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x_u | y_ε), (*sample, *batch), nats; other entries of x have no effect."""
        terms = self.log_prob_by_dimension(value)
        return terms.flatten(terms.dim() - len(self.event_shape)).sum(-1).to(value.dtype)

    def log_prob_by_dimension(self, value: Tensor) -> Tensor:
        """log p(x_j | y_ε), like x, nats; 0 where x_j is not generated.

        Raises:
            TypeError: the decoder's dimensions depend on each other.
        """
        self.check_event(value)
        counted = self._score.counts(value)
        value = torch.where(counted, value, self._score.fill.to(value.dtype))
        return of_counted(log_prob_by_dimension(self._distribution, value), counted)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Samples of x, (*sample_shape, *batch, *event_shape)."""
        return self._score.completed(self._distribution.sample(torch.Size(sample_shape)))


# -- checks ----------------------------------------------------------------------------------------


def checked_denoiser(score: Score) -> DenoiserScore:
    """A score, checked to be a denoiser of all dimensions with maps.

    Raises:
        TypeError: another score.
        ValueError: a denoiser without maps.
    """
    if isinstance(score, DerivedDenoiser):
        raise TypeError(
            "the model is conditioned already, expected one of all dimensions; condition that one "
            "on everything that is observed"
        )
    denoiser = denoiser_of(score, "only denoisers with maps take observed dimensions")
    if not denoiser.maps:
        raise ValueError(
            f"{type(score).__name__} takes one log SNR for all dimensions, expected maps of "
            "them; make it with maps=True, over a network of twice the channels, and train it on "
            "maps with dimensions observed and left out"
        )
    return denoiser


def _mask(name: str, mask: Tensor, event: tuple[int, ...]) -> Tensor:
    check_mask(name, mask)
    _check_shape(name, mask, event)
    return mask.clone()


def _check_shape(name: str, value: Tensor, event: tuple[int, ...]) -> None:
    tail = value.shape[max(value.dim() - len(event), 0) :]
    if tail != event or value.dim() > len(event) + 1 or not value.numel():
        sizes = ", ".join(map(str, event))
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, expected that of a datum, ({sizes}), or "
            f"(n, {sizes}) of n data"
        )


def number_of_data(*tensors: Tensor | None, event_dim: int) -> set[int]:
    """The numbers of data n that masks and values are for, where they differ between data."""
    return {len(t) for t in tensors if t is not None and t.dim() > event_dim}


def _check_one_number(event_dim: int, **tensors: Tensor | None) -> None:
    if len(number_of_data(*tensors.values(), event_dim=event_dim)) > 1:
        shapes = [f"{name} {tuple(t.shape)}" for name, t in tensors.items() if t is not None]
        raise ValueError(
            f"shapes differ, {' and '.join(shapes)}, expected all for the same number of data"
        )


def _report_split(name: str, groups: Tensor, right: Tensor) -> None:
    dimensions = (groups == (~right).nonzero()[0, -1]).nonzero().squeeze(1).tolist()
    raise ValueError(
        f"{name} has some of the dimensions {dimensions[0]} … {dimensions[-1]}, which are one "
        "category, and not all of them, expected all or none; a category is known, missing or left "
        f"out as a whole, so set all {len(dimensions)} alike"
    )


def _report_nothing() -> None:
    raise ValueError(
        "observed and left_out leave no dimension of a datum to generate, expected at least one "
        "that is in neither"
    )


def _report_no_values() -> None:
    raise ValueError(
        "there are no values of what is observed; pass condition(model, observed, values) to draw "
        "samples or to ask for x̂"
    )
