r"""What is known of the covariance of x given z without a network, and how far one can be trusted.

If data were Gaussian, with covariance Σ, the covariance of x given z = x + V^{1/2} ε would be

    C = Σ - Σ (Σ + V)^{-1} Σ

For any data it is the mean square error of the best estimate that is linear in z. So the mean over
z of a denoiser's covariance is at most C, in every direction, and it is C at low λ, where z says
little. A network's covariance is (∂x̂/∂z) V, with errors of ∂x̂/∂z times V. Where its mean is larger
than C it is wrong for certain.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyro_mdm.conditioning.windows import WindowedDenoiser, Windows, unwindowed
from pyro_mdm.measurements.solve import DenoiserCovariance
from pyro_mdm.model import DiffusionModel
from pyro_mdm.samplers.default import default_sampler
from pyro_mdm.scores.base import Score
from pyro_mdm.support.checks import check_finite, check_instance, real_tensor, tensor_device
from pyro_mdm.support.modules import ExactBuffers, evaluating, replace
from pyro_mdm.support.settings import Recorded

__all__ = [
    "Covariance",
    "DataCovariance",
    "Reference",
    "WindowedCovariance",
    "of_variance",
    "reference",
]

Product = Callable[[Tensor], Tensor]

DRAWS, MOST_DRAWS, PROBED = 256, 2048, 64
"""Draws of a model that its covariance is made of, data used at most, and draws that probe it."""
FEWEST = 3
"""The fewest data of which a covariance can be taken: that of two is never shrunk."""
RANK = 256
"""Directions of data whose variances are kept apart."""
OTHER_UNITS = 1e4
"""How different the variance of data may be from that which the model was given."""
SLACK = 1.05
"""How much larger than C the mean of a network's covariance may be, since C comes from draws."""


class Covariance(Recorded, ExactBuffers, ABC):
    """The covariance of data, from which C comes."""

    @abstractmethod
    def given(self, variance: Tensor, *, by_dimension: bool) -> Product:
        """Products C v, like v, for V and v (n, *event_shape)."""


class DataCovariance(Covariance):
    """The covariance of data, Σ = U diag(e) Uᵀ + s (1 - U Uᵀ), and C from it.

    Args:
        rest: variance s in all other directions, (); or, without U, one for each dimension,
            (*event_shape).
        values, vectors: eigenvalues e, (r,), and vectors U, (d, r), of flattened data; None: r = 0.
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
    def of(cls, x: Tensor) -> DataCovariance:
        """The covariance of draws x (n, *event_shape), shrunk towards a multiple of 1.

        Source: Ledoit & Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance
        Matrices", Journal of Multivariate Analysis 2004.
        """
        flat = x.double().flatten(1)
        n, d = flat.shape
        flat = flat - flat.mean(0)
        vectors, singular, _ = torch.linalg.svd(flat.mT / math.sqrt(n), full_matrices=False)
        values = singular.square()
        mean, square = values.sum() / d, values.square().sum()
        apart = square - d * mean.square()
        noise = (flat.square().sum(1).square().sum() / n - square) / n
        shrunk = (noise / apart).clamp(0, 1) if bool(apart > 0) else torch.ones_like(apart)
        r = min(RANK, len(values))
        total = (1 - shrunk) * values[r:].sum()
        rest = shrunk * mean + (total / (d - r) if d > r else 0.0)
        return cls(rest, (1 - shrunk) * values[:r] + shrunk * mean, vectors[:, :r])

    def given(self, variance: Tensor, *, by_dimension: bool) -> Product:
        """Products C v, like v, for V and v (n, *event_shape).

        Args:
            by_dimension: whether V differs between dimensions. C is then that of independent ones.
        """
        variance = variance.double()
        if self.values is None or self.vectors is None:
            spread = of_variance(self.rest, variance)
            return lambda v: (spread * v.double()).to(v.dtype)
        U, e = self.vectors, self.values
        if by_dimension:
            diagonal = self.rest + U.square() @ (e - self.rest)
            spread = of_variance(diagonal.reshape(variance.shape[1:]), variance)
            return lambda v: (spread * v.double()).to(v.dtype)
        V = variance.flatten(1)[:, :1]
        rest = of_variance(self.rest, V)
        more = of_variance(e, V) - rest

        def product(v: Tensor) -> Tensor:
            flat = v.double().flatten(1)
            return (((flat @ U) * more) @ U.mT + rest * flat).reshape(v.shape).to(v.dtype)

        return product


def of_variance(prior: Tensor, noise: Tensor) -> Tensor:
    """The variance of a Gaussian number after an observation with noise."""
    return prior / (1 + prior / noise)  # also without noise, and with nothing but noise


class WindowedCovariance(Covariance):
    """C of a larger image by windows, Σ_w P_wᵀ b_w^{½} C b_w^{½} P_w; see
    :func:`~pyro_mdm.conditioning.windowed`.

    Args:
        covariance: covariance of a window.
        window: size (h, w) of a window.
        size: size (H, W) of the image.
    """

    def __init__(self, covariance: Covariance, window: Sequence[int], size: Sequence[int]) -> None:
        super().__init__()
        self.covariance, self.windows = covariance, Windows(window, size)

    def given(self, variance: Tensor, *, by_dimension: bool) -> Product:
        """Products C v, like v, for V and v (n, C, H, W)."""
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
    """What a model's data say of the covariance of x given z."""

    covariance: Covariance
    trusted_from: float  # the λ from which the denoiser's own covariance is used; NaN: not asked


_REFERENCES: WeakKeyDictionary[Score, tuple[list[Any], list[Any], Reference]] = WeakKeyDictionary()


def reference(
    model: DiffusionModel, data: Tensor | None = None, *, levels: bool = True
) -> Reference:
    """The covariance of a model's data, and the λ from which that of its denoiser is trusted.

    It takes 256 draws of the model, unless there are data, and some fifty network calls for each of
    64 draws. It is kept while parameters, buffers and data stay as they are; changes by way of
    ``.data`` are not seen. A denoiser that has to be told a context, and has not been, is trusted
    from λ = 0, and without data has the variances of its dimensions alone. One that is told a
    context is probed at data of this context, if ``data`` are.

    Args:
        levels: whether the λ is wanted, which takes the network calls.
    """
    if data is not None:
        check_instance("data", data, Tensor, "write torch.as_tensor(data)")
    denoiser = model.score_function
    sources: list[Any] = [model.diffusion, model.likelihood, model.context, data]
    sources += [*model.parameters(), *model.buffers()]
    stamp = [(id(source), _version(source)) for source in sources]
    cached = _REFERENCES.get(denoiser)
    if cached is not None and cached[0] == stamp and not (levels and math.isnan(cached[2][1])):
        return cached[2]
    if isinstance(denoiser, WindowedDenoiser):
        small, trusted = reference(unwindowed(model), data, levels=levels)
        windows = denoiser.windows
        made = Reference(WindowedCovariance(small, windows.window, windows.size), trusted)
    else:
        made = _measured(model, data, levels)
    _REFERENCES[denoiser] = stamp, sources, made  # sources are kept, so that their ids stay theirs
    return made


def _version(source: object) -> int | None:
    """How often a tensor was changed; None where torch does not count."""
    return source._version if isinstance(source, Tensor) and not source.is_inference() else None


def _measured(model: DiffusionModel, data: Tensor | None, levels: bool) -> Reference:
    """See :func:`reference`."""
    denoiser: Any = model.score_function
    diagonal = DataCovariance(denoiser.data_variance.detach().clone())
    if data is not None:
        _check_data(data, model.event_shape)
        _check_units(data, denoiser.data_variance)
    elif model.context is not None:
        return Reference(diagonal, 0.0)
    device = tensor_device(denoiser)
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluating(model):
        torch.manual_seed(0)
        contexts = denoiser.network_context
        if contexts is not None and contexts.dim() > 1:  # of some data, however many
            number = len(contexts.flatten(0, -2))
            denoiser = denoiser.for_rows(torch.randperm(DRAWS) * number // DRAWS)
            model = replace(model, score_function=denoiser)
        x = _drawn(model) if data is None else data[torch.randperm(len(data))[:MOST_DRAWS]]
        x = x.to(device)
        if not bool(x.isfinite().all()):
            return Reference(diagonal, math.inf)
        covariance = DataCovariance.of(x)
        if model.context is not None:
            return Reference(covariance, 0.0)
        if not levels:
            return Reference(covariance, math.nan)
        return Reference(covariance, _trusted_from(model, denoiser, covariance, x))


def _drawn(model: DiffusionModel) -> Tensor:
    """256 draws of the model."""
    denoiser = model.score_function
    sampled = replace(model, sampler=default_sampler(model.diffusion, denoiser), times=None)
    y = sampled.path_law().expand((DRAWS,)).sample().select(1, 0)
    law = model.likelihood(model.diffusion, denoiser, y, len(model.event_shape))
    return law.sample()


def _trusted_from(
    model: DiffusionModel, denoiser: Any, covariance: DataCovariance, x: Tensor
) -> float:
    """The λ above which means of vᵀ C v by the denoiser are at most those of C, or about.

    Directions v are random, and random ones of the data, between two others: those from a datum
    itself would be large where its own covariance is.
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
    of_data, of_model = float(data.double().var(0).mean()), float(variance.mean())
    if not of_model / OTHER_UNITS < of_data < of_model * OTHER_UNITS:
        raise ValueError(
            f"data have a variance of {of_data:.3g}, and those of the model {of_model:.3g}, "
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
