"""The parts of training that are functions of the step: the optimizer, losses in turn, ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from inference.settings.options import Optimization
from inference.training.optimizers import Muon, hidden_weights
from pyro_mdm import DiffusionModel
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.measured import student_factor
from pyro_mdm.training import FALL


def optimizer(
    model: DiffusionModel, settings: Optimization, *, scaled: bool = False
) -> tuple[list[str], torch.optim.Optimizer]:
    """The optimizer of the network and, at its own rate, the diffusion; and parameter names.

    Args:
        scaled: whether the loss is scaled, as in float16.
    """
    muon = settings.optimizer == "muon"
    hidden = set(hidden_weights(model)) if muon else set()
    groups: list[dict[str, Any]] = [{}, {}, {}]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            place = 2 if name.startswith("diffusion.") else int(name in hidden)
            groups[place][name] = parameter
    names = [name for group in groups for name in group]
    options: list[dict[str, Any]] = [
        {"lr": settings.learning_rate},
        {"lr": settings.learning_rate, "orthogonal": True},
        {"lr": settings.diffusion_learning_rate},
    ]
    given = [
        {"params": list(group.values()), **option}
        for group, option in zip(groups, options, strict=True)
        if group
    ]
    if muon:
        return names, Muon(given, eps=settings.adam_epsilon, weight_decay=0.0)
    # one kernel for all parameters: on a CPU a loop over them takes seven times as long; it would
    # undo a loss scale itself, before gradients are clipped
    fused = not scaled and {p.device.type for p in model.parameters()} <= {"cpu", "cuda"}
    return names, torch.optim.AdamW(given, eps=settings.adam_epsilon, weight_decay=0.0, fused=fused)


def last_fall(bounds: Mapping[int, float]) -> tuple[int, int]:
    """The step at which a bound last fell, and the number of measurements after it.

    A fall is by at least :data:`~pyro_mdm.training.FALL` from the last one; the first measurement
    counts as a fall.

    Args:
        bounds: bounds by step, in bits/dim, the earliest first; one at least.
    """
    step, *later = bounds
    after = 0
    for other in later:
        fell = bounds[other] <= bounds[step] - FALL
        step, after = (other, 0) if fell else (step, after + 1)
    return step, after


@dataclass
class LossWindow:
    """The losses of some steps: their number, sum and sum of squares."""

    number: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, loss: float) -> None:
        self.number, self.total = self.number + 1, self.total + loss
        self.squares += loss**2

    @property
    def mean_and_error(self) -> tuple[float, float]:
        """The mean and its standard error."""
        n = self.number
        mean = self.total / n
        variance = max(0.0, self.squares / n - mean**2) / (n - 1) if n > 1 else math.nan
        return mean, math.sqrt(variance) * float(student_factor(n - 1))


def open_range(*models: DiffusionModel) -> None:
    """Take back what :func:`close_range` declared, for training that goes on."""
    for model in models:
        if isinstance(model.score_function, DenoiserScore):
            model.score_function.set_trained_range(-math.inf, math.inf)


def close_range(*models: DiffusionModel) -> None:
    """Declare the range of log SNR that denoisers were trained on; others raise from here on.

    The models are of one training, with averaged and last weights. Their learned ends may differ a
    little, and each serves the union of their ranges.
    """
    diffusions = [model.diffusion for model in models]
    low = min(diffusion.terminal_log_snr.item() for diffusion in diffusions)
    high = max(diffusion.max_log_snr for diffusion in diffusions)
    for model in models:
        if isinstance(model.score_function, DenoiserScore):
            model.score_function.set_trained_range(low, high)
