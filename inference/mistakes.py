"""Options of inference.train that no run can have, or not with its data, guide or machine."""

from __future__ import annotations

from typing import cast

import torch

from inference.cli import check_positive
from inference.options import Decided
from inference.plan import Programs
from inference.sample import make_sampler
from models import ImageProblem
from models.kinds import kind_of
from pyro_mdm import NonlinearDiffusion

__all__ = ["check_training"]

FEWEST = 8
"""Data of a part, below which its bound has no error bar."""

POSITIVE = (
    *("steps", "batch_size", "micro_batches", "learning_rate", "log_every", "measure_every"),
    *("clip", "checkpoint_every", "draws", "num_samples", "sampler_steps", "threads", "patience"),
)


def check_training(settings: Decided, programs: Programs, processes: int) -> None:
    """Whether a run can be trained by its settings.

    Args:
        processes: how many share the work.

    Raises:
        ValueError: it cannot; says why.
    """
    problem, model, _ = programs
    _check_numbers(settings, processes)
    _check_sizes(settings, programs)
    backend = settings.compile
    if backend is not None and backend not in torch.compiler.list_backends(None):
        usual = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"--compile is {backend!r}, expected one of {usual}")
    if kind_of(model.diffusion).simulated:
        _check_simulated(settings, cast(NonlinearDiffusion, model.diffusion))
    if settings.sampler is not None:
        steps, score = settings.sampler_steps, model.score_function
        make_sampler(settings.sampler, steps, model.diffusion, score)
    if settings.flip and not isinstance(problem, ImageProblem):
        raise ValueError(f"--flip mirrors images; --model {settings.model} has none")


def _check_numbers(settings: Decided, processes: int) -> None:
    check_positive(**{name: getattr(settings, name) for name in POSITIVE})
    for name in ("warmup", "weight_decay"):
        if not getattr(settings, name) >= 0:
            raise ValueError(f"--{name} is {getattr(settings, name)}, expected 0 or more")
    if not settings.diffusion_learning_rate >= 0:
        raise ValueError(
            f"--diffusion_learning_rate is {settings.diffusion_learning_rate}, expected a "
            "positive number, or 0 for a diffusion that is left as it starts"
        )
    if not 0 <= settings.ema_decay < 1:
        raise ValueError(
            f"--ema_decay is {settings.ema_decay}, expected a number from 0, no averaging, to "
            "1, excluded; 0.995 averages over some 200 steps"
        )
    pieces = processes * settings.micro_batches
    if settings.batch_size % pieces:
        raise ValueError(
            f"--batch_size {settings.batch_size} is shared by {processes} processes with "
            f"{settings.micro_batches} micro-batches each; expected a multiple of {pieces}"
        )


def _check_sizes(settings: Decided, programs: Programs) -> None:
    """Whether there are enough data of each part."""
    for name in ("train", "validation", "test"):
        n = len(getattr(programs.problem, name))
        if n < FEWEST and (n or name != "validation"):
            raise ValueError(
                f"{settings.model} has {n} {name} data, expected at least {FEWEST} to measure a "
                "bound on; give more"
            )
    size = settings.test_size
    if size is not None and size < FEWEST:
        raise ValueError(
            f"--test_size is {size}, expected at least {FEWEST} data to measure a bound on; leave "
            "it out for all"
        )


def _check_simulated(settings: Decided, diffusion: NonlinearDiffusion) -> None:
    if not settings.decoder_in_loss:
        raise ValueError(
            f"--decoder_in_loss false needs the law of y_ε given x in closed form, and "
            f"{settings.guide} is simulated; leave it out"
        )
    backend, twice = settings.compile, diffusion.simulation.objective == "ism"
    if backend not in (None, "eager") and twice:
        raise ValueError(
            f"--compile {backend} makes a network that is differentiated once, and --objective "
            "ism does so twice; use --objective local_dsm, or leave out --compile"
        )
