"""Networks that were trained elsewhere, as scores of runs: their ends, and how they are read."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from inference.settings.names import accepted, find
from inference.settings.options import Training
from models import Problem
from models.kinds import kind_of
from pyro_mdm import DiffusionModel
from pyro_mdm.imported import ImportCheck, ImportedDenoiser, best_ends, check_import
from pyro_mdm.support.splits import spread

__all__ = ["check_score", "ends_of", "has_imported_ends"]

ENDS = ("max_log_snr", "min_log_snr")
VALUES = 2**13
"""Numbers that a network is looked at by; at least 32 data."""


def has_imported_ends(settings: Training, model: DiffusionModel) -> bool:
    """Whether ends of log SNR are those of the best bound of a network: the guide takes both."""
    if not isinstance(model.score_function, ImportedDenoiser) or kind_of(model.diffusion).simulated:
        return False
    return len(accepted(find("guide", settings.guide), dict.fromkeys(ENDS))) == len(ENDS)


def ends_of(settings: Training, problem: Problem, model: DiffusionModel) -> dict[str, Any]:
    """The ends of log SNR that are not set, of a network's best bound on training data.

    Nothing for other scores, and where data have missing entries.
    """
    left = [end for end in ENDS if getattr(settings, end) is None]
    if not left or (looked_at := _looked_at(problem, model)) is None:
        return {}
    best = best_ends(*looked_at, likelihood=model.likelihood)
    return {end: best[end] for end in left}


def check_score(problem: Problem, model: DiffusionModel) -> ImportCheck | None:
    """Whether a network is read as it was trained, by training data; None for other scores, and
    where data have missing entries."""
    looked_at = _looked_at(problem, model)
    return None if looked_at is None else check_import(*looked_at)


def _looked_at(problem: Problem, model: DiffusionModel) -> tuple[ImportedDenoiser, Tensor] | None:
    """A network with training data that are spread evenly, given their contexts."""
    if not isinstance(model.score_function, ImportedDenoiser) or problem.is_incomplete:
        return None
    data, size = problem.part("train"), math.prod(problem.event_shape)
    some = data[spread(len(data), min(len(data), 512, max(32, VALUES // size)))]
    with torch.random.fork_rng(devices=[]):  # levels may be dequantized
        x = problem.to_model_space(some.data)
    score = model.given_context(some.context).score_function
    return cast(ImportedDenoiser, score), x
