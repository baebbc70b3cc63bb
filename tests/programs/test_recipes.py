"""The recipes beside the data sets: what they say, and that they run."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor

from inference.commands.cli import command_line
from inference.commands.decisions import with_recipe
from inference.folders.loading import load_trained
from inference.folders.runs import Run
from inference.samplers.published import Euler
from inference.settings.diffusion import build_diffusion
from inference.settings.names import find
from inference.settings.options import GROUPS, Guide, Training
from inference.train import train
from models import MODELS, ImageProblem
from models.mnist5k import Mnist5k
from models.official import CIFAR10
from pyro_mdm.likelihoods.base import JointTweedie
from pyro_mdm.networks import StridedUNet, UNet

pytestmark = pytest.mark.usefixtures("few_pictures")

RECIPES = sorted((Path(__file__).parents[2] / "models").glob("*.yaml"))
every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def settings(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What inference.train makes of a recipe."""
    with pytest.raises(SystemExit, match="0"):
        command_line(train, ["--config", str(path), "--print_config"], groups=GROUPS)
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


def test_every_data_set_of_the_paper_has_its_recipe_and_ours() -> None:
    names = {"mnist", "cifar10", "imagenet32"}
    papers = {f"{name}_paper" for name in names}
    assert {path.stem for path in RECIPES} == names | papers | {"fashion_mnist"}


@every_recipe
def test_a_recipe_is_read_and_names_what_there_is(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, found = yaml.safe_load(path.read_text()), settings(path, capsys)
    assert {name: found[name] for name in given} == given  # no name is unknown or changed
    problem = MODELS[found["model"]]
    assert issubclass(problem, ImageProblem)
    network = {k: v for k, v in problem.networks[found["network"]].items() if k != "form"}
    channels = 1 if "mnist" in path.stem else 3
    with torch.device("meta"):
        kind = StridedUNet if "widths" in network else UNet
        size = sum(p.numel() for p in kind(2 * channels, **network).parameters())
    large = found["network"] in ("paper", "published") and kind is UNet
    small = 1.12e6 if kind is StridedUNet else 1.2e6
    expected = 35.5e6 if large else 1.07e6 if found["network"] == "fine" else small
    assert size == pytest.approx(expected, rel=0.05)
    assert found["flip"] == path.stem.startswith("cifar10")  # and a comment there says so
    diffusion = build_diffusion(Guide(guide=found["guide"], max_log_snr=9.0))
    if path.stem.endswith("_paper"):
        rates = diffusion.rate(torch.tensor([0.0, 1.0]))
        assert rates.tolist() == pytest.approx([0.1, 10.0])
        assert diffusion.start_time.item() == pytest.approx(1e-3)
        assert (found["protocol"], found["score"]) == ("dequantized", "noise")
        assert (found["batch_size"], found["learning_rate"]) == (128, 2e-4)
        assert (
            network.get("dropout", 0.0) == 0.0
            and found["decay"] == "constant"
            and found["warmup"] == 1
        )
        assert found["logit_margin"] == 0.05 and found["likelihood"] == "joint_tweedie"
        assert found["times"] == "vpsde" and not found["decoder_in_loss"]
        assert found["ema_decay"] == 0.0
        assert found["diffusion_learning_rate"] == 2e-4
        num_dims = math.prod(problem.event_shape)
        assert found["clip"] * num_dims == pytest.approx(2.0, rel=1e-5)  # nats
        assert found["adam_epsilon"] * num_dims == pytest.approx(1e-8, rel=1e-5)
        epoch = {"mnist": 60_000, "cifar10": 50_000, "imagenet32_new": 1_281_167}[found["model"]]
        assert found["steps"] == 300 * math.ceil(epoch / 128)
        assert find("sampler", found["sampler"]) is Euler and found["sampler_steps"] == 500
    else:
        assert found["score"] == "discrete" and found["protocol"] is None
        assert found["guide"] == "learned" and found["holdout"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar10_paper"])
def test_a_recipe_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a few small random images, with the small network and for two steps."""

    def few(self: CIFAR10, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        codes = torch.randint(3, (24, 3, 8, 8), generator=generator, dtype=torch.uint8)
        return codes[:8], codes[8 : 8 + 8 * holdout], codes[16:]

    monkeypatch.setattr(CIFAR10, "split", few)
    monkeypatch.setattr(CIFAR10, "event_shape", (3, 8, 8))
    small = CIFAR10.networks["small"] | {"base": 8}
    monkeypatch.setitem(CIFAR10.networks, "small", small)
    (path,) = [p for p in RECIPES if p.stem == name]
    short = {"steps": 2, "batch_size": 4, "num_samples": 2, "sampler_steps": 2, "draws": 1}
    words = ["--config", str(path), *(f"--{name}={value}" for name, value in short.items())]
    words += ["--network=small", "--accelerator=cpu", "--figures=false"]
    monkeypatch.setattr(sys, "argv", ["train.py"])
    command_line(train, [*words, f"--run={tmp_path / 'run'}"], groups=GROUPS)
    run = Run.open(tmp_path / "run")
    assert (run.folder / "results.json").is_file()
    assert run.config["protocol"] == ("dequantized" if "paper" in name else None)
    if "paper" in name:
        checkpoint = run.latest()
        weights = checkpoint.part("model")
        for key, value in checkpoint.part("ema").items():  # no averaging
            assert torch.equal(value, weights[key]), key
        model = load_trained(run.folder)[1].model
        assert isinstance(model.likelihood, JointTweedie) and model.score_function.times == "vpsde"
        assert model.diffusion.start_time.item() == pytest.approx(1e-3)


class Renamed(Mnist5k):
    networks: ClassVar = {"tiny": {"base": 4, "multipliers": (1,)}}


class Formed(Mnist5k):
    form = "logits"


class Own(Mnist5k):
    """Nothing of its own that a recipe is about."""


def test_a_data_set_is_trained_by_the_network_that_it_names() -> None:
    for name, wanted in (("mnist5k", "fine"), ("digits", None), ("toy", None)):
        assert with_recipe(Training(model=name)).network == wanted
    assert with_recipe(Training(model="mnist5k", network="small")).network == "small"
    for cls, wanted in ((Renamed, None), (Formed, None), (Own, "fine")):
        assert with_recipe(Training(model=f"{__file__}:{cls.__name__}")).network == wanted
    small = Mnist5k()  # which names no network
    assert (small.network_name, small.form) == ("small", "tilt")
    assert Mnist5k(network="mixture").form == "mixture"
