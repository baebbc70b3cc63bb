"""Muon beside AdamW: what its steps are, whose they are, and that a run resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from inference.commands.decisions import decide, with_recipe
from inference.folders.checkpoints import RunError, load_optimizer, optimizer_tensors
from inference.settings.options import Training
from inference.settings.plan import build
from inference.train import train
from inference.training import recipe
from inference.training.optimizers import FACTOR, Muon, hidden_weights, orthogonalized
from models.digits import Digits
from tests.brief import SHORT


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 48, 9), (1, 5, 5)])
def test_singular_vectors_are_kept_and_values_are_about_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrices[0] *= 1e3
    found = orthogonalized(matrices)
    for before, after in zip(matrices, found, strict=True):
        U, values, V = torch.linalg.svd(before, full_matrices=False)
        turned = U.mT @ after @ V.mT
        # a quintic of small singular values has not brought them up yet
        large = values > 0.05 * values[0]
        assert ((turned.diagonal()[large] - 0.95).abs() < 0.3).all()
        torch.testing.assert_close(turned, torch.diag(turned.diagonal()), atol=1e-4, rtol=0)


def gradients(weights: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    shapes = [(8, 4, 3, 3), (6,), (8, 4, 3, 3), (20, 2, 1, 1)]
    return [torch.randn(s, generator=generator).requires_grad_() for s in shapes]


def test_steps_are_muons_where_asked_and_adamws_elsewhere() -> None:
    ours, theirs, plain = weights(), weights(), weights()
    hidden = [0, 2, 3]
    options = {"lr": 0.01, "weight_decay": 0.1}
    muon = Muon(
        [
            {"params": [ours[1]], **options},
            {"params": [ours[i] for i in hidden], **options, "orthogonal": True},
        ]
    )
    adamw = torch.optim.AdamW([plain[1]], **options)
    momenta = [torch.zeros_like(theirs[i]) for i in hidden]
    for step in range(4):
        for each in (ours, theirs, plain):
            gradients(each, step)
        muon.step()
        adamw.step()
        with torch.no_grad():
            for i, momentum in zip(hidden, momenta, strict=True):  # one by one, as published
                gradient = theirs[i].grad
                assert gradient is not None
                momentum.mul_(0.95).add_(gradient, alpha=0.05)
                ahead = (0.05 * gradient + 0.95 * momentum).flatten(1)
                scale = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
                moved = orthogonalized(ahead[None])[0].reshape(theirs[i].shape)
                theirs[i].mul_(1 - 0.01 * 0.1).sub_(moved, alpha=FACTOR * 0.01 * scale)
    assert torch.equal(ours[1], plain[1])
    for i in hidden:
        torch.testing.assert_close(ours[i], theirs[i], atol=1e-5, rtol=1e-4)
        assert ours[i].grad is not None


def test_convolutions_inside_every_unet_are_muons() -> None:
    model = build(Training(model="digits", guide="cld")).model
    names = hidden_weights(model)
    parameters = dict(model.named_parameters())
    assert all(parameters[name].dim() == 4 for name in names)
    assert not any("inlet" in name or "outlet" in name for name in names)
    left = [n for n, p in parameters.items() if p.dim() == 4 and n not in names]
    assert left and all(".inlet." in n or ".outlet." in n for n in left)
    assert len(names) == len(set(names)) and len(names) % 2 == 0
    assert hidden_weights(build(Training(model="toy", guide="cld")).model) == []


def test_groups_have_names_in_their_order_and_are_saved_by_them() -> None:
    settings = Training(model="digits", guide="learned", optimizer="muon", learning_rate=1e-3)
    programs = build(settings)
    names, optimizer = recipe.optimizer(programs.model, settings)
    given = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = dict(programs.model.named_parameters())
    assert [id(parameters[name]) for name in names] == [id(p) for p in given]
    network, hidden, diffusion = optimizer.param_groups
    assert hidden["orthogonal"] and "orthogonal" not in network
    assert len(hidden["params"]) == len(hidden_weights(programs.model))
    assert diffusion["lr"] == 1e-2 and diffusion["weight_decay"] == 0.0
    gradients(given, 0)
    optimizer.step()
    tensors = {k: t.clone() for k, t in optimizer_tensors(optimizer, names).items()}
    assert f"{hidden_weights(programs.model)[0]}/momentum" in tensors
    other = recipe.optimizer(programs.model, settings)[1]
    load_optimizer(other, tensors, names)
    before = [p.detach().clone() for p in given]
    moved = []
    for one in (optimizer, other):
        with torch.no_grad():
            for p, value in zip(given, before, strict=True):
                p.copy_(value)
        gradients(given, 1)
        one.step()
        moved.append([p.detach().clone() for p in given])
    assert all(torch.equal(a, b) for a, b in zip(*moved, strict=True))


@pytest.mark.usefixtures("few_pictures")
def test_a_run_goes_on_by_the_optimizer_that_it_was_trained_by(tmp_path: Path, tiny: str) -> None:
    run, images = tmp_path / "run", tiny.replace(":Tiny", ":Squares")
    train(
        run=run, **SHORT | {"model": images, "batch_size": 8, "test_size": 8, "optimizer": "muon"}
    )
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("optimizer: muon", "optimizer: adam"))
    with pytest.raises(RunError, match=r"optimizer: 'muon' in the checkpoint, 'adam' in config"):
        train(resume=run)


class Pictures(Digits):
    networks: ClassVar = {"one": {"base": 8}, "other": {"base": 8}}
    recipe, optimizer = "other", "muon"


class Renamed(Pictures):
    networks: ClassVar = {"one": {"base": 8}}


def test_a_recipes_optimizer_is_for_its_network() -> None:
    def decided(model: str, **options: Any) -> str | None:
        asked = with_recipe(Training(model=model, guide="cld", **options))
        return decide(asked, build(asked)).optimizer

    own = f"{__file__}:Pictures"
    assert decided(own) == "muon"
    assert decided(own, network="one") == "adam"
    assert decided(own, network="one", optimizer="muon") == "muon"
    assert decided(own, optimizer="adam") == "adam"
    assert decided(f"{__file__}:Renamed") == "adam"
    assert decided("toy") == "adam"
