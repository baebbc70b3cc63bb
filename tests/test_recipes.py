"""The recipes beside the data sets: what they say, and that they run."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor

from inference.cli import command_line
from inference.loading import build, build_diffusion, load_trained
from inference.options import GROUPS, Training
from inference.processes import start
from inference.runs import Run
from inference.train import Trainee, decide, train, with_recipe
from models import MODELS, ImageProblem
from models.cifar10 import CIFAR10
from models.mnist5k import Mnist5k
from pyro_mdm import MDM_ELBO, DiffusionGuide
from pyro_mdm.likelihoods.gaussian import JointTweedie
from pyro_mdm.networks import MLP, Ensemble, MapMLP, UNet
from tests.brief import SHORT

pytestmark = pytest.mark.usefixtures("few_pictures")

RECIPES = sorted((Path(__file__).parent.parent / "models").glob("*.yaml"))
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
        size = sum(p.numel() for p in UNet(2 * channels, **network).parameters())
    large = found["network"] in ("paper", "published")
    expected = 35.5e6 if large else 1.07e6 if found["network"] == "fine" else 1.2e6
    assert size == pytest.approx(expected, rel=0.05)
    assert found["flip"] == path.stem.startswith("cifar10")  # and a comment there says so
    diffusion = build_diffusion(found["guide"], max_log_snr=9.0)
    if path.stem.endswith("_paper"):
        rates = diffusion.rate(torch.tensor([0.0, 1.0]))
        assert rates.tolist() == pytest.approx([0.1, 10.0])
        assert diffusion.start_time.item() == pytest.approx(1e-3)
        assert (found["protocol"], found["score"]) == ("dequantized", "noise")
        assert (found["batch_size"], found["learning_rate"]) == (128, 2e-4)
        assert network["dropout"] == 0.0 and found["decay"] == "constant" and found["warmup"] == 1
        assert found["logit_margin"] == 0.05 and found["decoder"] == "joint_tweedie"
        assert found["times"] == "vpsde" and not found["decoder_in_loss"]
        assert found["ema_decay"] == found["weight_decay"] == 0.0
        assert found["diffusion_learning_rate"] == 2e-4
        num_dims = math.prod(problem.event_shape)
        assert found["clip"] * num_dims == pytest.approx(2.0, rel=1e-5)  # nats
        epoch = {"mnist_paper": 60_000, "cifar10_paper": 50_000}.get(path.stem)
        assert epoch is None or found["steps"] == 300 * math.ceil(epoch / 128)
    else:
        assert found["score"] == "discrete" and found["protocol"] is None
        assert found["guide"] == "learned" and found["holdout"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar10_paper"])
def test_a_recipe_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a few random images, with the small network and for two steps."""

    def few(self: CIFAR10, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        codes = torch.randint(3, (32, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return codes[:16], codes[16 : 16 + 8 * holdout], codes[24:]

    monkeypatch.setattr(CIFAR10, "split", few)
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
    older = Mnist5k()  # as a run that names no network builds it
    assert (older.network_name, older.form) == ("small", "tilt")
    assert Mnist5k(network="mixture").form == "mixture"


def test_members_are_trained_apart_and_averaged_in_every_program(tmp_path: Path) -> None:
    options = SHORT | {"members": 2, "batch_size": 8, "score": "noise", "guide": "cld"}
    train(run=tmp_path / "run", **options)
    model = load_trained(tmp_path / "run")[1].model
    network = model.score_function.network
    assert isinstance(network, Ensemble) and len(network.members) == 2
    first, second = (member.state_dict() for member in network.members)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    x, log_snr = torch.randn(4, 4), torch.zeros(4)
    apart = [member(x, log_snr) for member in network.members]
    torch.testing.assert_close(network(x, log_snr), (apart[0] + apart[1]) / 2)
    assert model(batch_size=3).shape == (3, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "digits", "guide": "inference.guides.encoder:cld"},
        {"model": "digits", "guide": "inference.guides.by_dimension:per_pixel"},
        {"model": "digits", "condition": "labels", "guide": "cld"},
        {"model": "toy", "maps": "mixed", "guide": "vpsde"},
        {"model": "tabular", "data": "wine", "guide": "vpsde"},
    ],
    ids=["encoder", "pixels", "labels", "maps", "a table"],
)
def test_members_are_told_what_one_network_is(options: dict[str, Any]) -> None:
    given = asdict(Training(**options, members=3, score="default"))
    several, alone = build(given), build(given | {"members": 1})
    (found,) = (m for m in several.model.score_function.modules() if isinstance(m, Ensemble))
    networks = (
        m for m in alone.model.score_function.modules() if isinstance(m, UNet | MLP | MapMLP)
    )
    one = max(networks, key=lambda m: sum(p.numel() for p in m.parameters()))
    with torch.no_grad():
        for p in one.parameters():  # at first it says nothing
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    assert len(found.members) == 3
    for member in found.members:
        member.load_state_dict(one.state_dict())
    part = alone.problem.part("train")[:7]
    x = alone.problem.to_model_space(part.data)
    losses = []
    for programs in (several, alone):
        torch.manual_seed(0)
        model = programs.given(part.context).model.train()
        losses.append(MDM_ELBO().loss(model, DiffusionGuide(model.diffusion), x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    torch.manual_seed(0)
    with torch.no_grad():
        one.outlet.register_forward_hook(lambda module, given, out: 1.1 * out)
        model = alone.given(part.context).model
        changed = MDM_ELBO().loss(model, DiffusionGuide(model.diffusion), x)
    assert changed != pytest.approx(losses[0], rel=1e-4)  # the networks are heard


def clipped(members: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """The norm of a step's gradient and its limit, where every member has its part of ones."""
    asked = Training(
        **{"model": "toy", "guide": "cld", "score": "noise", "accelerator": "cpu"},
        **{"members": members, "batch_size": 8, "steps": 2, "clip": 1e-3},
    )
    programs = build(asdict(asked))
    trainee = Trainee(start("cpu", "32-true"), programs, decide(asked, programs))

    def gradients(step: int) -> Tensor:
        for p in trainee.programs.model.parameters():
            p.grad = torch.full_like(p, 1 / members)
        return torch.zeros(())

    limits = []
    clip = trainee.fabric.clip_gradients

    def clipping(*given: Any, max_norm: float, **options: Any) -> Any:
        limits.append(max_norm)
        return clip(*given, max_norm=max_norm, **options)

    monkeypatch.setattr(trainee, "_gradients", gradients)
    monkeypatch.setattr(trainee.fabric, "clip_gradients", clipping)
    return trainee.step(0).norm, limits[0]


def test_the_gradient_of_members_is_clipped_as_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, limit = clipped(1, monkeypatch)
    assert clipped(2, monkeypatch) == pytest.approx((norm, limit / 2**0.5), rel=1e-5)
