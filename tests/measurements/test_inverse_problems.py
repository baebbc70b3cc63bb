"""The benchmark of inverse problems: its answers, scores, counts and program."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from tests.benchmarks import measured_images, measurements, runs
from tests.benchmarks.inverse_problems import images, methods, summary
from tests.benchmarks.inverse_problems.counting import counted
from tests.benchmarks.inverse_problems.methods import EXACT, OURS
from tests.benchmarks.inverse_problems.problems import (
    NOISES,
    OPERATORS,
    MixtureDenoiser,
    exact_problem,
    mixture,
)
from tests.benchmarks.inverse_problems.scores import (
    Reference,
    error_of_mean,
    error_of_weights,
)
from tests.problems import ExactDenoiser, GaussianMixture, normal


@pytest.fixture(autouse=True)
def few_exact_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "REFERENCE", 500)


# -- problems --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("noise", NOISES)
def test_posterior_and_evidence_are_bayes_rule(operator: str, noise: str) -> None:
    problem, law, evidence = exact_problem(8, noise, operator, 1)
    x = law.sample(5, 3)
    rest = (problem.operator(x) - problem.obs) / problem.noise
    likelihood = -0.5 * rest.square().sum(1)
    likelihood -= rest.shape[1] * math.log(problem.noise * math.sqrt(2 * math.pi))
    joint = mixture(8, 1).log_prob(x) + likelihood
    torch.testing.assert_close(law.log_prob(x), joint - evidence, rtol=1e-6, atol=1e-6)


def test_dependent_observations_have_half_their_rank() -> None:
    for d, m in ((2, 2), (8, 4), (32, 16)):
        H = exact_problem(d, "easy", "dependent", 0).problem.operator.matrix()
        values = torch.linalg.svdvals(H)
        assert len(H) == m
        assert int((values > 1e-9 * values[0]).sum()) == m // 2


def test_the_denoiser_is_that_of_the_mixture() -> None:
    data = mixture(8, 2)
    z, log_snr = 3 * normal(0, 4, 8), torch.tensor([-6.0, 0.0, 3.0, 8.0]).double()
    expected = ExactDenoiser(data).x_hat(z, log_snr)
    torch.testing.assert_close(MixtureDenoiser(data).x_hat(z, log_snr), expected)


# -- scores ----------------------------------------------------------------------------------------


def test_energy_is_the_distance_between_laws() -> None:
    """Of N(0, 1) and N(a, 1): 2 E|X - Y| - 2 E|X - X'|, and the floor for a = 0."""

    def absolute(mean: float) -> float:
        """E|X - Y| of normal numbers whose means differ by so much."""
        within = math.exp(-(mean**2) / 4) * 2 / math.sqrt(math.pi)
        return within + mean * math.erf(mean / 2)

    reference = Reference(normal(1, 3_000, 1))
    n = 1_000
    known = 2 * absolute(1.5) - 2 * absolute(0.0) + absolute(0.0) / n
    found = reference.energy(normal(2, n, 1) + 1.5)
    assert found == pytest.approx(known, rel=0.15)
    assert reference.floor(n) == pytest.approx(absolute(0.0) / n, rel=0.1)
    same = [reference.energy(normal(seed, n, 1)) for seed in range(3, 23)]
    assert sum(same) / len(same) == pytest.approx(reference.floor(n), rel=0.9)


def test_energy_of_draws_that_depend_on_each_other_is_that_of_independent_ones() -> None:
    """Draws that are there four times look farther from the law than they are."""
    reference = Reference(normal(1, 3_000, 2))
    four_times = [normal(seed, 100, 2).repeat_interleave(4, 0) for seed in range(20, 60)]
    floor = reference.floor(400)
    as_they_are = sum(reference.energy(x) for x in four_times) / len(four_times)
    in_groups = sum(reference.energy(x, 4) for x in four_times) / len(four_times)
    assert as_they_are > 3 * floor
    assert abs(in_groups - floor) < floor


def test_errors_of_mean_and_weights_are_in_their_units() -> None:
    covariance = torch.tensor([[1.0, 0.0], [0.0, 4.0]]).expand(2, 2, 2)
    law = GaussianMixture([0.7, 0.3], torch.tensor([[0.0, 0], [20, 0]]), covariance)
    exact = torch.cat([torch.zeros(70, 2), torch.tensor([[20.0, 0]]).expand(30, 2)]).double()
    assert error_of_weights(exact, law) == pytest.approx(0, abs=1e-9)
    assert error_of_weights(exact[:70], law) == pytest.approx(0.3)
    assert error_of_mean(exact, law) == pytest.approx(0, abs=1e-9)
    assert error_of_mean(exact + torch.tensor([0, 0.5]), law) == pytest.approx(0.25 / math.sqrt(2))


# -- counts ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_calls_and_products_are_counted_for_each_datum() -> None:
    score = MixtureDenoiser(mixture(3, 0))
    plain = MixtureDenoiser(mixture(3, 0))
    work, z, log_snr = counted(score), normal(0, 5, 3), torch.zeros(5).double()

    def f(z: Tensor) -> Tensor:
        return score.x_hat(z, log_snr)

    def made(calls: int, products: int) -> None:
        assert (work.calls, work.products) == (calls, products)
        assert work.total == calls + 2 * products
        work.reset()

    v = normal(1, 5, 3)
    torch.testing.assert_close(f(z), plain.x_hat(z, log_snr))
    made(5, 0)
    at = z.clone().requires_grad_()
    x_hat = f(at)
    w = torch.zeros_like(x_hat, requires_grad=True)
    (pulled,) = torch.autograd.grad(x_hat, at, w, create_graph=True)
    made(5, 5)
    (pushed,) = torch.autograd.grad(pulled, w, v, retain_graph=True)
    made(0, 5)
    torch.autograd.grad(x_hat, at, v)
    made(0, 5)
    _, forward = torch.func.jvp(f, (z,), (v,))
    made(5, 5)
    torch.testing.assert_close(pushed, forward)
    _, pull = torch.func.vjp(f, z)
    (several,) = torch.func.vmap(pull)(normal(2, 4, 5, 3))
    made(5, 4 * 5)
    assert several.shape == (4, 5, 3)


@pytest.mark.parametrize("name", OURS)
def test_ours_are_near_and_their_work_is_seen(name: str) -> None:
    exact = exact_problem(2, "easy", "blur", 1)
    cell = {"method": name, "budget": "16 steps", "draws": 64}
    [row] = methods.rows_of(exact.problem, [cell], methods.of_exact(exact))
    assert row["steps"] == 16 and row["calls"] >= 16
    assert row["mean_error"] < 0.8 and row["energy"] < 0.6
    if "particles" in name:
        assert abs(row["log_evidence"] - row["exact_log_evidence"]) < 1.5
        assert (row["calls"] > 16 * 64) == (name == methods.INDEPENDENT)


# -- the program -----------------------------------------------------------------------------------


def in_process(python: Path | str, module: str, arguments: Sequence[str], limit: float) -> None:
    """What a process of methods does, here."""
    sys.argv = [module, *arguments]
    methods.main()


@pytest.mark.slow
def test_the_program_goes_on_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "run_process", in_process)
    file = tmp_path / "rows.csv"

    def call(*more: str) -> pd.DataFrame:
        fixed = "--sizes 2 --noises easy --operators combinations --seeds 2 --draws 100"
        monkeypatch.setattr(sys, "argv", ["", *fixed.split(), "--out", str(file), *more])
        with pytest.raises(SystemExit) as end:
            measurements.main()
        assert end.value.code == 0
        return pd.read_csv(file)

    rows = call("--methods", EXACT, "default", "--budgets", "4 steps")
    assert len(rows) == 4 and rows.steps.tolist() == [0, 4, 0, 4]
    rows = call("--methods", EXACT, "default", "particles", "--budgets", "4 steps", "40 calls")
    assert len(rows) == 10
    asked = rows[rows.budget == "40 calls"]
    assert asked.calls.between(28, 52).all()
    assert rows.groupby(["seed", "method", "budget"]).size().eq(1).all()
    assert rows[rows.method == EXACT].energy.abs().max() < 10 * rows.floor.max()
    summary.of_measurements(file, tmp_path)
    table = pd.read_csv(tmp_path / "measurements-peers.csv", comment="#").set_index("method")
    assert table.index.tolist() == [EXACT, "default", "particles"]
    own = rows[(rows.method == "default") & (rows.budget == "4 steps")]
    middle = (own.energy / own.floor).median()
    assert table.energy_4_steps["default"] == pytest.approx(middle, abs=1e-3)
    last = rows[(rows.method == "default") & (rows.budget == "40 calls")]
    assert table.calls["default"] == pytest.approx(last.calls.mean(), abs=1e-3)
    for budget, part in (("4_steps", own), ("40_calls", last)):
        seconds = table[f"seconds_{budget}"]["default"]
        assert seconds == pytest.approx(part.seconds.mean(), abs=1e-3)
    floors = (rows.energy / rows.floor).clip(lower=summary.LEAST)
    asked = {m: np.log(floors[rows.budget.eq("40 calls") & rows.method.eq(m)]) for m in OURS}
    apart = (asked["particles"].to_numpy() - asked["default"].to_numpy()).mean()
    ratios = pd.read_csv(tmp_path / "measurements-ratios.csv", comment="#").set_index("method")
    assert ratios.index.tolist() == ["particles"]
    assert ratios.ratio_40_calls["particles"] == pytest.approx(math.exp(apart), abs=1e-3)
    evidence = pd.read_csv(tmp_path / "measurements-evidence.csv", comment="#")
    assert evidence.method.tolist() == ["particles, 4 steps", "particles, 40 calls"]


# -- images ----------------------------------------------------------------------------------------


def test_crps_is_that_of_normal_draws() -> None:
    """Of a truth y given N(0, 1): y (2Φ(y) - 1) + 2φ(y) - 1/√π."""
    x, y = normal(1, 2_000, 1, 1), 0.7
    cdf = 0.5 * (1 + math.erf(y / math.sqrt(2)))
    density = math.exp(-(y**2) / 2) / math.sqrt(2 * math.pi)
    known = y * (2 * cdf - 1) + 2 * density - 1 / math.sqrt(math.pi)
    truth = torch.full((1, 1), y, dtype=torch.float64)
    assert float(images.crps(x, truth)) == pytest.approx(known, abs=0.05)
    few = torch.stack([images.crps(normal(seed, 4, 1, 1), truth) for seed in range(400)])
    assert float(few.mean()) == pytest.approx(known, abs=0.12), "few draws have no bias"


def test_intervals_hold_nine_in_ten_pixels_and_ties_are_broken() -> None:
    draws = torch.arange(19.0).reshape(19, 1, 1)
    truth = torch.arange(-0.5, 19).unsqueeze(1)
    held = images.inside(draws.expand(19, 20, 1), truth)
    assert held.flatten().tolist() == [False, *[True] * 18, False]
    held = images.inside(torch.zeros(19, 1, 5_000), torch.zeros(1, 5_000))
    assert float(held.double().mean()) == pytest.approx(0.9, abs=0.025)


@pytest.mark.slow
def test_images_are_restored_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "run_process", in_process)
    file = tmp_path / "rows.csv"

    def call(*more: str) -> None:
        fixed = "digits --tasks inpaint --images 2 --draws 3 --budgets"
        options = [*fixed.split(), "3 steps", "--out", str(file), *more]
        monkeypatch.setattr(sys, "argv", ["", *options])
        with pytest.raises(SystemExit) as end:
            measured_images.main()
        assert end.value.code == 0

    call("--methods", "default")
    call("--methods", "default", "linear covariance")
    rows = pd.read_csv(file)
    assert rows.image.tolist() == [0, 1, 0, 1] and rows.steps.eq(3).all()
    assert rows.psnr.between(3, 40).all() and rows.crps.between(0, 1).all()
    assert rows.calls.ge(3).all()
    summary.of_images(file, tmp_path)
    table = pd.read_csv(tmp_path / "measurements-digits.csv", comment="#").set_index("method")
    assert table.psnr["default"] == pytest.approx(rows.psnr[:2].mean(), abs=1e-3)
    apart = (rows.psnr[2:].to_numpy() - rows.psnr[:2].to_numpy()).mean()
    assert table.psnr_less_ours["linear covariance"] == pytest.approx(apart, abs=1e-3)
    assert math.isnan(table.psnr_less_ours["default"])
