"""A fit within seconds: what it begins, what it keeps, and what there is memory for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mdm import AutoMDM
from pyro_mdm.automatic import weighing
from pyro_mdm.automatic.fitting import Fitting
from pyro_mdm.automatic.weighing import Weighing

SLOPES = torch.tensor([[1.0, 0.2], [0.3, 1.0], [-0.5, 0.4], [0.9, -0.9]])


def regression() -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    law = dist.Normal(SLOPES @ b, 0.5).to_event(1)
    pyro.sample("y", law, obs=torch.tensor([1.0, 0.2, 0.1, 0.7]))


def exact() -> float:
    covariance = 4 * SLOPES @ SLOPES.mT + 0.25 * torch.eye(4)
    law = dist.MultivariateNormal(torch.zeros(4), covariance)
    return float(law.log_prob(torch.tensor([1.0, 0.2, 0.1, 0.7])))


class Slow:
    """A program whose runs take time, by a clock of their own."""

    def __init__(self, price: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.price = 0.0, price
        monkeypatch.setattr("pyro_mdm.budgets.monotonic", lambda: self.now)

    def __call__(self) -> None:
        self.now += self.price
        regression()


@pytest.mark.parametrize("start", ["gaussian", "shaped", "particles"])
@pytest.mark.parametrize("price", [0.008, 0.2])
def test_a_fit_takes_its_seconds_whatever_a_run_costs(
    price: float, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Slow(price, monkeypatch)
    guide = AutoMDM(program, steps=4, start=start)
    guide.fit(seconds=10.0, particles=256, progress=False)
    assert program.now <= 12.0 + 60 * price  # one update of the chain more, and what sets up
    chain = guide.outcomes.get("chain")
    assert (chain is None) == (price > 0.01) and guide.chain.is_at_rest >= (chain is None)


@pytest.mark.parametrize("price", [0.02, 0.2])
def test_the_first_answer_is_exact_for_a_gaussian(
    price: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no time for more, it has the evidence, and the bound too."""
    program = Slow(price, monkeypatch)
    guide = AutoMDM(program, steps=4).fit(seconds=5.0, progress=False)
    bound = Weighing(guide).weighted(500)[1]
    assert abs(float(bound.mean()) - exact()) < 1e-3 and float(bound.std()) < 0.05
    assert abs(guide.importance(2_000).log_evidence.mean - exact()) < 0.05


def funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 2.0))
    pyro.sample("x", dist.Normal(0.0, (v / 2).exp()).expand([4]).to_event(1))


@pytest.mark.parametrize("updates", [0, 20])
@pytest.mark.parametrize("program", [regression, funnel])
def test_what_is_kept_has_the_highest_bound(
    program: Callable[[], None], updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that were judged."""
    judged, judge = [], Fitting._judged

    def seen(self: Fitting, what: str) -> float:
        judged.append(judge(self, what))
        return judged[-1]

    monkeypatch.setattr(Fitting, "_judged", seen)
    guide = AutoMDM(program, steps=2)
    guide.fit(updates=updates, start_updates=updates, progress=False)
    weights = Weighing(guide).weighted(4_000)[1]
    error = float(weights.std()) / 30
    assert float(weights.mean()) > max(judged) - 4 * error - 1e-3


def test_a_second_fit_goes_on() -> None:
    guide = AutoMDM(regression, steps=2)
    guide.fit(updates=3, start_updates=3, progress=False)
    with torch.no_grad():
        guide.chain.log_time.fill_(0.3)
        guide.chain.power.fill_(0.1)
    guide.fit(updates=0, start_updates=0, learning_rate=1e-9, progress=False)
    assert guide.chain.log_time.item() == pytest.approx(0.3)


# -- memory ----------------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def leave(number: float) -> None:
        monkeypatch.setattr(weighing, "free_bytes", lambda device: number)

    return leave


def wide() -> None:
    """A path of it takes about 400 kB."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    many = torch.linspace(0.0, 1.0, 20_000)
    pyro.sample("y", dist.Normal((x * many).tanh().sum() / 100, 1.0), obs=torch.tensor(0.5))


def test_paths_that_do_not_fit_are_drawn_in_pieces(free: Callable[[float], None]) -> None:
    asked: list[int] = []

    def loss(guide: AutoMDM) -> Tensor:
        torch.manual_seed(0)
        guide.fit(updates=2, start_updates=2, paths=6, progress=False)
        return guide.losses

    guide = AutoMDM(wide, steps=2)
    guide.set_up()
    size = guide.program_density.bytes_of_row
    assert 100_000 < size < 2_000_000
    draw = guide.log_weights

    def seen(n: int, *args: Any, **kwargs: Any) -> Any:
        asked.append(n)
        return draw(n, *args, **kwargs)

    guide.log_weights = seen  # type: ignore[method-assign]
    free(1e12)
    loss(guide)
    assert 6 in asked
    asked.clear()
    free(2 * 3 * 2.5 * size)  # two paths of three gradients each, in half of the memory
    assert bool(loss(guide).isfinite().all())
    assert max(asked) == 7 and asked.count(2) >= 6  # a judgement keeps no graphs of all steps


def test_what_has_no_memory_is_refused(free: Callable[[float], None]) -> None:
    guide = AutoMDM(wide, steps=2)
    guide.set_up()
    free(1.0)
    with pytest.raises(MemoryError, match="GiB, expected at most"):
        guide.fit(updates=1, start_updates=1, progress=False)
    free(1e8)
    with pytest.raises(MemoryError, match="draws of 1 latents are too many"):
        guide.importance(10**9)


def test_free_memory_is_that_of_the_container(tmp_path: Any, monkeypatch: Any) -> None:
    host = torch.device("cpu")
    monkeypatch.setattr(weighing, "SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(weighing, "GROUP", tmp_path)
    assert weighing.free_bytes(host) == math.inf
    (tmp_path / "meminfo").write_text("MemTotal: 16 kB\nMemAvailable:   8 kB\n")
    assert weighing.free_bytes(host) == 8 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1024\n")
    assert weighing.free_bytes(host) == 8 * 1024
    (tmp_path / "memory.max").write_text("5120\n")
    assert weighing.free_bytes(host) == 4096


@pytest.mark.parametrize("start", ["gaussian", "particles"])
def test_nothing_of_a_fit_is_larger_than_the_memory(
    start: str, free: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what is timed, nor a Hessian, nor judgements, nor particles."""

    def program() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(40), 1.0).to_event(1))

    guide = AutoMDM(program, steps=2, start=start)
    guide.set_up()
    rows, density = [], guide.program_density
    call = type(density).__call__

    def seen(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(len(x))
        return call(self, x, *args, **kwargs)

    free(2.0 * 34 * density.bytes_of_row)  # half of it is for 34 rows
    monkeypatch.setattr(type(density), "__call__", seen)
    guide.fit(seconds=0.5, updates=1, start_updates=1, particles=512, progress=False)
    assert 0 < max(rows) <= 34


# -- rounding --------------------------------------------------------------------------------------


def test_a_density_made_of_rounding_is_no_evidence() -> None:
    """lgamma of 10^8 has no digits left in float32 for the difference of two."""

    def evidence(dtype: torch.dtype) -> float:
        one = torch.ones(1, dtype=dtype)

        def program() -> None:
            log_size = pyro.sample("log_size", dist.Uniform(-3 * one, 24 * one))
            size = log_size.exp()
            y = torch.tensor([20.0, 70.0, 35.0, 28.0, 50.0], dtype=dtype)
            pyro.sample("y", dist.GammaPoisson(size, size / 40).to_event(1), obs=y)

        torch.manual_seed(0)
        guide = AutoMDM(program, steps=2).fit(updates=0, start_updates=0, progress=False)
        return guide.importance(40_000).log_evidence.mean

    with pytest.warns(UserWarning, match="rounding changes the density of .* float64"):
        single = evidence(torch.float32)
    assert abs(single - evidence(torch.float64)) < 0.1


def in_place() -> Tensor:
    """A density that is written in place, which only a run for one row after another allows."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    values = torch.zeros(2)
    values[0] = x[0]
    values[1] += x[1]
    values.mul_(2.0)
    pyro.factor("data", -(values - 1).square().sum())
    return x


def by_matrix() -> None:
    """It holds a matrix of its own precision, and says so."""
    x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    pyro.factor("data", -(SLOPES.T @ x).square().sum() + 0 * x.to(SLOPES.dtype).sum())


@pytest.mark.filterwarnings("ignore:the program cannot be run for many values")
@pytest.mark.parametrize("program", [regression, in_place, by_matrix])
def test_a_run_in_float64_is_of_the_same_density(program: Callable[[], Any]) -> None:
    guide = AutoMDM(program, steps=2)
    guide.set_up()
    x = torch.randn(5, guide.latent_dim)
    exact = guide.program_density.in_float64(x)
    assert exact.dtype == torch.float64 and torch.get_default_dtype() == torch.float32
    torch.testing.assert_close(exact.float(), guide.log_density(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("error", [RuntimeError("two precisions"), None])
def test_without_a_run_in_float64_weights_stay(
    error: RuntimeError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it has another density everywhere."""
    guide = AutoMDM(regression, steps=2)
    guide.set_up()

    def other(self: Any, x: Tensor) -> Tensor:
        if error is not None:
            raise error
        return 100 + x.double().sum(1)

    monkeypatch.setattr(type(guide.program_density), "in_float64", other)
    assert not Weighing(guide).rounding(torch.randn(3, 2)).any()
