r"""The generative program: the reverse SDE from N(0, Σ_π) to y_ε, then x ~ p(x | y_ε)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from pyro_mdm.checks import (
    check_count,
    check_data,
    check_instance,
    check_resolution,
    describe,
    floating_dtypes,
    tensor_device,
)
from pyro_mdm.diffusions import Diffusion, LinearDiffusion
from pyro_mdm.laws import BoundScore, GenerativeChain, GenerativePath
from pyro_mdm.samplers import EulerMaruyama, Splitting

if TYPE_CHECKING:
    from pyro_mdm.likelihoods import Likelihood
    from pyro_mdm.scores import Score

__all__ = ["DiffusionModel"]

_names = itertools.count()


class Registered(nn.Module):
    """A module whose parameters join Pyro's store when, and only when, ``SVI`` collects them."""

    def __init__(self) -> None:
        super().__init__()
        self._pyro_name = f"pyro_mdm_{next(_names)}"

    def register(self) -> None:
        """Register every parameter under one name, however many programs share it."""
        collecting = any(isinstance(m, TraceMessenger) and m.param_only for m in _PYRO_STACK)
        if not collecting:
            return
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            full = f"{_owner(parameter, self._pyro_name)}$$${name}"
            stored = pyro.param(full, parameter)
            if stored._cdata != parameter._cdata:
                raise RuntimeError(
                    f"Pyro's parameter store holds another tensor as {full!r}; SVI would train "
                    "that one and not the module. Call pyro.clear_param_store(), and keep "
                    "parameters contiguous (no channels_last) on this path"
                )


def _owner(parameter: Tensor, name: str) -> str:
    """The first program that registered a parameter names it: shared ones are stepped once."""
    known = getattr(parameter, "_pyro_mdm_owner", None)
    if known is None:
        parameter._pyro_mdm_owner = known = name  # type: ignore[attr-defined]
    return str(known)


class DiffusionModel(Registered):
    r"""``y_ε ~`` reverse SDE, ``x ~ p(x | y_ε)``, under ``plate("data")``, for any diffusion.

    Args:
        diffusion: the noising diffusion that is reversed; the guide is built over the same object.
        score: the score's parameterization, which owns the network.
        likelihood: p(x | y_ε), the score's own decoder by default.
        event_shape: shape of one datum, (features,) or (C, *spatial); that of the score by default,
            if it was fitted to data. Scalars have the shape (1,).
        sampler: simulates the generative SDE when the path is not given,
            ``Splitting(steps=256)`` by default, ``EulerMaruyama(steps=256)`` for a nonlinear
            diffusion.
        times: None for the continuous-time law seen at ε; a number N, or (N,) times from ε to T,
            for the Markov chain on that grid (its density is exact, so importance weights are).

    Raises:
        TypeError: parts of another kind, swapped, or classes instead of objects.
        ValueError: an event shape that no network takes or that is not the score's, none at all, or
            a chain of a diffusion without closed-form kernels. On call: data of another shape or
            precision than the network's, on another device, empty or not finite; a start time
            whose noise the precision does not resolve.

    Sites: ``"path"`` (*batch, N, K, *event_shape) and ``"x"`` (*batch, *event_shape), observed when
    given. ``Predictive(model, num_samples=1)(batch_size=64)["x"]`` samples.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        score: Score,
        likelihood: Likelihood | None = None,
        event_shape: Sequence[int] | None = None,
        *,
        sampler: Callable[..., Tensor] | None = None,
        times: int | Tensor | None = None,
    ) -> None:
        super().__init__()
        check_parts(diffusion, score, likelihood, sampler)
        check_times(times)
        check_ends(diffusion)
        shape = _event_shape(event_shape, score)
        if times is not None and not isinstance(diffusion, LinearDiffusion):
            raise ValueError(
                f"times is {times}, but {type(diffusion).__name__} has no closed-form kernels for "
                "a chain on a grid; leave out times"
            )
        self.diffusion: Any = diffusion
        self.score_function = score
        self.likelihood = likelihood if likelihood is not None else score.default_likelihood()
        self.event_shape = shape
        if sampler is None:
            linear = isinstance(diffusion, LinearDiffusion)
            sampler = Splitting(steps=256) if linear else EulerMaruyama(steps=256)
        self.sampler = sampler
        self.times = times

    def score(self, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y (*batch, K, *event_shape), for s (*batch)."""
        return self.score_function.score(self.diffusion, y, s)

    @property
    def bound_score(self) -> BoundScore:
        """``score(y, s)`` and ``denoise(y, s)`` together, as samplers take them."""
        return BoundScore(self.diffusion, self.score_function)

    def path_law(self) -> GenerativePath | GenerativeChain:
        """The law of the generative path of one datum."""
        if self.times is None:
            return GenerativePath(
                self.diffusion, self.score_function, self.event_shape, sampler=self.sampler
            )
        times = grid_times(self.diffusion, self.times)
        return GenerativeChain(self.diffusion, self.score_function, self.event_shape, times)

    def forward(
        self,
        x: Tensor | None = None,
        *,
        batch_size: int | None = None,
        num_data: int | None = None,
    ) -> Tensor:
        """Run the program.

        Args:
            x: data (batch, *event_shape), or None to generate.
            batch_size: number of data to generate.
            num_data: size of the data set of which x is a subsample; scales the loss.

        Returns:
            x, (batch, *event_shape).
        """
        self.register()
        n = self._check_call(x, batch_size)
        with data_plate(n, num_data):
            path = pyro.sample("path", self.path_law())
            y = path.select(-2 - len(self.event_shape), 0)
            law = self.likelihood(self.diffusion, self.score_function, y, len(self.event_shape))
            return pyro.sample("x", law, obs=x)

    def _check_call(self, x: Tensor | None, batch_size: int | None) -> int:
        """The number of data, given or to be generated; both checked."""
        if batch_size is not None:
            check_count("batch_size", batch_size, "the number of data to generate")
        if x is not None:
            self.check_data(x)
            if batch_size is not None and batch_size != len(x):
                raise ValueError(
                    f"batch_size is {batch_size} and x has {len(x)} data, expected one of them; "
                    "leave out batch_size, which is for generating"
                )
            return len(x)
        if batch_size is None:
            raise ValueError("neither x nor batch_size is given; pass model(batch_size=64)")
        return batch_size

    def check_data(self, x: Any) -> None:
        """Raises unless x are data that this model can be asked about, (batch, *event_shape)."""
        check_data("x", x, tensor_device(self))
        if x.dim() != len(self.event_shape) + 1 or x.shape[1:] != self.event_shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected (batch, "
                f"{', '.join(map(str, self.event_shape))}); {_reshaped(x, self.event_shape)}"
            )
        dtypes = floating_dtypes(self.score_function.network)
        if dtypes and x.dtype not in dtypes:
            (dtype, *_) = dtypes
            raise ValueError(
                f"x is {x.dtype} and the network's weights are {dtype}, expected one precision; "
                f"pass x.to({dtype}), or cast the network: model.to({x.dtype})"
            )
        with torch.no_grad():
            check_resolution(self.diffusion.max_log_snr, x.dtype, float(x.square().mean()))


def check_parts(diffusion: Any, score: Any, likelihood: Any = None, sampler: Any = None) -> None:
    """Raises TypeError unless all are objects of their kind, the diffusion first."""
    from pyro_mdm.likelihoods import Likelihood
    from pyro_mdm.scores import Score

    if isinstance(diffusion, Score) and isinstance(score, Diffusion):
        raise TypeError(
            f"diffusion is {describe(diffusion)} and score {describe(score)}: they are swapped; "
            "write DiffusionModel(diffusion, score)"
        )
    check_diffusion(diffusion)
    if isinstance(score, nn.Module) and not isinstance(score, (Score, Diffusion, Likelihood)):
        raise TypeError(
            f"score is {describe(score)}, a network, expected a score that owns it; wrap it: "
            "Denoiser.fit(network, train_x), or DiscreteDenoiser.fit for data with levels"
        )
    check_instance("score", score, Score, "make one by Denoiser.fit(network, train_x)")
    if likelihood is not None:
        fix = "leave it out for the score's own, or see pyro_mdm.likelihoods"
        check_instance("likelihood", likelihood, Likelihood, fix)
    if sampler is not None and (isinstance(sampler, type) or not callable(sampler)):
        raise TypeError(
            f"sampler is {describe(sampler)}, expected one with its number of steps; pass "
            "sampler=Splitting(256) of pyro_mdm.samplers, or leave it out"
        )


def check_diffusion(diffusion: Any) -> None:
    """Raises TypeError unless it is a diffusion."""
    if isinstance(diffusion, DiffusionModel):
        raise TypeError(
            "diffusion is a DiffusionModel, expected the diffusion that it reverses; pass "
            "model.diffusion"
        )
    fix = "make one, e.g. CLD(max_log_snr=9.0)"
    check_instance("diffusion", diffusion, Diffusion, fix)


def check_ends(diffusion: Diffusion) -> None:
    """Raises ValueError for a start time past T, or one whose noise no precision resolves."""
    with torch.no_grad():
        check_resolution(diffusion.max_log_snr, torch.float64)
        _ = diffusion.start_time


def check_times(times: Any) -> None:
    """Raises unless it is None, a number of times from 2 on, or the times themselves."""
    if times is None or isinstance(times, (Tensor, list, tuple)):
        return
    expected = "that of the times on a grid from ε to T, both among them (or None, or the times)"
    check_count("times", times, expected, 2)


def _reshaped(x: Tensor, event_shape: torch.Size) -> str:
    """What to do about data of another shape, for messages."""
    if x.shape == event_shape:
        return (
            "add the batch dimension, x[None] (or, if these are several data, fit the score to "
            "them: Denoiser.fit(network, x))"
        )
    if x.dim() > 2 and x.movedim(-1, 1).shape[1:] == event_shape:
        return "channels come first, x.movedim(-1, 1)"
    if x.dim() and x[0].numel() == event_shape.numel():
        return f"reshape the data, x.reshape(-1, {', '.join(map(str, event_shape))})"
    return "build the model for the shape of one datum, event_shape"


def _event_shape(given: Sequence[int] | None, score: Score) -> torch.Size:
    """The shape of one datum, as given or as the score knows it."""
    known = getattr(score, "event_shape", None)
    event_shape = known if given is None else given
    if event_shape is None:
        raise ValueError(
            f"event_shape is not given, and {type(score).__name__} takes data of any shape; pass "
            "that of one datum, e.g. event_shape=(2,) or (1, 28, 28)"
        )
    whole = isinstance(event_shape, Sequence) and not isinstance(event_shape, str)
    if not whole or not all(isinstance(n, Integral) for n in event_shape):
        raise ValueError(
            f"event_shape is {event_shape!r}, expected a sequence of whole sizes; write "
            "(2,) for vectors of two, (1, 28, 28) for images"
        )
    shape = tuple(event_shape)
    if not shape:
        raise ValueError(
            "event_shape is (), expected (features,) or (C, *spatial), which networks take; give "
            "scalars the event shape (1,) and pass them as x[:, None]"
        )
    if any(n < 1 for n in shape):
        raise ValueError(f"event_shape is {shape}, expected positive sizes")
    if known is not None and shape != tuple(known):
        raise ValueError(
            f"event_shape is {shape}, but {type(score).__name__} was made for data of shape "
            f"{tuple(known)}; leave event_shape out, or fit the score to such data"
        )
    return torch.Size(shape)


def data_plate(n: int, num_data: int | None) -> pyro.plate:
    """``plate("data")`` over n data, scaled to ``num_data`` of them."""
    if num_data is None:
        return pyro.plate("data", n)
    if num_data < n:
        raise ValueError(f"num_data is {num_data}, expected at least the batch's {n} data")
    return pyro.plate("data", num_data, subsample=torch.arange(n))


def grid_times(diffusion: Diffusion, times: int | Tensor) -> Tensor:
    """A number of times, equally spaced in noise level, or the times themselves."""
    return diffusion.noise_level_grid(times) if isinstance(times, int) else times
