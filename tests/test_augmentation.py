"""Augmentation that networks are told: what is moved where, by whom it is seen, and when."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inference import train as training
from inference.augmentation import Augmentation
from inference.loading import build
from inference.options import Training
from inference.processes import start
from inference.train import Trainee
from pyro_mdm.networks import Located


def trainee(**changes: Any) -> Trainee:
    asked = Training(model="digits", guide="cld", steps=5, accelerator="cpu", **changes)
    programs = build(asdict(asked))
    return Trainee(start("cpu", "32-true"), programs, training.decide(asked, programs))


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
    found = trainee(score=score, augment=1.0, batch_size=16)
    located, (part,) = found.located, found.batches(0)
    seen: list[Tensor] = []
    located.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    found.step(0)
    moved, places = Augmentation(1.0, 16, 0)(part, 0, 0, 1)
    assert torch.equal(seen[0][:, -2:], places) and not torch.equal(moved, part)
    averaged = next(m for m in found.averaged.model.modules() if isinstance(m, Located))
    averaged.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    training.evaluate.measure(found.averaged, found.programs.problem.validation[:8], draws=1)
    assert torch.equal(seen[-1][:, -2:], located.own.expand(len(seen[-1]), -1, -1, -1))


def test_pieces_of_a_batch_are_augmented_as_the_whole() -> None:
    whole, pieces = (trainee(augment=0.7, batch_size=16, micro_batches=n) for n in (1, 4))
    assert pieces.step(0).bits == pytest.approx(whole.step(0).bits, rel=1e-4)
    other = trainee(augment=0.7, batch_size=16)
    other.augmentation = Augmentation(0.7, 16, seed=1)
    assert abs(other.step(0).bits - trainee(augment=0.7, batch_size=16).step(0).bits) > 0.01
