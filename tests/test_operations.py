"""Operations of a step beside its network, and how often it waits for the host."""

from __future__ import annotations

import pytest
import torch

from pyro_mdm.support.checks import check_later, check_values, settle
from tests.benchmarks.operations import MODELS, STEPS, counted, sampler_counts, step_counts


@pytest.mark.parametrize(
    ("name", "waits", "beside"),
    [
        ("loss, VPSDE", 0, 200),
        ("loss, CLD", 0, 200),
        ("loss, learned K = 2", 2, 1300),
    ],
)
def test_a_step_of_training_waits_for_nothing(name: str, waits: int, beside: int) -> None:
    """Nothing for fixed diffusions; for learned ones for their matrices, and whether the ends that
    these give are near enough. Limits leave room for other versions of torch."""
    counts = step_counts(name)
    assert sum(counts.waits.values()) <= waits, counts.waits
    assert counts.network > 200
    assert counts.beside <= beside


@pytest.mark.parametrize("name", ["VPSDE", "CLD", "raw score, CLD", "given other dimensions, CLD"])
def test_a_call_of_a_sampler_waits_for_nothing(name: str) -> None:
    _, call = sampler_counts(name, 3, 5)
    assert not call.waits
    assert call.network > 50
    assert call.beside <= 120


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


def test_a_check_on_the_cpu_is_at_once() -> None:
    check_values(torch.tensor(True), wrong)
    with pytest.raises(ValueError, match="wrong"):
        check_values(torch.tensor(False), wrong)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda x: check_values(x > 0, wrong))(torch.ones(2))


def test_the_answer_of_a_gpu_is_read_when_it_has_come() -> None:
    come = []
    check_later(lambda: bool(come), torch.tensor(False), wrong)
    check_later(lambda: True, torch.tensor(True), wrong)  # waits its turn
    come.append(1)
    with pytest.raises(ValueError, match="wrong"):
        check_later(lambda: False, torch.tensor(False), wrong)
    with pytest.raises(ValueError, match="wrong"):
        settle()
    settle()
