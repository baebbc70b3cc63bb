"""What ``--guide`` and ``--model`` names stand for, and the two programs that settings describe.

A name is one of those known here, ``module:Name`` for something importable, or ``file.py:Name`` for
something in a file of your own. Trained denoisers can be put over another diffusion: :func:`reuse`.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from inference.checkpoints import ArchitectureError, Checkpoint, load_module
from inference.runs import LATER, Run, RunError
from models import MODELS, DataError, Problem
from pyro_mdm import (
    ALDA,
    CLD,
    MALDA,
    VPSDE,
    Diffusion,
    DiffusionGuide,
    DiffusionModel,
    LearnedDiffusion,
    LinearDiffusion,
    NonlinearDiffusion,
)
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.scores.base import Score
from pyro_mdm.scores.denoiser import DenoiserScore

__all__ = [
    "GUIDES",
    "SIMULATION",
    "NameNotFoundError",
    "Programs",
    "Reused",
    "absolute_name",
    "build",
    "build_diffusion",
    "build_problem",
    "check_ends",
    "find",
    "give_learned_end",
    "load_trained",
    "load_weights",
    "open_run",
    "reuse",
    "seed_from",
    "source_files",
]

GUIDES: dict[str, Any] = {
    "vpsde": VPSDE,
    "cld": CLD,
    "malda": MALDA,
    "alda": ALDA,
    "learned": LearnedDiffusion,
}

OPTIONS = {
    "protocol": "images",
    "network": "images",
    "logit_margin": "images",
    "decoder": "images",
    "data": "data sets that are read from files",
    "image_size": "images of your own",
}
"""Which data sets have which option."""

SIMULATION = {
    "step_size": "step_size",
    "points": "points",
    "solver": "method",
    "objective": "objective",
    "probes": "probes",
    "probe_law": "probe_law",
    "backpropagation": "backpropagation",
}
"""Settings of how a nonlinear guide is simulated, and what :class:`Simulation` calls them."""

LEARNED_MIN_LOG_SNR = -10.0
"""λ(T) of a learned diffusion under a denoiser, which gives its clock no other reason to stop."""

StationaryVariance = float | list[float] | list[list[float]]
"""Σ_∞ as an option: a number, K variances or K rows of a covariance."""

RANGE_TOLERANCE = 1e-3
"""How far λ may leave the trained range, as in :meth:`DenoiserScore.check_log_snr`."""


class NameNotFoundError(LookupError):
    """A ``--guide`` or ``--model`` that names nothing."""


def find(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """The object that ``name`` stands for.

    Args:
        kind: ``"guide"`` or ``"model"``, for messages.
        name: a name in ``known``, ``module:Name`` or ``file.py:Name``.
        known: names and what they stand for.

    Raises:
        NameNotFoundError: an unknown name, a file or module that is not there or has no such name.
    """
    if name in known:
        return known[name]
    if kind == "guide" and name.startswith("run:"):
        raise NameNotFoundError(
            f"{name} is the diffusion that a run ended with, which inference.inspect and --reuse "
            "take alone; --resume goes on with a run"
        )
    place, colon, attribute = name.rpartition(":")
    if not colon:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        if name.endswith(".py"):
            hint = f" (which class or function of that file? {name}:Name)"
        raise NameNotFoundError(
            f"unknown {kind} {name!r}{hint}: use one of {', '.join(known)}, or name your own as "
            "module:Name or file.py:Name"
        )
    module = _load_file(kind, Path(place)) if place.endswith(".py") else _load_module(kind, place)
    if not hasattr(module, attribute):
        own = [
            n
            for n, value in vars(module).items()
            if not n.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        raise NameNotFoundError(
            f"{place} has no {attribute!r}; it defines {', '.join(own) or 'no class or function'}"
        )
    return getattr(module, attribute)


def absolute_name(name: str) -> str:
    """``file.py:Name`` with the file's full path, as a config file needs it; others unchanged."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(place).resolve()}:{attribute}" if place.endswith(".py") else name


def source_files(settings: Mapping[str, Any]) -> list[Path]:
    """The files of the user's own that settings name, as ``file.py:Name``."""
    names = ("model", "guide", "learned_from")
    places = [str(settings.get(name)).rpartition(":")[0] for name in names]
    return [Path(place) for place in dict.fromkeys(places) if place.endswith(".py")]


def _load_file(kind: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise NameNotFoundError(f"--{kind}: there is no file {path} (looked in {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise NameNotFoundError(f"--{kind}: {path} cannot be read as a Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load_module(kind: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module is there, something it imports is not
        raise NameNotFoundError(
            f"--{kind}: there is no module {name!r} ({error}); sys.path starts with "
            f"{[p or '.' for p in sys.path[:3]]}"
        ) from error


def _accepted(function: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that ``function`` takes as keywords."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return dict(options)
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    return {key: value for key, value in options.items() if key in names}


def build_diffusion(
    name: str,
    *,
    max_log_snr: float,
    min_log_snr: float | None = None,
    num_variables: int | None = None,
    rank: int | None = None,
    learn_beta: bool = False,
    learned_from: str | None = None,
    stationary_variance: StationaryVariance | torch.Tensor | None = None,
    event_shape: Sequence[int] | None = None,
    simulation: Mapping[str, Any] | None = None,
) -> LinearDiffusion | NonlinearDiffusion:
    """The diffusion that ``name`` stands for.

    Args:
        name: see :func:`find`. A class or function is called, with ``max_log_snr`` (and
            ``min_log_snr`` and ``event_shape`` if given) where it takes that; a diffusion is
            copied.
        max_log_snr: λ at ε, where the decoder takes over.
        min_log_snr: λ at T, to which the clock is scaled, also of a linear diffusion that does not
            take it; nominal for a nonlinear one.
        num_variables, rank, learn_beta: for ``learned`` only: K (2), the rank of D (K) and whether
            the clock is learned too.
        learned_from: for ``learned`` only: the guide that it begins as, a name like ``name``.
        stationary_variance: for ``learned`` only: Σ_∞, a number, K variances or a K×K covariance.
        event_shape: of a datum, for a guide with a network.
        simulation: settings by name, see :data:`SIMULATION`, that replace those of a nonlinear
            diffusion; None for those that do not.

    Raises:
        NameNotFoundError: see :func:`find`.
        TypeError: what is named is not a diffusion and does not return one.
        ValueError: an option of ``learned`` for another guide, of simulation for a linear one, or
            one that makes no sense.
    """
    found = find("guide", name, GUIDES)
    diffusion: Any
    options: dict[str, Any] = {"max_log_snr": max_log_snr}
    if min_log_snr is not None:
        options["min_log_snr"] = min_log_snr
    if found is LearnedDiffusion and learned_from is not None:
        start = _start(learned_from, num_variables, options)
        end: dict[str, Any] = {} if min_log_snr is None else {"min_log_snr": min_log_snr}
        if stationary_variance is not None:
            end["stationary_variance"] = _stationary(stationary_variance, start.num_variables)
        diffusion = LearnedDiffusion.from_diffusion(start, rank, learn_beta, **end)
    elif found is LearnedDiffusion:
        K = 2 if num_variables is None else num_variables
        if stationary_variance is not None:
            options["stationary_variance"] = _stationary(stationary_variance, K)
        diffusion = LearnedDiffusion(K, rank=rank, learn_beta=learn_beta, **options)
    else:
        given: dict[str, Any] = {"num_variables": num_variables, "rank": rank}
        given |= {"learn_beta": learn_beta or None, "learned_from": learned_from}
        given |= {"stationary_variance": stationary_variance}
        if surplus := [f"--{key}" for key, value in given.items() if value is not None]:
            raise ValueError(
                f"{', '.join(surplus)} is for --guide learned; {name} says itself what it is"
            )
        if event_shape is not None and _takes(found, "event_shape"):
            options["event_shape"] = tuple(event_shape)
        ready = isinstance(found, Diffusion)
        diffusion = copy.deepcopy(found) if ready else _call(name, found, options)
    if not isinstance(diffusion, LinearDiffusion | NonlinearDiffusion):
        what = f"{name} is" if diffusion is found else f"{name} returns"
        raise TypeError(
            f"{what} {_describe(diffusion)}, expected a LinearDiffusion or a NonlinearDiffusion: a "
            "subclass, a function that returns one, or one itself (see inference/guides)"
        )
    if min_log_snr is not None and isinstance(diffusion, LinearDiffusion):
        if diffusion.cut_time is not None:
            raise ValueError(
                f"--min_log_snr is {min_log_snr:g}, but {name} is cut at the time "
                f"{diffusion.cut_time:g}, and the clock would be scaled; leave out --min_log_snr, "
                "or use a guide that is cut at a log SNR"
            )
        diffusion.min_log_snr = min_log_snr
    _set_simulation(name, diffusion, simulation or {})
    return diffusion


def check_ends(
    name: str, diffusion: Diffusion, max_log_snr: float | None, min_log_snr: float | None
) -> None:
    """Whether a guide has the ends of log SNR that were asked for; None for those that were not.

    Raises:
        ValueError: it sets its own.
    """
    asked = [("max_log_snr", max_log_snr, "start"), ("min_log_snr", min_log_snr, "end")]
    for option, wanted, side in asked:
        if wanted is None:
            continue
        own = diffusion.max_log_snr if side == "start" else diffusion.terminal_log_snr.item()
        if abs(own - wanted) > 1e-6:
            raise ValueError(
                f"--{option} is {wanted:g}, but {name} sets its own {side}, log SNR {own:.4g}; "
                f"leave out --{option}, or use a guide that takes {option}"
            )


def _start(name: str, num_variables: int | None, ends: Mapping[str, Any]) -> LinearDiffusion:
    """The diffusion that a learned one begins as."""
    try:
        start = build_diffusion(name, **ends)
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("--guide", "--learned_from")) from error
    if isinstance(start, NonlinearDiffusion):
        raise ValueError(
            f"--learned_from {name} is {_title(start)}, which has no Q and D; expected a guide "
            f"with a closed form, such as {', '.join(key for key in GUIDES if key != 'learned')}"
        )
    if num_variables not in (None, start.num_variables):
        raise ValueError(
            f"--num_variables is {num_variables}, but --learned_from {name} has "
            f"{start.num_variables}; leave out --num_variables"
        )
    return start


def _stationary(value: StationaryVariance | torch.Tensor, K: int) -> torch.Tensor:
    """Σ_∞ as :class:`LinearDiffusion` takes it, if its shape is one of K variables."""
    try:
        found = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError):  # rows of different length
        found = None
    if found is None or tuple(found.shape) not in ((), (K,), (K, K)):
        raise ValueError(
            f"--stationary_variance is {value}, expected a number, {K} variances or {K} rows of a "
            f"{K}×{K} covariance, x first; K = {K} is that of --num_variables or --learned_from"
        )
    return found


def give_learned_end(diffusion: Diffusion, score: Score | None = None) -> float | None:
    """Scale a learned diffusion of one's own to the λ(T) that ``--guide learned`` has.

    Args:
        diffusion: changed if it is a :class:`LearnedDiffusion` that leaves λ(T) to its clock, and
            is not cut at a time.
        score: what it is for; nothing is changed for one that is no denoiser.

    Returns:
        λ(T) if it was changed.
    """
    if not isinstance(diffusion, LearnedDiffusion) or diffusion.min_log_snr is not None:
        return None
    if diffusion.cut_time is not None:
        return None
    if score is not None and not isinstance(score, DenoiserScore):
        return None
    diffusion.min_log_snr = LEARNED_MIN_LOG_SNR
    return LEARNED_MIN_LOG_SNR


def _set_simulation(name: str, diffusion: Diffusion, settings: Mapping[str, Any]) -> None:
    given = {key: value for key, value in settings.items() if value is not None}
    if not isinstance(diffusion, NonlinearDiffusion):
        if given:
            raise ValueError(
                f"{', '.join(f'--{key}' for key in given)} is for nonlinear diffusions, which are "
                f"simulated; {name} is known in closed form. Leave it out, or wrap the diffusion "
                "in pyro_mdm.Simulated"
            )
        return
    try:
        changes = {SIMULATION[key]: value for key, value in given.items()}
        diffusion.simulation = dataclasses.replace(diffusion.simulation, **changes)
        diffusion.simulation.solver(diffusion)
    except ValueError as error:
        if given:
            options = ", ".join(f"--{key} {value}" for key, value in given.items())
            raise ValueError(f"{options}: {error}") from error
        raise


def _takes(function: Any, name: str) -> bool:
    """Whether ``function`` has a keyword of that name of its own."""
    return callable(function) and name in inspect.signature(function).parameters


def _call(name: str, found: Any, options: Mapping[str, Any]) -> Any:
    is_class = inspect.isclass(found)
    if not callable(found) or (is_class and not issubclass(found, Diffusion)):
        return found
    taken = _accepted(found, options)
    try:
        inspect.signature(found).bind(**taken)
    except TypeError as error:
        raise TypeError(
            f"{name} cannot be called with {sorted(taken)} alone ({error}); give its other "
            "arguments defaults, or name a function without arguments that returns the diffusion"
        ) from error
    return found(**taken)


def _describe(value: Any) -> str:
    return f"the class {value.__name__}" if inspect.isclass(value) else f"a {type(value).__name__}"


def build_problem(name: str, *, holdout: bool = False, **options: Any) -> Problem:
    """The data set that ``name`` stands for.

    Args:
        name: see :func:`find`.
        holdout: keep a validation part out of the training data.
        options: ``protocol``, ``network``, ``logit_margin`` and ``decoder`` (images, see
            :mod:`models.base`), ``data`` (data sets read from files), ``image_size`` (your own
            images); None for those that are not given.

    Raises:
        NameNotFoundError: see :func:`find`.
        TypeError: what is named is no data set, or one that takes no ``holdout``.
        ValueError: an option that this data set does not have, or data that are not what it says.
    """
    found = find("model", name, MODELS)
    given = {key: value for key, value in options.items() if value is not None}
    is_class = inspect.isclass(found) and issubclass(found, Problem)
    accepted = _accepted(found, {"holdout": holdout} | given) if is_class else {}
    for key, value in given.items():
        if key not in accepted:
            raise ValueError(f"--{key} {value} is for {OPTIONS[key]}; --model {name} has none")
    if is_class and "holdout" not in accepted:
        raise TypeError(
            f"{name} does not take holdout; let its __init__ have a keyword holdout and call "
            "super().__init__(holdout=holdout)"
        )
    problem = found(**accepted) if is_class else found
    if not isinstance(problem, Problem):
        raise TypeError(
            f"{name} is {_describe(problem)}, expected a subclass of models.base.Problem: "
            "see models/digits.py"
        )
    if not hasattr(problem, "train"):
        raise TypeError(f"{name} has no data: its __init__ does not call super().__init__()")
    return problem


# -- from settings to programs ---------------------------------------------------------------------


def seed_from(seed: int, *labels: object) -> int:
    """A seed for one use of randomness, told apart from all others by its labels."""
    text = repr((seed, *labels)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


class Programs(NamedTuple):
    """A data set with its generative and its inference program, over one diffusion."""

    problem: Problem
    model: DiffusionModel
    guide: DiffusionGuide


def build(settings: Mapping[str, Any], *, fitted: bool = True) -> Programs:
    """The untrained programs that settings describe: the same settings, the same programs.

    ``fitted``: as in :meth:`models.base.Problem.build`.
    """
    options = {name: settings.get(name) for name in OPTIONS}
    problem = build_problem(settings["model"], holdout=settings["holdout"], **options)
    min_log_snr = settings["min_log_snr"]
    if settings["guide"] == "learned" and min_log_snr is None:
        score = problem.scores[0] if settings["score"] == "default" else settings["score"]
        raw = score in ("noise", "score", "residual")
        min_log_snr = None if raw else LEARNED_MIN_LOG_SNR
    max_log_snr = settings["max_log_snr"]
    torch.manual_seed(seed_from(settings["seed"], "initial weights"))
    diffusion = build_diffusion(
        settings["guide"],
        max_log_snr=problem.max_log_snr if max_log_snr is None else max_log_snr,
        min_log_snr=min_log_snr,
        num_variables=settings["num_variables"],
        rank=settings["rank"],
        learn_beta=settings["learn_beta"],
        learned_from=settings.get("learned_from"),
        stationary_variance=settings.get("stationary_variance"),
        event_shape=problem.event_shape,
        simulation={name: settings.get(name) for name in SIMULATION},
    )
    model = problem.build(diffusion, score=settings["score"], fitted=fitted)
    cut = diffusion.cut_time if isinstance(diffusion, LearnedDiffusion) else None
    if cut is not None and isinstance(model.score_function, DenoiserScore):
        raise ValueError(
            f"{settings['guide']} is learned and cut at the time {cut:g}, so that log SNR moves "
            "there, which a denoiser takes as fixed; use --score noise, or a guide that is cut at "
            "a log SNR"
        )
    if (times := settings.get("times")) is not None:
        score = model.score_function
        if isinstance(score, DenoiserScore) or not isinstance(diffusion, LinearDiffusion):
            raise ValueError(
                f"--times is {times}, which is for scores of the raw state of a linear diffusion; "
                f"{type(score).__name__} under {settings['guide']} has a law of its own. Leave it "
                "out, or use --score noise"
            )
        score.times = times
    return Programs(problem, model, DiffusionGuide(diffusion))


def load_weights(model: DiffusionModel, checkpoint: Checkpoint, part: str, run: Run) -> None:
    """Load the tensors ``part`` of a run's checkpoint.

    Raises:
        ArchitectureError: they are another architecture's; names the settings changed since, too.
    """
    where = f"the checkpoint of step {checkpoint.step} in {run.folder}"
    try:
        load_module(model, checkpoint.part(part), where)
    except ArchitectureError as error:
        then = LATER | checkpoint.state["config"]
        changed = [
            f"{key}: {then.get(key)!r} in the checkpoint, {value!r} in config.yaml"
            for key, value in run.config.items()
            if then.get(key) != value
        ]
        if not changed:
            raise
        lines = "\n  ".join(changed)
        raise ArchitectureError(f"{error}\nSettings that differ:\n  {lines}") from error


def load_trained(folder: Path) -> tuple[Run, Programs, Checkpoint]:
    """A run's programs with the averaged weights of its newest whole checkpoint, in eval mode.

    Raises:
        RunError, CheckpointError, ArchitectureError: there is no such run, it has no usable
            checkpoint, or that is another architecture's.
    """
    run = Run.open(folder)
    try:
        programs = build(run.config, fitted=False)
    except DataError as error:
        where = f"{run.folder / 'config.yaml'} says where the run's data are"
        raise DataError(
            f"{error}\n{where} (data: …); change it there if they have moved"
        ) from error
    checkpoint = run.latest()
    load_weights(programs.model, checkpoint, "ema", run)
    programs.model.eval()
    return run, programs, checkpoint


# -- a trained denoiser over another diffusion -----------------------------------------------------


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
    if not isinstance(source, LinearDiffusion):
        raise RunError(
            f"{folder} was trained under {_title(source)}, and its score is for that alone: only a "
            "denoiser serves other diffusions, and it is for those with a closed form. "
            f"Train for the other one: python -m inference.train --guide {guide}"
        )
    if not isinstance(score, DenoiserScore):
        raise RunError(
            f"{folder} was trained with --score {run.config['score']}: its network saw the raw "
            f"state (x, v_1, …) of {_title(source)}, which another diffusion does not produce. "
            "Reuse a run with a denoiser (--score denoiser, or discrete for images), which reads z "
            f"alone, or train one: python -m inference.train --guide {guide} --score denoiser"
        )
    if not torch.isfinite(torch.stack([score.trained_min, score.trained_max])).all():
        score.set_trained_range(source.terminal_log_snr.item(), source.max_log_snr)  # unfinished
    low, high = score.trained_min.item(), score.trained_max.item()
    trained = f"the network of {folder} was trained on log SNR [{low:.6g}, {high:.6g}]"
    notes = [f"{trained} under {_title(source)}, to step {checkpoint.step}"]

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
    notes.append(f"{guide}: {_title(diffusion)}, {ends}")

    model = DiffusionModel(diffusion, score, own.model.likelihood, own.model.event_shape)
    return Reused(run, checkpoint, own, _programs(own.problem, model.eval()), notes)


def _programs(problem: Problem, model: DiffusionModel) -> Programs:
    return Programs(problem, model, DiffusionGuide(model.diffusion))


def _with_closed_form(guide: str, diffusion: Diffusion) -> LinearDiffusion:
    if isinstance(diffusion, LinearDiffusion):
        return diffusion
    raise RunError(
        f"{guide} is {_title(diffusion)}, which is known by simulation alone. A denoiser reads "
        "z = aᵀ Σ^{-1} y / SNR, of the closed-form law of y_s given x; train a score for it "
        f"instead: python -m inference.train --guide {guide}"
    )


def _title(diffusion: Diffusion) -> str:
    return f"{type(diffusion).__name__} (K = {diffusion.num_variables})"


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
