"""Operations of a step beside its network, and how often it waits for the host."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_mdm import (
    CLD,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    bound,
    condition,
)
from pyro_mdm.conditioning import Guided, Labels
from pyro_mdm.networks import MLP
from pyro_mdm.samplers import EulerMaruyama
from pyro_mdm.support.checks import check_finite, check_values, settle
from pyro_mdm.support.modules import cached_on
from tests.benchmarks import operations
from tests.benchmarks.operations import MODELS, counted, sampler_counts, step_counts
from tests.elsewhere import Elsewhere, tensors


class Convolution(nn.Conv2d):
    """A network of few operations, in place of a U-Net."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return super().forward(z) * log_snr.tanh()[:, None, None, None]


@pytest.fixture(autouse=True)
def _few_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "UNet", Convolution)


@pytest.mark.parametrize(
    ("name", "waits", "beside"),
    [
        ("loss, VPSDE", 0, 110),
        ("loss, CLD", 0, 110),
        ("loss, learned K = 2", 0, 155),
        ("loss of a raw score, CLD", 0, 135),
        ("loss of a raw score, learned K = 2", 0, 210),
        ("loss of a table", 1, 560),
    ],
)
def test_a_step_of_training_waits_for_nothing(name: str, waits: int, beside: int) -> None:
    """For tables, for whether entries are missing. Operations are those on the device; K×K matrices
    are on the host. Limits leave room for other versions of torch."""
    counts = step_counts(name)
    assert sum(counts.waits.values()) <= waits, counts.waits
    assert counts.network > 0
    assert counts.beside <= beside


@pytest.mark.parametrize("name", MODELS)
def test_a_run_of_a_sampler_waits_for_nothing(name: str) -> None:
    """A measurement adds little to a call."""
    run, call = sampler_counts(name, 3, 5)
    assert not run.waits
    assert call.network > 0
    assert call.beside <= 90 + 40 * ("measurement" in name)


@pytest.mark.parametrize(
    ("name", "waits", "beside"),
    [("bound, CLD", 54, 1100), ("step of AutoMDM", 5, 6500)],
)
def test_other_steps_wait_a_few_times(name: str, waits: int, beside: int) -> None:
    """A bound for numbers that are on the host already, but for one read of each batch; a step of
    SVI for its loss, twice as Pyro reads it, and for the times of its chain."""
    counts = step_counts(name)
    assert sum(counts.waits.values()) <= waits, counts.waits
    assert counts.beside <= beside


class StateSized(TorchDispatchMode):
    """Counts operations, views too, with results of at least so many numbers."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.count = numbers, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += any(t.numel() >= self.numbers for t in tensors(result))
        return result


@pytest.mark.parametrize(("levels", "most"), [(None, 45), (17, 92)])
def test_few_operations_of_a_step_are_on_states(levels: int | None, most: int) -> None:
    """With three or six of a network that multiplies."""
    x = torch.linspace(-1, 1, 17)[torch.randint(17, (64, 1, 8, 8))]
    network = Multiplied(levels or 1)
    score = DiscreteDenoiser.fit(network, x, levels) if levels else Denoiser.fit(network, x)
    diffusion = CLD(max_log_snr=9.0)
    loss = MDM_ELBO()(DiffusionModel(diffusion, score), DiffusionGuide(diffusion))
    loss(x).backward()
    with StateSized(x.numel()) as operations:
        loss(x).backward()
    assert operations.count <= most


class Multiplied(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight, self.outputs = nn.Parameter(torch.ones(1)), outputs

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return (z * self.weight).repeat(1, self.outputs, 1, 1)


def test_a_flow_waits_for_its_solver_alone() -> None:
    counts = step_counts("flow, 2 dimensions")
    ours = [line for line in counts.waiting if " _solved < " not in line]
    assert not ours
    assert sum(counts.waits.values()) <= 90


def test_guidance_in_an_interval_waits_for_nothing() -> None:
    score = Denoiser(MLP(4, out_features=2), torch.zeros(2), torch.ones(2))
    whole = DiffusionModel(CLD(max_log_snr=9.0), score, context=Labels(2, dropout=0.1)).eval()
    model = condition(whole, context=1)

    with Elsewhere() as device:
        model = model.to("cuda")
        model.sampler = Guided(EulerMaruyama(6), 2.0, (-3.0, 4.0))
        model(batch_size=2)
        assert not counted(lambda: model(batch_size=2), score.network, device=device).waits


def test_the_gradient_of_a_prior_takes_a_call_of_the_network_for_a_step() -> None:
    """Forward alone, and one pass for all divergences."""
    counts = step_counts("gradient of a prior, 2 dimensions")
    assert sum(counts.waits.values()) <= 3, counts.waits
    assert counts.network <= 1500
    assert counts.beside <= 1800


def test_counts_are_of_operations_and_waits() -> None:
    network = torch.nn.Linear(2, 2, bias=False)

    def step() -> None:
        x = network(torch.ones(3, 2)).detach()
        assert float(x.sum()) < 1e9  # a number
        assert x[x < 1e9].shape  # a shape
        assert len(x.tolist()) == 3
        torch.linalg.inv(torch.eye(2))
        torch.equal(x, x)

    counts = counted(step, network, lines=True)
    assert counts.waits == {"number": 2, "nonzero": 1, "factorization": 1, "equal": 1}
    assert 0 < counts.network < counts.operations
    assert sum(counts.waiting.values()) == 5
    assert sum(counts.working.values()) == counts.operations


def wrong() -> None:
    raise ValueError("wrong")


class Late:
    """An event that comes when a test wants it to."""

    has_come = False

    def record(self, stream: object) -> None:
        pass

    def query(self) -> bool:
        return self.has_come

    def synchronize(self) -> None:
        pass


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Late]]:
    """A device whose answers come when a test wants them to."""
    with Elsewhere():
        monkeypatch.setattr(torch.cuda, "Event", Late)
        yield Late
        Late.has_come = False


def there(right: bool) -> torch.Tensor:
    return torch.tensor(right).to("cuda")


def test_a_check_on_the_cpu_is_at_once() -> None:
    check_values(torch.tensor(True), wrong)
    with pytest.raises(ValueError, match="wrong"):
        check_values(torch.tensor(False), wrong)
    with pytest.raises(ValueError, match=r"x of shape \(2,\) holds nan at \(1,\)"):
        check_finite("x", torch.tensor([1.0, math.nan]))

    def unseen(x: torch.Tensor) -> torch.Tensor:
        check_values(x > 0, wrong)  # nobody may look there
        return x

    torch.func.vmap(unseen)(torch.zeros(2))


def test_what_follows_from_a_buffer_is_computed_when_it_changes() -> None:
    number, buffer = [0], torch.ones(3)

    def compute(x: torch.Tensor) -> float:
        number[0] += 1
        return float(x.sum())

    def ask(x: torch.Tensor) -> float:
        return cached_on(x, "sum", compute)

    assert [ask(buffer), ask(buffer), number[0]] == [3.0, 3.0, 1]
    buffer.fill_(2.0)
    assert [ask(buffer), ask(buffer), number[0]] == [6.0, 6.0, 2]
    assert ask(torch.zeros(3)) == 0.0
    with torch.inference_mode():
        seen = torch.ones(3)
        assert ask(seen) == 3.0
        seen.zero_()  # which nobody counts
        assert ask(seen) == 0.0


def test_the_answer_of_a_gpu_is_read_when_it_has_come(late: type[Late]) -> None:
    check_values(there(False), wrong)
    check_values(there(True), wrong)  # waits its turn
    late.has_come = True
    with pytest.raises(ValueError, match="wrong"):
        check_values(there(True), wrong)
    settle()  # what followed is given up with it
    late.has_come = False
    check_values(there(False), wrong)
    with pytest.raises(ValueError, match="wrong"):
        settle()
    settle()


def test_answers_are_of_their_thread(late: type[Late]) -> None:
    check_values(there(False), wrong)
    thread = threading.Thread(target=settle)
    thread.start()
    thread.join()
    with pytest.raises(ValueError, match="wrong"):
        settle()


def test_a_loss_that_was_wrong_leaves_no_gradient(late: type[Late]) -> None:
    """Where the answer comes after the gradients, as on a GPU."""
    diffusion = VPSDE(max_log_snr=9.0)
    score = Denoiser(MLP(2, hidden=8, out_features=2))
    model = DiffusionModel(diffusion, score, event_shape=(2,)).to("cuda")
    guide, loss = DiffusionGuide(diffusion), MDM_ELBO()
    far = torch.full((8, 2), 1e6).to("cuda")
    with pytest.raises(ValueError, match="float32"):
        loss.loss_and_grads(model, guide, far[:2])  # noise is below its rounding
    assert all(p.grad is None for p in model.parameters())
    for ask in (lambda x: bound(model, guide, x, draws=2), model.log_prob):
        with pytest.raises(ValueError, match="float32"):  # in place of a number
            ask(far)
    assert math.isfinite(loss.loss_and_grads(model, guide, torch.zeros(2, 2).to("cuda")))
