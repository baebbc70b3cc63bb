"""A target noise N(0, Σ_∞) with correlated variables: the worked example, and the option of train.

Kernels, bounds and samplers meet one in every suite over tests.diffusions.DIFFUSIONS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure

from inference.folders.loading import load_trained
from inference.folders.runs import Run
from inference.inspect import inspect
from inference.settings.diffusion import build_diffusion
from inference.settings.options import Guide
from inference.train import train
from pyro_mdm import LearnedDiffusion
from tests.brief import SHORT
from tests.programs.running import run_program

pytestmark = pytest.mark.usefixtures("few_pictures")

TARGET_NOISE = [[1.0, 0.3], [0.3, 0.25]]  # of the example
EXAMPLE = "inference.guides.target_noise:TargetNoise"
SIGMA = torch.tensor(TARGET_NOISE, dtype=torch.float64)


def example(**options: Any) -> LearnedDiffusion:
    found = build_diffusion(Guide(guide=EXAMPLE, max_log_snr=9.0, **options))
    assert isinstance(found, LearnedDiffusion)
    return found


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return SHORT | {"figures": False, "run": tmp_path / "run"}


@pytest.mark.parametrize("score", ["denoiser", "noise"])
def test_the_example_learns_towards_its_target(score: str, options: dict[str, Any]) -> None:
    bound = train(**options, guide=EXAMPLE, score=score)
    assert torch.tensor(bound.bits_per_dim).isfinite().all()
    diffusion = load_trained(options["run"])[1].model.diffusion
    start = example()
    assert not torch.equal(diffusion.B, start.B)
    assert score == "denoiser" or not torch.equal(diffusion.lower, start.lower)
    assert torch.equal(diffusion.stationary_covariance, SIGMA)
    assert torch.equal(diffusion.prior_covariance, SIGMA)
    # as --guide learned: a denoiser gives the clock no reason to stop
    assert diffusion.min_log_snr == (-10.0 if score == "denoiser" else None)


def test_what_the_example_refuses() -> None:
    from inference.guides.target_noise import TargetNoise

    for wrong in (1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"correlation is {wrong}, expected .* -1 and 1"):
            TargetNoise(correlation=wrong)
    assert TargetNoise(-0.5, 2.0).stationary_covariance.tolist() == [[1.0, -1.0], [-1.0, 4.0]]


def test_learned_takes_a_target_noise(options: dict[str, Any]) -> None:
    run, again = options["run"], options["run"].with_name("again")
    train(**options, stationary_variance=TARGET_NOISE)
    assert Run.open(run).config["stationary_variance"] == TARGET_NOISE
    assert load_trained(run)[1].model.diffusion.stationary_covariance.tolist() == TARGET_NOISE
    given = {k: str(v).lower() for k, v in options.items() if k != "run"}
    settings = [f"--{k}={v}" for k, v in given.items()]
    run_program(
        "train", *settings, "--stationary_variance", "[[1, 0.3], [0.3, 0.25]]", "--run", again
    )
    assert Run.open(again).config["stationary_variance"] == TARGET_NOISE
    assert (run / "results.json").read_text().partition('"seconds"')[0] == (
        (again / "results.json").read_text().partition('"seconds"')[0]
    )


def test_a_tensor_is_kept_as_numbers_and_resumed(options: dict[str, Any]) -> None:
    options |= {"steps": 6, "checkpoint_every": 2}
    whole = train(**options, stationary_variance=SIGMA)
    run = options["run"]
    assert yaml.safe_load((run / "config.yaml").read_text())["stationary_variance"] == TARGET_NOISE
    assert train(resume=run).bits_per_dim == whole.bits_per_dim


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stationary_variance": [[1.0, 0.0], [0.0]]}, r"--stationary_variance is .* 2 rows of a"),
        ({"stationary_variance": [1.0, -0.5]}, r"positive variances .* least is -0\.5; raise"),
        ({"stationary_variance": [[1.0, 0.6], [0.6, 0.25]]}, "stationary_variance is .*, expected"),
        (
            {"stationary_variance": [1.0, float("nan")]},
            "stationary_variance is .1.0, nan., expected a number",
        ),
        ({"stationary_variance": [1.0, 1.0], "guide": "cld"}, "--stationary_variance is for"),
        ({"stationary_variance": [1.0, 1.0], "num_variables": 3}, "expected a number, 3 variances"),
    ],
)
def test_a_wrong_target_noise_is_refused(
    wrong: dict[str, Any], message: str, options: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        train(**options | wrong)
    assert not options["run"].exists()


def test_inspect_takes_it_for_learned_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.inspect.figure", lambda *arguments: Figure())
    out = tmp_path / "look.png"
    inspect("cld,learned", "toy", stationary_variance=TARGET_NOISE, out=out)
    rows = capsys.readouterr().out.splitlines()
    below = next(i for i, row in enumerate(rows) if row.startswith("cond Σ")) + 1
    row = next(row for row in rows[below:] if row.startswith("  at T "))
    values = torch.linalg.eigvalsh(SIGMA)
    conditions = [float(word.rstrip(",")) for word in row.split()[2:]]
    assert conditions[:2] == [1.0, 1.0]  # of cld
    assert conditions[2] == pytest.approx(float(values[1] / values[0]), rel=1e-2)
    with pytest.raises(ValueError, match=r"--stationary_variance is for --guide learned, and cld"):
        inspect("cld", "toy", stationary_variance=TARGET_NOISE, out=tmp_path / "none.png")
