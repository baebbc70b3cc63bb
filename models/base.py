"""What the data sets share: how they are split, stored, and turned into a generative program.

``Problem`` is what a program needs to know of a data set; ``ImageProblem`` adds what images with
discrete levels have in common, and ``FileImages`` what those read from files with official parts
have. Your own data set is a subclass: see digits.py. No data set changes its images at random.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from models.checks import as_tensor, check_images, check_numbers, check_shape
from models.files import spread
from models.splits import EVERY, Rows, split_rows
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
from pyro_mdm.contexts import GivenContext, Labels, Vectors
from pyro_mdm.likelihoods.base import Likelihood
from pyro_mdm.likelihoods.dequantization import Dequantized, LogitDequantization
from pyro_mdm.likelihoods.gaussian import Gaussian, JointTweedie, Tweedie
from pyro_mdm.likelihoods.levels import DiscretizedGaussian
from pyro_mdm.networks import UNet
from pyro_mdm.scores.base import Score, Times
from pyro_mdm.scores.coordinates import CoordinateNetwork
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.scores.discrete_denoiser import Form, outputs_of
from pyro_mdm.scores.wrapping import wrapping
from pyro_mdm.support.checks import describe

__all__ = [
    "FIT_SIZE",
    "MIXTURE",
    "PAPER",
    "PUBLISHED",
    "SCORES",
    "SMALL",
    "FileImages",
    "ImageProblem",
    "Part",
    "Problem",
    "ScoreKind",
]

FIT_SIZE = 50_000
"""The most data that a baseline is fitted to; spread evenly over the training part."""

ROUGH_SIZE = 64
"""Data for baselines that a checkpoint replaces."""

FIT_VALUES = FIT_SIZE * 3 * 32 * 32
"""The most numbers that a baseline is fitted to, which counts for images larger than 3×32×32."""

FIT_CHUNK = 2**24
"""Numbers made continuous at a time, which takes many times their memory."""

FIT_LEVELS = 33
"""Noise levels that a residual score is fitted at."""

FIT_PATHS, FIT_STATES = 512, 2**25
"""The most paths to each of them, and the most numbers in the states of all, at least 64 paths."""

SMALL: dict[str, Any] = {"base": 32, "multipliers": (1, 2, 3), "lean": True, "patch": 2}
"""A U-Net that a laptop's CPU can train, 1.3 million parameters for 3×32×32."""

MIXTURE: dict[str, Any] = SMALL | {"form": "mixture"}
"""The same, with a mixture of three tilts for each pixel."""

FINE: dict[str, Any] = {
    "base": 24,
    "multipliers": (1, 2, 4),
    "lean": True,
    "form": "mixture",
}
"""One that has a level of every pixel, not of patches: 1.1 million parameters for 1×28×28."""

PAPER: dict[str, Any] = {
    "base": 128,
    "multipliers": (1, 2, 2, 2),
    "blocks": 2,
    "attention": (1,),
    "dropout": 0.1,
}
"""The U-Net of the paper's scale, 35.5 million parameters for 3×32×32; see :class:`UNet`."""

PUBLISHED: dict[str, Any] = PAPER | {"dropout": 0.0}
"""The same without dropout, as in the configurations released with the paper."""

SHOWN_CLASSES = 20
"""The most classes of which the number of test data is said."""

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
"""Parameterizations by name."""


@dataclass(frozen=True)
class Part:
    """Data as stored, (n, *event_shape), and what is known of each, (n, …), if anything is."""

    data: Tensor
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: Any) -> Part:
        return Part(self.data[rows], None if self.context is None else self.context[rows])


class Problem(ABC):
    """A data set and the generative program for it.

    Subclasses set the class attributes and define :meth:`load` (or :meth:`split`, where the parts
    are official), :meth:`network` and, where data are not stored in model space, :meth:`transform`.

    A tenth of the data, drawn by ``split_seed``, is test. With ``holdout`` another tenth, otherwise
    trained on, is kept for validation: choose settings there, never on test. Where the data have
    labels, each class is split so; a class with a single datum is trained on. Official parts, such
    as a published test set, come from :meth:`split` instead of :meth:`load`::

        def split(self, holdout):
            train, test = …  # tensors or NumPy arrays
            end = len(train) - 5000 if holdout else len(train)
            return train[:end], train[end:], test

    What is known of the data beside themselves, such as labels, is named in ``contexts`` and comes
    from :meth:`load_context` (or :meth:`split_context`), in their order.

    Args:
        holdout: keep a validation part out of the training data.

    Attributes:
        train, validation, test: the data as stored, (n, *event_shape); compact (uint8) for images.
            ``validation`` is empty without ``holdout``.
        rows: which of the data are in which part, by their numbers in the order of :meth:`load`;
            None where the parts are official.
        context: how a network is told what is known of them, after :meth:`condition_on`; None
            before.

    Raises:
        TypeError: an attribute is missing, or data are no tensor and no NumPy array.
        ValueError: data of another shape or kind than the class says, or none.
    """

    name: str
    event_shape: tuple[int, ...]
    """Of a datum; where a class does not say, what its training data have."""

    scores: tuple[str, ...] = tuple(name for name in SCORES if name not in ("discrete", "mixed"))
    """The parameterizations that can be asked for; the first is the default.

    For a diffusion without a closed form the default is ``residual``, and ``score`` is the other
    one that can be used.
    """

    max_log_snr: float
    """λ at ε, where the decoder takes over. Pass it to the diffusion."""

    contexts: ClassVar[tuple[str, ...]] = ()
    """What its data may be given, by name: whole numbers are labels, others vectors."""

    maps: bool = False
    """Whether denoisers are told maps of log SNR, also where a diffusion has one for all."""

    default_maps: ClassVar[str | None] = None
    """At which maps denoisers are trained where nothing is asked for, as ``--maps`` says."""

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    times: ClassVar[Times] = "adaptive"
    """Law of the times of training, of scores of linear diffusions, see
    :attr:`~pyro_mdm.scores.base.Score.times`."""

    split_seed: int | None = 0
    """Of the order in which data without official parts are split; None: every 10th datum is test
    as they lie, those of index 0, 10, 20, …, and 8, 18, 28, … are validation. :meth:`split_by`
    gives another."""

    strata: ClassVar[str] = "classes"
    """What data are split evenly over where they have several, in words."""

    _rough = False

    @classmethod
    def split_by(cls: type[P], split_seed: int | None, **options: Any) -> P:
        """The data set split by another seed than the class's.

        Args:
            split_seed: see :attr:`split_seed`.
            options: what the class is made with, such as ``holdout``.
        """
        found = cls.__new__(cls)
        found.split_seed = split_seed
        cls.__init__(found, **options)
        return found

    def __init__(self, *, holdout: bool = False) -> None:
        for attribute, example in (("name", "'mine'"), ("max_log_snr", "9.0")):
            if not hasattr(self, attribute):
                raise TypeError(
                    f"{type(self).__name__} has no {attribute}; give the class one, such as "
                    f"{attribute} = {example}"
                )
        self.holdout = holdout
        self.rows: Rows | None = None
        self.context: GivenContext | None = None
        self._contexts: dict[str, Tensor] = {}
        found = self.split(holdout)
        if not isinstance(found, tuple | list) or len(found) != 3:
            count = f" of {len(found)}" if isinstance(found, tuple | list) else ""
            raise TypeError(
                f"{self.name}: split returned a {type(found).__name__}{count}, expected three: "
                "training, validation (empty without holdout) and test data"
            )
        names = ("training", "validation", "test")
        self.train, self.validation, self.test = (
            as_tensor(part, f"{self.name}: the {name} data")
            for name, part in zip(names, found, strict=True)
        )
        if not hasattr(self, "event_shape"):
            self.event_shape = tuple(self.train.shape[1:])
        for name, part in zip(names, (self.train, self.validation, self.test), strict=True):
            if len(part) == 0 and name != "validation":
                raise ValueError(f"{self.name}: there are no {name} data")
            self.check(part, f"{self.name}: the {name} data")

    def check(self, data: Tensor, what: str) -> None:
        """Whether a part of the data is what the class says they are.

        Args:
            what: it is called in messages.

        Raises:
            ValueError: it is not.
        """
        check_shape(data, self.event_shape, what)
        check_numbers(data, what)

    def load(self) -> Tensor:
        """All data, (n, *event_shape), in a fixed order."""
        raise NotImplementedError(
            f"{type(self).__name__} defines neither load, all data in a fixed order, nor split; "
            "see models/digits.py"
        )

    def split(self, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Train, validation (empty without ``holdout``) and test, by :attr:`split_seed` unless
        overridden."""
        data = as_tensor(self.load(), f"{self.name}: the data")
        labels = None if self.split_seed is None else self._labels(len(data))
        rows = self.divide(len(data), holdout, labels, [] if labels is None else [labels])
        return data[rows.train], data[rows.validation], data[rows.test]

    def divide(
        self,
        n: int,
        holdout: bool,
        strata: Tensor | None = None,
        categories: Sequence[Tensor] = (),
    ) -> Rows:
        """Which of n data are in which part, by :attr:`split_seed`; kept as ``rows``.

        Arguments are those of :func:`~models.splits.split_rows`.
        """
        self.rows = split_rows(n, holdout, self.split_seed, strata, categories)
        return self.rows

    def _labels(self, n: int) -> Tensor | None:
        """The classes of all n data, if they have any: labels of which there are two of each, on
        average. What is no tensor of numbers is an error where data are to be given it."""
        if type(self).load_context is Problem.load_context:
            return None  # contexts are split by split_context alone
        for name in self.contexts:
            try:
                found = as_tensor(self.load_context(name), f"{self.name}: the {name}")
            except TypeError:
                continue
            whole = not (found.is_floating_point() or found.is_complex())
            if whole and found.shape == (n,) and 2 * len(found.unique()) <= n:
                return found.long()
        return None

    def numbers(self, part: str) -> Tensor:
        """The numbers of the data of ``train``, ``validation`` or ``test`` in the order of
        :meth:`load`, (n,) int64; 0, 1, 2, … of an official part.

        Raises:
            ValueError: :attr:`rows` are of another number of data than there are.
        """
        n = len(getattr(self, part))
        own: Tensor | None = None if self.rows is None else getattr(self.rows, part)
        if own is None or len(own) == 0:
            return torch.arange(n)
        if len(own) != n:
            raise ValueError(
                f"{self.name}: rows says that {len(own)} data are {part}, and there are {n}, so "
                "that which they are is not known; set rows to those that split returns"
            )
        return own

    @property
    def split_in_words(self) -> str:
        """How many data there are in each part, and how they were split, for people."""
        parts = [(len(self.train), "training"), (len(self.validation), "validation")]
        parts = [(n, part) for n, part in [*parts, (len(self.test), "test")] if n]
        counts = ", ".join(f"{n:,} {part}" for n, part in parts) + " data"
        if (rows := self.rows) is None:
            return f"{counts}, in official parts"
        if rows.seed is None:
            how = f"every {EVERY}th is test"
        else:
            evenly = f", evenly over {self.strata}" if rows.stratified else ""
            how = f"split at random by --split_seed {rows.seed}{evenly}"
        if rows.rare:
            one = rows.rare == 1
            how += f"; {rows.rare} {'datum is' if one else 'data are'} of categories too rare to "
            how += f"be split, and {'is' if one else 'are'} trained on"
        labels = self._labels(sum(n for n, _ in parts))
        if labels is not None and int(labels.min()) >= 0 and len(labels.unique()) <= SHOWN_CLASSES:
            number = labels[rows.test].bincount(minlength=int(labels.max()) + 1).tolist()
            how += f"; test data of classes 0, 1, …: {', '.join(map(str, number))}"
        return f"{counts}; {how}"

    # -- what is known of the data -----------------------------------------------------------------

    def load_context(self, name: str) -> Any:
        """What is known of all data, in the order of :meth:`load`: labels 0, 1, … (n,) as whole
        numbers, or vectors (n, m). Where it is not known, -1 or NaN, with a dropout above 0.

        Args:
            name: one of ``contexts``.
        """
        raise NotImplementedError(
            f"{type(self).__name__} names {name} in contexts and defines neither load_context nor "
            "split_context; see models/digits.py"
        )

    def split_context(self, name: str, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The same for train, validation and test, split as the data are unless overridden."""
        found = as_tensor(self.load_context(name), f"{self.name}: the {name}")
        # by index, if a split of one's own says nothing of its rows
        rows = split_rows(len(found), holdout, None) if self.rows is None else self.rows
        n = sum(map(len, rows[:3]))
        if len(found) != n:
            raise ValueError(
                f"{self.name}: {len(found)} {name} of {n} data, expected one for each, in the "
                "order of load"
            )
        return found[rows.train], found[rows.validation], found[rows.test]

    def condition_on(self, name: str, dropout: float = 0.0) -> None:
        """From now on programs are of the data given this context.

        Args:
            name: one of ``contexts``.
            dropout: see :class:`~pyro_mdm.contexts.GivenContext`.

        Raises:
            ValueError: another name; contexts of another number than the data; labels of test data
                that no training data have.
        """
        if name not in self.contexts:
            known = ", ".join(self.contexts) or "nothing"
            raise ValueError(
                f"--condition is {name!r}, and what is known of {self.name} is {known}; leave it "
                "out, or name it in contexts of a class of your own"
            )
        own = type(self).split_context is not Problem.split_context
        if own and self.rows is not None and self.split_seed is not None:
            raise TypeError(
                f"{type(self).__name__} has a split_context of its own, but its data are split by "
                "split_seed; return all contexts from load_context in the order of load, or define "
                "split too"
            )
        parts = ("train", "validation", "test")
        found = dict(zip(parts, self.split_context(name, self.holdout), strict=True))
        for part, context in found.items():
            if len(context) != len(getattr(self, part)):
                raise ValueError(
                    f"{self.name}: {len(context)} {name} of {len(getattr(self, part))} {part} "
                    "data, expected one for each, in their order"
                )
        train = found["train"]
        if train.is_floating_point():
            vectors = {
                part: c.float().reshape(len(c), *c.shape[1:] or (1,)) for part, c in found.items()
            }
            self.context, self._contexts = Vectors.fit(vectors["train"], dropout), vectors
            return
        classes = int(train.max()) + 1
        given = set(train.unique().tolist()) - ({-1} if dropout else set())  # -1 is not given
        missing = set(range(classes)) - given
        unseen = [c for c in torch.cat(list(found.values())).unique().tolist() if c >= classes]
        if missing or unseen or min(given, default=-1) < 0:
            raise ValueError(
                f"{self.name}: training data have the {name} {train.unique().tolist()}, expected "
                f"all of 0, 1, 2, …{f', and {unseen[0]} is among other data' if unseen else ''}; "
                "number the classes of the training data from 0"
            )
        self.context = Labels(classes, dropout)
        self._contexts = {part: c.long() for part, c in found.items()}

    def part(self, name: str) -> Part:
        """``train``, ``validation`` or ``test``, with what is known of the data."""
        return Part(getattr(self, name), self._contexts.get(name))

    def contexts_in_turn(self, n: int) -> Tensor | None:
        """Contexts of n data to look at: each class in turn, or those of test data; None if data
        are given nothing."""
        if self.context is None:
            return None
        if isinstance(self.context, Labels):
            return torch.arange(n) % self.context.num_classes
        known = self._contexts["test"]
        return known[torch.arange(n) % len(known)]

    @abstractmethod
    def network(self, inputs: int, outputs: int) -> nn.Module:
        """A new network from ``inputs`` to ``outputs`` channels (features, for vectors)."""

    def transform(self, data: Tensor, generator: torch.Generator | None = None) -> Dequantized:
        """A batch of stored data as x, float32, with log|det ∂x/∂w| in nats, (n,).

        The log-determinant, w being the data on their own scale, is what ``bits_per_dim`` needs: 0
        where x are the data themselves, or levels that stand for them one to one.
        """
        return Dequantized(data.to(torch.float32), torch.zeros(len(data), device=data.device))

    def to_model_space(self, data: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A batch of stored data as the x that the model generates."""
        return self.transform(data, generator).x

    @property
    def dequantized_levels(self) -> int | None:
        """The number of levels if noise made them continuous, for ``bits_per_dim``; else None."""
        return None

    def to_images(self, x: Tensor) -> Tensor | None:
        """Model-space x as uint8 images (n, C, H, W) to look at; None where x are no images."""
        return None

    def score_name(self, score: str, diffusion: Diffusion) -> str:
        """What ``score`` is for ``diffusion``: "default" is the first, or ``residual``."""
        if score != "default":
            return score
        return self.scores[0] if diffusion.closed_form else "residual"

    def build(
        self,
        diffusion: Diffusion,
        *,
        score: str | ScoreKind = "default",
        likelihood: Likelihood | None = None,
        fitted: bool = True,
    ) -> DiffusionModel:
        """The generative program over ``diffusion`` with a new network, fitted baseline included.

        Args:
            diffusion: made with this problem's ``max_log_snr``.
            score: one of ``scores``, "default" (the first where the diffusion has a closed form,
                else ``residual``), or your own, see :meth:`score_function`.
            likelihood: p(x | y_ε); by default that of :meth:`likelihood`.
            fitted: False where a checkpoint brings what is fitted, which must be buffers of the
                score or the likelihood: then it is of a few data alone.

        Raises:
            TypeError: a function that returns no score.
            ValueError: a score that these data do not have, or that is made of closed forms which
                the diffusion does not have.
            SimulationError: a path exploded, of those that ``residual`` is fitted to.
        """
        kind = self._kind(score, diffusion)
        self._rough = not fitted
        try:
            function = self.score_function(kind, diffusion)
        finally:
            self._rough = False
        name = score if isinstance(score, str) else getattr(score, "__name__", str(score))
        if not isinstance(function, Score):
            raise TypeError(f"{name} returns {describe(function)}, expected a Score")
        if not (function.serves_nonlinear or diffusion.closed_form):
            raise ValueError(
                f"score is {name!r}, which is made of the closed-form law of y_s given x, and "
                f"{type(diffusion).__name__} has none; use residual (its default) or score, or "
                "say serves_nonlinear = True in a class of yours that needs no closed form"
            )
        if likelihood is None:
            likelihood = self.likelihood(function, diffusion)
        shape, context = self.event_shape, self.context
        return DiffusionModel(diffusion, function, likelihood, shape, context=context)

    def _kind(self, score: str | ScoreKind, diffusion: Diffusion) -> ScoreKind:
        if not isinstance(score, str):
            levels = "discrete" in self.scores
            if inspect.isclass(score) and issubclass(score, DiscreteDenoiser) and not levels:
                raise ValueError(
                    f"{score.__name__} is for images whose levels are not made continuous, and "
                    f"{self.name} has none; use a score of continuous data"
                )
            return score
        name = self.score_name(score, diffusion)
        if name not in self.scores:
            default = self.score_name("default", diffusion)
            raise ValueError(
                f"score is {score!r}, expected 'default' ({default}) or one of "
                f"{', '.join(self.scores)} for {self.name}"
            )
        return SCORES[name]

    def fit_x(self) -> Tensor:
        """The x that baselines are fitted to: all of the training part, or as much as is enough.

        That is :data:`FIT_SIZE` data, or fewer if they have more than :data:`FIT_VALUES` numbers,
        spread evenly, so that large data are never float32 all at once.
        """
        size = math.prod(self.event_shape)
        most = ROUGH_SIZE if self._rough else FIT_SIZE
        count = min(most, max(1, FIT_VALUES // size))
        data = self.train
        if len(data) > count:
            data = data[spread(len(data), count)]
        parts = data.split(max(1, FIT_CHUNK // size))
        if len(parts) == 1:
            return self.to_model_space(data)
        x = torch.empty(len(data), *self.event_shape)
        for target, part in zip(x.split(len(parts[0])), parts, strict=True):
            target.copy_(self.to_model_space(part))
        return x

    def score_function(self, kind: ScoreKind, diffusion: Diffusion) -> Score:
        """A new score, its network and what is fitted included.

        Args:
            kind: a class, made by its ``fit`` if it is a denoiser or a
                :class:`~pyro_mdm.ResidualScore`, else of the network alone; or a function of this
                problem and the diffusion. A denoiser's network has the channels of the data,
                others see all K variables as channels.
        """
        if not inspect.isclass(kind):
            try:
                inspect.signature(kind).bind(self, diffusion)
            except TypeError as error:
                raise TypeError(
                    f"{getattr(kind, '__name__', kind)} is called with (problem, diffusion), and "
                    f"{error}; a function that makes a score takes these two"
                ) from error
            return kind(self, diffusion)
        channels, score = self.event_shape[0], cast(Any, kind)
        if issubclass(kind, DenoiserScore):
            network = self._denoiser_network(diffusion, 1)
            told = channels if self._told(diffusion) else 0
            network = _of_coordinates(network, diffusion, told + self._told_as_channels(network))
            x = diffusion.coordinates(self.fit_x())
            return _wrapped(score.fit(network, x, **self._told(diffusion)), diffusion)
        channels *= diffusion.num_variables
        network = self._network(channels, channels, diffusion)
        network = _of_coordinates(network, diffusion, self._told_as_channels(network))
        if issubclass(kind, ResidualScore):
            options = {"num_levels": FIT_LEVELS, "num_paths": self._num_paths(diffusion)}
            return score.fit(network, diffusion, diffusion.coordinates(self.fit_x()), **options)
        try:
            inspect.signature(kind).bind(network)
        except TypeError as error:
            raise TypeError(
                f"{kind.__name__} cannot be made of a network alone ({error}); give its other "
                "arguments defaults, or name a function of (problem, diffusion) that returns one"
            ) from error
        return score(network)

    def _denoiser_network(self, diffusion: Diffusion, outputs: int) -> nn.Module:
        """A new network of a denoiser, with the channels that the diffusion asks for more.

        Args:
            outputs: numbers that it gives for each dimension of the data.
        """
        inputs, around = 2 if self._told(diffusion) else 1, wrapping(diffusion)
        if around is not None:
            inputs += around.more_inputs(diffusion)
            outputs += around.more_outputs(diffusion)
        C = self.event_shape[0]
        return self._network(inputs * C, outputs * C, diffusion)

    def _network(self, inputs: int, outputs: int, diffusion: Diffusion) -> nn.Module:
        """A new network that is told contexts, if there are any: of its own accord, or as further
        channels."""
        latent = 0 if diffusion.context is None else diffusion.context.size
        network = self.network(inputs + latent, outputs)
        more = self._told_as_channels(network)
        return self.network(inputs + more, outputs) if more else network

    def _told_as_channels(self, network: nn.Module) -> int:
        """How many channels more a network needs for what its data are given."""
        by_itself = getattr(network, "context_size", 0)
        return 0 if by_itself or self.context is None else self.context.size

    def _told(self, diffusion: Diffusion) -> dict[str, Any]:
        """What ``fit`` is told of maps, where log SNRs differ between dimensions."""
        return {"maps": True} if diffusion.maps or self.maps else {}

    def _num_paths(self, diffusion: Diffusion) -> int:
        """To each noise level: enough for a covariance of K variables, few enough for memory."""
        if self._rough:
            return 8 * diffusion.num_variables
        numbers = FIT_LEVELS * diffusion.num_variables * math.prod(self.event_shape)
        return min(FIT_PATHS, max(64, FIT_STATES // numbers))

    def likelihood(self, score: Score, diffusion: Diffusion) -> Likelihood | None:
        """p(x | y_ε) for a score; None for the score's own."""
        return None


def _wrapped(denoiser: DenoiserScore, diffusion: Diffusion) -> Score:
    """A denoiser in what the diffusion needs around it, if anything."""
    around = wrapping(diffusion)
    return denoiser if around is None else around(denoiser)


def _of_coordinates(network: nn.Module, diffusion: Diffusion, told: int = 0) -> nn.Module:
    """A network of data, also where the diffusion's states hold coordinates of them."""
    if diffusion.transform is None:
        return network
    return CoordinateNetwork(network, diffusion.transform, told)


class ImageProblem(Problem):
    """Images of few or 256 grey levels or colours, stored as uint8 codes k = 0 … num_levels - 1.

    Two protocols:

    - ``discrete``: x = linspace(-1, 1, num_levels)[k], a likelihood over the levels, no noise
      added; bits per dimension are -(log p)/(d ln 2).
    - ``dequantized``, the paper's: x = logit((k + u)/num_levels), u uniform and drawn anew at each
      use (:class:`pyro_mdm.likelihoods.LogitDequantization`), with a Tweedie decoder (the
      Gaussian one for a diffusion without a closed form, which has no denoiser); bits per dimension
      need ``transform``'s log-determinant and ``dequantized_levels``.

    A subclass needs no more than a ``name`` and :meth:`load` (or :meth:`split`, for official
    parts), which gives uint8 (n, C, H, W) with C = 1 or 3. It may name other U-Nets in ``networks``
    or define :meth:`network` itself.

    Args:
        protocol: ``"discrete"`` or ``"dequantized"``.
        holdout: see :class:`Problem`.
        network: a name in ``networks``; None: the first.
        logit_margin: α of the dequantized protocol, in [0, ½); None: that of
            :class:`~pyro_mdm.likelihoods.LogitDequantization`. The paper's is 0.05.
        decoder: of the dequantized protocol: ``"tweedie"`` (None too), or ``"joint_tweedie"``, the
            paper's :class:`~pyro_mdm.likelihoods.JointTweedie`.

    Raises:
        ValueError: an unknown protocol, network or decoder; a margin out of range; a margin or
            decoder without the protocol; images that are no codes of the levels, or whose size does
            not suit the network.
    """

    max_log_snr: float = 13.0
    num_levels: int = 256
    form: Form = "tilt"
    """What a discrete denoiser's network gives a pixel, see :class:`~pyro_mdm.DiscreteDenoiser`."""

    networks: ClassVar[dict[str, dict[str, Any]]] = {"small": SMALL}
    """Options of :class:`UNet` by name; the first is the default. ``form`` may be among them, in
    place of the class's."""

    recipe: ClassVar[str | None] = None
    """The one of ``networks`` that ``inference.train`` takes if none is asked for; None: the first.
    """

    optimizer: ClassVar[Literal["adam", "muon"]] = "adam"
    """What ``inference.train`` optimizes the network of ``recipe`` by if nothing else is asked for,
    in subclasses too; all others are by Adam."""

    learning_rates: ClassVar[dict[str, float]] = {"paper": 2e-4, "published": 2e-4}
    """Default learning rates of networks for which ``learning_rate`` is too high."""

    def __init__(
        self,
        *,
        protocol: Literal["discrete", "dequantized"] = "discrete",
        holdout: bool = False,
        network: str | None = None,
        logit_margin: float | None = None,
        decoder: Literal["tweedie", "joint_tweedie"] | None = None,
    ) -> None:
        if protocol not in ("discrete", "dequantized"):
            raise ValueError(f"protocol is {protocol!r}, expected 'discrete' or 'dequantized'")
        for option, value in (("logit_margin", logit_margin), ("decoder", decoder)):
            if protocol == "discrete" and value is not None:
                raise ValueError(
                    f"--{option} is {value}, which is for dequantized images; give --protocol "
                    "dequantized too, or leave it out"
                )
        if logit_margin is not None and not 0 <= logit_margin < 0.5:
            raise ValueError(
                f"--logit_margin is {logit_margin}, expected a number in [0, 0.5), such as the "
                "paper's 0.05"
            )
        if decoder not in (None, "tweedie", "joint_tweedie"):
            raise ValueError(f"--decoder is {decoder!r}, expected 'tweedie' or 'joint_tweedie'")
        self.decoder = decoder
        self.network_name = self._choose(network)
        if self.network_name in self.learning_rates:
            self.learning_rate = self.learning_rates[self.network_name]
        super().__init__(holdout=holdout)
        self._check_size()
        if self.network_name is not None:
            self.form = self.networks[self.network_name].get("form", self.form)
        self.levels = torch.linspace(-1.0, 1.0, self.num_levels, dtype=torch.float64)
        self.dequantization: LogitDequantization | None = None
        if protocol == "discrete":
            self.scores = ("discrete", *self.scores)
        else:
            margin = {} if logit_margin is None else {"margin": logit_margin}
            self.dequantization = LogitDequantization(self.num_levels, **margin)
            self.max_log_snr = 9.0  # of VPSDE at the paper's ε = 1e-3

    def check(self, data: Tensor, what: str) -> None:
        check_images(data, self.num_levels, what)
        super().check(data, what)

    def _check_size(self) -> None:
        if self.network_name is None:
            return
        options = self.networks[self.network_name]
        patch, levels = options.get("patch", 1), len(options.get("multipliers", (1, 2)))
        height, width = self.event_shape[1:]
        smallest = patch * 2 ** (levels - 1)
        if height % patch or width % patch or min(height, width) < smallest:
            fitting = max(smallest, min(height, width) // patch * patch)
            others = [name for name in self.networks if name != self.network_name]
            raise ValueError(
                f"images of {height}×{width} pixels do not suit --network {self.network_name}, "
                f"which needs sides of at least {smallest} that are multiples of {patch}; "
                f"{self.resize_advice(fitting)}, or use "
                f"{' or '.join(others) or 'another U-Net, named in networks'}"
            )

    def resize_advice(self, size: int) -> str:
        """How images get ``size`` pixels a side, in a message."""
        return f"crop, pad or scale them to {size}×{size}"

    def _choose(self, network: str | None) -> str | None:
        """The name of the network; None where a subclass makes its own."""
        if type(self).network is not ImageProblem.network or not self.networks:
            if network is not None:
                raise ValueError(
                    f"--network is {network!r}, but {self.name} has one network, its own"
                )
            return None
        if network is not None and network not in self.networks:
            raise ValueError(
                f"--network is {network!r}, expected one of {', '.join(self.networks)} for "
                f"{self.name}"
            )
        return next(iter(self.networks)) if network is None else network

    def network(self, inputs: int, outputs: int) -> nn.Module:
        """A new U-Net, the one of ``networks`` that was asked for."""
        if self.network_name is None:
            raise NotImplementedError(
                f"{type(self).__name__} names no U-Net in networks and has no method network; "
                "see models/digits.py"
            )
        options = dict(self.networks[self.network_name])
        options.pop("form", None)
        return UNet(inputs, outputs, **options)

    @property
    def dequantized_levels(self) -> int | None:
        return None if self.dequantization is None else self.num_levels

    def transform(self, data: Tensor, generator: torch.Generator | None = None) -> Dequantized:
        if self.dequantization is not None:
            return self.dequantization(data, generator=generator)
        levels = self.levels.to(data.device, torch.float32)
        return super().transform(levels[data.to(torch.int64)])

    def to_images(self, x: Tensor) -> Tensor:
        if self.dequantization is not None:
            codes = self.dequantization.levels(x)
        else:
            codes = (x.clamp(-1.0, 1.0) + 1.0) / 2.0 * (self.num_levels - 1)
        return (codes * (255.0 / (self.num_levels - 1))).round().to(torch.uint8)

    def score_function(self, kind: ScoreKind, diffusion: Diffusion) -> Score:
        discrete: Any = kind
        if not (inspect.isclass(discrete) and issubclass(discrete, DiscreteDenoiser)):
            return super().score_function(kind, diffusion)
        if diffusion.transform is not None:
            raise ValueError(
                f"score is {discrete.__name__}, whose levels are of pixels, and "
                f"{type(diffusion).__name__} noises {diffusion.transform}; use --score denoiser"
            )
        outputs = outputs_of(self.form, self.num_levels)
        network, options = self._denoiser_network(diffusion, outputs), self._told(diffusion)
        denoiser = discrete.fit(network, self.fit_x(), self.num_levels, form=self.form, **options)
        return _wrapped(denoiser, diffusion)

    def likelihood(self, score: Score, diffusion: Diffusion) -> Likelihood | None:
        if self.dequantization is None:
            own = isinstance(getattr(score, "denoiser", score), DiscreteDenoiser)
            return None if own else DiscretizedGaussian(self.num_levels)
        if diffusion.closed_form:
            return JointTweedie() if self.decoder == "joint_tweedie" else Tweedie()
        if self.decoder is not None:
            raise ValueError(
                f"--decoder is {self.decoder}, which needs the law of y_ε given x and v_0, "
                f"and {type(diffusion).__name__} has none in closed form; leave it out"
            )
        return Gaussian()


class FileImages(ImageProblem):
    """Images read from files below a folder, with official training and test parts.

    Test is the official test set, whatever ``holdout``. With ``holdout`` the last ``held_out`` of
    the official training set are kept for validation.

    Args:
        data: the folder; None: ``data`` in the working directory.
        protocol, holdout, network, logit_margin, decoder: see :class:`ImageProblem`.

    Raises:
        DataError: a file is missing or damaged; says what to run.
    """

    held_out: int = 5_000

    def __init__(
        self,
        *,
        data: Path | str | None = None,
        protocol: Literal["discrete", "dequantized"] = "discrete",
        holdout: bool = False,
        network: str | None = None,
        logit_margin: float | None = None,
        decoder: Literal["tweedie", "joint_tweedie"] | None = None,
    ) -> None:
        self.root = Path("data" if data is None else data).expanduser()
        super().__init__(
            protocol=protocol,
            holdout=holdout,
            network=network,
            logit_margin=logit_margin,
            decoder=decoder,
        )

    @abstractmethod
    def parts(self) -> tuple[Tensor, Tensor]:
        """The official training and test sets, uint8 (n, C, H, W)."""

    def labels(self) -> tuple[Tensor, Tensor]:
        """Their labels 0, 1, …, (n,), where ``contexts`` names them."""
        raise NotImplementedError(f"{type(self).__name__} has no labels")

    def split(self, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        return self._held_out(self.parts(), holdout)

    def split_context(self, name: str, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        return self._held_out(self.labels(), holdout)

    def _held_out(
        self, parts: tuple[Tensor, Tensor], holdout: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        train, test = parts
        end = len(train) - (self.held_out if holdout else 0)
        return train[:end], train[end:], test
