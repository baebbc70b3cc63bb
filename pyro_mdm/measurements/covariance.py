r"""The covariance of x given z without a network, and where that of a network can be trusted.

If data were Gaussian, with covariance Σ, the covariance of x given ``z = x + V^{1/2} ε`` would be

    C = Σ - Σ (Σ + V)^{-1} Σ

For any data it is the mean squared error of the best estimate that is linear in z. So the mean over
z of an exact denoiser's covariance is at most C, in every direction, and it tends to C at low λ,
where z says little. A network's covariance is ``(∂x̂/∂z) V``, so that an error of ``∂x̂/∂z`` is
multiplied by V. Where its mean is larger than C, it is wrong for certain.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyro_mdm.conditioning.windows import WindowedDenoiser, Windows, unwindowed
from pyro_mdm.measurements.solve import DenoiserCovariance
from pyro_mdm.model import DiffusionModel
from pyro_mdm.samplers.default import default_sampler
from pyro_mdm.scores.base import Score
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.checks import check_finite, check_instance, real_tensor, tensor_device
from pyro_mdm.support.modules import ExactBuffers, evaluating, replace, writes
from pyro_mdm.support.settings import Recorded

__all__ = [
    "Covariance",
    "DataCovariance",
    "Reference",
    "WindowedCovariance",
    "posterior_variance",
    "reference",
]

Product = Callable[[Tensor], Tensor]

DRAWS, MOST_DRAWS, PROBED = 256, 2048, 64
"""The samples of a model that its covariance is estimated from, the most data that it is estimated
from, and the number of either that probe the denoiser's covariance."""
FEWEST = 3
"""The fewest data that a covariance is estimated from: that of two would never be shrunk, as their
centred values have one square."""
RANK = 256
"""The most eigenvalues that are kept apart; the variance of all other directions is one number."""
OTHER_UNITS = 1e4
"""The largest ratio between the variances of the data and of the model, either way; beyond it their
units differ."""
SLACK = 1.05
"""The largest ratio of the mean of a network's covariance and C, above 1 since C is estimated."""


class Covariance(Recorded, ExactBuffers, ABC):
    """The covariance of data, and the covariance C of x given z that follows from it."""

    @abstractmethod
    def given(self, variance: Tensor, *, by_dimension: bool) -> Product:
        """The product with C, as a function.

        Args:
            variance: variances V of the noise of z, (n, *event_shape).
            by_dimension: whether V differs between dimensions.

        Returns:
            The function that returns C v, like v, for vectors v, (n, *event_shape).
        """


class DataCovariance(Covariance):
    """The covariance of data, ``Σ = U diag(e) Uᵀ + s (1 - U Uᵀ)``, and C from it.

    Args:
        rest: variance s in all other directions, (), in squared units of the data; or, without U,
            the variance of each dimension, (*event_shape).
        values: eigenvalues e, (r,); None: r = 0.
        vectors: eigenvectors U of flattened data, (d, r); None: r = 0.
    """

    rest: Tensor
    values: Tensor | None
    vectors: Tensor | None

    def __init__(
        self, rest: Tensor, values: Tensor | None = None, vectors: Tensor | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("rest", rest)
        self.register_buffer("values", values)
        self.register_buffer("vectors", vectors)

    @classmethod
    def fit(cls, x: Tensor) -> DataCovariance:
        """The covariance of data, shrunk towards a multiple of the identity.

        Args:
            x: data, (n, *event_shape).

        Source: Ledoit & Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance
        Matrices", Journal of Multivariate Analysis 2004.
        """
        flat = x.double().flatten(1)  # the shrinkage is a ratio of differences of fourth moments
        n, d = flat.shape
        flat = flat - flat.mean(0)
        vectors, singular, _ = torch.linalg.svd(flat.mT / math.sqrt(n), full_matrices=False)
        values = singular.square()
        mean, square = values.sum() / d, values.square().sum()
        apart = square - d * mean.square()  # of the eigenvalues from their mean; d² in the paper
        noise = (flat.square().sum(1).square().sum() / n - square) / n
        # at most 1 as in the paper, b² ≤ d²; equal eigenvalues, d² = 0, leave nothing to shrink
        shrunk = (noise / apart).clamp(0, 1) if bool(apart > 0) else torch.ones_like(apart)
        r = min(RANK, len(values))
        total = (1 - shrunk) * values[r:].sum()
        rest = shrunk * mean + (total / (d - r) if d > r else 0.0)
        return cls(rest, (1 - shrunk) * values[:r] + shrunk * mean, vectors[:, :r])

    def matrix(self, shape: Sequence[int]) -> Tensor:
        """Σ of flattened data of a shape, (d, d) in float64."""
        if self.values is None or self.vectors is None:
            return self.rest.double().expand(tuple(shape)).flatten().diag()
        U, e = self.vectors, self.values
        matrix = (U * (e - self.rest)) @ U.mT
        matrix.diagonal().add_(self.rest)
        return matrix

    def spread(self, variance: Tensor) -> Tensor:
        """The diagonal of C for independent dimensions, (n, *event_shape).

        Args:
            variance: variances V of the noise of z, (n, *event_shape).
        """
        diagonal = self.rest
        if self.values is not None and self.vectors is not None:
            diagonal = self.rest + self.vectors.square() @ (self.values - self.rest)
            diagonal = diagonal.reshape(variance.shape[1:])
        return posterior_variance(diagonal, variance.double())

    def given(self, variance: Tensor, *, by_dimension: bool) -> Product:
        """As :meth:`Covariance.given`; where V differs between dimensions, of independent ones."""
        if self.values is None or self.vectors is None or by_dimension:
            spread = self.spread(variance)
            return lambda v: (spread * v.double()).to(v.dtype)
        U, e = self.vectors, self.values
        V = variance.double().flatten(1)[:, :1]
        rest = posterior_variance(self.rest, V)
        more = posterior_variance(e, V) - rest

        def product(v: Tensor) -> Tensor:
            flat = v.double().flatten(1)
            return (((flat @ U) * more) @ U.mT + rest * flat).reshape(v.shape).to(v.dtype)

        return product


def posterior_variance(prior: Tensor, noise: Tensor) -> Tensor:
    """The variance of a Gaussian number after an observation with noise.

    Args:
        prior: the variance before it.
        noise: the variance of the noise, broadcastable to ``prior``; 0 and ∞ too.
    """
    return prior / (1 + prior / noise)  # at noise ∞ too, where p n / (p + n) is NaN


class WindowedCovariance(Covariance):
    """C of a larger image by windows, ``Σ_w P_wᵀ b_w^{½} C b_w^{½} P_w``.

    See :func:`~pyro_mdm.conditioning.windowed`.

    Args:
        covariance: covariance of a window.
        window: size (h, w) of a window, in pixels.
        size: size (H, W) of the image, in pixels.
    """

    def __init__(self, covariance: Covariance, window: Sequence[int], size: Sequence[int]) -> None:
        super().__init__()
        self.covariance, self.windows = covariance, Windows(window, size)

    def given(self, variance: Tensor, *, by_dimension: bool) -> Product:
        windows = self.windows
        variances = windows.cut(variance)
        of_window = self.covariance.given(variances.flatten(0, 1), by_dimension=by_dimension)
        root = windows.weights.sqrt().reshape(len(windows), 1, 1, *windows.window)

        def product(v: Tensor) -> Tensor:
            scale = root.to(v.dtype)
            pieces = (windows.cut(v) * scale).flatten(0, 1)
            return windows.blend(of_window(pieces).reshape(variances.shape) / scale)

        return product


class Reference(NamedTuple):
    """The covariance of a model's data, and the log SNRs at which its denoiser's is trusted."""

    covariance: Covariance
    trusted_from: float  # the least λ at which the denoiser's is trusted; NaN: not measured


_REFERENCES: WeakKeyDictionary[Score, tuple[object, object, Reference]] = WeakKeyDictionary()


def reference(
    model: DiffusionModel, data: Tensor | None = None, *, levels: bool = True
) -> Reference:
    """The covariance of a model's data, and the λ from which that of its denoiser is trusted.

    It takes 256 samples of the model, unless data are given, and some fifty network calls for each
    of 64 of them. It is kept while parameters, buffers and data stay as they are; changes by way of
    ``.data`` are not seen. A denoiser that needs a context and is given none is trusted from λ = 0,
    and without data the covariance is diagonal. One that is given a context is probed at data of
    this context, if ``data`` have it.

    Args:
        model: the model, whose score is a denoiser.
        data: data, (n, *event_shape); None: samples of the model.
        levels: whether to measure the λ, which takes the network calls.

    Returns:
        A :class:`Reference`; its λ is NaN without ``levels``.

    Raises:
        TypeError, ValueError: data of another type, shape or scale, not finite, or all the same.
    """
    if data is not None:
        check_instance("data", data, Tensor, "write torch.as_tensor(data)")
    denoiser = model.score_function
    parts = model.diffusion, model.likelihood, model.context
    tensors = [*model.parameters(), *model.buffers(), *(() if data is None else (data,))]
    stamp = *map(id, parts), *writes(tensors)
    cached = _REFERENCES.get(denoiser)
    if cached is not None and cached[0] == stamp and not (levels and math.isnan(cached[2][1])):
        return cached[2]
    if isinstance(denoiser, WindowedDenoiser):
        small, trusted = reference(unwindowed(model), data, levels=levels)
        windows = denoiser.windows
        made = Reference(WindowedCovariance(small, windows.window, windows.size), trusted)
    else:
        made = _estimated(model, data, levels)
    sources = *parts, *tensors  # kept, so that their ids stay theirs
    _REFERENCES[denoiser] = stamp, sources, made
    return made


def _estimated(model: DiffusionModel, data: Tensor | None, levels: bool) -> Reference:
    """See :func:`reference`."""
    denoiser = cast(DenoiserScore, model.score_function)
    diagonal = DataCovariance(denoiser.data_variance.detach().clone())
    if data is not None:
        _check_data(data, model.event_shape)
        _check_units(data, denoiser.data_variance)
    elif model.context is not None:
        return Reference(diagonal, 0.0)
    device = tensor_device(denoiser)
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluating(model):
        torch.manual_seed(0)  # one model always has one covariance
        contexts = denoiser.network_context
        if contexts is not None and contexts.dim() > 1:  # a context for each of some data
            number = len(contexts.flatten(0, -2))
            denoiser = denoiser.for_rows(torch.randperm(DRAWS) * number // DRAWS)
            model = replace(model, score_function=denoiser)
        x = _samples(model) if data is None else data[torch.randperm(len(data))[:MOST_DRAWS]]
        x = x.to(device)
        if not bool(x.isfinite().all()):  # an untrained model: trusted nowhere
            return Reference(diagonal, math.inf)
        covariance = DataCovariance.fit(x)
        if model.context is not None:
            return Reference(covariance, 0.0)
        if not levels:
            return Reference(covariance, math.nan)
        return Reference(covariance, _trusted_from(model, denoiser, covariance, x))


def _samples(model: DiffusionModel) -> Tensor:
    """256 samples of the model, (256, *event_shape)."""
    denoiser = model.score_function
    sampled = replace(model, sampler=default_sampler(model.diffusion, denoiser), times=None)
    y = sampled.path_law().expand((DRAWS,)).sample().select(1, 0)
    law = model.likelihood(model.diffusion, denoiser, y, len(model.event_shape))
    return law.sample()


def _trusted_from(
    model: DiffusionModel, denoiser: DenoiserScore, covariance: DataCovariance, x: Tensor
) -> float:
    """The least λ from which on means of vᵀ C v by the denoiser are at most :data:`SLACK` of C's.

    Directions v are random signs, and differences of two other data: those of a datum itself would
    be large where its own covariance is.
    """
    x = x[:PROBED].to(model.bound_score.dtype)
    denoiser = denoiser.for_rows(torch.arange(len(x)))
    random = torch.randn(x.shape, dtype=x.dtype, device=x.device)
    directions = [torch.randn_like(x).sign(), x.roll(1, 0) - x.roll(2, 0)]
    trusted = math.inf
    for lam in _levels(model):
        variance = torch.full_like(x, math.exp(-lam))
        z = x + variance.sqrt() * random
        learned = DenoiserCovariance(partial(denoiser.x_hat, log_snr=lam), z, variance)
        linear = covariance.given(variance, by_dimension=False)
        for v in directions:
            forms = [(v * C(v)).double().flatten(1).sum(1) for C in (learned, linear)]
            if not bool(forms[0].mean() <= SLACK * forms[1].mean()):
                return trusted
        trusted = lam
    return -math.inf


def _levels(model: DiffusionModel) -> list[float]:
    """λ of the diffusion, from high to low."""
    low, high = float(model.diffusion.terminal_log_snr), float(model.diffusion.start_log_snr)
    return [high - step for step in range(math.ceil(high - low))]


def _check_units(data: Tensor, variance: Tensor) -> None:
    data_variance, fitted = float(data.double().var(0).mean()), float(variance.mean())
    if not fitted / OTHER_UNITS < data_variance < fitted * OTHER_UNITS:
        raise ValueError(
            f"data have a variance of {data_variance:.3g}, and those of the model {fitted:.3g}, "
            "expected data in the units of the model; scale them as it was trained, or leave "
            "them out"
        )


def _check_data(data: object, event_shape: torch.Size) -> None:
    data = real_tensor("data", data, "draws of the data, (n, *event_shape)")
    if data.shape[1:] != event_shape or len(data) < FEWEST:
        sizes = ", ".join(map(str, event_shape))
        raise ValueError(
            f"data have shape {tuple(data.shape)}, expected (n, {sizes}) of at least {FEWEST} "
            "draws; leave them out for draws of the model"
        )
    check_finite("data", data)
    if bool((data == data[0]).all()):
        raise ValueError(
            f"data are {len(data)} times the same, expected draws that differ, of which a "
            "covariance is taken; leave them out for draws of the model"
        )
