"""Denoisers of dimensions of several kinds, held to laws of few values that are enumerated."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import (
    CLD,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    MixedDenoiser,
    OneHot,
    PerDimensionDiffusion,
    bound,
    condition,
    elbo_terms,
    impute,
)
from pyro_mdm.conditioning import RandomMaps
from pyro_mdm.conditioning.maps import Maps
from pyro_mdm.levels.discrete import mixture_kl
from pyro_mdm.networks import MLP
from pyro_mdm.tables import MapMLP
from pyro_mdm.tables.covariance import joint_moments
from pyro_mdm.tables.denoiser import NoNetwork
from pyro_mdm.tables.one_hot import OneHotDenoiser, one_hot_kl
from tests.mistakes import refused
from tests.problems import (
    ENDS,
    D,
    ExactDenoiser as Exact,
    Silent,
    correlated as gaussian,
    fixed,
    masks,
    normal,
)

LEVELS: list[Any] = [None, 3, OneHot(3), 2, None, OneHot(4), [-1.0, 0.5, 1.0], OneHot(3), 2]
OF_DIMS: list[Any] = [v for v in LEVELS for _ in range(getattr(v, "number", 1))]
GROUPS = torch.tensor([0, 1, 2, 2, 2, 3, 4, 5, 5, 5, 5, 6, 7, 7, 7, 8])
WIDE = len(GROUPS)


def rows(n: int) -> Tensor:
    """Of independent columns."""
    columns = []
    for j, levels in enumerate(LEVELS):
        own = normal(j, n) * (2 if j == 0 else 1) + (j == 0)
        if levels is None:
            columns.append(own)
            continue
        values = torch.linspace(-1, 1, levels) if isinstance(levels, int) else levels
        if isinstance(levels, OneHot):
            values = torch.eye(levels.number)
        which = torch.bucketize(own, torch.linspace(-0.5, 0.9, len(values) - 1).double())
        columns += list(torch.as_tensor(values).double()[which].reshape(n, -1).T)
    return torch.stack(columns, 1)


def leave_out(x: Tensor, missing: Tensor) -> Tensor:
    """x (n, d) with NaN in missing columns (n, columns)."""
    return torch.where(missing[:, GROUPS], math.nan, x)


def silent(x: Tensor, **options: Any) -> MixedDenoiser:
    return MixedDenoiser.fit(Silent(MixedDenoiser.num_outputs(LEVELS)), x, LEVELS, **options)


@torch.no_grad()
@pytest.mark.parametrize("maps", [False, True])
def test_a_network_of_no_opinion_has_the_bound_of_independent_columns(maps: bool) -> None:
    """Their log probabilities, column by column; of incomplete rows, of what is there."""
    x = rows(200)
    if maps:
        x = leave_out(x, normal(6, 200, len(LEVELS)) > 0.8)
    score = silent(x, maps=maps)
    known = torch.zeros(200, dtype=torch.float64)
    for j, (levels, column) in enumerate(zip(OF_DIMS, x.T, strict=True)):
        here = ~column.isnan()
        if isinstance(levels, OneHot):  # the dimension of each category adds where it is 1
            part = score.parts[int(score.part_of[j])]
            place = int((score.part_of[:j] == score.part_of[j]).sum())
            known += torch.where(column == 1, part.log_prior.flatten()[place], 0)
        elif levels is None:
            law = torch.distributions.Normal(column[here].mean(), column[here].std(correction=0))
            known[here] += law.log_prob(column[here])
        else:
            part = score.parts[int(score.part_of[j])]
            place = int((score.part_of[:j] == score.part_of[j]).sum())
            level = (column[here].unsqueeze(-1) - part.levels).abs().argmin(-1)
            known[here] += part.log_prior[place][level]
    filled, present = torch.where(x.isnan(), score.typical, x), ~x.isnan()
    torch.testing.assert_close(score.baseline_log_prob(filled, present), known)
    model = DiffusionModel(CLD(max_log_snr=9.0, min_log_snr=-12.0), score)
    found = bound(model, DiffusionGuide(model.diffusion), x, draws=2)
    assert found.monte_carlo_error < 0.12  # of the decoders alone
    assert abs(found.elbo.mean - known.mean()) < 5.5 * found.monte_carlo_error + 1e-3
    edges = torch.tensor([-8.0, 0.0, 3.0], dtype=torch.float64)
    parts = (slice(0, 3), slice(3, 8), slice(8, 8), slice(8, WIDE))
    each = torch.stack([score.baseline_integrals(filled, edges, d, present) for d in parts])
    ends = torch.stack([score.baseline_kl(filled, e, present) for e in edges.tolist()], 1)
    torch.testing.assert_close(each.sum(0), ends.diff(dim=1))
    of_dims = edges.unsqueeze(1) + 0.2 * GROUPS  # every column has its own
    each = torch.stack([score.baseline_integrals(filled, of_dims[:, d], d, present) for d in parts])
    together = score.baseline_integrals(filled, of_dims, slice(0, WIDE), present)
    torch.testing.assert_close(each.sum(0), together)
    same = edges.unsqueeze(1).expand(-1, WIDE)
    together = score.baseline_integrals(filled, same, slice(0, WIDE), present)
    torch.testing.assert_close(together, ends.diff(dim=1))


class Enumerated(nn.Module):
    """The posterior logits of a joint law of levels, for any z and maps of log SNR, exactly.

    Args:
        points: (m, d) on the levels;  weights: (m,).
    """

    def __init__(self, points: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.points, self.log_weights = points, weights.log()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.of: list[Any] = []  # the score, which has it as its network

    def forward(self, inputs: Tensor, log_snr: Tensor) -> Tensor:
        (score,) = self.of
        d = self.points.shape[1]
        told = inputs[:, d:]
        lam = torch.where(told >= 3, 14.0, torch.where(told <= -3, -60.0, 10 * told))
        v = (-lam).exp()
        z = inputs[:, :d] * (score.data_variance + v).sqrt() + score.data_mean
        z = torch.where(told >= 3, score.data_mean + inputs[:, :d] * score.data_variance.sqrt(), z)
        distance = (z.unsqueeze(1) - self.points).square() / v.unsqueeze(1)  # (n, m, d)
        outputs = []
        for part, dims in zip(score.parts, score._dims.dims, strict=True):
            logits = []
            for own, prior in zip(
                dims.reshape(len(part.log_prior), -1), part.log_prior, strict=True
            ):
                others = self.log_weights - 0.5 * (distance.sum(-1) - distance[..., own].sum(-1))
                is_level = self.points[:, own] > 0.5  # of each category, or at each level
                if len(own) == 1:
                    is_level = (self.points[:, own] - part.levels).abs() < 1e-6
                each = torch.where(is_level, others.unsqueeze(-1), -math.inf).logsumexp(1)
                logits.append(each - prior)
            one_hot = isinstance(part, OneHotDenoiser)
            outputs.append(torch.cat(logits, 1) if one_hot else torch.stack(logits, -1).flatten(1))
        return torch.cat(outputs, 1) + self.weight


def joint(*levels: Any) -> tuple[Tensor, Tensor, Any]:
    """A law of columns of these levels that depend on each other: points, weights, the score."""
    values = [
        torch.eye(own.number).double()
        if isinstance(own, OneHot)
        else torch.linspace(-1, 1, own).double().unsqueeze(1)
        for own in levels
    ]
    points = torch.stack([torch.cat(cell) for cell in itertools.product(*values)])
    weights = (1.5 * fixed(4, len(points))).softmax(0)
    network = Enumerated(points, weights)
    chosen = torch.multinomial(weights, 4000, True, generator=torch.Generator().manual_seed(0))
    score = MixedDenoiser.fit(network, points[chosen], levels, maps=True)
    network.of.append(score)
    return points, weights, score


def column_of(score: MixedDenoiser) -> Tensor:
    d = len(score.part_of)
    return torch.arange(d) if score.groups is None else score.groups


def given(points: Tensor, weights: Tensor, datum: Tensor) -> Tensor:
    """The conditional law (m,) given what is there of a datum."""
    fits = ((points - datum).abs()[:, ~datum.isnan()] < 1e-6).all(1)
    return torch.where(fits, weights, 0) / weights[fits].sum()


of_levels = pytest.mark.parametrize(
    "levels", [(3, 2, 3), (OneHot(3), 2, OneHot(3)), (OneHot(4), OneHot(2))], ids=str
)


@of_levels
@torch.no_grad()
def test_the_denoiser_of_an_enumerated_law_is_its_posterior_mean(levels: Any) -> None:
    """At maps with columns observed, left out and at different levels of noise."""
    points, weights, score = joint(*levels)
    columns = column_of(score)
    for lam in ([1.0, 3.0, -2.0], [math.inf, 0.0, -math.inf], [2.0, math.inf, 1.0]):
        maps = torch.tensor(lam, dtype=torch.float64)[columns].expand(5, -1)
        x = points[torch.arange(5)]
        z = torch.where(maps == math.inf, x, x + (-maps / 2).exp() * normal(7, *x.shape))
        z = torch.where(maps == -math.inf, 0.3, z)
        sharp = maps.clamp(-60, 20)
        distance = ((z.unsqueeze(1) - points).square() * sharp.exp().unsqueeze(1)).sum(-1)
        known = (weights.log() - distance / 2).softmax(1) @ points
        torch.testing.assert_close(score.x_hat(z, maps), known, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@of_levels
@torch.no_grad()
def test_the_bound_of_an_enumerated_law_is_below_its_log_probabilities(levels: Any) -> None:
    """Just below for the exact posterior, more for a shaken one; conditionals too."""
    points, weights, score = joint(*levels)
    model = DiffusionModel(VPSDE(max_log_snr=9.0, min_log_snr=-12.0), score)
    guide = DiffusionGuide(model.diffusion)
    repeats = 1080 // len(points)
    x = points.repeat(repeats, 1)
    known = weights.log().repeat(repeats)
    found = bound(model, guide, x, draws=8)
    assert found.monte_carlo_error < 0.05 and found.num_dims == len(levels)
    gap = float(known.mean()) - found.elbo.mean
    assert abs(gap) < 5.5 * found.monte_carlo_error + 0.01
    first = column_of(score) == 0
    of_first = [given(points, weights, torch.where(first, p, math.nan)) for p in points]
    conditional = torch.stack([law[i] for i, law in enumerate(of_first)]).log().repeat(repeats)
    found = bound(condition(model, first), guide, x, draws=8)
    gap = float(conditional.mean()) - found.elbo.mean
    assert abs(gap) < 5.5 * found.monte_carlo_error + 0.01
    of_rest = torch.stack([weights[(points[:, first] == p[first]).all(1)].sum() for p in points])
    found = bound(model, guide, torch.where(first, x, math.nan), draws=8)
    gap = float(of_rest.log().mean()) - found.elbo.mean
    assert abs(gap) < 5.5 * found.monte_carlo_error + 0.01
    score.network.log_weights = (weights.log() + fixed(9, len(weights))).log_softmax(0)
    worse = bound(model, guide, x, draws=16)
    expected = float((weights * (weights.log() - score.network.log_weights)).sum())
    of_law = weights.repeat(repeats) * len(points)
    gap = float(((known - worse.per_datum) * of_law).mean())
    error = float((worse.per_datum_error * of_law).norm()) / len(x)
    assert expected > 4 * error and abs(gap - expected) < 5.5 * error


@of_levels
@torch.no_grad()
def test_imputations_have_the_conditional_probabilities(levels: Any) -> None:
    points, weights, score = joint(*levels)
    model = DiffusionModel(VPSDE(max_log_snr=9.0, min_log_snr=-9.0), score)
    columns = column_of(score)
    x = torch.stack([points[0], points[5], points[7]])
    x[0, columns > 0] = math.nan
    x[1, columns == 0] = math.nan
    found = impute(model, x, num=400, seed=1)
    assert torch.equal(found[:, 2], x[2].expand(400, -1))
    for row, datum in enumerate(x[:2]):
        law = given(points, weights, datum)
        share = [float((found[:, row] == p).all(1).double().mean()) for p in points]
        assert sum(share) == pytest.approx(1)  # nothing else is drawn
        error = (law * (1 - law) / 400).sqrt()
        assert bool(((torch.tensor(share) - law).abs() < 5.5 * error + 0.02).all())
    again = impute(model, x, num=400, seed=1)
    assert torch.equal(found, again) and not torch.equal(again[:9], impute(model, x, num=9, seed=2))


@pytest.mark.parametrize("log_snr", [-6.0, 0.0, 2.5, 8.0])
def test_the_divergence_of_categories(log_snr: float) -> None:
    """Of two it is one along the line between them; of more that of draws; and its derivative is
    the baseline's error."""
    prior = (1.5 * fixed(1, 3, 2)).log_softmax(-1)
    line = torch.tensor([0.0, math.sqrt(2)], dtype=torch.float64)
    torch.testing.assert_close(one_hot_kl(prior, log_snr), mixture_kl(prior, line, log_snr))
    prior = (1.5 * fixed(2, 1, 5)).log_softmax(-1)
    score = OneHotDenoiser(Silent(1), prior)
    n, noise = 100_000, math.exp(-log_snr / 2)
    x = torch.eye(5).double()[torch.arange(n) % 5]
    z = x + noise * normal(3, n, 5)
    q = -0.5 * ((z - x) / noise).square().sum(1)
    apart = (z.unsqueeze(1) - torch.eye(5).double()) / noise
    p = (prior - 0.5 * apart.square().sum(-1)).logsumexp(-1)
    off = score.baseline_kl(x, log_snr) - (q - p)
    assert abs(float(off.mean())) < 5.5 * float(off.std()) / math.sqrt(n) + 1e-5
    with torch.no_grad():
        h0 = score.baseline_integrand(x, torch.full((n,), log_snr, dtype=torch.float64))
    ends_of = [score.baseline_kl(x[:5], log_snr + step) for step in (-1e-3, 1e-3)]
    slope = ((ends_of[1] - ends_of[0]) / 2e-3).repeat(n // 5)
    off = slope - h0
    assert abs(float(off.mean())) < 5.5 * float(off.std()) / math.sqrt(n) + 1e-5


class OfColumns(RandomMaps):
    """Random maps that are asked for columns, not for dimensions."""

    def draw(self, shape: Any, *args: Any) -> Maps:
        if len(args) < 5:  # without groups
            assert tuple(shape)[1:] == (len(LEVELS),) == args[3].shape[1:]
        return super().draw(shape, *args)


@pytest.mark.parametrize("kind", ["levels", "subsets", "independent"])
@torch.no_grad()
def test_random_maps_of_columns_are_unbiased(kind: str) -> None:
    """A category is one column in roles, log SNRs and weights, missing entries included."""
    n, x = 6000, leave_out(rows(6000), normal(9, 6000, len(LEVELS)) > 1.0)
    score = silent(x, maps=True)
    shares = {name: float(name == kind) for name in ("levels", "subsets", "independent")}
    score.training_maps = OfColumns(**shares, missing="leave_out")
    present = ~x.isnan()
    maps = score.training_maps.draw(x.shape, -5.0, 7.0, torch.device("cpu"), present, GROUPS)
    for own in GROUPS.unique():
        for part in (maps.log_snr, maps.weight):
            assert torch.equal(part[:, own == GROUPS].amin(1), part[:, own == GROUPS].amax(1))
    firsts = torch.tensor([True, *(GROUPS.diff() > 0).tolist()])
    number = (present[:, firsts]).sum(1)
    torch.testing.assert_close(maps.weight[:, firsts].sum(1), 12.0 * number.double())
    model = DiffusionModel(CLD(max_log_snr=7.0, min_log_snr=-6.0), score).train()
    terms = elbo_terms(model, DiffusionGuide(model.diffusion), x)
    filled = torch.where(present, x, score.typical)
    ends = [score.baseline_kl(filled, end, present) for end in (-6.0, 7.0)]
    off = terms.diffusion - (ends[1] - ends[0])
    assert abs(float(off.mean())) < 5.5 * float(off.std()) / math.sqrt(n)


@torch.no_grad()
def test_a_map_network_starts_at_the_gaussian_law() -> None:
    """Exactly, for every map, and so do bounds and imputations of incomplete rows."""
    problem = gaussian()
    mean, covariance = problem.mean, problem.covariance
    variance = covariance.diagonal() * 1.3  # a denoiser's own scale may differ
    network = MapMLP(covariance, variance.sqrt(), hidden=8).double()
    score = Denoiser(network, mean, variance, maps=True)
    for seed in range(6):
        observed, left_out = masks(seed)
        z = problem.sample(5, 1) + normal(seed, 5, D)
        lam = torch.where(observed, math.inf, torch.where(left_out, -math.inf, seed - 3.0))
        known = Exact(problem).x_hat(z, lam.expand(5, D))
        known = torch.where(observed, z, known)
        torch.testing.assert_close(score.x_hat(z, lam.expand(5, D)), known, rtol=1e-5, atol=1e-5)


def test_moments_of_incomplete_rows_are_those_of_the_law() -> None:
    """Where what is missing depends on what is there, means of columns are off. A column without a
    value has some law too."""
    problem = gaussian()
    n = 30_000
    x = problem.sample(n, 1)
    mean, covariance = joint_moments(x)
    torch.testing.assert_close(mean, x.mean(0))
    S = x.T.cov(correction=0)
    torch.testing.assert_close(covariance.diagonal(), S.diagonal())
    shrunk = covariance / S - torch.eye(D, dtype=S.dtype)
    factor = float(shrunk[0, 1])  # N/(N + α), one for all pairs
    torch.testing.assert_close(covariance, factor * S + (1 - factor) * S.diagonal().diag())
    assert n / (n + 100 * D) < factor < 1
    j = int(problem.covariance[0, 1:].abs().argmax()) + 1
    x[x[:, 0] > problem.mean[0], j] = math.nan
    mean, covariance = joint_moments(x)
    assert abs(float(x[:, j].nanmean() - problem.mean[j])) > 0.15
    # the half that is there says of the whole's mean, at its edge, as much as n / 6 whole rows, and
    # of its variances as much as n / 2; the column's own mean is off by 30 standard errors
    variance = problem.covariance.diagonal()
    error = (variance / (n / 6)).sqrt()
    assert bool(((mean - problem.mean).abs() < 5 * error).all())
    error = (2 * variance[:, None] * variance / (n / 2)).sqrt()
    assert bool(((covariance - problem.covariance).abs() < 5 * error).all())
    x[:, 2] = math.nan
    assert int(torch.linalg.cholesky_ex(joint_moments(x[:99])[1]).info) == 0


def test_training_and_saving(tmp_path: Path) -> None:
    x = rows(40).float()
    x[0, 1] = x[1, 6] = x[2, 2:5] = math.nan
    score = MixedDenoiser.from_gaussian(x, LEVELS, hidden=8, depth=1)
    _, covariance = joint_moments(x)
    torch.testing.assert_close(score.network.covariance, covariance.float())
    model = DiffusionModel(VPSDE(**ENDS), score)
    MDM_ELBO().loss_and_grads(model, DiffusionGuide(model.diffusion), x)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    model.eval().save_pretrained(tmp_path)
    again = DiffusionModel.from_pretrained(tmp_path)
    found = []
    for one in (model, again):
        torch.manual_seed(0)
        found.append(elbo_terms(one, DiffusionGuide(one.diffusion), x).elbo)
    torch.testing.assert_close(*found)
    drawn = again(batch_size=5)
    assert float(again.score_function.baseline_log_prob(drawn).min()) > -math.inf


def fitted(levels: Any = LEVELS, x: Any = None) -> MixedDenoiser:
    return MixedDenoiser.fit(MLP(WIDE), rows(30) if x is None else x, levels)


def of_parts(part: Any, *part_of: int) -> MixedDenoiser:
    return MixedDenoiser(MLP(2), [part], torch.tensor(part_of))


def two() -> Denoiser:
    return Denoiser(NoNetwork(), torch.zeros(2))


def told() -> DiffusionModel:
    return DiffusionModel(VPSDE(), silent(rows(30), maps=True))


def torn(at: int, value: float) -> Tensor:
    x = rows(30)
    x[0, at] = value
    return x


def mask(*dims: int) -> Tensor:
    return torch.isin(torch.arange(WIDE), torch.tensor(dims))


CLOCKS = {"block_of": torch.zeros(WIDE, dtype=torch.int64)}
VALUES = rows(1)[0].index_fill(0, torch.tensor([1]), 0.3)
TWO = rows(1)[0].index_fill(0, torch.tensor([2, 3]), 1.0)
MISTAKES: list[tuple[Any, str]] = [
    (lambda: fitted([None, 2]), r"train_x has shape \(30, 16\) and levels are of 2 dimensions"),
    (lambda: fitted([2, *LEVELS[1:]]), "x holds .* off the levels"),
    (lambda: fitted(x=rows(30).float()).x_hat(rows(30).float(), 0.0), "build it with"),
    (lambda: fitted().parts[0].x_hat(rows(30)[:, :2], 0.0), "has no network of its own; ask the"),
    (lambda: of_parts(two(), 0, 0, 0), r"part 0 has the event shape \(2,\)"),
    (lambda: of_parts(two(), 0, 2), "part_of is"),
    (lambda: of_parts(MLP(2), 0, 0), r"parts\[0\] is MLP.*, expected a DenoiserScore"),
    (
        lambda: DiffusionModel(PerDimensionDiffusion(VPSDE(), **CLOCKS), fitted()),
        "needs one log SNR for all",
    ),
    (lambda: condition(told(), mask(0, 1), VALUES), "x holds 0.3"),
    (lambda: condition(told(), mask(2, 3, 4), TWO), r"x holds \[1.0, 1.0, .*expected one 1 and 2"),
    (lambda: condition(told(), mask(0, 3)), "some of the dimensions 2 … 4, which are one category"),
    (lambda: condition(told(), mask(0), left_out=mask(4)), "left_out has some .* set all 3 alike"),
    (lambda: impute(told(), torn(9, math.nan)), "some of the dimensions 7 … 10"),
    (lambda: told().log_prob(torn(9, math.nan)), r"missing \(NaN\) has some of the dimensions 7"),
    (lambda: told().log_prob(torn(9, 0.5)), "expected one 1 and 3 zeros"),
    (lambda: fitted(x=torn(9, 0.5)), "expected one 1 and 3 zeros"),
    (lambda: OneHot(1), "number is 1"),
    (lambda: MapMLP(torch.zeros(2, 2), torch.ones(2)), "not positive definite"),
    (lambda: MapMLP(torch.eye(2), torch.ones(2))(torch.zeros(3, 2), torch.zeros(3)), "maps=True"),
    (lambda: impute(told(), rows(30), num=0), "num is 0"),
]


def test_what_does_not_fit_is_refused() -> None:
    refused((TypeError, ValueError), *MISTAKES)


@pytest.mark.parametrize(("correlation", "n"), [(0.0, 30), (0.3, 50), (0.6, 40), (0.9, 59)])
def test_the_covariance_is_shrunk_to_the_most_probable_degree(correlation: float, n: int) -> None:
    """The evidence of α is that of scipy's matrix distributions, on a grid of its own."""
    from scipy.special import multigammaln
    from scipy.stats import invwishart

    d = 6
    C = correlation * torch.ones(d, d).double() + (1 - correlation) * torch.eye(d).double()
    x = normal(3, n, d) @ torch.linalg.cholesky(C).mT
    x = (x - x.mean(0)) / x.std(0, correction=0)
    S = (x.mT @ x).numpy()

    def evidence(alpha: float) -> float:
        nu = alpha + d + 1
        prior = alpha * np.eye(d)
        logdet = [np.linalg.slogdet(A)[1] for A in (prior, prior + S)]
        gammas = multigammaln((nu + n) / 2, d) - multigammaln(nu / 2, d)
        return float(nu / 2 * logdet[0] - (nu + n) / 2 * logdet[1] + gammas)

    alphas = np.logspace(-1, np.log10(100 * d), 200)
    best = alphas[int(np.argmax([evidence(alpha) for alpha in alphas]))]
    _, covariance = joint_moments(x)
    mean = invwishart(best + d + 1 + n, best * np.eye(d) + S).mean()
    assert float(np.abs(covariance.numpy() - mean).max()) < 0.02
