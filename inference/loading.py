"""The two programs that settings describe, and those of a trained run.

Names are those of :mod:`inference.names`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch

from inference import trust
from inference.checkpoints import ArchitectureError, Checkpoint, load_module
from inference.names import GUIDES, LIKELIHOODS, accepted, find, make, takes, wrong_kind
from inference.options import Reach, StationaryVariance, Training
from inference.runs import LATER, Run
from models import DataError, Problem
from models.base import SCORES, ScoreKind
from pyro_mdm import (
    Diffusion,
    DiffusionGuide,
    DiffusionModel,
    LearnedDiffusion,
    LinearDiffusion,
    TimeVaryingLearnedDiffusion,
)
from pyro_mdm.diffusions.learned import LearnedFamily
from pyro_mdm.likelihoods import LevelDistribution, Likelihood
from pyro_mdm.scores.base import Score
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.scores.maps import RandomMaps
from pyro_mdm.support.checks import describe
from pyro_mdm.support.modules import evaluating

__all__ = [
    "SIMULATION",
    "Programs",
    "build",
    "build_diffusion",
    "build_problem",
    "check_ends",
    "check_split",
    "give_learned_end",
    "load_trained",
    "load_weights",
    "seed_from",
    "split_word",
    "title",
    "with_split",
]

OPTIONS = {
    "protocol": "images",
    "network": "images",
    "logit_margin": "images",
    "decoder": "images",
    "data": "data sets that are read from files",
    "columns": "tables",
    "image_size": "images of your own",
}
"""Which data sets have which option."""

BY_INDEX: Final = "index"
"""--split_seed of data that are split as they lie. In older runs it is null, or not there."""

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


def build_diffusion(
    name: str,
    *,
    max_log_snr: float,
    min_log_snr: float | None = None,
    num_variables: int | None = None,
    rank: int | None = None,
    learn_beta: bool = False,
    time_varying: bool = False,
    learn_ends: Reach | None = None,
    learn_stationary: bool = False,
    learned_from: str | None = None,
    stationary_variance: StationaryVariance | torch.Tensor | None = None,
    event_shape: Sequence[int] | None = None,
    simulation: Mapping[str, Any] | None = None,
) -> Any:
    """The diffusion that ``name`` stands for.

    Args:
        name: see :func:`find`. A class or function is called, with ``max_log_snr`` (and
            ``min_log_snr`` and ``event_shape`` if given) where it takes that; a diffusion is
            copied.
        max_log_snr: λ at ε, where the decoder takes over.
        min_log_snr: λ at T, to which the clock is scaled, also of a linear diffusion that does not
            take it; nominal for a nonlinear one.
        num_variables: K, for ``learned`` (2) and for other guides that take it, such as ``hold``.
        rank, learn_beta: for ``learned`` only: the rank of D (K), and whether the clock is learned
            too.
        time_varying: for ``learned`` only: whether Q and D are learned as polynomials of time.
        learn_ends: for ``learned`` only: how far both ends of log SNR, or each, may be learned.
        learn_stationary: for ``learned`` only: whether Σ_∞ is learned but for the variance of x.
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
    found = find("guide", name)
    diffusion: Any
    options: dict[str, Any] = {"max_log_snr": max_log_snr}
    if min_log_snr is not None:
        options["min_log_snr"] = min_log_snr
    family = TimeVaryingLearnedDiffusion if time_varying else LearnedDiffusion
    more: dict[str, Any] = {} if learn_ends is None else {"learn_ends": learn_ends}
    more |= {"learn_stationary": True} if learn_stationary else {}
    if found is LearnedDiffusion and learned_from is not None:
        start = _start(learned_from, num_variables, options)
        end: dict[str, Any] = {} if min_log_snr is None else {"min_log_snr": min_log_snr}
        if stationary_variance is not None:
            end["stationary_variance"] = _stationary(stationary_variance, start.num_variables)
        diffusion = family.from_diffusion(start, rank, learn_beta, **end, **more)
    elif found is LearnedDiffusion:
        K = 2 if num_variables is None else num_variables
        if stationary_variance is not None:
            options["stationary_variance"] = _stationary(stationary_variance, K)
        diffusion = family(K, rank=rank, learn_beta=learn_beta, **options, **more)
    else:
        given: dict[str, Any] = {"num_variables": num_variables, "rank": rank}
        given |= {"learn_beta": learn_beta or None, "time_varying": time_varying or None}
        given |= more
        given |= {"learned_from": learned_from}
        given |= {"stationary_variance": stationary_variance}
        if takes(found, "num_variables") and num_variables is not None:
            options["num_variables"] = given.pop("num_variables")
        if surplus := [f"--{key}" for key, value in given.items() if value is not None]:
            raise ValueError(
                f"{', '.join(surplus)} is for --guide learned; {name} says itself what it is"
            )
        if event_shape is not None and takes(found, "event_shape"):
            options["event_shape"] = tuple(event_shape)
        diffusion = make("guide", name, found, Diffusion, options)
    if min_log_snr is not None and diffusion.closed_form:
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
    if not start.closed_form:
        raise ValueError(
            f"--learned_from {name} is {title(start)}, which has no Q and D; expected a guide "
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
        diffusion: changed if it is a :class:`LearnedDiffusion`, or one that varies in time, that
            leaves λ(T) to its clock, and is not cut at a time.
        score: what it is for; nothing is changed for one that is no denoiser.

    Returns:
        λ(T) if it was changed.
    """
    if not isinstance(diffusion, LearnedFamily) or diffusion.min_log_snr is not None:
        return None
    if diffusion.cut_time is not None:
        return None
    if score is not None and not isinstance(score, DenoiserScore):
        return None
    diffusion.min_log_snr = LEARNED_MIN_LOG_SNR
    return LEARNED_MIN_LOG_SNR


def _set_simulation(name: str, diffusion: Any, settings: Mapping[str, Any]) -> None:
    given = {key: value for key, value in settings.items() if value is not None}
    if diffusion.closed_form:
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


def build_problem(name: str, *, holdout: bool = False, **options: Any) -> Problem:
    """The data set that ``name`` stands for.

    Args:
        name: see :func:`find`.
        holdout: keep a validation part out of the training data.
        options: ``protocol``, ``network``, ``logit_margin`` and ``decoder`` (images, see
            :mod:`models.base`), ``data`` (data sets read from files), ``columns`` (tables),
            ``image_size`` (your own images); None for those that are not given. ``split_seed``
            replaces the class's, also by None, see :class:`~models.base.Problem`.

    Raises:
        NameNotFoundError: see :func:`find`.
        TypeError: what is named is no data set, or one that takes no ``holdout``.
        ValueError: an option that this data set does not have, or data that are not what it says.
    """
    found = find("model", name)
    split = {}
    if "split_seed" in options:
        asked = options.pop("split_seed")
        split["split_seed"] = None if asked == BY_INDEX else asked
    given = {key: value for key, value in options.items() if value is not None}
    is_class = inspect.isclass(found) and issubclass(found, Problem)
    taken = accepted(found, {"holdout": holdout} | given) if is_class else {}
    for key, value in given.items():
        if key not in taken:
            raise ValueError(f"--{key} {value} is for {OPTIONS[key]}; --model {name} has none")
    if is_class and "holdout" not in taken:
        raise TypeError(
            f"{name} does not take holdout; let its __init__ have a keyword holdout and call "
            "super().__init__(holdout=holdout)"
        )
    problem = found
    if is_class:
        problem = found.split_by(**split, **taken) if split else found(**taken)
    if not isinstance(problem, Problem):
        raise TypeError(
            f"{name} is {describe(problem)}, expected a subclass of models.base.Problem: "
            "see models/digits.py"
        )
    if not hasattr(problem, "train"):
        raise TypeError(f"{name} has no data: its __init__ does not call super().__init__()")
    if problem.rows is not None and problem.rows.seed != split.get("split_seed", problem.rows.seed):
        raise ValueError(
            f"{name} was split by --split_seed {split_word(problem.rows.seed)} when it was made, "
            f"and {split_word(split['split_seed'])} is asked for; name its class, or make it by "
            "split_by"
        )
    return problem


def with_split(settings: Training) -> Training:
    """Settings of a new run, with its data set's own split where none is asked for."""
    if settings.split_seed is not None:
        return settings
    own = getattr(find("model", settings.model), "split_seed", None)
    return dataclasses.replace(settings, split_seed=split_word(own))


def split_word(seed: int | None) -> Literal["index"] | int:
    """What --split_seed is where data are split by ``seed``."""
    return BY_INDEX if seed is None else seed


def check_split(split_seed: Literal["index"] | int | None, problem: Problem) -> None:
    """Whether a split that was asked for is one of these data.

    Raises:
        ValueError: their parts are official.
    """
    if split_seed is not None and problem.rows is None:
        raise ValueError(
            f"--split_seed is {split_seed}, and {problem.name} has official parts, which are never "
            "split; leave it out"
        )


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

    def given(self, context: torch.Tensor | None) -> Programs:
        """Those of data with these contexts (n, …), if the data set is given any."""
        if context is None:
            return self
        device = self.model.diffusion.start_time.device
        return self._replace(model=self.model.given_context(context.to(device)))


def build(settings: Mapping[str, Any], *, fitted: bool = True) -> Programs:
    """The untrained programs that settings describe: the same settings, the same programs.

    ``fitted``: as in :meth:`models.base.Problem.build`.
    """
    options = {name: settings.get(name) for name in [*OPTIONS, "split_seed"]}
    problem = build_problem(settings["model"], holdout=settings["holdout"], **options)
    _condition(settings, problem)
    min_log_snr = settings["min_log_snr"]
    score, likelihood = _score_kind(settings["score"]), _likelihood(settings, problem)
    if settings["guide"] == "learned" and min_log_snr is None:
        kind = score
        if isinstance(score, str):
            kind = SCORES[problem.scores[0] if score == "default" else score]
        if inspect.isclass(kind) and issubclass(kind, DenoiserScore):
            min_log_snr = LEARNED_MIN_LOG_SNR
    max_log_snr = settings["max_log_snr"]
    torch.manual_seed(seed_from(settings["seed"], "initial weights"))
    diffusion = build_diffusion(
        settings["guide"],
        max_log_snr=problem.max_log_snr if max_log_snr is None else max_log_snr,
        min_log_snr=min_log_snr,
        num_variables=settings["num_variables"],
        rank=settings["rank"],
        learn_beta=settings["learn_beta"],
        time_varying=settings.get("time_varying", False),
        learn_ends=settings.get("learn_ends"),
        learn_stationary=settings.get("learn_stationary", False),
        learned_from=settings.get("learned_from"),
        stationary_variance=settings.get("stationary_variance"),
        event_shape=problem.event_shape,
        simulation={name: settings.get(name) for name in SIMULATION},
    )
    maps = settings.get("maps") or problem.default_maps
    problem.maps = maps is not None
    model = problem.build(diffusion, score=score, likelihood=likelihood, fitted=fitted)
    if maps is not None:
        _train_at_maps({**settings, "maps": maps}, model)
    if likelihood is not None:
        _try_likelihood(settings["likelihood"], problem, model)
    cut = diffusion.cut_time if isinstance(diffusion, LearnedFamily) else None
    if cut is not None and isinstance(model.score_function, DenoiserScore):
        raise ValueError(
            f"{settings['guide']} is learned and cut at the time {cut:g}, so that log SNR moves "
            "there, which a denoiser takes as fixed; use --score noise, or a guide that is cut at "
            "a log SNR"
        )
    if (times := settings.get("times")) is not None:
        score = model.score_function
        if not diffusion.closed_form:
            raise ValueError(
                f"--times is {times}, and {settings['guide']} is simulated: the times of its paths "
                "are those of --points; leave it out"
            )
        if times == "vpsde" and isinstance(score, DenoiserScore):
            raise ValueError(
                f"--times is {times}, which is for scores of the raw state of a linear diffusion; "
                f"{type(score).__name__} has adaptive and log_volume. Leave it out, or use --score "
                "noise"
            )
        if maps is not None:
            raise ValueError(
                f"--times is {times}, and denoisers that are trained at maps have times of their "
                "own; leave it out, or leave out --maps"
            )
        score.times = times
    return Programs(problem, model, DiffusionGuide(diffusion))


CONTEXT_DROPOUT = 0.1
"""The part of a batch whose context is hidden, where none is given."""


def _condition(settings: Mapping[str, Any], problem: Problem) -> None:
    """Have data given what was asked for."""
    name, dropout = settings.get("condition"), settings.get("context_dropout")
    if name is not None:
        problem.condition_on(name, CONTEXT_DROPOUT if dropout is None else dropout)
    elif dropout is not None:
        raise ValueError(
            f"--context_dropout is {dropout}, but the data are given nothing; give --condition "
            "labels too, or leave it out"
        )


def _train_at_maps(settings: Mapping[str, Any], model: DiffusionModel) -> None:
    """Have a denoiser trained at the maps that were asked for."""
    maps, score, diffusion = settings["maps"], model.score_function, model.diffusion
    if not isinstance(score, DenoiserScore):
        raise ValueError(
            f"--maps is {maps}, which is for denoisers, and {type(score).__name__} is none; leave "
            "it out, or use --score denoiser or discrete"
        )
    if maps == "levels":
        return
    ends = diffusion.start_log_snr, diffusion.terminal_log_snr
    if diffusion.maps or any(end.requires_grad for end in ends):
        raise ValueError(
            f"--maps {maps} replaces clocks and ends of log SNR that {settings['guide']} has for "
            "each dimension or learns; use a guide of one clock, give --min_log_snr and leave out "
            "--learn_ends"
        )
    score.training_maps = RandomMaps() if maps == "mixed" else RandomMaps(**SHARES | {maps: 1.0})


SHARES = {"levels": 0.0, "subsets": 0.0, "independent": 0.0}
"""Of kinds of maps that are not asked for."""


def _score_kind(name: str) -> str | ScoreKind:
    """A score's name if it is one of :mod:`models`, or else what it stands for."""
    if name == "default" or name in SCORES:
        return name
    found: ScoreKind = find("score", name)
    other = inspect.isclass(found) and not issubclass(found, Score)
    if not callable(found) or other or isinstance(found, Score):
        raise wrong_kind("score", name, found, Score)
    return found


def _likelihood(settings: Mapping[str, Any], problem: Problem) -> Likelihood | None:
    """The decoder that was asked for by name; None for the problem's own."""
    name = settings.get("likelihood")
    if name is None:
        return None
    if settings.get("decoder") is not None:
        raise ValueError(
            f"--decoder {settings['decoder']} and --likelihood {name} both say what p(x | y_ε) is; "
            "leave out one of them"
        )
    found, levels = find("likelihood", name), getattr(problem, "num_levels", None)
    if levels is None and name in LIKELIHOODS and _needs(found, "levels"):
        raise ValueError(
            f"--likelihood {name} is for images with levels, and {problem.name} is continuous; use "
            "gaussian or tweedie"
        )
    given = levels is not None and takes(found, "levels")
    options = {"levels": levels} if given else {}
    return make("likelihood", name, found, Likelihood, options)


def _needs(function: Any, name: str) -> bool:
    """Whether ``function`` has an argument of that name without a default."""
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _try_likelihood(name: str, problem: Problem, model: DiffusionModel) -> None:
    """Whether a decoder is one of such data, under such a diffusion and score: by trying it.

    Raises:
        TypeError, ValueError: it is not.
    """
    diffusion, event_shape = model.diffusion, model.event_shape
    y = torch.zeros(2, diffusion.num_variables, *event_shape)
    with evaluating(model), torch.random.fork_rng(devices=[]):
        x = problem.to_model_space(problem.train[:2])
        try:
            known = problem.part("train").context
            given = None if known is None else known[:2]
            score = model.given_context(given).score_function
            law = model.likelihood(diffusion, score, y, len(event_shape))
            shape = law.log_prob(x).shape
        except (TypeError, ValueError) as error:
            raise type(error)(f"--likelihood {name}: {error}") from error
    if shape != (2,):
        raise ValueError(
            f"--likelihood {name} has log_prob of shape {tuple(shape)} for 2 data of shape "
            f"{tuple(event_shape)}, expected one number each, (2,); end with "
            f".to_event({len(event_shape)})"
        )
    if "discrete" in problem.scores and not isinstance(law, LevelDistribution):
        raise ValueError(
            f"--likelihood {name} is a density, {type(law).__name__}, and {problem.name} has "
            "levels, whose bits/dim are of probabilities; use a LevelDistribution, such as "
            "discretized_gaussian, or --protocol dequantized"
        )


def title(diffusion: Diffusion) -> str:
    """A diffusion in messages."""
    return f"{type(diffusion).__name__} (K = {diffusion.num_variables})"


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
        UntrustedCodeError: its settings name code that is not run, see :mod:`inference.trust`.
    """
    run = Run.open(folder)
    try:
        with trust.named_by(folder):
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
