"""Changes of the base: rungs of the ladder."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from scipy import optimize
from torch import Tensor, nn

from inference.training.trainee import Trainee
from models.base import FINE
from pyro_mdm import randomness
from tests.benchmarks.ladder.augmentation import Augmentation, Shifts, Told
from tests.benchmarks.ladder.networks import Fourier, SelfConditioned, located, several


def shifting(trainee: Trainee) -> AbstractContextManager[Any]:
    return mock.patch.object(trainee, "batches", Told(trainee, Shifts(trainee.settings.seed)))


def turning(trainee: Trainee) -> AbstractContextManager[Any]:
    moves = Augmentation(0.7, trainee.settings.batch_size, trainee.settings.seed)
    return mock.patch.object(trainee, "batches", Told(trainee, moves))


@contextmanager
def antithetic(trainee: Trainee) -> Iterator[None]:
    """The second half of a batch has the noise of the first with the other sign."""
    normal = randomness.normal

    def mirrored(shape: Any, dtype: torch.dtype, device: Any) -> Tensor:
        drawn = normal(shape, dtype, device)
        half = len(drawn) // 2
        return torch.cat([drawn[:half], -drawn[:half], drawn[2 * half :]])

    with mock.patch.object(randomness, "normal", mirrored):
        yield


@contextmanager
def clipping(trainee: Trainee) -> Iterator[None]:
    """Gradients are clipped to the median of their last 200 norms (after Seetharaman 2020)."""
    norms: list[float] = []
    clip = trainee.fabric.clip_gradients

    def by_median(*arguments: Any, max_norm: float, **options: Any) -> Any:
        bound = statistics.median(norms[-200:]) if norms else max_norm
        norm = clip(*arguments, max_norm=bound, **options)
        norms.append(float(norm))
        return norm

    with mock.patch.object(trainee.fabric, "clip_gradients", by_median):
        yield


def decaying(decay: float) -> Callable[[Trainee], AbstractContextManager[Any]]:
    """The weights of the network decay, decoupled from their gradients."""

    def during(trainee: Trainee) -> AbstractContextManager[Any]:
        return mock.patch.dict(trainee.optimizer.param_groups[0], weight_decay=decay)

    return during


def power(width: float) -> float:
    """γ of the average with weights t^γ whose standard deviation is a part of all steps."""

    def excess(gamma: float) -> float:
        return float((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) - width**2)

    return float(optimize.brentq(excess, 0.0, 1e6))


def averaged_by_power(width: float) -> Callable[[Trainee], AbstractContextManager[Any]]:
    """Averages over a part of all steps, whatever their number (Karras et al. 2024).

    They are what post-hoc averaging finds of its snapshots for this width.
    """
    gamma = power(width)

    def decay_at(number: int) -> float:
        return (1 - 1 / (number + 1)) ** (gamma + 1)

    def during(trainee: Trainee) -> AbstractContextManager[Any]:
        return mock.patch.object(trainee.average, "decay_at", decay_at)

    return during


def _untouched(trainee: Trainee) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Rung:
    """One change of the base."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``inference.train``; those that are factors are relative to the data set's."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """Of the data set's network, as ``networks`` has them."""
    around: Callable[..., nn.Module] | None = None
    """A network in place of it."""
    during: Callable[[Trainee], AbstractContextManager[None]] = _untouched


OFTEN = {"times": "adaptive", "batch_size": 32}
"""Small batches, whose times are drawn where gradients vary."""

CLIP_OF_TWO = 0.5**0.5
"""Each of two members has half the gradient of one alone, so that the norm of both is less."""

THREE = "adaptive times, batches of 32, mixture"

MUON = OFTEN | {"optimizer": "muon"}

PIXELS = FINE | {"patch": 1}

RUNGS: dict[str, Rung] = {
    "base": Rung(),
    "adaptive times": Rung({"times": "adaptive"}),
    "batches of 64": Rung({"batch_size": 64}),
    "batches of 32": Rung({"batch_size": 32}),
    "batches of 256": Rung({"batch_size": 256}),
    "rate × ½": Rung({"rate": 0.5}),
    "rate × 2": Rung({"rate": 2.0}),
    "dropout 0.1": Rung(network={"dropout": 0.1}),
    "dropout 0.3": Rung(network={"dropout": 0.3}),
    "dropout 0.6 but at full resolution": Rung(network={"dropout": (0.0, 0.6, 0.6)}),
    "weight decay 0.1": Rung(during=decaying(0.1)),
    "weight decay 1": Rung(during=decaying(1.0)),
    "¾ of the channels": Rung(network={"base": 24}),
    "1½ of the channels": Rung(network={"base": 48}),
    "¾ of the channels, rate × 1⅓": Rung({"rate": 4 / 3}, {"base": 24}),
    "1½ of the channels, rate × ⅔": Rung({"rate": 2 / 3}, {"base": 48}),
    "two blocks a level": Rung(network={"blocks": 2}),
    "attention": Rung(network={"attention": (1,), "heads": 4}),
    "shifts, told": Rung(around=located, during=shifting),
    "turned and moved, told": Rung(around=located, during=turning),
    "Fourier features": Rung(around=Fourier),
    "self-conditioning": Rung(around=SelfConditioned),
    "two tilts": Rung(network={"form": "tilt"}),
    "mixture of three tilts": Rung(network={"form": "mixture"}),
    "antithetic noise": Rung(during=antithetic),
    "constant rate": Rung({"decay": "constant"}),
    "averages of 1,000 steps": Rung({"ema_decay": 0.999}),
    "averages of a twentieth of all": Rung(during=averaged_by_power(0.05)),
    "averages of a tenth of all": Rung(during=averaged_by_power(0.1)),
    "constant rate, averages of a tenth": Rung(
        {"decay": "constant"}, during=averaged_by_power(0.1)
    ),
    "clip at the median": Rung(during=clipping),
    "Muon": Rung({"optimizer": "muon"}),
    "two members": Rung({"clip": CLIP_OF_TWO}, around=several(2)),
    "adaptive times, batches of 32": Rung(OFTEN),
    THREE: Rung(OFTEN, {"form": "mixture"}),
    f"{THREE}, rate × 2": Rung(OFTEN | {"rate": 2.0}, {"form": "mixture"}),
    f"{THREE}, Muon": Rung(MUON, {"form": "mixture"}),
    f"{THREE}, every pixel": Rung(OFTEN, PIXELS),
    f"{THREE}, every pixel, Muon": Rung(MUON, PIXELS),
    "adaptive times, dropout, two members": Rung(
        {"times": "adaptive", "clip": CLIP_OF_TWO},
        {"dropout": (0.0, 0.3, 0.3)},
        around=several(2),
    ),
}
