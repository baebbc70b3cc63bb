"""Operators H that measure data: linear ones with their adjoints, and others, linearized."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from pyro_mdm.support.checks import (
    Count,
    check_instance,
    check_mask,
    check_number,
    check_shape,
    checked_arguments,
    describe,
    real_tensor,
)
from pyro_mdm.support.modules import ExactBuffers
from pyro_mdm.support.settings import Recorded

__all__ = [
    "Blur",
    "Downsample",
    "FunctionOperator",
    "LARGEST_MATRIX",
    "Linear",
    "LinearOperator",
    "Mask",
    "Matrix",
    "NonlinearOperator",
    "Operator",
    "Spectrum",
    "as_operator",
    "outside_inference_mode",
]

Inputs = ParamSpec("Inputs")
R = TypeVar("R")

LARGEST_MATRIX = 2**21
"""The most entries of an H whose matrix is computed, to check it and for its squares."""
PROBES, FEW_PROBES = 256, 16
"""The numbers of random data by which the diagonal of H Hᵀ is estimated: of a larger H, once, and
of a derivative, at each x̂."""
DIGITS = 1e-8
"""The largest distance of ⟨H x, y⟩ from ⟨x, Hᵀ y⟩, relative to their sizes, that float64 rounding
may make."""


def outside_inference_mode(function: Callable[Inputs, R]) -> Callable[Inputs, R]:
    """The function, which leaves torch's inference mode for ``no_grad``, as it takes derivatives.

    Positional arguments that are tensors are copied then, as no graph can hold tensors that were
    made in inference mode.

    Args:
        function: a function that takes derivatives of its own.

    Returns:
        The wrapped function.
    """

    @functools.wraps(function)
    def outside(*args: Inputs.args, **options: Inputs.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return function(*args, **options)
        with torch.inference_mode(False), torch.no_grad():
            copies = [v.clone() if isinstance(v, Tensor) else v for v in args]
            return function(*copies, **options)  # type: ignore[arg-type]

    return outside


class Operator(Recorded, ExactBuffers, ABC):
    """A map H of data (*batch, *event_shape) to observations (*batch, *obs_shape), in float64.

    Args:
        event_shape: the shape of a datum.
        obs_shape: the shape of its observations.

    Raises:
        ValueError: an ``obs_shape`` without an observation.
    """

    def __init__(self, event_shape: Sequence[int], obs_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape, self.obs_shape = tuple(event_shape), tuple(obs_shape)
        if not math.prod(self.obs_shape):
            raise ValueError(
                f"H x has shape {self.obs_shape}, expected at least one observation; to draw data "
                "of which nothing is known use the model itself"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """:meth:`forward`, of data whose shape is checked."""
        check_shape("x", x, self.event_shape)
        return super().__call__(x)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """H x, (*batch, *obs_shape), for data x, (*batch, *event_shape)."""

    @abstractmethod
    def linearized(self, x: Tensor) -> Linear:
        """Products with the derivative of H and with its adjoint, a :class:`Linear`.

        Args:
            x: data at which the derivative is taken, (n, *event_shape).
        """

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError unless H has the properties of its class, on two random data."""

    def _two(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(2, *shape, generator=generator, dtype=torch.float64, device="cpu")
        return drawn.to(_device(self))

    def _check_shape(self, name: str, value: object, shape: tuple[int, ...]) -> None:
        if not isinstance(value, Tensor) or value.shape != (2, *shape):
            raise ValueError(
                f"{name} of {type(self).__name__} is {describe(value)} for two data, expected "
                f"a Tensor of shape {(2, *shape)}"
            )


class Linear(NamedTuple):
    """Products with a matrix J (m, d) of flattened data, one for each of n data."""

    forward: Callable[[Tensor], Tensor]  # J v, (n, *obs_shape), for v (n, *event_shape)
    adjoint: Callable[[Tensor], Tensor]  # Jᵀ u, (n, *event_shape), for u (n, *obs_shape)
    squares: Callable[[], Tensor]  # the diagonal of J Jᵀ, (*obs_shape) or (n, *obs_shape)


class Spectrum(NamedTuple):
    """Orthogonal coordinates of observations in which H Hᵀ is diagonal."""

    squares: Tensor  # the diagonal, (m,) or (1,)
    vectors: tuple[Tensor, Tensor] | None = None  # of columns and rows of (C, h, w); None: 1
    obs_shape: tuple[int, ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether the coordinates are the observations themselves."""
        return self.vectors is None

    def turn(self, obs: Tensor) -> Tensor:
        """The coordinates of observations, both (n, m)."""
        if self.vectors is None:
            return obs
        down, across = self.vectors
        return (down.mT @ obs.reshape(-1, *self.obs_shape) @ across).flatten(1)

    def back(self, turned: Tensor) -> Tensor:
        """The observations of coordinates, both (n, m)."""
        if self.vectors is None:
            return turned
        down, across = self.vectors
        return (down @ turned.reshape(-1, *self.obs_shape) @ across.mT).flatten(1)


class LinearOperator(Operator):
    """A linear map H of data (*batch, *event_shape) to observations (*batch, *obs_shape).

    A subclass defines :meth:`forward`, and may define :meth:`adjoint`. It computes in float64.

    Args:
        event_shape: the shape of a datum.
        obs_shape: the shape of its observations.

    Example:
        >>> class Sums(LinearOperator):
        ...     def forward(self, x):
        ...         return x.cumsum(-1)
        >>> H = Sums((3,), (3,))
        >>> H.check()
        >>> H.adjoint(torch.ones(3, dtype=torch.float64))
        tensor([3., 2., 1.], dtype=torch.float64)
    """

    independent: ClassVar[bool] = False
    """Whether H has full row rank for all arguments: no observation follows from the others."""

    def linearized(self, x: Tensor) -> Linear:
        """H and its adjoint, whatever x is."""
        return Linear(self, self.adjoint, lambda: self.squares.to(x.device))

    @functools.cached_property
    @torch.no_grad()
    def squares(self) -> Tensor:
        """The diagonal of H Hᵀ, (*obs_shape); of a large H an estimate by random data."""
        if math.prod(self.event_shape) * math.prod(self.obs_shape) <= LARGEST_MATRIX:
            return self.matrix().square().sum(1).reshape(self.obs_shape)
        return self(_signs(PROBES, self.event_shape, _device(self))).square().mean(0)

    @outside_inference_mode
    def adjoint(self, obs: Tensor) -> Tensor:
        """Hᵀ obs, (*batch, *event_shape), for obs, (*batch, *obs_shape).

        It is the derivative of H unless overridden.
        """
        check_shape("obs", obs, self.obs_shape)
        batch = obs.shape[: obs.dim() - len(self.obs_shape)]
        with torch.enable_grad():
            x = obs.new_zeros(*batch, *self.event_shape, requires_grad=True)
            (gradient,) = torch.autograd.grad(
                self(x), x, obs, create_graph=obs.requires_grad, materialize_grads=True
            )
        return gradient

    def spectrum(self) -> Spectrum | None:
        """Coordinates in which H Hᵀ is diagonal, where they are known."""
        return None

    def variances(self, spread: Tensor) -> Tensor | None:
        """The variances of H x, (n, *obs_shape), of x whose dimensions are independent.

        It is None where entries of H x depend on each other, or may do so.

        Args:
            spread: the variances of x, (n, *event_shape).
        """
        return None

    def matrix(self) -> Tensor:
        """H as a matrix (m, d) of flattened data and observations, in float64."""
        d, device = math.prod(self.event_shape), _device(self)
        basis = torch.eye(d, dtype=torch.float64, device=device).reshape(d, *self.event_shape)
        return self(basis).flatten(1).mT

    @torch.no_grad()
    def check(self) -> None:
        """Raise ValueError unless H is linear and :meth:`adjoint` its adjoint, on two data."""
        x, y = self._two(*self.event_shape), self._two(*self.obs_shape, seed=1)
        Hx, Hty = self(x), self.adjoint(y)
        self._check_shape("H x", Hx, self.obs_shape)
        self._check_shape("Hᵀ obs", Hty, self.event_shape)
        if not bool(Hx.any()):
            raise ValueError(
                f"H x of {type(self).__name__} is 0 for random data, so that nothing is measured; "
                "correct H, or draw data from the model itself"
            )
        together, apart = self(x[:1] - 2 * x[1:]), Hx[:1] - 2 * Hx[1:]
        if not float((together - apart).norm()) <= DIGITS * (1 + float(Hx.norm())):
            raise ValueError(
                f"H(x - 2 x') differs from H x - 2 H x' by {float((together - apart).norm()):.3g} "
                f"for random data, expected a linear H; leave what it adds to x out of "
                f"{type(self).__name__}, and subtract it from obs, or use NonlinearOperator"
            )
        left, right = float((Hx * y).sum()), float((x * Hty).sum())
        if not abs(left - right) <= DIGITS * float(Hx.norm() * y.norm() + x.norm() * Hty.norm()):
            raise ValueError(
                f"⟨H x, y⟩ is {left:.6g} and ⟨x, Hᵀ y⟩ {right:.6g} for random x and y, expected "
                "them to be equal; correct the adjoint, or leave it out for that of the derivative"
            )


class Matrix(LinearOperator):
    """The operator of a matrix that multiplies flattened data.

    Args:
        H: the matrix, (m, d), with d the number of dimensions of a datum.
        event_shape: the shape of a datum; None: (d,).

    Raises:
        ValueError: numbers that are not finite, another shape than (m, d).

    Example:
        >>> Matrix(torch.tensor([[1.0, 1.0]]))(torch.tensor([[2.0, 3.0]]))
        tensor([[5.]])
    """

    H: Tensor

    @checked_arguments
    def __init__(
        self, H: Tensor | Sequence[Sequence[float]], event_shape: Sequence[int] | None = None
    ) -> None:
        H = real_tensor("H", H, "a matrix (m, d) of the d dimensions of a datum")
        if H.dim() != 2 or not H.numel() or not bool(H.isfinite().all()):
            raise ValueError(
                f"H is {describe(H)}, expected finite numbers, (m, d) of m measurements of the d "
                "dimensions of a datum; write one measurement as H[None]"
            )
        shape = (H.shape[1],) if event_shape is None else tuple(event_shape)
        if math.prod(shape) != H.shape[1]:
            raise ValueError(
                f"H has shape {tuple(H.shape)}, expected {math.prod(shape)} columns, one for each "
                f"dimension of data of shape {shape}"
            )
        super().__init__(shape, H.shape[:1])
        self.register_buffer("H", H)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(x.dim() - len(self.event_shape)) @ self.H.mT.to(x.dtype)

    def adjoint(self, obs: Tensor) -> Tensor:
        check_shape("obs", obs, self.obs_shape)
        return (obs @ self.H.to(obs.dtype)).reshape(*obs.shape[:-1], *self.event_shape)


class FunctionOperator(LinearOperator):
    """The operator of a linear function.

    Args:
        function: the function that returns H x, (n, *obs_shape), for data x, (n, *event_shape), in
            float64; differentiable, unless the adjoint is given.
        event_shape: the shape of a datum.
        adjoint: the function that returns Hᵀ obs, (n, *event_shape); None: the derivative of
            ``function``.

    Raises:
        ValueError: a function that is not linear, or another ``adjoint`` than its own.

    Example:
        >>> mean = FunctionOperator(lambda x: x.mean((-2, -1)), (1, 4, 4))
        >>> mean(torch.ones(5, 1, 4, 4)).shape, mean.obs_shape
        (torch.Size([5, 1]), (1,))
    """

    @checked_arguments
    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        event_shape: Sequence[int],
        adjoint: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(event_shape, _obs_shape(function, event_shape))
        self.function, self._adjoint = function, adjoint
        self.check()

    def forward(self, x: Tensor) -> Tensor:
        return _flat_batch(self.function, x, self.event_shape)

    def adjoint(self, obs: Tensor) -> Tensor:
        check_shape("obs", obs, self.obs_shape)
        if self._adjoint is None:
            return super().adjoint(obs)
        return _flat_batch(self._adjoint, obs, self.obs_shape)


class NonlinearOperator(Operator):
    """The operator of a differentiable function, which guidance linearizes at x̂.

    At each step ``H(x) ≈ H(x̂) + J (x - x̂)``, with J the derivative at ``x̂ = E[x | z]`` (one
    Gauss-Newton step). So samples of a model conditioned on it are approximate, even for Gaussian
    data. They are nearly right where H is nearly straight over the width of p(x | z), that is, at
    high λ. :func:`~pyro_mdm.measurements.twisted_smc` weights by H itself, and is right in the
    limit.

    Args:
        function: the function that returns H(x), (n, *obs_shape), for data x, (n, *event_shape), in
            float64, each datum by itself; differentiable by ``torch.func``.
        event_shape: the shape of a datum.

    Raises:
        ValueError: H(x) or its derivative is not finite, for random data or later at an x̂.

    Example:
        >>> phaseless = NonlinearOperator(lambda x: torch.fft.rfft(x).abs(), (8,))
        >>> phaseless.obs_shape
        (5,)
    """

    @checked_arguments
    def __init__(self, function: Callable[[Tensor], Tensor], event_shape: Sequence[int]) -> None:
        super().__init__(event_shape, _obs_shape(function, event_shape))
        self.function = function
        self.check()

    def forward(self, x: Tensor) -> Tensor:
        return _flat_batch(self.function, x, self.event_shape)

    def linearized(self, x: Tensor) -> Linear:
        """The derivative J at data x, (n, *event_shape), by reverse mode.

        A product with J is the derivative of Jᵀ u, so that functions without a forward mode serve.

        Raises:
            ValueError: H(x) or J is not finite at finite x.
        """
        Hx, pull = torch.func.vjp(self.function, x.double())[:2]

        def adjoint(u: Tensor) -> Tensor:
            return pull(u.double())[0]

        nothing, push = torch.func.vjp(adjoint, torch.zeros_like(Hx))[:2]
        self._check_at(x, "H(x)", Hx)
        self._check_at(x, "the derivative of H", nothing)  # NaN, as 0 times ∞ is, or 0

        @torch.no_grad()
        def squares() -> Tensor:
            signs = _signs(FEW_PROBES, self.event_shape, x.device)
            return torch.stack([push(e.expand(x.shape))[0].square() for e in signs]).mean(0)

        return Linear(lambda v: push(v.double())[0], adjoint, squares)

    def _check_at(self, x: Tensor, name: str, value: Tensor) -> None:
        bad = (~value.isfinite()).flatten(1).any(1) & x.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            raise ValueError(
                f"{name} is infinite or NaN for {int(bad.sum())} of {len(x)} data, whose numbers "
                f"go from {x[bad].min().item():.3g} to {x[bad].max().item():.3g}, expected finite "
                "ones for all x; mend the function, e.g. (x.square() + 1e-6).sqrt() in the place "
                "of x.square().sqrt()"
            )

    @outside_inference_mode
    def check(self) -> None:
        """Raise ValueError unless H(x) and its derivative are finite, on two random data."""
        x = self._two(*self.event_shape)
        self._check_shape("H(x)", self(x), self.obs_shape)
        self.linearized(x)


class Mask(LinearOperator):
    """The operator of inpainting: the observed dimensions, in order, (number of them,).

    Args:
        seen: the mask of the observed dimensions, (*event_shape), bool.

    Raises:
        TypeError: a mask of another dtype.
        ValueError: a mask without True.

    Example:
        >>> Mask(torch.tensor([True, False, True]))(torch.tensor([1.0, 2.0, 3.0]))
        tensor([1., 3.])
    """

    independent = True
    seen: Tensor
    places: Tensor  # of what is seen, among flattened dimensions, (number of them,)

    @checked_arguments
    def __init__(self, seen: Tensor) -> None:
        check_mask("seen", seen)
        if not bool(seen.any()):
            raise ValueError("no dimension is seen, expected at least one True in the mask")
        super().__init__(seen.shape, (int(seen.sum()),))
        self.register_buffer("seen", seen.clone())
        # by places, since a GPU is asked for the number of True in each mask
        self.register_buffer("places", seen.flatten().nonzero().squeeze(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(x.dim() - len(self.event_shape)) if self.event_shape else x.unsqueeze(-1)
        return flat.index_select(-1, self.places)

    def adjoint(self, obs: Tensor) -> Tensor:
        check_shape("obs", obs, self.obs_shape)
        x = obs.new_zeros(*obs.shape[:-1], self.seen.numel())
        return x.index_copy(-1, self.places, obs).reshape(*obs.shape[:-1], *self.event_shape)

    def spectrum(self) -> Spectrum:
        return Spectrum(torch.ones(1, dtype=torch.float64, device=self.places.device))

    def variances(self, spread: Tensor) -> Tensor:
        return self(spread)


class Blur(LinearOperator):
    """The convolution of every channel with a Gaussian kernel; edges are replicated outwards.

    Args:
        event_shape: the shape of a datum, (C, H, W).
        width: the standard deviation of the kernel, in pixels; the kernel ends at three of it.

    Raises:
        ValueError: another event shape, a width that is not positive.

    Example:
        >>> blur = Blur((1, 8, 8), width=1.5)
        >>> blur(torch.ones(1, 8, 8)).allclose(torch.ones(1, 8, 8))  # the kernel sums to 1
        True
    """

    down: Tensor  # (H, H), of a column of pixels
    across: Tensor  # (W, W), of a row

    @checked_arguments
    def __init__(self, event_shape: Sequence[int], width: float = 1.0) -> None:
        _check_image(event_shape)
        width = check_number("width", width, "a positive number of pixels", positive=True)
        super().__init__(event_shape, event_shape)
        self.width = width
        self.register_buffer("down", _blurring(event_shape[1], width))
        self.register_buffer("across", _blurring(event_shape[2], width))

    def forward(self, x: Tensor) -> Tensor:
        return self.down.to(x.dtype) @ x @ self.across.mT.to(x.dtype)

    def adjoint(self, obs: Tensor) -> Tensor:
        check_shape("obs", obs, self.obs_shape)
        return self.down.mT.to(obs.dtype) @ obs @ self.across.to(obs.dtype)

    def spectrum(self) -> Spectrum:
        """The frequencies of an image, which replicated edges change a little."""
        (down, columns), (across, rows) = (
            torch.linalg.eigh(matrix @ matrix.mT) for matrix in (self.down, self.across)
        )
        squares = (down.unsqueeze(1) * across).expand(self.obs_shape).flatten()
        return Spectrum(squares.clamp_min(0), (columns, rows), self.obs_shape)


def _blurring(size: int, width: float) -> Tensor:
    """The matrix of the convolution of a row of pixels with the kernel, (size, size) in float64."""
    reach = math.ceil(3 * width)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).double() / width).square())
    pixel = torch.arange(size).unsqueeze(1)
    seen = (pixel + torch.arange(-reach, reach + 1)).clamp(0, size - 1)  # edges are replicated
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add(1, seen, (kernel / kernel.sum()).expand(size, -1))


class Downsample(LinearOperator):
    """The operator of superresolution: an image of fewer pixels, each the average of a square.

    Args:
        event_shape: the shape of a datum, (C, H, W).
        factor: the side of a square, in pixels, a divisor of H and W.

    Raises:
        ValueError: another event shape, a factor that is no divisor.

    Example:
        >>> Downsample((1, 8, 8), factor=4).obs_shape
        (1, 2, 2)
    """

    independent = True

    @checked_arguments
    def __init__(self, event_shape: Sequence[int], factor: Count = 2) -> None:
        _check_image(event_shape)
        channels, height, width = event_shape
        if height % factor or width % factor:
            raise ValueError(
                f"factor is {factor}, expected a divisor of the {height}×{width} pixels of an image"
            )
        super().__init__(event_shape, (channels, height // factor, width // factor))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        squares = x.unflatten(-1, (-1, self.factor)).unflatten(-3, (-1, self.factor))
        return squares.mean((-3, -1))

    def adjoint(self, obs: Tensor) -> Tensor:
        check_shape("obs", obs, self.obs_shape)
        spread = obs.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)
        return spread / self.factor**2

    def spectrum(self) -> Spectrum:
        square = 1 / self.factor**2
        return Spectrum(torch.full((1,), square, dtype=torch.float64, device=_device(self)))

    def variances(self, spread: Tensor) -> Tensor:
        return self(spread) / self.factor**2


def as_operator(
    H: Tensor | LinearOperator | NonlinearOperator, event_shape: Sequence[int]
) -> LinearOperator | NonlinearOperator:
    """H as an operator, checked.

    Args:
        H: an operator, or a matrix (m, d) that multiplies flattened data.
        event_shape: the shape of a datum.

    Returns:
        The operator itself, or a :class:`Matrix`.

    Raises:
        TypeError: H is neither operator nor matrix.
        ValueError: H is of data of another shape, not linear, or has a wrong adjoint.
    """
    if isinstance(H, Tensor):
        H = Matrix(H, event_shape)
    fix = "a matrix (m, d), or FunctionOperator(function, event_shape)"
    check_instance("H", H, (LinearOperator, NonlinearOperator), fix)
    if H.event_shape != tuple(event_shape):
        raise ValueError(
            f"H is of data of shape {H.event_shape}, expected {tuple(event_shape)}, that of the "
            "model's data"
        )
    H.check()
    return H


def _obs_shape(function: Callable[[Tensor], Tensor], event_shape: Sequence[int]) -> torch.Size:
    obs = function(torch.zeros(2, *event_shape, dtype=torch.float64))
    if not isinstance(obs, Tensor) or obs.dim() < 2 or len(obs) != 2:
        raise ValueError(
            f"H x is {describe(obs)} for two data, expected a Tensor of shape (2, *obs_shape); "
            "keep the first dimension, that of the data, e.g. by x[:, 0] or .flatten(1)"
        )
    return obs.shape[1:]


def _flat_batch(
    function: Callable[[Tensor], Tensor], value: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """A function of (n, *shape) of a value (*batch, *shape), (*batch, …)."""
    result = function(value.reshape(-1, *shape))
    return result.reshape(*value.shape[: value.dim() - len(shape)], *result.shape[1:])


def _signs(n: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """n random data of ±1, always the same, (n, *shape) in float64."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(2, (n, *shape), generator=generator, dtype=torch.float64)
    return (2 * drawn - 1).to(device)


def _check_image(event_shape: Sequence[int]) -> None:
    if len(event_shape) != 3:
        raise ValueError(f"event_shape is {tuple(event_shape)}, expected (C, H, W) of images")


def _device(module: nn.Module) -> torch.device:
    return next((b.device for b in module.buffers()), torch.device("cpu"))
