"""The time of trainings: the seconds that they share, and how they ended."""

from __future__ import annotations

from time import monotonic
from typing import Literal, NamedTuple, get_args

from pyro_mdm.support.checks import check_count, check_number

__all__ = [
    "ANY_STEPS",
    "LEAST",
    "MEASUREMENTS",
    "Budget",
    "Outcome",
    "Pace",
    "Reason",
    "measured_every",
    "steps_within",
]

ANY_STEPS = 10**9
"""The number of steps of a training that only its seconds limit."""
LEAST = 1e-3
"""The least number of seconds of a training whose time is over before it begins."""
MEASUREMENTS = 10
"""The usual number of measurements in a training of many steps."""
SELDOM, FEW = 250, 4  # the least steps between them, and their number in a short training
TIMED = 5  # the number of steps after which a training says about how long it will take

Reason = Literal["all steps", "budget", "no gain", "stopped"]
"""Why a training ended."""
WORDS: dict[Reason, str] = {
    "all steps": "all steps were taken",
    "budget": "its seconds were over",
    "no gain": "nothing was gained any more",
    "stopped": "its loop was left",
}
assert tuple(WORDS) == get_args(Reason)


def check_seconds(seconds: object, name: str = "seconds") -> None:
    """Raises ValueError unless a time is a positive number of seconds, or None."""
    if seconds is not None:
        check_number(name, seconds, "a positive number of seconds, or None", positive=True)


def steps_within(steps: int | None, seconds: float | None, usual: int, *, least: int = 1) -> int:
    """The most steps of a training: those given, or else the usual number, or as many as fit into
    its seconds. ``least`` is the least number that may be given."""
    check_seconds(seconds)
    if steps is not None:
        check_count("steps", steps, "the number of training steps", least=least)
        return steps
    return usual if seconds is None else ANY_STEPS


def measured_every(steps: int) -> int:
    """The usual number of steps between measurements: a tenth of all, and at least 250 or, in a
    short training, a quarter."""
    return max(steps // MEASUREMENTS, min(SELDOM, -(-steps // FEW)), 1)


class Budget:
    """The seconds that a training may take (None: no limit), or several trainings in turn, with
    those ``spent`` before, such as those of a run that goes on.

    Example:
        >>> budget = Budget(60.0, spent=15.0, trainings=3)
        >>> budget.share, budget.left(), budget.left(0.5), round(budget.next())
        (0.25, 45.0, 15.0, 15)
    """

    def __init__(
        self, seconds: float | None = None, *, spent: float = 0.0, trainings: int = 1
    ) -> None:
        check_seconds(seconds)
        self.seconds, self.trainings, self._before = seconds, trainings, spent
        self._turn = 0
        self._began: float | None = None  # by the clock; None: it stands

    def start(self) -> Budget:
        """The budget, whose time counts from here on."""
        if self._began is None:
            self._began = monotonic()
        return self

    def stop(self) -> None:
        """Let time count no more."""
        self._before, self._began = self.spent, None

    @property
    def spent(self) -> float:
        """The number of seconds spent, with those before."""
        return self._before + (0.0 if self._began is None else monotonic() - self._began)

    @property
    def share(self) -> float:
        """The share of the seconds that is spent, in [0, 1]; 0 without a limit."""
        return 0.0 if self.seconds is None else min(1.0, self.spent / self.seconds)

    def left(self, share: float = 1.0) -> float | None:
        """The seconds until a share of all is spent, a millisecond at least; None: no limit."""
        return None if self.seconds is None else max(LEAST, share * self.seconds - self.spent)

    def next(self) -> float | None:
        """The seconds of the next training, an equal part of those left, which count from here on.

        None: no limit.
        """
        left = self.start().left()
        self._turn += 1
        return None if left is None else left / max(1, self.trainings - self._turn + 1)

    @property
    def turn(self) -> str:
        """The training that :meth:`next` began last, in words."""
        return f"network {self._turn} of {self.trainings}" if self.trainings > 1 else "training"


class Pace:
    """The time of the first steps of a training, by which that of all is estimated."""

    def __init__(self, budget: Budget, done: int, steps: int) -> None:
        self._budget, self._steps, self._due = budget, steps, done + TIMED
        self._first: tuple[int, float] | None = None

    def whole(self, done: int) -> float | None:
        """About how many seconds the whole training takes, once, after five steps; else None."""
        if self._first is None:  # of a step that compiles and allocates
            self._first = done, self._budget.spent
        if done < self._due or done == self._first[0]:
            return None
        self._due = self._steps + 1
        rate = (self._budget.spent - self._first[1]) / (done - self._first[0])
        whole = self._budget.spent + rate * (self._steps - done)
        return whole if self._budget.seconds is None else min(whole, self._budget.seconds)


class Outcome(NamedTuple):
    """How a training ended, and what it kept.

    Example:
        >>> print(Outcome(900, 60.0, "budget", 850, 1.25))
        900 steps in 60.0 s: its seconds were over; step 850 is kept, of validation loss 1.250 nats
    """

    steps: int  # the number of steps taken
    seconds: float  # the time they took, validation included
    reason: Reason  # why it ended
    best_step: int | None = None  # the step whose weights are kept; None: the last
    best: float | None = None  # the validation loss of these weights; None: there was none
    unit: str = "nats"  # the unit of that loss

    def __str__(self) -> str:
        seconds = f"{self.seconds:.1f}" if self.seconds < 100 else f"{self.seconds:,.0f}"
        steps = "step" if self.steps == 1 else "steps"
        if self.steps == 0 and self.reason == "all steps":
            return "no steps, as none were asked for"
        time = f"{self.steps:,} {steps} in {seconds} s: {WORDS[self.reason]}"
        if self.best_step is None or self.best is None:
            return f"{time}; the last step is kept"
        loss = f"of validation loss {self.best:.3f} {self.unit}"
        return f"{time}; step {self.best_step:,} is kept, {loss}"
