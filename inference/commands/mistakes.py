"""Checks of options that are impossible, go against others, or have no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from inference.commands.cli import check_positive
from inference.drawing.sampling import make_sampler
from inference.folders.output import check_out
from inference.folders.runs import RunError
from inference.settings.diffusion import check_ends
from inference.settings.options import Decided, Training
from inference.settings.plan import OBSERVING, Programs
from inference.training.optimizers import hidden_weights
from models import ImageProblem, Problem
from models.kinds import kind_of
from pyro_mdm import NonlinearDiffusion
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.evaluation.estimates import FEWEST

POSITIVE = (
    *("batch_size", "micro_batches", "learning_rate", "log_every", "measure_every"),
    *("clip", "checkpoint_every", "draws", "num_samples", "sampler_steps", "patience", "seconds"),
)


def check_training(settings: Decided, programs: Programs, processes: int) -> None:
    """Raise ValueError for a run that cannot be trained; ``processes`` share the work."""
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
        make_sampler(settings.sampler, steps, model.diffusion, score, settings.grid)
    if settings.flip and not isinstance(problem, ImageProblem):
        raise ValueError(f"--flip mirrors images; --model {settings.model} has none")


def _check_numbers(settings: Decided, processes: int) -> None:
    check_positive(**{name: getattr(settings, name) for name in POSITIVE})
    if settings.steps < 0:
        raise ValueError(
            f"--steps is {settings.steps}, expected a positive number, or 0 for a network that is "
            "left as it is"
        )
    if settings.steps == 0 and settings.seconds is not None:
        raise ValueError(
            f"--seconds {settings.seconds} has no effect on --steps 0, which trains nothing; leave "
            "out one of them"
        )
    if settings.warmup < 0:
        raise ValueError(f"--warmup is {settings.warmup}, expected 0 or more")
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
    """Raise ValueError unless each part has enough data."""
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
            f"--decoder_in_loss false needs the distribution of y_ε given x in closed form, and "
            f"{settings.guide} is simulated; leave it out"
        )
    backend, twice = settings.compile, diffusion.simulation.objective == "ism"
    if backend not in (None, "eager") and twice:
        raise ValueError(
            f"--compile {backend} gives a network first derivatives alone, and --objective ism "
            "needs second ones; use --objective local_dsm, or leave out --compile"
        )


# -- options without effect ------------------------------------------------------------------------


def check_effects(settings: Training, programs: Programs) -> None:
    """Raise ValueError for a given setting of a new run that has no effect."""
    diffusion = programs.model.diffusion
    check_ends(settings, diffusion)
    if settings.diffusion_learning_rate == 0:
        _check_learned(settings)
    _check_gaps(settings, programs.problem)
    kind = kind_of(diffusion)
    if settings.learn_ends is not None and not kind.learned_ends:
        raise ValueError(
            f"--learn_ends {settings.learn_ends} has no effect: both ends are held; leave it out, "
            "or give a number above 0"
        )
    network: nn.Module = programs.model.score_function.network
    if settings.optimizer == "muon" and not hidden_weights(programs.model):
        raise ValueError(
            f"--optimizer is muon, which is for the convolutions inside a U-Net, and "
            f"{settings.model} has none; use adam"
        )
    if settings.channels_last and all(weight.dim() != 4 for weight in network.parameters()):
        raise ValueError(
            f"--channels_last has no effect on {type(network).__name__}, which has no weights of "
            "convolutions over images; leave it out"
        )


def _check_gaps(settings: Training, problem: Problem) -> None:
    gaps, maps = settings.gaps, settings.maps or problem.default_maps
    if gaps is not None and not problem.is_incomplete:
        raise ValueError(
            f"--gaps {gaps} has no effect: no entry of the training data is missing; leave it out"
        )
    if gaps in ("fill", "skip") and maps not in OBSERVING:
        raise ValueError(
            f"--gaps is {gaps}, which is for maps that observe entries, and --maps is {maps}; "
            f"expected {' or '.join(OBSERVING)}"
        )
    is_absent = problem.train.is_floating_point() and bool(problem.train.isposinf().any())
    if is_absent and (maps not in OBSERVING or gaps in ("skip", "leave_out")):
        raise ValueError(
            f"--maps is {maps} and --gaps {gaps}, and columns of the table do not exist for some "
            "rows, which needs draws in their place, expected --maps mixed and --gaps fill; leave "
            "both out, or say NAME=mar in --columns"
        )


def check_patience(settings: Decided, programs: Programs) -> None:
    """Raise ValueError for a --patience that cannot stop a new run before its last step."""
    patience, steps, every = settings.patience, settings.steps, settings.measure_every
    if patience is None:
        return
    if not len(programs.problem.validation):
        raise ValueError(
            f"--patience {patience} has no effect: it is by the bound on validation data, and "
            "there are none; leave it out, or leave out --holdout false"
        )
    if (patience + 1) * every >= steps:  # the first measurement, and so many that are no better
        raise ValueError(
            f"--patience {patience} has no effect: the bound is measured every {every:,} of "
            f"{steps:,} steps, and it would run out at step {(patience + 1) * every:,} at the "
            "earliest; leave it out, or give a smaller one or a smaller --measure_every"
        )


LEARNED = {
    "learn_beta": "the clock as it starts",
    "time_varying": "Q and D constant as they start",
    "learn_ends": "both ends where they start",
    "learn_stationary": "Σ_∞ as it starts",
}
"""Parts that --diffusion_learning_rate 0 does not learn, by the option that would learn them."""


def _check_learned(settings: Training) -> None:
    for name, left in LEARNED.items():
        if getattr(settings, name):
            raise ValueError(
                f"--{name} has no effect with --diffusion_learning_rate 0, which leaves {left}; "
                "leave out one of them"
            )


def start_note(settings: Training, programs: Programs) -> str | None:
    """A note on a guide whose λ(ε) is not the data set's, though its start time is not set."""
    diffusion = programs.model.diffusion
    start, usual = diffusion.max_log_snr, programs.problem.max_log_snr
    at_a_time = isinstance(diffusion, Kernels) and diffusion.cut_time is not None
    if settings.max_log_snr is not None or at_a_time or abs(start - usual) <= 1e-6:
        return None
    return (
        f"note: {settings.guide} starts at log SNR {start:.4g}, where {settings.model} would "
        f"have {usual:.4g}; a guide with a keyword max_log_snr is given the latter"
    )


# -- inference.evaluate ----------------------------------------------------------------------------

OF_TEST_DATA = (
    *("reuse", "guide", "max_log_snr", "min_log_snr", "half_width", "samples", "times", "probes"),
    *("rtol", "test_size", "classify", "method", "precision", "calibration"),
)
"""The options that --data goes without."""
USUAL = {"classify": False, "method": "elbo", "precision": "32-true"}
"""Their defaults, where these are not None."""
OF_METHOD = {"half_width": "elbo", "times": "importance", "probes": "flow", "rtol": "flow"}
"""The options of one method alone."""


def check_evaluation(options: Mapping[str, Any]) -> None:
    """Raise unless a run can be evaluated as ``options``, all of them by name, say.

    Raises:
        RunError: a file is in the way, or there is no run for --data.
        ValueError: options that do not go together, or numbers out of their range.
    """
    out, overwrite, calibration = (options[name] for name in ("out", "overwrite", "calibration"))
    calls = {name: options[name] for name in ("draws", "batch_size")}
    if options["data"] is not None:
        if others := [f"--{n}" for n in OF_TEST_DATA if options[n] != USUAL.get(n)]:
            raise ValueError(
                f"--data is for bounds on new rows of a table, on which only --draws has an "
                f"effect; leave out {', '.join(others)}"
            )
        check_positive(**calls)
    else:
        check_positive(**calls, **{n: options[n] for n in ("half_width", "samples", "rtol")})
        size = options["test_size"]
        if size is not None and size < FEWEST:
            raise ValueError(f"--test_size is {size}, expected at least {FEWEST}")
        _check_method(options)
        if calibration is not None:
            check_out(calibration, (".png",), overwrite=overwrite, option="calibration")
    if out is not None:
        check_out(out, (".csv",), overwrite=overwrite)
    elif overwrite and calibration is None:
        raise ValueError("--overwrite is for --out and --calibration, which are not given")
    if options["data"] is not None and options["run"] is None:
        raise RunError("--data is of rows for a run, which is missing; give its folder")


def _check_method(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options of another method than the one that is asked for."""
    method = options["method"]
    for name, owner in OF_METHOD.items():
        if options[name] is not None and method not in (owner, "all"):
            raise ValueError(f"--{name} is for --method {owner}, not {method}; leave it out")
    if method == "elbo" and options["samples"] is not None:
        raise ValueError("--samples is for --method importance and flow, not elbo; leave it out")
    for name, given, word in (
        ("classify", options["classify"], "by"),
        ("out", options["out"] is not None, "for"),
    ):
        if given and method != "elbo":
            raise ValueError(
                f"--{name} is {word} bounds, and --method is {method}; leave one of them out"
            )
