"""Training of a module: rates, averages, the best weights, and going on after a kill."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import CLD, MDM_ELBO, Denoiser, DiffusionGuide, DiffusionModel
from pyro_mdm.networks import MLP
from pyro_mdm.training import MovingAverage, Trainer, schedule
from pyro_mdm.training.schedules import Patience


def line(seed: int = 0) -> tuple[nn.Module, Callable[[], Tensor], Callable[[], Tensor]]:
    """A network with dropout and statistics, the loss of a batch, and that of other data."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(1, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.1), nn.Linear(8, 1)
    )
    x = torch.linspace(-1, 1, 64)[:, None]

    def loss() -> Tensor:
        rows = torch.randint(len(x), (16,))
        return ((network(x[rows]) - x[rows] ** 2) ** 2).mean()

    return network, loss, lambda: ((network(x) - x**2) ** 2).mean()


def values(module: nn.Module) -> list[Tensor]:
    return [t.clone() for t in module.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


# -- rates and averages ----------------------------------------------------------------------------


@pytest.mark.slow
def test_rates_warm_up_and_fall_to_nothing() -> None:
    rates = [schedule(step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[4] < rates[9] < rates[10] * 1.1
    assert max(rates) > 0.97 and rates[99] < 1e-3
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert [schedule(step, 9, decay="constant") for step in range(9)] == [1.0] * 9
    assert schedule(25, 10) == schedule(10, 10) == pytest.approx(0)  # a cosine does not rise again
    assert [Trainer(nn.Linear(1, 1), steps=n).warmup for n in (0, 50, 5000)] == [0, 5, 100]


def test_rates_are_a_rise_times_half_a_wave() -> None:
    assert schedule(25, 100) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert schedule(4, 100, 10, "constant") == 0.5
    assert schedule(24, 100, 50) == pytest.approx(0.5 * (1 + math.cos(0.24 * math.pi)) / 2)
    assert schedule(1, 1) == pytest.approx(0)


def test_rates_are_of_the_steps_or_of_the_seconds() -> None:
    """Rises end with the first of both, and decays follow the one that is further."""
    assert schedule(0, 1000, 100, "constant", 0.05) == 0.5
    assert schedule(4, 1000, 10, "constant", 0.01) == 0.5
    assert schedule(250, 1000, share=0.5) == pytest.approx(0.5)
    assert schedule(500, 1000, share=0.25) == pytest.approx(0.5)
    assert schedule(500, 1000, 4000, share=0.05) == pytest.approx(0.25)
    assert schedule(100, 1000, 4000, "constant", 0.2) == 1.0


def test_means_of_windows_are_compared_by_their_errors() -> None:
    """The standard error of two losses is half of their difference; what is not finite is left
    out, and a single loss has none."""
    patience = Patience(1, 0.0, 2, 0.0)
    for losses, over in (
        ((1.0, 3.0), False),  # the first mean is 2
        ((1.0, 2.0), False),  # 1.5 is lower by an error of 0.5
        ((math.nan, 0.5), False),
        ((0.6, 1.6), True),  # 1.1 is not
    ):
        for loss in losses:
            patience.add(torch.tensor(loss))
        assert patience.is_over(0) is over


@pytest.mark.parametrize("forgetting", [10, 20])
def test_the_average_follows_at_first_and_smooths_later(forgetting: int) -> None:
    weight = torch.zeros(1)
    average = MovingAverage([weight], 0.9, forgetting=forgetting)
    weight += 1
    average.update()
    assert average.averages[0].item() == pytest.approx(1 - 1 / forgetting)
    for _ in range(300):
        average.update()
    assert average.averages[0].item() == pytest.approx(1)
    weight -= 1
    average.update()
    assert average.averages[0].item() == pytest.approx(0.9)


def test_a_copy_begins_with_the_first_update_and_has_the_buffers_of_now() -> None:
    network, copy = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    average = MovingAverage(network, 0.9, forgetting=10, copy=copy)
    for number, value in enumerate((3.0, 4.0)):
        with torch.no_grad():
            network.weight.fill_(value)
            network.running_mean.fill_(value)
        average.update()
        expected = (3.0, 4 - 2 / 11)[number]
        assert copy.weight.tolist() == pytest.approx([expected] * 2)
        assert copy.running_mean.tolist() == [value] * 2


# -- steps -----------------------------------------------------------------------------------------


def test_a_step_is_that_of_the_optimizer_on_a_clipped_gradient() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    trainer = Trainer(
        [weight], steps=2, optimizer=optimizer, warmup=0, decay="constant", clip=1.0, average=None
    )
    norm = trainer.step(weight.square().sum() / 2)
    assert norm.item() == pytest.approx(5)
    assert weight.tolist() == pytest.approx([2.4, 3.2])


def test_pieces_of_a_loss_are_one_step() -> None:
    whole, pieces = nn.Linear(2, 1), nn.Linear(2, 1)
    pieces.load_state_dict(whole.state_dict())
    x = torch.randn(6, 2)
    one, other = Trainer(whole, steps=1), Trainer(pieces, steps=1)
    one.step(whole(x).square().sum())
    other.step(pieces(rows).square().sum() for rows in x.split(2))
    for expected, found in zip(values(whole), values(pieces), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_step_asks_nothing_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    network, loss, _ = line()
    trainer = Trainer(network, steps=3)
    waits: list[str] = []
    for name in ("item", "__bool__", "__float__", "tolist"):
        usual = getattr(Tensor, name)

        def counted(*args: Any, usual: Any = usual, name: str = name) -> Any:
            waits.append(name)
            return usual(*args)

        monkeypatch.setattr(Tensor, name, counted)
    value = loss()
    waits.clear()
    trainer.step(value)
    # Adam itself asks the number of its steps, which is on the host
    assert set(waits) <= {"item"} and len(waits) <= len(trainer.weights)


def test_a_gradient_that_is_no_number_is_left_out_where_that_is_said() -> None:
    weight = nn.Parameter(torch.ones(1))
    trainer = Trainer([weight], steps=3, skip=True, warmup=0, average=None)
    trainer.step(weight.sum() * math.nan)
    assert weight.item() == 1 and trainer.skipped == 1
    trainer.step(weight.sum())
    assert weight.item() < 1 and trainer.skipped == 1 and trainer.step_number == 2


def test_without_a_clip_gradients_stay_whatever_their_norm() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1e-25)
    trainer = Trainer([weight], steps=1, optimizer=optimizer, warmup=0, average=None)
    trainer.step((weight * 1e25).sum())  # whose square is beyond float32
    assert weight.tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


def test_what_an_optimizer_does_not_have_is_not_trained() -> None:
    body, head = nn.Linear(2, 2), nn.Linear(2, 1)
    network, before = nn.Sequential(body, head), values(body)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.0)
    trainer = Trainer(network, steps=5, optimizer=optimizer)
    norms = [trainer.step(network(torch.ones(1, 2)).sum()).item() for _ in trainer]
    assert norms == pytest.approx(norms[:1] * 5) and same(values(body), before)
    assert body.weight.grad is None


def test_rates_of_an_optimizer_that_was_used_are_its_first() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for _ in Trainer([weight], steps=3, optimizer=optimizer):
        optimizer.step()
        break
    assert Trainer([weight], steps=3, optimizer=optimizer).rates == [1.0]


# -- the loop --------------------------------------------------------------------------------------


def test_a_loop_leaves_averaged_weights_in_evaluation_mode() -> None:
    network, loss, _ = line()
    trainer = Trainer(network, steps=20)
    assert [trainer.step(loss()).dim() for _ in trainer] == [0] * 20
    assert trainer.average is not None and not network.training
    assert same([p.detach() for p in trainer.weights], trainer.average.averages)


def test_the_best_weights_are_left_with_their_buffers() -> None:
    network, loss, _ = line()
    losses, looked = [5.0, 4.0, 1.0, 3.0, 2.0], []

    def look() -> float:
        looked.append(values(network))
        return losses[len(looked) - 1]

    assert Trainer(network, steps=40).fit(loss, look, looks=4) == 1.0
    assert len(looked) == 5  # the start counts
    assert same(values(network), looked[2])
    assert not same(looked[2], looked[4])


def test_looking_changes_no_random_number_of_the_training() -> None:
    network, loss, validate = line()
    Trainer(network, steps=15).fit(loss)
    unlooked = values(network)
    network, loss, validate = line()
    numbers = itertools.count()

    def falling() -> Tensor:
        return 0 * (validate() + torch.rand(())) - next(numbers)

    Trainer(network, steps=15).fit(loss, falling, looks=3)
    assert same(values(network), unlooked)


def test_a_frozen_weight_may_be_averaged_too() -> None:
    network, loss, validate = line()
    network[0].requires_grad_(False)  # type: ignore[operator]
    before = values(network[0])
    Trainer(network, steps=8, average=MovingAverage(network)).fit(loss, validate)
    assert same(values(network[0]), before)


def test_a_loop_that_is_left_is_ended_by_hand_and_then_over() -> None:
    network, loss, _ = line()
    trainer = Trainer(network, steps=8)
    for step in trainer:
        trainer.step(loss())
        if step == 3:
            break
    assert network.training and trainer.average is not None
    trainer.end()
    assert not network.training
    assert same([p.detach() for p in trainer.weights], trainer.average.averages)
    with pytest.raises(RuntimeError, match="ended after 4 of 8 steps"):
        next(iter(trainer))


def test_a_fit_that_ends_early_has_its_last_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    network, loss, _ = line()
    losses = []

    def kept() -> Tensor:
        losses.append(loss())
        return losses[-1]

    assert Trainer(network, steps=1000, seconds=1e-9).fit(kept) == float(losses[-1].detach())
    with pytest.raises(FloatingPointError, match="validation data was never a number in 4 steps"):
        Trainer(network, steps=4).fit(loss, lambda: math.nan)


@pytest.mark.without_noise  # a compiler refuses a mode that adds it
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_precision_and_compilation_are_those_of_networks(precision: Any) -> None:
    model = DiffusionModel(CLD(), Denoiser(MLP(2, hidden=8, depth=1)), event_shape=(2,))
    loss = MDM_ELBO()(model, DiffusionGuide(model.diffusion))
    trainer = Trainer(loss, steps=1, precision=precision, compile="eager")
    expected = torch.bfloat16 if precision == "bf16-mixed" else None
    for _ in trainer:
        assert model.score_function.autocast_dtype is expected
        assert trainer.step(loss(torch.randn(4, 2))).isfinite()
    assert model.score_function.autocast_dtype is None
    model.score_function.autocast_dtype = torch.bfloat16  # what a user sets stays
    Trainer(loss, steps=1).fit(lambda: loss(torch.randn(4, 2)))
    assert model.score_function.autocast_dtype is torch.bfloat16
    with pytest.raises(ValueError, match="weights alone are given"):
        Trainer(loss.parameters(), steps=1, precision=precision)


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("looked_at", [False, True])
def test_a_killed_training_goes_on_to_the_same_weights(looked_at: bool, tmp_path: Path) -> None:
    """With a look that always finds something better, or none, all steps count in the end."""

    def fit(loss: Callable[[], Tensor], trainer: Trainer) -> float:
        falling = (lambda: -float(trainer.step_number)) if looked_at else None
        return trainer.fit(loss, falling, looks=8)

    network, loss, _ = line()
    ended = fit(loss, Trainer(network, steps=40))
    expected, file = values(network), tmp_path / "folder" / "training.pt"
    network, loss, _ = line()
    calls = itertools.count(1)

    def dying() -> Tensor:
        if next(calls) == 24:
            raise KeyboardInterrupt
        return loss()

    with pytest.raises(KeyboardInterrupt):
        fit(dying, Trainer(network, steps=40, checkpoint=file))
    network, loss, _ = line(seed=7)  # whatever it begins with
    trainer = Trainer(network, steps=40, checkpoint=file)
    torch.rand(3)  # what is drawn before the loop does not matter
    assert trainer.step_number == 20
    assert fit(loss, trainer) == ended
    assert same(values(network), expected)


def test_a_finished_training_has_no_more_steps(tmp_path: Path) -> None:
    network, loss, validate = line()
    Trainer(network, steps=8, checkpoint=tmp_path / "file").fit(loss, validate)
    expected = values(network)
    again, loss, validate = line(seed=3)
    trainer = Trainer(again, steps=8, checkpoint=tmp_path / "file")
    assert list(trainer) == [] and same(values(again), expected)


def test_a_checkpoint_of_another_module_is_refused(tmp_path: Path) -> None:
    network, loss, _ = line()
    Trainer(network, steps=2, checkpoint=tmp_path / "file").fit(loss)
    with pytest.raises(ValueError, match=r"tensors of shapes .*, expected \[\(2, 2\), \(2,\)\]"):
        Trainer(nn.Linear(2, 2), steps=2, checkpoint=tmp_path / "file")
    with pytest.raises(ValueError, match="a number of averages of 6, expected 0"):
        Trainer(network, steps=2, checkpoint=tmp_path / "file", average=None)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="an optimizer of Adam, expected SGD"):
        Trainer(network, steps=2, checkpoint=tmp_path / "file", optimizer=optimizer)
    with pytest.raises(ValueError, match="the checkpoint has weights, expected the state of a tr"):
        Trainer(network, steps=2).load_state_dict({"weights": torch.ones(1)})


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "steps is -1, expected at least 0"),
        ({"decay": "linear"}, "decay is 'linear', expected one of cosine, constant"),
        ({"precision": "16"}, "precision is '16', expected one of 32-true, bf16-mixed"),
        ({"clip": 0.0}, "clip is 0.0, expected a positive number"),
        ({"patience": 0}, "patience is 0, expected at least 1"),
        ({"average": 1.0}, "decay is 1.0, expected a decay in"),
        ({"average": math.nan}, "average is nan, expected a number"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Trainer(nn.Linear(1, 1), **{"steps": 5} | arguments)


def test_a_module_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="no weights that require a gradient"):
        Trainer(nn.Linear(1, 1).requires_grad_(False), steps=1)


def test_a_loss_that_is_no_number_ends_a_fit() -> None:
    network, loss, _ = line()
    with pytest.raises(FloatingPointError, match="the loss is nan after 1 steps"):
        Trainer(network, steps=30).fit(lambda: loss() * math.nan)
