"""The check of networks that others trained: every fault of every kind, exact and badly trained."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm.imported import ImportCheck, ImportedDenoiser, NoiseSchedule, Prediction, check_import
from tests.imported.test_imported import MIXTURE, SCHEDULES, Exact
from tests.problems import fixed

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
    "2.83 times": lambda x: x / 3,
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
    if fault.times is not None:
        factor = TIMES[fault.times]
        time, sign = (schedule.time.flip(0), -1) if factor is None else (schedule.time * factor, 1)
        schedule = NoiseSchedule(
            time,
            schedule.alpha,
            schedule.sigma,
            discrete=schedule.discrete and factor is None,
            alpha_rate=sign * schedule.alpha_rate,
            sigma_rate=sign * schedule.sigma_rate,
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


FLOW: tuple[str, Prediction] = ("data at 1", "velocity")
FAULTS: list[tuple[str, Prediction, Fault]] = [
    (*FLOW, Fault("from 0 to 1", "the other way")),  # of pixels, seen as the opposite
    (*FLOW, Fault(data="4 times")),
    (*FLOW, Fault(times="the other way")),
    (*FLOW, Fault(sign=True)),
    ("ddpm", "noise", Fault(data="from 0 to 1")),
    ("ddpm", "data", Fault(times="the other way", predicts="noise")),
    ("ddpm", "noise", Fault(predicts="v", sign=True)),
    ("cosine", "v", Fault(data="from -1 to 1", sign=True)),
    ("cosine", "v", Fault(predicts="score")),
    ("vp", "score", Fault(data="0.5 times")),
    ("vp", "score", Fault(times="1000 times")),
    ("log sigma", "data", Fault(data="from 0 to 255")),
    ("log sigma", "data", Fault("2 times", predicts="v")),
    ("sigma", "noise", Fault(data="0 to 255, centered")),
    ("sigma", "noise", Fault(predicts="data")),
    ("data at 0", "velocity", Fault(data="2.83 times")),
    ("data at 0", "velocity", Fault(times="0.001 times", predicts="v")),
]
"""Every fault once, and pairs of two kinds."""


def name_of(value: object) -> str:
    return " and ".join(words_of(value, "velocity")) if isinstance(value, Fault) else str(value)


@pytest.mark.parametrize(
    ("kind", "error"), [*((kind, 0.0) for kind in KINDS), (KINDS[0], 0.3), (FLOW, 0.3)]
)
def test_a_right_reading_is_right_however_it_was_trained(
    kind: tuple[str, Prediction], error: float
) -> None:
    found = check(*kind, error, Fault())
    assert found.likely is None and not found.paired and found.is_plausible
    assert "worse" not in str(found).splitlines()[-1] or error > 0
    assert error < 0.2 or found.ratio > 1.04 or kind[1] == "velocity"


@pytest.mark.parametrize(
    ("name", "predicts", "fault"),
    FAULTS[:4] + [pytest.param(*row, marks=pytest.mark.slow) for row in FAULTS[4:]],
    ids=name_of,
)
def test_a_fault_of_an_exact_network_is_named(
    name: str, predicts: Prediction, fault: Fault
) -> None:
    found, words = check(name, predicts, 0.0, fault), words_of(fault, predicts)
    assert found.likely is not None and not found.is_plausible
    assert found.likely in str(found) and found.likely.count(" and ") == len(words) - 1
    assert all(word in found.likely for word in words)


@pytest.mark.slow
def test_a_fault_of_a_network_that_was_trained_for_seconds_is_named_or_none() -> None:
    """None is named wrongly, but for scales next to each other."""
    silent = 0
    for name, predicts, fault in FAULTS[::4]:
        likely, words = check(name, predicts, 0.1, fault).likely, words_of(fault, predicts)
        if likely is None:
            silent += 1
            continue
        near = str(fault.data).endswith("times") and "times what is said" in likely
        assert near or all(word in likely for word in words), (words, likely)
    assert silent < len(FAULTS[::4]) / 2


def test_a_network_that_refuses_other_times_is_checked() -> None:
    class Refusing(Trained):
        def forward(self, w: Tensor, time: Tensor) -> Tensor:
            if bool((time > 1).any()):
                raise IndexError("index out of range")
            return super().forward(w, time)

    network = Refusing("data at 1", "velocity", 0.0, 1)
    denoiser = ImportedDenoiser.fit(network, TRAIN, NoiseSchedule.flow(), "velocity")
    assert check_import(denoiser, X).is_plausible


@pytest.mark.parametrize("spread", [0.05, 0.02])
def test_a_right_network_of_narrow_data_is_not_called_wrong(spread: float) -> None:
    """Its errors are a tenth of the noise, and many times those of a linear denoiser."""
    center = torch.tensor([0.3, -0.2]).double()
    x = center + spread * fixed(5, 200, 2)

    class Poor(nn.Module):
        def forward(self, w: Tensor, t: Tensor) -> Tensor:
            return center + 0.1 * (7 * w + 3).sin()

    denoiser = ImportedDenoiser.fit(Poor(), x, SCHEDULES["cosine"].schedule, "data")
    found = check_import(denoiser, x)
    assert found.ratio > 2 and found.is_plausible and found.likely is None


class Paired(nn.Module):
    """The velocity of pairs by optimal transport between N(0, I) and N(0, s²): it keeps its
    place."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, w: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        paired = (0.8 - 1) * w / (1 - t + 0.8 * t)
        variance = (1 - t) ** 2 + 0.64 * t**2
        alone = (0.64 * t - (1 - t)) * w / variance
        return self.share * paired + (1 - self.share) * alone


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_pairs_by_optimal_transport_are_told(share: float) -> None:
    x = 0.8 * fixed(6, 200, 2)
    denoiser = ImportedDenoiser.fit(Paired(share), x, NoiseSchedule.flow(), "velocity")
    found = check_import(denoiser, x)
    assert found.paired == bool(share) and found.is_plausible != bool(share)
    assert ("as by optimal transport" in str(found)) == bool(share)
