"""Training of a model of the rows of a table, which may be incomplete."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple

import torch

from pyro_mdm.budgets import (
    ANY_STEPS,
    MEASUREMENTS,
    Budget,
    Outcome,
    measured_every,
    steps_within,
)
from pyro_mdm.conditioning.completions import Filling
from pyro_mdm.conditioning.maps import RandomMaps
from pyro_mdm.diffusions.presets import VPSDE
from pyro_mdm.elbo import MDM_ELBO
from pyro_mdm.evaluation.comparison import evidence_lower_bound
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.likelihoods.base import bits_per_dim
from pyro_mdm.model import DiffusionModel
from pyro_mdm.randomness import held, seed_from
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.checks import check_count, check_number, tensor_device
from pyro_mdm.support.modules import evaluating
from pyro_mdm.support.progress import say
from pyro_mdm.support.splits import spread
from pyro_mdm.tables.denoiser import MixedDenoiser
from pyro_mdm.tables.network import FEW, MapMLP
from pyro_mdm.tables.rows import TableRows
from pyro_mdm.training import FALL, MovingAverage, Trainer, indices

__all__ = [
    "BATCH_SIZE",
    "GIVEN_RATE",
    "MAX_LOG_SNR",
    "WINDOW",
    "Schedule",
    "Trained",
    "new_denoiser",
    "train_rows",
]

STEPS, EVERY, PATIENCE = 800, 100, 3
"""The number of training steps, the steps between measurements of the bound on validation data, and
the number of measurements without a fall after which training ends."""
RATE = 2e-3
"""The learning rate of 800 steps: 400 at half of it leave log scores of three tables higher."""
BATCH_SIZE, GIVEN_RATE = 512, 5e-3
"""The most rows of a step, and the learning rate where ``steps`` are given."""
MAX_LOG_SNR, WINDOW = 9.0, (-3.0, 3.0)
"""The log SNR at ε, where the decoder takes over, and the ones between which most training maps are
drawn."""
COOL_DOWN, COMPARED = 0.2, 0.15
"""The part of the steps so far in which rates fall before training ends within seconds, and the
part of the seconds of a fit in which samples are compared with the rows."""
FEWEST, VALIDATED, DRAWS = 8, 256, 2
"""The fewest and the most validation rows that are measured, and the network evaluations of
each."""
MOST_SHARED = 32
"""The most rows of a batch that have one map, where columns are many: the work of a map grows with
the third power of their number."""
MANY, FEW_ROWS, QUIET = 20, 5, 5.0
"""The fewest dimensions of a table that may have too few rows, and the fewest rows for each; and
the seconds before progress is shown that was not asked for."""
NETWORK: dict[str, Any] = {"hidden": 64, "depth": 2, "members": 4, "dropout": 0.1}
NETWORK["frequencies"] = (0.25, 0.5, 1.0, 2.0)
CLIP, WARMUP, DECAY, FORGETTING = 1.0, 100, 0.995, 10
"""The largest norm of a gradient, the steps in which the rate rises, and the decay and forgetting
of the moving average of weights."""


class Trained(NamedTuple):
    """Rows of a table with their model and its guide."""

    rows: TableRows
    model: DiffusionModel
    guide: DiffusionGuide
    outcome: Outcome | None = None  # how the training ended; None: of a folder


class Schedule(NamedTuple):
    """The steps of a training."""

    steps: int = STEPS  # largest number of steps
    learning_rate: float = RATE  # the highest one
    every: int = EVERY  # steps between measurements of the bound on validation data
    patience: int | None = PATIENCE  # measurements without a fall that end it; None: no end
    seconds: float | None = None  # time after which it ends; None: no limit

    @classmethod
    def of_steps(
        cls, steps: int | None, learning_rate: float | None = None, seconds: float | None = None
    ) -> Schedule:
        """The schedule of a number of steps, all of which are taken without a limit of seconds.

        Without steps it is the default schedule, which may end early, or takes as many as fit into
        the seconds. Numbers that are not positive are a TypeError or ValueError.
        """
        if learning_rate is not None:
            words = "the highest learning rate, such as 0.002"
            check_number("learning_rate", learning_rate, words, positive=True)
        usual = cls(seconds=seconds)
        number = steps_within(steps, seconds, usual.steps)
        if steps is None:
            return usual._replace(steps=number, learning_rate=learning_rate or usual.learning_rate)
        patience = None if seconds is None else PATIENCE
        return cls(number, learning_rate or GIVEN_RATE, measured_every(number), patience, seconds)


def train_rows(
    rows: TableRows,
    schedule: Schedule,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool | None = False,
    budget: Budget | None = None,
) -> Trained:
    """A model of the training rows, under :class:`~pyro_mdm.VPSDE`.

    Missing entries are completed by the model in training, see
    :class:`~pyro_mdm.conditioning.Completions`. If there are validation rows, the weights with the
    best bound on them are kept. Data and noise of a step are functions of the seed and the step.

    Args:
        rows, schedule: the rows, with their columns, and the steps, rates and measurements.
        batch_size, seed, device, progress: as for :class:`~pyro_mdm.tables.Table`.
        budget: the seconds of the schedule, some of which may be spent; None: none are.

    Raises:
        FloatingPointError: a loss that is not finite.
        TypeError, ValueError: a batch size that is no number of rows.
    """
    number = len(rows.train)
    size = min(BATCH_SIZE, number) if batch_size is None else batch_size
    check_count("batch_size", size, "the number of rows of a step")
    if size > number:
        raise ValueError(
            f"batch_size is {size}, expected at most the number of training rows, {number}"
        )
    (dims,) = rows.event_shape
    if MANY <= dims > number / FEW_ROWS:
        warnings.warn(
            f"there are {number} training rows, fewer than {FEW_ROWS} for each of {dims} "
            "dimensions: dependences are shrunk to what so few rows show; leave out columns that "
            "do not matter",
            stacklevel=2,
        )
    with torch.random.fork_rng():
        model = new_model(rows, seed).to(device)
        guide = DiffusionGuide(model.diffusion)
        if schedule.seconds is not None:
            budget = budget or Budget(schedule.seconds).start()
            schedule = schedule._replace(seconds=budget.left(1 - COMPARED))
        outcome = _train(rows, model, guide, schedule, size, seed, progress)
        if outcome.best_step == 0:
            words = (
                f"no weights of {outcome.steps:,} steps in {outcome.seconds:.1f} s predict "
                "held-out rows better than a Gaussian distribution of the columns, whose answers "
                "are given"
            )
            if outcome.reason == "budget":
                warnings.warn(f"{words}; give more seconds", stacklevel=2)
            elif progress or (progress is None and outcome.seconds >= QUIET):
                say(words)
    diffusion, score = model.diffusion, model.score_function
    assert isinstance(score, DenoiserScore)
    score.set_trained_range(diffusion.terminal_log_snr.item(), diffusion.max_log_snr)
    return Trained(rows, model.eval(), guide, outcome)


def new_denoiser(rows: TableRows) -> MixedDenoiser:
    """An untrained denoiser of rows: that of their Gaussian distribution, and a network."""
    levels = [levels for column in rows.columns for levels in column.denoiser_levels]
    return MixedDenoiser.from_gaussian(rows.fit_x(), levels, **NETWORK)


def new_model(rows: TableRows, seed: int = 0) -> DiffusionModel:
    """The untrained model of rows, whose network is given maps of log SNR."""
    torch.manual_seed(seed_from(seed, "initial weights"))
    score = new_denoiser(rows)
    coupled = len(score.network.coupled) if isinstance(score.network, MapMLP) else 0
    shared = min(MOST_SHARED, max(1, round((coupled / FEW) ** 3)))
    score.training_maps = RandomMaps(window=WINDOW, missing="skip", shared=shared)
    diffusion = VPSDE(max_log_snr=MAX_LOG_SNR)
    return DiffusionModel(diffusion, score, event_shape=rows.event_shape)


def _train(
    rows: TableRows,
    model: DiffusionModel,
    guide: DiffusionGuide,
    schedule: Schedule,
    batch_size: int,
    seed: int,
    progress: bool | None,
) -> Outcome:
    device = tensor_device(model.score_function) or torch.device("cpu")
    numbers = batch_size * model.num_dims
    data, steps = rows.train.to(device), schedule.steps
    expected = STEPS if steps == ANY_STEPS else steps
    filled, keeps = rows.is_incomplete, len(rows.validation) >= FEWEST
    loss_of, limited = MDM_ELBO()(model, guide), schedule.seconds is not None
    rate, fused = schedule.learning_rate, device.type in ("cpu", "cuda")
    trainer = Trainer(
        loss_of,
        steps=steps,
        # one kernel for all parameters: on a CPU a loop over them takes seven times as long
        optimizer=torch.optim.AdamW(loss_of.parameters(), rate, weight_decay=0.0, fused=fused),
        warmup=min(WARMUP, steps // 10),
        clip=CLIP,
        average=MovingAverage(model, DECAY, forgetting=FORGETTING, copy=copy.deepcopy(model)),
        patience=schedule.patience if keeps or limited else None,
        least_gain=FALL,
        window=None if keeps or not limited else schedule.every,
        cool_down=COOL_DOWN if limited else 0.0,
        seconds=schedule.seconds,
        progress=progress is not False,
    )
    trainer.quiet = QUIET if progress is None else 0.0
    trainer.unit = "bits/dim"
    filling = Filling(rows, steps=expected, batch_size=batch_size, seed=seed, budget=trainer.budget)
    trainer.budget.start()

    def look() -> None:
        with trainer.averaged():
            trainer.look(validation_bound(rows, model, guide, seed))

    if keeps:
        look()
    for step in trainer:
        if filled and filling.is_due(step):
            with trainer.averaged():
                filling.begin(step, model)
        chosen = filling.rows(step) if filled else indices(step, batch_size, len(data), seed)
        torch.manual_seed(seed_from(seed, "dropout", step, 0))
        with held(seed_from(seed, "noise", step, 0)):
            x = rows.transform(data[chosen.to(device)]).x
            x = filling.fill(x, step) if filled else x
            loss = loss_of(x) / numbers
        trainer.step(loss)
        if not trainer.is_due(schedule.every, MEASUREMENTS):
            continue
        if not bool(loss.isfinite()):
            raise FloatingPointError(
                f"the loss is {float(loss.detach())} after {step + 1} steps, expected a number; "
                "lower learning_rate"
            )
        if keeps:
            look()
    return trainer.outcome


def validation_bound(
    rows: TableRows, model: DiffusionModel, guide: DiffusionGuide, seed: int = 0
) -> float:
    """The bound on validation rows, in bits per dimension of their entries, at the same noise at
    every step, so that bounds are compared paired."""
    codes = rows.validation
    if len(codes) > VALIDATED:
        codes = codes[spread(len(codes), VALIDATED)]
    x, log_det = rows.transform(codes, torch.Generator().manual_seed(seed))
    x = x.to(tensor_device(model.score_function))
    with evaluating(model):
        estimate = evidence_lower_bound(model, guide, x, draws=DRAWS, seed=seed)
    bits = bits_per_dim(estimate.per_datum, estimate.num_dims, log_det=log_det)
    return float(bits.mean())
