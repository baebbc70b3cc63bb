"""Problems: data sets with their generative programs, and the assembly of these."""

from __future__ import annotations

import copy
import inspect
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from models.data import DataSet
from models.kinds import Kind, kind_of
from pyro_mdm import (
    Denoiser,
    Diffusion,
    DiffusionModel,
    DiscreteDenoiser,
    MixedDenoiser,
    NoisePrediction,
    RawScore,
    ResidualScore,
)
from pyro_mdm.by_dimension.coordinates import CoordinateNetwork
from pyro_mdm.diffusions.base import coordinates
from pyro_mdm.levels.dequantization import Dequantized
from pyro_mdm.likelihoods.base import Likelihood
from pyro_mdm.scores.base import Score, Times
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.seeing.wrapping import wrapping
from pyro_mdm.support.checks import describe
from pyro_mdm.support.splits import spread

FIT_SIZE = 50_000
"""The most data that a baseline is fitted to, spread evenly over the training part."""

ROUGH_SIZE = 64
"""The number of data that baselines are fitted to which a checkpoint replaces."""

FIT_VALUES = FIT_SIZE * 3 * 32 * 32
"""The most numbers that a baseline is fitted to, which limits images larger than 3×32×32."""

FIT_CHUNK = 2**24
"""The most numbers that are dequantized at a time, which takes many times their memory."""

FIT_LEVELS = 33
"""The number of log SNRs that a residual score is fitted at."""

FIT_PATHS, FIT_STATES = 512, 2**25
"""The most paths to each of these, and the most numbers in all states, which bounds the memory;
there are at least 64 paths."""

P = TypeVar("P", bound="Problem")

ScoreKind = Callable[..., Score]
"""A class of scores, or a function (problem, diffusion) that returns one."""

SCORES: dict[str, ScoreKind] = {
    "discrete": DiscreteDenoiser,
    "denoiser": Denoiser,
    "noise": NoisePrediction,
    "score": RawScore,
    "residual": ResidualScore,
    "mixed": MixedDenoiser,
}
"""Parameterizations of scores by name."""


class Problem(DataSet):
    """A data set and the generative program for it.

    Subclasses set the class attributes and define :meth:`load` (or :meth:`split`, where the parts
    are official), :meth:`network` and, where data are not stored in model space, :meth:`transform`.
    """

    needed: ClassVar = {**DataSet.needed, "max_log_snr": "9.0"}

    scores: tuple[str, ...] = tuple(name for name in SCORES if name not in ("discrete", "mixed"))
    """The available parameterizations; the first is the default.

    A diffusion without a closed form has ``residual``, its default, and ``score``.
    """

    max_log_snr: float
    """The log SNR λ at ε, where the decoder takes over; an argument of the diffusion."""

    default_maps: ClassVar[str | None] = None
    """The default maps that denoisers are trained at, a value of ``--maps``."""

    window: tuple[float, float] | None = None
    """The window of these maps, see :class:`~pyro_mdm.conditioning.RandomMaps`."""

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    dtype: torch.dtype = torch.float32
    """The precision of data in model space: float64 where the run's is 64-true."""
    times: ClassVar[Times] = "adaptive"
    """The distribution of training times for linear diffusions, see
    :attr:`~pyro_mdm.scores.base.Score.times`."""

    keeps_best: bool = False
    """Whether training keeps the averaged weights with the best bound on validation data, for data
    so few that a network overfits; False: the last ones."""

    rough: bool = False
    """Whether baselines are fitted to few data, since a checkpoint replaces them."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "score_function" in vars(cls):
            raise TypeError(
                f"{cls.__name__} defines score_function, which nothing asks; define "
                "own_score(kind, assembly), see docs/guide/data.md"
            )

    @abstractmethod
    def network(self, inputs: int, outputs: int) -> nn.Module:
        """A new network from ``inputs`` to ``outputs`` channels (features, for vectors)."""

    def transform(self, data: Tensor, generator: torch.Generator | None = None) -> Dequantized:
        """A batch of stored data as x, in :attr:`dtype`, with log|det ∂x/∂w| in nats, (n,).

        w are the data on their own scale, and ``bits_per_dim`` needs the log-determinant. It is 0
        where x are the data, or levels that stand for them one to one.
        """
        return Dequantized(data.to(self.dtype), torch.zeros(len(data), device=data.device))

    def to_model_space(self, data: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A batch of stored data in model space, x."""
        return self.transform(data, generator).x

    @property
    def is_incomplete(self) -> bool:
        """Whether training data have missing entries, NaN."""
        return self.train.is_floating_point() and bool(self.train.isnan().any())

    @property
    def dequantized_levels(self) -> int | None:
        """The number of levels of dequantized data, for ``bits_per_dim``; None for other data."""
        return None

    def to_images(self, x: Tensor) -> Tensor | None:
        """Images, (n, C, H, W) uint8, of data x in model space; None where x are no images."""
        return None

    def likelihood(self, score: Score, diffusion: Diffusion) -> Likelihood | None:
        """The likelihood p(x | y_ε) for a score; None: that of the score."""
        return None

    def own_score(self, kind: type[Score], assembly: Assembly) -> Score | None:
        """A new score, if these data have a construction of their own; None: the usual one."""
        return None

    @property
    def completed(self) -> Tensor | None:
        """Completed training data in model space, with which training on gaps begins; None: draws
        of the model."""
        return None

    def fit_x(self) -> Tensor:
        """The data x that baselines are fitted to: training data, spread evenly.

        At most :data:`FIT_SIZE` of them, or fewer if they have more than :data:`FIT_VALUES`
        numbers, so that large data are never float32 all at once.
        """
        size = math.prod(self.event_shape)
        most = ROUGH_SIZE if self.rough else FIT_SIZE
        count = min(most, max(1, FIT_VALUES // size))
        data = self.train
        if len(data) > count:
            data = data[spread(len(data), count)]
        pieces = data.split(max(1, FIT_CHUNK // size))
        if len(pieces) == 1:
            return self.to_model_space(data)
        x = torch.empty(len(data), *self.event_shape, dtype=self.dtype)
        for target, piece in zip(x.split(len(pieces[0])), pieces, strict=True):
            target.copy_(self.to_model_space(piece))
        return x

    def roughly_fitted(self: P) -> P:
        """The data set with baselines fitted to few data, since a checkpoint replaces them."""
        rough = copy.copy(self)
        rough.rough = True
        return rough

    def build(
        self,
        diffusion: Diffusion,
        *,
        score: str | ScoreKind = "default",
        likelihood: Likelihood | None = None,
        maps: bool = False,
        fitted: bool = True,
    ) -> DiffusionModel:
        """The generative program over ``diffusion``, with a new network and a fitted baseline.

        Args:
            diffusion: the noising diffusion, made with this problem's ``max_log_snr``.
            score: the name of one of ``scores``, or "default" (the first where the diffusion has a
                closed form, else ``residual``), or a class or function of your own, see
                :meth:`Assembly.score`.
            likelihood: the likelihood p(x | y_ε); None: that of :meth:`likelihood`.
            maps: whether a denoiser is given maps of log SNR even where all dimensions have one.
            fitted: whether the baseline is fitted to the training data; False: to few of them, for
                a checkpoint that replaces it. It must consist of buffers of the score or the
                likelihood.

        Raises:
            TypeError: a function that returns no score.
            ValueError: a score that these data do not have, or that needs closed forms which the
                diffusion does not have.
            SimulationError: a path exploded, of those that ``residual`` is fitted to.
        """
        problem = self if fitted else self.roughly_fitted()
        return Assembly(problem, diffusion, maps).model(score, likelihood)


@dataclass(frozen=True)
class Assembly:
    """The assembly of a model of a data set over a diffusion.

    Attributes:
        problem: the data set.
        diffusion: the noising diffusion, made with the problem's ``max_log_snr``.
        maps: whether a denoiser is given maps of log SNR even where all dimensions have one.
    """

    problem: Problem
    diffusion: Diffusion
    maps: bool = False

    @cached_property
    def diffusion_kind(self) -> Kind:
        """The kind of the diffusion, with its requirements of networks and scores."""
        return kind_of(self.diffusion)

    def score_name(self, score: str = "default") -> str:
        """The name of a score; "default" is the first of the problem, or ``residual``."""
        if score != "default":
            return score
        return self.diffusion_kind.score or self.problem.scores[0]

    def model(
        self, score: str | ScoreKind = "default", likelihood: Likelihood | None = None
    ) -> DiffusionModel:
        """The generative program; arguments and errors are those of :meth:`Problem.build`."""
        problem, diffusion = self.problem, self.diffusion
        function = self.score(self.kind(score))
        name = score if isinstance(score, str) else getattr(score, "__name__", str(score))
        if not isinstance(function, Score):
            raise TypeError(f"{name} returns {describe(function)}, expected a Score")
        if self.diffusion_kind.simulated and not function.serves_nonlinear:
            raise ValueError(
                f"score is {name!r}, which is made of the closed-form law of y_s given x, and "
                f"{type(diffusion).__name__} has none; use residual (its default) or score, or "
                "say serves_nonlinear = True in a class of yours that needs no closed form"
            )
        if likelihood is None:
            likelihood = problem.likelihood(function, diffusion)
        shape, context = problem.event_shape, problem.context
        return DiffusionModel(diffusion, function, likelihood, shape, context=context)

    def kind(self, score: str | ScoreKind) -> ScoreKind:
        """The class or function of a score's name (ValueError: the data do not have it)."""
        problem = self.problem
        if not isinstance(score, str):
            levels = "discrete" in problem.scores
            if inspect.isclass(score) and issubclass(score, DiscreteDenoiser) and not levels:
                raise ValueError(
                    f"{score.__name__} is for images whose levels are not made continuous, and "
                    f"{problem.name} has none; use a score of continuous data"
                )
            return score
        name = self.score_name(score)
        if name not in problem.scores:
            raise ValueError(
                f"score is {score!r}, expected 'default' ({self.score_name()}) or one of "
                f"{', '.join(problem.scores)} for {problem.name}"
            )
        return SCORES[name]

    def score(self, kind: ScoreKind) -> Score:
        """A new score with its network and baseline.

        Args:
            kind: a class or a function of the problem and the diffusion. A denoiser or a
                :class:`~pyro_mdm.ResidualScore` is made by its ``fit``, other classes with the
                network alone. A denoiser's network has the channels of the data, others see all K
                variables as channels.
        """
        problem, diffusion = self.problem, self.diffusion
        if not inspect.isclass(kind):
            try:
                inspect.signature(kind).bind(problem, diffusion)
            except TypeError as error:
                raise TypeError(
                    f"{getattr(kind, '__name__', kind)} is called with (problem, diffusion), and "
                    f"{error}; a function that makes a score takes these two"
                ) from error
            return kind(problem, diffusion)
        cls = cast("type[Score]", kind)
        if (score := problem.own_score(cls, self)) is not None:
            return score
        if issubclass(cls, DenoiserScore):
            return self._denoiser(cls)
        channels = problem.event_shape[0] * diffusion.num_variables
        network = self.network(channels, channels)
        network = self._on_coordinates(network, self._context_channels(network))
        if issubclass(cls, ResidualScore):
            x, paths = coordinates(diffusion, problem.fit_x()), self._num_paths()
            return cls.fit(network, diffusion, x, num_levels=FIT_LEVELS, num_paths=paths)
        try:
            inspect.signature(cls).bind(network)
        except TypeError as error:
            raise TypeError(
                f"{cls.__name__} cannot be made of a network alone ({error}); give its other "
                "arguments defaults, or name a function of (problem, diffusion) that returns one"
            ) from error
        return cls(network)

    def _denoiser(self, kind: type[DenoiserScore]) -> Score:
        network = self.denoiser_network(1)
        context_channels = self.problem.event_shape[0] if self.takes_maps else 0
        network = self._on_coordinates(network, context_channels + self._context_channels(network))
        x = coordinates(self.diffusion, self.problem.fit_x())
        fit = cast(Any, kind).fit
        return self.wrapped(fit(network, x, **self.fit_options))

    # -- parts of a score --------------------------------------------------------------------------

    @property
    def takes_maps(self) -> bool:
        """Whether a denoiser is given the log SNR of every dimension."""
        return self.maps or self.diffusion_kind.by_dimension

    @property
    def fit_options(self) -> dict[str, bool]:
        """The options of a denoiser's ``fit`` for maps."""
        return {"maps": True} if self.takes_maps else {}

    def wrapped(self, denoiser: DenoiserScore) -> Score:
        """A denoiser, wrapped in the score that the diffusion needs, if any."""
        around = wrapping(self.diffusion)
        return denoiser if around is None else around(denoiser)

    def denoiser_network(self, outputs: int) -> nn.Module:
        """A new network with a number of outputs for each dimension, and channels for the
        diffusion."""
        inputs, around = 2 if self.takes_maps else 1, wrapping(self.diffusion)
        if around is not None:
            inputs += around.more_inputs(self.diffusion)
            outputs += around.more_outputs(self.diffusion)
        C = self.problem.event_shape[0]
        return self.network(inputs * C, outputs * C)

    def network(self, inputs: int, outputs: int) -> nn.Module:
        """A new network that is given contexts, as an argument or as further channels."""
        context = self.diffusion_kind.latent
        latent = 0 if context is None else context.size
        network = self.problem.network(inputs + latent, outputs)
        more = self._context_channels(network)
        return self.problem.network(inputs + more, outputs) if more else network

    def _context_channels(self, network: nn.Module) -> int:
        """The number of channels in which a network is given contexts."""
        by_itself = getattr(network, "context_size", 0)
        given = self.problem.context
        return 0 if by_itself or given is None else given.size

    def _on_coordinates(self, network: nn.Module, context_channels: int = 0) -> nn.Module:
        """A network that sees data, even where states hold other coordinates of them."""
        transform = self.diffusion_kind.coordinates
        return (
            network
            if transform is None
            else CoordinateNetwork(network, transform, context_channels)
        )

    def _num_paths(self) -> int:
        """The number of paths to each log SNR: enough for a covariance of K variables."""
        K = self.diffusion.num_variables
        if self.problem.rough:
            return 8 * K
        numbers = FIT_LEVELS * K * math.prod(self.problem.event_shape)
        return min(FIT_PATHS, max(64, FIT_STATES // numbers))
