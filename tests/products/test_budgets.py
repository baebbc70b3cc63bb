"""Whatever fits ends by its seconds, its steps, or when nothing is gained, and says which."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from inference.folders.runs import RunError
from inference.posterior import posterior
from inference.train import train
from inference.training import report, trainee
from pyro_mdm import AutoMDM, budgets, training
from pyro_mdm.automatic import fitting
from pyro_mdm.budgets import ANY_STEPS, Budget, Outcome, Pace, steps_within
from pyro_mdm.posteriors import (
    AmortizedLikelihood,
    AmortizedPosterior,
    amortized,
    likelihood as likelihoods,
)
from pyro_mdm.posteriors.members import LikelihoodMembers
from pyro_mdm.tables import Table, training as tables
from pyro_mdm.training import Trainer
from tests.brief import SHORT, be_brief
from tests.programs.running import Stopped
from tests.tables.test_library_table import patients

STILL = 1e-30
"""A learning rate at which no number of float32 changes."""


class Clock:
    """A clock that stands but for steps of training, of a second each."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(budgets, "monotonic", clock)

    for cls in (training.Trainer, trainee._FabricTrainer):
        usual = cls.advance

        def advance(self: Any, usual: Callable[[Any], None] = usual) -> None:
            usual(self)
            clock.now += 1.0

        monkeypatch.setattr(cls, "advance", advance)
    return clock


# -- budgets and outcomes --------------------------------------------------------------------------


def test_a_budget_counts_while_it_runs(clock: Clock) -> None:
    budget = Budget(10.0, spent=2.0)
    clock.now += 5
    assert budget.spent == 2 and budget.share == 0.2  # it has not begun
    budget.start()
    clock.now += 3
    assert budget.spent == 5 and budget.left() == 5 and budget.left(0.6) == 1
    budget.start()  # which goes on
    budget.stop()
    clock.now += 50
    assert budget.spent == 5
    budget.start()
    clock.now += 50
    assert budget.share == 1 and budget.left() == budgets.LEAST
    assert Budget().start().left() is None and Budget().share == 0


def test_what_a_training_leaves_is_for_the_next(clock: Clock) -> None:
    budget = Budget(12.0, trainings=3)
    assert budget.next() == 4 and budget.turn == "network 1 of 3"
    clock.now += 2  # it ended early
    assert budget.next() == 5
    clock.now += 7  # it took longer
    assert budget.next() == 3 and budget.turn == "network 3 of 3"
    assert Budget(trainings=2).next() is None and Budget().turn == "training"


def test_time_is_estimated_once_after_five_steps_without_the_first(clock: Clock) -> None:
    def estimates(done: int, steps: int, seconds: float | None) -> dict[int, float]:
        pace = Pace(Budget(seconds).start(), done, steps)
        clock.now += 40  # of a first step, which compiles
        whole = {}
        for step in range(done + 1, done + 12):
            if (estimate := pace.whole(step)) is not None:
                whole[step] = estimate
            clock.now += 2
        return whole

    assert estimates(0, 100, None) == {5: 40 + 2 * 99}
    assert estimates(50, 100, None) == {55: 40 + 2 * 49}
    assert estimates(0, ANY_STEPS, 60.0) == {5: 60.0}


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome(1200, 3.21, "all steps"), "1,200 steps in 3.2 s: all steps were taken; the last "),
        (Outcome(1, 1.0, "budget"), "1 step in 1.0 s: its seconds were over; the last step is k"),
        (Outcome(0, 53.8, "all steps"), "no steps, as none were asked for"),
        (Outcome(0, 2.0, "budget"), "0 steps in 2.0 s: its seconds were over"),
        (Outcome(3, 1.0, "stopped"), "3 steps in 1.0 s: its loop was left; the last step is kept"),
        (
            Outcome(3000, 1.0, "no gain", 1000, -2.0, "bits/dim"),
            "3,000 steps in 1.0 s: nothing was gained any more; step 1,000 is kept, of validation "
            "loss -2.000 bits/dim",
        ),
    ],
)
def test_an_outcome_in_words(outcome: Outcome, said: str) -> None:
    assert str(outcome).startswith(said)


def test_steps_are_those_given_or_usual_or_as_many_as_fit() -> None:
    assert steps_within(7, 1.0, 100) == steps_within(7, None, 100) == 7
    assert steps_within(None, None, 100) == 100
    assert steps_within(None, 1.0, 100) == ANY_STEPS


# -- the trainer -----------------------------------------------------------------------------------


def line() -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    network = nn.Linear(1, 1)
    return network, lambda: network(torch.ones(1)).square().sum()


@pytest.mark.parametrize("steps", [None, 100, 8])
def test_seconds_end_after_the_steps_that_fit(steps: int | None, clock: Clock) -> None:
    """One at least."""
    network, loss = line()
    trainer = Trainer(network, steps=100, seconds=1e-9)
    trainer.fit(loss)
    assert trainer.outcome == Outcome(1, 1.0, "budget")
    trainer = Trainer(network, steps=steps, seconds=7.5)
    trainer.fit(loss, loss)
    assert trainer.step_number == 8  # the one during which it ended is the last
    reason = "all steps" if steps == 8 else "budget"
    assert trainer.outcome[:3] == (8, 8.0, reason)
    assert trainer.outcome.best_step == 8  # the weights of the end are looked at


def test_rates_fall_with_time_where_only_seconds_are_given(clock: Clock) -> None:
    network, loss = line()
    trainer = Trainer(network, steps=None, seconds=4.0, learning_rate=1.0, warmup=0)
    rates = []
    for _ in trainer:
        trainer.step(loss())
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)])


def test_rates_rise_in_a_tenth_of_the_seconds_where_steps_are_slow(clock: Clock) -> None:
    network, loss = line()
    trainer = Trainer(network, steps=None, seconds=40.0, learning_rate=1.0, decay="constant")
    rates = []
    for _ in trainer:
        trainer.step(loss())
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert trainer.warmup == 100
    assert rates == pytest.approx([0.01, 0.25, 0.5, 0.75, *[1.0] * 36])


def test_a_loop_that_is_left_was_stopped(clock: Clock) -> None:
    network, loss = line()
    trainer = Trainer(network, steps=5)
    for _ in trainer:
        trainer.step(loss())
        break
    trainer.end()
    clock.now += 9  # what comes afterwards is no training
    assert trainer.outcome == Outcome(1, 1.0, "stopped")


def test_rates_cool_down_after_the_last_gain() -> None:
    network, loss = line()
    trainer = Trainer(
        network, steps=100, patience=2, cool_down=0.5, decay="constant", warmup=0, learning_rate=1.0
    )
    values, rates = iter([3.0, 2.0, 2.0, 2.0, 1.5, *[9.0] * 90]), []
    for _ in trainer:
        trainer.step(loss())
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.look(next(values))
    # gains until step 2, patience until step 4, and half of 4 steps more
    assert rates == pytest.approx([1.0] * 4 + [1.0, 0.5])
    assert trainer.outcome[2:4] == ("no gain", 5)  # the best is of the cool-down


def test_falls_below_the_least_gain_do_not_count_together_they_do() -> None:
    network, loss = line()
    trainer = Trainer(network, steps=100, patience=3, least_gain=0.5)
    values = iter([3.0, 2.8, 2.6, 2.5, 2.4, 2.3, 2.2, *[0.0] * 90])
    for _ in trainer:
        trainer.step(loss())
        trainer.look(next(values))
    assert trainer.step_number == 7 and trainer.best == 2.2  # a smaller fall is kept all the same


@pytest.mark.parametrize("falls", [True, False])
def test_mean_losses_stand_in_for_validation(falls: bool) -> None:
    network, _ = line()
    trainer = Trainer(network, steps=200, patience=2, window=10, average=None)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0))
    for step in trainer:
        slope = 0.1 * step if falls else 0.0
        trainer.step(network.weight.sum() * 0 + noise[step] - slope)
    assert (trainer.outcome.reason == "all steps") is falls
    assert trainer.outcome.best_step is None and (falls or trainer.step_number < 100)


def test_validations_are_no_values_beside_mean_losses() -> None:
    network, loss = line()
    trainer = Trainer(network, steps=400, patience=2, window=10, learning_rate=STILL)
    falls = itertools.count(1)
    trainer.fit(lambda: loss() + 100 + torch.randn(()), lambda: -float(next(falls)))
    assert trainer.outcome.reason == "no gain" and trainer.best_step == trainer.step_number < 400


def test_a_training_that_died_counts_its_mean_losses(tmp_path: Path) -> None:
    """The window that ends at a checkpoint is compared after it."""
    options: dict[str, Any] = {"steps": 1000, "patience": 3, "window": 25}

    def fit(trainer: Trainer, network: Any, died: int) -> tuple[int, str]:
        calls = itertools.count(1)

        def loss() -> Tensor:
            if next(calls) == died:
                raise KeyboardInterrupt
            return network.weight.sum() * 0 + torch.randn(())

        torch.manual_seed(6)
        with contextlib.suppress(KeyboardInterrupt):
            trainer.fit(loss)
        return trainer.step_number, trainer.outcome.reason

    network, _ = line()
    ended = fit(Trainer(network, **options), network, 0)
    options["checkpoint"] = tmp_path / "file"
    assert fit(Trainer(network, **options), network, 30) == (29, "stopped")
    assert fit(Trainer(network, **options), network, 0) == ended and ended[1] == "no gain"


def test_a_training_that_died_keeps_its_budget(clock: Clock, tmp_path: Path) -> None:
    """Two steps after the checkpoint of the eighth are lost, and their seconds too."""
    network, loss = line()
    calls = itertools.count(1)

    def dying() -> Tensor:
        if next(calls) == 11:
            raise KeyboardInterrupt
        return loss()

    options: dict[str, Any] = {"steps": 80, "seconds": 12.0, "checkpoint": tmp_path / "file"}
    with pytest.raises(KeyboardInterrupt):
        Trainer(network, **options).fit(dying, looks=20)
    clock.now += 1000  # until somebody goes on
    trainer = Trainer(network, **options)
    assert trainer.step_number == trainer.budget.spent == 10
    trainer.fit(loss, looks=20)
    assert trainer.outcome[:3] == (12, 12.0, "budget")
    clock.now += 1000
    again = Trainer(network, **options)
    assert list(again) == [] and again.outcome[:3] == (12, 12.0, "budget")


def test_looks_without_validation_are_apart_in_time(clock: Clock) -> None:
    network, loss = line()
    trainer, due = Trainer(network, steps=None, seconds=20.0), []
    for step in trainer:
        trainer.step(loss())
        due += [step + 1] if trainer.is_due(1000, looks=4) else []
    assert due == [5, 10, 15, 20]


def test_no_seconds_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    network, loss = line()
    trainer = Trainer(network, steps=3)
    for step in trainer:
        monkeypatch.setattr(budgets, "monotonic", None)  # which cannot be called
        trainer.step(loss())
        assert trainer.is_due(1) and not trainer.is_out_of_time and step < 3
        monkeypatch.undo()


@pytest.mark.parametrize("shown", [True, False])
def test_progress_says_the_estimate_and_the_outcome(
    shown: bool, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    network, loss = line()
    Trainer(network, steps=30, progress="work" if shown else False).fit(loss)
    expected = ["work: about 00:30 in all", "work: 30 steps in 30.0 s: all steps were taken; the "]
    lines = [words for words in capsys.readouterr().err.splitlines() if " of 30 " not in words]
    assert len(lines) == 2 * shown
    assert all(words.startswith(e) for words, e in zip(lines, expected, strict=False))


# -- every fit -------------------------------------------------------------------------------------


def simulator() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(a, 0.5))


def program() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(a, 0.5), obs=torch.tensor(1.0))


SMALL: dict[str, Any] = {"simulations": 100, "vectorized": True, "batch_size": 8}


def of_posterior(**options: Any) -> list[Outcome]:
    fitted = AmortizedPosterior.fit(simulator, ["a"], ["b"], **SMALL | options)
    assert fitted.outcome is not None
    return [fitted.outcome]


def of_likelihood(**options: Any) -> list[Outcome]:
    fitted = AmortizedLikelihood.fit(simulator, ["a"], ["b"], hidden=8, **SMALL | options)
    assert list(fitted.outcomes) == ["b"]
    return fitted.outcomes["b"]


def of_table(**options: Any) -> list[Outcome]:
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # of so few steps
        be_brief(patch)
        fitted = Table(**options).fit(patients())
    assert fitted.outcome is not None
    return [fitted.outcome]


def of_guide(steps: int | None = None, **options: Any) -> list[Outcome]:
    torch.manual_seed(0)
    number: dict[str, Any] = {"updates": steps, "start_updates": steps}
    with mock.patch("pyro_mdm.automatic.fitting.laplace", return_value=None):  # no race of starts
        guide = AutoMDM(program, steps=2, width=4).fit(paths=4, **number, **options)
    assert list(guide.outcomes) == ["Gaussian", "chain"]
    assert len(guide.losses) == guide.outcomes["chain"].steps
    return [*guide.outcomes.values()]


FITS: dict[str, Callable[..., list[Outcome]]] = {
    "AmortizedPosterior": of_posterior,
    "AmortizedLikelihood": of_likelihood,
    "Table": of_table,
    "AutoMDM": of_guide,
}
SPLITS = {"AmortizedPosterior": [10], "AmortizedLikelihood": [5, 5], "Table": [9]}
SPLITS |= {"AutoMDM": [3, 7]}
"""The steps of a second that ten seconds have, by network."""


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.mark.slow
@pytest.mark.parametrize("name", FITS)
def test_a_fit_ends_by_its_seconds(
    name: str, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = 50  # which no table's steps of ten seconds reach
    monkeypatch.setattr(tables, "PATIENCE", patience)
    monkeypatch.setattr(tables.Schedule.__new__, "__defaults__", (800, 2e-3, 100, patience, None))
    for steps in (None, 1000):
        pyro.clear_param_store()
        outcomes = FITS[name](steps=steps, seconds=10.0, progress=True)
        assert [outcome.steps for outcome in outcomes] == SPLITS[name]
        assert {outcome.reason for outcome in outcomes} == {"budget"}
        said = capsys.readouterr().err
        assert all(f"{o.steps} steps in {o.seconds:.1f} s: its seconds" in said for o in outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("name", FITS)
def test_a_fit_ends_by_its_steps(
    name: str, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = FITS[name](steps=4, seconds=1000.0, progress=True)
    assert {outcome[:3] for outcome in outcomes} == {(4, 4.0, "all steps")}
    said = capsys.readouterr().err
    assert said.count("4 steps in 4.0 s: all steps were taken; ") == len(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("name", FITS)
def test_a_fit_ends_where_nothing_is_gained(
    name: str, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "WINDOW", 5)
    options: dict[str, Any] = {"seconds": 400.0, "learning_rate": STILL, "progress": True}
    outcomes = FITS[name](**options)
    assert {outcome.reason for outcome in outcomes} == {"no gain"}
    assert all(outcome.seconds < 300 for outcome in outcomes)
    assert "nothing was gained any more; " in capsys.readouterr().err
    if name in ("AmortizedPosterior", "Table"):
        assert [outcome.best_step for outcome in outcomes] == [0]


@pytest.mark.slow
def test_more_simulations_are_learned_from_in_more_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default as the root of their number, or as the number above 10,000; given steps are taken
    as they are."""
    for module in (amortized, likelihoods):
        monkeypatch.setattr(module, "USUAL", module.USUAL._replace(steps=20))
    for of_one in (of_posterior, of_likelihood):
        for n, number in ((100, 2), (400, 4), (20_000, 40)):
            outcomes = of_one(simulations=n)
            if of_one is of_likelihood and n > 400:  # whose trainings may end earlier
                assert all(4 < outcome.steps <= number for outcome in outcomes)
                continue
            assert {outcome[:3:2] for outcome in outcomes} == {(number, "all steps")}
        assert {outcome.steps for outcome in of_one(steps=5)} == {5}


@pytest.mark.slow
def test_members_share_their_seconds(clock: Clock) -> None:
    members = LikelihoodMembers.fit(
        simulator, ["a"], ["b"], members=2, hidden=8, seconds=8.0, form="gaussian", **SMALL
    )
    steps = [[outcome.steps for outcome in member.outcomes["b"]] for member in members]
    assert steps == [[2, 2], [2, 2]]  # of a Gaussian and its mixtures


@pytest.mark.slow
def test_a_further_round_of_a_likelihood_has_its_seconds(clock: Clock) -> None:
    first = AmortizedLikelihood.fit(
        simulator, ["a"], ["b"], hidden=8, steps=1, form="gaussian", **SMALL
    )
    options: dict[str, Any] = {"vectorized": True, "batch_size": 8, "form": "gaussian"}
    second = first.refined({"a": torch.randn(20)}, seconds=6.0, **options)
    assert [outcome[:3:2] for outcome in second.outcomes["b"]] == [(3, "budget")] * 2


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf, "1", True])
@pytest.mark.parametrize("name", FITS)
def test_seconds_that_are_none_are_refused(name: str, seconds: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"seconds is .*, expected a (posi|number)"):
        FITS[name](seconds=seconds)


# -- the commands ----------------------------------------------------------------------------------

RUN = {name: value for name, value in SHORT.items() if name != "steps"}


@pytest.mark.slow
@pytest.mark.usefixtures("few_pictures")
def test_a_run_ends_by_its_seconds_and_died_it_keeps_them(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = RUN | {"measure_every": 2, "seconds": 5.0}
    train(**options, run=tmp_path / "run")
    said = capsys.readouterr().out
    assert "step 0, at most 5 s" in said
    assert "training: 5 steps in 5.0 s: its seconds were over; the last step is kept\n" in said
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 5
    original = report.at_step

    def dies(*arguments: Any, **more: Any) -> Any:
        if 4 in arguments:
            raise Stopped
        return original(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(report, "at_step", dies)
        train(**options, run=tmp_path / "killed")
    clock.now += 1000
    train(resume=tmp_path / "killed")
    assert "5 steps in 5.0 s: its seconds were over" in capsys.readouterr().out
    train(resume=tmp_path / "run")  # it is over, and measured again
    assert "5 steps in 5.0 s: its seconds were over" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"stopped at step 5 by --seconds 5.0, .* --seconds N"):
        train(resume=tmp_path / "run", steps=2 * ANY_STEPS)
    with pytest.raises(RunError, match="leave out --seconds"):
        train(resume=tmp_path / "run", seconds=9.0)


@pytest.mark.slow
@pytest.mark.usefixtures("few_pictures")
def test_a_run_ends_by_its_steps_or_where_nothing_is_gained(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(**RUN, steps=4, seconds=100.0, run=tmp_path / "steps")
    assert "training: 4 steps in 4.0 s: all steps were taken" in capsys.readouterr().out
    still = {"learning_rate": STILL, "diffusion_learning_rate": 0.0, "measure_every": 2}
    train(**RUN | still, seconds=100.0, run=tmp_path / "still")
    assert "training: 8 steps in 8.0 s: nothing was gained any more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seconds": 0.0}, "--seconds is 0.0, expected a positive number"),
        ({"seconds": 5.0, "steps": 0}, r"--seconds 5.0 has no effect on --steps 0"),
    ],
)
def test_impossible_seconds_of_a_run(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        train(**RUN | options, run=tmp_path / "none")


@pytest.mark.slow
def test_the_posterior_of_a_command_ends_by_its_seconds(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few: dict[str, Any] = {"scored": 4, "calibration": 20, "num_samples": 20, "batch_size": 8}
    out = tmp_path / "posterior.png"
    posterior("linear_gaussian", simulations=200, seconds=3.0, out=out, **few)
    printed = capsys.readouterr()
    assert "200 simulations, 3 steps" in printed.out and "its seconds were over" in printed.err
    with pytest.raises(ValueError, match="--seconds is -1"):
        posterior("linear_gaussian", seconds=-1.0, out=tmp_path / "other.png", **few)
