"""The plan of a model and its diffusion, and the two programs built from it.

Settings may leave things to the data set; a :class:`Plan` has all decided. It is made once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch

from inference.settings.diffusion import LEARNED_MIN_LOG_SNR, build_diffusion
from inference.settings.imported import ends_of, has_imported_ends
from inference.settings.names import LIKELIHOODS, find, make, takes, wrong_kind
from inference.settings.options import Gaps, Guide, Training
from inference.settings.problems import build_problem
from models import Problem
from models.base import SCORES, ScoreKind
from models.kinds import kind_of
from pyro_mdm import DiffusionGuide, DiffusionModel
from pyro_mdm.conditioning.maps import Missing, RandomMaps
from pyro_mdm.diffusions.presets import is_learned
from pyro_mdm.levels import LevelDistribution
from pyro_mdm.likelihoods import Likelihood
from pyro_mdm.randomness import seed_from
from pyro_mdm.scores.base import Score
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.checks import tensor_device
from pyro_mdm.support.modules import evaluating


class Programs(NamedTuple):
    """A data set with its generative and its inference program, over one diffusion."""

    problem: Problem
    model: DiffusionModel
    guide: DiffusionGuide

    def given(self, context: torch.Tensor | None) -> Programs:
        """The programs given contexts (n, …), if the data set has any."""
        if context is None:
            return self
        device = tensor_device(self.model.score_function)
        return self._replace(model=self.model.given_context(context.to(device)))


@dataclass(frozen=True)
class Plan:
    """Decisions on a model and its guide.

    Attributes:
        settings: the settings that the plan is of.
        problem: the data set, with its split, networks and contexts.
        guide: the settings of the diffusion, with both ends of log SNR decided; λ(T) is None where
            the diffusion keeps its own clock.
        score: the score's name in the data set, its class, or a function that makes it.
        likelihood: p(x | y_ε); None: the data set's own.
        maps: the maps of log SNR that the denoiser is trained at; None: it is told none.
        gaps: treatment of missing entries in training; None: there are none, or no maps.
        has_best_ends: whether ends that are not set are those of an imported network's best bound.
    """

    settings: Training
    problem: Problem
    guide: Guide
    score: str | ScoreKind
    likelihood: Likelihood | None
    maps: str | None
    gaps: Gaps | None
    has_best_ends: bool = False

    @classmethod
    def from_settings(cls, settings: Training, facts: Mapping[str, Any] | None = None) -> Plan:
        """The plan of settings, a function of them, and of the facts that a run keeps of its data
        set, alone.

        Raises:
            NameNotFoundError, TypeError, ValueError: unknown names, or settings that contradict
                each other.
        """
        problem = build_problem(settings, network=settings.network, facts=facts)
        score, likelihood = _score_kind(settings.score), _likelihood(settings, problem)
        start, end = settings.max_log_snr, settings.min_log_snr
        if settings.guide == "learned" and end is None and _is_denoiser(score, problem):
            end = LEARNED_MIN_LOG_SNR
        guide = Guide(**{field.name: getattr(settings, field.name) for field in fields(Guide)})
        start = problem.max_log_snr if start is None else start
        guide = replace(guide, max_log_snr=start, min_log_snr=end)
        maps = settings.maps or problem.default_maps
        gaps = gaps_of(settings.gaps, maps, problem)
        return cls(settings, problem, guide, score, likelihood, maps, gaps)

    def build(self, *, fitted: bool = True) -> Programs:
        """The untrained programs; ``fitted`` as in :meth:`models.base.Problem.build`."""
        settings, problem = self.settings, self.problem
        if settings.precision == "64-true":
            problem.dtype = torch.float64
        torch.manual_seed(seed_from(settings.seed, "initial weights"))
        shape = problem.event_shape
        diffusion = build_diffusion(self.guide, event_shape=shape, simulation=settings)
        model = problem.build(
            diffusion,
            score=self.score,
            likelihood=self.likelihood,
            maps=self.maps is not None,
            fitted=fitted,
        )
        if fitted and has_imported_ends(settings, model) and not self.has_best_ends:
            guide = replace(self.guide, **ends_of(settings, problem, model))
            return replace(self, guide=guide, has_best_ends=True).build()
        score = model.score_function
        if self.maps is not None:
            self._train_at_maps(model, self.maps)
        if self.likelihood is not None:
            _try_likelihood(str(settings.likelihood), problem, model)
        cut = diffusion.cut_time if is_learned(diffusion) else None
        if cut is not None and isinstance(score, DenoiserScore):
            raise ValueError(
                f"{settings.guide} is learned and cut at the time {cut:g}, so that log SNR moves "
                "there, which a denoiser takes as fixed; use --score noise, or a guide that is cut "
                "at a log SNR"
            )
        if settings.times is not None:
            self._check_times(model)
            score.times = settings.times
        if problem.dtype == torch.float64:
            model.double()
        return Programs(problem, model, DiffusionGuide(diffusion))

    def _check_times(self, model: DiffusionModel) -> None:
        """Raise ValueError unless the score can be trained at times of the given law."""
        times, score = self.settings.times, model.score_function
        if kind_of(model.diffusion).simulated:
            raise ValueError(
                f"--times is {times}, and {self.settings.guide} is simulated: the times of its "
                "paths are those of --points; leave it out"
            )
        if times == "vpsde" and isinstance(score, DenoiserScore):
            raise ValueError(
                f"--times is {times}, which is for scores of the raw state of a linear diffusion; "
                f"{type(score).__name__} has adaptive and log_volume. Leave it out, or use --score "
                "noise"
            )
        if self.maps is not None:
            raise ValueError(
                f"--times is {times}, and denoisers that are trained at maps have times of their "
                "own; leave it out, or leave out --maps"
            )

    def _train_at_maps(self, model: DiffusionModel, maps: str) -> None:
        """Set the maps that a denoiser is trained at."""
        score, diffusion = model.score_function, model.diffusion
        if not isinstance(score, DenoiserScore):
            raise ValueError(
                f"--maps is {maps}, which is for denoisers, and {type(score).__name__} is none; "
                "leave it out, or use --score denoiser or discrete"
            )
        if maps == "levels":
            return
        ends = diffusion.start_log_snr, diffusion.terminal_log_snr
        if kind_of(diffusion).by_dimension or any(end.requires_grad for end in ends):
            raise ValueError(
                f"--maps {maps} replaces clocks and ends of log SNR that {self.settings.guide} has "
                "for each dimension or learns; use a guide of one clock, give --min_log_snr and "
                "leave out --learn_ends"
            )
        shares: dict[str, Any] = {} if maps == "mixed" else SHARES | {maps: 1.0}
        missing: Missing = "leave_out" if self.gaps == "leave_out" else "skip"
        score.training_maps = RandomMaps(**shares, window=self.problem.window, missing=missing)


def build(
    settings: Training, *, fitted: bool = True, facts: Mapping[str, Any] | None = None
) -> Programs:
    """The untrained programs that settings describe, as :meth:`Plan.build` makes them; ``facts``
    as in :meth:`Plan.from_settings`."""
    return Plan.from_settings(settings, facts).build(fitted=fitted)


def gaps_of(given: Gaps | None, maps: str | None, problem: Problem) -> Gaps | None:
    """What training does with missing entries; None where there are none."""
    if given is not None or not problem.is_incomplete:
        return given
    return "fill" if maps in OBSERVING else "leave_out"


OBSERVING = ("mixed", "subsets")
"""Maps at which entries are observed."""
SHARES = {"levels": 0.0, "subsets": 0.0, "independent": 0.0}
"""The shares of the kinds of maps, all 0."""


def _score_kind(name: str) -> str | ScoreKind:
    """A score's name if it is one of :mod:`models`, or else its class or function."""
    if name == "default" or name in SCORES:
        return name
    kind: ScoreKind = find("score", name)
    other = inspect.isclass(kind) and not issubclass(kind, Score)
    if not callable(kind) or other or isinstance(kind, Score):
        raise wrong_kind("score", name, kind, Score)
    return kind


def _is_denoiser(score: str | ScoreKind, problem: Problem) -> bool:
    kind = score
    if isinstance(score, str):
        kind = SCORES[problem.scores[0] if score == "default" else score]
    return inspect.isclass(kind) and issubclass(kind, DenoiserScore)


def _likelihood(settings: Training, problem: Problem) -> Likelihood | None:
    """The decoder that settings name; None for the problem's own."""
    name = settings.likelihood
    if name is None:
        return None
    named, levels = find("likelihood", name), getattr(problem, "num_levels", None)
    if levels is None and name in LIKELIHOODS and _needs(named, "levels"):
        raise ValueError(
            f"--likelihood {name} is for images with levels, and {problem.name} is continuous; use "
            "gaussian or tweedie"
        )
    options = {"levels": levels} if levels is not None and takes(named, "levels") else {}
    likelihood: Likelihood = make("likelihood", name, named, Likelihood, options)
    return likelihood


def _needs(function: Callable[..., object], name: str) -> bool:
    """Whether ``function`` has an argument of that name without a default."""
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _try_likelihood(name: str, problem: Problem, model: DiffusionModel) -> None:
    """Raise unless a decoder serves the data, diffusion and score, by trying it."""
    diffusion, event_shape = model.diffusion, model.event_shape
    y = torch.zeros(2, diffusion.num_variables, *event_shape)
    with evaluating(model), torch.random.fork_rng(devices=[]):
        x = problem.to_model_space(problem.train[:2])
        try:
            contexts = problem.part("train").context
            given = None if contexts is None else contexts[:2]
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
