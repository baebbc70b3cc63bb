r"""The generative program: the reverse SDE from N(0, Σ_π) to y_ε, then x ~ p(x | y_ε)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from pyro_mdm.diffusions import Diffusion, LinearDiffusion
from pyro_mdm.laws import BoundScore, GenerativeChain, GenerativePath
from pyro_mdm.program import OnePath, Registered, batch_plate, grid_times
from pyro_mdm.samplers import EulerMaruyama, Splitting

if TYPE_CHECKING:
    from pyro_mdm.likelihoods import Likelihood
    from pyro_mdm.scores import Score

__all__ = ["DiffusionModel"]


class DiffusionModel(Registered):
    r"""``y_ε ~`` reverse SDE, ``x ~ p(x | y_ε)``, in a plate of the batch, for any diffusion.

    The plate of the batch is at dim -1. It is the program's own, ``plate(name, n)``, unless the
    program is called inside one: ``with pyro.plate("N", n, subsample_size=16) as i: model(x[i])``.
    Plates at other dims go around it, and every datum is then in each of their elements.

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
        plate: name of its own plate of the batch, the guide's too.

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
        plate: str = "data",
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
        self.plate = plate

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
            x: data (batch, *event_shape), or None to generate. Inside plates at dims -2, … it may
                have their sizes before the batch's.
            batch_size: number of data to generate; by default the size of the plate around it.
            num_data: size of the data set of which x is a subsample; scales the loss.

        Returns:
            x, (batch, *event_shape).

        Raises:
            ValueError: x of another shape, sizes of batch and plates that disagree, or a guide over
                another diffusion.
        """
        self.register()
        event_dim = len(self.event_shape)
        batch_shape = () if x is None else self._check(x).shape[: x.dim() - event_dim]
        with batch_plate(self.plate, batch_shape, batch_size, num_data):
            with OnePath():
                path = pyro.sample("path", self.path_law())
            y = path.select(-2 - event_dim, 0)
            law = self.likelihood(self.diffusion, self.score_function, y, event_dim)
            return pyro.sample("x", law, obs=x)

    def _check(self, x: Tensor) -> Tensor:
        event_dim = len(self.event_shape)
        if x.dim() <= event_dim or x.shape[x.dim() - event_dim :] != self.event_shape:
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
