"""Programs on networks that others have trained: a folder of diffusers, left as it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inference import trust
from inference.evaluate import evaluate
from inference.folders.loading import load_trained
from inference.sample import sample
from inference.settings import names
from inference.settings.names import find
from inference.train import train
from models import Problem
from pyro_mdm import Diffusion
from pyro_mdm.imported import ImportedDenoiser, NoiseSchedule
from tests.imported.test_imported_pipelines import data, diffusers, unet
from tests.programs.running import last_line

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


class OfPixels(nn.Module):
    """The exact network of training data that it sees from 0 to 1."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("x", (x + 1) / 2, persistent=False)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, w: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None, None]
        squares = (w[:, None] - t[:, None] * self.x).square().flatten(2).sum(2)
        weights = (-squares / (2 * (1 - t[:, :, 0, 0]) ** 2)).softmax(1)
        return self.gain * torch.einsum("ni,i...->n...", weights, self.x)


def misread(problem: Problem, diffusion: Diffusion) -> ImportedDenoiser:
    """A network of pixels from 0 to 1, taken for one of pixels from -1 to 1."""
    x = problem.fit_x()
    return ImportedDenoiser.fit(OfPixels(x), x, NoiseSchedule.flow(), "data")


def well_read(problem: Problem, diffusion: Diffusion) -> ImportedDenoiser:
    x = problem.fit_x()
    options = {"shift": -1.0, "scale": 0.5}
    return ImportedDenoiser.fit(OfPixels(x), x, NoiseSchedule.flow(), "data", **options)


@pytest.mark.parametrize("score", [misread, well_read])
def test_a_run_says_how_a_network_is_read(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], score: Any
) -> None:
    options = OPTIONS | {"min_log_snr": None, "score": f"{__name__}:{score.__name__}"}
    squares = tiny.replace("Tiny", "Squares")
    train(squares, **options, steps=0, run=tmp_path / "run")
    said = capsys.readouterr().out
    assert "log SNR   error of the network   of a linear denoiser" in said
    words = "the data fit another reading better: shift=-1, scale=0.5, as of data from -1 to 1"
    assert (words in said) == (score is misread)
    run, programs, _ = load_trained(tmp_path / "run")
    diffusion = programs.model.diffusion
    assert run.config["max_log_snr"] == pytest.approx(diffusion.max_log_snr)
    assert run.config["min_log_snr"] == pytest.approx(diffusion.terminal_log_snr.item())
    assert diffusion.max_log_snr != pytest.approx(programs.problem.max_log_snr)


def test_a_given_end_stays(tiny: str, folder: Path, tmp_path: Path) -> None:
    squares = tiny.replace("Tiny", "Squares")
    options = OPTIONS | {"max_log_snr": 5.5, "score": str(folder)}
    train(squares, **options, steps=0, run=tmp_path / "run")
    diffusion = load_trained(tmp_path / "run")[1].model.diffusion
    assert diffusion.max_log_snr == 5.5
    assert diffusion.terminal_log_snr.item() == pytest.approx(-9.0)


def test_no_steps_leave_any_network_as_it_starts(tiny: str, tmp_path: Path) -> None:
    options = {"model": tiny, "guide": "cld", "figures": False, "draws": 2}
    train(**options, steps=0, run=tmp_path / "run")
    run, _, checkpoint = load_trained(tmp_path / "run")
    assert checkpoint.step == 0 and run.config["steps"] == 0
    with pytest.raises(ValueError, match=r"--steps is -1, expected a positive number, or 0"):
        train(**options, steps=-1, run=tmp_path / "other")


# -- trust -----------------------------------------------------------------------------------------


def test_a_pipeline_that_a_file_names_is_behind_the_same_trust(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(trust.FOLDER, str(tmp_path / "trusted"))
    problem: Any = SimpleNamespace(fit_x=data)
    name = str(folder)
    refused = pytest.raises(trust.UntrustedCodeError, match=r"would open .*model_index\.json")
    with trust.command([], trusts=False), refused:
        find("score", name)
    with trust.command([name], trusts=False):  # on the command line
        find("score", name)
        assert find("score", name)(problem, None).event_shape == data().shape[1:]
        trust.remember(names.own_names({"score": name}))  # as whoever trains does
    with trust.command([], trusts=False):
        find("score", name)
        index = folder / "model_index.json"
        other = {"scheduler": ["diffusers", "DDIMScheduler"]}
        index.write_text(json.dumps(json.loads(index.read_text()) | other))
        with pytest.raises(trust.UntrustedCodeError, match="has changed since"):
            find("score", name)
    with trust.command([], trusts=True):
        find("score", name)


def test_a_folder_takes_no_name_of_ours(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.rename(tmp_path / "mixed")
    monkeypatch.chdir(tmp_path)
    assert find("score", "mixed") is names.SCORES["mixed"]
    assert names.canonical_name("score", "mixed") == "mixed"
    assert names.own_names({"score": "mixed"}) == []
