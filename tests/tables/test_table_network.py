"""The network of tables, held to Gaussian laws by brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import VPSDE, DiffusionGuide, DiffusionModel, MixedDenoiser, OneHot
from pyro_mdm.evaluation import log_likelihood
from pyro_mdm.tables import LevelLogits, MapMLP
from tests.mistakes import refused
from tests.problems import normal

LEVELS = [None, 3, OneHot(3), 2, None, OneHot(4)]
COLUMNS = torch.tensor([0, 1, 2, 2, 2, 3, 4, 5, 5, 5, 5])
D = len(COLUMNS)
LEVEL, LEFT_OUT, OBSERVED = 0.7, -math.inf, math.inf


def table(n: int = 300) -> Tensor:
    """Rows whose columns all depend on one normal number."""
    common = normal(0, n)

    def index(j: int, number: int) -> Tensor:
        inner = torch.linspace(-1, 1, number + 1)[1:-1].double()
        return torch.bucketize((common + normal(j, n)) / 2, inner)

    columns = [common + normal(1, n), index(2, 3) - 1.0]
    columns += [*torch.eye(3).double()[index(3, 3)].T, 2.0 * index(4, 2) - 1]
    columns += [2 * common - normal(5, n), *torch.eye(4).double()[index(6, 4)].T]
    return torch.stack(columns, 1)


def denoiser(**options: float) -> MixedDenoiser:
    torch.manual_seed(0)
    score = MixedDenoiser.from_gaussian(table(), LEVELS, hidden=8, depth=1, **options)  # type: ignore[arg-type]
    return score.double()


def test_it_starts_right_where_what_is_missing_depends_on_what_is_there() -> None:
    """The mean of what is there is then not the mean of the law."""
    x = normal(0, 4000, 2)
    x[:, 1] = 0.9 * x[:, 0] + (1 - 0.81) ** 0.5 * x[:, 1]
    x[x[:, 0] > 0, 1] = math.nan
    score = MixedDenoiser.from_gaussian(x, [None, None], hidden=8, depth=1)
    lam = torch.tensor([OBSERVED, -12.0]).expand(2, 2)
    z = torch.tensor([[1.5, 0.0], [-1.5, 0.0]])
    with torch.no_grad():
        expected = torch.tensor([1.35, -1.35])
        torch.testing.assert_close(score.x_hat(z, lam)[:, 1], expected, atol=0.15, rtol=0)
    assert float(score.data_mean[1]) < -0.5


def test_a_level_that_few_rows_have_does_not_stop_the_start() -> None:
    """Of many rows some are chosen, all alike in a column."""
    x = torch.cat([torch.full((20_000, 1), -1.0), normal(0, 20_000, 1).float()], 1)
    x[0, 0] = 1.0
    score = MixedDenoiser.from_gaussian(x, [2, None], hidden=8, depth=1)
    assert bool(score.x_hat(x[:4], 0.0).isfinite().all())


def outputs(score: MixedDenoiser, z: Tensor, lam: Tensor) -> Tensor:
    with torch.no_grad():
        return score.call_network(score.inputs(z, lam), lam, 1, channels=score.channels)


def logits_of_law(score: MixedDenoiser, z: Tensor, lam: Tensor, dims: Tensor, v: Tensor) -> Tensor:
    """log p(z of the other columns | column = v), for each of the levels v (n, width), of a row."""
    network = score.network
    C, mean = network.covariance.double(), score.data_mean + network.offset * network.scale
    others = torch.ones(len(z), dtype=torch.bool)
    others[dims] = False
    o = (others & (lam > LEFT_OUT)).nonzero().squeeze(1)
    gain = torch.linalg.solve(C[dims[:, None], dims], C[dims[:, None], o]).mT
    noise = torch.where(lam[o] == OBSERVED, 0.0, (-lam[o]).exp())
    within = C[o[:, None], o] - gain @ C[dims[:, None], o] + noise.diag()
    means = mean[o] + (v - mean[dims]) @ gain.mT
    law = torch.distributions.MultivariateNormal(means, within)
    return law.log_prob(z[o])


@pytest.mark.parametrize("seed", range(4))
def test_logits_start_as_bayes_rule_by_the_gaussian_law(seed: int) -> None:
    """Of each column with levels, given all others at any map."""
    score = denoiser()
    generator = torch.Generator().manual_seed(seed)
    role = torch.randint(3, (6,), generator=generator)[COLUMNS]
    lam = torch.tensor([LEVEL, LEFT_OUT, OBSERVED])[role].double()
    lam = torch.where(COLUMNS == 0, -8.0, lam)
    z = table(1)[0] + 0.5 * torch.randn(D, generator=generator, dtype=torch.float64)
    asked = [j for j in (1, 2, 3, 5) if lam[j == COLUMNS][0] == LEVEL] or [1]
    for j in asked:
        lam[j == COLUMNS] = LEVEL
    start = outputs(score, z[None], lam[None])[0]
    levels, scale = score.level_logits, score.data_variance.sqrt()
    assert levels is not None
    for j in asked:
        dims = (j == COLUMNS).nonzero().squeeze(1)
        own = levels.of_levels == j
        values = levels.codes[own][:, dims] * scale[dims] + score.data_mean[dims]
        rows = levels.outputs[own]
        expected = logits_of_law(score, z, lam, dims, values)
        off = (start[rows] - expected) - (start[rows] - expected).mean()
        torch.testing.assert_close(off, torch.zeros_like(off), atol=1e-4, rtol=0)
        assert float((expected - expected.mean()).abs().max()) > 1e-2  # the others tell something


@pytest.mark.parametrize("log_snr", [-9.0, -4.0, 0.0, 6.0])
@pytest.mark.parametrize("rows", [(2, 1), (1, 1), (3, 0), (200, 1)], ids=str)
def test_logits_of_rare_categories_start_as_bayes_rule(
    rows: tuple[int, int], log_snr: float
) -> None:
    """Codes of categories that few of many rows have are far, and no digits may be lost for it."""
    code = torch.zeros(20_000, dtype=torch.int64)
    code[: rows[0]], code[rows[0] : sum(rows)] = 1, 2
    number = normal(0, 20_000, 1) + (code == 1)[:, None]
    x = torch.cat([nn.functional.one_hot(code, 3).double(), number], 1)
    torch.manual_seed(0)
    score = MixedDenoiser.from_gaussian(x, [OneHot(3), None], hidden=8, depth=1).double()
    levels, dims = score.level_logits, torch.arange(3)
    assert levels is not None
    for lam_of_number in (log_snr, OBSERVED):
        lam = torch.tensor([log_snr] * 3 + [lam_of_number]).double()
        z = torch.cat([normal(1, 3), torch.tensor([1.3]).double()])
        found = outputs(score, z[None], lam[None])[0][levels.outputs]
        expected = logits_of_law(score, z, lam, dims, torch.eye(3).double())
        off = (found - expected) - (found - expected).mean()
        torch.testing.assert_close(off, torch.zeros_like(off), atol=1e-4, rtol=0)


def test_chances_are_posteriors_by_the_noise_of_one_column() -> None:
    score = denoiser()
    levels = score.level_logits
    assert levels is not None
    mean, scale = score.data_mean, score.data_variance.sqrt()
    z = table(6) + normal(3, 6, D)
    lam = torch.tensor([LEVEL, 2.0, -1.0, LEVEL, 0.3, 4.0]).double()[COLUMNS]
    generated = COLUMNS.expand(6, D) != 3  # the fourth is observed
    q = torch.sigmoid(-(lam + 2 * scale.log())).expand(6, D)
    a = (1 - q).sqrt()
    chances = levels.chances(a * (z - mean) / scale, a, q, generated)
    for j in (1, 2, 5):
        dims, own = (j == COLUMNS).nonzero().squeeze(1), levels.of_levels == j
        v = levels.codes[own][:, dims] * scale[dims] + mean[dims]
        noise = torch.distributions.Normal(v, (-lam[dims] / 2).exp())
        pi = levels.prior[own]
        p = (pi.log() + noise.log_prob(z[:, None, dims]).sum(-1)).softmax(-1)
        shift = (p - pi) / (pi * (1 - pi)).sqrt()
        torch.testing.assert_close(chances[:, own], shift / a[:, dims[:1]])
        assert float(pi.sum()) == pytest.approx(1)
    assert not bool(chances[:, levels.of_levels == 3].any())


def test_members_share_a_batch_in_training_and_are_averaged_else() -> None:
    score = denoiser(members=3)
    network = score.network
    members = [super(MapMLP, network).forward, *network.others]
    for weight in network.parameters():
        torch.nn.init.normal_(weight)
    features, level = normal(0, 7, network.features), normal(1, 7)
    each = torch.stack([member(features, level) for member in members])
    network.train()
    rows = torch.stack([each[i % 3, i] for i in range(7)])
    torch.testing.assert_close(network._members_output(features, level), rows)
    network.eval()
    torch.testing.assert_close(network._members_output(features, level), each.mean(0))
    assert not torch.allclose(rows, each.mean(0))


def test_waves_are_of_the_values_that_are_shown_and_zero_elsewhere() -> None:
    network = denoiser(frequencies=(0.5, 2.0)).network
    values, mask = normal(0, 3, D), (normal(1, 3, D) > 0).double()
    mask[0], mask[1] = 0.0, 1.0  # whatever the seed, some of both
    continuous = network.direct >= 0
    angles = torch.cat([math.pi * values[:, continuous], 4 * math.pi * values[:, continuous]], 1)
    expected = torch.cat([angles.sin(), angles.cos()], 1) * mask[:, continuous].repeat(1, 4)
    torch.testing.assert_close(network._waves(values, mask), expected)
    assert 0 < int(mask[:, continuous].sum()) < mask[:, continuous].numel()


def test_what_does_not_fit_is_refused() -> None:
    eye, one = torch.eye(2), torch.ones(2)

    def levels(number: int = 3) -> LevelLogits:
        codes, prior, zeros = torch.zeros(3, 2), torch.ones(number), torch.zeros(3).long()
        return LevelLogits(codes, prior, torch.arange(3), torch.tensor([0, 1]), zeros)

    mistakes = [
        (lambda: MapMLP(eye, one, members=0), "members is 0"),
        (lambda: MapMLP(eye, torch.ones(3)), r"\(2, 2\), \(3,\)"),
        (
            lambda: MapMLP(torch.eye(3), torch.ones(3), levels=levels()),
            "in 2 dimensions, expected 3",
        ),
        (lambda: levels(2), r"of 3 levels and 2 dimensions.*expected \(3,\)"),
    ]
    refused((TypeError, ValueError), *mistakes)


@pytest.mark.parametrize("training", [False, True])
def test_derivatives_of_the_start_are_those_of_finite_differences(training: bool) -> None:
    """By the inputs, and by log SNR, with observed and left-out columns and levels among them."""
    score = denoiser().train(training)
    z = normal(7, 3, D)
    lam = torch.full((3, D), LEVEL, dtype=torch.float64)
    lam[:, 0], lam[1, 6], lam[:, 5] = OBSERVED, LEFT_OUT, -1.2

    def start(z: Tensor, level: Tensor) -> Tensor:
        maps = torch.where(lam.isfinite(), lam + level, lam)
        return score.call_network(score.inputs(z, maps), maps, 1, channels=score.channels)

    level = torch.zeros(3, 1, dtype=torch.float64)  # of each datum, two of which have one map
    assert torch.autograd.gradcheck(
        start, (z.requires_grad_(), level.requires_grad_()), eps=1e-5, atol=1e-5, rtol=1e-4
    )


def test_the_flow_of_a_gaussian_table_has_its_density() -> None:
    torch.manual_seed(0)
    x = normal(0, 2_000, 3) @ torch.tensor(
        [[1.0, 0.8, 0.3], [0.0, 0.6, 0.4], [0.0, 0.0, 0.7]], dtype=torch.float64
    )
    score = MixedDenoiser.from_gaussian(x, [None, None, None], hidden=8, depth=1).double()
    model = DiffusionModel(VPSDE(max_log_snr=9.0), score)
    exact = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x[:16])
    flow = log_likelihood(model, DiffusionGuide(model.diffusion), x[:16], method="flow")
    assert abs(flow.mean - float(exact.mean())) < 0.05
