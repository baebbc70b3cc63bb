"""Operations of a step beside its network, and how often it waits for the host."""

from __future__ import annotations

import copy
import math
import pickle
import threading

import pytest
import torch

from pyro_mdm import (
    CLD,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    bound,
    condition,
    likelihoods,
)
from pyro_mdm.contexts import Labels
from pyro_mdm.diffusions.memory import Recalled, of_tensor
from pyro_mdm.networks import MLP
from pyro_mdm.samplers import EulerMaruyama, ExponentialIntegrator, Guided, Sampler
from pyro_mdm.support.late_checks import (
    check_finite,
    check_later,
    check_values,
    checked_together,
    settle,
)
from tests.benchmarks.moves import moves, walks
from tests.benchmarks.operations import MODELS, STEPS, counted, sampler_counts, step_counts


@pytest.mark.parametrize(
    ("name", "waits", "beside"),
    [
        ("loss, VPSDE", 0, 110),
        ("loss, CLD", 0, 110),
        ("loss, learned K = 2", 1, 345),
        ("loss of a raw score, CLD", 0, 650),
        ("loss of a raw score, learned K = 2", 2, 2400),
        ("loss of a table", 1, 560),
    ],
)
def test_a_step_of_training_waits_for_nothing(name: str, waits: int, beside: int) -> None:
    """Nothing for fixed diffusions; for learned ones once for their matrices, and once for how many
    steps their times take; for tables whether entries are missing. Limits leave room for other
    versions of torch."""
    counts = step_counts(name)
    assert sum(counts.waits.values()) <= waits, counts.waits
    assert counts.network > 200
    assert counts.beside <= beside


@pytest.mark.parametrize("name", ["VPSDE", "CLD", "raw score, CLD", "given other dimensions, CLD"])
def test_a_call_of_a_sampler_waits_for_nothing(name: str) -> None:
    _, call = sampler_counts(name, 3, 5)
    assert not call.waits
    assert call.network > 50
    assert call.beside <= 25


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_run_of_a_sampler_waits_for_its_grid_alone(name: str) -> None:
    run, _ = sampler_counts(name, 3, 5)
    assert sum(run.waits.values()) <= 4, run.waits


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


def test_a_flow_waits_for_its_solver_alone() -> None:
    counts = step_counts("flow, 2 dimensions", lines=True)
    ours = [line for line in counts.waiting if " _solved < " not in line]
    assert not ours
    assert sum(counts.waits.values()) <= 90


@pytest.mark.parametrize("kind", [ExponentialIntegrator, EulerMaruyama])
def test_guidance_in_an_interval_reads_its_grid_once(kind: type[Sampler]) -> None:
    score = Denoiser(MLP(4, out_features=2), torch.zeros(2), torch.ones(2))
    whole = DiffusionModel(CLD(max_log_snr=9.0), score, context=Labels(2, dropout=0.1)).eval()
    model = condition(whole, context=1)

    def waits(steps: int) -> int:
        model.sampler = Guided(kind(steps), 2.0, (-3.0, 4.0))
        model(batch_size=2)
        return sum(counted(lambda: model(batch_size=2), score.network).waits.values())

    assert waits(4) == waits(8) <= 4


def test_the_gradient_of_a_prior_takes_a_call_of_the_network_for_a_step() -> None:
    """Forward alone, and one pass for all divergences."""
    counts = step_counts("gradient of a prior, 2 dimensions")
    assert sum(counts.waits.values()) <= 3, counts.waits
    assert counts.network <= 1500
    assert counts.beside <= 1500


def test_a_measurement_adds_little_to_a_call_and_no_wait() -> None:
    """To that of the same sampler without one, by longer runs, in which grids cost the same."""
    (_, plain), (_, given) = (sampler_counts(n) for n in ("CLD", "given a measurement, CLD"))
    assert not given.waits
    assert given.network > plain.network + 50, "a product with the network's covariance"
    assert given.beside <= plain.beside + 40


def test_walks_through_the_code_are_short() -> None:
    """Of the second time, with little room: people who look for a mistake go the same ways."""
    most = {
        "--guide learned to a kernel": 280,
        "data to a loss": 125,
        "a sample given a measurement": 3500,
    }
    for name, walk in walks().items():
        if name in most:
            walk()
            counts = moves(walk)
            assert most[name] / 2 < counts.total() <= most[name], counts.most_common(10)
            assert all(start != end for (start, _), (end, _) in counts)


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


def test_there_is_a_step_for_each_kind() -> None:
    assert len(STEPS) >= 8
    assert len(MODELS) >= 4


def wrong() -> None:
    raise ValueError("wrong")


class Late:
    """An event that comes when a test wants it to."""

    def __init__(self, has_come: bool = False) -> None:
        self.has_come = has_come

    def query(self) -> bool:
        return self.has_come

    def synchronize(self) -> None:
        self.has_come = True


def test_a_check_on_the_cpu_is_at_once() -> None:
    check_values(torch.tensor(True), wrong)
    with pytest.raises(ValueError, match="wrong"):
        check_values(torch.tensor(False), wrong)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda x: check_values(x > 0, wrong))(torch.ones(2))


def test_checks_of_a_block_are_one_and_name_the_first_mistake() -> None:
    x = torch.tensor([1.0, math.nan])
    with checked_together():
        check_finite("y", torch.ones(2, dtype=torch.float64))
        check_values(torch.tensor(True), wrong)
    with pytest.raises(ValueError, match="x of shape"), checked_together():
        check_finite("y", torch.ones(2))
        check_finite("x", x)
        check_values(torch.tensor(False), wrong)
    with pytest.raises(ValueError, match="x of shape"), checked_together():
        check_finite("x", x)
        raise RuntimeError("what came of it")
    with pytest.raises(RuntimeError, match="another"), checked_together():
        check_finite("y", torch.ones(2))
        raise RuntimeError("another")
    with pytest.raises(RuntimeError, match="vmap"), checked_together():  # at once, not later
        torch.func.vmap(lambda x: check_values(x > 0, wrong))(torch.ones(2))

    def checks() -> None:
        with checked_together():
            for _ in range(5):
                check_finite("y", torch.ones(2))

    counts = counted(checks, torch.nn.Identity())
    assert counts.operations <= 5 + 8 and not counts.waits


@pytest.mark.parametrize("what", ["one tensor", "several"])
def test_what_follows_from_a_buffer_is_computed_when_it_changes(what: str) -> None:
    number, buffer = [0], torch.ones(3)
    recalled = Recalled()

    def compute(x: torch.Tensor) -> float:
        number[0] += 1
        return float(x.sum())

    def ask(x: torch.Tensor) -> float:
        return of_tensor(x, "sum", compute) if what == "one tensor" else recalled(compute, x)

    assert [ask(buffer), ask(buffer), number[0]] == [3.0, 3.0, 1]
    buffer.fill_(2.0)
    assert [ask(buffer), ask(buffer), number[0]] == [6.0, 6.0, 2]
    assert ask(torch.zeros(3)) == 0.0
    with torch.inference_mode():
        seen = torch.ones(3)
        assert ask(seen) == 3.0
        seen.zero_()  # which nobody counts
        assert ask(seen) == 0.0
    assert copy.deepcopy(recalled)._last is None


def test_the_answer_of_a_gpu_is_read_when_it_has_come() -> None:
    late = Late()
    check_later(late, torch.tensor(False), wrong)
    check_later(Late(True), torch.tensor(True), wrong)  # waits its turn
    late.has_come = True
    with pytest.raises(ValueError, match="wrong"):
        check_later(Late(), torch.tensor(False), wrong)
    settle()  # what followed is given up with it
    check_later(Late(), torch.tensor(False), wrong)
    with pytest.raises(ValueError, match="wrong"):
        settle()
    settle()


def test_answers_are_of_their_thread() -> None:
    check_later(Late(), torch.tensor(False), wrong)
    thread = threading.Thread(target=settle)
    thread.start()
    thread.join()
    with pytest.raises(ValueError, match="wrong"):
        settle()


def test_a_loss_that_was_wrong_leaves_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the answer comes after the gradients, as on a GPU."""
    diffusion = VPSDE(max_log_snr=9.0)
    model = DiffusionModel(diffusion, Denoiser(MLP(2, hidden=8, out_features=2)), event_shape=(2,))
    guide, loss = DiffusionGuide(diffusion), MDM_ELBO()
    monkeypatch.setattr(
        "pyro_mdm.model.check_values", lambda right, report: check_later(Late(), right, report)
    )
    with pytest.raises(ValueError, match="float32"):
        loss.loss_and_grads(model, guide, torch.full((2, 2), 1e6))  # noise is below its rounding
    assert all(p.grad is None for p in model.parameters())
    for ask in (lambda x: bound(model, guide, x, draws=2), model.log_prob):
        with pytest.raises(ValueError, match="float32"):  # in place of a number
            ask(torch.full((8, 2), 1e6))
    assert math.isfinite(loss.loss_and_grads(model, guide, torch.zeros(2, 2)))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", ["reverse", "forward", "functional"])
def test_laws_ahead_are_of_numbers_alone(mode: str) -> None:
    """A time that is differentiated has a law of its own, and a copy has none ahead."""
    diffusion, times = CLD(), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)

    def level(s: torch.Tensor) -> torch.Tensor:
        return diffusion.marginal(s).log_snr

    def slope(s: torch.Tensor) -> torch.Tensor:
        if mode == "functional":
            return torch.func.grad(level)(s)
        if mode == "forward":
            return torch.func.jvp(level, (s,), (torch.ones_like(s),))[1]
        s = s.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(level(s), s)
        return slope

    expected = slope(times[2])
    with torch.no_grad(), diffusion.laws_ahead(times):
        torch.testing.assert_close(slope(times[2]), expected)
        ahead = level(times[2])
        torch.testing.assert_close(copy.deepcopy(diffusion).marginal(times[2]).log_snr, ahead)
        assert pickle.loads(pickle.dumps(diffusion))._ahead is None
        times.mul_(0.5)
        assert level(times[2]) > ahead + 0.1


def test_an_object_that_was_pickled_before_there_was_a_memory_has_one() -> None:
    decoder = likelihoods.Gaussian()
    state = {k: v for k, v in vars(decoder).items() if k != "_recalled"}
    earlier = object.__new__(likelihoods.Gaussian)
    earlier.__dict__.update(state)
    assert isinstance(earlier._recalled, Recalled) and earlier._recalled is earlier._recalled
    assert earlier._recalled is not decoder._recalled
