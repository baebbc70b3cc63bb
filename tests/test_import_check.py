"""The check of a network that others trained: every fault, of every kind of network, good or bad."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm.imported import ImportCheck, ImportedDenoiser, NoiseSchedule, Prediction, check_import
from tests.problems import fixed
from tests.test_imported import MIXTURE, SCHEDULES, Exact

KINDS: list[tuple[str, Prediction]] = [
    ("ddpm", "noise"),
    ("ddpm", "data"),
    ("cosine", "v"),
    ("vp", "score"),
    ("log sigma", "data"),
    ("sigma", "noise"),
    ("data at 1", "velocity"),
    ("data at 0", "velocity"),
]
ENDS = {
    "ddpm": (0, 999),
    "cosine": (1e-3, 0.999),
    "vp": (0.999, 999.0),
    "sigma": (0.01, 50.0),
    "log sigma": (math.log(0.01) / 4, math.log(50.0) / 4),
}
"""The times that networks were trained for; by default nearly 0 to 1."""
X, TRAIN = MIXTURE.sample(100, seed=3), MIXTURE.sample(1000)
DATA: dict[str, Any] = {
    "from 0 to 1": lambda x: (x + 1) / 2,
    "from -1 to 1": lambda x: 2 * x - 1,
    "from 0 to 255": lambda x: 255 * x,
    "0 to 255, centered": lambda x: 127.5 * (x + 1),
    "2 times": lambda x: x / 2,
    "0.5 times": lambda x: 2 * x,
    "4 times": lambda x: x / 4,
    "3.36 times": lambda x: x / 3,
}
"""Data for networks of other data, by the words of the fault."""
TIMES = {"the other way": None, "1000 times": 0.001, "0.001 times": 1000.0}


class Trained(nn.Module):
    """A network that knows times alone that it was trained for, with a smooth error.

    Args:
        error: the standard deviation of the error, as a fraction of that of the output's.
        sign: the sign of its output.
    """

    def __init__(self, name: str, predicts: str, error: float, sign: int) -> None:
        super().__init__()
        low, high = ENDS.get(name, (1e-4, 1 - 1e-4))

        def rates(time: Tensor) -> Any:
            time = time.double().clamp(low, high)
            return SCHEDULES[name].of_told(time.round().long() if name == "ddpm" else time)

        self.exact, self.rates = Exact(rates, predicts, 0.0, 1.0), rates
        self.error, self.sign = error, sign
        self.waves, self.phases, self.out = fixed(1, 2, 16), fixed(2, 16), fixed(3, 16, 2) / 8**0.5

    def forward(self, w: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = (
            torch.as_tensor(f, dtype=torch.float64).expand(len(w))[:, None]
            for f in self.rates(time)[:2]
        )
        scaled = w / torch.hypot(alpha, sigma)
        smooth = (scaled @ self.waves + self.phases + 2 * (alpha / sigma).log()).sin() @ self.out
        size = 1 / sigma if self.exact.predicts == "score" else 1.0
        return self.sign * (self.exact(w, time) + self.error * size * smooth)


class Fault(NamedTuple):
    """A wrong reading: words that name it, and what was said."""

    data: str | None = None
    times: str | None = None
    predicts: Prediction | None = None
    sign: bool = False


def check(name: str, predicts: Prediction, error: float, fault: Fault) -> ImportCheck:
    network = Trained(name, predicts, error, -1 if fault.sign else 1)
    schedule = SCHEDULES[name].schedule
    rates = schedule.alpha_rate, schedule.sigma_rate
    if fault.times is not None and (factor := TIMES[fault.times]) is not None:
        schedule = NoiseSchedule(
            schedule.time * factor,
            schedule.alpha,
            schedule.sigma,
            alpha_rate=rates[0],
            sigma_rate=rates[1],
        )
    elif fault.times is not None:
        schedule = NoiseSchedule(
            schedule.time.flip(0),
            schedule.alpha,
            schedule.sigma,
            discrete=schedule.discrete,
            alpha_rate=-rates[0],
            sigma_rate=-rates[1],
        )
    change = DATA.get(fault.data or "", lambda x: x)
    said = fault.predicts or predicts
    denoiser = ImportedDenoiser.fit(network, change(TRAIN), schedule, said)
    return check_import(denoiser, change(X))


def words_of(fault: Fault, predicts: Prediction) -> list[str]:
    data = fault.data and fault.data.replace("0 to 255, centered", "shift=127.5")
    right = fault.predicts and f"predicts={predicts!r}"
    sign = "the other sign" if fault.sign else None
    return [word for word in (data, fault.times, right, sign) if word is not None]


SINGLE = [
    *(Fault(data=data) for data in DATA),
    *(Fault(times=times) for times in TIMES),
    *(Fault(predicts=said) for said in ("noise", "data", "v", "score", "velocity")),
    Fault(sign=True),
]
PAIRS = [
    Fault("from 0 to 1", "the other way"),
    Fault("from -1 to 1", sign=True),
    Fault("2 times", predicts="v"),
    Fault("from 0 to 1", predicts="noise"),
    Fault(times="the other way", predicts="data"),
    Fault(times="0.001 times", predicts="v"),
    Fault(predicts="v", sign=True),
]


def is_possible(name: str, predicts: Prediction, fault: Fault) -> bool:
    """Velocity and noise are one thing where α is 1, and a DDPM has no rates."""
    said = fault.predicts
    alike = name.endswith("sigma") and {said, predicts} == {"noise", "velocity"}
    return not (said == predicts or alike or (name == "ddpm" and said == "velocity"))
