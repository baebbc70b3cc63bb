"""What others' guides and samplers give in the study of automatic guides, and its scores."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from tests.benchmarks import automatic_guides, runs
from tests.benchmarks.densities import baselines, diffusions, scores, summary
from tests.benchmarks.densities.base import Draws, Fitted, Modes, Target
from tests.benchmarks.densities.baselines import METHODS
from tests.benchmarks.densities.targets import of_program

WEIGHTED = ("auto_multivariate_normal", "zuko_flow")
OURS = tuple(diffusions.METHODS)
SECONDS = {
    **{"auto_multivariate_normal": 6.0, "zuko_flow": 1.0, "nuts": 4.0},
    **dict.fromkeys(OURS, 2.0),
}
"""Of a fit: a hundred reads of the clock each, and for most methods fifty updates."""
ROOT = torch.tensor([[0.5, 0.0], [0.4, 0.7]])
CENTER = torch.tensor([0.4, -0.6])


def gaussian() -> Target:
    """A Gaussian x of the plane and a log-normal scale, times three: their unconstrained posterior
    is Gaussian, with log Z = log 3."""

    def program() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.5, 0.3))
        x = pyro.sample("x", dist.MultivariateNormal(CENTER, scale_tril=ROOT))
        pyro.factor("three", math.log(3) + 0 * (x.sum(-1) + scale))

    def exact(n: int, seed: int) -> Tensor:
        z = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
        return torch.cat([0.5 + 0.3 * z[:, :1], CENTER + z[:, 1:] @ ROOT.mT], 1)

    half = torch.tensor([0.5, 0.5])
    modes = Modes(lambda x: (x[:, 0] > 0.5).long(), half)
    return of_program("gaussian", program, log_z=math.log(3), exact=exact, modes=modes)


@pytest.fixture(scope="module")
def target() -> Target:
    return gaussian()


@pytest.fixture(scope="module")
def fitted_by(target: Target) -> Callable[[str], Fitted]:
    """The fit of a method, once, by processor time that passes by being read: no fit depends on how
    fast a machine is."""

    @functools.cache
    def fit(method: str) -> Fitted:
        reads = itertools.count()
        clock = SimpleNamespace(process_time=lambda: 0.01 * next(reads))
        with pytest.MonkeyPatch.context() as patch, pyro.validation_enabled(False):  # as in scores
            patch.setattr(baselines, "time", clock)
            patch.setattr(diffusions, "time", clock)
            return {**METHODS, **diffusions.METHODS}[method](target, SECONDS[method], 0)

    return fit


@pytest.fixture(scope="module")
def reference(target: Target) -> scores.Reference:
    assert target.exact is not None
    return scores.Reference(target.exact(8_000, 0), target.log_z)


# -- methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*WEIGHTED, *OURS])
def test_weights_of_guides_have_the_evidence_as_their_mean(
    fitted_by: Callable[[str], Fitted], method: str
) -> None:
    fitted = fitted_by(method)
    x, log_weights = fitted.draw(4_000, 1)
    assert x.shape == (4_000, 3) and log_weights is not None and log_weights.shape == (4_000,)
    weights = log_weights.exp() / 3
    assert abs(float(weights.mean()) - 1) < 5 * float(weights.std()) / 4_000**0.5 + 1e-4
    assert fitted.updates > 0 and fitted.seconds >= 0.9 * SECONDS[method]
    one, again, other = (fitted.draw(50, seed).x for seed in (1, 1, 2))
    torch.testing.assert_close(again, one)
    assert not torch.allclose(other, one)


# -- scores ----------------------------------------------------------------------------------------


def test_exact_draws_are_at_the_floor(target: Target, reference: scores.Reference) -> None:
    assert target.exact is not None
    x = target.exact(4_000, 5)
    far = reference.energy(x + reference.x.std(0) * torch.tensor([0.3, 0.0, 0.0]))
    assert abs(reference.energy(x)) < 0.004 and abs(reference.energy(reference.other)) < 0.004
    assert far > 0.02
    units = torch.tensor([1.0, 100.0, 1.0])
    scaled = scores.Reference(torch.cat([reference.x, reference.other]) * units, None)
    assert abs(scaled.energy(x * units) - reference.energy(x)) < 0.004


def test_energy_is_that_of_two_gaussians() -> None:
    """In one dimension E|X - Y| of N(m, 1) and N(0, 1) is √2 E|Z + m/√2|.

    Of 6,000 draws the energy has a standard deviation of 0.016, by twelve seeds.
    """
    m = 1.5
    mean = math.sqrt(4 / math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 6_000, 1, dtype=torch.float64, generator=generator)
    expected = 2 * mean - 2 * 2 / math.sqrt(math.pi)
    assert scores.energy(x + m, y) == pytest.approx(expected, abs=0.1)


def test_scores_of_draws_with_known_weights(target: Target, reference: scores.Reference) -> None:
    """Exact draws of which a half weighs nine times as much."""

    def draw(n: int, seed: int) -> Draws:
        assert target.exact is not None
        x = target.exact(n, seed)
        return Draws(x, torch.where(x[:, 0] > 0.5, 9.0, 1.0).double().log())

    fitted = Fitted(draw, updates=7, seconds=2.5)
    own = scores.scores_of(target, fitted, reference, seed=3, n=4_000)
    assert own["log_z"] == pytest.approx(math.log(5), abs=0.1)
    assert own["log_z_error"] == pytest.approx(math.log(5 / 3), abs=0.1)
    assert own["elbo"] == pytest.approx(math.log(9) / 2, abs=0.1)
    assert own["elbo_se"] == pytest.approx(math.log(9) / 2 / 4_000**0.5, rel=0.05)
    assert own["ess"] == pytest.approx(25 / 41, abs=0.02)
    assert own["mode_distance"] == pytest.approx(0.4, abs=0.03) and own["modes"] == 1
    assert own["energy"] > 0.1 and abs(own["energy_raw"]) < 0.01 and abs(own["floor"]) < 0.01
    assert own["updates"] == 7 and own["fit_seconds"] == 2.5


# -- the program -----------------------------------------------------------------------------------


def test_a_fit_is_that_of_the_module_s_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a process of its own runs; here this one does."""

    def in_process(python: str, module: str, arguments: list[str], limit: float) -> None:
        assert (python, limit) == (sys.executable, 100)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pyro.validation_enabled(pyro.distributions.is_validation_enabled()):
            importlib.import_module(module).main()

    few = functools.partial(scores.scores_of, n=1_000)
    monkeypatch.setattr(scores, "scores_of", few)
    monkeypatch.setattr(scores, "DRAWS", 1_000)
    monkeypatch.setattr(runs, "run_process", in_process)
    fit = {"target": "funnel", "method": "auto_multivariate_normal", "seed": 0, "seconds": "0.2"}
    row = automatic_guides.do(fit, 100)
    assert set(row) <= {*automatic_guides.VALUES} and row["fit_seconds"] >= 0.2
    assert row["log_z"] == pytest.approx(row["log_z_error"]) and math.isfinite(row["elbo"])


def test_the_best_of_ours_is_paired_with_the_best_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = dict.fromkeys(("chain", "weak"), METHODS["nuts"])
    monkeypatch.setattr(summary, "GUIDES", ours)
    monkeypatch.setattr(summary, "METHODS", {**ours, **METHODS})
    elbos = {"chain": (-1.0, -1.2), "weak": (-5.0, -5.0), "zuko_flow": (-1.5, -1.5)}
    errors = {"chain": (0.1, -0.3), "auto_multivariate_normal": (0.1, 0.1), "weak": (-1.0, 1.0)}
    errors["zuko_flow"] = (0.5, 0.5)
    rows = [
        {
            "target": "funnel",
            "method": name,
            "seed": seed,
            "seconds": 2.0,
            **dict.fromkeys(automatic_guides.VALUES, math.nan),
            "elbo": elbos.get(name, (math.nan,) * 2)[seed],
            "log_z": errors[name][seed] - 0.5,
            "log_z_error": errors[name][seed],
        }
        for name in errors
        for seed in (0, 1)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    summary.of_guides(tmp_path / "rows.csv", tmp_path)
    best = pd.read_csv(tmp_path / "automatic-guides-best.csv", comment="#")
    assert best.score.tolist() == ["gap", "log_z_error"] and set(best.target) == {"funnel"}
    assert best.ours.tolist() == ["chain", "chain"] and best.theirs.tolist() == [
        "zuko_flow",
        "auto_multivariate_normal",
    ]
    assert best.theirs_less_ours.tolist() == pytest.approx([0.4, -0.1])
    half = 12.7062 * 0.1  # Student's t of one degree of freedom
    assert best.theirs_less_ours_low.tolist() == pytest.approx([0.4 - half, -0.1 - half], abs=1e-3)
    table = pd.read_csv(tmp_path / "automatic-guides-scores.csv", comment="#", index_col="method")
    assert table.elbo["chain"] == pytest.approx(-1.1)
    assert table.gap["chain"] == pytest.approx(0.6)
    assert table.elbo_se["chain"] == pytest.approx(0.1)
    assert "automatic-guides-scores.csv" in capsys.readouterr().out


def test_variants_are_paired_with_their_base(tmp_path: Path) -> None:
    log_z = 2.0
    gaps = {"auto_mdm": (0.5, 0.7), "auto_mdm_2": (0.6, 0.9), "nuts": (math.nan,) * 2}
    rows = [
        {
            "target": "funnel",
            "method": name,
            "seed": seed,
            "seconds": 2.0,
            **dict.fromkeys(automatic_guides.VALUES, math.nan),
            "elbo": log_z - gaps[name][seed],
            "log_z": log_z + 0.1,
            "log_z_error": 0.1,
        }
        for name in gaps
        for seed in (1, 0)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    summary.of_guides(tmp_path / "rows.csv", tmp_path)
    variants = pd.read_csv(tmp_path / "automatic-guides-variants.csv", comment="#")
    assert variants.method.tolist() == ["auto_mdm_2"]
    assert variants.gap_less_base.tolist() == pytest.approx([0.15])
    assert variants.gap_less_base_low.tolist() == pytest.approx([0.15 - 12.7062 * 0.05], abs=1e-3)
    scores = pd.read_csv(tmp_path / "automatic-guides-scores.csv", comment="#")
    assert scores.method.tolist() == ["auto_mdm", "nuts"]
