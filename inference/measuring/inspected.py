"""What is inspected: diffusions by name, and runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from inference.folders.loading import load_trained
from inference.settings.diffusion import (
    LEARNED_MIN_LOG_SNR,
    build_diffusion,
    check_ends,
    give_learned_end,
)
from inference.settings.options import Guide
from models import Problem
from models.kinds import kind_of
from pyro_mdm import LinearDiffusion
from pyro_mdm.evaluation import GaussianPosterior, auxiliary_use


def inspected_diffusion(asked: Guide, problem: Problem) -> LinearDiffusion:
    """A diffusion with the given ends, or its own."""
    name, high, low = asked.guide, asked.max_log_snr, asked.min_log_snr
    if name.startswith("run:"):
        for option, value in (("max_log_snr", high), ("min_log_snr", low)):
            if value is not None:
                raise ValueError(
                    f"--{option} is {value:g}, but {name} ended with its own; leave it out"
                )
        diffusion = load_trained(Path(name.removeprefix("run:")))[1].model.diffusion
    else:
        guide = asked if name == "learned" else Guide(guide=name, min_log_snr=low)
        if name == "learned" and low is None:
            guide = replace(guide, min_log_snr=LEARNED_MIN_LOG_SNR)
        guide = replace(guide, max_log_snr=problem.max_log_snr if high is None else high)
        diffusion = build_diffusion(guide, event_shape=problem.event_shape)
        check_ends(asked, diffusion)
        give_learned_end(diffusion)
    if kind_of(diffusion).simulated:
        raise ValueError(
            f"{name} is {type(diffusion).__name__}, expected a LinearDiffusion, since all that is "
            "shown here is computed in closed form. See its paths and its drift by "
            "pyro_mdm.plots.figures.paths_figure and field_figure, or TensorBoard of a run"
        )
    return cast(LinearDiffusion, diffusion)


def use_of_auxiliaries(name: str, draws: int) -> str:
    """What a run's network makes of the auxiliary variables, on the run's own test data."""
    _, (problem, model, guide), _ = load_trained(Path(name.removeprefix("run:")))
    if model.diffusion.num_variables < 2:
        return f"{name}: K = 1, without auxiliary variables"
    generator = torch.Generator().manual_seed(0)
    law = GaussianPosterior.fit(problem.to_model_space(problem.train, generator))
    x = problem.to_model_space(problem.test, generator)
    return f"{name}: {auxiliary_use(model, guide, x, draws=draws, posterior=law, progress=True)}"
