"""Guides that see the data, in programs: trained, resumed, opened, compared and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from inference.compare import compare
from inference.drawing.sampling import draw
from inference.evaluate import evaluate
from inference.folders.loading import load_trained
from inference.inspect import inspect
from inference.settings.diffusion import build_diffusion
from inference.settings.options import Guide
from inference.train import train
from pyro_mdm import DiffusionModel
from pyro_mdm.plots.tensorboard import write_views
from tests.brief import SHORT
from tests.problems import normal

pytestmark = pytest.mark.usefixtures("few_pictures")

GUIDES = {
    "encoder": "inference.guides.encoder:learned",
    "gaussian context": "inference.guides.latent_context:gaussian",
    "discrete context": "inference.guides.latent_context:discrete",
    "driven": "inference.guides.driven:means_and_scales",
}


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return SHORT | {"run": tmp_path / "run"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "score"), [*((name, "denoiser") for name in GUIDES), ("encoder", "noise")]
)
def test_it_is_trained_resumed_opened_compared_and_looked_at(
    name: str, score: str, options: dict[str, Any], tmp_path: Path
) -> None:
    if "context" in name:  # it says nothing at first, and soon more than rounding takes away
        options["diffusion_learning_rate"] = 0.3
    train(guide=GUIDES[name], score=score, **options)
    run = options["run"]
    _, programs, checkpoint = load_trained(run)
    assert checkpoint.step == 4
    first = draw(programs.model, 3, steps=3, seed=1)
    torch.testing.assert_close(draw(programs.model, 6, steps=3, seed=1)[:3], first)
    opened = DiffusionModel.from_pretrained(run, classes=own_classes(programs.model))
    x = programs.problem.to_model_space(programs.problem.test[:16])
    for model in (programs.model, opened):
        torch.manual_seed(0)
        with torch.no_grad():
            model.value = model.log_prob(x)
    torch.testing.assert_close(opened.value, programs.model.value)
    if score == "noise":
        return
    few: dict[str, Any] = {
        "draws": 1,
        "probes": 1,
        "samples": 1,
        "times": 4,
        "rtol": 1e-2,
        "test_size": 8,
    }
    evaluate(run, method="all", **few)
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert ("bound/context/train" in board.Tags()["scalars"]) == ("context" in name)
    if name not in ("encoder", "gaussian context"):
        return
    other = tmp_path / "other"
    train(guide="vpsde", **options | {"run": other})
    compare([run, other], out=tmp_path / "compared", draws=2, num_data=32)
    assert (tmp_path / "compared" / "differences.csv").exists()


def own_classes(model: DiffusionModel) -> dict[str, Any]:
    """The encoder as it is, if there is one: it is of the guide's file."""
    diffusion: Any = model.diffusion
    held: Any = diffusion.context if diffusion.context is not None else diffusion
    encoder = getattr(held, "encoder", None)
    return {} if encoder is None else {type(encoder).__name__: encoder}


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
@pytest.mark.parametrize("name", GUIDES)
@torch.no_grad()
def test_what_it_makes_of_data_is_drawn(name: str, shape: tuple[int, ...]) -> None:
    diffusion = build_diffusion(Guide(guide=GUIDES[name], max_log_snr=9.0), event_shape=shape)
    for p in diffusion.parameters():
        p.add_(0.1 * torch.ones_like(p))
    x = normal(0, 8, *shape).float()
    for stages in diffusion.views(x).values():
        assert stages.shape[1:] == x.shape and bool((stages != 0).any())
    board = Recorder()
    write_views(board, diffusion, x, 3)
    assert len(board.tags) == len(diffusion.views(x)) > 0
    assert all(tag.startswith("noising/what_it_makes_of_data/") for tag in board.tags)


class Recorder:
    def __init__(self) -> None:
        self.tags: list[str] = []

    def add_figure(self, tag: str, figure: Any, step: int) -> None:
        assert step == 3 and figure.axes
        self.tags.append(tag)


def test_it_can_be_inspected(tmp_path: Path) -> None:
    inspect(GUIDES["gaussian context"], model="toy", out=tmp_path / "seen.png")
    assert (tmp_path / "seen.png").exists()
