"""A run that has stopped learning says so, and with ``--patience`` it stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inference.folders.checkpoints import latest_checkpoint
from inference.train import train
from inference.training import recipe, report
from pyro_mdm.training.schedules import FALL
from tests.brief import SHORT
from tests.programs.running import Stopped

STILL = SHORT | {"steps": 12, "learning_rate": 1e-12, "diffusion_learning_rate": 0.0}
STILL |= {"measure_every": 2}
"""Nothing is learned: the bound is the same at every measurement, of steps 2, 4, …, 12."""

pytestmark = pytest.mark.usefixtures("few_pictures")


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({250: 3.0}, (250, 0)),
        ({250: 3.0, 500: 2.9}, (500, 0)),
        ({250: 3.0, 500: 2.996, 750: 2.9951}, (250, 2)),
        ({250: 3.0, 500: 2.997, 750: 2.994, 1000: 2.991}, (750, 1)),  # slowly, but it falls
        ({250: 3.0, 500: 3.2, 750: 3.1}, (250, 2)),  # it had been lower
        ({250: FALL, 500: 0.0}, (500, 0)),
    ],
)
def test_a_bound_last_fell(bounds: dict[int, float], expected: tuple[int, int]) -> None:
    assert recipe.last_fall(bounds) == expected


@pytest.mark.slow
def test_a_run_that_had_learned_all_it_would_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(**STILL, run=tmp_path / "run")
    said = "the validation bound last fell by 0.005 bits/dim at step 2 of 12; fewer --steps, or "
    assert said + "--patience 2, take less time\n" in capsys.readouterr().out
    train(**STILL | {"measure_every": 12}, run=tmp_path / "measured once")
    assert "last fell" not in capsys.readouterr().out


@pytest.mark.slow
def test_patience_stops_it_and_it_resumes_as_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At step 6, two measurements after step 2, wherever it was killed before."""
    bound = train(**STILL, patience=2, run=tmp_path / "run")
    said = "nothing was gained any more; the last step is kept\n"
    said += "the validation bound last fell by 0.005 bits/dim at step 2\n"
    assert said in (printed := capsys.readouterr().out) and "training: 6 steps in " in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 6
    for k, (name, at) in enumerate({"at_step": 6, "at_end": 6}.items()):
        run, original = tmp_path / f"killed-{k}", getattr(report, name)

        def from_there(*arguments: Any, **options: Any) -> Any:
            if at in arguments:  # noqa: B023
                raise Stopped
            return original(*arguments, **options)  # noqa: B023

        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(report, name, from_there)
            train(**STILL, patience=2, run=run)
        again = train(resume=run)
        assert again.bits_per_dim == pytest.approx(bound.bits_per_dim, abs=1e-4)
        assert latest_checkpoint(run / "checkpoints").step == 6
        first, second = (load_file(f / "model.safetensors") for f in (tmp_path / "run", run))
        torch.testing.assert_close(second, first, rtol=0, atol=1e-6)
    capsys.readouterr()
    train(resume=tmp_path / "run")
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patience": 0}, "--patience is 0, expected a positive number"),
        ({"patience": 1}, r"every 2 of 4 steps, and it would run out at step 4 at the earliest"),
        ({"patience": 9}, r"it would run out at step 20 at the earliest; .* --measure_every"),
        ({"patience": 1, "measure_every": 1, "holdout": False}, r"there are none; leave it out"),
    ],
)
def test_patience_that_can_never_act_is_a_mistake(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        train(**SHORT | {"measure_every": 2} | options, run=tmp_path / "none")
    assert not (tmp_path / "none").exists()
