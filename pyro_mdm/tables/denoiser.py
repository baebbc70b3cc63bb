"""Denoisers of vectors with dimensions of several kinds, such as rows of a table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import pyro_mdm.likelihoods as likelihoods
from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.levels import discrete
from pyro_mdm.levels.denoiser import DiscreteDenoiser
from pyro_mdm.scores.base import Number, check_fit
from pyro_mdm.scores.denoiser import Denoiser, DenoiserScore
from pyro_mdm.support.checks import checked_arguments
from pyro_mdm.support.modules import cached_on
from pyro_mdm.support.settings import Recorded
from pyro_mdm.support.splits import spread
from pyro_mdm.tables.covariance import joint_moments
from pyro_mdm.tables.likelihood import MixedLikelihood, Parts
from pyro_mdm.tables.network import LevelLogits, MapMLP
from pyro_mdm.tables.one_hot import Levels, OneHot, OneHotDenoiser, require_data

__all__ = ["GAUSSIAN_ROWS", "NoNetwork", "Levels", "MixedDenoiser", "OneHot"]

GAUSSIAN_ROWS, PRODUCTS = 10_000, 10**9
"""The most rows that the Gaussian distribution is fitted to, spread evenly over all, and the most
products of two entries in one pass over them."""
COUPLED = 20
"""The most categories of a column that depend on other columns in the Gaussian distribution, the
most frequent ones; what tells the others apart is learned."""


class NoNetwork(Recorded, nn.Module):
    """A placeholder for the network of a part of a :class:`MixedDenoiser`, which has one for
    all."""

    def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
        raise TypeError(
            "a part of a MixedDenoiser has no network of its own; ask the MixedDenoiser for x̂"
        )


class MixedDenoiser(DenoiserScore):
    r"""A denoiser of dimensions of several kinds: one network, and a denoiser for each kind.

    Given x the noised dimensions are independent, so the bound is a sum over them, and each
    dimension may read the network's output in its own way: a continuous one like :class:`Denoiser`,
    one with levels like :class:`DiscreteDenoiser`, with a logit for each level. Then p(x) is a
    density in the continuous dimensions and a probability in the others. At F = 0 the bound is that
    of independent columns, Gaussians and histograms. Categories without an order are
    :class:`OneHot`, whose noise confuses all values alike.

    Args:
        network: the module that is called with ``(z - μ)/sqrt(σ² + e^{-λ})``, (n, d), or (n, 2 d)
            with ``maps``, and log SNRs, (n,). It returns (n, :meth:`num_outputs`): the outputs of
            the first part, arranged outputs × dimensions, then those of the second, and so on.
        parts: denoisers of vectors, made over :class:`NoNetwork`; :meth:`fit` makes them.
        part_of: the index of the part of each dimension, (d,) int64.
        maps: whether log SNRs may differ between dimensions; those of the parts must agree.

    Raises:
        TypeError: parts that are no denoisers; a diffusion that sees the data or has clocks by
            dimension.
        ValueError: a part without a dimension, of another number of dimensions or another ``maps``;
            data that a part refuses.

    Example:
        >>> from pyro_mdm.networks import MLP
        >>> x = torch.stack([torch.randn(50), torch.randint(2, (50,)) * 2.0 - 1], 1)
        >>> network = MLP(2, out_features=MixedDenoiser.num_outputs([None, 2]))
        >>> MixedDenoiser.fit(network, x, [None, 2]).x_hat(x, 1.0).shape
        torch.Size([50, 2])
    """

    parts: Any  # a ModuleList of DenoiserScore
    part_of: Tensor

    @checked_arguments
    def __init__(
        self,
        network: nn.Module,
        parts: Sequence[DenoiserScore],
        part_of: Tensor,
        *,
        maps: bool = False,
    ) -> None:
        part_of = Parts.checked(part_of, len(parts))
        super().__init__(network, (len(part_of),), maps)
        self.parts = nn.ModuleList(parts)
        self.register_buffer("part_of", part_of)
        for p, (denoiser, dims) in enumerate(zip(parts, self._dims.dims, strict=True)):
            if denoiser.event_shape != (len(dims),) or denoiser.maps is not maps:
                raise ValueError(
                    f"part {p} has the event shape {denoiser.event_shape} and "
                    f"maps={denoiser.maps}, expected ({len(dims)},) and maps={maps} as part_of and "
                    "maps say; make the parts by MixedDenoiser.fit"
                )
        self.groups = self._joined_groups()
        for name in ("data_mean", "data_variance"):
            self.register_buffer(name, self._dims.join([getattr(p, name) for p in parts]))

    @classmethod
    @checked_arguments
    def fit(
        cls, network: nn.Module, train_x: Tensor, levels: Sequence[Levels], *, maps: bool = False
    ) -> MixedDenoiser:
        """The denoiser with a baseline fitted to data: means and variances, smoothed histograms.

        Args:
            network: the network, as for :class:`MixedDenoiser`.
            train_x: data, (N, d); with ``maps`` entries may be missing, NaN.
            levels: the levels of each column, None where it is continuous. All but
                :class:`OneHot` have one dimension.
            maps: whether log SNRs may differ between dimensions.

        Raises:
            ValueError: another number of dimensions, or data that are not at the levels.
        """
        check_fit(network, train_x, missing=maps)
        by_dim = _by_dimension(levels)
        if train_x.dim() != 2 or len(by_dim) != train_x.shape[1]:
            raise ValueError(
                f"train_x has shape {tuple(train_x.shape)} and levels are of {len(by_dim)} "
                "dimensions, expected (N, d) and levels of all d, None for a continuous one and "
                "OneHot(n) for n of a category"
            )
        kinds = list(dict.fromkeys(by_dim))
        part_of = torch.tensor([kinds.index(kind) for kind in by_dim])
        parts: list[DenoiserScore] = []
        for kind, x in zip(kinds, Parts(part_of).split(train_x), strict=True):
            if kind is None:
                parts.append(Denoiser.fit(NoNetwork(), x, maps=maps))
            elif isinstance(kind, OneHot):
                parts.append(OneHotDenoiser.fit(NoNetwork(), x, kind.number, maps=maps))
            else:
                parts.append(DiscreteDenoiser.fit(NoNetwork(), x, kind, "logits", maps=maps))
        return cls(network, parts, part_of.to(train_x.device), maps=maps)

    @classmethod
    def from_gaussian(
        cls,
        train_x: Tensor,
        levels: Sequence[Levels],
        *,
        hidden: int = 128,
        depth: int = 3,
        frequencies: Sequence[float] = (),
        members: int = 1,
        dropout: float = 0.0,
    ) -> MixedDenoiser:
        """The denoiser of a table with maps, over a new :class:`~pyro_mdm.tables.MapMLP`.

        It starts as the denoiser of a Gaussian distribution of all columns, at every map, and so
        has their correlations: exactly between continuous ones, and by Bayes' rule with those that
        have levels. Categories (:class:`OneHot`) are columns of that distribution.

        Args:
            train_x: rows, (N, d), which the Gaussian distribution and the baseline are fitted to;
                entries may be missing, NaN.
            levels: the levels of each column, as for :meth:`fit`.
            hidden, depth, frequencies, members, dropout: arguments of the network.

        Raises:
            ValueError: as :meth:`fit`.
        """
        score = cls.fit(NoNetwork(), train_x, levels, maps=True)
        before = score.data_mean.double(), score.data_variance.double().diag()
        mean, covariance = _moments(train_x, _coupled(train_x, levels), *before)
        scale = score.data_variance.sqrt()
        score.network = MapMLP(
            covariance,
            scale,
            hidden,
            depth,
            score.channels,
            score.direct,
            score.level_logits,
            (mean - score.data_mean) / scale,
            frequencies,
            members,
            dropout,
        )
        return score

    @torch.no_grad()
    def refit_gaussian(self, x: Tensor) -> None:
        """Start from the Gaussian distribution of other rows, (N, d), NaN where an entry is
        missing; what was learned beside it is kept. Probabilities of levels are tilted to their new
        means, to first order."""
        network, scale = self.network, self.data_variance.sqrt()
        assert isinstance(network, MapMLP) and network.offset is not None
        before = self.data_mean + network.offset * scale
        # on the host in float64, as the first one
        start = before.double().cpu(), network.covariance.double().cpu()
        mean, covariance = _moments(x.cpu(), network.coupled.cpu(), *start)
        mean = mean.to(before)
        for denoiser, shift in self._split(mean - before):
            if isinstance(denoiser, OneHotDenoiser):
                tilt = shift.view_as(denoiser.log_prior) / denoiser.log_prior.exp()
            elif isinstance(denoiser, DiscreteDenoiser):
                off = denoiser.levels - denoiser.data_mean.unsqueeze(-1)
                variance = (denoiser.log_prior.exp() * off.square()).sum(-1, keepdim=True)
                tilt = shift.unsqueeze(-1) * off / variance
            else:
                continue
            denoiser.log_prior = (denoiser.log_prior + tilt).log_softmax(-1)
        network.offset = (mean - self.data_mean) / scale
        network.covariance = covariance.to(network.covariance)

    @staticmethod
    def num_outputs(levels: Sequence[Levels]) -> int:
        """The number of network outputs: 1 for each continuous column, 1 for each level of
        others."""
        return sum(len(kind) if isinstance(kind, tuple) else 1 for kind in _by_dimension(levels))

    def arguments(self) -> dict[str, object]:
        state = {"parts": list(self.parts), "part_of": self.part_of, "maps": self.maps}
        return {"network": self.network} | state

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Undefined, as the number of outputs differs between dimensions."""
        raise TypeError(
            "a MixedDenoiser has a number of outputs for each dimension, expected one for all "
            "dimensions; use a linear diffusion that does not see the data"
        )

    @property
    def _dims(self) -> Parts:
        return cached_on(self.part_of, "parts", Parts)

    def check_diffusion(self, diffusion: Diffusion) -> None:
        super().check_diffusion(diffusion)
        require_data(diffusion, self)

    def _joined_groups(self) -> Tensor | None:
        """The column of each dimension, (d,), in the order of first dimensions; None: one each."""
        if all(denoiser.groups is None for denoiser in self.parts):
            return None
        first = torch.arange(len(self.part_of), device="cpu")
        for denoiser, dims in zip(self.parts, self._dims.dims, strict=True):
            if denoiser.groups is not None:
                here, columns = dims.cpu(), denoiser.groups.cpu()
                first[here] = here[torch.searchsorted(columns, columns)]
        return first.unique(return_inverse=True)[1]

    def _split(self, x: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """Each part with its dimensions of x (…, d), and of others like x; scalars and None as
        is."""
        for denoiser, dims in zip(self.parts, self._dims.dims, strict=True):
            selected = [
                v[..., dims] if v is not None and v.dim() == x.dim() and v.shape[-1] > 1 else v
                for v in others
            ]
            yield denoiser, x[..., dims], *selected

    # -- the denoiser ------------------------------------------------------------------------------

    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        batch_dim, lam = self._values("z", z, log_snr, trained=True)
        F = self.call_network(self.inputs(z, lam), lam, batch_dim, channels=self.channels)
        return self.read(z, lam, F)

    @property
    def channels(self) -> int:
        """The number of network outputs for a datum."""
        return sum(self._sizes())

    @property
    def direct(self) -> Tensor:
        """The channel with the F of each dimension, (d,) int64; -1 for dimensions with levels."""
        channel, start = torch.full_like(self.part_of, -1), 0
        for denoiser, dims, size in zip(self.parts, self._dims.dims, self._sizes(), strict=True):
            if isinstance(denoiser, Denoiser):
                channel[dims] = start + torch.arange(len(dims), device=channel.device)
            start += size
        return channel

    @property
    def level_logits(self) -> LevelLogits | None:
        """The levels of all columns and their prior, before training; None: no column has
        levels."""
        mean, scale = self.data_mean.double(), self.data_variance.double().sqrt()
        d, device = len(mean), mean.device
        groups = self.groups
        columns = torch.arange(d, device=device) if groups is None else groups.to(device)
        rows, priors, outputs, level_columns = [], [], [], []
        starts = [0, *itertools.accumulate(self._sizes())]
        parts = zip(self.parts, self._dims.dims, starts, self._sizes(), strict=False)
        for denoiser, dims, start, size in parts:
            row = mean.new_zeros(size, d)
            if isinstance(denoiser, DiscreteDenoiser):
                standard = (denoiser.levels - mean[dims].unsqueeze(-1)) / scale[dims].unsqueeze(-1)
                at = dims.repeat(denoiser.outputs)
                row[torch.arange(size), at] = standard.mT.flatten()
                priors.append(denoiser.log_prior.exp().mT.flatten())
            elif isinstance(denoiser, OneHotDenoiser):
                same = (denoiser.groups == denoiser.groups.unsqueeze(-1)).to(mean)
                one = torch.eye(size, dtype=mean.dtype, device=device)
                at, row[:, dims] = dims, same * (one - mean[dims]) / scale[dims]
                priors.append(denoiser.log_prior.exp().flatten())
            else:
                continue
            rows.append(row)
            outputs.append(start + torch.arange(size, device=device))
            level_columns.append(columns[at])
        if not rows:
            return None
        codes, prior, logits = torch.cat(rows), torch.cat(priors), torch.cat(outputs)
        return LevelLogits(codes, prior, logits, columns, torch.cat(level_columns))

    def _sizes(self) -> list[int]:
        """The number of network outputs for each part."""
        return [denoiser.outputs * denoiser.event_shape[0] for denoiser in self.parts]

    def read(self, z: Tensor, log_snr: Tensor, F: Tensor) -> Tensor:
        pieces = zip(self._split(z, log_snr), F.split(self._sizes(), -1), strict=True)
        return self._dims.join([denoiser.read(x, lam, f) for (denoiser, x, lam), f in pieces])

    @property
    def typical(self) -> Tensor:
        return self._dims.join([denoiser.typical for denoiser in self.parts])

    def check_values(self, values: Tensor, mask: Tensor) -> None:
        for denoiser, x, here in self._split(values, mask.expand_as(values)):
            denoiser.check_values(x, here)

    # -- the baseline: independent columns ---------------------------------------------------------

    def baseline_x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        _, lam = self._values("z", z, log_snr)
        pieces = self._split(z, lam)
        return self._dims.join([denoiser.baseline_x_hat(x, v) for denoiser, x, v in pieces])

    def baseline_log_prob(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """log p_0(x), (*batch), nats: Gaussian log densities and log probabilities of levels."""
        self._values("x", x, 0.0)
        terms = [p.baseline_log_prob(w, on) for p, w, on in self._split(x, _like(x, counted))]
        return torch.stack(terms).sum(0)

    def baseline_kl(self, x: Tensor, log_snr: Number, counted: Tensor | None = None) -> Tensor:
        _, lam = self._values("x", x, log_snr)
        terms = [p.baseline_kl(w, v, on) for p, w, v, on in self._split(x, lam, _like(x, counted))]
        return torch.stack(terms).sum(0)

    def baseline_integrals(
        self, x: Tensor, edges: Tensor, dims: slice, counted: Tensor | None = None
    ) -> Tensor:
        start, stop, _ = dims.indices(x.shape[-1])
        total = x.new_zeros(len(x), len(edges) - 1, dtype=torch.float64)
        places = zip(self._split(x, _like(x, counted)), self._dims.dims, strict=True)
        for (denoiser, w, on), columns in places:
            inside = ((columns >= start) & (columns < stop)).nonzero().squeeze(1).tolist()
            if inside:
                here = slice(inside[0], inside[-1] + 1)
                ends = edges if edges.dim() == 1 else edges[:, columns[here] - start]
                total += denoiser.baseline_integrals(w, ends, here, on)
        return total

    def default_likelihood(self) -> likelihoods.Likelihood:
        """The mixed decoder with the default decoder of each part."""
        decoders = [denoiser.default_likelihood() for denoiser in self.parts]
        return MixedLikelihood(decoders, self.part_of)


def _moments(x: Tensor, coupled: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, (d,), and covariance, (d, d), of rows, (N, d), NaN where an entry is missing, by EM
    that starts from others; dimensions whose index is not among ``coupled`` are independent."""
    N, d = x.shape
    most = min(GAUSSIAN_ROWS, max(d, PRODUCTS // d**2))
    rows = x if most >= N else x[spread(N, most)]
    at = coupled.unsqueeze(-1), coupled
    start = mean[coupled], covariance[at]
    present = rows.double().nanmean(0)
    mean, covariance = torch.where(present.isnan(), mean, present), covariance.clone()
    mean[coupled], covariance[at] = joint_moments(rows[:, coupled], start=start)
    return mean, covariance


def _by_dimension(levels: Sequence[Levels]) -> list[OneHot | tuple[float, ...] | None]:
    """The levels of each dimension, one-hot ones once for each of theirs."""
    kinds: list[OneHot | tuple[float, ...] | None] = []
    for column in levels:
        if isinstance(column, OneHot):
            kinds += [column] * column.number
        else:
            values = None if column is None else tuple(discrete.level_values(column).tolist())
            kinds.append(values)
    return kinds


def _coupled(x: Tensor, levels: Sequence[Levels]) -> Tensor:
    """The dimensions whose covariance with others is fitted to rows, (n, d): all but those of rare
    categories."""
    coupled, start = torch.ones(x.shape[1], dtype=torch.bool), 0
    for column in levels:
        width = column.number if isinstance(column, OneHot) else 1
        rarest = x[:, start : start + width].nanmean(0).argsort()[: max(0, width - COUPLED)]
        coupled[start + rarest.cpu()] = False
        start += width
    return coupled.nonzero().squeeze(1).to(x.device)


def _like(x: Tensor, counted: Tensor | None) -> Tensor | None:
    return None if counted is None else counted.expand_as(x)
