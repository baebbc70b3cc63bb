"""A trained denoiser over another diffusion, without training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch

from inference.checkpoints import Checkpoint
from inference.loading import Programs, build_diffusion, load_trained, title
from inference.names import GUIDES
from inference.runs import Run, RunError
from models import Problem
from pyro_mdm import DiffusionGuide, DiffusionModel, LinearDiffusion
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.scores.denoiser import DenoiserScore

__all__ = ["Reused", "open_run", "reuse"]

RANGE_TOLERANCE = 1e-3
"""How far λ may leave the trained range, as in :meth:`DenoiserScore.check_log_snr`."""


class Reused(NamedTuple):
    """A run's trained denoiser over its own diffusion and over another."""

    run: Run
    checkpoint: Checkpoint
    own: Programs
    programs: Programs  # over the other diffusion
    notes: list[str]  # what was trained on what, and how the other diffusion was cut; for people


def reuse(
    folder: Path,
    guide: str,
    *,
    max_log_snr: float | None = None,
    min_log_snr: float | None = None,
    num_variables: int | None = None,
    rank: int | None = None,
) -> Reused:
    """The trained denoiser of a run over another diffusion, without training.

    x̂(z, λ) has never seen a diffusion: ``z = aᵀ Σ^{-1} y / SNR`` is all it reads. So its bound
    under another one has the same integrand over λ, and differs by the prior KL and the ends alone.

    Args:
        folder: a run with a denoiser (``--score denoiser`` or ``discrete``).
        guide: see :func:`build_diffusion`, or ``run:FOLDER`` for the diffusion another run ended
            with. ``learned`` is that diffusion before its first step.
        max_log_snr: λ(ε), by default the run's.
        min_log_snr: λ(T), to which the clock is scaled. By default the diffusion keeps its own
            clock if that ends inside the range of λ the network was trained on, and is scaled to
            the lower end of that range if it ends below it.
        num_variables, rank: for ``learned`` only.

    Returns:
        :class:`Reused`; both programs in eval mode, with one score between them.

    Raises:
        RunError: the run's score is no denoiser, or λ would leave the trained range.
        NameNotFoundError, TypeError, ValueError: see :func:`build_diffusion`.
    """
    run, own, checkpoint = load_trained(folder)
    score, source = own.model.score_function, own.model.diffusion
    if not source.closed_form:
        raise RunError(
            f"{folder} was trained under {title(source)}, and its score is for that alone: only a "
            "denoiser serves other diffusions, and it is for those with a closed form. "
            f"Train for the other one: python -m inference.train --guide {guide}"
        )
    if not isinstance(score, DenoiserScore):
        raise RunError(
            f"{folder} was trained with --score {run.config['score']}: its network saw the raw "
            f"state (x, v_1, …) of {title(source)}, which another diffusion does not produce. "
            "Reuse a run with a denoiser (--score denoiser, or discrete for images), which reads z "
            f"alone, or train one: python -m inference.train --guide {guide} --score denoiser"
        )
    if not torch.isfinite(torch.stack([score.trained_min, score.trained_max])).all():
        score.set_trained_range(source.terminal_log_snr.item(), source.max_log_snr)  # unfinished
    low, high = score.trained_min.item(), score.trained_max.item()
    trained = f"the network of {folder} was trained on log SNR [{low:.6g}, {high:.6g}]"
    notes = [f"{trained} under {title(source)}, to step {checkpoint.step}"]

    if guide.startswith("run:"):
        if num_variables is not None or rank is not None:
            raise ValueError(f"--num_variables and --rank are for --guide learned, not {guide}")
        trained_under = load_trained(Path(guide.removeprefix("run:")))[1].model.diffusion
        diffusion = _with_closed_form(guide, trained_under)
        diffusion.max_log_snr = source.max_log_snr if max_log_snr is None else max_log_snr
    else:
        wanted = source.max_log_snr if max_log_snr is None else max_log_snr
        options: dict[str, Any] = {"num_variables": num_variables, "rank": rank}
        options["event_shape"] = own.problem.event_shape
        diffusion = copy.deepcopy(
            _with_closed_form(guide, build_diffusion(guide, max_log_snr=wanted, **options))
        )
        if max_log_snr is not None:
            diffusion.max_log_snr = max_log_snr  # also of a guide that sets its own
        if guide == "learned":
            notes.append(
                "learned is as it is before its first step; run:FOLDER is what a run ended with"
            )
    if diffusion.max_log_snr > high + RANGE_TOLERANCE:
        raise RunError(
            f"{guide} would start at log SNR {diffusion.max_log_snr:.6g}, but {trained}; "
            f"set --max_log_snr {high:.6g} or less"
        )
    try:
        ends = _fit_clock(diffusion, min_log_snr, low, trained)
    except KernelPrecisionError as error:
        raise RunError(f"{guide}: {error}") from error
    notes.append(f"{guide}: {title(diffusion)}, {ends}")

    model = DiffusionModel(
        diffusion, score, own.model.likelihood, own.model.event_shape, context=own.model.context
    )
    return Reused(run, checkpoint, own, _programs(own.problem, model.eval()), notes)


def _programs(problem: Problem, model: DiffusionModel) -> Programs:
    return Programs(problem, model, DiffusionGuide(model.diffusion))


def _with_closed_form(guide: str, diffusion: Any) -> LinearDiffusion:
    if diffusion.closed_form:
        return diffusion
    raise RunError(
        f"{guide} is {title(diffusion)}, which is known by simulation alone. A denoiser reads "
        "z = aᵀ Σ^{-1} y / SNR, of the closed-form law of y_s given x; train a score for it "
        f"instead: python -m inference.train --guide {guide}"
    )


@torch.no_grad()
def _fit_clock(
    diffusion: LinearDiffusion, min_log_snr: float | None, low: float, trained: str
) -> str:
    """Bring λ(T) into the trained range; what was done, in words."""
    own = diffusion.terminal_log_snr.item()
    clock = diffusion.clock(diffusion.horizon).item()
    target = low if min_log_snr is None and own < low - RANGE_TOLERANCE else min_log_snr
    if target is not None:
        if target < low - RANGE_TOLERANCE:
            raise RunError(
                f"--min_log_snr is {target:.6g}, but {trained}; set --min_log_snr {low:.6g} or more"
            )
        diffusion.min_log_snr = float(target)
    start = diffusion.start_time.item()
    ends = (
        f"log SNR from {diffusion.max_log_snr:.6g} at ε = {start:.4g} to "
        f"{diffusion.terminal_log_snr.item():.6g} at T = {diffusion.horizon:g}; "
    )
    if target is None:
        return ends + f"its own clock (--min_log_snr {low:.6g} for all of the trained range)"
    factor = diffusion.clock(diffusion.horizon).item() / clock
    why = "the trained minimum" if min_log_snr is None else "--min_log_snr"
    return ends + f"its clock, which ends at {own:.6g}, is scaled by {factor:.3g} to reach {why}"


def open_run(
    run: Path | None, reused: Path | None, guide: str | None, **options: Any
) -> tuple[Path, Programs, Checkpoint, Reused | None]:
    """What a program that reads a run was asked for: ``RUN``, or ``--reuse RUN --guide NAME``.

    Returns:
        The run's folder, its programs (over ``guide``, if reused), its checkpoint, and what
        :func:`reuse` returned, or None.

    Raises:
        RunError: both of run and reuse or neither, or an option without what it belongs to.
            Otherwise as :func:`load_trained` and :func:`reuse` do.
    """
    if (run is None) == (reused is None):
        given = "neither a run nor --reuse" if run is None else f"both {run} and --reuse {reused}"
        raise RunError(
            f"{given}: name the run folder for the run as it was trained, or "
            "--reuse RUN --guide NAME for its network under another diffusion"
        )
    if run is not None:
        given_options = {"guide": guide} | options
        if surplus := [f"--{k}" for k, v in given_options.items() if v is not None]:
            raise RunError(
                f"{', '.join(surplus)} needs --reuse; {run} alone has the diffusion it was trained "
                f"with. Use --reuse {run} --guide NAME"
            )
        _, programs, checkpoint = load_trained(run)
        return run, programs, checkpoint, None
    if guide is None:
        raise RunError(
            f"--reuse {reused} needs --guide NAME, the diffusion to use: {', '.join(GUIDES)}, "
            "module:Name, file.py:Name or run:FOLDER"
        )
    assert reused is not None
    result = reuse(reused, guide, **options)
    return reused, result.programs, result.checkpoint, result
