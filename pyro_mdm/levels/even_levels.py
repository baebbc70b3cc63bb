r"""Posterior means over evenly spaced levels, in float32 on a CPU, from few levels each.

A posterior over levels that are h apart has the log-odds log π_jk + α δ_k + β δ_k² of
:mod:`~pyro_mdm.levels.discrete`. Each pair of a datum and a dimension is one of three:

* *flat*: Σ_k π_jk f(v_k) is an integral over the measure π_j, for which Gauss's rule of M nodes is
  exact if f is a polynomial of degree 2M - 1. Its weights are positive, so its error is at
  most twice that of the best such polynomial. For f = exp(B x + C x²), x from -1 to 1, that is
  relative to f's least value at most TOLERANCE if for a ρ > 1

      |B| (½(ρ + 1/ρ) + 1) + |C| (¼(ρ² + ρ⁻²) + 3/2)
          ≤ (2M - 1) log ρ - log(4/(1 - 1/ρ)) + log TOLERANCE

  (Trefethen, Approximation Theory and Approximation Practice, 2013, theorem 8.2);
* *peaked*: from the level k_0 nearest to the maximum of the quadratic, with slope s there and
  b = -β h², it falls by b t² - s t within t levels. Further than r from k_0, where that exceeds the
  range of log π_j by CUT, levels have no weight. A window of one of a few sizes holds the others;
* neither: all levels.

The last two need per level only a copied row of log π, a matrix product that adds the quadratic, an
exponential, and a product with powers of t for the sums. Raw moments cancel, so they are in
float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["EvenLevels", "gauss_rules"]

RULES = ((16, 5.0), (32, 4.0))  # nodes M, and ρ
TOLERANCE = 1e-9
ROUNDING = 1e-14  # a vector of the recurrence of at most this size is rounding
WINDOWS = (16, 32, 64, 128)  # their numbers of levels
FEWEST = 2 * RULES[-1][0]  # with fewer levels there is nothing to gain
CUT = 32.0  # log-odds this far below the largest are lost when added to it, times a distance cubed
PRIOR_RANGE = 40.0  # of log π at most: a level of small weight at the top still counts in float32
FLOOR, CEILING = -85.0, 80.0  # of log-weights; below them float32 is subnormal, and slow
TINY = 1e-12  # a curvature b that changes no weight
STEEP = 1e18  # has a square in float32
WEIGHTS = 2**16  # worked on at once, and
PAIRS = 2**14  # of a datum and a dimension: in cache


def gauss_rules(log_prior: Tensor, x: Tensor, sizes: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
    """Nodes and log-weights (d, M) of Gauss's rules for the measures Σ_k π_jk δ(x - x_k).

    They come from Lanczos's recurrence from π_j^½ with x as the operator, orthogonalized twice
    (Golub & Welsch, Math. Comp. 23, 1969).

    Args:
        log_prior: log-probabilities log π, (d, n) float64.
        x: points, (n,).
        sizes: numbers M of nodes, one for each rule.
    """
    rules_by_block = []
    for block in log_prior.split(256):  # in cache
        most = max(sizes)
        basis = block.new_zeros(len(block), most, len(x))
        diagonal, beside = block.new_zeros(len(block), most), block.new_zeros(len(block), most)
        q = (block / 2).exp()
        for i in range(most):
            q = q / q.norm(dim=-1, keepdim=True).clamp_min(ROUNDING)
            basis[:, i] = q
            spanned = basis[:, : i + 1]
            q = x * q
            for turn in range(2):
                along = spanned @ q.unsqueeze(-1)
                q = q - (along.mT @ spanned).squeeze(1)
                if turn == 0:
                    diagonal[:, i] = along[:, -1, 0]
            size = q.norm(dim=-1)
            # a measure of fewer points ends here: further nodes have no weight
            size = torch.where(size > ROUNDING, size, 0.0)
            q = torch.where(size.unsqueeze(-1) > 0, q, 0.0)
            beside[:, i] = size
        rules = []
        for M in sizes:
            off = torch.diag_embed(beside[:, : M - 1], 1)
            nodes, vectors = torch.linalg.eigh(torch.diag_embed(diagonal[:, :M]) + off + off.mT)
            rules += [nodes, 2 * vectors[:, 0].abs().log()]
        rules_by_block.append(rules)
    whole = [torch.cat(t) for t in zip(*rules_by_block, strict=True)]
    return list(zip(whole[::2], whole[1::2], strict=True))


class _Rule(NamedTuple):
    """Gauss's rule of every dimension, (d, M), for linear |B| + quadratic |C| ≤ most."""

    x: Tensor
    log_weight: Tensor
    linear: float
    quadratic: float
    most: float


class EvenLevels:
    """Tables of a prior, computed once: Gauss's rules, and log π in the layout of windows.

    Args:
        log_prior: log-probabilities log π, (d, n), normalized, that :meth:`serves` accepts.
        levels: even levels, (n,).
    """

    def __init__(self, log_prior: Tensor, levels: Tensor) -> None:
        log_prior, self.n = log_prior.double(), len(levels)
        self.first, self.last = levels[0].item(), levels[-1].item()
        self.gap = (self.last - self.first) / (self.n - 1)
        self.levels = levels.float()
        self.fall = (log_prior.amax(-1) - log_prior.amin(-1) + CUT).float()
        self.windows = [size for size in WINDOWS if size < self.n]
        self.margin = self.windows[-1] // 2
        margins = (self.margin, self.margin)
        self.padded = nn.functional.pad(log_prior.float(), margins, value=-math.inf)
        x = torch.linspace(-1, 1, self.n, dtype=torch.float64)
        self.rules = []
        gauss = gauss_rules(log_prior, x, tuple(M for M, _ in RULES))
        for (M, rho), (nodes, log_weights) in zip(RULES, gauss, strict=True):
            most = (2 * M - 1) * math.log(rho) - math.log(4 / (1 - 1 / rho)) + math.log(TOLERANCE)
            linear, quadratic = (rho + 1 / rho) / 2 + 1, (rho**2 + rho**-2) / 4 + 1.5
            rule = _Rule(nodes.float(), log_weights.float(), linear, quadratic, most)
            self.rules.append(rule)

    @staticmethod
    def serves(log_prior: Tensor, levels: Tensor) -> bool:
        """Whether levels are many, even and on a CPU, and the range of log π is small enough."""
        if levels.device.type != "cpu" or len(levels) < FEWEST:
            return False
        even = torch.linspace(levels[0].item(), levels[-1].item(), len(levels), dtype=torch.float64)
        off, size = (levels - even).abs().max(), levels.abs().max()
        spread = (log_prior.amax(-1) - log_prior.amin(-1)).max()
        return bool(off <= torch.finfo(torch.float32).eps * size) and bool(spread <= PRIOR_RANGE)

    def moments(
        self, centre: Tensor, linear: Tensor, quadratic: Tensor, spread: bool
    ) -> tuple[Tensor, ...]:
        """E[δ] and, with ``spread``, Var δ and Cov(δ, δ²), (B, d) each.

        Args:
            centre: centres c, (B, d) float32.
            linear: coefficients α, (B, d).
            quadratic: coefficients β, (B, d).
            spread: whether Var δ and Cov(δ, δ²) are computed too.
        """
        B, d = centre.shape
        flat = [t.reshape(-1) for t in (centre, linear, quadratic)]
        moments = centre.new_empty(3 if spread else 1, B * d)
        dimension = torch.arange(d + PAIRS).remainder_(d)
        for i in range(0, B * d, PAIRS):
            pairs, out = torch.stack([t[i : i + PAIRS] for t in flat]), moments[:, i : i + PAIRS]
            j = dimension[i % d :][: pairs.shape[1]]
            left = self._flat(pairs, j, out)
            if len(left):
                self._peaked(pairs.index_select(1, left), j[left], left, out)
        return moments.reshape(len(moments), B, d).unbind()

    def _flat(self, pairs: Tensor, j: Tensor, out: Tensor) -> Tensor:
        """Fill in the pairs that a rule serves; return the indices of the others."""
        half, middle = (self.last - self.first) / 2, (self.last + self.first) / 2
        c, alpha, beta = pairs
        delta = middle - c
        tilts = torch.stack([half * (alpha + 2 * beta * delta), half**2 * beta])
        B, C = tilts.abs()
        left = torch.ones_like(j, dtype=torch.bool)
        for rule in self.rules:
            mine = left & (rule.linear * B + rule.quadratic * C <= rule.most)
            index = mine.nonzero()[:, 0]
            if len(index) == 0:
                continue
            left &= ~mine
            moments = _of_rule(rule, j[index], tilts.index_select(1, index), len(out) > 1)
            _fill(out, index, delta[index], half, moments)
        return left.nonzero()[:, 0]

    def _peaked(self, pairs: Tensor, j: Tensor, places: Tensor, out: Tensor) -> None:
        """Fill in pairs at their places by windows, or by all levels."""
        n, h = self.n, self.gap
        nearest, slope, curvature, radius = self._top(pairs, self.fall[j])
        left = torch.ones_like(j, dtype=torch.bool)
        for size in (*self.windows, n):
            mine = left if size == n else left & (radius <= size // 2)
            index = mine.nonzero()[:, 0]
            if len(index) == 0:
                continue
            left = left & ~mine
            k = nearest[index]
            s, b, c = torch.stack([slope, curvature, pairs[0]]).index_select(1, index)
            if size == n:  # t counts from the middle
                D = n // 2 - k
                rows, table = j[index], self.padded[:, self.margin : self.margin + n]
                constant, s = (s - b * D) * D, s - 2 * b * D
                k = torch.full_like(k, n // 2)
            else:
                rows = j[index] * self.padded.shape[1] + k + (self.margin - size // 2)
                table = self.padded.as_strided((self.padded.numel() - size + 1, size), (1, 1))
                constant = torch.zeros_like(s)
            moments = _of_levels(table, rows, torch.stack([constant, s, -b], -1), len(out) > 1)
            _fill(out, places[index], self.levels[k] - c, h, moments)

    def _top(self, pairs: Tensor, fall: Tensor) -> tuple[Tensor, ...]:
        """k_0, s and b of the module's text, and the distance r at which the fall is ``fall``."""
        last, h = self.n - 1, self.gap
        c, alpha, beta = pairs
        slope, b = alpha * h, beta * -(h * h)  # per level, at c
        at = (c - self.first) / h
        chord = slope - 2 * b * (last / 2 - at)
        convex = ~(b > 0)
        end = torch.where(chord > 0, float(last), 0.0)
        k = torch.where(convex, end, at + slope / (2 * b)).nan_to_num_(0.0).clamp_(0, last).round_()
        nearest = k.long()
        s = slope - 2 * b * ((self.levels[nearest] - c) / h)
        # how fast it falls: from an end inwards, else on the slower side; if convex, as its chord
        fast = torch.where(k == 0, -s, torch.where(k == last, s, -s.abs()))
        fast = torch.where(convex, chord.abs(), fast)
        at_least = b.clamp_min(TINY)
        fast, far = (fast / at_least).clamp_max_(STEEP), fall / at_least
        root = torch.sqrt(fast.square() + 4 * far)  # r² + fast r = far
        radius = torch.where(fast < 0, (root - fast) / 2, 2 * far / (root + fast))
        return nearest, s, b, radius


def _fill(
    out: Tensor, places: Tensor, origin: Tensor, unit: float, moments: tuple[Tensor, ...]
) -> None:
    """Fill in E[δ], Var δ and Cov(δ, δ²) by the central moments of x, where δ = origin + unit x."""
    values = [origin + unit * moments[0]]
    if len(moments) > 1:
        variance, skew = unit**2 * moments[1], unit**3 * moments[2]
        values += [variance, skew + 2 * values[0] * variance]
    out.index_copy_(1, places, torch.stack(values).to(out.dtype))


def _of_rule(rule: _Rule, j: Tensor, tilts: Tensor, spread: bool) -> tuple[Tensor, ...]:
    """E[x] and, with ``spread``, E(x - E x)² and E(x - E x)³ of every pair.

    Args:
        rule: Gauss's rule of every dimension.
        j: indices of dimensions, (pairs,).
        tilts: B and C, (2, pairs).
        spread: whether the latter are computed too.
    """
    moments = tilts.new_empty(3 if spread else 1, len(j))
    for R in _pieces(len(j), rule.x.shape[1]):
        x, w = rule.x[j[R]], rule.log_weight[j[R]]
        B, C = tilts[:, R].unsqueeze(-1)
        w.addcmul_(torch.addcmul(B, C, x), x).exp_()
        total = w.sum(-1)
        moments[0, R] = mean = (w * x).sum(-1) / total
        if spread:
            x.sub_(mean.unsqueeze(-1))
            moments[1, R] = w.mul_(x).mul_(x).sum(-1) / total
            moments[2, R] = w.mul_(x).sum(-1) / total
    return moments.unbind()


def _of_levels(
    table: Tensor, rows: Tensor, coefficients: Tensor, spread: bool
) -> tuple[Tensor, ...]:
    """E[t] and, with ``spread``, E(t - E t)² and E(t - E t)³ of every pair, in float64.

    Args:
        table: log-probabilities log π, (…, size).
        rows: indices of the table's rows, (pairs,).
        coefficients: coefficients of 1, t and t² in the tilt, (pairs, 3), t = -size//2 … .
        spread: whether the latter are computed too.
    """
    pairs, size = len(rows), table.shape[1]
    t = torch.arange(size, dtype=torch.float64) - size // 2
    powers = torch.stack([t**i for i in range(4 if spread else 2)], -1)
    quadratic = torch.stack([t**0, t, t**2]).float()
    raw = powers.new_empty(pairs, powers.shape[1])
    for R in _pieces(pairs, size):
        w = table.index_select(0, rows[R]).addmm_(coefficients[R], quadratic)
        torch.mm(w.clamp_(FLOOR, CEILING).exp_().double(), powers, out=raw[R])
    total, *moments = raw.unbind(-1)
    mean, *others = (m / total for m in moments)
    if not others:
        return (mean,)
    square, cube = others
    variance = square - mean * mean
    return mean, variance, cube - mean * (square + 2 * variance)


def _pieces(pairs: int, size: int) -> Iterator[slice]:
    """Slices of pairs whose weights, ``size`` of each, are in cache."""
    step = max(1, WEIGHTS // size)
    return (slice(i, min(i + step, pairs)) for i in range(0, pairs, step))
