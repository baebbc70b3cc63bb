r"""Models of images larger than those a network was trained on, by overlapping windows.

There is one state, of the whole image. At each noise level the denoiser of the trained size is
called for every window, and a pixel's x̂ is the average over the windows that it is in,

    x̂_j(z, λ) = Σ_w b_wj x̂_j(z_w, λ) / Σ_w b_wj

whose weights b fade to the edges of a window. So nothing is put together in the end, and there is
no seam. It is right where data are alike in all places, and the noised pixels beyond half a window
say little of a pixel: textures, and details of photographs. Windows do not see the content of a
whole image.

Source: Bar-Tal, Yariv, Lipman & Dekel, "MultiDiffusion: Fusing Diffusion Paths for Controlled Image
Generation", ICML 2023, equation 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_mdm.conditioning.derived import DerivedDenoiser
from pyro_mdm.diffusions.base import Cap, Diffusion, require
from pyro_mdm.likelihoods.base import (
    DecoderDistribution,
    Likelihood,
    StateScore,
    log_prob_by_dimension,
)
from pyro_mdm.model import DiffusionModel
from pyro_mdm.scores.base import Number, Score
from pyro_mdm.scores.denoiser import DenoiserScore, denoiser_of
from pyro_mdm.support.checks import checked_arguments, tensor_device
from pyro_mdm.support.modules import ExactBuffers
from pyro_mdm.support.settings import Recorded

__all__ = [
    "WindowedDecoder",
    "WindowedDenoiser",
    "WindowedLikelihood",
    "Windows",
    "share_of_place",
    "unwindowed",
    "windowed",
]

W = TypeVar("W", bound="WindowedDenoiser")
MOST = 0.1
"""The largest share of the variance of pixels that may be due to their place."""


@checked_arguments
def windowed(model: DiffusionModel, size: Sequence[int]) -> DiffusionModel:
    """The model of images of another size, by overlapping windows of the size it was trained on.

    Windows overlap by half or more. Every sampler serves it, and so does
    :func:`~pyro_mdm.measurements.condition_on_measurements`. A step takes a network call for each
    window. Parameters, network and diffusion are shared with ``model``. Contexts are those of the
    whole image. It has no baseline, so that bounds are taken without a control variate.

    For stationary Gaussian textures whose correlation falls by a factor of e in a fifth of a window
    or less, with their exact denoiser, variances of pixels are right to 2%, and so are those of
    differences of neighbours, across a window's edges as elsewhere
    (tests/measurements/test_windows.py).

    Args:
        model: model of images (C, H, W), whose score is a :class:`~pyro_mdm.scores.DenoiserScore`.
        size: height and width of the larger images, in pixels, at least those of the model.

    Returns:
        The model of larger images, a :class:`DiffusionModel`.

    Raises:
        TypeError: a model whose score is no denoiser of images, or is conditioned already; a
            diffusion whose dimensions have clocks of their own, or that is not linear.
        ValueError: a size below the model's; data of which more than a tenth of the variance of
            pixels is due to their place, such as digits, which are always in the middle.

    Example:
        >>> from pyro_mdm import VPSDE, Denoiser, DiffusionModel
        >>> from pyro_mdm.networks import UNet
        >>> network = UNet(1, base=8, multipliers=(1,))
        >>> model = DiffusionModel(VPSDE(), Denoiser.fit(network, torch.randn(100, 1, 8, 8)))
        >>> windowed(model, (8, 20))(batch_size=2).shape
        torch.Size([2, 1, 8, 20])
    """
    needed = (Cap.KERNELS, Cap.ONE_LEVEL, Cap.OWN_DRIFT, Cap.NO_CONTEXT, Cap.DATA_STATES)
    fix = "use a linear diffusion with one clock for all pixels, such as VPSDE() or CLD()"
    require(model.diffusion, *needed, who="a model by windows", fix=fix)
    denoiser = _checked_denoiser(model.score_function)
    if tuple(size) == model.event_shape[1:]:
        return model
    score = WindowedDenoiser(denoiser, size)
    return model.with_score(score, WindowedLikelihood(model.likelihood, score.windows))


def unwindowed(model: DiffusionModel) -> DiffusionModel:
    """The model of one window from a model of :func:`windowed`."""
    score, likelihood = model.score_function, model.likelihood
    assert isinstance(score, WindowedDenoiser) and isinstance(likelihood, WindowedLikelihood)
    return model.with_score(score.denoiser, likelihood.likelihood)


def share_of_place(denoiser: DenoiserScore) -> float:
    """The share of the variance of pixels that is due to their place, from 0 for textures to 1.

    It is Var(μ) / (Var(μ) + mean of σ²) of a denoiser's mean μ and variance σ² of each pixel of
    images (C, H, W), by channel.
    """
    shape = denoiser.event_shape or ()
    mean = denoiser.data_mean.detach().double().expand(shape).flatten(1)
    within = denoiser.data_variance.detach().double().expand(shape).mean()
    between = mean.var(1, correction=0).mean()
    return float(between / (between + within))


class Windows(Recorded, ExactBuffers):
    """Overlapping windows that cover a larger image, W in all.

    Args:
        window: height and width (h, w) of a window, in pixels.
        size: height and width (H, W) of the image, in pixels.
    """

    index: Tensor  # (W, h·w), the pixels of each window
    weights: Tensor  # (W, h·w), which sum to 1 over the windows that a pixel is in
    owner: Tensor  # (H·W,), where among (W, h·w) a pixel has its largest weight

    def __init__(self, window: Sequence[int], size: Sequence[int]) -> None:
        super().__init__()
        self.window, self.size = tuple(window), tuple(size)
        (h, w), (H, W) = self.window, self.size
        down, across = _Axis.spaced(h, H), _Axis.spaced(w, W)
        index = down.pixels[:, None, :, None] * W + across.pixels[None, :, None, :]
        weights = down.weights[:, None, :, None] * across.weights[None, :, None, :]
        number = down.owner[:, None] * len(across.pixels) + across.owner
        owner = (number * h + down.place[:, None]) * w + across.place
        of_windows = {"index": index, "weights": weights}
        for name, value in of_windows.items():
            self.register_buffer(name, value.reshape(-1, h * w), persistent=False)
        self.register_buffer("owner", owner.flatten(), persistent=False)

    def __len__(self) -> int:
        return len(self.index)

    def cut(self, x: Tensor) -> Tensor:
        """The windows of images (*batch, H, W), (W, *batch, h, w)."""
        return x.flatten(-2)[..., self.index].movedim(-2, 0).unflatten(-1, self.window)

    def blend(self, parts: Tensor) -> Tensor:
        """The weighted average, (*batch, H, W), of values in windows, (W, *batch, h, w)."""
        parts = parts.flatten(-2).movedim(0, -2) * self.weights.to(parts.dtype)
        whole = parts.new_zeros(*parts.shape[:-2], math.prod(self.size))
        return whole.index_add(-1, self.index.flatten(), parts.flatten(-2)).unflatten(-1, self.size)

    def choose(self, parts: Tensor) -> Tensor:
        """The value of each pixel in the window of its largest weight, (*batch, H, W)."""
        return (
            parts.flatten(-2).movedim(0, -2).flatten(-2)[..., self.owner].unflatten(-1, self.size)
        )


class _Axis(NamedTuple):
    """Windows of w pixels along an axis of N."""

    pixels: Tensor  # (windows, w)
    weights: Tensor  # (windows, w), which sum to 1 at each pixel
    owner: Tensor  # (N,), the window in which a pixel has the largest weight
    place: Tensor  # (N,), where it is in that window

    @classmethod
    def spaced(cls, window: int, size: int) -> _Axis:
        """Windows that begin evenly, from one end to the other, half a window apart at most."""
        number = math.ceil((size - window) / max(1, window // 2)) + 1
        starts = torch.linspace(0, size - window, number, dtype=torch.float64).round().long()
        index = starts[:, None] + torch.arange(window)
        place = (torch.arange(window, dtype=torch.float64) + 0.5) / window
        fading = torch.sin(math.pi * place) ** 4  # seams: sin⁴ < sin² < triangle < none
        placed = fading.new_zeros(number, size).scatter(1, index, fading.expand(number, -1))
        owner = placed.argmax(0)
        return cls(
            index,
            (placed / placed.sum(0)).gather(1, index),
            owner,
            torch.arange(size) - starts[owner],
        )


class WindowedDenoiser(DerivedDenoiser):
    """The denoiser of larger images by windows; see :func:`windowed`.

    Args:
        denoiser: denoiser of images (C, h, w).
        size: height and width (H, W) of the larger images, in pixels.

    Raises:
        TypeError: a score that is no denoiser of images.
        ValueError: a size or data that do not fit, see :func:`windowed`.
    """

    @checked_arguments
    def __init__(self, denoiser: DenoiserScore, size: Sequence[int]) -> None:
        super().__init__(_checked_denoiser(denoiser))
        channels, *window = denoiser.event_shape or ()
        if len(size) != 2 or any(n < m for n, m in zip(size, window, strict=True)):
            raise ValueError(
                f"size is {'×'.join(map(str, size))} pixels, expected a height and width of at "
                f"least {'×'.join(map(str, window))}, those of the images that the network was "
                "trained on; pad the image, with pixels that are not seen, or scale it"
            )
        if (share := share_of_place(denoiser)) > MOST:
            raise ValueError(
                f"{share:.0%} of the variance of pixels is due to their place in an image, "
                f"expected at most {MOST:.0%}: images that are not alike in all places, such as "
                f"digits, are no windows of larger ones; crop or scale to "
                f"{'×'.join(map(str, window))}, or train on patches of larger images"
            )
        self.windows = Windows(window, size)
        device = tensor_device(denoiser)
        if device is not None:
            self.windows.to(device)
        self.event_shape = (channels, *size)

    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        batch_dim, lam = self._values("z", z, log_snr)
        pieces = self.windows.cut(z)
        if lam.dim() == z.dim():
            lam = self.windows.cut(lam.expand(z.shape))
        elif lam.dim():
            lam = lam.expand(pieces.shape[: batch_dim + 1])
        return self.windows.blend(self.denoiser.x_hat(pieces, lam))

    def for_rows(self: W, rows: Tensor) -> W:
        denoiser = self.denoiser.for_rows(rows)
        return self if denoiser is self.denoiser else self.changed(denoiser)

    # -- of the whole image ------------------------------------------------------------------------

    def _over(self, value: Tensor) -> Tensor:
        """Values of the pixels of a window, (C, h, w), averaged over the larger image."""
        shape = self.denoiser.event_shape or ()
        return self.windows.blend(value.expand(len(self.windows), *shape))

    @property
    def data_mean(self) -> Tensor:  # type: ignore[override]
        """The mean of each pixel, (C, H, W)."""
        return self._over(self.denoiser.data_mean)

    @property
    def data_variance(self) -> Tensor:  # type: ignore[override]
        """The variance of each pixel, (C, H, W)."""
        return self._over(self.denoiser.data_variance)

    @property
    def typical(self) -> Tensor:
        """A possible value of each pixel, (C, H, W)."""
        shape = self.denoiser.event_shape or ()
        return self.windows.choose(self.denoiser.typical.expand(len(self.windows), *shape))

    def _refused(self) -> NoReturn:
        raise TypeError(
            f"a denoiser by {len(self.windows)} windows has no baseline, which control variates "
            "and decoders are made of; take bounds with control_variate=False, and a decoder by "
            "windowed(model, size)"
        )

    refused: Any = property(_refused)
    baseline_x_hat = baseline_log_prob = baseline_kl = baseline_integrals = refused
    default_likelihood = posterior = refused


class WindowedLikelihood(Likelihood):
    """The decoder of larger images: each pixel by the window in which it has the largest weight.

    Args:
        likelihood: decoder of a window, whose dimensions are independent given y_ε.
        windows: windows of a :class:`WindowedDenoiser`.
    """

    def __init__(self, likelihood: Likelihood, windows: Windows) -> None:
        super().__init__()
        self.likelihood, self.windows = likelihood, windows

    @property
    def network_calls(self) -> int:  # type: ignore[override]
        return self.likelihood.network_calls

    def forward(
        self, diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None = None
    ) -> WindowedDecoder:
        inner = score
        while isinstance(inner, DerivedDenoiser):  # also given measurements
            inner = inner.denoiser
        law = self.likelihood(diffusion, inner, self.windows.cut(y), 3)
        return WindowedDecoder(law, self.windows)


class WindowedDecoder(DecoderDistribution):
    """The distribution of a larger image with independent pixels, from distributions of windows.

    Args:
        law: distributions of all W windows, with batch shape (W, *batch).
        windows: the windows.
    """

    def __init__(self, law: TorchDistributionMixin, windows: Windows) -> None:
        self._law: Any = law
        self._windows = windows
        channels = self._law.event_shape[0]
        super().__init__(
            self._law.batch_shape[1:], torch.Size((channels, *windows.size)), validate_args=False
        )

    def expand(
        self, batch_shape: Sequence[int], _instance: WindowedDecoder | None = None
    ) -> WindowedDecoder:
        if len(batch_shape) != len(self.batch_shape):
            raise NotImplementedError(
                f"{type(self).__name__} of batch shape {tuple(self.batch_shape)} does not become "
                f"one of {tuple(batch_shape)}; draw states of that batch shape"
            )
        new = super().expand(batch_shape, _instance)
        new._law = self._law.expand(self._law.batch_shape[:1] + torch.Size(batch_shape))
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x | y_ε), (*batch), nats."""
        return self.log_prob_by_dimension(value).flatten(-3).sum(-1)

    def log_prob_by_dimension(self, value: Tensor) -> Tensor:
        """log p(x_j | y_ε), like x, nats.

        Raises:
            TypeError: the decoder's dimensions depend on each other.
        """
        self.check_event(value)
        pieces = self._windows.cut(value)
        return self._windows.choose(log_prob_by_dimension(self._law, pieces))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Samples of x, (*sample_shape, *batch, C, H, W)."""
        pieces = self._law.sample(torch.Size(sample_shape))
        return self._windows.choose(pieces.movedim(len(sample_shape), 0))


def _checked_denoiser(score: Score) -> DenoiserScore:
    if isinstance(score, DerivedDenoiser):
        raise TypeError(
            "the model is conditioned already, expected one of all images; make it larger by "
            "windowed(model, size) first, and condition that"
        )
    denoiser = denoiser_of(score, "x̂ is averaged over windows")
    if denoiser.event_shape is None or len(denoiser.event_shape) != 3:
        raise TypeError(
            f"the model is of data of shape {denoiser.event_shape}, expected (C, H, W) of images"
        )
    return denoiser
