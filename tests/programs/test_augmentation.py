"""The ladder's augmentation: what is moved where, which networks are told, and when."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inference import train as training
from inference.machine.processes import start
from inference.measuring.bounds import measure
from inference.settings.options import Training
from inference.settings.plan import build
from models.digits import Digits
from tests.benchmarks.ladder.augmentation import Augmentation
from tests.benchmarks.ladder.few_data import Moved
from tests.benchmarks.ladder.networks import Located, located


class DigitsTold(Digits):
    def network(self, inputs: int, outputs: int) -> Located:
        return located(inputs, outputs, self, **Digits.networks["small"])


def trainee(monkeypatch: pytest.MonkeyPatch, share: float = 1.0, **changes: Any) -> Moved:
    monkeypatch.setattr(Moved, "share", share)
    options = {
        "model": f"{__file__}:DigitsTold",
        "guide": "cld",
        "steps": 5,
        "accelerator": "cpu",
    } | changes
    asked = Training(**options)
    programs = build(asked)
    return Moved(start("cpu", "32-true"), programs, training.decide(asked, programs))


def test_places_say_where_each_pixel_comes_from() -> None:
    """Of an image that is linear in its place, interpolation is exact but for rounding."""
    row, column = (torch.linspace(-1, 1, n) for n in (9, 12))
    image = 128 + 60 * row[:, None] - 25 * column[None, :]
    images = image.round().to(torch.uint8).expand(40, 1, 9, 12)
    moved, places = Augmentation(0.75, 40, 0)(images, 3, 0, 1)
    expected = 128 + 60 * places[:, 0] - 25 * places[:, 1]
    inside = (places.abs() <= 1).all(1)
    assert 0.5 < inside.float().mean() < 0.99
    assert (moved[:, 0].float() - expected)[inside].abs().max() < 1.01
    assert moved.dtype == torch.uint8
    changed = (moved != images).flatten(1).any(1)
    assert 22 <= int(changed.sum()) <= 37
    own = torch.stack(torch.meshgrid(row, column, indexing="ij"))
    torch.testing.assert_close(places[~changed], own.expand_as(places[~changed]))
    far = (places.abs() > 1.5).any(1)
    assert not moved[:, 0][far].any()


def test_maps_are_of_the_step_and_pieces_of_a_batch_have_those_of_the_whole() -> None:
    images = torch.arange(6 * 64).reshape(6, 1, 8, 8).remainder(17).to(torch.uint8)
    drawn = Augmentation(1.0, 6, seed=5)
    whole, places = drawn(images, 2, 0, 1)
    parts = [drawn(images[r::3], 2, r, 3) for r in range(3)]
    for r, (part, told) in enumerate(parts):
        assert torch.equal(part, whole[r::3]) and torch.equal(told, places[r::3])
    assert not torch.equal(drawn.maps(2), drawn.maps(3))
    assert not torch.equal(drawn.maps(2), Augmentation(1.0, 6, seed=6).maps(2))


class Seen(nn.Module):
    """A network that keeps its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        self.inputs.append(x)
        return x[:, :1]


def test_a_network_is_told_in_training_alone() -> None:
    network = Located(Seen(), 8, 8)
    x, log_snr, places = torch.randn(6, 1, 8, 8), torch.zeros(6), torch.randn(3, 2, 8, 8)
    network(x, log_snr)
    with pytest.raises(RuntimeError, match="stop"), network.told(places):
        network(x, log_snr)
        raise RuntimeError("stop")
    network(x, log_snr)
    before, told, after = (inputs[:, 1:] for inputs in network.network.inputs)
    assert torch.equal(before, after)
    assert before[5, 0, :, 3].tolist() == pytest.approx(torch.linspace(-1, 1, 8).tolist())
    assert before[5, 1, 3].tolist() == pytest.approx(torch.linspace(-1, 1, 8).tolist())
    assert torch.equal(told, torch.cat([places, places]))


@pytest.mark.parametrize("score", ["discrete", "noise"])
def test_a_step_sees_augmented_images_and_measurements_do_not(
    score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trainee(monkeypatch, score=score, batch_size=16)
    (network,), (part,) = found.batches.networks, found.batches.batches(0)
    seen: list[Tensor] = []
    network.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    found.step(0)
    moved, places = Augmentation(1.0, 16, 0)(part, 0, 0, 1)
    assert torch.equal(seen[0][:, -2:], places) and not torch.equal(moved, part)
    averaged = next(m for m in found.averaged.model.modules() if isinstance(m, Located))
    averaged.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    measure(found.averaged, found.programs.problem.validation[:8], draws=1)
    assert torch.equal(seen[-1][:, -2:], network.own.expand(len(seen[-1]), -1, -1, -1))


def test_pieces_of_a_batch_are_augmented_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second step too, where networks say something of what they are told."""
    whole, pieces, other = (
        trainee(monkeypatch, 0.7, batch_size=16, micro_batches=n) for n in (1, 4, 1)
    )
    other.batches.moves = Elsewhere(0.7, 16, seed=0)
    steps = [[each.step(n) for n in range(2)] for each in (whole, pieces, other)]
    for ours, theirs, _ in zip(*steps, strict=True):
        assert theirs.bits == pytest.approx(ours.bits, rel=1e-4)
        assert theirs.norm == pytest.approx(ours.norm, rel=1e-3)
    assert steps[2][0].bits == pytest.approx(steps[0][0].bits, rel=1e-6)
    assert steps[2][0].norm != pytest.approx(steps[0][0].norm, rel=1e-3)


class Elsewhere(Augmentation):
    """What says of every image that it has not been moved."""

    def __call__(self, images: Tensor, step: int, piece: int, pieces: int) -> tuple[Tensor, Tensor]:
        moved, places = super().__call__(images, step, piece, pieces)
        return moved, places.new_tensor(0.0).expand_as(places)


def test_turns_keep_lengths_in_pixels() -> None:
    turned = Augmentation(1.0, 1, 0)
    angle = 0.3
    cos, sin = math.cos(angle), math.sin(angle)
    turned.maps = lambda step: torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])
    _, places = turned(torch.zeros(1, 1, 41, 21, dtype=torch.uint8), 0, 0, 1)
    in_pixels = places[0] * torch.tensor([20.0, 10.0])[:, None, None]
    for moved in (in_pixels[:, 1:] - in_pixels[:, :-1], in_pixels[..., 1:] - in_pixels[..., :-1]):
        torch.testing.assert_close(
            moved.norm(dim=0), torch.ones(moved.shape[1:]), atol=1e-4, rtol=0
        )
