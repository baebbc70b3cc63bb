"""The defaults of a new run that depend on its data set, guide and machine."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch

from inference.drawing import sampling
from inference.folders.config import OWN_TABLE
from inference.settings import names
from inference.settings.diffusion import LEARNED_MIN_LOG_SNR, give_learned_end
from inference.settings.imported import has_imported_ends
from inference.settings.options import Decided, Training
from inference.settings.plan import Programs, gaps_of
from inference.settings.problems import split_word
from inference.training.optimizers import hidden_weights
from models import ImageProblem, Images, Problem, Tabular
from models.base import FileImages
from models.kinds import kind_of
from pyro_mdm.budgets import ANY_STEPS, measured_every
from pyro_mdm.scores.denoiser import DenoiserScore

PATIENCE = 3
"""The measurements without a fall after which a run that has seconds ends."""


def with_canonical_names(settings: Training) -> Training:
    """Settings with names as config files have them."""
    named = {option: getattr(settings, option) for option in names.NAMED}
    named = {option: names.canonical_name(option, name) for option, name in named.items() if name}
    return replace(settings, **named, columns=names.canonical_columns(settings.columns))


def with_recipe(settings: Training) -> Training:
    """Settings with the network of the data set's recipe, if none is given.

    A subclass with its own networks or form does not inherit a recipe.
    """
    named = names.find("model", settings.model)
    if settings.network is not None or not inspect.isclass(named):
        return settings
    for cls in named.__mro__:
        attributes = vars(cls)
        if "recipe" in attributes:
            return replace(settings, network=attributes["recipe"])
        if "networks" in attributes or "form" in attributes or "network" in attributes:
            break
    return settings


def decide(settings: Training, programs: Programs) -> Decided:
    """Settings with the values of the programs in place of defaults.

    Your own learned guide may have changed an end of log SNR, and your own score the times.
    """
    problem, model, _ = programs
    end, denoises = settings.min_log_snr, isinstance(model.score_function, DenoiserScore)
    if denoises and give_learned_end(model.diffusion):
        end = LEARNED_MIN_LOG_SNR
    if settings.stationary_variance is not None:  # also a tensor, which YAML cannot hold
        exact = torch.as_tensor(settings.stationary_variance, dtype=torch.float64)
        settings = replace(settings, stationary_variance=exact.tolist())
    if isinstance(settings.learn_ends, list | tuple):
        settings = replace(settings, learn_ends=[float(reach) for reach in settings.learn_ends])
    high = settings.max_log_snr
    if has_imported_ends(settings, model):
        high, end = model.diffusion.max_log_snr, model.diffusion.terminal_log_snr.item()
    maps, times = settings.maps or problem.default_maps, settings.times
    if times is None and maps is None and not kind_of(model.diffusion).simulated:
        times = model.score_function.times = problem.times
    rate = settings.learning_rate
    sampler = settings.sampler or sampling.default_sampler(model)
    own_steps = sampling.default_steps(sampler)
    decided: dict[str, Any] = {
        "data": _where(settings, problem),
        "columns": _columns(settings, problem),
        "split_seed": None if problem.rows is None else split_word(problem.rows.seed),
        "max_log_snr": high,
        "min_log_snr": end,
        "maps": maps,
        "gaps": gaps_of(settings.gaps, maps, problem),
        "times": times,
        "batch_size": _batch_size(settings, problem),
        "learning_rate": problem.learning_rate if rate is None else rate,
        "optimizer": settings.optimizer or _optimizer(settings, programs),
        "sampler": sampler,
        "sampler_steps": own_steps if settings.sampler_steps is None else settings.sampler_steps,
        "threads": settings.threads or torch.get_num_threads(),
    }
    return Decided(**vars(settings) | _length(settings, problem) | decided)


def _length(settings: Training, problem: Problem) -> dict[str, int | None]:
    """The number of steps, those between measurements, and when training ends before."""
    steps, limited = settings.steps, settings.seconds is not None
    expected = problem.steps if steps is None else steps
    if steps is None:
        steps = ANY_STEPS if limited else expected
    every, patience = settings.measure_every, settings.patience
    if every is None:
        every = measured_every(expected)
    if limited and patience is None and len(problem.validation) and steps > (PATIENCE + 1) * every:
        patience = PATIENCE
    return {"steps": steps, "measure_every": every, "patience": patience}


def _where(settings: Training, problem: Problem) -> str | None:
    """The absolute path of the data; None if it was not given and is not needed."""
    if isinstance(problem, FileImages | Images):
        return str(problem.root.resolve())
    if settings.data is None:
        return None
    if not isinstance(problem, Tabular):
        return str(settings.data)
    return problem.absolute_source if problem.kept is None else OWN_TABLE


def _columns(settings: Training, problem: Problem) -> str | None:
    """The kinds of all columns of a table, so that the run stays what it is under other rules."""
    if settings.model == "tabular" and isinstance(problem, Tabular):
        return names.kinds_text(problem.all_kinds)
    return settings.columns


def _batch_size(settings: Training, problem: Problem) -> int:
    number = len(problem.train)
    if settings.batch_size is None:
        return min(problem.batch_size, number)
    if settings.batch_size > number:
        raise ValueError(
            f"--batch_size is {settings.batch_size}, expected at most the {number} training data "
            f"of {names.short_name(settings.model)}"
        )
    return settings.batch_size


def _optimizer(settings: Training, programs: Programs) -> str:
    """The optimizer of the recipe, if the network is the recipe's; else Adam."""
    problem = programs.problem
    if (
        isinstance(problem, ImageProblem)
        and problem.recipe is not None
        and settings.network == problem.recipe
        and hidden_weights(programs.model)
    ):
        return problem.optimizer
    return "adam"
