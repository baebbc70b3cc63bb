"""Integrals over log SNR from few draws: unbiased, with errors that are true, whatever adapts.

The integrands here are h_m = (1 + m/2) (1 + t) g(λ) (1 + ε) + c (1 - t) with g a bump, t the
difficulty of the datum and a noise ε that the baseline g(λ) (1 + t) (1 + ε) shares.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_mdm.evaluation.estimates import Noise
from pyro_mdm.evaluation.strata import StrataPlan, StratifiedIntegrals, error_of_sum
from tests.problems import fixed

LOW, HIGH, CELLS, N, WIDTH = -6.0, 8.0, 14, 64, 0.7
EDGES = torch.linspace(LOW, HIGH, CELLS + 1, dtype=torch.float64)
DIFFICULTY = torch.linspace(-0.6, 0.8, N, dtype=torch.float64)
EVERYWHERE = torch.ones(2, CELLS, dtype=torch.bool)


def every(covers: Tensor, n: int) -> Tensor:
    """The mask of n data, each of which has all integrands."""
    return torch.ones(len(covers), n, dtype=torch.bool)


def bump(log_snr: Tensor) -> Tensor:
    return (-0.5 * ((log_snr - 2) / WIDTH).square()).exp()


def area(low: Tensor, high: Tensor) -> Tensor:
    cdf = torch.distributions.Normal(2.0, WIDTH).cdf
    return WIDTH * math.sqrt(2 * math.pi) * (cdf(high) - cdf(low))


KNOWN = (1 + DIFFICULTY)[:, None] * area(EDGES[:-1], EDGES[1:])
TRUTH = torch.tensor(  # of each integrand
    [
        (1 + m / 2) * float((1 + DIFFICULTY).mean()) * float(area(EDGES[0], EDGES[-1]))
        + 0.1 * (1 - m) * float((1 - DIFFICULTY).mean()) * (HIGH - LOW)
        for m in range(2)
    ]
)


def play(
    seed: int, rounds: tuple[int, ...], baseline: bool = True, **options
) -> StratifiedIntegrals:
    generator = torch.Generator().manual_seed(seed)
    known = KNOWN if baseline else None
    game = StratifiedIntegrals(
        EDGES, EVERYWHERE, every(EVERYWHERE, N), baseline=known, seed=seed, **options
    )
    for size in rounds:
        datum, log_snr = game.draw(size)
        shared, own = torch.randn(2, size, generator=generator, dtype=torch.float64)
        h0 = (1 + DIFFICULTY[datum]) * bump(log_snr) * (1 + 0.5 * shared)
        values = torch.stack(
            [
                (1 + m / 2) * h0 * (1 + 0.2 * own) + 0.1 * (1 - m) * (1 - DIFFICULTY[datum])
                for m in range(2)
            ]
        )
        game.add(type(game.draw(0))(datum, log_snr), values, h0 if baseline else None)
        game.allocate([(0, None), (1, None), (0, 1)])
    return game


def planned(seed: int, draws: int, baseline: bool = True) -> StratifiedIntegrals:
    """As :func:`play`, by a plan from a pilot of two rounds."""
    targets = [(0, None), (1, None), (0, 1)]
    pilot = play(seed, (64, 64), baseline)
    return play(10_000 + seed, (draws,), baseline, plan=pilot.plan(targets))


def test_spread_and_skewness_that_a_plan_tells_are_those_of_the_noise() -> None:
    """Exponential noise, whatever λ: standard deviation 1 and skewness 2, per unit of level."""
    size = 40_000
    game = StratifiedIntegrals(EDGES, EVERYWHERE[:1], every(EVERYWHERE[:1], N), adapt=False)
    draws = game.draw(size)
    uniform = torch.rand(1, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    game.add(draws, -torch.log1p(-uniform))
    plan = game.plan([(0, None)])
    assert plan.num_draws == size
    assert plan.spread[0, None] == pytest.approx(HIGH - LOW, rel=0.05)
    assert plan.skewness[0, None] * math.sqrt(size) == pytest.approx(2.0, rel=0.2)
    allowance = plan.error((0, None)) / plan.spread[0, None]
    assert allowance == pytest.approx(1 + 3 * plan.skewness[0, None] ** 2)


def test_data_count_alike_in_folds_of_different_sizes() -> None:
    """Where each datum is drawn as often and the level plays no part, all is exact: data that are
    never drawn, as they have no integrand, are 0 in the mean."""
    n, span = 11, 3.0
    exists = torch.ones(2, n, dtype=torch.bool)
    exists[0, 6:], exists[1, 8:], exists[1, :2] = False, False, False
    size = exists * torch.arange(1.0, n + 1).double() ** 2
    edges = torch.tensor([-1.0, -1.0 + span], dtype=torch.float64)
    game = StratifiedIntegrals(edges, EVERYWHERE[:, :1], exists, adapt=False)
    for _ in range(2):
        draws = game.draw(8)  # once each: of 11, 8 have an integrand
        assert draws.datum.sort().values.tolist() == list(range(8))
        game.add(draws, size[:, draws.datum])
    for target, known in (((0, None), size[0]), ((1, None), size[1]), ((0, 1), size[0] - size[1])):
        found = game.integral(*target)
        assert found.mean == pytest.approx(span * float(known.mean()), rel=1e-12)
        torch.testing.assert_close(found.per_datum, span * known)
        torch.testing.assert_close(found.halves, (span * known).expand(2, -1))
        torch.testing.assert_close(found.density, known.mean().reshape(1))


def test_the_error_of_a_sum_is_unbiased_in_groups_of_any_size() -> None:
    """Of independent numbers without a mean: E error² is their number, also one in a group."""
    group = np.repeat([0, 1, 2, 3], [1, 2, 3, 6])
    generator = np.random.default_rng(0)
    level, values = generator.normal(size=len(group)), generator.normal(size=(20_000, len(group)))
    square = error_of_sum(values, group, level)[0] ** 2
    assert abs(square.mean() - len(group)) < 5 * square.std() / math.sqrt(len(values))
    for number in range(4):  # a group that alone is not 0
        some = error_of_sum(values * (group == number), group, level)[0] ** 2
        off = some.mean() - (group == number).sum()
        assert abs(off) < 5 * some.std() / math.sqrt(len(values))


def test_an_error_counts_the_larger_of_two_skewnesses() -> None:
    """That of the draws, and that of the pilot; and the spread of both, by their numbers."""
    target, size, pilot = (0, None), 60, 20
    uniform = torch.full((CELLS,), 1 / (HIGH - LOW), dtype=torch.float64)
    values = -torch.rand(1, size, generator=torch.Generator().manual_seed(3)).double().log()

    def game(skewness: float, spread: float) -> StratifiedIntegrals:
        none = torch.zeros(1, CELLS, 1, dtype=torch.float64)
        plan = StrataPlan(none, uniform, pilot, {target: spread}, {target: skewness})
        made = StratifiedIntegrals(EDGES, EVERYWHERE[:1], every(EVERYWHERE[:1], N), plan=plan)
        made.add(made.draw(size), values)
        return made

    found = game(0.0, 7.0).plan([target])
    mine, spread = found.skewness[target], found.spread[target]
    assert mine > 0.05
    both = math.sqrt((size * spread**2 + pilot * 7.0**2) / (size + pilot) / size)
    for skewness in (0.0, mine / 2, 2 * mine):
        error = (1 + 3 * max(skewness, mine) ** 2) * both
        assert game(skewness, 7.0).errors([target])[0] == pytest.approx(error, rel=1e-9)
        assert game(skewness, 7.0).integral(0).error == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("n", [4, 40])
def test_the_noise_of_data_is_that_of_their_draws(n: int) -> None:
    """In one cell, where an evaluation is a draw of the integral."""
    span, target = 3.0, (0, None)
    edges = torch.tensor([-1.0, -1.0 + span], dtype=torch.float64)
    none, uniform = torch.zeros(1, 1, 1).double(), torch.full((1,), 1 / span).double()
    plan = StrataPlan(none, uniform, 10, {target: 1.0}, {target: 0.0})
    game = StratifiedIntegrals(edges, EVERYWHERE[:1, :1], every(EVERYWHERE[:1, :1], n), plan=plan)
    values = fixed(5, 5, n).exp() * fixed(6, n).exp()
    for row in values:
        draws = game.draw(n)
        game.add(draws, row[draws.datum][None])
    found, known = game.integral(0), Noise.from_draws(span * values)
    torch.testing.assert_close(found.noise.variance, known.variance)
    torch.testing.assert_close(found.noise.degrees, known.degrees)
    whole = span * values / (5 * n)
    torch.testing.assert_close(found.density_error, (whole / span).square().sum().sqrt()[None])


def test_a_datum_is_weighed_by_the_densities_of_its_own_rounds() -> None:
    """Half of the data are drawn by one density, half by another, for an integrand that is 1 in the
    lower half of the range."""
    low = (torch.arange(CELLS) < CELLS // 2).double()
    off = []
    for seed in range(60):
        game = StratifiedIntegrals(
            EDGES, EVERYWHERE[:1], every(EVERYWHERE[:1], N), density=1 + 3 * low, seed=seed
        )
        seen = torch.zeros(2, N, dtype=torch.bool)
        for mine in seen:
            draws = game.draw(N // 2)
            mine[draws.datum] = True
            game.add(draws, (draws.level < EDGES[CELLS // 2]).double()[None])
            game._next = np.tile(game._with_floor((4 - 3 * low).numpy()), (game.folds, 1))
        off.append([game.integral(0).per_datum[mine].mean() - (HIGH - LOW) / 2 for mine in seen])
    each = torch.tensor(off, dtype=torch.float64)
    assert bool((each.mean(0).abs() < 5 * each.std(0) / math.sqrt(len(each))).all())


def test_draws_are_as_dense_as_the_deviation_of_what_is_left() -> None:
    """That of noise which is four times as large in half of the range; a tenth is uniform. For
    several integrands it does not hang on their units."""
    size, span = 20_000, HIGH - LOW
    game, again = (StratifiedIntegrals(EDGES, EVERYWHERE, every(EVERYWHERE, N)) for _ in range(2))
    draws = game.draw(size)
    assert torch.equal(again.draw(size).level, draws.level)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, size, generator=generator, dtype=torch.float64)
    values[0] *= 1 + 3 * (draws.level > 1)
    game.add(draws, values)
    again.add(draws, torch.stack([values[0], 1000 * values[1]]))
    density = game.plan([(0, None)]).density * span
    assert float(density[0]) == pytest.approx(0.9 / 2.5 + 0.1, rel=0.1)
    assert float(density[-1]) == pytest.approx(0.9 * 4 / 2.5 + 0.1, rel=0.1)
    both = [(0, None), (1, None)]
    torch.testing.assert_close(again.plan(both).density, game.plan(both).density)


@pytest.mark.parametrize("baseline", [True, False])
def test_draws_by_a_plan_have_the_error_it_foresees(baseline: bool) -> None:
    repeats = 80
    games = [planned(seed, 200, baseline) for seed in range(repeats)]
    for target, truth in (((0, None), TRUTH[0]), ((0, 1), TRUTH[0] - TRUTH[1])):
        found = [game.integral(*target) for game in games]
        mean = torch.tensor([f.mean for f in found], dtype=torch.float64)
        error = torch.tensor([f.error for f in found], dtype=torch.float64)
        assert abs(mean.mean() - truth) < 5 * mean.std() / math.sqrt(repeats)
        assert 0.85 < error.square().mean().sqrt() / mean.std() < 1.8
        spread = [game._plan.spread[target] for game in games]
        foreseen = torch.tensor(spread, dtype=torch.float64) / math.sqrt(200)
        assert 0.75 < foreseen.square().mean().sqrt() / mean.std() < 1.9
        covered = ((mean - truth).abs() < 1.96 * error).double().mean()
        assert covered > 0.95 - 6 * math.sqrt(0.05 * 0.95 / repeats)


def test_each_part_lowers_the_error() -> None:
    """The error that is claimed, which is true by the test above and varies by a percent only."""

    def claimed(**options) -> float:
        games = [play(seed, (256, 256, 256), **options) for seed in range(10)]
        return math.sqrt(sum(game.integral(0).error ** 2 for game in games) / 10)

    plain = claimed(baseline=False, adapt=False)
    assert claimed(baseline=False) < 0.75 * plain  # 0.68
    assert claimed(adapt=False) < 0.5 * plain  # 0.37


def test_the_baseline_itself_is_known_exactly() -> None:
    game = StratifiedIntegrals(EDGES, EVERYWHERE[:1], every(EVERYWHERE[:1], N), baseline=KNOWN)
    for size in (40, 64):
        draws = game.draw(size)
        h0 = (1 + DIFFICULTY[draws.datum]) * bump(draws.level) * torch.rand(size).double()
        game.add(draws, h0.unsqueeze(0), h0)
        game.allocate([(0, None)])
    found = game.integral(0)
    assert found.mean == pytest.approx(float(KNOWN.sum(1).mean()), rel=1e-12)
    assert found.error == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(found.per_datum, KNOWN.sum(1))
    torch.testing.assert_close(found.density * EDGES.diff(), KNOWN.mean(0))


def test_data_that_were_never_drawn_have_a_prediction_without_an_error() -> None:
    game = play(4, (40,))
    found = game.integral(0)
    assert int(found.noise.variance.isnan().sum()) == N - 40
    assert bool(found.per_datum.isfinite().all())


def test_an_integrand_with_a_shorter_range_is_0_outside() -> None:
    covers = EVERYWHERE.clone()
    covers[1, :7] = False
    game = StratifiedIntegrals(EDGES, covers, every(covers, N), baseline=KNOWN)
    for _ in range(3):
        draws = game.draw(N)
        h0 = (1 + DIFFICULTY[draws.datum]) * bump(draws.level)
        inside = draws.level >= EDGES[7]
        game.add(draws, torch.stack([h0, h0 * inside]), h0)
        game.allocate([(0, 1)])
    assert game.integral(1).mean == pytest.approx(float(KNOWN[:, 7:].sum(1).mean()), rel=1e-9)
    assert game.integral(0, 1).mean == pytest.approx(float(KNOWN[:, :7].sum(1).mean()), rel=1e-9)
    assert float(game.integral(1).density[:7].abs().max()) == 0


def test_draws_visit_all_data_evenly_and_follow_the_density() -> None:
    density = torch.zeros(CELLS, dtype=torch.float64)
    density[5] = 1.0
    game = StratifiedIntegrals(
        EDGES, EVERYWHERE, every(EVERYWHERE, N), density=density, adapt=False
    )
    visits, inside = torch.zeros(N), 0
    for _ in range(400):
        datum, log_snr = game.draw(48)
        visits += torch.bincount(datum, minlength=N)
        inside += int(((log_snr >= EDGES[5]) & (log_snr < EDGES[6])).sum())
        assert float(log_snr.min()) >= LOW and float(log_snr.max()) <= HIGH
    assert int(visits.max() - visits.min()) <= 1
    # nine tenths by the density, a tenth uniform over 14 cells; of 48 draws the standard deviation
    # is 0.027, of independent ones 0.042
    assert inside / (400 * 48) == pytest.approx(0.9 + 0.1 / 14, abs=5 * 0.027 / math.sqrt(400))
