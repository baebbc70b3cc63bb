r"""The generative program: the reverse SDE from N(0, Σ_π) to y_ε, then x ~ p(x | y_ε)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from pyro_mdm.diffusions import Diffusion, LinearDiffusion
from pyro_mdm.laws import BoundScore, GenerativeChain, GenerativePath
from pyro_mdm.pretrained import load_folder, save_folder
from pyro_mdm.samplers import EulerMaruyama, Splitting
from pyro_mdm.settings import Restorable, described

if TYPE_CHECKING:
    from pyro_mdm.likelihoods import Likelihood
    from pyro_mdm.scores import Score

__all__ = ["DiffusionModel"]

_names = itertools.count()


class Registered(Restorable, nn.Module):
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
        ValueError: an event shape that no network takes or that is not the score's, none at all, or
            a chain of a diffusion without closed-form kernels.

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

    def arguments(self) -> dict[str, Any]:
        return {
            "diffusion": self.diffusion,
            "score": self.score_function,
            "likelihood": self.likelihood,
            "event_shape": list(self.event_shape),
            "sampler": self.sampler,
            "times": self.times,
        }

    def settings(self) -> dict[str, Any]:
        return {"event_shape": list(self.event_shape), "times": described(self.times)}

    def restore(self, saved: dict[str, Any]) -> None:
        """The times of a chain."""
        self.times = restored_times(saved["times"])

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors``, which :meth:`from_pretrained` reads.

        All of the model is in them: diffusion, score, network, likelihood and sampler. Other files
        of the folder are left alone; both are complete on the disk before either replaces an
        earlier one. Nothing is pickled.

        Raises:
            PretrainedError: something without a name, such as a lambda, or two classes of one name.
            OSError: the files cannot be written; earlier ones are as they were.
        """
        save_folder(self, folder)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, classes: Mapping[str, Any] | None = None
    ) -> DiffusionModel:
        """The model that :meth:`save_pretrained` wrote, on the CPU and in eval mode.

        Its guide is ``DiffusionGuide(model.diffusion)``, with ``model.times`` for a chain. The
        folder of a training run, with the averaged weights, opens likewise. No code is run from the
        folder.

        Args:
            folder: with ``config.json`` and ``model.safetensors``.
            classes: what is not of this library, by name: a class, a function that makes an object,
                or (once) the object itself, whose parameters are replaced; functions of the state
                as they are. A class that inherits from one of this library's is called with the
                arguments that it had, any other class without any.

        Raises:
            PretrainedError: no such folder, one that is damaged, of a newer format, or of something
                else; a name that is not in ``classes``, or stands for something that does not fit.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> from pyro_mdm import CLD, Denoiser
            >>> from pyro_mdm.networks import MLP
            >>> model = DiffusionModel(CLD(), Denoiser(MLP(2)), event_shape=(2,))
            >>> with TemporaryDirectory() as folder:
            ...     model.save_pretrained(folder)
            ...     print(DiffusionModel.from_pretrained(folder).diffusion)
            CLD(
              num_variables=2, max_log_snr=13
              (beta): LinearBeta(beta_min=0.1, beta_max=20.0)
            )
        """
        return load_folder(cls, folder, classes or {})

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
        if x is not None:
            x = self._check(x)
        n = batch_size if x is None else len(x)
        if n is None:
            raise ValueError("neither x nor batch_size is given; pass model(batch_size=64)")
        with data_plate(n, num_data):
            path = pyro.sample("path", self.path_law())
            y = path.select(-2 - len(self.event_shape), 0)
            law = self.likelihood(self.diffusion, self.score_function, y, len(self.event_shape))
            return pyro.sample("x", law, obs=x)

    def _check(self, x: Tensor) -> Tensor:
        if x.dim() != len(self.event_shape) + 1 or x.shape[1:] != self.event_shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected (batch, "
                f"{', '.join(map(str, self.event_shape))})"
            )
        return x


def _event_shape(given: Sequence[int] | None, score: Score) -> torch.Size:
    """The shape of one datum, as given or as the score knows it."""
    known = getattr(score, "event_shape", None)
    event_shape = known if given is None else given
    if event_shape is None:
        raise ValueError(
            f"event_shape is not given, and {type(score).__name__} takes data of any shape; pass "
            "that of one datum, e.g. event_shape=(2,) or (1, 28, 28)"
        )
    if not isinstance(event_shape, Sequence):
        raise ValueError(
            f"event_shape is {event_shape!r}, expected a sequence of sizes, e.g. (2,) for vectors"
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


def restored_times(saved: int | list[float] | None) -> int | Tensor | None:
    """``times`` of a program as they were, from its settings."""
    return torch.tensor(saved, dtype=torch.float64) if isinstance(saved, list) else saved


def grid_times(diffusion: Diffusion, times: int | Tensor) -> Tensor:
    """A number of times, equally spaced in noise level, or the times themselves."""
    return diffusion.noise_level_grid(times) if isinstance(times, int) else times
