"""The reuse of a trained denoiser with another diffusion, without training."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from inference.folders.checkpoints import Checkpoint
from inference.folders.loading import load_trained
from inference.folders.output import aligned
from inference.folders.runs import Run, RunError
from inference.measuring.bounds import (
    BoundOptions,
    RunBound,
    bound_of,
    given_contexts,
    in_model_space,
)
from inference.settings.diffusion import build_diffusion, title
from inference.settings.names import GUIDES
from inference.settings.options import Guide
from inference.settings.plan import Programs
from models.base import Part
from models.kinds import kind_of
from pyro_mdm import Diffusion, DiffusionGuide, DiffusionModel, LinearDiffusion
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.evaluation.comparison import compare
from pyro_mdm.evaluation.estimates import Difference, Estimate
from pyro_mdm.scores.denoiser import DenoiserScore

if TYPE_CHECKING:
    from typing_extensions import Unpack

RANGE_TOLERANCE = 1e-3
"""The largest distance of λ from the trained range, as in :meth:`DenoiserScore.check_log_snr`."""


@dataclass(frozen=True, kw_only=True)
class ReusedRun:
    """A run with its own diffusion, or its denoiser under another.

    Args:
        run: run folder, which is only read, or the name of a trained model in models/trained, such
            as digits.
        reuse: run folder whose denoiser is used under --guide.
        guide: diffusion under which the denoiser of --reuse is used: vpsde, cld, malda, alda, hold,
            ve, subvp, rectified_flow, cosine, momentum_ve, learned (as it starts), module:Name,
            file.py:Name, or run:FOLDER for the diffusion that another run ended with.
        max_log_snr: log SNR at the start time, with --reuse; by default the run's.
        min_log_snr: log SNR at time T, with --reuse, to which the clock is scaled; by default the
            diffusion keeps its own clock, which is scaled if it would leave the range that the
            network was trained on.
    """

    run: Path | None = None
    reuse: Path | None = None
    guide: str | None = None
    max_log_snr: float | None = None
    min_log_snr: float | None = None


@dataclass(frozen=True, kw_only=True)
class SampleOptions(ReusedRun):
    """The samples.

    Args:
        num_samples: number of samples.
        sampler: sampler: exponential (of the probability flow, and the default), stochastic (the
            same with added noise), euler (Euler-Maruyama, for any diffusion, and the default of one
            without a closed form), ancestral (the exact Gaussian posteriors of a chain), splitting,
            probability_flow, stochastic_heun, torchsde, module:Name or file.py:Name.
        steps: number of steps of the sampler, with one network call in each for most samplers; by
            default 25 for exponential, 50 for stochastic, 256 for others.
        grid: grid of times: information, log_snr, log_volume, karras, quadratic or progress; by
            default the sampler's own.
        out: name of the file: a .png for a picture, a .npy for data in model space, a .csv for rows
            of a table in its own units, or a .gif for all variables on their way from noise to
            data. A .npy and a .csv hold any number of samples. By default a picture in the run
            folder (for a model in models/trained, in the current folder), named after the sampler,
            steps, grid, seed and the guide of --reuse.
        batch_size: number of data that each process simulates together; it does not change the
            samples.
        seed: seed of the noise.
        overwrite: whether the file of --out is replaced if it exists.
        accelerator: kind of device: cpu, cuda, … or auto. Under torchrun all processes share the
            work.
        given: context of the samples, for a run of --condition: a class, such as 3, or several in
            turn, [3, 5], by the names of the folders of images if these are the classes; or a
            vector. By default each class in turn, in a column of its own, or contexts of test data.
            For a table and --out rows.csv: values that all rows have, such as age=50,sex=f.
        guidance: weight of classifier-free guidance, for a run of --condition, such as 2; 1 is
            none. Guided samples do not come from a model with a known density.
        pairs: whether the columns of a table are drawn in pairs, in place of each alone.
    """

    num_samples: int = 64
    sampler: str | None = None
    steps: int | None = None
    grid: str | None = None
    out: Path | None = None
    batch_size: int = 256
    seed: int = 0
    overwrite: bool = False
    accelerator: str = "auto"
    given: list[float] | list[str] | float | str | None = None
    guidance: float | None = None
    pairs: bool = False


class Reused(NamedTuple):
    """A run's trained denoiser over its own diffusion and over another."""

    run: Run
    checkpoint: Checkpoint
    original: Programs
    programs: Programs  # over the other diffusion
    notes: list[str]  # remarks on the training and on the ends of the other diffusion


def reuse(
    folder: Path, guide: str, *, max_log_snr: float | None = None, min_log_snr: float | None = None
) -> Reused:
    """The trained denoiser of a run over another diffusion, without training.

    x̂(z, λ) depends on the state through ``z = aᵀ Σ^{-1} y / SNR`` alone. So its bound under
    another diffusion has the same integrand over λ, and differs by the prior KL and the ends.

    Args:
        folder: a run with a denoiser (``--score denoiser`` or ``discrete``).
        guide: name of the other diffusion, see :func:`build_diffusion`, or ``run:FOLDER`` for the
            one that another run ended with. ``learned`` is that diffusion before its first step.
        max_log_snr: λ(ε), by default the run's.
        min_log_snr: λ(T), to which the clock is scaled. By default the diffusion keeps its own
            clock, scaled to the lower end of the trained range of λ if it ends below that.

    Returns:
        :class:`Reused`; both programs are in eval mode and share one score.

    Raises:
        RunError: the run's score is no denoiser, or λ would leave the trained range.
        NameNotFoundError, TypeError, ValueError: see :func:`build_diffusion`.
    """
    run, original, checkpoint = load_trained(folder)
    score, source = _denoiser(folder, original, run.config["score"], guide)
    low, high = score.trained_min.item(), score.trained_max.item()
    trained = f"the network of {folder} was trained on log SNR [{low:.6g}, {high:.6g}]"
    notes = [f"{trained} under {title(source)}, to step {checkpoint.step}"]
    if guide == "learned":
        notes.append(
            "learned is the start, before any training; run:FOLDER is the diffusion at the end of "
            "a run"
        )
    diffusion = _other(guide, original, max_log_snr)
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
    likelihood, shape, context = (
        original.model.likelihood,
        original.model.event_shape,
        original.model.context,
    )
    model = DiffusionModel(diffusion, score, likelihood, shape, context=context).eval()
    programs = Programs(original.problem, model, DiffusionGuide(diffusion))
    return Reused(run, checkpoint, original, programs, notes)


def _denoiser(
    folder: Path, original: Programs, name: str, guide: str
) -> tuple[DenoiserScore, LinearDiffusion]:
    """The denoiser of a run and its diffusion (RunError: another score)."""
    score, source = original.model.score_function, original.model.diffusion
    if kind_of(source).simulated:
        raise RunError(
            f"{folder} was trained under {title(source)}, and its score serves this diffusion "
            "alone: only a denoiser serves others, and only those with a closed form. "
            f"Train a score for the other one: python -m inference.train --guide {guide}"
        )
    if not isinstance(score, DenoiserScore):
        raise RunError(
            f"{folder} was trained with --score {name}: its network saw the raw "
            f"state (x, v_1, …) of {title(source)}, which another diffusion does not produce. "
            "Reuse a run with a denoiser (--score denoiser, or discrete for images), which reads z "
            f"alone, or train one: python -m inference.train --guide {guide} --score denoiser"
        )
    if not torch.isfinite(torch.stack([score.trained_min, score.trained_max])).all():
        score.set_trained_range(source.terminal_log_snr.item(), source.max_log_snr)  # unfinished
    return score, cast(LinearDiffusion, source)


def _other(guide: str, original: Programs, max_log_snr: float | None) -> LinearDiffusion:
    """The diffusion that a denoiser is put under, with its own clock."""
    start = original.model.diffusion.max_log_snr if max_log_snr is None else max_log_snr
    if guide.startswith("run:"):
        other = load_trained(Path(guide.removeprefix("run:")))[1].model.diffusion
        diffusion = _with_closed_form(guide, other)
        diffusion.max_log_snr = start
        return diffusion
    asked = Guide(guide=guide, max_log_snr=start)
    made = build_diffusion(asked, event_shape=original.problem.event_shape)
    diffusion = copy.deepcopy(_with_closed_form(guide, made))
    if max_log_snr is not None:
        diffusion.max_log_snr = max_log_snr  # even if the guide sets its own
    return diffusion


def _with_closed_form(guide: str, diffusion: Diffusion) -> LinearDiffusion:
    if kind_of(diffusion).simulated:
        raise RunError(
            f"{guide} is {title(diffusion)}, which is simulated. A denoiser reads "
            "z = aᵀ Σ^{-1} y / SNR, which needs the distribution of y_s given x in closed form; "
            "train a score for it "
            f"instead: python -m inference.train --guide {guide}"
        )
    return cast(LinearDiffusion, diffusion)


@torch.no_grad()
def _fit_clock(
    diffusion: LinearDiffusion, min_log_snr: float | None, low: float, trained: str
) -> str:
    """Bring λ(T) into the trained range; returns what was done, in words."""
    terminal = diffusion.terminal_log_snr.item()
    clock = diffusion.clock(diffusion.horizon).item()
    target = low if min_log_snr is None and terminal < low - RANGE_TOLERANCE else min_log_snr
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
    return (
        ends + f"its clock, which ends at {terminal:.6g}, is scaled by {factor:.3g} to reach {why}"
    )


class Opened(NamedTuple):
    """A run opened for reading, with its own diffusion or another."""

    folder: Path
    programs: Programs
    checkpoint: Checkpoint
    reused: Reused | None = None

    @property
    def notes(self) -> list[str]:
        """Remarks on the other diffusion."""
        return [] if self.reused is None else self.reused.notes

    def put_on(self, device: torch.device, autocast: torch.dtype | None) -> None:
        """Put the models on a device, with networks of this precision (None: their own)."""
        for programs in (self.programs, *([] if self.reused is None else [self.reused.original])):
            programs.model.to(device)
            programs.model.score_function.autocast_dtype = autocast


def open_run(options: ReusedRun) -> Opened:
    """The run of ``RUN``, or of ``--reuse RUN --guide NAME``.

    Raises:
        RunError: both of run and reuse or neither, or options of reuse without it.
    """
    run, reused = options.run, options.reuse
    names = ("guide", "max_log_snr", "min_log_snr")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if run is not None and reused is None:
        if given:
            surplus = ", ".join(f"--{name}" for name in given)
            raise RunError(
                f"{surplus} needs --reuse; {run} alone has the diffusion it was trained "
                f"with. Use --reuse {run} --guide NAME"
            )
        _, programs, checkpoint = load_trained(run)
        return Opened(run, programs, checkpoint)
    if reused is None or run is not None:
        both = "neither a run nor --reuse" if run is None else f"both {run} and --reuse {reused}"
        raise RunError(
            f"{both}: name the run folder for the run as it was trained, or "
            "--reuse RUN --guide NAME for its network under another diffusion"
        )
    if options.guide is None:
        raise RunError(
            f"--reuse {reused} needs --guide NAME, the diffusion to use: {', '.join(GUIDES)}, "
            "module:Name, file.py:Name or run:FOLDER"
        )
    result = reuse(reused, **given)
    return Opened(reused, result.programs, result.checkpoint, result)


# -- both bounds -----------------------------------------------------------------------------------


class Paired(NamedTuple):
    """The bounds of a reused denoiser with its own diffusion and another, at the same draws."""

    original: RunBound
    new: RunBound
    difference: Difference  # new − own
    estimate: Estimate  # the new one, in nats
    log_det: Tensor  # (n,), nats
    diffusions: tuple[str, str]  # the names of their classes, own first

    @property
    def table(self) -> str:
        """The bounds by term with both diffusions, and their paired difference, as text."""
        names = map("{} ({})".format, ("own", "new"), self.diffusions)
        rows = [["", *names, "new − own, paired"]]
        for term in self.original.terms:
            row = (self.original.terms[term], self.new.terms[term], getattr(self.difference, term))
            cells = (f"{round(value, 5) + 0.0:.5f} ± {error:.5f}" for value, error in row)  # no -0
            rows.append([term, *cells])
        return aligned(rows)


def against_own(
    reused: Reused, data: Tensor | Part, *, seed: int = 0, **options: Unpack[BoundOptions]
) -> Paired:
    """The bounds of a reused denoiser with its own diffusion and the other, and other - own.

    Both are on stored ``data`` (n, *event_shape) at the same log SNRs with the same noise. Where
    their ranges of log SNR overlap, the diffusion terms differ by rounding. Arguments are those of
    :func:`~inference.measuring.bounds.measure`.
    """
    x, log_det = in_model_space(reused.original, data, seed)
    both = {"new": reused.programs, "own": reused.original}
    pairs = {name: given_contexts(programs, data)[1:] for name, programs in both.items()}
    comparison = compare(pairs, x, seed=seed, **options)
    levels, estimates = reused.original.problem.dequantized_levels, comparison.estimates
    original, new = (bound_of(estimates[name], log_det, levels) for name in ("own", "new"))
    trained, other = (type(p.model.diffusion).__name__ for p in (reused.original, reused.programs))
    names, difference = (trained, other), comparison.differences[0]
    return Paired(original, new, difference, estimates["new"], log_det, names)
