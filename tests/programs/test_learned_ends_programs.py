"""``--guide learned --learn_ends … --learn_stationary``: from training to comparing runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from inference.compare import compare
from inference.evaluate import evaluate
from inference.folders.loading import load_trained
from inference.folders.runs import Run
from inference.inspect import inspect
from inference.sample import sample
from inference.settings.diffusion import build_diffusion
from inference.settings.options import Guide
from inference.train import train
from tests.brief import SHORT

pytestmark = pytest.mark.usefixtures("few_pictures")

ENDS: dict[str, Any] = {"max_log_snr": 9.0, "min_log_snr": -10.0}


def options(run: Path, **changed: Any) -> dict[str, Any]:
    learned = {"learn_ends": [1.0, 2.0], "learn_stationary": True}
    return SHORT | learned | {"diffusion_learning_rate": 0.05, "run": run} | changed


@pytest.mark.slow
@pytest.mark.parametrize(
    "time_varying",
    [pytest.param(False, marks=pytest.mark.quick, id="constant"), pytest.param(True, id="varying")],
)
def test_a_run_is_resumed_measured_sampled_compared_and_looked_at(
    time_varying: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    whole = train(**options(run, time_varying=time_varying))
    assert train(resume=run).bits_per_dim == whole.bits_per_dim
    diffusion: Any = load_trained(run)[1].model.diffusion
    assert 0 < abs(diffusion.max_log_snr - 11.0) < 1.0
    assert 0 < abs(diffusion.min_log_snr - -10.0) < 2.0
    assert diffusion.stationary_covariance[0, 1].item() != 0
    assert Run.open(run).config["learn_ends"] == [1.0, 2.0]

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    shown = {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for name in ("start_log_snr", "terminal_log_snr"):
        assert len(set(shown[f"noising/ends/{name}"])) > 1
    assert len(set(shown["noising/stationary/entry_01"])) > 1
    assert set(shown["noising/stationary/entry_00"]) == {1.0}
    assert any("prior_kl" in tag for tag in shown)

    capsys.readouterr()
    evaluate(run, draws=1)
    assert capsys.readouterr().out.splitlines()[-1].startswith("bits/dim ")
    sample(run, num_samples=4, steps=2, out=tmp_path / "x.npy")
    if time_varying:
        return  # the rest asks for the ends alone
    sample(reuse=run, guide="cld", num_samples=4, steps=2, out=tmp_path / "y.npy")
    other = tmp_path / "other"
    train(**options(other, learn_ends=None, learn_stationary=False))
    compare([run, other], draws=1, half_width=None, out=tmp_path / "comparison")
    capsys.readouterr()
    inspect(f"run:{run}", model="toy", out=tmp_path / "run.png")
    said = [float(n) for n in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)]
    assert min(abs(number - float(diffusion.min_log_snr)) for number in said) < 0.06


def test_it_begins_as_another_guide() -> None:
    found = build_diffusion(Guide(guide="learned", learned_from="cld", learn_ends=1.0, **ENDS))
    assert any(found.given_ends.reach) and not found.prior_part.is_learned
    with pytest.raises(ValueError, match=r"--learn_ends, --learn_stationary is for --guide learn"):
        build_diffusion(Guide(guide="cld", learn_ends=1.0, learn_stationary=True, **ENDS))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learn_ends": 0.0, "learn_stationary": False}, r"--learn_ends 0\.0 has no effect: both"),
        ({"diffusion_learning_rate": 0.0}, r"--learn_ends has no effect with --diffusion_learn"),
        ({"score": "noise"}, r"λ\(T\) is left to the clock and has no range; give min_log_snr"),
        ({"maps": "subsets"}, r"--maps subsets .*; use a guide of one clock.* --learn_ends"),
        ({"num_variables": 1}, r"K = 1 variable nothing of Σ_∞ is learned"),
        ({"learn_ends": [1.0, 2.0, 3.0]}, r"learn_ends is \[1\.0, 2\.0, 3\.0\], expected how far"),
        ({"learn_ends": 30.0}, r"expected ranges that do not meet; lower learn_ends"),
    ],
)
def test_mistakes_are_named(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(**options(tmp_path / "run", **changed))
