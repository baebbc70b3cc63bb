"""What the data sets share: how they are split, stored, and turned into a generative program.

``Problem`` is what a program needs to know of a data set; ``ImageProblem`` adds what images with
discrete levels have in common. Your own data set is a subclass with a network: see digits.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from pyro_mdm import (
    Denoiser,
    DiffusionModel,
    DiscreteDenoiser,
    LinearDiffusion,
    NoisePrediction,
    RawScore,
)
from pyro_mdm.likelihoods import (
    Dequantized,
    DiscretizedGaussian,
    Gaussian,
    Likelihood,
    LogitDequantization,
    Tweedie,
)
from pyro_mdm.scores import Score

__all__ = ["ImageProblem", "Problem"]


class Problem(ABC):
    """A data set and the generative program for it.

    Subclasses set the class attributes and define :meth:`load`, :meth:`network` and, where data are
    not stored in model space, :meth:`transform`.

    Every 10th datum, those of index 0, 10, 20, …, is test. With ``holdout`` those of index 8, 18,
    28, …, otherwise trained on, are kept for validation: choose settings there, never on test.

    Args:
        holdout: keep a validation part out of the training data.

    Attributes:
        train, validation, test: the data as stored, (n, *event_shape); compact (uint8) for images.
            ``validation`` is empty without ``holdout``.
    """

    name: str
    event_shape: tuple[int, ...]
    scores: tuple[str, ...] = ("denoiser", "noise", "score")
    """The parameterizations that can be asked for; the first is the default."""

    max_log_snr: float
    """λ at ε, where the decoder takes over. Pass it to the diffusion."""

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3

    def __init__(self, *, holdout: bool = False) -> None:
        data = self.load()
        index = torch.arange(len(data))
        test, validation = index % 10 == 0, (index % 10 == 8) & holdout
        self.train = data[~(test | validation)]
        self.validation = data[validation]
        self.test = data[test]

    @abstractmethod
    def load(self) -> Tensor:
        """All data, (n, *event_shape), in a fixed order."""

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

    def build(self, diffusion: LinearDiffusion, *, score: str = "default") -> DiffusionModel:
        """The generative program over ``diffusion`` with a new network, fitted baseline included.

        Args:
            diffusion: made with this problem's ``max_log_snr``.
            score: one of ``scores``, or "default" for the first.

        Raises:
            ValueError: a score that these data do not have.
        """
        name = self.scores[0] if score == "default" else score
        if name not in self.scores:
            raise ValueError(
                f"score is {score!r}, expected 'default' ({self.scores[0]}) or one of "
                f"{', '.join(self.scores)} for {self.name}"
            )
        function = self.score_function(name, diffusion.num_variables)
        return DiffusionModel(diffusion, function, self.likelihood(name), self.event_shape)

    def score_function(self, name: str, num_variables: int) -> Score:
        """The score called ``name``; ``noise`` and ``score`` see all variables as channels."""
        channels = self.event_shape[0]
        if name == "denoiser":
            network = self.network(channels, channels)
            return Denoiser.fit(network, self.to_model_space(self.train))
        network = self.network(num_variables * channels, num_variables * channels)
        return NoisePrediction(network) if name == "noise" else RawScore(network)

    def likelihood(self, name: str) -> Likelihood | None:
        """p(x | y_ε) for the score called ``name``; None for the score's own."""
        return None if name == "denoiser" else Gaussian()


class ImageProblem(Problem):
    """Images of few or 256 grey levels or colours, stored as uint8 codes k = 0 … num_levels - 1.

    Two protocols:

    - ``discrete``: x = linspace(-1, 1, num_levels)[k], a likelihood over the levels, no noise
      added; bits per dimension are -(log p)/(d ln 2).
    - ``dequantized``, the paper's: x = logit((k + u)/num_levels), u uniform and drawn anew at each
      use (:class:`pyro_mdm.likelihoods.LogitDequantization`), with the Tweedie decoder; bits per
      dimension need ``transform``'s log-determinant and ``dequantized_levels``.

    Args:
        protocol: ``"discrete"`` or ``"dequantized"``.
        holdout: see :class:`Problem`.
    """

    num_levels: int = 256
    form: Literal["tilt", "logits"] = "tilt"
    """What a discrete denoiser's network gives a pixel: two tilts, or a logit for each level."""

    def __init__(
        self,
        *,
        protocol: Literal["discrete", "dequantized"] = "discrete",
        holdout: bool = False,
    ) -> None:
        if protocol not in ("discrete", "dequantized"):
            raise ValueError(f"protocol is {protocol!r}, expected 'discrete' or 'dequantized'")
        super().__init__(holdout=holdout)
        self.levels = torch.linspace(-1.0, 1.0, self.num_levels, dtype=torch.float64)
        self.dequantization: LogitDequantization | None = None
        if protocol == "discrete":
            self.scores = ("discrete", *self.scores)
        else:
            self.dequantization = LogitDequantization(self.num_levels)
            self.max_log_snr = 9.0  # of VPSDE at the paper's ε = 1e-3

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

    def score_function(self, name: str, num_variables: int) -> Score:
        if name != "discrete":
            return super().score_function(name, num_variables)
        channels = self.event_shape[0]
        outputs = channels * (2 if self.form == "tilt" else self.num_levels)
        return DiscreteDenoiser.fit(
            self.network(channels, outputs),
            self.to_model_space(self.train),
            self.num_levels,
            form=self.form,
        )

    def likelihood(self, name: str) -> Likelihood | None:
        if self.dequantization is not None:
            return Tweedie()
        return None if name == "discrete" else DiscretizedGaussian(self.num_levels)
