"""The network of tables, which starts as the denoiser of a Gaussian distribution of all columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.networks import MAP_LIMIT, MAP_UNIT, MLP
from pyro_mdm.support.checks import Count, check_values, checked_arguments
from pyro_mdm.support.modules import cached_on
from pyro_mdm.support.settings import Recorded

__all__ = ["FEW", "LevelLogits", "MapMLP"]


FEW = 64
"""The most coupled dimensions of which each training datum has a map of its own."""


class MapMLP(MLP):
    r"""Residual MLPs for vectors with maps of log SNR, added to the denoiser of a Gaussian.

    Under x ~ N(μ, C), E[x | z] has a closed form for any map of log SNR, and so has the output F of
    a denoiser that returns it. This network computes that F and adds it to the outputs ``direct``.
    A column with levels needs logits. There the Gaussian distribution of the other columns given
    this one is used alone, p(z_other | v): its logarithm is a quadratic function of the codes v of
    the levels,

        log p(z_other | v) = h·v - ½ v·Λv + const,

    which is added to the logits. The prior of the posterior is then the histogram of the column, as
    in linear discriminant analysis. Differences from these distributions are learned. The other
    inputs of the MLPs are, for each dimension, whether it is observed, left out or generated, its
    value, with sines and cosines by which fast changes are learned, and its log SNR; λ of their
    blocks is the average over the generated ones. Posteriors of levels by the noise of their column
    alone are inputs too, as logits of a joint distribution are made of them.

    Dimensions without a covariance, such as those of rare levels, are independent of all others in
    that distribution, and are no part of its linear equations. Several MLPs, the members, share
    each training batch, each with other rows of it; in evaluation the output is their mean.

    Args:
        covariance: the covariance C of the data, (d, d), positive definite.
        scale: the standard deviations σ that the denoiser divides by, (d,).
        hidden: the width.
        depth: the number of residual blocks.
        out_features: the size of the output; None: d.
        direct: the index of the output that is F of dimension j, (d,) int64, or -1 without one;
            None: j.
        levels: the levels whose logits start by Bayes' rule; None: no levels.
        offset: (μ - m)/σ, (d,), with m the means that the denoiser subtracts; they differ from μ
            where missing entries depend on others; None: 0.
        frequencies: frequencies of sines and cosines of the values of dimensions that have an F, in
            periods per standard deviation.
        members: the number of MLPs.
        dropout: the probability that a hidden number is left out in training.

    Call:
        x (n, 2 d), as from :func:`~pyro_mdm.scores.base.map_channels`, and log_snr (n,); it returns
        (n, out_features), and solves as many linear equations for each datum as dimensions have a
        covariance.

    Raises:
        ValueError: sizes below 1 or that do not fit, or a matrix C that is no covariance.

    Source: Hastie, Tibshirani & Friedman, "The Elements of Statistical Learning", 2009, chapter
    4.3; Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep
    ensembles", 2017.

    Example:
        >>> network = MapMLP(torch.eye(2), torch.ones(2), hidden=8, depth=1)
        >>> network(torch.randn(5, 4), torch.zeros(5)).shape  # of values and maps
        torch.Size([5, 2])
    """

    covariance: Tensor
    scale: Tensor
    direct: Tensor
    offset: Tensor | None
    coupled: Tensor
    with_output: Tensor

    @checked_arguments
    def __init__(
        self,
        covariance: Tensor,
        scale: Tensor,
        hidden: int = 128,
        depth: int = 3,
        out_features: int | None = None,
        direct: Tensor | None = None,
        levels: LevelLogits | None = None,
        offset: Tensor | None = None,
        frequencies: Sequence[float] = (),
        members: Count = 1,
        dropout: float = 0.0,
    ) -> None:
        d = len(covariance)
        out_features = d if out_features is None else out_features
        direct = torch.arange(d) if direct is None else direct
        features = 6 * d + 4 * len(frequencies) * int((direct >= 0).sum())
        features += 0 if levels is None else len(levels.outputs)
        super().__init__(features, hidden, depth, out_features, dropout)
        self.frequencies = tuple(frequencies)
        shapes = [covariance.shape, scale.shape, direct.shape]
        if shapes != [(d, d), (d,), (d,)]:
            raise ValueError(
                f"covariance, scale and direct have shapes {[tuple(s) for s in shapes]}, "
                "expected (d, d), (d,) and (d,)"
            )
        if levels is not None and levels.codes.shape[1] != d:
            raise ValueError(
                f"levels have codes in {levels.codes.shape[1]} dimensions, expected {d}, those of "
                "the covariance"
            )
        if int(direct.max()) >= out_features or torch.linalg.cholesky_ex(covariance.double()).info:
            raise ValueError(
                f"direct has the index {int(direct.max())} for {out_features} outputs, or "
                "covariance is not positive definite; expected indices below the number of "
                "outputs, and a positive definite covariance"
            )
        self.register_buffer("covariance", covariance.detach().float())
        self.register_buffer("scale", scale.detach().float())
        self.register_buffer("direct", direct)
        with_output = (direct >= 0).nonzero().squeeze(1)
        self.register_buffer("with_output", with_output, persistent=False)
        self.register_buffer("offset", None if offset is None else offset.detach().double())
        coupled = (covariance != 0).sum(1) > 1
        coupled[0] |= not coupled.any()  # no matrix is empty
        self.register_buffer("coupled", coupled.nonzero().squeeze(1), persistent=False)
        self.levels = levels
        if levels is not None:
            levels.set_coupled(self.coupled)
        self.others = nn.ModuleList(
            MLP(features, hidden, depth, out_features, dropout) for _ in range(members - 1)
        )

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        d = len(self.scale)
        if x.dim() != 2 or x.shape[1] != 2 * d:
            raise ValueError(
                f"the MapMLP of {d} dimensions takes vectors of shape (n, {2 * d}), got "
                f"{tuple(x.shape)}; make the denoiser with maps=True"
            )
        values, maps = x.chunk(2, 1)
        observed, left_out = maps >= MAP_LIMIT, maps <= -MAP_LIMIT
        generated = ~(observed | left_out)
        some, shown = generated.to(x), observed.to(x)
        maps = maps * some
        level = MAP_UNIT * maps.sum(1) / some.sum(1).clamp_min(1)
        start, gaussian, chances = self._start(values, MAP_UNIT * maps, observed, left_out)
        parts = [shown * values, some * values, shown, some, maps, gaussian, chances]
        if self.frequencies:
            parts += [self._waves(values, shown), self._waves(values, some)]
        out = self._members_output(torch.cat(parts, 1), level)
        return out + start.to(out.dtype)

    def _waves(self, values: Tensor, mask: Tensor) -> Tensor:
        """Sines and cosines of values, (n, 2 · frequencies · dimensions with an F), 0 off the
        mask."""
        mask = mask[:, self.with_output]
        angles = values[:, self.with_output] * mask
        angles = torch.cat([2 * math.pi * f * angles for f in self.frequencies], 1)
        shown = mask.repeat(1, len(self.frequencies))
        return torch.cat([angles.sin(), angles.cos() * shown], 1)

    def _members_output(self, features: Tensor, level: Tensor) -> Tensor:
        """The mean output of the members; in training that of one member for each row, in turn."""
        members = [super().forward, *self.others]
        M = len(members)
        if M == 1 or not self.training:
            return torch.stack([member(features, level) for member in members]).mean(0)
        outputs = [member(features[m::M], level[m::M]) for m, member in enumerate(members)]
        order = torch.cat([torch.arange(m, len(level), M) for m in range(M)]).argsort()
        return torch.cat(outputs)[order.to(features.device)]

    def _start(
        self, values: Tensor, log_snr: Tensor, observed: Tensor, left_out: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs of the Gaussian, (n, out_features), F of all dimensions, (n, d), and the
        chances of levels, (n, L), by the noise of their column alone.

        With x̃ = (x - m)/σ of mean δ and covariance R, a² = σ²/(σ² + v) and q = 1 - a², the
        network's inputs ``i = a x̃ + q^½ ε`` have the mean a δ and the covariance
        ``S = a R a + q``, and ``x̂ = m + σ (a i + q^½ F)``.
        """
        # float64, as S is nearly singular where noise is low and columns depend on each other
        level = log_snr.double() + 2 * self.scale.double().log()
        level = torch.where(observed, math.inf, torch.where(left_out, -math.inf, level))
        generated = ~(observed | left_out)
        q, a = torch.sigmoid(-level), torch.sigmoid(level).sqrt()
        i = torch.where(left_out, 0, values).double()
        offset = torch.zeros_like(i[0]) if self.offset is None else self.offset
        R = (self.covariance / self.scale / self.scale.unsqueeze(-1)).double()
        variance, here = R.diagonal(), self.coupled
        R = R[here][:, here]
        law, index = self._law(R, level[:, here], offset[here])
        J = law.J if index is None else law.J[index]
        off = i - a * offset
        solved = (J @ off[:, here].unsqueeze(-1)).squeeze(-1)
        mean = a * variance * off / (a.square() * variance + q)
        mean[:, here] = (a[:, here] * solved) @ R
        # observed dimensions have q = 0, and F = 0 below
        F = (offset + mean - a * i) / q.clamp_min(1e-12).sqrt()
        F = torch.where(observed, 0, F)
        start = F.new_zeros(len(F), self.outlet.out_features)
        start[:, self.direct[self.with_output]] = F[:, self.with_output]
        chances = F.new_zeros(len(F), 0)
        if self.levels is not None:
            logits = self.levels.evidence(law, index, solved, a[:, here])
            start[:, self.levels.outputs] = torch.where(generated[:, self.levels.first], logits, 0)
            chances = self.levels.chances(i, a, q, generated)
        return start, F.to(values.dtype), chances.to(values.dtype)

    def _law(self, R: Tensor, level: Tensor, offset: Tensor) -> tuple[Law, Tensor | None]:
        """The Gaussians of distinct maps ``level`` (n, d), and the index of that of each datum,
        (n,).

        Training maps of few dimensions all differ, and maps with derivatives are each of their own
        datum: then there is a Gaussian for each datum, and the index is None.
        """
        index = None
        if not ((self.training and len(R) <= FEW) or level.requires_grad):
            level, index = torch.unique(level, dim=0, return_inverse=True)
        q, a = torch.sigmoid(-level), torch.sigmoid(level).sqrt()
        S = a.unsqueeze(-1) * R * a.unsqueeze(-2) + torch.diag_embed(q)
        # checked later, as torch's own check would wait for the device
        L, info = torch.linalg.cholesky_ex(S)
        check_values((info == 0).all(), _report_singular)
        J = torch.cholesky_inverse(L)
        evidence = [] if self.levels is None else self.levels.column_evidence(J, R, a, q, offset)
        return Law(J, evidence), index


class ColumnEvidence(NamedTuple):
    """The evidence of inputs at maps on columns b of one width w, by :class:`LevelLogits`."""

    dims: Tensor  # of the columns, (columns, w)
    codes: Tensor  # v - δ of levels in their columns, (L, columns, w)
    slopes: Tensor  # B, the regression of all dimensions on the columns', (d, columns w)
    without: Tensor  # (J V)_bᵀ J_bb^{-1}, (maps, columns, w, w)
    inverse: Tensor  # (1 - G R_bb)^{-1}, (maps, columns, w, w); 1 where they are not generated
    quadratic: Tensor  # ½ u·Λu of levels, (maps, L)


class Law(NamedTuple):
    """The Gaussian distribution of inputs i at maps, as in :class:`MapMLP`."""

    J: Tensor  # S^{-1}, (maps, d, d)
    evidence: list[ColumnEvidence]  # by width of columns with levels


class LevelLogits(Recorded, nn.Module):
    r"""The levels of columns, with their prior and their evidence before training.

    Args:
        codes: codes (v - m)/σ of levels v, (L, d), in the dimensions of their column, 0 elsewhere.
        prior: the fraction π of each level in its column, (L,).
        outputs: the index of the network's output that is the logit of each level, (L,) int64.
        columns: the index of the column of each dimension, (d,) int64.
        of_levels: the index of the column of each level, (L,) int64.

    Raises:
        ValueError: shapes that do not fit.
    """

    codes: Tensor
    prior: Tensor
    outputs: Tensor
    columns: Tensor
    of_levels: Tensor
    first: Tensor
    coupled: Tensor

    def __init__(
        self, codes: Tensor, prior: Tensor, outputs: Tensor, columns: Tensor, of_levels: Tensor
    ) -> None:
        super().__init__()
        L, d = codes.shape
        shapes = [tuple(index.shape) for index in (prior, outputs, columns, of_levels)]
        if shapes != [(L,), (L,), (d,), (L,)]:
            raise ValueError(
                f"codes are of {L} levels and {d} dimensions, and prior, outputs, columns and "
                f"of_levels have shapes {shapes}; expected ({L},), ({L},), ({d},) and ({L},)"
            )
        self.register_buffer("codes", codes.detach().double())
        self.register_buffer("prior", prior.detach().double())
        for name, index in (("outputs", outputs), ("columns", columns), ("of_levels", of_levels)):
            self.register_buffer(name, index)
        self.set_coupled(torch.arange(d))
        first = (columns == of_levels.unsqueeze(-1)).to(torch.int64).argmax(1)
        self.register_buffer("first", first, persistent=False)

    def set_coupled(self, coupled: Tensor) -> None:
        """Compute evidence by the dimensions of some indices alone, (c,) int64, which depend on
        other columns."""
        self.register_buffer("coupled", coupled, persistent=False)
        of_column = self.columns[coupled] == self.of_levels.unique().unsqueeze(-1)
        widths = of_column.sum(1)
        self._widths = [w for w in widths.unique().tolist() if w]
        for w in self._widths:
            dims = of_column[widths == w].nonzero()[:, 1].reshape(-1, w)
            self.register_buffer(f"dims_{w}", dims, persistent=False)

    def column_evidence(
        self, J: Tensor, R: Tensor, a: Tensor, q: Tensor, offset: Tensor
    ) -> list[ColumnEvidence]:
        """The evidence of the inputs of other columns on columns with levels, by their width.

        Given ``u = x̃_b - δ_b``, the inputs o of other columns have the mean ``a_o δ_o + V u``, with
        ``V = a_o B`` and ``B = R_ob R_bb^{-1}``, and the covariance ``S_oo - V R_bb Vᵀ``. So their
        log likelihood of u is ``h·u - ½ u·Λu`` with

            Λ = (1 - G R_bb)^{-1} G,    h = (1 - G R_bb)^{-1} Vᵀ S_oo^{-1} (i - a δ)_o,

        where ``G = Vᵀ S_oo^{-1} V``, and ``S_oo^{-1} = J_oo - J_ob J_bb^{-1} J_bo``. The precision
        of u given all inputs − given those of b would be a difference of large numbers, whose
        rounding would decide, as the codes of rare levels are far from the mean.

        Args:
            J: inverse covariances ``S^{-1}`` of the coupled dimensions, (maps, c, c).
            R: the covariance of x̃, (c, c).
            a, q: coefficients as in :class:`MapMLP`, (maps, c).
            offset: δ, (c,).
        """
        laws = []
        for w in self._widths:
            dims: Tensor = getattr(self, f"dims_{w}")
            rows, columns = dims.unsqueeze(-1), dims.unsqueeze(-2)
            some = ((q > 0) & (q < 1))[:, dims].unsqueeze(-1)  # the generated
            one = torch.eye(w, dtype=J.dtype, device=J.device)
            R_b = R[rows, columns]
            slopes = R[:, dims].movedim(0, 1) @ _inverse(R_b)
            at = torch.arange(len(dims), device=dims.device).unsqueeze(-1)
            slopes[at, dims] = 0
            V = a[:, None, :, None] * slopes
            JV = J.unsqueeze(1) @ V
            JV_b = JV[:, at, dims]
            J_b = torch.where(some, J[:, rows, columns], one)
            without = JV_b.mT @ _inverse(J_b)
            G = V.mT @ JV - without @ JV_b
            G = torch.where(some, G, 0)  # not used for the others, whose J may be singular
            inverse = _inverse(one - G @ R_b)
            here = self.columns[self.coupled[dims]] == self.of_levels[:, None, None]
            codes = self.codes[:, self.coupled[dims]] - here * offset[dims]
            products = codes.unsqueeze(-1) * codes.unsqueeze(-2)
            quadratic = 0.5 * (inverse @ G).flatten(1) @ products.flatten(1).mT
            flat = slopes.movedim(1, 0).flatten(1)
            laws.append(ColumnEvidence(dims, codes, flat, without, inverse, quadratic))
        return laws

    def evidence(self, law: Law, index: Tensor | None, solved: Tensor, a: Tensor) -> Tensor:
        """The evidence ``h·u - ½ u·Λu`` at the levels u = v - δ, (n, L); of generated columns
        alone.

        Args:
            law, index: the Gaussian distributions of inputs at maps, and the index of that of each
                datum, (n,), None where each has its own.
            solved, a: J (i - a δ), and coefficients as in :class:`MapMLP`, (n, c) of the coupled
                dimensions.
        """
        logits = solved.new_zeros(len(solved), len(self.codes))
        for evidence in law.evidence:
            dims, codes, slopes, without, inverse, quadratic = evidence
            if index is not None:
                without, inverse, quadratic = without[index], inverse[index], quadratic[index]
            others = ((a * solved) @ slopes).unflatten(-1, dims.shape).unsqueeze(-1)
            rest = others - without @ solved[:, dims].unsqueeze(-1)
            h = (inverse @ rest).squeeze(-1)
            logits += h.flatten(1) @ codes.flatten(1).mT - quadratic
        return logits

    def chances(self, i: Tensor, a: Tensor, q: Tensor, generated: Tensor) -> Tensor:
        """Chances (p - π)/(s a) of the levels, (n, L); 0 for columns that are not generated.

        Here p is the posterior by the noise of the column alone, and s² = π (1 - π). The logits of
        a joint distribution are logarithms of sums of products of these p. Inputs i, coefficients a
        and q, and the mask of generated dimensions are (n, d).
        """
        a, q = torch.where(generated, a, 1), torch.where(generated, q, 1)
        odds = self.prior.log() + (a * i / q) @ self.codes.mT
        odds = odds - 0.5 * (a.square() / q) @ self.codes.square().mT
        columns = cached_on(self.of_levels, "columns", lambda of_levels: int(of_levels.max()) + 1)
        shape, index = (len(i), columns), self.of_levels.expand_as(odds)
        most = odds.new_full(shape, -math.inf).scatter_reduce(1, index, odds, "amax")
        weight = (odds - most[:, self.of_levels]).exp()
        total = odds.new_zeros(shape).scatter_add(1, index, weight)
        p = weight / total[:, self.of_levels]
        spread = (self.prior * (1 - self.prior)).sqrt()
        logit = (p - self.prior) / spread / a[:, self.first]
        return torch.where(generated[:, self.first], logit, 0)


def _inverse(A: Tensor) -> Tensor:
    """The inverse of matrices, (*batch, w, w)."""
    if A.shape[-1] == 1:
        return 1 / A
    return torch.linalg.inv_ex(A).inverse


def _report_singular() -> None:
    raise ArithmeticError(
        "the covariance of the network's inputs is singular in float64: some columns follow from "
        "others; leave them out, or fit the denoiser to more rows"
    )
