"""Programs on networks that others have trained: a folder of diffusers, left as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inference.evaluate import evaluate
from inference.folders.loading import load_trained
from inference.sample import sample
from inference.train import train
from pyro_mdm.imported import ImportedDenoiser
from tests.programs import last_line
from tests.test_imported_pipelines import diffusers, unet

OPTIONS: dict[str, Any] = {
    "guide": "vpsde",
    "min_log_snr": -9.0,
    "network": "plain",
    "figures": False,
    "draws": 2,
    "num_samples": 2,
    "sampler_steps": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pipeline = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_a_folder_is_evaluated_and_sampled_as_it_is(
    tiny: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training of no steps leaves the weights, and the run is as any other."""
    squares = tiny.replace("Tiny", "Squares")
    bound = train(squares, **OPTIONS, score=str(folder), steps=0, run=tmp_path / "run")
    run, programs, _ = load_trained(tmp_path / "run")
    denoiser = programs.model.score_function
    assert isinstance(denoiser, ImportedDenoiser) and run.config["score"] == str(folder)
    before = unet().state_dict()
    after = denoiser.network.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    evaluate(tmp_path / "run", draws=2)
    words = last_line(capsys).split()
    assert float(words[1]) == pytest.approx(bound.bits_per_dim[0], rel=1e-3)
    sample(tmp_path / "run", num_samples=2, steps=2)
    train(resume=tmp_path / "run", steps=2)
    trained = load_trained(tmp_path / "run")[1].model.score_function.network.network.state_dict()
    assert any(not torch.equal(trained[name], value) for name, value in before.items())


def test_no_steps_leave_any_network_as_it_starts(tiny: str, tmp_path: Path) -> None:
    options = {"model": tiny, "guide": "cld", "figures": False, "draws": 2}
    train(**options, steps=0, run=tmp_path / "run")
    run, _, checkpoint = load_trained(tmp_path / "run")
    assert checkpoint.step == 0 and run.config["steps"] == 0
    with pytest.raises(ValueError, match=r"--steps is -1, expected a positive number, or 0"):
        train(**options, steps=-1, run=tmp_path / "other")
