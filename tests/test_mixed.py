"""Denoisers of dimensions of several kinds, held to laws of few values that are enumerated."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

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
    PerDimensionDiffusion,
    bound,
    condition,
    elbo_terms,
    impute,
)
from pyro_mdm.networks import MLP, MapMLP
from pyro_mdm.support.covariance import joint_moments
from pyro_mdm.tables.denoiser import SHRINKAGE, Elsewhere
from tests.mistakes import refused
from tests.problems import ENDS, D, Silent, fixed, masks, normal
from tests.problems import ExactDenoiser as Exact
from tests.problems import correlated as gaussian

LEVELS: list[Any] = [None, 3, 2, None, [-1.0, 0.5, 1.0], 2]


def rows(n: int) -> Tensor:
    """Of independent columns."""
    columns = [normal(0, n) * 2 + 1, normal(1, n), normal(2, n), normal(3, n), normal(4, n)]
    columns.append(normal(5, n))
    for j, levels in enumerate(LEVELS):
        if levels is not None:
            values = torch.linspace(-1, 1, levels) if isinstance(levels, int) else levels
            which = torch.bucketize(columns[j], torch.linspace(-0.5, 0.9, len(values) - 1).double())
            columns[j] = torch.as_tensor(values).double()[which]
    return torch.stack(columns, 1)


def silent(x: Tensor, **options: Any) -> MixedDenoiser:
    return MixedDenoiser.fit(Silent(MixedDenoiser.num_outputs(LEVELS)), x, LEVELS, **options)


@torch.no_grad()
@pytest.mark.parametrize("maps", [False, True])
def test_a_network_of_no_opinion_has_the_bound_of_independent_columns(maps: bool) -> None:
    """Their log probabilities, column by column; of incomplete rows, of what is there."""
    x = rows(200)
    if maps:
        x[normal(6, 200, 6) > 0.8] = math.nan
    score = silent(x, maps=maps)
    known = torch.zeros(200, dtype=torch.float64)
    for j, (levels, column) in enumerate(zip(LEVELS, x.T, strict=True)):
        here = ~column.isnan()
        if levels is None:
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
    assert abs(found.elbo.mean - known.mean()) < 4.5 * found.monte_carlo_error + 1e-3
    edges = torch.tensor([-8.0, 0.0, 3.0], dtype=torch.float64)
    each = [score.baseline_integrals(filled, edges, d, present) for d in (slice(0, 2), slice(2, 6))]
    ends = torch.stack([score.baseline_kl(filled, e, present) for e in edges.tolist()], 1)
    torch.testing.assert_close(each[0] + each[1], ends.diff(dim=1))


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
            for j, prior in zip(dims.tolist(), part.log_prior, strict=True):
                others = self.log_weights - 0.5 * (distance.sum(-1) - distance[..., j])
                is_level = (self.points[:, j, None] - part.levels).abs() < 1e-6
                each = torch.where(is_level, others.unsqueeze(-1), -math.inf).logsumexp(1)
                logits.append(each - prior)
            outputs.append(torch.stack(logits, -1).flatten(1))
        return torch.cat(outputs, 1) + self.weight


def joint() -> tuple[Tensor, Tensor, Any]:
    """A law of columns of 3, 2 and 3 levels that depend on each other."""
    values = [torch.linspace(-1, 1, n).double() for n in (3, 2, 3)]
    points = torch.tensor(list(itertools.product(*values)), dtype=torch.float64)
    weights = (1.5 * fixed(4, len(points))).softmax(0)
    network = Enumerated(points, weights)
    chosen = torch.multinomial(weights, 4000, True, generator=torch.Generator().manual_seed(0))
    score = MixedDenoiser.fit(network, points[chosen], [3, 2, 3], maps=True)
    network.of.append(score)
    return points, weights, score


@torch.no_grad()
def test_the_bound_of_an_enumerated_law_is_below_its_log_probabilities() -> None:
    """Just below for the exact posterior, more for a shaken one; conditionals too."""
    points, weights, score = joint()
    model = DiffusionModel(VPSDE(max_log_snr=9.0, min_log_snr=-12.0), score)
    guide = DiffusionGuide(model.diffusion)
    x = points.repeat(60, 1)
    known = weights.log().repeat(60)
    found = bound(model, guide, x, draws=8)
    assert found.monte_carlo_error < 0.04
    gap = float(known.mean()) - found.elbo.mean
    assert abs(gap) < 4.5 * found.monte_carlo_error + 0.01
    first = torch.tensor([True, False, False])
    of_first = torch.stack([weights[points[:, 0] == v].sum() for v in points[:, 0]])
    conditional = (weights / of_first).log().repeat(60)
    found = bound(condition(model, first), guide, x, draws=8)
    gap = float(conditional.mean()) - found.elbo.mean
    assert abs(gap) < 4.5 * found.monte_carlo_error + 0.01
    score.network.log_weights = (weights.log() + fixed(9, len(weights))).log_softmax(0)
    worse = bound(model, guide, x, draws=8)
    expected = float((weights * (weights.log() - score.network.log_weights)).sum())
    of_law = weights.repeat(60) * len(points)
    gap = float(((known - worse.per_datum) * of_law).mean())
    assert expected > 0.2 and gap > 0.9 * expected


@torch.no_grad()
def test_imputations_have_the_conditional_probabilities() -> None:
    points, weights, score = joint()
    model = DiffusionModel(VPSDE(max_log_snr=9.0, min_log_snr=-9.0), score)
    x = torch.tensor([[-1.0, math.nan, math.nan], [math.nan, 1.0, 0.0], [1.0, 1.0, 1.0]]).double()
    found = impute(model, x, num=400, seed=1)
    assert torch.equal(found[:, 2], x[2].expand(400, -1))
    for row, datum in enumerate(x[:2]):
        given = ~datum.isnan()
        fits = ((points - datum).abs()[:, given] < 1e-6).all(1)
        law = weights[fits] / weights[fits].sum()
        share = [float((found[:, row] == p).all(1).double().mean()) for p in points[fits]]
        error = (law * (1 - law) / 400).sqrt()
        assert bool(((torch.tensor(share) - law).abs() < 4.5 * error + 0.02).all())
    again = impute(model, x, num=400, seed=1)
    assert torch.equal(found, again) and not torch.equal(again[:9], impute(model, x, num=9, seed=2))


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
    mean, covariance = joint_moments(x, shrinkage=0.0)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(covariance, x.T.cov(correction=0))
    j = int(problem.covariance[0, 1:].abs().argmax()) + 1
    x[x[:, 0] > problem.mean[0], j] = math.nan
    mean, covariance = joint_moments(x, shrinkage=0.0)
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
    x[0, 1] = x[1, 3] = math.nan
    score = MixedDenoiser.from_gaussian(x, LEVELS, hidden=8, depth=1)
    _, covariance = joint_moments(x, shrinkage=SHRINKAGE)
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
    return MixedDenoiser.fit(MLP(6), rows(30) if x is None else x, levels)


def of_parts(part: Any, *part_of: int) -> MixedDenoiser:
    return MixedDenoiser(MLP(2), [part], torch.tensor(part_of))


def two() -> Denoiser:
    return Denoiser(Elsewhere(), torch.zeros(2))


def told() -> DiffusionModel:
    return DiffusionModel(VPSDE(), silent(rows(30), maps=True))


CLOCKS = {"block_of": torch.zeros(6, dtype=torch.int64)}
VALUES = torch.tensor([0.0, 0.3, 1.0, 0.0, 0.5, 1.0])
MISTAKES: list[tuple[Any, str]] = [
    (lambda: fitted([None, 2]), r"train_x has shape \(30, 6\) and levels are of 2 dimensions"),
    (lambda: fitted([2, *LEVELS[1:]]), "x holds .* off the levels"),
    (lambda: fitted(x=rows(30).float()).x_hat(rows(30).float(), 0.0), "build it with"),
    (lambda: fitted().parts[0].x_hat(rows(30)[:, :2], 0.0), "has no network of its own; ask the"),
    (lambda: of_parts(two(), 0, 0, 0), r"part 0 has the event shape \(2,\)"),
    (lambda: of_parts(two(), 0, 2), "part_of is"),
    (lambda: of_parts(MLP(2), 0, 0), "a part is MLP"),
    (
        lambda: DiffusionModel(PerDimensionDiffusion(VPSDE(), **CLOCKS), fitted()),
        "needs one log SNR for all",
    ),
    (lambda: condition(told(), torch.arange(6) < 3, VALUES), "x holds 0.3"),
    (lambda: MapMLP(torch.zeros(2, 2), torch.ones(2)), "not positive definite"),
    (lambda: MapMLP(torch.eye(2), torch.ones(2))(torch.zeros(3, 2), torch.zeros(3)), "maps=True"),
    (lambda: impute(told(), rows(30), num=0), "num is 0"),
]


def test_what_does_not_fit_is_refused() -> None:
    refused((TypeError, ValueError), *MISTAKES)
